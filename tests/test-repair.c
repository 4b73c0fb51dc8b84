/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Damaged chains: each kind, made with a poke, is found with its sentence, and repaired; then every view is
 * what it was but for the pages that the findings have named. Repairs are also cut short at each change of
 * the media, and repeated.
 */
#include "crc32c.h"
#include "cutshort.h"
#include "damage.h"
#include "persist.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Chains -------------------------------------------------------------------------------- */

/* References: what they led to is found again. */
START_TEST(reference)
{
  struct world w = damage_make("reference");
  uint64_t slot = damage_newest(w.path, 2);
  uint64_t at = _i < 4 ? geometry_map_word(2) : damage_previous_at(slot);
  static const char *const sentences[] = { "is not valid", "is not valid", "is not this unit's",
                                           "is reached a second time" };

  if (_i % 4 == 0)
    damage_flip(w.path, at, 1);
  else if (_i % 4 == 1)
    damage_poke64(w.path, at, UINT64_C(1) << 40);
  else if (_i % 4 == 2)
    damage_poke64(w.path, at, damage_peek64(w.path, geometry_map_word(9)));
  else if (_i < 4)
    damage_poke64(w.path, at, damage_peek64(w.path, geometry_map_word(1)));
  else
    damage_poke64(w.path, at, SLOT_REF(slot)); /* a circle */
  damage_check(w.path, 0);
  damage_must_say(_i == 2 ? "is not this unit's" : _i == 3 ? "is reached a second time" : sentences[_i % 4]);
  damage_must_say("are what follows there");
  damage_must_not_say("lost");
  damage_repair(&w, "a reference is restored");
  damage_end(&w);
}
END_TEST

/* Nothing tells which of two it was: cut off. */
START_TEST(reference_lost)
{
  struct world w = damage_make("reference-lost");
  uint64_t slot = damage_newest(w.path, 2), behind = damage_older(w.path, slot);
  struct pcow_disk_slot none = { 0 };

  damage_flip(w.path, geometry_map_word(2), 1);
  damage_flip(w.path, damage_previous_at(slot), 1);
  damage_check(w.path, 0);
  damage_must_say("the pages at 131072-196607 of snapshot 'one' and the head are lost");
  damage_lose(&w.head, 2, NULL);
  damage_lose(&w.one, 2, NULL);
  damage_repair(&w, "the whole chain is lost");

  /* Only the snapshot can have been behind the head's slot. */
  slot = damage_newest(w.path, 3);
  behind = damage_older(w.path, slot);
  damage_poke(w.path, geometry_header(damage_geo(), behind), &none, sizeof none);
  damage_check(w.path, 0);
  damage_must_say("the pages at 196608-262143 of snapshot 'one' are lost");
  damage_must_not_say("the head are lost");
  damage_lose(&w.one, 3, NULL);
  damage_repair(&w, "what the snapshot had is lost");
  damage_end(&w);
}
END_TEST

/* Two slots could be the one that was referred to. */
START_TEST(reference_ambiguous)
{
  struct world w = damage_make("ambiguous");
  uint64_t slot = damage_newest(w.path, 4);
  struct pcow_disk_slot header = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(4),
    .epoch = le32_make(2),
  };

  header.crc = le32_make(slot_identity_crc(4, 2, 30));
  header.previous = le64_make(SLOT_REF(damage_older(w.path, slot)));
  damage_poke(w.path, geometry_header(damage_geo(), 30), &header, sizeof header);
  damage_poke64(w.path, geometry_bitmap(damage_geo(), 30), 1);
  damage_check(w.path, 0);
  damage_must_say("slot 30 is in no chain, but its header says that it has pages of unit 4 for the head");
  damage_flip(w.path, geometry_map_word(4), 1);
  damage_check(w.path, 0);
  damage_must_say("the pages at 262144-327679 of snapshot 'one' and the head are lost");
  damage_lose(&w.head, 4, NULL);
  damage_lose(&w.one, 4, NULL);
  damage_repair(&w, "neither is taken");
  damage_end(&w);
}
END_TEST

/* A slot that was given up must not be found again when its unit is damaged later: a deleted epoch's
 * neither. */
