/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What pcow-run promises, from the program's side: random calls are made on a raw file and on a pcow image with
 * the same content, and both must give the same results, bytes and errno. Run under pcow-run by
 * tests/test-run.sh:
 *
 *     run-ops RAW IMAGE [SEED [COUNT]]
 *
 * Each call of libpcow-run that is about content is among them, through descriptors, duplicates, streams, maps
 * and child processes. At the end both are compared, and so they are by the script without this program.
 */
#undef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST (300u << 10)
#define FDS 6

static const char *paths[2];
static int fds[FDS][2];
static uint8_t *maps[2];
static uint64_t size, state;
static uint8_t buffers[2][MOST];
static unsigned long step;
static const char *what;
static uint64_t seed;
static long got;                /* of the last call, the same on both */

static uint64_t rnd(uint64_t below)
{
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return below ? state % below : 0;
}

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
  va_list list;

  fprintf(stderr, "FAIL: seed %" PRIu64 ", step %lu, %s: ", seed, step, what);
  va_start(list, format);
  vfprintf(stderr, format, list);
  va_end(list);
  fputc('\n', stderr);
  exit(1);
}

/* Results of the same call on both; errno counts when it failed. */
static void same(const long r[2], const int e[2])
{
  if (r[0] != r[1] || (r[0] < 0 && e[0] != e[1]))
    die("raw file %ld (%s), image %ld (%s)", r[0], r[0] < 0 ? strerror(e[0]) : "ok", r[1],
        r[1] < 0 ? strerror(e[1]) : "ok");
}

#define BOTH(name, call)            \
  do {                              \
    long r[2];                      \
    int e[2];                       \
    what = name;                    \
    for (int k = 0; k < 2; k++) {   \
      errno = 0;                    \
      r[k] = (long)(call);          \
      e[k] = errno;                 \
    }                               \
    same(r, e);                     \
    got = r[0];                     \
  } while (0)

static void fill(uint8_t *buffer, size_t n)
{
  uint64_t word = rnd(0), kind = rnd(4);

  (void)word;
  for (size_t k = 0; k < n; k++)
    buffer[k] = kind == 0 ? 0 : (uint8_t)(state >> (k % 56)) ^ (uint8_t)(k * 31 >> 3);
}

static uint64_t offset(void)
{
  uint64_t at = rnd(4) ? rnd(size) : rnd(3) ? size - rnd(3 * 4096) : size;

  return rnd(2) ? at & ~UINT64_C(4095) : at;
}

/* An end beyond the image's is where a raw file would grow. */
static size_t count(uint64_t at)
{
  size_t n = rnd(8) ? rnd(20000) : rnd(MOST);

  return at + n > size ? size - at : n;
}

static void compare_bytes(size_t n)
{
  for (size_t k = 0; k < n; k++)
    if (buffers[0][k] != buffers[1][k])
      die("byte %zu is %02x in the raw file and %02x in the image", k, buffers[0][k], buffers[1][k]);
}

static void compare_all(void)
{
  int fd[2];

  BOTH("open to compare", (fd[k] = open(paths[k], O_RDONLY)) >= 0);
  for (uint64_t at = 0; at < size; at += MOST) {
    size_t n = size - at < MOST ? size - at : MOST;

    BOTH("compare", pread(fd[k], buffers[k], n, (off_t)at));
    if ((size_t)got != n)
      die("%ld bytes at %" PRIu64, got, at);
    compare_bytes(n);
  }
  BOTH("close", close(fd[k]));
}

/* ---- Operations; S is a descriptor's number ---- */

static void op_read(unsigned s)
{
  uint64_t at = offset();
  size_t n = rnd(8) ? rnd(20000) : rnd(MOST);
  struct iovec vec[2][3];

  for (int k = 0; k < 2; k++) {
    vec[k][0] = (struct iovec){ buffers[k], n / 3 };
    vec[k][1] = (struct iovec){ buffers[k] + n / 3, 0 };
    vec[k][2] = (struct iovec){ buffers[k] + n / 3, n - n / 3 };
  }
  switch (rnd(5)) {
  case 0: BOTH("pread", pread(fds[s][k], buffers[k], n, (off_t)at)); break;
  case 1: BOTH("preadv", preadv(fds[s][k], vec[k], 3, (off_t)at)); break;
  case 2: BOTH("read", read(fds[s][k], buffers[k], n)); break;
  case 3: BOTH("preadv2", preadv2(fds[s][k], vec[k], 3, -1, 0)); break;
  default: BOTH("readv", readv(fds[s][k], vec[k], 3)); break;
  }
  if (got > 0)
    compare_bytes((size_t)got);
}

