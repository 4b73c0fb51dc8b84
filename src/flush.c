/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The flush of a flush-durable map: what was written of async pages is copied into the head, then one settling
 * makes it present, durably. Stores into pages that are mapped from the slot need nothing but the fence.
 *
 * Several threads may flush at once. What a scan took is dirty, and its unit in the set of dirty units,
 * until it has been copied under the unit's lock: a later flush waits for that lock, and its fence covers the
 * copy. A copy that fails makes its pages dirty again.
 */
#include "mapstate.h"

#include "error.h"
#include "mapping.h"
#include "order.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Pages of the locked unit are copied to the slot. */
static int copy_run(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, u->number) + first;
  int ret = head_write(m->image->head, u, first * PAGE_BYTES, map_address(m, page), (end - first) * PAGE_BYTES);

  if (ret) {
    tracking_mark(m, page, page + (end - first));
  } else {
    adapt_keep(m, mu, first, end);
    m->flushed += end - first;
  }
  return ret;
}

/* The first page from FIRST to END, none of them present, that the kernel did not certainly copy and that is as it is
 * beneath; or END. */
static uint64_t next_read(struct pcow_mapping *m, struct unit *u, const uint64_t *certain, uint64_t from,
                          uint64_t first, uint64_t end)
{
  uint8_t beneath[PAGE_BYTES];

  for (; first < end; first++)
    if (!bits_test(certain, first - from) &&
        head_read(m->image->head, u, first * PAGE_BYTES, beneath, PAGE_BYTES) == 0 &&
        !memcmp(beneath, map_address(m, map_unit_first(m, u->number) + first), PAGE_BYTES))
      break;
  return first;
}

/* Pages that are not present and of which a scan may have found some that were only read. Those are left alone:
 * the scan has protected them, so that the next one finds what is stored to them from then on. */
static int copy_written(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  g_autofree uint64_t *certain = g_try_malloc0(bits_words(end - first) * 8);
  uint64_t from = first, zero = map_unit_first(m, u->number);
  int ret = 0;

  if (!certain)
    return copy_run(m, u, mu, first, end);
  tracking_certain(m, u->number, first, end, certain);
  while (ret == 0 && first < end) {
    uint64_t to = next_read(m, u, certain, from, first, end);

    if (to > first)
      ret = copy_run(m, u, mu, first, to);
    first = MIN(to + 1, end);
  }
  if (first < end)
    tracking_mark(m, zero + first, zero + end);
  return ret;
}

/* A page that was flushed before is written again: with its neighbours of which that is true, too, it is mapped
 * from the slot from now on. Not with those that nobody asked to flush, [from, to): a device may be writing
 * to them. */
static int hand_over(struct pcow_mapping *m, struct unit *u, const struct map_unit *mu, uint64_t page,
                     uint64_t from, uint64_t to)
{
  uint64_t aligned = page & ~(m->granule - 1);
  uint64_t least = MAX(aligned, from), most = MIN(aligned + m->granule, to);
  uint64_t first = page, end = page + 1;
  int ret;

  while (first > least && map_test(mu->async, first - 1) && bits_test(u->present, first - 1))
    first--;
  while (end < most && map_test(mu->async, end) && bits_test(u->present, end))
    end++;
  ret = handover_hold(m, u, first, end);
  if (ret)
    tracking_mark(m, map_unit_first(m, u->number) + page, map_unit_first(m, u->number) + page + 1);
  return ret;
}

/* Pages of the locked unit were dirty; FROM and TO are what is to be flushed. ALL: also what was only read. */
static int flush_run(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first,
                     uint64_t end, uint64_t from, uint64_t to, bool all)
{
  uint64_t zero = map_unit_first(m, u->number);
  int ret = 0;

  while (ret == 0 && (first = map_find(mu->async, first, end, true)) < end) {
    uint64_t next = u->present ? bits_find(u->present, first, end, true) : end;

    if (next > first && m->lower_dax && !all) {
      ret = copy_written(m, u, mu, first, next);
      first = next;
    } else if (next > first || m->all_async || vmabudget_pressed()) {
      next = MAX(next, first + 1);
      ret = copy_run(m, u, mu, first, next);
      first = next;
    } else {
      ret = hand_over(m, u, mu, first, from, to);
      first++;                  /* neighbours that went along are not async any more */
    }
  }
  if (first < end)
    tracking_mark(m, zero + first, zero + end);
  return ret;
}

