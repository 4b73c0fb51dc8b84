/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls that make and end descriptors. Each is passed on as it is unless an image is concerned.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Flags that the placeholder does not have as the program set them. */
#define RUN_SHOWN (O_DIRECT | O_NONBLOCK)

#ifndef FIGETBSZ
#define FIGETBSZ _IO(0x00, 2)
#endif

/* ---- Opening ---- */

/* Of the file that PROBE is. With ELSEWHERE it is another one, because that file may not be written: then the
 * descriptor means nothing to a program that this one executes. */
static int placeholder(int probe, int flags, bool *elsewhere)
{
  int keep = flags & (O_CLOEXEC | O_APPEND | O_SYNC);
  char link[64];
  int fd, memory;

  snprintf(link, sizeof(link), "/proc/self/fd/%d", probe);
  fd = real()->openat64(AT_FDCWD, link, keep | RUN_ACCESS_NONE);
  *elsewhere = fd < 0;
  if (fd >= 0)
    return fd;
  memory = memfd_create("pcow-run", MFD_CLOEXEC);
  if (memory < 0)
    return -errno;
  snprintf(link, sizeof(link), "/proc/self/fd/%d", memory);
  fd = real()->openat64(AT_FDCWD, link, keep | RUN_ACCESS_NONE);
  fd = fd < 0 ? -errno : fd;
  close(memory);
  return fd;
}

/* The placeholder FD gets NUMBER. */
static void take_number(int fd, int number, int flags)
{
  /* What may be done with it is told to whoever gets it through exec by a flag that means nothing for files. */
  if ((flags & O_ACCMODE) != O_RDONLY)
    real()->fcntl64(fd, F_SETFL, (flags & O_APPEND) | O_NONBLOCK);
  real()->dup3(fd, number, flags & O_CLOEXEC);
  real()->close(fd);
}

/* Takes PROBE's number, which was the lowest that was free. */
static int open_probed(int probe, int flags)
{
  bool readable = (flags & O_ACCMODE) != O_WRONLY, writable = (flags & O_ACCMODE) != O_RDONLY;
  struct run_handle *handle;
  struct run_image *image;
  bool elsewhere;
  int fd, ret;

  pthread_mutex_lock(&run_structure);
  image = run_image_find(probe);
  ret = image ? run_image_open(image, writable) : -ENOMEM;
  pthread_mutex_unlock(&run_structure);
  if (ret)
    return ret;
  handle = run_handle_new(image, readable, writable);
  fd = handle ? placeholder(probe, flags, &elsewhere) : -ENOMEM;
  if (fd >= 0 && (flags & O_TRUNC) && writable)
    ret = run_content_clear(image);
  if (fd >= 0 && ret == 0)
    ret = run_image_park(image, false);
  if (fd < 0 || ret) {
    if (fd >= 0)
      real()->close(fd);
    free(handle);
    run_image_close(image);
    return ret ? ret : fd;
  }
  handle->elsewhere = elsewhere;
  handle->shown = flags & RUN_SHOWN;
  handle->append = flags & O_APPEND;
  handle->sync = flags & O_DSYNC;
  take_number(fd, probe, flags);
  run_table_set(probe, handle);
  return probe;
}

