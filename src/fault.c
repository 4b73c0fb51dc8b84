/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Serves events of a mapping. A first write: the pages around it become present, durably, then they
 * are mapped from the slot and the writer is woken; its store runs again and is the first to reach
 * the slot. Duplicate events are normal (signals, several threads on a page): what is already there
 * is only woken. No thread that may wait holds a lock of the unit while it copies: first writes to other pages
 * of the unit go on.
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define WINDOW_COPY (HUGE_BYTES / PAGE_BYTES)
#define FACTOR_COPY 2u          /* growth of sequential first writes where there is something to copy … */
#define WINDOW_THIN (WINDOW_COPY / 4)   /* … and where space is all that is needed; what a stream that ends */
#define FACTOR_THIN 8u                  /* early has too much of is less than half a MiB */
#define COPY_AT_ONCE 16u         /* pages that the handler copies itself */
#define LAZY_PAGES ((UINT64_C(1) << 30) / PAGE_BYTES)   /* zeros armed at once, at most */
#define WAIT_NSEC 20000000      /* between looks at whether the mapping ends */

/* How a unit is locked, and so what may be done. */
enum turn {
  AT_ONCE,                      /* if nobody has it: by the handler, which does not wait */
  BESIDE,                       /* beside pages in flight */
  ALONE
};

/* What has to be done once nothing is locked any more. */
struct outcome {
  uint64_t first, end;          /* pages of the mapping to wake */
  int ret;
  bool later;                   /* not in this turn */
  bool large;                   /* because it takes a copy of many pages */
  bool laid_out;                /* the unit was late */
  bool held;                    /* until pcow_mapping_resume() */
};

/* ---- First writes ---- */

/* Cuts [*first, *end) down to the pages around PAGE in which no bit is set. */
static void trim(const uint64_t *bits, uint64_t page, uint64_t *first, uint64_t *end)
{
  if (!bits)
    return;
  for (uint64_t at = *first; (at = bits_find(bits, at, page, true)) < page;)
    *first = at = bits_find(bits, at, page, false);
  *end = bits_find(bits, page, *end, true);
}

/* Sets DATA when something has to be copied for PAGE, ALL when anything lies beneath the unit; where holes
 * raise events nobody asks for more than the page. */
static int beneath(struct pcow_mapping *m, const struct unit *u, uint64_t page, bool *data, bool *all)
{
  uint64_t first = map_unit_first(m, u->number);
  g_auto(view_cursor) lower = head_lower(m->image->head);
  int ret;
  const struct run *r = view_cursor_at(&lower, first + page, &ret);

  *data = *all = r && r->kind == RUN_DATA;
  for (uint64_t at = first; r && !m->guarded && !*all && at < first + m->unit_pages;) {
    r = view_cursor_at(&lower, at, &ret);
    if (r) {
      *all = r->kind == RUN_DATA;
      at = r->page + r->count;
    }
  }
  return ret;
}

/* How much a fault on PAGE of a unit takes: as the stream goes on that it continues, else the granule;
 * but of a granule that has nothing yet the page alone, while there is room for the areas that this may
 * cost. So what is written here and there costs a page each, what is written nearby one more fault. */
static void choose_range(struct pcow_mapping *m, const struct unit *u, const struct map_unit *mu, uint64_t page,
                         unsigned factor, uint64_t *first, uint64_t *end)
{
  uint64_t pages = head_unit_pages(m->image->head, u->number);
  uint64_t most = factor == FACTOR_THIN ? WINDOW_THIN : WINDOW_COPY;
  uint64_t window = window_find(m, map_unit_first(m, u->number) + page, 1, most, factor);

  *first = page & ~(m->granule - 1);
  *end = MIN(*first + m->granule, pages);
  if (window > 1)
    *end = MIN(MAX(*first + window, *end), pages);
  else if (m->adaptive && map_find(mu->writable, *first, *end, true) == *end && vmabudget_ample(m->areas)) {
    *first = page;
    *end = page + 1;
  }
}

