/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Results for people, for programs and as pictures.
 */
#ifndef PCOW_BENCH_REPORT_H
#define PCOW_BENCH_REPORT_H

#include "run.h"

/* "1.23 µs", "4.0 MiB"; to be freed. */
char *report_value(enum metric metric, double value);
/* "libpcow store-durable: 81x as fast as qcow2 over NBD, at least 80x is wanted: met"; to be freed. */
char *report_verdict(const struct result *result, const struct verdict *verdict);
/* Lines about the machine and the run, which no figure should be without. To be freed with g_strfreev(). */
char **report_setting(const struct settings *settings);

/* A case on standard output. */
void report_human(const struct result *result);
/* How many targets were met, at the end. */
void report_sum(GPtrArray *results, const struct settings *settings);
/* Everything, as one document, on standard output. */
void report_json(GPtrArray *results, const struct settings *settings);
/* DIR/CASE.svg for each case, and DIR/overview.svg with all targets. BENCH_*. */
int report_svg(GPtrArray *results, const struct settings *settings, const char *dir);

#endif
