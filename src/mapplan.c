/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a mapping consists of when it is made or grows: the image's view, unit by unit, as segments,
 * neighbours merged. Where that makes too many VMAs, units get coarser: first lower pages are filled on
 * demand instead of mapped, then gaps between the head's pages are published, so that a unit is one VMA.
 *
 * Of a writable map, only so many pieces, and units, are laid out when it is made. All others are late: their
 * first access does it (maplate.c), so that a map is made in a time that does not grow with the image.
 */
#include "mapstate.h"

#include "error.h"
#include "mapping.h"
#include "uffd.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SPARE_SEGMENTS 65536u   /* kept beyond what there is room for: a piece may have 32768 */
/* A map that has no more than these is laid out as a whole when it is made … */
#define WHOLE_PIECES 1024u      /* a unit that has anything counts as one more */
#define WHOLE_BYTES (UINT64_C(4) << 30) /* of such units */
/* … of others so much. */
#define PART_PIECES 64u
#define PART_BYTES (UINT64_C(1) << 30)
#define LATE_BYTES (UINT64_C(1) << 30)  /* units that have nothing are told apart, if so much follows each other … */
#define LATE_PARTS 256u         /* … and is no smaller part of the map */

enum policy { POLICY_RUNS, POLICY_FILL, POLICY_JOIN };

struct unit_cost {
  uint64_t unit;
  uint32_t pieces;
  uint32_t shared;              /* of them, the head's own */
  enum policy policy;
};

struct plan {
  struct pcow_mapping *m;
  uint64_t first, end;          /* pages of the mapping */
  uint64_t planned;             /* pages of units that have something */
  uint64_t late;                /* where late units begin, or would */
  bool large;                   /* there are enough units, without looking into them */
  unsigned late_segments, late_costs;   /* how many there were before that … */
  struct segment late_last;     /* … and the last one as it was */
  GArray *segments;
  uint64_t counted;             /* segments that were too many to be kept */
  uint64_t room;                /* for VMAs */
  GArray *costs;                /* struct unit_cost; only of units with more than zeros */
  bool chosen;                  /* costs hold policies */
  GHashTable *groups;           /* group of units + 1 → policy for all of it; or NULL */
};

/* ---- Segments ---- */

static void add(GArray *segments, uint64_t page, uint64_t count, enum segment_kind kind, struct layer *layer,
                uint64_t offset)
{
  struct segment s = { page, count, kind, layer, offset };

  if (segments->len) {
    struct segment *last = &g_array_index(segments, struct segment, segments->len - 1);
    bool in_file = kind == SEGMENT_SHARED || kind == SEGMENT_PRIVATE;

    if (last->kind == kind && last->page + last->count == page && last->layer == layer &&
        kind != SEGMENT_DENSE && (!in_file || last->offset + last->count * PAGE_BYTES == offset)) {
      last->count += count;
      return;
    }
  }
  g_array_append_val(segments, s);
}

/* Runs of pages [first, end) of the mapping. */
static int add_runs(struct pcow_mapping *m, view_cursor *runs, uint64_t first, uint64_t end, GArray *segments)
{
  while (first < end) {
    int error;
    const struct run *r = view_cursor_at(runs, first, &error);
    enum segment_kind kind = SEGMENT_ZERO;
    uint64_t to;

    if (!r)
      return error;
    to = MIN(end, r->page + r->count);
    if (r->kind == RUN_DATA)
      kind = !m->writable ? SEGMENT_SHARED
             : r->layer->tmpfs || m->flush_durable ? SEGMENT_PRIVATE : SEGMENT_FILL;
    if (kind == SEGMENT_ZERO || kind == SEGMENT_FILL)
      add(segments, first, to - first, kind, NULL, 0);
    else
      add(segments, first, to - first, kind, r->layer, r->offset + (first - r->page) * PAGE_BYTES);
    first = to;
  }
  return 0;
}

