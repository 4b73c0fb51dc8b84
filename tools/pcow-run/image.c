/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which files are images, and when libpcow has them open: when the program opens them, to find out whether that
 * can be done, and from their first use on until the last descriptor is closed and nothing is mapped any more. A
 * file is recognised by its superblocks before the program's own open(2) happens, because that might truncate it.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC "PCOW\r\n\x1a\n"          /* docs/format.md: at the start of both superblocks */
#define MAGIC_BYTES 8
#define SECOND_SUPERBLOCK (1 << 20)
#define SMALLEST (SECOND_SUPERBLOCK + 4096)
#define SLOT_GROUPS (INT64_C(1) << 30)  /* no whole image's file is smaller */

pthread_mutex_t run_structure = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct run_image *) images;      /* grows at its front only */

struct run_image *run_images(void) { return images; }

/* ---- Recognising ---- */

static bool has_magic(int fd, off_t offset)
{
  char magic[MAGIC_BYTES];

  return real()->pread64(fd, magic, sizeof(magic), offset) == MAGIC_BYTES &&
         memcmp(magic, MAGIC, sizeof(magic)) == 0;
}

static bool path_of(int fd, char path[PATH_MAX])
{
  char link[64];
  ssize_t n;

  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  n = readlink(link, path, PATH_MAX - 1);
  if (n <= 0 || path[0] != '/')
    return false;
  path[n] = 0;
  return true;
}

static int probe(int dirfd, const char *path, int flags)
{
  const char *snapshot;
  char full[PATH_MAX];
  struct stat st;
  int fd;

  if (real()->fstatat64(dirfd, path, &st, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) ||
      !S_ISREG(st.st_mode) || st.st_size < SMALLEST)
    return -1;
  fd = real()->openat64(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (flags & O_NOFOLLOW));
  if (fd < 0)
    return -1;
  if ((has_magic(fd, 0) || has_magic(fd, SECOND_SUPERBLOCK)) && path_of(fd, full) &&
      run_settings_serve(full, &snapshot))
    return fd;
  real()->close(fd);
  return -1;
}

int run_probe(int dirfd, const char *path, int flags)
{
  int error = errno, fd = probe(dirfd, path, flags);

  errno = error;
  return fd;
}

struct run_image *run_image_find(int fd)
{
  const char *snapshot;
  struct run_image *i;
  char path[PATH_MAX];
  struct stat st;

  if (real()->fstat64(fd, &st) || !path_of(fd, path))
    return NULL;
  for (i = images; i; i = i->next)
    if (i->dev == st.st_dev && i->ino == st.st_ino)
      break;
  if (i && (i->image || i->handles))
    return i;
  if (!i) {
    i = calloc(1, sizeof(*i));
    if (!i)
      return NULL;
    i->dev = st.st_dev;
    i->ino = st.st_ino;
    pthread_rwlock_init(&i->use, NULL);
    i->next = images;
    images = i;
  }
  run_settings_serve(path, &snapshot);
  free(i->path);
  free(i->snapshot);
  i->path = strdup(path);
  i->snapshot = snapshot ? strdup(snapshot) : NULL;
  return i->path && (!snapshot || i->snapshot) ? i : NULL;
}

/* ---- Opening ---- */

static void on_log(void *opaque, int level, const char *message)
{
  (void)opaque;
  if (level <= PCOW_LOG_WARNING)
    run_complain("%s", message);
}

static int open_image(const struct run_image *i, uint32_t flags, pcow_image **image)
{
  struct pcow_open_options options = PCOW_INIT(options);
  const struct run_settings *s = run_settings();
  char directory[PATH_MAX];

  snprintf(directory, sizeof(directory), "%s", i->path);
  *strrchr(directory, '/') = 0;
  pcow_set_log(on_log, NULL);
  options.flags = flags;
  if (!(flags & PCOW_OPEN_INFO))
    options.snapshot = i->snapshot;
  if (s->any_base)
    options.flags |= PCOW_OPEN_BASES;
  else
    options.base_dir = s->base_dir ? s->base_dir : directory[0] ? directory : "/";
  return pcow_open(i->path, &options, image);
}

static int open_content(struct run_image *i, bool writable)
{
  struct pcow_info info = PCOW_INIT(info);
  int ret;

  if (writable && i->snapshot) {
    run_complain("%s: snapshot '%s' cannot be written", i->path, i->snapshot);
    return -EROFS;
  }
  ret = open_image(i, writable ? PCOW_OPEN_RDWR : 0, &i->image);
  if (ret == -EMEDIUMTYPE && !run_settings()->images)
    return ret;
  if (ret == 0)
    ret = pcow_get_info(i->image, &info);
  if (ret)
    run_complain_library(ret);
  if (ret && i->image) {
    pcow_close(i->image);
    i->image = NULL;
  }
  i->writable = writable;
  i->size = info.virtual_size;
  return ret;
}

/* Both locks are held, the second for writing. */
static int ensure(struct run_image *i, bool writable)
{
  int ret;

  if (i->image && (i->writable || !writable))
    return 0;
  if (i->image && i->view_count) {
    run_complain("%s: is mapped read-only, and cannot be opened for writing meanwhile", i->path);
    return -EBUSY;
  }
  if (!i->image)
    return open_content(i, writable);
  run_maps_end(i);
  pcow_close(i->image);
  i->image = NULL;
  ret = open_content(i, true);
  if (ret)
    open_content(i, false);
  return ret;
}

