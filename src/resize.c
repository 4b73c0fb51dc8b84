/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resizing the head. The new size, and with it a lower floor, take effect with one commit; what the
 * head's own slots hold above the smaller of both sizes is punched, after a shrink to give the space
 * back, before a growth because the growth makes it visible. Ancestors and the base are hidden there
 * by the floor. Only units in which the head has a slot cost anything.
 */
#include "error.h"
#include "image.h"
#include "mapping.h"
#include "order.h"

struct punch {
  struct store *s;
  uint64_t start;               /* bytes */
};

static int punch_unit(struct head *h, struct unit *u, void *opaque)
{
  const struct punch *punch = opaque;
  uint64_t unit_bytes = punch->s->geo.unit_bytes, unit_start = u->number * unit_bytes;
  uint64_t from = punch->start > unit_start ? punch->start - unit_start : 0;

  return persist_punch(punch->s->p, head_page_offset(h, u, from >> PAGE_SHIFT), unit_bytes - from);
}

/* Makes a durable hole of what the head's slots hold from byte START to the end of the unit that END
 * lies in. */
static int resize_punch(pcow_image *image, uint64_t start, uint64_t end)
{
  struct punch punch = { .s = image->store, .start = start };
  int r = head_foreach_unit(image->head, start, end, punch_unit, &punch);

  return r < 0 ? r : ORDERED("fence 12.6.1", persist_fence(image->store->p));
}

static int resize_commit(struct store *s, uint64_t size, uint64_t floor)
{
  struct superblock next = store_begin(s);

  next.virtual_size = size;
  next.head_floor = floor;
  return store_end(s, &next, true);
}

static int resize_shrink(pcow_image *image, uint64_t size)
{
  struct store *s = image->store;
  uint64_t old = s->sb.virtual_size;
  int r;

  /* Ordering (12.5): 1. The commit. 2. The space is given back. A crash in between leaves data above the
   * new end; nobody sees it, and a growth punches before it commits. */
  r = resize_commit(s, size, MIN(s->sb.head_floor, size));
  if (r == 0)
    r = image_reload(image, image->layer->base);
  if (r < 0)
    return r;
  r = resize_punch(image, size, old);
  if (r == 0 || persist_error(s->p))
    return r;
  /* The size is what was asked for, and a growth punches again: only space is lost meanwhile. */
  log_message(PCOW_LOG_WARNING, "%s: space beyond the new end is not given back: %s", image->path,
              error_message());
  return 0;
}

static int resize_grow(pcow_image *image, uint64_t size)
{
  struct store *s = image->store;
  uint64_t old = s->sb.virtual_size;
  int r, undone;

  /* Ordering (12.6): 1. Holes, durably. 2. The commit that lets them be seen. Presence bits that a shrink
   * left behind stay set: the pages read as zeros. */
  r = ORDERED("12.6.1", resize_punch(image, old, size));
  if (r == 0)
    r = resize_commit(s, size, s->sb.head_floor);
  if (r == 0)
    r = image_reload(image, image->layer->base);
  if (r < 0 || !image->map)
    return r;

  r = mapping_grow(image, old, size);
  if (r < 0) {
    /* Nobody has seen the new size yet: take it back, the floor never moved. */
    g_autofree char *message = g_strdup(error_message());

    undone = resize_commit(s, old, s->sb.head_floor);
    if (undone == 0)
      undone = image_reload(image, image->layer->base);
    if (undone == 0)
      fail(-r, "%s", message);
  }
  return r;
}

static int resize_locked(pcow_image *image, uint64_t size, uint32_t flags)
{
  struct store *s;
  uint64_t old;
  int r = image_check_writable(image);

  if (r < 0)
    return r;
  s = image->store;
  old = s->sb.virtual_size;
  if (size == 0)
    return fail(EINVAL, "%s: an image cannot have size 0", image->path);
  if (size > (UNITS_MAX << s->geo.unit_shift))
    return fail(EFBIG, "%s: size %" PRIu64 " is beyond the limit of %" PRIu64
                " bytes for units of %" PRIu64 " bytes", image->path, size,
                UNITS_MAX << s->geo.unit_shift, s->geo.unit_bytes);
  size = (size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  if (size == old)
    return 0;
  if (size < old && !(flags & PCOW_RESIZE_SHRINK))
    return fail(EINVAL, "%s: shrinking from %" PRIu64 " to %" PRIu64
                " bytes drops what lies beyond, and was not asked for", image->path, old, size);
  if (size < old && image->map)
    return fail(EBUSY, "%s: cannot shrink while mapped", image->path);

  /* An overlay over this head sees its size: the content tag counts for it, too. */
  r = head_begin_session(image->head);
  if (r == 0)
    r = head_settle(image->head);
  if (r < 0)
    return r;
  return size < old ? resize_shrink(image, size) : resize_grow(image, size);
}

API int pcow_resize(pcow_image *image, uint64_t virtual_size, uint32_t flags)
{
  int r;

  if (flags & ~PCOW_RESIZE_SHRINK)
    return fail(EINVAL, "%s: unknown flags 0x%x for a resize", image->path, flags);
  pthread_rwlock_wrlock(&image->lock);
  r = resize_locked(image, virtual_size, flags);
  pthread_rwlock_unlock(&image->lock);
  return r;
}
