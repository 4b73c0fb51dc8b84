/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_diff(): what differs between two views of one image. Units whose chains hold the same slots for
 * both, up to the same limits, cannot differ and are passed over; of the others, pages that both sides
 * see at the same place of a file are not read. So the cost goes by what either side wrote since their
 * common ancestor.
 */
#include "compare.h"
#include "error.h"
#include "extents.h"
#include "image.h"
#include "mapping.h"

#include <string.h>

#define WORDS_AT_ONCE 512u
#define TAIL_BYTES (UINT64_C(128) << 20)

/* One of the two views. */
struct side {
  struct layer *layer;          /* with LIVE only what lies beneath the head */
  pcow_image *live;             /* the head of a writable image, or NULL */
  bool owned;                   /* LAYER was opened here */
  uint64_t size;
};

struct diff {
  struct side from, to;
  struct store *store;          /* writable images: chains are read without a lock */
  struct geometry geo;
  uint64_t common;              /* the smaller size */
  uint64_t base_first;          /* only one side sees bytes [base_first, base_end) of the base */
  uint64_t base_end;
  struct extent_sink sink;
};

static int side_open(pcow_image *image, const char *name, struct side *side)
{
  int r = 0;

  if (!name && (image->store || !image->snapshot)) {
    side->layer = image->layer;
    side->live = image->store ? image : NULL;
    side->size = image_size(image);
  } else if (name && image->snapshot && strcmp(name, image->snapshot) == 0) {
    side->layer = image->layer;
    side->size = image_size(image);
  } else {
    struct superblock sb;

    r = layer_open_image(image->file.full, name, image->policy, image_layer_flags(image), &side->layer, &sb,
                         NULL);
    side->owned = r == 0;
    side->size = r == 0 ? side->layer->size : 0;
  }
  return r;
}

static void side_close(struct side *side)
{
  if (side->owned)
    layer_close(side->layer);
}

/* Bytes that the side sees of an epoch's slots. */
static uint64_t side_limit(const struct side *side, uint32_t epoch)
{
  if (side->live && epoch == side->live->store->sb.head_epoch)
    return side->size;
  return epoch_view_limit(side->layer->view, epoch);
}

static int side_resolve(const struct side *side, uint64_t first, uint64_t end, GArray *runs)
{
  g_array_set_size(runs, 0);
  return side->live ? image_resolve(side->live, first, end, runs)
                    : view_resolve(side->layer, first, end - first, runs);
}

/* Where from byte START on the side may have something. */
static int side_next(const struct side *side, uint64_t start, uint64_t end, uint64_t *next)
{
  uint64_t page = start >> PAGE_SHIFT;
  int r = side->live ? image_next(side->live, page, end >> PAGE_SHIFT, &page)
                     : view_next(side->layer, page, end >> PAGE_SHIFT, &page);

  *next = page << PAGE_SHIFT;
  return r;
}

/* Reads the unit's chain as it is now. The sides' layers are views of one file. */
static int read_chain(struct diff *d, uint64_t unit, GArray *chain)
{
  struct layer *l = d->from.layer;
  struct superblock sb;
  uint64_t index;
  int r, fd;

  g_array_set_size(chain, 0);
  if (d->store) {
    r = slotwalk_map(d->store->fd, d->store->path, &d->store->sb, unit, &index);
    return r < 0 || !index ? r
           : slotwalk_chain(d->store->fd, d->store->path, &d->store->sb, unit, index, chain);
  }

  fd = layer_fd_get(l);
  if (fd < 0)
    return fd;
  r = layer_walk_begin(l, fd);
  if (r == 0) {
    /* A writer elsewhere may have raised the number of slots since the layer was opened. */
    r = superblock_read(fd, l->file.path, false, &sb, NULL);
    if (r == 0)
      r = slotwalk_map(fd, l->file.path, &sb, unit, &index);
    if (r == 0 && index)
      r = slotwalk_chain(fd, l->file.path, &sb, unit, index, chain);
    layer_walk_end(l, fd);
  }
  layer_fd_put(l);
  return r;
}

