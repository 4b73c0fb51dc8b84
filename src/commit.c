/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_commit(): what the head has of its own goes into its base, then the head begins anew, empty.
 * Until the last step the overlay keeps all that it wrote, and it accepts the base both as it was and
 * as it is becoming: a crash at any time leaves an overlay that opens and reads as before.
 */
#include "compare.h"
#include "error.h"
#include "image.h"
#include "order.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES (UINT64_C(64) << 20)
#define CHUNK_PAGES 64u
#define CHUNK_BYTES (CHUNK_PAGES * PAGE_BYTES)

/* The base while it is written. */
struct target {
  struct base_path file;
  const char *path;             /* file.path */
  pcow_image *image;            /* a pcow base; else */
  int fd;                       /* a raw base */
  bool fixed;                   /* a block device: its size cannot change */
  uint64_t size;                /* bytes */
};

/* ---- A raw base ---- */

static int raw_stat(const struct target *t, struct stat *st)
{
  return fstat(t->fd, st) ? fail_errno(errno, "%s: cannot get the status", t->path) : 0;
}

static int raw_open(struct target *t, const struct layer *layer, uint64_t size)
{
  struct stat st;

  t->fd = base_path_open(&t->file, O_RDWR, true, &st);
  if (t->fd < 0)
    return t->fd;
  if (st.st_dev != layer->dev || st.st_ino != layer->ino)
    return fail(ESTALE, "%s: was replaced by another file while it was open", t->path);
  t->size = (uint64_t)st.st_size;
  t->fixed = S_ISBLK(st.st_mode);
  if (t->fixed && ioctl(t->fd, BLKGETSIZE64, &t->size))
    return fail_errno(errno, "%s: cannot get the size", t->path);
  if (size <= ((t->size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1)))
    return 0;
  if (t->fixed)
    return fail(ENOSPC, "%s: has %" PRIu64 " bytes, but is to become %" PRIu64 " bytes long", t->path,
                t->size, size);
  if (ftruncate(t->fd, (off_t)size))
    return fail_errno(errno, "%s: cannot grow to %" PRIu64 " bytes", t->path, size);
  return 0;
}

static int raw_write(const struct target *t, const unsigned char *buffer, uint64_t length, uint64_t offset)
{
  /* A raw file need not end at a page: zeros beyond its end are there already. */
  while (offset + length > t->size && length && buffer[length - 1] == 0)
    length--;
  while (length) {
    ssize_t n = pwrite(t->fd, buffer, length, (off_t)offset);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return fail_errno(n < 0 ? errno : EIO, "%s: cannot write at byte %" PRIu64, t->path, offset);
    buffer += n;
    offset += (uint64_t)n;
    length -= (uint64_t)n;
  }
  return 0;
}

static int raw_zero(const struct target *t, uint64_t offset, uint64_t length)
{
  g_autofree unsigned char *zeros = NULL;
  int r = 0;

  if (fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0)
    return 0;
  if (errno != EOPNOTSUPP)
    return fail_errno(errno, "%s: cannot punch a hole at byte %" PRIu64, t->path, offset);
  zeros = g_try_malloc0(CHUNK_BYTES);
  if (!zeros)
    return fail(ENOMEM, "%s: no memory for zeros", t->path);
  for (uint64_t n; r == 0 && length; offset += n, length -= n) {
    n = MIN(length, CHUNK_BYTES);
    r = raw_write(t, zeros, n, offset);
  }
  return r;
}

/* ---- A base of either format ---- */

static int target_read(const struct target *t, void *buffer, uint64_t length, uint64_t offset)
{
  if (t->image)
    return pcow_pread(t->image, buffer, length, offset);
  return file_read(t->fd, t->path, offset, buffer, length, true);
}

static int target_write(const struct target *t, const unsigned char *buffer, uint64_t length,
                        uint64_t offset)
{
  if (t->image)
    return pcow_pwrite(t->image, buffer, length, offset);
  return raw_write(t, buffer, length, offset);
}

