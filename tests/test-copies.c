/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copies in flight: while a first write copies many pages, which this test holds in the middle of it, first writes to
 * other pages of the unit are served; a write, a discard, a snapshot and a first write to the pages that are being
 * copied wait, and find or change what the copy brings. Nothing else empties them, or is copied twice.
 *
 *     test-copies [--dir DIR]
 */
#include "testlib.h"

#include "image.h"
#include "persist.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGES 4096u             /* of the image, one unit */
#define LARGE (64 * KIB)        /* more than the thread that reads events copies */
#define AWAY 2048u              /* pages that nobody copies meanwhile */
#define DEADLINE 60000u         /* ms: what takes longer hangs */
#define MOMENT 100u             /* ms in which what does not wait would have been done */
#define MARK 64u                /* offset of stores in a page */

static atomic_bool armed, reached, opened, writer_done, others_done, operation_done;
static atomic_uint at;          /* page whose first write is being held */
static pcow_image *image;
static pcow_mapping *map;
static volatile uint8_t *range;

/* ---- The gate ---- */

static void pass(void *file) { (void)file; }

static void *watch_open(int fd, const char *path, enum persist_mode mode)
{
  (void)fd;
  (void)path;
  return mode == PERSIST_PMEM ? &armed : NULL;
}

static void watch_store(void *file, uint64_t offset, const void *from, uint64_t length, bool written_back)
{
  (void)file;
  (void)offset;
  (void)from;
  (void)written_back;
  if (length <= LARGE || !atomic_exchange(&armed, false))
    return;
  reached = true;
  while (!opened)
    usleep(1000);
}

static void watch_range(void *file, uint64_t offset, uint64_t length)
{
  (void)file;
  (void)offset;
  (void)length;
}

static void watch_memory(void *file, const void *address, uint64_t length)
{
  (void)file;
  (void)address;
  (void)length;
}

static void watch_grow(void *file, uint64_t size)
{
  (void)file;
  (void)size;
}

static const struct persist_watch gate = {
  .begin = pass, .end = pass, .open = watch_open, .close = pass, .store = watch_store, .flush = watch_range,
  .flush_memory = watch_memory, .drain = pass, .sync = pass, .punch = watch_range, .grow = watch_grow,
};

static bool wait_for(const atomic_bool *what, unsigned msec)
{
  for (unsigned i = 0; i < msec && !*what; i++)
    usleep(1000);
  return *what;
}

/* ---- Threads ---- */

NO_TSAN static void store(uint64_t page, uint8_t value) { range[page * PAGE + MARK] = value; }

/* One page after the other, until a first write takes so many that the gate holds it. */
static void *run_writer(void *unused)
{
  (void)unused;
  for (unsigned i = 0; i < AWAY && !reached; i++) {
    at = i;
    store(i, 1);
  }
  writer_done = true;
  return NULL;
}

static void *run_others(void *unused)
{
  (void)unused;
  for (unsigned i = 0; i < 32; i++)
    store(AWAY + i * 40, 2);
  others_done = true;
  return NULL;
}

struct operation {
  const char *name;
  void (*run)(void);
  void (*check)(void);
};

static void *run_operation(void *operation)
{
  ((const struct operation *)operation)->run();
  operation_done = true;
  return NULL;
}

/* ---- What waits ---- */

#define OFF 3u                  /* pages from the one that is written first */
#define COUNT 8u

/* A page as the base has it, but for stores. */
static void check_page(uint64_t page, int mark)
{
  uint8_t words[PCOW_PAGE_SIZE], found[PCOW_PAGE_SIZE];

  test_page_fill(words, page);
  if (mark)
    words[MARK] = (uint8_t)mark;
  test_range_load(found, range + page * PAGE, PAGE);
  CHECK(!memcmp(found, words, PAGE), "page %u, which a copy brought, is wrong in the map", (unsigned)page);
  OK(pcow_pread(image, found, PAGE, page * PAGE));
  CHECK(!memcmp(found, words, PAGE), "page %u, which a copy brought, is wrong", (unsigned)page);
}

static void do_write(void)
{
  uint8_t byte = 3;

  for (unsigned i = 0; i < COUNT; i++)
    OK(pcow_pwrite(image, &byte, 1, (at + OFF + i) * PAGE + MARK));
}

static void check_write(void)
{
  for (unsigned i = 0; i < COUNT; i++)
    check_page(at + OFF + i, 3);
}

static void do_store(void) { store(at + OFF, 4); }
static void check_store(void) { check_page(at + OFF, 4); }

static void do_discard(void) { OK(pcow_discard(image, (at + OFF) * PAGE, COUNT * PAGE)); }