static int publish(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, unsigned flags)
{
  struct head *h = m->image->head;
  struct head_counts counts = { 0, 0 };
  bool some = u->present && bits_find(u->present, first, end, true) < end;
  /* After a commit that failed on its way, the media may have what is present here as frozen. */
  int ret = store_check(m->image->store);

  /* A present page in a hole, after a discard or a sparse copy of the file, has no block yet. */
  if (ret == 0 && some && (flags & HEAD_RESERVE))
    ret = head_reserve_present(h, u, first, end);
  if (ret == 0)
    ret = head_publish(h, u, first, end, flags, &counts);
  if (ret == 0 && !m->flush_durable)    /* there the flush does */
    ret = head_settle_unit(h, u);
  if (ret == 0) {
    m->copied += counts.copied;
    m->reserved += counts.reserved;
  }
  return ret;
}

/* With nothing beneath and holes left to the file system the whole unit becomes shared at once, but for zeros beside
 * PAGE that nobody has accessed: to protect what is shared takes time for each page. */
static int write_native(struct pcow_mapping *m, struct unit *u, uint64_t page, struct outcome *o)
{
  const struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t first = 0, end = head_unit_pages(m->image->head, u->number);
  int ret;

  area_trim_lazy(m, u->number, page, &first, &end);
  if (!map_test(mu->lazy, page))
    trim(mu->lazy, page, &first, &end);
  ret = publish(m, u, first, end, 0);
  if (ret == 0)
    ret = area_join(m, u, first, end);
  o->first = first;
  o->end = end;
  return ret;
}

static int first_write(struct pcow_mapping *m, struct unit *u, uint64_t page, enum turn turn, struct outcome *o)
{
  unsigned flags = HEAD_RESERVE | (turn == BESIDE ? HEAD_UNLOCKED : 0);
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t zero = map_unit_first(m, u->number);
  uint64_t first, end;
  bool data = false, all = false;
  int ret = beneath(m, u, page, &data, &all);

  if (ret)
    return ret;
  if (!m->guarded && !all && map_find(mu->async, 0, m->unit_pages, true) == m->unit_pages)
    return u->flights ? -EAGAIN : write_native(m, u, page, o);
  choose_range(m, u, mu, page, data ? FACTOR_COPY : FACTOR_THIN, &first, &end);
  trim(mu->writable, page, &first, &end);
  trim(mu->dense, page, &first, &end);
  trim(mu->async, page, &first, &end);
  area_trim_lazy(m, u->number, page, &first, &end);
  head_trim_flights(u, page, &first, &end);
  o->large = turn == AT_ONCE && data && end - first > COPY_AT_ONCE;
  if (o->large)
    return -EAGAIN;
  ret = publish(m, u, first, end, flags);
  if (ret == -ENOSPC && end - first > 1) {
    first = page;
    end = page + 1;
    ret = publish(m, u, first, end, flags);
  }
  o->first = first;
  o->end = end;
  if (ret == 0)
    ret = area_share(m, u, first, end);
  if (ret == -ENOMEM && turn != ALONE)
    return -EAGAIN;
  if (ret == -ENOMEM) {
    o->first = 0;
    o->end = m->unit_pages;
    ret = merge_unit(m, u);
  }
  if (ret == 0)
    window_used(m, zero + page, zero + end);
  return ret;
}

