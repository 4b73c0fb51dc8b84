/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The wrapped calls. What a plan does not hit goes on to the real one, unchanged.
 */
#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static struct inject_counts *shared;
static struct plan plan;
static atomic_bool armed;

static const struct {
  const char *name;
  int gives[4];
} known[CALLS] = {
  [CALL_FALLOCATE] = { "fallocate", { ENOSPC, EIO } },
  [CALL_PUNCH] = { "punch", { EIO, EOPNOTSUPP } },
  [CALL_FTRUNCATE] = { "ftruncate", { EFBIG, ENOSPC } },
  [CALL_FDATASYNC] = { "fdatasync", { EIO, ENOSPC } },
  [CALL_FSYNC] = { "fsync", { EIO } },
  [CALL_PWRITE] = { "pwrite", { EIO, ENOSPC, GIVE_SHORT } },
  [CALL_PREAD] = { "pread", { EIO, GIVE_SHORT, GIVE_EOF } },
  [CALL_READ] = { "read", { EINTR, EAGAIN } },
  [CALL_PIPE] = { "pipe", { EMFILE } },
  [CALL_PIPE_READ] = { "pipe-read", { EINTR } },
  [CALL_VMSPLICE] = { "vmsplice", { ENOMEM, EAGAIN } },
  [CALL_LSEEK] = { "lseek", { EINVAL } },
  [CALL_FSTAT] = { "fstat", { EIO } },
  [CALL_MMAP] = { "mmap", { ENOMEM } },
  [CALL_MREMAP] = { "mremap", { ENOMEM } },
  [CALL_MPROTECT] = { "mprotect", { ENOMEM } },
  [CALL_MADVISE] = { "madvise", { ENOMEM, EFAULT, EHWPOISON } },
  [CALL_OPEN] = { "open", { EMFILE, EACCES } },
  [CALL_LOCK] = { "lock", { ENOLCK, EAGAIN } },
  [CALL_USERFAULTFD] = { "userfaultfd", { EPERM, ENOSYS, EMFILE } },
  [CALL_MEMFD] = { "memfd", { EMFILE } },
  [CALL_UFFD_API] = { "uffd-api", { EINVAL } },
  [CALL_UFFD_REGISTER] = { "uffd-register", { ENOMEM, EINVAL } },
  [CALL_UFFD_UNREGISTER] = { "uffd-unregister", { ENOMEM } },
  [CALL_UFFD_PROTECT] = { "uffd-protect", { ENOMEM, EAGAIN } },
  [CALL_UFFD_COPY] = { "uffd-copy", { ENOMEM, EAGAIN } },
  [CALL_UFFD_ZERO] = { "uffd-zero", { ENOMEM, EAGAIN } },
  [CALL_SCAN] = { "scan", { ENOMEM, EFAULT, EINTR } },
  [CALL_THREAD] = { "thread", { EAGAIN } },
  [CALL_RANDOM] = { "random", { ENOSYS, GIVE_SHORT } },
  [CALL_RENAME] = { "rename", { EINVAL, EIO } },
  [CALL_LINK] = { "link", { EEXIST } },
};

void inject_init(struct inject_counts *counts) { shared = counts; }
void inject_plan(const struct plan *p) { plan = *p; }
void inject_arm(bool on) { atomic_store(&armed, on); }
unsigned inject_hits(void) { return __atomic_load_n(&shared->hits, __ATOMIC_SEQ_CST); }
const char *inject_name(enum call call) { return known[call].name; }
const int *inject_gives(enum call call) { return known[call].gives; }

/* 0: the call is to be made. */
static int hit(enum call call)
{
  unsigned n;

  if (!atomic_load(&armed) || !shared)
    return 0;
  n = __atomic_add_fetch(&shared->calls[call], 1, __ATOMIC_SEQ_CST);
  if (call != plan.call || !plan.nth || n < plan.nth || (n > plan.nth && !plan.on))
    return 0;
  __atomic_add_fetch(&shared->hits, 1, __ATOMIC_SEQ_CST);
  if (plan.give == GIVE_KILL)
    raise(SIGKILL);
  if (plan.give > 0)
    errno = plan.give;
  return plan.give;
}

#define WRAP(type, name, ...)            \
  type __real_##name(__VA_ARGS__);       \
  type __wrap_##name(__VA_ARGS__);       \
  type __wrap_##name(__VA_ARGS__)

WRAP(int, fallocate64, int fd, int mode, off_t offset, off_t length)
{
  return hit(mode & FALLOC_FL_PUNCH_HOLE ? CALL_PUNCH : CALL_FALLOCATE)
           ? -1 : __real_fallocate64(fd, mode, offset, length);
}

WRAP(int, ftruncate64, int fd, off_t length)
{
  return hit(CALL_FTRUNCATE) ? -1 : __real_ftruncate64(fd, length);
}

WRAP(int, fdatasync, int fd) { return hit(CALL_FDATASYNC) ? -1 : __real_fdatasync(fd); }
WRAP(int, fsync, int fd) { return hit(CALL_FSYNC) ? -1 : __real_fsync(fd); }

