/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A slot is free when no chain reaches it; which ones are is found by walking all chains once, at the
 * first allocation of a session. Slots above the high-water mark that this session raised were never
 * used and need no punching; all others may hold old bytes and are punched before they are linked. The
 * same walk notes which epoch has slots in which units, so that collection visits these alone.
 *
 * Small units come in groups of up to 128 MiB, and an epoch's slots of one group from one aligned
 * block, in the order of the units: neighbours in the range are neighbours in the file, and a mapping
 * of all of them is one VMA, in whatever order they were written.
 */
#include "slots.h"

#include "bits.h"
#include "error.h"
#include "order.h"
#include "slotset.h"

#include <string.h>

#define RAISE_BYTES (UINT64_C(64) << 30)  /* address space that one commit of the mark adds, about */
#define RAISE_SLOTS_MIN 64u
#define ZERO_BYTES 65536u
#define GROUP_BYTES (UINT64_C(128) << 20)
#define GROUP_UNITS_MAX 2048u   /* divides SLOTS_PER_GROUP: the data areas of a block are linear */
#define SPREAD 4u               /* slots beyond which blocks are no longer made, in units of the image */
#define NEIGHBOURS 64u          /* looked at to find a group's block again */

static_assert(SLOTS_PER_GROUP % GROUP_UNITS_MAX == 0, "blocks are linear");

struct slots {
  struct store *store;
  GMutex lock;
  struct slotset *used;         /* i: slot i + 1 is reached or handed out; NULL: not walked yet */
  struct slotset *touched;      /* i: slot i + 1, above OLD_COUNT, was handed out once */
  uint64_t old_count;           /* slots that earlier sessions may have used */
  uint64_t count;               /* the high-water mark */
  uint64_t hint;                /* no free bit lies below */
  GHashTable *units;            /* epoch → GArray of units in which it may have a slot */
  uint64_t group_units;         /* a power of two; 1: no groups */
  uint32_t epoch;               /* whose blocks these are: */
  GHashTable *blocks;           /* group + 1 → first bit of its block + 1 */
  GHashTable *taken;            /* set of these first bits + 1 */
};

static void free_units(gpointer units)
{
  g_array_unref(units);
}

struct slots *slots_new(struct store *store)
{
  struct slots *s = g_new0(struct slots, 1);

  g_mutex_init(&s->lock);
  s->store = store;
  s->blocks = g_hash_table_new(g_direct_hash, g_direct_equal);
  s->taken = g_hash_table_new(g_direct_hash, g_direct_equal);
  s->units = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, free_units);
  return s;
}

void slots_free(struct slots *s)
{
  if (!s)
    return;
  g_mutex_clear(&s->lock);
  g_hash_table_unref(s->units);
  g_hash_table_unref(s->taken);
  g_hash_table_unref(s->blocks);
  slotset_free(s->touched);
  slotset_free(s->used);
  g_free(s);
}

/* The lock is held. */
static void note_unit(struct slots *s, uint32_t epoch, uint64_t unit)
{
  GArray *units = g_hash_table_lookup(s->units, GUINT_TO_POINTER(epoch));

  if (!units) {
    units = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_hash_table_insert(s->units, GUINT_TO_POINTER(epoch), units);
  }
  g_array_append_val(units, unit);
}

static int walk_unit(struct slots *s, uint64_t unit, uint64_t word, struct slot_window *window, GArray *chain)
{
  struct store *st = s->store;
  uint64_t index;
  int ret = slotwalk_reference(st->path, &st->sb, unit, word, &index);

  g_array_set_size(chain, 0);
  if (ret == 0)
    ret = slotwalk_chain_window(st->fd, st->path, &st->sb, unit, index, window, chain);
  for (unsigned i = 0; ret == 0 && i < chain->len; i++) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i);
    uint64_t bit = slot->index - 1;

    if (!slotset_add(s->used, bit))
      return fail(EUCLEAN, "%s: slot %" PRIu64 " is reached by two units", st->path, bit + 1);
    note_unit(s, slot->epoch, unit);
  }
  return ret;
}

static uint64_t group_units(const struct store *st)
{
  uint64_t units = geometry_units(&st->geo, st->sb.virtual_size);
  uint64_t most = CLAMP(GROUP_BYTES >> st->geo.unit_shift, 1, GROUP_UNITS_MAX);
  uint64_t n = 1;

  while (n < most && n < units)
    n *= 2;
  return n;
}

