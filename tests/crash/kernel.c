/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See kernel.h.
 */
#include "kernel.h"

#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define WRAP(type, name, ...)            \
  type __real_##name(__VA_ARGS__);       \
  type __wrap_##name(__VA_ARGS__);       \
  type __wrap_##name(__VA_ARGS__)

/* ---- Space ---- */

static ino_t spaceless;
static _Atomic unsigned space_left; /* calls and 1; 0: no matter */
static atomic_bool refused;

void kernel_take_space(const char *path, unsigned count)
{
  struct stat st;

  SYS(stat(path, &st));
  spaceless = st.st_ino;
  space_left = count;
  refused = false;
}

bool kernel_refused_space(void) { return refused; }

WRAP(int, fallocate64, int fd, int mode, off_t offset, off_t length)
{
  struct stat st;

  if (space_left && !(mode & FALLOC_FL_PUNCH_HOLE) && fstat(fd, &st) == 0 && st.st_ino == spaceless) {
    if (space_left == 1) {
      refused = true;
      errno = ENOSPC;
      return -1;
    }
    space_left--;
  }
  return __real_fallocate64(fd, mode, offset, length);
}

/* ---- File systems ---- */

static bool tmpfs_hidden;

void kernel_hide_tmpfs(void) { tmpfs_hidden = true; }

WRAP(int, fstatfs64, int fd, struct statfs *info)
{
  int ret = __real_fstatfs64(fd, info);

  if (tmpfs_hidden)
    info->f_type = 0;
  return ret;
}

/* ---- Between two steps ---- */

static _Thread_local void (*between)(void *opaque);
static _Thread_local void *between_opaque;

void kernel_set_between(void (*fn)(void *opaque), void *opaque)
{
  between = fn;
  between_opaque = opaque;
}

static void come_between(void)
{
  void (*fn)(void *opaque) = between;

  if (!fn)
    return;
  between = NULL;
  fn(between_opaque);
  between = fn;
}

WRAP(void *, mmap64, void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
  come_between();
  return __real_mmap64(address, length, prot, flags, fd, offset);
}

void *__real_mremap(void *old, size_t old_size, size_t new_size, int flags, ...);
void *__wrap_mremap(void *old, size_t old_size, size_t new_size, int flags, ...);
void *__wrap_mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
  void *address = NULL;
  va_list args;

  va_start(args, flags);
  if (flags & MREMAP_FIXED)
    address = va_arg(args, void *);
  va_end(args);
  come_between();
  return __real_mremap(old, old_size, new_size, flags, address);
}
