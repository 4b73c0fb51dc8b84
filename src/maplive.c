/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the rest of the library does to a mapping while writers run: pages that were written through
 * the API, discards, live snapshots, growth. Called with the image or the unit locked, by threads that
 * may move regions.
 */
#include "mapstate.h"

#include "error.h"
#include "mapping.h"
#include "order.h"
#include "uffd.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <sys/mman.h>

#define LEAVE_GAP 64u           /* pages that are filled along with what must be */
#define PIECES_MOST 16u         /* in a unit, before one move over all of them is cheaper */

int mapping_published(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;
  uint64_t zero;
  int ret;

  if (!m || map_is_late(m, u->number))
    return 0;
  zero = map_unit_first(m, u->number);
  ret = area_arm_range(m, zero + first, zero + end);
  if (ret == 0)
    ret = area_share(m, u, first, end);
  if (ret == -ENOMEM || (ret == 0 && vmabudget_pressed() && vmabudget_room() < -(int64_t)vmabudget_limit() / 8))
    ret = merge_unit(m, u);
  uffd_wake(m->uffd, map_address(m, zero + first), (end - first) * PAGE_BYTES);
  return ret;
}

/* ---- Discard ---- */

/* Sets or clears in NEEDS what is set in BITS. */
static void mark(uint64_t *needs, uint64_t first, uint64_t end, const uint64_t *bits, bool value)
{
  for (uint64_t at = first; (at = map_find(bits, at, end, true)) < end;) {
    uint64_t to = map_find(bits, at, end, false);

    if (value)
      bits_set(needs, at - first, to - first);
    else
      bits_clear(needs, at - first, to - first);
    at = to;
  }
}

/* Marks in NEEDS (pages relative to FIRST) what has to be replaced by zeros. */
static int find_not_zero(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first,
                         uint64_t end, uint64_t *needs)
{
  g_autoptr(GArray) segments = g_array_new(FALSE, FALSE, sizeof(struct segment));
  uint64_t zero = map_unit_first(m, u->number);

  for (uint64_t at = first, to; at < end; at = to) {
    int ret;

    to = MIN(end, (at / VIEW_PIECE_PAGES + 1) * VIEW_PIECE_PAGES);
    g_array_set_size(segments, 0);
    ret = plan_unit(m, u, at, to, segments);
    if (ret)
      return ret;
    for (unsigned i = 0; i < segments->len; i++) {
      const struct segment *s = &g_array_index(segments, struct segment, i);

      if (s->kind != SEGMENT_ZERO)
        bits_set(needs, s->page - zero - first, s->page - zero - first + s->count);
    }
  }
  /* Space that was reserved and never stored to looks like a hole, and must not stay writable; but the
   * file system fills the holes of native units. Dense and filled pages turn to zeros where they are. */
  mark(needs, first, end, mu->writable, m->guarded);
  mark(needs, first, end, mu->dense, false);
  mark(needs, first, end, mu->fill, false);
  mark(needs, first, end, mu->async, false);    /* later, when nothing can fail any more */
  return 0;
}

/* Clean copies go: when they are read again they are zeros. */
static void drop_copies(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t zero = map_unit_first(m, u->number);

  while ((first = map_find(mu->resident, first, end, true)) < end) {
    uint64_t to = map_find(mu->resident, first, end, false);

    madvise(map_address(m, zero + first), (to - first) * PAGE_BYTES, MADV_DONTNEED);
    bits_clear(mu->resident, first, to);
    m->dram_pages -= to - first;
    first = to;
  }
}

