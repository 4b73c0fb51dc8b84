/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The epoch log and the tree. What epochs_load() gives is a tree with one root, every parent present,
 * every name unique, every number within the format's limits. The ring never overwrites a record that
 * the superblock on the media refers to, and stays within a small multiple of what lives.
 *
 * The ring may begin at the oldest record that is the newest of its epoch: every epoch's newest record
 * is then within it, and so is the record that says an epoch is gone, if any older one of it is.
 */
#include "epochs.h"

#include "crc32c.h"
#include "error.h"
#include "order.h"
#include "slotwalk.h"

#include <string.h>

#define RECORD_BYTES sizeof(struct pcow_disk_epoch)
#define READ_RECORDS 256u       /* at a time */

/* With so many epochs the ring, which is copied on two records an append, stays within 7/8 of its
 * region: half of it before copying begins, and 3/2 of the epochs until it has gone round once. */
#define EPOCHS_MAX (EPOCH_LOG_RECORDS / 4)

/* A view of no more has no index: that would take more memory than everything else that a layer of a long
 * chain keeps, and be no faster. */
#define FEW_SIGHTS 8

struct pending {
  uint64_t number;
  bool gone;
  bool copy;                    /* the same record once more: epochs_apply() is not called for it */
};

static uint64_t record_offset(uint64_t number)
{
  return EPOCH_LOG_OFFSET + number % EPOCH_LOG_RECORDS * RECORD_BYTES;
}

static gpointer id_key(uint32_t id) { return GUINT_TO_POINTER(id); }

static int compare_numbers(gconstpointer a, gconstpointer b, gpointer data)
{
  uint64_t x = *(const uint64_t *)a;
  uint64_t y = *(const uint64_t *)b;

  (void)data;
  return (x > y) - (x < y);
}

static int compare_names(gconstpointer a, gconstpointer b)
{
  return strcmp(a, b);
}

static struct epochs *epochs_new(void)
{
  struct epochs *e = g_new0(struct epochs, 1);

  e->by_id = g_hash_table_new_full(NULL, NULL, NULL, g_free);
  e->by_name = g_tree_new(compare_names);
  e->by_number = g_tree_new_full(compare_numbers, NULL, NULL, NULL);
  e->pending = g_hash_table_new_full(NULL, NULL, NULL, g_free);
  return e;
}

void epochs_free(struct epochs *e)
{
  if (!e)
    return;
  g_hash_table_unref(e->pending);
  g_tree_unref(e->by_number);
  g_tree_unref(e->by_name);
  g_hash_table_unref(e->by_id);
  g_free(e);
}

/* ---- Records ---- */

static void record_encode(const struct epoch *record, bool gone, uint64_t number,
                          struct pcow_disk_epoch *disk)
{
  size_t length = strlen(record->name);

  memset(disk, 0, sizeof(*disk));
  disk->magic = le32_make(EPOCH_MAGIC);
  disk->id = le32_make(record->id);
  disk->parent = le32_make(record->parent);
  disk->state = le32_make(gone ? EPOCH_GONE : record->state);
  memcpy(disk->guid, record->guid, sizeof(disk->guid));
  disk->created_sec = le64_make((uint64_t)record->created_sec);
  disk->created_nsec = le32_make(record->created_nsec);
  disk->name_length = le32_make((uint32_t)length);
  disk->virtual_size = le64_make(record->virtual_size);
  disk->floor = le64_make(record->floor);
  memcpy(disk->name, record->name, length);
  disk->number = le64_make(number);
  disk->crc = le32_make(crc32c(disk, offsetof(struct pcow_disk_epoch, crc)));
}

const char *epoch_name_fault(const char *name, size_t length)
{
  if (!length)
    return "is empty";
  if (length > SNAPSHOT_NAME_MAX)
    return "is longer than 255 bytes";
  if (!g_utf8_validate(name, (gssize)length, NULL))
    return "is not valid UTF-8";
  for (const char *at = name; at < name + length; at = g_utf8_next_char(at))
    if (*at == '@' || g_unichar_iscntrl(g_utf8_get_char(at)))
      return "has a control character or '@' in it";
  return NULL;
}

