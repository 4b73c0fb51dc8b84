/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The epoch log: what was committed is what is loaded, through random changes, commits that are given
 * up, and the ring's wrap; the ring stays small while it is used; views and their limits; logs that are
 * refused. In emulated persistent memory, as the ring's rules do not depend on the mode.
 */
#include "epochs.h"
#include "ground.h"

/* ---- An image that has only a superblock and a log ---- */

struct log {
  int fd;
  struct persist *p;
  struct superblock sb;         /* as committed */
  struct epochs *e;
};

static void log_open(struct log *log, uint64_t start)
{
  set_mode(PERSIST_PMEM);
  log->sb = image_state();
  log->sb.log_start = log->sb.log_end = start;
  log->fd = image_file(&log->sb);
  ck_assert_int_eq(persist_open(log->fd, IMAGE_NAME, &log->p), 0);
  ck_assert_int_eq(epochs_load(log->fd, IMAGE_NAME, &log->sb, &log->e), 0);
}

static void log_close(struct log *log)
{
  epochs_free(log->e);
  persist_close(log->p);
  close(log->fd);
}

/* Only in memory: what a superblock's commit does is test-superblock's matter, and takes longest. */
static void commit(struct log *log, struct superblock next)
{
  log->sb = next;
}

/* What a reader that opens the image now gets: must be what is in memory. */
static void assert_loads_the_same(struct log *log)
{
  struct epochs *loaded;
  GHashTableIter iter;
  gpointer value;

  ck_assert_msg(epochs_load(log->fd, IMAGE_NAME, &log->sb, &loaded) == 0, "%s", error_message());
  ck_assert_uint_eq(g_hash_table_size(loaded->by_id), g_hash_table_size(log->e->by_id));
  g_hash_table_iter_init(&iter, loaded->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *a = value;
    const struct epoch *b = epochs_get(log->e, a->id);

    /* Check writes a message to a file for each assertion that holds: too slow for this many. */
    if (!b || a->number != b->number || a->parent != b->parent || a->state != b->state ||
        a->virtual_size != b->virtual_size || a->floor != b->floor ||
        a->created_sec != b->created_sec || a->created_nsec != b->created_nsec ||
        memcmp(a->guid, b->guid, sizeof(a->guid)) || strcmp(a->name, b->name) ||
        a->number < log->sb.log_start)
      ck_abort_msg("epoch %u ('%s') is not what it is in memory", a->id, a->name);
  }
  epochs_free(loaded);
}

/* The head freezes: as pcow_snapshot_create() does it. */
static int freeze(struct log *log, const char *name, bool give_up)
{
  struct superblock next = log->sb;
  struct epoch record = {
    .id = next.head_epoch,
    .parent = next.head_parent,
    .state = EPOCH_SNAPSHOT,
    .created_sec = -(int64_t)next.head_epoch,
    .created_nsec = 999999999,
    .virtual_size = next.virtual_size,
    .floor = next.head_floor,
  };
  uint64_t number = next.log_end;
  int ret;

  memset(record.guid, (int)next.head_epoch, sizeof(record.guid));
  g_strlcpy(record.name, name, sizeof(record.name));
  next.head_parent = next.head_epoch;
  next.head_epoch = next.next_epoch++;
  next.head_floor = next.virtual_size;
  ret = epochs_append(log->p, IMAGE_NAME, log->e, &next, &record, false);
  if (ret || give_up)
    return ret;
  commit(log, next);
  epochs_apply(log->e, &record, false, number);
  return 0;
}

/* A snapshot is deleted and its epoch collected, in one commit: its children go to its parent. */
static void remove_epoch(struct log *log, uint32_t id, bool give_up)
{
  struct superblock next = log->sb;
  struct epoch gone = *epochs_get(log->e, id);
  GArray *changed = g_array_new(FALSE, FALSE, sizeof(struct epoch));
  uint64_t gone_number;
  GHashTableIter iter;
  gpointer value;

  if (next.head_parent == id)
    next.head_parent = gone.parent;
  g_hash_table_iter_init(&iter, log->e->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value))
    if (((struct epoch *)value)->parent == id)
      g_array_append_vals(changed, value, 1);
  for (unsigned i = 0; i < changed->len; i++) {
    struct epoch *child = &g_array_index(changed, struct epoch, i);

    child->parent = gone.parent;
    child->number = next.log_end;
    ck_assert_int_eq(epochs_append(log->p, IMAGE_NAME, log->e, &next, child, false), 0);
  }
  gone_number = next.log_end;
  ck_assert_int_eq(epochs_append(log->p, IMAGE_NAME, log->e, &next, &gone, true), 0);
  if (!give_up) {
    commit(log, next);
    for (unsigned i = 0; i < changed->len; i++) {
      struct epoch *child = &g_array_index(changed, struct epoch, i);

      epochs_apply(log->e, child, false, child->number);
    }
    epochs_apply(log->e, &gone, true, gone_number);
  }
  g_array_unref(changed);
}

