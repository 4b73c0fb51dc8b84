/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a flush-durable map does about pages that the kernel copies, when they cost too much. A scan costs by what
 * is resident, an event by what is written: a unit whose scans have cost more than events for the pages that
 * they found would have is protected instead, as it would be in a store-durable map, and leaves the scan. Each
 * unit pays so at most about twice what the better of the two would have cost (it is the ski-rental problem;
 * Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching", 1988), and a map whose flushes are rare keeps
 * the kernel's copies, which cost a writer least.
 *
 * The kernel's copies of pages that have been flushed stay in memory until they are written again: beyond the
 * limit for clean copies they are handed over, too.
 */
#include "mapstate.h"

#include "error.h"
#include "vmabudget.h"

#include <time.h>

#define FAULT_NSEC 50000        /* of a first write that raises an event */
#define DEBT_NSEC 1000000       /* what a unit's scans may cost in vain */
#define SCAN_SHARE 20           /* scans may take one part in so many of the time … */
#define WINDOW_NSEC INT64_C(1000000000) /* … on average over about so long */

int64_t adapt_clock(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

void adapt_scanned(struct pcow_mapping *m, struct map_unit *mu, int64_t since, int64_t now, uint64_t found)
{
  int64_t nsec = now - since;

  if (mu->debt != ADAPT_NEVER)
    mu->debt = MAX(0, mu->debt + nsec - (int64_t)MIN(found, m->unit_pages) * FAULT_NSEC);
  if (now - m->scan_since > 2 * WINDOW_NSEC) {
    m->scan_since = now - WINDOW_NSEC;
    m->scan_nsec /= 2;
  }
  m->scan_nsec += nsec;
}

bool adapt_is_costly(const struct pcow_mapping *m, const struct map_unit *mu)
{
  return mu->debt > DEBT_NSEC && m->scan_nsec * SCAN_SHARE > adapt_clock() - m->scan_since;
}

void adapt_keep(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t before = mu->kept_pages;

  if (!mu->async || first >= end)
    return;
  if (!mu->kept)
    mu->kept = g_malloc0(bits_words(m->unit_pages) * 8);
  for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
    uint64_t bits = mu->async[w] & ~mu->kept[w] & bits_word_mask(w, first, end);

    mu->kept[w] |= bits;
    mu->kept_pages += bits ? (uint64_t)__builtin_popcountll(bits) : 0;
  }
  m->kept += mu->kept_pages - before;
}

void adapt_unkeep(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t n = mu->kept_pages ? bits_count(mu->kept, first, end) : 0;

  if (!n)
    return;
  bits_clear(mu->kept, first, end);
  mu->kept_pages -= n;
  m->kept -= n;
}

void adapt_forget_kept(struct pcow_mapping *m)
{
  for (uint64_t i = 0; m->kept && i < m->unit_count; i++)
    if (m->units[i])
      adapt_unkeep(m, m->units[i], 0, m->unit_pages);
}

/* The copies of pages [first, end) go to the head's slot, run by run. */
static int hand_over_kept(struct pcow_mapping *m, struct unit *u, const struct map_unit *mu, uint64_t first,
                          uint64_t end)
{
  int ret = 0;

  while (ret == 0 && (first = bits_find(mu->kept, first, end, true)) < end && !vmabudget_pressed()) {
    uint64_t to = bits_find(mu->kept, first, end, false);

    ret = handover_hold(m, u, first, to);
    first = to;
  }
  return ret;
}

int adapt_flushed(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  int ret = 0;

  if (m->kept + m->dram_pages <= m->dram_limit || m->all_async || !mu->kept_pages)
    return 0;
  if (!vmabudget_pressed())
    ret = hand_over_kept(m, u, mu, first, end);
  else if (first == 0 && end >= head_unit_pages(m->image->head, u->number))
    ret = merge_unit(m, u);     /* too many pieces: the unit becomes one */
  /* It is a matter of memory only: what there is no space for stays as it is. */
  return ret == -ENOSPC || ret == -ENOMEM ? 0 : ret;
}

int adapt_units(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  uint64_t unit = (first + m->unit_pages - 1) >> m->unit_shift;
  uint64_t unit_end = end == map_pages(m) ? (end + m->unit_pages - 1) >> m->unit_shift : end >> m->unit_shift;
  int ret = 0;

  if (!m->lower_tmpfs || m->all_async)
    return 0;
  for (; ret == 0 && (unit = tracking_next_costly(m, unit, unit_end)) < unit_end; unit++) {
    struct unit *u = vmabudget_pressed() ? NULL : head_lock_unit(m->image->head, unit, &ret);

    if (!u)
      break;
    handover_protect(m, u);
    head_unlock_unit(m->image->head, u);
  }
  return ret;
}
