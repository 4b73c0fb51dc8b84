/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The superblock in memory, its validation, and the commit: the only way in which an image changes
 * its state (docs/format.md, "Commit").
 */
#ifndef PCOW_SUPERBLOCK_H
#define PCOW_SUPERBLOCK_H

#include "format.h"
#include "geometry.h"
#include "persist.h"

#include <stdbool.h>

struct content_tag {
  uint64_t counter;
  uint64_t random;
};

struct base_ref {
  enum base_format format;
  uint32_t epoch;
  uint8_t uuid[16];
  uint8_t guid[16];
  struct content_tag tag;
  struct content_tag accept;
  uint64_t raw_size;
  int64_t raw_mtime_sec;
  uint32_t raw_mtime_nsec;
  char path[BASE_PATH_MAX + 1]; /* "" when format is BASE_NONE */
};

/* All numbers are validated against each other and the format's limits when read from a file. */
struct superblock {
  unsigned unit_shift;
  uint64_t compat;
  uint64_t ro_compat;
  uint8_t uuid[16];
  uint64_t sequence;
  struct content_tag tag;
  uint64_t virtual_size;
  uint64_t head_floor;
  uint32_t head_epoch;
  uint32_t head_parent;
  uint32_t next_epoch;
  bool dirty;
  uint64_t log_start;
  uint64_t log_end;
  uint64_t slot_count;
  struct base_ref base;
};

/* What the two copies on the media are like. */
struct superblock_state {
  bool valid[2];
  uint64_t sequence[2];
  bool equal;                   /* both are valid and the same */
  bool surplus;                 /* the one that counts has something where the format says zero */
  uint64_t file_size;
};

/* Reads both copies from FD (lock-free: tries again while a commit runs) and gives the valid one with
 * the higher sequence. STATE may be NULL. -EMEDIUMTYPE not a pcow image, -ENOTSUP version or feature
 * (ro_compat only when WRITING), -EUCLEAN both damaged or values out of bounds. */
int superblock_read(int fd, const char *path, bool writing, struct superblock *sb,
                    struct superblock_state *state);

/* The same for who holds LOCK_HEAD, so that no commit runs: looks once, and leaves it to the caller to
 * compare the length of the file with what the slots need. */
int superblock_read_at_rest(int fd, const char *path, bool writing, struct superblock *sb,
                            struct superblock_state *state);

/* Encodes into a page, for creation and tests. */
void superblock_encode(const struct superblock *sb, struct pcow_disk_superblock *disk);

/* Space for both copies, before anything of a commit is written: -ENOSPC leaves things as they were. */
int superblock_reserve(struct persist *p);

/* Raises sb->sequence and writes both copies in order; what SB refers to must be durable already. On
 * failure the caller must take the image as unwritable: which of the two states is on the media is
 * not known. Two fences. */
int superblock_commit(struct persist *p, const char *path, struct superblock *sb);

bool content_tag_equal(struct content_tag a, struct content_tag b);

#endif
