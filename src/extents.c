/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_extents(): what is open, as extents in files, in order and without gaps. The range is resolved
 * piece by piece, so that memory stays bounded however large and fragmented the image is; extents
 * merge across the pieces. What no
 * layer has anything of is passed over: the cost is that of what the files hold.
 */
#include "extents.h"

#include "error.h"
#include "image.h"
#include "mapping.h"

#define PIECE_LEAST (UINT64_C(16) << 20)

static bool extent_continues(const struct pcow_extent *a, const struct pcow_extent *b)
{
  if (a->offset + a->length != b->offset || a->type != b->type || a->path != b->path)
    return false;
  return a->type != PCOW_EXTENT_DATA || !a->path || a->file_offset + a->length == b->file_offset;
}

int extent_sink_flush(struct extent_sink *sink)
{
  struct pcow_extent extent = sink->pending;

  sink->pending.length = 0;
  return extent.length ? sink->fn(sink->opaque, &extent) : 0;
}

int extent_sink_add(struct extent_sink *sink, const struct pcow_extent *extent)
{
  int r;

  if (extent->length == 0)
    return 0;
  if (sink->pending.length && extent_continues(&sink->pending, extent)) {
    sink->pending.length += extent->length;
    return 0;
  }
  r = extent_sink_flush(sink);
  if (r == 0) {
    sink->pending = *extent;
    sink->pending.size = sizeof sink->pending;
  }
  return r;
}

struct pcow_extent extent_of_run(const struct run *run, uint64_t start, uint64_t end, bool merged)
{
  struct pcow_extent extent = { .offset = start, .length = end - start };

  if (merged) {
    extent.type = run->kind == RUN_DATA ? PCOW_EXTENT_DATA : PCOW_EXTENT_ZERO;
  } else if (run->kind != RUN_ZERO) {
    extent.type = run->kind == RUN_DATA ? PCOW_EXTENT_DATA : PCOW_EXTENT_ZERO_ALLOCATED;
    extent.depth = run->layer->depth;
    extent.path = run->layer->file.path;
    if (run->kind == RUN_DATA)
      extent.file_offset = run->offset + (start - (run->page << PAGE_SHIFT));
  }
  return extent;
}

/* [start, end) lies within one piece. */
static int extents_piece(pcow_image *image, uint64_t start, uint64_t end, bool merged,
                         struct extent_sink *sink)
{
  g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct run));
  int r = image_resolve(image, start >> PAGE_SHIFT, (end + PAGE_BYTES - 1) >> PAGE_SHIFT, runs);

  for (unsigned i = 0; r == 0 && i < runs->len; i++) {
    const struct run *run = &g_array_index(runs, struct run, i);
    uint64_t first = MAX(start, run->page << PAGE_SHIFT);
    uint64_t last = MIN(end, (run->page + run->count) << PAGE_SHIFT);

    if (first < last) {
      struct pcow_extent extent = extent_of_run(run, first, last, merged);

      r = extent_sink_add(sink, &extent);
    }
  }
  return r;
}

/* Passes over what no layer has, however long: *NEXT is where something may be. */
static int extents_skip(pcow_image *image, uint64_t offset, uint64_t end, uint64_t *next,
                        struct extent_sink *sink)
{
  struct pcow_extent zero = { .offset = offset, .type = PCOW_EXTENT_ZERO };
  uint64_t page;
  int r = image_next(image, offset >> PAGE_SHIFT, (end + PAGE_BYTES - 1) >> PAGE_SHIFT, &page);

  if (r)
    return r;
  *next = CLAMP(page << PAGE_SHIFT, offset, end);
  zero.length = *next - offset;
  return extent_sink_add(sink, &zero);
}

API int pcow_extents(pcow_image *image, uint64_t offset, uint64_t length, uint32_t flags,
                     pcow_extent_fn fn, void *opaque)
{
  struct extent_sink sink = { .fn = fn, .opaque = opaque };
  uint64_t piece;
  int r;

  if (flags & ~PCOW_EXTENTS_MERGE)
    return fail(EINVAL, "%s: unknown flags 0x%x for the extents", image->path, flags);
  if (!fn)
    return fail(EINVAL, "%s: the extents need a function that takes them", image->path);

  pthread_rwlock_rdlock(&image->lock);
  piece = CLAMP(UINT64_C(1) << image_superblock(image)->unit_shift, PIECE_LEAST, VIEW_PIECE_BYTES);
  r = image_check_content(image);
  if (r == 0)
    r = image_check_range(image, offset, length);
  if (r == 0)
    r = mapping_publish(image, offset >> PAGE_SHIFT, (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT);
  for (uint64_t end = offset + length, next; r == 0 && offset < end; offset = next) {
    r = extents_skip(image, offset, end, &next, &sink);
    if (r || next > offset)
      continue;
    next = MIN(end, (offset / piece + 1) * piece);
    r = extents_piece(image, offset, next, flags & PCOW_EXTENTS_MERGE, &sink);
  }
  if (r == 0)
    r = extent_sink_flush(&sink);
  pthread_rwlock_unlock(&image->lock);
  return r;
}
