/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checks the unit map and every chain: references, headers, each slot once in the whole image, at most one
 * slot of an epoch in a chain, descendants before ancestors. What a chain keeps is decided slot by slot,
 * newest first:
 *
 *   - a header of which one field is wrong is made right when just one epoch fits the others;
 *   - a slot that must not be there, or whose header is beyond repair, is left out, and the chain goes on
 *     behind it when its reference leads to a slot of this unit;
 *   - a reference that leads nowhere ends the chain (checkorphan.c looks for what it led to).
 */
#include "checking.h"

#include "error.h"

#include <string.h>
#include <unistd.h>

#define WORDS_AT_ONCE 512u
#define PROGRESS_SLOTS 256u

enum header { HEADER_GOOD, HEADER_MENDED, HEADER_LOST, HEADER_EMPTY, HEADER_FOREIGN };

/* ---- Headers ---- */

/* Which epoch the header was made for, when one field of it is wrong; 0: it cannot be told. */
static uint32_t infer_epoch(struct check *c, const struct pcow_disk_slot *disk, uint64_t unit,
                            uint64_t index, const struct check_owners *owners)
{
  unsigned wrong = (le32_get(disk->magic) != SLOT_MAGIC) + (le64_get(disk->unit) != unit);
  uint32_t stored = le32_get(disk->epoch), crc = le32_get(disk->crc), found = 0;
  unsigned fits = 0;
  GHashTableIter iter;
  gpointer key = GUINT_TO_POINTER(c->sb.head_epoch);
  bool more = true;

  if (wrong > 1 || c->loss_budget < g_hash_table_size(c->epochs->by_id))
    return 0;
  c->loss_budget -= g_hash_table_size(c->epochs->by_id);
  g_hash_table_iter_init(&iter, c->epochs->by_id);
  for (; more; more = g_hash_table_iter_next(&iter, &key, NULL)) {
    uint32_t id = GPOINTER_TO_UINT(key);

    if (wrong + (id != stored) + (crc != slot_identity_crc(unit, id, index)) <= 1 &&
        !check_order(c, owners, id)) {
      found = id;
      fits++;
    }
  }
  return fits == 1 ? found : 0;
}

static void add_header(struct check *c, const struct slot_info *slot, bool *room)
{
  uint64_t at = geometry_header(&c->geo, slot->index);

  *room = check_add_word(c, at, SLOT_MAGIC) &&
          check_add_word(c, at + offsetof(struct pcow_disk_slot, unit), slot->unit) &&
          check_add_word(c, at + offsetof(struct pcow_disk_slot, epoch),
                         slot_owner_word(slot->unit, slot->epoch, slot->index));
}

static void check_reserved(struct check *c, const struct pcow_disk_slot *disk, const struct slot_info *slot)
{
  static const uint8_t zeros[sizeof disk->reserved1];
  uint64_t at = geometry_header(&c->geo, slot->index);
  bool room;

  if (!c->plain || (!le32_get(disk->reserved0) && !memcmp(disk->reserved1, zeros, sizeof zeros)))
    return;
  room = check_add_word(c, at, SLOT_MAGIC);
  for (unsigned i = 0; i < sizeof zeros; i += 8)
    room &= check_add_word(c, at + offsetof(struct pcow_disk_slot, reserved1) + i, 0);
  check_corrupt(c, room);
  check_say(c, "%s: unit %" PRIu64 ": fields of the header of slot %" PRIu64 " that must be zero are not",
            c->path, slot->unit, slot->index);
}

static int read_header(struct check *c, uint64_t index, struct pcow_disk_slot *disk)
{
  return file_read(c->fd, c->path, geometry_header(&c->geo, index), disk, sizeof *disk, true);
}

static bool is_good(const struct pcow_disk_slot *disk, uint64_t unit, uint64_t index)
{
  return le32_get(disk->magic) == SLOT_MAGIC && le64_get(disk->unit) == unit &&
         le32_get(disk->crc) == slot_identity_crc(unit, le32_get(disk->epoch), index);
}

static bool is_reference(const struct check *c, uint64_t word)
{
  return word && SLOT_REF_VALID(word) && SLOT_REF_INDEX(word) && SLOT_REF_INDEX(word) <= c->slots;
}

static int judge_header(struct check *c, uint64_t unit, uint64_t index, const struct check_owners *owners,
                        struct pcow_disk_slot *disk, struct slot_info *slot, enum header *what)
{
  static const struct pcow_disk_slot none;
  int r = read_header(c, index, disk);

  if (r)
    return r;
  *slot = (struct slot_info){ .index = index, .unit = unit, .epoch = le32_get(disk->epoch) };
  *what = HEADER_LOST;
  if (is_good(disk, unit, index)) {
    *what = HEADER_GOOD;
  } else if (!memcmp(disk, &none, sizeof none)) {
    *what = HEADER_EMPTY;
  } else if (is_good(disk, le64_get(disk->unit), index)) {
    *what = HEADER_FOREIGN;
  } else {
    slot->epoch = infer_epoch(c, disk, unit, index, owners);
    if (slot->epoch)
      *what = HEADER_MENDED;
  }
  return 0;
}

