/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Error sentences and log lines. Each thread has its own last message, of any length, freed with the
 * thread. The log callback is called under a lock: lines do not overlap, and once pcow_set_log()
 * returns, the callback that was set before is not running any more.
 */
#include "error.h"

#include <libpcow/libpcow.h>

static GPrivate last_message = G_PRIVATE_INIT(g_free);

static GMutex log_lock;
static pcow_log_fn log_fn;
static void *log_opaque;

/* MESSAGE was formatted before the old one goes: the old one may be among its arguments. */
static void set_message(char *message) { g_private_replace(&last_message, message); }

int fail(int errnum, const char *format, ...)
{
  va_list args;

  va_start(args, format);
  set_message(g_strdup_vprintf(format, args));
  va_end(args);
  return -errnum;
}

int fail_errno(int errnum, const char *format, ...)
{
  va_list args;
  char *text;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  set_message(g_strconcat(text, ": ", g_strerror(errnum), NULL));
  g_free(text);
  return -errnum;
}

void error_prefix(const char *format, ...)
{
  va_list args;
  char *text;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  set_message(g_strconcat(text, ": ", error_message(), NULL));
  g_free(text);
}

const char *error_message(void)
{
  const char *message = g_private_get(&last_message);

  return message ? message : "";
}

void log_message(int level, const char *format, ...)
{
  va_list args;
  char *text;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  g_mutex_lock(&log_lock);
  if (log_fn)
    log_fn(log_opaque, level, text);
  g_mutex_unlock(&log_lock);
  g_free(text);
}

API const char *pcow_errormsg(void) { return error_message(); }

API void pcow_set_log(pcow_log_fn fn, void *opaque)
{
  g_mutex_lock(&log_lock);
  log_fn = fn;
  log_opaque = opaque;
  g_mutex_unlock(&log_lock);
}

API const char *pcow_version(void) { return "0.1.0"; }
