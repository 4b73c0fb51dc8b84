/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening an image in its three ways - for writing, for reading one epoch, for information - and
 * closing it. A writing session that ends here leaves the image durable and marked clean.
 */
#include "image.h"

#include "error.h"
#include "lock.h"
#include "mapping.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_FLAGS (PCOW_OPEN_RDWR | PCOW_OPEN_INFO | PCOW_OPEN_NO_BASE | PCOW_OPEN_FORCE_BASE)

/* Superblock and log, lock-free: read again when a commit came between. */
static int open_info(struct pcow_image *image)
{
  int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  int ret;

  if (fd < 0)
    return fail_errno(errno, "%s: cannot open", image->path);
  ret = layer_read_tree(fd, image->path, false, &image->sb, &image->epochs);
  close(fd);
  return ret;
}

static unsigned layer_flags(const struct pcow_image *image)
{
  return (image->flags & PCOW_OPEN_NO_BASE ? LAYER_NO_BASE : 0) |
         (image->flags & PCOW_OPEN_FORCE_BASE ? LAYER_FORCE_BASE : 0);
}

static int open_reading(struct pcow_image *image)
{
  int ret = layer_open_image(image->path, image->snapshot, layer_flags(image), &image->layer,
                             &image->epochs);

  if (ret)
    return ret;
  image->sb = image->layer->sb;
  image->runs = view_cache_new(image->layer, image->layer->geo.unit_pages);
  return 0;
}

static bool collection_is_due(const struct store *st, bool was_dirty)
{
  GHashTableIter iter;
  gpointer value;

  if (was_dirty)
    return true;
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value))
    if (((struct epoch *)value)->state == EPOCH_DELETED)
      return true;
  return false;
}

static int open_writing(struct pcow_image *image)
{
  struct store *st;
  struct superblock before;
  struct stat status;
  int ret;
  int fd = open(image->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);

  if (fd < 0)
    return fail_errno(errno, "%s: cannot open for writing", image->path);
  if (fstat(fd, &status) == 0 && !S_ISREG(status.st_mode)) {
    close(fd);
    return fail(S_ISDIR(status.st_mode) ? EISDIR : EINVAL, "%s: is not a regular file", image->path);
  }
  ret = superblock_read(fd, image->path, true, &before, NULL);
  if (ret == 0)
    ret = lock_try(fd, image->path, LOCK_HEAD, LOCK_EXCLUSIVE);
  if (ret == -EAGAIN)
    ret = fail(EBUSY, "%s: is in use by another process or handle", image->path);
  if (ret == 0)
    ret = superblock_read(fd, image->path, true, &before, NULL);
  if (ret) {
    close(fd);
    return ret;
  }
  ret = store_open(fd, image->path, &image->store);
  if (ret)
    return ret;

  st = image->store;
  image->epochs = st->epochs;
  image->layer = layer_new_top(st->fd, st->path, &st->sb, image_view_beneath_head(st), NULL);
  if (!(image->flags & PCOW_OPEN_NO_BASE)) {
    ret = layer_open_base(image->path, &st->sb.base, image->layer, layer_flags(image),
                          &image->layer->base);
    if (ret)
      return ret;
  }
  image->slots = slots_new(st);
  ret = head_new(st, image->slots, image->layer, &image->head);
  if (ret == 0 && before.dirty)
    log_message(PCOW_LOG_WARNING, "%s: was not closed cleanly; it is intact", image->path);
  if (ret == 0 && collection_is_due(st, before.dirty))
    ret = collect_run(image);
  return ret;
}

static void image_free(struct pcow_image *image)
{
  head_free(image->head);
  slots_free(image->slots);
  view_cache_free(image->runs);
  layer_close(image->layer);
  if (image->store)
    store_close(image->store);
  else
    epochs_free(image->epochs);
  g_ptr_array_unref(image->maps);
  g_mutex_clear(&image->maps_lock);
  pthread_rwlock_destroy(&image->lock);
  g_ptr_array_unref(image->strings);
  g_free(image->snapshot);
  g_free(image->full_path);
  g_free(image->path);
  g_free(image);
}

API int pcow_open(const char *path, const struct pcow_open_options *options, pcow_image **image)
{
  struct pcow_open_options o = { 0 };
  struct pcow_image *i;
  int ret = 0;

  *image = NULL;
  if (options)
    ret = options_read(options, sizeof(size_t), &o, sizeof(o));
  if (ret)
    return ret;
  if (o.flags & ~OPEN_FLAGS)
    return fail(EINVAL, "%s: unknown open flags 0x%x", path, o.flags & ~OPEN_FLAGS);
  if ((o.flags & PCOW_OPEN_RDWR) && (o.snapshot || (o.flags & PCOW_OPEN_INFO)))
    return fail(EINVAL, "%s: a snapshot, or information only, cannot be opened for writing", path);
  if (o.snapshot && (o.flags & PCOW_OPEN_INFO))
    return fail(EINVAL, "%s: information is about the image, not about one snapshot", path);

  i = g_new0(struct pcow_image, 1);
  i->path = g_strdup(path);
  i->full_path = g_canonicalize_filename(path, NULL);
  i->snapshot = g_strdup(o.snapshot);
  i->flags = o.flags;
  i->maps = g_ptr_array_new();
  i->strings = g_ptr_array_new_with_free_func(g_free);
  g_mutex_init(&i->maps_lock);
  pthread_rwlock_init(&i->lock, NULL);  /* glibc's default prefers readers */
  if (o.flags & PCOW_OPEN_INFO)
    ret = open_info(i);
  else if (o.flags & PCOW_OPEN_RDWR)
    ret = open_writing(i);
  else
    ret = open_reading(i);
  if (ret) {
    image_free(i);
    return ret;
  }
  *image = i;
  return 0;
}

/* Ends a writing session: everything is durable, then the image is marked clean. */
static int close_session(struct pcow_image *image)
{
  struct store *st = image->store;
  struct superblock next;
  int ret = store_check(st);

  if (ret == 0)
    ret = head_settle(image->head);
  if (ret || !st->sb.dirty)
    return ret;
  /* The tag stands for the data, too: also for stores that nobody has flushed. */
  ret = persist_sync(st->p);
  if (ret)
    return ret;
  /* An image that is not clean is swept when it is opened next. */
  if (image->uncollected)
    return 0;
  next = store_begin(st);
  next.dirty = false;
  return store_end(st, &next, true);
}

API int pcow_close(pcow_image *image)
{
  int ret = 0;

  if (!image)
    return 0;
  mapping_close_all(image);
  if (image->store)
    ret = close_session(image);
  image_free(image);
  return ret;
}
