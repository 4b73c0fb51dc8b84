/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file open for writing: what store_open() repairs, flushes and leaves alone; commits one at a time;
 * nothing is written after one has failed.
 */
#include "ground.h"

#include "store.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static struct store *must_open(int fd)
{
  struct store *s = NULL;

  ck_assert_msg(store_open(fd, IMAGE_NAME, &s) == 0, "%s", error_message());
  return s;
}

static struct persist_counts counts(const struct store *s)
{
  struct persist_counts c;

  persist_get_counts(s->p, &c);
  return c;
}

START_TEST(a_clean_image_is_left_alone)
{
  struct superblock sb = image_state();
  struct store *s;

  set_mode((enum persist_mode)_i);
  s = must_open(image_file(&sb));
  ck_assert_uint_eq(counts(s).copies, 0);
  ck_assert_uint_eq(counts(s).stores, 0);
  ck_assert_uint_eq(counts(s).fences, 1);
  ck_assert_uint_eq(s->sb.sequence, 0);
  ck_assert_uint_eq(s->geo.unit_shift, UNIT_SHIFT_DEFAULT);
  ck_assert_int_eq(store_check(s), 0);
  store_close(s);
  store_close(NULL);
}
END_TEST

/* Bytes here and there in the tables, as a crashed session leaves them. The flushes tell what was found:
 * superblocks, log, map, and headers and bitmaps of two groups; data areas are not among them. */
START_TEST(rule_5)
{
  static const uint64_t slots[] = { 1, SLOTS_PER_GROUP * 50 + 3 };
  struct superblock sb = image_state();
  struct geometry geo;
  struct stat before;
  struct stat after;
  struct store *s;
  int fd;

  set_mode(PERSIST_PMEM);
  sb.unit_shift = 16;
  sb.virtual_size = sb.head_floor = 1 << 20;
  sb.dirty = true;
  sb.slot_count = SLOTS_PER_GROUP * 100;
  geo = geometry_make(16);
  fd = image_file(&sb);
  ck_assert_int_eq(ftruncate(fd, (off_t)geometry_file_size(&geo, sb.slot_count)), 0);
  ck_assert_int_eq(pwrite(fd, "m", 1, (off_t)geometry_map_word(UNITS_MAX - 1)), 1);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert_int_eq(pwrite(fd, "h", 1, (off_t)geometry_header(&geo, slots[i])), 1);
    ck_assert_int_eq(pwrite(fd, "b", 1, (off_t)geometry_bitmap(&geo, slots[i])), 1);
    ck_assert_int_eq(pwrite(fd, "d", 1, (off_t)geometry_data(&geo, slots[i])), 1);
  }
  ck_assert_int_eq(fstat(fd, &before), 0);
  s = must_open(fd);
  ck_assert_uint_eq(counts(s).flushes, 2 + 1 + 4);
  ck_assert_uint_eq(counts(s).fences, 1);
  ck_assert_uint_eq(counts(s).copies, 0);
  ck_assert(s->sb.dirty);
  ck_assert_int_eq(fstat(fd, &after), 0);
  ck_assert_int_eq(before.st_blocks, after.st_blocks);
  store_close(s);
}
END_TEST

/* A log that lies over the end of its region. */
START_TEST(rule_5_for_a_log_that_wraps)
{
  struct superblock sb = image_state();
  struct pcow_disk_epoch disk = {
    .magic = le32_make(EPOCH_MAGIC), .id = le32_make(1), .state = le32_make(EPOCH_DELETED),
    .virtual_size = le64_make(4096),
  };
  struct store *s;
  int fd;

  set_mode(PERSIST_PMEM);
  sb.log_start = EPOCH_LOG_RECORDS * 2 - 20;
  sb.log_end = sb.log_start + 40;
  sb.head_epoch = 2;
  sb.head_parent = 1;
  sb.next_epoch = 3;
  sb.dirty = true;
  fd = image_file(&sb);
  for (uint64_t number = sb.log_start; number < sb.log_end; number++) {
    off_t offset = (off_t)(EPOCH_LOG_OFFSET + number % EPOCH_LOG_RECORDS * sizeof(disk));

    disk.number = le64_make(number);
    disk.crc = le32_make(crc32c(&disk, offsetof(struct pcow_disk_epoch, crc)));
    ck_assert_int_eq(pwrite(fd, &disk, sizeof(disk), offset), sizeof(disk));
  }
  s = must_open(fd);
  ck_assert_uint_eq(counts(s).flushes, 2 + 2);
  ck_assert_int_eq(epochs_get(s->epochs, 1)->state, EPOCH_DELETED);
  store_close(s);
}
END_TEST

