/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The superblock: what is written is read; each copy may be damaged or torn; values out of bounds,
 * unknown features, later versions and foreign files are refused with their own sentence; a commit
 * writes the copy first that can be spared, and a reader without a lock never fails meanwhile.
 */
#include "ground.h"

#include <libpcow/libpcow.h>
#include <signal.h>
#include <sys/resource.h>

static struct superblock full_state(void)
{
  struct superblock sb = image_state();

  sb.unit_shift = 21;
  sb.compat = 0x8000000000000001;
  sb.sequence = 77;
  sb.tag = (struct content_tag){ 5, 0x123456789abcdef0 };
  sb.virtual_size = 9 << 20;
  sb.head_floor = 4096;
  sb.head_epoch = 9;
  sb.head_parent = 7;
  sb.next_epoch = 10;
  sb.dirty = true;
  sb.log_start = EPOCH_LOG_RECORDS * 3 + 5;
  sb.log_end = sb.log_start + EPOCH_LOG_RECORDS;
  sb.slot_count = 0;
  sb.base.format = BASE_PCOW;
  sb.base.epoch = EPOCH_ID_MAX;
  memset(sb.base.uuid, 0xaa, sizeof(sb.base.uuid));
  memset(sb.base.guid, 0xbb, sizeof(sb.base.guid));
  sb.base.tag = (struct content_tag){ 1, 2 };
  sb.base.accept = (struct content_tag){ 3, 4 };
  memset(sb.base.path, 'p', BASE_PATH_MAX);
  return sb;
}

static void assert_equal(const struct superblock *a, const struct superblock *b)
{
  struct pcow_disk_superblock x;
  struct pcow_disk_superblock y;

  superblock_encode(a, &x);
  superblock_encode(b, &y);
  ck_assert_mem_eq(&x, &y, sizeof(x));
}

START_TEST(what_is_written_is_read)
{
  struct superblock sb = full_state();
  struct superblock_state state;
  struct superblock got;
  int fd = image_file(&sb);

  ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &got, &state), 0);
  assert_equal(&sb, &got);
  ck_assert_uint_eq(got.unit_shift, 21);
  ck_assert_uint_eq(got.head_parent, 7);
  ck_assert(got.dirty);
  ck_assert_uint_eq(got.base.accept.random, 4);
  ck_assert_uint_eq(strlen(got.base.path), BASE_PATH_MAX);
  ck_assert(state.valid[0] && state.valid[1]);
  ck_assert_uint_eq(state.sequence[0], 77);
  ck_assert_uint_eq(state.sequence[1], 77);
  ck_assert(content_tag_equal(sb.tag, got.tag));
  ck_assert(!content_tag_equal(sb.tag, got.base.tag));
  close(fd);

  sb.base = (struct base_ref){ .format = BASE_RAW, .raw_size = INT64_MAX, .raw_mtime_sec = -5,
                               .raw_mtime_nsec = 999999999, .path = "/x" };
  sb.dirty = false;
  fd = image_file(&sb);
  ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, false, &got, NULL), 0);
  assert_equal(&sb, &got);
  ck_assert_int_eq(got.base.raw_mtime_sec, -5);
  close(fd);
}
END_TEST

static void keep_log(void *opaque, int level, const char *message)
{
  (void)level;
  g_string_append(opaque, message);
}

START_TEST(one_damaged_copy)
{
  GString *log = g_string_new(NULL);

  pcow_set_log(keep_log, log);
  for (unsigned copy = 0; copy < 2; copy++) {
    struct superblock sb = image_state();
    struct superblock_state state;
    struct superblock got;
    int fd = image_file(&sb);

    damage_copy(fd, copy);
    ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &got, &state), 0);
    assert_equal(&sb, &got);
    ck_assert(!state.valid[copy] && state.valid[1 - copy]);
    ck_assert_ptr_nonnull(strstr(log->str, copy ? "copy 1 is damaged" : "copy 0 is damaged"));
    damage_copy(fd, 1 - copy);
    ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &got, &state), -EUCLEAN);
    ck_assert_message(IMAGE_NAME ": both superblocks are damaged");
    close(fd);
  }
  pcow_set_log(NULL, NULL);
  g_string_free(log, TRUE);
}
END_TEST