static int read_words(struct diff *d, uint64_t first, uint64_t count, uint64_t *words)
{
  struct layer *l = d->from.layer;
  int r, fd;

  if (d->store)
    return slotwalk_map_words(d->store->fd, d->store->path, first, count, words);
  fd = layer_fd_get(l);
  if (fd < 0)
    return fd;
  r = slotwalk_map_words(fd, l->file.path, first, count, words);
  layer_fd_put(l);
  return r;
}

/* 1 when the unit's bytes [start, end) may differ, 0 when they cannot. */
static int unit_may_differ(struct diff *d, uint64_t unit, uint64_t start, uint64_t end, uint64_t word)
{
  g_autoptr(GArray) chain = NULL;
  int r;

  if (start < d->base_end && end > d->base_first)
    return 1;
  if (!word)
    return 0;
  chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  r = read_chain(d, unit, chain);
  for (unsigned i = 0; r == 0 && i < chain->len; i++) {
    uint32_t epoch = g_array_index(chain, struct slot_info, i).epoch;
    uint64_t a = side_limit(&d->from, epoch), b = side_limit(&d->to, epoch);

    if (MIN(a, b) < end && MAX(a, b) > start && a != b)
      return 1;
  }
  return r;
}

/* Emits the pages of [first, first + count) that DIFFERENT has, with the types that RUNS gives them. */
static int emit_pages(struct diff *d, uint64_t first, uint64_t count, const uint64_t *different,
                      const GArray *runs)
{
  int r = 0;

  for (uint64_t at = 0, end; r == 0 && (at = bits_find(different, at, count, true)) < count; at = end) {
    end = bits_find(different, at, count, false);
    for (unsigned i = view_find(runs, first + at); r == 0 && at < end; i++) {
      const struct run *run = &g_array_index(runs, struct run, i);
      uint64_t stop = MIN(end, run->page + run->count - first);
      struct pcow_extent extent = extent_of_run(run, (first + at) << PAGE_SHIFT,
                                                (first + stop) << PAGE_SHIFT, true);

      r = extent_sink_add(&d->sink, &extent);
      at = stop;
    }
  }
  return r;
}

static int diff_piece(struct diff *d, uint64_t start, uint64_t end, GArray *from, GArray *to)
{
  uint64_t first = start >> PAGE_SHIFT, last = end >> PAGE_SHIFT;
  g_autofree uint64_t *different = g_try_new0(uint64_t, bits_words(last - first));
  int r;

  if (!different)
    return fail(ENOMEM, "%s: no memory to compare %" PRIu64 " pages", d->from.layer->file.path, last - first);
  r = side_resolve(&d->from, first, last, from);
  if (r == 0)
    r = side_resolve(&d->to, first, last, to);
  if (r == 0)
    r = compare_pages(d->from.layer->file.path, from, to, first, last, NULL, different);
  return r ? r : emit_pages(d, first, last - first, different, to);
}

static int diff_unit(struct diff *d, uint64_t start, uint64_t end, GArray *from, GArray *to)
{
  int r = 0;

  for (uint64_t stop; r == 0 && start < end; start = stop) {
    stop = MIN(end, start + VIEW_PIECE_BYTES);
    r = diff_piece(d, start, stop, from, to);
  }
  return r;
}

/* Raises *UNIT to the first one of which a side may have something. */
static int skip_units(struct diff *d, uint64_t *unit, uint64_t units)
{
  uint64_t start = *unit << d->geo.unit_shift, end = MIN(units << d->geo.unit_shift, d->common);
  uint64_t from = end, to = end;
  int r = side_next(&d->from, start, end, &from);

  if (r == 0)
    r = side_next(&d->to, start, end, &to);
  *unit = MIN(from, to) < end ? MIN(from, to) >> d->geo.unit_shift : units;
  return r;
}