int mapping_discard(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;
  g_autofree uint64_t *needs = NULL;
  struct map_unit *mu;
  int ret;

  if (!m || map_is_late(m, u->number))
    return 0;
  mu = map_unit_get(m, u->number);
  needs = g_try_malloc0(bits_words(end - first) * 8);
  if (!needs)
    return fail(ENOMEM, "%s: no memory to discard %" PRIu64 " pages", image->path, end - first);
  ret = find_not_zero(m, u, mu, first, end, needs);
  if (ret)
    return ret;
  drop_copies(m, u, mu, first, end);
  /* The hole of a dense region raises an event by itself. */
  for (uint64_t at = first; (at = map_find(mu->dense, at, end, true)) < end;) {
    uint64_t to = map_find(mu->dense, at, end, false);

    if (mu->writable)
      bits_clear(mu->writable, at, to);
    at = to;
  }
  for (uint64_t at = 0; ret == 0 && (at = bits_find(needs, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(needs, at, end - first, false);

    ret = area_zero(m, u->number, first + at, first + to);
    at = to;
  }
  return ret;
}

void mapping_undo_discard(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;
  uint64_t zero;

  if (!m || map_is_late(m, u->number))
    return;
  zero = map_unit_first(m, u->number);
  /* What was shared is zeros now, and can be written to. */
  for (uint64_t at = first; m->all_async && u->present && (at = bits_find(u->present, at, end, true)) < end;) {
    uint64_t to = bits_find(u->present, at, end, false);

    if (area_share(m, u, at, to))
      log_message(PCOW_LOG_ERROR, "after a discard that failed: %s", error_message());
    at = to;
  }
  if (m->all_async)
    return;
  for (uint64_t to; first < end; first = to) {
    const struct map_unit *mu = map_unit_get(m, u->number);

    to = map_find(mu->async, first, end, true);
    if (to > first && (area_arm_range(m, zero + first, zero + to) || area_fill(m, u->number, first, to)))
      log_message(PCOW_LOG_ERROR, "after a discard that failed: %s", error_message());
    to = map_find(mu->async, to, end, false);
  }
}

/* Async pages now, when only too many areas can be in the way: then the map goes on to show what it had. */
int mapping_discarded(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;
  int ret = 0;

  if (!m || map_is_late(m, u->number))
    return 0;
  while (ret == 0 && first < end) {
    const struct map_unit *mu = map_unit_get(m, u->number);
    uint64_t to;

    first = map_find(mu->async, first, end, true);
    to = map_find(mu->async, first, end, false);
    if (first < to)
      ret = area_zero(m, u->number, first, to);
    first = to;
  }
  return ret;
}

/* ---- Live snapshots ---- */

static unsigned count_runs(const uint64_t *bits, uint64_t pages)
{
  unsigned n = 0;

  for (uint64_t at = 0; (at = map_find(bits, at, pages, true)) < pages; n++)
    at = map_find(bits, at, pages, false);
  return n;
}

/* Protects what is shared and writable where it is, and writes back what was stored. Pages between that
 * are armed are protected once more, which changes nothing. */
static int cut_in_place(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t zero = map_unit_first(m, u->number);
  uint8_t *address = map_address(m, zero + first);
  int ret = uffd_register(m->uffd, address, (end - first) * PAGE_BYTES, UFFD_WP);

  if (ret == 0)
    ret = ORDERED("live S.1", uffd_protect(m->uffd, address, (end - first) * PAGE_BYTES));
  if (ret)
    return fail_errno(-ret, "%s: cannot write-protect the mapping", m->image->path);
  /* All of it is protected: whatever fails, a store must find that its page is not writable. */
  while ((first = bits_find(mu->writable, first, end, true)) < end) {
    uint64_t to = bits_find(mu->writable, first, end, false);

    if (ret == 0 && !m->flush_durable)   /* there all of it is synced */
      ret = ORDERED("live S.2", area_write_back(m, u, first, to));
    bits_clear(mu->writable, first, to);
    first = to;
  }
  return ret;
}

/* Moves empty memory over the pages, to be filled on demand, and writes back what was stored. */
static int cut_away(struct pcow_mapping *m, struct unit *u, const uint64_t *stored, uint64_t first, uint64_t end)
{
  uint64_t zero = map_unit_first(m, u->number);
  int ret = area_arm_range(m, zero + first, zero + end);

  if (ret == 0)
    ret = area_fill(m, u->number, first, end);
  while (ret == 0 && !m->flush_durable && (first = bits_find(stored, first, end, true)) < end) {
    uint64_t to = bits_find(stored, first, end, false);

    ret = ORDERED("moved S.2", persist_writeback(m->image->store->p, head_page_offset(m->image->head, u, first),
                                                 (to - first) * PAGE_BYTES));
    first = to;
  }
  return ret;
}

static bool has_lazy(struct pcow_mapping *m, const struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t from = first, to = end;

  area_trim_lazy(m, mu->number, first, &from, &to);
  return to < end || map_find(mu->lazy, first, end, true) < end;
}

/* From here on no store reaches the unit's slot. */
static int cut_unit(struct pcow_mapping *m, struct unit *u, struct map_unit *mu)
{
  uint64_t pages = m->unit_pages, first, end = pages;
  g_autofree uint64_t *stored = g_try_malloc0(bits_words(pages) * 8);
  bool in_place, whole;
  int ret = 0;

  if (!stored)
    return fail(ENOMEM, "%s: no memory for a snapshot of unit %" PRIu64, m->image->path, u->number);
  /* Dense pages, too, although some have no block. */
  for (uint64_t i = 0; i < bits_words(pages); i++)
    stored[i] = (mu->writable ? mu->writable[i] : 0) | (mu->dense ? mu->dense[i] : 0);
  first = bits_find(stored, 0, pages, true);
  if (first == pages)
    return 0;
  while (!bits_test(stored, end - 1))
    end--;

  for (uint64_t at = first; m->all_async && ret == 0 && (at = bits_find(stored, at, end, true)) < end;) {
    uint64_t to = bits_find(stored, at, end, false);

    ret = area_track(m, u, at, to);
    at = to;
  }
  if (m->all_async)
    return ret;
  /* Many pieces: all that lies between is taken with them, where it may be. Async pages may not: they have
   * stores that came after what was published of them. */
  whole = count_runs(stored, pages) > PIECES_MOST && map_find(mu->async, first, end, true) == end;
  in_place = m->tmpfs && map_find(mu->dense, first, end, true) == end;
  if (whole && in_place && map_find(mu->fill, first, end, true) == end && !has_lazy(m, mu, first, end))
    return cut_in_place(m, u, mu, first, end);
  if (whole && !m->tmpfs)
    return cut_away(m, u, stored, first, end);

  for (uint64_t at = first; ret == 0 && (at = bits_find(stored, at, end, true)) < end;) {
    bool dense = map_test(mu->dense, at);
    uint64_t to = MIN(bits_find(stored, at, end, false), map_find(mu->dense, at, end, !dense));

    ret = m->tmpfs && !dense ? cut_in_place(m, u, mu, at, to) : cut_away(m, u, stored, at, to);
    at = to;
  }
  return ret;
}

int mapping_snapshot_cut(struct pcow_image *image)
{
  struct pcow_mapping *m = image->map;
  /* What is stored into async pages from here on comes after the snapshot: it stays in the map's copies. */
  int ret = m && m->flush_durable ? flush_publish(m, 0, map_pages(m)) : 0;

  for (uint64_t i = 0; m && ret == 0 && i < m->unit_count; i++) {
    struct map_unit *mu = m->units[i];
    struct unit *u;

    if (!mu || (!mu->writable && !mu->dense))
      continue;
    u = head_lock_unit(image->head, i, &ret);
    if (!u)
      break;
    ret = cut_unit(m, u, mu);
    head_unlock_unit(image->head, u);
  }
  if (m && m->flush_durable && ret == 0)
    ret = flush_settle(m);
  return ret;
}

int mapping_snapshot_release(struct pcow_image *image, bool committed)
{
  /* Nothing is writable any more. A first write finds its page frozen and copies it, or, when the
   * commit failed, finds it present and only maps it again. */
  if (committed && image->map)
    adapt_forget_kept(image->map);
  return 0;
}

/* ---- Collection ---- */

/* Page FIRST or the next one that is mapped from something beneath, up to END. *TO: where that ends. */
static uint64_t find_lower(const struct map_unit *mu, uint64_t first, uint64_t end, uint64_t *to)
{
  while (first < end) {
    uint64_t *const own[] = { mu->writable, mu->dense, mu->fill };
    uint64_t at = first;

    *to = end;
    for (unsigned i = 0; i < G_N_ELEMENTS(own); i++) {
      at = map_find(own[i], at, end, false);
      *to = MIN(*to, map_find(own[i], first, end, true));
    }
    if (at == first)
      return first;
    first = at;
  }
  return end;
}

int mapping_leave(struct pcow_image *image, uint64_t unit, const uint64_t *bits, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;
  uint64_t gap = vmabudget_pressed() ? UINT64_MAX : LEAVE_GAP;
  struct map_unit *mu;
  uint64_t zero;
  int ret = 0;

  if (!m || map_unit_first(m, unit) >= map_pages(m) || map_is_late(m, unit))
    return 0;
  zero = map_unit_first(m, unit);
  mu = map_unit_get(m, unit);
  end = MIN(end, map_pages(m) - zero);
  while (ret == 0 && (first = bits_find(bits, first, end, true)) < end) {
    uint64_t lower_end, to, next;
    uint64_t lower = find_lower(mu, first, end, &lower_end);

    if (lower > first) {
      first = lower;
      continue;
    }
    /* With it what lies near enough: one VMA for several runs. */
    to = bits_find(bits, first, lower_end, false);
    while ((next = bits_find(bits, to, lower_end, true)) < lower_end && next - to <= gap)
      to = bits_find(bits, next, lower_end, false);
    ret = area_arm_range(m, zero + first, zero + to);
    if (ret == 0)
      ret = area_fill(m, unit, first, to);
    first = to;
  }
  return ret;
}

/* ---- Size ---- */

int mapping_grow(struct pcow_image *image, uint64_t old_size, uint64_t new_size)
{
  struct pcow_mapping *m = image->map;
  uint64_t old_pages = old_size / PAGE_BYTES, units;
  unsigned lazies;
  int ret;

  if (!m)
    return 0;
  if (new_size > m->reserve)
    return fail(ENOSPC, "%s: the mapping has reserved %" PRIu64 " bytes and cannot grow to %" PRIu64,
                image->path, m->reserve, new_size);
  lazies = m->lazies->len;
  units = (old_pages + m->unit_pages - 1) >> m->unit_shift;
  /* A unit is late as a whole: what there is of the last one is filled on demand instead. */
  if (old_pages & (m->unit_pages - 1) && map_is_late(m, old_pages >> m->unit_shift))
    map_unit_get(m, old_pages >> m->unit_shift);
  ret = plan_apply(m, old_pages, new_size / PAGE_BYTES);
  if (ret == 0) {
    m->size = new_size;
    return 0;
  }
  mmap(m->base + old_size, new_size - old_size, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (m->late)
    bits_clear(m->late, units, m->unit_count);
  m->lazy_left -= (gint)(m->lazies->len - lazies);
  g_array_set_size(m->lazies, lazies);
  return ret;
}