static void mark_deleted(struct log *log, uint32_t id)
{
  struct superblock next = log->sb;
  struct epoch record = *epochs_get(log->e, id);
  uint64_t number = next.log_end;

  record.state = EPOCH_DELETED;
  ck_assert_int_eq(epochs_append(log->p, IMAGE_NAME, log->e, &next, &record, false), 0);
  ck_assert_ptr_eq(epochs_find(log->e, record.name), epochs_get(log->e, id)); /* not applied yet */
  commit(log, next);
  epochs_apply(log->e, &record, false, number);
  ck_assert_ptr_null(epochs_find(log->e, record.name));
}

static void revert(struct log *log, uint32_t id)
{
  struct superblock next = log->sb;
  const struct epoch *target = epochs_get(log->e, id);

  next.head_parent = id;
  next.head_epoch = next.next_epoch++;
  next.virtual_size = next.head_floor = target->virtual_size;
  commit(log, next);
}

/* ---- Tree ---- */

START_TEST(tree)
{
  static const uint32_t expected[] = { 1, 2, 4 };
  struct log log;
  GPtrArray *list;

  log_open(&log, 0);
  assert_loads_the_same(&log);
  ck_assert_ptr_null(epochs_get(log.e, 1));
  ck_assert_ptr_null(epochs_find(log.e, "a"));
  freeze(&log, "a", false);  /* 1; head 2 */
  freeze(&log, "b", false);  /* 2 over 1; head 3 */
  revert(&log, 1);           /* head 4 over 1 */
  freeze(&log, "ü", false);  /* 4 over 1; head 5 */
  assert_loads_the_same(&log);
  ck_assert_uint_eq(epochs_find(log.e, "ü")->id, 4);
  ck_assert_uint_eq(epochs_get(log.e, 4)->parent, 1);
  ck_assert_uint_eq(epochs_children(log.e, &log.sb, 0), 1);
  ck_assert_uint_eq(epochs_children(log.e, &log.sb, 1), 2);
  ck_assert_uint_eq(epochs_children(log.e, &log.sb, 2), 0);
  ck_assert_uint_eq(epochs_children(log.e, &log.sb, 4), 1); /* the head */

  list = epochs_snapshots(log.e);
  ck_assert_uint_eq(list->len, 3);
  for (unsigned i = 0; i < 3; i++)
    ck_assert_uint_eq(((struct epoch *)list->pdata[i])->id, expected[i]);
  g_ptr_array_unref(list);

  mark_deleted(&log, 1);
  assert_loads_the_same(&log);
  list = epochs_snapshots(log.e);
  ck_assert_uint_eq(list->len, 2);
  g_ptr_array_unref(list);
  ck_assert_int_eq(epochs_get(log.e, 1)->state, EPOCH_DELETED);
  freeze(&log, "a", false); /* the name is free again; 5; head 6 */
  ck_assert_uint_eq(epochs_find(log.e, "a")->id, 5);
  assert_loads_the_same(&log);

  remove_epoch(&log, 2, false);
  remove_epoch(&log, 1, false); /* the root; 4 becomes it */
  assert_loads_the_same(&log);
  ck_assert_uint_eq(epochs_get(log.e, 4)->parent, 0);
  ck_assert_uint_eq(epochs_find(log.e, "a")->id, 5);
  remove_epoch(&log, 4, false);
  remove_epoch(&log, 5, false);
  ck_assert_uint_eq(log.sb.head_parent, 0);
  assert_loads_the_same(&log);
  ck_assert_uint_eq(log.sb.log_start, log.sb.log_end); /* nothing lives, nothing is kept */
  log_close(&log);
}
END_TEST

