/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Maps of images. An image is mapped as a whole, once; what the program maps are views of that range, and two
 * views of the same bytes have the same address. The range stays until nothing of it is needed: one at an
 * address of the program's choice until no view is left, others until the file is closed as well.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE ((uint64_t)PCOW_PAGE_SIZE)

static atomic_uint maps;

bool run_maps_any(void) { return atomic_load_explicit(&maps, memory_order_relaxed); }

bool run_maps_touch(const void *address, size_t length)
{
  uintptr_t from = (uintptr_t)address, to;

  if (!run_maps_any())
    return false;
  if (__builtin_add_overflow(from, length, &to))
    to = UINTPTR_MAX;
  for (struct run_image *i = run_images(); i; i = i->next) {
    uintptr_t base = (uintptr_t)i->base;

    if (base && base < to && base + i->reserve > from)
      return true;
  }
  return false;
}

static uint64_t pages_up(uint64_t bytes) { return (bytes + PAGE - 1) & ~(PAGE - 1); }

/* ---- Views ---- */

static int view_add(struct run_image *i, uint64_t from, uint64_t to)
{
  if (i->view_count == i->view_room) {
    unsigned room = i->view_room ? 2 * i->view_room : 8;
    struct run_view *views = realloc(i->views, room * sizeof(*views));

    if (!views)
      return -ENOMEM;
    i->views = views;
    i->view_room = room;
  }
  i->views[i->view_count++] = (struct run_view){ from, to };
  return 0;
}

/* The view that is taken away from at byte FROM: one that is just [from, to) if there is one. -1: none. */
static int view_at(const struct run_image *i, uint64_t from, uint64_t to)
{
  int found = -1;

  for (unsigned n = 0; n < i->view_count; n++) {
    const struct run_view *v = &i->views[n];

    if (v->from > from || v->to <= from)
      continue;
    if (found < 0 || (v->from == from && v->to == to))
      found = (int)n;
  }
  return found;
}

/* Each byte of [from, to) is in one view less. */
static int view_cut(struct run_image *i, uint64_t from, uint64_t to)
{
  while (from < to) {
    int n = view_at(i, from, to), ret = 0;
    struct run_view v;

    if (n < 0) {
      uint64_t next = to;

      for (unsigned k = 0; k < i->view_count; k++)
        if (i->views[k].from > from && i->views[k].from < next)
          next = i->views[k].from;
      from = next;
      continue;
    }
    v = i->views[n];
    i->views[n] = i->views[--i->view_count];
    if (v.from < from)
      ret = view_add(i, v.from, from);
    if (ret == 0 && v.to > to)
      ret = view_add(i, to, v.to);
    if (ret)
      return ret;
    from = v.to < to ? v.to : to;
  }
  return 0;
}

/* ---- The map ---- */

void run_maps_forget(struct run_image *i)
{
  if (!i->base)
    return;
  /* libpcow has left it reserved. */
  if (i->fixed)
    run_reserve_release(i->base, i->reserve);
  i->map = NULL;
  i->base = NULL;
  i->view_count = 0;
  atomic_fetch_sub(&maps, 1);
}

int run_maps_end(struct run_image *i)
{
  int ret;

  if (!i->map)
    return 0;
  ret = pcow_unmap(i->map);
  if (ret)
    return run_complain_library(ret);
  run_maps_forget(i);
  return 0;
}

/* ADDRESS NULL: anywhere. QUIET: the program tries, and has another way. */
static int make(struct run_image *i, uint8_t *address, uint64_t end, bool store, bool quiet)
{
  struct pcow_map_options options = PCOW_INIT(options);
  int ret;

  options.durability = store ? PCOW_STORE_DURABLE : PCOW_FLUSH_DURABLE;
  options.address = address;
  options.reserve = end;
  /* Address space costs nothing, and lets the image grow in place. */
  if (!address && end < 2 * i->size)
    options.reserve = 2 * i->size;
  ret = pcow_map(i->image, &options, &i->map);
  if (ret && !(quiet && ret == -ENOTSUP))
    run_complain_library(ret);
  if (ret)
    return ret;
  i->reserve = pages_up(options.reserve > i->size ? options.reserve : i->size);
  i->base = pcow_mapping_address(i->map);
  i->fixed = address;
  if (address)
    run_reserve_keep(address, i->reserve);
  i->store = store;
  atomic_fetch_add(&maps, 1);
  return 0;
}

