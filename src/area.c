/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changes what a part of a mapping is mapped from, under running writers. Shared pages of the slot
 * replace others in place: who is blocked on a page finds it writable when it is woken. Everything
 * else, which must not be writable for an instant, is prepared aside, registered and protected, and
 * moved over the range with mremap(2) (without the event that is asked for it would lose its
 * registration on the way). Keeps the bits of what is mapped, and the tally of VMAs.
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* ---- Bits ---- */

struct map_unit *map_unit_get(struct pcow_mapping *m, uint64_t unit)
{
  struct map_unit *mu = g_atomic_pointer_get(&m->units[unit]);

  if (!mu) {
    mu = g_new0(struct map_unit, 1);
    mu->number = unit;
    if (m->all_async)
      map_unit_set(m, &mu->async, 0, m->unit_pages);
    if (map_is_late(m, unit))
      map_unit_set(m, &mu->fill, 0, MIN(m->unit_pages, map_pages(m) - map_unit_first(m, unit)));
    if (!g_atomic_pointer_compare_and_exchange(&m->units[unit], NULL, mu)) {
      g_free(mu->async);
      g_free(mu->fill);
      g_free(mu);
      mu = g_atomic_pointer_get(&m->units[unit]);
    }
  }
  return mu;
}

void map_unit_set(struct pcow_mapping *m, uint64_t **bits, uint64_t first, uint64_t end)
{
  if (first >= end)
    return;
  if (!*bits)
    *bits = g_malloc0(bits_words(m->unit_pages + 1) * 8);
  bits_set(*bits, first, end);
}

void map_unit_free_all(struct pcow_mapping *m)
{
  for (uint64_t i = 0; m->units && i < m->unit_count; i++) {
    struct map_unit *mu = m->units[i];

    if (!mu)
      continue;
    g_free(mu->writable);
    g_free(mu->ahead);
    g_free(mu->dense);
    g_free(mu->fill);
    g_free(mu->resident);
    g_free(mu->lazy);
    g_free(mu->async);
    g_free(mu->dirty);
    g_free(mu->kept);
    g_free(mu->edges);
    g_free(mu);
  }
}

static void clear_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
  if (bits)
    bits_clear(bits, first, end);
}

void area_note(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end, bool joins_left,
               bool joins_right)
{
  uint64_t before = mu->edges ? bits_count(mu->edges, first, end + 1) : 0;

  clear_bits(mu->edges, first, end + 1);
  if (!joins_left)
    map_unit_set(m, &mu->edges, first, first + 1);
  if (!joins_right)
    map_unit_set(m, &mu->edges, end, end + 1);
  m->areas += (int64_t)(!joins_left + !joins_right) - (int64_t)before;
  vmabudget_add((int64_t)(!joins_left + !joins_right) - (int64_t)before);
}

void area_forget(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end)
{
  if (mu->resident)
    m->dram_pages -= bits_count(mu->resident, first, end);
  clear_bits(mu->resident, first, end);
  clear_bits(mu->fill, first, end);
  clear_bits(mu->lazy, first, end);
  clear_bits(mu->dense, first, end);
  clear_bits(mu->writable, first, end);
  clear_bits(mu->ahead, first, end);
  tracking_forget(m, mu, first, end);
}

/* ---- Moving regions ---- */

static int failed(const struct pcow_mapping *m, int error, const char *what, uint64_t page, uint64_t length)
{
  return fail_errno(error, "%s: cannot %s %" PRIu64 " bytes of the mapping at offset %" PRIu64 "%s",
                    m->image->path, what, length, page * PAGE_BYTES,
                    error == ENOMEM ? " (is vm.max_map_count reached?)" : "");
}

/* Fresh memory that lies within 2 MiB as PAGE does, so that huge pages move whole. */
static uint8_t *side_new(struct pcow_mapping *m, uint64_t page, uint64_t length)
{
  uint64_t extra = length >= HUGE_BYTES ? HUGE_BYTES : 0;
  uint8_t *raw = mmap(NULL, length + extra, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0);
  uint64_t skip;

  if (raw == MAP_FAILED)
    return NULL;
  madvise(raw, length + extra, MADV_DONTFORK);
  if (!extra)
    return raw;
  skip = ((uintptr_t)map_address(m, page) - (uintptr_t)raw) & (HUGE_BYTES - 1);
  if (skip)
    munmap(raw, skip);
  if (skip < extra)
    munmap(raw + skip + length, extra - skip);
  return raw + skip;
}

static int side_move(struct pcow_mapping *m, uint8_t *side, uint64_t page, uint64_t length)
{
  int error;

  if (mremap(side, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, map_address(m, page)) != MAP_FAILED)
    return 0;
  error = errno;
  munmap(side, length);
  return failed(m, error, "move memory over", page, length);
}

