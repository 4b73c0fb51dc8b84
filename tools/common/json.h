/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writes one JSON document, indented. What is written is valid as long as each value in an object has a
 * key, each other one has none (NULL), and what was begun is ended. Text may be any bytes: what is not
 * UTF-8 in it becomes U+FFFD, byte by byte, and control characters are escaped.
 */
#ifndef TOOLS_JSON_H
#define TOOLS_JSON_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct json_writer json_writer;

json_writer *json_new(void);
void json_free(json_writer *json); /* NULL: nothing */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_writer, json_free)

void json_begin_object(json_writer *json, const char *key);
void json_begin_array(json_writer *json, const char *key);
void json_end(json_writer *json); /* the innermost of them */

void json_text(json_writer *json, const char *key, const char *text); /* NULL: leaves the member out */
void json_number(json_writer *json, const char *key, uint64_t number);
void json_signed(json_writer *json, const char *key, int64_t number);
void json_real(json_writer *json, const char *key, double number); /* 15 digits; null if it is not finite */
void json_flag(json_writer *json, const char *key, bool flag);

/* The document, with a line's end; it stays the writer's. */
const char *json_document(const json_writer *json);

#endif