/* There is a map, but not one in which [offset, end) could be seen at ADDRESS. */
static int refuse_second(const struct run_image *i, bool store, uint64_t end)
{
  if (end > i->reserve)
    run_complain("%s: is mapped already, with less room than %llu bytes", i->path, (unsigned long long)end);
  else if (store && !i->store && i->writable)
    run_complain("%s: is mapped already, and not so that stores are durable", i->path);
  else
    run_complain("%s: is mapped already, and all maps of it must agree on where its first byte would be", i->path);
  return -ENOTSUP;
}

struct request {
  uint8_t *address;
  uint64_t length, offset;
  int prot, flags;
  bool fixed, store, sync;
};

/* What an image that is mapped where the program says needs: the memory is the program's own, for all of it. */
static int claim(const struct run_image *i, const struct request *r)
{
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  bool whole = !r->offset && r->length >= i->size;
  uint8_t *base = r->address - r->offset;

  if ((uintptr_t)r->address < r->offset || (uintptr_t)base % RUN_ALIGNMENT ||
      (!whole && (r->flags & MAP_FIXED_NOREPLACE || run_maps_touch(base, i->size) ||
                  !run_reserve_has(base, i->size)))) {
    run_complain("%s: at an address of the program's choice an image is mapped as a whole, or in parts where it "
                 "would fit as a whole into memory that the program reserved, and its first byte comes to a "
                 "multiple of 2 MiB: not %llu bytes at %p from offset %llu, of %llu", i->path,
                 (unsigned long long)r->length, (void *)r->address, (unsigned long long)r->offset,
                 (unsigned long long)i->size);
    return -ENOTSUP;
  }
  if (!(r->flags & MAP_FIXED_NOREPLACE))
    return run_maps_replace(r->address, r->length);
  if (real()->mmap64(r->address, r->length, PROT_NONE, flags, -1, 0) == MAP_FAILED)
    return -errno;
  return 0;
}

/* Both locks are held. */
static int map_shared(struct run_image *i, const struct request *r, void **result)
{
  uint64_t end = r->offset + r->length;
  int ret = 0;

  /* libpmem notes which ranges are persistent memory, and wants each of them once. */
  for (unsigned n = 0; r->sync && n < i->view_count; n++)
    if (i->views[n].from < end && r->offset < i->views[n].to)
      return -EOPNOTSUPP;
  if (i->map && (end > i->reserve || (r->fixed && r->address != i->base + r->offset) ||
                 (r->store && !i->store && i->writable))) {
    if (i->view_count)
      return r->sync && end <= i->reserve && !r->fixed ? -EOPNOTSUPP : refuse_second(i, r->store, end);
    ret = run_maps_end(i);
  }
  if (ret == 0 && !i->map && r->fixed)
    ret = claim(i, r);
  if (ret == 0 && !i->map) {
    ret = make(i, r->fixed ? r->address - r->offset : NULL, end, r->store, r->sync);
    if (ret && r->flags & MAP_FIXED_NOREPLACE)
      real()->munmap(r->address, r->length);
  }
  /* At an address of the program's choice a part that is mapped again is mapped once. */
  if (ret == 0 && r->fixed) {
    ret = view_cut(i, r->offset, end);
    run_reserve_keep(r->address, r->length);
  }
  if (ret == 0)
    ret = view_add(i, r->offset, end);
  if (ret)
    return ret == -ENOTSUP && r->sync ? -EOPNOTSUPP : ret;
  *result = i->base + r->offset;
  if (r->flags & MAP_POPULATE)
    real()->madvise(*result, r->length, MADV_POPULATE_READ);
  return 0;
}

