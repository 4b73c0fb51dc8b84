/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Snapshots: each of create, delete and revert takes effect with exactly one commit, after everything
 * that it refers to is durable. Space is given back afterwards (collect.c).
 */
#include "image.h"

#include "error.h"
#include "lock.h"
#include "mapping.h"
#include "order.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

static int check_name(const struct pcow_image *image, const char *name)
{
  const char *fault = epoch_name_fault(name, strlen(name));

  return fault ? fail(EINVAL, "%s: the name of the snapshot %s", image->path, fault) : 0;
}

/* The head as the record of a snapshot. */
static int make_record(const struct store *st, const char *name, struct epoch *record)
{
  struct timespec now;
  ssize_t n;

  memset(record, 0, sizeof(*record));
  clock_gettime(CLOCK_REALTIME, &now);
  n = getrandom(record->guid, sizeof(record->guid), 0);
  if (n != sizeof(record->guid))
    return fail_errno(n < 0 ? errno : EIO, "%s: no random numbers for a GUID", st->path);
  record->id = st->sb.head_epoch;
  record->parent = st->sb.head_parent;
  record->state = EPOCH_SNAPSHOT;
  record->created_sec = now.tv_sec;
  record->created_nsec = (uint32_t)now.tv_nsec;
  record->virtual_size = st->sb.virtual_size;
  record->floor = st->sb.head_floor;
  g_strlcpy(record->name, name, sizeof(record->name));
  return 0;
}

static int next_head(const struct store *st, struct superblock *next, uint32_t parent, uint64_t size)
{
  if (next->next_epoch > EPOCH_ID_MAX)
    return fail(EMFILE, "%s: all epoch ids are used up", st->path);
  next->head_parent = parent;
  next->head_epoch = next->next_epoch++;
  next->virtual_size = size;
  next->head_floor = size;
  return 0;
}

/* The commit that freezes the head. What the head consists of is durable. */
static int freeze(struct pcow_image *image, const char *name)
{
  struct store *st = image->store;
  struct superblock next = store_begin(st);
  struct epoch record;
  uint64_t number = next.log_end;
  int ret = make_record(st, name, &record);

  if (ret == 0)
    ret = next_head(st, &next, record.id, next.virtual_size);
  if (ret == 0)
    ret = epochs_append(st->p, st->path, st->epochs, &next, &record, false);
  if (ret) {
    store_end(st, &next, false);
    return ret;
  }
  ret = store_end(st, &next, true);
  if (ret == 0)
    epochs_apply(st->epochs, &record, false, number);
  return ret;
}

