/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Medians and spread of a few values.
 */
#ifndef PCOW_BENCH_STATS_H
#define PCOW_BENCH_STATS_H

#include <stddef.h>

struct stats {
  size_t count; /* 0: nothing was measured, and the rest is NAN */
  double min, lower, median, upper, max; /* lower and upper: quartiles */
};

/* NANs among VALUES are left out. */
struct stats stats_of(const double *values, size_t count);

#endif
