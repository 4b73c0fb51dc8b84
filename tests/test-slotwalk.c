/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Walking unit maps and chains: what is right is read as it is; references out of range, headers that
 * are damaged, copied from elsewhere or of another unit, and chains that run in a circle are refused.
 */
#include "ground.h"

#include "slotwalk.h"

#define SLOTS 200u

struct image {
  int fd;
  struct superblock sb;
  struct geometry geo;
};

static void put(int fd, uint64_t offset, const void *data, size_t length)
{
  ck_assert_int_eq(pwrite(fd, data, length, (off_t)offset), (ssize_t)length);
}

static void put_word(int fd, uint64_t offset, uint64_t word)
{
  le64 disk = le64_make(word);

  put(fd, offset, &disk, 8);
}

static void put_slot(const struct image *image, uint64_t index, uint64_t unit, uint32_t epoch,
                     uint64_t previous)
{
  struct pcow_disk_slot disk = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(unit),
    .previous = le64_make(previous ? SLOT_REF(previous) : 0),
  };

  put(image->fd, geometry_header(&image->geo, index), &disk, sizeof(disk));
  put_word(image->fd, geometry_header(&image->geo, index) + 16, slot_owner_word(unit, epoch, index));
}

static void open_image(struct image *image, unsigned unit_shift)
{
  image->sb = image_state();
  image->sb.unit_shift = unit_shift;
  image->sb.next_epoch = 1000;
  image->sb.slot_count = SLOTS;
  image->geo = geometry_make(unit_shift);
  image->fd = image_file(&image->sb);
  ck_assert_int_eq(ftruncate(image->fd, (off_t)geometry_file_size(&image->geo, SLOTS)), 0);
}

static int read_header(const struct image *image, uint64_t unit, uint64_t index, struct slot_info *info)
{
  return slotwalk_header(image->fd, IMAGE_NAME, &image->sb, unit, index, info);
}

static int read_chain(const struct image *image, uint64_t unit, uint64_t index, GArray *chain)
{
  g_array_set_size(chain, 0);
  return slotwalk_chain(image->fd, IMAGE_NAME, &image->sb, unit, index, chain);
}

START_TEST(map_words)
{
  struct image image;
  uint64_t words[3];
  uint64_t index;

  open_image(&image, 16);
  put_word(image.fd, geometry_map_word(1), SLOT_REF(SLOTS));
  put_word(image.fd, geometry_map_word(2), SLOT_REF(SLOTS + 1));
  put_word(image.fd, geometry_map_word(3), SLOT_REF(1) | 1); /* another device */
  put_word(image.fd, geometry_map_word(4), SLOT_REF(1) | UINT64_C(1) << 56);
  put_word(image.fd, geometry_map_word(5), ~UINT64_C(0));
  ck_assert_int_eq(slotwalk_map(image.fd, IMAGE_NAME, &image.sb, 0, &index), 0);
  ck_assert_uint_eq(index, 0);
  ck_assert_int_eq(slotwalk_map(image.fd, IMAGE_NAME, &image.sb, 1, &index), 0);
  ck_assert_uint_eq(index, SLOTS);
  for (uint64_t unit = 2; unit <= 5; unit++) {
    ck_assert_int_eq(slotwalk_map(image.fd, IMAGE_NAME, &image.sb, unit, &index), -EUCLEAN);
    ck_assert_message(IMAGE_NAME ": unit ");
    ck_assert_message("slot reference 0x");
  }
  ck_assert_int_eq(slotwalk_map_words(image.fd, IMAGE_NAME, 0, 3, words), 0);
  ck_assert_uint_eq(words[0], 0);
  ck_assert_uint_eq(words[1], SLOT_REF(SLOTS));
  ck_assert_uint_eq(words[2], SLOT_REF(SLOTS + 1)); /* not validated */
  ck_assert_int_eq(slotwalk_map(image.fd, IMAGE_NAME, &image.sb, UNITS_MAX - 1, &index), 0);
  close(image.fd);
}
END_TEST

#define MANY 5000u

struct flipper {
  uint64_t *map;
  bool stop;
};

