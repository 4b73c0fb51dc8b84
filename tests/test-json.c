/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The tools' JSON writer: an independent reader (json-glib) finds every document valid and every value what
 * was written, for random documents of random bytes, and what a terminal would obey is escaped.
 *
 *     test-json [--seed N]
 */
#include "json.h"

#include "testlib.h"

#include <inttypes.h>
#include <json-glib/json-glib.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define DOCUMENTS 3000
#define DEEPEST 8

/* What was written: a value, or what is within an array or object. */
struct expected {
  enum { TEXT, NUMBER, SIGNED, REAL, FLAG, NOTHING, ARRAY, OBJECT } kind;
  char *key;
  char *text;
  uint64_t number;
  double real;
  GPtrArray *members; /* struct expected */
};

static GRand *draw;

static unsigned below(unsigned n)
{
  return (unsigned)g_rand_int_range(draw, 0, (gint32)n);
}

/* Bytes of all kinds: ASCII, controls, valid and broken sequences. */
static char *any_text(void)
{
  static const char *const pieces[] = {
    "a", "\"", "\\", "/", "\n", "\x7f", "\xc3\xa4", "\xc2\x9b", "\xe2\x82\xac", "\xe2\x80\xa8",
    "\xf0\x9f\x98\x80", "\xff", "\xc3", "\xed\xa0\x80", "\xc0\x80", "\xf8",
  };
  GString *text = g_string_new(NULL);

  for (unsigned n = below(12); n; n--)
    if (below(2))
      g_string_append(text, pieces[below(G_N_ELEMENTS(pieces))]);
    else
      g_string_append_c(text, (char)(1 + below(255)));
  return g_string_free(text, FALSE);
}

static void expected_free(gpointer data)
{
  struct expected *e = data;

  if (e->members)
    g_ptr_array_unref(e->members);
  g_free(e->key);
  g_free(e->text);
  g_free(e);
}

static uint64_t any_number(void)
{
  return ((uint64_t)g_rand_int(draw) << 32 | g_rand_int(draw)) >> below(64);
}

static struct expected *write_value(json_writer *json, const char *key, unsigned depth)
{
  struct expected *e = g_new0(struct expected, 1);

  e->kind = below(depth < DEEPEST ? OBJECT + 1 : NOTHING + 1);
  if (depth == 0 && e->kind < ARRAY)
    e->kind = ARRAY;
  e->number = any_number();
  switch (e->kind) {
    case TEXT:
      e->text = any_text();
      json_text(json, key, e->text);
      break;
    case NUMBER:
      e->number >>= 1; /* the reader knows signed numbers only */
      json_number(json, key, e->number);
      break;
    case SIGNED:
      json_signed(json, key, (int64_t)e->number);
      break;
    case REAL:
      e->real = ldexp(g_rand_double_range(draw, -1, 1), (int)below(200) - 100);
      json_real(json, key, e->real);
      break;
    case FLAG:
      json_flag(json, key, (e->number & 1) != 0);
      break;
    case NOTHING:
      json_real(json, key, below(2) ? NAN : -INFINITY);
      break;
    case ARRAY:
    case OBJECT:
    default:
      e->members = g_ptr_array_new_with_free_func(expected_free);
      if (e->kind == ARRAY)
        json_begin_array(json, key);
      else
        json_begin_object(json, key);
      for (unsigned n = below(5), i = 0; i < n; i++) {
        g_autofree char *text = any_text();
        char *name = e->kind == OBJECT ? g_strdup_printf("%u%s", i, text) : NULL; /* no two are the same */
        struct expected *member = write_value(json, name, depth + 1);

        member->key = name;
        g_ptr_array_add(e->members, member);
      }
      json_end(json);
  }
  return e;
}