/* A hole of a dense region was accessed, by a read, too: it gets space. */
static int dense_hole(struct pcow_mapping *m, struct unit *u, uint64_t page, struct outcome *o)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t zero = map_unit_first(m, u->number);
  uint64_t first, end;
  int ret;

  choose_range(m, u, mu, page, FACTOR_THIN, &first, &end);
  for (uint64_t at = page; at > first; at--)
    if (!map_test(mu->dense, at - 1))
      first = at;
  end = map_find(mu->dense, page, end, false);
  ret = head_reserve_present(m->image->head, u, first, end);
  if (ret == -ENOSPC && end - first > 1) {
    first = page;
    end = page + 1;
    ret = head_reserve_present(m->image->head, u, first, end);
  }
  o->first = first;
  o->end = end;
  if (ret)
    return ret;
  if (m->populate)
    madvise(map_address(m, zero + first), (end - first) * PAGE_BYTES, MADV_POPULATE_WRITE);
  m->reserved += end - first - (mu->writable ? bits_count(mu->writable, first, end) : 0);
  map_unit_set(m, &mu->writable, first, end);
  window_used(m, zero + page, zero + end);
  return 0;
}

/* ---- Without space ---- */

static bool contains(const GArray *pages, uint64_t page)
{
  for (unsigned i = 0; i < pages->len; i++)
    if (g_array_index(pages, uint64_t, i) == page)
      return true;
  return false;
}

/* The writer stays blocked until pcow_mapping_resume(). */
static void hold(struct pcow_mapping *m, uint64_t page)
{
  bool tell;

  g_mutex_lock(&m->lock);
  if (!contains(m->held, page))
    g_array_append_val(m->held, page);
  tell = !m->told;
  m->told = true;
  g_mutex_unlock(&m->lock);
  if (tell && m->nospace)
    m->nospace(m->opaque, m->image->path, page * PAGE_BYTES);
  else if (tell)
    log_message(PCOW_LOG_ERROR, "%s: a writer of the mapping at offset %" PRIu64 " is held: %s", m->image->path,
                page * PAGE_BYTES, error_message());
}

/* The page cannot be served: its writer is held where there is somebody to make space, else it gets
 * SIGBUS; held as well when even that takes one VMA too many. */
static void give_up(struct pcow_mapping *m, uint64_t page, bool locked, struct outcome *o)
{
  bool space = o->ret == -ENOSPC || o->ret == -ENOMEM;

  o->held = (m->nospace && space) || !area_lose(m, page, locked);
}

/* ---- One fault ---- */

/* Zeros around PAGE of a unit that was late. */
static int arm_lazy(struct pcow_mapping *m, const struct unit *u, const struct map_unit *mu, uint64_t page,
                    struct outcome *o)
{
  o->first = page & ~(LAZY_PAGES - 1);
  o->end = MIN(o->first + LAZY_PAGES, m->unit_pages);
  for (uint64_t at = o->first; (at = bits_find(mu->lazy, at, page, false)) < page;)
    o->first = at = bits_find(mu->lazy, at, page, true);
  o->end = bits_find(mu->lazy, page, o->end, false);
  head_trim_flights(u, page, &o->first, &o->end);
  return area_zero(m, mu->number, o->first, o->end);
}

/* The unit is locked. */
static void resolve(struct pcow_mapping *m, struct unit *u, const struct fault *f, uint8_t *buffer, enum turn turn,
                    struct outcome *o)
{
  uint64_t zero = map_unit_first(m, u->number), page = f->page - zero;
  bool late = map_is_late(m, u->number);
  struct map_unit *mu;

  if (head_in_flight(u, page)) {
    o->later = true;
    return;
  }
  /* Who waits in the unit is woken by that. What the page needs beyond being laid out is done as always. */
  if (late && late_lay_out(m, u, turn != AT_ONCE) == -EAGAIN) {
    o->later = true;
    return;
  }
  o->laid_out = late;
  mu = map_unit_get(m, u->number);
  o->first = page;
  o->end = page + 1;
  if (late && (map_test(mu->writable, page) || map_test(mu->async, page))) {
    /* Nothing. */
  } else if (map_test(mu->dense, page)) {
    m->write_faults++;
    o->ret = dense_hole(m, u, page, o);
  } else if (map_test(mu->writable, page) || map_test(mu->async, page)) {
    m->duplicates++;
  } else if (f->write) {
    /* While there are too many VMAs, writers wait until the worker has merged some. */
    if (turn == AT_ONCE && vmabudget_pressed()) {
      o->later = true;
      return;
    }
    o->ret = first_write(m, u, page, turn, o);
    if (o->ret != -EAGAIN)
      m->write_faults++;
  } else if (map_test(mu->lazy, page)) {
    o->ret = turn == AT_ONCE ? -EAGAIN : arm_lazy(m, u, mu, page, o);
  } else if (map_test(mu->fill, page) && !map_test(mu->resident, page)) {
    o->ret = filling_read(m, u, u->number, page, buffer, turn != AT_ONCE);
    if (o->ret != -EAGAIN)
      m->fill_faults++;
  } else {
    m->duplicates++;
  }
  o->first += zero;
  o->end += zero;
  if (o->ret == -EAGAIN && turn != ALONE)
    o->later = true;
  else if (o->ret)
    give_up(m, f->page, true, o);
}

