/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A damaged reference hides slots that are whole. Their headers name unit and epoch, and their own
 * references lead on: where the slots of the unit that nothing reaches form just one chain that may follow,
 * it is that one, and the reference is restored. Otherwise the chain ends where it is damaged. A slot that
 * is free has a header, too; it is of an epoch that does not exist any more, or there are two chains then.
 */
#include "checking.h"

#include "bits.h"
#include "error.h"

#include <string.h>
#include <unistd.h>

#define HEADERS_AT_ONCE 64u     /* 4 KiB */
#define ORPHANS_MAX 65536u      /* of one unit */

void check_cut_free(void *data)
{
  struct check_cut *cut = data;

  g_array_unref(cut->chain);
  if (cut->orphans)
    g_array_unref(cut->orphans);
  g_free(cut);
}

/* ---- Finding them ---- */

static void look_at_header(struct check *c, GHashTable *by_unit, GArray *strays,
                           const struct pcow_disk_slot *disk, uint64_t index)
{
  uint64_t unit = le64_get(disk->unit), word = le64_get(disk->previous);
  struct slot_info slot = { .index = index, .unit = unit, .epoch = le32_get(disk->epoch) };
  struct check_cut *cut = g_hash_table_lookup(by_unit, GSIZE_TO_POINTER(unit + 1));

  if (le32_get(disk->magic) != SLOT_MAGIC || unit >= UNITS_MAX || slotset_has(c->reached, index) ||
      le32_get(disk->crc) != slot_identity_crc(unit, slot.epoch, index) || !check_epoch_exists(c, slot.epoch))
    return;
  slot.previous = SLOT_REF_VALID(word) ? SLOT_REF_INDEX(word) : UINT64_MAX;
  if (strays->len < ORPHANS_MAX)
    g_array_append_val(strays, slot);
  if (!cut)
    return;
  if (!cut->orphans)
    cut->orphans = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  if (cut->orphans->len < ORPHANS_MAX)
    g_array_append_val(cut->orphans, slot);
}

/* The headers of all slots, where there are blocks. */
static int find_orphans(struct check *c, GHashTable *by_unit, GArray *strays)
{
  struct pcow_disk_slot headers[HEADERS_AT_ONCE];
  int r = 0;

  for (uint64_t index = 1; r == 0 && index <= c->slots;) {
    off_t data = lseek(c->fd, (off_t)geometry_header(&c->geo, index), SEEK_DATA);
    uint64_t group = geometry_group(&c->geo, index), n = SLOTS_PER_GROUP - (index - 1) % SLOTS_PER_GROUP;

    if (data < 0)
      break;
    if ((uint64_t)data >= group + c->geo.bitmaps) { /* no more headers in this group */
      group = ((uint64_t)data - SLOT_GROUPS_OFFSET) / c->geo.group_bytes;
      index = MAX(index + n, group * SLOTS_PER_GROUP + 1);
      continue;
    }
    index = MAX(index, index - (index - 1) % SLOTS_PER_GROUP + ((uint64_t)data - group) / sizeof headers[0]);
    n = MIN(SLOTS_PER_GROUP - (index - 1) % SLOTS_PER_GROUP, c->slots - index + 1);
    n = MIN(n, HEADERS_AT_ONCE);
    r = file_read(c->fd, c->path, geometry_header(&c->geo, index), headers, n * sizeof headers[0], true);
    for (uint64_t i = 0; r == 0 && i < n; i++)
      look_at_header(c, by_unit, strays, &headers[i], index + i);
    index += n;
  }
  return r;
}

/* ---- Taking them back ---- */

static void owners_of(const struct check *c, const GArray *chain, struct check_owners *owners)
{
  check_owners_init(owners);
  for (guint i = 0; i < chain->len; i++)
    check_owners_add(c, owners, g_array_index(chain, struct check_link, i).slot.epoch);
}

