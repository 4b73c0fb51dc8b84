/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pins the layout on the media, version 1, with literal offsets and a checksum of its own: nothing
 * here comes from format.h. When this test has to change, the format has changed (docs/format.md).
 * The golden image (tests/data) was written once and stays as it is.
 */
#include "testlib.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *path, *other;

static void setup(void)
{
  path = test_path("image.pcow");
  other = test_path("other");
}

static void teardown(void)
{
  unlink(path);
  unlink(other);
}

/* ---- Bytes ---- */

static uint64_t get(const uint8_t *p, unsigned n)
{
  uint64_t v = 0;

  while (n--)
    v = v << 8 | p[n];
  return v;
}

static uint32_t u32(const uint8_t *p) { return (uint32_t)get(p, 4); }
static uint64_t u64(const uint8_t *p) { return get(p, 8); }

/* CRC32C one bit at a time: reflected polynomial 0x1EDC6F41. */
static uint32_t crc(const uint8_t *p, size_t n)
{
  uint32_t c = 0xffffffff;

  while (n--) {
    c ^= *p++;
    for (int i = 0; i < 8; i++)
      c = c & 1 ? c >> 1 ^ 0x82f63b78 : c >> 1;
  }
  return ~c;
}

/* What lies in the file; beyond its end zeros. */
static void peek(const char *file, uint64_t offset, void *buffer, size_t n)
{
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  ssize_t r;

  ck_assert_int_ge(fd, 0);
  memset(buffer, 0, n);
  r = pread(fd, buffer, n, (off_t)offset);
  ck_assert_int_ge(r, 0);
  close(fd);
}

static bool all_zero(const uint8_t *p, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (p[i])
      return false;
  return true;
}

/* Reads the superblock, after checking what holds of each at rest. */
static void superblock(const char *file, uint8_t sb[4096])
{
  uint8_t second[4096];

  peek(file, 0, sb, 4096);
  peek(file, 1024 * 1024, second, 4096);
  ck_assert_mem_eq(sb, second, 4096);
  ck_assert_mem_eq(sb, "\x50\x43\x4f\x57\x0d\x0a\x1a\x0a", 8);
  ck_assert_uint_eq(u32(sb + 8), 1);        /* version */
  ck_assert_uint_eq(u64(sb + 16), 0);       /* features: incompatible, */
  ck_assert_uint_eq(u64(sb + 24), 0);       /* compatible for reading, */
  ck_assert_uint_eq(u64(sb + 32), 0);       /* compatible */
  ck_assert(!all_zero(sb + 40, 16));        /* UUID */
  ck_assert(all_zero(sb + 136, 120));
  ck_assert(all_zero(sb + 1376, 4092 - 1376));
  ck_assert_uint_eq(u32(sb + 4092), crc(sb, 4092));
}

/* ---- Images ---- */

static void create(const char *file, uint64_t size, uint64_t unit_size)
{
  struct pcow_create_options options = PCOW_INIT(options);

  options.unit_size = unit_size;
  OK(pcow_create(file, size, &options));
}

static pcow_image *open_image(const char *file, uint32_t flags, const char *snapshot)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;

  options.flags = flags;
  options.snapshot = snapshot;
  OK(pcow_open(file, &options, &image));
  return image;
}

/* Bytes that belong to SEED, different in each page, of which little remains when compressed. */
static void fill(uint8_t *p, size_t n, uint32_t seed)
{
  for (size_t i = 0; i < n; i++)
    p[i] = (uint8_t)(seed * 101 + i / 16 + i / 4096 * 7);
}

START_TEST(crc32c_of_known_text)
{
  ck_assert_uint_eq(crc((const uint8_t *)"123456789", 9), 0xe3069283);
}
END_TEST

