/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Standard output, kept until the command has succeeded; see output.h.
 */
#include "output.h"

#include "report.h"

#include <errno.h>
#include <stdio.h>

static GString *pending;

static GString *buffer(void)
{
  if (!pending)
    pending = g_string_new(NULL);
  return pending;
}

void output_printf(const char *format, ...)
{
  va_list args;

  va_start(args, format);
  g_string_append_vprintf(buffer(), format, args);
  va_end(args);
}

void output_json(json_writer *json)
{
  g_string_append(buffer(), json_document(json));
  json_free(json);
}

char *output_hex(const uint8_t *bytes, size_t length)
{
  GString *text = g_string_sized_new(2 * length);

  for (size_t i = 0; i < length; i++)
    g_string_append_printf(text, "%02x", bytes[i]);
  return g_string_free(text, FALSE);
}

char *output_name(const char *name)
{
  char *text = g_strdup(name);

  for (char *c = text; c && *c; c++)
    if (g_ascii_iscntrl(*c))
      *c = '?';
  return text;
}

int output_finish(void)
{
  if (!pending)
    return 0;
  /* Names from images may hold what a terminal takes for a command. JSON has escaped it. */
  for (gsize i = 0; i < pending->len; i++)
    if (g_ascii_iscntrl(pending->str[i]) && pending->str[i] != '\n')
      pending->str[i] = '?';
  if (fwrite(pending->str, 1, pending->len, stdout) != pending->len || fflush(stdout))
    return report_errno(errno, "standard output");
  return 0;
}