START_TEST(reference_again)
{
  struct world w = damage_make("again");
  pcow_image *image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  struct pcow_disk_slot header = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(2),
    .epoch = le32_make(5),
    .crc = le32_make(slot_identity_crc(2, 5, 30)),
  };

  /* With two children the deleted epoch stays. */
  OK(pcow_snapshot_create(image, "two"));
  OK(pcow_snapshot_create(image, "three"));
  OK(pcow_snapshot_revert(image, "two"));
  OK(pcow_snapshot_delete(image, "two"));
  OK(pcow_close(image));
  damage_poke(w.path, geometry_header(damage_geo(), 30), &header, sizeof header);
  damage_poke64(w.path, geometry_bitmap(damage_geo(), 30), 1);
  damage_flip(w.path, geometry_map_word(2), 1);
  damage_check(w.path, 0);
  damage_must_say("the pages at 131072-196607 of snapshots 'one', 'three' and the head are lost");
  damage_lose(&w.head, 2, NULL);
  damage_lose(&w.one, 2, NULL);
  damage_repair(&w, "neither is taken");

  /* The unit has a slot again. */
  damage_flip(w.path, geometry_map_word(2), 1);
  damage_check(w.path, 0);
  damage_must_say("are what follows there");
  damage_must_not_say("lost");
  damage_repair(&w, "the new slot is found");
  damage_end(&w);
}
END_TEST

START_TEST(header_field)
{
  static const unsigned fields[] = { 0, 8, 16, 20 };
  struct world w = damage_make("header");
  uint64_t slot = damage_newest(w.path, 2);

  if (_i >= 4)
    slot = damage_older(w.path, slot);
  damage_flip(w.path, geometry_header(damage_geo(), slot) + fields[_i % 4], _i % 2 ? 0x10 : 0x7777);
  damage_check(w.path, 0);
  damage_must_say("is damaged, but it can only be epoch");
  damage_must_not_say("lost");
  damage_repair(&w, "a header is repaired");
  damage_end(&w);
}
END_TEST

/* Nobody can tell whose it was: left out, the chain goes on behind it. */
START_TEST(header_lost)
{
  struct world w = damage_make("header-lost");
  uint64_t slot = damage_newest(w.path, 2), zero[8] = { 0 };

  if (_i == 0)
    damage_flip(w.path, geometry_header(damage_geo(), slot), 0x55);
  damage_flip(w.path, geometry_header(damage_geo(), slot) + 8, 0x55);
  damage_flip(w.path, geometry_header(damage_geo(), slot) + 16, 0x5555555555555555);
  if (_i == 1) /* the whole header: what is behind it is found by its own */
    damage_poke(w.path, geometry_header(damage_geo(), slot), zero, 64);
  damage_check(w.path, 0);
  damage_must_say("the pages at 131072-196607 of the head are lost");
  damage_must_not_say("'one'");
  damage_lose(&w.head, 2, &w.one);
  damage_repair(&w, "a slot is left out");
  damage_end(&w);
}
END_TEST

START_TEST(header_reserved)
{
  struct world w = damage_make("reserved");

  damage_flip(w.path, geometry_header(damage_geo(), damage_newest(w.path, 2)) + (_i ? 56 : 0),
              UINT64_C(1) << 40);
  damage_check(w.path, 0);
  damage_must_say("that must be zero are not");
  damage_repair(&w, "reserved fields are zero");
  damage_end(&w);
}
END_TEST

/* Two slots of one epoch; an ancestor before its descendant; an epoch that was never there. */
START_TEST(order)
{
  struct world w = damage_make("order");
  uint64_t slot = damage_newest(w.path, 2), behind = damage_older(w.path, slot);
  uint64_t owner = offsetof(struct pcow_disk_slot, epoch);
  static const char *const sentences[] = { "is the second one of epoch 2", "that it descends from",
                                           "which does not exist yet" };

  if (_i == 0) {
    damage_poke64(w.path, geometry_header(damage_geo(), behind) + owner, slot_owner_word(2, 2, behind));
    damage_lose(&w.one, 2, NULL);
  } else if (_i == 1) {
    damage_poke64(w.path, geometry_map_word(2), SLOT_REF(behind));
    damage_poke64(w.path, damage_previous_at(behind), SLOT_REF(slot));
    damage_poke64(w.path, damage_previous_at(slot), 0);
    damage_lose(&w.head, 2, &w.one);
  } else {
    damage_poke64(w.path, geometry_header(damage_geo(), slot) + owner, slot_owner_word(2, 9, slot));
    damage_lose(&w.head, 2, &w.one);
  }
  damage_check(w.path, 0);
  damage_must_say(sentences[_i]);
  /* The head does not see the snapshot's pages before its own any more, and finds none of its own. */
  if (_i == 1)
    damage_must_not_say("'one'");
  damage_repair(&w, "left out");
  damage_end(&w);
}
END_TEST