/* Present pages: where the file has a hole they are zeros without a block. */
static void add_present(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, GArray *segments)
{
  struct persist *p = m->image->store->p;
  uint64_t zero = head_page_offset(m->image->head, u, 0);
  uint64_t page = map_unit_first(m, u->number);

  while (first < end) {
    uint64_t at = zero + first * PAGE_BYTES, stop = zero + end * PAGE_BYTES;
    bool data = !m->guarded || persist_seek(p, at, stop, true) == at;
    uint64_t to = m->guarded ? (persist_seek(p, at, stop, !data) - zero) >> PAGE_SHIFT : end;

    add(segments, page + first, to - first, data ? SEGMENT_SHARED : SEGMENT_ZERO, NULL, data ? at : 0);
    first = to;
  }
}

int plan_unit(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, GArray *segments)
{
  uint64_t page = map_unit_first(m, u->number);
  g_auto(view_cursor) lower = head_lower(m->image->head);
  int ret = 0;

  while (ret == 0 && first < end) {
    bool present = u->present && bits_test(u->present, first);
    uint64_t to = u->present ? bits_find(u->present, first, end, !present) : end;

    if (present) {
      add_present(m, u, first, to, segments);
    } else {
      ret = add_runs(m, &lower, page + first, page + to, segments);
    }
    first = to;
  }
  return ret;
}

/* ---- Coarser units ---- */

/* All lower pages are one kind; pages that the head has stay. */
static void make_fill(GArray *segments, unsigned from)
{
  unsigned to = from;

  for (unsigned i = from; i < segments->len; i++) {
    struct segment s = g_array_index(segments, struct segment, i);
    struct segment *last = to ? &g_array_index(segments, struct segment, to - 1) : NULL;

    if (s.kind != SEGMENT_SHARED || s.layer) {
      s.kind = SEGMENT_FILL;
      s.layer = NULL;
      s.offset = 0;
    }
    if (last && s.kind == SEGMENT_FILL && last->kind == SEGMENT_FILL && last->page + last->count == s.page)
      last->count += s.count;
    else
      g_array_index(segments, struct segment, to++) = s;
  }
  g_array_set_size(segments, to);
}

/* All pages become present; space is kept for those that were not, unless holes raise events or the
 * file system fills them. */
static int join_unit(struct pcow_mapping *m, struct unit *u, uint64_t pages, GArray *segments)
{
  struct head *h = m->image->head;
  struct head_counts counts = { 0, 0 };
  bool reserve = m->guarded && !m->dense_holes;
  int ret = head_publish(h, u, 0, pages, reserve ? HEAD_RESERVE : 0, &counts);

  if (ret == 0 && reserve)
    ret = head_reserve_present(h, u, 0, pages);
  if (ret == 0)
    ret = head_settle_unit(h, u);
  m->copied += counts.copied;
  m->reserved += counts.reserved;
  m->merges++;
  add(segments, map_unit_first(m, u->number), pages,
      m->dense_holes ? SEGMENT_DENSE : SEGMENT_SHARED, NULL,
      ret ? 0 : head_page_offset(h, u, 0));
  return ret;
}

static int by_unit(const void *a, const void *b)
{
  const struct unit_cost *x = a, *y = b;

  return x->unit < y->unit ? -1 : x->unit > y->unit;
}

static int by_pieces(const void *a, const void *b)
{
  const struct unit_cost *x = a, *y = b;

  return x->pieces > y->pieces ? -1 : x->pieces < y->pieces;
}

/* Small units: whole groups become one piece. The head's slots of a group lie side by side. */
static void choose_groups(struct plan *p)
{
  uint64_t most = map_group_most(p->m);

  p->groups = g_hash_table_new(g_direct_hash, g_direct_equal);
  for (unsigned i = 0; i < p->costs->len; i++) {
    const struct unit_cost *cost = &g_array_index(p->costs, struct unit_cost, i);
    gpointer group = GSIZE_TO_POINTER(cost->unit / most + 1);
    bool join = cost->shared || p->m->all_async || GPOINTER_TO_UINT(g_hash_table_lookup(p->groups, group)) == POLICY_JOIN;

    g_hash_table_insert(p->groups, group, GUINT_TO_POINTER(join ? POLICY_JOIN : POLICY_FILL));
  }
}

