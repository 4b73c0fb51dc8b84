/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opens, locks and identifies the files of a chain. A layer's content cannot change while it is open:
 * a frozen epoch is held by its lock byte, a head by the lock that its writer would need, a raw file
 * as well as its size and time of change can tell.
 */
#include "layer.h"

#include "error.h"
#include "fdpool.h"
#include "lock.h"
#include "order.h"
#include "persist.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READER_WAIT_MS 30000    /* for a deletion's commit, or a collector, to end */

/* Which epoch of a pcow file is wanted. */
struct wanted {
  const char *snapshot;         /* by name; else */
  uint32_t epoch;               /* by id; 0: the head */
  const struct base_ref *ref;   /* what it must be, or NULL */
};

/* Takes over what is in FILE. */
static struct layer *layer_alloc(struct base_path *file, enum base_format format, struct layer *above)
{
  struct layer *l = g_new0(struct layer, 1);

  l->format = format;
  l->file = *file;
  memset(file, 0, sizeof(*file));
  l->above = above;
  l->depth = above ? above->depth + 1 : 0;
  l->fd = -1;
  l->lru.data = l;
  g_mutex_init(&l->walk_mutex);
  return l;
}

void layer_close(struct layer *layer)
{
  while (layer) {
    struct layer *base = layer->base;

    fdpool_remove(layer);
    if (layer->pin)
      munmap(layer->pin, PAGE_BYTES);
    epoch_view_free(layer->view);
    g_mutex_clear(&layer->walk_mutex);
    base_path_clear(&layer->file);
    g_free(layer);
    layer = base;
  }
}

int layer_fd_get(struct layer *layer)
{
  return fdpool_get(layer);
}

void layer_fd_put(struct layer *layer)
{
  fdpool_put(layer);
}

int layer_walk_begin(struct layer *layer, int fd)
{
  int ret = 0;

  if (!layer->walk_lock)
    return 0;
  /* All threads of the handle are one owner to the kernel: the first takes it, the last gives it up. */
  g_mutex_lock(&layer->walk_mutex);
  if (layer->walkers == 0)
    ret = lock_wait(fd, layer->file.path, LOCK_WALK, LOCK_SHARED, READER_WAIT_MS);
  if (ret == 0)
    layer->walkers++;
  g_mutex_unlock(&layer->walk_mutex);
  if (ret == -EAGAIN)
    return fail(EBUSY, "%s: its writer collects freed space and does not finish", layer->file.path);
  return ret;
}

void layer_walk_end(struct layer *layer, int fd)
{
  if (!layer->walk_lock)
    return;
  g_mutex_lock(&layer->walk_mutex);
  if (--layer->walkers == 0)
    lock_try(fd, layer->file.path, LOCK_WALK, LOCK_NONE);
  g_mutex_unlock(&layer->walk_mutex);
}

/* Opens the file; refuses what cannot be a layer, and a file that is already above in the chain. The
 * descriptor, as of layer_fd_get(). */
static int open_file(struct layer *l, struct stat *st)
{
  int fd = base_path_open(&l->file, O_RDONLY, l->format == BASE_RAW, st);

  if (fd < 0)
    return fd;
  fdpool_add(l, fd);
  l->dev = st->st_dev;
  l->ino = st->st_ino;
  l->tmpfs = S_ISREG(st->st_mode) && persist_is_tmpfs(fd);
  l->dax = S_ISREG(st->st_mode) && persist_is_dax(fd);
  for (const struct layer *a = l->above; a; a = a->above)
    if (a->dev == l->dev && a->ino == l->ino)
      return fail(ELOOP, "%s: the chain of bases is cyclic, it comes back to this file", l->file.path);
  if (l->depth > CHAIN_DEPTH_MAX)
    return fail(ELOOP, "%s: the chain of bases is longer than %d", l->file.path, CHAIN_DEPTH_MAX);
  return layer_fd_get(l);
}

/* The open file, and with it its locks, outlives its descriptor. */
static int pin_file(struct layer *l, int fd)
{
  void *pin = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);

  if (pin == MAP_FAILED)
    return fail_errno(errno, "%s: cannot map", l->file.path);
  l->pin = pin;
  return 0;
}

int layer_read_tree(int fd, const char *path, bool writing, struct superblock *sb,
                    struct epochs **epochs)
{
  for (unsigned tries = 0;; tries++) {
    struct superblock again;
    int ret, load;

    ret = superblock_read(fd, path, writing, sb, NULL);
    if (ret)
      return ret;
    load = epochs_load(fd, path, sb, epochs);
    ret = superblock_read(fd, path, writing, &again, NULL);
    if (ret == 0 && (again.sequence == sb->sequence || tries > 100)) {
      if (load == 0 || again.sequence == sb->sequence)
        return load;
      ret = fail(EBUSY, "%s: is being changed too fast to be read", path);
    }
    if (load == 0)
      epochs_free(g_steal_pointer(epochs));     /* the caller frees what it finds there */
    if (ret)
      return ret;
  }
}

