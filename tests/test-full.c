/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A full file system under an image whose stores are made durable by fdatasync(2), in a directory on a small file
 * system of its own (tests/with-fs.sh): what needs space fails with -ENOSPC, as often as it is tried, the handle
 * goes on, what has space already can be written, through a map, too, and takes no more; and when there is space
 * again everything succeeds and nothing is lost.
 */
#include "testlib.h"

#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#define UNIT (64 * KIB)
#define SIZE (8 * MIB)
#define BEFORE 32u /* pages that are written while there is space */
#define TRIES 4u

static char *ballast, *base, *path;
static char page[PCOW_PAGE_SIZE];

static void fill(void)
{
  int fd = (int)SYS(open(ballast, O_RDWR | O_CREAT, 0600));
  off_t size = 0;

  sync(); /* what is still to be given back comes back first */
  for (off_t step = 64 * (off_t)MIB; step >= (off_t)PAGE; step /= 2)
    while (fallocate(fd, 0, size, step) == 0)
      size += step;
  /* XFS keeps a few blocks from fallocate(2) that write(2) may have. */
  while (pwrite(fd, page, PAGE, size) > 0)
    size += (off_t)PAGE;
  CHECK(size > 0, "there is no room for ballast");
  close(fd);
}

static void make_room(void)
{
  SYS(truncate(ballast, 0)); /* unlink(2) alone may give space back later */
  SYS(unlink(ballast));
}

static void write_page(pcow_image *image, uint64_t number, uint64_t seed, int expected)
{
  int result;

  test_page_fill(page, seed);
  result = pcow_pwrite(image, page, PAGE, number * PAGE);
  CHECK(result == expected, "writing page %" PRIu64 " gave %d, not %d: %s", number, result, expected,
        result ? pcow_errormsg() : "");
}

static void expect_page(pcow_image *image, uint64_t number, uint64_t seed)
{
  OK(pcow_pread(image, page, PAGE, number * PAGE));
  CHECK(test_page_is(page, seed), "page %" PRIu64 " is wrong", number);
}

static void make_base(void)
{
  pcow_image *image;

  test_create(base, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < SIZE / PAGE; i++)
    write_page(image, i, 5000 + i, 0);
  OK(pcow_close(image));
}

static void make_image(const char *over)
{
  pcow_image *image;

  test_create(path, SIZE, UNIT, over, over ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < BEFORE; i++)
    write_page(image, i, 1 + i, 0);
  OK(pcow_close(image));
}

/* The first commit of a session, and what follows. */
static void session(void)
{
  bool snapshot = false;
  pcow_image *image;

  make_image(NULL);
  fill();
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (unsigned try = 0; try < TRIES; try++) {
    /* Every block of it is there: superblocks, header, bitmap, data. */
    write_page(image, try, 100 + try, 0);
    write_page(image, SIZE / PAGE - 1 - try * UNIT / PAGE, 200, -ENOSPC);
    if (!snapshot) {
      int result = pcow_snapshot_create(image, "full");

      CHECK(result == 0 || result == -ENOSPC, "a snapshot gave %d: %s", result, pcow_errormsg());
      snapshot = result == 0;
      if (snapshot)
        break; /* from here on all pages need space */
    }
  }
  make_room();
  write_page(image, SIZE / PAGE - 1, 300, 0);
  if (!snapshot)
    OK(pcow_snapshot_create(image, "full"));
  write_page(image, 0, 400, 0);
  OK(pcow_close(image));
  test_check_clean(path);
  image = test_open(path, 0, NULL);
  expect_page(image, 0, 400);
  for (uint64_t i = snapshot ? 1 : TRIES; i < BEFORE; i++)
    expect_page(image, i, 1 + i);
  expect_page(image, SIZE / PAGE - 1, 300);
  OK(pcow_close(image));
  SYS(unlink(path));
}

/* A flush for which there is no space can be repeated, and publishes everything in the end. */
static void flush(void)
{
  pcow_mapping *mapping;
  pcow_image *image;
  char *memory;

  make_image(base);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  mapping = test_map_flush(image, NULL);
  memory = pcow_mapping_address(mapping);
  fill();
  for (unsigned try = 0; try < TRIES; try++) {
    for (uint64_t i = BEFORE; i < SIZE / PAGE; i += 3)
      test_page_fill(memory + i * PAGE, 7000 * (1 + try) + i);
    GIVES(-ENOSPC, pcow_flush(mapping, 0, SIZE));
    GIVES(-ENOSPC, pcow_flush(mapping, SIZE / 2, SIZE / 2));
  }
  make_room();
  OK(pcow_flush(mapping, 0, SIZE));
  OK(pcow_unmap(mapping));
  OK(pcow_close(image));
  test_check_clean(path);
  image = test_open(path, 0, NULL);
  for (uint64_t i = 0; i < SIZE / PAGE; i++)
    expect_page(image, i, i < BEFORE ? 1 + i : (i - BEFORE) % 3 ? 5000 + i : 7000 * TRIES + i);
  OK(pcow_close(image));
}

