/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Snapshots are deleted while threads write to the image, through a map or not, others compare all that they
 * read, and one more takes and deletes snapshots of its own: no reader sees a wrong word, no store is lost, no other
 * snapshot changes, and the space comes back without unmapping.
 *
 *     test-collect-live [--rounds N] [--seed N] [--dir DIR]
 *
 * ThreadSanitizer does not see the stores (see test-map-threads.c).
 */
#include "figures.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct rng rng;

/* ---- Under a running map ---- */

#define LIVE_PAGES 4096u        /* 16 MiB */
#define WRITERS 2u
#define LIVING 5u

static pcow_image *image;
static volatile uint64_t *range;        /* NULL: not mapped */
static _Atomic uint32_t stored[LIVE_PAGES];     /* the last number whose store to the page is over */
static atomic_bool stop;

static uint64_t live_word(uint64_t page, unsigned word) { return test_mix(page * 512 + word); }

static void range_load(uint64_t *to, uint64_t word)
{
  if (range)
    test_range_load(to, &range[word], 8);
  else
    OK(pcow_pread(image, to, 8, word * 8));
}

static void range_store(uint64_t word, const uint64_t *from)
{
  if (range)
    test_range_store(&range[word], from, 8);
  else
    OK(pcow_pwrite(image, from, 8, word * 8));
}

static void *write_pages(void *argument)
{
  unsigned me = (unsigned)(uintptr_t)argument;
  struct rng mine = { test_mix(me + 77) };

  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    uint64_t page = rng_below(&mine, LIVE_PAGES / 4) * WRITERS + me;   /* one half is only read */
    uint32_t number = atomic_load_explicit(&stored[page], memory_order_relaxed) + 1;
    uint64_t word = number;

    range_store(page * 512 + 1, &word);
    atomic_store_explicit(&stored[page], number, memory_order_release);
    /* Calls that lock the image leave others a chance. */
    if (rng_chance(&mine, range ? 5 : 50))
      usleep(50);
  }
  return NULL;
}

static void check_live(uint64_t page, unsigned word)
{
  uint32_t least = atomic_load_explicit(&stored[page], memory_order_acquire), most;
  uint64_t got[2];

  range_load(&got[1], page * 512 + 1);
  range_load(&got[0], page * 512 + word);
  most = atomic_load_explicit(&stored[page], memory_order_acquire) + 1;
  CHECK(word == 1 || got[0] == live_word(page, word), "page %" PRIu64 ", word %u is 0x%" PRIx64, page, word,
        got[0]);
  CHECK(got[1] >= least && got[1] <= most, "page %" PRIu64 " has store %" PRIu64 ", not %u to %u", page, got[1],
        least, most);
}

static void *read_pages(void *argument)
{
  struct rng mine = { test_mix((uintptr_t)argument + 99) };

  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    check_live(rng_below(&mine, LIVE_PAGES), (unsigned)rng_below(&mine, 512));
    if (!range && rng_chance(&mine, 50))
      usleep(50);
  }
  return NULL;
}

static uint64_t hash_view(const char *path, const char *name)
{
  pcow_image *view = test_open(path, 0, name);
  uint8_t *bytes = test_alloc(MIB);
  uint64_t hash = 0;

  for (uint64_t at = 0; at < LIVE_PAGES * PAGE; at += MIB) {
    OK(pcow_pread(view, bytes, MIB, at));
    for (uint64_t i = 0; i < MIB; i += 8) {
      uint64_t word;

      memcpy(&word, bytes + i, 8);
      hash = (hash ^ word) * 0x9e3779b97f4a7c15 + (hash >> 29);
    }
  }
  free(bytes);
  OK(pcow_close(view));
  return hash;
}

/* Snapshots and deletions of another thread, between the steps of the first one's. */
static void *other_snapshots(void *argument)
{
  (void)argument;
  for (unsigned i = 0; !atomic_load(&stop); i++) {
    char name[32];

    snprintf(name, sizeof(name), "other %u", i);
    OK(pcow_snapshot_create(image, name));
    usleep(3000);
    OK(pcow_snapshot_delete(image, name));
  }
  return NULL;
}

enum how { NOT_MAPPED, GUARDED, NATIVE };