/* Finds out which slots are reached. The lock is held. */
static int walk_all(struct slots *s)
{
  struct store *st = s->store;
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  g_autofree struct slot_window *window = g_new0(struct slot_window, 1);
  uint64_t end = UNIT_MAP_OFFSET + UNITS_MAX * 8;
  int ret = 0;

  s->count = s->old_count = st->sb.slot_count;
  s->hint = 0;
  s->group_units = group_units(st);
  s->used = slotset_new();
  s->touched = slotset_new();
  for (uint64_t at = UNIT_MAP_OFFSET; ret == 0 && s->count;) {
    uint64_t stop, words[512];

    at = persist_seek(st->p, at, end, true) & ~UINT64_C(7);
    if (at >= end)
      break;
    stop = MIN(persist_seek(st->p, at, end, false), at + sizeof(words));
    ret = slotwalk_map_words(st->fd, st->path, (at - UNIT_MAP_OFFSET) / 8, (stop - at + 7) / 8, words);
    for (uint64_t i = 0; ret == 0 && i < (stop - at + 7) / 8; i++)
      if (words[i])
        ret = walk_unit(s, (at - UNIT_MAP_OFFSET) / 8 + i, words[i], window, chain);
    at = (stop + 7) & ~UINT64_C(7);
  }
  if (ret) {
    g_clear_pointer(&s->used, slotset_free);
    g_clear_pointer(&s->touched, slotset_free);
    g_hash_table_remove_all(s->units);
  }
  return ret;
}

/* More slots: the file grows, then the mark rises, durably, before any of them is used. */
static int raise_mark(struct slots *s)
{
  struct store *st = s->store;
  uint64_t add = CLAMP(RAISE_BYTES >> st->geo.unit_shift, 1, MAX(RAISE_SLOTS_MIN, s->group_units) + s->count / 4);
  uint64_t count = s->count + add;
  struct superblock next;
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
    ret = ORDERED("2.0 fence", persist_fence(st->p));
  if (ret)
    return ret;

  next = store_begin(st);
  next.slot_count = count;
  ret = store_end(st, &next, ORDERED("2.0", true));
  if (ret == 0)
    s->count = count;
  return ret;
}

/* A slot of a neighbour that this epoch has tells where the group's block is. */
static bool find_again(struct slots *s, uint64_t first, uint32_t epoch, uint64_t *block)
{
  struct store *st = s->store;
  g_autofree uint64_t *words = g_new(uint64_t, s->group_units);
  uint64_t n = MIN(s->group_units, UNITS_MAX - first);
  unsigned looked = 0;

  if (slotwalk_map_words(st->fd, st->path, first, n, words))
    return false;
  for (uint64_t i = 0; i < n && looked < NEIGHBOURS; i++) {
    struct slot_info slot;

    if (!words[i])
      continue;
    looked++;
    if (!SLOT_REF_VALID(words[i]) || SLOT_REF_INDEX(words[i]) > s->count ||
        slotwalk_header(st->fd, st->path, &st->sb, first + i, SLOT_REF_INDEX(words[i]), &slot))
      continue;
    if (slot.epoch == epoch && slot.index - 1 >= i && (slot.index - 1 - i) % s->group_units == 0) {
      *block = slot.index - 1 - i;
      return *block + s->group_units <= s->count;
    }
  }
  return false;
}

static bool is_free_block(const struct slots *s, uint64_t block)
{
  uint64_t end = block + s->group_units;

  return end <= s->count && slotset_find(s->used, block, end, true) == end &&
         !g_hash_table_contains(s->taken, GSIZE_TO_POINTER(block + 1));
}

/* A block in which no slot is used; the mark is raised for it while that does not spread the file too
 * far. */
static bool new_block(struct slots *s, uint64_t *block)
{
  uint64_t n = s->group_units;
  uint64_t most = SPREAD * geometry_units(&s->store->geo, s->store->sb.virtual_size) + 2 * n;

  for (*block = s->hint / n * n; *block + n <= s->count; *block += n)
    if (is_free_block(s, *block))
      return true;
  while (*block + n > s->count)
    if (s->count >= most || raise_mark(s))
      return false;
  return is_free_block(s, *block);
}

static bool group_block(struct slots *s, uint64_t unit, uint32_t epoch, uint64_t *block)
{
  gpointer group = GSIZE_TO_POINTER(unit / s->group_units + 1);
  gpointer known;

  if (s->epoch != epoch) {
    g_hash_table_remove_all(s->blocks);
    g_hash_table_remove_all(s->taken);
    s->epoch = epoch;
  }
  known = g_hash_table_lookup(s->blocks, group);
  if (known) {
    *block = GPOINTER_TO_SIZE(known) - 1;
    return true;
  }
  if (!find_again(s, unit / s->group_units * s->group_units, epoch, block) && !new_block(s, block))
    return false;
  g_hash_table_insert(s->blocks, group, GSIZE_TO_POINTER(*block + 1));
  g_hash_table_add(s->taken, GSIZE_TO_POINTER(*block + 1));
  return true;
}

