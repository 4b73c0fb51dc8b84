/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls that move bytes, or make them durable. Whoever is about to copy from descriptor to descriptor inside
 * the kernel is told that this does not work here, as for files of two file systems: programs read and write then.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#ifndef RWF_SYNC
#define RWF_HIPRI 1
#define RWF_DSYNC 2
#define RWF_SYNC 4
#define RWF_NOWAIT 8
#endif

/* ---- One piece ---- */

static ssize_t written(struct run_handle *handle, ssize_t ret, bool sync)
{
  int synced = ret > 0 && (sync || handle->sync) ? run_content_sync(handle) : 0;

  return synced ? synced : ret;
}

static ssize_t transfer(struct run_handle *handle, bool write, void *buffer, size_t count, off_t offset)
{
  return write ? run_content_write(handle, buffer, count, offset)
               : run_content_read(handle, buffer, count, offset);
}

/* At OFFSET, or (AT_POSITION) where the file's position is. */
static ssize_t transfer_all(struct run_handle *handle, int fd, bool write, const struct iovec *vec, int count,
                            off_t offset, bool at_position)
{
  ssize_t done = 0, n = 0;

  if (count < 0 || count > IOV_MAX)
    return -EINVAL;
  if (at_position) {
    pthread_mutex_lock(&handle->position);
    offset = real()->lseek64(fd, 0, SEEK_CUR);
  }
  if (write && handle->append) {
    if (handle->writable && run_image_begin(handle->image, true) == 0) {
      offset = (off_t)handle->image->size;
      run_image_end(handle->image);
    }
  }
  for (int k = 0; k < count; k++) {
    n = transfer(handle, write, vec[k].iov_base, vec[k].iov_len, offset + done);
    if (n > 0)
      done += n;
    if (n < 0 || (size_t)n < vec[k].iov_len)
      break;
  }
  if (done)
    n = done;
  if (at_position) {
    if (done)
      real()->lseek64(fd, offset + done, SEEK_SET);
    pthread_mutex_unlock(&handle->position);
  }
  return n;
}

static ssize_t one(struct run_handle *handle, int fd, bool write, const void *buffer, size_t count,
                   off_t offset, bool at_position)
{
  struct iovec vec = { (void *)(uintptr_t)buffer, count };
  ssize_t n = transfer_all(handle, fd, write, &vec, 1, offset, at_position);

  if (write)
    n = written(handle, n, false);
  run_table_put(handle);
  return run_result(n);
}

ssize_t run_read(int fd, void *buffer, size_t count)
{
  struct run_handle *handle = run_table_get(fd);
  const struct iovec piece = { buffer, count };

  if (handle)
    return one(handle, fd, false, buffer, count, 0, true);
  return run_direct(fd, &piece, 1) ? run_direct_read(fd, &piece, 1, -1, 0) : real()->read(fd, buffer, count);
}

ssize_t run_write(int fd, const void *buffer, size_t count)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? one(handle, fd, true, buffer, count, 0, true) : real()->write(fd, buffer, count);
}

RUN_API ssize_t run_read_api(int fd, void *buffer, size_t count) __asm__("read");
RUN_ALSO(__read, read);
RUN_API ssize_t run_read_api(int fd, void *buffer, size_t count) { return run_read(fd, buffer, count); }

RUN_API ssize_t run_write_api(int fd, const void *buffer, size_t count) __asm__("write");
RUN_ALSO(__write, write);
RUN_API ssize_t run_write_api(int fd, const void *buffer, size_t count) { return run_write(fd, buffer, count); }

RUN_API ssize_t run_pread(int fd, void *buffer, size_t count, off_t offset) __asm__("pread64");
RUN_ALSO(pread, pread64);
RUN_ALSO(__pread64, pread64);
RUN_API ssize_t run_pread(int fd, void *buffer, size_t count, off_t offset)
{
  struct run_handle *handle = run_table_get(fd);
  const struct iovec piece = { buffer, count };

  if (handle)
    return one(handle, fd, false, buffer, count, offset, false);
  return offset >= 0 && run_direct(fd, &piece, 1) ? run_direct_read(fd, &piece, 1, offset, 0)
                                                  : real()->pread64(fd, buffer, count, offset);
}

