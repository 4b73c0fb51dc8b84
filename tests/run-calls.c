/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a program finds under pcow-run beyond what run-ops compares: where maps go, what a child process has,
 * what goes past the library, what is refused. Run by tests/test-run.sh, one check at a time:
 *
 *     run-calls CHECK IMAGE [MORE]            (without a check: their names)
 *
 * An image of these checks is 8 MiB of bytes 'A' unless said otherwise. Exit 0: as promised.
 */
#undef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64

#include "run-calls.h"

#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

const char *image, *more;

void fail_at(const char *file, int line, const char *format, ...)
{
  int error = errno;
  va_list list;

  fprintf(stderr, "%s:%d: ", file, line);
  va_start(list, format);
  vfprintf(stderr, format, list);
  va_end(list);
  fprintf(stderr, " (errno: %s)\n", strerror(error));
  _exit(1);
}

int open_image(int flags)
{
  int fd = open(image, flags);

  CHECK(fd >= 0);
  return fd;
}

uint8_t *map_image(int fd)
{
  uint8_t *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

  CHECK(map != MAP_FAILED);
  return map;
}

char byte_at(int fd, off_t offset)
{
  char byte = 0;

  CHECK(pread(fd, &byte, 1, offset) == 1);
  return byte;
}

/* ---- Maps ---- */

