/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A slot is free when no chain reaches it; which ones are is found by walking all chains once, at the
 * first allocation of a session. Slots above the high-water mark that this session raised were never
 * used and need no punching; all others may hold old bytes and are punched before they are linked.
 */
#include "slots.h"

#include "bits.h"
#include "error.h"

#include <string.h>

#define RAISE_BYTES (UINT64_C(64) << 30)  /* address space that one commit of the mark adds, about */
#define RAISE_SLOTS_MIN 64u
#define ZERO_BYTES 65536u

struct slots {
  struct store *store;
  GMutex lock;
  uint64_t *used;               /* bit i: slot i + 1 is reached or handed out; NULL: not walked yet */
  uint64_t count;               /* bits in USED: the high-water mark */
  uint64_t never_used;          /* slots from this index on were never used before */
  uint64_t hint;                /* no free bit lies below */
};

struct slots *slots_new(struct store *store)
{
  struct slots *s = g_new0(struct slots, 1);

  g_mutex_init(&s->lock);
  s->store = store;
  return s;
}

void slots_free(struct slots *s)
{
  if (!s)
    return;
  g_mutex_clear(&s->lock);
  g_free(s->used);
  g_free(s);
}

static int walk_unit(struct slots *s, uint64_t unit, uint64_t word)
{
  struct store *st = s->store;
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t index;
  int ret = slotwalk_reference(st->path, &st->sb, unit, word, &index);

  if (ret == 0)
    ret = slotwalk_chain(st->fd, st->path, &st->sb, unit, index, chain);
  for (unsigned i = 0; ret == 0 && i < chain->len; i++) {
    uint64_t bit = g_array_index(chain, struct slot_info, i).index - 1;

    if (bits_test(s->used, bit))
      return fail(EUCLEAN, "%s: slot %" PRIu64 " is reached by two units", st->path, bit + 1);
    bits_set(s->used, bit, bit + 1);
  }
  return ret;
}

/* Finds out which slots are reached. The lock is held. */
static int walk_all(struct slots *s)
{
  struct store *st = s->store;
  uint64_t end = UNIT_MAP_OFFSET + UNITS_MAX * 8;
  int ret = 0;

  s->count = st->sb.slot_count;
  s->never_used = s->count + 1;
  s->hint = 0;
  s->used = g_try_malloc0(MAX(bits_words(s->count), 1) * 8);
  if (!s->used)
    return fail(ENOMEM, "%s: no memory for %" PRIu64 " slots", st->path, s->count);
  for (uint64_t at = UNIT_MAP_OFFSET; ret == 0 && s->count;) {
    uint64_t stop, words[512];

    at = persist_seek(st->p, at, end, true) & ~UINT64_C(7);
    if (at >= end)
      break;
    stop = MIN(persist_seek(st->p, at, end, false), at + sizeof(words));
    ret = slotwalk_map_words(st->fd, st->path, (at - UNIT_MAP_OFFSET) / 8, (stop - at + 7) / 8, words);
    for (uint64_t i = 0; ret == 0 && i < (stop - at + 7) / 8; i++)
      if (words[i])
        ret = walk_unit(s, (at - UNIT_MAP_OFFSET) / 8 + i, words[i]);
    at = (stop + 7) & ~UINT64_C(7);
  }
  if (ret)
    g_clear_pointer(&s->used, g_free);
  return ret;
}

/* More slots: the file grows, then the mark rises, durably, before any of them is used. */
static int raise_mark(struct slots *s)
{
  struct store *st = s->store;
  uint64_t add = CLAMP(RAISE_BYTES >> st->geo.unit_shift, 1, RAISE_SLOTS_MIN + s->count / 4);
  uint64_t old_words = MAX(bits_words(s->count), 1);
  uint64_t count = s->count + add;
  struct superblock next;
  uint64_t *used;
  int ret;

  if (count > st->geo.slot_max)
    return fail(EFBIG, "%s: the format's limit of %" PRIu64 " slots is reached", st->path,
                st->geo.slot_max);
  ret = persist_grow(st->p, geometry_file_size(&st->geo, count));
  if (ret == -EFBIG && add > 1) {
    count = s->count + 1;
    ret = persist_grow(st->p, geometry_file_size(&st->geo, count));
  }
  if (ret == 0)
    ret = persist_fence(st->p);
  if (ret)
    return ret;

  used = g_try_realloc_n(s->used, bits_words(count), 8);
  if (!used)
    return fail(ENOMEM, "%s: no memory for %" PRIu64 " slots", st->path, count);
  memset(used + old_words, 0, (bits_words(count) - MIN(old_words, bits_words(count))) * 8);
  s->used = used;

  next = store_begin(st);
  next.slot_count = count;
  ret = store_end(st, &next, true);
  if (ret == 0)
    s->count = count;
  return ret;
}

static int allocate(struct slots *s, uint64_t *index, bool *never_used)
{
  uint64_t bit;
  int ret = 0;

  g_mutex_lock(&s->lock);
  if (!s->used)
    ret = walk_all(s);
  if (ret == 0) {
    bit = bits_find(s->used, s->hint, s->count, false);
    s->hint = bit;
    if (bit == s->count)
      ret = raise_mark(s);
  }
  if (ret == 0) {
    bits_set(s->used, bit, bit + 1);
    s->hint = bit + 1;
    *index = bit + 1;
    *never_used = *index >= s->never_used;
    if (*never_used)
      s->never_used = *index + 1;
  }
  g_mutex_unlock(&s->lock);
  return ret;
}

