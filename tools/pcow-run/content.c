/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is done to an image's content by calls on a descriptor. An image is as large as it is: like a disk it
 * takes nothing beyond its end, unless ftruncate(2) or fallocate(2) ask for more.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>

#define COUNT_MOST 0x7ffff000u  /* of one read(2) or write(2), as the kernel has it */

ssize_t run_content_read(struct run_handle *handle, void *buffer, size_t count, off_t offset)
{
  struct run_image *i = handle->image;
  ssize_t ret;

  if (!handle->readable)
    return -EBADF;
  if (offset < 0)
    return -EINVAL;
  ret = run_image_begin(i, false);
  if (ret)
    return ret;
  if (count > COUNT_MOST)
    count = COUNT_MOST;
  if ((uint64_t)offset >= i->size)
    count = 0;
  else if (count > i->size - (uint64_t)offset)
    count = i->size - (uint64_t)offset;
  if (count)
    ret = pcow_pread(i->image, buffer, count, (uint64_t)offset);
  if (ret)
    run_complain_library((int)ret);
  run_image_end(i);
  return ret ? ret : (ssize_t)count;
}

ssize_t run_content_write(struct run_handle *handle, const void *buffer, size_t count, off_t offset)
{
  struct run_image *i = handle->image;
  ssize_t ret;

  if (!handle->writable)
    return -EBADF;
  if (offset < 0)
    return -EINVAL;
  if (!count)
    return 0;
  ret = run_image_begin(i, true);
  if (ret)
    return ret;
  if (count > COUNT_MOST)
    count = COUNT_MOST;
  if ((uint64_t)offset >= i->size) {
    run_image_end(i);
    return -ENOSPC;
  }
  if (count > i->size - (uint64_t)offset)
    count = i->size - (uint64_t)offset;
  ret = pcow_pwrite(i->image, buffer, count, (uint64_t)offset);
  if (ret)
    run_complain_library((int)ret);
  run_image_end(i);
  return ret ? ret : (ssize_t)count;
}

/* In a store-durable map stores may still be in the CPU's caches. */
static int sync_held(struct run_image *i)
{
  int ret = 0;

  if (!i->image || !i->writable)
    return 0;
  if (i->map && i->store)
    ret = pcow_flush(i->map, 0, i->size);
  if (ret == 0)
    ret = pcow_sync(i->image);
  return ret ? run_complain_library(ret) : 0;
}

int run_content_sync_image(struct run_image *i)
{
  int ret;

  pthread_rwlock_rdlock(&i->use);
  ret = sync_held(i);
  pthread_rwlock_unlock(&i->use);
  return ret;
}

int run_content_sync(struct run_handle *handle) { return run_content_sync_image(handle->image); }

/* ---- Data and holes ---- */

struct wanted {
  bool data;
  uint64_t found;
};

static int on_extent(void *opaque, const struct pcow_extent *extent)
{
  struct wanted *w = opaque;

  if ((extent->type == PCOW_EXTENT_DATA) != w->data)
    return 0;
  w->found = extent->offset;
  return 1;
}

off_t run_content_seek(struct run_handle *handle, off_t offset, bool data)
{
  struct run_image *i = handle->image;
  struct wanted w = { data, 0 };
  int ret = run_image_begin(i, false);

  if (ret)
    return ret;
  if (offset < 0 || (uint64_t)offset >= i->size) {
    run_image_end(i);
    return -ENXIO;
  }
  ret = pcow_extents(i->image, (uint64_t)offset, i->size - (uint64_t)offset, PCOW_EXTENTS_MERGE, on_extent,
                     &w);
  if (ret < 0)
    run_complain_library(ret);
  else if (ret == 0 && data)
    ret = -ENXIO;
  else if (ret == 0)
    w.found = i->size;
  run_image_end(i);
  if (ret < 0)
    return ret;
  return w.found > (uint64_t)offset ? (off_t)w.found : offset;
}

/* ---- Size, space ---- */

int run_content_truncate(struct run_handle *handle, off_t size)
{
  struct run_image *i = handle->image;
  uint64_t full;
  int ret;

  if (!handle->writable || size < 0)
    return -EINVAL;
  full = ((uint64_t)size + PCOW_PAGE_SIZE - 1) & ~(uint64_t)(PCOW_PAGE_SIZE - 1);
  pthread_mutex_lock(&run_structure);
  ret = run_image_lock(i, true);
  if (ret == 0) {
    if ((uint64_t)size < i->size) {
      run_complain("%s: cannot be made smaller than its %llu bytes by a program; pcow-img resize --shrink "
                   "can", i->path, (unsigned long long)i->size);
      ret = -EINVAL;
    } else if (full > i->size) {
      ret = pcow_resize(i->image, full, 0);
      if (ret)
        run_complain_library(ret);
      else
        i->size = full;
    }
    run_image_unlock(i);
  }
  pthread_mutex_unlock(&run_structure);
  return ret;
}

int run_content_allocate(struct run_handle *handle, int mode, off_t offset, off_t length)
{
  const int known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
  struct run_image *i = handle->image;
  uint64_t from, n;
  int ret = 0;

  if (offset < 0 || length <= 0)
    return -EINVAL;
  if (mode & ~known || (mode & FALLOC_FL_PUNCH_HOLE && mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)))
    return -EOPNOTSUPP;
  if (!handle->writable)
    return -EBADF;
  if (__builtin_add_overflow(offset, length, &(off_t){ 0 }))
    return -EFBIG;
  if (!(mode & FALLOC_FL_KEEP_SIZE)) {
    ret = run_image_begin(i, true);
    if (ret)
      return ret;
    n = i->size;
    run_image_end(i);
    if ((uint64_t)(offset + length) > n)
      ret = run_content_truncate(handle, offset + length);
  }
  if (ret || !(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
    return ret;
  ret = run_image_begin(i, true);
  if (ret)
    return ret;
  from = (uint64_t)offset < i->size ? (uint64_t)offset : i->size;
  n = (uint64_t)length < i->size - from ? (uint64_t)length : i->size - from;
  ret = mode & FALLOC_FL_PUNCH_HOLE ? pcow_discard(i->image, from, n)
                                    : pcow_write_zeroes(i->image, from, n, PCOW_ZERO_KEEP_SPACE);
  if (ret)
    run_complain_library(ret);
  run_image_end(i);
  return ret;
}

int run_content_clear(struct run_image *i)
{
  int ret = run_image_begin(i, true);

  if (ret)
    return ret;
  ret = pcow_discard(i->image, 0, i->size);
  if (ret)
    run_complain_library(ret);
  run_image_end(i);
  return ret;
}
