/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nobody faults twice: eight threads store, in sequence and then at random, into the same pages of a fresh overlay,
 * each into its own words; every value is found afterwards, in the map, through pcow_pread() and after a reopen,
 * beside the base's bytes in the words that nobody wrote, and no page was copied twice.
 *
 *     test-map-threads [--stores N] [--threads N] [--pages N] [--rounds N] [--seed N] [--dir DIR]
 *
 * ThreadSanitizer takes the library's mmap() over the range for a write to it; what this program does
 * in the range is therefore hidden from it, and it watches the library.
 */
#include "testlib.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (PCOW_PAGE_SIZE / 8)

struct thread {
  pthread_t id;
  unsigned me, count;
  uint64_t pages, stores, from;
  struct rng rng;
  volatile uint64_t *range;
  uint64_t *last; /* [page * words per thread + n]: what this thread stored last, 0: nothing */
  pthread_barrier_t *start;
};

NO_TSAN static void range_store(volatile uint64_t *word, uint64_t value)
{
  *word = value;
}

static void *run(void *argument)
{
  struct thread *t = argument;
  unsigned own = WORDS / t->count;

  pthread_barrier_wait(t->start);
  for (uint64_t i = 0; i < t->stores; i++) {
    uint64_t page = rng_below(&t->rng, t->pages), n = rng_below(&t->rng, own);
    uint64_t value = rng_next(&t->rng) | 1;

    /* At first one page after the other, so that first writes take many pages, beside and into each other. */
    if (i < t->pages / 4)
      page = (t->from + i) % t->pages;

    range_store(&t->range[page * WORDS + n * t->count + t->me], value);
    t->last[page * own + n] = value;
  }
  return NULL;
}

/* What page PAGE must be: the base's bytes, or zeros, under what the threads stored. */
static void expect(const struct thread *threads, unsigned count, bool base, uint64_t page, uint64_t *words)
{
  unsigned own = WORDS / count;

  memset(words, 0, PAGE);
  if (base && page % 3)
    test_page_fill(words, page);
  for (unsigned t = 0; t < count; t++)
    for (unsigned n = 0; n < own; n++)
      if (threads[t].last[page * own + n])
        words[n * count + t] = threads[t].last[page * own + n];
}

static void verify(const char *how, const struct thread *threads, unsigned count, bool base,
                   uint64_t pages, pcow_image *image, const volatile uint64_t *range)
{
  uint64_t found[WORDS], words[WORDS];

  for (uint64_t page = 0; page < pages; page++) {
    if (range)
      test_range_load(found, range + page * WORDS, PAGE);
    else
      OK(pcow_pread(image, found, PAGE, page * PAGE));
    expect(threads, count, base, page, words);
    for (unsigned i = 0; i < WORDS; i++)
      CHECK(found[i] == words[i],
            "%s: page %" PRIu64 ", word %u is 0x%" PRIx64 " instead of 0x%" PRIx64, how, page, i,
            found[i], words[i]);
  }
}

int main(int argc, char **argv)
{
  static const uint64_t granules[] = { 4 * KIB, 0, 64 * KIB, 16 * KIB };
  struct rng rng;
  unsigned count, rounds;
  uint64_t stores, pages, unit;
  uint64_t faults = 0, duplicates = 0, copied = 0, reserved = 0;

  test_force_pmem(argv);
  rng.state = test_seed(argc, argv);
  count = (unsigned)test_option(argc, argv, "--threads", 8);
  stores = test_option(argc, argv, "--stores", 1000000);
  pages = test_option(argc, argv, "--pages", 2048);
  rounds = (unsigned)test_option(argc, argv, "--rounds", 20);
  test_dir(argc, argv);
  unit = 2 * MIB;

  char *base = test_path("base.pcow"), *path = test_path("overlay.pcow");
  pcow_image *image;

  test_create(base, pages * PAGE, unit, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < pages; page++) {
    char bytes[PCOW_PAGE_SIZE];

    test_page_fill(bytes, page);
    if (page % 3)
      OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(image));

  for (unsigned round = 0; round < rounds; round++) {
    struct pcow_create_options create = PCOW_INIT(create);
    struct pcow_map_options options = PCOW_INIT(options);
    struct thread *threads = test_alloc(count * sizeof *threads);
    struct pcow_mapping_stats stats;
    pthread_barrier_t start;
    pcow_mapping *map;
    bool over = round % 4 != 3;

    create.flags = round ? PCOW_CREATE_REPLACE : 0;
    create.unit_size = round % 2 ? unit : 64 * KIB;
    create.base = over ? base : NULL;
    create.base_format = over ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE;
    OK(pcow_create(path, pages * PAGE, &create));
    image = test_open(path, PCOW_OPEN_RDWR, NULL);
    options.granule = granules[round % 4];
    options.thin = over ? PCOW_THIN_GUARDED : PCOW_THIN_NATIVE;
    map = test_map(image, &options);
    pthread_barrier_init(&start, NULL, count);
    for (unsigned i = 0; i < count; i++) {
      threads[i] = (struct thread){ .me = i, .count = count, .pages = pages, .stores = stores / rounds / count,
                                    .rng = { rng_next(&rng) }, .start = &start };
      threads[i].range = pcow_mapping_address(map);
      threads[i].from = rng_below(&rng, pages);
      threads[i].last = test_alloc(pages * (WORDS / count) * 8);
      CHECK(!pthread_create(&threads[i].id, NULL, run, &threads[i]), "no thread");
    }
    for (unsigned i = 0; i < count; i++)
      pthread_join(threads[i].id, NULL);
    verify("the map", threads, count, over, pages, NULL, threads[0].range);
    verify("pcow_pread()", threads, count, over, pages, image, NULL);
    stats = test_stats(map);
    CHECK(stats.pages_copied + stats.pages_reserved <= pages,
          "%" PRIu64 " pages were copied and %" PRIu64 " made, of %" PRIu64, stats.pages_copied,
          stats.pages_reserved, pages);
    CHECK(!over || (stats.write_faults && stats.pages_copied), "nothing was copied");
    faults += stats.faults;
    duplicates += stats.duplicate_faults;
    copied += stats.pages_copied;
    reserved += stats.pages_reserved;
    OK(pcow_unmap(map));
    OK(pcow_close(image));
    test_check_clean(path);
    image = test_open(path, 0, NULL);
    verify("reopened", threads, count, over, pages, image, NULL);
    OK(pcow_map(image, NULL, &map));
    verify("reopened and mapped", threads, count, over, pages, NULL, pcow_mapping_address(map));
    OK(pcow_close(image));
    image = test_open(base, 0, NULL);
    for (uint64_t page = 0; page < pages; page++) {
      uint64_t bytes[WORDS];

      OK(pcow_pread(image, bytes, PAGE, page * PAGE));
      CHECK(page % 3 ? test_page_is(bytes, page) : !bytes[0], "page %" PRIu64 " of the base changed", page);
    }
    OK(pcow_close(image));
    for (unsigned i = 0; i < count; i++)
      free(threads[i].last);
    free(threads);
    pthread_barrier_destroy(&start);
  }
  printf("%" PRIu64 " stores by %u threads in %u rounds: %" PRIu64 " faults, %" PRIu64 " of them duplicates, %"
         PRIu64 " pages copied, %" PRIu64 " reserved\n",
         stores / rounds / count * rounds * count, count, rounds, faults, duplicates, copied, reserved);
  return 0;
}