START_TEST(unequal_copies_are_made_equal)
{
  for (unsigned way = 0; way < 4; way++) {
    struct superblock sb = image_state();
    struct superblock newer = sb;
    struct superblock_state state;
    struct store *s;
    int fd;

    set_mode((enum persist_mode)_i);
    newer.sequence = 5;
    newer.tag.counter = 5;
    fd = image_file(&newer);
    if (way < 2)
      put_superblock(fd, way, &sb);
    else
      damage_copy(fd, way - 2);
    s = must_open(fd);
    ck_assert_uint_eq(s->sb.sequence, 6);
    ck_assert_uint_eq(s->sb.tag.counter, 5);
    ck_assert(!s->sb.dirty); /* nothing was written but this */
    ck_assert_int_eq(superblock_read(s->fd, IMAGE_NAME, true, &newer, &state), 0);
    ck_assert(state.valid[0] && state.valid[1]);
    ck_assert_uint_eq(state.sequence[0], 6);
    ck_assert_uint_eq(state.sequence[1], 6);
    store_close(s);
  }
}
END_TEST

START_TEST(a_refused_image_is_left_alone)
{
  struct superblock sb = image_state();
  struct pcow_disk_superblock before[2];
  struct pcow_disk_superblock after[2];
  struct store *s = NULL;
  int fd;
  int keep;

  set_mode((enum persist_mode)_i);
  sb.log_end = 1; /* of a record that is not there */
  fd = image_file(&sb);
  damage_copy(fd, 1);
  keep = dup(fd);
  for (unsigned i = 0; i < 2; i++)
    get_disk(fd, i, &before[i]);
  ck_assert_int_eq(store_open(fd, IMAGE_NAME, &s), -EUCLEAN);
  ck_assert_ptr_null(s);
  ck_assert_int_eq(fcntl(fd, F_GETFD), -1); /* closed */
  for (unsigned i = 0; i < 2; i++)
    get_disk(keep, i, &after[i]);
  ck_assert_mem_eq(before, after, sizeof(before));
  close(keep);
}
END_TEST

START_TEST(commits)
{
  struct superblock sb = image_state();
  struct superblock next;
  struct store *s;

  set_mode((enum persist_mode)_i);
  s = must_open(image_file(&sb));
  next = store_begin(s);
  ck_assert(next.dirty);
  next.tag.counter = 1;
  ck_assert_int_eq(store_end(s, &next, false), 0);
  ck_assert_uint_eq(s->sb.tag.counter, 0);
  ck_assert(!s->sb.dirty);

  next = store_begin(s);
  next.tag.counter = 2;
  ck_assert_int_eq(store_end(s, &next, true), 0);
  ck_assert_uint_eq(s->sb.tag.counter, 2);
  ck_assert_uint_eq(s->sb.sequence, 1);
  ck_assert_int_eq(superblock_read(s->fd, IMAGE_NAME, true, &sb, NULL), 0);
  ck_assert_uint_eq(sb.tag.counter, 2);
  ck_assert(sb.dirty);

  next = store_begin(s);
  next.dirty = false;
  ck_assert_int_eq(store_end(s, &next, true), 0);
  ck_assert_int_eq(superblock_read(s->fd, IMAGE_NAME, true, &sb, NULL), 0);
  ck_assert(!sb.dirty);
  store_close(s);
}
END_TEST

/* Snapshots that come and go over the end of the ring: the log's blocks do not grow, and what lives is
 * not among those that are given back. */
