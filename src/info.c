/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a handle tells about its image.
 */
#include "image.h"

#include "error.h"

#include <string.h>
#include <sys/stat.h>

/* Blocks and durability of the file: of the open one where there is one. */
static int file_info(struct pcow_image *image, struct pcow_info *info)
{
  struct stat st;
  int ret = 0;
  int fd = image->store ? image->store->fd : image->layer ? layer_fd_get(image->layer) : image->fd;

  if (fd < 0)
    return fd;
  if (fstat(fd, &st)) {
    ret = fail_errno(errno, "%s: cannot get the status", image->path);
  } else {
    info->allocated_size = (uint64_t)st.st_blocks * 512;
    info->durability = persist_detect(fd) == PERSIST_PMEM ? PCOW_STORE_DURABLE : PCOW_FLUSH_DURABLE;
  }
  if (!image->store && image->layer)
    layer_fd_put(image->layer);
  return ret;
}

/* What goes out stays valid until the handle is closed: each string is kept, once. Takes S over. */
static const char *keep_string(struct pcow_image *image, char *s)
{
  guint at;

  if (!s)
    return NULL;
  if (g_ptr_array_find_with_equal_func(image->strings, s, g_str_equal, &at)) {
    g_free(s);
  } else {
    at = image->strings->len;
    g_ptr_array_add(image->strings, s);
  }
  return g_ptr_array_index(image->strings, at);
}

/* The name of the base's snapshot, from the open base; else NULL. */
static char *base_snapshot_name(struct layer *base, const struct base_ref *ref)
{
  struct superblock sb;
  struct epochs *epochs;
  char *name = NULL;
  int fd = layer_fd_get(base);

  if (fd < 0)
    return NULL;
  if (layer_read_tree(fd, base->file.path, false, &sb, &epochs) == 0) {
    const struct epoch *e = epochs_get(epochs, ref->epoch);

    if (e && e->state == EPOCH_SNAPSHOT && memcmp(e->guid, ref->guid, sizeof(ref->guid)) == 0)
      name = g_strdup(e->name);
    epochs_free(epochs);
  }
  layer_fd_put(base);
  return name;
}

API int pcow_get_info(pcow_image *image, struct pcow_info *info)
{
  const struct superblock *sb = image_superblock(image);
  struct pcow_info full = { .format_version = PCOW_FORMAT_VERSION, .path = image->path };
  g_autoptr(GPtrArray) snapshots = NULL;
  int ret;

  ret = file_info(image, &full);
  if (ret)
    return ret;
  if (image->raw) {
    full.format_version = 0;
    full.virtual_size = image->sb.virtual_size;
    result_write(info, &full, sizeof(full));
    return 0;
  }
  pthread_rwlock_wrlock(&image->lock);  /* for the strings */
  snapshots = epochs_snapshots(image->epochs);
  full.deletions_pending = epochs_pending(image->epochs, sb);
  if (full.deletions_pending)
    full.flags |= PCOW_INFO_PENDING;
  if (sb->dirty)
    full.flags |= PCOW_INFO_DIRTY;
  full.virtual_size = image_size(image);
  full.unit_size = UINT64_C(1) << sb->unit_shift;
  full.sequence = sb->sequence;
  full.snapshot_count = snapshots->len;
  full.slot_count = sb->slot_count;
  memcpy(full.uuid, sb->uuid, sizeof(full.uuid));
  full.content_tag[0] = sb->tag.counter;
  full.content_tag[1] = sb->tag.random;
  full.base_format = sb->base.format;
  if (sb->base.format != BASE_NONE) {
    full.base = keep_string(image, g_strdup(sb->base.path));
    full.base_path = keep_string(image, base_path_display(image->path, &sb->base));
    if (sb->base.epoch && image->layer && image->layer->base)
      full.base_snapshot = keep_string(image, base_snapshot_name(image->layer->base, &sb->base));
    full.base_epoch = sb->base.epoch;
  }
  pthread_rwlock_unlock(&image->lock);
  result_write(info, &full, sizeof(full));
  return 0;
}