static int record_decode(const char *path, const struct superblock *sb, uint64_t number,
                         const struct pcow_disk_epoch *disk, struct epoch *record)
{
  uint32_t length = le32_get(disk->name_length);
  const char *fault;

  if (le32_get(disk->magic) != EPOCH_MAGIC || le64_get(disk->number) != number ||
      le32_get(disk->crc) != crc32c(disk, offsetof(struct pcow_disk_epoch, crc)))
    return fail(EUCLEAN, "%s: record %" PRIu64 " of the epoch log is damaged", path, number);

  memset(record, 0, sizeof(*record));
  record->id = le32_get(disk->id);
  record->parent = le32_get(disk->parent);
  record->state = (enum epoch_state)le32_get(disk->state);
  memcpy(record->guid, disk->guid, sizeof(record->guid));
  record->created_sec = (int64_t)le64_get(disk->created_sec);
  record->created_nsec = le32_get(disk->created_nsec);
  record->virtual_size = le64_get(disk->virtual_size);
  record->floor = le64_get(disk->floor);
  record->number = number;

  if (record->id < 1 || record->id >= sb->next_epoch || record->id == sb->head_epoch ||
      record->parent >= sb->next_epoch || record->parent == record->id)
    return fail(EUCLEAN, "%s: record %" PRIu64 " of the epoch log: epoch %" PRIu32 " with parent %" PRIu32
                " is not valid", path, number, record->id, record->parent);
  if (record->state == EPOCH_GONE)
    return 0;
  if (record->state != EPOCH_SNAPSHOT && record->state != EPOCH_DELETED)
    return fail(EUCLEAN, "%s: epoch %" PRIu32 " has the unknown state %u", path, record->id,
                (unsigned)record->state);
  if (record->virtual_size == 0 || record->virtual_size % PAGE_BYTES ||
      record->virtual_size > UNITS_MAX << sb->unit_shift || record->floor % PAGE_BYTES ||
      record->floor > record->virtual_size || record->created_nsec >= 1000000000)
    return fail(EUCLEAN, "%s: epoch %" PRIu32 " has a size, floor or time that is out of range", path,
                record->id);
  fault = length || record->state == EPOCH_SNAPSHOT ? epoch_name_fault(disk->name, length) : NULL;
  if (fault)
    return fail(EUCLEAN, "%s: epoch %" PRIu32 " has a name that is not valid: it %s", path, record->id,
                fault);
  memcpy(record->name, disk->name, length);
  return 0;
}

/* ---- The tree in memory ---- */

struct epoch *epochs_get(const struct epochs *e, uint32_t id)
{
  return g_hash_table_lookup(e->by_id, id_key(id));
}

struct epoch *epochs_find(const struct epochs *e, const char *name)
{
  return g_tree_lookup(e->by_name, name);
}

static void index_add(struct epochs *e, struct epoch *epoch)
{
  g_tree_insert(e->by_number, &epoch->number, epoch);
  if (epoch->state == EPOCH_SNAPSHOT)
    g_tree_replace(e->by_name, epoch->name, epoch);
}

static void index_remove(struct epochs *e, struct epoch *epoch)
{
  g_tree_remove(e->by_number, &epoch->number);
  if (epochs_find(e, epoch->name) == epoch)
    g_tree_remove(e->by_name, epoch->name);
}

static int compare_ids(gconstpointer a, gconstpointer b)
{
  const struct epoch *x = *(struct epoch *const *)a;
  const struct epoch *y = *(struct epoch *const *)b;

  return (x->id > y->id) - (x->id < y->id);
}

GPtrArray *epochs_snapshots(const struct epochs *e)
{
  GPtrArray *array = g_ptr_array_new();

  for (GTreeNode *node = g_tree_node_first(e->by_name); node; node = g_tree_node_next(node))
    g_ptr_array_add(array, g_tree_node_value(node));
  g_ptr_array_sort(array, compare_ids);
  return array;
}

unsigned epochs_children(const struct epochs *e, const struct superblock *sb, uint32_t id)
{
  unsigned n = sb->head_parent == id;
  GHashTableIter iter;
  gpointer epoch;

  g_hash_table_iter_init(&iter, e->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &epoch))
    n += ((struct epoch *)epoch)->parent == id;
  return n;
}

