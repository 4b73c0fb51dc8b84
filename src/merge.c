/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fewer VMAs, at the price of pages that nobody wrote: aligned regions in which the mapping is in
 * pieces become one piece. Where the head has pages, all others of the region become present, too
 * (what lies beneath is copied, zeros become holes that take no space), and the region is mapped from
 * the slot; where it has none, lower pages are filled on demand from then on. Regions begin small and
 * double as the pressure goes on, up to the unit, and then to groups of neighbouring units: their slots
 * lie side by side (slots.c), so that such a group is one VMA as well.
 */
#include "mapstate.h"

#include "uffd.h"
#include "vmabudget.h"

#define FIRST_REGION_PAGES 32u  /* 128 KiB */
#define PAUSE_AREAS 512         /* after merging found nothing more */
#define GAIN_LEAST 2
#define GROUPS_A_COUNT 64u      /* merged before VMAs are counted again: the tally knows units only */

static bool is_plain(const struct map_unit *mu, uint64_t page)
{
  return map_test(mu->writable, page) && !map_test(mu->dense, page);
}

/* What the region is going to be, as a test of its neighbours. */
static bool same_kind(const struct pcow_mapping *m, const struct map_unit *mu, bool shared, uint64_t page)
{
  if (!shared)
    return map_test(mu->fill, page);
  return m->dense_holes ? map_test(mu->dense, page) : is_plain(mu, page);
}

static bool has_shared(const struct map_unit *mu, uint64_t first, uint64_t end)
{
  return map_find(mu->writable, first, end, true) < end || map_find(mu->dense, first, end, true) < end;
}

/* VMAs saved by making pages [first, end) one region. */
static int64_t gain(const struct pcow_mapping *m, const struct map_unit *mu, bool shared, uint64_t first,
                    uint64_t end)
{
  int64_t edges = (int64_t)bits_count(mu->edges, first, end + 1);

  if (!first || !same_kind(m, mu, shared, first - 1))
    edges--;
  if (end == m->unit_pages || !same_kind(m, mu, shared, end))
    edges--;
  return edges;
}

static int merge_region(struct pcow_mapping *m, struct unit *u, bool shared, uint64_t first, uint64_t end)
{
  struct head *h = m->image->head;
  struct head_counts counts = { 0, 0 };
  uint64_t zero = map_unit_first(m, u->number);
  bool reserve = m->guarded && !m->dense_holes;
  int ret = area_arm_range(m, zero + first, zero + end);

  if (ret == 0)
    ret = handover_hold(m, u, first, end);
  if (ret == 0 && !shared && !has_shared(map_unit_get(m, u->number), first, end))
    return area_fill(m, u->number, first, end);
  if (ret == 0 && reserve)
    ret = u->present && bits_find(u->present, first, end, true) < end
            ? head_reserve_present(h, u, first, end) : 0;
  if (ret == 0)
    ret = head_publish(h, u, first, end, reserve ? HEAD_RESERVE : 0, &counts);
  if (ret == 0 && !m->flush_durable)
    ret = head_settle_unit(h, u);
  if (ret == 0)
    ret = area_join(m, u, first, end);
  if (ret)
    return ret;
  m->copied += counts.copied;
  if (reserve)
    m->reserved += counts.reserved;
  m->merges++;
  uffd_wake(m->uffd, map_address(m, zero + first), (end - first) * PAGE_BYTES);
  return 0;
}

int merge_unit(struct pcow_mapping *m, struct unit *u)
{
  return merge_region(m, u, true, 0, head_unit_pages(m->image->head, u->number));
}

static void merge_in_unit(struct pcow_mapping *m, struct unit *u, const struct map_unit *mu)
{
  uint64_t limit = head_unit_pages(m->image->head, u->number);
  uint64_t size = MIN(m->merge_pages, m->unit_pages);

  for (uint64_t first = 0; first < limit; first += size) {
    uint64_t end = MIN(first + size, limit);
    bool shared = has_shared(mu, first, end);

    /* Without space for copies the region stays as it is. */
    if (gain(m, mu, shared, first, end) >= GAIN_LEAST && merge_region(m, u, shared, first, end))
      return;
  }
}

