/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Repair under the power cut (docs/format.md, section 15.2): an image is damaged at rest in several places
 * and repaired. Whatever a cut leaves meanwhile shows no page wrongly, and repairing that ends with the
 * views that the first repair would have left. Or the repair is killed, and another process goes on; or a
 * session was killed before.
 */
#include "bench.h"

#include "geometry.h"
#include "slotwalk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VIEWS 3u
#define FREE_SLOT 30u
#define LIMIT 12u               /* states a cut */

static const char *const names[VIEWS] = { NULL, "one", "two" };

struct repair {
  struct bench bench;           /* first: callbacks get a bench */
  unsigned char *views[VIEWS];  /* what a completed repair leaves; NULL: the view is of no interest */
  unsigned char *whole[VIEWS];  /* what they showed before the damage; NULL: there was none */
  unsigned char *before[VIEWS]; /* what they showed before any repair, and the pages that could be read */
  uint32_t readable[VIEWS];
  unsigned limit;               /* states a cut */
  bool sound;                   /* it was found without corruption by who goes on: that is to last */
  char damages[160];
};

/* ---- Views ---- */

/* What a view shows: SIZE bytes, or NULL. Each page must be as a completed repair leaves it; LENIENT: or as
 * it was before the repair, or the damage, or not be readable. */
static unsigned char *read_view(struct repair *r, const char *dir, unsigned view, bool lenient)
{
  struct bench *b = &r->bench;
  struct pcow_open_options how = PCOW_INIT(how);
  g_autofree char *path = bench_path(dir, "img");
  unsigned char *bytes = g_malloc0(SIZE);
  pcow_image *image;

  how.snapshot = names[view];
  if (pcow_open(path, &how, &image)) {
    if (!lenient)
      lab_fail(b->lab, "%s: does not open: %s", r->damages, pcow_errormsg());
    g_free(bytes);
    return NULL;
  }
  for (uint64_t at = 0; at < SIZE; at += PAGE) {
    uint64_t page = at / PAGE;

    if (pcow_pread(image, bytes + at, PAGE, at) == 0) {
      if (!r->views[view] && !r->before[view])
        r->readable[view] |= 1u << page;
      if (r->views[view] && memcmp(bytes + at, r->views[view] + at, PAGE) &&
          !(lenient && r->readable[view] >> page & 1 && !memcmp(bytes + at, r->before[view] + at, PAGE)) &&
          !(lenient && r->whole[view] && !memcmp(bytes + at, r->whole[view] + at, PAGE)))
        lab_fail(b->lab, "%s: page %" PRIu64 " of %s is wrong%s", r->damages, page,
                 view ? names[view] : "the head", lenient ? " where a repair was cut off" : "");
    } else if (!lenient) {
      lab_fail(b->lab, "%s: cannot be read: %s", r->damages, pcow_errormsg());
    }
  }
  OK(pcow_close(image));
  return bytes;
}

static void compare_views(struct repair *r, const char *dir, bool lenient)
{
  for (unsigned i = 0; i < VIEWS; i++)
    if (r->views[i])
      g_free(read_view(r, dir, i, lenient));
}

/* ---- Checks ---- */

static void note_first(void *opaque, const char *text)
{
  char **first = opaque;

  if (!*first)
    *first = g_strdup(text);
}

static struct pcow_check_result check(struct repair *r, const char *dir, uint32_t flags, char **first)
{
  struct pcow_check_result result = PCOW_INIT(result);
  g_autofree char *path = bench_path(dir, "img");
  int ret = pcow_check(path, flags, &result, note_first, NULL, first);

  if (ret < 0)
    lab_fail(r->bench.lab, "%s: the check gave %d: %s", r->damages, ret, pcow_errormsg());
  return result;
}

/* Repairs all, after which nothing is left to find. */
static void repair_all(struct repair *r, const char *dir)
{
  g_autofree char *first = NULL, *second = NULL;
  struct pcow_check_result result = check(r, dir, PCOW_CHECK_REPAIR_ALL, &first);

  if (result.repaired != result.corruptions + result.leaks)
    lab_fail(r->bench.lab, "%s: not all is repaired: %s", r->damages, first);
  result = check(r, dir, 0, &second);
  if (result.corruptions || result.leaks)
    lab_fail(r->bench.lab, "%s: after the repair: %s", r->damages, second);
}

/* ---- States ---- */