/* Chooses the units that get coarser, most fragmented first, until the room is enough. */
static void choose(struct plan *p)
{
  struct unit_cost *costs = (struct unit_cost *)(void *)p->costs->data;
  int64_t room = (int64_t)p->room, need = (int64_t)(p->segments->len + p->counted);

  if (!costs)                   /* no unit costs anything */
    return;
  qsort(costs, p->costs->len, sizeof(*costs), by_pieces);
  /* Filling needs events. */
  for (unsigned i = 0; need > room && !p->m->all_async && i < p->costs->len; i++) {
    uint32_t left = 2 * costs[i].shared + 1;

    if (costs[i].pieces > left + left / 2) {
      need -= (int64_t)(costs[i].pieces - left);
      costs[i].policy = POLICY_FILL;
      costs[i].pieces = left;
    }
  }
  if (p->m->writable && need > room)
    qsort(costs, p->costs->len, sizeof(*costs), by_pieces);
  for (unsigned i = 0; p->m->writable && need > room && i < p->costs->len; i++)
    if (costs[i].pieces > 1) {
      need -= costs[i].pieces - 1;
      costs[i].policy = POLICY_JOIN;
    }
  if (need > room && map_group_most(p->m) > 1)
    choose_groups(p);
  qsort(costs, p->costs->len, sizeof(*costs), by_unit);
}

static enum policy policy_of(const struct plan *p, uint64_t unit)
{
  struct unit_cost key = { .unit = unit };
  const struct unit_cost *found =
    p->chosen && p->costs->len ? bsearch(&key, p->costs->data, p->costs->len, sizeof(key), by_unit) : NULL;

  if (p->groups) {
    gpointer policy = g_hash_table_lookup(p->groups, GSIZE_TO_POINTER(unit / map_group_most(p->m) + 1));

    if (policy)
      return (enum policy)GPOINTER_TO_UINT(policy);
  }
  return found ? found->policy : POLICY_RUNS;
}

/* Notes what some of the unit costs, or makes it as coarse as was chosen. FROM: its first segment. When
 * there is no room for as many, they are only counted: choose() is going to have them made anew. */
static void weigh(struct plan *p, struct unit_cost *cost, unsigned from)
{
  unsigned len = p->segments->len;

  if (p->chosen) {
    if (policy_of(p, cost->unit) == POLICY_FILL)
      make_fill(p->segments, from);
    return;
  }
  for (unsigned i = from; i < len; i++) {
    const struct segment *s = &g_array_index(p->segments, struct segment, i);

    cost->pieces++;
    cost->shared += s->kind == SEGMENT_SHARED && !s->layer;
  }
  if (len > p->room + SPARE_SEGMENTS) {
    p->counted += len - 1;      /* the last one may go on in the next */
    g_array_remove_range(p->segments, 0, len - 1);
  }
}

/* Pages [first, end) of the unit as they are, piece by piece. */
static int build_pieces(struct plan *p, uint64_t unit, struct unit *u, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = p->m;
  struct unit_cost cost = { .unit = unit };
  int ret = 0;

  for (uint64_t to; ret == 0 && first < end; first = to) {
    unsigned from = p->segments->len;

    to = MIN(end, (first / VIEW_PIECE_PAGES + 1) * VIEW_PIECE_PAGES);
    if (u) {
      ret = plan_unit(m, u, first, to, p->segments);
    } else {
      g_auto(view_cursor) runs = { .cache = m->image->runs };

      ret = add_runs(m, &runs, map_unit_first(m, unit) + first, map_unit_first(m, unit) + to, p->segments);
    }
    if (ret == 0)
      weigh(p, &cost, from);
  }
  if (cost.pieces)
    g_array_append_val(p->costs, cost);
  return ret;
}

