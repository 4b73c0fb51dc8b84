/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resolution paints top down: a bitmap of pages that are still open, from which each slot, newest
 * first, takes those that it has; then the base's slots, and so on. A layer costs what it has in the
 * range, not what lies beneath it, and the walk ends when no page is open.
 */
#include "view.h"

#include "bits.h"
#include "error.h"
#include "slotwalk.h"

#include <linux/fs.h>
#include <string.h>
#include <unistd.h>

#define MAP_WORDS_AT_ONCE 512
#define MAP_WORDS_FIRST 16

struct paint {
  uint64_t first;               /* page that bit 0 of OPEN stands for */
  uint64_t end;                 /* pages of the layer being painted that can be seen */
  uint64_t *open;
  uint64_t left;                /* bits of OPEN below END that are set; an upper bound */
  GArray *runs;
};

static void add_run(GArray *runs, uint64_t page, uint64_t count, enum run_kind kind,
                    struct layer *layer, uint64_t offset)
{
  struct run r = { page, count, kind, layer, offset };

  g_array_append_val(runs, r);
}

/* lseek(2), with a memory: tmpfs looks for the end of data page by page, so that asking for each of many
 * runs in one large extent would cost the square of its size. What a view sees does not become a hole. */
static off_t seek(struct layer *l, int fd, off_t at, int whence)
{
  off_t found = -1;

  g_mutex_lock(&l->walk_mutex);
  if ((uint64_t)at >= l->data_from && (uint64_t)at < l->data_to)
    found = whence == SEEK_DATA ? at : (off_t)l->data_to;
  g_mutex_unlock(&l->walk_mutex);
  if (found >= 0)
    return found;
  found = lseek(fd, at, whence);
  if (whence == SEEK_HOLE && found > at) {
    g_mutex_lock(&l->walk_mutex);
    l->data_from = (uint64_t)at;
    l->data_to = (uint64_t)found;
    g_mutex_unlock(&l->walk_mutex);
  }
  return found;
}

/* Pages [page, page + count) lie at OFFSET of the layer's file: data where the file has blocks. */
static void add_data(GArray *runs, struct layer *l, int fd, uint64_t page, uint64_t count, uint64_t offset)
{
  enum run_kind hole_kind = l->format == BASE_RAW ? RUN_ZERO : RUN_MASK;
  struct layer *hole_layer = l->format == BASE_RAW ? NULL : l;
  uint64_t end = offset + count * PAGE_BYTES;
  uint64_t at = offset;

  while (at < end) {
    off_t data = seek(l, fd, (off_t)at, SEEK_DATA);
    uint64_t from, to;
    off_t hole;

    if (data < 0)
      from = errno == ENXIO ? end : at;   /* ENXIO: no data up to the end of the file */
    else
      from = MIN(end, (uint64_t)data & ~(uint64_t)(PAGE_BYTES - 1));
    if (from > at)
      add_run(runs, page + ((at - offset) >> PAGE_SHIFT), (from - at) >> PAGE_SHIFT, hole_kind,
              hole_layer, at);
    if (from >= end)
      break;
    hole = seek(l, fd, (off_t)MAX(from, data < 0 ? from : (uint64_t)data), SEEK_HOLE);
    to = hole < 0 ? end : MIN(end, ((uint64_t)hole + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1));
    if (to <= from)
      to = from + PAGE_BYTES;
    add_run(runs, page + ((from - offset) >> PAGE_SHIFT), (to - from) >> PAGE_SHIFT, RUN_DATA, l, from);
    at = to;
  }
}

/* Takes the open ones of pages [first, end), which lie at OFFSET of the layer's file. */
static void take(struct paint *p, struct layer *l, int fd, uint64_t first, uint64_t end, uint64_t offset)
{
  uint64_t at = first - p->first;
  uint64_t stop = end - p->first;

  while ((at = bits_find(p->open, at, stop, true)) < stop) {
    uint64_t to = bits_find(p->open, at, stop, false);

    add_data(p->runs, l, fd, p->first + at, to - at, offset + (p->first + at - first) * PAGE_BYTES);
    bits_clear(p->open, at, to);
    p->left -= to - at;
    at = to;
  }
}

