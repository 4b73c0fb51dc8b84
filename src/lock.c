/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Byte locks by fcntl(F_OFD_SETLK). Waiting is polling: F_OFD_SETLKW knows no time limit short of a
 * signal, and a library has no signal to spend.
 */
#include "lock.h"

#include "error.h"
#include "format.h"

#include <fcntl.h>
#include <unistd.h>

/* LENGTH 0: to the end of all offsets. */
static int lock_range(int fd, const char *path, uint64_t byte, off_t length, enum lock_kind kind)
{
  struct flock lock = {
    .l_type = kind == LOCK_EXCLUSIVE ? F_WRLCK : kind == LOCK_SHARED ? F_RDLCK : F_UNLCK,
    .l_whence = SEEK_SET,
    .l_start = (off_t)byte,
    .l_len = length,
    .l_pid = 0, /* or the kernel refuses a lock of an open file description */
  };

  while (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
    if (errno == EINTR)
      continue;
    if (errno == EAGAIN || errno == EACCES)
      return -EAGAIN;
    return fail_errno(errno, "%s: cannot lock the file", path);
  }
  return 0;
}

int lock_try(int fd, const char *path, uint64_t byte, enum lock_kind kind)
{
  return lock_range(fd, path, byte, 1, kind);
}

int lock_all(int fd, const char *path)
{
  return lock_range(fd, path, LOCK_HEAD, 0, LOCK_EXCLUSIVE);
}

int lock_wait(int fd, const char *path, uint64_t byte, enum lock_kind kind, unsigned milliseconds)
{
  int64_t deadline = g_get_monotonic_time() + (int64_t)milliseconds * 1000;
  int64_t pause = 200; /* µs; grows, as most waits are for something short */

  for (;;) {
    int ret = lock_try(fd, path, byte, kind);
    int64_t left;

    if (ret != -EAGAIN)
      return ret;
    left = deadline - g_get_monotonic_time();
    if (left <= 0)
      return -EAGAIN;
    g_usleep((gulong)MIN(pause, left));
    pause = MIN(pause * 2, 10000);
  }
}

bool lock_range_busy(int fd, uint64_t byte, uint64_t count)
{
  struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = (off_t)count };

  return fcntl(fd, F_OFD_GETLK, &l) < 0 || l.l_type != F_UNLCK;
}

bool lock_area_busy(int fd)
{
  struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)LOCK_HEAD };

  return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}
