/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See scene.h. The library's open(2) and its sleeping go through here (by the linker's --wrap): a path
 * outside the directory does not exist, and waiting for another process, of which there is none, costs
 * no time.
 */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <libpcow/libpcow.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool scene_trace;

static char dir[64], paths[INPUT_FILES][80], guard[80];
static size_t dir_length;
static int fds[INPUT_FILES] = { -1, -1, -1 };
static int guard_fd = -1;
static gint64 slept;

_Noreturn void wrong(const char *format, ...)
{
  va_list args;

  fputs("WRONG: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fprintf(stderr, " (last message: %s)\n", pcow_errormsg());
  abort();
}

/* ---- What the library calls ---- */

int __wrap_open(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __real_open(const char *path, int flags, ...);
void __wrap_g_usleep(gulong us);
gint64 __wrap_g_get_monotonic_time(void);
gint64 __real_g_get_monotonic_time(void);

/* What the library opens for itself. */
static bool of_the_library(const char *path)
{
  static const char *const known[] = { "/dev/userfaultfd", "/proc/self/maps", "/proc/self/pagemap",
                                       "/proc/sys/vm/max_map_count" };

  for (unsigned i = 0; i < G_N_ELEMENTS(known); i++)
    if (strcmp(path, known[i]) == 0)
      return true;
  return false;
}

int __wrap_open(const char *path, int flags, ...)
{
  mode_t mode = 0;

  if (flags & O_CREAT) {
    va_list args;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
  }
  if (!of_the_library(path) && strcmp(path, dir) &&
      (strncmp(path, dir, dir_length) || path[dir_length] != '/' || strstr(path, ".."))) {
    errno = ENOENT;
    return -1;
  }
  return __real_open(path, flags, mode);
}

int __wrap_open64(const char *path, int flags, ...)
{
  mode_t mode = 0;

  if (flags & O_CREAT) {
    va_list args;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
  }
  return __wrap_open(path, flags, mode);
}

void __wrap_g_usleep(gulong us)
{
  __atomic_fetch_add(&slept, (gint64)us, __ATOMIC_RELAXED);
}

gint64 __wrap_g_get_monotonic_time(void)
{
  return __real_g_get_monotonic_time() + __atomic_load_n(&slept, __ATOMIC_RELAXED);
}

/* ---- The directory ---- */

static void remove_dir(void)
{
  for (unsigned i = 0; i < INPUT_FILES; i++)
    unlink(paths[i]);
  unlink(guard);
  rmdir(dir);
}

/* A time that no write leaves. */
static const struct timespec long_ago[2] = { { 1000000000, 0 }, { 1000000000, 0 } };

static int make_file(char *path, size_t size, const char *name)
{
  int fd;

  snprintf(path, size, "%s/%s", dir, name);
  fd = __real_open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0)
    wrong("cannot create %s: %s", path, strerror(errno));
  return fd;
}

static void fill_guard(void)
{
  static char bytes[GUARD_BYTES];

  memset(bytes, 'G', GUARD_BYTES);
  if (ftruncate(guard_fd, GUARD_BYTES) || pwrite(guard_fd, bytes, GUARD_BYTES, 0) != (ssize_t)GUARD_BYTES ||
      futimens(guard_fd, long_ago))
    wrong("cannot write %s: %s", guard, strerror(errno));
}

static void print_log(void *opaque, int level, const char *message)
{
  (void)opaque;
  (void)level;
  fprintf(stderr, "log: %s\n", message);
}

void scene_begin(void)
{
  scene_trace = getenv("PCOW_FUZZ_TRACE");
  if (scene_trace)
    pcow_set_log(print_log, NULL);
  /* A name of testlib.c's: the next test removes what a crash leaves. */
  snprintf(dir, sizeof(dir), "%s/pcow-test.fuzz.%ld", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm",
           (long)getpid());
  if (mkdir(dir, 0700))
    wrong("cannot make a directory: %s", strerror(errno));
  dir_length = strlen(dir);
  guard_fd = make_file(guard, sizeof(guard), "guard");
  fill_guard();
  for (unsigned i = 0; i < INPUT_FILES; i++)
    snprintf(paths[i], sizeof(paths[i]), "%s/%s", dir, input_names[i]);
  atexit(remove_dir);
}

void scene_write(const struct input *in)
{
  for (unsigned i = 0; i < INPUT_FILES; i++) {
    if (i >= in->files) {
      if (fds[i] >= 0) {
        close(fds[i]);
        unlink(paths[i]);
      }
      fds[i] = -1;
      continue;
    }
    if (fds[i] < 0)
      fds[i] = make_file(paths[i], sizeof(paths[i]), input_names[i]);
    if (input_write_file(in, &in->file[i], fds[i]) < 0)
      wrong("cannot write %s: %s", paths[i], strerror(errno));
    futimens(fds[i], long_ago);
  }
}

static void check_untouched(int fd, const char *path, uint64_t size)
{
  struct stat st;

  if (fstat(fd, &st))
    wrong("%s: %s", path, strerror(errno));
  if (st.st_mtim.tv_sec != long_ago[1].tv_sec || (uint64_t)st.st_size != size)
    wrong("%s was changed", path);
}

uint64_t scene_blocks(void)
{
  uint64_t sum = 0;
  struct stat st;

  for (unsigned i = 0; i < INPUT_FILES; i++)
    if (fds[i] >= 0 && fstat(fds[i], &st) == 0)
      sum += (uint64_t)st.st_blocks * 512;
  return sum;
}

const char *scene_dir(void)
{
  return dir;
}

const char *scene_image(void)
{
  return paths[0];
}

void scene_check(const struct input *in, bool wrote, bool wrote_base)
{
  if (wrote_base)
    fill_guard();       /* it may have been the base */
  check_untouched(guard_fd, guard, GUARD_BYTES);
  for (unsigned i = wrote; i < in->files && !wrote_base; i++)
    check_untouched(fds[i], paths[i], in->file[i].length);
}