/* A commit that was torn at every possible 8 bytes: the old state or the new one. */
START_TEST(torn_copies)
{
  struct superblock old = image_state();
  struct superblock new = old;
  struct pcow_disk_superblock disk[2];

  new.sequence++;
  new.virtual_size *= 2;
  superblock_encode(&old, &disk[0]);
  superblock_encode(&new, &disk[1]);
  for (unsigned torn = 0; torn < 2; torn++)
    for (size_t cut = 0; cut <= sizeof(disk[0]); cut += cut < 256 || cut > 4080 ? 8 : 256) {
      struct pcow_disk_superblock mixed = disk[0];
      struct superblock got;
      bool whole = cut == sizeof(mixed);
      int fd = image_file(&old);

      memcpy(&mixed, &disk[1], cut);
      if (torn == 0) /* the second one that is written: the first is new already */
        put_disk(fd, 1, &disk[1]);
      put_disk(fd, torn, &mixed);
      ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, false, &got, NULL), 0);
      assert_equal(torn == 0 || whole ? &new : &old, &got);
      close(fd);
    }
}
END_TEST

/* ---- Refused ---- */

typedef void (*change_fn)(struct pcow_disk_superblock *disk);

#define CHANGE(name, code) \
  static void name(struct pcow_disk_superblock *d) { code; }

CHANGE(sequence_above, d->sequence = le64_make(SEQUENCE_MAX + 1))
CHANGE(sequence_absurd, d->sequence = le64_make(UINT64_MAX))
CHANGE(unit_small, d->unit_shift = le32_make(15))
CHANGE(unit_large, d->unit_shift = le32_make(37))
CHANGE(unit_absurd, d->unit_shift = le32_make(0xffffffff))
CHANGE(size_zero, d->virtual_size = le64_make(0); d->head_floor = le64_make(0))
CHANGE(size_odd, d->virtual_size = le64_make((1 << 30) + 512))
CHANGE(size_large, d->virtual_size = le64_make((UNITS_MAX << UNIT_SHIFT_DEFAULT) + PAGE_BYTES))
CHANGE(size_absurd, d->virtual_size = le64_make(~UINT64_C(0) - 4095))
CHANGE(floor_above, d->head_floor = le64_make((1 << 30) + PAGE_BYTES))
CHANGE(floor_odd, d->head_floor = le64_make(1))
CHANGE(head_zero, d->head_epoch = le32_make(0))
CHANGE(head_future, d->head_epoch = le32_make(2))
CHANGE(parent_future, d->head_parent = le32_make(2))
CHANGE(parent_self, d->head_parent = le32_make(1))
CHANGE(next_absurd, d->next_epoch = le32_make(UINT32_MAX) ; d->head_epoch = le32_make(EPOCH_ID_MAX + 1))
CHANGE(log_backwards, d->log_start = le64_make(1))
CHANGE(log_long, d->log_end = le64_make(EPOCH_LOG_RECORDS + 1))
CHANGE(slots_many, d->slot_count = le64_make(geometry_make(UNIT_SHIFT_DEFAULT).slot_max + 1))
CHANGE(slots_missing, d->slot_count = le64_make(1))
CHANGE(version_zero, d->version = le32_make(0))
CHANGE(base_unknown, d->base.format = le32_make(3))
CHANGE(base_no_path, d->base.format = le32_make(1))
CHANGE(base_long, d->base.format = le32_make(1); d->base.path_length = le32_make(1024);
       memset(d->base.path, 'x', 1024))
CHANGE(base_nul, d->base.format = le32_make(1); d->base.path_length = le32_make(3);
       memcpy(d->base.path, "a\0b", 3))
CHANGE(base_tail, d->base.format = le32_make(1); d->base.path_length = le32_make(1);
       memcpy(d->base.path, "a\0b", 3))
CHANGE(base_size, d->base.format = le32_make(2); d->base.path_length = le32_make(1);
       d->base.path[0] = 'a'; d->base.raw_size = le64_make(UINT64_C(1) << 63))
CHANGE(base_time, d->base.format = le32_make(2); d->base.path_length = le32_make(1);
       d->base.path[0] = 'a'; d->base.raw_mtime_nsec = le32_make(1000000000))