int area_arm_memory(struct pcow_mapping *m, uint8_t *address, uint64_t length)
{
  uint8_t *from = (uint8_t *)(((uintptr_t)address + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
  uint8_t *to = (uint8_t *)(((uintptr_t)address + length) & ~(uintptr_t)(HUGE_BYTES - 1));
  int ret;

  /* The huge zero page takes one entry for 2 MiB, markers one for each page. Advice for all of it: to be
   * moved, it must stay one VMA. */
  if (m->huge_zero && from < to) {
    madvise(address, length, MADV_HUGEPAGE);
    madvise(from, (uint64_t)(to - from), MADV_POPULATE_READ);
  }
  ret = uffd_register(m->uffd, address, length, UFFD_WP);
  return ret ? ret : uffd_protect(m->uffd, address, length);
}

int area_zero(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, unit) + first, length = (end - first) * PAGE_BYTES;
  struct map_unit *mu = map_unit_get(m, unit);
  uint8_t *side = side_new(m, page, length);
  int ret;

  if (!side)
    return failed(m, errno, "map", page, length);
  ret = m->all_async ? tracking_register(m, side, length) : area_arm_memory(m, side, length);
  if (ret) {
    munmap(side, length);
    return failed(m, -ret, "protect", page, length);
  }
  ret = side_move(m, side, page, length);
  if (ret)
    return ret;
  area_forget(m, mu, first, end);
  if (m->all_async)
    tracking_note(m, unit, first, end);
  area_note(m, mu, first, end, false, false);
  return 0;
}

/* Private memory of a file, to be moved into the map once it is registered. NULL: errno says why. */
static uint8_t *side_of_file(int fd, uint64_t offset, uint64_t length)
{
  uint8_t *side = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset);

  if (side == MAP_FAILED)
    return NULL;
  madvise(side, length, MADV_DONTFORK);
  return side;
}

int area_track(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, u->number) + first, length = (end - first) * PAGE_BYTES;
  struct map_unit *mu = map_unit_get(m, u->number);
  uint8_t *side = side_of_file(m->image->store->fd, head_page_offset(m->image->head, u, first), length);
  int ret;

  if (!side)
    return failed(m, errno, "map", page, length);
  ret = tracking_register(m, side, length);
  if (ret) {
    munmap(side, length);
    return failed(m, -ret, "register", page, length);
  }
  /* Until here what is stored reaches the file, and so the side. */
  ret = side_move(m, side, page, length);
  if (ret)
    return ret;
  area_forget(m, mu, first, end);
  tracking_note(m, u->number, first, end);
  area_note(m, mu, first, end, false, false);
  return 0;
}

int area_lower(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, int fd, uint64_t offset)
{
  uint64_t page = map_unit_first(m, unit) + first, length = (end - first) * PAGE_BYTES;
  uint8_t *side = side_of_file(fd, offset, length);
  int ret;

  if (!side)
    return failed(m, errno, "map", page, length);
  ret = uffd_register(m->uffd, side, length, UFFD_WP);
  if (ret == 0)
    ret = uffd_protect(m->uffd, side, length);
  if (ret) {
    munmap(side, length);
    return failed(m, -ret, "protect", page, length);
  }
  ret = side_move(m, side, page, length);
  if (ret)
    return ret;
  area_forget(m, map_unit_get(m, unit), first, end);
  area_note(m, map_unit_get(m, unit), first, end, false, false);
  return 0;
}

int area_fill(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, unit) + first, length = (end - first) * PAGE_BYTES;
  struct map_unit *mu = map_unit_get(m, unit);
  uint8_t *side = side_new(m, page, length);
  int ret;

  if (!side)
    return failed(m, errno, "map", page, length);
  ret = uffd_register(m->uffd, side, length, UFFD_MISSING | UFFD_WP);
  if (ret) {
    munmap(side, length);
    return failed(m, -ret, "register", page, length);
  }
  ret = side_move(m, side, page, length);
  if (ret)
    return ret;
  area_forget(m, mu, first, end);
  map_unit_set(m, &mu->fill, first, end);
  area_note(m, mu, first, end, first && map_test(mu->fill, first - 1),
            end < m->unit_pages && map_test(mu->fill, end));
  return 0;
}

/* ---- Shared pages of the slot ---- */

static bool joins(const struct map_unit *mu, uint64_t page)
{
  return map_test(mu->writable, page) && !map_test(mu->dense, page) && !map_test(mu->ahead, page);
}

bool area_reads_ahead(const struct pcow_mapping *m, uint64_t length)
{
  return m->page_cache && length >= HUGE_BYTES;
}