static struct epoch *find_epoch(const struct epochs *epochs, const struct wanted *w)
{
  struct epoch *e = w->snapshot ? epochs_find(epochs, w->snapshot) : epochs_get(epochs, w->epoch);

  return e && e->state == EPOCH_SNAPSHOT ? e : NULL;
}

static int no_such_epoch(const char *path, const struct wanted *w)
{
  if (w->snapshot)
    return fail(ENOENT, "%s: has no snapshot '%s'", path, w->snapshot);
  return fail(ESTALE, "%s: the snapshot that it served as a base was deleted", path);
}

/* Locks what is wanted and reads superblock and log as they are under the lock. */
static int lock_and_read(struct layer *l, int fd, const struct wanted *w, bool writing, struct superblock *sb,
                         struct epochs **epochs)
{
  struct epoch *e;
  int ret;

  if (!w->snapshot && !w->epoch) {
    ret = superblock_read(fd, l->file.path, writing, sb, NULL);
    if (ret)
      return ret;
    ret = lock_try(fd, l->file.path, LOCK_HEAD, LOCK_SHARED);
    if (ret == -EAGAIN)
      return fail(EBUSY, "%s: is open for writing, by another process or handle", l->file.path);
    /* No commit comes between the two: who would make it needs the lock. */
    if (ret == 0)
      ret = superblock_read(fd, l->file.path, writing, sb, NULL);
    if (ret == 0)
      ret = epochs_load(fd, l->file.path, sb, epochs);
    /* A session that was killed left content that a power failure could still take back. */
    if (ret == 0 && sb->dirty && ORDERED("base 5", fdatasync(fd)))
      ret = fail_errno(errno, "%s: cannot make a crashed session's data durable", l->file.path);
    if (ret)
      epochs_free(g_steal_pointer(epochs));
    return ret;
  }

  ret = layer_read_tree(fd, l->file.path, writing, sb, epochs);
  if (ret)
    return ret;
  e = find_epoch(*epochs, w);
  if (!e)
    ret = no_such_epoch(l->file.path, w);
  else
    l->epoch = e->id;
  epochs_free(g_steal_pointer(epochs));
  if (ret)
    return ret;

  /* Whoever deletes the snapshot holds its byte until the deletion is committed: what is seen after
   * the byte is ours stays. */
  ret = lock_wait(fd, l->file.path, LOCK_EPOCH(l->epoch), LOCK_SHARED, READER_WAIT_MS);
  if (ret == -EAGAIN)
    return fail(EBUSY, "%s: the snapshot is being deleted", l->file.path);
  if (ret)
    return ret;
  ret = layer_read_tree(fd, l->file.path, writing, sb, epochs);
  if (ret)
    return ret;
  e = epochs_get(*epochs, l->epoch);
  if (!e || e->state != EPOCH_SNAPSHOT) {
    epochs_free(g_steal_pointer(epochs));
    return no_such_epoch(l->file.path, w);
  }
  return 0;
}

/* Is this what the overlay was made over? */
static int check_identity(const struct layer *l, const struct superblock *sb, const struct epochs *epochs,
                          const struct base_ref *ref)
{
  if (memcmp(sb->uuid, ref->uuid, sizeof(ref->uuid)))
    return fail(ESTALE, "%s: is another image than the one that %s was made over (its UUID differs)",
                l->file.path, l->above->file.path);
  if (l->epoch) {
    const struct epoch *e = epochs_get(epochs, l->epoch);

    if (memcmp(e->guid, ref->guid, sizeof(ref->guid)))
      return fail(ESTALE, "%s: snapshot '%s' is another than the one that %s was made over", l->file.path,
                  e->name, l->above->file.path);
    return 0;
  }
  if (ref->tag.random && content_tag_equal(sb->tag, ref->tag))
    return 0;
  if (ref->accept.random && content_tag_equal(sb->tag, ref->accept))
    return 0;
  return fail(ESTALE, "%s: was changed after %s was made over it (its content tag differs)", l->file.path,
              l->above->file.path);
}

/* Shared by the layers of all chains. */
static const struct geometry *shared_geometry(unsigned unit_shift)
{
  static struct geometry all[UNIT_SHIFT_MAX + 1];
  static gsize made;

  if (g_once_init_enter(&made)) {
    for (unsigned shift = UNIT_SHIFT_MIN; shift <= UNIT_SHIFT_MAX; shift++)
      all[shift] = geometry_make(shift);
    g_once_init_leave(&made, 1);
  }
  return &all[unit_shift];
}

