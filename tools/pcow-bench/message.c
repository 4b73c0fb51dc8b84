/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The line that shows progress, and the sentence why something was not done.
 */
#include "progress.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static char *message;

static void set_message(const char *format, va_list args)
{
  char *text = g_strdup_vprintf(format, args); /* an argument may be the old message */

  g_free(message);
  message = text;
  for (char *c = message; *c; c++)
    if (g_ascii_iscntrl(*c))
      *c = ' ';
}

int bench_fail(const char *format, ...)
{
  va_list args;

  va_start(args, format);
  set_message(format, args);
  va_end(args);
  return BENCH_FAILED;
}

int bench_skip(const char *format, ...)
{
  va_list args;

  va_start(args, format);
  set_message(format, args);
  va_end(args);
  return BENCH_SKIPPED;
}

int bench_fail_errno(const char *format, ...)
{
  int error = errno;
  g_autofree char *text = NULL;
  va_list args;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  return bench_fail("%s: %s", text, g_strerror(error));
}

int bench_fail_library(int error)
{
  bench_fail("%s", pcow_errormsg());
  return error == -ENOTSUP || error == -EPERM ? BENCH_SKIPPED : BENCH_FAILED;
}

const char *bench_message(void) { return message ? message : "for an unknown reason"; }

void progress_show(const struct settings *settings, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  if (!settings->progress)
    return;
  if (!format) {
    fputs("\r\033[K", stderr);
  } else {
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "\r\033[K%.100s", text);
  }
  fflush(stderr);
}
