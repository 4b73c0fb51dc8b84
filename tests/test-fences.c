/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many fences an operation makes, and a flush of a map how many syncs and scans: no fewer than the
 * ordering rules of docs/format.md ask for, and none more. A number here changes together with the rule that
 * it follows from.
 */
#include "image.h"
#include "testlib.h"

#include <check.h>
#include <stdlib.h>

static pcow_image *image;
static char *path;

static uint64_t fences(void)
{
  static uint64_t before;
  struct persist_counts counts;
  uint64_t made;

  persist_get_counts(image->store->p, &counts);
  made = counts.fences - before;
  before = counts.fences;
  return made;
}

static void setup(void)
{
  struct pcow_open_options how = PCOW_INIT(how);

  setenv("PMEM_IS_PMEM_FORCE", "1", 1);
  path = test_path("fences.pcow");
  ck_assert_int_eq(pcow_create(path, 16 << 20, NULL), 0);
  how.flags = PCOW_OPEN_RDWR;
  ck_assert_int_eq(pcow_open(path, &how, &image), 0);
  /* The session's tag, the high-water mark and a first slot are there afterwards. */
  ck_assert_int_eq(pcow_pwrite(image, "x", 1, 0), 0);
  ck_assert_int_eq(pcow_sync(image), 0);
  fences();
}

static void teardown(void)
{
  ck_assert_int_eq(pcow_close(image), 0);
  ck_assert_int_eq(unlink(path), 0);
}

START_TEST(writes)
{
  /* A write owes; a flush of new pages, however many, pays 1.2 and 1.4. */
  for (unsigned i = 1; i < 10; i++)
    ck_assert_int_eq(pcow_pwrite(image, "y", 1, i << 16), 0);
  ck_assert_uint_eq(fences(), 0);
  ck_assert_int_eq(pcow_sync(image), 0);
  ck_assert_uint_eq(fences(), 2);
  /* Pages that are there publish nothing new. */
  ck_assert_int_eq(pcow_pwrite(image, "z", 1, 0), 0);
  ck_assert_int_eq(pcow_sync(image), 0);
  ck_assert_uint_eq(fences(), 1);
}
END_TEST

START_TEST(structure)
{
  /* The settling of nothing new, S.2, the record, and a commit's two. */
  ck_assert_int_eq(pcow_snapshot_create(image, "one"), 0);
  ck_assert_uint_eq(fences(), 1 + 1 + 1 + 2);
  /* A new slot: its page, header and bitmap; then its word and bits. */
  ck_assert_int_eq(pcow_pwrite(image, "x", 1, 0), 0);
  ck_assert_int_eq(pcow_sync(image), 0);
  ck_assert_uint_eq(fences(), 2);
}
END_TEST

START_TEST(first_store)
{
  struct pcow_map_options how = PCOW_INIT(how);
  pcow_mapping *map;
  volatile char *range;

  how.durability = PCOW_STORE_DURABLE;
  if (pcow_map(image, &how, &map))
    return; /* other tests say why */
  range = pcow_mapping_address(map);
  fences();
  /* The page is durably present before the store that waited goes on. */
  range[8 << 20] = 1;
  ck_assert_uint_eq(fences(), 2);
  range[(8 << 20) + 100] = 1;
  ck_assert_int_eq(pcow_persist(map, 8 << 20, 128), 0);
  ck_assert_uint_eq(fences(), 0);
  ck_assert_int_eq(pcow_unmap(map), 0);
}
END_TEST

/* ---- Flushes of a flush-durable map ---- */

#define LOWER (512 * PAGE)

static pcow_mapping *map;
static volatile uint64_t *words; /* of it */

struct cost {
  uint64_t fences, syncs, scans, flushed, handed_over, block_changes;
};

/* Counts of all that was done so far. */
static struct cost cost_now(void)
{
  struct pcow_mapping_stats stats = PCOW_INIT(stats);
  struct persist_counts counts;

  persist_get_counts(image->store->p, &counts);
  ck_assert_int_eq(pcow_mapping_get_stats(map, &stats), 0);
  return (struct cost){ counts.fences, counts.syncs, stats.scans, stats.pages_flushed,
                        stats.pages_handed_over, counts.block_changes };
}

static void expect_flush(struct cost expected)
{
  struct cost before = cost_now(), now;

  ck_assert_int_eq(pcow_flush(map, 0, LOWER), 0);
  now = cost_now();
  ck_assert_uint_eq(now.fences - before.fences, expected.fences);
  ck_assert_uint_eq(now.syncs - before.syncs, expected.syncs);
  ck_assert_uint_eq(now.scans - before.scans, expected.scans);
  ck_assert_uint_eq(now.flushed - before.flushed, expected.flushed);
  ck_assert_uint_eq(now.handed_over - before.handed_over, expected.handed_over);
  ck_assert_uint_eq(now.block_changes - before.block_changes, expected.block_changes);
}

