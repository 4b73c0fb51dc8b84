/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The VMA budget: stores to pages scattered over a 64 GiB overlay succeed with vm.max_map_count as it
 * is, are found in the map and after a reopen, in a new map too, and leave the host program half of the
 * limit: it can still allocate large blocks and start threads.
 *
 *     test-map-budget [--stores N] [--size SIZE] [--unit SIZE] [--granule SIZE] [--native] [--seed N]
 *                     [--dir DIR]
 *
 * Pages are 4 KiB granules by default: 200,000 of 64 KiB would be 12 GiB of memory.
 */
#include "testlib.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t stores, size;
static uint64_t *place; /* page of the n-th store; all different */
static uint64_t limit;

static uint64_t maps_count(void)
{
  FILE *maps = fopen("/proc/self/maps", "r");
  uint64_t lines = 0;
  int c;

  CHECK(maps, "/proc/self/maps");
  while ((c = getc_unlocked(maps)) != EOF)
    lines += c == '\n';
  fclose(maps);
  return lines;
}

static void *thread_run(void *barrier)
{
  pthread_barrier_wait(barrier);
  return NULL;
}

/* What the rest of the program needs while the image is mapped. */
static void program_lives(const char *when)
{
  enum { BLOCKS = 300, THREADS = 50 };
  void *blocks[BLOCKS];
  pthread_t threads[THREADS];
  pthread_barrier_t barrier;
  uint64_t maps = maps_count();

  printf("%s: %" PRIu64 " of %" PRIu64 " mappings are used\n", when, maps, limit);
  CHECK(maps <= limit / 2, "%s the process has %" PRIu64 " mappings, the limit is %" PRIu64, when, maps, limit);
  for (unsigned i = 0; i < BLOCKS; i++) {
    /* Every second one read-only, so that the kernel cannot merge neighbours. */
    blocks[i] = mmap(NULL, MIB, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(blocks[i] != MAP_FAILED, "%s there is no memory for the program", when);
  }
  for (unsigned i = 0; i < BLOCKS; i++)
    munmap(blocks[i], MIB);
  for (unsigned i = 0; i < BLOCKS; i++) {
    blocks[i] = malloc(MIB);
    CHECK(blocks[i], "%s malloc() fails", when);
    memset(blocks[i], 1, 1);
  }
  for (unsigned i = 0; i < BLOCKS; i++)
    free(blocks[i]);
  pthread_barrier_init(&barrier, NULL, THREADS);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK(!pthread_create(&threads[i], NULL, thread_run, &barrier), "%s thread %u cannot be started", when, i);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&barrier);
}

/* Different pages in random order: an affine permutation of the range. */
static void places_draw(struct rng *rng)
{
  uint64_t pages = size / PAGE; /* a power of two or near: an odd factor has no common divisor with it */
  uint64_t factor = rng_next(rng) | 1, add = rng_next(rng);
  uint64_t mask = 1;

  while (mask < pages)
    mask *= 2;
  mask--;
  place = test_alloc(stores * sizeof *place);
  for (uint64_t i = 0, n = 0; n < stores; i++) {
    uint64_t x = ((i * factor + add) & mask);

    x = ((x ^ (x >> 7)) * (factor | 5)) & mask; /* both steps can be undone within the mask */
    if (x < pages)
      place[n++] = x;
  }
}

/* The base has a page in each 1021. */
static uint64_t base_word(uint64_t page)
{
  return page % 1021 ? 0 : test_mix(page);
}

static void verify(const char *how, pcow_image *image, const volatile uint64_t *range)
{
  for (uint64_t i = 0; i < stores; i++) {
    uint64_t words[PCOW_PAGE_SIZE / 8], found[2], page = place[i];

    if (range) {
      found[0] = range[page * (PAGE / 8)];
      found[1] = range[page * (PAGE / 8) + 100];
    } else {
      OK(pcow_pread(image, words, PAGE, page * PAGE));
      found[0] = words[0];
      found[1] = words[100];
    }
    CHECK(found[0] == base_word(page), "%s: page %" PRIu64 " is not the base's", how, page);
    CHECK(found[1] == i + 1, "%s: store %" PRIu64 " to page %" PRIu64 " is 0x%" PRIx64, how, i, page, found[1]);
  }
  /* And pages that nobody wrote. */
  for (uint64_t page = 0; page < size / PAGE; page += 1021 * 16) {
    uint64_t word;

    if (range)
      word = range[page * (PAGE / 8)];
    else
      OK(pcow_pread(image, &word, 8, page * PAGE));
    CHECK(word == base_word(page), "%s: page %" PRIu64 " of the base is wrong", how, page);
  }
}