/* ---- Copies ---- */

struct copying {
  struct run_image *image;
  uint8_t *to;
  uint64_t offset;
};

static int copy_extent(void *opaque, const struct pcow_extent *extent)
{
  struct copying *c = opaque;

  if (extent->type != PCOW_EXTENT_DATA)
    return 0;
  return pcow_pread(c->image->image, c->to + (extent->offset - c->offset), extent->length, extent->offset);
}

/* A private map, or one of an image that nobody writes: memory with the same content. Nobody is told what
 * happens to a file beneath a private map after that. */
static int map_copy(struct run_image *i, const struct request *r, void **result)
{
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
              (r->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT));
  struct copying c = { i, NULL, r->offset };
  uint64_t length = r->length;
  int ret = 0;

  if (r->flags & MAP_FIXED)
    ret = run_maps_replace(r->address, r->length);
  if (ret)
    return ret;
  c.to = real()->mmap64(r->address, r->length, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (c.to == MAP_FAILED)
    return -errno;
  if (r->offset < i->size) {
    if (length > i->size - r->offset)
      length = i->size - r->offset;
    ret = pcow_extents(i->image, r->offset, length, PCOW_EXTENTS_MERGE, copy_extent, &c);
  }
  if (ret) {
    run_complain_library(ret);
    real()->munmap(c.to, r->length);
    return ret;
  }
  real()->mprotect(c.to, r->length, r->prot);
  *result = c.to;
  return 0;
}

/* ---- Calls ---- */

static int map(struct run_handle *handle, const struct request *r, void **result)
{
  struct run_image *i = handle->image;
  int type = r->flags & MAP_TYPE;
  int ret;

  if (!r->length || r->offset % PAGE)
    return -EINVAL;
  if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE && type != MAP_PRIVATE)
    return -EINVAL;
  if (!handle->readable || (type != MAP_PRIVATE && (r->prot & PROT_WRITE) && !handle->writable))
    return -EACCES;
  if (r->offset + r->length < r->length)
    return -EOVERFLOW;
  if (type != MAP_PRIVATE && (r->prot & PROT_EXEC)) {
    run_complain("%s: the content of an image cannot be mapped to be executed", i->path);
    return -EPERM;
  }
  if (r->sync && run_settings()->durability == RUN_FLUSH)
    return -EOPNOTSUPP;
  pthread_mutex_lock(&run_structure);
  ret = run_image_lock(i, handle->writable);
  if (ret == 0) {
    if (type == MAP_PRIVATE || (r->fixed && !i->writable))
      ret = map_copy(i, r, result);
    else
      ret = map_shared(i, r, result);
    run_image_unlock(i);
  }
  pthread_mutex_unlock(&run_structure);
  return ret;
}

void *run_maps_map(struct run_handle *handle, void *address, size_t length, int prot, int flags, off_t offset)
{
  bool sync = (flags & MAP_TYPE) == MAP_SHARED_VALIDATE && (flags & MAP_SYNC);
  enum run_durability durability = run_settings()->durability;
  struct request r = {
    .address = address,
    .length = pages_up(length),
    .offset = (uint64_t)offset,
    .prot = prot,
    .flags = flags,
    .fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE),
    .store = durability == RUN_STORE || (durability == RUN_AUTO && sync),
    .sync = sync,
  };
  void *result = MAP_FAILED;
  int ret = offset < 0 ? -EINVAL : map(handle, &r, &result);

  if (ret)
    errno = -ret;
  return result;
}

/* Of the image that lies at ADDRESS, or the next one after it. */
static struct run_image *image_after(const uint8_t *address)
{
  struct run_image *found = NULL;

  for (struct run_image *i = run_images(); i; i = i->next) {
    pthread_rwlock_rdlock(&i->use);
    if (i->base && i->base + i->reserve > address && (!found || i->base < found->base))
      found = i;
    pthread_rwlock_unlock(&i->use);
  }
  return found;
}