/* As QEMU does it: memory is reserved, for pages of 4096 bytes and a guard, and the file mapped into it. */
static void check_reservation(void)
{
  int fd = open_image(O_RDWR);
  uint8_t *area = mmap(NULL, SIZE + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *map;

  CHECK(area != MAP_FAILED);
  map = mmap(area, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(map == area);
  CHECK(map[0] == 'A' && map[SIZE - 1] == 'A');
  memset(map + 4096, 'B', 4096);
  CHECK(byte_at(fd, 5000) == 'B');
  CHECK(fsync(fd) == 0);
  CHECK(munmap(area, SIZE + 4096) == 0);
  /* It is free now, and can be had again. */
  CHECK(mmap(area, SIZE + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == area);
  map = mmap(area, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(map == area && map[4096] == 'B');
  /* Something else over all of it ends it, too. */
  map[0] = 'C';
  CHECK(mmap(area, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area && area[0] == 0);
  CHECK(byte_at(fd, 0) == 'C');
}

/* Parts, where all of the image fits into what was reserved; what is left stays reserved to the end. */
static void check_parts(void)
{
  const int reserve = MAP_PRIVATE | MAP_ANONYMOUS, part = MAP_SHARED | MAP_FIXED;
  uint8_t *raw = mmap(NULL, 3 * SIZE, PROT_NONE, reserve, -1, 0), *area, *other, *map;
  int fd = open_image(O_RDWR);

  area = (uint8_t *)(((uintptr_t)raw + 2 * HUGE) & ~(uintptr_t)(HUGE - 1));
  map = mmap(area + 12288, 4096, PROT_READ | PROT_WRITE, part, fd, 12288);
  CHECK(map == area + 12288 && *map == 'A');
  *map = 'B';
  CHECK(mmap(area, 8192, PROT_READ | PROT_WRITE, part, fd, 0) == area);
  CHECK(mmap(area + SIZE - 4096, 4096, PROT_READ | PROT_WRITE, part, fd, SIZE - 4096) == area + SIZE - 4096);
  CHECK(mmap(area, 8192, PROT_READ | PROT_WRITE, part, fd, 0) == area);
  area[4096] = 'C';
  area[SIZE - 1] = 'D';
  CHECK(msync(area, SIZE, MS_SYNC) == 0);
  CHECK(byte_at(fd, 12288) == 'B' && byte_at(fd, 4096) == 'C' && byte_at(fd, SIZE - 1) == 'D');
  FAILS(mmap(area + HUGE, 4096, PROT_READ, part, fd, 0), ENOTSUP);
  CHECK(munmap(area, SIZE - 4096) == 0);
  CHECK(area[SIZE - 1] == 'D');
  CHECK(munmap(area + SIZE - 4096, 4096) == 0);
  /* The image is gone from there; nothing that lies beside it is. */
  FAILS(mmap(area - 4096, 4096, PROT_NONE, reserve | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
  FAILS(mmap(area + SIZE, 4096, PROT_NONE, reserve | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
  CHECK(mmap(area, SIZE, PROT_NONE, reserve | MAP_FIXED_NOREPLACE, -1, 0) == area);
  CHECK(munmap(area, SIZE) == 0);
  /* Only a part was mapped: the rest is still the program's. */
  area += SIZE;
  FAILS(mmap(area, HUGE, PROT_READ, part, fd, 4096), ENOTSUP);
  CHECK(mmap(area, HUGE, PROT_READ, part, fd, 0) == area && area[4096] == 'C');
  CHECK(munmap(area, HUGE) == 0);
  FAILS(mmap(area + HUGE, 4096, PROT_NONE, reserve | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
  CHECK(mmap(area, HUGE, PROT_NONE, reserve | MAP_FIXED_NOREPLACE, -1, 0) == area);
  /* Memory that is used is not what the image may lie in. */
  other = mmap(NULL, 2 * SIZE, PROT_NONE, reserve, -1, 0);
  CHECK(mprotect(other + HUGE, 4096, PROT_READ | PROT_WRITE) == 0);
  other[HUGE] = 'U';
  FAILS(mmap(other, HUGE, PROT_READ, part, fd, 0), ENOTSUP);
  CHECK(other[HUGE] == 'U');
}

/* From now on the kernel refuses to read to the addresses of MAP. */
static void forbid_reads_to(const uint8_t *map)
{
  struct sock_filter filter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pread64, 0, 4),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
    BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, (uint32_t)(uintptr_t)map),
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SIZE, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };

  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* A device that reads into a map by DMA reads elsewhere. MORE: a file that can be opened with O_DIRECT. */
static void check_direct(void)
{
  int fd = open_image(O_RDWR), other = open(more, O_RDWR | O_CREAT | O_TRUNC, 0600);
  static uint8_t data[3 << 20];
  uint8_t *map = map_image(fd);
  struct iovec vec[] = { { map + HUGE, 4096 }, { map, 8192 }, { map + 2 * HUGE, 4096 } };

  for (size_t n = 0; n < sizeof(data); n++)
    data[n] = (uint8_t)(n * 31 + n / 4096);
  CHECK(write(other, data, sizeof(data)) == (ssize_t)sizeof(data) && close(other) == 0);
  other = open(more, O_RDONLY | O_DIRECT);
  if (other < 0 && errno == EINVAL)
    _exit(77);
  forbid_reads_to(map);
  CHECK(pread(other, map, sizeof(data), 0) == (ssize_t)sizeof(data));
  CHECK(memcmp(map, data, sizeof(data)) == 0);
  CHECK(lseek(other, 8192, SEEK_SET) == 8192);
  CHECK(read(other, map + 4096, 4096) == 4096 && memcmp(map + 4096, data + 8192, 4096) == 0);
  CHECK(readv(other, vec, 3) == 16384 && lseek(other, 0, SEEK_CUR) == 28672);
  CHECK(memcmp(map + HUGE, data + 12288, 4096) == 0 && memcmp(map, data + 16384, 8192) == 0);
  CHECK(memcmp(map + 2 * HUGE, data + 24576, 4096) == 0);
  CHECK(preadv(other, vec, 3, sizeof(data) - 8192) == 8192);
  CHECK(memcmp(map + HUGE, data + sizeof(data) - 8192, 4096) == 0 && map[4096] == data[20480]);
  CHECK(pread(other, map, 4096, sizeof(data)) == 0);
  CHECK(fsync(fd) == 0 && byte_at(fd, HUGE) == (char)data[sizeof(data) - 8192]);
}

/* The C library closes a stream's descriptor past the library: the number may be any file's then. MORE: a file. */
static void check_stale(void)
{
  FILE *stream = fopen("/dev/null", "w");
  int fd = open_image(O_RDWR), number, other;

  CHECK(stream && (number = fileno(stream)) >= 0);
  CHECK(dup2(fd, number) == number && pwrite(number, "S", 1, 0) == 1);
  CHECK(fclose(stream) == 0);
  FAILS(read(number, &(char){ 0 }, 1), EBADF);
  stream = fopen("/dev/null", "w");
  CHECK(stream && fileno(stream) == number && dup2(fd, number) == number && fclose(stream) == 0);
  other = (int)syscall(SYS_openat, AT_FDCWD, more, O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(other == number && write(other, "other", 5) == 5 && lseek(other, 0, SEEK_END) == 5);
  CHECK(byte_at(fd, 0) == 'S' && byte_at(fd, 1) == 'A');
  CHECK(ioctl(other, FIONREAD, &number) == 0);
}

static void check_refused(void)
{
  int fd = open_image(O_RDWR), ro = open_image(O_RDONLY);
  uint8_t *area = mmap(NULL, 4 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *map;
  uint8_t *small = mmap(NULL, HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  FAILS(mmap(small, HUGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0), ENOTSUP);
  FAILS(mmap(area + 4096, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0), ENOTSUP);
  FAILS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0), EACCES);
  FAILS(mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0), EPERM);
  FAILS(mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 100), EINVAL);
  FAILS(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0), EINVAL);
  map = map_image(fd);
  FAILS(mmap(area, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0), ENOTSUP);
  FAILS(mmap(map + HUGE, HUGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), ENOTSUP);
  FAILS(mprotect(map, 4096, PROT_READ), ENOTSUP);
  CHECK(mprotect(map, 4096, PROT_READ | PROT_WRITE) == 0);
  FAILS(ftruncate(fd, SIZE - 1), EINVAL);
  FAILS(ftruncate(fd, 0), EINVAL);
  FAILS(ftruncate(ro, SIZE), EINVAL);
  FAILS(pwrite(fd, "x", 1, SIZE), ENOSPC);
  CHECK(pwrite(fd, "xyz", 3, SIZE - 2) == 2);
  FAILS(pwrite(ro, "x", 1, 0), EBADF);
  FAILS(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP);
  FAILS(lseek(fd, INT64_MAX, SEEK_END), EOVERFLOW);
  CHECK(flock(fd, LOCK_EX | LOCK_NB) == 0 && lockf(fd, F_TLOCK, 0) == 0);
  FAILS(aio_fsync(O_SYNC, &(struct aiocb){ .aio_fildes = fd }), EBADF);
  FAILS(copy_file_range(fd, NULL, ro, NULL, 4096, 0), EXDEV);
  CHECK(map[4096] == 'A' && map[SIZE - 2] == 'x');
  CHECK(pread(fd, &(char){ 0 }, 1, SIZE) == 0);
}

static void check_grow(void)
{
  int fd = open_image(O_RDWR);
  uint8_t *map = map_image(fd), *again;
  struct stat st;

  CHECK(ftruncate(fd, 2 * SIZE - 5000) == 0);
  CHECK(fstat(fd, &st) == 0 && st.st_size == 2 * SIZE - 4096);
  again = mremap(map, SIZE, st.st_size, MREMAP_MAYMOVE);
  CHECK(again == map && again[SIZE] == 0);
  again[SIZE] = 'G';
  CHECK(msync(again, st.st_size, MS_SYNC) == 0);
  CHECK(byte_at(fd, SIZE) == 'G');
  CHECK(mremap(again, st.st_size, 4096, 0) == again);
  CHECK(posix_fallocate(fd, 0, 2 * SIZE) == 0);
  CHECK(stat(image, &st) == 0 && st.st_size == 2 * SIZE);
}

static void check_private(void)
{
  int fd = open_image(O_RDWR);
  uint8_t *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

  CHECK(map != MAP_FAILED && map[0] == 'A' && map[SIZE - 1] == 'A');
  map[0] = 'P';
  CHECK(byte_at(fd, 0) == 'A');
  CHECK(munmap(map, SIZE) == 0);
}

/* The file is closed, the map goes on; after the last part of it is gone the image is free for others. */
static void check_closed(void)
{
  int fd = open_image(O_RDWR);
  uint8_t *map = map_image(fd);

  CHECK(close(fd) == 0);
  memset(map, 'M', SIZE);
  CHECK(msync(map, SIZE, MS_SYNC) == 0);
  CHECK(munmap(map, HUGE) == 0);
  CHECK(map[HUGE] == 'M');
  CHECK(munmap(map + HUGE, SIZE - HUGE) == 0);
}

/* ---- What goes past the library ---- */

static void check_past(void)
{
  int fd = open_image(O_RDWR);
  uint8_t byte = 0;
  struct stat st;

  FAILS(syscall(SYS_read, fd, &byte, 1), EBADF);
  FAILS(syscall(SYS_pread64, fd, &byte, 1, 0), EBADF);
  FAILS(syscall(SYS_write, fd, &byte, 1), EBADF);
  FAILS(syscall(SYS_pwrite64, fd, &byte, 1, 0), EBADF);
  FAILS(syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), EACCES);
  FAILS(syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0), EACCES);
  FAILS(syscall(SYS_ftruncate, fd, 0), EINVAL);
  FAILS(syscall(SYS_fallocate, fd, 3, 0, 4096), EBADF);
  CHECK(fchmod(fd, 0640) == 0);
  CHECK(stat(image, &st) == 0 && (st.st_mode & 0777) == 0640 && st.st_size == SIZE);
}

/* ---- Descriptors ---- */

static void check_numbers(void)
{
  int low = dup(0), fd, other;

  CHECK(low >= 0 && close(low) == 0);
  fd = open_image(O_RDWR | O_CLOEXEC);
  CHECK(fd == low && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
  other = open("/dev/null", O_RDWR);
  CHECK(other == low + 1);
  CHECK(fcntl(fd, F_GETFL) == (O_RDWR | 0100000 /* O_LARGEFILE, by the kernel */));
  CHECK(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK) == 0);
  CHECK((fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_RDWR | O_APPEND | O_NONBLOCK));
  FAILS(write(fd, "x", 1), ENOSPC);
  /* Whoever closes everything does not close what libpcow needs. */
  map_image(fd)[0] = 'N';
  CHECK(close_range(fd + 1, ~0u, 0) == 0);
  closefrom(fd + 1);
  for (int n = fd + 1; n < 1024; n++)
    FAILS(close(n), EBADF);
  CHECK(fsync(fd) == 0);
  CHECK(pwrite(fd, "O", 1, 4096) == 1 || errno == ENOSPC);
  CHECK(fcntl(fd, F_SETFL, 0) == 0 && pwrite(fd, "O", 1, 4096) == 1);
  CHECK(byte_at(fd, 0) == 'N' && byte_at(fd, 4096) == 'O');
  CHECK(dup2(0, fd) == fd);
}

/* ---- Other ---- */

static void check_trunc(void)
{
  int fd = open_image(O_WRONLY | O_CREAT | O_TRUNC);
  struct stat st;

  CHECK(fstat(fd, &st) == 0 && st.st_size == SIZE);
  CHECK(pwrite(fd, "t", 1, 4096) == 1);
  CHECK(close(fd) == 0);
  fd = open_image(O_RDONLY);
  CHECK(byte_at(fd, 0) == 0 && byte_at(fd, 4096) == 't' && byte_at(fd, SIZE - 1) == 0);
}

static void *read_all(void *opaque)
{
  static __thread char buffer[4096];

  for (int n = 0; n < 3000; n++)
    CHECK(pread((int)(intptr_t)opaque, buffer, sizeof(buffer), n % 2048 * 4096) == 4096 && buffer[0] == 'A');
  return NULL;
}

/* Some threads read while others open, close and map the same image. */
static void check_threads(void)
{
  int fd = open_image(O_RDWR);
  pthread_t threads[3];

  for (int n = 0; n < 3; n++)
    CHECK(pthread_create(&threads[n], NULL, read_all, (void *)(intptr_t)fd) == 0);
  for (int n = 0; n < 200; n++) {
    int other = open_image(n & 1 ? O_RDWR : O_RDONLY);
    uint8_t *map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, other, 0);

    CHECK(map != MAP_FAILED && map[n * 4096] == 'A');
    CHECK(close(other) == 0 && munmap(map, SIZE) == 0);
  }
  for (int n = 0; n < 3; n++)
    CHECK(pthread_join(threads[n], NULL) == 0);
}

/* Calls about other memory wait for nobody: an allocator's may come in the middle of a call about an image. */
static void on_tick(int number)
{
  uint8_t *area = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  (void)number;
  CHECK(area != MAP_FAILED && madvise(area, 1 << 16, MADV_DONTNEED) == 0);
  CHECK(mprotect(area, 4096, PROT_READ) == 0 && munmap(area, 1 << 16) == 0);
}

static void check_allocator(void)
{
  const struct itimerval often = { { 0, 200 }, { 0, 200 } };
  int fd = open_image(O_RDWR);

  CHECK(signal(SIGALRM, on_tick) != SIG_ERR && setitimer(ITIMER_REAL, &often, NULL) == 0);
  for (int n = 0; n < 300; n++) {
    uint8_t *map = map_image(fd);

    map[n * 4096] = 'A';
    CHECK(msync(map, 4096, MS_SYNC) == 0 && munmap(map, SIZE) == 0);
    CHECK(close(open_image(O_RDONLY)) == 0);
  }
  CHECK(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 0 } }, NULL) == 0);
}

/* MAP_SYNC is what a store-durable map is asked for with. MORE: it must fail, and the other way work. */
static void check_map_sync(void)
{
  int fd = open_image(O_RDWR);
  uint8_t *map;

  if (more) {
    FAILS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0), EOPNOTSUPP);
    map_image(fd)[0] = 'S';
    CHECK(fsync(fd) == 0);
    return;
  }
  map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  CHECK(map != MAP_FAILED);
  map[0] = 'S';
  FAILS(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, HUGE), EOPNOTSUPP);
  CHECK(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, HUGE) == map + HUGE);
  /* Killed: what was stored is there, as after a store to persistent memory. */
  kill(getpid(), SIGKILL);
}