START_TEST(bitmap)
{
  struct world w = damage_make("bitmap");

  damage_flip(w.path, geometry_bitmap(damage_geo(), damage_newest(w.path, 2)), UINT64_C(1) << (16 + _i * 47));
  damage_check(w.path, 0);
  damage_must_say("bits beyond the pages of a unit");
  damage_repair(&w, "within bounds");
  damage_end(&w);
}
END_TEST

/* While something stays corrupt nothing is given back: it may be needed. The rest is repaired. */
START_TEST(unrepairable)
{
  struct world w = damage_make("unrepairable");
  struct pcow_disk_epoch record;
  struct pcow_check_result result;
  int fd = (int)SYS(open(w.path, O_RDWR));
  uint64_t before;

  SYS(pread(fd, &record, sizeof record, EPOCH_LOG_OFFSET));
  record.reserved[0] = 1;
  record.crc = le32_make(crc32c(&record, offsetof(struct pcow_disk_epoch, crc)));
  SYS(pwrite(fd, &record, sizeof record, EPOCH_LOG_OFFSET));
  SYS(close(fd));
  damage_flip(w.path, geometry_header(damage_geo(), damage_newest(w.path, 2)), 1);
  damage_flip(w.path, damage_previous_at(damage_newest(w.path, 3)), 1);
  before = geometry_data(damage_geo(), 30);
  damage_poke64(w.path, before, 77);
  result = damage_check(w.path, PCOW_CHECK_REPAIR_ALL);
  damage_must_say("fields that must be zero are not");
  damage_must_say("slot 30 is not in use, but holds");
  ck_assert_uint_eq(result.corruptions, 3);
  ck_assert_uint_eq(result.repairable, 2);
  ck_assert_uint_eq(result.repaired, 2);
  ck_assert_uint_eq(damage_peek64(w.path, before), 77);
  result = damage_check(w.path, 0);
  ck_assert_uint_eq(result.corruptions, 1);
  ck_assert_uint_eq(result.leaks, 1);
  content_compare_view(w.path, NULL, &w.head, "repaired as far as it goes");
  damage_end(&w);
}
END_TEST

/* Killed after each change that a repair makes; the next one ends it. */
START_TEST(killed)
{
  int status = 1;
  unsigned n;

  for (n = 0; status; n++) {
    struct world w = damage_make("killed");
    uint64_t slot = damage_newest(w.path, 2);
    pid_t child;

    damage_flip(w.path, geometry_map_word(1), 1);
    damage_flip(w.path, geometry_header(damage_geo(), slot), 1);
    damage_flip(w.path, geometry_header(damage_geo(), damage_newest(w.path, 3)) + 8, 0x55);
    damage_flip(w.path, geometry_header(damage_geo(), damage_newest(w.path, 3)) + 16, 0x5555555555555555);
    damage_flip(w.path, EPOCH_LOG_OFFSET + 72, 4);
    damage_poke64(w.path, 1 * MIB, 0);
    damage_lose(&w.head, 3, &w.one);
    fflush(NULL);
    child = fork();
    if (child == 0) {
      struct pcow_check_result result = PCOW_INIT(result);

      cut_short_after(n);
      _exit(pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL) ? 1 : 0);
    }
    SYS(waitpid(child, &status, 0));
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == CUT_SHORT || status == 0), "the child ended with %d", status);
    damage_check(w.path, PCOW_CHECK_REPAIR_ALL);
    test_check_clean(w.path);
    damage_compare(&w, "repaired after a kill");
    damage_end(&w);
  }
  CHECK(n > 8, "a repair of %u changes", n);
}
END_TEST

int main(int argc, char **argv)
{
  Suite *suite = suite_create("repair");
  TCase *tests = tcase_create("all");
  SRunner *runner = srunner_create(suite);
  int failed;

  test_dir(argc, argv);
  tcase_add_loop_test(tests, reference, 0, 8);
  tcase_add_test(tests, reference_lost);
  tcase_add_test(tests, reference_ambiguous);
  tcase_add_test(tests, reference_again);
  tcase_add_loop_test(tests, header_field, 0, 8);
  tcase_add_loop_test(tests, header_lost, 0, 2);
  tcase_add_loop_test(tests, header_reserved, 0, 2);
  tcase_add_loop_test(tests, order, 0, 3);
  tcase_add_loop_test(tests, bitmap, 0, 2);
  tcase_add_test(tests, unrepairable);
  tcase_add_test(tests, killed);
  suite_add_tcase(suite, tests);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}
