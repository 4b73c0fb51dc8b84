/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A contender at work, in a process of its own: its memory and VMAs are told apart from those of others, and
 * what kills it kills nobody else. It dies with the program.
 */
#ifndef PCOW_BENCH_WORKER_H
#define PCOW_BENCH_WORKER_H

#include "bench.h"

struct worker {
  const struct contender *contender;
  char *dir;
  pid_t pid;
  int fd;
  int status;    /* BENCH_*: other than OK, it does nothing more */
  char *reason;
};

/* Forks, and opens the contender. DIR is made for it, and removed by worker_end(). */
void worker_begin(struct worker *worker, const struct settings *settings, const struct contender *contender,
                  const char *dir);
/* One run. */
void worker_run(struct worker *worker, struct sample *sample);
/* Closes the contender and removes its files. */
void worker_end(struct worker *worker);

#endif
