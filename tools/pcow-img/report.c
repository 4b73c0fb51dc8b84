/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The error of a run, and the library's log as warnings; see report.h.
 */
#include "report.h"

#include <libpcow/libpcow.h>
#include <stdio.h>
#include <string.h>

static char *message;

static GMutex warnings_lock;
static GPtrArray *warnings;

static void record(const char *text)
{
  if (!message)
    message = g_strdup(text);
}

int report_fail(const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  record(text);
  return COMMAND_FAILED;
}

int report_errno(int errnum, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  return report_fail("%s: %s", text, g_strerror(errnum));
}

int report_library(void)
{
  /* The library speaks of its own options; these are ours. */
  if (strstr(pcow_errormsg(), " is not followed"))
    return report_fail("%s; --base-dir=DIR or --any-base allows it", pcow_errormsg());
  record(pcow_errormsg());
  return COMMAND_FAILED;
}

static void on_log(void *opaque, int level, const char *text)
{
  (void)opaque;
  if (level > PCOW_LOG_WARNING)
    return;
  g_mutex_lock(&warnings_lock);
  /* A run may open a file several times; one warning is enough. */
  if (!g_ptr_array_find_with_equal_func(warnings, text, g_str_equal, NULL))
    g_ptr_array_add(warnings, g_strdup(text));
  g_mutex_unlock(&warnings_lock);
}

void report_collect_warnings(void)
{
  warnings = g_ptr_array_new_with_free_func(g_free);
  pcow_set_log(on_log, NULL);
}

/* File names may hold anything; a message stays one line. */
static void print_line(const char *prefix, const char *text)
{
  g_autofree char *line = g_strdup(text);

  for (char *c = line; *c; c++)
    if (g_ascii_iscntrl(*c))
      *c = '?';
  fprintf(stderr, "%s%s\n", prefix, line);
}

void report_print_warnings(void)
{
  g_mutex_lock(&warnings_lock);
  for (guint i = 0; warnings && i < warnings->len; i++)
    print_line("pcow-img: warning: ", g_ptr_array_index(warnings, i));
  g_mutex_unlock(&warnings_lock);
}

void report_print_error(void)
{
  print_line("pcow-img: ", message ? message : "failed for an unknown reason");
}
