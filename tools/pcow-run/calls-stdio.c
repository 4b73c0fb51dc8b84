/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams. The C library opens, reads and writes their files by calls of its own that nobody can stand before;
 * so the stream of an image is one with functions of ours beneath it.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct stream {
  struct stream *next;
  FILE *file;
  int fd;
};

static struct stream *_Atomic streams;  /* NULL: fileno() need not look */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t on_read(void *cookie, char *buffer, size_t size)
{
  return run_read(((struct stream *)cookie)->fd, buffer, size);
}

static ssize_t on_write(void *cookie, const char *buffer, size_t size)
{
  ssize_t n = run_write(((struct stream *)cookie)->fd, buffer, size);

  return n < 0 ? 0 : n; /* 0 is an error here */
}

static int on_seek(void *cookie, off64_t *offset, int whence)
{
  off_t at = run_lseek(((struct stream *)cookie)->fd, *offset, whence);

  if (at < 0)
    return -1;
  *offset = at;
  return 0;
}

static int on_close(void *cookie)
{
  struct stream *s = cookie;
  int fd = s->fd;

  pthread_mutex_lock(&lock);
  for (struct stream *before = streams; before; before = before->next)
    if (before->next == s)
      before->next = s->next;
  if (streams == s)
    streams = s->next;
  pthread_mutex_unlock(&lock);
  free(s);
  return run_close(fd);
}

static FILE *stream(int fd, const char *mode)
{
  cookie_io_functions_t functions = { on_read, on_write, on_seek, on_close };
  struct stream *s = calloc(1, sizeof(*s));

  if (!s)
    return NULL;
  s->fd = fd;
  s->file = fopencookie(s, mode, functions);
  if (!s->file) {
    free(s);
    return NULL;
  }
  pthread_mutex_lock(&lock);
  s->next = streams;
  streams = s;
  pthread_mutex_unlock(&lock);
  return s->file;
}

static int mode_flags(const char *mode)
{
  int flags = *mode == 'r' ? O_RDONLY : *mode == 'w' ? O_WRONLY | O_TRUNC : O_WRONLY | O_APPEND;

  for (; *mode && *mode != ','; mode++) {
    if (*mode == '+')
      flags = (flags & ~O_ACCMODE) | O_RDWR;
    if (*mode == 'e')
      flags |= O_CLOEXEC;
    if (*mode == 'x')
      flags |= O_CREAT | O_EXCL;
  }
  return flags;
}

static bool is_image(const char *path)
{
  int probe = path ? run_probe(AT_FDCWD, path, 0) : -1;

  if (probe >= 0)
    real()->close(probe);
  return probe >= 0;
}

RUN_API FILE *run_fopen(const char *path, const char *mode) __asm__("fopen64");
RUN_ALSO(fopen, fopen64);
RUN_API FILE *run_fopen(const char *path, const char *mode)
{
  FILE *file;
  int fd;

  if (!is_image(path))
    return real()->fopen64(path, mode);
  fd = run_open(AT_FDCWD, path, mode_flags(mode), 0666);
  if (fd < 0)
    return NULL;
  file = run_table_has(fd) ? stream(fd, mode) : real()->fdopen(fd, mode);
  if (!file)
    run_close(fd);
  return file;
}

RUN_API FILE *run_fdopen(int fd, const char *mode) __asm__("fdopen");
RUN_API FILE *run_fdopen(int fd, const char *mode)
{
  return run_table_is(fd) ? stream(fd, mode) : real()->fdopen(fd, mode);
}

RUN_API FILE *run_freopen(const char *path, const char *mode, FILE *file) __asm__("freopen64");
RUN_ALSO(freopen, freopen64);
RUN_API FILE *run_freopen(const char *path, const char *mode, FILE *file)
{
  if (!is_image(path))
    return real()->freopen64(path, mode, file);
  run_complain("%s: an image cannot take the place of the file of a stream", path);
  fclose(file);
  errno = ENOTSUP;
  return NULL;
}

RUN_API int run_fileno(FILE *file) __asm__("fileno");
RUN_ALSO(fileno_unlocked, fileno);
RUN_API int run_fileno(FILE *file)
{
  int fd = -1;

  if (atomic_load(&streams)) {
    pthread_mutex_lock(&lock);
    for (struct stream *s = streams; s && fd < 0; s = s->next)
      if (s->file == file)
        fd = s->fd;
    pthread_mutex_unlock(&lock);
  }
  return fd >= 0 ? fd : real()->fileno(file);
}

void run_stdio_forked(void) { pthread_mutex_init(&lock, NULL); }

void run_stdio_adopt(void)
{
  FILE *file;

  if (run_table_has(0) && (file = stream(0, "r")))
    stdin = file;
  if (run_table_has(1) && (file = stream(1, "w")))
    stdout = file;
}