static void op_write(unsigned s)
{
  uint64_t at = offset();
  size_t n = count(at);
  struct iovec vec[2];

  fill(buffers[0], n);
  vec[0] = (struct iovec){ buffers[0], n / 2 };
  vec[1] = (struct iovec){ buffers[0] + n / 2, n - n / 2 };
  if (rnd(2)) {
    BOTH("lseek", lseek(fds[s][k], (off_t)at, SEEK_SET));
    if (rnd(2))
      BOTH("write", write(fds[s][k], buffers[0], n));
    else
      BOTH("writev", writev(fds[s][k], vec, 2));
  } else {
    switch (rnd(3)) {
    case 0: BOTH("pwrite", pwrite(fds[s][k], buffers[0], n, (off_t)at)); break;
    case 1: BOTH("pwritev", pwritev(fds[s][k], vec, 2, (off_t)at)); break;
    default: BOTH("pwritev2", pwritev2(fds[s][k], vec, 2, (off_t)at, RWF_DSYNC)); break;
    }
  }
}

static void op_seek(unsigned s)
{
  static const int from[] = { SEEK_SET, SEEK_CUR, SEEK_END };
  int whence = from[rnd(3)];
  off_t by = (off_t)rnd(2 * size) - (off_t)(whence == SEEK_SET ? rnd(3) * 4096 : size);

  BOTH("lseek", lseek(fds[s][k], by, whence));
  BOTH("lseek back", lseek(fds[s][k], (off_t)(size / 2), SEEK_SET));
}

/* Where data begins is known only so far: zeros may be stored. But what is called a hole must be zeros, and
 * what is not zeros must be found. */
static void op_hole(void)
{
  off_t at = (off_t)rnd(size), hole, data;

  what = "SEEK_HOLE";
  hole = lseek(fds[0][1], at, SEEK_HOLE);
  if (hole < at || hole > (off_t)size)
    die("hole at %lld from %lld", (long long)hole, (long long)at);
  data = lseek(fds[0][1], hole, SEEK_DATA);
  if (data < 0 && errno == ENXIO)
    data = (off_t)size;
  if (data < hole)
    die("data at %lld after a hole at %lld", (long long)data, (long long)hole);
  while (hole < data) {
    size_t n = data - hole < (off_t)MOST ? (size_t)(data - hole) : MOST;

    if (pread(fds[0][0], buffers[0], n, hole) != (ssize_t)n)
      die("cannot read the raw file");
    for (size_t k = 0; k < n; k++)
      if (buffers[0][k])
        die("a hole at %lld is not zeros", (long long)hole + (long long)k);
    hole += (off_t)n;
  }
  lseek(fds[0][1], (off_t)(size / 2), SEEK_SET);
  lseek(fds[0][0], (off_t)(size / 2), SEEK_SET);
}

static void op_space(unsigned s)
{
  uint64_t at = offset(), n = count(at);

  switch (rnd(6)) {
  case 0: BOTH("fallocate", fallocate(fds[s][k], 0, (off_t)at, (off_t)n)); break;
  case 1:
    BOTH("punch hole", fallocate(fds[s][k], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n));
    break;
  case 2: BOTH("posix_fallocate", posix_fallocate(fds[s][k], (off_t)at, (off_t)n)); break;
  case 3: BOTH("ftruncate to the same", ftruncate(fds[s][k], (off_t)size)); break;
  case 4: BOTH("truncate to the same", truncate(paths[k], (off_t)size)); break;
  default: BOTH("negative", fallocate(fds[s][k], 0, -4096, 4096)); break;
  }
}