static void dirty(unsigned page) { words[page * (PAGE / 8)]++; }

/* An image over a raw base, with a slot and the session's tag. False: other tests say why not. */
static bool map_over_base(const char *force)
{
  struct pcow_create_options create = PCOW_INIT(create);
  struct pcow_map_options how = PCOW_INIT(how);
  g_autofree char *base = g_strdup(test_path("fences.base"));
  g_autofree char *bytes = g_malloc(LOWER);

  setenv("PMEM_IS_PMEM_FORCE", force, 1);
  path = test_path("fences.pcow");
  memset(bytes, 'b', LOWER);
  ck_assert(g_file_set_contents(base, bytes, LOWER, NULL));
  create.base = base;
  create.base_format = PCOW_FORMAT_RAW;
  ck_assert_int_eq(pcow_create(path, LOWER, &create), 0);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  ck_assert_int_eq(pcow_pwrite(image, "x", 1, LOWER - 1), 0);
  ck_assert_int_eq(pcow_sync(image), 0);
  how.durability = PCOW_FLUSH_DURABLE;
  if (pcow_map(image, &how, &map) == 0) {
    words = pcow_mapping_address(map);
    ck_assert_int_eq(pcow_flush(map, 0, LOWER), 0);
    return true;
  }
  ck_assert_int_eq(pcow_close(image), 0);
  return false;
}

static void flush_end(void)
{
  ck_assert_int_eq(pcow_unmap(map), 0);
  ck_assert_int_eq(pcow_close(image), 0);
  ck_assert_int_eq(unlink(path), 0);
  ck_assert_int_eq(unlink(test_path("fences.base")), 0);
}

/* F.4, one sync, covers what was stored to pages that the file has. The store fences before it are 1.2 and,
 * for new pages, 1.4; and the sync has one. Each run of new pages gets its blocks in one call. */
START_TEST(flush_pmem)
{
  if (!map_over_base("1"))
    return;
  expect_flush((struct cost){ .fences = 2, .syncs = 1, .scans = 1 });
  dirty(3);
  expect_flush((struct cost){ .fences = 3, .syncs = 1, .scans = 1, .flushed = 1, .block_changes = 1 });
  /* Again: it becomes the file's own page, and from then on it is not looked for. */
  dirty(3);
  expect_flush((struct cost){ .fences = 2, .syncs = 1, .scans = 2, .handed_over = 1, .block_changes = 1 });
  dirty(3);
  expect_flush((struct cost){ .fences = 2, .syncs = 1, .scans = 1 });
  for (unsigned i = 0; i < 256; i++)
    dirty(10 + i);
  expect_flush((struct cost){ .fences = 3, .syncs = 1, .scans = 1, .flushed = 256, .block_changes = 1 });
  for (unsigned i = 0; i < 10; i++)
    dirty(300 + 13 * i);
  expect_flush((struct cost){ .fences = 3, .syncs = 1, .scans = 1, .flushed = 10, .block_changes = 10 });
  flush_end();
}
END_TEST

/* One sync when nothing new is published, two when something is. */
START_TEST(flush_msync)
{
  if (!map_over_base("0"))
    return;
  expect_flush((struct cost){ .fences = 1, .syncs = 1, .scans = 1 });
  dirty(3);
  expect_flush((struct cost){ .fences = 2, .syncs = 2, .scans = 1, .flushed = 1 });
  dirty(3);
  expect_flush((struct cost){ .fences = 1, .syncs = 1, .scans = 2, .handed_over = 1 });
  dirty(3);
  expect_flush((struct cost){ .fences = 1, .syncs = 1, .scans = 1 });
  for (unsigned i = 0; i < 256; i++)
    dirty(10 + i);
  expect_flush((struct cost){ .fences = 2, .syncs = 2, .scans = 1, .flushed = 256 });
  for (unsigned i = 0; i < 10; i++)
    dirty(300 + 13 * i);
  expect_flush((struct cost){ .fences = 2, .syncs = 2, .scans = 1, .flushed = 10 });
  flush_end();
}
END_TEST

int main(int argc, char **argv)
{
  Suite *s = suite_create("fences");
  TCase *c = tcase_create("all");
  SRunner *r;
  int failed;

  test_dir(argc, argv);
  tcase_add_checked_fixture(c, setup, teardown);
  tcase_add_test(c, writes);
  tcase_add_test(c, structure);
  tcase_add_test(c, first_store);
  suite_add_tcase(s, c);
  c = tcase_create("flush");
  tcase_add_test(c, flush_pmem);
  tcase_add_test(c, flush_msync);
  suite_add_tcase(s, c);
  r = srunner_create(s);
  srunner_run_all(r, CK_ENV);
  failed = srunner_ntests_failed(r);
  srunner_free(r);
  return failed != 0;
}