START_TEST(the_log_gives_its_space_back)
{
  struct superblock sb = image_state();
  struct epoch record = { .state = EPOCH_SNAPSHOT, .virtual_size = 4096, .floor = 4096 };
  struct epochs *loaded;
  struct store *s;
  struct stat st;

  set_mode((enum persist_mode)_i);
  sb.log_start = sb.log_end = EPOCH_LOG_RECORDS - 2000;
  s = must_open(image_file(&sb));
  for (unsigned i = 0; i < 5000; i++) {
    struct superblock next = store_begin(s);
    uint64_t number = next.log_end;
    bool gone = i % 2;

    if (gone)
      next.head_parent = record.parent;
    else {
      record.id = next.head_epoch;
      record.parent = next.head_parent;
      snprintf(record.name, sizeof(record.name), "s%u", i);
      next.head_parent = record.id;
      next.head_epoch = next.next_epoch++;
    }
    if (epochs_append(s->p, IMAGE_NAME, s->epochs, &next, &record, gone) ||
        store_end(s, &next, true))
      ck_abort_msg("%s", error_message());
    epochs_apply(s->epochs, &record, gone, number);
  }
  ck_assert_int_eq(epochs_load(s->fd, IMAGE_NAME, &s->sb, &loaded), 0);
  epochs_free(loaded);
  ck_assert_int_eq(fstat(s->fd, &st), 0);
  ck_assert_int_le(st.st_blocks, (3 * 256 + 16) * 2);
  store_close(s);
}
END_TEST

static gpointer count_up(gpointer data)
{
  struct store *s = data;

  for (unsigned i = 0; i < 500; i++) {
    struct superblock next = store_begin(s);

    next.tag.counter++;
    if (store_end(s, &next, i % 5 != 0))
      ck_abort_msg("%s", error_message());
  }
  return NULL;
}

START_TEST(commits_of_many_threads)
{
  struct superblock sb = image_state();
  GThread *threads[4];
  struct store *s;

  set_mode((enum persist_mode)_i);
  s = must_open(image_file(&sb));
  for (unsigned i = 0; i < 4; i++)
    threads[i] = g_thread_new("commits", count_up, s);
  for (unsigned i = 0; i < 4; i++)
    g_thread_join(threads[i]);
  ck_assert_uint_eq(s->sb.tag.counter, 4 * 400);
  ck_assert_uint_eq(s->sb.sequence, 4 * 400);
  store_close(s);
}
END_TEST

START_TEST(nothing_is_written_after_a_failure)
{
  struct rlimit none = { 0, RLIM_INFINITY };
  struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
  struct superblock sb = image_state();
  struct superblock next;
  struct store *s;
  uint64_t written;

  set_mode(PERSIST_MSYNC);
  signal(SIGXFSZ, SIG_IGN);
  s = must_open(image_file(&sb));
  next = store_begin(s);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
  ck_assert_int_eq(store_end(s, &next, true), -EFBIG);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  ck_assert_uint_eq(s->sb.sequence, 0);
  ck_assert_int_eq(store_check(s), -EIO);
  ck_assert_message(IMAGE_NAME ": takes no more writes");
  written = counts(s).copies;
  next = store_begin(s);
  ck_assert_int_eq(store_end(s, &next, true), -EIO);
  ck_assert_uint_eq(counts(s).copies, written);
  next = store_begin(s);
  ck_assert_int_eq(store_end(s, &next, false), 0); /* it is free again */
  store_close(s);
}
END_TEST

int main(void)
{
  Suite *suite = suite_create("store");
  TCase *t = tcase_create("store");

  tcase_add_loop_test(t, a_clean_image_is_left_alone, 0, 2);
  tcase_add_test(t, rule_5);
  tcase_add_test(t, rule_5_for_a_log_that_wraps);
  tcase_add_loop_test(t, unequal_copies_are_made_equal, 0, 2);
  tcase_add_loop_test(t, a_refused_image_is_left_alone, 0, 2);
  tcase_add_loop_test(t, commits, 0, 2);
  tcase_add_loop_test(t, the_log_gives_its_space_back, 0, 2);
  tcase_add_loop_test(t, commits_of_many_threads, 0, 2);
  tcase_add_test(t, nothing_is_written_after_a_failure);
  suite_add_tcase(suite, t);
  return run_suite(suite);
}