/* Counts in BRANCHES, by id, the children of each epoch that live or that something living descends from;
 * ID is the parent of one. */
static void count_branch(const struct epochs *e, GHashTable *branches, uint32_t id)
{
  while (id) {
    gpointer key = GUINT_TO_POINTER(id);
    unsigned n = GPOINTER_TO_UINT(g_hash_table_lookup(branches, key));
    const struct epoch *epoch = epochs_get(e, id);

    g_hash_table_insert(branches, key, GUINT_TO_POINTER(n + 1));
    /* Counted already with those above it: when it was come by before, or for its own sake. */
    if (n || !epoch || epoch->state == EPOCH_SNAPSHOT)
      return;
    id = epoch->parent;
  }
}

unsigned epochs_pending(const struct epochs *e, const struct superblock *sb)
{
  g_autoptr(GHashTable) branches = g_hash_table_new(g_direct_hash, g_direct_equal);
  GHashTableIter iter;
  gpointer value;
  unsigned n = 0;

  count_branch(e, branches, sb->head_parent);
  g_hash_table_iter_init(&iter, e->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value))
    if (((struct epoch *)value)->state == EPOCH_SNAPSHOT)
      count_branch(e, branches, ((struct epoch *)value)->parent);
  g_hash_table_iter_init(&iter, e->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *epoch = value;

    n += epoch->state == EPOCH_DELETED &&
         GPOINTER_TO_UINT(g_hash_table_lookup(branches, GUINT_TO_POINTER(epoch->id))) < 2;
  }
  return n;
}

/* ---- Loading ---- */

/* Every way up ends at a root: epochs that are known to do so are collected in GOOD, so that each is
 * gone through once. */
static int check_acyclic(const struct epochs *e, const char *path)
{
  GHashTable *good = g_hash_table_new(NULL, NULL);
  unsigned total = g_hash_table_size(e->by_id);
  GHashTableIter iter;
  gpointer value;
  int ret = 0;

  g_hash_table_iter_init(&iter, e->by_id);
  while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *top = value;
    const struct epoch *stop = top;
    unsigned steps = 0;

    while (stop && steps <= total && !g_hash_table_contains(good, id_key(stop->id))) {
      stop = epochs_get(e, stop->parent);
      steps++;
    }
    if (steps > total)
      ret = fail(EUCLEAN, "%s: epoch %" PRIu32 " is among its own ancestors", path, stop->id);
    else
      for (; top != stop; top = epochs_get(e, top->parent))
        g_hash_table_add(good, id_key(top->id));
  }
  g_hash_table_unref(good);
  return ret;
}

static int validate_tree(struct epochs *e, const char *path, const struct superblock *sb)
{
  unsigned roots = sb->head_parent == 0;
  GHashTableIter iter;
  gpointer value;

  if (sb->head_parent && !epochs_get(e, sb->head_parent))
    return fail(EUCLEAN, "%s: the head's parent epoch %" PRIu32 " does not exist", path, sb->head_parent);
  g_hash_table_iter_init(&iter, e->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    struct epoch *epoch = value;

    roots += epoch->parent == 0;
    if (epoch->parent && !epochs_get(e, epoch->parent))
      return fail(EUCLEAN, "%s: epoch %" PRIu32 " has the parent %" PRIu32 ", which does not exist", path,
                  epoch->id, epoch->parent);
    if (epoch->state == EPOCH_SNAPSHOT && epochs_find(e, epoch->name))
      return fail(EUCLEAN, "%s: two snapshots have the name '%s'", path, epoch->name);
    index_add(e, epoch);
  }
  if (roots != 1)
    return fail(EUCLEAN, "%s: the tree of epochs has %u roots", path, roots);
  return check_acyclic(e, path);
}

