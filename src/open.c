/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening an image in its three ways - for writing, for reading one epoch, for information - and
 * closing it. A writing session that ends here leaves the image durable and marked clean.
 */
#include "image.h"

#include "error.h"
#include "lock.h"
#include "mapping.h"
#include "order.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define OPEN_FLAGS                                                                                 \
  (PCOW_OPEN_RDWR | PCOW_OPEN_INFO | PCOW_OPEN_NO_BASE | PCOW_OPEN_FORCE_BASE | PCOW_OPEN_BASES)

struct seen_file {
  dev_t dev;
  ino_t ino;
};

/* Superblock and log, lock-free: read again when a commit came between. */
static int open_info(struct pcow_image *image)
{
  struct seen_file self;
  struct stat st;
  uint64_t size;
  int ret;

  image->fd = base_path_open(&image->file, O_RDONLY, image->raw, &st);
  if (image->fd < 0)
    return image->fd;
  self = (struct seen_file){ st.st_dev, st.st_ino };
  for (unsigned i = 0; i < image->seen->len; i++) {
    const struct seen_file *s = &g_array_index(image->seen, struct seen_file, i);

    if (s->dev == self.dev && s->ino == self.ino)
      return fail(ELOOP, "%s: the chain of bases is cyclic, it comes back to this file", image->path);
  }
  if (image->seen->len > CHAIN_DEPTH_MAX)
    return fail(ELOOP, "%s: the chain of bases is longer than %d", image->path, CHAIN_DEPTH_MAX);
  g_array_append_val(image->seen, self);
  if (!image->raw)
    return layer_read_tree(image->fd, image->path, false, &image->sb, &image->epochs);
  ret = raw_size(image->fd, image->path, &st, &size);
  image->sb.virtual_size = size;
  return ret;
}

unsigned image_layer_flags(const struct pcow_image *image)
{
  return (image->flags & PCOW_OPEN_NO_BASE ? LAYER_NO_BASE : 0) |
         (image->flags & PCOW_OPEN_FORCE_BASE ? LAYER_FORCE_BASE : 0) |
         (image->base_named ? LAYER_NAMED_BASE : 0);
}

static int open_reading(struct pcow_image *image)
{
  int ret = layer_open_image(image->path, image->snapshot, image->policy, image_layer_flags(image),
                             &image->layer, &image->sb, &image->epochs);

  if (ret)
    return ret;
  image->runs = view_cache_new(image->layer, image->layer->geo->unit_pages);
  return 0;
}

static int open_writing(struct pcow_image *image)
{
  struct store *st;
  struct superblock before;
  struct stat status;
  int ret;
  int fd = base_path_open(&image->file, O_RDWR, false, &status);

  if (fd < 0)
    return fd;
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
  /* What the library itself reads of the file it reads page by page, as a map does (area_advise()), and not only
   * once there is one: to read ahead makes large folios, also over holes, and a later store through the map to one
   * of their pages gives blocks to all of them. */
  posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  ret = store_open(fd, image->path, &image->store);
  if (ret)
    return ret;

  st = image->store;
  image->epochs = st->epochs;
  image->layer = layer_new_top(st->fd, &image->file, &st->sb, image_view_beneath_head(st), NULL);
  if (!(image->flags & PCOW_OPEN_NO_BASE)) {
    ret = layer_open_base(&st->sb.base, image->layer, image->policy, image_layer_flags(image),
                          &image->layer->base);
    if (ret)
      return ret;
  }
  image->slots = slots_new(st);
  ret = head_new(st, image->slots, image->layer, &image->head);
  if (ret == 0 && before.dirty)
    log_message(PCOW_LOG_WARNING, "%s: was not closed cleanly; it is intact", image->path);
  if (ret == 0 && (before.dirty || epochs_pending(st->epochs, &st->sb)))
    ret = collect_run(image);
  return ret;
}

/* Takes over what is in FILE; POLICY is referenced. */
static struct pcow_image *image_new(struct base_path *file, struct base_policy *policy, unsigned flags)
{
  struct pcow_image *i = g_new0(struct pcow_image, 1);

  i->file = *file;
  i->path = i->file.path;
  memset(file, 0, sizeof(*file));
  i->policy = base_policy_ref(policy);
  i->flags = flags;
  i->fd = -1;
  i->maps = g_ptr_array_new();
  i->strings = g_ptr_array_new_with_free_func(g_free);
  i->seen = g_array_new(FALSE, FALSE, sizeof(struct seen_file));
  g_mutex_init(&i->maps_lock);
  g_mutex_init(&i->collecting);
  pthread_rwlock_init(&i->lock, NULL);  /* glibc's default prefers readers */
  return i;
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
  g_mutex_clear(&image->collecting);
  pthread_rwlock_destroy(&image->lock);
  g_ptr_array_unref(image->strings);
  g_array_unref(image->seen);
  g_free(image->snapshot);
  if (image->fd >= 0)
    close(image->fd);
  base_path_clear(&image->file);
  base_policy_unref(image->policy);
  g_free(image);
}

/* Opens what image_new() made; it is freed when that fails. */
static int image_open(struct pcow_image *i, pcow_image **image)
{
  int ret;

  if (i->flags & PCOW_OPEN_INFO)
    ret = open_info(i);
  else if (i->flags & PCOW_OPEN_RDWR)
    ret = open_writing(i);
  else
    ret = open_reading(i);
  if (ret)
    image_free(i);
  else
    *image = i;
  return ret;
}

int image_open_base(const struct base_path *file, struct base_policy *policy, unsigned flags,
                    pcow_image **image)
{
  struct base_path copy;

  base_path_copy(&copy, file);
  return image_open(image_new(&copy, policy, PCOW_OPEN_RDWR | flags), image);
}

API int pcow_open(const char *path, const struct pcow_open_options *options, pcow_image **image)
{
  struct pcow_open_options o = { 0 };
  struct base_policy *policy;
  struct base_path file;
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

  ret = base_policy_new(path, o.flags & PCOW_OPEN_BASES, o.base_dir, &policy);
  if (ret)
    return ret;
  base_path_name(&file, path);
  i = image_new(&file, policy, o.flags);
  base_policy_unref(policy);
  i->snapshot = g_strdup(o.snapshot);
  return image_open(i, image);
}

API int pcow_open_base(pcow_image *image, pcow_image **base)
{
  const struct base_ref *ref = &image->sb.base;
  struct base_path file;
  struct pcow_image *i;
  int ret;

  *base = NULL;
  if (!(image->flags & PCOW_OPEN_INFO))
    return fail(EINVAL, "%s: is not open for information only", image->path);
  if (ref->format == BASE_NONE)
    return fail(EINVAL, "%s: has no base", image->path);
  ret = base_path_follow(&file, &image->file, ref, image->policy, false);
  if (ret == 0) {
    i = image_new(&file, image->policy, PCOW_OPEN_INFO);
    i->raw = ref->format == BASE_RAW;
    g_array_append_vals(i->seen, image->seen->data, image->seen->len);
    ret = image_open(i, base);
  }
  base_path_clear(&file);
  if (ret)
    error_prefix("%s: cannot open its base", image->path);
  return ret;
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
  ret = ORDERED("14.7", persist_sync(st->p));
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
  int ret = 0, unmapped;

  if (!image)
    return 0;
  unmapped = mapping_close_all(image);
  if (image->store)
    ret = close_session(image);
  image_free(image);
  return ret ? ret : unmapped;
}
