/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs a case, and says what came of it.
 */
#ifndef PCOW_BENCH_RUN_H
#define PCOW_BENCH_RUN_H

#include "bench.h"
#include "stats.h"

struct row {
  const struct contender *contender;
  int status;    /* BENCH_* */
  char *reason;  /* unless OK: one sentence */
  GArray *samples; /* struct sample, without the warm-up */
  struct stats stats[METRICS];
};

struct verdict {
  struct target target;
  double measured; /* a ratio, or in the metric's unit; NAN: something is missing */
  bool known, met;
};

struct result {
  const struct bench_case *which;
  struct plan *plan;
  GArray *rows;     /* struct row, one a contender */
  GArray *verdicts; /* struct verdict */
};

/* NULL: interrupted. */
struct result *run_case(const struct settings *settings, const struct bench_case *which);
void result_free(struct result *result);

/* A contender of libpcow failed, other than by what this machine cannot do. */
bool result_failed(const struct result *result);

#endif
