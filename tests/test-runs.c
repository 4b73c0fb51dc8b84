/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What pages that are present in turns cost: units of 16 GiB of which every other page is present have 2^22
 * runs each, for 512 KiB in the file. They are read in places, compared, listed, mapped read-only and for
 * writing, stored to and discarded, and the process never takes more memory than a bound that no single
 * unit's runs would fit in.
 *
 *     test-runs [--dir DIR]
 */
#include "testlib.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define UNITS 2u
#define UNIT (16 * GIB)
#define BITMAPS (UINT64_C(0x40000000) + 0x400000)       /* of the first group of slots; docs/format.md, 3 */
#define BITMAP_BYTES (512 * KIB)
#define MOST_KIB (144 * 1024)            /* the runs of a unit would be 160 */

static void small(const char *when)
{
  struct rusage usage;

  SYS(getrusage(RUSAGE_SELF, &usage));
  printf("%s: %ld KiB\n", when, usage.ru_maxrss);
  CHECK(usage.ru_maxrss < MOST_KIB, "%s: %ld KiB of memory were taken", when, usage.ru_maxrss);
}

/* The slots were made by a write to each unit; as if every other page had been. */
static void make(const char *path)
{
  pcow_image *image;
  uint64_t *bitmap = malloc(BITMAP_BYTES);
  int fd;

  CHECK(bitmap, "no memory");
  test_create(path, UNITS * UNIT, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t unit = 0; unit < UNITS; unit++)
    for (uint64_t i = 0; i < 64; i++) {
      uint64_t word = unit * 1000 + i + 1;

      OK(pcow_pwrite(image, &word, 8, unit * UNIT + i * 2 * PAGE));
    }
  OK(pcow_close(image));
  memset(bitmap, 0x55, BITMAP_BYTES);
  fd = SYS(open(path, O_RDWR | O_CLOEXEC));
  for (unsigned i = 0; i < UNITS; i++)
    CHECK(pwrite(fd, bitmap, BITMAP_BYTES, (off_t)(BITMAPS + i * BITMAP_BYTES)) == (ssize_t)BITMAP_BYTES,
          "cannot write a bitmap");
  SYS(close(fd));
  free(bitmap);
}

static void read_places(pcow_image *image)
{
  uint64_t word;

  for (uint64_t unit = 0; unit < UNITS; unit++) {
    OK(pcow_pread(image, &word, 8, unit * UNIT + 126 * PAGE));
    CHECK(word == unit * 1000 + 64, "unit %" PRIu64 " has 0x%" PRIx64, unit, word);
    for (uint64_t at = 0; at < UNIT; at += UNIT / 100 / PAGE * PAGE) {
      OK(pcow_pread(image, &word, 8, unit * UNIT + GIB + at % (UNIT - GIB)));
      CHECK(!word, "unit %" PRIu64 " has 0x%" PRIx64 " at %" PRIu64, unit, word, at);
    }
  }
}

static int count(void *opaque, const struct pcow_extent *extent)
{
  *(uint64_t *)opaque += extent->length;
  return 0;
}

static void map_places(pcow_image *image, bool writable)
{
  volatile uint64_t *range;
  pcow_mapping *map;

  if (writable) {
    map = test_map(image, NULL);
  } else {
    OK(pcow_map(image, NULL, &map));
  }
  range = pcow_mapping_address(map);
  for (uint64_t unit = 0; unit < UNITS; unit++) {
    CHECK(range[(unit * UNIT + 126 * PAGE) / 8] == unit * 1000 + 64, "the map of unit %" PRIu64 " is wrong", unit);
    CHECK(!range[(unit * UNIT + UNIT / 2) / 8], "the map of unit %" PRIu64 " is not zero", unit);
  }
  if (writable) {
    range[(UNIT / 2 + PAGE) / 8] = 7;
    CHECK(range[(UNIT / 2 + PAGE) / 8] == 7, "the store is lost");
  }
  OK(pcow_unmap(map));
}

int main(int argc, char **argv)
{
  pcow_image *image;
  uint64_t length = 0;
  char *path;

  test_force_pmem(argv);
  test_dir(argc, argv);
  path = test_path("runs.pcow");
  make(path);
  small("made");

  image = test_open(path, 0, NULL);
  read_places(image);
  small("read");
  OK(pcow_extents(image, 0, GIB, 0, count, &length));
  CHECK(length == GIB, "the extents end at %" PRIu64, length);
  small("listed");
  map_places(image, false);
  small("mapped for reading");
  OK(pcow_close(image));

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "first"));
  read_places(image);
  small("read from beneath");
  map_places(image, true);
  small("mapped for writing");
  OK(pcow_discard(image, 0, 32 * MIB));
  OK(pcow_pread(image, &length, 8, 126 * PAGE));
  CHECK(!length, "a discarded word is 0x%" PRIx64, length);
  small("discarded");
  OK(pcow_close(image));
  return 0;
}
