/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The status of files: an image is as large as what is in it. All else is said of the image file.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

/* RET of a call that found ST at PATH. */
static int at_path(int ret, int dirfd, const char *path, int flags, struct stat *st)
{
  uint64_t size;

  if (ret == 0 && S_ISREG(st->st_mode) &&
      run_image_size_at(dirfd, path, flags, st->st_dev, st->st_ino, st->st_size, &size))
    st->st_size = (off_t)size;
  return ret;
}

RUN_API int run_fstat(int fd, struct stat *st) __asm__("fstat64");
RUN_ALSO(fstat, fstat64);
RUN_API int run_fstat(int fd, struct stat *st)
{
  struct run_handle *handle = run_table_get(fd);
  int ret;

  if (!handle)
    return real()->fstat64(fd, st);
  ret = run_image_stat(handle, fd, st);
  run_table_put(handle);
  return (int)run_result(ret);
}

RUN_API int run_stat(const char *path, struct stat *st) __asm__("stat64");
RUN_ALSO(stat, stat64);
RUN_API int run_stat(const char *path, struct stat *st)
{
  return at_path(real()->stat64(path, st), AT_FDCWD, path, 0, st);
}

RUN_API int run_lstat(const char *path, struct stat *st) __asm__("lstat64");
RUN_ALSO(lstat, lstat64);
RUN_API int run_lstat(const char *path, struct stat *st)
{
  return at_path(real()->lstat64(path, st), AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, st);
}

RUN_API int run_fstatat(int dirfd, const char *path, struct stat *st, int flags) __asm__("fstatat64");
RUN_ALSO(fstatat, fstatat64);
RUN_API int run_fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
  if ((flags & AT_EMPTY_PATH) && run_table_has(dirfd) && (!path || !*path))
    return run_fstat(dirfd, st);
  return at_path(real()->fstatat64(dirfd, path, st, flags), dirfd, path, flags, st);
}

RUN_API int run_statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *stx) __asm__("statx");
RUN_API int run_statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *stx)
{
  struct run_handle *handle = NULL;
  uint64_t size;
  int ret;

  if ((flags & AT_EMPTY_PATH) && (!path || !*path))
    handle = run_table_get(dirfd);
  if (handle && handle->elsewhere)
    ret = real()->statx(AT_FDCWD, handle->image->path, 0, mask, stx);
  else
    ret = real()->statx(dirfd, path, flags, mask, stx);
  if (handle) {
    ret = ret ? -errno : run_image_size(handle->image, &size);
    if (ret == 0)
      stx->stx_size = size;
    run_table_put(handle);
    return (int)run_result(ret);
  }
  if (ret == 0 && S_ISREG(stx->stx_mode) && (stx->stx_mask & STATX_SIZE) &&
      run_image_size_at(dirfd, path, flags, makedev(stx->stx_dev_major, stx->stx_dev_minor), stx->stx_ino,
                        (off_t)stx->stx_size, &size))
    stx->stx_size = size;
  return ret;
}

/* Programs that were linked with a glibc before 2.33 call these; the first argument is a version of the
 * struct, of which there is only one. */
RUN_API int run_fxstat(int version, int fd, struct stat *st) __asm__("__fxstat64");
RUN_ALSO(__fxstat, __fxstat64);
RUN_API int run_fxstat(int version, int fd, struct stat *st)
{
  (void)version;
  return run_fstat(fd, st);
}

RUN_API int run_xstat(int version, const char *path, struct stat *st) __asm__("__xstat64");
RUN_ALSO(__xstat, __xstat64);
RUN_API int run_xstat(int version, const char *path, struct stat *st)
{
  (void)version;
  return run_stat(path, st);
}

RUN_API int run_lxstat(int version, const char *path, struct stat *st) __asm__("__lxstat64");
RUN_ALSO(__lxstat, __lxstat64);
RUN_API int run_lxstat(int version, const char *path, struct stat *st)
{
  (void)version;
  return run_lstat(path, st);
}

RUN_API int run_fxstatat(int version, int dirfd, const char *path, struct stat *st, int flags)
  __asm__("__fxstatat64");
RUN_ALSO(__fxstatat, __fxstatat64);
RUN_API int run_fxstatat(int version, int dirfd, const char *path, struct stat *st, int flags)
{
  (void)version;
  return run_fstatat(dirfd, path, st, flags);
}