/* The part of the range that the base had reads as zeros afterwards; what it grew by does already. */
static int target_zero(const struct target *t, uint64_t offset, uint64_t end)
{
  end = MIN(end, t->size);
  if (offset >= end)
    return 0;
  if (t->image)
    return pcow_write_zeroes(t->image, offset, end - offset, 0);
  return raw_zero(t, offset, end - offset);
}

/* Opens the base, by the policy of the overlay's handle, as the one that REF describes; its session gets the tag that REF accepts. */
static int target_open(struct target *t, const pcow_image *overlay, const struct layer *raw,
                       const struct base_ref *ref, bool *begun)
{
  uint64_t size = overlay->store->sb.virtual_size;
  const struct superblock *sb;
  int r;

  *begun = ref->format == BASE_RAW;
  if (ref->format == BASE_RAW)
    return raw_open(t, raw, size);

  r = image_open_base(&t->file, overlay->policy, overlay->flags & PCOW_OPEN_FORCE_BASE, &t->image);
  if (r < 0)
    return r;
  sb = &t->image->store->sb;
  if (memcmp(sb->uuid, ref->uuid, sizeof ref->uuid) != 0 || !content_tag_equal(sb->tag, ref->tag))
    return fail(ESTALE, "%s: was changed by somebody else before the commit into it began", t->path);
  r = head_begin_session_with_tag(t->image->head, ref->accept);
  *begun = r == 0;
  t->size = sb->virtual_size;
  return r == 0 && size > t->size ? pcow_resize(t->image, size, 0) : r;
}

/* All that was written is durable; the base is closed in any case. For a raw base, REF learns what
 * the file is like now. */
static int target_close(struct target *t, struct base_ref *ref)
{
  struct stat st;
  int r = 0;

  if (t->image)
    r = pcow_close(t->image);
  if (t->fd >= 0) {
    if (ORDERED("raw 12.9.4", fsync(t->fd)))
      r = fail_errno(errno, "%s: cannot be made durable", t->path);
    else
      r = raw_stat(t, &st);
    if (r == 0) {
      ref->raw_size = t->fixed ? t->size : (uint64_t)st.st_size;
      ref->raw_mtime_sec = st.st_mtim.tv_sec;
      ref->raw_mtime_nsec = (uint32_t)st.st_mtim.tv_nsec;
    }
    close(t->fd);
  }
  t->image = NULL;
  t->fd = -1;
  return r;
}

/* ---- Copying ---- */

/* Pages of [offset, end) that the base has otherwise are written to it. */
static int copy_data(const struct target *t, const GArray *runs, uint64_t offset, uint64_t end,
                     unsigned char *buffer)
{
  unsigned char *other = buffer + CHUNK_BYTES;
  int r = 0;

  for (uint64_t n; r == 0 && offset < end; offset += n) {
    uint64_t there;

    n = MIN(end - offset, CHUNK_BYTES);
    there = offset < t->size ? MIN(n, t->size - offset) : 0;
    memset(other + there, 0, n - there);
    r = view_read(runs, offset, buffer, n);
    if (r == 0 && there)
      r = target_read(t, other, there, offset);
    for (uint64_t at = 0, stop; r == 0 && at < n; at = stop) {
      bool same = memcmp(buffer + at, other + at, PAGE_BYTES) == 0;

      for (stop = at + PAGE_BYTES; stop < n && (memcmp(buffer + stop, other + stop, PAGE_BYTES) == 0) == same;)
        stop += PAGE_BYTES;
      if (!same)
        r = target_write(t, buffer + at, stop - at, offset + at);
    }
  }
  return r;
}

static int copy_piece(pcow_image *image, const struct target *t, uint64_t start, uint64_t end,
                      GArray *runs, unsigned char *buffer)
{
  uint64_t base_limit = layer_base_limit(image->layer);
  int r;

  g_array_set_size(runs, 0);
  r = image_resolve(image, start >> PAGE_SHIFT, end >> PAGE_SHIFT, runs);
  for (unsigned i = 0; r == 0 && i < runs->len; i++) {
    const struct run *run = &g_array_index(runs, struct run, i);
    uint64_t first = run->page << PAGE_SHIFT, stop = (run->page + run->count) << PAGE_SHIFT;

    if (run->kind == RUN_DATA)
      r = copy_data(t, runs, first, stop, buffer);
    else if (run->kind == RUN_MASK)
      r = target_zero(t, first, stop);
    else /* the base is seen, but only up to the limit */
      r = target_zero(t, MAX(first, base_limit), stop);
  }
  return r;
}