static int build_unit(struct plan *p, uint64_t unit, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = p->m;
  struct unit *u;
  int ret;

  if (!m->writable)
    return build_pieces(p, unit, NULL, first, end);
  u = head_lock_unit(m->image->head, unit, &ret);
  if (!u)
    return ret;
  if (policy_of(p, unit) == POLICY_JOIN && first == 0)
    ret = join_unit(m, u, end, p->segments);
  else
    ret = build_pieces(p, unit, u, first, end);
  head_unlock_unit(m->image->head, u);
  return ret;
}

/* Passes over what nobody has anything of. Groups that are to become one piece are gone through. */
static int build_skip(struct plan *p, uint64_t *page)
{
  uint64_t end = p->end, next;
  int ret;

  if (p->groups) {
    uint64_t most = map_group_most(p->m), group = (*page >> p->m->unit_shift) / most;

    if (g_hash_table_lookup(p->groups, GSIZE_TO_POINTER(group + 1)))
      return 0;
    end = MIN(end, ((group + 1) * most) << p->m->unit_shift);
  }
  ret = image_next(p->m->image, *page, end, &next);
  if (ret == 0 && next < end)
    next = map_unit_first(p->m, next >> p->m->unit_shift);      /* whole units: a policy is for one */
  if (ret == 0 && next > *page) {
    add(p->segments, *page, next - *page, SEGMENT_ZERO, NULL, 0);
    *page = next;
  }
  return ret;
}

static _Atomic uint64_t eager_override = UINT64_MAX;

void mapping_override_eager(uint64_t pieces) { eager_override = pieces; }

static bool is_beyond(const struct plan *p, uint64_t pieces, uint64_t bytes)
{
  if (eager_override != UINT64_MAX)
    pieces = eager_override;
  return p->segments->len + p->counted + (p->planned >> p->m->unit_shift) >= pieces ||
         p->planned >= bytes / PAGE_BYTES;
}

/* Whether units that have something, from that of PAGE on, make the map large. To count them takes little, as against
 * planning what is in them; what cannot be read is reported when it is. */
static bool looks_large(const struct plan *p, uint64_t page)
{
  const struct pcow_mapping *m = p->m;
  uint64_t planned = p->planned;

  while (page < p->end && planned < WHOLE_BYTES / PAGE_BYTES) {
    planned += m->unit_pages;
    page = (page / m->unit_pages + 1) * m->unit_pages;
    if (page < p->end && image_next(m->image, page, p->end, &page))
      return false;
  }
  return planned >= WHOLE_BYTES / PAGE_BYTES;
}

/* PAGE is where a unit begins that has something: notes whether all from here on should be late in case the map
 * is large, or finds that it is. */
static bool is_enough(struct plan *p, uint64_t page)
{
  const struct pcow_mapping *m = p->m;

  if (p->chosen)
    return page >= p->late;     /* as the first time */
  if (!m->writable || m->all_async || page & (m->unit_pages - 1) || !is_beyond(p, PART_PIECES, PART_BYTES))
    return false;
  if (p->late == UINT64_MAX) {
    p->late = page;
    p->late_segments = p->segments->len;
    p->late_costs = p->costs->len;
    if (p->segments->len)
      p->late_last = g_array_index(p->segments, struct segment, p->segments->len - 1);
    p->large = looks_large(p, page);
  }
  return p->large || is_beyond(p, WHOLE_PIECES, WHOLE_BYTES);
}

/* Back to where late units begin. */
static void cut(struct plan *p)
{
  if (p->chosen || p->counted)
    return;
  g_array_set_size(p->segments, p->late_segments);
  g_array_set_size(p->costs, p->late_costs);
  if (p->late_segments)
    g_array_index(p->segments, struct segment, p->late_segments - 1) = p->late_last;
}