static void take_superblock(struct layer *l, const struct superblock *sb)
{
  l->slot_count = sb->slot_count;
  l->next_epoch = sb->next_epoch;
  l->geo = shared_geometry(sb->unit_shift);
}

/* SB gets the superblock, OUT_EPOCHS, when not NULL, the tree. */
static int open_pcow(struct base_path *file, const struct wanted *w, struct layer *above, unsigned flags,
                     struct layer **layer, struct superblock *sb, struct epochs **out_epochs)
{
  struct layer *l = layer_alloc(file, BASE_PCOW, above);
  struct epochs *epochs = NULL;
  const struct epoch *e;
  struct stat st;
  int fd = open_file(l, &st);
  int ret = fd;

  if (fd < 0)
    goto out;
  ret = lock_and_read(l, fd, w, flags & LAYER_WRITING, sb, &epochs);
  if (ret)
    goto out;
  take_superblock(l, sb);
  if (w->ref && !(flags & LAYER_FORCE_BASE)) {
    ret = check_identity(l, sb, epochs, w->ref);
    if (ret)
      goto out;
  }

  l->walk_lock = l->epoch != 0;
  if (l->epoch) {
    e = epochs_get(epochs, l->epoch);
    l->size = e->virtual_size;
    l->view = epoch_view_make(epochs, e->id, e->parent, e->virtual_size, e->floor, false);
  } else {
    l->size = sb->virtual_size;
    l->view = epoch_view_make(epochs, sb->head_epoch, sb->head_parent, sb->virtual_size, sb->head_floor,
                              false);
  }
  ret = pin_file(l, fd);
out:
  if (fd >= 0)
    layer_fd_put(l);
  if (ret) {
    epochs_free(epochs);
    layer_close(l);
    return ret;
  }
  if (out_epochs)
    *out_epochs = epochs;
  else
    epochs_free(epochs);
  *layer = l;
  return 0;
}

int raw_size(int fd, const char *path, const struct stat *st, uint64_t *size)
{
  *size = (uint64_t)st->st_size;
  if (S_ISBLK(st->st_mode) && ioctl(fd, BLKGETSIZE64, size))
    return fail_errno(errno, "%s: cannot get the size", path);
  return 0;
}

static int open_raw(struct base_path *file, const struct base_ref *ref, struct layer *above, unsigned flags,
                    struct layer **layer)
{
  struct layer *l = layer_alloc(file, BASE_RAW, above);
  uint64_t size = 0;
  struct stat st;
  int fd = open_file(l, &st);
  int ret = fd;

  if (fd < 0)
    goto out;
  ret = raw_size(fd, l->file.path, &st, &size);
  if (ret)
    goto out;
  /* While a commit into the file is under way it may be like anything. */
  if (ref && !ref->accept.random && !(flags & LAYER_FORCE_BASE)) {
    if (size != ref->raw_size)
      ret = fail(ESTALE, "%s: was changed after %s was made over it (its size was %" PRIu64
                 " bytes, is %" PRIu64 ")", l->file.path, above->file.path, ref->raw_size, size);
    else if (S_ISREG(st.st_mode) && (st.st_mtim.tv_sec != ref->raw_mtime_sec ||
                                     st.st_mtim.tv_nsec != ref->raw_mtime_nsec))
      ret = fail(ESTALE, "%s: was changed after %s was made over it (its modification time differs)",
                 l->file.path, above->file.path);
    if (ret)
      goto out;
  }
  l->size = (size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  ret = pin_file(l, fd);
out:
  if (fd >= 0)
    layer_fd_put(l);
  if (ret)
    layer_close(l);
  else
    *layer = l;
  return ret;
}

int layer_open_base(const struct base_ref *ref, struct layer *above, struct base_policy *policy,
                    unsigned flags, struct layer **base)
{
  struct layer *top = NULL;
  struct layer **link = &top;
  struct base_ref next;

  /* A loop and not a recursion: a chain may be a thousand long. */
  *base = NULL;
  while (ref->format != BASE_NONE) {
    struct wanted w = { .epoch = ref->epoch, .ref = ref };
    struct superblock sb;
    struct base_path file;
    int ret = base_path_follow(&file, &above->file, ref, policy, flags & LAYER_NAMED_BASE);

    if (ret == 0)
      ret = ref->format == BASE_RAW ? open_raw(&file, ref, above, flags, link)
                                    : open_pcow(&file, &w, above, flags & ~LAYER_WRITING, link, &sb, NULL);
    base_path_clear(&file);
    if (ret) {
      error_prefix("%s: cannot open its base", above->file.path);
      layer_close(top);
      return ret;
    }
    above = *link;
    if (above->format == BASE_RAW || (flags & LAYER_NO_BASE))
      break;
    flags &= ~LAYER_NAMED_BASE;
    next = sb.base;
    ref = &next;
    link = &above->base;
  }
  *base = top;
  return 0;
}

int layer_open_image(const char *path, const char *snapshot, struct base_policy *policy, unsigned flags,
                     struct layer **layer, struct superblock *sb, struct epochs **epochs)
{
  struct wanted w = { .snapshot = snapshot };
  struct epochs *tree = NULL;
  struct base_path file;
  struct layer *l;
  int ret;