static int copy_all(pcow_image *image, const struct target *t, pcow_progress_fn progress, void *opaque)
{
  g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct run));
  g_autofree unsigned char *buffer = g_try_malloc(2 * CHUNK_BYTES);
  uint64_t size = image->store->sb.virtual_size;
  int r = 0;

  if (!buffer)
    return fail(ENOMEM, "%s: no memory to copy pages", image->path);
  for (uint64_t start = 0, end; r == 0 && start < size; start = end) {
    if (progress && progress(opaque, start, size))
      return fail(ECANCELED, "%s: the commit was canceled", image->path);
    r = image_next(image, start >> PAGE_SHIFT, size >> PAGE_SHIFT, &end);
    end <<= PAGE_SHIFT;
    if (r == 0 && end > start) {
      r = target_zero(t, MAX(start, layer_base_limit(image->layer)), end); /* nobody has anything there */
      continue;
    }
    end = MIN(size, start + PIECE_BYTES);
    if (r == 0)
      r = copy_piece(image, t, start, end, runs, buffer);
  }
  if (r == 0 && progress && progress(opaque, size, size))
    return fail(ECANCELED, "%s: the commit was canceled", image->path);
  return r;
}

/* ---- The overlay ---- */

static int commit_reference(struct store *s, const struct base_ref *ref)
{
  struct superblock next = store_begin(s);

  next.base = *ref;
  return store_end(s, &next, true);
}

/* One commit: the reference says what the base is now, and the head is a new root epoch. No epoch has
 * a record any more, so that all slots are garbage. */
static int commit_empty_head(struct store *s, const struct base_ref *ref)
{
  g_autoptr(GList) ids = NULL;
  struct superblock next = store_begin(s);
  int r;

  next.base = *ref;
  next.head_epoch = next.next_epoch++;
  next.head_parent = 0;
  next.head_floor = next.virtual_size;
  next.log_start = next.log_end;
  r = store_end(s, &next, true);
  if (r < 0)
    return r;
  ids = g_hash_table_get_keys(s->epochs->by_id);
  for (GList *l = ids; l; l = l->next) {
    struct epoch gone = *epochs_get(s->epochs, GPOINTER_TO_UINT(l->data));

    epochs_apply(s->epochs, &gone, true, gone.number);
  }
  return 0;
}

/* Closes the chain beneath, and so gives up its locks. The head has no base then. */
static struct layer *detach_base(pcow_image *image)
{
  struct layer *base = image->layer->base;

  image->layer->base = NULL;
  head_reset(image->head, image->layer);
  return base;
}

/* Opens the chain beneath again. When that fails the handle has no content any more. */
static int attach_base(pcow_image *image, const struct base_ref *ref)
{
  struct layer *base;
  int r = layer_open_base(ref, image->layer, image->policy, image_layer_flags(image), &base);

  if (r < 0) {
    image->flags |= PCOW_OPEN_NO_BASE;
    return r;
  }
  image->layer->base = base;
  head_reset(image->head, image->layer);
  return 0;
}

