/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Mapping an image as one range, and the calls on a mapping. When pcow_map() returns, everything that
 * can be stored to lies in the head's slots, present on the media; everything else is protected.
 */
#include "mapstate.h"

#include "error.h"
#include "mapping.h"
#include "uffd.h"
#include "vmabudget.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GRANULE_DEFAULT (UINT64_C(64) << 10)
#define DRAM_DEFAULT (UINT64_C(256) << 20)
#define DRAM_LEAST (UINT64_C(4) << 20)
#define EAGER_BYTES (UINT64_C(4) << 30)         /* of zeros, armed when the map is made */
#define ADDRESS_MOST (UINT64_C(1) << 46)
#define PERSIST_AT_ONCE (UINT64_C(64) << 10)

static int check_options(const pcow_image *image, bool writable, const struct pcow_map_options *o)
{
  if (o->durability > PCOW_STORE_DURABLE || o->thin > PCOW_THIN_NATIVE)
    return fail(EINVAL, "%s: unknown durability %u or thin policy %u", image->path, o->durability, o->thin);
  if ((uintptr_t)o->address % HUGE_BYTES)
    return fail(EINVAL, "%s: the address of a mapping must be a multiple of 2 MiB", image->path);
  if (o->granule && (o->granule < PAGE_BYTES || o->granule > HUGE_BYTES || o->granule & (o->granule - 1)))
    return fail(EINVAL, "%s: granule %" PRIu64 " is not a power of two from 4096 to 2 MiB", image->path,
                o->granule);
  if (o->reserve > ADDRESS_MOST || image_size(image) > ADDRESS_MOST)
    return fail(ENOMEM, "%s: a mapping of %" PRIu64 " bytes does not fit into the address space", image->path,
                MAX(o->reserve, image_size(image)));
  if (!writable)
    return 0;
  if (o->durability == PCOW_STORE_DURABLE && persist_get_mode(image->store->p) != PERSIST_PMEM)
    return fail(ENOTSUP, "%s: the file system has no DAX, so a store is not durable when its cache line is "
                "flushed: a store-durable mapping is not possible, only a flush-durable one (set "
                "PMEM_IS_PMEM_FORCE=1 to emulate persistent memory)", image->path);
  return 0;
}

static struct pcow_mapping *mapping_new(pcow_image *image, bool writable, const struct pcow_map_options *o)
{
  struct pcow_mapping *m = g_new0(struct pcow_mapping, 1);
  uint64_t granule = o->granule ? o->granule : GRANULE_DEFAULT;