  base_path_name(&file, path);
  ret = open_pcow(&file, &w, NULL, flags, &l, sb, &tree);
  if (ret)
    return ret;
  if (!(flags & LAYER_NO_BASE)) {
    ret = layer_open_base(&sb->base, l, policy, flags, &l->base);
    if (ret) {
      epochs_free(tree);
      layer_close(l);
      return ret;
    }
  }
  if (epochs)
    *epochs = tree;
  else
    epochs_free(tree);
  *layer = l;
  return 0;
}

int layer_describe_base(const char *image_path, const char *path, enum base_format format,
                        const char *snapshot, struct base_policy *policy, struct base_ref *ref,
                        uint64_t *size)
{
  g_autofree char *full = NULL;
  struct epochs *epochs = NULL;
  struct layer *l = NULL;
  int ret;

  memset(ref, 0, sizeof(*ref));
  if (!*path)
    return fail(EINVAL, "%s: the base path is empty", image_path);
  if (strlen(path) > BASE_PATH_MAX)
    return fail(ENAMETOOLONG, "%s: the base path is longer than %d bytes", image_path, BASE_PATH_MAX);
  if (format != BASE_PCOW && format != BASE_RAW)
    return fail(EINVAL, "%s: the format of base %s must be given, pcow or raw", image_path, path);
  if (format == BASE_RAW && snapshot)
    return fail(EINVAL, "%s: is a raw file and has no snapshot '%s'", path, snapshot);
  g_strlcpy(ref->path, path, sizeof(ref->path));
  ref->format = format;
  full = base_path_display(image_path, ref);

  if (format == BASE_RAW) {
    struct base_path file;
    struct stat st;

    base_path_name(&file, full);
    ret = open_raw(&file, NULL, NULL, 0, &l);
    if (ret)
      return ret;
    if (fstat(layer_fd_get(l), &st))
      ret = fail_errno(errno, "%s: cannot get the status", full);
    else
      ret = raw_size(l->fd, l->file.path, &st, &ref->raw_size);
    layer_fd_put(l);
    if (ret == 0) {
      ref->raw_mtime_sec = st.st_mtim.tv_sec;
      ref->raw_mtime_nsec = (uint32_t)st.st_mtim.tv_nsec;
    }
  } else {
    struct superblock sb;

    ret = layer_open_image(full, snapshot, policy, LAYER_NO_BASE, &l, &sb, &epochs);
    if (ret)
      return ret;
    /* Its own base is looked at, too: an image over a broken one could not be opened. */
    ret = layer_open_base(&sb.base, l, policy, LAYER_NO_BASE, &l->base);
    /* What is recorded here must not be taken back by a power failure there. */
    if (ret == 0) {
      if (ORDERED("recorded 5", fdatasync(layer_fd_get(l))))
        ret = fail_errno(errno, "%s: cannot be made durable", full);
      layer_fd_put(l);
    }
    memcpy(ref->uuid, sb.uuid, sizeof(ref->uuid));
    ref->epoch = l->epoch;
    if (l->epoch)
      memcpy(ref->guid, epochs_get(epochs, l->epoch)->guid, sizeof(ref->guid));
    else
      ref->tag = sb.tag;
    epochs_free(epochs);
  }
  if (ret == 0)
    *size = l->size;
  layer_close(l);
  return ret;
}

struct layer *layer_new_top(int fd, const struct base_path *file, const struct superblock *sb,
                            struct epoch_view *view, struct layer *base)
{
  struct base_path copy;
  struct layer *l;
  struct stat st;

  base_path_copy(&copy, file);
  l = layer_alloc(&copy, BASE_PCOW, NULL);
  l->own_fd = true;
  l->fd = fd;
  if (fstat(fd, &st) == 0) {
    l->dev = st.st_dev;
    l->ino = st.st_ino;
  }
  l->tmpfs = persist_is_tmpfs(fd);
  l->dax = persist_is_dax(fd);
  take_superblock(l, sb);
  l->size = sb->virtual_size;
  l->view = view;
  l->base = base;
  if (base)
    base->above = l;
  return l;
}
