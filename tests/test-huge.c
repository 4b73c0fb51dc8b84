/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An image of 8 TiB costs less than 100 KiB of blocks, is mapped, written at both ends and in the
 * middle, read in places where nothing is, and found so after a reopen; another is its overlay.
 *
 *     test-huge [--size SIZE] [--dir DIR]
 */
#include "testlib.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PLACES 5

static uint64_t size, places[PLACES];

static void verify(const char *how, pcow_image *image, const volatile uint64_t *range, uint64_t add)
{
  for (unsigned i = 0; i < PLACES; i++) {
    uint64_t word, next;

    if (range) {
      word = range[places[i] / 8];
      next = range[(places[i] - PAGE) / 8];
    } else {
      OK(pcow_pread(image, &word, 8, places[i]));
      OK(pcow_pread(image, &next, 8, places[i] - PAGE));
    }
    CHECK(word == i + add, "%s: the word at %" PRIu64 " is 0x%" PRIx64, how, places[i], word);
    CHECK(!next, "%s: the word at %" PRIu64 " is 0x%" PRIx64, how, places[i] - PAGE, next);
  }
}

static void small(const char *when, const char *path, uint64_t most)
{
  uint64_t blocks = test_blocks(path);

  printf("%s: %" PRIu64 " KiB\n", when, blocks / KIB);
  CHECK(blocks < most, "%s: %" PRIu64 " bytes are allocated", when, blocks);
}

int main(int argc, char **argv)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_info info = PCOW_INIT(info);
  char *path, *overlay;
  pcow_image *image;
  pcow_mapping *map;
  volatile uint64_t *range;

  test_force_pmem(argv);
  size = test_option(argc, argv, "--size", 8 * TIB);
  test_dir(argc, argv);
  path = test_path("huge.pcow");
  overlay = test_path("overlay.pcow");
  places[0] = PAGE;
  places[1] = size / 3 / PAGE * PAGE;
  places[2] = size / 2;
  places[3] = size - 2 * PAGE;
  places[4] = size - 8;

  test_create(path, size, 0, NULL, PCOW_FORMAT_NONE, NULL);
  small("created", path, 100 * KIB);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_get_info(image, &info));
  CHECK(info.virtual_size == size, "the size is %" PRIu64, info.virtual_size);
  CHECK(size / info.unit_size <= 8192, "the unit is %" PRIu64, info.unit_size);
  options.granule = 4 * KIB;
  map = test_map(image, &options);
  CHECK(pcow_mapping_length(map) == size, "the map is smaller");
  range = pcow_mapping_address(map);
  for (uint64_t at = 0; at < size; at += size / 1000 / 8 * 8)
    CHECK(!range[at / 8], "a word at %" PRIu64 " is not zero", at);
  small("mapped and read", path, 1 * MIB);
  for (unsigned i = 0; i < PLACES; i++)
    range[places[i] / 8] = i + 10;
  OK(pcow_persist(map, places[PLACES - 1], 8));
  verify("the map", NULL, range, 10);
  verify("pcow_pread()", image, NULL, 10);
  OK(pcow_snapshot_create(image, "first"));
  for (unsigned i = 0; i < PLACES; i++)
    range[places[i] / 8] = i + 20;
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  small("written", path, 32 * MIB);
  test_check_clean(path);

  image = test_open(path, 0, NULL);
  verify("reopened", image, NULL, 20);
  OK(pcow_map(image, NULL, &map));
  verify("reopened and mapped", NULL, pcow_mapping_address(map), 20);
  OK(pcow_close(image));
  image = test_open(path, 0, "first");
  verify("the snapshot", image, NULL, 10);
  OK(pcow_close(image));

  test_create(overlay, 0, 0, path, PCOW_FORMAT_PCOW, "first");
  small("an overlay", overlay, 100 * KIB);
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  verify("the overlay", NULL, range, 10);
  range[places[4] / 8] = 14;
  range[places[0] / 8] = 10;
  OK(pcow_close(image));
  image = test_open(overlay, 0, NULL);
  verify("the overlay, reopened", image, NULL, 10);
  OK(pcow_close(image));
  return 0;
}