static const struct {
  const char *name;
  void (*run)(void);
} checks[] = {
  { "allocator", check_allocator }, { "busy", check_busy }, { "closed", check_closed },   { "content", check_content }, { "daemon", check_daemon },
  { "direct", check_direct },   { "exec", check_exec },       { "exit", check_exit },       { "fork", check_fork },
  { "grow", check_grow },       { "handed", check_handed },   { "hold", check_hold },
  { "map-sync", check_map_sync }, { "numbers", check_numbers }, { "orphan", check_orphan },
  { "parts", check_parts },     { "past", check_past },       { "private", check_private }, { "refused", check_refused },
  { "reservation", check_reservation }, { "spawn", check_spawn }, { "stale", check_stale }, { "synced", check_synced }, { "threads", check_threads },
  { "trunc", check_trunc },     { "vfork", check_vfork },
};

int main(int argc, char **argv)
{
  if (argc >= 3) {
    image = argv[2];
    more = argv[3];
    for (size_t n = 0; n < sizeof(checks) / sizeof(checks[0]); n++)
      if (strcmp(argv[1], checks[n].name) == 0) {
        checks[n].run();
        return 0;
      }
  }
  for (size_t n = 0; n < sizeof(checks) / sizeof(checks[0]); n++)
    puts(checks[n].name);
  return 2;
}