/* ---- Chains ---- */

void check_relink(struct check *c, uint64_t map_word, uint64_t map_value, const GArray *chain, uint64_t end)
{
  uint64_t word = map_word, value = map_value;

  for (guint i = 0; i <= chain->len; i++) {
    const struct check_link *link = i < chain->len ? &g_array_index(chain, struct check_link, i) : NULL;
    uint64_t want = link ? SLOT_REF(link->slot.index) : end;

    if (value != want)
      check_add_word(c, word, want);
    if (link) {
      word = link->word;
      value = link->next;
    }
  }
}

static void add_cut(struct check *c, uint64_t unit, const GArray *chain, uint64_t word, uint64_t value,
                    uint64_t erased)
{
  struct check_cut *cut = g_new0(struct check_cut, 1);

  cut->unit = unit;
  cut->chain = g_array_sized_new(FALSE, FALSE, sizeof(struct check_link), chain->len);
  g_array_append_vals(cut->chain, chain->data, chain->len);
  cut->word = word;
  cut->value = value;
  cut->erased = erased;
  g_ptr_array_add(c->cuts, cut);
}

struct walk {
  struct check *c;
  uint64_t unit;
  GArray *chain;                /* struct check_link: what stays */
  GArray *dropped;              /* indices */
  struct check_owners owners;
  GArray *unknown;              /* struct unknown */
};

/* A slot that was left out, of whom nobody knows whose it was, and how many slots came before it. */
struct unknown {
  uint64_t index;
  guint before;
};

/* The slot stays, or not: LEFT_OUT. What is wrong with it is said. */
static int take_slot(struct walk *w, const struct pcow_disk_slot *disk, const struct slot_info *slot,
                     enum header what, bool *left_out)
{
  struct check *c = w->c;
  uint64_t end = geometry_data(&c->geo, slot->index) + c->geo.unit_bytes;
  bool room = true;
  int bad = what == HEADER_LOST ? 'h' : slot->epoch < 1 || slot->epoch >= c->sb.next_epoch ? 'e' : 0;

  if (!bad && !check_epoch_exists(c, slot->epoch)) {
    c->result.leaks++;
    slotset_add(c->garbage, slot->index);
    check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " belongs to no epoch", c->path, w->unit, slot->index);
    *left_out = true;
    return 0;
  }
  if (!bad)
    bad = check_order(c, &w->owners, slot->epoch);
  *left_out = bad;
  if (what == HEADER_MENDED)
    add_header(c, slot, &room);
  if (bad || what == HEADER_MENDED)
    check_corrupt(c, room);
  if (what == HEADER_MENDED)
    check_say(c, "%s: unit %" PRIu64 ": the header of slot %" PRIu64 " is damaged, but it can only be epoch %"
              PRIu32 "'s", c->path, w->unit, slot->index, slot->epoch);
  else if (bad == 'h')
    check_say(c, "%s: unit %" PRIu64 ": the header of slot %" PRIu64 " is damaged", c->path, w->unit,
              slot->index);
  else if (bad == 'e')
    check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " belongs to epoch %" PRIu32
              ", which does not exist yet", c->path, w->unit, slot->index, slot->epoch);
  else if (bad == 'd')
    check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " is the second one of epoch %" PRIu32, c->path,
              w->unit, slot->index, slot->epoch);
  else if (bad == 'o')
    check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " of epoch %" PRIu32 " comes after a slot of an epoch"
              " that it descends from", c->path, w->unit, slot->index, slot->epoch);
  if (!bad)
    check_reserved(c, disk, slot);
  if (bad == 'h') {
    struct unknown unknown = { slot->index, w->chain->len };

    g_array_append_val(w->unknown, unknown);
  }
  if (bad)
    return bad == 'd' || bad == 'o'
             ? check_loss(c, w->unit, w->chain, slot->index, slot->epoch, false, 0, NULL) : 0;
  if (end > c->copies.file_size) {
    uint64_t start = geometry_data(&c->geo, slot->index);
    uint64_t first = c->copies.file_size <= start ? 0 : (c->copies.file_size - start) >> PAGE_SHIFT;

    return check_loss(c, w->unit, w->chain, slot->index, slot->epoch, true, first, NULL);
  }
  return 0;
}

