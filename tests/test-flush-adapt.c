/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a flush-durable map does when scans or copies cost too much: units that are flushed again and again while
 * nothing is written leave the scan, under threads that write to them; and what was flushed does not stay
 * in memory beyond the limit. Nothing may be lost by either.
 *
 *     test-flush-adapt [--seed N] [--dir DIR]
 */
#include "testlib.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WRITERS 2u
#define PAGES 16384u
#define FLUSHES_MOST 200000u

static pcow_image *image;
static pcow_mapping *map;
static uint8_t *range;
static uint64_t *stored; /* of each page: the value of its last store; 0: none */
static atomic_bool stop;

struct writer {
  pthread_t id;
  unsigned me;
  struct rng rng;
  uint64_t stores;
};

static void store(uint64_t page, uint64_t value)
{
  stored[page] = value;
  *(volatile uint64_t *)(uintptr_t)(range + page * PAGE + 1024) = value;
}

static void *run_writer(void *argument)
{
  struct writer *w = argument;

  while (!stop) {
    uint64_t page = rng_below(&w->rng, PAGES / WRITERS) * WRITERS + w->me;

    store(page, test_mix(w->stores * WRITERS + w->me) | 1);
    w->stores++;
    usleep((useconds_t)rng_below(&w->rng, 400));
  }
  return NULL;
}

static void check_all(const char *path)
{
  uint8_t bytes[PCOW_PAGE_SIZE], expected[PCOW_PAGE_SIZE];

  OK(pcow_unmap(map));
  OK(pcow_close(image));
  image = test_open(path, 0, NULL);
  for (uint64_t page = 0; page < PAGES; page++) {
    test_page_fill(expected, page);
    if (stored[page])
      memcpy(expected + 1024, &stored[page], 8);
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(!memcmp(bytes, expected, PAGE), "page %" PRIu64 " is not what was stored", page);
  }
  OK(pcow_close(image));
  test_check_clean(path);
}

static void begin(const char *path, uint64_t dram_limit)
{
  struct pcow_map_options options = PCOW_INIT(options);

  options.dram_limit = dram_limit;
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  map = test_map_flush(image, &options);
  range = pcow_mapping_address(map);
  memset(stored, 0, PAGES * sizeof *stored);
}

/* Writers store to all units now and then; scans find little. */
static void test_protect(const char *path, struct rng *rng)
{
  struct writer writers[WRITERS];
  struct pcow_mapping_stats stats = { 0 };
  uint64_t scans, most, flushes = 0;

  begin(path, 0);
  /* Three quarters of the pages: those without a page table entry must not be taken for written ones. */
  for (uint64_t page = 0; page < PAGES; page++)
    if (page / 1024 % 4)
      (void)*(volatile uint8_t *)(range + page * PAGE);
  stop = false;
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer){ .me = i, .rng = { rng_next(rng) } };
    CHECK(!pthread_create(&writers[i].id, NULL, run_writer, &writers[i]), "no thread");
  }
  most = test_is_tmpfs(path) ? FLUSHES_MOST : 2000;
  for (; stats.units_protected < PAGES / 2048 && flushes < most; flushes++) {
    OK(pcow_flush(map, 0, PAGES * PAGE));
    stats = test_stats(map);
  }
  for (unsigned i = 0; i < 300; i++)
    OK(pcow_flush(map, 0, PAGES * PAGE));
  stop = true;
  for (unsigned i = 0; i < WRITERS; i++)
    pthread_join(writers[i].id, NULL);
  printf("%" PRIu64 " flushes until %" PRIu64 " units were protected; %" PRIu64 " stores, %" PRIu64 " events\n",
         flushes, stats.units_protected, writers[0].stores + writers[1].stores, test_stats(map).write_faults);
  stats = test_stats(map);
  CHECK(stats.pages_flushed + stats.pages_handed_over <= 2 * (writers[0].stores + writers[1].stores),
        "%" PRIu64 " pages were flushed, %" PRIu64 " handed over", stats.pages_flushed, stats.pages_handed_over);
  if (test_is_tmpfs(path)) {
    CHECK(stats.units_protected, "after %" PRIu64 " flushes no unit has left the scan", flushes);
    scans = test_stats(map).scans;
    OK(pcow_flush(map, 0, PAGES * PAGE));
    CHECK(stats.units_protected < PAGES / 2048 || test_stats(map).scans == scans, "units are scanned for nothing");
  } else {
    CHECK(!stats.units_protected, "a unit of a file that cannot be protected was");
  }
  check_all(path);
}

/* Each page is written and flushed once. */
static void test_bound(const char *path, struct rng *rng)
{
  const uint64_t limit = 4 * MIB;
  uint64_t kept, most = 0, step = 1 + 2 * rng_below(rng, PAGES / 2), page = rng_below(rng, PAGES);

  begin(path, limit);
  for (unsigned i = 0; i < PAGES; i++, page = (page + step) % PAGES) {
    store(page, test_mix(i) | 1);
    if (i % 64 == 63) {
      OK(pcow_flush(map, 0, PAGES * PAGE));
      kept = test_stats(map).pages_kept;
      most = kept > most ? kept : most;
    }
  }
  printf("%u pages flushed, %" PRIu64 " kept at most, %" PRIu64 " handed over\n", PAGES, most,
         test_stats(map).pages_handed_over);
  CHECK(test_stats(map).pages_handed_over, "nothing was handed over");
  CHECK(most <= limit / PAGE + 2048 + 64, "%" PRIu64 " pages are kept", most);
  check_all(path);
}

int main(int argc, char **argv)
{
  struct pcow_create_options create = PCOW_INIT(create);
  struct rng rng = { test_seed(argc, argv) };
  uint8_t bytes[PCOW_PAGE_SIZE];
  char *base, *path;

  test_dir(argc, argv);
  base = test_path("base.pcow");
  stored = test_alloc(PAGES * sizeof *stored);
  test_create(base, PAGES * PAGE, 8 * MIB, NULL, 0, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < PAGES; page++) {
    test_page_fill(bytes, page);
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(image));

  path = test_path("protect.pcow");
  test_create(path, 0, 8 * MIB, "base.pcow", PCOW_FORMAT_PCOW, NULL);
  test_protect(path, &rng);
  path = test_path("bound.pcow");
  test_create(path, 0, 8 * MIB, "base.pcow", PCOW_FORMAT_PCOW, NULL);
  test_bound(path, &rng);
  free(stored);
  return 0;
}
