/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What every operation on a handle needs: checks, options, the pages that it shows, and rebuilding
 * what is in memory when the image's structure changed. Opening and closing is in open.c.
 */
#include "image.h"

#include "error.h"

#include <string.h>

const struct superblock *image_superblock(const struct pcow_image *image)
{
  return image->store ? &image->store->sb : &image->sb;
}

uint64_t image_size(const struct pcow_image *image)
{
  if (image->store)
    return image->store->sb.virtual_size;
  return image->layer ? image->layer->size : image->sb.virtual_size;
}

int image_check_writable(struct pcow_image *image)
{
  if (!image->store)
    return fail(EBADF, "%s: is not open for writing", image->path);
  return store_check(image->store);
}

int image_check_content(struct pcow_image *image)
{
  if (image->flags & PCOW_OPEN_INFO)
    return fail(EBADF, "%s: is open for information only", image->path);
  if ((image->flags & PCOW_OPEN_NO_BASE) && image_superblock(image)->base.format != BASE_NONE)
    return fail(EBADF, "%s: is open without its base", image->path);
  return 0;
}

int image_check_range(struct pcow_image *image, uint64_t offset, uint64_t length)
{
  uint64_t size = image_size(image);

  if (offset > size || length > size - offset)
    return fail(EINVAL, "%s: %" PRIu64 " bytes at offset %" PRIu64 " are beyond the end at %" PRIu64,
                image->path, length, offset, size);
  return 0;
}

int options_read(const void *options, size_t smallest, void *full, size_t full_size)
{
  size_t size;

  memcpy(&size, options, sizeof(size));
  if (size < smallest)
    return fail(EINVAL, "an options struct of %zu bytes is too small: begin it with PCOW_INIT()", size);
  for (size_t i = full_size; i < size; i++)
    if (((const uint8_t *)options)[i])
      return fail(EINVAL, "an option that this version of the library does not know is set");
  memcpy(full, options, MIN(size, full_size));
  return 0;
}

void result_write(void *result, const void *full, size_t full_size)
{
  size_t size;

  memcpy(&size, result, sizeof(size));
  if (size > full_size)
    memset((uint8_t *)result + full_size, 0, size - full_size);
  memcpy((uint8_t *)result + sizeof(size), (const uint8_t *)full + sizeof(size),
         MIN(size, full_size) - sizeof(size));
}

struct epoch_view *image_view_beneath_head(const struct store *st)
{
  const struct superblock *sb = &st->sb;

  return epoch_view_make(st->epochs, sb->head_epoch, sb->head_parent, sb->virtual_size, sb->head_floor,
                         true);
}

int image_quiesce(struct pcow_image *image)
{
  int ret = head_settle(image->head);

  if (ret == 0)
    head_reset(image->head, NULL);
  return ret;
}

int image_reload(struct pcow_image *image, struct layer *base)
{
  struct store *st = image->store;
  struct layer *old = image->layer;
  struct layer *top;

  if (base == NULL && st->sb.base.format != BASE_NONE)
    base = old->base;
  if (base == old->base)
    old->base = NULL;
  top = layer_new_top(st->fd, &image->file, &st->sb, image_view_beneath_head(st), base);
  head_reset(image->head, top);
  image->layer = top;
  layer_close(old);
  return 0;
}

/* The head's own pages of one unit, holes told from data, and what lies beneath the others. */
static int resolve_unit(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end, GArray *runs)
{
  const struct geometry *g = &image->store->geo;
  uint64_t unit_first = u->number * g->unit_pages;
  g_auto(view_cursor) lower = head_lower(image->head);

  while (first < end) {
    bool present = u->present && bits_test(u->present, first);
    uint64_t to = u->present ? bits_find(u->present, first, end, !present) : end;

    if (present) {
      uint64_t at = head_page_offset(image->head, u, first);
      uint64_t stop = head_page_offset(image->head, u, to);
      bool data = persist_seek(image->store->p, at, stop, true) == at;
      uint64_t next = persist_seek(image->store->p, at, stop, !data);
      struct run r = { unit_first + first, (next - at) >> PAGE_SHIFT, data ? RUN_DATA : RUN_MASK,
                       image->layer, at };

      g_array_append_val(runs, r);
      first += r.count;
      continue;
    }
    while (first < to) {
      int error;
      const struct run *found = view_cursor_at(&lower, unit_first + first, &error);
      uint64_t skip;
      struct run r;

      if (!found)
        return error;
      r = *found;
      skip = unit_first + first - r.page;
      r.page += skip;
      r.offset += skip * PAGE_BYTES;
      r.count = MIN(r.count - skip, to - first);
      g_array_append_val(runs, r);
      first += r.count;
    }
  }
  return 0;
}

int image_resolve(struct pcow_image *image, uint64_t first, uint64_t end, GArray *runs)
{
  uint64_t unit_pages = image_superblock(image)->unit_shift;

  unit_pages = UINT64_C(1) << (unit_pages - PAGE_SHIFT);
  if (!image->store)
    return first < end ? view_resolve(image->layer, first, end - first, runs) : 0;
  while (first < end) {
    uint64_t unit = first / unit_pages;
    uint64_t to = MIN(end, (unit + 1) * unit_pages);
    struct unit *u;
    int ret;

    u = head_lock_unit(image->head, unit, &ret);
    if (!u)
      return ret;
    ret = resolve_unit(image, u, first - unit * unit_pages, to - unit * unit_pages, runs);
    head_unlock_unit(image->head, u);
    if (ret)
      return ret;
    first = to;
  }
  return 0;
}

int image_next(struct pcow_image *image, uint64_t page, uint64_t end, uint64_t *next)
{
  uint64_t unit_pages = UINT64_C(1) << (image_superblock(image)->unit_shift - PAGE_SHIFT);
  uint64_t pending = image->store ? head_next_pending(image->head, page / unit_pages) : UINT64_MAX;

  /* The head's other units have a word in the map of the same file as what lies beneath. */
  if (pending < UINT64_MAX / unit_pages)
    end = MIN(end, MAX(page, pending * unit_pages));
  return view_next(image->layer, page, end, next);
}