static void op_map(void)
{
  uint64_t at = rnd(size), n = rnd(40000);

  if (!maps[0]) {
    what = "mmap";
    for (int k = 0; k < 2; k++) {
      maps[k] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0][k], 0);
      if (maps[k] == MAP_FAILED)
        die("%d: %s", k, strerror(errno));
    }
  }
  n = at + n > size ? size - at : n;
  switch (rnd(9)) {
  case 0:
  case 1:
  case 2:
    fill(buffers[0], n);
    for (int k = 0; k < 2; k++)
      memcpy(maps[k] + at, buffers[0], n);
    break;
  case 3:
    what = "bytes in the map";
    if (memcmp(maps[0] + at, maps[1] + at, n) != 0)
      die("%" PRIu64 " bytes at %" PRIu64 " differ", n, at);
    break;
  case 4: BOTH("msync", msync(maps[k] + (at & ~UINT64_C(4095)), n, MS_SYNC)); break;
  case 5: BOTH("msync askew", msync(maps[k] + (at | 1), n, MS_SYNC)); break;
  case 6:
    at &= ~UINT64_C(4095);
    BOTH("MADV_DONTNEED", madvise(maps[k] + at, n, MADV_DONTNEED));
    BOTH("MADV_WILLNEED", madvise(maps[k] + at, n, MADV_WILLNEED));
    if (!rnd(3))
      BOTH("MADV_REMOVE", madvise(maps[k] + at, (n + 4095) & ~UINT64_C(4095), MADV_REMOVE));
    break;
  case 7:       /* the kernel stores into the map; not from there: who copies how would be seen then */
    n &= 4095;
    BOTH("pread into the map", pread(fds[0][k], maps[k] + at, at + n < size ? n : 0, at < 8192 ? 16384 : 0));
    break;
  default:
    if (!rnd(4)) {
      BOTH("munmap", munmap(maps[k], size));
      maps[0] = maps[1] = NULL;
    }
  }
}

static void op_views(void)
{
  uint64_t at = rnd(size) & ~UINT64_C(4095), n = rnd(10) * 4096 + 4096;
  uint8_t *view[2];

  if (at + n > size)
    return;
  what = "mmap of a part";
  for (int k = 0; k < 2; k++) {
    view[k] = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0][k], (off_t)at);
    if (view[k] == MAP_FAILED)
      die("%s", strerror(errno));
  }
  if (memcmp(view[0], view[1], n) != 0)
    die("%" PRIu64 " bytes at %" PRIu64 " differ", n, at);
  for (int k = 0; k < 2; k++)
    memcpy(view[k] + 100, "in a view", 9);
  BOTH("munmap of a part", munmap(view[k], n));

  what = "private mmap";
  for (int k = 0; k < 2; k++) {
    view[k] = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[0][k], (off_t)at);
    if (view[k] == MAP_FAILED)
      die("%s", strerror(errno));
  }
  if (memcmp(view[0], view[1], n) != 0)
    die("%" PRIu64 " bytes at %" PRIu64 " differ", n, at);
  memset(view[1], 0xee, n);
  BOTH("munmap of private memory", munmap(view[k], n));
}

static void op_status(unsigned s)
{
  struct statx x[2];
  struct stat st[2];

  switch (rnd(5)) {
  case 0: BOTH("fstat", fstat(fds[s][k], &st[k])); break;
  case 1: BOTH("stat", stat(paths[k], &st[k])); break;
  case 2: BOTH("lstat", lstat(paths[k], &st[k])); break;
  case 3: BOTH("fstatat", fstatat(fds[s][k], "", &st[k], AT_EMPTY_PATH)); break;
  default:
    BOTH("statx", statx(AT_FDCWD, paths[k], 0, STATX_BASIC_STATS, &x[k]));
    if (x[0].stx_size != size || x[1].stx_size != size)
      die("statx says %" PRIu64 " and %" PRIu64, (uint64_t)x[0].stx_size, (uint64_t)x[1].stx_size);
    return;
  }
  if (st[0].st_size != st[1].st_size || (uint64_t)st[0].st_size != size || st[0].st_mode != st[1].st_mode)
    die("sizes %lld and %lld, modes %o and %o", (long long)st[0].st_size, (long long)st[1].st_size,
        st[0].st_mode, st[1].st_mode);
}

static void op_descriptor(unsigned s)
{
  unsigned t = 1 + (unsigned)rnd(FDS - 1);
  int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };
  struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 4096 };
  int flags, extra;

  if (s == t)
    s = 0;
  switch (rnd(6)) {
  case 0:
    BOTH("close", close(fds[t][k]));
    flags = mode[rnd(3)] | (rnd(4) ? 0 : O_DSYNC) | (rnd(4) ? 0 : O_CREAT) | (rnd(2) ? O_CLOEXEC : 0);
    BOTH("open", (fds[t][k] = open(paths[k], flags, 0600)) >= 0);
    break;
  case 1: BOTH("dup2", dup2(fds[s][k], fds[t][k]) == fds[t][k]); break;
  case 2:
    BOTH("close", close(fds[t][k]));
    BOTH("dup", (fds[t][k] = dup(fds[s][k])) >= 0);
    break;
  case 3:
    BOTH("close", close(fds[t][k]));
    BOTH("F_DUPFD_CLOEXEC", (fds[t][k] = fcntl(fds[s][k], F_DUPFD_CLOEXEC, 100)) >= 100);
    break;
  case 4:
    BOTH("F_GETFL", fcntl(fds[s][k], F_GETFL) & ~O_LARGEFILE);
    BOTH("F_GETFD", fcntl(fds[s][k], F_GETFD));
    break;
  default:
    BOTH("F_SETLK", (l.l_type = F_RDLCK, (fcntl(fds[0][k], F_SETLK, &l))));
    BOTH("F_SETLK", (l.l_type = F_UNLCK, (fcntl(fds[0][k], F_SETLK, &l))));
    BOTH("TCGETS", ioctl(fds[s][k], 0x5401, buffers[k]));
    BOTH("FIGETBSZ", ioctl(fds[s][k], 2 /* FIGETBSZ */, &extra));
  }
}