START_TEST(superblock_of_a_new_image)
{
  uint8_t sb[4096];

  create(path, 8 * MIB, 64 * KIB);
  superblock(path, sb);
  ck_assert_uint_eq(u32(sb + 12), 16);          /* unit shift */
  ck_assert_uint_ge(u64(sb + 56), 1);           /* sequence */
  ck_assert_uint_eq(u64(sb + 80), 8 * MIB);     /* virtual size */
  ck_assert_uint_eq(u64(sb + 88), 8 * MIB);     /* floor */
  ck_assert_uint_eq(u32(sb + 96), 1);           /* head: the root epoch, */
  ck_assert_uint_eq(u32(sb + 100), 0);          /* which has no parent */
  ck_assert_uint_eq(u32(sb + 104), 2);          /* next epoch */
  ck_assert_uint_eq(u32(sb + 108), 0);          /* clean */
  ck_assert_uint_eq(u64(sb + 112), u64(sb + 120)); /* the log is empty */
  ck_assert(all_zero(sb + 256, 1120));          /* no base */
}
END_TEST

START_TEST(default_unit_sizes)
{
  uint8_t sb[4096];

  create(path, GIB, 0);
  superblock(path, sb);
  ck_assert_uint_eq(u32(sb + 12), 27);
  ck_assert_int_eq(unlink(path), 0);
  create(path, 2048 * GIB, 0); /* 16384 units of 128 MiB would be too many */
  superblock(path, sb);
  ck_assert_uint_eq(u32(sb + 12), 28);
}
END_TEST

START_TEST(writing_session)
{
  uint8_t before[4096], during[4096], after[4096];
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
  pcow_image *image;
  int fd;

  create(path, 8 * MIB, 64 * KIB);
  superblock(path, before);
  image = open_image(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "x", 1, 0));
  superblock(path, during);

  fd = open(path, O_RDWR | O_CLOEXEC);
  ck_assert_int_ge(fd, 0);
  lock.l_start = (off_t)(UINT64_C(1) << 62); /* the head's lock byte */
  ck_assert_int_eq(fcntl(fd, F_OFD_GETLK, &lock), 0);
  ck_assert_int_eq(lock.l_type, F_WRLCK);
  close(fd);

  OK(pcow_close(image));
  superblock(path, after);
  ck_assert_uint_eq(u32(during + 108) & 1, 1);
  ck_assert_uint_eq(u32(after + 108) & 1, 0);
  ck_assert_uint_gt(u64(during + 56), u64(before + 56));
  ck_assert_uint_gt(u64(after + 56), u64(during + 56));
  ck_assert_uint_gt(u64(during + 64), u64(before + 64)); /* content tag: counter, */
  ck_assert_uint_ne(u64(during + 72), u64(before + 72)); /* random */
  ck_assert_mem_eq(before + 40, after + 40, 16);
}
END_TEST

START_TEST(readers_lock_bytes)
{
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
  pcow_image *image;
  int fd;

  create(path, 8 * MIB, 64 * KIB);
  image = open_image(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "s"));
  OK(pcow_close(image));

  image = open_image(path, 0, "s");
  fd = open(path, O_RDWR | O_CLOEXEC);
  ck_assert_int_ge(fd, 0);
  lock.l_start = (off_t)((UINT64_C(1) << 62) + (UINT64_C(1) << 32) + 1); /* epoch 1 */
  ck_assert_int_eq(fcntl(fd, F_OFD_GETLK, &lock), 0);
  ck_assert_int_eq(lock.l_type, F_RDLCK);
  close(fd);
  OK(pcow_close(image));
}
END_TEST

/* Unit size, and by hand: offset of the first slot's bitmap, data area, and bytes of a group. */
static const struct {
  uint64_t unit, bitmap, data;
} geometries[] = {
  { 64 * KIB, 0x40400000, 0x40480000 },
  { 2 * MIB, 0x40400000, 0x40800000 },
  { 128 * MIB, 0x40400000, 0x50400000 },
};

