/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Live snapshots under storing threads: each is a consistent cut. Every thread stores increasing
 * numbers to its word of one page after the other, and with each number the last one that it saw its
 * neighbour complete. A snapshot that has a store has all earlier ones of the thread and all that the
 * neighbour had completed before; no store is lost, live or after a reopen.
 *
 *     test-snapshot-live [--snapshots N] [--threads N] [--pages N] [--no-base] [--seed N] [--dir DIR]
 *
 * ThreadSanitizer does not see the stores (see test-map-threads.c).
 */
#include "testlib.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS (PCOW_PAGE_SIZE / 8)
#define THREADS_MAX 16
#define LIVING 8 /* snapshots at a time */

/* One 8-byte store: the thread's own number, and the neighbour's last completed one. */
#define RECORD(number, seen) ((uint64_t)(seen) << 32 | (number))
#define NUMBER(record) ((uint32_t)(record))
#define SEEN(record) ((uint32_t)((record) >> 32))

static unsigned threads;
static uint64_t pages;
static volatile uint64_t *range;
static atomic_bool stop;
static atomic_uint completed[THREADS_MAX]; /* the last number whose store is over */
static bool over_base;

/* Where a thread's record of a page lies: the threads share cache lines in some pages and not in others. */
static uint64_t word_of(unsigned thread, uint64_t page)
{
  return page * WORDS + (page % 2 ? thread + 1 : thread * 32 + 8);
}

static uint64_t base_word(uint64_t page)
{
  return over_base && page % 5 != 2 ? test_mix(page) : 0;
}

/* The N-th number of a thread, from 1, goes to page: forwards, over all of them. */
static uint64_t page_of(unsigned thread, uint32_t number)
{
  return (number - 1 + thread * (pages / threads)) % pages;
}

NO_TSAN static void range_store(uint64_t word, uint64_t value)
{
  range[word] = value;
}

static void *run(void *argument)
{
  unsigned me = (unsigned)(uintptr_t)argument;

  for (uint32_t number = 1; number < UINT32_MAX; number++) {
    uint32_t seen;

    if (atomic_load_explicit(&stop, memory_order_relaxed))
      break;
    seen = atomic_load_explicit(&completed[(me + 1) % threads], memory_order_acquire);

    range_store(word_of(me, page_of(me, number)), RECORD(number, seen));
    atomic_store_explicit(&completed[me], number, memory_order_release);
  }
  return NULL;
}

/* Reads every page, gives each thread's newest number, and checks that it is a cut. LEAST: what each
 * thread had completed before it was made; MOST: what none can have stored yet. */
static void check_cut(const char *how, pcow_image *image, bool live, const uint32_t *least, const uint32_t *most)
{
  uint64_t *records = test_alloc(threads * pages * 8), words[WORDS];
  uint32_t cut[THREADS_MAX] = { 0 };

  for (uint64_t page = 0; page < pages; page++) {
    if (live)
      test_range_load(words, range + page * WORDS, PAGE);
    else
      OK(pcow_pread(image, words, PAGE, page * PAGE));
    CHECK(words[0] == base_word(page), "%s: page %" PRIu64 " is not the base's", how, page);
    for (unsigned t = 0; t < threads; t++) {
      uint64_t record = words[word_of(t, page) - page * WORDS];

      records[t * pages + page] = record;
      if (NUMBER(record) > cut[t])
        cut[t] = NUMBER(record);
    }
  }
  for (unsigned t = 0; t < threads; t++) {
    CHECK(!least || cut[t] >= least[t], "%s: thread %u had completed store %u before, and the newest is %u", how,
          t, least[t], cut[t]);
    CHECK(!most || cut[t] <= most[t], "%s: thread %u had not made store %u yet, and it is there (%u)", how, t,
          most[t] + 1, cut[t]);
    for (uint32_t back = 0; back < pages; back++) {
      uint32_t number = cut[t] - back;
      uint64_t record = cut[t] > back ? records[t * pages + page_of(t, number)] : 0;

      if (cut[t] <= back)
        break;
      CHECK(NUMBER(record) == number, "%s: thread %u has store %u, and in page %" PRIu64 " %u instead of %u", how, t,
            cut[t], page_of(t, number), NUMBER(record), number);
      CHECK(SEEN(record) <= cut[(t + 1) % threads],
            "%s: store %u of thread %u came after store %u of thread %u, which is missing (newest %u)", how, number,
            t, SEEN(record), (t + 1) % threads, cut[(t + 1) % threads]);
    }
    if (cut[t] < pages) /* not all the way round yet: the others are untouched */
      for (uint32_t number = cut[t] + 1; number <= pages; number++)
        CHECK(!records[t * pages + page_of(t, number)], "%s: a store that thread %u has not made", how, t);
  }
  free(records);
}

