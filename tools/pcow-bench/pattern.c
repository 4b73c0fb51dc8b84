/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Patterns and timed loops; see pattern.h. The order of a random run comes from a bijection on the numbers of
 * blocks, which takes a few nanoseconds and no memory, and is the same for every contender.
 *
 * Cache lines are flushed by code of our own, and not through libpmem or pcow_persist(): that is what a guest
 * does, and so the floor and libpcow differ in the mapping alone.
 */
#include "pattern.h"

#include <string.h>
#include <time.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

#define GRANULE (64 * KIB)
#define LINE 64
#define HOT_VISITS 4
#define CLOCK_EVERY 16 /* flushes: a look at the clock takes longer than the shortest of them */
#define RUN_LIMIT UINT64_C(5000000000) /* a run ends after so many nanoseconds, whatever is left of it */

uint64_t now_ns(void)
{
  struct timespec ts;

  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- Cache lines ---- */

#ifdef __x86_64__

typedef void (*lines_fn)(const char *from, const char *end);

__attribute__((target("clwb"))) static void lines_clwb(const char *from, const char *end)
{
  for (; from < end; from += LINE)
    _mm_clwb((void *)(uintptr_t)from);
}

__attribute__((target("clflushopt"))) static void lines_clflushopt(const char *from, const char *end)
{
  for (; from < end; from += LINE)
    _mm_clflushopt((void *)(uintptr_t)from);
}

static void lines_clflush(const char *from, const char *end)
{
  for (; from < end; from += LINE)
    _mm_clflush(from);
}

static lines_fn flush_lines = lines_clflush;
static const char *flush_name = "clflush";

void pattern_init(void)
{
  unsigned a, b = 0, c, d;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
    return;
  if (b & (1u << 24)) {
    flush_lines = lines_clwb;
    flush_name = "clwb";
  } else if (b & (1u << 23)) {
    flush_lines = lines_clflushopt;
    flush_name = "clflushopt";
  }
}

/* Long copies go past the cache, as a file system with DAX copies (memcpy_flushcache). */
void flush_copy(void *to, const void *from, size_t length)
{
  if (length >= 256 && !(((uintptr_t)to | length) & 15)) {
    __m128i *t = to;
    const __m128i *f = from;

    for (size_t i = 0; i < length / sizeof(*t); i++)
      _mm_stream_si128(t + i, _mm_loadu_si128(f + i));
    return;
  }
  memcpy(to, from, length);
  flush_lines((const char *)((uintptr_t)to & ~(uintptr_t)(LINE - 1)), (const char *)to + length);
}

void flush_fence(void) { _mm_sfence(); }

#else

static const char *flush_name = "none known for this CPU";

void pattern_init(void) {}

void flush_copy(void *to, const void *from, size_t length) { memcpy(to, from, length); }

void flush_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#endif

const char *pattern_flush_name(void) { return flush_name; }

/* ---- Order ---- */

/* A bijection on [0, COUNT), COUNT a power of two: odd multiplications and shifted exclusive-ors. */
static uint64_t mix(uint64_t index, uint64_t count, uint64_t seed)
{
  unsigned bits = (unsigned)__builtin_ctzll(count);
  uint64_t mask = count - 1;
  unsigned shift = bits / 2 + 1;

  index = (index + seed) & mask;
  index = (index * UINT64_C(0x9e3779b97f4a7c15)) & mask;
  index ^= index >> shift;
  index = (index * UINT64_C(0xbf58476d1ce4e5b9)) & mask;
  index ^= index >> shift;
  return index;
}

uint64_t pattern_offset(const struct task *task, unsigned run, uint64_t index)
{
  uint64_t count;

  switch (task->order) {
    case ORDER_SEQUENTIAL:
      count = task->size / task->block;
      return index % count * task->block;
    case ORDER_RANDOM:
      count = task->size / task->block;
      return mix(index & (count - 1), count, run * UINT64_C(7919)) * task->block;
    case ORDER_HOT:
      run = 0;
      index %= MAX(task->operations / HOT_VISITS, 1);
      G_GNUC_FALLTHROUGH;
    case ORDER_SCATTERED:
    default:
      count = task->size / GRANULE;
      return mix(index & (count - 1), count, run * UINT64_C(7919)) * GRANULE + (index * 7 & 15) * PAGE;
  }
}

double pattern_per_operation(const struct task *task, uint64_t done, uint64_t nanoseconds)
{
  return (double)nanoseconds / (double)done * (double)(task->per_flush ? task->flush_every : 1);
}

bool pattern_over(uint64_t start) { return now_ns() - start > RUN_LIMIT; }

void pattern_fill(char *block, size_t length, uint64_t seed)
{
  for (size_t i = 0; i + sizeof(seed) <= length; i += sizeof(seed)) {
    uint64_t word = (seed + i) * UINT64_C(0x9e3779b97f4a7c15) | 1;

    memcpy(block + i, &word, sizeof(word));
  }
}

/* ---- Loops ---- */

static void read_loop(const struct subject *s)
{
  const struct task *task = s->task;
  _Alignas(64) char block[PAGE];

  for (uint64_t i = 0; i < task->operations; i++) {
    memcpy(block, s->memory + pattern_offset(task, s->run, i), task->block);
    __asm__ volatile("" : : "r"(block) : "memory"); /* the copy is not left out */
  }
}

/* The number of writes, or BENCH_*. */
static int64_t write_loop(struct subject *s, pattern_flush_fn flush, uint64_t start)
{
  const struct task *task = s->task;
  uint64_t dirty = 0, flushes = 0, i;
  _Alignas(64) char block[PAGE];

  pattern_fill(block, sizeof(block), s->run);
  for (i = 0; i < task->operations; i++) {
    char *to = s->memory + (s->last = pattern_offset(task, s->run, i));

    memcpy(block, &i, sizeof(i));
    if (flush)
      memcpy(to, block, task->block);
    else
      flush_copy(to, block, task->block);
    if (++dirty < task->flush_every)
      continue;
    dirty = 0;
    if (!flush)
      flush_fence();
    else if (flush(s))
      return BENCH_FAILED;
    else if (++flushes % CLOCK_EVERY == 0 && pattern_over(start)) {
      i++;
      break;
    }
  }
  return flush && dirty && flush(s) ? BENCH_FAILED : (int64_t)i;
}

int pattern_run(struct subject *s, pattern_flush_fn flush, struct sample *sample)
{
  uint64_t start = now_ns();
  int64_t done = (int64_t)s->task->operations;

  if (s->task->write)
    done = write_loop(s, flush, start);
  else
    read_loop(s);
  if (done < 0)
    return (int)done;
  sample->values[METRIC_TIME] = pattern_per_operation(s->task, (uint64_t)done, now_ns() - start);
  return BENCH_OK;
}

void pattern_touch(struct subject *s, bool write)
{
  _Alignas(64) char block[PAGE];

  for (uint64_t offset = 0; offset < s->task->size; offset += PAGE) {
    if (write) {
      pattern_fill(block, sizeof(block), offset);
      flush_copy(s->memory + offset, block, sizeof(block));
    } else {
      (void)*(volatile char *)(s->memory + offset);
    }
  }
  flush_fence();
}