/* One unit of the round; false when the image is locked. */
static bool visit(struct pcow_mapping *m, uint64_t unit)
{
  struct map_unit *mu = g_atomic_pointer_get(&m->units[unit]);
  struct unit *u;
  int error;

  if (!mu)
    return true;
  if (pthread_rwlock_tryrdlock(&m->image->lock))
    return false;
  u = head_lock_unit(m->image->head, unit, &error);
  if (u) {
    if (mu->edges && bits_find(mu->edges, 1, m->unit_pages, true) < m->unit_pages)
      merge_in_unit(m, u, mu);
    head_unlock_unit(m->image->head, u);
  }
  pthread_rwlock_unlock(&m->image->lock);
  return true;
}

/* ---- Groups of units ---- */

enum group_step { LOOK, JOIN };

struct group {
  bool shared;                  /* some unit has pages of the head */
  bool pieces;                  /* some unit is not one piece from its slot */
};

static void group_unit(struct pcow_mapping *m, struct unit *u, enum group_step step, struct group *g)
{
  uint64_t pages = head_unit_pages(m->image->head, u->number);
  struct map_unit *mu = map_unit_get(m, u->number);
  bool whole = (m->dense_holes ? map_find(mu->dense, 0, pages, false)
                                       : map_find(mu->writable, 0, pages, false)) == pages;

  if (step == LOOK) {
    g->shared |= has_shared(mu, 0, pages);
    g->pieces |= !whole;
  } else if (!whole && merge_region(m, u, true, 0, pages)) {
    g->pieces = false;          /* no space: not this group */
  }
}

/* Units [first, end), each under its lock. False when the image is locked. */
static bool group_step(struct pcow_mapping *m, uint64_t first, uint64_t end, enum group_step step,
                       struct group *g)
{
  for (uint64_t unit = first; unit < end && (step == LOOK || g->pieces); unit++) {
    struct unit *u;
    int error;

    if (step == LOOK && !g_atomic_pointer_get(&m->units[unit])) {
      g->pieces = true;
      continue;
    }
    if (pthread_rwlock_tryrdlock(&m->image->lock))
      return false;
    u = head_lock_unit(m->image->head, unit, &error);
    if (u) {
      group_unit(m, u, step, g);
      head_unlock_unit(m->image->head, u);
    }
    pthread_rwlock_unlock(&m->image->lock);
  }
  return true;
}

static void merge_groups(struct pcow_mapping *m, int64_t target)
{
  uint64_t units = (map_pages(m) + m->unit_pages - 1) >> m->unit_shift;
  unsigned joined = 0;

  vmabudget_count();
  if (!m->merge_units)
    m->merge_units = 2;
  while (vmabudget_room() < target) {
    for (uint64_t first = 0; first < units && vmabudget_room() < target; first += m->merge_units) {
      uint64_t end = MIN(first + m->merge_units, units);
      struct group g = { false, false };

      if (!group_step(m, first, end, LOOK, &g))
        return;
      if (!g.shared || !g.pieces)
        continue;
      if (!group_step(m, first, end, JOIN, &g))
        return;
      if (++joined % GROUPS_A_COUNT == 0)
        vmabudget_count();
    }
    vmabudget_count();
    if (m->merge_units >= map_group_most(m))
      return;
    m->merge_units *= 2;
  }
}

void merge_relieve(struct pcow_mapping *m)
{
  int64_t target = (int64_t)vmabudget_limit() / 6, room;
  uint64_t visited = 0;

  if (!m->writable || !vmabudget_pressed() || vmabudget_room() >= m->merge_pause)
    return;
  if (!m->merge_pages)
    m->merge_pages = FIRST_REGION_PAGES;
  while (vmabudget_room() < target) {
    if (visited == m->unit_count) {
      if (m->merge_pages >= m->unit_pages)
        break;
      m->merge_pages *= 2;
      visited = 0;
    }
    m->merge_unit = (m->merge_unit + 1) % m->unit_count;
    visited++;
    if (!visit(m, m->merge_unit))
      return;
  }
  if (vmabudget_room() < target && map_group_most(m) > 1)
    merge_groups(m, target);
  /* When there is nothing left to merge, trying again at every fault would only cost time. */
  room = vmabudget_room();
  m->merge_pause = room < 0 ? room - PAUSE_AREAS : INT64_MAX;
}