/* Units from PAGE on: those that have nothing are zeros, as far as that is cheaply found out. */
static int build_late(struct plan *p, uint64_t page)
{
  struct pcow_mapping *m = p->m;
  uint64_t step = MAX(LATE_BYTES / PAGE_BYTES, (p->end - p->first) / LATE_PARTS);
  int ret = 0;

  step = MAX(step >> m->unit_shift, 1) << m->unit_shift;
  if (!m->late)
    m->late = g_try_malloc0(bits_words(m->unit_count) * 8);
  if (!m->late)
    return fail(ENOMEM, "%s: no memory for a mapping of %" PRIu64 " units", m->image->path, m->unit_count);
  while (ret == 0 && page < p->end) {
    uint64_t next;

    ret = image_next(m->image, page, p->end, &next);
    if (ret)
      break;
    if (next < p->end)
      next = map_unit_first(m, next >> m->unit_shift);
    if (next > page)
      add(p->segments, page, next - page, SEGMENT_ZERO, NULL, 0);
    page = MIN(p->end, next + step);
    if (next < page)
      add(p->segments, next, page - next, SEGMENT_LATE, NULL, 0);
  }
  return ret;
}

static int build(struct plan *p)
{
  struct pcow_mapping *m = p->m;
  int ret = 0;

  g_array_set_size(p->segments, 0);
  for (uint64_t page = p->first, from; ret == 0 && page < p->end;) {
    uint64_t unit;

    from = page;
    ret = build_skip(p, &page);
    if (ret || page > from)
      continue;
    if (is_enough(p, page)) {
      p->late = p->counted ? page : p->late;
      cut(p);
      m->eager_left = 0;
      return build_late(p, p->late);
    }
    unit = page >> m->unit_shift;
    p->planned += m->unit_pages;
    ret = build_unit(p, unit, page - map_unit_first(m, unit),
                     MIN(p->end - map_unit_first(m, unit), m->unit_pages));
    page = map_unit_first(m, unit + 1);
  }
  if (!p->chosen)
    p->late = UINT64_MAX;       /* the map is not large */
  return ret;
}

/* Filling a read-only map needs events. Where they are not permitted, lay_fill() copies. */
static void want_events(struct plan *p)
{
  bool fill = p->groups != NULL;

  for (unsigned i = 0; i < p->costs->len && !fill; i++)
    fill = g_array_index(p->costs, struct unit_cost, i).policy == POLICY_FILL;
  if (fill && p->m->uffd < 0)
    p->m->uffd = uffd_open(0, p->m->image->path);
}

int plan_apply(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  struct plan p = { .m = m, .first = first, .end = end, .late = UINT64_MAX };
  struct laying laying = { .m = m };
  int ret;

  if (first >= end)
    return 0;
  p.segments = g_array_new(FALSE, FALSE, sizeof(struct segment));
  p.costs = g_array_new(FALSE, FALSE, sizeof(struct unit_cost));
  vmabudget_count();
  p.room = (uint64_t)MAX(vmabudget_room(), 0);
  ret = build(&p);
  if (ret == 0 && p.segments->len + p.counted > p.room) {
    choose(&p);
    p.chosen = true;
    ret = build(&p);
    if (ret == 0 && !m->writable)
      want_events(&p);
  }
  for (unsigned i = 0; ret == 0 && i < p.segments->len; i++)
    ret = lay_segment(&laying, &g_array_index(p.segments, struct segment, i));
  if (ret == 0)
    ret = lay_end(&laying);
  if (ret == 0)
    madvise(map_address(m, first), (end - first) * PAGE_BYTES, MADV_DONTFORK);
  g_array_unref(p.segments);
  g_array_unref(p.costs);
  g_clear_pointer(&p.groups, g_hash_table_unref);
  vmabudget_count();
  return ret;
}