CHANGE(base_epoch, d->base.format = le32_make(1); d->base.path_length = le32_make(1);
       d->base.path[0] = 'a'; d->base.epoch = le32_make(UINT32_MAX))

static const struct { change_fn change; const char *message; } out_of_bounds[] = {
  { sequence_above, "must be below 2^63" }, { sequence_absurd, "must be below 2^63" },
  { unit_small, "unit size" },      { unit_large, "unit size" },    { unit_absurd, "unit size" },
  { size_zero, "virtual size" },    { size_odd, "virtual size" },   { size_large, "virtual size" },
  { size_absurd, "virtual size" },  { floor_above, "floor" },       { floor_odd, "floor" },
  { head_zero, "head epoch" },      { head_future, "head epoch" },  { parent_future, "head epoch" },
  { parent_self, "head epoch" },    { next_absurd, "head epoch" },  { log_backwards, "epoch log" },
  { log_long, "epoch log" },        { slots_many, "slots" },        { slots_missing, "is truncated" },
  { version_zero, "version 0" },    { base_unknown, "format 3" },   { base_no_path, "path" },
  { base_long, "path" },            { base_nul, "path" },           { base_tail, "path" },
  { base_size, "raw base" },        { base_time, "raw base" },      { base_epoch, "epoch" },
};

START_TEST(values_out_of_bounds)
{
  struct superblock sb = image_state();
  struct pcow_disk_superblock disk;
  struct superblock got;
  int fd = image_file(&sb);

  superblock_encode(&sb, &disk);
  out_of_bounds[_i].change(&disk);
  seal_disk(&disk);
  put_disk(fd, 0, &disk);
  put_disk(fd, 1, &disk);
  ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, false, &got, NULL), -EUCLEAN);
  ck_assert_message(out_of_bounds[_i].message);
  ck_assert(g_str_has_prefix(error_message(), IMAGE_NAME ": "));
  close(fd);
}
END_TEST

START_TEST(the_largest_values_are_accepted)
{
  struct superblock sb = image_state();
  struct superblock got;
  int fd;

  sb.unit_shift = UNIT_SHIFT_MAX;
  sb.virtual_size = sb.head_floor = UNITS_MAX << UNIT_SHIFT_MAX;
  sb.next_epoch = EPOCH_ID_MAX + 1;
  sb.head_epoch = EPOCH_ID_MAX;
  sb.log_start = UINT64_MAX - EPOCH_LOG_RECORDS;
  sb.log_end = UINT64_MAX;
  fd = image_file(&sb);
  ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &got, NULL), 0);
  assert_equal(&sb, &got);
  close(fd);
}
END_TEST

static int read_changed(void (*change)(struct pcow_disk_superblock *), bool seal, bool writing)
{
  struct superblock sb = image_state();
  struct pcow_disk_superblock disk;
  struct superblock got;
  int fd = image_file(&sb);
  int ret;

  superblock_encode(&sb, &disk);
  change(&disk);
  if (seal)
    seal_disk(&disk);
  put_disk(fd, 0, &disk);
  put_disk(fd, 1, &disk);
  ret = superblock_read(fd, IMAGE_NAME, writing, &got, NULL);
  close(fd);
  return ret;
}

CHANGE(version_two, d->version = le32_make(2))
CHANGE(incompat_bits, d->incompat = le64_make(0x11))
CHANGE(ro_compat_bits, d->ro_compat = le64_make(0x20))
CHANGE(compat_and_reserved, d->compat = le64_make(0xff); d->reserved0[3] = 1; d->reserved1[9] = 1)

START_TEST(versions_and_features)
{
  for (int seal = 0; seal < 2; seal++) {
    ck_assert_int_eq(read_changed(version_two, seal, false), -ENOTSUP);
    ck_assert_message("format version 2");
  }
  ck_assert_int_eq(read_changed(incompat_bits, true, false), -ENOTSUP);
  ck_assert_message("incompatible feature bits 0x11 ");
  ck_assert_int_eq(read_changed(ro_compat_bits, true, false), 0);
  ck_assert_int_eq(read_changed(ro_compat_bits, true, true), -ENOTSUP);
  ck_assert_message("feature bits 0x20 ");
  ck_assert_int_eq(read_changed(compat_and_reserved, true, true), 0);
}
END_TEST

