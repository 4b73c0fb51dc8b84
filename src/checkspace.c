/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bitmaps within their bounds, and blocks that nobody sees: in slots that no chain reaches, under pages
 * that are not present or that lie above every view, and between and behind the slots. Goes through the
 * file from data to data, once and in order: on tmpfs the end of data is found page by page, so that
 * asking for it again and again from within would cost by the square.
 */
#include "checking.h"

#include "bits.h"
#include "error.h"

#include <string.h>
#include <unistd.h>

#define PROGRESS_SLOTS 1024u

struct space {
  struct check *c;
  uint64_t *bits;               /* of slot LOADED: the pages whose blocks are seen */
  uint64_t loaded;
  uint64_t slot, leaked;        /* bytes found in SLOT that are not seen */
  uint64_t told;                /* slots, for progress */
};

/* The next run of data in [from, end). */
static bool next_data(const struct check *c, uint64_t from, uint64_t end, uint64_t *first, uint64_t *stop)
{
  off_t data = from < end ? lseek(c->fd, (off_t)from, SEEK_DATA) : -1, hole;

  if (data < 0 || (uint64_t)data >= end)
    return false;
  hole = lseek(c->fd, data, SEEK_HOLE);
  *first = MAX((uint64_t)data, from);
  *stop = hole < 0 ? end : MIN((uint64_t)hole, end);
  return *first < *stop;
}

/* ---- Bitmaps ---- */

static int check_bitmap(struct space *s, uint64_t index)
{
  struct check *c = s->c;
  int r = check_read_bitmap(c, index, s->bits);

  if (r)
    return r;
  c->result.pages += bits_count(s->bits, 0, c->geo.unit_pages);
  if (c->geo.unit_pages < 64 && s->bits[0] >> c->geo.unit_pages) {
    bits_clear(s->bits, c->geo.unit_pages, 64);
    check_corrupt(c, check_add_word(c, geometry_bitmap(&c->geo, index), s->bits[0]));
    check_say(c, "%s: slot %" PRIu64 ": bits beyond the pages of a unit are set in its bitmap", c->path,
              index);
  }
  return 0;
}

/* ---- Blocks in slots ---- */

static void end_slot(struct space *s)
{
  struct check *c = s->c;
  bool reached = slotset_has(c->reached, s->slot);

  if (s->leaked) {
    /* What belongs to no epoch, or to no chain, may have been counted before. */
    c->result.leaks += !slotset_has(c->garbage, s->slot);
    c->result.leaked_size += s->leaked;
    check_say(c, reached ? "%s: slot %" PRIu64 ": %" PRIu64 " bytes lie at pages that nobody sees"
                         : "%s: slot %" PRIu64 " is not in use, but holds %" PRIu64 " bytes",
              c->path, s->slot, s->leaked);
  }
  s->leaked = 0;
}

/* Bits of pages whose blocks are seen: present, and below what the owner's views reach. */
static int load_seen(struct space *s, uint64_t index)
{
  struct check *c = s->c;
  const struct check_node *node;
  struct pcow_disk_slot disk;
  uint64_t unit, limit;
  int r = check_read_bitmap(c, index, s->bits);

  s->loaded = index;
  if (r == 0)
    r = file_read(c->fd, c->path, geometry_header(&c->geo, index), &disk, sizeof disk, true);
  if (r)
    return r;
  unit = le64_get(disk.unit);
  node = g_hash_table_lookup(c->nodes, GUINT_TO_POINTER(le32_get(disk.epoch)));
  /* A header that is to be mended: everything counts as seen. */
  if (!node || unit >= UNITS_MAX || le32_get(disk.magic) != SLOT_MAGIC ||
      le32_get(disk.crc) != slot_identity_crc(unit, le32_get(disk.epoch), index)) {
    bits_set(s->bits, 0, c->geo.unit_pages);
    return 0;
  }
  limit = node->limit - MIN(node->limit, unit << c->geo.unit_shift);
  limit = MIN(limit, c->geo.unit_bytes);
  bits_clear(s->bits, (limit + PAGE_BYTES - 1) >> PAGE_SHIFT, c->geo.unit_pages);
  return 0;
}

