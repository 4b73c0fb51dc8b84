/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tests of untrusted base paths share: images such as a stranger might write them, a file that
 * must not be opened, and who tells of its being opened.
 */
#ifndef PCOW_TEST_UNTRUSTED_H
#define PCOW_TEST_UNTRUSTED_H

#include "format.h"
#include "superblock.h"
#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (16 * PAGE)
#define INSIDE 'a'
#define SECRET 's'

static char *in, *out, *secret; /* the directory of trust, another one, a file in that */
static int watch;               /* of SECRET, for being opened */

/* ---- Files ---- */

static inline char *within(const char *name) { return test_path("in/%s", name); }

/* A raw file of one byte over and over. All such files have the same size and time of change, so that
 * an image over one takes any other for its base. */
static inline void make_raw(const char *path, char byte)
{
  struct timespec times[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
  char *bytes = test_alloc(SIZE);
  int fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));

  memset(bytes, byte, SIZE);
  SYS(pwrite(fd, bytes, SIZE, 0));
  SYS(futimens(fd, times));
  SYS(close(fd));
  free(bytes);
}

/* An image whose base reference is as a stranger might write it, at PATH. */
static inline void plant_as(const char *image, const char *path, enum base_format format)
{
  struct superblock sb;
  struct pcow_disk_superblock disk;
  int fd;

  unlink(image);
  OK(pcow_create(image, SIZE, NULL));
  fd = (int)SYS(open(image, O_RDWR | O_CLOEXEC));
  OK(superblock_read(fd, image, true, &sb, NULL));
  sb.base = (struct base_ref){ .format = format };
  if (format == BASE_RAW) {
    sb.base.raw_size = SIZE;
    sb.base.raw_mtime_sec = 1000000;
  } else {
    sb.base.tag = sb.tag;
  }
  snprintf(sb.base.path, sizeof sb.base.path, "%s", path);
  superblock_encode(&sb, &disk);
  for (unsigned n = 0; n < 2; n++)
    SYS(pwrite(fd, &disk, sizeof disk, SUPERBLOCK_OFFSET(n)));
  SYS(close(fd));
}

static inline void plant(const char *image, const char *path) { plant_as(image, path, BASE_RAW); }

static inline int open_image(const char *path, uint32_t flags, const char *base_dir, pcow_image **image)
{
  struct pcow_open_options options = PCOW_INIT(options);

  options.flags = flags;
  options.base_dir = base_dir;
  return pcow_open(path, &options, image);
}

/* Events of WATCH since the last call. */
static inline unsigned opened(int on)
{
  char events[4096] __attribute__((aligned(8)));
  unsigned count = 0;

  for (ssize_t n; (n = read(on, events, sizeof events)) > 0;)
    count += (unsigned)n; /* events of a file have no name: all have the same size */
  return count / (unsigned)sizeof(struct inotify_event);
}

static inline int watch_file(const char *path)
{
  int fd = (int)SYS(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));

  SYS(inotify_add_watch(fd, path, IN_OPEN | IN_ACCESS | IN_MODIFY));
  return fd;
}

static inline void says(const char *what)
{
  CHECK(strstr(pcow_errormsg(), what), "'%s' does not say '%s'", pcow_errormsg(), what);
}

/* IMAGE cannot be opened in any way with these permissions, and SECRET was not touched. */
static inline void refused(const char *image, uint32_t flags, const char *base_dir, int error, const char *word)
{
  pcow_image *i;

  for (uint32_t rdwr = 0; rdwr <= PCOW_OPEN_RDWR; rdwr++) {
    GIVES(error, open_image(image, flags | rdwr, base_dir, &i));
    says(strrchr(image, '/'));
    says(word);
    if (error == -EPERM && base_dir)
      says(base_dir);
  }
  OK(open_image(image, flags | PCOW_OPEN_INFO, base_dir, &i));
  GIVES(error, pcow_open_base(i, &(pcow_image *){ NULL }));
  says(word);
  OK(pcow_close(i));
  CHECK(opened(watch) == 0, "%s: a forbidden file was opened", image);
}

/* The image opens and shows BYTE at PAGE. */
static inline void shows(const char *image, uint32_t flags, const char *base_dir, char byte)
{
  pcow_image *i;
  char c;

  OK(open_image(image, flags, base_dir, &i));
  OK(pcow_pread(i, &c, 1, PAGE));
  CHECK(c == byte, "%s shows '%c', not '%c'", image, c, byte);
  OK(pcow_close(i));
  OK(open_image(image, flags | PCOW_OPEN_INFO, base_dir, &i));
  OK(pcow_close(i));
}

/* Makes the directories and files. Few descriptors, so that layers are closed and opened again. */
static inline void set_up(int argc, char **argv)
{
  struct rlimit few = { 80, 4096 };

  test_dir(argc, argv);
  SYS(setrlimit(RLIMIT_NOFILE, &few));
  in = test_path("in");
  out = test_path("out");
  secret = test_path("out/secret");
  SYS(mkdir(in, 0700));
  SYS(mkdir(out, 0700));
  SYS(mkdir(within("sub"), 0700));
  make_raw(within("base.raw"), INSIDE);
  make_raw(secret, SECRET);
  watch = watch_file(secret);
}

#endif