static int load_records(struct epochs *e, int fd, const char *path, const struct superblock *sb,
                        struct pcow_disk_epoch *buffer)
{
  for (uint64_t number = sb->log_start; number < sb->log_end;) {
    uint64_t count = MIN(sb->log_end - number, READ_RECORDS);
    int ret;

    count = MIN(count, EPOCH_LOG_RECORDS - number % EPOCH_LOG_RECORDS);
    ret = file_read(fd, path, record_offset(number), buffer, count * RECORD_BYTES, false);
    for (uint64_t i = 0; ret == 0 && i < count; i++) {
      struct epoch record;

      ret = record_decode(path, sb, number + i, &buffer[i], &record);
      if (ret)
        break;
      if (record.state == EPOCH_GONE)
        g_hash_table_remove(e->by_id, id_key(record.id));
      else
        g_hash_table_replace(e->by_id, id_key(record.id), g_memdup2(&record, sizeof(record)));
    }
    if (ret)
      return ret;
    number += count;
  }
  return 0;
}

int epochs_load(int fd, const char *path, const struct superblock *sb, struct epochs **epochs)
{
  uint64_t records = MIN(sb->log_end - sb->log_start, READ_RECORDS);
  struct pcow_disk_epoch *buffer = g_new(struct pcow_disk_epoch, records);
  struct epochs *e = epochs_new();
  int ret = load_records(e, fd, path, sb, buffer);

  g_free(buffer);
  if (ret == 0)
    ret = validate_tree(e, path, sb);
  if (ret) {
    epochs_free(e);
    return ret;
  }
  *epochs = e;
  return 0;
}

/* ---- Views ---- */

struct epoch_view *epoch_view_make(const struct epochs *e, uint32_t id, uint32_t parent, uint64_t size,
                                   uint64_t floor, bool skip_self)
{
  struct epoch_sight sight = { .id = id, .limit = size };
  struct epoch_view *v;
  unsigned n = !skip_self;

  for (const struct epoch *epoch = epochs_get(e, parent); epoch; epoch = epochs_get(e, epoch->parent))
    n++;
  v = g_malloc0(sizeof(*v) + n * sizeof(v->sights[0]));
  if (!skip_self)
    v->sights[v->count++] = sight;
  sight.limit = MIN(size, floor);
  for (const struct epoch *epoch = epochs_get(e, parent); epoch; epoch = epochs_get(e, epoch->parent)) {
    sight.id = epoch->id;
    v->sights[v->count++] = sight;
    sight.limit = MIN(sight.limit, epoch->floor);
  }
  v->base_limit = sight.limit;
  if (v->count > FEW_SIGHTS)
    v->index = g_hash_table_new(NULL, NULL);
  for (unsigned i = 0; v->index && i < v->count; i++)
    g_hash_table_insert(v->index, id_key(v->sights[i].id), GUINT_TO_POINTER(i + 1));
  return v;
}

void epoch_view_free(struct epoch_view *v)
{
  if (!v)
    return;
  g_clear_pointer(&v->index, g_hash_table_unref);
  g_free(v);
}

uint64_t epoch_view_limit(const struct epoch_view *v, uint32_t id)
{
  unsigned i = 0;

  if (v->index) {
    i = GPOINTER_TO_UINT(g_hash_table_lookup(v->index, id_key(id)));
    return i ? v->sights[i - 1].limit : 0;
  }
  while (i < v->count && v->sights[i].id != id)
    i++;
  return i < v->count ? v->sights[i].limit : 0;
}

/* ---- Appending ---- */

/* The oldest epoch whose newest record is on the media, i.e. not among those just appended. */
static struct epoch *oldest_epoch(const struct epochs *e)
{
  GTreeNode *node = g_tree_node_first(e->by_number);

  while (node && g_hash_table_contains(e->pending, id_key(((struct epoch *)g_tree_node_value(node))->id)))
    node = g_tree_node_next(node);
  return node ? g_tree_node_value(node) : NULL;
}

static void raise_log_start(const struct epochs *e, struct superblock *sb)
{
  const struct epoch *oldest = oldest_epoch(e);
  uint64_t start = oldest ? oldest->number : sb->log_end;
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init(&iter, e->pending);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct pending *pending = value;

    if (!pending->gone)
      start = MIN(start, pending->number);
  }
  sb->log_start = MAX(sb->log_start, start);
}

