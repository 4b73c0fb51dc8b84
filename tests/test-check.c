/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checks of superblocks, the log, the file's length, leaks and the base: each kind of damage, made with a
 * poke, is found with its sentence, and repaired where that can be. test-repair.c has the chains.
 */
#include "crc32c.h"
#include "damage.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Superblocks --------------------------------------------------------------------------- */

START_TEST(superblock_copy)
{
  struct world w = damage_make("superblock");
  static const unsigned char zeros[4096];
  struct pcow_check_result result = damage_check(w.path, 0);

  ck_assert_uint_eq(result.corruptions + result.leaks, 0);
  ck_assert_uint_eq(result.slots, 16 + 8);
  ck_assert_uint_eq(result.pages, (16 + 8) * 16);
  damage_poke(w.path, SUPERBLOCK_OFFSET(_i) + 100, zeros, 200);
  damage_check(w.path, 0);
  damage_must_say(_i ? "superblock copy 1 is damaged" : "superblock copy 0 is damaged");
  damage_repair(&w, "a superblock is repaired");
  damage_poke(w.path, SUPERBLOCK_OFFSET(0), zeros, 4096);
  damage_poke(w.path, SUPERBLOCK_OFFSET(1) + 8, zeros, 4088);
  GIVES(-EUCLEAN, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  ck_assert_uint_eq(damage_peek64(w.path, SUPERBLOCK_OFFSET(0)), 0);
  damage_poke(w.path, SUPERBLOCK_OFFSET(1), zeros, 4096);
  GIVES(-EMEDIUMTYPE, pcow_check(w.path, 0, &result, NULL, NULL, NULL));
  damage_end(&w);
}
END_TEST

static void poke_superblock(const char *path, unsigned copies, uint64_t at, uint64_t add)
{
  struct pcow_disk_superblock disk;

  for (unsigned i = 0; i < 2; i++) {
    int fd = (int)SYS(open(path, O_RDWR));
    uint64_t word;

    if (!(copies & 1u << i)) {
      SYS(close(fd));
      continue;
    }
    SYS(pread(fd, &disk, sizeof disk, (off_t)SUPERBLOCK_OFFSET(i)));
    memcpy(&word, (char *)&disk + at, 8);
    word += add;
    memcpy((char *)&disk + at, &word, 8);
    disk.crc = le32_make(crc32c(&disk, offsetof(struct pcow_disk_superblock, crc)));
    SYS(pwrite(fd, &disk, sizeof disk, (off_t)SUPERBLOCK_OFFSET(i)));
    SYS(close(fd));
  }
}

START_TEST(superblock_values)
{
  struct world w = damage_make("values");

  poke_superblock(w.path, 2, offsetof(struct pcow_disk_superblock, tag), 1);
  damage_check(w.path, 0);
  damage_must_say("superblock copy 1 differs from the other one");
  damage_repair(&w, "equal again");
  poke_superblock(w.path, 1, offsetof(struct pcow_disk_superblock, sequence), (uint64_t)-2);
  damage_check(w.path, 0);
  damage_must_say("superblock copy 0 is out of date");
  damage_repair(&w, "up to date");
  poke_superblock(w.path, 1, offsetof(struct pcow_disk_superblock, sequence), (uint64_t)-1);
  ck_assert_uint_eq(damage_check(w.path, 0).corruptions, 0);
  damage_must_say("superblock copy 0 is one commit behind");
  damage_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  damage_check(w.path, 0);
  CHECK(!damage_said, "%s", damage_said);
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, reserved0), 1);
  damage_check(w.path, 0);
  damage_must_say("superblock: fields that must be zero are not");
  damage_repair(&w, "reserved fields");
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, base) + 8, 1);
  damage_check(w.path, 0);
  damage_must_say("superblock: fields that must be zero are not");
  damage_repair(&w, "a base reference to nothing");
  /* A later version's feature may use them. */
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, compat), 1);
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, reserved0), 1);
  ck_assert_uint_eq(damage_check(w.path, 0).corruptions, 0);
  damage_end(&w);
}
END_TEST

