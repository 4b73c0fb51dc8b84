/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sources of content; see source.h. Extents are fetched in batches, because finding the place of an
 * offset may cost an image more than walking on from there.
 */
#include "source.h"

#include "naming.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH 1024

struct source {
  char *path;
  enum pcow_format format;
  uint64_t size;
  pcow_image *image;
  int fd;
  struct source_extent batch[BATCH];
  unsigned filled;
  unsigned current;
};

static int open_pcow(struct source *s, const struct bases *bases, const char *snapshot)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct pcow_info info = PCOW_INIT(info);

  options.snapshot = snapshot;
  if (bases_open(bases, s->path, &options, &s->image) || pcow_get_info(s->image, &info))
    return report_library();
  s->size = info.virtual_size;
  return 0;
}

static int open_raw(struct source *s)
{
  struct stat st;
  off_t end;

  s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (s->fd < 0 || fstat(s->fd, &st))
    return report_errno(errno, "%s", s->path);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
    return report_fail("%s: neither a regular file nor a block device", s->path);
  end = lseek(s->fd, 0, SEEK_END);
  if (end < 0)
    return report_errno(errno, "%s: cannot tell the size", s->path);
  s->size = (uint64_t)end;
  return 0;
}

int source_open(const struct bases *bases, const char *name, const char *snapshot, enum pcow_format format,
                struct source **source)
{
  g_autofree char *named = NULL;
  struct source *s = g_new0(struct source, 1);
  int rc;

  *source = NULL;
  s->fd = -1;
  s->format = format;
  rc = naming_split(name, NULL, &s->path, &named);
  if (rc == 0 && named && snapshot)
    rc = report_fail("%s: a snapshot is named twice, '%s' and '%s'", s->path, named, snapshot);
  if (!snapshot)
    snapshot = named;
  if (rc == 0 && format == PCOW_FORMAT_NONE)
    rc = naming_probe(s->path, &s->format);
  if (rc == 0 && s->format == PCOW_FORMAT_RAW && snapshot)
    rc = report_fail("%s: a raw file has no snapshots, '%s' is none", s->path, snapshot);
  if (rc == 0)
    rc = s->format == PCOW_FORMAT_PCOW ? open_pcow(s, bases, snapshot) : open_raw(s);
  if (rc) {
    source_close(s);
    return rc;
  }
  *source = s;
  return 0;
}

void source_close(struct source *s)
{
  if (!s)
    return;
  pcow_close(s->image);
  if (s->fd >= 0)
    close(s->fd);
  g_free(s->path);
  g_free(s);
}

const char *source_path(const struct source *s)
{
  return s->path;
}

enum pcow_format source_format(const struct source *s)
{
  return s->format;
}

uint64_t source_size(const struct source *s)
{
  return s->size;
}

pcow_image *source_image(const struct source *s)
{
  return s->image;
}

int source_read(struct source *s, void *buffer, size_t count, uint64_t offset)
{
  if (s->image)
    return pcow_pread(s->image, buffer, count, offset) < 0 ? report_library() : 0;

  for (size_t done = 0; done < count;) {
    ssize_t n = pread(s->fd, (char *)buffer + done, count - done, (off_t)(offset + done));

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return report_errno(errno, "%s: cannot read at offset %" G_GUINT64_FORMAT, s->path, offset + done);
    if (n == 0)
      return report_fail("%s: became shorter while it was read, at offset %" G_GUINT64_FORMAT, s->path,
                         offset + done);
    done += (size_t)n;
  }
  return 0;
}

/* A pcow_extent_fn: adds to the batch, and ends the walk when that is full. */
static int on_extent(void *opaque, const struct pcow_extent *extent)
{
  struct source *s = opaque;

  s->batch[s->filled++] = (struct source_extent){ .offset = extent->offset,
                                                  .length = extent->length,
                                                  .zero = extent->type != PCOW_EXTENT_DATA };
  return s->filled == BATCH;
}

/* Adds one extent of a raw file, at OFFSET; a place where holes cannot be found is data. */
static void add_raw(struct source *s, uint64_t offset)
{
  off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);
  uint64_t end = s->size;
  bool zero = false;

  if (data < 0) {
    zero = errno == ENXIO; /* nothing but a hole up to the end */
  } else if ((uint64_t)data > offset) {
    zero = true;
    end = MIN((uint64_t)data, s->size);
  } else {
    off_t hole = lseek(s->fd, (off_t)offset, SEEK_HOLE);

    if (hole > (off_t)offset)
      end = MIN((uint64_t)hole, s->size);
  }
  s->batch[s->filled++] = (struct source_extent){ .offset = offset, .length = end - offset, .zero = zero };
}

/* Fetches the extents from OFFSET on. Of a raw file only a few: it may be written meanwhile. */
static int fill(struct source *s, uint64_t offset)
{
  int rc = 0;

  s->filled = 0;
  s->current = 0;
  if (s->image)
    rc = pcow_extents(s->image, offset, s->size - offset, PCOW_EXTENTS_MERGE, on_extent, s);
  else
    add_raw(s, offset);
  if (rc < 0)
    return report_library();
  if (s->filled == 0)
    return report_fail("%s: no extent found at offset %" G_GUINT64_FORMAT, s->path, offset);
  return 0;
}

int source_extent(struct source *s, uint64_t offset, struct source_extent *extent)
{
  const struct source_extent *e;

  /* Ascending offsets only ever step forward; any other one starts a new batch. */
  while (s->current < s->filled && offset >= s->batch[s->current].offset + s->batch[s->current].length)
    s->current++;
  if (s->current >= s->filled || offset < s->batch[s->current].offset) {
    int rc = fill(s, offset);

    if (rc)
      return rc;
  }
  e = &s->batch[s->current];
  *extent = (struct source_extent){ .offset = offset,
                                    .length = e->length - (offset - e->offset),
                                    .zero = e->zero };
  return 0;
}