/* Blocks for the superblock itself are missing (somebody has punched them): the commit fails before it begins, and
 * may be repeated. */
static void commit(void)
{
  struct superblock next;
  struct store *store;
  int fd;

  make_image(NULL);
  fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));
  OK(store_open(fd, path, &store));
  SYS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)SUPERBLOCK_OFFSET(1), SUPERBLOCK_BYTES));
  fill();
  for (unsigned try = 0; try < TRIES; try++) {
    next = store_begin(store);
    GIVES(-ENOSPC, store_end(store, &next, true));
    OK(store_check(store));
  }
  make_room();
  next = store_begin(store);
  OK(store_end(store, &next, true));
  OK(store_check(store));
  store_close(store);
  SYS(unlink(path));
}

/* ---- Stores beside pages that have no blocks ---- */

static enum {
  MAPPED,   /* one page in four was there when the map was made */
  BY_CALL,  /* half of each unit was, and is read by pcow_pread() */
  FIRST,    /* the same, before there is a map */
  NEW,      /* one page in four is written over a base, and handed over to the file by the second flush */
  WAYS
} way;

static bool is_scattered(uint64_t number) { return way == BY_CALL || way == FIRST ? number % 16 < 8 : number % 4 == 0; }

static void store_scattered(pcow_mapping *mapping, uint64_t seed)
{
  char *memory = pcow_mapping_address(mapping);

  for (uint64_t i = 0; i < SIZE / PAGE; i++)
    if (is_scattered(i)) {
      test_page_fill(page, seed + i);
      test_range_store(memory + i * PAGE, page, PAGE);
    }
  OK(pcow_flush(mapping, 0, SIZE));
}

static void forget_cache(const char *file)
{
  int fd = (int)SYS(open(file, O_RDONLY | O_CLOEXEC));

  SYS(fsync(fd));
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
}

/* Everything is read, in order, from a cold page cache; then the file system is full; then pages that have their
 * blocks are stored to. Blocks for their neighbours would be leaks where there is space, and a SIGBUS where not. */
static void neighbours(bool full)
{
  struct pcow_map_options how = PCOW_INIT(how);
  volatile char *memory;
  pcow_mapping *mapping;
  pcow_image *image;
  uint64_t before, sum = 0;

  test_create(path, SIZE, UNIT, way == NEW ? base : NULL, way == NEW ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < SIZE / PAGE && way != NEW; i++)
    if (is_scattered(i))
      write_page(image, i, 1 + i, 0);
  OK(pcow_close(image));
  forget_cache(path);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < SIZE / PAGE && way == FIRST; i++)
    OK(pcow_pread(image, page, PAGE, i * PAGE));
  how.thin = PCOW_THIN_GUARDED;
  mapping = test_map_flush(image, &how);
  memory = pcow_mapping_address(mapping);
  if (way == NEW) {
    store_scattered(mapping, 1);
    store_scattered(mapping, 2);
    CHECK(test_stats(mapping).pages_handed_over, "nothing was handed over");
    /* All that was written lies in the file; the rest is as it was. */
    SYS(madvise(pcow_mapping_address(mapping), SIZE, MADV_DONTNEED));
    forget_cache(path);
  }
  for (uint64_t i = 0; i < SIZE / PAGE; i++)
    if (way == BY_CALL)
      OK(pcow_pread(image, page, PAGE, i * PAGE));
    else
      sum += (uint64_t)memory[i * PAGE];
  CHECK(sum != 1, "cannot be");
  before = test_blocks(path);
  if (full)
    fill();
  store_scattered(mapping, 9000);
  CHECK(test_blocks(path) <= before + UNIT, "stores to pages that were there took %" PRIu64 " bytes",
        test_blocks(path) - before);
  OK(pcow_unmap(mapping));
  OK(pcow_close(image));
  if (full)
    make_room();
  test_check_clean(path);
  image = test_open(path, 0, NULL);
  for (uint64_t i = 0; i < SIZE / PAGE; i++)
    if (is_scattered(i) || way == NEW)
      expect_page(image, i, is_scattered(i) ? 9000 + i : 5000 + i);
  OK(pcow_close(image));
  SYS(unlink(path));
}

int main(int argc, char **argv)
{
  const char *dir = (test_unforce_pmem(argv), test_dir(argc, argv));
  struct statfs fs;

  SYS(statfs(dir, &fs));
  if ((uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize > 2 * GIB)
    test_skip("%s is no small file system of the test's own", dir);
  ballast = test_path("ballast");
  base = test_path("base.pcow");
  path = test_path("image.pcow");
  session();
  commit();
  make_base();
  for (way = MAPPED; way < WAYS; way++) {
    neighbours(false);
    neighbours(true);
  }
  flush();
  return 0;
}
