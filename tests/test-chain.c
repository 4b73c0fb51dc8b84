/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A chain of 1000 images opens, reads right and maps with a limit of 1024 file descriptors, leaves
 * most of them to the program and keeps little memory a layer, and a chain beyond the documented 1024
 * layers is refused by name.
 *
 *     test-chain [--length N] [--dir DIR]
 */
#include "testlib.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LAYER_BYTES 300   /* a layer, without its path */
#define HANDLE_BYTES 65536
#define MOST 1026 /* the first length that must be refused: 1025 layers beneath the top */

static unsigned length;
static uint64_t pages;

static char *name(unsigned image)
{
  return test_path("%04u.pcow", image);
}

/* The newest image up to TOP that has the page, as a seed; 0: none has. Image i has page i, and every
 * tenth image has page 0. */
static uint64_t seed_of(uint64_t page, unsigned top)
{
  if (page == 0)
    return 1 + top / 10 * 10;
  return page <= top ? 1 + page : 0;
}

static void check_page(const void *bytes, uint64_t page, unsigned top, const char *how)
{
  static const char zeros[PCOW_PAGE_SIZE];
  uint64_t seed = seed_of(page, top);

  CHECK(seed ? test_page_is(bytes, seed) : memcmp(bytes, zeros, PAGE) == 0,
        "%s: page %" PRIu64 " of image %u is wrong", how, page, top);
}

static unsigned descriptors(void)
{
  DIR *dir = opendir("/proc/self/fd");
  unsigned count = 0;

  CHECK(dir, "/proc/self/fd");
  while (readdir(dir))
    count++;
  closedir(dir);
  return count - 3; /* ".", ".." and this one */
}

/* What of the heap is in use; 0: the C library (or a sanitizer in its place) does not tell. */
static size_t heap(void)
{
#if __GLIBC_PREREQ(2, 33)
  return mallinfo2().uordblks;
#else
  return 0;
#endif
}

/* Opening has kept what it needs of each layer, and nothing of what it has read. */
static void check_memory(unsigned top, size_t before)
{
  size_t after = heap(), most = (top + 1) * (LAYER_BYTES + strlen(name(top))) + HANDLE_BYTES;

  if (after == 0)
    return;
  CHECK(after - before <= most, "opening image %u has taken %zu bytes, more than %zu", top, after - before,
        most);
  printf("image %u: %zu bytes a layer\n", top, (after - before) / (top + 1));
}

static void check_image(unsigned top, bool map_it)
{
  unsigned before = descriptors(), open_now;
  size_t heap_before = heap();
  pcow_image *image = test_open(name(top), 0, NULL);
  char bytes[PCOW_PAGE_SIZE];
  pcow_mapping *map;

  check_memory(top, heap_before);

  for (uint64_t page = 0; page < pages; page++) {
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    check_page(bytes, page, top, "pcow_pread()");
  }
  open_now = descriptors() - before;
  CHECK(open_now <= 512, "image %u holds %u descriptors", top, open_now);
  if (map_it) {
    const char *range;

    OK(pcow_map(image, NULL, &map));
    range = pcow_mapping_address(map);
    for (uint64_t page = 0; page < pages; page++)
      check_page(range + page * PAGE, page, top, "the map");
    open_now = descriptors() - before;
    CHECK(open_now <= 512, "image %u, mapped, holds %u descriptors", top, open_now);
  }
  OK(pcow_close(image));
  CHECK(descriptors() == before, "%u descriptors are left", descriptors() - before);
  printf("image %u: %u descriptors while open\n", top, open_now);
}

static void write_page(pcow_image *image, uint64_t page, uint64_t seed)
{
  char bytes[PCOW_PAGE_SIZE];

  test_page_fill(bytes, seed);
  OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
}

/* Image I over I - 1; false: refused, as too long. */
static bool make(unsigned i)
{
  struct pcow_create_options options = PCOW_INIT(options);
  struct pcow_open_options open_options = PCOW_INIT(open_options);
  pcow_image *image;
  int result;

  options.flags = PCOW_CREATE_BASES;
  options.unit_size = 64 * KIB << i % 3;
  if (i) {
    options.base = strrchr(name(i - 1), '/') + 1;
    options.base_format = PCOW_FORMAT_PCOW;
  }
  result = pcow_create(name(i), pages * PAGE, &options);
  if (result == -ELOOP)
    return false;
  CHECK(result >= 0, "image %u cannot be created: %s", i, pcow_errormsg());
  open_options.flags = PCOW_OPEN_RDWR | PCOW_OPEN_BASES;
  result = pcow_open(name(i), &open_options, &image);
  if (result == -ELOOP)
    return false;
  CHECK(result >= 0, "image %u cannot be opened: %s", i, pcow_errormsg());
  if (i)
    write_page(image, i, 1 + i);
  if (i % 10 == 0)
    write_page(image, 0, 1 + i);
  OK(pcow_close(image));
  return true;
}

int main(int argc, char **argv)
{
  struct rlimit files = { 1024, 1024 };
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image;
  pcow_mapping *map;
  char *range;
  unsigned top;

  options.flags = PCOW_OPEN_BASES;
  test_force_pmem(argv);
  length = (unsigned)test_option(argc, argv, "--length", 1000);
  test_dir(argc, argv);
  SYS(setrlimit(RLIMIT_NOFILE, &files));
  pages = MOST + 16;
  for (unsigned i = 0; i < length; i++)
    CHECK(make(i), "image %u is refused: %s", i, pcow_errormsg());
  top = length - 1;
  check_image(top, true);
  check_image(top / 2, true);
  test_check_clean(name(top));

  /* Written, through the map too, and a snapshot taken, over all those layers. */
  image = test_open(name(top), PCOW_OPEN_RDWR, NULL);
  map = test_map(image, NULL);
  range = pcow_mapping_address(map);
  for (uint64_t page = 0; page < pages; page++)
    check_page(range + page * PAGE, page, top, "the writable map");
  for (uint64_t page = 1; page < pages; page += 3)
    memset(range + page * PAGE + 8, 7, 8);
  OK(pcow_snapshot_create(image, "mapped"));
  OK(pcow_close(image));
  image = test_open(name(top), 0, "mapped");
  for (uint64_t page = 0; page < pages; page++) {
    char bytes[PCOW_PAGE_SIZE], expected[PCOW_PAGE_SIZE] = { 0 };

    if (seed_of(page, top))
      test_page_fill(expected, seed_of(page, top));
    if (page % 3 == 1)
      memset(expected + 8, 7, 8);
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(memcmp(bytes, expected, PAGE) == 0, "page %" PRIu64 " is wrong after stores", page);
  }
  OK(pcow_close(image));

  /* One after the other until the library says that it is enough; not before 1024 layers. */
  image = test_open(name(top), PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_revert(image, "mapped"));
  OK(pcow_close(image));
  if (length == 1000) {
    unsigned i = length;

    while (i < MOST && make(i))
      i++;
    CHECK(i >= 1024, "a chain of %u images is refused: %s", i + 1, pcow_errormsg());
    CHECK(i < MOST, "a chain of %u images is not refused", i);
    CHECK(pcow_errormsg()[0], "no message says why");
    printf("image %u is refused: %s\n", i, pcow_errormsg());
    if (access(name(i), F_OK) == 0)
      GIVES(-ELOOP, pcow_open(name(i), &options, &image));
  }
  return 0;
}
