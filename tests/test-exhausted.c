/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Images that have used up a number that only grows: epoch ids, records of the log, commits, slots. What
 * needs another one fails with a sentence that says so; nothing begins again at 0, and what was there is
 * there still.
 *
 *     test-exhausted [--dir DIR]
 */
#include "geometry.h"
#include "superblock.h"
#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNIT (64 * KIB)
#define SIZE MIB

static char *path;

#define REFUSED(call, error, text) \
  do { \
    int ret_ = (call); \
    CHECK(ret_ == -(error) && strstr(pcow_errormsg(), text), "%s gave %d: %s", #call, ret_, pcow_errormsg()); \
  } while (0)

/* An image with a snapshot "one" and a word in unit 0. */
static void make(struct superblock *sb)
{
  pcow_image *image;
  uint64_t word = 1;
  int fd;

  unlink(path);
  test_create(path, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, &word, 8, 0));
  OK(pcow_snapshot_create(image, "one"));
  OK(pcow_close(image));
  fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));
  OK(superblock_read(fd, path, true, sb, NULL));
  SYS(close(fd));
}

static void change(const struct superblock *sb)
{
  struct pcow_disk_superblock disk;
  int fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));

  superblock_encode(sb, &disk);
  for (unsigned i = 0; i < 2; i++)
    CHECK(pwrite(fd, &disk, sizeof(disk), SUPERBLOCK_OFFSET(i)) == (ssize_t)sizeof(disk), "cannot write");
  SYS(close(fd));
}

static void word_is(pcow_image *image, uint64_t expected)
{
  uint64_t word;

  OK(pcow_pread(image, &word, 8, 0));
  CHECK(word == expected, "the word is %u", (unsigned)word);
}

static void epoch_ids(void)
{
  struct superblock sb;
  pcow_image *image;
  uint64_t word = 2;

  make(&sb);
  sb.head_epoch = EPOCH_ID_MAX;
  sb.next_epoch = EPOCH_ID_MAX + 1;
  change(&sb);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, &word, 8, 0));
  REFUSED(pcow_snapshot_create(image, "two"), EMFILE, "all epoch ids are used up");
  REFUSED(pcow_snapshot_revert(image, "one"), EMFILE, "all epoch ids are used up");
  word_is(image, 2);
  OK(pcow_snapshot_delete(image, "one"));
  word_is(image, 2);
  OK(pcow_close(image));
  test_check_clean(path);
}

/* The log is empty (the snapshot is left out), and its next record has almost the last number. */
static void records(void)
{
  struct superblock sb;
  pcow_image *image;
  int taken = 0, ret;
  char name[8];

  make(&sb);
  sb.head_parent = 0;
  sb.log_start = sb.log_end = UINT64_MAX - 12;
  change(&sb);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  do {
    snprintf(name, sizeof(name), "s%d", taken);
    ret = pcow_snapshot_create(image, name);
    taken += ret == 0;
  } while (ret == 0 && taken < 20);
  CHECK(taken > 0 && taken < 13, "%d snapshots were taken", taken);
  REFUSED(pcow_snapshot_create(image, name), EMFILE, "all numbers of epoch records are used up");
  REFUSED(pcow_snapshot_delete(image, "s0"), EMFILE, "all numbers of epoch records are used up");
  OK(pcow_close(image));
  image = test_open(path, 0, "s0");
  OK(pcow_close(image));
}

static void commits(void)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct superblock sb;
  pcow_image *image;
  uint64_t word = 2;

  make(&sb);
  sb.sequence = SEQUENCE_MAX;
  change(&sb);
  image = test_open(path, 0, NULL);
  word_is(image, 1);
  OK(pcow_close(image));
  options.flags = PCOW_OPEN_RDWR;
  if (pcow_open(path, &options, &image) == 0) {
    REFUSED(pcow_pwrite(image, &word, 8, 0), EMFILE, "all numbers of commits are used up");
    REFUSED(pcow_snapshot_create(image, "two"), EIO, "takes no more writes since a commit failed");
    pcow_close(image);
  } else {
    REFUSED(pcow_open(path, &options, &image), EMFILE, "all numbers of commits are used up");
  }
  image = test_open(path, 0, NULL);
  word_is(image, 1);
  OK(pcow_close(image));
}

/* Only where the file system allows a file of 2^62 bytes. */
static void slots(void)
{
  struct geometry geo = geometry_make(16);
  struct superblock sb;
  pcow_image *image;
  uint64_t word = 2;

  make(&sb);
  if (truncate(path, (off_t)geometry_file_size(&geo, geo.slot_max)) < 0) {
    printf("no file of 2^62 bytes here: slots are left out\n");
    return;
  }
  sb.slot_count = geo.slot_max;
  sb.dirty = false;
  change(&sb);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  /* Those in the middle are free; nobody may be given one beyond the last. */
  for (uint64_t unit = 0; unit < SIZE / UNIT; unit++) {
    int ret = pcow_pwrite(image, &word, 8, unit * UNIT);

    CHECK(ret == 0 || (ret == -EFBIG && strstr(pcow_errormsg(), "slots is reached")), "a write gave %d: %s", ret,
          pcow_errormsg());
    if (ret)
      printf("unit %u: %s\n", (unsigned)unit, pcow_errormsg());
  }
  OK(pcow_close(image));
  image = test_open(path, 0, "one");
  word_is(image, 1);
  OK(pcow_close(image));
}

int main(int argc, char **argv)
{
  test_force_pmem(argv);
  test_dir(argc, argv);
  path = test_path("exhausted.pcow");
  epoch_ids();
  records();
  commits();
  slots();
  return 0;
}