START_TEST(slot_after_a_write)
{
  const uint64_t unit = geometries[_i].unit;
  uint8_t content[8192], page[4096], word[8], header[64], bits[8], identity[32];
  uint8_t sb[4096];
  pcow_image *image;
  uint32_t index;

  fill(content, sizeof(content), 1);
  create(path, 8 * unit, unit);
  image = open_image(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, content, sizeof(content), 3 * unit + 5 * 4 * KIB));
  OK(pcow_close(image));

  peek(path, 0x30000000 + 2 * 8, word, 8);
  ck_assert(all_zero(word, 8));
  peek(path, 0x30000000 + 3 * 8, word, 8);
  ck_assert_uint_eq(u64(word) & 0xff, 0);       /* device */
  ck_assert_uint_eq(u64(word) >> 56, 0);        /* reserved */
  index = (uint32_t)(u64(word) >> 8);
  ck_assert_uint_ge(index, 1);
  ck_assert_uint_lt(index, 65536);
  superblock(path, sb);
  ck_assert_uint_le(index, u64(sb + 128));      /* high-water mark */

  peek(path, 0x40000000 + (index - 1) * UINT64_C(64), header, 64);
  ck_assert_mem_eq(header, "SLOT", 4);
  ck_assert_uint_eq(u32(header + 4), 0);
  ck_assert_uint_eq(u64(header + 8), 3);        /* unit */
  ck_assert_uint_eq(u32(header + 16), 1);       /* epoch */
  ck_assert_uint_eq(u64(header + 24), 0);       /* previous */
  ck_assert(all_zero(header + 32, 32));
  memset(identity, 0, sizeof(identity));
  memcpy(identity, header, 20);
  identity[24] = (uint8_t)index;
  identity[25] = (uint8_t)(index >> 8);
  ck_assert_uint_eq(u32(header + 20), crc(identity, 32));

  peek(path, geometries[_i].bitmap + (index - 1) * (unit / 4096 / 8 > 8 ? unit / 4096 / 8 : 8), bits, 8);
  ck_assert_uint_eq(u64(bits) >> 5 & 3, 3);
  peek(path, geometries[_i].data + (index - 1) * unit + 5 * 4 * KIB, page, 4096);
  ck_assert_mem_eq(page, content, 4096);
}
END_TEST

START_TEST(snapshot_and_chain)
{
  uint8_t sb[4096], record[512], word[8], header[64];
  pcow_image *image;
  uint64_t newest;

  create(path, 8 * MIB, 64 * KIB);
  image = open_image(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "first", 5, 0));
  OK(pcow_snapshot_create(image, "été"));
  OK(pcow_pwrite(image, "second", 6, 0));
  OK(pcow_close(image));

  superblock(path, sb);
  ck_assert_uint_eq(u32(sb + 96), 2);           /* head epoch */
  ck_assert_uint_eq(u32(sb + 100), 1);          /* its parent */
  ck_assert_uint_eq(u32(sb + 104), 3);
  ck_assert_uint_eq(u64(sb + 120) - u64(sb + 112), 1);

  peek(path, 0x200000 + u64(sb + 112) % (1 << 20) * 512, record, 512);
  ck_assert_mem_eq(record, "EPCH", 4);
  ck_assert_uint_eq(u32(record + 4), 1);        /* id */
  ck_assert_uint_eq(u32(record + 8), 0);        /* parent */
  ck_assert_uint_eq(u32(record + 12), 1);       /* a snapshot */
  ck_assert(!all_zero(record + 16, 16));        /* GUID */
  ck_assert_uint_gt(u64(record + 32), 1700000000);
  ck_assert_uint_lt(u32(record + 40), 1000000000);
  ck_assert_uint_eq(u32(record + 44), 5);       /* name, bytes */
  ck_assert_uint_eq(u64(record + 48), 8 * MIB); /* virtual size */
  ck_assert_uint_eq(u64(record + 56), 8 * MIB); /* floor */
  ck_assert_mem_eq(record + 64, "\xc3\xa9t\xc3\xa9", 5);
  ck_assert(all_zero(record + 69, 256 - 5));
  ck_assert_uint_eq(u64(record + 320), u64(sb + 112));
  ck_assert(all_zero(record + 328, 180));
  ck_assert_uint_eq(u32(record + 508), crc(record, 508));

  peek(path, 0x30000000, word, 8);
  newest = u64(word) >> 8;
  peek(path, 0x40000000 + (newest - 1) * 64, header, 64);
  ck_assert_uint_eq(u32(header + 16), 2);       /* the head's slot comes first, */
  ck_assert_uint_ne(u64(header + 24), 0);
  peek(path, 0x40000000 + ((u64(header + 24) >> 8) - 1) * 64, header, 64);
  ck_assert_uint_eq(u64(header + 8), 0);
  ck_assert_uint_eq(u32(header + 16), 1);       /* then its ancestor's */
  ck_assert_uint_eq(u64(header + 24), 0);
}
END_TEST

