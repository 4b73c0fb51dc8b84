/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls about memory. Those about other memory than that of images take no lock of an image: an allocator makes
 * them, whatever it is called for. libpcow keeps its range as it needs it: advice that is only about speed is
 * taken as given, and what would change the range beneath it is done by libpcow, or refused.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

RUN_API void *run_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset) __asm__("mmap64");
RUN_ALSO(mmap, mmap64);
RUN_API void *run_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
  struct run_handle *handle = flags & MAP_ANONYMOUS ? NULL : run_table_get(fd);
  void *result;
  int ret;

  if (handle) {
    result = run_maps_map(handle, address, length, prot, flags, offset);
    run_table_put(handle);
    return result;
  }
  if (prot == PROT_NONE && (flags & MAP_ANONYMOUS) && !(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
    return run_reserve(address, length, flags);
  if ((flags & MAP_FIXED) && run_maps_touch(address, length)) {
    pthread_mutex_lock(&run_structure);
    ret = run_maps_replace(address, length);
    pthread_mutex_unlock(&run_structure);
    if (ret) {
      errno = -ret;
      return MAP_FAILED;
    }
  }
  if (flags & MAP_FIXED)
    run_reserve_drop(address, length);
  return real()->mmap64(address, length, prot, flags, fd, offset);
}

RUN_API int run_munmap(void *address, size_t length) __asm__("munmap");
RUN_API int run_munmap(void *address, size_t length)
{
  run_reserve_drop(address, length);
  if ((uintptr_t)address % PCOW_PAGE_SIZE || !length || !run_maps_touch(address, length))
    return real()->munmap(address, length);
  return (int)run_result(run_maps_unmap(address, length));
}

static void *other_mremap(void *address, size_t old, size_t length, int flags, void *to)
{
  run_reserve_drop(address, old);
  if (flags & MREMAP_FIXED)
    run_reserve_drop(to, length);
  return real()->mremap(address, old, length, flags, to);
}

RUN_API void *run_mremap(void *address, size_t old, size_t length, int flags, ...) __asm__("mremap");
RUN_API void *run_mremap(void *address, size_t old, size_t length, int flags, ...)
{
  void *to = NULL;
  va_list list;
  int ret;

  va_start(list, flags);
  if (flags & MREMAP_FIXED)
    to = va_arg(list, void *);
  va_end(list);
  if (!run_maps_touch(address, old ? old : 1) && !((flags & MREMAP_FIXED) && run_maps_touch(to, length)))
    return other_mremap(address, old, length, flags, to);
  ret = flags & ~MREMAP_MAYMOVE ? -EINVAL : run_maps_resize(address, old, length);
  if (ret == 0)
    return address;
  errno = -ret;
  return MAP_FAILED;
}

/* What ADVICE comes to for a part of an image; 0 or -errno. */
static int advise(struct run_image *i, uint64_t offset, size_t length, int advice)
{
  uint64_t end = offset + length < i->size ? offset + length : i->size;
  int ret = 0;

  switch (advice) {
  case MADV_REMOVE:
    if (!i->writable)
      return -EACCES;
    if (offset < end)
      ret = pcow_discard(i->image, offset, end - offset);
    return ret ? run_complain_library(ret) : 0;
  case MADV_POPULATE_READ:
  case MADV_POPULATE_WRITE:
    return real()->madvise(i->base + offset, end > offset ? end - offset : 0, advice) ? -errno : 0;
  case MADV_FREE:
  case MADV_WIPEONFORK:
  case MADV_KEEPONFORK:
  case MADV_HWPOISON:
    return -EINVAL;
  default:
    return 0;
  }
}

RUN_API int run_madvise(void *address, size_t length, int advice) __asm__("madvise");
RUN_API int run_madvise(void *address, size_t length, int advice)
{
  uint8_t *at = address, *end = at + length;
  int ret = 0;

  if (!run_maps_touch(address, length))
    return real()->madvise(address, length, advice);
  if ((uintptr_t)address % PCOW_PAGE_SIZE)
    return (int)run_result(-EINVAL);
  while (ret == 0 && at < end) {
    size_t n = (size_t)(end - at);
    uint64_t offset;
    struct run_image *i = run_maps_find(at, &n, &offset);

    if (i) {
      ret = advise(i, offset, n, advice);
      run_image_end(i);
    } else if (real()->madvise(at, n, advice)) {
      ret = -errno;
    }
    at += n;
  }
  return (int)run_result(ret);
}

RUN_API int run_msync(void *address, size_t length, int flags) __asm__("msync");
RUN_API int run_msync(void *address, size_t length, int flags)
{
  uint8_t *at = address, *end = at + length;
  int ret = 0;

  if (!run_maps_touch(address, length))
    return real()->msync(address, length, flags);
  if ((uintptr_t)address % PCOW_PAGE_SIZE || flags & ~(MS_SYNC | MS_ASYNC | MS_INVALIDATE) ||
      (flags & MS_SYNC && flags & MS_ASYNC))
    return (int)run_result(-EINVAL);
  while (ret == 0 && at < end) {
    size_t n = (size_t)(end - at);
    uint64_t offset;
    struct run_image *i = run_maps_find(at, &n, &offset);

    if (i) {
      uint64_t to = offset + n < i->size ? offset + n : i->size;

      if (flags & MS_SYNC && i->writable && offset < to)
        ret = pcow_flush(i->map, offset, to - offset);
      if (ret)
        run_complain_library(ret);
      run_image_end(i);
    } else if (real()->msync(at, n, flags)) {
      ret = -errno;
    }
    at += n;
  }
  return (int)run_result(ret);
}

/* libpcow maps parts of its range anew as it goes along, which would undo a protection. */
RUN_API int run_mprotect(void *address, size_t length, int prot) __asm__("mprotect");
RUN_API int run_mprotect(void *address, size_t length, int prot)
{
  struct run_image *i;
  uint64_t offset;
  int ret = 0;

  if (!run_maps_touch(address, length)) {
    if (prot != PROT_NONE)
      run_reserve_drop(address, length);
    return real()->mprotect(address, length, prot);
  }
  i = run_maps_find(address, &length, &offset);
  if (!i || prot != (i->writable ? PROT_READ | PROT_WRITE : PROT_READ))
    ret = i && !i->writable && (prot & PROT_WRITE) ? -EACCES : -ENOTSUP;
  if (ret == -ENOTSUP)
    run_complain("%s: the protection of its mapping cannot be changed", i ? i->path : "an image");
  if (i)
    run_image_end(i);
  return (int)run_result(ret);
}
