/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The JSON writer; see json.h. A library for it would take longer to load than most commands run.
 */
#include "json.h"

#include <math.h>
#include <string.h>

#define INDENT 4

struct json_writer {
  GString *text;
  GString *closing; /* what ends the arrays and objects that have begun, the innermost last */
  bool empty;       /* nothing is in the innermost yet */
};

json_writer *json_new(void)
{
  json_writer *json = g_new(json_writer, 1);

  json->text = g_string_new(NULL);
  json->closing = g_string_new(NULL);
  json->empty = true;
  return json;
}

void json_free(json_writer *json)
{
  if (!json)
    return;
  g_string_free(json->text, TRUE);
  g_string_free(json->closing, TRUE);
  g_free(json);
}

const char *json_document(const json_writer *json)
{
  return json->text->str;
}

static void line(json_writer *json)
{
  g_string_append_printf(json->text, "\n%*s", (int)json->closing->len * INDENT, "");
}

static void append_character(GString *text, gunichar c)
{
  static const char plain[] = "\"\\\b\f\n\r\t", escaped[] = "\"\\bfnrt";
  const char *found = c && c < 0x80 ? strchr(plain, (int)c) : NULL;

  if (found)
    g_string_append_printf(text, "\\%c", escaped[found - plain]);
  else if (g_unichar_iscntrl(c)) /* a terminal takes those beyond ASCII for commands, too */
    g_string_append_printf(text, "\\u%04x", c);
  else
    g_string_append_unichar(text, c);
}

static void append_text(GString *to, const char *text)
{
  g_autofree char *valid = g_utf8_make_valid(text, -1);

  g_string_append_c(to, '"');
  for (const char *at = valid; *at; at = g_utf8_next_char(at))
    append_character(to, g_utf8_get_char(at));
  g_string_append_c(to, '"');
}

/* What stands before a value. */
static void begin(json_writer *json, const char *key)
{
  if (!json->empty)
    g_string_append_c(json->text, ',');
  if (json->closing->len)
    line(json);
  json->empty = false;
  if (!key)
    return;
  append_text(json->text, key);
  g_string_append(json->text, ": ");
}

/* What stands after one. */
static void end(json_writer *json)
{
  if (!json->closing->len)
    g_string_append_c(json->text, '\n');
}

static void begin_nested(json_writer *json, const char *key, char opening, char closing)
{
  begin(json, key);
  g_string_append_c(json->text, opening);
  g_string_append_c(json->closing, closing);
  json->empty = true;
}

void json_begin_object(json_writer *json, const char *key)
{
  begin_nested(json, key, '{', '}');
}

void json_begin_array(json_writer *json, const char *key)
{
  begin_nested(json, key, '[', ']');
}

void json_end(json_writer *json)
{
  char closing = json->closing->str[json->closing->len - 1];

  g_string_truncate(json->closing, json->closing->len - 1);
  if (!json->empty)
    line(json);
  g_string_append_c(json->text, closing);
  json->empty = false;
  end(json);
}

void json_text(json_writer *json, const char *key, const char *text)
{
  if (!text)
    return;
  begin(json, key);
  append_text(json->text, text);
  end(json);
}

static void word(json_writer *json, const char *key, const char *text)
{
  begin(json, key);
  g_string_append(json->text, text);
  end(json);
}

void json_number(json_writer *json, const char *key, uint64_t number)
{
  g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, number);

  word(json, key, text);
}

void json_signed(json_writer *json, const char *key, int64_t number)
{
  g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, number);

  word(json, key, text);
}

void json_real(json_writer *json, const char *key, double number)
{
  char text[G_ASCII_DTOSTR_BUF_SIZE]; /* not by printf(), which asks the locale for the decimal point */

  word(json, key, isfinite(number) ? g_ascii_formatd(text, sizeof(text), "%.15g", number) : "null");
}

void json_flag(json_writer *json, const char *key, bool flag)
{
  word(json, key, flag ? "true" : "false");
}