START_TEST(base_references)
{
  struct pcow_create_options options = PCOW_INIT(options);
  uint8_t sb[4096], base[4096], record[512];
  struct stat st;
  pcow_image *image;
  int fd;

  /* A pcow image's head, */
  create(other, 8 * MIB, 64 * KIB);
  image = open_image(other, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "x", 1, 0));
  OK(pcow_close(image));
  options.base = "other";
  options.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_create(path, 0, &options));
  superblock(path, sb);
  superblock(other, base);
  ck_assert_uint_eq(u64(sb + 80), 8 * MIB);
  ck_assert_uint_eq(u32(sb + 256), 1);              /* format */
  ck_assert_uint_eq(u32(sb + 260), 0);              /* epoch: the head */
  ck_assert_mem_eq(sb + 264, base + 40, 16);        /* UUID */
  ck_assert(all_zero(sb + 280, 16));                /* GUID */
  ck_assert_mem_eq(sb + 296, base + 64, 16);        /* content tag */
  ck_assert(all_zero(sb + 312, 16));                /* accepted tag */
  ck_assert(all_zero(sb + 328, 20));                /* raw */
  ck_assert_uint_eq(u32(sb + 348), 5);
  ck_assert_mem_eq(sb + 352, "other", 6);
  ck_assert_int_eq(unlink(path), 0);

  /* a snapshot of it, */
  image = open_image(other, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "s"));
  OK(pcow_close(image));
  options.base_snapshot = "s";
  OK(pcow_create(path, 0, &options));
  superblock(path, sb);
  superblock(other, base);
  peek(other, 0x200000 + u64(base + 112) % (1 << 20) * 512, record, 512);
  ck_assert_uint_eq(u32(sb + 256), 1);
  ck_assert_uint_eq(u32(sb + 260), 1);
  ck_assert_mem_eq(sb + 264, base + 40, 16);
  ck_assert_mem_eq(sb + 280, record + 16, 16);
  ck_assert_int_eq(unlink(path), 0);
  ck_assert_int_eq(unlink(other), 0);

  /* and a raw file. */
  fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ck_assert_int_ge(fd, 0);
  ck_assert_int_eq(ftruncate(fd, 5 * 4096 + 1), 0);
  ck_assert_int_eq(fstat(fd, &st), 0);
  close(fd);
  options.base_snapshot = NULL;
  options.base_format = PCOW_FORMAT_RAW;
  OK(pcow_create(path, 0, &options));
  superblock(path, sb);
  ck_assert_uint_eq(u64(sb + 80), 6 * 4096);
  ck_assert_uint_eq(u32(sb + 256), 2);
  ck_assert(all_zero(sb + 260, 68));
  ck_assert_uint_eq(u64(sb + 328), 5 * 4096 + 1);
  ck_assert_int_eq((int64_t)u64(sb + 336), st.st_mtim.tv_sec);
  ck_assert_uint_eq(u32(sb + 344), (uint32_t)st.st_mtim.tv_nsec);
}
END_TEST

/* ---- The golden image ---- */

/* See tests/data/README. */
static void unpack_golden(void)
{
  const char *root = getenv("SOURCE_ROOT");
  char command[8192];

  ck_assert_ptr_nonnull(root);
  snprintf(command, sizeof(command), "tar -xJf '%s/tests/data/golden-v1.tar.xz' -C '%s'", root,
           test_path("."));
  ck_assert_int_eq(system(command), 0);
  ck_assert_int_eq(rename(test_path("golden-v1.pcow"), path), 0);
}

static void golden_content(pcow_image *image, uint32_t first, uint32_t second)
{
  static uint8_t have[3 * 4096], want[3 * 4096];

  /* Unit 2, from the middle of a page: generation 1 everywhere, the later one over its middle. */
  OK(pcow_pread(image, have, sizeof(have), 128 * KIB + 2000));
  fill(want, sizeof(want), first);
  if (second)
    fill(want + 4096, 4096, second);
  ck_assert_mem_eq(have, want, sizeof(want));

  OK(pcow_pread(image, have, sizeof(have), 0));
  ck_assert(all_zero(have, sizeof(have)));
}