static void check_discard(void)
{
  uint8_t zeros[PCOW_PAGE_SIZE] = { 0 }, found[PCOW_PAGE_SIZE];

  for (unsigned i = 0; i < COUNT; i++) {
    test_range_load(found, range + (at + OFF + i) * PAGE, PAGE);
    CHECK(!memcmp(found, zeros, PAGE), "page %u was discarded while it was copied", at + OFF + i);
    OK(pcow_pread(image, found, PAGE, (at + OFF + i) * PAGE));
    CHECK(!memcmp(found, zeros, PAGE), "page %u was discarded while it was copied", at + OFF + i);
  }
}

static void do_snapshot(void) { OK(pcow_snapshot_create(image, "now")); }

static void check_snapshot(void)
{
  for (unsigned i = 0; i < COUNT; i++)
    check_page(at + OFF + i, 0);
  store(at + OFF, 5);
  check_page(at + OFF, 5);
}

static void do_resize(void) { OK(pcow_resize(image, PAGES * PAGE * 2, 0)); }

static const struct operation operations[] = {
  { "a write", do_write, check_write },
  { "a first write", do_store, check_store },
  { "a discard", do_discard, check_discard },
  { "a snapshot", do_snapshot, check_snapshot },
  { "growing", do_resize, check_snapshot },
};

/* Beside a copy nobody may have all of the unit, nor empty pages that are not present: some are in flight. */
static void try_beside(void)
{
  struct unit *u;
  int error;

  pthread_rwlock_rdlock(&image->lock);
  CHECK(!head_trylock_unit(image->head, 0, &error) && error == -EAGAIN, "a unit with pages in flight can be locked");
  u = head_lock_beside(image->head, 0, &error);
  CHECK(u && head_in_flight(u, at) && !head_in_flight(u, AWAY), "the wrong pages are in flight");
  u->clean = false;             /* as after a punch that failed */
  CHECK(head_publish(image->head, u, AWAY - 1, AWAY, HEAD_RESERVE, NULL) == -EAGAIN, "pages in flight are emptied");
  head_unlock_unit(image->head, u);
  pthread_rwlock_unlock(&image->lock);
}

static void round_of(const struct operation *operation, const char *base)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_create_options create = PCOW_INIT(create);
  struct pcow_mapping_stats stats;
  char *path = test_path("overlay.pcow");
  pthread_t writer, others, other;

  reached = opened = writer_done = others_done = operation_done = false;
  create.flags = PCOW_CREATE_REPLACE;
  create.base = base;
  create.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_create(path, 0, &create));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  options.reserve = PAGES * PAGE * 2;
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  armed = true;
  SYS(-pthread_create(&writer, NULL, run_writer, NULL));
  CHECK(wait_for(&reached, DEADLINE), "no first write took more than %u KiB", (unsigned)(LARGE / KIB));

  SYS(-pthread_create(&others, NULL, run_others, NULL));
  CHECK(wait_for(&others_done, DEADLINE), "first writes to other pages wait for a copy");
  try_beside();
  SYS(-pthread_create(&other, NULL, run_operation, (void *)(uintptr_t)operation));
  CHECK(!wait_for(&operation_done, MOMENT), "%s does not wait for a copy of its pages", operation->name);
  CHECK(!writer_done, "a store passed before its page was copied");
  opened = true;
  CHECK(wait_for(&operation_done, DEADLINE), "%s hangs", operation->name);
  CHECK(wait_for(&writer_done, DEADLINE), "a first write hangs");
  pthread_join(writer, NULL);
  pthread_join(others, NULL);
  pthread_join(other, NULL);

  operation->check();
  for (unsigned i = 0; i <= at; i++)
    check_page(i, 1);
  check_page(at + 1, 0);
  for (unsigned i = 0; i < 32; i++)
    check_page(AWAY + i * 40, 2);
  stats = test_stats(map);
  CHECK(stats.pages_copied <= PAGES, "pages were copied twice");
  OK(pcow_close(image));
  test_check_clean(path);
}

int main(int argc, char **argv)
{
  uint8_t bytes[PCOW_PAGE_SIZE];
  char *base;

  test_force_pmem(argv);
  test_dir(argc, argv);
  base = test_path("base.pcow");
  test_create(base, PAGES * PAGE, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (unsigned i = 0; i < PAGES; i++) {
    test_page_fill(bytes, i);
    OK(pcow_pwrite(image, bytes, PAGE, i * PAGE));
  }
  OK(pcow_close(image));
  persist_set_watch(&gate);
  for (unsigned i = 0; i < G_N_ELEMENTS(operations); i++)
    round_of(&operations[i], base);
  return 0;
}
