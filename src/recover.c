/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Gives back what an unclean end has left: slots that were being made or freed, pages that were written or
 * reserved and did not become present, what a shrink has cut off. Nobody sees any of it, so that each step may be
 * the last. A slot that no chain reaches and that has pages of a living epoch stays: it may be the only trace
 * of a map word that was lost, and a check calls it a leak.
 */
#include "recover.h"

#include "bits.h"
#include "image.h"

#include <string.h>
#include <sys/stat.h>

#define HEADERS_AT_ONCE 64u     /* 4 KiB; divides the slots of a group */

struct recovery {
  struct pcow_image *image;
  struct store *store;
  const struct slotset *used;   /* slot i as i - 1 */
  struct slotset *kept;         /* the same: free slots that are left alone */
  bool pages_are_blocks;        /* the file system gives blocks page by page */
};

/* ---- Slots that have moved down ---- */

int recover_was_copied(int fd, const char *path, const struct superblock *sb, const struct epochs *epochs,
                       const struct slot_info *slot, const uint64_t *bits, bool *copied)
{
  struct geometry geo = geometry_make(sb->unit_shift);
  const struct epoch *e = epochs_get(epochs, slot->epoch), *parent;
  g_autoptr(GArray) chain = NULL;
  g_autofree uint64_t *below = NULL;
  uint64_t newest, index = 0;
  int ret;

  *copied = false;
  parent = epochs_get(epochs, e ? e->parent : sb->head_parent);
  if (!parent || parent->state != EPOCH_DELETED || epochs_children(epochs, sb, parent->id) != 1)
    return 0;
  /* A chain that is damaged tells nothing. */
  chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  if (slotwalk_map(fd, path, sb, slot->unit, &newest) ||
      slotwalk_chain(fd, path, sb, slot->unit, newest, chain))
    return 0;
  for (guint i = 0; i < chain->len; i++) {
    const struct slot_info *other = &g_array_index(chain, struct slot_info, i);

    if (other->epoch == slot->epoch)
      return 0;
    if (other->epoch == parent->id)
      index = other->index;
  }
  if (!index)
    return 0;
  below = slotwalk_bitmap_new(fd, path, &geo, index, 0, geo.unit_pages, &ret);
  if (!below)
    return ret;
  *copied = true;
  for (uint64_t w = 0; *copied && w < bits_words(geo.unit_pages); w++)
    *copied = !(bits[w] & ~below[w]);
  return 0;
}

/* ---- Slots in use ---- */

/* Blocks at pages that are not present, or lie beyond what the owner has. */
static int give_back_pages(struct recovery *r, const struct slot_info *slot)
{
  struct store *st = r->store;
  const struct geometry *g = &st->geo;
  const struct epoch *e = epochs_get(st->epochs, slot->epoch);
  uint64_t data = geometry_data(g, slot->index), start = slot->unit << g->unit_shift, size;
  g_autofree uint64_t *bits = NULL;
  int ret;

  if (!e && slot->epoch != st->sb.head_epoch)
    return 0;                   /* it is collected as a whole */
  if (persist_seek(st->p, data, data + g->unit_bytes, true) == data + g->unit_bytes)
    return 0;
  bits = slotwalk_bitmap_new(st->fd, st->path, g, slot->index, 0, g->unit_pages, &ret);
  if (!bits)
    return ret;
  size = !e ? st->sb.virtual_size : e->state == EPOCH_DELETED ? UINT64_MAX : e->virtual_size;
  size = MIN(size - MIN(size, start), g->unit_bytes);
  bits_clear(bits, size >> PAGE_SHIFT, g->unit_pages);
  for (uint64_t at = 0; ret == 0 && (at = bits_find(bits, at, g->unit_pages, false)) < g->unit_pages;) {
    uint64_t to = bits_find(bits, at, g->unit_pages, true), end = data + to * PAGE_BYTES;
    uint64_t from = persist_seek(st->p, data + at * PAGE_BYTES, end, true) & ~(uint64_t)(PAGE_BYTES - 1);

    if (from < end)
      ret = store_dirty(st);
    if (ret == 0 && from < end)
      ret = persist_punch(st->p, from, end - from);
    at = to;
  }
  return ret;
}

/* ---- Slots that are free ---- */

/* Its header is whole, and names an epoch that exists. */
static int look_at_stray(struct recovery *r, const struct slot_info *slot)
{
  struct store *st = r->store;
  const struct epoch *e = epochs_get(st->epochs, slot->epoch);
  g_autofree uint64_t *bits = NULL;
  bool copied;
  int ret;

  if (e && e->state == EPOCH_DELETED)
    return 0;
  bits = slotwalk_bitmap_new(st->fd, st->path, &st->geo, slot->index, 0, st->geo.unit_pages, &ret);
  if (!bits || bits_find(bits, 0, st->geo.unit_pages, true) == st->geo.unit_pages)
    return ret;
  ret = recover_was_copied(st->fd, st->path, &st->sb, st->epochs, slot, bits, &copied);
  if (ret == 0 && copied)
    ret = slots_empty(r->image->slots, slot->index);
  else
    slotset_add(r->kept, slot->index - 1);
  return ret;
}

