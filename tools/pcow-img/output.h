/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a run prints to stdout. It is kept in memory until the command has succeeded, so that a failed
 * command leaves stdout empty.
 */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "json.h"

#include <glib.h>
#include <stdint.h>

#define OUTPUT_SCHEMA_VERSION 1 /* changes when a JSON key changes its meaning or goes away */

void output_printf(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* One JSON document, which has ended. Takes the writer. */
void output_json(json_writer *json);

/* LENGTH bytes as lower-case hexadecimal digits. The caller frees it. */
char *output_hex(const uint8_t *bytes, size_t length);

/* Writes everything out. 0, or COMMAND_FAILED with the error recorded. */
int output_finish(void);

/* A name as people see it, on one line; the caller frees it. NULL stays NULL. */
char *output_name(const char *name);

#endif
