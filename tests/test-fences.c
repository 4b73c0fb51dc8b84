/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many fences an operation makes: no fewer than the ordering rules of docs/format.md ask for, and
 * none more. A number here changes together with the rule that it follows from.
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
  r = srunner_create(s);
  srunner_run_all(r, CK_ENV);
  failed = srunner_ntests_failed(r);
  srunner_free(r);
  return failed != 0;
}