void area_advise(const struct pcow_mapping *m, uint8_t *address, uint64_t length)
{
  madvise(address, length, MADV_DONTFORK);
  if (m->page_cache)
    madvise(address, length, MADV_RANDOM);
}

static int share_run(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end,
                     bool populate)
{
  uint64_t page = map_unit_first(m, u->number) + first, length = (end - first) * PAGE_BYTES;
  uint8_t *address = map_address(m, page);
  int flags = m->shared_flags | MAP_FIXED;

  populate = populate && m->populate && length <= HUGE_BYTES;
  /* On tmpfs nobody asks which pages were stored to: what a read maps is writable, 16 pages at a time.
   * Elsewhere the first write to each page would be a fault once more. */
  if (populate && m->tmpfs)
    flags |= MAP_POPULATE;
  if (mmap(address, length, PROT_READ | PROT_WRITE, flags, m->image->store->fd,
           (off_t)head_page_offset(m->image->head, u, first)) == MAP_FAILED)
    return failed(m, errno, "map", page, length);
  area_advise(m, address, length);
  if (populate && !m->tmpfs)
    madvise(address, length, MADV_POPULATE_WRITE);
  area_forget(m, mu, first, end);
  map_unit_set(m, &mu->writable, first, end);
  area_note(m, mu, first, end, first && joins(mu, first - 1), end < m->unit_pages && joins(mu, end));
  return 0;
}

int area_share(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  int ret = 0;

  while (ret == 0 && first < end) {
    uint64_t to;

    if (map_test(mu->dense, first)) {
      to = map_find(mu->dense, first, end, false);
      map_unit_set(m, &mu->writable, first, to);
    } else if (map_test(mu->writable, first)) {
      to = map_find(mu->writable, first, end, false);
    } else {
      to = MIN(map_find(mu->dense, first, end, true), map_find(mu->writable, first, end, true));
      ret = share_run(m, u, mu, first, to, true);
    }
    first = to;
  }
  return ret;
}

int area_share_late(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  return share_run(m, u, map_unit_get(m, u->number), first, end, false);
}

int area_write_back(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  struct persist *p = m->image->store->p;
  uint8_t *address = map_address(m, map_unit_first(m, u->number) + first);

  /* The range has its page tables already. But flushing a hole would read it, which takes space. */
  if (!m->guarded)
    return persist_writeback(p, head_page_offset(m->image->head, u, first), (end - first) * PAGE_BYTES);
  /* Flushing memory that failed, or that a truncated file does not have any more, would be a SIGBUS. */
  if (madvise(address, (end - first) * PAGE_BYTES, MADV_POPULATE_READ) && errno != EINVAL && errno != ENOMEM)
    return fail(EIO, "%s: %" PRIu64 " bytes at byte %" PRIu64 " cannot be read: the file is truncated, or the "
                "memory or the medium is damaged", m->image->path, (end - first) * PAGE_BYTES,
                head_page_offset(m->image->head, u, first));
  persist_flush_memory(p, address, (end - first) * PAGE_BYTES);
  return 0;
}

/* Which pages have blocks; of the others an event will tell. */
static void note_backed(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  struct persist *p = m->image->store->p;
  uint64_t zero = head_page_offset(m->image->head, u, 0);
  uint64_t at = zero + first * PAGE_BYTES, stop = zero + end * PAGE_BYTES;

  while ((at = persist_seek(p, at, stop, true)) < stop) {
    uint64_t to = persist_seek(p, at, stop, false);

    map_unit_set(m, &mu->writable, (at - zero) >> PAGE_SHIFT, (to - zero) >> PAGE_SHIFT);
    at = to;
  }
}

int area_join(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, u->number) + first, length = (end - first) * PAGE_BYTES;
  struct map_unit *mu = map_unit_get(m, u->number);
  bool dense = m->dense_holes;
  off_t offset = (off_t)head_page_offset(m->image->head, u, first);
  uint8_t *side;
  int ret;

  if (!dense) {
    if (mmap(map_address(m, page), length, PROT_READ | PROT_WRITE, m->shared_flags | MAP_FIXED,
             m->image->store->fd, offset) == MAP_FAILED)
      return failed(m, errno, "map", page, length);
    area_advise(m, map_address(m, page), length);
    area_forget(m, mu, first, end);
    map_unit_set(m, &mu->writable, first, end);
    area_note(m, mu, first, end, first && joins(mu, first - 1), end < m->unit_pages && joins(mu, end));
    return 0;
  }

  /* Aside, so that no store meets a hole before holes raise events. */
  side = side_new(m, page, length);
  if (!side)
    return failed(m, errno, "map", page, length);
  if (mmap(side, length, PROT_READ | PROT_WRITE, m->shared_flags | MAP_FIXED, m->image->store->fd, offset) ==
      MAP_FAILED) {
    ret = -errno;
  } else {
    madvise(side, length, MADV_DONTFORK);
    ret = uffd_register(m->uffd, side, length, UFFD_MISSING);
  }
  if (ret) {
    munmap(side, length);
    return failed(m, -ret, "map", page, length);
  }
  ret = side_move(m, side, page, length);
  if (ret)
    return ret;
  area_forget(m, mu, first, end);
  note_backed(m, u, mu, first, end);
  area_note(m, mu, first, end, first && map_test(mu->dense, first - 1),
            end < m->unit_pages && map_test(mu->dense, end));
  map_unit_set(m, &mu->dense, first, end);
  return 0;
}