RUN_API ssize_t run_pwrite(int fd, const void *buffer, size_t count, off_t offset) __asm__("pwrite64");
RUN_ALSO(pwrite, pwrite64);
RUN_ALSO(__pwrite64, pwrite64);
RUN_API ssize_t run_pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? one(handle, fd, true, buffer, count, offset, false)
                : real()->pwrite64(fd, buffer, count, offset);
}

/* What programs compiled with _FORTIFY_SOURCE call; that the buffer is large enough is checked here, too. */
void __chk_fail(void) __attribute__((noreturn));

RUN_API ssize_t run_read_chk(int fd, void *buffer, size_t count, size_t room) __asm__("__read_chk");
RUN_API ssize_t run_read_chk(int fd, void *buffer, size_t count, size_t room)
{
  if (count > room)
    __chk_fail();
  return run_read(fd, buffer, count);
}

RUN_API ssize_t run_pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
  __asm__("__pread64_chk");
RUN_ALSO(__pread_chk, __pread64_chk);
RUN_API ssize_t run_pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
{
  if (count > room)
    __chk_fail();
  return run_pread(fd, buffer, count, offset);
}

/* ---- Several pieces ---- */

static ssize_t vector(struct run_handle *handle, int fd, bool write, const struct iovec *vec, int count,
                      off_t offset, int flags)
{
  ssize_t n = -EOPNOTSUPP;

  if (!(flags & ~(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT)))
    n = transfer_all(handle, fd, write, vec, count, offset, offset == -1);
  if (write)
    n = written(handle, n, flags & (RWF_DSYNC | RWF_SYNC));
  run_table_put(handle);
  return run_result(n);
}

RUN_API ssize_t run_readv(int fd, const struct iovec *vec, int count) __asm__("readv");
RUN_API ssize_t run_readv(int fd, const struct iovec *vec, int count)
{
  struct run_handle *handle = run_table_get(fd);

  if (handle)
    return vector(handle, fd, false, vec, count, -1, 0);
  return run_direct(fd, vec, count) ? run_direct_read(fd, vec, count, -1, 0) : real()->readv(fd, vec, count);
}

RUN_API ssize_t run_writev(int fd, const struct iovec *vec, int count) __asm__("writev");
RUN_API ssize_t run_writev(int fd, const struct iovec *vec, int count)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? vector(handle, fd, true, vec, count, -1, 0) : real()->writev(fd, vec, count);
}

/* Only the calls with flags take -1 for the position. */
#define AT(offset) ((offset) == -1 ? -2 : (offset))

RUN_API ssize_t run_preadv(int fd, const struct iovec *vec, int count, off_t offset) __asm__("preadv64");
RUN_ALSO(preadv, preadv64);
RUN_API ssize_t run_preadv(int fd, const struct iovec *vec, int count, off_t offset)
{
  struct run_handle *handle = run_table_get(fd);

  if (handle)
    return vector(handle, fd, false, vec, count, AT(offset), 0);
  return offset >= 0 && run_direct(fd, vec, count) ? run_direct_read(fd, vec, count, offset, 0)
                                                   : real()->preadv64(fd, vec, count, offset);
}

RUN_API ssize_t run_pwritev(int fd, const struct iovec *vec, int count, off_t offset) __asm__("pwritev64");
RUN_ALSO(pwritev, pwritev64);
RUN_API ssize_t run_pwritev(int fd, const struct iovec *vec, int count, off_t offset)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? vector(handle, fd, true, vec, count, AT(offset), 0)
                : real()->pwritev64(fd, vec, count, offset);
}

RUN_API ssize_t run_preadv2(int fd, const struct iovec *vec, int count, off_t offset, int flags)
  __asm__("preadv64v2");