static int flush_dirty(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, bool all)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t zero = map_unit_first(m, u->number);
  uint64_t from = first, stop = end;
  g_autofree uint64_t *bits = tracking_claim(m, mu, &from, &stop);
  int ret = 0;

  if (from < stop && !bits)
    return fail(ENOMEM, "%s: no memory to flush %" PRIu64 " pages", m->image->path, stop - from);
  if (!bits) {
    tracking_done(m, mu);
    return 0;
  }
  /* Ordering: F.2 until they are in the head the unit is among the dirty ones: who flushes them waits. */
  if (!ORDERED("F.2", true))
    tracking_done(m, mu);
  for (uint64_t at = 0; (at = bits_find(bits, at, stop - from, true)) < stop - from;) {
    uint64_t to = bits_find(bits, at, stop - from, false);

    if (ret == 0)
      ret = flush_run(m, u, mu, from + at, from + to, first, end, all);
    else
      tracking_mark(m, zero + from + at, zero + from + to);
    at = to;
  }
  tracking_done(m, mu);
  return ret ? ret : adapt_flushed(m, u, first, end);
}

int flush_unit(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  return flush_dirty(m, u, first, end, false);
}

int flush_publish(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  uint64_t unit_end = (end + m->unit_pages - 1) >> m->unit_shift;
  int ret = handover_retrack(m);

  /* Ordering: F.1 pages are protected and noted as dirty. F.2 they are copied. The other way round a store
   * between the two would be lost. */
  if (ret == 0)
    ret = tracking_take(m, first, end);

  for (uint64_t unit = first >> m->unit_shift;
       ret == 0 && (unit = tracking_next_dirty(m, unit, unit_end)) < unit_end; unit++) {
    uint64_t zero = map_unit_first(m, unit);
    struct unit *u = head_lock_unit(m->image->head, unit, &ret);

    if (!u)
      break;
    ret = flush_unit(m, u, MAX(first, zero) - zero, MIN(end, zero + m->unit_pages) - zero);
    head_unlock_unit(m->image->head, u);
  }
  return ret ? ret : adapt_units(m, first, end);
}

/* What is in the slots becomes durable: bits of new pages, and stores through shared pages. */
int flush_settle(struct pcow_mapping *m)
{
  struct persist *p = m->image->store->p;
  int ret = head_settle(m->image->head);

  /* In the other mode the fence was this already. */
  if (ret == 0 && persist_get_mode(p) == PERSIST_PMEM)
    ret = ORDERED("F.4", persist_sync_stores(p));
  return ret;
}

int flush_all(struct pcow_mapping *m)
{
  int ret = flush_publish(m, 0, map_pages(m));

  return ret ? ret : flush_settle(m);
}

/* [offset, offset + length) of a writable mapping, as pages. */
static int check_range(struct pcow_mapping *m, uint64_t offset, uint64_t length, uint64_t *first, uint64_t *end)
{
  if (offset > m->size || length > m->size - offset)
    return fail(EINVAL, "%s: %" PRIu64 " bytes at offset %" PRIu64 " are beyond the end of the mapping",
                m->image->path, length, offset);
  if (!m->writable)
    return fail(EBADF, "%s: is mapped read-only: there is nothing to flush", m->image->path);
  *first = offset >> PAGE_SHIFT;
  *end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  return 0;
}

/* Nothing is async, or was when an earlier flush took it that is not done with it, and nothing is pending: stores
 * reached the slots, and no other thread's work is to be waited for. It cannot change under a caller's stores: where
 * nothing is async, pages become it only in units that are new to the map, or late, and those are dirty before
 * they are stored to (maplate.c). So this takes no lock, and no instruction that waits until the caller's stores have
 * left the CPU: the fence does, once. */
static bool is_idle(const struct pcow_mapping *m)
{
  return ORDERED("idle F.1", atomic_load_explicit(&m->tracked, memory_order_acquire)) == 0 &&
         head_is_settled(m->image->head);
}

static int flush_idle(struct pcow_mapping *m)
{
  struct store *st = m->image->store;
  int ret = store_check(st);

  if (ret)
    return ret;
  return persist_get_mode(st->p) == PERSIST_PMEM ? ORDERED("idle F.4", persist_sync_stores(st->p))
                                                 : persist_fence(st->p);
}

/* Of threads that flush at once one may be missed. */
static void count_flush(struct pcow_mapping *m)
{
  atomic_store_explicit(&m->flushes, atomic_load_explicit(&m->flushes, memory_order_relaxed) + 1,
                        memory_order_relaxed);
}

API int pcow_flush(pcow_mapping *mapping, uint64_t offset, uint64_t length)
{
  struct pcow_mapping *m = mapping;
  uint64_t first, end;
  int ret = check_range(m, offset, length, &first, &end);

  if (ret || !length)
    return ret;
  if (!m->flush_durable)
    return pcow_persist(m, offset, length);
  if (is_idle(m)) {
    ret = flush_idle(m);
    if (ret == 0)
      count_flush(m);
    return ret;
  }
  pthread_rwlock_rdlock(&m->image->lock);
  ret = store_check(m->image->store);
  if (ret == 0)
    ret = flush_publish(m, first, end);
  if (ret == 0)
    ret = flush_settle(m);
  if (ret == 0)
    count_flush(m);
  pthread_rwlock_unlock(&m->image->lock);
  return ret;
}