/* Changes between values whose mixtures are neither, with pauses: no writer changes words on and on. */
static gpointer flip(gpointer data)
{
  static const uint64_t values[2] = { SLOT_REF(0x00ff00ff), SLOT_REF(0xff00ff00) };
  struct flipper *flipper = data;

  for (uint64_t i = 0; !__atomic_load_n(&flipper->stop, __ATOMIC_RELAXED); i++) {
    __atomic_store_n(&flipper->map[i % 7 * 700], htole64(values[i / 7 % 2]), __ATOMIC_RELAXED);
    if (i % 20 == 0)
      g_usleep(1);
  }
  return NULL;
}

START_TEST(map_words_beside_a_writer)
{
  struct flipper flipper = { 0 };
  struct image image;
  uint64_t words[MANY];
  GThread *thread;

  open_image(&image, 16);
  for (unsigned i = 0; i < MANY; i++)
    put_word(image.fd, geometry_map_word(i), SLOT_REF(0x00ff00ff));
  flipper.map = mmap(NULL, MANY * 8, PROT_READ | PROT_WRITE, MAP_SHARED, image.fd, UNIT_MAP_OFFSET);
  ck_assert_ptr_ne(flipper.map, MAP_FAILED);
  thread = g_thread_new("writer", flip, &flipper);
  for (unsigned round = 0; round < 2000; round++) {
    if (slotwalk_map_words(image.fd, IMAGE_NAME, 0, MANY, words))
      ck_abort_msg("%s", error_message());
    for (unsigned i = 0; i < MANY; i++)
      if (words[i] != SLOT_REF(0x00ff00ff) && words[i] != SLOT_REF(0xff00ff00))
        ck_abort_msg("word %u is 0x%" PRIx64, i, words[i]);
  }
  __atomic_store_n(&flipper.stop, true, __ATOMIC_RELAXED);
  g_thread_join(thread);
  munmap(flipper.map, MANY * 8);
  close(image.fd);
}
END_TEST

START_TEST(headers)
{
  struct image image;
  struct slot_info info;
  uint8_t copy[64];

  open_image(&image, 27);
  put_slot(&image, 5, 77, 999, 3);
  ck_assert_int_eq(read_header(&image, 77, 5, &info), 0);
  ck_assert_uint_eq(info.index, 5);
  ck_assert_uint_eq(info.unit, 77);
  ck_assert_uint_eq(info.epoch, 999);
  ck_assert_uint_eq(info.previous, 3);

  ck_assert_int_eq(read_header(&image, 78, 5, &info), -EUCLEAN);
  ck_assert_message("slot 5 in its chain belongs to unit 77");
  ck_assert_int_eq(read_header(&image, 77, 6, &info), -EUCLEAN); /* never written */
  ck_assert_message("header of slot 6 is damaged");
  ck_assert_int_eq(pread(image.fd, copy, 64, (off_t)geometry_header(&image.geo, 5)), 64);
  put(image.fd, geometry_header(&image.geo, 6), copy, 64);
  ck_assert_int_eq(read_header(&image, 77, 6, &info), -EUCLEAN); /* right, but of slot 5 */
  for (unsigned byte = 0; byte < 24; byte++) { /* all that its CRC covers, itself included */
    copy[byte] ^= 1;
    put(image.fd, geometry_header(&image.geo, 5), copy, 64);
    copy[byte] ^= 1;
    ck_assert_int_eq(read_header(&image, 77, 5, &info), byte / 4 == 1 ? 0 : -EUCLEAN);
  }

  put_slot(&image, 5, 77, 1000, 0);
  ck_assert_int_eq(read_header(&image, 77, 5, &info), -EUCLEAN);
  ck_assert_message("epoch 1000, which does not exist yet");
  put_slot(&image, 5, 77, 0, 0);
  ck_assert_int_eq(read_header(&image, 77, 5, &info), -EUCLEAN);
  put_slot(&image, 5, 77, 1, SLOTS + 1);
  ck_assert_int_eq(read_header(&image, 77, 5, &info), -EUCLEAN);
  ck_assert_message("slot reference");
  close(image.fd);
}
END_TEST