int main(int argc, char **argv)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_mapping_stats stats;
  struct rng rng;
  pcow_image *image;
  pcow_mapping *map;
  volatile uint64_t *range;
  FILE *file;

  test_force_pmem(argv);
  rng.state = test_seed(argc, argv);
  stores = test_option(argc, argv, "--stores", 200000);
  size = test_option(argc, argv, "--size", 64 * GIB);
  options.granule = test_option(argc, argv, "--granule", 4 * KIB);
  options.thin = test_flag(argc, argv, "--native") ? PCOW_THIN_NATIVE : PCOW_THIN_GUARDED;
  test_dir(argc, argv);
  file = fopen("/proc/sys/vm/max_map_count", "r");
  CHECK(file && fscanf(file, "%" SCNu64, &limit) == 1, "vm.max_map_count cannot be read");
  fclose(file);
  if (limit > 4 * stores)
    test_skip("vm.max_map_count is %" PRIu64 ", which %" PRIu64 " stores do not reach", limit, stores);
  places_draw(&rng);

  char *base = test_path("base.pcow"), *overlay = test_path("overlay.pcow"), *second = test_path("second.pcow");

  test_create(base, size, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < size / PAGE; page += 1021 * 16)
    OK(pcow_pwrite(image, &(uint64_t){ base_word(page) }, 8, page * PAGE));
  for (uint64_t i = 0; i < stores; i++)
    if (base_word(place[i]))
      OK(pcow_pwrite(image, &(uint64_t){ base_word(place[i]) }, 8, place[i] * PAGE));
  OK(pcow_close(image));

  test_create(overlay, 0, test_option(argc, argv, "--unit", 0), base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  for (uint64_t i = 0; i < stores; i++) {
    range[place[i] * (PAGE / 8) + 100] = i + 1;
    if (i == stores / 2)
      program_lives("half-way");
  }
  program_lives("after the stores");
  stats = test_stats(map);
  printf("%" PRIu64 " faults, %" PRIu64 " copied, %" PRIu64 " reserved, budget %" PRIu64 ", %" PRIu64
         " merges, %" PRIu64 " MiB allocated\n",
         stats.faults, stats.pages_copied, stats.pages_reserved, stats.vma_budget, stats.merges,
         test_blocks(overlay) / MIB);
  verify("the map", NULL, range);
  program_lives("after reading the map");
  verify("pcow_pread()", image, NULL);
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  test_check_clean(overlay);

  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  verify("reopened", image, NULL);
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  program_lives("mapped again");
  verify("mapped again", NULL, range);
  program_lives("mapped again and read");
  range[300] = 1;
  OK(pcow_close(image));

  image = test_open(overlay, 0, NULL);
  OK(pcow_map(image, NULL, &map));
  range = pcow_mapping_address(map);
  CHECK(range[300] == 1, "the last store is lost");
  program_lives("mapped read-only");
  OK(pcow_close(image));

  /* Over a base that is itself in so many pieces. */
  test_create(second, 0, 0, overlay, PCOW_FORMAT_PCOW, NULL);
  image = test_open(second, PCOW_OPEN_RDWR, NULL);
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  for (uint64_t i = 0; i < stores; i += 10)
    range[place[i] * (PAGE / 8) + 200] = i + 3;
  program_lives("over a base in pieces");
  verify("over a base in pieces", NULL, range);
  for (uint64_t i = 0; i < stores; i++)
    CHECK(range[place[i] * (PAGE / 8) + 200] == (i % 10 ? 0 : i + 3), "store %" PRIu64 " over a base in pieces", i);
  OK(pcow_close(image));
  free(place);
  return 0;
}