static int look_at_header(struct recovery *r, const struct pcow_disk_slot *disk, uint64_t index)
{
  struct store *st = r->store;
  struct slot_info slot = { .index = index, .unit = le64_get(disk->unit), .epoch = le32_get(disk->epoch) };

  if (slotset_has(r->used, index - 1))
    return r->pages_are_blocks ? give_back_pages(r, &slot) : 0;
  if (le32_get(disk->magic) != SLOT_MAGIC || slot.unit >= UNITS_MAX ||
      le32_get(disk->crc) != slot_identity_crc(slot.unit, slot.epoch, index))
    return 0;
  if (slot.epoch != st->sb.head_epoch && !epochs_get(st->epochs, slot.epoch))
    return 0;
  return look_at_stray(r, &slot);
}

/* Headers, from data to data. */
static int look_at_headers(struct recovery *r)
{
  struct store *st = r->store;
  const struct geometry *g = &st->geo;
  struct pcow_disk_slot headers[HEADERS_AT_ONCE];
  uint64_t at = SLOT_GROUPS_OFFSET, end = geometry_file_size(g, st->sb.slot_count);
  int ret = 0;

  while (ret == 0 && (at = persist_seek(st->p, at, end, true)) < end) {
    uint64_t group = (at - SLOT_GROUPS_OFFSET) / g->group_bytes;
    uint64_t within = (at - SLOT_GROUPS_OFFSET) % g->group_bytes & ~(uint64_t)(sizeof(headers) - 1);
    uint64_t first = group * SLOTS_PER_GROUP + within / sizeof(headers[0]) + 1;

    at = SLOT_GROUPS_OFFSET + group * g->group_bytes + within;
    if (within >= g->bitmaps) {
      at = SLOT_GROUPS_OFFSET + (group + 1) * g->group_bytes;
      continue;
    }
    ret = file_read(st->fd, st->path, at, headers, sizeof(headers), true);
    for (unsigned i = 0; ret == 0 && i < HEADERS_AT_ONCE && first + i <= st->sb.slot_count; i++)
      ret = look_at_header(r, &headers[i], first + i);
    at += sizeof(headers);
  }
  return ret;
}

/* Data areas that nobody uses, from data to data. */
static int give_back_slots(struct recovery *r)
{
  struct store *st = r->store;
  const struct geometry *g = &st->geo;
  uint64_t at = SLOT_GROUPS_OFFSET, end = geometry_file_size(g, st->sb.slot_count), count = st->sb.slot_count;
  int ret = 0;

  while (ret == 0 && (at = persist_seek(st->p, at, end, true)) < end) {
    uint64_t start = at - (at - SLOT_GROUPS_OFFSET) % g->group_bytes, bit;

    if (at < start + g->data) {
      at = start + g->data;
      continue;
    }
    bit = (start - SLOT_GROUPS_OFFSET) / g->group_bytes * SLOTS_PER_GROUP;
    bit += (at - start - g->data) >> g->unit_shift;
    if (slotset_has(r->used, bit)) {
      bit = slotset_find(r->used, bit, count, false);
      if (bit == count)
        break;
      at = MAX(at, geometry_data(g, bit + 1));
    }
    if (slotset_has(r->kept, bit)) {
      at = geometry_data(g, bit + 1) + g->unit_bytes;
      continue;
    }
    at = persist_seek(st->p, at, geometry_data(g, bit + 1) + g->unit_bytes, true);
    if (at < geometry_data(g, bit + 1) + g->unit_bytes)
      ret = slots_empty(r->image->slots, bit + 1);
    at = geometry_data(g, bit + 1) + g->unit_bytes;
  }
  return ret;
}

int recover_run(struct pcow_image *image)
{
  struct store *st = image->store;
  struct recovery r = { .image = image, .store = st };
  struct stat status;
  int ret;

  if (!st->sb.slot_count)
    return 0;
  if (fstat(st->fd, &status) < 0)
    return fail_errno(errno, "%s: cannot get the status", st->path);
  r.pages_are_blocks = status.st_blksize <= (blksize_t)PAGE_BYTES;
  r.kept = slotset_new();
  /* Ordering: rule 5 has made durable what is gone by here, rule 6 comes before the first change. Each change
   * is of what nobody sees; the last fence of the session, before it is closed as clean, is enough. */
  ret = slots_get_used(image->slots, &r.used);
  if (ret == 0)
    ret = look_at_headers(&r);
  if (ret == 0)
    ret = give_back_slots(&r);
  slotset_free(r.kept);
  if (ret) {
    image->unrecovered = true;
    log_message(PCOW_LOG_WARNING, "what the last session has left is given back later: %s", error_message());
    ret = store_check(st);
  }
  return ret;
}