/* The first slot of the one chain that the orphans form, which may follow the cut's, or 0. */
static uint64_t restore(struct check *c, const struct check_cut *cut)
{
  g_autoptr(GHashTable) by_index = g_hash_table_new(NULL, NULL), hidden = NULL;
  struct check_owners owners;
  uint64_t first = 0;
  guint n = 0;

  if (!cut->orphans || cut->orphans->len == ORPHANS_MAX)
    return 0;
  hidden = g_hash_table_new(NULL, NULL);
  for (guint i = 0; i < cut->orphans->len; i++) {
    struct slot_info *slot = &g_array_index(cut->orphans, struct slot_info, i);

    g_hash_table_insert(by_index, GSIZE_TO_POINTER(slot->index), slot);
    g_hash_table_add(hidden, GSIZE_TO_POINTER(slot->previous));
  }
  for (guint i = 0; i < cut->orphans->len; i++) {
    uint64_t index = g_array_index(cut->orphans, struct slot_info, i).index;

    if (!g_hash_table_contains(hidden, GSIZE_TO_POINTER(index)))
      first = index;
  }
  /* All of them must follow from that one. */
  owners_of(c, cut->chain, &owners);
  for (uint64_t index = first; index; n++) {
    const struct slot_info *slot = g_hash_table_lookup(by_index, GSIZE_TO_POINTER(index));

    if (!slot || n == cut->orphans->len || check_order(c, &owners, slot->epoch)) {
      first = 0;
      break;
    }
    check_owners_add(c, &owners, slot->epoch);
    index = slot->previous;
  }
  check_owners_clear(&owners);
  return n == cut->orphans->len ? first : 0;
}

static int end_cut(struct check *c, const struct check_cut *cut)
{
  uint64_t first = restore(c, cut), want = first ? SLOT_REF(first) : 0;

  check_corrupt(c, cut->value == want || check_add_word(c, cut->word, want));
  if (!first)
    return check_loss(c, cut->unit, cut->chain, 0, 0, false, 0, NULL);
  for (guint i = 0; i < cut->orphans->len; i++)
    slotset_add(c->reached, g_array_index(cut->orphans, struct slot_info, i).index);
  c->result.slots += cut->orphans->len;
  check_say(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " and those behind it, %u in all, are what follows"
            " there", c->path, cut->unit, first, cut->orphans->len);
  if (cut->erased && !slotset_has(c->reached, cut->erased))
    return check_loss(c, cut->unit, cut->chain, cut->erased, 0, false, 0, cut->orphans);
  return 0;
}

/* Of a deleted epoch it is what collection has left, and no leak. */
static int check_stray(struct check *c, const struct slot_info *slot, uint64_t *bits)
{
  const struct epoch *e = epochs_get(c->epochs, slot->epoch);
  uint64_t owner = geometry_header(&c->geo, slot->index) + offsetof(struct pcow_disk_slot, epoch);
  int r;

  if (slotset_has(c->reached, slot->index))
    return 0;
  r = check_read_bitmap(c, slot->index, bits);
  if (r || bits_find(bits, 0, c->geo.unit_pages, true) == c->geo.unit_pages)
    return r;
  if (!e || e->state != EPOCH_DELETED) {
    c->result.leaks++;
    slotset_add(c->garbage, slot->index);
    check_say(c, "%s: slot %" PRIu64 " is in no chain, but its header says that it has pages of unit %" PRIu64
              " for %s%s%s", c->path, slot->index, slot->unit, e ? "snapshot '" : "the head",
              e ? e->name : "", e ? "'" : "");
  }
  /* Not while it may still be needed to tell what something else was. */
  if (c->result.corruptions == c->result.repairable)
    check_add_owner(c, owner);
  return 0;
}

int check_orphans(struct check *c)
{
  g_autoptr(GHashTable) by_unit = g_hash_table_new(NULL, NULL);
  g_autoptr(GArray) strays = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t *bits = g_try_malloc(c->geo.bitmap_bytes);
  int r = 0;

  if (!bits)
    return fail(ENOMEM, "%s: no memory for the bitmap of a unit", c->path);
  for (guint i = 0; i < c->cuts->len; i++) {
    struct check_cut *cut = g_ptr_array_index(c->cuts, i);

    g_hash_table_insert(by_unit, GSIZE_TO_POINTER(cut->unit + 1), cut);
  }
  r = find_orphans(c, by_unit, strays);
  for (guint i = 0; r == 0 && i < c->cuts->len; i++)
    r = end_cut(c, g_ptr_array_index(c->cuts, i));
  for (guint i = 0; r == 0 && i < strays->len; i++)
    r = check_stray(c, &g_array_index(strays, struct slot_info, i), bits);
  g_free(bits);
  return r;
}
