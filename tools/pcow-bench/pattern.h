/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where a run reads and writes, and how stores become durable: the same code for every mapped contender.
 */
#ifndef PCOW_BENCH_PATTERN_H
#define PCOW_BENCH_PATTERN_H

#include "bench.h"

/* Finds out how this CPU flushes a cache line. Once, before workers start. */
void pattern_init(void);
const char *pattern_flush_name(void);

/* Copies and writes back the cache lines; they are durable after flush_fence(). */
void flush_copy(void *to, const void *from, size_t length);
void flush_fence(void);

/* Offset of operation INDEX of run RUN. */
uint64_t pattern_offset(const struct task *task, unsigned run, uint64_t index);

/* How a result is told, after DONE writes or reads: per write, read or flush. */
double pattern_per_operation(const struct task *task, uint64_t done, uint64_t nanoseconds);

/* The run that began at START has lasted long enough: its operations are so slow that fewer of them will do. */
bool pattern_over(uint64_t start);

typedef int (*pattern_flush_fn)(struct subject *s);

/* One run on s->memory. FLUSH (NULL: the CPU's own flush and fence) is called every task->flush_every writes;
 * with it, stores are plain. */
int pattern_run(struct subject *s, pattern_flush_fn flush, struct sample *sample);

/* Writes (or reads) every page of s->memory once. */
void pattern_touch(struct subject *s, bool write);

/* Bytes that differ from page to page. */
void pattern_fill(char *block, size_t length, uint64_t seed);

#endif
