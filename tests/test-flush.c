/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A flush-durable map: what was flushed is there after the process was killed, and what was not may be; the base
 * never changes; stores, pcow_pread(), pcow_pwrite(), discards and snapshots see the same bytes; a flush on a
 * full file system loses nothing; pages that are flushed again and again move to the file. In the persist mode
 * that the environment gives.
 *
 *     test-flush [--nobody] [--rounds N] [--seed N] [--dir DIR]
 */
#include "content.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 1024u
#define SIZE (PAGES * PAGE)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

static char *base_path, *path;
static struct content base;
static bool nobody;             /* runs unprivileged: nobody can be made to wait */

/* Half of the image has something beneath, in runs of all kinds. */
static void make(uint64_t unit, struct rng *rng)
{
  struct pcow_create_options create = PCOW_INIT(create);
  pcow_image *image;

  create.flags = PCOW_CREATE_REPLACE;
  create.unit_size = unit;
  OK(pcow_create(base_path, SIZE, &create));
  content_free(&base);
  base = content_new(SIZE);
  image = test_open(base_path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < PAGES / 2;) {
    uint64_t n = 1 + rng_below(rng, 60);

    if (rng_chance(rng, 70))
      content_write(image, &base, rng, page * PAGE, MIN(n, PAGES / 2 - page) * PAGE);
    page += n;
  }
  content_write(image, &base, rng, 0, 64 * PAGE);
  OK(pcow_close(image));
  create.base = base_path;
  create.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_create(path, SIZE, &create));
}

static void check_base(void)
{
  content_compare_view(base_path, NULL, &base, "the base");
}

static void check_map(pcow_mapping *map, const struct content *c, const char *label)
{
  const uint8_t *range = pcow_mapping_address(map);

  for (uint64_t at = 0; at < c->size; at += PAGE)
    CHECK(!memcmp(range + at, c->bytes + at, PAGE), "%s: page %" PRIu64 " of the map is wrong", label, at / PAGE);
}

static void store(pcow_mapping *map, struct content *c, struct rng *rng, uint64_t offset, uint64_t length)
{
  uint8_t *range = pcow_mapping_address(map);

  rng_fill(rng, c->bytes + offset, length);
  memcpy(range + offset, c->bytes + offset, length);
}

static void scatter(pcow_mapping *map, struct content *c, struct rng *rng, unsigned count)
{
  while (count--) {
    uint64_t length = rng_chance(rng, 70) ? 8 : 1 + rng_below(rng, 6 * PAGE);

    store(map, c, rng, rng_below(rng, c->size - length), length);
  }
}

/* Everything in turn, and the image is as it should be in every way of looking at it. */
static void together(uint64_t unit, uint32_t thin, struct rng *rng)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_mapping_stats stats;
  struct content c, frozen = { 0 };
  pcow_image *image;
  pcow_mapping *map;
  unsigned snapshots = 0;

  make(unit, rng);
  c = content_copy(&base);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  options.thin = thin;
  map = test_map_flush(image, &options);
  for (unsigned i = 0; i < 300; i++) {
    uint64_t n = 1 + rng_below(rng, 20 * PAGE), at = rng_below(rng, SIZE - n);
    char name[16];

    scatter(map, &c, rng, 10);
    switch (rng_below(rng, 8)) {
    case 0:
    case 1:
      OK(pcow_flush(map, at, n));
      break;
    case 2:
      OK(pcow_flush(map, 0, SIZE));
      break;
    case 3:
      content_write(image, &c, rng, at, n);
      break;
    case 4:
      content_discard(image, &c, at, n);
      break;
    case 5: {
      uint8_t *bytes = test_alloc(n);

      OK(pcow_pread(image, bytes, n, at));
      CHECK(!memcmp(bytes, c.bytes + at, n), "pcow_pread() does not give what was stored");
      free(bytes);
      break;
    }
    case 6:
      if (snapshots)
        content_compare(image, &c, "with a map");
      OK(pcow_sync(image));
      break;
    case 7:
      if (!rng_chance(rng, 30))
        break;
      if (snapshots) {
        snprintf(name, sizeof name, "s%u", snapshots);
        content_compare_view(path, name, &frozen, "a snapshot");
        content_free(&frozen);
        if (rng_chance(rng, 70))
          OK(pcow_snapshot_delete(image, name));
      }
      snprintf(name, sizeof name, "s%u", ++snapshots);
      content_snapshot(image, name, &c, &frozen);
      break;
    }
    if (i % 20 == 0)
      check_map(map, &c, "in between");
  }
  check_map(map, &c, "at the end");
  content_compare(image, &c, "at the end");
  stats = test_stats(map);
  printf("unit %" PRIu64 ", thin %u: %" PRIu64 " flushes, %" PRIu64 " pages flushed, %" PRIu64 " handed over, %" PRIu64
         " faults, %" PRIu64 " scans, %u snapshots\n", unit, thin, stats.flushes, stats.pages_flushed,
         stats.pages_handed_over, stats.faults, stats.scans, snapshots);
  CHECK(stats.flushes && stats.pages_flushed, "nothing was flushed");
  CHECK(nobody ? !stats.pages_handed_over && !stats.faults : stats.pages_handed_over && stats.faults,
        "%" PRIu64 " pages were handed over, %" PRIu64 " events", stats.pages_handed_over, stats.faults);
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  content_compare_view(path, NULL, &c, "closed and opened");
  if (snapshots)
    content_free(&frozen);
  content_free(&c);
  test_check_clean(path);
  check_base();
}