START_TEST(longest_name)
{
  char *name = g_strnfill(SNAPSHOT_NAME_MAX, 'n');
  struct log log;

  log_open(&log, 0);
  freeze(&log, name, false);
  ck_assert_str_eq(epochs_get(log.e, 1)->name, name);
  assert_loads_the_same(&log);
  log_close(&log);
  g_free(name);
}
END_TEST

START_TEST(one_name_goes_over_in_one_commit)
{
  struct log log;
  struct superblock next;
  struct epoch old;
  struct epoch new;

  log_open(&log, 0);
  freeze(&log, "x", false);
  next = log.sb;
  old = *epochs_get(log.e, 1);
  new = old;
  new.id = next.head_epoch;
  new.parent = 1;
  old.state = EPOCH_DELETED;
  next.head_parent = new.id;
  next.head_epoch = next.next_epoch++;
  ck_assert_int_eq(epochs_append(log.p, IMAGE_NAME, log.e, &next, &old, false), 0);
  ck_assert_int_eq(epochs_append(log.p, IMAGE_NAME, log.e, &next, &new, false), 0);
  commit(&log, next);
  epochs_apply(log.e, &new, false, next.log_end - 1); /* in whatever order */
  epochs_apply(log.e, &old, false, next.log_end - 2);
  ck_assert_uint_eq(epochs_find(log.e, "x")->id, 2);
  assert_loads_the_same(&log);
  log_close(&log);
}
END_TEST

/* ---- Views ---- */

static void assert_sight(const struct epoch_view *v, unsigned i, uint32_t id, uint64_t limit)
{
  const struct epoch_sight *sight = &v->sights[i];

  ck_assert_uint_lt(i, v->count);
  ck_assert_uint_eq(sight->id, id);
  ck_assert_uint_eq(sight->limit, limit);
  ck_assert_uint_eq(epoch_view_limit(v, id), limit);
}

START_TEST(views)
{
  struct log log;
  struct epoch_view *v;
  const struct epoch *epoch;

  log_open(&log, 0);
  log.sb.virtual_size = 100 << 12;
  log.sb.head_floor = 70 << 12;
  freeze(&log, "root", false); /* 1: size 100, floor 70 */
  log.sb.virtual_size = 120 << 12;
  log.sb.head_floor = 90 << 12;
  freeze(&log, "mid", false); /* 2: size 120, floor 90 */
  log.sb.virtual_size = 80 << 12;
  log.sb.head_floor = 80 << 12;
  freeze(&log, "top", false); /* 3: size 80, floor 80 */
  log.sb.virtual_size = 200 << 12;
  log.sb.head_floor = 60 << 12; /* head 4 was small for a while */

  v = epoch_view_make(log.e, 4, 3, log.sb.virtual_size, log.sb.head_floor, false);
  ck_assert_uint_eq(v->count, 4);
  assert_sight(v, 0, 4, 200 << 12);
  assert_sight(v, 1, 3, 60 << 12);
  assert_sight(v, 2, 2, 60 << 12);
  assert_sight(v, 3, 1, 60 << 12);
  ck_assert_uint_eq(v->base_limit, 60 << 12);
  epoch_view_free(v);

  v = epoch_view_make(log.e, 4, 3, 200 << 12, 200 << 12, true);
  ck_assert_uint_eq(v->count, 3);
  ck_assert_uint_eq(epoch_view_limit(v, 4), 0); /* not itself */
  assert_sight(v, 0, 3, 200 << 12);
  assert_sight(v, 1, 2, 80 << 12);
  assert_sight(v, 2, 1, 80 << 12);
  ck_assert_uint_eq(v->base_limit, 70 << 12); /* the root's own floor */
  epoch_view_free(v);

  v = epoch_view_make(log.e, 4, 3, 200 << 12, 65 << 12, true); /* its floor counts all the same */
  assert_sight(v, 0, 3, 65 << 12);
  ck_assert_uint_eq(v->base_limit, 65 << 12);
  epoch_view_free(v);

  mark_deleted(&log, 2); /* an ordinary ancestor until it is gone */
  epoch = epochs_get(log.e, 3);
  v = epoch_view_make(log.e, 3, epoch->parent, epoch->virtual_size, epoch->floor, false);
  ck_assert_uint_eq(v->count, 3);
  assert_sight(v, 0, 3, 80 << 12);
  assert_sight(v, 1, 2, 80 << 12);
  ck_assert_uint_eq(v->base_limit, 70 << 12);
  ck_assert_uint_eq(epoch_view_limit(v, 4), 0);
  ck_assert_uint_eq(epoch_view_limit(v, 99), 0);
  epoch_view_free(v);

  v = epoch_view_make(log.e, 1, 0, 100 << 12, 70 << 12, true); /* a root alone */
  ck_assert_uint_eq(v->count, 0);
  ck_assert_uint_eq(v->base_limit, 70 << 12);
  epoch_view_free(v);
  epoch_view_free(NULL);

  for (unsigned i = 4; i < 24; i++) { /* a long view, in which each epoch has a limit of its own */
    char name[] = { (char)('a' + i), '\0' };

    log.sb.head_floor = (i + 6) << 12;
    freeze(&log, name, false);
  }
  v = epoch_view_make(log.e, 24, 23, 200 << 12, 200 << 12, false);
  ck_assert_uint_eq(v->count, 24);
  for (unsigned i = 0; i < 24; i++)
    assert_sight(v, i, 24 - i, i < 2 ? 200 << 12 : MAX(24 - i + 7, 10u) << 12);
  ck_assert_uint_eq(epoch_view_limit(v, 25), 0);
  epoch_view_free(v);
  log_close(&log);
}
END_TEST