WRAP(ssize_t, pwrite64, int fd, const void *buffer, size_t count, off_t offset)
{
  int give = hit(CALL_PWRITE);

  if (give > 0)
    return -1;
  return __real_pwrite64(fd, buffer, give == GIVE_SHORT ? (count + 1) / 2 : count, offset);
}

WRAP(ssize_t, pread64, int fd, void *buffer, size_t count, off_t offset)
{
  int give = hit(CALL_PREAD);

  if (give > 0)
    return -1;
  if (give == GIVE_EOF)
    return 0;
  return __real_pread64(fd, buffer, give == GIVE_SHORT ? (count + 1) / 2 : count, offset);
}

WRAP(off_t, lseek64, int fd, off_t offset, int whence)
{
  return hit(CALL_LSEEK) ? -1 : __real_lseek64(fd, offset, whence);
}

WRAP(int, fstat64, int fd, struct stat *st) { return hit(CALL_FSTAT) ? -1 : __real_fstat64(fd, st); }

/* What is in a pipe can be read: nothing but a signal comes between. */
WRAP(ssize_t, read, int fd, void *buffer, size_t count)
{
  struct stat st;
  bool pipe = __real_fstat64(fd, &st) == 0 && S_ISFIFO(st.st_mode);

  return hit(pipe ? CALL_PIPE_READ : CALL_READ) ? -1 : __real_read(fd, buffer, count);
}

WRAP(int, pipe2, int *fds, int flags) { return hit(CALL_PIPE) ? -1 : __real_pipe2(fds, flags); }

WRAP(ssize_t, vmsplice, int fd, const struct iovec *parts, size_t count, unsigned flags)
{
  return hit(CALL_VMSPLICE) ? -1 : __real_vmsplice(fd, parts, count, flags);
}

WRAP(void *, mmap64, void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
  return hit(CALL_MMAP) ? MAP_FAILED : __real_mmap64(address, length, prot, flags, fd, offset);
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
  return hit(CALL_MREMAP) ? MAP_FAILED : __real_mremap(old, old_size, new_size, flags, address);
}

WRAP(int, mprotect, void *address, size_t length, int prot)
{
  return hit(CALL_MPROTECT) ? -1 : __real_mprotect(address, length, prot);
}

WRAP(int, madvise, void *address, size_t length, int advice)
{
  return hit(CALL_MADVISE) ? -1 : __real_madvise(address, length, advice);
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
  unsigned mode = 0;
  va_list args;

  va_start(args, flags);
  if (flags & O_CREAT)
    mode = va_arg(args, unsigned);
  va_end(args);
  return hit(CALL_OPEN) ? -1 : __real_open64(path, flags, mode);
}

int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
  void *argument;
  va_list args;

  va_start(args, command);
  argument = va_arg(args, void *);
  va_end(args);
  return hit(CALL_LOCK) ? -1 : __real_fcntl64(fd, command, argument);
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
  long a[6];
  va_list args;

  va_start(args, number);
  for (unsigned i = 0; i < 6; i++)
    a[i] = va_arg(args, long);
  va_end(args);
  if (number == SYS_userfaultfd && hit(CALL_USERFAULTFD))
    return -1;
  if (number == SYS_memfd_create && hit(CALL_MEMFD))
    return -1;
  return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
  static const struct {
    unsigned long request;
    enum call call;
  } calls[] = {
    { UFFDIO_API, CALL_UFFD_API },
    { UFFDIO_REGISTER, CALL_UFFD_REGISTER },
    { UFFDIO_UNREGISTER, CALL_UFFD_UNREGISTER },
    { UFFDIO_WRITEPROTECT, CALL_UFFD_PROTECT },
    { UFFDIO_COPY, CALL_UFFD_COPY },
    { UFFDIO_ZEROPAGE, CALL_UFFD_ZERO },
    { _IOWR('f', 16, uint64_t[12]), CALL_SCAN },
  };
  void *argument;
  va_list args;

  va_start(args, request);
  argument = va_arg(args, void *);
  va_end(args);
  for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
    if (calls[i].request == request && hit(calls[i].call)) {
      /* It fails after it has protected pages that it does not tell of. */
      if (calls[i].call == CALL_SCAN && plan.give != EINTR) {
        __real_ioctl(fd, request, argument);
        errno = plan.give;
      }
      /* The kernel says how far it came. */
      if (request == UFFDIO_COPY)
        ((struct uffdio_copy *)argument)->copy = -errno;
      return -1;
    }
  return __real_ioctl(fd, request, argument);
}

WRAP(int, pthread_create, pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *argument)
{
  return hit(CALL_THREAD) ? EAGAIN : __real_pthread_create(thread, attr, run, argument);
}

WRAP(ssize_t, getrandom, void *buffer, size_t length, unsigned flags)
{
  int give = hit(CALL_RANDOM);

  if (give > 0)
    return -1;
  return __real_getrandom(buffer, give == GIVE_SHORT ? length / 2 : length, flags);
}

WRAP(int, renameat2, int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
  return hit(CALL_RENAME) ? -1 : __real_renameat2(from_dir, from, to_dir, to, flags);
}

WRAP(int, link, const char *from, const char *to) { return hit(CALL_LINK) ? -1 : __real_link(from, to); }
