/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A line on standard error that says what runs.
 */
#ifndef PCOW_BENCH_PROGRESS_H
#define PCOW_BENCH_PROGRESS_H

#include "bench.h"

/* FORMAT NULL: takes the line away. Nothing unless progress was asked for. */
void progress_show(const struct settings *settings, const char *format, ...) G_GNUC_PRINTF(2, 3);

#endif
