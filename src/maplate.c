/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Lays out late units: those that were left empty when the map was made. Whoever accesses one waits for an event,
 * so nothing is stored to it before. First all of it becomes a region that is filled on demand, which it can
 * stay; then what can be mapped replaces parts of that: the head's pages and async ones in place, armed ones,
 * which must not be writable for an instant, moved over it. Zeros wait for their own first read.
 */
#include "mapstate.h"

#include "uffd.h"
#include "vmabudget.h"

#include <sys/mman.h>

#define HANDLER_PIECES 64u      /* mapped without handing over to the worker */
#define ROOM_SHARE 4            /* of the VMAs that there is room for, a unit may take one in so many */
#define NEIGHBOUR_BYTES (UINT64_C(4) << 20)     /* laid out together */

/* What a unit consists of. */
struct late {
  uint64_t zero, pages;         /* of the mapping: its first page; and how many there are */
  GArray *segments;
  uint64_t shared, async, armed, filled;        /* segments of these kinds */
  bool known;                   /* it could be found out */
};

static void count(const struct pcow_mapping *m, struct late *l)
{
  for (unsigned i = 0; i < l->segments->len; i++) {
    enum segment_kind kind = g_array_index(l->segments, struct segment, i).kind;

    l->shared += kind == SEGMENT_SHARED;
    l->async += kind == SEGMENT_PRIVATE && m->flush_durable;
    l->armed += kind == SEGMENT_PRIVATE && !m->flush_durable;
    l->filled += kind == SEGMENT_FILL;
  }
}

/* The rest is not looked at when it is too much for the budget. */
static void resolve(struct pcow_mapping *m, struct unit *u, struct late *l)
{
  uint64_t most = vmabudget_limit();
  int ret = 0;

  l->zero = map_unit_first(m, u->number);
  l->pages = MIN(m->unit_pages, map_pages(m) - l->zero);
  l->segments = g_array_new(FALSE, FALSE, sizeof(struct segment));
  for (uint64_t first = 0, to; ret == 0 && first < l->pages && l->segments->len < most; first = to) {
    to = MIN(l->pages, first + VIEW_PIECE_PAGES);
    ret = plan_unit(m, u, first, to, l->segments);
    l->known = ret == 0 && to == l->pages;
  }
  count(m, l);
}

/* Each piece makes two areas more at most. When all units that are still late are taken for such as this one, and
 * there is room for that, there is for this one. */
static bool has_room(const struct pcow_mapping *m, const struct late *l, uint64_t pieces)
{
  uint64_t laid = m->late_units, left = m->late_count > laid ? m->late_count - laid : 1;
  int64_t room = vmabudget_room();

  return room > 0 && (2 * pieces <= (uint64_t)room / ROOM_SHARE || l->segments->len * left <= (uint64_t)room);
}

/* The kernel makes the copies. Between the two calls stores leave copies that nobody tracks. */
static int lay_async(struct pcow_mapping *m, struct map_unit *mu, const struct segment *s, uint64_t first)
{
  uint8_t *address = map_address(m, s->page);
  int ret = lay_file(m, s);

  if (ret)
    return ret;
  madvise(address, s->count * PAGE_BYTES, MADV_DONTFORK);
  area_forget(m, mu, first, first + s->count);
  if (s->layer->tmpfs)
    m->lower_tmpfs = true;
  if (s->layer->dax)
    m->lower_dax = true;
  if (tracking_register(m, address, s->count * PAGE_BYTES))
    tracking_lose(m, mu->number);
  tracking_note(m, mu->number, first, first + s->count);
  area_note(m, mu, first, first + s->count, false, false);
  return 0;
}

static int lay_armed(struct pcow_mapping *m, uint64_t unit, const struct segment *s, uint64_t first)
{
  int fd = layer_fd_get(s->layer), ret;

  if (fd < 0)
    return fd;
  ret = area_lower(m, unit, first, first + s->count, fd, s->offset);
  layer_fd_put(s->layer);
  return ret;
}

static int lay(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, const struct segment *s, bool shared_only)
{
  uint64_t first = s->page - map_unit_first(m, u->number);

  if (s->kind == SEGMENT_SHARED)
    return area_share_late(m, u, first, first + s->count);
  if (shared_only)
    return 0;
  if (s->kind == SEGMENT_PRIVATE)
    return m->flush_durable ? lay_async(m, mu, s, first) : lay_armed(m, u->number, s, first);
  if (s->kind == SEGMENT_ZERO) {
    bits_clear(mu->fill, first, first + s->count);
    map_unit_set(m, &mu->lazy, first, first + s->count);
  }
  return 0;
}

static void lay_all(struct pcow_mapping *m, struct unit *u, const struct late *l, bool shared_only)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  bool async = l->async && !shared_only;
  int ret = 0;

  /* First the unit is among the dirty ones: a flush waits for the unit's lock. Then it is mapped, and stored to.
   * Then it is tracked. What was stored until then is dirty: the flush that waited finds it. */
  if (async)
    tracking_busy(m, u->number);
  for (unsigned i = 0; ret == 0 && i < l->segments->len; i++)
    ret = lay(m, u, mu, &g_array_index(l->segments, struct segment, i), shared_only);
  if (async)
    tracking_catch_up(m, l->zero, l->zero + l->pages);
}

/* Nothing of a unit that could be laid out is filled on demand. */
static void trim(struct pcow_mapping *m, struct map_unit *mu)
{
  if (map_find(mu->fill, 0, m->unit_pages, true) == m->unit_pages)
    g_clear_pointer(&mu->fill, g_free);
}

int late_lay_out(struct pcow_mapping *m, struct unit *u, bool patient)
{
  struct late l = { 0 };
  bool all, shared;

  if (!patient && m->unit_pages > VIEW_PIECE_PAGES)
    return -EAGAIN;             /* to look at all of it takes long */
  resolve(m, u, &l);
  all = l.known && has_room(m, &l, l.shared + l.async + l.armed);
  shared = l.known && has_room(m, &l, l.shared);
  if (!patient && (l.armed || !all || l.segments->len > HANDLER_PIECES)) {
    g_array_unref(l.segments);
    return -EAGAIN;
  }
  map_unit_get(m, u->number);
  m->late_units++;
  /* Too many pieces: gaps of zeros may be published, which takes no space; nothing else is written because
   * somebody reads. */
  if (all)
    lay_all(m, u, &l, false);
  else if (l.known && !l.async && !l.armed && !l.filled)
    merge_unit(m, u);
  else if (shared)
    lay_all(m, u, &l, true);
  trim(m, map_unit_get(m, u->number));
  g_array_unref(l.segments);
  uffd_wake(m->uffd, map_address(m, l.zero), l.pages * PAGE_BYTES);
  return 0;
}

void late_neighbours(struct pcow_mapping *m, uint64_t unit, bool patient)
{
  uint64_t count_most = (NEIGHBOUR_BYTES / PAGE_BYTES) >> m->unit_shift;
  uint64_t end = MIN(unit + MAX(count_most, 1), (map_pages(m) + m->unit_pages - 1) >> m->unit_shift);

  while (++unit < end && map_is_late(m, unit)) {
    int error;
    struct unit *u = head_trylock_unit(m->image->head, unit, &error);

    if (!u)
      return;
    if (map_is_late(m, unit))
      late_lay_out(m, u, patient);
    head_unlock_unit(m->image->head, u);
  }
}