/* run_structure is held. The part of an image that lies in [from, to), which is not empty. */
static int unmap_part(struct run_image *i, uint8_t *from, uint8_t *to)
{
  int ret;

  pthread_rwlock_wrlock(&i->use);
  ret = view_cut(i, (uint64_t)(from - i->base), (uint64_t)(to - i->base));
  if (ret == 0 && !i->view_count && i->fixed)
    ret = run_maps_end(i);
  if (ret == 0)
    ret = run_image_idle(i);
  pthread_rwlock_unlock(&i->use);
  return ret;
}

int run_maps_unmap(void *address, size_t length)
{
  uint8_t *at = address, *end = at + pages_up(length);
  int ret = 0;

  pthread_mutex_lock(&run_structure);
  while (ret == 0 && at < end) {
    struct run_image *i = image_after(at);
    uint8_t *from = i && i->base < end ? i->base : end;
    uint8_t *to = end;

    if (at < from && real()->munmap(at, (size_t)(from - at)))
      ret = -errno;
    if (ret == 0 && from < end) {
      to = i->base + i->reserve < end ? i->base + i->reserve : end;
      ret = unmap_part(i, at > from ? at : from, to);
    }
    at = to;
  }
  pthread_mutex_unlock(&run_structure);
  return ret;
}

static int replace(struct run_image *i, const uint8_t *at, const uint8_t *end)
{
  for (unsigned n = 0; n < i->view_count; n++)
    if (i->base + i->views[n].from < at || i->base + i->views[n].to > end) {
      run_complain("%s: a part of its mapping cannot be replaced by something else", i->path);
      return -ENOTSUP;
    }
  i->view_count = 0;
  return run_maps_end(i);
}

int run_maps_replace(void *address, size_t length)
{
  uint8_t *at = address, *end = at + pages_up(length);
  int ret = 0;

  for (struct run_image *i = run_images(); ret == 0 && i; i = i->next) {
    if (!i->base || i->base >= end || i->base + i->reserve <= at)
      continue;
    /* The image that is being mapped is locked, and cannot replace a part of itself. */
    if (pthread_rwlock_trywrlock(&i->use))
      return -EBUSY;
    ret = replace(i, at, end);
    if (ret == 0)
      ret = run_image_idle(i);
    pthread_rwlock_unlock(&i->use);
  }
  return ret;
}

struct run_image *run_maps_find(const void *address, size_t *length, uint64_t *offset)
{
  const uint8_t *at = address;

  for (struct run_image *i = run_images(); i; i = i->next) {
    pthread_rwlock_rdlock(&i->use);
    if (i->base && i->base <= at && at < i->base + i->reserve) {
      *offset = (uint64_t)(at - i->base);
      if (*length > i->reserve - *offset)
        *length = i->reserve - *offset;
      return i;
    }
    if (i->base && at < i->base && *length > (size_t)(i->base - at))
      *length = (size_t)(i->base - at);
    pthread_rwlock_unlock(&i->use);
  }
  return NULL;
}

int run_maps_resize(void *address, size_t old, size_t length)
{
  uint64_t was = pages_up(old), is = pages_up(length), offset;
  struct run_image *i = run_maps_find(address, &(size_t){ 1 }, &offset);
  int ret = 0;

  if (!i)
    return -EFAULT;
  run_image_end(i);
  pthread_mutex_lock(&run_structure);
  pthread_rwlock_wrlock(&i->use);
  if (!i->base || !was || !is || offset % PAGE) {
    ret = -EINVAL;
  } else if (offset + is > i->reserve) {
    run_complain("%s: is mapped with less room than %llu bytes", i->path, (unsigned long long)(offset + is));
    ret = -ENOMEM;
  } else if (is < was) {
    ret = view_cut(i, offset + is, offset + was);
  } else if (is > was) {
    ret = view_add(i, offset + was, offset + is);
  }
  pthread_rwlock_unlock(&i->use);
  pthread_mutex_unlock(&run_structure);
  return ret;
}
