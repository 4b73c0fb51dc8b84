/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which pages of a flush-durable map were written. Lower pages are private mappings whose write protection
 * the kernel lifts by itself; a scan finds the pages that it copied since they were protected last, and
 * protects them again. A page that a scan took is dirty until its content is in the head: so a store is in
 * what the scan's caller copies afterwards, or is found by the next scan.
 *
 * Pages that were never copied are not protected, which would fill page tables: they are told from
 * copied ones by being the file's. Not those of a file with DAX, of which the kernel says nothing (Linux 6.12): the first
 * scan after they were read takes them for copies, once, for it protects them.
 */
#include "mapstate.h"

#include "error.h"
#include "order.h"
#include "uffd.h"

#include <inttypes.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define ACCOUNT_LEAST 512u      /* pages */
#define ENTRY_PRESENT (UINT64_C(1) << 63)       /* of /proc/self/pagemap */
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_ONCE (UINT64_C(1) << 56)
#define FOUND_MOST 85u          /* what the kernel allocates for them takes 2 KiB */

static gint compare_keys(gconstpointer a, gconstpointer b)
{
  return GPOINTER_TO_SIZE(a) < GPOINTER_TO_SIZE(b) ? -1 : GPOINTER_TO_SIZE(a) > GPOINTER_TO_SIZE(b);
}

/* A flush looks at this without the lock: until nothing is left of what a flush may have to do or to wait for, it must
 * not be 0. track_lock is held. */
static void tally(struct pcow_mapping *m)
{
  uint64_t n = (uint64_t)g_tree_nnodes(m->async_units) + (uint64_t)g_tree_nnodes(m->dirty_units) +
               (uint64_t)g_tree_nnodes(m->lost_units);

  atomic_store_explicit(&m->losing, g_tree_nnodes(m->lost_units) > 0, memory_order_release);
  atomic_store_explicit(&m->tracked, n + m->scan_failed + m->all_async, memory_order_release);
}

/* A registered region that is moved waits until somebody has read that it was. */
static void *tracker_main(void *argument)
{
  struct pcow_mapping *m = argument;
  struct pollfd fds[] = { { m->track_fd, POLLIN, 0 }, { m->stop_fd, POLLIN, 0 } };
  struct uffd_msg msgs[16];

  while (!fds[1].revents)
    if (poll(fds, G_N_ELEMENTS(fds), -1) > 0 && fds[0].revents && read(m->track_fd, msgs, sizeof(msgs)) < 0 &&
        errno != EAGAIN && errno != EINTR)
      g_usleep(1000);           /* does not happen; if it does, the machine must not be taken for it */
  return NULL;
}

int tracking_start(struct pcow_mapping *m)
{
  int ret = uffd_open_tracking(m->image->path, m->all_async, &m->track_fd, &m->pagemap_fd);

  if (ret) {
    m->track_fd = m->pagemap_fd = -1;
    return ret;
  }
  if (m->all_async) {
    m->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (m->stop_fd < 0)
      return fail_errno(errno, "%s: cannot make an eventfd", m->image->path);
    ret = fault_thread(m, &m->tracker, tracker_main, "pcow-tracker");
    if (ret) {
      close(m->stop_fd);
      m->stop_fd = -1;
      return ret;
    }
  }
  m->async_units = g_tree_new(compare_keys);
  m->dirty_units = g_tree_new(compare_keys);
  m->lost_units = g_tree_new(compare_keys);
  m->found = g_new(struct uffd_pages, FOUND_MOST);
  tally(m);
  return 0;
}

void tracking_stop(struct pcow_mapping *m)
{
  if (m->stop_fd >= 0) {
    if (eventfd_write(m->stop_fd, 1) == 0)
      pthread_join(m->tracker, NULL);
    close(m->stop_fd);
  }
  if (m->track_fd < 0)
    return;
  close(m->track_fd);
  close(m->pagemap_fd);
  g_clear_pointer(&m->async_units, g_tree_unref);
  g_clear_pointer(&m->dirty_units, g_tree_unref);
  g_clear_pointer(&m->lost_units, g_tree_unref);
  g_free(m->found);
}