START_TEST(chains)
{
  GArray *chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  struct image image;

  open_image(&image, 21);
  ck_assert_int_eq(read_chain(&image, 3, 0, chain), 0);
  ck_assert_uint_eq(chain->len, 0);
  for (unsigned i = 1; i <= SLOTS; i++)
    put_slot(&image, i, 3, i, i - 1);
  ck_assert_int_eq(read_chain(&image, 3, SLOTS, chain), 0);
  ck_assert_uint_eq(chain->len, SLOTS);
  for (unsigned i = 0; i < SLOTS; i++) {
    ck_assert_uint_eq(g_array_index(chain, struct slot_info, i).index, SLOTS - i);
    ck_assert_uint_eq(g_array_index(chain, struct slot_info, i).epoch, SLOTS - i);
  }

  /* circles of every length, after every sort of way in */
  for (unsigned to = 1; to <= SLOTS; to += 7) {
    put_slot(&image, 1, 3, 1, to);
    for (unsigned from = 1; from <= SLOTS; from += 9) {
      ck_assert_int_eq(read_chain(&image, 3, from, chain), -EUCLEAN);
      ck_assert_message("runs in a circle");
      ck_assert_uint_le(chain->len, 4 * SLOTS);
    }
  }

  put_slot(&image, 1, 3, 1, 0);
  put_slot(&image, 100, 4, 100, 99);
  ck_assert_int_eq(read_chain(&image, 3, 150, chain), -EUCLEAN);
  ck_assert_message("slot 100 in its chain belongs to unit 4");
  g_array_unref(chain);
  close(image.fd);
}
END_TEST

START_TEST(bitmaps)
{
  struct image image;
  uint64_t words[4];

  open_image(&image, 21); /* 512 pages: 8 words */
  for (unsigned i = 0; i < 8; i++)
    put_word(image.fd, geometry_bitmap(&image.geo, 9) + i * 8, i + 1);
  ck_assert_int_eq(slotwalk_bitmap(image.fd, IMAGE_NAME, &image.geo, 9, 128, 256, words), 0);
  for (unsigned i = 0; i < 4; i++)
    ck_assert_uint_eq(words[i], i + 3);
  ck_assert_int_eq(slotwalk_bitmap(image.fd, IMAGE_NAME, &image.geo, 10, 0, 256, words), 0);
  ck_assert_uint_eq(words[0], 0);
  close(image.fd);

  open_image(&image, 16); /* 16 pages: bits beyond them are nobody's */
  put_word(image.fd, geometry_bitmap(&image.geo, 9), 0xffff8001);
  put_word(image.fd, geometry_bitmap(&image.geo, 10), 0xffff);
  ck_assert_int_eq(slotwalk_bitmap(image.fd, IMAGE_NAME, &image.geo, 9, 0, 16, words), 0);
  ck_assert_uint_eq(words[0], 0x8001);
  close(image.fd);
}
END_TEST

START_TEST(reading_beyond_the_end)
{
  int fd = memory_file(4100);
  char data[8];

  ck_assert_int_eq(pwrite(fd, "tail", 4, 4096), 4);
  ck_assert_int_eq(file_read(fd, IMAGE_NAME, 4096, data, 8, false), -EUCLEAN);
  ck_assert_message("is truncated");
  ck_assert_int_eq(file_read(fd, IMAGE_NAME, 4096, data, 8, true), 0);
  ck_assert_mem_eq(data, "tail\0\0\0\0", 8);
  close(fd);
  ck_assert_int_eq(file_read(-1, IMAGE_NAME, 0, data, 8, true), -EBADF);
  ck_assert_message("cannot read at byte 0");
}
END_TEST

int main(void)
{
  Suite *suite = suite_create("slotwalk");
  TCase *t = tcase_create("slotwalk");

  tcase_add_test(t, map_words);
  tcase_add_test(t, map_words_beside_a_writer);
  tcase_add_test(t, headers);
  tcase_add_test(t, chains);
  tcase_add_test(t, bitmaps);
  tcase_add_test(t, reading_beyond_the_end);
  suite_add_tcase(suite, t);
  return run_suite(suite);
}
