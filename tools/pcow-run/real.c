/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finding the next definitions of what this library stands before; and the calls of the libpcow that is
 * linked into it. The linker leads these here (--wrap), whatever thread they are made by, so that no call of
 * libpcow is ever taken for one of the program. Its descriptors are noted: the program must not close them,
 * and a forked child must, because they hold locks.
 */
#undef _FILE_OFFSET_BITS
#include "real.h"

#include "run.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct run_real run_real_table;
bool run_real_ready;

/* ISO C has no conversion of dlsym()'s result. Found twice by two threads, it is the same. */
void run_real_find(void)
{
#define F(result, name, arguments) *(void **)&run_real_table.name = dlsym(RTLD_NEXT, #name);
  RUN_REAL_FUNCTIONS(F)
#undef F
  run_real_ready = true;
}

/* ---- libpcow's own descriptors ---- */

#define OWN_LEAST 256
#define OWN_WORDS (RUN_FD_MOST / 64)

static _Atomic uint64_t own[OWN_WORDS];

/* Out of the way: a program counts on getting the lowest number that is free, and shells use any up to 255. */
static int own_add(int fd)
{
  int high = fd < 0 || fd >= OWN_LEAST ? -1 : real()->fcntl64(fd, F_DUPFD_CLOEXEC, OWN_LEAST);

  if (high >= 0) {
    real()->close(fd);
    fd = high;
  }
  if (fd >= 0 && fd < RUN_FD_MOST)
    atomic_fetch_or(&own[fd / 64], UINT64_C(1) << fd % 64);
  return fd;
}

static void own_remove(int fd)
{
  if (fd >= 0 && fd < RUN_FD_MOST)
    atomic_fetch_and(&own[fd / 64], ~(UINT64_C(1) << fd % 64));
}

bool run_own_fd(int fd)
{
  return fd >= 0 && fd < RUN_FD_MOST && atomic_load(&own[fd / 64]) >> fd % 64 & 1;
}

int run_own_next(int fd)
{
  while (fd < RUN_FD_MOST && !(atomic_load(&own[fd / 64]) >> fd % 64))
    fd = (fd | 63) + 1;
  while (fd < RUN_FD_MOST && !run_own_fd(fd))
    fd++;
  return fd;
}

void run_own_close_all(void)
{
  for (int fd = run_own_next(0); fd < RUN_FD_MOST; fd = run_own_next(fd + 1)) {
    own_remove(fd);
    real()->close(fd);
  }
}

/* ---- Its calls ---- */

int run_wrap_open(const char *path, int flags, ...) __asm__("__wrap_open64");
int run_wrap_close(int fd) __asm__("__wrap_close");
void *run_wrap_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
  __asm__("__wrap_mmap64");
int run_wrap_munmap(void *address, size_t length) __asm__("__wrap_munmap");
void *run_wrap_mremap(void *address, size_t old, size_t length, int flags, ...) __asm__("__wrap_mremap");
int run_wrap_mprotect(void *address, size_t length, int prot) __asm__("__wrap_mprotect");
int run_wrap_madvise(void *address, size_t length, int advice) __asm__("__wrap_madvise");
int run_wrap_stat(const char *path, struct stat *st) __asm__("__wrap_stat64");
int run_wrap_eventfd(unsigned value, int flags) __asm__("__wrap_eventfd");
int run_wrap_pipe2(int pipe[2], int flags) __asm__("__wrap_pipe2");
int run_wrap_memfd_create(const char *name, unsigned flags) __asm__("__wrap_memfd_create");
int run_wrap_fcntl(int fd, int command, ...) __asm__("__wrap_fcntl64");
int run_wrap_ioctl(int fd, unsigned long request, ...) __asm__("__wrap_ioctl");
long run_wrap_syscall(long number, ...) __asm__("__wrap_syscall");

int __real_eventfd(unsigned value, int flags);
int __real_pipe2(int pipe[2], int flags);
int __real_memfd_create(const char *name, unsigned flags);
long __real_syscall(long number, ...);

#define UFFD_NEW 0xaa00ul       /* USERFAULTFD_IOC_NEW, which older headers do not have */

RUN_ALSO(__wrap_open, __wrap_open64);
int run_wrap_open(const char *path, int flags, ...)
{
  va_list list;
  mode_t mode = 0;

  va_start(list, flags);
  if (flags & (O_CREAT | O_TMPFILE))
    mode = va_arg(list, mode_t);
  va_end(list);
  return own_add(real()->openat64(AT_FDCWD, path, flags, mode));
}

int run_wrap_close(int fd)
{
  own_remove(fd);
  return real()->close(fd);
}

/* What a child inherits of an open file holds its locks. */
RUN_ALSO(__wrap_mmap, __wrap_mmap64);
void *run_wrap_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
  void *at = real()->mmap64(address, length, prot, flags, fd, offset);

  if (at != MAP_FAILED && fd >= 0 && !(flags & MAP_FIXED))
    real()->madvise(at, length, MADV_DONTFORK);
  return at;
}

int run_wrap_munmap(void *address, size_t length) { return real()->munmap(address, length); }

void *run_wrap_mremap(void *address, size_t old, size_t length, int flags, ...)
{
  va_list list;
  void *to = NULL;

  va_start(list, flags);
  if (flags & MREMAP_FIXED)
    to = va_arg(list, void *);
  va_end(list);
  return real()->mremap(address, old, length, flags, to);
}

int run_wrap_mprotect(void *address, size_t length, int prot)
{
  return real()->mprotect(address, length, prot);
}

int run_wrap_madvise(void *address, size_t length, int advice)
{
  return real()->madvise(address, length, advice);
}

RUN_ALSO(__wrap_stat, __wrap_stat64);
int run_wrap_stat(const char *path, struct stat *st) { return real()->stat64(path, st); }

int run_wrap_eventfd(unsigned value, int flags) { return own_add(__real_eventfd(value, flags)); }

int run_wrap_pipe2(int pipe[2], int flags)
{
  int ret = __real_pipe2(pipe, flags);

  if (ret == 0) {
    pipe[0] = own_add(pipe[0]);
    pipe[1] = own_add(pipe[1]);
  }
  return ret;
}

int run_wrap_memfd_create(const char *name, unsigned flags)
{
  return own_add(__real_memfd_create(name, flags));
}

RUN_ALSO(__wrap_fcntl, __wrap_fcntl64);
int run_wrap_fcntl(int fd, int command, ...)
{
  va_list list;
  void *argument;
  int ret;

  va_start(list, command);
  argument = va_arg(list, void *);
  va_end(list);
  ret = real()->fcntl64(fd, command, argument);
  return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? own_add(ret) : ret;
}

int run_wrap_ioctl(int fd, unsigned long request, ...)
{
  va_list list;
  void *argument;
  int ret;

  va_start(list, request);
  argument = va_arg(list, void *);
  va_end(list);
  ret = real()->ioctl(fd, request, argument);
  return request == UFFD_NEW ? own_add(ret) : ret;
}

long run_wrap_syscall(long number, ...)
{
  va_list list;
  long a[6], ret;

  va_start(list, number);
  for (int i = 0; i < 6; i++)
    a[i] = va_arg(list, long);
  va_end(list);
  ret = __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (number == SYS_openat2 || number == SYS_userfaultfd || number == SYS_memfd_create)
    return own_add((int)ret);
  return ret;
}