START_TEST(file_length)
{
  struct world w = damage_make("length");
  struct pcow_check_result result = PCOW_INIT(result);
  char text[200];

  /* From the middle of the head's unit 2 on. */
  SYS(truncate(w.path, (off_t)(geometry_data(damage_geo(), damage_newest(w.path, 2)) + 8 * PAGE)));
  ck_assert_uint_gt(damage_check(w.path, 0).corruptions, 0);
  damage_must_say("is truncated: the file has");
  sprintf(text, "the pages at %llu-%llu of the head lie beyond the end of the file",
          (unsigned long long)(2 * UNIT + 8 * PAGE), (unsigned long long)(3 * UNIT - 1));
  damage_must_say(text);
  for (uint64_t unit = 0; unit < 8; unit++) {
    uint64_t at = damage_newest(w.path, unit);

    if (at > damage_newest(w.path, 2))
      memset(w.head.bytes + unit * UNIT, 0, UNIT);
  }
  memset(w.head.bytes + 2 * UNIT + 8 * PAGE, 0, 8 * PAGE);
  for (uint64_t unit = 0; unit < 16; unit++) {
    uint64_t at = unit < 8 ? damage_older(w.path, damage_newest(w.path, unit)) : damage_newest(w.path, unit);

    if (at > damage_newest(w.path, 2)) {
      memset(w.one.bytes + unit * UNIT, 0, UNIT);
      if (unit >= 8)
        memset(w.head.bytes + unit * UNIT, 0, UNIT);
    }
  }
  damage_repair(&w, "as long as it must be");
  SYS(truncate(w.path, (off_t)GIB - 1));
  GIVES(-EUCLEAN, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  damage_end(&w);
}
END_TEST

/* ---- The epoch log ------------------------------------------------------------------------- */

START_TEST(log_record)
{
  struct world w = damage_make("log");
  struct pcow_check_result result;
  struct stat before, after;

  damage_flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, UINT64_C(1) << (_i % 64));
  damage_check(w.path, 0);
  damage_must_say("record 0 of the epoch log is damaged in one bit");
  damage_repair(&w, "a record is repaired");
  damage_flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, 0xff00);
  SYS(stat(w.path, &before));
  result = damage_check(w.path, PCOW_CHECK_REPAIR_ALL);
  SYS(stat(w.path, &after));
  damage_must_say("record 0 of the epoch log is damaged and cannot be repaired");
  damage_must_say("nothing is changed");
  ck_assert_uint_eq(result.corruptions, 1);
  ck_assert_uint_eq(result.repairable + result.repaired, 0);
  CHECK(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec, "the file was changed");
  damage_flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, 0xff00);
  test_check_clean(w.path);
  damage_end(&w);
}
END_TEST

/* ---- Leaks --------------------------------------------------------------------------------- */

START_TEST(leaks)
{
  struct world w = damage_make("leaks");
  struct pcow_check_result result;
  static unsigned char bytes[64 * 1024];
  pcow_image *image;
  uint64_t count, before, slot, behind;
  struct pcow_info info = PCOW_INIT(info);

  image = test_open(w.path, 0, NULL);
  OK(pcow_get_info(image, &info));
  OK(pcow_close(image));
  count = info.slot_count;
  CHECK(count > 24, "the mark is not raised in batches");
  before = test_blocks(w.path);
  memset(bytes, 1, sizeof bytes);
  damage_poke(w.path, geometry_data(damage_geo(), count), bytes, sizeof bytes);
  /* Between the superblocks, behind the bitmaps, behind the last slot. */
  damage_poke(w.path, 0x2000, bytes, 1);
  damage_poke(w.path, SLOT_GROUPS_OFFSET + damage_geo()->data - PAGE, bytes, 1);
  damage_poke(w.path, geometry_file_size(damage_geo(), count) + 5 * PAGE, bytes, 2 * PAGE);
  result = damage_check(w.path, 0);
  ck_assert_uint_eq(result.leaks, 4);
  ck_assert_uint_eq(result.leaked_size, UNIT + 4 * PAGE);
  ck_assert_uint_eq(result.corruptions, 0);
  result = damage_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  ck_assert_uint_eq(result.repaired, 4);
  ck_assert_uint_le(test_blocks(w.path), before + 2 * PAGE);
  test_check_clean(w.path);
  damage_compare(&w, "leaks are repaired");

  /* Pages whose bits are not set. */
  slot = damage_newest(w.path, 5);
  damage_poke64(w.path, geometry_bitmap(damage_geo(), slot), 0xff0f);
  memcpy(w.head.bytes + 5 * UNIT + 4 * PAGE, w.one.bytes + 5 * UNIT + 4 * PAGE, 4 * PAGE);
  result = damage_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  damage_must_say("16384 bytes lie at pages that nobody sees");
  ck_assert_uint_eq(result.leaks, 1);
  ck_assert_uint_eq(result.repaired, 1);
  test_check_clean(w.path);
  damage_compare(&w, "leaked pages are repaired");

  /* A slot in a chain whose epoch is gone (2: snapshot "two", merged into the head, which is 3). */
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "two"));
  OK(pcow_snapshot_delete(image, "two"));
  OK(pcow_close(image));
  slot = damage_newest(w.path, 3);
  behind = damage_older(w.path, slot);
  damage_poke64(w.path, geometry_header(damage_geo(), behind) + 16, slot_owner_word(3, 2, behind));
  result = damage_check(w.path, 0);
  damage_must_say("belongs to no epoch");
  ck_assert_uint_eq(result.leaks, 1);
  ck_assert_uint_eq(result.leaked_size, UNIT);
  ck_assert_uint_eq(result.corruptions, 0);
  image = test_open(w.path, 0, "one");
  result = damage_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  ck_assert_uint_eq(result.repaired, 1);
  ck_assert_uint_eq(damage_peek64(w.path, damage_previous_at(slot)), 0);
  /* To repair more than leaks, nobody must read. */
  damage_flip(w.path, geometry_header(damage_geo(), slot), 1);
  GIVES(-EBUSY, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  damage_flip(w.path, geometry_header(damage_geo(), slot), 1);
  OK(pcow_close(image));
  test_check_clean(w.path);
  damage_lose(&w.one, 3, NULL);
  damage_compare(&w, "garbage is repaired");
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  GIVES(-EBUSY, pcow_check(w.path, 0, &result, NULL, NULL, NULL));
  OK(pcow_close(image));
  damage_end(&w);
}
END_TEST