API int pcow_mark_dirty(pcow_mapping *mapping, uint64_t offset, uint64_t length)
{
  struct pcow_mapping *m = mapping;
  uint64_t first, end;
  int ret = check_range(m, offset, length, &first, &end);

  if (ret || !length || !m->flush_durable)
    return ret;
  tracking_mark(m, first, end);
  return 0;
}

/* ---- What the rest of the library asks for ---- */

int mapping_publish(struct pcow_image *image, uint64_t first, uint64_t end)
{
  struct pcow_mapping *m = image->map;

  if (!m || !m->flush_durable)
    return 0;
  return flush_publish(m, first, MIN(end, map_pages(m)));
}

int mapping_sync(struct pcow_image *image)
{
  return image->map && image->map->flush_durable ? flush_all(image->map) : head_settle(image->head);
}

bool mapping_settles(const struct pcow_image *image) { return image->map && !image->map->flush_durable; }

int mapping_overlay(struct pcow_image *image, struct unit *u, uint64_t offset, void *buffer, uint64_t length)
{
  struct pcow_mapping *m = image->map;
  struct map_unit *mu = m && m->flush_durable && !map_is_late(m, u->number) ? map_unit_get(m, u->number) : NULL;
  uint64_t first = offset >> PAGE_SHIFT, end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  g_autofree uint64_t *bits = NULL;
  int ret;

  if (!mu || map_find(mu->async, first, end, true) == end)
    return 0;
  bits = g_try_malloc0(bits_words(end - first) * 8);
  if (!bits)
    return fail(ENOMEM, "%s: no memory to read %" PRIu64 " pages", image->path, end - first);
  ret = tracking_copied(m, u->number, first, end, bits);
  for (uint64_t at = first; ret == 0 && at < end; at++) {
    uint64_t from = MAX(offset, at * PAGE_BYTES), to = MIN(offset + length, (at + 1) * PAGE_BYTES);

    if (bits_test(bits, at - first) && map_test(mu->async, at))
      memcpy((uint8_t *)buffer + (from - offset),
             m->base + u->number * m->unit_pages * PAGE_BYTES + from, to - from);
  }
  return ret;
}

int mapping_hold(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end)
{
  return image->map ? handover_hold(image->map, u, first, end) : 0;
}

/* Nobody can be made to wait: bytes for async pages go through the map, like a store. */
int mapping_store(struct pcow_image *image, struct unit *u, uint64_t offset, const void *buffer, uint64_t length)
{
  struct pcow_mapping *m = image->map;
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t page = offset >> PAGE_SHIFT, end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  const uint8_t *from = buffer;
  int ret = 0;

  while (ret == 0 && page < end) {
    bool async = map_test(mu->async, page);
    uint64_t to = map_find(mu->async, page, end, !async), zero = map_unit_first(m, u->number);
    uint64_t n = MIN(offset + length, to * PAGE_BYTES) - offset;

    if (!async) {
      ret = head_write(image->head, u, offset, from, n);
    } else if (madvise(map_address(m, zero + page), (to - page) * PAGE_BYTES, MADV_POPULATE_WRITE)) {
      ret = fail_errno(errno, "%s: cannot write %" PRIu64 " bytes through the mapping", image->path, n);
    } else {
      /* First as they are: where there is no space for that, nothing was written. */
      tracking_mark(m, zero + page, zero + to);
      ret = flush_dirty(m, u, page, to, true);
      if (ret == 0) {
        memcpy(map_address(m, zero) + offset, from, n);
        tracking_mark(m, zero + page, zero + to);
        ret = flush_unit(m, u, page, to);
      }
    }
    offset += n;
    length -= n;
    from += n;
    page = to;
  }
  return ret;
}

bool mapping_stores(const struct pcow_image *image) { return image->map && image->map->all_async; }

bool mapping_tracks(struct pcow_image *image, uint64_t unit)
{
  struct pcow_mapping *m = image->map;
  struct map_unit *mu = m && unit < m->unit_count ? g_atomic_pointer_get(&m->units[unit]) : NULL;
  /* Not those beyond the end, which mapping_hold_unit() could do nothing about. */
  uint64_t pages = head_unit_pages(image->head, unit);

  if (m && m->all_async && !mu)
    return unit < m->unit_count;
  return mu && map_find(mu->async, 0, pages, true) < pages;
}

int mapping_hold_unit(struct pcow_image *image, uint64_t unit)
{
  int ret;
  struct unit *u = head_lock_unit(image->head, unit, &ret);

  if (!u)
    return ret;
  ret = handover_hold(image->map, u, 0, head_unit_pages(image->head, unit));
  head_unlock_unit(image->head, u);
  return ret;
}