int tracking_register(struct pcow_mapping *m, uint8_t *address, uint64_t length)
{
  /* In huge pages of a file the scan would miss copies. */
  madvise(address, length, MADV_NOHUGEPAGE);
  return uffd_register(m->track_fd, address, length, UFFD_WP);
}

static void insert(struct pcow_mapping *m, GTree *units, uint64_t unit)
{
  g_tree_insert(units, GSIZE_TO_POINTER(unit + 1), units);
  tally(m);
}

static void take_out(struct pcow_mapping *m, GTree *units, uint64_t unit)
{
  g_tree_remove(units, GSIZE_TO_POINTER(unit + 1));
  tally(m);
}

/* The first unit from UNIT to END in the set, or END. */
static uint64_t next_in(GTree *units, uint64_t unit, uint64_t end)
{
  GTreeNode *node = unit < end ? g_tree_lower_bound(units, GSIZE_TO_POINTER(unit + 1)) : NULL;

  return node ? MIN(end, GPOINTER_TO_SIZE(g_tree_node_key(node)) - 1) : end;
}

void tracking_note(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end)
{
  struct map_unit *mu = map_unit_get(m, unit);

  g_mutex_lock(&m->track_lock);
  map_unit_set(m, &mu->async, first, end);
  insert(m, m->async_units, unit);
  g_mutex_unlock(&m->track_lock);
}

/* track_lock is held. */
static void clean(struct map_unit *mu, uint64_t first, uint64_t end)
{
  mu->dirty_pages -= bits_count(mu->dirty, first, end);
  bits_clear(mu->dirty, first, end);
  if (!mu->dirty_pages)
    mu->dirty_first = mu->dirty_end = 0;
}

void tracking_forget(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end)
{
  if (!mu->async)
    return;
  g_mutex_lock(&m->track_lock);
  bits_clear(mu->async, first, end);
  if (mu->dirty_pages)
    clean(mu, first, end);
  adapt_unkeep(m, mu, first, end);
  if (bits_find(mu->async, 0, m->unit_pages, true) == m->unit_pages)
    take_out(m, m->async_units, mu->number);
  g_mutex_unlock(&m->track_lock);
}

void tracking_lose(struct pcow_mapping *m, uint64_t unit)
{
  g_mutex_lock(&m->track_lock);
  insert(m, m->lost_units, unit);
  g_mutex_unlock(&m->track_lock);
}

void tracking_found(struct pcow_mapping *m, uint64_t unit)
{
  g_mutex_lock(&m->track_lock);
  m->scan_failed = true;
  take_out(m, m->lost_units, unit);
  g_mutex_unlock(&m->track_lock);
}

uint64_t tracking_next_lost(struct pcow_mapping *m, uint64_t unit)
{
  uint64_t next;

  if (!atomic_load_explicit(&m->losing, memory_order_acquire))
    return m->unit_count;
  g_mutex_lock(&m->track_lock);
  next = next_in(m->lost_units, unit, m->unit_count);
  g_mutex_unlock(&m->track_lock);
  return next;
}

/* Async ones of pages [first, end) of the mapping become dirty. track_lock is held. */
static void mark(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  for (uint64_t to; first < end; first = to) {
    uint64_t unit = first >> m->unit_shift, zero = map_unit_first(m, unit);
    struct map_unit *mu = g_atomic_pointer_get(&m->units[unit]);
    uint64_t before = mu ? mu->dirty_pages : 0;

    to = MIN(end, zero + m->unit_pages);
    if (!mu && m->all_async)
      mu = map_unit_get(m, unit);
    if (!mu || !mu->async)
      continue;
    if (!mu->dirty)
      mu->dirty = g_malloc0(bits_words(m->unit_pages) * 8);
    for (uint64_t w = (first - zero) / 64; w <= (to - zero - 1) / 64; w++) {
      uint64_t bits = mu->async[w] & ~mu->dirty[w] & bits_word_mask(w, first - zero, to - zero);

      mu->dirty[w] |= bits;
      mu->dirty_pages += bits ? (uint64_t)__builtin_popcountll(bits) : 0;
    }
    if (mu->dirty_pages == before)
      continue;
    mu->dirty_first = before ? MIN(mu->dirty_first, first - zero) : first - zero;
    mu->dirty_end = MAX(mu->dirty_end, to - zero);
    insert(m, m->dirty_units, unit);
  }
}