/* The free bit that suits the unit best. */
static int choose(struct slots *s, uint64_t unit, uint32_t epoch, uint64_t *bit)
{
  uint64_t n = s->group_units, block;
  int ret = 0;

  if (n > 1 && group_block(s, unit, epoch, &block) && !slotset_has(s->used, block + unit % n)) {
    *bit = block + unit % n;
    return 0;
  }
  /* At least the same place in some other block. */
  for (block = 0; n > 1 && block + n <= s->count; block += n)
    if (!slotset_has(s->used, block + unit % n)) {
      *bit = block + unit % n;
      return 0;
    }
  *bit = slotset_find(s->used, s->hint, s->count, false);
  s->hint = *bit;
  if (*bit == s->count)
    ret = raise_mark(s);
  return ret;
}

static int allocate(struct slots *s, uint64_t unit, uint32_t epoch, uint64_t *index, bool *never_used)
{
  uint64_t bit;
  int ret = 0;

  g_mutex_lock(&s->lock);
  if (!s->used)
    ret = walk_all(s);
  if (ret == 0)
    ret = choose(s, unit, epoch, &bit);
  if (ret == 0) {
    *index = bit + 1;
    *never_used = bit >= s->old_count && slotset_add(s->touched, bit);
    slotset_add(s->used, bit);
    note_unit(s, epoch, unit);
  }
  g_mutex_unlock(&s->lock);
  return ret;
}