/* One slot's present pages, up to LIMIT bytes of the view. */
static int paint_slot(struct paint *p, struct layer *l, int fd, const struct slot_info *slot, uint64_t limit)
{
  const struct geometry *g = l->geo;
  uint64_t unit_first = slot->unit * g->unit_pages;
  uint64_t from = MAX(p->first, unit_first);
  uint64_t to = MIN(MIN(p->end, limit >> PAGE_SHIFT), unit_first + g->unit_pages);
  uint64_t window, window_end, at;
  g_autofree uint64_t *present = NULL;
  int ret;

  if (from >= to)
    return 0;
  from -= unit_first;
  to -= unit_first;
  window = from & ~UINT64_C(63);
  window_end = MIN(g->unit_pages, (to + 63) & ~UINT64_C(63));
  present = g_try_malloc(bits_words(window_end - window) * 8);
  if (!present)
    return fail(ENOMEM, "%s: no memory for a presence bitmap", l->file.path);
  ret = slotwalk_bitmap(fd, l->file.path, g, slot->index, window, window_end - window, present);
  if (ret)
    return ret;

  at = from - window;
  to -= window;
  while ((at = bits_find(present, at, to, true)) < to) {
    uint64_t stop = bits_find(present, at, to, false);

    take(p, l, fd, unit_first + window + at, unit_first + window + stop,
         geometry_data(g, slot->index) + (window + at) * PAGE_BYTES);
    at = stop;
  }
  return 0;
}

/* The file's writer may have gone on since the superblock was read: a slot beyond its high-water mark,
 * or of an epoch that did not exist, is valid if these have risen since USED was taken, by whomever. */
static bool refresh_bounds(struct layer *l, int fd, const struct superblock *used)
{
  struct superblock now;
  bool risen;

  if ((!l->walk_lock && !l->own_fd) || superblock_read(fd, l->file.path, false, &now, NULL))
    return false;
  g_mutex_lock(&l->walk_mutex);
  if (now.slot_count > l->slot_count || now.next_epoch > l->next_epoch) {
    l->slot_count = now.slot_count;
    l->next_epoch = now.next_epoch;
  }
  risen = l->slot_count > used->slot_count || l->next_epoch > used->next_epoch;
  g_mutex_unlock(&l->walk_mutex);
  return risen;
}

/* The bounds that chains are walked with: a copy, for another thread may refresh them. */
static struct superblock bounds(struct layer *l)
{
  struct superblock sb = { 0 };

  g_mutex_lock(&l->walk_mutex);
  sb.unit_shift = l->geo->unit_shift;
  sb.slot_count = l->slot_count;
  sb.next_epoch = l->next_epoch;
  g_mutex_unlock(&l->walk_mutex);
  return sb;
}

static int read_chain(struct layer *l, int fd, uint64_t unit, uint64_t word, GArray *chain, struct superblock *sb)
{
  uint64_t index;
  int ret;

  *sb = bounds(l);
  ret = slotwalk_reference(l->file.path, sb, unit, word, &index);
  g_array_set_size(chain, 0);
  return ret ? ret : slotwalk_chain(fd, l->file.path, sb, unit, index, chain);
}

static int paint_unit(struct paint *p, struct layer *l, int fd, uint64_t unit, uint64_t word)
{
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  struct superblock used;
  int ret = read_chain(l, fd, unit, word, chain, &used);

  for (unsigned i = 0; ret == -EUCLEAN && i < 3 && (refresh_bounds(l, fd, &used) || l->walk_lock); i++)
    ret = read_chain(l, fd, unit, word, chain, &used);
  for (unsigned i = 0; ret == 0 && i < chain->len && p->left; i++) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i);
    uint64_t limit = epoch_view_limit(l->view, slot->epoch);

    if (limit)
      ret = paint_slot(p, l, fd, slot, limit);
  }
  return ret;
}

static int paint_units(struct paint *p, struct layer *l, int fd)
{
  uint64_t unit = (p->first << PAGE_SHIFT) >> l->geo->unit_shift;
  uint64_t last = ((p->end - 1) << PAGE_SHIFT) >> l->geo->unit_shift;
  uint64_t words[MAP_WORDS_AT_ONCE];
  int ret = 0;

  while (ret == 0 && unit <= last && p->left) {
    uint64_t n = MIN(last - unit + 1, MAP_WORDS_AT_ONCE);

    ret = slotwalk_map_words(fd, l->file.path, unit, n, words);
    for (uint64_t i = 0; ret == 0 && i < n && p->left; i++)
      if (words[i])
        ret = paint_unit(p, l, fd, unit + i, words[i]);
    unit += n;
  }
  return ret;
}

