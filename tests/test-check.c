/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Each kind of damage, made with a poke: found with its sentence, repaired where that can be, and then every
 * view is what it was but for the pages that the findings have named. Repairs are also cut short at each
 * change of the media, and repeated.
 */
#include "content.h"
#include "cutshort.h"
#include "crc32c.h"
#include "slotwalk.h"
#include "store.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNIT (64 * KIB)
#define SIZE MIB

static const struct geometry *geo(void)
{
  static struct geometry g;

  g = geometry_make(16);
  return &g;
}

/* ---- The file ------------------------------------------------------------------------------ */

static void poke(const char *path, uint64_t offset, const void *bytes, size_t length)
{
  int fd = (int)SYS(open(path, O_RDWR));

  SYS(pwrite(fd, bytes, length, (off_t)offset));
  SYS(close(fd));
}

static void poke64(const char *path, uint64_t offset, uint64_t word)
{
  poke(path, offset, &word, 8);
}

static uint64_t peek64(const char *path, uint64_t offset)
{
  int fd = (int)SYS(open(path, O_RDONLY));
  uint64_t word = 0;

  SYS(pread(fd, &word, sizeof word, (off_t)offset));
  SYS(close(fd));
  return word;
}

static void flip(const char *path, uint64_t offset, uint64_t bits)
{
  poke64(path, offset, peek64(path, offset) ^ bits);
}

static uint64_t newest(const char *path, uint64_t unit)
{
  return peek64(path, geometry_map_word(unit)) >> 8;
}

static uint64_t previous_at(uint64_t slot)
{
  return geometry_header(geo(), slot) + offsetof(struct pcow_disk_slot, previous);
}

static uint64_t older(const char *path, uint64_t slot)
{
  return peek64(path, previous_at(slot)) >> 8;
}

/* ---- Checks -------------------------------------------------------------------------------- */

static char *said; /* all sentences of the last check */

static void on_finding(void *opaque, const char *finding)
{
  char *all;

  (void)opaque;
  SYS(asprintf(&all, "%s%s\n", said ? said : "", finding));
  free(said);
  said = all;
}

static void be_silent(void)
{
  free(said);
  said = NULL;
}

static struct pcow_check_result run_check(const char *path, uint32_t flags)
{
  struct pcow_check_result result = PCOW_INIT(result);

  be_silent();
  OK(pcow_check(path, flags, &result, on_finding, NULL, NULL));
  return result;
}

static void must_say(const char *text)
{
  CHECK(said && strstr(said, text), "no finding says '%s':\n%s", text, said ? said : "nothing was found");
}

static void must_not_say(const char *text)
{
  CHECK(!said || !strstr(said, text), "a finding says '%s':\n%s", text, said);
}

/* ---- The image: a snapshot "one" of all 16 units, the head wrote the first 8 again --------- */

struct world {
  char *path;
  struct content head, one;
};

static struct world make(const char *name)
{
  struct world w = { .path = test_path("check-%s", name), .head = content_new(SIZE) };
  struct rng rng = { 41 };
  pcow_image *image;

  test_create(w.path, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  content_write(image, &w.head, &rng, 0, SIZE);
  content_snapshot(image, "one", &w.head, &w.one);
  content_write(image, &w.head, &rng, 0, SIZE / 2);
  OK(pcow_close(image));
  return w;
}

static void compare(struct world *w, const char *label)
{
  content_compare_view(w->path, NULL, &w->head, label);
  content_compare_view(w->path, "one", &w->one, label);
}

static void end(struct world *w)
{
  be_silent();
  content_free(&w->head);
  content_free(&w->one);
  SYS(unlink(w->path));
}

/* All is repaired, and again there is nothing to do. */
static void repair(struct world *w, const char *label)
{
  struct pcow_check_result result = run_check(w->path, 0);
  uint64_t corruptions = result.corruptions;
  pcow_image *image;

  ck_assert_uint_gt(corruptions, 0);
  ck_assert_uint_eq(result.repairable, corruptions);
  result = run_check(w->path, PCOW_CHECK_REPAIR_LEAKS);
  ck_assert_uint_eq(result.repaired, 0);
  result = run_check(w->path, PCOW_CHECK_REPAIR_ALL);
  ck_assert_uint_eq(result.corruptions, corruptions);
  ck_assert_uint_eq(result.repaired, result.corruptions + result.leaks);
  compare(w, label);
  test_check_clean(w->path);
  result = run_check(w->path, PCOW_CHECK_REPAIR_ALL);
  ck_assert_uint_eq(result.repaired, 0);
  CHECK(!said, "%s: repaired, and yet: %s", label, said);
  image = test_open(w->path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "still writable", 14, 2 * UNIT));
  memcpy(w->head.bytes + 2 * UNIT, "still writable", 14);
  OK(pcow_close(image));
  test_check_clean(w->path);
}