/* Nobody sees a wrong page; a second repair ends as the first one would have. */
static void verify_state(struct repair *r, const char *dir)
{
  g_autofree char *first = NULL;
  struct pcow_check_result result = check(r, dir, 0, &first);

  atomic_fetch_add(&counters->states, 1);
  /* A cut within a commit may tear one copy of the superblock. */
  if (r->sound && result.corruptions && !strstr(first, ": superblock copy "))
    lab_fail(r->bench.lab, "%s: what was found to be sound is not: %s", r->damages, first);
  compare_views(r, dir, result.corruptions > 0);
  repair_all(r, dir);
  compare_views(r, dir, false);
}

static int cut_state(void *opaque, const struct media_state *state)
{
  struct repair *r = opaque;

  r->bench.lab->state = state;
  verify_state(r, r->bench.lab->states);
  r->bench.lab->state = NULL;
  return 0;
}

static int killed_state(void *opaque, const struct media_state *state)
{
  struct repair *r = opaque;

  r->bench.lab->state = state;
  verify_state(r, r->bench.killed_states);
  r->bench.lab->state = NULL;
  return 0;
}

static void explore_cut(struct repair *r)
{
  media_states(r->bench.media, r->bench.lab->states, r->limit, cut_state, r);
}

static void explore_killed(void *opaque)
{
  struct repair *r = opaque;

  media_states(r->bench.killed_media, r->bench.killed_states, 8, killed_state, r);
}

/* ---- Who comes after a repair that was killed ---- */

static void write_durably(struct repair *r)
{
  struct bench *b = &r->bench;
  uint64_t at = rng_below(&b->lab->rng, SIZE / PAGE) * PAGE;
  pcow_image *image = open_in(b, b->killed, "img", PCOW_OPEN_RDWR);

  rng_fill(&b->lab->rng, r->views[0] + at, PAGE);
  OK(pcow_pwrite(image, r->views[0] + at, PAGE, at));
  OK(pcow_sync(image));
  r->sound = true;
  explore_killed(r);
  OK(pcow_close(image));
  explore_killed(r);
  r->sound = false;
}

static void go_on(struct repair *r)
{
  struct bench *b = &r->bench;
  unsigned char *kept = g_memdup2(r->views[0], SIZE);
  g_autofree char *first = NULL;
  bool whole;

  atomic_fetch_add(&counters->kills, 1);
  b->killed_media = media_killed(b->media, b->killed, NULL, r);
  whole = check(r, b->killed, 0, &first).corruptions == 0;
  media_free(b->killed_media);
  b->killed_media = media_killed(b->media, b->killed, whole ? NULL : explore_killed, r);
  if (whole)
    write_durably(r);
  else
    repair_all(r, b->killed);
  explore_killed(r);
  media_free(b->killed_media);
  g_free(r->views[0]);
  r->views[0] = kept;
}

static void on_cut(struct bench *b)
{
  struct repair *r = (struct repair *)b;

  atomic_fetch_add(&counters->cuts, 1);
  b->lab->cut = b->cut;
  explore_cut(r);
  go_on(r);
}

/* ---- Damage ---- */

static uint64_t peek(const char *path, uint64_t offset)
{
  int fd = (int)SYS(open(path, O_RDONLY | O_CLOEXEC));
  uint64_t word = 0;

  SYS(pread(fd, &word, sizeof(word), (off_t)offset));
  close(fd);
  return word;
}

static void poke(const char *path, uint64_t offset, const void *bytes, size_t length)
{
  int fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));

  SYS(pwrite(fd, bytes, length, (off_t)offset));
  close(fd);
}

static void flip(const char *path, uint64_t offset, uint64_t bits)
{
  uint64_t word = peek(path, offset) ^ bits;

  poke(path, offset, &word, sizeof(word));
}

/* A slot of UNIT for the head that no chain reaches, with a page. */
static void add_orphan(const char *path, const struct geometry *geo, uint64_t unit, uint64_t slot)
{
  uint64_t newest = SLOT_REF_INDEX(peek(path, geometry_map_word(unit))), one = 1;
  uint64_t owner = geometry_header(geo, newest) + offsetof(struct pcow_disk_slot, epoch);
  uint32_t epoch = (uint32_t)peek(path, owner);
  struct pcow_disk_slot header = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(unit),
    .epoch = le32_make(epoch),
    .crc = le32_make(slot_identity_crc(unit, epoch, slot)),
  };

  poke(path, geometry_header(geo, slot), &header, sizeof(header));
  poke(path, geometry_bitmap(geo, slot), &one, sizeof(one));
}

