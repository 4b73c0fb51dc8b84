/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clean copies, in memory, of pages that cannot be mapped: they lie on a file system that userfaultfd
 * cannot protect, or in too many pieces. Copied in when they are read, protected against writing, and
 * dropped again, oldest first, beyond the limit.
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"

#include <sched.h>
#include <sys/mman.h>

#define FILL_LEAST 16u          /* pages */
#define ENTRY_BITS 16           /* of an entry in the queue: pages of one copy */

int filling_bytes(struct pcow_mapping *m, struct unit *u, uint64_t unit, uint64_t page, uint64_t count,
                  uint8_t *buffer)
{
  if (u)
    return head_read(m->image->head, u, page * PAGE_BYTES, buffer, count * PAGE_BYTES);
  return view_cache_read(m->image->runs, (map_unit_first(m, unit) + page) * PAGE_BYTES, buffer,
                         count * PAGE_BYTES);
}

/* Drops what is left of one copy. The unit is locked. */
static void drop(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end)
{
  struct map_unit *mu = map_unit_get(m, unit);

  while ((first = map_find(mu->resident, first, end, true)) < end) {
    uint64_t to = map_find(mu->resident, first, end, false);

    /* Registered MISSING: the next access raises an event again. */
    madvise(map_address(m, map_unit_first(m, unit) + first), (to - first) * PAGE_BYTES, MADV_DONTNEED);
    bits_clear(mu->resident, first, to);
    m->dram_pages -= to - first;
    first = to;
  }
}

/* Entries whose pages were written or discarded meanwhile are dead, but stay until they are the oldest. */
static bool take_oldest(struct pcow_mapping *m, uint64_t *entry)
{
  bool take;

  g_mutex_lock(&m->lock);
  take = !g_queue_is_empty(&m->fills) &&
         (m->dram_pages > m->dram_limit || g_queue_get_length(&m->fills) > m->dram_limit / 4 + 1024);
  if (take)
    *entry = GPOINTER_TO_SIZE(g_queue_pop_head(&m->fills));
  g_mutex_unlock(&m->lock);
  return take;
}

static void push(struct pcow_mapping *m, uint64_t entry)
{
  g_mutex_lock(&m->lock);
  g_queue_push_tail(&m->fills, GSIZE_TO_POINTER(entry));
  g_mutex_unlock(&m->lock);
}

/* The caller has LOCKED. */
static void keep_limit(struct pcow_mapping *m, uint64_t locked)
{
  uint64_t entry;

  while (take_oldest(m, &entry)) {
    uint64_t page = entry >> ENTRY_BITS, unit = page >> m->unit_shift;
    uint64_t first = page - map_unit_first(m, unit), end = first + (entry & ((1u << ENTRY_BITS) - 1));
    struct unit *u = NULL;
    int error;

    if (m->writable && unit != locked) {
      u = head_trylock_unit(m->image->head, unit, &error);
      if (!u) {                 /* busy: its turn comes again */
        push(m, entry);
        return;
      }
    }
    drop(m, unit, first, end);
    if (u)
      head_unlock_unit(m->image->head, u);
  }
}

/* Pages around PAGE that lie in fill regions and are absent. */
static void choose(struct pcow_mapping *m, const struct unit *u, const struct map_unit *mu, uint64_t unit,
                   uint64_t page, uint64_t *first, uint64_t *end)
{
  uint64_t zero = map_unit_first(m, unit);
  uint64_t limit = MIN(m->unit_pages, map_pages(m) - zero);
  uint64_t window = window_find(m, zero + page, FILL_LEAST, FILL_BUFFER / PAGE_BYTES, 4);

  *first = page & ~(uint64_t)(FILL_LEAST - 1);
  *end = MIN(*first + window, limit);
  for (uint64_t at = page; at > *first; at--)
    if (!map_test(mu->fill, at - 1) || map_test(mu->resident, at - 1))
      *first = at;
  *end = MIN(map_find(mu->fill, page, *end, false), map_find(mu->resident, page, *end, true));
  if (u)
    head_trim_flights(u, page, first, end);
  window_used(m, zero + page, zero + *end);
}

int filling_read(struct pcow_mapping *m, struct unit *u, uint64_t unit, uint64_t page, uint8_t *buffer,
                 bool patient)
{
  struct map_unit *mu = map_unit_get(m, unit);
  uint64_t zero = map_unit_first(m, unit), first, end, at;
  int ret;

  choose(m, u, mu, unit, page, &first, &end);
  ret = filling_bytes(m, u, unit, first, end - first, buffer);
  for (at = first; ret == 0 && at < end;) {
    uint64_t done;

    ret = uffd_copy(m->uffd, map_address(m, zero + at), buffer + (at - first) * PAGE_BYTES,
                    (end - at) * PAGE_BYTES, m->writable, &done);
    map_unit_set(m, &mu->resident, at, at + done / PAGE_BYTES);
    m->dram_pages += done / PAGE_BYTES;
    at += done / PAGE_BYTES;
    if (ret == -EAGAIN && (patient || done)) {
      sched_yield();            /* the handler, which reads the event of the move, goes on */
      ret = 0;
    } else if (ret == -ENOENT && end - first > 1) {
      /* Two VMAs: they look alike but did not merge. The page alone lies in one. */
      buffer += (page - first) * PAGE_BYTES;
      at = first = page;
      end = page + 1;
      ret = 0;
    } else if (ret == -EEXIST) {
      map_unit_set(m, &mu->resident, at, at + 1);
      m->dram_pages++;
      at++;
      ret = 0;
    }
  }
  if (at > first)
    push(m, (zero + first) << ENTRY_BITS | (at - first));
  keep_limit(m, unit);
  if (ret && at > page)         /* the page itself is there; what is missing is not asked for yet */
    return 0;
  if (ret && ret != -EAGAIN && ret != -ENOSPC && at == first)
    return fail_errno(-ret, "%s: cannot copy a page into the mapping", m->image->path);
  return ret;
}