/* Follows the references from WORD, which lies at AT, to the end of the chain or to a cut. */
static int walk_chain(struct walk *w, uint64_t at, uint64_t word, bool *cut)
{
  struct check *c = w->c;
  uint64_t value = word;        /* what lies at AT; WORD may be from a slot that was left out */
  int r = 0;

  *cut = false;
  while (r == 0 && word) {
    uint64_t index = SLOT_REF_INDEX(word);
    struct pcow_disk_slot disk;
    struct check_link link;
    enum header what = HEADER_FOREIGN;
    bool left_out;

    if (!is_reference(c, word)) {
      check_say(c, "%s: unit %" PRIu64 ": the slot reference 0x%" PRIx64 " is not valid", c->path,
                w->unit, word);
      *cut = true;
    } else if (slotset_has(c->reached, index)) {
      check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " is reached a second time", c->path, w->unit,
                index);
      *cut = true;
    } else {
      r = judge_header(c, w->unit, index, &w->owners, &disk, &link.slot, &what);
      if (r == 0 && (what == HEADER_EMPTY || what == HEADER_FOREIGN)) {
        check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 ", which its chain leads to, is not this unit's",
                  c->path, w->unit, index);
        *cut = true;
      }
    }
    if (r == 0 && *cut) {
      /* Wholly empty: its block is gone, or it never was one. */
      add_cut(c, w->unit, w->chain, at, value, what == HEADER_EMPTY ? index : 0);
      return 0;
    }
    if (r == 0) {
      slotset_add(c->reached, index);
      c->result.slots++;
      if (c->result.slots % PROGRESS_SLOTS == 0)
        r = check_progress(c, c->result.slots);
    }
    if (r == 0)
      r = take_slot(w, &disk, &link.slot, what, &left_out);
    if (r)
      return r;
    link.word = geometry_header(&c->geo, index) + offsetof(struct pcow_disk_slot, previous);
    link.next = word = le64_get(disk.previous);
    if (left_out) {
      g_array_append_val(w->dropped, index);
    } else {
      g_array_append_val(w->chain, link);
      check_owners_add(c, &w->owners, link.slot.epoch);
      at = link.word;
      value = word;
    }
  }
  return r;
}

/* Not before it is known what comes behind them: those epochs and their ancestors they cannot be of. */
static int say_unknown(struct walk *w)
{
  int r = 0;

  for (guint i = 0; r == 0 && i < w->unknown->len; i++) {
    const struct unknown *u = &g_array_index(w->unknown, struct unknown, i);
    g_autoptr(GArray) before = g_array_new(FALSE, FALSE, sizeof(struct check_link));
    g_autoptr(GArray) after = g_array_new(FALSE, FALSE, sizeof(struct slot_info));

    if (w->c->loss_budget >= w->chain->len) { /* or no views are looked at anyway */
      g_array_append_vals(before, w->chain->data, u->before);
      for (guint k = u->before; k < w->chain->len; k++)
        g_array_append_val(after, g_array_index(w->chain, struct check_link, k).slot);
    }
    r = check_loss(w->c, w->unit, before, u->index, 0, false, 0, after);
  }
  return r;
}

static int check_unit(struct check *c, GArray *dropped, uint64_t unit, uint64_t word, GArray *chain)
{
  struct walk w = { .c = c, .unit = unit, .chain = chain, .dropped = dropped };
  uint64_t at = geometry_map_word(unit);
  bool cut;
  int r;

  g_array_set_size(chain, 0);
  check_owners_init(&w.owners);
  w.unknown = g_array_new(FALSE, FALSE, sizeof(struct unknown));
  r = walk_chain(&w, at, word, &cut);
  if (r == 0)
    r = say_unknown(&w);
  g_array_unref(w.unknown);
  check_owners_clear(&w.owners);
  if (r == 0) {
    /* A cut's own word is dealt with when it is known what it led to. */
    uint64_t end = 0;

    if (cut) {
      const struct check_cut *last = g_ptr_array_index(c->cuts, c->cuts->len - 1);

      end = last->value;
    }
    check_relink(c, at, word, chain, end);
  }
  return r;
}

int check_chains(struct check *c)
{
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct check_link));
  g_autoptr(GArray) dropped = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  uint64_t words[WORDS_AT_ONCE];
  int r = 0;

  for (uint64_t unit = 0, n; r == 0 && unit < UNITS_MAX; unit += n) {
    off_t data = lseek(c->fd, (off_t)geometry_map_word(unit), SEEK_DATA);

    if (data >= 0 && (uint64_t)data > geometry_map_word(unit))
      unit = ((uint64_t)data - UNIT_MAP_OFFSET) / 8;
    if ((data < 0 && errno == ENXIO) || unit >= UNITS_MAX)
      break;
    n = MIN(UNITS_MAX - unit, WORDS_AT_ONCE);
    r = slotwalk_map_words(c->fd, c->path, unit, n, words);
    for (uint64_t i = 0; r == 0 && i < n; i++)
      if (words[i])
        r = check_unit(c, dropped, unit + i, words[i], chain);
    if (r == 0)
      r = check_progress(c, c->result.slots);
  }
  /* Not before all chains are walked: what is left out of one must not be in another. */
  for (guint i = 0; i < dropped->len; i++)
    slotset_remove(c->reached, g_array_index(dropped, uint64_t, i));
  return r;
}