static void live(uint64_t unit, enum how how, unsigned rounds)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct { char name[32]; uint64_t hash; } kept[LIVING];
  char *path = test_path("live.pcow");
  uint64_t words[PAGE / 8], data;
  unsigned living = 0;
  pthread_t threads[2 * WRITERS + 1];
  pcow_mapping *map = NULL;

  test_create(path, LIVE_PAGES * PAGE, unit, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < LIVE_PAGES; page++) {
    for (unsigned i = 0; i < 512; i++)
      words[i] = i == 1 ? 0 : live_word(page, i);
    OK(pcow_pwrite(image, words, PAGE, page * PAGE));
    stored[page] = 0;
  }
  OK(pcow_snapshot_create(image, "first"));
  options.granule = rng_chance(&rng, 50) ? PAGE : 0;
  options.thin = how == NATIVE ? PCOW_THIN_NATIVE : PCOW_THIN_GUARDED;
  if (how != NOT_MAPPED)
    map = test_map(image, &options);
  range = map ? pcow_mapping_address(map) : NULL;
  stop = false;
  for (unsigned i = 0; i < WRITERS; i++) {
    CHECK(!pthread_create(&threads[i], NULL, write_pages, (void *)(uintptr_t)i), "no thread");
    CHECK(!pthread_create(&threads[WRITERS + i], NULL, read_pages, (void *)(uintptr_t)i), "no thread");
  }
  CHECK(!pthread_create(&threads[2 * WRITERS], NULL, other_snapshots, NULL), "no thread");
  for (unsigned i = 0; i < rounds; i++) {
    unsigned pick;

    snprintf(kept[living].name, sizeof(kept[living].name), "live %u", i);
    usleep((useconds_t)rng_below(&rng, 4000));
    OK(pcow_snapshot_create(image, kept[living].name));
    kept[living].hash = hash_view(path, kept[living].name);
    if (i == 3)
      OK(pcow_snapshot_delete(image, "first"));
    if (++living < LIVING)
      continue;
    /* Oldest, newest, or any. */
    pick = i % 3 == 0 ? 0 : i % 3 == 1 ? LIVING - 1 : (unsigned)rng_below(&rng, LIVING);
    OK(pcow_snapshot_delete(image, kept[pick].name));
    memmove(&kept[pick], &kept[pick + 1], (--living - pick) * sizeof(kept[0]));
    for (unsigned n = 0; n < living; n++)
      CHECK(hash_view(path, kept[n].name) == kept[n].hash, "'%s' changed when another was deleted", kept[n].name);
  }
  atomic_store(&stop, true);
  for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++)
    pthread_join(threads[i], NULL);
  while (living)
    OK(pcow_snapshot_delete(image, kept[--living].name));
  /* At most one waits for the head to be frozen; its space does not. */
  CHECK(pending(image) <= (map ? 1 : 0) && slots_a_unit(image) <= (map ? 2 : 1),
        "%u are pending, a unit has %" PRIu64 " slots", pending(image), slots_a_unit(image));
  OK(pcow_sync(image));
  data = data_bytes(image->store->fd, geometry_data(&image->store->geo, 1),
                    geometry_file_size(&image->store->geo, image->store->sb.slot_count));
  CHECK(data == LIVE_PAGES * PAGE, "%" PRIu64 " KiB of pages, the head alone sees %" PRIu64, data / KIB,
        LIVE_PAGES * PAGE / KIB);
  for (uint64_t page = 0; page < LIVE_PAGES; page++)
    for (unsigned i = 0; i < 512; i += i == 1 ? 1 : 1 + page % 3)
      check_live(page, i);
  printf("units of %" PRIu64 " KiB, %s: %u deletions, %" PRIu64 " steps, the longest %.2f ms; %u pending\n",
         unit / KIB, how == NATIVE ? "native map" : map ? "guarded map" : "no map", rounds - LIVING + 1,
         image->collected.steps, (double)image->collected.longest / 1000, pending(image));
  /* The next snapshot lets it go. */
  OK(pcow_snapshot_create(image, "next"));
  OK(pcow_snapshot_create(image, "after"));
  OK(pcow_snapshot_delete(image, "after"));
  CHECK(!pending(image) && slots_a_unit(image) <= 2, "%u are pending", pending(image));
  if (map)
    OK(pcow_unmap(map));
  OK(pcow_close(image));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < LIVE_PAGES; page++) {
    OK(pcow_pread(image, words, PAGE, page * PAGE));
    CHECK(words[1] == stored[page], "page %" PRIu64 " lost a store", page);
  }
  OK(pcow_close(image));
  test_check_clean(path);
  SYS(unlink(path));
}

int main(int argc, char **argv)
{
  unsigned rounds;

  test_force_pmem(argv);
  rounds = (unsigned)test_option(argc, argv, "--rounds", 30);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  live(2 * MIB, NOT_MAPPED, rounds);
  live(64 * KIB, GUARDED, rounds);
  live(2 * MIB, NATIVE, rounds);
  live(32 * MIB, GUARDED, rounds);
  return 0;
}