START_TEST(golden_image)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct pcow_info info = PCOW_INIT(info);
  uint8_t page[4096];
  pcow_image *image;

  unpack_golden();
  OK(pcow_check(path, 0, &result, NULL, NULL, NULL));
  ck_assert_uint_eq(result.corruptions, 0);
  ck_assert_uint_eq(result.leaks, 0);

  image = open_image(path, 0, "one");
  OK(pcow_get_info(image, &info));
  ck_assert_uint_eq(info.virtual_size, MIB);
  golden_content(image, 1, 0);
  OK(pcow_pread(image, page, 4096, MIB - 4096));
  ck_assert(!all_zero(page, 4096));
  OK(pcow_close(image));

  image = open_image(path, 0, "two");
  golden_content(image, 1, 2);
  OK(pcow_pread(image, page, 4096, MIB - 4096)); /* discarded */
  ck_assert(all_zero(page, 4096));
  OK(pcow_close(image));

  image = open_image(path, PCOW_OPEN_RDWR, NULL); /* grown, and branched off "one" */
  OK(pcow_get_info(image, &info));
  ck_assert_uint_eq(info.virtual_size, 2 * MIB);
  ck_assert_uint_eq(info.unit_size, 64 * KIB);
  ck_assert_uint_eq(info.snapshot_count, 2);
  golden_content(image, 1, 3);
  OK(pcow_pwrite(image, "still writable", 14, MIB));
  OK(pcow_snapshot_create(image, "three"));
  OK(pcow_close(image));
  OK(pcow_check(path, 0, &result, NULL, NULL, NULL));
  ck_assert_uint_eq(result.corruptions, 0);
}
END_TEST

/* Makes an image like the golden one at FILE: how it was made, and how the next format's will be. */
static int make_golden(const char *file)
{
  static uint8_t bytes[3 * 4096];
  struct pcow_create_options options = PCOW_INIT(options);
  struct pcow_open_options how = PCOW_INIT(how);
  pcow_image *image;

  options.unit_size = 64 * KIB;
  how.flags = PCOW_OPEN_RDWR;
  if (pcow_create(file, MIB, &options) < 0 || pcow_open(file, &how, &image) < 0)
    return -1;
  fill(bytes, sizeof(bytes), 1);
  if (pcow_pwrite(image, bytes, sizeof(bytes), 128 * KIB + 2000) < 0 ||
      pcow_pwrite(image, bytes, 4096, MIB - 4096) < 0 || pcow_snapshot_create(image, "one") < 0)
    return -1;
  fill(bytes, 4096, 2);
  if (pcow_pwrite(image, bytes, 4096, 128 * KIB + 2000 + 4096) < 0 ||
      pcow_discard(image, MIB - 4096, 4096) < 0 || pcow_snapshot_create(image, "two") < 0 ||
      pcow_snapshot_revert(image, "one") < 0)
    return -1;
  fill(bytes, 4096, 3);
  if (pcow_pwrite(image, bytes, 4096, 128 * KIB + 2000 + 4096) < 0 ||
      pcow_resize(image, 2 * MIB, 0) < 0)
    return -1;
  return pcow_close(image);
}

int main(int argc, char **argv)
{
  Suite *suite = suite_create("format");
  TCase *tc = tcase_create("format");
  SRunner *runner;
  int failed;

  if (argc == 3 && strcmp(argv[1], "--make-golden") == 0) {
    if (make_golden(argv[2]) < 0)
      fprintf(stderr, "%s\n", pcow_errormsg());
    return 0;
  }

  test_dir(argc, argv);
  tcase_add_checked_fixture(tc, setup, teardown);
  tcase_add_test(tc, crc32c_of_known_text);
  tcase_add_test(tc, superblock_of_a_new_image);
  tcase_add_test(tc, default_unit_sizes);
  tcase_add_test(tc, writing_session);
  tcase_add_test(tc, readers_lock_bytes);
  tcase_add_loop_test(tc, slot_after_a_write, 0, (int)(sizeof(geometries) / sizeof(geometries[0])));
  tcase_add_test(tc, snapshot_and_chain);
  tcase_add_test(tc, base_references);
  tcase_add_test(tc, golden_image);
  suite_add_tcase(suite, tc);
  runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