int run_image_lock(struct run_image *i, bool writable)
{
  int ret;

  pthread_rwlock_wrlock(&i->use);
  ret = ensure(i, writable);
  if (ret)
    pthread_rwlock_unlock(&i->use);
  return ret;
}

void run_image_unlock(struct run_image *i) { pthread_rwlock_unlock(&i->use); }

int run_image_begin(struct run_image *i, bool writable)
{
  int ret = 0;

  for (;;) {
    pthread_rwlock_rdlock(&i->use);
    if (ret || (i->image && (i->writable || !writable)))
      break;
    pthread_rwlock_unlock(&i->use);
    pthread_mutex_lock(&run_structure);
    ret = run_image_lock(i, writable);
    if (ret == 0)
      run_image_unlock(i);
    pthread_mutex_unlock(&run_structure);
  }
  if (ret)
    pthread_rwlock_unlock(&i->use);
  return ret;
}

void run_image_end(struct run_image *i) { pthread_rwlock_unlock(&i->use); }

int run_image_open(struct run_image *i, bool writable)
{
  int ret = run_image_lock(i, writable);

  if (ret)
    return ret;
  i->handles++;
  run_image_unlock(i);
  return 0;
}

/* A shell opens what it redirects to, and leaves it to the programs that it runs. */
int run_image_park(struct run_image *i, bool used)
{
  int ret = 0;

  pthread_mutex_lock(&run_structure);
  pthread_rwlock_wrlock(&i->use);
  if ((used || i->handles == 1) && !i->view_count && i->image) {
    run_maps_end(i);
    ret = pcow_close(i->image);
    i->image = NULL;
    run_maps_forget(i);
    if (ret)
      run_complain_library(ret);
  }
  pthread_rwlock_unlock(&i->use);
  pthread_mutex_unlock(&run_structure);
  return ret;
}

void run_image_adopt(struct run_image *i) { i->handles++; }

int run_image_idle(struct run_image *i)
{
  int ret, closed;

  if (i->handles || i->view_count || !i->image)
    return 0;
  ret = run_maps_end(i);
  closed = pcow_close(i->image);
  i->image = NULL;
  run_maps_forget(i);
  if (closed)
    run_complain_library(closed);
  return ret ? ret : closed;
}

int run_image_close(struct run_image *i)
{
  int ret;

  pthread_mutex_lock(&run_structure);
  pthread_rwlock_wrlock(&i->use);
  i->handles--;
  ret = run_image_idle(i);
  pthread_rwlock_unlock(&i->use);
  pthread_mutex_unlock(&run_structure);
  return ret;
}

/* ---- Sizes ---- */

static int on_snapshot(void *opaque, const struct pcow_snapshot_info *info)
{
  struct { const char *name; uint64_t size; } *wanted = opaque;

  if (strcmp(info->name, wanted->name) != 0)
    return 0;
  wanted->size = info->virtual_size;
  return 1;
}

/* Of an image that this process does not have open, without a lock: it may be in use. */
static bool size_on_media(const struct run_image *i, uint64_t *size)
{
  struct { const char *name; uint64_t size; } wanted = { i->snapshot, 0 };
  struct pcow_info info = PCOW_INIT(info);
  pcow_image *image;
  bool found = false;

  if (open_image(i, PCOW_OPEN_INFO, &image))
    return false;
  if (i->snapshot) {
    found = pcow_snapshot_list(image, on_snapshot, &wanted) == 1;
    *size = wanted.size;
  } else if (pcow_get_info(image, &info) == 0) {
    found = true;
    *size = info.virtual_size;
  }
  pcow_close(image);
  return found;
}

int run_image_size(struct run_image *i, uint64_t *size)
{
  int ret = 0;

  pthread_rwlock_rdlock(&i->use);
  *size = i->size;
  if (!i->image && !size_on_media(i, size))
    ret = -EIO;
  pthread_rwlock_unlock(&i->use);
  return ret;
}

bool run_image_size_at(int dirfd, const char *path, int flags, dev_t dev, ino_t ino, off_t file_size,
                       uint64_t *size)
{
  struct run_image *i;
  bool found = false;
  int fd, error = errno;

  if (file_size < SLOT_GROUPS)
    return false;
  fd = run_probe(dirfd, path, flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0);
  if (fd < 0)
    return false;
  pthread_mutex_lock(&run_structure);
  i = run_image_find(fd);
  if (i && i->dev == dev && i->ino == ino)
    found = run_image_size(i, size) == 0;
  pthread_mutex_unlock(&run_structure);
  real()->close(fd);
  errno = error;
  return found;
}

int run_image_stat(struct run_handle *handle, int fd, struct stat *st)
{
  struct run_image *i = handle->image;
  int ret = handle->elsewhere ? real()->stat64(i->path, st) : real()->fstat64(fd, st);
  uint64_t size;

  if (ret)
    return -errno;
  ret = run_image_size(i, &size);
  if (ret == 0)
    st->st_size = (off_t)size;
  return ret;
}
