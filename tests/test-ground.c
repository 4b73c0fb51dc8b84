/* SPDX-License-Identifier: BSD-3-Clause
 *
 * bits.h against a slow model, CRC32C against published vectors, the geometry of all unit sizes, byte
 * locks between open files, and error messages.
 */
#include "ground.h"

#include "bits.h"
#include "lock.h"

#include <libpcow/libpcow.h>

/* ---- Bits ---- */

#define BITS 200u

static void slow_bits(bool *map, unsigned first, unsigned end, bool value)
{
  for (unsigned i = first; i < end; i++)
    map[i] = value;
}

START_TEST(bits_agree_with_a_model)
{
  uint64_t words[(BITS + 63) / 64] = { 0 };
  bool model[BITS] = { false };

  ck_assert_uint_eq(bits_words(0), 0);
  ck_assert_uint_eq(bits_words(64), 1);
  ck_assert_uint_eq(bits_words(65), 2);
  for (unsigned round = 0; round < 20000; round++) {
    unsigned a = (unsigned)g_random_int_range(0, BITS + 1);
    unsigned b = (unsigned)g_random_int_range(0, BITS + 1);
    unsigned first = MIN(a, b);
    unsigned end = MAX(a, b);
    unsigned ones = 0;
    unsigned found[2] = { end, end };

    if (round % 2)
      bits_set(words, first, end);
    else
      bits_clear(words, first, end);
    slow_bits(model, first, end, round % 2);

    a = (unsigned)g_random_int_range(0, BITS + 1);
    b = (unsigned)g_random_int_range(0, BITS + 1);
    first = MIN(a, b);
    end = MAX(a, b);
    found[0] = found[1] = end;
    for (unsigned i = end; i-- > first;) {
      if (bits_test(words, i) != model[i]) /* an assertion that holds costs a write to a file */
        ck_abort_msg("bit %u is not %d", i, model[i]);
      ones += model[i];
      found[model[i]] = i;
    }
    ck_assert_uint_eq(bits_count(words, first, end), ones);
    ck_assert_uint_eq(bits_find(words, first, end, true), found[1]);
    ck_assert_uint_eq(bits_find(words, first, end, false), found[0]);
  }
}
END_TEST

START_TEST(bits_find_looks_at_no_word_outside)
{
  uint64_t words[2] = { 0, ~UINT64_C(0) };

  ck_assert_uint_eq(bits_find(words, 0, 64, true), 64);
  ck_assert_uint_eq(bits_find(words, 0, 65, true), 64);
  ck_assert_uint_eq(bits_find(words, 3, 3, true), 3);
  ck_assert_uint_eq(bits_count(words, 64, 64), 0);
}
END_TEST

/* ---- CRC32C ---- */

START_TEST(crc32c_gives_the_published_values)
{
  uint8_t data[32];

  /* the check value of the CRC catalogue, and RFC 3720, appendix B.4 */
  ck_assert_uint_eq(crc32c("123456789", 9), 0xe3069283);
  ck_assert_uint_eq(crc32c_portable("123456789", 9), 0xe3069283);
  memset(data, 0, sizeof(data));
  ck_assert_uint_eq(crc32c(data, sizeof(data)), 0x8a9136aa);
  memset(data, 0xff, sizeof(data));
  ck_assert_uint_eq(crc32c(data, sizeof(data)), 0x62a8ab43);
  for (unsigned i = 0; i < sizeof(data); i++)
    data[i] = (uint8_t)i;
  ck_assert_uint_eq(crc32c(data, sizeof(data)), 0x46dd794e);
  ck_assert_uint_eq(crc32c_portable(data, sizeof(data)), 0x46dd794e);
  ck_assert_uint_eq(crc32c(data, 0), 0);
}
END_TEST

START_TEST(crc32c_is_the_same_by_table_and_by_instruction)
{
  uint8_t data[300];

  for (unsigned i = 0; i < sizeof(data); i++)
    data[i] = (uint8_t)g_random_int();
  for (unsigned start = 0; start < 9; start++)
    for (unsigned length = 0; length <= sizeof(data) - start; length++)
      if (crc32c(data + start, length) != crc32c_portable(data + start, length))
        ck_abort_msg("they differ for %u bytes at %u", length, start);
}
END_TEST

/* ---- Geometry ---- */

