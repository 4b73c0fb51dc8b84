/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a run prints to stdout. It is kept in memory until the command has succeeded, so that a failed
 * command leaves stdout empty.
 */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdint.h>

#define OUTPUT_SCHEMA_VERSION 1 /* changes when a JSON key changes its meaning or goes away */

void output_printf(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* One JSON document. Takes the builder, whose outermost array or object has ended. */
void output_json(JsonBuilder *builder);

/* Members of the object that is being built. Text that is not UTF-8 (a file name may be anything) is
 * made valid; numbers are plain bytes. NULL text leaves the member out. */
void output_member_text(JsonBuilder *builder, const char *key, const char *text);
void output_member_number(JsonBuilder *builder, const char *key, uint64_t number);
void output_member_flag(JsonBuilder *builder, const char *key, gboolean flag);

/* LENGTH bytes as lower-case hexadecimal digits. The caller frees it. */
char *output_hex(const uint8_t *bytes, size_t length);

/* Writes everything out. 0, or COMMAND_FAILED with the error recorded. */
int output_finish(void);

/* A name as people see it, on one line; the caller frees it. NULL stays NULL. */
char *output_name(const char *name);

#endif