/* ---- The ring ---- */

START_TEST(rotating_snapshots_keep_the_ring_small)
{
  const unsigned keep = 100;
  uint64_t longest = 0;
  uint32_t oldest = 1;
  struct log log;
  char name[32];

  log_open(&log, EPOCH_LOG_RECORDS - 5000); /* wraps on the way */
  freeze(&log, "stays", false);
  for (unsigned i = 0; i < 20000; i++) {
    snprintf(name, sizeof(name), "s%u", i);
    freeze(&log, name, false);
    if (i >= keep) {
      while (oldest == 1 || !epochs_get(log.e, oldest))
        oldest++;
      remove_epoch(&log, oldest, false);
    }
    longest = MAX(longest, log.sb.log_end - log.sb.log_start);
    if (i % 1000 == 0)
      assert_loads_the_same(&log);
  }
  assert_loads_the_same(&log);
  ck_assert_str_eq(epochs_get(log.e, 1)->name, "stays");
  ck_assert_uint_eq(g_hash_table_size(log.e->by_id), keep + 1);
  ck_assert_uint_le(longest, 6 * keep + 100);
  log_close(&log);
}
END_TEST

START_TEST(random_changes)
{
  GRand *random = g_rand_new_with_seed((guint32)_i);
  struct log log;
  char name[32];

  log_open(&log, EPOCH_LOG_RECORDS * 7 - 300);
  for (unsigned i = 0; i < 4000; i++) {
    unsigned total = g_hash_table_size(log.e->by_id);
    gpointer *ids = g_hash_table_get_keys_as_array(log.e->by_id, NULL);
    uint32_t any = total ? GPOINTER_TO_UINT(ids[g_rand_int_range(random, 0, (gint32)total)]) : 0;

    g_free(ids);
    snprintf(name, sizeof(name), "s%u", i);
    switch (g_rand_int_range(random, 0, 8)) {
    case 0:
    case 1:
    case 2:
      freeze(&log, name, false);
      break;
    case 3:
      freeze(&log, name, true); /* a commit that is given up */
      break;
    case 4:
    case 5:
      /* the root goes only when it has one child, or there would be several */
      if (any && (epochs_get(log.e, any)->parent || epochs_children(log.e, &log.sb, any) == 1))
        remove_epoch(&log, any, g_rand_boolean(random) && g_rand_boolean(random));
      break;
    case 6:
      if (any && epochs_get(log.e, any)->state == EPOCH_SNAPSHOT)
        mark_deleted(&log, any);
      break;
    default:
      if (any)
        revert(&log, any);
    }
    if (i % 100 == 0)
      assert_loads_the_same(&log);
  }
  assert_loads_the_same(&log);
  log_close(&log);
  g_rand_free(random);
}
END_TEST