bool area_lose(struct pcow_mapping *m, uint64_t page, bool locked)
{
  uint64_t unit = page >> m->unit_shift, at = page & (m->unit_pages - 1);

  if (mmap(map_address(m, page), PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m->void_fd, 0) ==
      MAP_FAILED)
    return false;
  madvise(map_address(m, page), PAGE_BYTES, MADV_DONTFORK);
  if (locked) {
    struct map_unit *mu = map_unit_get(m, unit);

    area_forget(m, mu, at, at + 1);
    area_note(m, mu, at, at + 1, false, false);
  } else {
    vmabudget_add(2);           /* it raises no more events: its bits do not matter */
  }
  g_mutex_lock(&m->lock);
  g_array_append_val(m->lost, page);
  g_mutex_unlock(&m->lock);
  return true;
}

/* ---- Lazy chunks ---- */

/* Position of the first chunk that ends after PAGE. */
static unsigned lazy_after(const struct pcow_mapping *m, uint64_t page)
{
  unsigned low = 0, high = m->lazies->len;

  while (low < high) {
    unsigned mid = low + (high - low) / 2;

    if (g_array_index(m->lazies, struct lazy, mid).end <= page)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

struct lazy *area_lazy(struct pcow_mapping *m, uint64_t page)
{
  struct lazy *z;
  unsigned i;

  if (g_atomic_int_get(&m->lazy_left) == 0)
    return NULL;
  i = lazy_after(m, page);
  if (i == m->lazies->len)
    return NULL;
  z = &g_array_index(m->lazies, struct lazy, i);
  return z->first <= page && !g_atomic_int_get(&z->armed) ? z : NULL;
}

int area_arm_lazy(struct pcow_mapping *m, struct lazy *z)
{
  uint64_t length = (z->end - z->first) * PAGE_BYTES;
  uint8_t *side;
  int ret = 0;

  g_mutex_lock(&m->lazy_lock);
  if (!z->armed) {
    side = side_new(m, z->first, length);
    if (!side) {
      ret = failed(m, errno, "map", z->first, length);
    } else {
      ret = area_arm_memory(m, side, length);
      if (ret) {
        munmap(side, length);
        ret = failed(m, -ret, "protect", z->first, length);
      } else {
        ret = side_move(m, side, z->first, length);
      }
    }
    if (ret == 0) {
      vmabudget_add(2);
      g_atomic_int_set(&z->armed, 1);
      g_atomic_int_add(&m->lazy_left, -1);
    }
  }
  g_mutex_unlock(&m->lazy_lock);
  if (ret == 0)
    uffd_wake(m->uffd, map_address(m, z->first), length);
  return ret;
}

int area_arm_range(struct pcow_mapping *m, uint64_t first, uint64_t end)
{
  int ret = 0;

  if (g_atomic_int_get(&m->lazy_left) == 0)
    return 0;
  for (unsigned i = lazy_after(m, first); ret == 0 && i < m->lazies->len; i++) {
    struct lazy *z = &g_array_index(m->lazies, struct lazy, i);

    if (z->first >= end)
      break;
    if (!g_atomic_int_get(&z->armed))
      ret = area_arm_lazy(m, z);
  }
  return ret;
}

void area_trim_lazy(struct pcow_mapping *m, uint64_t unit, uint64_t page, uint64_t *first, uint64_t *end)
{
  uint64_t zero = map_unit_first(m, unit);

  if (g_atomic_int_get(&m->lazy_left) == 0)
    return;
  for (unsigned i = lazy_after(m, zero + *first); i < m->lazies->len; i++) {
    const struct lazy *z = &g_array_index(m->lazies, struct lazy, i);

    if (z->first >= zero + *end)
      break;
    if (g_atomic_int_get(&z->armed))
      continue;
    if (z->end <= zero + page)
      *first = z->end - zero;
    else
      *end = MIN(*end, z->first > zero ? z->first - zero : 0);
  }
}