  m->image = image;
  m->writable = writable;
  m->flush_durable = writable && o->durability == PCOW_FLUSH_DURABLE;
  m->guarded = o->thin == PCOW_THIN_GUARDED || (o->thin == PCOW_THIN_DEFAULT && !m->flush_durable);
  m->own_address = !o->address;
  m->uffd = m->void_fd = m->stop_fd = m->track_fd = m->pagemap_fd = m->pipe[0] = m->pipe[1] = -1;
  m->size = image_size(image);
  m->reserve = MAX(o->reserve, m->size);
  m->reserve = (m->reserve + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  m->unit_shift = image_superblock(image)->unit_shift - PAGE_SHIFT;
  m->unit_pages = UINT64_C(1) << m->unit_shift;
  m->unit_count = ((m->reserve >> PAGE_SHIFT) + m->unit_pages - 1) >> m->unit_shift;
  m->granule = MIN(granule / PAGE_BYTES, m->unit_pages);
  m->adaptive = !o->granule;
  m->dram_limit = MAX(o->dram_limit ? o->dram_limit : DRAM_DEFAULT, DRAM_LEAST) / PAGE_BYTES;
  m->nospace = o->nospace;
  m->opaque = o->opaque;
  m->eager_left = EAGER_BYTES;
  m->merge_pause = INT64_MAX;
  m->units = g_try_new0(struct map_unit *, m->unit_count);
  m->lazies = g_array_new(FALSE, FALSE, sizeof(struct lazy));
  m->held = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  m->lost = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  g_mutex_init(&m->lazy_lock);
  g_mutex_init(&m->lock);
  g_mutex_init(&m->track_lock);
  g_mutex_init(&m->pipe_lock);
  g_cond_init(&m->waiting.more);
  g_cond_init(&m->copying.more);
  return m;
}

/* The range as its owner gave it. True: not possible. */
static bool leave_reservation(struct pcow_mapping *m)
{
  return mmap(m->base, m->reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
              0) == MAP_FAILED;
}

/* The range goes before the descriptor: closing it first would let a blocked store pass. */
static void mapping_free(struct pcow_mapping *m)
{
  if (m->base && m->own_address)
    munmap(m->base, m->reserve);
  else if (m->base && leave_reservation(m)) {
    /* Too many VMAs even for one that replaces many: without them there is room for it. */
    munmap(m->base, m->reserve);
    leave_reservation(m);
  }
  fault_stop(m);
  if (m->uffd >= 0)
    close(m->uffd);
  if (m->void_fd >= 0)
    close(m->void_fd);
  if (m->pipe[0] >= 0) {
    close(m->pipe[0]);
    close(m->pipe[1]);
  }
  tracking_stop(m);
  map_unit_free_all(m);
  g_free(m->units);
  g_free(m->late);
  g_queue_clear_full(&m->waiting.faults, g_free);
  g_queue_clear_full(&m->copying.faults, g_free);
  g_queue_clear(&m->fills);
  g_array_unref(m->lazies);
  g_array_unref(m->held);
  g_array_unref(m->lost);
  g_mutex_clear(&m->lazy_lock);
  g_mutex_clear(&m->lock);
  g_mutex_clear(&m->track_lock);
  g_mutex_clear(&m->pipe_lock);
  g_cond_clear(&m->waiting.more);
  g_cond_clear(&m->copying.more);
  g_free(m);
  vmabudget_count();
}

static int reserve_range(struct pcow_mapping *m, void *address)
{
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  uint64_t extra = address ? 0 : HUGE_BYTES;
  uint8_t *raw = mmap(address, m->reserve + extra, PROT_NONE, flags | (address ? MAP_FIXED : 0), -1, 0);
  uint64_t skip;

  if (raw == MAP_FAILED)
    return fail_errno(errno, "%s: cannot reserve %" PRIu64 " bytes of address space", m->image->path, m->reserve);
  m->base = raw;
  if (address)
    return 0;
  skip = (HUGE_BYTES - (uintptr_t)raw % HUGE_BYTES) % HUGE_BYTES;
  if (skip)
    munmap(raw, skip);
  munmap(raw + skip + m->reserve, extra - skip);
  m->base = raw + skip;
  return 0;
}

/* What the head's file and this kernel can do. */
static int prepare_writing(struct pcow_mapping *m)
{
  struct store *st = m->image->store;
  uint64_t free_slots;
  void *probe;
  /* Damage anywhere in the map must be met here, and not by a store that needs a slot. */
  int ret = slots_count_free(m->image->slots, &free_slots);

  if (ret == 0)
    ret = head_begin_session(m->image->head);
  if (ret == 0)
    ret = head_settle(m->image->head);
  if (ret)
    return ret;
  m->uffd = uffd_open(UFFD_FEATURES_WRITE, m->image->path);
  m->all_async = m->flush_durable && m->uffd == -EPERM;
  if (m->uffd < 0 && !m->all_async)
    return m->uffd;
  m->uffd = MAX(m->uffd, -1);
  if (m->flush_durable)
    ret = tracking_start(m);
  if (ret)
    return ret;
  m->huge_zero = uffd_probe_huge_zero();
  m->tmpfs = persist_is_tmpfs(st->fd);
  m->lower_dax = m->flush_durable && persist_is_dax(st->fd);
  m->dense_holes = m->guarded && m->tmpfs && !m->all_async;
  m->shared_flags = MAP_SHARED;
  probe = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, st->fd, 0);
  if (probe != MAP_FAILED) {
    munmap(probe, PAGE_BYTES);
    m->shared_flags = MAP_SHARED_VALIDATE | MAP_SYNC;
  }
  /* In a page cache it would make every page dirty. */
  m->populate = m->tmpfs || m->shared_flags != MAP_SHARED;
  m->page_cache = !m->populate;
  return 0;
}