static void serve_writable(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, enum turn turn,
                           struct outcome *o)
{
  struct head *h = m->image->head;
  uint64_t unit = f->page >> m->unit_shift;
  struct lazy *z = area_lazy(m, f->page);
  struct unit *u;

  if (z && turn == AT_ONCE) {
    o->later = true;
    return;
  }
  if (z) {
    o->ret = area_arm_lazy(m, z);
    if (o->ret)
      give_up(m, f->page, false, o);
    if (o->ret || !f->write)
      return;
  }
  u = turn == AT_ONCE ? head_trylock_beside(h, unit, &o->ret)
      : turn == BESIDE ? head_lock_beside(h, unit, &o->ret) : head_lock_unit(h, unit, &o->ret);
  if (!u) {
    o->later = o->ret == -EAGAIN;
    if (!o->later)
      give_up(m, f->page, false, o);
    return;
  }
  resolve(m, u, f, buffer, turn, o);
  head_unlock_unit(h, u);
  if (o->laid_out)
    late_neighbours(m, unit, turn != AT_ONCE);
}

static void serve_readonly(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, struct outcome *o)
{
  uint64_t unit = f->page >> m->unit_shift, page = f->page - map_unit_first(m, unit);
  struct map_unit *mu = map_unit_get(m, unit);

  if (map_test(mu->resident, page)) {
    m->duplicates++;
    return;
  }
  o->ret = filling_read(m, NULL, unit, page, buffer, true);
  m->fill_faults++;
  if (o->ret)
    give_up(m, f->page, true, o);
}

/* The worker waits for a structural operation to end, but not for pcow_unmap(), which waits for it. */
static bool lock_image(struct pcow_mapping *m, bool patient)
{
  while (pthread_rwlock_tryrdlock(&m->image->lock)) {
    struct timespec until;

    if (!patient || m->stopping)
      return false;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_NSEC;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_rwlock_timedrdlock(&m->image->lock, &until) == 0)
      return true;
  }
  return true;
}

enum served fault_serve(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, bool patient)
{
  const struct outcome none = { .first = f->page, .end = f->page + 1 };
  struct outcome o = none;

  if (!lock_image(m, patient))
    return SERVE_WAITING;
  if (f->page < map_pages(m)) {
    if (m->writable)
      serve_writable(m, f, buffer, patient ? BESIDE : AT_ONCE, &o);
    else
      serve_readonly(m, f, buffer, &o);
  }
  if (o.later && patient) {
    o = none;
    serve_writable(m, f, buffer, ALONE, &o);
  }
  pthread_rwlock_unlock(&m->image->lock);
  if (o.later)
    return o.large ? SERVE_COPYING : SERVE_WAITING;
  if (o.held) {
    hold(m, f->page);
    return SERVED;
  }
  if (o.ret)
    log_message(PCOW_LOG_ERROR, "%s: access to the mapping at offset %" PRIu64 " gives SIGBUS: %s",
                m->image->path, f->page * PAGE_BYTES, error_message());
  uffd_wake(m->uffd, map_address(m, o.first), (o.end - o.first) * PAGE_BYTES);
  return SERVED;
}