/* As many epochs as fit; then none more can be made, but all of them can go. */
START_TEST(full)
{
  const unsigned most = (unsigned)(EPOCH_LOG_RECORDS / 4);
  struct log log;
  uint64_t longest = 0;
  char name[32];
  unsigned i;
  int ret = 0;

  log_open(&log, 12345);
  for (i = 0; i < most + 10; i++) {
    snprintf(name, sizeof(name), "s%u", i);
    ret = freeze(&log, name, false);
    if (ret)
      break;
  }
  ck_assert_int_eq(ret, -EMFILE);
  ck_assert_message("epochs already");
  ck_assert_uint_eq(i, most);
  assert_loads_the_same(&log);

  /* The ring goes round while it is as full as it can be: each record is written anew. */
  for (i = 1; i <= most; i++) {
    struct superblock next = log.sb;
    struct epoch record = *epochs_get(log.e, i);
    uint64_t number = next.log_end;

    record.floor = PAGE_BYTES;
    if (epochs_append(log.p, IMAGE_NAME, log.e, &next, &record, false))
      ck_abort_msg("%s", error_message());
    commit(&log, next);
    epochs_apply(log.e, &record, false, number);
    longest = MAX(longest, log.sb.log_end - log.sb.log_start);
  }
  ck_assert_uint_le(longest, EPOCH_LOG_RECORDS / 8 * 7);
  assert_loads_the_same(&log);
  for (i = most; i >= 1; i--) { /* the youngest first: nobody has to get another parent */
    struct superblock next = log.sb;
    struct epoch record = *epochs_get(log.e, i);
    uint64_t number = next.log_end;

    next.head_parent = record.parent;
    if (epochs_append(log.p, IMAGE_NAME, log.e, &next, &record, true))
      ck_abort_msg("%s", error_message());
    commit(&log, next);
    epochs_apply(log.e, &record, true, number);
    if (i % 50000 == 0)
      assert_loads_the_same(&log);
  }
  ck_assert_uint_eq(log.sb.log_start, log.sb.log_end);
  ck_assert_int_eq(freeze(&log, "again", false), 0);
  assert_loads_the_same(&log);
  log_close(&log);
}
END_TEST

/* ---- Refused ---- */

typedef void (*craft_fn)(struct pcow_disk_epoch *d, struct superblock *sb);

/* The log that is changed: 1 (root, "a"), 2 over 1 ("b"), 3 over 2 ("c"), 4 over 2 ("d"); the head is 5
 * over 4. */
#define CRAFT(name, code) \
  static void name(struct pcow_disk_epoch *d, struct superblock *sb) { (void)d; (void)sb; code; }

CRAFT(nothing, )
CRAFT(bad_magic, d[1].magic = le32_make(0))
CRAFT(bad_number, d[2].number = le64_make(7))
CRAFT(two_names, d[2].name[0] = 'b')
CRAFT(name_empty, d[0].name_length = le32_make(0))
CRAFT(name_long, d[0].name_length = le32_make(256))
CRAFT(name_not_utf8, d[0].name[0] = '\xff')
CRAFT(name_at, d[0].name[0] = '@')
CRAFT(name_control, d[0].name[0] = '\x1b')
CRAFT(name_c1, d[0].name_length = le32_make(2); memcpy(d[0].name, "\xc2\x9b", 2))
CRAFT(name_with_nul, d[0].name_length = le32_make(2))
CRAFT(state_zero, d[1].state = le32_make(0))
CRAFT(state_four, d[1].state = le32_make(4))
CRAFT(id_zero, d[3].id = le32_make(0))
CRAFT(id_of_head, d[2].id = le32_make(5))
CRAFT(id_future, d[2].id = le32_make(6))
CRAFT(own_parent, d[2].parent = le32_make(3))
CRAFT(parent_missing, d[0].state = le32_make(EPOCH_GONE))
CRAFT(parent_is_head, d[2].parent = le32_make(5))
CRAFT(head_parent_missing, d[3].state = le32_make(EPOCH_GONE))
CRAFT(two_roots, d[1].parent = le32_make(0))
CRAFT(head_is_root, sb->head_parent = 0)
CRAFT(circle, d[1].parent = le32_make(4))
CRAFT(all_in_circle, d[0].parent = le32_make(4))
CRAFT(size_zero, d[1].virtual_size = d[1].floor = le64_make(0))
CRAFT(size_odd, d[1].virtual_size = le64_make((1 << 30) + 1))
CRAFT(size_large, d[1].virtual_size = le64_make(UINT64_C(1) << 63))
CRAFT(floor_above, d[1].floor = le64_make((1 << 30) + 4096))
CRAFT(floor_odd, d[1].floor = le64_make(17))
CRAFT(time_odd, d[1].created_nsec = le32_make(1000000000))