static void compare(JsonNode *node, const struct expected *e)
{
  g_autofree char *valid = NULL;

  CHECK(node, "a value is missing");
  switch (e->kind) {
    case TEXT:
      valid = g_utf8_make_valid(e->text, -1);
      CHECK(g_strcmp0(json_node_get_string(node), valid) == 0, "'%s' is read as '%s'", e->text,
            json_node_get_string(node));
      break;
    case NUMBER:
    case SIGNED:
      CHECK(json_node_get_value_type(node) == G_TYPE_INT64 && json_node_get_int(node) == (int64_t)e->number,
            "%" PRIu64 " is read as %" PRId64, e->number, json_node_get_int(node));
      break;
    case REAL:
      CHECK(fabs(json_node_get_double(node) - e->real) <= fabs(e->real) * 1e-14, "%.17g is read as %.17g",
            e->real, json_node_get_double(node));
      break;
    case FLAG:
      CHECK(json_node_get_value_type(node) == G_TYPE_BOOLEAN &&
                json_node_get_boolean(node) == (gboolean)(e->number & 1), "a flag is wrong");
      break;
    case NOTHING:
      CHECK(json_node_is_null(node), "null is not null");
      break;
    case ARRAY:
    case OBJECT:
    default:
      CHECK(e->kind == ARRAY ? JSON_NODE_HOLDS_ARRAY(node) : JSON_NODE_HOLDS_OBJECT(node), "wrong brackets");
      CHECK(e->members->len == (e->kind == ARRAY ? json_array_get_length(json_node_get_array(node))
                                                 : json_object_get_size(json_node_get_object(node))),
            "not %u members", e->members->len);
      for (guint i = 0; i < e->members->len; i++) {
        const struct expected *member = g_ptr_array_index(e->members, i);

        if (e->kind == ARRAY) {
          compare(json_array_get_element(json_node_get_array(node), i), member);
          continue;
        }
        valid = g_utf8_make_valid(member->key, -1);
        compare(json_object_get_member(json_node_get_object(node), valid), member);
        g_clear_pointer(&valid, g_free);
      }
  }
}

/* Nothing but line ends, printable ASCII and valid UTF-8 without control characters. */
static void check_plain(const char *document)
{
  CHECK(g_utf8_validate(document, -1, NULL), "not UTF-8: %s", document);
  CHECK(g_str_has_suffix(document, "\n"), "no end of the line: %s", document);
  for (const char *at = document; *at; at = g_utf8_next_char(at))
    CHECK(*at == '\n' || !g_unichar_iscntrl(g_utf8_get_char(at)), "a control character in %s", document);
}

static void check_random(void)
{
  g_autoptr(json_writer) json = json_new();
  g_autoptr(JsonParser) parser = json_parser_new();
  g_autoptr(GError) error = NULL;
  struct expected *e = write_value(json, NULL, 0);

  check_plain(json_document(json));
  CHECK(json_parser_load_from_data(parser, json_document(json), -1, &error), "%s in %s", error->message,
        json_document(json));
  compare(json_parser_get_root(parser), e);
  expected_free(e);
}

static void check_look(void)
{
  static const char wanted[] =
    "{\n"
    "    \"name\": \"\\u001b[1m \\\"\\\\\\b\\f\\n\\r\\t/\\u007f\\u009b\xc3\xa4\xef\xbf\xbd\",\n"
    "    \"large\": 18446744073709551615,\n"
    "    \"small\": -9223372036854775808,\n"
    "    \"real\": 0.25,\n"
    "    \"none\": [],\n"
    "    \"list\": [\n"
    "        true,\n"
    "        {}\n"
    "    ]\n"
    "}\n";
  g_autoptr(json_writer) json = json_new();

  json_begin_object(json, NULL);
  json_text(json, "name", "\x1b[1m \"\\\b\f\n\r\t/\x7f\xc2\x9b\xc3\xa4\xff");
  json_text(json, "left-out", NULL);
  json_number(json, "large", UINT64_MAX);
  json_signed(json, "small", INT64_MIN);
  json_real(json, "real", 0.25);
  json_begin_array(json, "none");
  json_end(json);
  json_begin_array(json, "list");
  json_flag(json, NULL, true);
  json_begin_object(json, NULL);
  json_end(json);
  json_end(json);
  json_end(json);
  CHECK(strcmp(json_document(json), wanted) == 0, "not as it should look:\n%s", json_document(json));
}

int main(int argc, char **argv)
{
  uint64_t seed = test_seed(argc, argv);

  if (setlocale(LC_ALL, "de_DE.UTF-8")) /* a decimal comma, where it is installed */
    printf("with a decimal comma\n");
  draw = g_rand_new_with_seed((guint32)seed);
  check_look();
  for (unsigned i = 0; i < DOCUMENTS; i++)
    check_random();
  g_rand_free(draw);
  return 0;
}
