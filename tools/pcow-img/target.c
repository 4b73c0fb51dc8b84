/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Targets of conversions; see target.h.
 */
#include "target.h"

#include "naming.h"
#include "report.h"
#include "scan.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_AREA ((off_t)1 << 62) /* docs/format.md: locks lie from here on */

struct target {
  enum pcow_format format;
  char *name; /* as the user gave it, for messages */
  char *path; /* the final name, without symbolic links when it exists */
  char *temp; /* the new file's name until it is complete; NULL: written in place */
  pcow_image *image;
  pcow_image *replaced; /* the image that is to be replaced, held so that nobody takes it into use */
  int fd;
};

/* The library speaks of the file that it was given; the user has never heard of the temporary one. */
static int fail_library(const struct target *t)
{
  g_autoptr(GString) text = g_string_new(pcow_errormsg());

  if (t->temp)
    g_string_replace(text, t->temp, t->name, 0);
  return report_fail("%s", text->str);
}

static struct target *target_new(const char *path, enum pcow_format format)
{
  struct target *t = g_new0(struct target, 1);

  t->format = format;
  t->name = g_strdup(path);
  t->path = g_strdup(path);
  t->fd = -1;
  return t;
}

void target_abandon(struct target *t)
{
  if (!t)
    return;
  pcow_close(t->image);
  if (t->fd >= 0)
    close(t->fd);
  if (t->temp)
    unlink(t->temp);
  pcow_close(t->replaced);
  g_free(t->temp);
  g_free(t->path);
  g_free(t->name);
  g_free(t);
}

/* Whether anybody holds any lock on the file as an image (docs/format.md, lock bytes). */
static bool is_locked(int fd)
{
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_AREA, .l_len = 0 };

  return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* What is replaced is the file, not a symbolic link to it. */
static void resolve_path(struct target *t)
{
  char *real = realpath(t->path, NULL);

  if (!real)
    return;
  g_free(t->path);
  t->path = g_strdup(real);
  free(real);
}

/* An existing file may be replaced when it could be written: read-only files and images in use may
 * not. What is no image, or a damaged one, may go. */