void tracking_mark(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  g_mutex_lock(&m->track_lock);
  mark(m, first, end);
  g_mutex_unlock(&m->track_lock);
}

/* Finds pages [first, end) of the mapping, and tells FN. */
static int scan(struct pcow_mapping *m, uint64_t first, uint64_t end, bool protect, struct uffd_pages *found,
                unsigned most, void (*fn)(struct pcow_mapping *m, uint64_t first, uint64_t end, void *opaque),
                void *opaque)
{
  uint64_t base = (uintptr_t)m->base;
  uint64_t at = base + first * PAGE_BYTES, stop = base + end * PAGE_BYTES;

  /* It returns early also while there is room for more. */
  while (at < stop) {
    uint64_t walked = at;
    unsigned room = (unsigned)MIN(most, (stop - at) / PAGE_BYTES);
    int n = uffd_scan(m->pagemap_fd, at, stop, protect, found, room, &walked);

    if (n < 0)
      return n;
    for (int i = 0; i < n; i++)
      fn(m, (found[i].start - base) >> PAGE_SHIFT, (found[i].end - base) >> PAGE_SHIFT, opaque);
    m->scans++;
    at = walked;
  }
  return 0;
}

static void mark_found(struct pcow_mapping *m, uint64_t first, uint64_t end, void *opaque)
{
  uint64_t *found = opaque;

  *found += end - first;
  mark(m, first, end);
}

/* Pages of units with async pages, which bear what that costs. track_lock is held. */
static int scan_units(struct pcow_mapping *m, uint64_t first, uint64_t end, bool protect)
{
  uint64_t unit_end = (end + m->unit_pages - 1) >> m->unit_shift;
  uint64_t unit = next_in(m->async_units, first >> m->unit_shift, unit_end);
  uint64_t found = 0;
  /* A few pages cost the same whatever is resident. */
  bool account = end - first >= ACCOUNT_LEAST;
  int64_t since;
  int ret = 0;

  /* A few areas, and where there is nothing, no page tables. */
  if (m->all_async)
    return scan(m, first, end, protect, m->found, FOUND_MOST, mark_found, &found);

  since = account && unit < unit_end ? adapt_clock() : 0;
  while (ret == 0 && unit < unit_end) {
    found = 0;
    ret = scan(m, MAX(first, map_unit_first(m, unit)), MIN(end, map_unit_first(m, unit + 1)), protect, m->found,
               FOUND_MOST, mark_found, &found);
    if (account) {
      int64_t now = adapt_clock();

      adapt_scanned(m, m->units[unit], since, now, found);
      since = now;
    }
    unit = next_in(m->async_units, unit + 1, unit_end);
  }
  return ret;
}

uint64_t tracking_next_costly(struct pcow_mapping *m, uint64_t unit, uint64_t end)
{
  if (unit >= end)
    return end;
  g_mutex_lock(&m->track_lock);
  unit = next_in(m->async_units, unit, end);
  while (unit < end && !adapt_is_costly(m, m->units[unit]))
    unit = next_in(m->async_units, unit + 1, end);
  g_mutex_unlock(&m->track_lock);
  return unit;
}

int tracking_take(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  int ret = 0;

  g_mutex_lock(&m->track_lock);
  if (!m->scan_failed)
    ret = scan_units(m, first, end, true);
  if (ret)
    m->scan_failed = true;      /* it may have protected what it did not tell */
  if (m->scan_failed) {
    ret = scan_units(m, 0, map_pages(m), false);
    if (ret == 0)
      m->scan_failed = false;
    tally(m);
  }
  g_mutex_unlock(&m->track_lock);
  return ret ? fail_errno(-ret, "%s: cannot find out which pages of the mapping were written", m->image->path)
             : 0;
}

