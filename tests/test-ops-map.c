/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resize, rebase, commit, extents and diff of an image that is mapped: what is refused leaves
 * everything as it was, and growth shows zeros through the mapping whatever was there before.
 */
#include "content.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void compare_range(const pcow_mapping *mapping, const struct content *c, const char *label)
{
  const unsigned char *range = pcow_mapping_address(mapping);

  CHECK(pcow_mapping_length(mapping) == c->size, "%s: the mapping is %llu bytes long", label,
        (unsigned long long)pcow_mapping_length(mapping));
  for (uint64_t at = 0; at < c->size; at += PAGE)
    CHECK(memcmp(range + at, c->bytes + at, PAGE) == 0, "%s: page %llu of the mapping differs", label,
          (unsigned long long)(at / PAGE));
}

static void store(pcow_mapping *mapping, struct content *c, struct rng *rng, unsigned count)
{
  unsigned char *range = pcow_mapping_address(mapping);

  for (unsigned i = 0; i < count; i++) {
    uint64_t at = rng_below(rng, c->size - 100);

    rng_fill(rng, c->bytes + at, 100);
    memcpy(range + at, c->bytes + at, 100);
    OK(pcow_persist(mapping, at, 100));
  }
}

static int count_extent(void *opaque, const struct pcow_extent *e)
{
  *(uint64_t *)opaque += e->length;
  return 0;
}

static void run(uint64_t unit, struct rng *rng)
{
  char *base = test_path("base-%llu", (unsigned long long)unit), *path = test_path("top-%llu", (unsigned long long)unit);
  struct pcow_rebase_options options = PCOW_INIT(options);
  struct pcow_map_options map_options = PCOW_INIT(map_options);
  struct content head = content_new(2 * MIB), frozen;
  pcow_mapping *mapping;
  pcow_image *image;
  uint64_t sum = 0;

  test_create(base, 2 * MIB, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  content_write(image, &head, rng, 0, head.size);
  OK(pcow_close(image));
  test_create(path, 0, unit, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, rng, 50);
  OK(pcow_resize(image, MIB, PCOW_RESIZE_SHRINK));
  content_resize(&head, MIB);

  map_options.reserve = 3 * MIB;
  mapping = test_map(image, &map_options);
  compare_range(mapping, &head, "mapped");
  store(mapping, &head, rng, 50);
  GIVES(-EBUSY, pcow_resize(image, 64 * KIB, PCOW_RESIZE_SHRINK));
  GIVES(-EBUSY, pcow_rebase(image, &options));
  GIVES(-EBUSY, pcow_commit(image, NULL, NULL));
  GIVES(-ENOSPC, pcow_resize(image, 4 * MIB, 0));
  compare_range(mapping, &head, "refused");
  content_compare(image, &head, "refused");
  store(mapping, &head, rng, 50);

  /* What was shrunk away and what the base has there are hidden. */
  OK(pcow_resize(image, 2 * MIB + 64 * KIB, 0));
  content_resize(&head, 2 * MIB + 64 * KIB);
  compare_range(mapping, &head, "grown");
  store(mapping, &head, rng, 100);
  OK(pcow_resize(image, 3 * MIB, 0));
  content_resize(&head, 3 * MIB);
  store(mapping, &head, rng, 100);
  compare_range(mapping, &head, "grown again");
  content_compare(image, &head, "grown again");

  content_snapshot(image, "frozen", &head, &frozen);
  OK(pcow_diff(image, "frozen", NULL, count_extent, &sum));
  CHECK(sum == 0, "%llu bytes differ right after a snapshot", (unsigned long long)sum);
  memset((char *)pcow_mapping_address(mapping) + 5 * PAGE, 1, PAGE);
  memset(head.bytes + 5 * PAGE, 1, PAGE);
  OK(pcow_diff(image, "frozen", NULL, count_extent, &sum));
  CHECK(sum == PAGE, "%llu bytes differ after a store to one page", (unsigned long long)sum);
  sum = 0;
  OK(pcow_extents(image, 0, head.size, 0, count_extent, &sum));
  CHECK(sum == head.size, "extents of %llu bytes", (unsigned long long)sum);
  OK(pcow_unmap(mapping));
  content_compare(image, &head, "unmapped");
  OK(pcow_close(image));
  content_compare_view(path, NULL, &head, "opened again");
  content_compare_view(path, "frozen", &frozen, "frozen");
  test_check_clean(path);
  content_free(&head);
  content_free(&frozen);
}

int main(int argc, char **argv)
{
  struct rng rng;

  test_force_pmem(argv);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  run(64 * KIB, &rng);
  run(2 * MIB, &rng);
  return 0;
}