static const struct { craft_fn craft; const char *message; } refused[] = {
  { nothing, NULL },
  { bad_magic, "record 10 of the epoch log is" }, { bad_number, "record 11 of the epoch log is" },
  { two_names, "two snapshots have the name 'b'" },
  { name_empty, "name that is not valid" }, { name_long, "name that is not valid" },
  { name_not_utf8, "name that is not valid" }, { name_with_nul, "name that is not valid" },
  { name_at, "character or '@'" },
  { name_control, "character or '@'" }, { name_c1, "character or '@'" },
  { state_zero, "unknown state 0" }, { state_four, "unknown state 4" },
  { id_zero, "is not valid" }, { id_of_head, "is not valid" },
  { id_future, "is not valid" }, { own_parent, "is not valid" },
  { parent_missing, "parent 1, which does not exist" }, { parent_is_head, "parent 5, which does not exist" },
  { head_parent_missing, "head's parent epoch 4 does not exist" },
  { two_roots, "2 roots" }, { head_is_root, "2 roots" },
  { circle, "among its own ancestors" }, { all_in_circle, "0 roots" },
  { size_zero, "out of range" }, { size_odd, "out of range" }, { size_large, "out of range" },
  { floor_above, "out of range" }, { floor_odd, "out of range" }, { time_odd, "out of range" },
};

START_TEST(crafted_logs)
{
  static const uint32_t parents[] = { 0, 1, 2, 2 };
  struct superblock sb = image_state();
  struct pcow_disk_epoch disk[4];
  struct epochs *e = NULL;
  int fd, ret;

  sb.log_start = 9;
  sb.log_end = 13;
  sb.head_epoch = 5;
  sb.head_parent = 4;
  sb.next_epoch = 6;
  memset(disk, 0, sizeof(disk));
  for (unsigned i = 0; i < 4; i++) {
    disk[i].magic = le32_make(EPOCH_MAGIC);
    disk[i].id = le32_make(i + 1);
    disk[i].parent = le32_make(parents[i]);
    disk[i].state = le32_make(EPOCH_SNAPSHOT);
    disk[i].virtual_size = disk[i].floor = le64_make(1 << 30);
    disk[i].name_length = le32_make(1);
    disk[i].name[0] = (char)('a' + i);
    disk[i].number = le64_make(9 + i);
  }
  refused[_i].craft(disk, &sb);
  for (unsigned i = 0; i < 4; i++)
    disk[i].crc = le32_make(crc32c(&disk[i], offsetof(struct pcow_disk_epoch, crc)));
  fd = image_file(&sb);
  ck_assert_int_eq(pwrite(fd, disk, sizeof(disk), EPOCH_LOG_OFFSET + 9 * sizeof(disk[0])), sizeof(disk));

  ret = epochs_load(fd, IMAGE_NAME, &sb, &e);
  if (refused[_i].message) {
    ck_assert_int_eq(ret, -EUCLEAN);
    ck_assert_message(refused[_i].message);
    ck_assert(g_str_has_prefix(error_message(), IMAGE_NAME ": "));
  } else {
    ck_assert_msg(ret == 0, "%s", error_message());
    ck_assert_uint_eq(g_hash_table_size(e->by_id), 4);
    epochs_free(e);
    disk[3].name[200] ^= 1; /* covered by the CRC alone */
    ck_assert_int_eq(pwrite(fd, disk, sizeof(disk), EPOCH_LOG_OFFSET + 9 * sizeof(disk[0])),
                     sizeof(disk));
    ck_assert_int_eq(epochs_load(fd, IMAGE_NAME, &sb, &e), -EUCLEAN);
    ck_assert_message("record 12 of the epoch log is damaged");
  }
  close(fd);
}
END_TEST

int main(void)
{
  Suite *suite = suite_create("epochs");
  TCase *t = tcase_create("epochs");

  tcase_add_test(t, tree);
  tcase_add_test(t, longest_name);
  tcase_add_test(t, one_name_goes_over_in_one_commit);
  tcase_add_test(t, views);
  tcase_add_test(t, rotating_snapshots_keep_the_ring_small);
  tcase_add_loop_test(t, random_changes, 0, 8);
  tcase_set_timeout(t, 120); /* full() writes a million records */
  tcase_add_test(t, full);
  tcase_add_loop_test(t, crafted_logs, 0, (int)G_N_ELEMENTS(refused));
  suite_add_tcase(suite, t);
  return run_suite(suite);
}
