/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads of other files with O_DIRECT into a map of an image. The kernel would pin the pages and have a device
 * write to them, of which no page table tells: a flush that runs meanwhile would miss it, or replace the page.
 * So the device writes elsewhere, and what it wrote is stored into the map like anything that a program stores.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_BYTES ((size_t)1 << 20)
#define BOUNCE_ALIGNMENT 4096   /* enough for any device's blocks */

bool run_direct(int fd, const struct iovec *vec, int count)
{
  int error = errno, flags;
  bool touches = false;

  if (!run_maps_any() || count <= 0 || count > IOV_MAX)
    return false;
  for (int k = 0; k < count && !touches; k++)
    touches = vec[k].iov_len && run_maps_touch(vec[k].iov_base, vec[k].iov_len);
  if (!touches)
    return false;
  flags = real()->fcntl64(fd, F_GETFL);
  errno = error;
  return flags >= 0 && flags & O_DIRECT;
}

/* N bytes to where DONE bytes of VEC end. */
static void scatter(const struct iovec *vec, size_t done, const uint8_t *from, size_t n)
{
  while (n) {
    size_t here;

    if (done >= vec->iov_len) {
      done -= vec->iov_len;
      vec++;
      continue;
    }
    here = vec->iov_len - done < n ? vec->iov_len - done : n;
    memcpy((uint8_t *)vec->iov_base + done, from, here);
    from += here;
    n -= here;
    done += here;
  }
}

ssize_t run_direct_read(int fd, const struct iovec *vec, int count, off_t offset, int flags)
{
  size_t all = 0, done = 0, room;
  ssize_t n = 0;
  void *bounce;

  for (int k = 0; k < count; k++)
    if (__builtin_add_overflow(all, vec[k].iov_len, &all) || all > SSIZE_MAX)
      return run_result(-EINVAL);
  room = all < BOUNCE_BYTES ? all : BOUNCE_BYTES;
  if (posix_memalign(&bounce, BOUNCE_ALIGNMENT, room ? room : 1))
    return run_result(-ENOMEM);
  do {
    struct iovec piece = { bounce, all - done < room ? all - done : room };
    off_t at = offset < 0 ? offset : offset + (off_t)done;

    /* Position -1 is the file's own, as for preadv2(2). */
    n = flags ? real()->preadv64v2(fd, &piece, 1, at, flags)
      : at < 0 ? real()->read(fd, bounce, piece.iov_len) : real()->pread64(fd, bounce, piece.iov_len, at);
    if (n > 0)
      scatter(vec, done, bounce, (size_t)n);
    done += n > 0 ? (size_t)n : 0;
  } while (n > 0 && (size_t)n == room && done < all);
  free(bounce);
  return done ? (ssize_t)done : n;
}
