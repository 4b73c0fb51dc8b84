/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Blocks of the file: where there are some, getting them, giving them back, and the file's length. What
 * changes them passes change_blocks() and change_size().
 */
#include "persiststate.h"

#include "error.h"
#include "format.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reserved pages are remembered by chunks, a bit a page. */
#define CHUNK_SHIFT (PAGE_SHIFT + 6)
static_assert(sizeof(gpointer) >= 8, "chunks and their bits are kept in pointers");

static int change_blocks(struct persist *p, int mode, uint64_t offset, uint64_t length)
{
  int ret;

  count(&p->block_changes, 1);
  watch_begin(p);
  while ((ret = fallocate(p->fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0) == -EINTR)
    ;
  if (p->watched && ret == 0 && mode & FALLOC_FL_PUNCH_HOLE)
    persist_watch->punch(p->watched, offset, length);
  watch_end(p);
  return ret;
}

static int change_size(struct persist *p, uint64_t size)
{
  int ret;

  count(&p->block_changes, 1);
  watch_begin(p);
  while ((ret = ftruncate(p->fd, (off_t)size) < 0 ? -errno : 0) == -EINTR)
    ;
  if (p->watched && ret == 0)
    persist_watch->grow(p->watched, size);
  watch_end(p);
  return ret;
}

uint64_t persist_seek(struct persist *p, uint64_t offset, uint64_t end, bool data)
{
  uint64_t punches = p->punches;
  off_t found;

  if (offset >= end)
    return end;
  g_mutex_lock(&p->seek_lock);
  found = offset >= p->data_from && offset < p->data_to ? (off_t)p->data_to : -1;
  g_mutex_unlock(&p->seek_lock);
  if (found >= 0)
    return data ? offset : MIN((uint64_t)found, end);
  found = lseek(p->fd, (off_t)offset, data ? SEEK_DATA : SEEK_HOLE);
  if (found >= 0) {
    g_mutex_lock(&p->seek_lock);
    if (!data && (uint64_t)found > offset && p->punches == punches) {
      p->data_from = offset;
      p->data_to = (uint64_t)found;
    }
    g_mutex_unlock(&p->seek_lock);
    return MIN((uint64_t)found, end);
  }
  if (errno == ENXIO) /* at or beyond the end of the file, or no more data */
    return data ? end : offset;
  return data ? offset : end;
}

/* ---- Blocks ---- */

static int blocks_failed(struct persist *p, int ret, const char *what, uint64_t offset, uint64_t length)
{
  if (ret == -ENOSPC || ret == -EDQUOT)
    return fail(ENOSPC, "%s: no space left %s (%" PRIu64 " bytes at offset %" PRIu64 " needed)", p->path,
                ret == -ENOSPC ? "on the file system" : "in the disk quota", length, offset);
  if (ret == -EOPNOTSUPP)
    return fail(ENOTSUP, "%s: the file system cannot %s", p->path, what);
  return fail_errno(-ret, "%s: cannot %s (%" PRIu64 " bytes at offset %" PRIu64 ")", p->path, what,
                    length, offset);
}

/* Does the range have blocks, all of it? False when the file system cannot tell holes from data. Asks the file
 * system, not what is remembered. */
static bool has_blocks(const struct persist *p, uint64_t offset, uint64_t length)
{
  struct stat st;
  off_t hole = lseek(p->fd, 0, SEEK_HOLE), end;

  if (hole < 0 || fstat(p->fd, &st) < 0 || hole >= st.st_size)
    return false;
  end = lseek(p->fd, (off_t)offset, SEEK_HOLE);
  return end >= 0 && (uint64_t)end >= offset + length && offset + length <= (uint64_t)st.st_size;
}

int persist_allocate(struct persist *p, uint64_t offset, uint64_t length)
{
  int ret;

  if (!length)
    return 0;
  /* Owes no sync: a crash that loses blocks of zeros leaves holes, which read as zeros. */
  ret = change_blocks(p, FALLOC_FL_KEEP_SIZE, offset, length);
  /* XFS wants free blocks before it looks what the range has. */
  if ((ret == -ENOSPC || ret == -EDQUOT) && has_blocks(p, offset, length))
    ret = 0;
  return ret ? blocks_failed(p, ret, "reserve space", offset, length) : 0;
}

int persist_prepare(struct persist *p, uint64_t offset, uint64_t length)
{
  return p->mode == PERSIST_MSYNC ? 0 : persist_allocate(p, offset, length);
}

static gpointer reserved_key(uint64_t chunk) { return GSIZE_TO_POINTER((gsize)chunk); }

static uint64_t reserved_get(const struct persist *p, uint64_t chunk)
{
  return GPOINTER_TO_SIZE(g_hash_table_lookup(p->reserved, reserved_key(chunk)));
}

/* The bits of CHUNK that stand for pages [first, end) of the file. */
static uint64_t reserved_bits(uint64_t chunk, uint64_t first, uint64_t end)
{
  uint64_t from = MAX(first, chunk * 64) - chunk * 64;
  uint64_t to = MIN(end, chunk * 64 + 64) - chunk * 64;

  return (to == 64 ? ~UINT64_C(0) : (UINT64_C(1) << to) - 1) & ~UINT64_C(0) << from;
}

int persist_reserve(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t first = offset >> PAGE_SHIFT;
  uint64_t end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  uint64_t from = end;          /* [from, to): from the first page that is missing to the last one */
  uint64_t to = end;
  /* What is reserved is stored to next: in a file that somebody has truncated that would be a SIGBUS. To ask for the end
   * costs half of what fstat(2) does, and each flush of new pages does it. */
  off_t size = lseek(p->fd, 0, SEEK_END);
  int ret = 0;

  if (size < 0)
    return fail_errno(errno, "%s: cannot get the size of the file", p->path);
  if ((uint64_t)size < offset + length)
    return fail(EUCLEAN, "%s: is truncated: ends at byte %jd, before byte %" PRIu64, p->path, (intmax_t)size,
                offset + length);
  ret = persist_alias(p, offset, length);
  if (ret)
    return ret;
  g_mutex_lock(&p->lock);
  for (uint64_t chunk = first / 64; chunk * 64 < end; chunk++) {
    uint64_t missing = reserved_bits(chunk, first, end) & ~reserved_get(p, chunk);

    if (!missing)
      continue;
    from = MIN(from, chunk * 64 + (uint64_t)__builtin_ctzll(missing));
    to = chunk * 64 + 64 - (uint64_t)__builtin_clzll(missing);
  }
  /* In one call, so that it is all or nothing: asking for what is there is harmless. */
  if (from < end)
    ret = persist_allocate(p, from << PAGE_SHIFT, (to - from) << PAGE_SHIFT);
  if (ret == 0 && from < end)
    ret = persist_probe(p, from << PAGE_SHIFT, (to - from) << PAGE_SHIFT);
  for (uint64_t chunk = from / 64; ret == 0 && from < end && chunk * 64 < to; chunk++)
    g_hash_table_replace(
      p->reserved, reserved_key(chunk),
      GSIZE_TO_POINTER((gsize)(reserved_get(p, chunk) | reserved_bits(chunk, from, to))));
  g_mutex_unlock(&p->lock);
  return ret;
}

int persist_reserve_ahead(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t first = offset >> PAGE_SHIFT;
  uint64_t end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  bool missing = false;

  g_mutex_lock(&p->lock);
  for (uint64_t chunk = first / 64; chunk * 64 < end && !missing; chunk++)
    missing = reserved_bits(chunk, first, end) & ~reserved_get(p, chunk);
  g_mutex_unlock(&p->lock);
  return missing ? persist_reserve(p, offset, length) : 0;
}

static gboolean reserved_forget(gpointer key, gpointer value, gpointer range)
{
  uint64_t chunk = GPOINTER_TO_SIZE(key);
  const uint64_t *chunks = range;

  (void)value;
  return chunk >= chunks[0] && chunk < chunks[1];
}

int persist_punch(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t chunks[2] = { offset >> CHUNK_SHIFT, ((offset + length - 1) >> CHUNK_SHIFT) + 1 };
  int ret;

  if (!length)
    return 0;
  g_mutex_lock(&p->lock);
  if (chunks[1] - chunks[0] > g_hash_table_size(p->reserved))
    g_hash_table_foreach_remove(p->reserved, reserved_forget, chunks);
  else
    for (uint64_t chunk = chunks[0]; chunk < chunks[1]; chunk++)
      g_hash_table_remove(p->reserved, reserved_key(chunk));
  g_mutex_unlock(&p->lock);
  ret = change_blocks(p, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  g_mutex_lock(&p->seek_lock);
  p->punches++;
  if (offset < p->data_to && offset + length > p->data_from)
    p->data_from = p->data_to = 0;
  g_mutex_unlock(&p->seek_lock);
  if (ret)
    return blocks_failed(p, ret, "punch holes", offset, length);
  atomic_fetch_add(&p->owed, 1);
  return 0;
}

int persist_clear(struct persist *p, uint64_t offset, uint64_t length)
{
  static const uint8_t zeros[64 << 10];
  uint64_t end = offset + length;
  int ret = 0;

  if (p->tmpfs || p->map_sync)
    return persist_punch(p, offset, length);
  while (ret == 0 && (offset = persist_seek(p, offset, end, true)) < end) {
    uint64_t stop = persist_seek(p, offset, end, false);

    for (uint64_t n; ret == 0 && offset < stop; offset += n) {
      n = MIN(stop - offset, sizeof(zeros));
      ret = persist_copy(p, offset, zeros, n);
    }
  }
  return ret;
}

int persist_grow(struct persist *p, uint64_t size)
{
  struct stat st;
  int ret = 0;

  g_mutex_lock(&p->lock); /* or the smaller of two growths could come last */
  if (fstat(p->fd, &st) < 0)
    ret = fail_errno(errno, "%s: cannot get the size of the file", p->path);
  else if ((uint64_t)st.st_size < size) {
    ret = change_size(p, size);
    if (ret == 0)
      atomic_fetch_add(&p->owed, 1);
    else if (ret == -EFBIG || ret == -EINVAL)
      ret = fail(EFBIG, "%s: the file system allows no file of %" PRIu64 " bytes", p->path, size);
    else
      ret = fail_errno(-ret, "%s: cannot grow the file to %" PRIu64 " bytes", p->path, size);
  }
  g_mutex_unlock(&p->lock);
  return ret;
}