static int commit_write(pcow_image *image, struct base_ref *ref, pcow_progress_fn progress, void *opaque)
{
  struct target target = { .fd = -1 };
  struct store *s = image->store;
  struct layer *old;
  bool begun;
  int r, closed;

  /* Ordering (12.9):
   * 1. The overlay says that it accepts what the base is about to become: the tag of its next session,
   *    or for a raw file any size and time of change. A crash from here on finds the base with either
   *    tag.
   * 2. The base is locked for writing; its session begins with that tag.
   * 3. Pages are written to it, and durable. The overlay still has all of them: what it shows does not
   *    depend on how far this came.
   * 4. The base is closed.
   * 5. One commit of the overlay: the base is what it is now, and the head is empty.
   * 6. The overlay's slots are garbage; their space is given back. */
  r = ORDERED("12.9.1", commit_reference(s, ref));
  if (r < 0)
    return r;
  old = detach_base(image);
  base_path_copy(&target.file, &old->file); /* it is written where, and as, it was read */
  target.path = target.file.path;
  if (ref->format == BASE_PCOW)
    layer_close(g_steal_pointer(&old));
  r = target_open(&target, image, old, ref, &begun);
  layer_close(old);
  if (r == 0)
    r = copy_all(image, &target, progress, opaque);
  closed = target_close(&target, ref);
  base_path_clear(&target.file);
  if (closed < 0)
    return closed;
  if (begun && ref->format == BASE_PCOW)
    ref->tag = ref->accept;
  memset(&ref->accept, 0, sizeof ref->accept);
  return r;
}

static int commit_check(pcow_image *image)
{
  const struct superblock *sb;
  g_autoptr(GPtrArray) snapshots = NULL;
  int r = image_check_writable(image);

  if (r == 0)
    r = image_check_content(image);
  if (r < 0)
    return r;
  sb = &image->store->sb;
  if (sb->base.format == BASE_NONE)
    return fail(EINVAL, "%s: has no base to commit into", image->path);
  if (image->map)
    return fail(EBUSY, "%s: cannot be committed while mapped", image->path);
  snapshots = epochs_snapshots(image->store->epochs);
  if (snapshots->len)
    return fail(EBUSY, "%s: has %u snapshots, which would change content with the base", image->path,
                snapshots->len);
  if (sb->base.format == BASE_PCOW && sb->base.epoch)
    return fail(EROFS, "%s: the base %s is a snapshot, which cannot be written", image->path,
                image->layer->base->file.path);
  if (sb->next_epoch >= EPOCH_ID_MAX)
    return fail(EMFILE, "%s: has used all epoch numbers", image->path);
  return 0;
}

/* What the base is now: after a commit that was cut short it has the tag that was accepted then. Its layer
 * holds the lock that a writer would need. It is opened again, and so refused here if it was moved out of
 * reach. */
static int take_identity(const struct layer *base, struct base_ref *ref)
{
  struct superblock sb;
  struct stat st;
  int fd, r;

  if (ref->format != BASE_PCOW)
    return 0;
  fd = base_path_open(&base->file, O_RDONLY, false, &st);
  if (fd < 0)
    return fd;
  if (st.st_dev != base->dev || st.st_ino != base->ino)
    r = fail(ESTALE, "%s: was replaced by another file while it was open", base->file.path);
  else
    r = superblock_read(fd, base->file.path, false, &sb, NULL);
  close(fd);
  if (r < 0)
    return r;
  memcpy(ref->uuid, sb.uuid, sizeof ref->uuid);
  ref->tag = sb.tag;
  return 0;
}

static int commit_locked(pcow_image *image, pcow_progress_fn progress, void *opaque)
{
  g_autofree char *message = NULL;
  struct base_ref ref;
  int r = commit_check(image), attached;

  if (r == 0)
    r = image_quiesce(image);
  if (r < 0)
    return r;

  ref = image->store->sb.base;
  r = take_identity(image->layer->base, &ref);
  if (r < 0)
    return r;
  ref.accept = content_tag_next(ref.tag);
  r = commit_write(image, &ref, progress, opaque);
  if (r < 0)
    message = g_strdup(error_message());

  attached = attach_base(image, &ref);
  if (r == 0 && attached == 0)
    r = commit_empty_head(image->store, &ref);
  else if (attached == 0 && store_check(image->store) == 0)
    commit_reference(image->store, &ref);
  if (message)
    return fail(-r, "%s", message);
  if (r == 0)
    r = attached;
  if (r == 0)
    image->uncollected = true;
  return r ? r : image_reload(image, image->layer->base);
}

API int pcow_commit(pcow_image *image, pcow_progress_fn progress, void *opaque)
{
  int r;

  pthread_rwlock_wrlock(&image->lock);
  r = commit_locked(image, progress, opaque);
  pthread_rwlock_unlock(&image->lock);
  return r ? r : collect_run(image);
}