struct taken {
  char name[32];
  uint32_t least[THREADS_MAX], most[THREADS_MAX];
};

static void completed_now(uint32_t *numbers, uint32_t more)
{
  for (unsigned t = 0; t < threads; t++)
    numbers[t] = atomic_load(&completed[t]) + more;
}

int main(int argc, char **argv)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_mapping_stats stats;
  struct taken taken[LIVING];
  pthread_t ids[THREADS_MAX];
  uint32_t last[THREADS_MAX];
  uint64_t total = 0;
  unsigned count, living = 0;
  struct rng rng;
  char *base, *path;
  pcow_image *image, *snapshot;
  pcow_mapping *map;

  test_force_pmem(argv);
  rng.state = test_seed(argc, argv);
  count = (unsigned)test_option(argc, argv, "--snapshots", 150);
  threads = (unsigned)test_option(argc, argv, "--threads", 4);
  pages = test_option(argc, argv, "--pages", 700);
  over_base = !test_flag(argc, argv, "--no-base");
  CHECK(threads && threads <= THREADS_MAX, "1 to %u threads", THREADS_MAX);
  test_dir(argc, argv);
  base = test_path("base.pcow");
  path = test_path("image.pcow");
  if (over_base) {
    test_create(base, pages * PAGE, 2 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
    image = test_open(base, PCOW_OPEN_RDWR, NULL);
    for (uint64_t page = 0; page < pages; page++)
      if (base_word(page))
        OK(pcow_pwrite(image, &(uint64_t){ base_word(page) }, 8, page * PAGE));
    OK(pcow_close(image));
  }
  test_create(path, pages * PAGE, rng_chance(&rng, 50) ? 64 * KIB : 2 * MIB, over_base ? base : NULL,
              over_base ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  options.granule = rng_chance(&rng, 50) ? 4 * KIB : 0;
  options.thin = rng_chance(&rng, 50) ? PCOW_THIN_GUARDED : PCOW_THIN_NATIVE;
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  for (unsigned t = 0; t < threads; t++)
    CHECK(!pthread_create(&ids[t], NULL, run, (void *)(uintptr_t)t), "no thread");

  for (unsigned i = 0; i < count; i++) {
    struct taken *t = &taken[living++];
    unsigned pick;

    usleep((useconds_t)rng_below(&rng, 4000));
    snprintf(t->name, sizeof t->name, "live %u", i);
    completed_now(t->least, 0);
    OK(pcow_snapshot_create(image, t->name));
    completed_now(t->most, 1); /* one more may have been stored and not counted */
    pick = (unsigned)rng_below(&rng, living);
    snapshot = test_open(path, 0, taken[pick].name);
    check_cut(taken[pick].name, snapshot, false, taken[pick].least, taken[pick].most);
    OK(pcow_close(snapshot));
    if (living == LIVING) {
      pick = (unsigned)rng_below(&rng, living);
      OK(pcow_snapshot_delete(image, taken[pick].name));
      taken[pick] = taken[--living];
    }
  }
  atomic_store(&stop, true);
  for (unsigned t = 0; t < threads; t++)
    pthread_join(ids[t], NULL);
  completed_now(last, 0);
  for (unsigned t = 0; t < threads; t++)
    total += last[t];
  check_cut("the map in the end", image, true, last, last);
  check_cut("the head in the end", image, false, last, last);
  stats = test_stats(map);
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  test_check_clean(path);
  image = test_open(path, 0, NULL);
  check_cut("the head, reopened,", image, false, last, last);
  OK(pcow_close(image));
  for (unsigned i = 0; i < living; i++) {
    image = test_open(path, 0, taken[i].name);
    check_cut(taken[i].name, image, false, taken[i].least, taken[i].most);
    OK(pcow_close(image));
  }
  printf("%u snapshots under %u threads, %" PRIu64 " stores, %" PRIu64 " faults, %" PRIu64 " duplicates\n", count,
         threads, total, stats.faults, stats.duplicate_faults);
  return 0;
}