void tracking_catch_up(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  uint64_t found = 0;

  g_mutex_lock(&m->track_lock);
  if (scan(m, first, end, false, m->found, FOUND_MOST, mark_found, &found))
    m->scan_failed = true;
  g_mutex_unlock(&m->track_lock);
}

void tracking_busy(struct pcow_mapping *m, uint64_t unit)
{
  g_mutex_lock(&m->track_lock);
  insert(m, m->dirty_units, unit);
  g_mutex_unlock(&m->track_lock);
}

uint64_t tracking_next_dirty(struct pcow_mapping *m, uint64_t unit, uint64_t end)
{
  uint64_t next;

  if (unit >= end)
    return end;
  g_mutex_lock(&m->track_lock);
  next = next_in(m->dirty_units, unit, end);
  g_mutex_unlock(&m->track_lock);
  return next;
}

uint64_t *tracking_claim(struct pcow_mapping *m, struct map_unit *mu, uint64_t *first, uint64_t *end)
{
  uint64_t *bits = NULL;

  g_mutex_lock(&m->track_lock);
  *first = MAX(*first, mu->dirty_first);
  *end = MAX(MIN(*end, mu->dirty_end), *first);
  *first = map_find(mu->dirty, *first, *end, true);
  if (*first < *end)
    bits = g_try_malloc0(bits_words(*end - *first) * 8);
  for (uint64_t at = *first; bits && (at = bits_find(mu->dirty, at, *end, true)) < *end;) {
    uint64_t to = bits_find(mu->dirty, at, *end, false);

    bits_set(bits, at - *first, to - *first);
    at = to;
  }
  if (bits)
    clean(mu, *first, *end);
  g_mutex_unlock(&m->track_lock);
  return bits;
}

void tracking_done(struct pcow_mapping *m, struct map_unit *mu)
{
  g_mutex_lock(&m->track_lock);
  if (!mu->dirty_pages)
    take_out(m, m->dirty_units, mu->number);
  g_mutex_unlock(&m->track_lock);
}

struct copied {
  uint64_t first;               /* of the mapping */
  uint64_t *bits;
};

static void note_copied(struct pcow_mapping *m, uint64_t first, uint64_t end, void *opaque)
{
  struct copied *c = opaque;

  (void)m;
  bits_set(c->bits, first - c->first, end - c->first);
}

int tracking_copied(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, uint64_t *bits)
{
  uint64_t zero = map_unit_first(m, unit);
  struct copied c = { zero + first, bits };
  struct uffd_pages found[16];
  int ret = scan(m, zero + first, zero + end, false, found, G_N_ELEMENTS(found), note_copied, &c);

  return ret ? fail_errno(-ret, "%s: cannot find out which pages of the mapping were written", m->image->path)
             : 0;
}

void tracking_certain(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, uint64_t *bits)
{
  uint64_t entries[64], page = map_unit_first(m, unit);

  /* A page that the kernel made for this map is mapped once. So may be one of a file, which says that it is. */
  for (uint64_t at = first, n; at < end; at += n) {
    off_t place = (off_t)((uintptr_t)map_address(m, page + at) / PAGE_BYTES * sizeof(entries[0]));
    ssize_t got;

    n = MIN(end - at, G_N_ELEMENTS(entries));
    got = pread(m->pagemap_fd, entries, n * sizeof(entries[0]), place);
    for (uint64_t i = 0; got > 0 && i < (uint64_t)got / sizeof(entries[0]); i++)
      if ((entries[i] & (ENTRY_PRESENT | ENTRY_FILE | ENTRY_ONCE)) == (ENTRY_PRESENT | ENTRY_ONCE))
        bits_set(bits, at + i - first, at + i - first + 1);
  }
}
