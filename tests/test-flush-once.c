/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A store that nothing repairs: each page of a base is stored to twice, shortly one after the other, and never
 * again, while others flush all the time and one writes beside them with pcow_pwrite(). A store that falls
 * between two steps of a flush, or of taking a page back from the kernel, would be lost for good.
 *
 *     test-flush-once [--nobody] [--rounds N] [--pages N] [--seed N] [--dir DIR]
 */
#include "testlib.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WRITERS 2u
#define FLUSHERS 2u

enum place { FIRST = 512, SECOND = 1536, WRITTEN = 2560 };

static pcow_image *image;
static pcow_mapping *map;
static uint64_t pages;
static _Atomic uint64_t now[WRITERS];   /* the page that is stored to */
static atomic_bool stop;
static bool *written;

struct thread {
  pthread_t id;
  unsigned me;
  struct rng rng;
};

static uint64_t value_of(uint64_t page, enum place place) { return test_mix(page * 4096 + place) | 1; }

static void wait_nsec(uint64_t nsec)
{
  struct timespec a, b;

  clock_gettime(CLOCK_MONOTONIC, &a);
  do
    clock_gettime(CLOCK_MONOTONIC, &b);
  while ((uint64_t)(b.tv_sec - a.tv_sec) * 1000000000 + (uint64_t)b.tv_nsec - (uint64_t)a.tv_nsec < nsec);
}

static void store(uint64_t page, enum place place)
{
  volatile uint8_t *range = pcow_mapping_address(map);

  *(volatile uint64_t *)(uintptr_t)(range + page * PAGE + place) = value_of(page, place);
}

/* Every other page, in an order of its own; neighbours follow each other now and then. */
static void *run_writer(void *argument)
{
  struct thread *t = argument;
  uint64_t half = pages / WRITERS, step = 1 + 2 * rng_below(&t->rng, half / 2 - 1), at = rng_below(&t->rng, half);

  if (rng_chance(&t->rng, 50))
    step = 1;
  for (uint64_t i = 0; i < half; i++) {
    uint64_t page = at * WRITERS + t->me;

    at = (at + step) % half;
    now[t->me] = page;
    store(page, FIRST);
    wait_nsec(rng_below(&t->rng, 60000));
    store(page, SECOND);
  }
  return NULL;
}

static void *run_flusher(void *argument)
{
  (void)argument;
  while (!stop)
    OK(pcow_flush(map, 0, pages * PAGE));
  return NULL;
}

static void *run_pwriter(void *argument)
{
  struct thread *t = argument;

  while (!stop) {
    uint64_t page = (now[rng_below(&t->rng, WRITERS)] + rng_below(&t->rng, 3)) % pages;
    uint64_t value = value_of(page, WRITTEN);

    OK(pcow_pwrite(image, &value, 8, page * PAGE + WRITTEN));
    written[page] = true;
    wait_nsec(rng_below(&t->rng, 100000));
  }
  return NULL;
}

static void check(uint64_t page)
{
  uint8_t bytes[PCOW_PAGE_SIZE], expected[PCOW_PAGE_SIZE];
  uint64_t values[] = { value_of(page, FIRST), value_of(page, SECOND), value_of(page, WRITTEN) };

  test_page_fill(expected, page);
  memcpy(expected + FIRST, &values[0], 8);
  memcpy(expected + SECOND, &values[1], 8);
  if (written[page])
    memcpy(expected + WRITTEN, &values[2], 8);
  OK(pcow_pread(image, bytes, PAGE, page * PAGE));
  CHECK(!memcmp(bytes + FIRST, expected + FIRST, 8), "page %" PRIu64 ": the first store is lost", page);
  CHECK(!memcmp(bytes + SECOND, expected + SECOND, 8), "page %" PRIu64 ": the second store is lost", page);
  CHECK(!memcmp(bytes, expected, PAGE), "page %" PRIu64 " is not what was stored", page);
}

static void play(const char *path, struct rng *rng, void *(*other)(void *))
{
  struct thread threads[WRITERS + FLUSHERS + 1];

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  map = test_map_flush(image, NULL);
  memset(written, 0, pages);
  stop = false;
  for (unsigned i = 0; i < WRITERS + FLUSHERS + 1; i++) {
    threads[i].me = i;
    threads[i].rng.state = rng_next(rng);
    CHECK(!pthread_create(&threads[i].id, NULL,
                          i < WRITERS ? run_writer : i < WRITERS + FLUSHERS ? run_flusher : other, &threads[i]),
          "no thread");
  }
  for (unsigned i = 0; i < WRITERS + FLUSHERS + 1; i++) {
    stop = i >= WRITERS;
    pthread_join(threads[i].id, NULL);
  }
  OK(pcow_flush(map, 0, pages * PAGE));
  printf("%" PRIu64 " flushes, %" PRIu64 " pages flushed, %" PRIu64 " handed over\n", test_stats(map).flushes,
         test_stats(map).pages_flushed, test_stats(map).pages_handed_over);
  OK(pcow_unmap(map));
  for (uint64_t page = 0; page < pages; page++)
    check(page);
  OK(pcow_close(image));
  test_check_clean(path);
}

int main(int argc, char **argv)
{
  uint64_t rounds = test_option(argc, argv, "--rounds", 3);
  struct pcow_create_options create = PCOW_INIT(create);
  struct rng rng = { test_seed(argc, argv) };
  char bytes[PCOW_PAGE_SIZE];
  char *base, *path;

  pages = test_option(argc, argv, "--pages", 8192);
  test_dir(argc, argv);
  if (test_flag(argc, argv, "--nobody"))
    test_become_nobody();
  base = test_path("base");
  path = test_path("image");
  written = test_alloc(pages);
  test_create(base, pages * PAGE, 4 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < pages; page++) {
    test_page_fill(bytes, page);
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(image));
  create.flags = PCOW_CREATE_REPLACE;
  create.base = base;
  create.base_format = PCOW_FORMAT_PCOW;
  create.unit_size = 4 * MIB;
  for (uint64_t i = 0; i < rounds; i++) {
    OK(pcow_create(path, pages * PAGE, &create));
    play(path, &rng, i % 2 ? run_flusher : run_pwriter);
  }
  free(written);
  return 0;
}
