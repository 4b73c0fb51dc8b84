/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading and writing without a map. While the image is mapped, what is written here is published at
 * once and mapped, so that both ways see the same bytes; buffers are bounced then, because they may
 * lie in the mapping itself, and a fault on them must find its unit unlocked.
 */
#include "image.h"

#include "error.h"
#include "mapping.h"

#include <string.h>

#define BOUNCE_BYTES (256u << 10)

API int pcow_pread(pcow_image *image, void *buffer, size_t count, uint64_t offset)
{
  uint8_t *out = buffer;
  uint64_t unit_bytes;
  int ret;

  pthread_rwlock_rdlock(&image->lock);
  unit_bytes = UINT64_C(1) << image_superblock(image)->unit_shift;
  ret = image_check_content(image);
  if (ret == 0)
    ret = image_check_range(image, offset, count);
  while (ret == 0 && count) {
    uint64_t unit = offset / unit_bytes;
    size_t n = MIN(count, (unit + 1) * unit_bytes - offset);

    if (image->store) {
      g_autofree uint8_t *bounce = NULL;
      struct unit *u;

      if (image->map) {
        n = MIN(n, BOUNCE_BYTES);
        bounce = g_try_malloc(n);
        if (!bounce) {
          ret = fail(ENOMEM, "%s: no memory for a buffer", image->path);
          break;
        }
      }
      u = head_lock_unit(image->head, unit, &ret);
      if (u) {
        ret = head_read(image->head, u, offset % unit_bytes, bounce ? bounce : out, n);
        if (ret == 0 && bounce)
          ret = mapping_overlay(image, u, offset % unit_bytes, bounce, n);
        head_unlock_unit(image->head, u);
      }
      if (ret == 0 && bounce)
        memcpy(out, bounce, n);
    } else {
      ret = view_cache_read(image->runs, offset, out, n);
    }
    out += n;
    offset += n;
    count -= n;
  }
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

/* One change within one unit; see change(). */
struct piece {
  enum { WRITE, ZERO, ZERO_KEEP } kind;
  const uint8_t *buffer;        /* WRITE */
};

static int change_unit(struct pcow_image *image, const struct piece *piece, struct unit *u, uint64_t offset,
                       uint64_t length)
{
  struct head *h = image->head;
  uint64_t first = offset >> PAGE_SHIFT;
  uint64_t end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  int ret = 0;

  if (piece->kind != ZERO && mapping_stores(image)) {
    g_autofree uint8_t *zeros = piece->kind == WRITE ? NULL : g_try_malloc0(length);

    if (piece->kind == WRITE || zeros)
      return mapping_store(image, u, offset, zeros ? zeros : piece->buffer, length);
    return fail(ENOMEM, "%s: no memory for zeros", image->path);
  }
  if (piece->kind != ZERO)
    ret = mapping_hold(image, u, first, end);
  if (ret == 0 && piece->kind == WRITE) {
    ret = head_write(h, u, offset, piece->buffer, length);
  } else if (ret == 0) {
    if (image->map && piece->kind == ZERO)
      ret = mapping_discard(image, u, first, end);
    if (ret == 0)
      ret = head_zero(h, u, first, end, piece->kind == ZERO_KEEP);
    /* The pages are as they were: so must be what the mapping shows. */
    if (ret && image->map && piece->kind == ZERO)
      mapping_undo_discard(image, u, first, end);
  }
  if (ret == 0 && image->map) {
    if (mapping_settles(image))
      ret = head_settle_unit(h, u);
    if (ret == 0 && piece->kind == ZERO)
      ret = mapping_discarded(image, u, first, end);
    if (ret == 0 && piece->kind != ZERO)
      ret = mapping_published(image, u, first, end);
  }
  return ret;
}

/* How much of [offset, offset + length) nobody has anything of: it is zeros as it is. Whole pages. */
static int skip_nothing(struct pcow_image *image, uint64_t offset, uint64_t length, uint64_t *skip)
{
  uint64_t page = offset >> PAGE_SHIFT, next = page;
  int ret = image_next(image, page, page + (length >> PAGE_SHIFT), &next);

  *skip = (next - page) << PAGE_SHIFT;
  return ret;
}

/* Applies PIECE to [offset, offset + length), unit by unit. The image lock is held for reading. */
static int change(struct pcow_image *image, struct piece piece, uint64_t offset, uint64_t length)
{
  uint64_t unit_bytes = image->store->geo.unit_bytes;
  uint64_t skip = 0;
  int ret = 0;

  if (piece.kind == ZERO && !image->map)
    ret = skip_nothing(image, offset, length, &skip);
  offset += skip;
  length -= skip;

  while (ret == 0 && length) {
    uint64_t unit = offset / unit_bytes;
    uint64_t n = MIN(length, (unit + 1) * unit_bytes - offset);
    g_autofree uint8_t *bounce = NULL;
    struct piece part = piece;
    struct unit *u;

    if (image->map && piece.kind == WRITE) {
      n = MIN(n, BOUNCE_BYTES);
      part.buffer = bounce = g_try_malloc(n);
      if (!bounce)
        return fail(ENOMEM, "%s: no memory for a buffer", image->path);
      memcpy(bounce, piece.buffer, n);
    }
    u = head_lock_unit(image->head, unit, &ret);
    if (!u)
      break;
    ret = change_unit(image, &part, u, offset % unit_bytes, n);
    head_unlock_unit(image->head, u);
    if (piece.kind == WRITE)
      piece.buffer += n;
    offset += n;
    length -= n;
    if (ret == 0 && piece.kind == ZERO && !image->map) {
      ret = skip_nothing(image, offset, length, &skip);
      offset += skip;
      length -= skip;
    }
  }
  return ret;
}

static int begin(struct pcow_image *image, uint64_t offset, uint64_t length)
{
  int ret = image_check_content(image);

  if (ret == 0)
    ret = image_check_writable(image);
  if (ret == 0)
    ret = image_check_range(image, offset, length);
  return ret ? ret : head_begin_session(image->head);
}

API int pcow_pwrite(pcow_image *image, const void *buffer, size_t count, uint64_t offset)
{
  struct piece piece = { WRITE, buffer };
  int ret;

  pthread_rwlock_rdlock(&image->lock);
  ret = begin(image, offset, count);
  if (ret == 0)
    ret = change(image, piece, offset, count);
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

static bool all_zero(const uint8_t *buffer, size_t length)
{
  return !length || (!buffer[0] && !memcmp(buffer, buffer + 1, length - 1));
}

/* Part of one page: written only when it does not read as zeros already. */
static int zero_part(struct pcow_image *image, uint64_t offset, uint64_t length)
{
  static const uint8_t zeros[PAGE_BYTES];
  uint64_t unit_bytes = image->store->geo.unit_bytes;
  uint8_t now[PAGE_BYTES];
  struct piece piece = { WRITE, zeros };
  struct unit *u;
  int ret;

  if (!length)
    return 0;
  u = head_lock_unit(image->head, offset / unit_bytes, &ret);
  if (!u)
    return ret;
  ret = head_read(image->head, u, offset % unit_bytes, now, length);
  if (ret == 0)
    ret = mapping_overlay(image, u, offset % unit_bytes, now, length);
  head_unlock_unit(image->head, u);
  if (ret || all_zero(now, length))
    return ret;
  return change(image, piece, offset, length);
}

static int zero_range(struct pcow_image *image, uint64_t offset, uint64_t length, bool keep_space)
{
  struct piece piece = { keep_space ? ZERO_KEEP : ZERO, NULL };
  uint64_t end = offset + length;
  uint64_t first = (offset + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  uint64_t last = end & ~(uint64_t)(PAGE_BYTES - 1);
  int ret;

  pthread_rwlock_rdlock(&image->lock);
  ret = begin(image, offset, length);
  if (ret == 0 && first > last) {
    ret = zero_part(image, offset, length);     /* within one page */
  } else if (ret == 0) {
    ret = zero_part(image, offset, first - offset);
    if (ret == 0 && first < last)
      ret = change(image, piece, first, last - first);
    if (ret == 0)
      ret = zero_part(image, last, end - last);
  }
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

API int pcow_discard(pcow_image *image, uint64_t offset, uint64_t length)
{
  return zero_range(image, offset, length, false);
}

API int pcow_write_zeroes(pcow_image *image, uint64_t offset, uint64_t length, uint32_t flags)
{
  if (flags & ~PCOW_ZERO_KEEP_SPACE)
    return fail(EINVAL, "%s: unknown flags 0x%x", image->path, flags & ~PCOW_ZERO_KEEP_SPACE);
  return zero_range(image, offset, length, flags & PCOW_ZERO_KEEP_SPACE);
}

API int pcow_sync(pcow_image *image)
{
  int ret;

  pthread_rwlock_rdlock(&image->lock);
  ret = image_check_writable(image);
  if (ret == 0)
    ret = mapping_sync(image);
  pthread_rwlock_unlock(&image->lock);
  return ret;
}