static int read_bytes(const char *bytes, size_t length, uint64_t size)
{
  struct superblock got;
  int fd = memory_file(size);
  int ret;

  ck_assert_int_eq(pwrite(fd, bytes, length, 0), (ssize_t)length);
  ret = superblock_read(fd, IMAGE_NAME, false, &got, NULL);
  close(fd);
  return ret;
}

START_TEST(foreign_files)
{
  struct superblock sb = image_state();
  struct pcow_disk_superblock disk[2];
  struct superblock got;
  int fd;

  ck_assert_int_eq(read_bytes("", 0, 0), -EMEDIUMTYPE);
  ck_assert_message("the file is empty");
  ck_assert_int_eq(read_bytes("hello, world\n", 13, 13), -EMEDIUMTYPE);
  ck_assert_str_eq(error_message(), IMAGE_NAME ": is not a pcow image");
  ck_assert_int_eq(read_bytes("QFI\xfb\0\0\0\3", 8, 196608), -EMEDIUMTYPE);
  ck_assert_message("looks like a qcow2 image");
  ck_assert_int_eq(read_bytes("QFI\xfb\0\0\0\1", 8, 196608), -EMEDIUMTYPE);
  ck_assert_message("looks like a qcow image");
  ck_assert_int_eq(read_bytes("", 0, 1 << 20), -EMEDIUMTYPE);

  superblock_encode(&sb, &disk[0]);
  disk[1] = disk[0];
  ck_assert_int_eq(read_bytes((char *)disk, 100, 100), -EUCLEAN);
  ck_assert_message("is truncated: 100 bytes");
  ck_assert_int_eq(read_bytes((char *)disk, sizeof(disk), sizeof(disk)), -EUCLEAN);
  ck_assert_message("is truncated: the file has 8192 bytes");

  fd = open("/", O_RDONLY | O_CLOEXEC);
  ck_assert_int_eq(superblock_read(fd, "/", false, &got, NULL), -EMEDIUMTYPE);
  ck_assert_message("a directory");
  close(fd);
}
END_TEST

/* ---- Commit ---- */

START_TEST(commits_leave_two_equal_copies)
{
  struct superblock sb = image_state();
  struct pcow_disk_superblock disk[2];
  struct superblock_state state;
  struct persist_counts before;
  struct persist_counts after;
  struct superblock got;
  struct persist *p;
  int fd;

  set_mode(_i ? PERSIST_PMEM : PERSIST_MSYNC);
  fd = image_file(&sb);
  ck_assert_int_eq(persist_open(fd, IMAGE_NAME, &p), 0);
  for (unsigned round = 1; round <= 10; round++) {
    /* whatever is there before: both, one, none that is equal */
    if (round % 3)
      damage_copy(fd, round % 3 - 1);
    sb.tag.counter = round;
    persist_get_counts(p, &before);
    ck_assert_int_eq(superblock_commit(p, IMAGE_NAME, &sb), 0);
    persist_get_counts(p, &after);
    ck_assert_uint_eq(after.fences - before.fences, 2);
    ck_assert_uint_eq(after.copied_bytes - before.copied_bytes, 2 * SUPERBLOCK_BYTES);
    ck_assert_uint_eq(sb.sequence, round);
    ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &got, &state), 0);
    assert_equal(&sb, &got);
    ck_assert(state.valid[0] && state.valid[1]);
    get_disk(fd, 0, &disk[0]);
    get_disk(fd, 1, &disk[1]);
    ck_assert_mem_eq(&disk[0], &disk[1], sizeof(disk[0]));
  }
  persist_close(p);
  close(fd);
}
END_TEST

/* With a file size limit of one page the second copy cannot be written, the first one can: which one
 * the commit begins with shows in what has changed when it fails. */