RUN_ALSO(preadv2, preadv64v2);
RUN_API ssize_t run_preadv2(int fd, const struct iovec *vec, int count, off_t offset, int flags)
{
  struct run_handle *handle = run_table_get(fd);

  if (handle)
    return vector(handle, fd, false, vec, count, offset, flags);
  return offset >= -1 && run_direct(fd, vec, count) ? run_direct_read(fd, vec, count, offset, flags)
                                                    : real()->preadv64v2(fd, vec, count, offset, flags);
}

RUN_API ssize_t run_pwritev2(int fd, const struct iovec *vec, int count, off_t offset, int flags)
  __asm__("pwritev64v2");
RUN_ALSO(pwritev2, pwritev64v2);
RUN_API ssize_t run_pwritev2(int fd, const struct iovec *vec, int count, off_t offset, int flags)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? vector(handle, fd, true, vec, count, offset, flags)
                : real()->pwritev64v2(fd, vec, count, offset, flags);
}

/* ---- Position ---- */

off_t run_lseek(int fd, off_t offset, int whence)
{
  struct run_handle *handle = run_table_get(fd);
  int ret = 0;

  if (!handle)
    return real()->lseek64(fd, offset, whence);
  if (whence == SEEK_END) {
    ret = run_image_begin(handle->image, false);
    if (ret == 0) {
      if (__builtin_add_overflow(offset, (off_t)handle->image->size, &offset))
        ret = -EOVERFLOW;
      run_image_end(handle->image);
    }
  } else if (whence == SEEK_DATA || whence == SEEK_HOLE) {
    offset = run_content_seek(handle, offset, whence == SEEK_DATA);
    ret = offset < 0 ? (int)offset : 0;
  }
  if (ret)
    offset = run_result(ret);
  else
    offset = real()->lseek64(fd, offset, whence >= SEEK_END && whence <= SEEK_HOLE ? SEEK_SET : whence);
  run_table_put(handle);
  return offset;
}

RUN_API off_t run_lseek_api(int fd, off_t offset, int whence) __asm__("lseek64");
RUN_ALSO(lseek, lseek64);
RUN_ALSO(__lseek, lseek64);
RUN_API off_t run_lseek_api(int fd, off_t offset, int whence) { return run_lseek(fd, offset, whence); }

/* ---- Durability ---- */

static int sync_handle(struct run_handle *handle)
{
  int ret = run_content_sync(handle);

  run_table_put(handle);
  return (int)run_result(ret);
}

RUN_API int run_fsync(int fd) __asm__("fsync");
RUN_API int run_fsync(int fd)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? sync_handle(handle) : real()->fsync(fd);
}

RUN_API int run_fdatasync(int fd) __asm__("fdatasync");
RUN_API int run_fdatasync(int fd)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? sync_handle(handle) : real()->fdatasync(fd);
}

RUN_API int run_sync_file_range(int fd, off_t offset, off_t length, unsigned flags) __asm__("sync_file_range");
RUN_API int run_sync_file_range(int fd, off_t offset, off_t length, unsigned flags)
{
  struct run_handle *handle = run_table_get(fd);

  return handle ? sync_handle(handle) : real()->sync_file_range(fd, offset, length, flags);
}

/* What the C library hands to threads of its own goes past this one; its reads and writes fail there, but the
 * kernel's fsync(2) would say that all is durable. */
RUN_API int run_aio_fsync(int operation, struct aiocb64 *block) __asm__("aio_fsync64");
RUN_ALSO(aio_fsync, aio_fsync64);
RUN_API int run_aio_fsync(int operation, struct aiocb64 *block)
{
  return run_table_is(block->aio_fildes) ? (int)run_result(-EBADF) : real()->aio_fsync64(operation, block);
}

static int sync_all(void)
{
  int ret = 0;

  for (struct run_image *i = run_images(); i; i = i->next) {
    int synced = run_content_sync_image(i);

    if (synced)
      ret = synced;
  }
  return ret;
}