/* The unit shows in one view what it shows in the other, or zeros. */
static void lose(struct content *c, uint64_t unit, const struct content *beneath)
{
  if (beneath)
    memcpy(c->bytes + unit * UNIT, beneath->bytes + unit * UNIT, UNIT);
  else
    memset(c->bytes + unit * UNIT, 0, UNIT);
}

/* ---- Superblocks --------------------------------------------------------------------------- */

START_TEST(superblock_copy)
{
  struct world w = make("superblock");
  static const unsigned char zeros[4096];
  struct pcow_check_result result = run_check(w.path, 0);

  ck_assert_uint_eq(result.corruptions + result.leaks, 0);
  ck_assert_uint_eq(result.slots, 16 + 8);
  ck_assert_uint_eq(result.pages, (16 + 8) * 16);
  poke(w.path, SUPERBLOCK_OFFSET(_i) + 100, zeros, 200);
  run_check(w.path, 0);
  must_say(_i ? "superblock copy 1 is damaged" : "superblock copy 0 is damaged");
  repair(&w, "a superblock is repaired");
  poke(w.path, SUPERBLOCK_OFFSET(0), zeros, 4096);
  poke(w.path, SUPERBLOCK_OFFSET(1) + 8, zeros, 4088);
  GIVES(-EUCLEAN, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  ck_assert_uint_eq(peek64(w.path, SUPERBLOCK_OFFSET(0)), 0);
  poke(w.path, SUPERBLOCK_OFFSET(1), zeros, 4096);
  GIVES(-EMEDIUMTYPE, pcow_check(w.path, 0, &result, NULL, NULL, NULL));
  end(&w);
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
  struct world w = make("values");

  poke_superblock(w.path, 2, offsetof(struct pcow_disk_superblock, tag), 1);
  run_check(w.path, 0);
  must_say("superblock copy 1 differs from the other one");
  repair(&w, "equal again");
  poke_superblock(w.path, 1, offsetof(struct pcow_disk_superblock, sequence), (uint64_t)-2);
  run_check(w.path, 0);
  must_say("superblock copy 0 is out of date");
  repair(&w, "up to date");
  poke_superblock(w.path, 1, offsetof(struct pcow_disk_superblock, sequence), (uint64_t)-1);
  ck_assert_uint_eq(run_check(w.path, 0).corruptions, 0);
  must_say("superblock copy 0 is one commit behind");
  run_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  run_check(w.path, 0);
  CHECK(!said, "%s", said);
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, reserved0), 1);
  run_check(w.path, 0);
  must_say("superblock: fields that must be zero are not");
  repair(&w, "reserved fields");
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, base) + 8, 1);
  run_check(w.path, 0);
  must_say("superblock: fields that must be zero are not");
  repair(&w, "a base reference to nothing");
  /* A later version's feature may use them. */
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, compat), 1);
  poke_superblock(w.path, 3, offsetof(struct pcow_disk_superblock, reserved0), 1);
  ck_assert_uint_eq(run_check(w.path, 0).corruptions, 0);
  end(&w);
}
END_TEST