static int set_up(struct pcow_mapping *m, void *address)
{
  int ret = 0;

  if (!m->units)
    return fail(ENOMEM, "%s: no memory for a mapping of %" PRIu64 " units", m->image->path, m->unit_count);
  m->void_fd = (int)syscall(SYS_memfd_create, "pcow-void", 1u /* MFD_CLOEXEC */);
  if (m->void_fd < 0)
    return fail_errno(errno, "%s: cannot make an empty file in memory", m->image->path);
  if (m->writable)
    ret = prepare_writing(m);
  if (ret == 0)
    ret = reserve_range(m, address);
  if (ret == 0)
    ret = plan_apply(m, 0, map_pages(m));
  if (ret == 0 && m->reserve > m->size)
    madvise(m->base + m->size, m->reserve - m->size, MADV_DONTFORK);
  return ret ? ret : fault_start(m);
}

static int map_locked(pcow_image *image, const struct pcow_map_options *o, pcow_mapping **mapping)
{
  bool writable = image->flags & PCOW_OPEN_RDWR;
  struct pcow_mapping *m;
  int ret = image_check_content(image);

  if (ret == 0 && writable)
    ret = image_check_writable(image);
  if (ret == 0)
    ret = check_options(image, writable, o);
  if (ret)
    return ret;
  if (writable && image->map)
    return fail(EBUSY, "%s: is already mapped", image->path);
  m = mapping_new(image, writable, o);
  ret = set_up(m, o->address);
  if (ret) {
    mapping_free(m);
    return ret;
  }
  g_mutex_lock(&image->maps_lock);
  g_ptr_array_add(image->maps, m);
  if (writable)
    image->map = m;
  g_mutex_unlock(&image->maps_lock);
  if (writable)
    vmabudget_share(1);
  *mapping = m;
  return 0;
}