API int pcow_snapshot_create(pcow_image *image, const char *name)
{
  bool committed = false;
  int ret;

  pthread_rwlock_wrlock(&image->lock);
  ret = image_check_writable(image);
  if (ret == 0)
    ret = check_name(image, name);
  if (ret == 0 && epochs_find(image->epochs, name))
    ret = fail(EEXIST, "%s: has a snapshot '%s' already", image->path, name);
  if (ret == 0)
    ret = head_settle(image->head);
  if (ret == 0) {
    /* Ordering: S.1 no store reaches the head any more. S.2 fence: what it holds is durable. S.3 the
     * record is durable. S.4 commit: a crash before it leaves the head as it was. */
    ret = mapping_snapshot_cut(image);
    if (ret == 0)
      ret = ORDERED("S.2", persist_fence(image->store->p));
    if (ret == 0)
      ret = freeze(image, name);
    committed = ret == 0;
    if (committed)
      ret = image_reload(image, NULL);
    if (mapping_snapshot_release(image, committed) && ret == 0)
      ret = fail(EIO, "%s: the snapshot is taken, but the mapping could not be set up again", image->path);
  }
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

/* Holds the epoch's lock byte against readers while the deletion is committed. */
static int mark_deleted(struct store *st, const struct epoch *e)
{
  struct epoch record = *e;
  struct superblock next;
  uint64_t number;
  int ret = lock_try(st->fd, st->path, LOCK_EPOCH(e->id), LOCK_EXCLUSIVE);

  if (ret == -EAGAIN)
    return fail(EBUSY, "%s: snapshot '%s' is being read and cannot be deleted", st->path, e->name);
  if (ret)
    return ret;
  record.state = EPOCH_DELETED;
  next = store_begin(st);
  number = next.log_end;
  ret = epochs_append(st->p, st->path, st->epochs, &next, &record, false);
  if (ret)
    store_end(st, &next, false);
  else
    ret = store_end(st, &next, true);
  if (ret == 0)
    epochs_apply(st->epochs, &record, false, number);
  lock_try(st->fd, st->path, LOCK_EPOCH(record.id), LOCK_NONE);
  return ret;
}

/* A snapshot to be changed. */
static int find_snapshot(struct pcow_image *image, const char *name, struct epoch **e)
{
  int ret = image_check_writable(image);

  if (ret)
    return ret;
  *e = epochs_find(image->epochs, name);
  return *e ? 0 : fail(ENOENT, "%s: has no snapshot '%s'", image->path, name);
}

API int pcow_snapshot_delete(pcow_image *image, const char *name)
{
  struct epoch *e;
  int ret;

  pthread_rwlock_wrlock(&image->lock);
  ret = find_snapshot(image, name, &e);
  if (ret == 0)
    ret = mark_deleted(image->store, e);
  pthread_rwlock_unlock(&image->lock);
  return ret ? ret : collect_run(image);
}

API int pcow_snapshot_revert(pcow_image *image, const char *name)
{
  struct store *st = image->store;
  struct superblock next;
  struct epoch *e;
  int ret;

  pthread_rwlock_wrlock(&image->lock);
  ret = find_snapshot(image, name, &e);
  if (ret == 0 && image->map)
    ret = fail(EBUSY, "%s: is mapped and cannot be reverted", image->path);
  if (ret == 0)
    ret = image_quiesce(image);
  if (ret == 0) {
    /* One commit: the new head sees the snapshot. The old head's epoch has no record: its slots are
     * garbage from here on. Overlays on the head must notice: a new content tag. */
    next = store_begin(st);
    next.tag = content_tag_next(next.tag);
    ret = next_head(st, &next, e->id, e->virtual_size);
    if (ret)
      store_end(st, &next, false);
    else
      ret = store_end(st, &next, true);
    if (ret == 0)
      image->uncollected = true;
    if (ret == 0)
      ret = image_reload(image, NULL);
  }
  pthread_rwlock_unlock(&image->lock);
  return ret ? ret : collect_run(image);
}

/* The nearest ancestor that is not deleted. */
static uint32_t living_parent(const struct epochs *epochs, uint32_t id)
{
  const struct epoch *e = id ? epochs_get(epochs, id) : NULL;

  while (e && e->state != EPOCH_SNAPSHOT)
    e = e->parent ? epochs_get(epochs, e->parent) : NULL;
  return e ? e->id : 0;
}

static gint compare_ids(gconstpointer a, gconstpointer b)
{
  const struct pcow_snapshot_info *x = a, *y = b;

  return x->id < y->id ? -1 : x->id > y->id;
}

API int pcow_snapshot_list(pcow_image *image, pcow_snapshot_fn fn, void *opaque)
{
  g_autoptr(GArray) list = g_array_new(FALSE, FALSE, sizeof(struct pcow_snapshot_info));
  g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
  g_autoptr(GPtrArray) snapshots = NULL;
  uint32_t current;
  int ret = 0;

  if (image->raw)
    return 0;
  /* Copied first: FN may call the library. */
  pthread_rwlock_rdlock(&image->lock);
  snapshots = epochs_snapshots(image->epochs);
  current = living_parent(image->epochs, image_superblock(image)->head_parent);
  for (unsigned i = 0; i < snapshots->len; i++) {
    const struct epoch *e = g_ptr_array_index(snapshots, i);
    struct pcow_snapshot_info info = {
      .size = sizeof(info),
      .id = e->id,
      .parent = living_parent(image->epochs, e->parent),
      .flags = e->id == current ? PCOW_SNAPSHOT_CURRENT : 0,
      .created_sec = e->created_sec,
      .created_nsec = e->created_nsec,
      .virtual_size = e->virtual_size,
      .name = g_strdup(e->name),
    };

    memcpy(info.guid, e->guid, sizeof(info.guid));
    g_ptr_array_add(names, (gpointer)info.name);
    g_array_append_val(list, info);
  }
  pthread_rwlock_unlock(&image->lock);

  g_array_sort(list, compare_ids);
  for (unsigned i = 0; ret == 0 && i < list->len; i++)
    ret = fn(opaque, &g_array_index(list, struct pcow_snapshot_info, i));
  return ret;
}