static void release(struct slots *s, uint64_t index)
{
  g_mutex_lock(&s->lock);
  if (s->used) {
    slotset_remove(s->used, index - 1);
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
    *count = s->count - slotset_count(s->used);
  g_mutex_unlock(&s->lock);
  return ret;
}

static gint compare_units(gconstpointer a, gconstpointer b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

GArray *slots_take_units(struct slots *s, uint32_t epoch, int *error)
{
  GArray *units = NULL;
  gpointer taken;
  unsigned kept = 0;

  g_mutex_lock(&s->lock);
  *error = s->used ? 0 : walk_all(s);
  if (*error == 0)
    units = g_hash_table_steal_extended(s->units, GUINT_TO_POINTER(epoch), NULL, &taken)
              ? taken : g_array_new(FALSE, FALSE, sizeof(uint64_t));
  g_mutex_unlock(&s->lock);
  if (!units)
    return NULL;
  g_array_sort(units, compare_units);
  for (unsigned i = 0; i < units->len; i++)
    if (!kept || g_array_index(units, uint64_t, kept - 1) != g_array_index(units, uint64_t, i))
      g_array_index(units, uint64_t, kept++) = g_array_index(units, uint64_t, i);
  g_array_set_size(units, kept);
  return units;
}

void slots_note_unit(struct slots *s, uint32_t epoch, uint64_t unit)
{
  g_mutex_lock(&s->lock);
  if (s->used)
    note_unit(s, epoch, unit);
  g_mutex_unlock(&s->lock);
}

int slots_find_epoch(struct slots *s, slots_epoch_fn wanted, const void *opaque, uint32_t *epoch)
{
  GHashTableIter iter;
  gpointer key;
  int ret;

  *epoch = 0;
  g_mutex_lock(&s->lock);
  ret = s->used ? 0 : walk_all(s);
  g_hash_table_iter_init(&iter, s->units);
  while (ret == 0 && !*epoch && g_hash_table_iter_next(&iter, &key, NULL))
    if (wanted(GPOINTER_TO_UINT(key), opaque))
      *epoch = GPOINTER_TO_UINT(key);
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
  uint64_t slot;
  bool never_used;
  int ret;

  ret = store_dirty(st);
  if (ret == 0)
    ret = allocate(s, unit, epoch, &slot, &never_used);
  if (ret)
    return ret;
  header.crc = le32_make(slot_identity_crc(unit, epoch, slot));
  ret = persist_reserve(st->p, geometry_header(&st->geo, slot), sizeof(header));
  if (ret == 0)
    ret = persist_reserve(st->p, geometry_map_word(unit), 8);
  if (ret == 0 && !never_used)
    ret = ORDERED("2.1", persist_punch(st->p, geometry_data(&st->geo, slot), st->geo.unit_bytes));
  if (ret == 0)
    ret = ORDERED("bitmap 2.1", clear_bitmap(st, slot));
  if (ret == 0)
    ret = persist_copy(st->p, geometry_header(&st->geo, slot), &header, sizeof(header));
  if (ret)
    release(s, slot);
  else
    *index = slot;
  return ret;
}

/* Asking for space, which is there, finds out that the file is not any more: not by a SIGBUS. */
static int store_word(struct slots *s, uint64_t offset, uint64_t value)
{
  int ret = persist_reserve(s->store->p, offset, 8);

  return ret ? ret : persist_store64(s->store->p, offset, value);
}

int slots_link(struct slots *s, uint64_t unit, uint64_t index)
{
  return store_word(s, geometry_map_word(unit), SLOT_REF(index));
}

static uint64_t previous_word(const struct store *st, uint64_t index)
{
  return geometry_header(&st->geo, index) + offsetof(struct pcow_disk_slot, previous);
}

int slots_link_after(struct slots *s, uint64_t last, uint64_t index)
{
  return store_word(s, previous_word(s->store, last), SLOT_REF(index));
}

/* A free slot's header names nobody, or a check would take it for one that a chain has lost. */
static int disown(struct slots *s, uint64_t index)
{
  struct store *st = s->store;

  return store_word(s, geometry_header(&st->geo, index) + offsetof(struct pcow_disk_slot, epoch), 0);
}

int slots_unlink(struct slots *s, const struct slot_info *slot, uint64_t newer)
{
  struct store *st = s->store;
  uint64_t word = newer ? previous_word(st, newer) : geometry_map_word(slot->unit);
  int ret;

  /* Ordering: 4.1 the word, 4.2 fence: the chain no longer reaches the slot; a crash from here on leaves
   * a free slot that holds blocks. 4.3 punch, and no owner. It is punched again before it is linked
   * again. (Small bitmaps share their pages with others, and so do headers.) */
  ret = store_dirty(st);
  if (ret == 0)
    ret = store_word(s, word, slot->previous ? SLOT_REF(slot->previous) : 0);
  if (ret == 0)
    ret = ORDERED("4.2", persist_fence(st->p));
  if (ret == 0)
    ret = persist_punch(st->p, geometry_data(&st->geo, slot->index), st->geo.unit_bytes);
  if (ret == 0 && st->geo.bitmap_bytes % PAGE_BYTES == 0)
    ret = persist_punch(st->p, geometry_bitmap(&st->geo, slot->index), st->geo.bitmap_bytes);
  if (ret == 0)
    ret = disown(s, slot->index);
  if (ret == 0)
    release(s, slot->index);
  return ret;
}

void slots_cancel(struct slots *s, uint64_t index)
{
  if (!__atomic_load_n(&s->store->poisoned, __ATOMIC_RELAXED))
    disown(s, index); /* if it cannot be, a check will call it a leak */
  release(s, index);
}

int slots_relabel(struct slots *s, const struct slot_info *slot, uint32_t epoch)
{
  struct store *st = s->store;
  uint64_t owner = geometry_header(&st->geo, slot->index) + offsetof(struct pcow_disk_slot, epoch);
  int ret = store_dirty(st);

  if (ret == 0)
    ret = store_word(s, owner, slot_owner_word(slot->unit, epoch, slot->index));
  if (ret == 0)
    slots_note_unit(s, epoch, slot->unit);
  return ret;
}

int slots_reserve_present(struct slots *s, uint64_t index, uint64_t first, uint64_t end)
{
  struct store *st = s->store;
  uint64_t bitmap = geometry_bitmap(&st->geo, index);

  if (first >= end)
    return 0;
  return persist_reserve_ahead(st->p, bitmap + first / 64 * 8, ((end - 1) / 64 - first / 64 + 1) * 8);
}

int slots_set_present(struct slots *s, uint64_t index, const uint64_t *bits, uint64_t first, uint64_t end)
{
  struct store *st = s->store;
  uint64_t bitmap = geometry_bitmap(&st->geo, index);
  int ret = store_dirty(st);

  if (ret || first >= end)
    return ret;
  /* As in store_word(). */
  ret = persist_reserve(st->p, bitmap + first / 64 * 8, ((end - 1) / 64 - first / 64 + 1) * 8);
  for (uint64_t w = first / 64; ret == 0 && w <= (end - 1) / 64; w++) {
    uint64_t word = bits[w] & bits_word_mask(w, first, end);

    if (word)
      ret = persist_or64(st->p, bitmap + w * 8, word);
  }
  return ret;
}