static int paint_layer(struct paint *p, struct layer *l)
{
  int fd = layer_fd_get(l);
  int ret = 0;

  if (fd < 0)
    return fd;
  if (l->format == BASE_RAW) {
    take(p, l, fd, p->first, p->end, p->first * PAGE_BYTES);
  } else if (l->view->count) {
    ret = layer_walk_begin(l, fd);
    if (ret == 0) {
      ret = paint_units(p, l, fd);
      layer_walk_end(l, fd);
    }
  }
  layer_fd_put(l);
  return ret;
}

static gint compare_runs(gconstpointer a, gconstpointer b)
{
  const struct run *x = a, *y = b;

  return x->page < y->page ? -1 : x->page > y->page;
}

static bool continues(const struct run *a, const struct run *b)
{
  return a->kind == b->kind && a->layer == b->layer && a->page + a->count == b->page &&
         (a->kind == RUN_ZERO || a->offset + a->count * PAGE_BYTES == b->offset);
}

/* Sorts what was added from position START, and joins neighbours. */
static void tidy(GArray *runs, unsigned start)
{
  unsigned kept = start;

  if (runs->len - start > 1)
    qsort(&g_array_index(runs, struct run, start), runs->len - start, sizeof(struct run), compare_runs);
  for (unsigned i = start; i < runs->len; i++) {
    struct run r = g_array_index(runs, struct run, i);
    struct run *last = kept ? &g_array_index(runs, struct run, kept - 1) : NULL;

    if (last && continues(last, &r))
      last->count += r.count;
    else
      g_array_index(runs, struct run, kept++) = r;
  }
  g_array_set_size(runs, kept);
}

int view_resolve(struct layer *top, uint64_t first, uint64_t count, GArray *runs)
{
  struct paint p = { .first = first, .runs = runs };
  unsigned start = runs->len;
  uint64_t end = first + count;
  g_autofree uint64_t *open = NULL;
  int ret = 0;

  if (!count)
    return 0;
  open = g_try_malloc0(bits_words(count) * 8);
  if (!open)
    return fail(ENOMEM, "%s: no memory to resolve %" PRIu64 " pages", top ? top->file.path : "image", count);
  p.open = open;
  bits_set(open, 0, count);

  p.end = end;
  for (struct layer *l = top; ret == 0 && l; l = l->base) {
    p.end = MIN(p.end, l->size >> PAGE_SHIFT);
    if (p.end <= first)
      break;
    p.left = bits_count(open, 0, p.end - first);
    if (!p.left)
      break;
    ret = paint_layer(&p, l);
    p.end = MIN(p.end, layer_base_limit(l) >> PAGE_SHIFT);
  }
  if (ret) {
    g_array_set_size(runs, start);
    return ret;
  }

  for (uint64_t at = 0; (at = bits_find(open, at, count, true)) < count;) {
    uint64_t to = bits_find(open, at, count, false);

    add_run(runs, first + at, to - at, RUN_ZERO, NULL, 0);
    at = to;
  }
  tidy(runs, start);
  return 0;
}

/* The first unit of [unit, end) with a map word, END if none. */
static int next_unit(struct layer *l, int fd, uint64_t unit, uint64_t end, uint64_t *next)
{
  uint64_t words[MAP_WORDS_AT_ONCE];
  uint64_t most = MAP_WORDS_FIRST;

  for (uint64_t n; unit < end; unit += n, most = MAP_WORDS_AT_ONCE) {
    off_t data = lseek(fd, (off_t)geometry_map_word(unit), SEEK_DATA);
    uint64_t i = 0;
    int ret;

    if (data < 0 && errno == ENXIO)
      break;
    if (data > 0)
      unit = MAX(unit, ((uint64_t)data - UNIT_MAP_OFFSET) / 8);
    if (unit >= end)
      break;
    n = MIN(end - unit, most);
    ret = slotwalk_map_words(fd, l->file.path, unit, n, words);
    if (ret)
      return ret;
    while (i < n && !words[i])
      i++;
    if (i < n) {
      *next = unit + i;
      return 0;
    }
  }
  *next = end;
  return 0;
}