START_TEST(geometry_has_no_overlap)
{
  unsigned shift = (unsigned)_i;
  struct geometry g = geometry_make(shift);
  uint64_t align = MIN(g.unit_bytes, UINT64_C(2) << 20);
  uint64_t sample[] = { 1, 2, 3, 1000, SLOTS_PER_GROUP - 1, SLOTS_PER_GROUP, SLOTS_PER_GROUP + 1,
                        g.slot_max - 1, g.slot_max };

  ck_assert_uint_eq(g.unit_bytes, UINT64_C(1) << shift);
  ck_assert_uint_eq(g.unit_pages * PAGE_BYTES, g.unit_bytes);
  ck_assert_uint_ge(g.bitmap_bytes * 8, g.unit_pages);
  ck_assert_uint_eq(g.bitmap_bytes % 8, 0);
  ck_assert_uint_ge(g.bitmaps, SLOTS_PER_GROUP * sizeof(struct pcow_disk_slot));
  ck_assert_uint_ge(g.data, g.bitmaps + SLOTS_PER_GROUP * g.bitmap_bytes);
  ck_assert_uint_ge(g.slot_max, SLOTS_PER_GROUP);
  ck_assert_uint_eq(g.slot_max % SLOTS_PER_GROUP, 0);

  for (size_t k = 0; k < G_N_ELEMENTS(sample); k++) {
    uint64_t i = sample[k];
    uint64_t group = geometry_group(&g, i);
    uint64_t end;

    ck_assert_uint_ge(group, SLOT_GROUPS_OFFSET);
    ck_assert_uint_eq(geometry_header(&g, i) % sizeof(struct pcow_disk_slot), 0);
    ck_assert_uint_ge(geometry_header(&g, i), group);
    ck_assert_uint_le(geometry_header(&g, i) + sizeof(struct pcow_disk_slot), group + g.bitmaps);
    ck_assert_uint_eq(geometry_bitmap(&g, i) % 8, 0);
    ck_assert_uint_ge(geometry_bitmap(&g, i), group + g.bitmaps);
    ck_assert_uint_le(geometry_bitmap(&g, i) + g.bitmap_bytes, group + g.data);
    ck_assert_uint_eq(geometry_data(&g, i) % align, 0);
    ck_assert_uint_ge(geometry_data(&g, i), group + g.data);
    ck_assert(!__builtin_add_overflow(geometry_data(&g, i), g.unit_bytes, &end));
    ck_assert_uint_le(end, group + g.group_bytes);
    ck_assert_uint_le(end, LOCK_HEAD);
    ck_assert_uint_eq(geometry_file_size(&g, i), end);
    if (i == g.slot_max)
      continue;
    ck_assert_uint_gt(geometry_header(&g, i + 1), geometry_header(&g, i));
    ck_assert_uint_gt(geometry_bitmap(&g, i + 1), geometry_bitmap(&g, i));
    ck_assert_uint_ge(geometry_data(&g, i + 1), end);
    ck_assert_uint_gt(geometry_file_size(&g, i + 1), end);
    if (i % SLOTS_PER_GROUP == 0)
      ck_assert_uint_ge(geometry_group(&g, i + 1), end);
  }
  ck_assert_uint_eq(geometry_file_size(&g, 0), SLOT_GROUPS_OFFSET);
}
END_TEST

START_TEST(geometry_counts_units)
{
  struct geometry g = geometry_make(UNIT_SHIFT_MIN);

  ck_assert_uint_eq(geometry_units(&g, 4096), 1);
  ck_assert_uint_eq(geometry_units(&g, 65536), 1);
  ck_assert_uint_eq(geometry_units(&g, 65536 + 4096), 2);
  ck_assert_uint_le(geometry_map_word(UNITS_MAX - 1) + 8, SLOT_GROUPS_OFFSET);
  g = geometry_make(UNIT_SHIFT_MAX);
  ck_assert_uint_eq(geometry_units(&g, UNITS_MAX << UNIT_SHIFT_MAX), UNITS_MAX);
}
END_TEST

/* ---- Locks ---- */

START_TEST(locks_belong_to_open_files)
{
  char name[64];
  int a = memory_file(0);
  int b;

  snprintf(name, sizeof(name), "/proc/self/fd/%d", a);
  b = open(name, O_RDWR | O_CLOEXEC);
  ck_assert_int_ge(b, 0);

  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_HEAD, LOCK_EXCLUSIVE), 0);
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_HEAD, LOCK_SHARED), -EAGAIN);
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_HEAD, LOCK_EXCLUSIVE), -EAGAIN);
  ck_assert_int_eq(lock_wait(b, IMAGE_NAME, LOCK_HEAD, LOCK_SHARED, 20), -EAGAIN);
  /* the neighbours are free, the highest epoch's byte is a file offset */
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_WALK, LOCK_EXCLUSIVE), 0);
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_EPOCH(EPOCH_ID_MAX), LOCK_EXCLUSIVE), 0);
  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_EPOCH(EPOCH_ID_MAX), LOCK_SHARED), -EAGAIN);
  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_EPOCH(1), LOCK_SHARED), 0);
  ck_assert(lock_area_busy(b));

  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_HEAD, LOCK_SHARED), 0); /* changes it */
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_HEAD, LOCK_SHARED), 0);
  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_HEAD, LOCK_EXCLUSIVE), -EAGAIN);
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_HEAD, LOCK_NONE), 0);
  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_HEAD, LOCK_EXCLUSIVE), 0);
  close(a);
  ck_assert(!lock_area_busy(b));
  close(b);
}
END_TEST