API int pcow_map(pcow_image *image, const struct pcow_map_options *options, pcow_mapping **mapping)
{
  struct pcow_map_options o = { 0 };
  int ret = 0;

  *mapping = NULL;
  if (options)
    ret = options_read(options, sizeof(size_t), &o, sizeof(o));
  if (ret)
    return ret;
  pthread_rwlock_wrlock(&image->lock);
  ret = map_locked(image, &o, mapping);
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

/* What was not flushed is lost. The image lock is held for writing. */
static void mapping_end(struct pcow_mapping *m)
{
  pcow_image *image = m->image;

  g_mutex_lock(&image->maps_lock);
  g_ptr_array_remove(image->maps, m);
  if (image->map == m)
    image->map = NULL;
  g_mutex_unlock(&image->maps_lock);
  if (m->writable)
    vmabudget_share(-1);
  mapping_free(m);
}

int mapping_close_all(struct pcow_image *image)
{
  int ret = 0;

  while (image->maps->len) {
    struct pcow_mapping *m = g_ptr_array_index(image->maps, image->maps->len - 1);
    int failed = pcow_unmap(m);

    if (failed) {
      pthread_rwlock_wrlock(&image->lock);
      mapping_end(m);
      pthread_rwlock_unlock(&image->lock);
      ret = failed;
    }
  }
  return ret;
}

API int pcow_unmap(pcow_mapping *mapping)
{
  pcow_image *image;
  int ret = 0;

  if (!mapping)
    return 0;
  image = mapping->image;
  pthread_rwlock_wrlock(&image->lock);
  if (mapping->flush_durable)
    ret = store_check(image->store);
  if (ret == 0 && mapping->flush_durable)
    ret = flush_all(mapping);
  if (ret == 0)
    mapping_end(mapping);
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

API void *pcow_mapping_address(const pcow_mapping *mapping)
{
  return mapping->base;
}

API uint64_t pcow_mapping_length(const pcow_mapping *mapping)
{
  return mapping->size;
}

/* Only what is shared can be dirty; touching the rest would fault all of it in. */
static int persist_unit(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end)
{
  struct map_unit *mu = g_atomic_pointer_get(&m->units[unit]);
  struct unit *u;
  int ret = 0;

  if (!mu)
    return 0;
  u = head_lock_unit(m->image->head, unit, &ret);
  if (!u)
    return ret;
  for (uint64_t at = first; ret == 0 && (at = map_find(mu->writable, at, end, true)) < end;) {
    uint64_t to = map_find(mu->writable, at, end, false);

    ret = area_write_back(m, u, at, to);
    at = to;
  }
  head_unlock_unit(m->image->head, u);
  return ret;
}

API int pcow_persist(pcow_mapping *mapping, uint64_t offset, uint64_t length)
{
  struct pcow_mapping *m = mapping;
  struct persist *p;
  uint64_t page, end;
  int ret = 0;

  if (offset > m->size || length > m->size - offset)
    return fail(EINVAL, "%s: %" PRIu64 " bytes at offset %" PRIu64 " are beyond the end of the mapping",
                m->image->path, length, offset);
  if (!m->writable)
    return fail(EBADF, "%s: is mapped read-only: there is nothing to persist", m->image->path);
  if (m->flush_durable)
    return pcow_flush(m, offset, length);
  p = m->image->store->p;
  if (length <= PERSIST_AT_ONCE) {
    persist_flush_memory(p, m->base + offset, length);
    persist_drain(p);
    return 0;
  }
  page = offset >> PAGE_SHIFT;
  end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  pthread_rwlock_rdlock(&m->image->lock);
  while (ret == 0 && page < end) {
    uint64_t unit = page >> m->unit_shift, zero = map_unit_first(m, unit);
    uint64_t to = MIN(end, zero + m->unit_pages);

    ret = persist_unit(m, unit, page - zero, to - zero);
    page = to;
  }
  pthread_rwlock_unlock(&m->image->lock);
  persist_drain(p);
  return ret;
}

/* A page that gave SIGBUS is filled on demand from now on, and can be written like any other. */
static void restore(struct pcow_mapping *m, uint64_t page)
{
  uint64_t unit = page >> m->unit_shift, at = page - map_unit_first(m, unit);
  struct map_unit *mu;
  struct unit *u;
  int error;

  if (!m->writable)
    return;
  u = head_lock_unit(m->image->head, unit, &error);
  if (!u)
    return;
  mu = map_unit_get(m, unit);
  if (!map_test(mu->writable, at) && !map_test(mu->dense, at) && !map_test(mu->async, at))
    area_fill(m, unit, at, at + 1);
  head_unlock_unit(m->image->head, u);
}

API int pcow_mapping_resume(pcow_mapping *mapping)
{
  struct pcow_mapping *m = mapping;
  g_autoptr(GArray) held = NULL;
  g_autoptr(GArray) lost = NULL;

  g_mutex_lock(&m->lock);
  held = g_steal_pointer(&m->held);
  lost = g_steal_pointer(&m->lost);
  m->held = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  m->lost = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  m->told = false;
  g_mutex_unlock(&m->lock);

  pthread_rwlock_rdlock(&m->image->lock);
  for (unsigned i = 0; i < lost->len; i++)
    restore(m, g_array_index(lost, uint64_t, i));
  pthread_rwlock_unlock(&m->image->lock);
  for (unsigned i = 0; i < held->len; i++)
    uffd_wake(m->uffd, map_address(m, g_array_index(held, uint64_t, i)), PAGE_BYTES);
  return 0;
}

API int pcow_mapping_get_stats(pcow_mapping *mapping, struct pcow_mapping_stats *stats)
{
  struct pcow_mapping *m = mapping;
  struct pcow_mapping_stats full = {
    .faults = m->faults,
    .write_faults = m->write_faults,
    .fill_faults = m->fill_faults,
    .duplicate_faults = m->duplicates,
    .pages_copied = m->copied,
    .pages_reserved = m->reserved,
    .dram_pages = m->dram_pages,
    .vmas = vmabudget_counted(),
    .vma_budget = vmabudget_limit(),
    .merges = m->merges,
    .units_late = m->late_units,
    .flushes = m->flushes,
    .pages_flushed = m->flushed,
    .pages_handed_over = m->handed_over,
    .scans = m->scans,
    .pages_kept = m->kept,
    .units_protected = m->units_protected,
  };

  g_mutex_lock(&m->lock);
  full.held_writers = m->held->len;
  g_mutex_unlock(&m->lock);
  result_write(stats, &full, sizeof(full));
  return 0;
}