static void release(struct slots *s, uint64_t index)
{
  g_mutex_lock(&s->lock);
  if (s->used) {
    bits_clear(s->used, index - 1, index);
    s->hint = MIN(s->hint, index - 1);
  }
  g_mutex_unlock(&s->lock);
}

int slots_count_free(struct slots *s, uint64_t *count)
{
  int ret = 0;

  g_mutex_lock(&s->lock);
  if (!s->used)
    ret = walk_all(s);
  if (ret == 0)
    *count = s->count - bits_count(s->used, 0, s->count);
  g_mutex_unlock(&s->lock);
  return ret;
}

/* The bitmap reads as zeros afterwards. Parts of it that are holes stay holes. */
static int clear_bitmap(struct store *st, uint64_t index)
{
  static const uint8_t zeros[ZERO_BYTES];
  uint64_t at = geometry_bitmap(&st->geo, index);
  uint64_t end = at + st->geo.bitmap_bytes;
  int ret = 0;

  while (ret == 0 && (at = persist_seek(st->p, at, end, true)) < end) {
    uint64_t n = MIN(persist_seek(st->p, at, end, false) - at, ZERO_BYTES);

    ret = persist_copy(st->p, at, zeros, n);
    at += n;
  }
  return ret;
}

int slots_prepare(struct slots *s, uint64_t unit, uint32_t epoch, uint64_t previous, uint64_t *index)
{
  struct store *st = s->store;
  struct pcow_disk_slot header = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(unit),
    .epoch = le32_make(epoch),
    .previous = le64_make(previous ? SLOT_REF(previous) : 0),
  };
  bool never_used;
  int ret;

  ret = store_dirty(st);
  if (ret == 0)
    ret = allocate(s, index, &never_used);
  if (ret)
    return ret;
  header.crc = le32_make(slot_identity_crc(unit, epoch, *index));
  ret = persist_reserve(st->p, geometry_header(&st->geo, *index), sizeof(header));
  if (ret == 0)
    ret = persist_reserve(st->p, geometry_map_word(unit), 8);
  if (ret == 0 && !never_used)
    ret = persist_punch(st->p, geometry_data(&st->geo, *index), st->geo.unit_bytes);
  if (ret == 0)
    ret = clear_bitmap(st, *index);
  if (ret == 0)
    ret = persist_copy(st->p, geometry_header(&st->geo, *index), &header, sizeof(header));
  if (ret)
    release(s, *index);
  return ret;
}

int slots_link(struct slots *s, uint64_t unit, uint64_t index)
{
  return persist_store64(s->store->p, geometry_map_word(unit), SLOT_REF(index));
}

static uint64_t previous_word(const struct store *st, uint64_t index)
{
  return geometry_header(&st->geo, index) + offsetof(struct pcow_disk_slot, previous);
}

int slots_link_after(struct slots *s, uint64_t last, uint64_t index)
{
  return persist_store64(s->store->p, previous_word(s->store, last), SLOT_REF(index));
}

int slots_unlink(struct slots *s, const struct slot_info *slot, uint64_t newer)
{
  struct store *st = s->store;
  uint64_t word = newer ? previous_word(st, newer) : geometry_map_word(slot->unit);
  int ret;

  /* Ordering: 4.1 the word, 4.2 fence: the chain no longer reaches the slot; a crash from here on leaves
   * a free slot that holds blocks. 4.3 punch. It is punched again before it is linked again. */
  ret = store_dirty(st);
  if (ret == 0)
    ret = persist_store64(st->p, word, slot->previous ? SLOT_REF(slot->previous) : 0);
  if (ret == 0)
    ret = persist_fence(st->p);
  if (ret == 0)
    ret = persist_punch(st->p, geometry_data(&st->geo, slot->index), st->geo.unit_bytes);
  if (ret == 0)
    release(s, slot->index);
  return ret;
}

void slots_cancel(struct slots *s, uint64_t index)
{
  release(s, index);
}

int slots_relabel(struct slots *s, const struct slot_info *slot, uint32_t epoch)
{
  struct store *st = s->store;
  uint64_t owner = geometry_header(&st->geo, slot->index) + offsetof(struct pcow_disk_slot, epoch);
  int ret = store_dirty(st);

  return ret ? ret : persist_store64(st->p, owner, slot_owner_word(slot->unit, epoch, slot->index));
}

int slots_reserve_present(struct slots *s, uint64_t index, uint64_t first, uint64_t end)
{
  struct store *st = s->store;
  uint64_t bitmap = geometry_bitmap(&st->geo, index);

  if (first >= end)
    return 0;
  return persist_reserve(st->p, bitmap + first / 64 * 8, ((end - 1) / 64 - first / 64 + 1) * 8);
}

int slots_set_present(struct slots *s, uint64_t index, const uint64_t *bits, uint64_t first, uint64_t end)
{
  struct store *st = s->store;
  uint64_t bitmap = geometry_bitmap(&st->geo, index);
  int ret = store_dirty(st);

  if (ret == 0)
    ret = slots_reserve_present(s, index, first, end);
  if (ret || first >= end)
    return ret;
  for (uint64_t w = first / 64; ret == 0 && w <= (end - 1) / 64; w++) {
    uint64_t word = bits[w] & bits_word_mask(w, first, end);

    if (word)
      ret = persist_or64(st->p, bitmap + w * 8, word);
  }
  return ret;
}