START_TEST(file_length)
{
  struct world w = make("length");
  struct pcow_check_result result = PCOW_INIT(result);
  char text[200];

  /* From the middle of the head's unit 2 on. */
  SYS(truncate(w.path, (off_t)(geometry_data(geo(), newest(w.path, 2)) + 8 * PAGE)));
  ck_assert_uint_gt(run_check(w.path, 0).corruptions, 0);
  must_say("is truncated: the file has");
  sprintf(text, "the pages at %llu-%llu of the head lie beyond the end of the file",
          (unsigned long long)(2 * UNIT + 8 * PAGE), (unsigned long long)(3 * UNIT - 1));
  must_say(text);
  for (uint64_t unit = 0; unit < 8; unit++) {
    uint64_t at = newest(w.path, unit);

    if (at > newest(w.path, 2))
      memset(w.head.bytes + unit * UNIT, 0, UNIT);
  }
  memset(w.head.bytes + 2 * UNIT + 8 * PAGE, 0, 8 * PAGE);
  for (uint64_t unit = 0; unit < 16; unit++) {
    uint64_t at = unit < 8 ? older(w.path, newest(w.path, unit)) : newest(w.path, unit);

    if (at > newest(w.path, 2)) {
      memset(w.one.bytes + unit * UNIT, 0, UNIT);
      if (unit >= 8)
        memset(w.head.bytes + unit * UNIT, 0, UNIT);
    }
  }
  repair(&w, "as long as it must be");
  SYS(truncate(w.path, (off_t)GIB - 1));
  GIVES(-EUCLEAN, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  end(&w);
}
END_TEST

/* ---- The epoch log ------------------------------------------------------------------------- */

START_TEST(log_record)
{
  struct world w = make("log");
  struct pcow_check_result result;
  struct stat before, after;

  flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, UINT64_C(1) << (_i % 64));
  run_check(w.path, 0);
  must_say("record 0 of the epoch log is damaged in one bit");
  repair(&w, "a record is repaired");
  flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, 0xff00);
  SYS(stat(w.path, &before));
  result = run_check(w.path, PCOW_CHECK_REPAIR_ALL);
  SYS(stat(w.path, &after));
  must_say("record 0 of the epoch log is damaged and cannot be repaired");
  must_say("nothing is changed");
  ck_assert_uint_eq(result.corruptions, 1);
  ck_assert_uint_eq(result.repairable + result.repaired, 0);
  CHECK(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec, "the file was changed");
  flip(w.path, EPOCH_LOG_OFFSET + (uint64_t)_i * 8, 0xff00);
  test_check_clean(w.path);
  end(&w);
}
END_TEST

/* ---- Chains -------------------------------------------------------------------------------- */

/* References: what they led to is found again. */
START_TEST(reference)
{
  struct world w = make("reference");
  uint64_t slot = newest(w.path, 2);
  uint64_t at = _i < 4 ? geometry_map_word(2) : previous_at(slot);
  static const char *const sentences[] = { "is not valid", "is not valid", "is not this unit's",
                                           "is reached a second time" };

  if (_i % 4 == 0)
    flip(w.path, at, 1);
  else if (_i % 4 == 1)
    poke64(w.path, at, UINT64_C(1) << 40);
  else if (_i % 4 == 2)
    poke64(w.path, at, peek64(w.path, geometry_map_word(9)));
  else if (_i < 4)
    poke64(w.path, at, peek64(w.path, geometry_map_word(1)));
  else
    poke64(w.path, at, SLOT_REF(slot)); /* a circle */
  run_check(w.path, 0);
  must_say(_i == 2 ? "is not this unit's" : _i == 3 ? "is reached a second time" : sentences[_i % 4]);
  must_say("are what follows there");
  must_not_say("lost");
  repair(&w, "a reference is restored");
  end(&w);
}
END_TEST

/* Nothing tells which of two it was: cut off. */
START_TEST(reference_lost)
{
  struct world w = make("reference-lost");
  uint64_t slot = newest(w.path, 2), behind = older(w.path, slot);
  struct pcow_disk_slot none = { 0 };

  flip(w.path, geometry_map_word(2), 1);
  flip(w.path, previous_at(slot), 1);
  run_check(w.path, 0);
  must_say("the pages at 131072-196607 of snapshot 'one' and the head are lost");
  lose(&w.head, 2, NULL);
  lose(&w.one, 2, NULL);
  repair(&w, "the whole chain is lost");

  /* Only the snapshot can have been behind the head's slot. */
  slot = newest(w.path, 3);
  behind = older(w.path, slot);
  poke(w.path, geometry_header(geo(), behind), &none, sizeof none);
  run_check(w.path, 0);
  must_say("the pages at 196608-262143 of snapshot 'one' are lost");
  must_not_say("the head are lost");
  lose(&w.one, 3, NULL);
  repair(&w, "what the snapshot had is lost");
  end(&w);
}
END_TEST

START_TEST(header_field)
{
  static const unsigned fields[] = { 0, 8, 16, 20 };
  struct world w = make("header");
  uint64_t slot = newest(w.path, 2);

  if (_i >= 4)
    slot = older(w.path, slot);
  flip(w.path, geometry_header(geo(), slot) + fields[_i % 4], _i % 2 ? 0x10 : 0x7777);
  run_check(w.path, 0);
  must_say("is damaged, but it can only be epoch");
  must_not_say("lost");
  repair(&w, "a header is repaired");
  end(&w);
}
END_TEST

/* Nobody can tell whose it was: left out, the chain goes on behind it. */
START_TEST(header_lost)
{
  struct world w = make("header-lost");
  uint64_t slot = newest(w.path, 2), zero[8] = { 0 };

  if (_i == 0)
    flip(w.path, geometry_header(geo(), slot), 0x55);
  flip(w.path, geometry_header(geo(), slot) + 8, 0x55);
  flip(w.path, geometry_header(geo(), slot) + 16, 0x5555555555555555);
  if (_i == 1) /* the whole header: what is behind it is found by its own */
    poke(w.path, geometry_header(geo(), slot), zero, 64);
  run_check(w.path, 0);
  must_say("the pages at 131072-196607 of the head are lost");
  must_not_say("'one'");
  lose(&w.head, 2, &w.one);
  repair(&w, "a slot is left out");
  end(&w);
}
END_TEST

