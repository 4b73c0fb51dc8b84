/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Comparing what an image shows with the reference: every byte of every live view through pcow_pread()
 * and through the maps that exist, the list of snapshots, and the file itself through pcow_check().
 */
#include "model-world.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (1 * MIB)

void view_compare(struct world *w, const char *name, pcow_image *image, const struct model *c)
{
  static unsigned char buffer[PIECE];
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_get_info(image, &info));
  CHECK(info.virtual_size == c->size, "%s has %" PRIu64 " bytes instead of %" PRIu64, name,
        info.virtual_size, c->size);
  for (uint64_t offset = 0; offset < c->size; offset += PIECE) {
    uint64_t count = c->size - offset < PIECE ? c->size - offset : PIECE;
    uint64_t wrong;
    int result = pcow_pread(image, buffer, count, offset);

    CHECK(result >= 0, "pcow_pread(%s, %" PRIu64 "+%" PRIu64 ") gave %d: %s", name, offset, count,
          result, pcow_errormsg());
    wrong = model_differs(c, buffer, count, offset);
    if (wrong != UINT64_MAX) {
      model_explain(c, buffer, offset, count, wrong);
      FAIL("%s reads wrong at 0x%" PRIx64, name, wrong);
    }
  }
  w->compared++;
  w->bytes_compared += c->size;
}

void view_compare_map(struct world *w, const char *name, pcow_mapping *map, const struct model *c)
{
  static uint64_t words[PCOW_PAGE_SIZE / 8];
  const unsigned char *address = pcow_mapping_address(map);
  uint64_t wrong = UINT64_MAX;

  CHECK(pcow_mapping_length(map) == c->size, "the map of %s has %" PRIu64 " bytes instead of %" PRIu64,
        name, pcow_mapping_length(map), c->size);
  if (!TEST_TSAN)
    wrong = model_differs(c, address, c->size, 0);
  for (uint64_t offset = 0; TEST_TSAN && wrong == UINT64_MAX && offset < c->size; offset += PAGE) {
    test_range_load(words, address + offset, PAGE);
    wrong = model_differs(c, words, PAGE, offset);
  }
  if (wrong != UINT64_MAX) {
    model_explain(c, address, 0, c->size, wrong);
    FAIL("the map of %s shows a wrong byte at 0x%" PRIx64, name, wrong);
  }
  w->compared++;
  w->bytes_compared += c->size;
}

struct listing {
  struct world *w;
  unsigned count;
  uint32_t ids[SNAPS_MAX + 1]; /* of snaps[i] */
  uint32_t parents[SNAPS_MAX + 1];
};

static struct snap *find_snap(struct world *w, const char *name)
{
  for (unsigned i = 0; i < w->snap_count; i++)
    if (strcmp(w->snaps[i].name, name) == 0)
      return &w->snaps[i];
  return NULL;
}

static int list_one(void *opaque, const struct pcow_snapshot_info *info)
{
  struct listing *l = opaque;
  struct snap *s = find_snap(l->w, info->name);
  bool current;

  CHECK(s, "snapshot '%s' is listed and should not exist", info->name);
  CHECK(s == &l->w->snaps[l->count], "'%s' is listed out of order", info->name);
  CHECK(info->virtual_size == s->content->size, "'%s' is listed with %" PRIu64 " bytes, not %" PRIu64,
        info->name, info->virtual_size, s->content->size);
  current = info->flags & PCOW_SNAPSHOT_CURRENT;
  CHECK(current == (l->w->head_parent == s->key), "'%s' is listed as %scurrent", info->name,
        current ? "" : "not ");
  l->ids[l->count] = info->id;
  l->parents[l->count] = info->parent;
  l->count++;
  return 0;
}

void view_list(struct world *w)
{
  struct listing l = { .w = w };
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_snapshot_list(w->image, list_one, &l));
  CHECK(l.count == w->snap_count, "%u snapshots are listed instead of %u", l.count, w->snap_count);
  for (unsigned i = 0; i < w->snap_count; i++) {
    uint32_t parent = 0;

    for (unsigned j = 0; j < w->snap_count; j++)
      if (w->snaps[j].key == w->snaps[i].parent)
        parent = l.ids[j];
    CHECK(l.parents[i] == parent, "'%s' is listed with parent %u instead of %u", w->snaps[i].name,
          l.parents[i], parent);
  }
  OK(pcow_get_info(w->image, &info));
  CHECK(info.snapshot_count == w->snap_count, "%" PRIu64 " snapshots instead of %u",
        info.snapshot_count, w->snap_count);
  CHECK(info.base_format == (w->base < 0 ? PCOW_FORMAT_NONE : w->files[w->bases[w->base].file].format),
        "the base has format %u", info.base_format);
  CHECK(!info.base == (w->base < 0), "the base is '%s'", info.base ? info.base : "none");
}

void views_compare(struct world *w)
{
  view_compare(w, "the head", w->image, w->head);
  if (w->map)
    view_compare_map(w, "the head", w->map, w->head);
  for (unsigned i = 0; i < w->snap_count; i++) {
    struct snap *s = &w->snaps[i];
    char name[96];

    if (s->handle) {
      snprintf(name, sizeof name, "'%s', held open,", s->name);
      view_compare(w, name, s->handle, s->content);
      if (s->map)
        view_compare_map(w, name, s->map, s->content);
    }
    if (!s->handle || rng_chance(&w->rng, 20)) {
      pcow_image *image = test_open(w->path, 0, s->name);

      snprintf(name, sizeof name, "'%s'", s->name);
      view_compare(w, name, image, s->content);
      if (rng_chance(&w->rng, 15)) {
        pcow_mapping *map;

        OK(pcow_map(image, NULL, &map));
        view_compare_map(w, name, map, s->content);
        OK(pcow_unmap(map));
      }
      OK(pcow_close(image));
    }
  }
  view_list(w);
}

/* The image is closed. Unless something is pending, a unit has at most one slot for each living epoch and
 * for each deleted one in which the tree of the living branches, of which there are fewer. */
void view_check_file(struct world *w)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct pcow_info info = PCOW_INIT(info);
  uint64_t units = 0;
  pcow_image *image;

  /* In the page cache of a disk's file system the first store to a page of a large folio gives blocks to all
   * of it: zeros at pages that nobody sees. */
  if (w->modes && !test_is_tmpfs(w->path)) {
    OK(pcow_check(w->path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
    CHECK(!result.corruptions, "%" PRIu64 " corruptions", result.corruptions);
  }
  test_check_clean(w->path);
  OK(pcow_check(w->path, 0, &result, NULL, NULL, NULL));
  image = test_open(w->path, PCOW_OPEN_INFO, NULL);
  OK(pcow_get_info(image, &info));
  CHECK(!(info.flags & PCOW_INFO_DIRTY), "the image is dirty after it was closed");
  CHECK(info.unit_size == w->unit, "the unit is %" PRIu64, info.unit_size);
  units = (w->size_max + w->unit - 1) / w->unit;
  CHECK((info.flags & PCOW_INFO_PENDING) || result.slots <= units * (2 * w->snap_count + 1),
        "%" PRIu64 " slots for %" PRIu64 " units and %u snapshots", result.slots, units, w->snap_count);
  OK(pcow_close(image));
  w->checks++;
}