static bool has_room(const struct epochs *e, const struct superblock *sb)
{
  return sb->log_end - e->committed_start < EPOCH_LOG_RECORDS;
}

static int write_record(struct persist *p, struct epochs *e, struct superblock *sb,
                        const struct epoch *record, bool gone, bool copy)
{
  uint64_t offset = record_offset(sb->log_end);
  struct pcow_disk_epoch disk;
  struct pending *pending;
  int ret;

  record_encode(record, gone, sb->log_end, &disk);
  ret = persist_reserve(p, offset, sizeof(disk));
  if (ret == 0)
    ret = persist_copy(p, offset, &disk, sizeof(disk));
  if (ret)
    return ret;
  pending = g_new(struct pending, 1);
  *pending = (struct pending){ .number = sb->log_end, .gone = gone, .copy = copy };
  g_hash_table_replace(e->pending, id_key(record->id), pending);
  sb->log_end++;
  raise_log_start(e, sb);
  return 0;
}

static gboolean pending_was_dropped(gpointer key, gpointer value, gpointer sb)
{
  (void)key;
  return ((struct pending *)value)->number >= ((struct superblock *)sb)->log_end;
}

int epochs_append(struct persist *p, const char *path, struct epochs *e, struct superblock *sb,
                  const struct epoch *record, bool gone)
{
  bool known;
  int ret;

  /* What is still pending although SB ends before it belongs to a commit that was given up. */
  g_hash_table_foreach_remove(e->pending, pending_was_dropped, sb);
  if (g_hash_table_size(e->pending) == 0)
    e->committed_start = sb->log_start;

  known = epochs_get(e, record->id) || g_hash_table_contains(e->pending, id_key(record->id));
  if (!known && !gone && g_hash_table_size(e->by_id) >= EPOCHS_MAX)
    return fail(EMFILE, "%s: has %u epochs already (deleted snapshots whose space is still to be"
                " collected count), there is no room for more", path, g_hash_table_size(e->by_id));
  if (sb->log_end > UINT64_MAX - 8)
    return fail(EMFILE, "%s: all numbers of epoch records are used up", path);
  if (!has_room(e, sb))
    return fail(EMFILE, "%s: the epoch log is full", path);
  ret = write_record(p, e, sb, record, gone, false);

  for (unsigned i = 0; ret == 0 && i < 2 && has_room(e, sb); i++) {
    uint64_t enough = MIN(4 * (uint64_t)g_hash_table_size(e->by_id) + 64, EPOCH_LOG_RECORDS / 2);
    const struct epoch *oldest = oldest_epoch(e);

    if (!oldest || sb->log_end - sb->log_start <= enough)
      break;
    ret = write_record(p, e, sb, oldest, false, true);
  }
  return ret ? ret : ORDERED("S.3", persist_fence(p));
}

static void set_number(struct epochs *e, struct epoch *epoch, uint64_t number)
{
  g_tree_remove(e->by_number, &epoch->number);
  epoch->number = number;
  g_tree_insert(e->by_number, &epoch->number, epoch);
}

void epochs_apply(struct epochs *e, const struct epoch *record, bool gone, uint64_t number)
{
  struct epoch *epoch = epochs_get(e, record->id);
  struct epoch copy = *record; /* may be EPOCH itself */
  GHashTableIter iter;
  gpointer key;
  gpointer value;

  g_hash_table_remove(e->pending, id_key(copy.id));
  if (epoch)
    index_remove(e, epoch);
  if (gone)
    g_hash_table_remove(e->by_id, id_key(copy.id));
  else {
    if (!epoch) {
      epoch = g_new(struct epoch, 1);
      g_hash_table_insert(e->by_id, id_key(copy.id), epoch);
    }
    *epoch = copy;
    epoch->number = number;
    index_add(e, epoch);
  }

  g_hash_table_iter_init(&iter, e->pending);
  while (g_hash_table_iter_next(&iter, &key, &value)) {
    const struct pending *pending = value;

    if (pending->copy) {
      epoch = epochs_get(e, GPOINTER_TO_UINT(key));
      if (epoch)
        set_number(e, epoch, pending->number);
      g_hash_table_iter_remove(&iter);
    }
  }
}