/* Large units: the first page from PAGE on whose part of some slot's bitmap is no hole; END if none. A
 * chain that cannot be read is the business of whoever wants its pages. */
static uint64_t next_in_unit(struct layer *l, int fd, uint64_t page, uint64_t end, uint64_t unit)
{
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  const struct geometry *g = l->geo;
  uint64_t start = unit * g->unit_pages, found = end, word;
  struct superblock used;
  int ret = layer_walk_begin(l, fd);

  if (ret)
    return page;
  ret = slotwalk_map_words(fd, l->file.path, unit, 1, &word);
  if (ret == 0)
    ret = read_chain(l, fd, unit, word, chain, &used);
  for (unsigned i = 0; ret == 0 && i < chain->len; i++) {
    uint64_t bitmap = geometry_bitmap(g, g_array_index(chain, struct slot_info, i).index);
    off_t data = lseek(fd, (off_t)(bitmap + (page - start) / 64 * 8), SEEK_DATA);

    if (data < 0 && errno != ENXIO)
      found = page;
    else if (data >= 0 && (uint64_t)data < bitmap + g->bitmap_bytes)
      found = MIN(found, MAX(page, start + ((uint64_t)data - bitmap) * 8));
  }
  layer_walk_end(l, fd);
  return ret ? page : found;
}

static int next_in_layer(struct layer *l, uint64_t page, uint64_t end, uint64_t *next)
{
  int fd = layer_fd_get(l);
  int ret = 0;

  if (fd < 0)
    return fd;
  if (l->format == BASE_RAW) {
    off_t data = seek(l, fd, (off_t)(page * PAGE_BYTES), SEEK_DATA);

    *next = data >= 0 ? (uint64_t)data >> PAGE_SHIFT : errno == ENXIO ? end : page;
  } else {
    uint64_t unit_pages = l->geo->unit_pages, units = (end + unit_pages - 1) / unit_pages;

    for (*next = page; ret == 0 && *next < end;) {
      uint64_t unit = 0, stop;

      ret = next_unit(l, fd, *next / unit_pages, units, &unit);
      *next = MIN(end, MAX(*next, unit * unit_pages));
      stop = MIN(end, (unit + 1) * unit_pages);
      if (ret || *next == end || l->geo->bitmap_bytes <= PAGE_BYTES)
        break;
      *next = next_in_unit(l, fd, *next, stop, unit);
      if (*next < stop)
        break;
    }
  }
  layer_fd_put(l);
  return ret;
}

int view_next(struct layer *top, uint64_t page, uint64_t end, uint64_t *next)
{
  uint64_t seen = end;          /* what of the layer can be seen ends here */
  int ret = 0;

  *next = end;
  for (struct layer *l = top; ret == 0 && l; l = l->base) {
    uint64_t here = 0;

    seen = MIN(MIN(seen, *next), l->size >> PAGE_SHIFT);
    if (page >= seen)
      break;
    ret = next_in_layer(l, page, seen, &here);
    if (ret == 0 && here < seen)
      *next = here;
    seen = MIN(seen, layer_base_limit(l) >> PAGE_SHIFT);
  }
  return ret;
}

unsigned view_find(const GArray *runs, uint64_t page)
{
  unsigned low = 0, high = runs->len;

  while (high - low > 1) {
    unsigned mid = low + (high - low) / 2;

    if (g_array_index(runs, struct run, mid).page <= page)
      low = mid;
    else
      high = mid;
  }
  return low;
}

int view_read(const GArray *runs, uint64_t offset, void *buffer, size_t length)
{
  uint8_t *out = buffer;
  unsigned i = view_find(runs, offset >> PAGE_SHIFT);

  for (; length; i++) {
    const struct run *r = &g_array_index(runs, struct run, i);
    uint64_t skip = offset - r->page * PAGE_BYTES;
    size_t n = MIN(length, r->count * PAGE_BYTES - skip);

    if (r->kind == RUN_DATA) {
      int fd = layer_fd_get(r->layer);
      int ret;

      if (fd < 0)
        return fd;
      ret = file_read(fd, r->layer->file.path, r->offset + skip, out, n, r->layer->format == BASE_RAW);
      layer_fd_put(r->layer);
      if (ret)
        return ret;
    } else {
      memset(out, 0, n);
    }
    out += n;
    offset += n;
    length -= n;
  }
  return 0;
}
