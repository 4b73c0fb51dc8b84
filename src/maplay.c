/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Lays a mapping out, segment by segment, while nobody has access to it yet: one mmap(2) each, neighbours
 * registered together, and the bits of their units.
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"

#include <inttypes.h>
#include <sys/mman.h>

#define LAZY_CHUNK_PAGES ((UINT64_C(1) << 30) / PAGE_BYTES)
#define LAZY_LEAST_BYTES (UINT64_C(2) << 20)

static int place(struct pcow_mapping *m, const struct segment *s, int prot, int flags, int fd)
{
  if (mmap(map_address(m, s->page), s->count * PAGE_BYTES, prot, flags | MAP_FIXED, fd,
           fd < 0 ? 0 : (off_t)s->offset) != MAP_FAILED)
    return 0;
  return fail_errno(errno, "%s: cannot map %" PRIu64 " bytes at offset %" PRIu64 " of the image%s",
                    m->image->path, s->count * PAGE_BYTES, s->page * PAGE_BYTES,
                    errno == ENOMEM ? " (is vm.max_map_count reached?)" : "");
}

static int place_anonymous(struct pcow_mapping *m, const struct segment *s)
{
  return place(m, s, m->writable ? PROT_READ | PROT_WRITE : PROT_READ,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

int lay_file(struct pcow_mapping *m, const struct segment *s)
{
  uint64_t length = s->count * PAGE_BYTES;
  int fd, ret;

  if (m->writable && s->kind != SEGMENT_PRIVATE) {
    ret = place(m, s, PROT_READ | PROT_WRITE, m->shared_flags, m->image->store->fd);
    if (ret == 0 && m->page_cache && !area_reads_ahead(m, length))
      madvise(map_address(m, s->page), length, MADV_RANDOM);
    return ret;
  }
  fd = layer_fd_get(s->layer);
  if (fd < 0)
    return fd;
  /* Private and writable even where nobody writes: protection wants memory that could be written. */
  ret = m->writable ? place(m, s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd)
                    : place(m, s, PROT_READ, MAP_SHARED, fd);
  layer_fd_put(s->layer);
  return ret;
}

static int cannot_track(const struct pcow_mapping *m, int error)
{
  return fail_errno(-error, "%s: cannot track writes to the mapping", m->image->path);
}

static int arm_pending(struct laying *p)
{
  struct pcow_mapping *m = p->m;
  int ret = 0;

  if (p->arm_from < p->arm_to)
    ret = uffd_register(m->uffd, map_address(m, p->arm_from), (p->arm_to - p->arm_from) * PAGE_BYTES, UFFD_WP);
  if (ret == 0 && p->arm_from < p->arm_to)
    ret = uffd_protect(m->uffd, map_address(m, p->arm_from), (p->arm_to - p->arm_from) * PAGE_BYTES);
  p->arm_from = p->arm_to = 0;
  return ret ? cannot_track(m, ret) : 0;
}

static int track_pending(struct laying *p)
{
  int ret = 0;

  if (p->track_from < p->track_to)
    ret = tracking_register(p->m, map_address(p->m, p->track_from), (p->track_to - p->track_from) * PAGE_BYTES);

  p->track_from = p->track_to = 0;
  return ret ? cannot_track(p->m, ret) : 0;
}

static int track(struct laying *p, const struct segment *s)
{
  int ret = 0;

  if (p->track_to != s->page) {
    ret = track_pending(p);
    p->track_from = s->page;
  }
  p->track_to = s->page + s->count;
  return ret;
}

/* Lower pages of which the kernel makes the copies. */
static int lay_async(struct laying *p, const struct segment *s)
{
  int ret = lay_file(p->m, s);

  p->m->lower_tmpfs |= s->layer->tmpfs;
  p->m->lower_dax |= s->layer->dax;
  return ret ? ret : track(p, s);
}

/* Without pages: every access raises an event. Zeros and late units side by side are one area. */
static int lay_empty(struct pcow_mapping *m, const struct segment *s)
{
  int ret = place_anonymous(m, s);

  if (ret)
    return ret;
  ret = uffd_register(m->uffd, map_address(m, s->page), s->count * PAGE_BYTES, UFFD_MISSING | UFFD_WP);
  return ret ? cannot_track(m, ret) : 0;
}

static int make_lazy(struct pcow_mapping *m, const struct segment *s)
{
  int ret = lay_empty(m, s);

  if (ret)
    return ret;
  for (uint64_t at = s->page; at < s->page + s->count;) {
    uint64_t to = MIN((at / LAZY_CHUNK_PAGES + 1) * LAZY_CHUNK_PAGES, s->page + s->count);
    struct lazy z = { at, to, 0 };

    g_array_append_val(m->lazies, z);
    m->lazy_left++;
    at = to;
  }
  return 0;
}

static int lay_zero(struct laying *p, const struct segment *s)
{
  struct pcow_mapping *m = p->m;
  uint64_t length = s->count * PAGE_BYTES;
  int ret;

  if (m->writable && !m->all_async && length > m->eager_left && length >= LAZY_LEAST_BYTES)
    return make_lazy(m, s);
  ret = place_anonymous(m, s);
  if (ret || !m->writable)
    return ret;
  if (m->all_async)
    return track(p, s);
  m->eager_left -= MIN(m->eager_left, length);
  if (m->huge_zero && length >= HUGE_BYTES) {
    ret = area_arm_memory(m, map_address(m, s->page), length);
    return ret ? cannot_track(m, ret) : 0;
  }
  if (p->arm_to != s->page) {
    ret = arm_pending(p);
    p->arm_from = s->page;
  }
  p->arm_to = s->page + s->count;
  return ret;
}

/* Where events are not permitted a read-only map can still copy what it cannot map. */
static int copy_now(struct pcow_mapping *m, const struct segment *s)
{
  uint64_t chunk = FILL_BUFFER / PAGE_BYTES;
  int ret = place(m, s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

  for (uint64_t at = s->page, end = s->page + s->count; ret == 0 && at < end;) {
    uint64_t unit = at >> m->unit_shift;
    uint64_t to = MIN(MIN(end, at + chunk), map_unit_first(m, unit + 1));

    ret = filling_bytes(m, NULL, unit, at - map_unit_first(m, unit), to - at, map_address(m, at));
    at = to;
  }
  if (ret == 0)
    mprotect(map_address(m, s->page), s->count * PAGE_BYTES, PROT_READ);
  return ret;
}

static int lay_fill(struct pcow_mapping *m, const struct segment *s)
{
  int ret;

  if (m->uffd < 0)
    return copy_now(m, s);
  ret = place_anonymous(m, s);
  if (ret)
    return ret;
  ret = uffd_register(m->uffd, map_address(m, s->page), s->count * PAGE_BYTES,
                      m->writable ? UFFD_MISSING | UFFD_WP : UFFD_MISSING);
  return ret ? cannot_track(m, ret) : 0;
}

/* Sets the bits of every unit that the segment covers. */
static void note(struct pcow_mapping *m, const struct segment *s)
{
  uint64_t end = s->page + s->count;

  if (s->kind == SEGMENT_LATE) {
    uint64_t first_unit = s->page >> m->unit_shift, end_unit = (end + m->unit_pages - 1) >> m->unit_shift;

    bits_set(m->late, first_unit, end_unit);
    m->late_count += end_unit - first_unit;
    return;
  }
  for (uint64_t at = s->page; at < end;) {
    uint64_t unit = at >> m->unit_shift, zero = map_unit_first(m, unit);
    uint64_t to = MIN(end, zero + m->unit_pages);
    struct map_unit *mu;

    /* Units in the middle of zeros need nothing. */
    if (s->kind == SEGMENT_ZERO && at == zero && to == zero + m->unit_pages) {
      at = map_unit_first(m, end >> m->unit_shift);
      continue;
    }
    mu = map_unit_get(m, unit);
    if (s->kind == SEGMENT_SHARED && m->writable) {
      map_unit_set(m, &mu->writable, at - zero, to - zero);
      if (area_reads_ahead(m, s->count * PAGE_BYTES))
        map_unit_set(m, &mu->ahead, at - zero, to - zero);
      tracking_forget(m, mu, at - zero, to - zero);
    } else if (s->kind == SEGMENT_FILL && m->uffd >= 0) {
      map_unit_set(m, &mu->fill, at - zero, to - zero);
    } else if (s->kind == SEGMENT_DENSE) {
      map_unit_set(m, &mu->dense, at - zero, to - zero);
    } else if (s->kind == SEGMENT_PRIVATE && m->flush_durable) {
      tracking_note(m, unit, at - zero, to - zero);
    }
    if (m->writable && at == s->page)
      map_unit_set(m, &mu->edges, at - zero, at - zero + 1);
    at = to;
  }
}

int lay_segment(struct laying *p, const struct segment *s)
{
  struct pcow_mapping *m = p->m;
  int ret = 0;

  switch (s->kind) {
  case SEGMENT_ZERO:
    ret = lay_zero(p, s);
    break;
  case SEGMENT_PRIVATE:
    if (m->flush_durable) {
      ret = lay_async(p, s);
      break;
    }
    ret = lay_file(m, s);
    if (ret == 0 && p->arm_to != s->page) {
      ret = arm_pending(p);
      p->arm_from = s->page;
    }
    p->arm_to = s->page + s->count;
    break;
  case SEGMENT_FILL:
    ret = lay_fill(m, s);
    break;
  case SEGMENT_SHARED:
    ret = lay_file(m, s);
    break;
  case SEGMENT_LATE:
    ret = lay_empty(m, s);
    break;
  case SEGMENT_DENSE:
    ret = lay_file(m, s);
    if (ret == 0)
      ret = uffd_register(m->uffd, map_address(m, s->page), s->count * PAGE_BYTES, UFFD_MISSING);
    if (ret < 0)
      ret = cannot_track(m, ret);
    break;
  }
  if (ret == 0)
    note(m, s);
  return ret;
}

int lay_end(struct laying *p)
{
  int ret = arm_pending(p);

  return ret ? ret : track_pending(p);
}