/* In a child that shares its parent's memory until it is another program: that one finds the descriptor. */
static int open_for_exec(int probe, int flags)
{
  bool elsewhere;
  int fd;

  if ((flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY) {
    run_complain("an image cannot be made empty between vfork(2) and exec");
    return -ENOTSUP;
  }
  fd = placeholder(probe, flags, &elsewhere);
  if (fd < 0)
    return fd;
  take_number(fd, probe, flags);
  return probe;
}

int run_open(int dirfd, const char *path, int flags, mode_t mode)
{
  int probe, ret;

  if ((flags & O_PATH) || (flags & O_DIRECTORY) || (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL) ||
      (flags & O_ACCMODE) == RUN_ACCESS_NONE ||
      (probe = run_probe(dirfd, path, flags)) < 0)
    return real()->openat64(dirfd, path, flags, mode);
  ret = run_own_process() ? open_probed(probe, flags) : open_for_exec(probe, flags);
  if (ret >= 0)
    return ret;
  real()->close(probe);
  if (ret == -EMEDIUMTYPE && !run_settings()->images)
    return real()->openat64(dirfd, path, flags, mode);
  errno = -ret;
  return -1;
}

/* The file of FD was opened by somebody who knew nothing of images: it becomes a placeholder. -1: it cannot. */
static int replace(int fd, int probe, int flags, bool *elsewhere)
{
  off_t position = real()->lseek64(fd, 0, SEEK_CUR);
  int new = placeholder(probe, flags, elsewhere);

  if (new < 0)
    return -1;
  real()->lseek64(new, position, SEEK_SET);
  take_number(new, fd, flags);
  return 0;
}

void run_open_adopt(int fd)
{
  int flags = real()->fcntl64(fd, F_GETFL);
  bool known = (flags & O_ACCMODE) == RUN_ACCESS_NONE, elsewhere = false;
  struct run_handle *handle = NULL;
  struct run_image *image = NULL;
  char link[64];
  int probe;

  if (flags < 0 || flags & O_PATH)
    return;
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  probe = run_probe(AT_FDCWD, link, 0);
  if (probe < 0)
    return;
  if (!known && replace(fd, probe, flags, &elsewhere)) {
    /* Whatever is done with it then fails: better than to be done to the image file. */
    run_complain("descriptor %d is of an image and cannot be served: it is closed", fd);
    real()->close(fd);
    real()->close(probe);
    return;
  }
  pthread_mutex_lock(&run_structure);
  image = run_image_find(probe);
  if (image)
    handle = known ? run_handle_new(image, true, flags & O_NONBLOCK)
                   : run_handle_new(image, (flags & O_ACCMODE) != O_WRONLY, (flags & O_ACCMODE) != O_RDONLY);
  if (handle) {
    handle->append = flags & O_APPEND;
    handle->sync = flags & O_DSYNC;
    handle->elsewhere = elsewhere;
    run_image_adopt(image);
  }
  pthread_mutex_unlock(&run_structure);
  if (handle)
    run_table_set(fd, handle);
  real()->close(probe);
}

#define NEEDS_MODE(flags) ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE)

RUN_API int run_open64(const char *path, int flags, ...) __asm__("open64");
RUN_ALSO(open, open64);
RUN_ALSO(__open, open64);
RUN_ALSO(__open64, open64);
RUN_API int run_open64(const char *path, int flags, ...)
{
  mode_t mode = 0;
  va_list list;

  va_start(list, flags);
  if (NEEDS_MODE(flags))
    mode = va_arg(list, mode_t);
  va_end(list);
  return run_open(AT_FDCWD, path, flags, mode);
}

RUN_API int run_openat64(int dirfd, const char *path, int flags, ...) __asm__("openat64");
RUN_ALSO(openat, openat64);
RUN_API int run_openat64(int dirfd, const char *path, int flags, ...)
{
  mode_t mode = 0;
  va_list list;

  va_start(list, flags);
  if (NEEDS_MODE(flags))
    mode = va_arg(list, mode_t);
  va_end(list);
  return run_open(dirfd, path, flags, mode);
}

RUN_API int run_open64_2(const char *path, int flags) __asm__("__open64_2");
RUN_ALSO(__open_2, __open64_2);
RUN_API int run_open64_2(const char *path, int flags) { return run_open(AT_FDCWD, path, flags, 0); }

RUN_API int run_openat64_2(int dirfd, const char *path, int flags) __asm__("__openat64_2");
RUN_ALSO(__openat_2, __openat64_2);
RUN_API int run_openat64_2(int dirfd, const char *path, int flags) { return run_open(dirfd, path, flags, 0); }

RUN_API int run_creat64(const char *path, mode_t mode) __asm__("creat64");
RUN_ALSO(creat, creat64);
RUN_API int run_creat64(const char *path, mode_t mode)
{
  return run_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

/* ---- Closing ---- */

/* A child that shares our memory closes only its own descriptors. */
int run_close(int fd)
{
  int ret, closed;

  if (!run_table_has(fd) && !run_own_fd(fd))
    return real()->close(fd);
  if (!run_own_process())
    return real()->close(fd);
  if (run_own_fd(fd)) {
    errno = EBADF;
    return -1;
  }
  ret = run_table_clear(fd);
  closed = real()->close(fd);
  return ret ? (int)run_result(ret) : closed;
}

RUN_API int run_close_api(int fd) __asm__("close");
RUN_ALSO(__close, close);
RUN_API int run_close_api(int fd) { return run_close(fd); }

static int close_range_but_own(unsigned first, unsigned last, int flags)
{
  unsigned own;
  int ret = 0;

  for (int fd = (int)first; (fd = run_table_next(fd)) < RUN_FD_MOST && (unsigned)fd <= last; fd++)
    run_close(fd);
  while (ret == 0 && first <= last) {
    own = first < RUN_FD_MOST ? (unsigned)run_own_next((int)first) : RUN_FD_MOST;
    if (own >= RUN_FD_MOST || own > last)
      return real()->close_range(first, last, flags);
    if (own > first)
      ret = real()->close_range(first, own - 1, flags);
    first = own + 1;
  }
  return ret;
}

RUN_API int run_close_range(unsigned first, unsigned last, int flags) __asm__("close_range");
RUN_API int run_close_range(unsigned first, unsigned last, int flags)
{
  if (flags & (int)CLOSE_RANGE_CLOEXEC || first > last || first >= RUN_FD_MOST || !run_own_process())
    return real()->close_range(first, last, flags);
  return close_range_but_own(first, last, flags);
}

RUN_API void run_closefrom(int first) __asm__("closefrom");
RUN_API void run_closefrom(int first)
{
  if (!run_own_process() || close_range_but_own(first < 0 ? 0 : (unsigned)first, ~0u, 0))
    real()->closefrom(first);
}

/* ---- Duplicates ---- */

/* FD is a new descriptor of what OLD is of. */
static int duplicated(int old, int fd)
{
  struct run_handle *handle;

  if (fd < 0 || fd == old || !run_own_process())
    return fd;
  handle = run_table_get(old);
  if (handle) {
    run_table_set(fd, handle);
    run_table_put(handle);
  } else {
    run_table_clear(fd);
  }
  return fd;
}

RUN_API int run_dup(int fd) __asm__("dup");
RUN_API int run_dup(int fd) { return duplicated(fd, real()->dup(fd)); }

static bool taken(int fd)
{
  if (!run_own_fd(fd) || !run_own_process())
    return false;
  errno = EBUSY;
  return true;
}

RUN_API int run_dup2(int old, int fd) __asm__("dup2");
RUN_ALSO(__dup2, dup2);
RUN_API int run_dup2(int old, int fd) { return taken(fd) ? -1 : duplicated(old, real()->dup2(old, fd)); }

RUN_API int run_dup3(int old, int fd, int flags) __asm__("dup3");
RUN_API int run_dup3(int old, int fd, int flags)
{
  return taken(fd) ? -1 : duplicated(old, real()->dup3(old, fd, flags));
}

/* ---- fcntl, ioctl ---- */

/* While a process has an image open for writing no other one can open it, and readers do not lock each other
 * out: there is nothing that a record lock could add. */
static int lock(struct flock *l, bool get)
{
  if (l->l_type != F_RDLCK && l->l_type != F_WRLCK && l->l_type != F_UNLCK)
    return -EINVAL;
  if (get)
    l->l_type = F_UNLCK;
  return 0;
}

static int get_flags(const struct run_handle *handle, int fd)
{
  int flags = real()->fcntl64(fd, F_GETFL);

  if (flags < 0)
    return -errno;
  flags &= ~(O_ACCMODE | RUN_SHOWN);
  flags |= !handle->writable ? O_RDONLY : handle->readable ? O_RDWR : O_WRONLY;
  return flags | handle->shown;
}

static int set_flags(struct run_handle *handle, int fd, int flags)
{
  handle->shown = flags & RUN_SHOWN;
  handle->append = flags & O_APPEND;
  flags = (flags & ~RUN_SHOWN) | (handle->writable ? O_NONBLOCK : 0);
  return real()->fcntl64(fd, F_SETFL, flags) ? -errno : 0;
}

static int fcntl_image(struct run_handle *handle, int fd, int command, void *argument)
{
  switch (command) {
  case F_GETFL:
    return get_flags(handle, fd);
  case F_SETFL:
    return set_flags(handle, fd, (int)(intptr_t)argument);
  case F_GETLK:
  case F_OFD_GETLK:
    return lock(argument, true);
  case F_SETLK:
  case F_SETLKW:
  case F_OFD_SETLK:
  case F_OFD_SETLKW:
    return lock(argument, false);
  case F_ADD_SEALS:
  case F_GET_SEALS:
  case F_SETLEASE:
    return -EINVAL;
  default: {
    int ret = real()->fcntl64(fd, command, argument);

    return ret < 0 ? -errno : ret;
  }
  }
}

int run_fcntl(int fd, int command, void *argument)
{
  struct run_handle *handle;
  int ret;

  if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
    return duplicated(fd, real()->fcntl64(fd, command, argument));
  handle = run_table_get(fd);
  if (!handle)
    return real()->fcntl64(fd, command, argument);
  ret = fcntl_image(handle, fd, command, argument);
  run_table_put(handle);
  return (int)run_result(ret);
}

RUN_API int run_fcntl64(int fd, int command, ...) __asm__("fcntl64");
RUN_ALSO(fcntl, fcntl64);
RUN_ALSO(__fcntl, fcntl64);
RUN_API int run_fcntl64(int fd, int command, ...)
{
  void *argument;
  va_list list;

  va_start(list, command);
  argument = va_arg(list, void *);
  va_end(list);
  return run_fcntl(fd, command, argument);
}

/* Whatever else the file system knows is about the image file, and not about what is in it. */
RUN_API int run_ioctl(int fd, unsigned long request, ...) __asm__("ioctl");
RUN_API int run_ioctl(int fd, unsigned long request, ...)
{
  void *argument;
  va_list list;

  va_start(list, request);
  argument = va_arg(list, void *);
  va_end(list);
  if (run_table_is(fd) && request != FIGETBSZ && request != FIOCLEX && request != FIONCLEX &&
      request != FIONBIO) {
    errno = ENOTTY;
    return -1;
  }
  return real()->ioctl(fd, request, argument);
}

/* ---- Locks ---- */

RUN_API int run_flock(int fd, int operation) __asm__("flock");
RUN_API int run_flock(int fd, int operation)
{
  int kind = operation & ~LOCK_NB;

  if (!run_table_is(fd))
    return real()->flock(fd, operation);
  return (int)run_result(kind == LOCK_SH || kind == LOCK_EX || kind == LOCK_UN ? 0 : -EINVAL);
}

RUN_API int run_lockf(int fd, int command, off_t length) __asm__("lockf64");
RUN_ALSO(lockf, lockf64);
RUN_API int run_lockf(int fd, int command, off_t length)
{
  if (!run_table_is(fd))
    return real()->lockf64(fd, command, length);
  return (int)run_result(command >= F_ULOCK && command <= F_TEST ? 0 : -EINVAL);
}

/* ---- For children ---- */

/* The C library opens the file between its own kind of vfork(2) and exec, where nobody can stand before it. The
 * program that is executed makes a placeholder of it, but what O_TRUNC has done is done. */
RUN_API int run_addopen(posix_spawn_file_actions_t *actions, int fd, const char *path, int flags, mode_t mode)
  __asm__("posix_spawn_file_actions_addopen");
RUN_API int run_addopen(posix_spawn_file_actions_t *actions, int fd, const char *path, int flags, mode_t mode)
{
  int probe = flags & O_TRUNC ? run_probe(AT_FDCWD, path, flags) : -1;

  if (probe < 0)
    return real()->posix_spawn_file_actions_addopen(actions, fd, path, flags, mode);
  real()->close(probe);
  run_complain("%s: an image cannot be made empty for a program that is spawned", path);
  return ENOTSUP;
}