/* Data at [from, to) of one slot. */
static int data_in_slot(struct space *s, uint64_t index, uint64_t from, uint64_t to)
{
  struct check *c = s->c;
  uint64_t start = geometry_data(&c->geo, index);
  uint64_t page = (from - start) >> PAGE_SHIFT, end = (to - start + PAGE_BYTES - 1) >> PAGE_SHIFT;
  int r = 0;

  if (s->slot != index) {
    end_slot(s);
    s->slot = index;
    if (++s->told % PROGRESS_SLOTS == 0)
      r = check_progress(c, c->slots + index);
  }
  if (r)
    return r;
  if (!slotset_has(c->reached, index)) {
    s->leaked += to - from;
    check_add_hole(c, start + page * PAGE_BYTES, (end - page) * PAGE_BYTES);
    return 0;
  }
  if (!c->pages_are_blocks)
    return 0;
  if (s->loaded != index)
    r = load_seen(s, index);
  while (r == 0 && (page = bits_find(s->bits, page, end, false)) < end) {
    uint64_t stop = bits_find(s->bits, page, end, true);

    s->leaked += (stop - page) * PAGE_BYTES;
    check_add_hole(c, start + page * PAGE_BYTES, (stop - page) * PAGE_BYTES);
    page = stop;
  }
  return r;
}

static int data_areas(struct space *s, uint64_t first, uint64_t last)
{
  struct check *c = s->c;
  uint64_t start = geometry_data(&c->geo, first), end = geometry_data(&c->geo, last) + c->geo.unit_bytes;
  uint64_t from, to, at = start;
  int r = 0;

  s->loaded = 0;
  for (; r == 0 && next_data(c, at, end, &from, &to); at = to)
    while (r == 0 && from < to) {
      uint64_t n = (from - start) >> c->geo.unit_shift;
      uint64_t stop = MIN(to, start + ((n + 1) << c->geo.unit_shift));

      r = data_in_slot(s, first + n, from, stop);
      from = stop;
    }
  end_slot(s);
  s->slot = 0;
  return r;
}

/* ---- Blocks elsewhere ---- */

static void unused(struct space *s, uint64_t from, uint64_t end)
{
  struct check *c = s->c;
  uint64_t first, stop, bytes = 0;

  from = (from + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  for (uint64_t at = from; next_data(c, at, end, &first, &stop); at = stop) {
    bytes += stop - first;
    check_add_hole(c, first, (stop - first + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1));
  }
  if (!bytes)
    return;
  c->result.leaks++;
  c->result.leaked_size += bytes;
  check_say(c, "%s: bytes %" PRIu64 "-%" PRIu64 " belong to nothing, but hold %" PRIu64 " bytes", c->path,
            from, end - 1, bytes);
}

static int check_group(struct space *s, uint64_t first)
{
  struct check *c = s->c;
  const struct geometry *g = &c->geo;
  uint64_t last = MIN(first + SLOTS_PER_GROUP - 1, c->slots);
  uint64_t group = geometry_group(g, first);
  int r = 0;

  if (c->pages_are_blocks) {
    unused(s, geometry_header(g, last) + sizeof(struct pcow_disk_slot), group + g->bitmaps);
    unused(s, geometry_bitmap(g, last) + g->bitmap_bytes, group + g->data);
  }
  for (uint64_t i = first; r == 0 && (i = slotset_find(c->reached, i, last + 1, true)) <= last; i++)
    r = check_bitmap(s, i);
  return r ? r : data_areas(s, first, last);
}

int check_space(struct check *c)
{
  struct space s = { .c = c };
  uint64_t end = geometry_file_size(&c->geo, c->slots);
  uint64_t first, stop, at = SLOT_GROUPS_OFFSET;
  int r = 0;

  s.bits = g_try_malloc0(c->geo.bitmap_bytes);
  if (!s.bits)
    return fail(ENOMEM, "%s: no memory for the bitmap of a unit", c->path);
  if (c->pages_are_blocks) {
    unused(&s, SUPERBLOCK_OFFSET(0) + SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET(1));
    unused(&s, SUPERBLOCK_OFFSET(1) + SUPERBLOCK_BYTES, EPOCH_LOG_OFFSET);
    unused(&s, EPOCH_LOG_OFFSET + EPOCH_LOG_RECORDS * sizeof(struct pcow_disk_epoch), UNIT_MAP_OFFSET);
    unused(&s, UNIT_MAP_OFFSET + UNITS_MAX * 8, SLOT_GROUPS_OFFSET);
  }
  while (r == 0 && next_data(c, at, end, &first, &stop)) {
    uint64_t group = (first - SLOT_GROUPS_OFFSET) / c->geo.group_bytes;

    r = check_group(&s, group * SLOTS_PER_GROUP + 1);
    at = SLOT_GROUPS_OFFSET + (group + 1) * c->geo.group_bytes;
  }
  if (r == 0 && c->copies.file_size > end)
    unused(&s, end, c->copies.file_size);
  g_free(s.bits);
  return r;
}