/* The slot behind SLOT says that it belongs to the same epoch. */
static void add_owner(const char *path, const struct geometry *geo, uint64_t unit, uint64_t slot)
{
  uint64_t header = geometry_header(geo, slot), owner = offsetof(struct pcow_disk_slot, epoch);
  uint64_t next = SLOT_REF_INDEX(peek(path, header + offsetof(struct pcow_disk_slot, previous)));
  uint64_t word = slot_owner_word(unit, (uint32_t)peek(path, header + owner), next);

  poke(path, geometry_header(geo, next) + owner, &word, sizeof(word));
}

enum damage {
  COPY, MAP_WORD, FIELD, HEADER, RECORD, LEAK, PREVIOUS, BITS, RESERVED, SHORT, ORPHAN, OWNER, DAMAGES
};

static const char *const damage_names[DAMAGES] = {
  "a superblock copy", "a map word", "a header's field", "a header", "a record", "leaked blocks",
  "a previous slot", "bits of a bitmap", "a reserved field", "a file that is too short", "an orphan",
  "a second slot of one epoch",
};

static void damage(struct repair *r, const char *path, enum damage what, uint64_t unit)
{
  static const unsigned fields[] = { 0, 8, 16, 20 };
  struct rng *rng = &r->bench.lab->rng;
  struct geometry geo = geometry_make(16);
  uint64_t word = peek(path, geometry_map_word(unit)), slot, header;

  if (!SLOT_REF_VALID(word))    /* is damaged already */
    return;
  slot = SLOT_REF_INDEX(word);
  header = geometry_header(&geo, slot);
  switch (what) {
  case COPY:
    poke(path, SUPERBLOCK_OFFSET(rng_below(rng, 2)) + 256, "decayed", 7);
    break;
  case MAP_WORD:
    flip(path, geometry_map_word(unit), 1);
    break;
  case FIELD:
    flip(path, header + fields[rng_below(rng, 4)], 0x10);
    break;
  case HEADER:
    flip(path, header + 8, 0x55);
    flip(path, header + 16, 0x5555555555555555);
    break;
  case RECORD:
    flip(path, EPOCH_LOG_OFFSET + 72, 4);
    break;
  case LEAK:
    poke(path, geometry_data(&geo, FREE_SLOT) + rng_below(rng, 16) * PAGE, "leaked", 6);
    break;
  case PREVIOUS:
    flip(path, header + offsetof(struct pcow_disk_slot, previous), UINT64_C(1) << 40);
    break;
  case BITS:
    flip(path, geometry_bitmap(&geo, slot), UINT64_C(1) << (16 + rng_below(rng, 48)));
    break;
  case RESERVED:
    flip(path, header + 56, UINT64_C(1) << 40);
    break;
  case SHORT:
    SYS(truncate(path, SLOT_GROUPS_OFFSET + 16 * MIB));
    break;
  case ORPHAN:
    add_orphan(path, &geo, unit, FREE_SLOT + 1);
    break;
  default:
    add_owner(path, &geo, unit, slot);
  }
  g_strlcat(r->damages, r->damages[0] ? ", " : "", sizeof(r->damages));
  g_strlcat(r->damages, damage_names[what], sizeof(r->damages));
}

/* ---- Scenarios ---- */

