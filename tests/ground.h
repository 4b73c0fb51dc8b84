/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the unit tests of the ground and format layers share: image files in memory (memfd, which is
 * tmpfs), in either durability mode, and a way to write crafted superblocks.
 */
#ifndef PCOW_TEST_GROUND_H
#define PCOW_TEST_GROUND_H

#include <check.h>
#undef fail /* check.h's macro; error.h has a function of that name */

#include "crc32c.h"
#include "error.h"
#include "persist.h"
#include "superblock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define IMAGE_NAME "test.pcow"

static inline void set_mode(enum persist_mode mode)
{
  setenv("PMEM_IS_PMEM_FORCE", mode == PERSIST_PMEM ? "1" : "0", 1);
}

static inline int memory_file(uint64_t size)
{
  int fd = memfd_create(IMAGE_NAME, MFD_CLOEXEC);

  ck_assert_int_ge(fd, 0);
  ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
  return fd;
}

static inline struct superblock image_state(void)
{
  return (struct superblock){
    .unit_shift = UNIT_SHIFT_DEFAULT,
    .virtual_size = UINT64_C(1) << 30,
    .head_floor = UINT64_C(1) << 30,
    .head_epoch = 1,
    .next_epoch = 2,
    .uuid = { 1, 2, 3 },
  };
}

/* Writes one copy, as it is. */
static inline void put_disk(int fd, unsigned copy, const struct pcow_disk_superblock *disk)
{
  ck_assert_int_eq(pwrite(fd, disk, sizeof(*disk), (off_t)SUPERBLOCK_OFFSET(copy)), sizeof(*disk));
}

static inline void get_disk(int fd, unsigned copy, struct pcow_disk_superblock *disk)
{
  ck_assert_int_eq(pread(fd, disk, sizeof(*disk), (off_t)SUPERBLOCK_OFFSET(copy)), sizeof(*disk));
}

static inline void seal_disk(struct pcow_disk_superblock *disk)
{
  disk->crc = le32_make(crc32c(disk, offsetof(struct pcow_disk_superblock, crc)));
}

static inline void put_superblock(int fd, unsigned copy, const struct superblock *sb)
{
  struct pcow_disk_superblock disk;

  superblock_encode(sb, &disk);
  put_disk(fd, copy, &disk);
}

static inline void damage_copy(int fd, unsigned copy)
{
  struct pcow_disk_superblock disk;

  get_disk(fd, copy, &disk);
  disk.uuid[0] ^= 1;
  put_disk(fd, copy, &disk);
}

/* A new image's file, both copies equal. */
static inline int image_file(const struct superblock *sb)
{
  int fd = memory_file(SLOT_GROUPS_OFFSET);

  put_superblock(fd, 0, sb);
  put_superblock(fd, 1, sb);
  return fd;
}

#define ck_assert_message(part) \
  ck_assert_msg(strstr(error_message(), (part)), "message '%s' lacks '%s'", error_message(), (part))

static inline int run_suite(Suite *suite)
{
  SRunner *runner = srunner_create(suite);
  int failed;

  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}

#endif