static bool begins_with_first(int fd)
{
  struct rlimit limit = { SUPERBLOCK_BYTES, RLIM_INFINITY };
  struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
  struct pcow_disk_superblock before[2];
  struct pcow_disk_superblock after[2];
  struct superblock sb;
  struct persist *p;

  ck_assert_int_eq(superblock_read(fd, IMAGE_NAME, true, &sb, NULL), 0);
  ck_assert_int_eq(persist_open(fd, IMAGE_NAME, &p), 0);
  ck_assert_int_eq(persist_reserve(p, 0, 2 * SUPERBLOCK_BYTES), 0);
  for (unsigned i = 0; i < 2; i++)
    get_disk(fd, i, &before[i]);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
  ck_assert_int_eq(superblock_commit(p, IMAGE_NAME, &sb), -EFBIG);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  for (unsigned i = 0; i < 2; i++)
    get_disk(fd, i, &after[i]);
  ck_assert_mem_eq(&before[1], &after[1], sizeof(before[1]));
  persist_close(p);
  return memcmp(&before[0], &after[0], sizeof(before[0]));
}

START_TEST(the_copy_that_can_be_spared_is_first)
{
  struct superblock sb = image_state();
  struct superblock newer = sb;
  int fd;

  newer.sequence++;
  set_mode(PERSIST_MSYNC);
  signal(SIGXFSZ, SIG_IGN);

  fd = image_file(&sb); /* equal */
  ck_assert(!begins_with_first(fd));
  put_superblock(fd, 0, &newer); /* 1 is older */
  ck_assert(!begins_with_first(fd));
  damage_copy(fd, 1);
  ck_assert(!begins_with_first(fd));
  put_superblock(fd, 1, &sb);
  damage_copy(fd, 0);
  ck_assert(begins_with_first(fd));
  put_superblock(fd, 0, &sb);
  put_superblock(fd, 1, &newer); /* 0 is older */
  ck_assert(begins_with_first(fd));
  close(fd);
}
END_TEST

struct reader {
  int fd;
  bool stop;
  unsigned reads;
};

static gpointer read_on_and_on(gpointer data)
{
  struct reader *reader = data;
  uint64_t last = 0;

  while (!__atomic_load_n(&reader->stop, __ATOMIC_RELAXED)) {
    struct superblock got;

    ck_assert_int_eq(superblock_read(reader->fd, IMAGE_NAME, false, &got, NULL), 0);
    ck_assert_uint_ge(got.sequence, last);
    ck_assert_uint_eq(got.tag.counter, got.sequence);
    last = got.sequence;
    reader->reads++;
  }
  return NULL;
}

START_TEST(reading_while_committing)
{
  struct superblock sb = image_state();
  struct reader reader = { 0 };
  struct persist *p;
  GThread *thread;
  int fd;

  set_mode(_i ? PERSIST_PMEM : PERSIST_MSYNC);
  fd = image_file(&sb);
  reader.fd = fd;
  ck_assert_int_eq(persist_open(fd, IMAGE_NAME, &p), 0);
  thread = g_thread_new("reader", read_on_and_on, &reader);
  for (unsigned round = 1; round <= 3000; round++) {
    sb.tag.counter = sb.sequence + 1;
    ck_assert_int_eq(superblock_commit(p, IMAGE_NAME, &sb), 0);
    if (round % 100 == 0)
      g_usleep(1000);
  }
  __atomic_store_n(&reader.stop, true, __ATOMIC_RELAXED);
  g_thread_join(thread);
  ck_assert_uint_gt(reader.reads, 0);
  persist_close(p);
  close(fd);
}
END_TEST

int main(void)
{
  Suite *suite = suite_create("superblock");
  TCase *t = tcase_create("superblock");

  tcase_add_test(t, what_is_written_is_read);
  tcase_add_test(t, one_damaged_copy);
  tcase_add_test(t, torn_copies);
  tcase_add_loop_test(t, values_out_of_bounds, 0, (int)G_N_ELEMENTS(out_of_bounds));
  tcase_add_test(t, the_largest_values_are_accepted);
  tcase_add_test(t, versions_and_features);
  tcase_add_test(t, foreign_files);
  tcase_add_loop_test(t, commits_leave_two_equal_copies, 0, 2);
  tcase_add_test(t, the_copy_that_can_be_spared_is_first);
  tcase_add_loop_test(t, reading_while_committing, 0, 2);
  suite_add_tcase(suite, t);
  return run_suite(suite);
}