static void fill(struct bench *b, pcow_image *image, uint64_t first, uint64_t end)
{
  unsigned char bytes[PCOW_PAGE_SIZE];

  for (uint64_t page = first; page < end; page++) {
    rng_fill(&b->lab->rng, bytes, PAGE);
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
}

/* Chains of three slots. */
static void make_image(struct bench *b)
{
  pcow_image *image;

  create_in(b->lab->dir, "img", NULL);
  image = open_in(b, b->lab->dir, "img", PCOW_OPEN_RDWR);
  fill(b, image, 4, 32);
  OK(pcow_snapshot_create(image, "one"));
  fill(b, image, 2, 5);
  fill(b, image, 18, 20);
  OK(pcow_snapshot_create(image, "two"));
  fill(b, image, 7, 9);
  fill(b, image, 17, 19);
  OK(pcow_close(image));
}

/* A third snapshot, deleted with two children, so that it stays: its slots are the newest ones. */
static void add_deleted(struct bench *b)
{
  pcow_image *image = open_in(b, b->lab->dir, "img", PCOW_OPEN_RDWR);

  OK(pcow_snapshot_create(image, "three"));
  OK(pcow_snapshot_create(image, "four"));
  OK(pcow_snapshot_revert(image, "three"));
  OK(pcow_snapshot_delete(image, "three"));
  OK(pcow_close(image));
}

static void repair_end(struct repair *r)
{
  for (unsigned i = 0; i < VIEWS; i++) {
    g_free(r->views[i]);
    g_free(r->before[i]);
    g_free(r->whole[i]);
  }
  bench_end(&r->bench);
}

/* What a repair leaves that nobody disturbs. */
static void learn_views(struct repair *r)
{
  struct lab *lab = r->bench.lab;

  for (unsigned i = 0; i < VIEWS; i++) {
    unsigned char *bytes = read_view(r, lab->dir, i, true);

    r->before[i] = bytes ? bytes : g_malloc0(SIZE);
  }
  lab_static(lab, "img");
  repair_all(r, lab->states);
  for (unsigned i = 0; i < VIEWS; i++)
    r->views[i] = read_view(r, lab->states, i, false);
}

static void repair_some(struct lab *lab, bool deleted, unsigned count, const enum damage *which,
                        unsigned limit)
{
  struct repair r = { .limit = limit };
  g_autofree char *path = bench_path(lab->dir, "img");
  uint64_t unit = rng_below(&lab->rng, 2);

  r.bench.lab = lab;
  make_image(&r.bench);
  if (deleted)
    add_deleted(&r.bench);
  for (unsigned i = 0; i < VIEWS; i++)
    r.whole[i] = read_view(&r, lab->dir, i, false);
  memset(r.readable, 0, sizeof(r.readable));
  for (unsigned i = 0; i < count; i++)
    damage(&r, path, which[i], unit);
  learn_views(&r);
  bench_begin(&r.bench, lab, on_cut);
  lab_doing(lab, "repair of %s", r.damages);
  repair_all(&r, lab->dir);
  compare_views(&r, lab->dir, false);
  explore_cut(&r);
  repair_end(&r);
}

static void repair_damage(struct lab *lab)
{
  enum damage which[2];

  for (unsigned i = 0; i < 2; i++)
    which[i] = (enum damage)rng_below(&lab->rng, DAMAGES);

  repair_some(lab, false, 1 + (unsigned)rng_below(&lab->rng, 2), which, LIMIT);
}

/* The slots of a unit are given up, for two chains could be what followed. */
static void repair_ambiguous(struct lab *lab)
{
  static const enum damage which[2] = { PREVIOUS, MAP_WORD };

  repair_some(lab, false, 2, which, LIMIT);
}

/* A slot that can be read, which says that it is a deleted epoch's, is left out, and what it holds given
 * back: not before it is out, durably. */
static void repair_second(struct lab *lab)
{
  static const enum damage which = OWNER;

  repair_some(lab, true, 1, &which, 4 * LIMIT);
}

/* Rule 5 of repairs: what it takes for free may be free only as a killed process left it. */
static void kill_and_repair(struct bench *b)
{
  struct repair *r = (struct repair *)b;

  atomic_fetch_add(&counters->cuts, 1);
  atomic_fetch_add(&counters->kills, 1);
  b->killed_media = media_killed(b->media, b->killed, explore_killed, r);
  repair_all(r, b->killed);
  explore_killed(r);
  media_free(b->killed_media);
}

static void repair_killed(struct lab *lab)
{
  struct repair r = { .limit = LIMIT, .sound = true, .damages = "a killed session" };
  pcow_image *image;

  r.bench.lab = lab;
  make_image(&r.bench);
  for (unsigned i = 0; i < VIEWS; i += 2)
    r.views[i] = read_view(&r, lab->dir, i, false);
  bench_begin(&r.bench, lab, kill_and_repair);
  lab_doing(lab, "repair of a killed collection");
  image = open_in(&r.bench, lab->dir, "img", PCOW_OPEN_RDWR);
  OK(pcow_snapshot_delete(image, "one"));
  OK(pcow_close(image));
  repair_end(&r);
}

const struct scenario scenarios_repair[] = {
  { "repair", "damage is repaired, the repair cut off, killed, done again", repair_damage, false },
  { "repair-ambiguous", "the same where slots must be given up", repair_ambiguous, false },
  { "repair-second", "the same where a slot is left out that can be read", repair_second, false },
  { "repair-killed", "a collection is killed, and what it left is repaired", repair_killed, false },
  { NULL, NULL, NULL, false },
};