START_TEST(header_reserved)
{
  struct world w = make("reserved");

  flip(w.path, geometry_header(geo(), newest(w.path, 2)) + (_i ? 56 : 0), UINT64_C(1) << 40);
  run_check(w.path, 0);
  must_say("that must be zero are not");
  repair(&w, "reserved fields are zero");
  end(&w);
}
END_TEST

/* Two slots of one epoch; an ancestor before its descendant; an epoch that was never there. */
START_TEST(order)
{
  struct world w = make("order");
  uint64_t slot = newest(w.path, 2), behind = older(w.path, slot);
  uint64_t owner = offsetof(struct pcow_disk_slot, epoch);
  static const char *const sentences[] = { "is the second one of epoch 2", "that it descends from",
                                           "which does not exist yet" };

  if (_i == 0) {
    poke64(w.path, geometry_header(geo(), behind) + owner, slot_owner_word(2, 2, behind));
    lose(&w.one, 2, NULL);
  } else if (_i == 1) {
    poke64(w.path, geometry_map_word(2), SLOT_REF(behind));
    poke64(w.path, previous_at(behind), SLOT_REF(slot));
    poke64(w.path, previous_at(slot), 0);
    lose(&w.head, 2, &w.one);
  } else {
    poke64(w.path, geometry_header(geo(), slot) + owner, slot_owner_word(2, 9, slot));
    lose(&w.head, 2, &w.one);
  }
  run_check(w.path, 0);
  must_say(sentences[_i]);
  /* The head does not see the snapshot's pages before its own any more, and finds none of its own. */
  if (_i == 1)
    must_not_say("'one'");
  repair(&w, "left out");
  end(&w);
}
END_TEST

START_TEST(bitmap)
{
  struct world w = make("bitmap");

  flip(w.path, geometry_bitmap(geo(), newest(w.path, 2)), UINT64_C(1) << (16 + _i * 47));
  run_check(w.path, 0);
  must_say("bits beyond the pages of a unit");
  repair(&w, "within bounds");
  end(&w);
}
END_TEST

/* ---- Leaks --------------------------------------------------------------------------------- */