RUN_API int run_syncfs(int fd) __asm__("syncfs");
RUN_API int run_syncfs(int fd)
{
  int ret = sync_all();

  return ret ? (int)run_result(ret) : real()->syncfs(fd);
}

RUN_API void run_sync(void) __asm__("sync");
RUN_API void run_sync(void)
{
  sync_all();
  real()->sync();
}

/* ---- Size, space ---- */

RUN_API int run_ftruncate(int fd, off_t size) __asm__("ftruncate64");
RUN_ALSO(ftruncate, ftruncate64);
RUN_API int run_ftruncate(int fd, off_t size)
{
  struct run_handle *handle = run_table_get(fd);
  int ret;

  if (!handle)
    return real()->ftruncate64(fd, size);
  ret = run_content_truncate(handle, size);
  run_table_put(handle);
  return (int)run_result(ret);
}

RUN_API int run_truncate(const char *path, off_t size) __asm__("truncate64");
RUN_ALSO(truncate, truncate64);
RUN_API int run_truncate(const char *path, off_t size)
{
  int probe = run_probe(AT_FDCWD, path, 0), fd, ret, error;

  if (probe < 0)
    return real()->truncate64(path, size);
  real()->close(probe);
  if (!run_own_process())
    return (int)run_result(-EBUSY);
  fd = run_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  ret = run_table_has(fd) ? run_ftruncate(fd, size) : real()->truncate64(path, size);
  error = errno;
  if (run_close(fd) == 0 || ret)
    errno = error;
  else
    ret = -1;
  return ret;
}

RUN_API int run_fallocate(int fd, int mode, off_t offset, off_t length) __asm__("fallocate64");
RUN_ALSO(fallocate, fallocate64);
RUN_API int run_fallocate(int fd, int mode, off_t offset, off_t length)
{
  struct run_handle *handle = run_table_get(fd);
  int ret;

  if (!handle)
    return real()->fallocate64(fd, mode, offset, length);
  ret = run_content_allocate(handle, mode, offset, length);
  run_table_put(handle);
  return (int)run_result(ret);
}

RUN_API int run_posix_fallocate(int fd, off_t offset, off_t length) __asm__("posix_fallocate64");
RUN_ALSO(posix_fallocate, posix_fallocate64);
RUN_API int run_posix_fallocate(int fd, off_t offset, off_t length)
{
  struct run_handle *handle = run_table_get(fd);
  int ret;

  if (!handle)
    return real()->posix_fallocate64(fd, offset, length);
  ret = run_content_allocate(handle, 0, offset, length);
  run_table_put(handle);
  return -ret;
}

RUN_API ssize_t run_readahead(int fd, off_t offset, size_t count) __asm__("readahead");
RUN_API ssize_t run_readahead(int fd, off_t offset, size_t count)
{
  return run_table_is(fd) ? 0 : real()->readahead(fd, offset, count);
}

/* ---- Inside the kernel ---- */

RUN_API ssize_t run_copy_file_range(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags)
  __asm__("copy_file_range");
RUN_API ssize_t run_copy_file_range(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags)
{
  if (run_table_is(in) || run_table_is(out))
    return run_result(-EXDEV);
  return real()->copy_file_range(in, from, out, to, count, flags);
}

RUN_API ssize_t run_sendfile(int out, int in, off_t *offset, size_t count) __asm__("sendfile64");
RUN_ALSO(sendfile, sendfile64);
RUN_API ssize_t run_sendfile(int out, int in, off_t *offset, size_t count)
{
  if (run_table_is(in) || run_table_is(out))
    return run_result(-EINVAL);
  return real()->sendfile64(out, in, offset, count);
}

RUN_API ssize_t run_splice(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags)
  __asm__("splice");
RUN_API ssize_t run_splice(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags)
{
  if (run_table_is(in) || run_table_is(out))
    return run_result(-EINVAL);
  return real()->splice(in, from, out, to, count, flags);
}
