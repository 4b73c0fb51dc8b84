/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rotation: thousands of snapshots are taken, 24 are kept, and a little is written at random between two.
 * Slots of a unit, the high-water mark of slots, space, and places of the epoch log stay as they are after
 * the first hundred, whatever the number; so does what a deletion costs. Asserted are counts, printed also
 * times.
 *
 *     test-rotation [--snapshots N] [--size BYTES] [--unit BYTES] [--map] [--seed N] [--dir DIR]
 */
#include "image.h"
#include "testlib.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIVING 24u

struct figures {
  uint64_t slots_a_unit, slots, slot_count, blocks, log_records, log_bytes;
};

static const char *path;
static uint64_t size, pages, unit;
static uint64_t *content;       /* seed of each page */
static pcow_image *image;
static pcow_mapping *map;
static uint64_t next_seed;

static void write_page(uint64_t page)
{
  uint8_t bytes[PAGE];

  content[page] = ++next_seed;
  test_page_fill(bytes, content[page]);
  if (map) {
    memcpy((uint8_t *)pcow_mapping_address(map) + page * PAGE, bytes, PAGE);
    OK(pcow_persist(map, page * PAGE, PAGE));
  } else {
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
}

static void compare(const char *snapshot, const uint64_t *expected)
{
  pcow_image *view = test_open(path, 0, snapshot);
  uint8_t bytes[PAGE];

  for (uint64_t page = 0; page < pages; page++) {
    OK(pcow_pread(view, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, expected[page]), "%s: page %" PRIu64 " is not as it was", snapshot, page);
  }
  OK(pcow_close(view));
}

/* Longest chain, by reading the file. */
static struct figures measure(void)
{
  struct store *st = image->store;
  GArray *chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  struct figures f = {
    .slot_count = st->sb.slot_count,
    .blocks = test_blocks(path),
    .log_records = st->sb.log_end - st->sb.log_start,
  };
  uint64_t end = EPOCH_LOG_OFFSET + EPOCH_LOG_RECORDS * sizeof(struct pcow_disk_epoch);

  for (uint64_t at = EPOCH_LOG_OFFSET; (at = persist_seek(st->p, at, end, true)) < end;) {
    uint64_t to = persist_seek(st->p, at, end, false);

    f.log_bytes += to - at;
    at = to;
  }
  for (uint64_t i = 0; i < size / unit; i++) {
    uint64_t index;

    g_array_set_size(chain, 0);
    OK(slotwalk_map(st->fd, path, &st->sb, i, &index));
    OK(slotwalk_chain(st->fd, path, &st->sb, i, index, chain));
    f.slots_a_unit = MAX(f.slots_a_unit, chain->len);
    f.slots += chain->len;
  }
  g_array_unref(chain);
  return f;
}

static void reopen(void)
{
  gint64 began = g_get_monotonic_time();
  uint64_t unused;

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(slots_count_free(image->slots, &unused));  /* walks all chains, as the first allocation does */
  printf("opened and walked in %.1f ms\n", (double)(g_get_monotonic_time() - began) / 1000);
}

int main(int argc, char **argv)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_info info = PCOW_INIT(info);
  uint64_t count = test_option(argc, argv, "--snapshots", 3000), churn, visits_most = 0, bytes_most = 0;
  uint64_t longest = 0;
  bool mapped = test_flag(argc, argv, "--map"), merged = false;
  struct figures first = { 0 };
  uint64_t *kept[LIVING] = { NULL };
  gint64 spent = 0;
  struct rng rng;

  test_force_pmem(argv);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  size = test_option(argc, argv, "--size", 256 * MIB);
  unit = test_option(argc, argv, "--unit", 16 * MIB);
  pages = size / PAGE;
  churn = MAX(pages / 1000, 1);
  content = test_alloc(pages * sizeof(*content));
  path = test_path("rotated.pcow");
  test_create(path, size, unit, NULL, PCOW_FORMAT_NONE, NULL);
  reopen();
  for (uint64_t page = 0; page < pages; page++)
    write_page(page);
  options.granule = PAGE;       /* a first write takes no more than its page */
  if (mapped)
    map = test_map(image, &options);

  for (uint64_t i = 1; i <= count; i++) {
    uint64_t **slot = &kept[i % LIVING];
    char name[32];

    for (uint64_t n = 0; n < churn; n++)
      write_page(rng_below(&rng, pages));
    snprintf(name, sizeof(name), "%" PRIu64, i);
    OK(pcow_snapshot_create(image, name));
    if (i > LIVING) {
      struct collect_counts before = image->collected;
      struct persist_counts made, were;
      gint64 began = g_get_monotonic_time();

      persist_get_counts(image->store->p, &were);
      snprintf(name, sizeof(name), "%" PRIu64, i - LIVING);
      OK(pcow_snapshot_delete(image, name));
      spent += g_get_monotonic_time() - began;
      persist_get_counts(image->store->p, &made);
      visits_most = MAX(visits_most, image->collected.visits - before.visits);
      bytes_most = MAX(bytes_most, made.copied_bytes - were.copied_bytes);
    }
    if (!*slot)
      *slot = test_alloc(pages * sizeof(*content));
    memcpy(*slot, content, pages * sizeof(*content));

    if (i == 100 || i == count / 3 || i == count) {
      struct figures f;

      longest = MAX(longest, image->collected.longest);
      merged |= map && test_stats(map).merges;
      if (map)
        OK(pcow_unmap(map));
      OK(pcow_close(image));
      reopen();
      OK(pcow_get_info(image, &info));
      f = measure();
      printf("%s%" PRIu64 " snapshots taken: %" PRIu64 " slots of a unit at most, %" PRIu64 " in all, mark %" PRIu64
             ", %" PRIu64 " KiB of blocks, log of %" PRIu64 " records in %" PRIu64 " KiB, deletions of %.2f ms\n",
             mapped ? "mapped, " : "", i, f.slots_a_unit, f.slots, f.slot_count, f.blocks / KIB, f.log_records,
             f.log_bytes / KIB, (double)spent / 1000 / (double)MAX(i - LIVING, 1));
      CHECK(!info.deletions_pending, "%u deletions are pending", info.deletions_pending);
      /* The head has none where nothing was written since the last snapshot. */
      CHECK(f.slots_a_unit <= LIVING + 1, "a unit has %" PRIu64 " slots with %u snapshots", f.slots_a_unit, LIVING);
      if (!first.slot_count)
        first = f;
      CHECK(f.slot_count <= first.slot_count, "the mark of slots rose from %" PRIu64 " to %" PRIu64,
            first.slot_count, f.slot_count);
      /* The image, what 24 snapshots and a head can have written, and a page of metadata a slot and a half. */
      CHECK(f.blocks <= size + (LIVING + 1) * churn * PAGE + f.slot_count * PAGE * 3 / 2 + 4 * MIB,
            "%" PRIu64 " KiB of blocks", f.blocks / KIB);
      CHECK(f.blocks <= first.blocks + first.blocks / 50, "blocks rose from %" PRIu64 " to %" PRIu64, first.blocks,
            f.blocks);
      CHECK(f.log_records <= 4 * (LIVING + 2) + 8, "the log has %" PRIu64 " records", f.log_records);
      /* Blocks of the log are given back 256 KiB at a time. */
      CHECK(f.log_bytes <= 2 * 256 * KIB + PAGE, "the log takes %" PRIu64 " bytes", f.log_bytes);
      if (mapped)
        map = test_map(image, &options);
    }
  }
  /* What a deletion copied: one epoch's churn at most, and metadata; not the image. */
  printf("a deletion visited %" PRIu64 " units and copied %" PRIu64 " KiB at most; a step took %" PRIu64 " us\n",
         visits_most, bytes_most / KIB, longest);
  CHECK(visits_most <= size / unit, "a deletion visited %" PRIu64 " units of %" PRIu64, visits_most, size / unit);
  /* Merging VMAs makes pages present that nobody wrote. */
  CHECK(merged || bytes_most <= 2 * churn * PAGE + 64 * KIB, "a deletion copied %" PRIu64 " bytes", bytes_most);

  if (map)
    OK(pcow_unmap(map));
  OK(pcow_close(image));
  for (uint64_t i = count - LIVING + 1; i <= count; i++) {
    char name[32];

    snprintf(name, sizeof(name), "%" PRIu64, i);
    compare(name, kept[i % LIVING]);
    free(kept[i % LIVING]);
  }
  compare(NULL, content);
  test_check_clean(path);
  free(content);
  return 0;
}