static gpointer unlock_soon(gpointer data)
{
  int fd = GPOINTER_TO_INT(data);

  g_usleep(20000);
  ck_assert_int_eq(lock_try(fd, IMAGE_NAME, LOCK_WALK, LOCK_NONE), 0);
  return NULL;
}

START_TEST(waiting_for_a_lock)
{
  char name[64];
  int a = memory_file(0);
  GThread *thread;
  int b;

  snprintf(name, sizeof(name), "/proc/self/fd/%d", a);
  b = open(name, O_RDWR | O_CLOEXEC);
  ck_assert_int_eq(lock_try(a, IMAGE_NAME, LOCK_WALK, LOCK_EXCLUSIVE), 0);
  thread = g_thread_new("unlock", unlock_soon, GINT_TO_POINTER(a));
  ck_assert_int_eq(lock_wait(b, IMAGE_NAME, LOCK_WALK, LOCK_SHARED, 10000), 0);
  g_thread_join(thread);
  close(a);
  close(b);
}
END_TEST

START_TEST(a_lock_that_cannot_be_had)
{
  char name[64];
  int a = memory_file(0);
  int b;

  snprintf(name, sizeof(name), "/proc/self/fd/%d", a);
  b = open(name, O_RDONLY | O_CLOEXEC);
  ck_assert_int_eq(lock_try(b, IMAGE_NAME, LOCK_HEAD, LOCK_EXCLUSIVE), -EBADF);
  ck_assert_message(IMAGE_NAME ": cannot lock");
  close(a);
  close(b);
}
END_TEST

/* ---- Errors ---- */

static gpointer other_thread(gpointer data)
{
  (void)data;
  ck_assert_str_eq(pcow_errormsg(), "");
  fail(EIO, "other");
  return NULL;
}

START_TEST(messages_are_of_the_thread)
{
  char *text = g_strnfill(20000, 'x');

  ck_assert_str_eq(pcow_errormsg(), "");
  ck_assert_int_eq(fail(EUCLEAN, "%s: is %d", "a", 1), -EUCLEAN);
  ck_assert_str_eq(pcow_errormsg(), "a: is 1");
  g_thread_join(g_thread_new("other", other_thread, NULL));
  ck_assert_str_eq(pcow_errormsg(), "a: is 1");
  ck_assert_int_eq(fail(EIO, "%s, again", error_message()), -EIO);
  ck_assert_str_eq(pcow_errormsg(), "a: is 1, again");
  error_prefix("%s", "b");
  ck_assert_str_eq(pcow_errormsg(), "b: a: is 1, again");
  ck_assert_int_eq(fail_errno(ENOENT, "%s", "c"), -ENOENT);
  ck_assert(g_str_has_prefix(pcow_errormsg(), "c: "));
  fail(EIO, "%s", text);
  ck_assert_str_eq(pcow_errormsg(), text);
  g_free(text);
}
END_TEST

static void keep_log(void *opaque, int level, const char *message)
{
  g_string_append_printf(opaque, "%d %s;", level, message);
}

START_TEST(log_lines)
{
  GString *log = g_string_new(NULL);

  log_message(PCOW_LOG_ERROR, "nobody listens");
  pcow_set_log(keep_log, log);
  log_message(PCOW_LOG_WARNING, "%s %d", "line", 1);
  pcow_set_log(NULL, NULL);
  log_message(PCOW_LOG_ERROR, "nobody listens");
  ck_assert_str_eq(log->str, "1 line 1;");
  g_string_free(log, TRUE);
  ck_assert_str_eq(pcow_version(), "0.1.0");
}
END_TEST

int main(void)
{
  Suite *suite = suite_create("ground");
  TCase *t = tcase_create("ground");

  tcase_add_test(t, bits_agree_with_a_model);
  tcase_add_test(t, bits_find_looks_at_no_word_outside);
  tcase_add_test(t, crc32c_gives_the_published_values);
  tcase_add_test(t, crc32c_is_the_same_by_table_and_by_instruction);
  tcase_add_loop_test(t, geometry_has_no_overlap, UNIT_SHIFT_MIN, UNIT_SHIFT_MAX + 1);
  tcase_add_test(t, geometry_counts_units);
  tcase_add_test(t, locks_belong_to_open_files);
  tcase_add_test(t, waiting_for_a_lock);
  tcase_add_test(t, a_lock_that_cannot_be_had);
  tcase_add_test(t, messages_are_of_the_thread);
  tcase_add_test(t, log_lines);
  suite_add_tcase(suite, t);
  return run_suite(suite);
}