START_TEST(leaks)
{
  struct world w = make("leaks");
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
  poke(w.path, geometry_data(geo(), count), bytes, sizeof bytes);
  /* Between the superblocks, behind the bitmaps, behind the last slot. */
  poke(w.path, 0x2000, bytes, 1);
  poke(w.path, SLOT_GROUPS_OFFSET + geo()->data - PAGE, bytes, 1);
  poke(w.path, geometry_file_size(geo(), count) + 5 * PAGE, bytes, 2 * PAGE);
  result = run_check(w.path, 0);
  ck_assert_uint_eq(result.leaks, 4);
  ck_assert_uint_eq(result.leaked_size, UNIT + 4 * PAGE);
  ck_assert_uint_eq(result.corruptions, 0);
  result = run_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  ck_assert_uint_eq(result.repaired, 4);
  ck_assert_uint_le(test_blocks(w.path), before + 2 * PAGE);
  test_check_clean(w.path);
  compare(&w, "leaks are repaired");

  /* Pages whose bits are not set. */
  slot = newest(w.path, 5);
  poke64(w.path, geometry_bitmap(geo(), slot), 0xff0f);
  memcpy(w.head.bytes + 5 * UNIT + 4 * PAGE, w.one.bytes + 5 * UNIT + 4 * PAGE, 4 * PAGE);
  result = run_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  must_say("16384 bytes lie at pages that nobody sees");
  ck_assert_uint_eq(result.leaks, 1);
  ck_assert_uint_eq(result.repaired, 1);
  test_check_clean(w.path);
  compare(&w, "leaked pages are repaired");

  /* A slot in a chain whose epoch is gone (2: snapshot "two", merged into the head, which is 3). */
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "two"));
  OK(pcow_snapshot_delete(image, "two"));
  OK(pcow_close(image));
  slot = newest(w.path, 3);
  behind = older(w.path, slot);
  poke64(w.path, geometry_header(geo(), behind) + 16, slot_owner_word(3, 2, behind));
  result = run_check(w.path, 0);
  must_say("belongs to no epoch");
  ck_assert_uint_eq(result.leaks, 1);
  ck_assert_uint_eq(result.leaked_size, UNIT);
  ck_assert_uint_eq(result.corruptions, 0);
  image = test_open(w.path, 0, "one");
  result = run_check(w.path, PCOW_CHECK_REPAIR_LEAKS);
  ck_assert_uint_eq(result.repaired, 1);
  ck_assert_uint_eq(peek64(w.path, previous_at(slot)), 0);
  /* To repair more than leaks, nobody must read. */
  flip(w.path, geometry_header(geo(), slot), 1);
  GIVES(-EBUSY, pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL));
  flip(w.path, geometry_header(geo(), slot), 1);
  OK(pcow_close(image));
  test_check_clean(w.path);
  lose(&w.one, 3, NULL);
  compare(&w, "garbage is repaired");
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  GIVES(-EBUSY, pcow_check(w.path, 0, &result, NULL, NULL, NULL));
  OK(pcow_close(image));
  end(&w);
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
  result = run_check(path, 0);
  printf("1 TiB, %llu slots, %llu MiB: checked in %.2f s\n", (unsigned long long)result.slots,
         (unsigned long long)(test_blocks(path) / MIB), (double)(g_get_monotonic_time() - start) / 1e6);
  CHECK(!said, "%s", said);
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
  result = run_check(path, PCOW_CHECK_BASE);
  ck_assert_uint_eq(result.base_faults, 0);
  CHECK(!said, "%s", said);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "changed", 7, 0));
  OK(pcow_close(image));
  result = run_check(path, PCOW_CHECK_BASE);
  must_say("was changed after");
  ck_assert_uint_eq(result.base_faults, 1);
  ck_assert_uint_eq(result.corruptions, 0);
  SYS(unlink(base));
  result = run_check(path, PCOW_CHECK_BASE);
  must_say("cannot open its base");
  ck_assert_uint_eq(result.base_faults, 1);
  result = run_check(path, 0); /* not followed */
  ck_assert_uint_eq(result.base_faults, 0);
  CHECK(!said, "%s", said);
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
  w = make("refused");
  GIVES(-EINVAL, pcow_check(w.path, 64, &result, NULL, NULL, NULL));
  GIVES(-ECANCELED, pcow_check(w.path, 0, &result, NULL, cancel, NULL));
  GIVES(-EMEDIUMTYPE, pcow_check("/dev/null", 0, &result, NULL, NULL, NULL));
  end(&w);
}
END_TEST

/* Killed after each change that a repair makes; the next one ends it. */
START_TEST(killed)
{
  int status = 1;
  unsigned n;

  for (n = 0; status; n++) {
    struct world w = make("killed");
    uint64_t slot = newest(w.path, 2);
    pid_t child;

    flip(w.path, geometry_map_word(1), 1);
    flip(w.path, geometry_header(geo(), slot), 1);
    flip(w.path, geometry_header(geo(), newest(w.path, 3)) + 8, 0x55);
    flip(w.path, geometry_header(geo(), newest(w.path, 3)) + 16, 0x5555555555555555);
    flip(w.path, EPOCH_LOG_OFFSET + 72, 4);
    poke64(w.path, 1 * MIB, 0);
    lose(&w.head, 3, &w.one);
    fflush(NULL);
    child = fork();
    if (child == 0) {
      struct pcow_check_result result = PCOW_INIT(result);

      cut_short_after(n);
      _exit(pcow_check(w.path, PCOW_CHECK_REPAIR_ALL, &result, NULL, NULL, NULL) ? 1 : 0);
    }
    SYS(waitpid(child, &status, 0));
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == CUT_SHORT || status == 0), "the child ended with %d", status);
    run_check(w.path, PCOW_CHECK_REPAIR_ALL);
    test_check_clean(w.path);
    compare(&w, "repaired after a kill");
    end(&w);
  }
  CHECK(n > 8, "a repair of %u changes", n);
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
  tcase_add_loop_test(tests, reference, 0, 8);
  tcase_add_test(tests, reference_lost);
  tcase_add_loop_test(tests, header_field, 0, 8);
  tcase_add_loop_test(tests, header_lost, 0, 2);
  tcase_add_loop_test(tests, header_reserved, 0, 2);
  tcase_add_loop_test(tests, order, 0, 3);
  tcase_add_loop_test(tests, bitmap, 0, 2);
  tcase_add_test(tests, leaks);
  tcase_add_test(tests, base_identity);
  tcase_add_test(tests, large);
  tcase_add_test(tests, refused);
  tcase_add_test(tests, killed);
  suite_add_tcase(suite, tests);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}