static int diff_units(struct diff *d)
{
  g_autoptr(GArray) from = g_array_new(FALSE, FALSE, sizeof(struct run));
  g_autoptr(GArray) to = g_array_new(FALSE, FALSE, sizeof(struct run));
  uint64_t units = geometry_units(&d->geo, d->common), words[WORDS_AT_ONCE];
  int r = 0;

  for (uint64_t unit = 0, n; r == 0 && unit < units; unit += n) {
    r = skip_units(d, &unit, units);
    n = MIN(units - unit, WORDS_AT_ONCE);
    if (r == 0 && n)
      r = read_words(d, unit, n, words);
    for (uint64_t i = 0; r == 0 && i < n; i++) {
      uint64_t start = (unit + i) << d->geo.unit_shift;
      uint64_t end = MIN(start + d->geo.unit_bytes, d->common);

      r = unit_may_differ(d, unit + i, start, end, words[i]);
      if (r > 0)
        r = diff_unit(d, start, end, from, to);
    }
  }
  return r;
}

/* What only one side has. */
static int diff_tail(struct diff *d)
{
  g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct run));
  struct pcow_extent gone = { .offset = d->common, .length = d->from.size - d->common,
                              .type = PCOW_EXTENT_ZERO };
  int r = 0;

  if (d->from.size > d->common)
    return extent_sink_add(&d->sink, &gone);
  for (uint64_t start = d->common, end; r == 0 && start < d->to.size; start = end) {
    struct pcow_extent zero = { .offset = start, .type = PCOW_EXTENT_ZERO };

    r = side_next(&d->to, start, d->to.size, &end);
    zero.length = r == 0 ? end - start : 0;
    if (zero.length)
      r = extent_sink_add(&d->sink, &zero);
    if (r || zero.length)
      continue;
    end = MIN(d->to.size, (start / TAIL_BYTES + 1) * TAIL_BYTES);
    r = side_resolve(&d->to, start >> PAGE_SHIFT, end >> PAGE_SHIFT, runs);
    for (unsigned i = 0; r == 0 && i < runs->len; i++) {
      const struct run *run = &g_array_index(runs, struct run, i);
      struct pcow_extent extent = extent_of_run(run, run->page << PAGE_SHIFT,
                                                (run->page + run->count) << PAGE_SHIFT, true);

      r = extent_sink_add(&d->sink, &extent);
    }
  }
  return r;
}

static int diff_locked(pcow_image *image, const char *from, const char *to, struct diff *d)
{
  uint64_t a, b;
  int r = image_check_content(image);

  if (r == 0)
    r = side_open(image, from, &d->from);
  if (r == 0)
    r = side_open(image, to, &d->to);
  /* Units that were first written in memory only are to be found on the media. */
  if (r == 0 && d->to.live)
    r = head_settle(image->head);
  if (r < 0)
    return r;

  d->store = image->store;
  d->geo = *d->from.layer->geo;
  d->common = MIN(d->from.size, d->to.size);
  a = d->from.layer->base ? layer_base_limit(d->from.layer) : 0;
  b = d->to.layer->base ? layer_base_limit(d->to.layer) : 0;
  d->base_first = a == b ? UINT64_MAX : MIN(a, b);
  d->base_end = MAX(a, b);
  r = diff_units(d);
  if (r == 0)
    r = diff_tail(d);
  return r ? r : extent_sink_flush(&d->sink);
}

API int pcow_diff(pcow_image *image, const char *from, const char *to, pcow_extent_fn fn, void *opaque)
{
  struct diff d = { .sink = { .fn = fn, .opaque = opaque } };
  int r;

  if (!from || !fn)
    return fail(EINVAL, "%s: a comparison needs a snapshot to begin with and a function that takes"
                " the extents", image->path);
  pthread_rwlock_rdlock(&image->lock);
  r = to ? 0 : mapping_publish(image, 0, UINT64_MAX);
  if (r == 0)
    r = diff_locked(image, from, to, &d);
  side_close(&d.from);
  side_close(&d.to);
  pthread_rwlock_unlock(&image->lock);
  return r;
}