/* Slots that were being filled may be left over. */
static void check_killed(void)
{
  struct pcow_check_result result = PCOW_INIT(result);

  OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
  CHECK(result.corruptions == 0 && result.repaired == result.leaks, "%" PRIu64 " corruptions", result.corruptions);
  test_check_clean(path);
}

/* The process is killed: every byte is as it was flushed last, or as it was stored since. */
static void killed(struct rng *rng)
{
  uint8_t *flushed = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  uint8_t *stored = flushed + SIZE, *bytes = test_alloc(SIZE);
  pcow_image *image;
  uint64_t newer = 0;
  pid_t child;

  CHECK(flushed != MAP_FAILED, "no memory");
  make(64 * KIB, rng);
  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (child == 0) {
    struct content c = content_copy(&base);
    pcow_mapping *map;
    char name[] = "a";

    image = test_open(path, PCOW_OPEN_RDWR, NULL);
    map = test_map_flush(image, NULL);
    for (unsigned i = 0; i < 20; i++, name[0]++) {
      scatter(map, &c, rng, 20);
      if (i % 5 == 0)
        OK(pcow_snapshot_create(image, name));
      else
        OK(pcow_flush(map, 0, SIZE));
    }
    memcpy(flushed, c.bytes, SIZE);
    scatter(map, &c, rng, 200);
    memcpy(stored, c.bytes, SIZE);
    raise(SIGKILL);
  }
  SYS(waitpid(child, NULL, 0));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pread(image, bytes, SIZE, 0));
  for (uint64_t i = 0; i < SIZE; i++) {
    CHECK(bytes[i] == flushed[i] || bytes[i] == stored[i], "byte %" PRIu64 " was flushed and is lost", i);
    newer += bytes[i] != flushed[i];
  }
  OK(pcow_close(image));
  printf("killed: %" PRIu64 " bytes are newer than the flush\n", newer);
  SYS(munmap(flushed, 2 * SIZE));
  free(bytes);
  check_killed();
  check_base();
}

int main(int argc, char **argv)
{
  uint64_t rounds = test_option(argc, argv, "--rounds", 1);
  struct rng rng = { test_seed(argc, argv) };

  test_dir(argc, argv);
  nobody = test_flag(argc, argv, "--nobody");
  if (nobody)
    test_become_nobody();
  base_path = test_path("base");
  path = test_path("image");
  for (uint64_t i = 0; i < rounds; i++) {
    together(64 * KIB, PCOW_THIN_DEFAULT, &rng);
    together(2 * MIB, PCOW_THIN_DEFAULT, &rng);
    together(2 * MIB, PCOW_THIN_GUARDED, &rng);
    killed(&rng);
  }
  content_free(&base);
  return 0;
}