/* ---- A large image ------------------------------------------------------------------------- */

/* 1 TiB in 8192 units, each written; four snapshots, after each of which every fourth was written again. The
 * time is printed, for people. */
START_TEST(large)
{
  char *path = test_path("check-large");
  static unsigned char bytes[8 * 4096];
  struct pcow_check_result result;
  pcow_image *image;
  gint64 start;

  test_create(path, TIB, 128 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  memset(bytes, 7, sizeof bytes);
  for (unsigned s = 0; s < 4; s++) {
    char name[2] = { (char)('a' + s), 0 };

    for (uint64_t unit = 0; unit < 8192; unit += s ? 4 : 1)
      OK(pcow_pwrite(image, bytes, s ? PAGE : sizeof bytes, unit * 128 * MIB + s * 2 * PAGE));
    OK(pcow_snapshot_create(image, name));
  }
  OK(pcow_close(image));
  start = g_get_monotonic_time();
  result = damage_check(path, 0);
  printf("1 TiB, %llu slots, %llu MiB: checked in %.2f s\n", (unsigned long long)result.slots,
         (unsigned long long)(test_blocks(path) / MIB), (double)(g_get_monotonic_time() - start) / 1e6);
  CHECK(!damage_said, "%s", damage_said);
  ck_assert_uint_eq(result.slots, 8192 + 3 * 2048);
  ck_assert_uint_eq(result.pages, 8 * 8192 + 3 * 2048);
  ck_assert_uint_eq(result.corruptions + result.leaks, 0);
  SYS(unlink(path));
}
END_TEST

/* ---- The base ------------------------------------------------------------------------------ */

START_TEST(base_identity)
{
  char *base = test_path("check-base"), *path = test_path("check-overlay");
  struct pcow_check_result result;
  pcow_image *image;

  test_create(base, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  test_create(path, SIZE, UNIT, base, PCOW_FORMAT_PCOW, NULL);
  result = damage_check(path, PCOW_CHECK_BASE);
  ck_assert_uint_eq(result.base_faults, 0);
  CHECK(!damage_said, "%s", damage_said);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "changed", 7, 0));
  OK(pcow_close(image));
  result = damage_check(path, PCOW_CHECK_BASE);
  damage_must_say("was changed after");
  ck_assert_uint_eq(result.base_faults, 1);
  ck_assert_uint_eq(result.corruptions, 0);
  SYS(unlink(base));
  result = damage_check(path, PCOW_CHECK_BASE);
  damage_must_say("cannot open its base");
  ck_assert_uint_eq(result.base_faults, 1);
  result = damage_check(path, 0); /* not followed */
  ck_assert_uint_eq(result.base_faults, 0);
  CHECK(!damage_said, "%s", damage_said);
  SYS(unlink(path));
}
END_TEST

/* ---- Refused, canceled, cut short ---------------------------------------------------------- */

static int cancel(void *opaque, uint64_t done, uint64_t total)
{
  (void)opaque;
  CHECK(done <= total, "progress of %llu in %llu", (unsigned long long)done, (unsigned long long)total);
  return 1;
}

START_TEST(refused)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct world w;

  GIVES(-ENOENT, pcow_check(test_path("nothing"), 0, &result, NULL, NULL, NULL));
  w = damage_make("refused");
  GIVES(-EINVAL, pcow_check(w.path, 64, &result, NULL, NULL, NULL));
  GIVES(-ECANCELED, pcow_check(w.path, 0, &result, NULL, cancel, NULL));
  GIVES(-EMEDIUMTYPE, pcow_check("/dev/null", 0, &result, NULL, NULL, NULL));
  damage_end(&w);
}
END_TEST

int main(int argc, char **argv)
{
  Suite *suite = suite_create("check");
  TCase *tests = tcase_create("all");
  SRunner *runner = srunner_create(suite);
  int failed;

  test_dir(argc, argv);
  tcase_add_loop_test(tests, superblock_copy, 0, 2);
  tcase_add_test(tests, superblock_values);
  tcase_add_test(tests, file_length);
  tcase_add_loop_test(tests, log_record, 0, 64);
  tcase_add_test(tests, leaks);
  tcase_add_test(tests, base_identity);
  tcase_add_test(tests, large);
  tcase_add_test(tests, refused);
  suite_add_tcase(suite, tests);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}
