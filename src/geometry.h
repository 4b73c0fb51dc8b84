/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where a slot's header, presence bitmap and data area lie, as a function of the unit size alone.
 */
#ifndef PCOW_GEOMETRY_H
#define PCOW_GEOMETRY_H

#include "format.h"

#include <stdbool.h>

struct geometry {
  unsigned unit_shift;
  uint64_t unit_bytes;
  uint64_t unit_pages;
  uint64_t bitmap_bytes;  /* of one slot; whole 8-byte words */
  uint64_t bitmaps;       /* offset of the bitmaps in a group */
  uint64_t data;          /* offset of the data areas in a group */
  uint64_t group_bytes;
  uint64_t slot_max;      /* largest index whose data area ends below 2^62 */
};

static inline struct geometry geometry_make(unsigned unit_shift)
{
  struct geometry g = { .unit_shift = unit_shift };
  uint64_t align;

  g.unit_bytes = UINT64_C(1) << unit_shift;
  g.unit_pages = g.unit_bytes >> PAGE_SHIFT;
  g.bitmap_bytes = g.unit_pages <= 64 ? 8 : g.unit_pages / 8;
  align = g.unit_bytes < (2u << 20) ? g.unit_bytes : 2u << 20;
  g.bitmaps = SLOTS_PER_GROUP * sizeof(struct pcow_disk_slot);
  g.data = (g.bitmaps + SLOTS_PER_GROUP * g.bitmap_bytes + align - 1) & ~(align - 1);
  g.group_bytes = g.data + SLOTS_PER_GROUP * g.unit_bytes;
  g.slot_max = (((UINT64_C(1) << 62) - SLOT_GROUPS_OFFSET) / g.group_bytes) * SLOTS_PER_GROUP;
  return g;
}

/* INDEX must be 1 … slot_max. */
static inline uint64_t geometry_group(const struct geometry *g, uint64_t index)
{
  return SLOT_GROUPS_OFFSET + (index - 1) / SLOTS_PER_GROUP * g->group_bytes;
}

static inline uint64_t geometry_header(const struct geometry *g, uint64_t index)
{
  return geometry_group(g, index) + (index - 1) % SLOTS_PER_GROUP * sizeof(struct pcow_disk_slot);
}

static inline uint64_t geometry_bitmap(const struct geometry *g, uint64_t index)
{
  return geometry_group(g, index) + g->bitmaps + (index - 1) % SLOTS_PER_GROUP * g->bitmap_bytes;
}

static inline uint64_t geometry_data(const struct geometry *g, uint64_t index)
{
  return geometry_group(g, index) + g->data + (index - 1) % SLOTS_PER_GROUP * g->unit_bytes;
}

static inline uint64_t geometry_map_word(uint64_t unit) { return UNIT_MAP_OFFSET + unit * 8; }

static inline uint64_t geometry_units(const struct geometry *g, uint64_t virtual_size)
{
  return (virtual_size + g->unit_bytes - 1) >> g->unit_shift;
}

/* The size that the file must have for slots up to COUNT (0: none) to be usable. */
static inline uint64_t geometry_file_size(const struct geometry *g, uint64_t count)
{
  return count ? geometry_data(g, count) + g->unit_bytes : SLOT_GROUPS_OFFSET;
}

#endif