static void op_sync(unsigned s)
{
  switch (rnd(4)) {
  case 0: BOTH("fsync", fsync(fds[s][k])); break;
  case 1: BOTH("fdatasync", fdatasync(fds[s][k])); break;
  case 2: BOTH("sync_file_range", sync_file_range(fds[s][k], 0, 4096, SYNC_FILE_RANGE_WRITE)); break;
  default: BOTH("posix_fadvise", posix_fadvise(fds[s][k], 0, 0, POSIX_FADV_DONTNEED)); break;
  }
}

static void op_stream(void)
{
  uint64_t at = rnd(size);
  size_t n = count(at);
  FILE *file[2];

  what = "fopen";
  BOTH("fopen", (file[k] = fopen(paths[k], "r+")) != NULL);
  BOTH("fileno", fileno(file[k]) >= 0);
  BOTH("fseeko", fseeko(file[k], (off_t)at, SEEK_SET));
  if (rnd(2)) {
    BOTH("fread", fread(buffers[k], 1, n, file[k]));
    compare_bytes((size_t)got);
  } else {
    fill(buffers[0], n);
    BOTH("fwrite", fwrite(buffers[0], 1, n, file[k]));
    BOTH("fflush", fflush(file[k]));
  }
  BOTH("ftello", ftello(file[k]));
  BOTH("fclose", fclose(file[k]));
}

static const struct {
  unsigned weight;
  void (*run)(unsigned s);
  void (*alone)(void);
} operations[] = {
  { 20, op_read, NULL },     { 20, op_write, NULL }, { 4, op_seek, NULL },  { 3, NULL, op_hole },
  { 8, op_space, NULL },     { 24, NULL, op_map },   { 4, NULL, op_views }, { 4, op_status, NULL },
  { 6, op_descriptor, NULL }, { 3, op_sync, NULL },  { 3, NULL, op_stream },
};

static void one_operation(void)
{
  unsigned sum = 0, pick;

  for (size_t n = 0; n < sizeof(operations) / sizeof(operations[0]); n++)
    sum += operations[n].weight;
  pick = (unsigned)rnd(sum);
  for (size_t n = 0; n < sizeof(operations) / sizeof(operations[0]); n++) {
    if (pick < operations[n].weight) {
      if (operations[n].run)
        operations[n].run((unsigned)rnd(FDS));
      else
        operations[n].alone();
      return;
    }
    pick -= operations[n].weight;
  }
}

int main(int argc, char **argv)
{
  unsigned long steps = argc > 4 ? strtoul(argv[4], NULL, 0) : 20000;
  struct stat st;

  if (argc < 3) {
    fprintf(stderr, "usage: run-ops RAW IMAGE [SEED [COUNT]]\n");
    return 2;
  }
  seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
  if (!seed)
    seed = (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
  state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
  paths[0] = argv[1];
  paths[1] = argv[2];
  what = "start";
  if (stat(paths[0], &st))
    die("%s: %s", paths[0], strerror(errno));
  size = (uint64_t)st.st_size;
  printf("seed %" PRIu64 ", %lu operations on %" PRIu64 " bytes\n", seed, steps, size);
  for (unsigned s = 0; s < FDS; s++)
    BOTH("open", (fds[s][k] = open(paths[k], O_RDWR)) >= 0);
  for (step = 0; step < steps; step++)
    one_operation();
  compare_all();
  /* Half of the time it is left to the end of the process to make the image whole. */
  if (rnd(2)) {
    for (unsigned s = 0; s < FDS; s++)
      BOTH("close", close(fds[s][k]));
    if (maps[0])
      BOTH("munmap", munmap(maps[k], size));
    compare_all();
  }
  printf("all the same\n");
  return 0;
}