static int claim_replaced(struct target *t)
{
  struct pcow_open_options options = PCOW_INIT(options);
  int fd = open(t->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
  bool locked;

  if (fd < 0)
    return report_errno(errno, "%s: cannot replace the file", t->name);
  locked = is_locked(fd);
  close(fd);
  options.flags = PCOW_OPEN_RDWR | PCOW_OPEN_NO_BASE;
  if (locked || pcow_open(t->path, &options, &t->replaced) == -EBUSY)
    return report_fail("%s: is an image in use and is not replaced", t->name);
  return 0;
}

/* A free name beside the target. The file is made by whoever uses it, with O_EXCL. */
static void choose_temp(struct target *t)
{
  g_autofree char *directory = g_path_get_dirname(t->path);
  g_autofree char *base = g_path_get_basename(t->path);

  do {
    g_free(t->temp);
    /* Cut so that a name of the greatest length still leaves room. */
    t->temp = g_strdup_printf("%s/.%.200s.%08x", directory, base, g_random_int());
  } while (access(t->temp, F_OK) == 0);
}

static int create_raw(struct target *t, uint64_t size)
{
  t->fd = open(t->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (t->fd < 0) {
    int errnum = errno;

    g_clear_pointer(&t->temp, g_free); /* not ours to remove */
    return report_errno(errnum, "%s: cannot create the file", t->name);
  }
  if (ftruncate(t->fd, (off_t)size))
    return report_errno(errno, "%s: cannot make the file %" G_GUINT64_FORMAT " bytes long", t->name, size);
  return 0;
}

static int create_pcow(struct target *t, uint64_t size, uint64_t unit_size)
{
  struct pcow_create_options options = PCOW_INIT(options);
  struct pcow_open_options open_options = PCOW_INIT(open_options);

  options.unit_size = unit_size;
  if (pcow_create(t->temp, size, &options)) {
    int rc = fail_library(t);

    g_clear_pointer(&t->temp, g_free);
    return rc;
  }
  open_options.flags = PCOW_OPEN_RDWR;
  return pcow_open(t->temp, &open_options, &t->image) ? fail_library(t) : 0;
}

int target_create(const char *path, enum pcow_format format, uint64_t size, uint64_t unit_size,
                  struct target **target)
{
  struct target *t = target_new(path, format);
  struct stat st;
  bool exists = stat(t->path, &st) == 0;
  int rc = 0;

  *target = NULL;
  if (exists && S_ISBLK(st.st_mode)) {
    target_abandon(t);
    if (format != PCOW_FORMAT_RAW)
      return report_fail("%s: a block device can hold raw content only", path);
    return target_open(NULL, path, format, size, target); /* raw: it has no bases */
  }
  resolve_path(t);
  if (exists && !S_ISREG(st.st_mode))
    rc = report_fail("%s: neither a regular file nor a block device", path);
  else if (exists)
    rc = claim_replaced(t);
  if (rc == 0) {
    choose_temp(t);
    rc = format == PCOW_FORMAT_PCOW ? create_pcow(t, size, unit_size) : create_raw(t, size);
  }
  /* The new file stands in for the old one: same permissions, and owner if we may. */
  if (rc == 0 && exists) {
    if (chown(t->temp, st.st_uid, st.st_gid) && errno != EPERM)
      rc = report_errno(errno, "%s: cannot keep the owner", path);
    else if (chmod(t->temp, st.st_mode & 07777))
      rc = report_errno(errno, "%s: cannot keep the permissions", path);
  }
  if (rc) {
    target_abandon(t);
    return rc;
  }
  *target = t;
  return 0;
}

static int open_pcow(struct target *t, const struct bases *bases, uint64_t *size)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct pcow_info info = PCOW_INIT(info);

  options.flags = PCOW_OPEN_RDWR;
  if (bases_open(bases, t->path, &options, &t->image) || pcow_get_info(t->image, &info))
    return report_library();
  *size = info.virtual_size;
  return 0;
}

static int open_raw(struct target *t, uint64_t *size)
{
  off_t end;

  t->fd = open(t->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
  end = t->fd < 0 ? -1 : lseek(t->fd, 0, SEEK_END);
  if (end < 0)
    return report_errno(errno, "%s", t->name);
  if (is_locked(t->fd))
    return report_fail("%s: is an image in use and is not overwritten", t->name);
  *size = (uint64_t)end;
  return 0;
}

int target_open(const struct bases *bases, const char *path, enum pcow_format format, uint64_t size,
                struct target **target)
{
  struct target *t = target_new(path, format);
  uint64_t present = 0;
  int rc = format == PCOW_FORMAT_PCOW ? open_pcow(t, bases, &present) : open_raw(t, &present);

  *target = NULL;
  if (rc == 0 && present < size)
    rc = report_fail("%s: has %" G_GUINT64_FORMAT " bytes, the source has %" G_GUINT64_FORMAT, path, present,
                     size);
  if (rc) {
    target_abandon(t);
    return rc;
  }
  *target = t;
  return 0;
}

static int write_raw(struct target *t, uint64_t offset, uint64_t length, const void *data)
{
  for (uint64_t done = 0; done < length;) {
    ssize_t n = pwrite(t->fd, (const char *)data + done, length - done, (off_t)(offset + done));

    if (n < 0 && errno != EINTR)
      return report_errno(errno, "%s: cannot write at offset %" G_GUINT64_FORMAT, t->name, offset + done);
    done += n > 0 ? (uint64_t)n : 0;
  }
  return 0;
}

/* A hole if the file or device can have one, else written zeros. */
static int zero_raw(struct target *t, uint64_t offset, uint64_t length)
{
  g_autofree void *zeros = NULL;
  int rc = 0;

  if (fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0)
    return 0;
  if (errno == EIO || errno == ENOSPC)
    return report_errno(errno, "%s: cannot zero at offset %" G_GUINT64_FORMAT, t->name, offset);
  zeros = g_malloc0(SCAN_CHUNK);
  for (uint64_t done = 0; rc == 0 && done < length; done += SCAN_CHUNK)
    rc = write_raw(t, offset + done, MIN(SCAN_CHUNK, length - done), zeros);
  return rc;
}

int target_write(struct target *t, uint64_t offset, uint64_t length, const void *data)
{
  if (!data && t->temp)
    return 0; /* a new file reads as zeros */
  if (t->format == PCOW_FORMAT_RAW)
    return data ? write_raw(t, offset, length, data) : zero_raw(t, offset, length);
  if (data ? pcow_pwrite(t->image, data, length, offset) : pcow_write_zeroes(t->image, offset, length, 0))
    return fail_library(t);
  return 0;
}

/* A new name is durable once its directory is. */
static int sync_directory(const struct target *t)
{
  g_autofree char *directory = g_path_get_dirname(t->path);
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int rc = fd < 0 || fsync(fd) ? report_errno(errno, "%s: cannot sync the directory", t->name) : 0;

  if (fd >= 0)
    close(fd);
  return rc;
}

int target_finish(struct target *t)
{
  bool renamed = false;
  int rc = 0;

  if (t->image) {
    pcow_image *image = g_steal_pointer(&t->image);
    bool failed = pcow_sync(image) != 0;

    if (failed)
      rc = fail_library(t);
    if (pcow_close(image) && !failed)
      rc = fail_library(t);
  } else if (fsync(t->fd)) {
    rc = report_errno(errno, "%s: cannot sync", t->name);
  }
  if (rc == 0 && t->temp) {
    renamed = rename(t->temp, t->path) == 0;
    if (!renamed)
      rc = report_errno(errno, "%s: cannot replace the file", t->name);
  }
  if (renamed) {
    g_clear_pointer(&t->temp, g_free);
    rc = sync_directory(t);
  }
  target_abandon(t);
  return rc;
}
