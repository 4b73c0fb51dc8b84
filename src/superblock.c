/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading, validating and committing superblocks. A struct superblock that came from
 * superblock_read() is within all limits of the format and of its file's length; one commit is the
 * step from one such state to the next, whole or not at all, and at no moment of it, nor with one
 * copy damaged, is there no valid copy.
 */
#include "superblock.h"

#include "crc32c.h"
#include "error.h"
#include "order.h"
#include "slotwalk.h"

#include <libpcow/libpcow.h>
#include <string.h>
#include <sys/stat.h>

#define READ_TRIES 5
#define READ_PAUSE 2000 /* µs; a commit has one copy torn for the time that 4 KiB take */

static_assert(SUPERBLOCK_BYTES == PAGE_BYTES, "a superblock is one page");

/* ---- Encoding ---- */

static struct pcow_disk_tag tag_encode(struct content_tag tag)
{
  return (struct pcow_disk_tag){ le64_make(tag.counter), le64_make(tag.random) };
}

static struct content_tag tag_decode(struct pcow_disk_tag tag)
{
  return (struct content_tag){ le64_get(tag.counter), le64_get(tag.random) };
}

bool content_tag_equal(struct content_tag a, struct content_tag b)
{
  return a.counter == b.counter && a.random == b.random;
}

static uint32_t disk_crc(const struct pcow_disk_superblock *disk)
{
  return crc32c(disk, offsetof(struct pcow_disk_superblock, crc));
}

static void base_encode(const struct base_ref *base, struct pcow_disk_base *disk)
{
  size_t length = strlen(base->path);

  disk->format = le32_make(base->format);
  if (base->format == BASE_NONE)
    return;
  if (base->format == BASE_PCOW) {
    disk->epoch = le32_make(base->epoch);
    memcpy(disk->uuid, base->uuid, sizeof(disk->uuid));
    memcpy(disk->guid, base->guid, sizeof(disk->guid));
    disk->tag = tag_encode(base->tag);
  } else {
    disk->raw_size = le64_make(base->raw_size);
    disk->raw_mtime_sec = le64_make((uint64_t)base->raw_mtime_sec);
    disk->raw_mtime_nsec = le32_make(base->raw_mtime_nsec);
  }
  disk->accept = tag_encode(base->accept);
  disk->path_length = le32_make((uint32_t)length);
  memcpy(disk->path, base->path, length);
}

void superblock_encode(const struct superblock *sb, struct pcow_disk_superblock *disk)
{
  memset(disk, 0, sizeof(*disk));
  memcpy(disk->magic, PCOW_MAGIC, sizeof(disk->magic));
  disk->version = le32_make(PCOW_FORMAT_VERSION);
  disk->unit_shift = le32_make(sb->unit_shift);
  disk->ro_compat = le64_make(sb->ro_compat);
  disk->compat = le64_make(sb->compat);
  memcpy(disk->uuid, sb->uuid, sizeof(disk->uuid));
  disk->sequence = le64_make(sb->sequence);
  disk->tag = tag_encode(sb->tag);
  disk->virtual_size = le64_make(sb->virtual_size);
  disk->head_floor = le64_make(sb->head_floor);
  disk->head_epoch = le32_make(sb->head_epoch);
  disk->head_parent = le32_make(sb->head_parent);
  disk->next_epoch = le32_make(sb->next_epoch);
  disk->state = le32_make(sb->dirty ? SUPERBLOCK_DIRTY : 0);
  disk->log_start = le64_make(sb->log_start);
  disk->log_end = le64_make(sb->log_end);
  disk->slot_count = le64_make(sb->slot_count);
  base_encode(&sb->base, &disk->base);
  disk->crc = le32_make(disk_crc(disk));
}

/* ---- Decoding, with the format's limits ---- */

static bool all_zero(const void *data, size_t length)
{
  const char *bytes = data;

  while (length && !bytes[length - 1])
    length--;
  return length == 0;
}

static int base_decode(const char *path, const struct pcow_disk_base *disk, struct base_ref *base)
{
  uint32_t format = le32_get(disk->format);
  uint32_t length = le32_get(disk->path_length);

  if (format == BASE_NONE)
    return 0;
  if (format != BASE_PCOW && format != BASE_RAW)
    return fail(EUCLEAN, "%s: superblock: the base has the unknown format %" PRIu32, path, format);
  if (length < 1 || length > BASE_PATH_MAX || memchr(disk->path, '\0', length) ||
      !all_zero(disk->path + length, sizeof(disk->path) - length))
    return fail(EUCLEAN, "%s: superblock: the path of the base (%" PRIu32 " bytes) is not valid", path,
                length);
  base->format = (enum base_format)format;
  base->accept = tag_decode(disk->accept);
  memcpy(base->path, disk->path, length);
  if (format == BASE_PCOW) {
    base->epoch = le32_get(disk->epoch);
    memcpy(base->uuid, disk->uuid, sizeof(base->uuid));
    memcpy(base->guid, disk->guid, sizeof(base->guid));
    base->tag = tag_decode(disk->tag);
    if (base->epoch > EPOCH_ID_MAX)
      return fail(EUCLEAN, "%s: superblock: the base's epoch %" PRIu32 " is out of range", path,
                  base->epoch);
  } else {
    base->raw_size = le64_get(disk->raw_size);
    base->raw_mtime_sec = (int64_t)le64_get(disk->raw_mtime_sec);
    base->raw_mtime_nsec = le32_get(disk->raw_mtime_nsec);
    if (base->raw_size > INT64_MAX || base->raw_mtime_nsec >= 1000000000)
      return fail(EUCLEAN, "%s: superblock: size or time of the raw base is out of range", path);
  }
  return 0;
}

static int epochs_check(const char *path, const struct superblock *sb)
{
  if (sb->next_epoch < 2 || sb->next_epoch > EPOCH_ID_MAX + 1 || sb->head_epoch < 1 ||
      sb->head_epoch >= sb->next_epoch || sb->head_parent >= sb->next_epoch ||
      sb->head_parent == sb->head_epoch)
    return fail(EUCLEAN, "%s: superblock: head epoch %" PRIu32 ", its parent %" PRIu32
                " and next epoch %" PRIu32 " do not fit together",
                path, sb->head_epoch, sb->head_parent, sb->next_epoch);
  if (sb->log_start > sb->log_end || sb->log_end - sb->log_start > EPOCH_LOG_RECORDS)
    return fail(EUCLEAN, "%s: superblock: the epoch log from record %" PRIu64 " to %" PRIu64
                " is not valid", path, sb->log_start, sb->log_end);
  return 0;
}

static int decode(const char *path, const struct pcow_disk_superblock *disk, struct superblock *sb)
{
  struct geometry geo;
  uint32_t shift = le32_get(disk->unit_shift);
  int ret;

  memset(sb, 0, sizeof(*sb));
  sb->unit_shift = shift;
  sb->compat = le64_get(disk->compat);
  sb->ro_compat = le64_get(disk->ro_compat);
  memcpy(sb->uuid, disk->uuid, sizeof(sb->uuid));
  sb->sequence = le64_get(disk->sequence);
  sb->tag = tag_decode(disk->tag);
  sb->virtual_size = le64_get(disk->virtual_size);
  sb->head_floor = le64_get(disk->head_floor);
  sb->head_epoch = le32_get(disk->head_epoch);
  sb->head_parent = le32_get(disk->head_parent);
  sb->next_epoch = le32_get(disk->next_epoch);
  sb->dirty = le32_get(disk->state) & SUPERBLOCK_DIRTY;
  sb->log_start = le64_get(disk->log_start);
  sb->log_end = le64_get(disk->log_end);
  sb->slot_count = le64_get(disk->slot_count);

  if (sb->sequence > SEQUENCE_MAX)
    return fail(EUCLEAN, "%s: superblock: the sequence %" PRIu64 " is out of range: it must be below 2^63",
                path, sb->sequence);
  if (shift < UNIT_SHIFT_MIN || shift > UNIT_SHIFT_MAX)
    return fail(EUCLEAN, "%s: superblock: the unit size 2^%" PRIu32 " is not in the range from 2^%d to"
                " 2^%d", path, shift, UNIT_SHIFT_MIN, UNIT_SHIFT_MAX);
  geo = geometry_make(shift);
  if (sb->virtual_size == 0 || sb->virtual_size % PAGE_BYTES || sb->virtual_size > UNITS_MAX << shift)
    return fail(EUCLEAN, "%s: superblock: the virtual size %" PRIu64 " is not valid", path,
                sb->virtual_size);
  if (sb->head_floor % PAGE_BYTES || sb->head_floor > sb->virtual_size)
    return fail(EUCLEAN, "%s: superblock: the floor %" PRIu64 " of the head is not valid", path,
                sb->head_floor);
  if (sb->slot_count > geo.slot_max)
    return fail(EUCLEAN, "%s: superblock: %" PRIu64 " slots are more than the format allows", path,
                sb->slot_count);
  ret = epochs_check(path, sb);
  return ret ? ret : base_decode(path, &disk->base, &sb->base);
}

/* ---- What is not a valid image ---- */

static int fail_foreign(const char *path, const char *start, uint64_t size)
{
  static const struct { const char *magic; unsigned length, offset; const char *what; } known[] = {
    { "QFI\xfb", 4, 0, "a qcow image" },
    { "QED\0", 4, 0, "a QED image" },
    { "KDMV", 4, 0, "a VMDK image" },
    { "vhdxfile", 8, 0, "a VHDX image" },
    { "conectix", 8, 0, "a VHD image" },
    { "\x7f\x10\xda\xbe", 4, 64, "a VDI image" },
    { "LUKS\xba\xbe", 6, 0, "an encrypted LUKS volume" },
    { "\x28\xb5\x2f\xfd", 4, 0, "a zstd-compressed file" },
    { "\x1f\x8b", 2, 0, "a gzip-compressed file" },
    { "\xfd" "7zXZ\0", 6, 0, "an xz-compressed file" },
    { "\x53\xef", 2, 1080, "a raw ext file system" },
    { "XFSB", 4, 0, "a raw XFS file system" },
    { "\x55\xaa", 2, 510, "a raw disk image" },
  };

  if (size == 0)
    return fail(EMEDIUMTYPE, "%s: is not a pcow image: the file is empty", path);
  for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
    if (!memcmp(start + known[i].offset, known[i].magic, known[i].length)) {
      /* the version field tells qcow2 from its predecessor */
      const char *what = i == 0 && start[7] >= 2 ? "a qcow2 image" : known[i].what;

      return fail(EMEDIUMTYPE, "%s: is not a pcow image: looks like %s", path, what);
    }
  return fail(EMEDIUMTYPE, "%s: is not a pcow image", path);
}

static bool has_magic(const struct pcow_disk_superblock *disk)
{
  return !memcmp(disk->magic, PCOW_MAGIC, sizeof(disk->magic));
}

static bool is_valid(const struct pcow_disk_superblock *disk)
{
  return has_magic(disk) && le32_get(disk->crc) == disk_crc(disk);
}

static int fail_version(const char *path, uint32_t version)
{
  if (version == 0)
    return fail(EUCLEAN, "%s: superblock: format version 0", path);
  return fail(ENOTSUP, "%s: has format version %" PRIu32 ", but this library knows only versions up to %u",
              path, version, PCOW_FORMAT_VERSION);
}

static int check_features(const char *path, const struct pcow_disk_superblock *disk, bool writing)
{
  uint64_t incompat = le64_get(disk->incompat) & ~FEATURE_INCOMPAT_KNOWN;
  uint64_t ro_compat = le64_get(disk->ro_compat) & ~FEATURE_RO_COMPAT_KNOWN;

  if (le32_get(disk->version) != PCOW_FORMAT_VERSION)
    return fail_version(path, le32_get(disk->version));
  if (incompat)
    return fail(ENOTSUP, "%s: needs incompatible feature bits 0x%" PRIx64 " that this version does not"
                " know", path, incompat);
  if (writing && ro_compat)
    return fail(ENOTSUP, "%s: has read-only-compatible feature bits 0x%" PRIx64 " that this version does"
                " not know: it can be read, but not written", path, ro_compat);
  return 0;
}

/* ---- Reading ---- */

/* One look at the file. *AGAIN is set when a commit that is running could be the reason for what was
 * found. */
static int read_once(int fd, const char *path, bool writing, struct superblock *sb,
                     struct superblock_state *state, bool *again)
{
  struct pcow_disk_superblock disk[2], plain;
  bool unreadable = false;
  struct stat st;
  unsigned newest;
  int ret;

  *again = false;
  for (unsigned i = 0; i < 2; i++) {
    ret = file_read(fd, path, SUPERBLOCK_OFFSET(i), &disk[i], sizeof(disk[i]), true);
    /* What the media cannot read is as good as damaged: there are two copies for that. */
    if (ret == -EIO && !unreadable) {
      unreadable = true;
      memset(&disk[i], 0, sizeof(disk[i]));
    } else if (ret) {
      return ret;
    }
  }
  /* After the superblocks: a file has grown before a superblock says so. */
  if (fstat(fd, &st) < 0)
    return fail_errno(errno, "%s: cannot get the size of the file", path);
  for (unsigned i = 0; i < 2; i++) {
    state->valid[i] = is_valid(&disk[i]);
    state->sequence[i] = state->valid[i] ? le64_get(disk[i].sequence) : 0;
  }
  if (!state->valid[0] && !state->valid[1]) {
    uint32_t version = le32_get(disk[0].version);

    if (!has_magic(&disk[0]) && !has_magic(&disk[1]))
      return fail_foreign(path, (const char *)disk, (uint64_t)st.st_size);
    if ((uint64_t)st.st_size < SUPERBLOCK_OFFSET(1) + SUPERBLOCK_BYTES)
      return fail(EUCLEAN, "%s: is truncated: %jd bytes do not even hold its superblocks", path,
                  (intmax_t)st.st_size);
    /* A later version may have its checksum elsewhere. */
    if (has_magic(&disk[0]) && has_magic(&disk[1]) && version == le32_get(disk[1].version) &&
        version > PCOW_FORMAT_VERSION)
      return fail_version(path, version);
    *again = true;
    return fail(EUCLEAN, "%s: both superblocks are damaged", path);
  }
  *again = state->valid[0] != state->valid[1];
  newest = state->sequence[1] > state->sequence[0] || !state->valid[0];
  ret = check_features(path, &disk[newest], writing);
  if (ret == 0)
    ret = decode(path, &disk[newest], sb);
  if (ret)
    return ret;
  superblock_encode(sb, &plain);
  state->equal = state->valid[0] && state->valid[1] && !memcmp(&disk[0], &disk[1], sizeof(disk[0]));
  state->surplus = memcmp(&plain, &disk[newest], sizeof(plain)) != 0;
  state->file_size = (uint64_t)st.st_size;
  return 0;
}

static int check_length(const char *path, const struct superblock *sb, uint64_t size)
{
  struct geometry geo = geometry_make(sb->unit_shift);

  if (size >= geometry_file_size(&geo, sb->slot_count))
    return 0;
  return fail(EUCLEAN, "%s: is truncated: the file has %" PRIu64 " bytes, its slots reach to byte %" PRIu64,
              path, size, geometry_file_size(&geo, sb->slot_count));
}

static int check_regular(int fd, const char *path)
{
  struct stat st;

  if (fstat(fd, &st) < 0)
    return fail_errno(errno, "%s: cannot get the size of the file", path);
  if (!S_ISREG(st.st_mode))
    return fail(EMEDIUMTYPE, "%s: is not a pcow image: it is %s", path,
                S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
  return 0;
}

int superblock_read_at_rest(int fd, const char *path, bool writing, struct superblock *sb,
                            struct superblock_state *state)
{
  int ret = check_regular(fd, path);
  bool again;

  return ret ? ret : read_once(fd, path, writing, sb, state, &again);
}

int superblock_read(int fd, const char *path, bool writing, struct superblock *sb,
                    struct superblock_state *state)
{
  struct superblock_state seen;
  int ret = check_regular(fd, path);
  bool again;

  if (ret)
    return ret;
  for (unsigned i = 1;; i++) {
    ret = read_once(fd, path, writing, sb, &seen, &again);
    if (ret == 0) {
      ret = check_length(path, sb, seen.file_size);
      again |= ret != 0;
    }
    if (!again || i == READ_TRIES)
      break;
    g_usleep(READ_PAUSE);
  }
  if (ret)
    return ret;
  if (seen.valid[0] != seen.valid[1])
    log_message(PCOW_LOG_WARNING, "%s: superblock copy %d is damaged; the other one is used", path,
                seen.valid[0] ? 1 : 0);
  if (state)
    *state = seen;
  return 0;
}

/* ---- Commit ---- */

/* Which copy is written first: never the only valid one, or the only one with the newest state. */
static int choose_first(struct persist *p, unsigned *first)
{
  struct pcow_disk_superblock disk[2];
  bool unreadable = false;

  for (unsigned i = 0; i < 2; i++) {
    int ret = persist_read(p, SUPERBLOCK_OFFSET(i), &disk[i], sizeof(disk[i]));

    if (ret == -EIO && !unreadable) {
      unreadable = true;
      memset(&disk[i], 0, sizeof(disk[i]));
    } else if (ret) {
      return ret;
    }
  }
  if (is_valid(&disk[0]) != is_valid(&disk[1]))
    *first = is_valid(&disk[0]);
  else
    *first = le64_get(disk[0].sequence) >= le64_get(disk[1].sequence);
  return 0;
}

int superblock_reserve(struct persist *p)
{
  int ret = persist_reserve(p, SUPERBLOCK_OFFSET(0), SUPERBLOCK_BYTES);

  return ret ? ret : persist_reserve(p, SUPERBLOCK_OFFSET(1), SUPERBLOCK_BYTES);
}

int superblock_commit(struct persist *p, const char *path, struct superblock *sb)
{
  struct pcow_disk_superblock disk;
  unsigned first = 0;
  int ret;

  ret = choose_first(p, &first);
  if (ret == 0)
    ret = superblock_reserve(p);
  if (ret)
    return ret;
  if (sb->sequence >= SEQUENCE_MAX)
    return fail(EMFILE, "%s: all numbers of commits are used up", path);
  sb->sequence++;
  superblock_encode(sb, &disk);

  /* Ordering (step 3 of docs/format.md). A = the copy that is written second: valid, with the newest
   * state; B = the other one.
   *   1. B is overwritten. A crash here leaves B torn or new; if torn, A is the image, as before.
   *   2. Fence. From here on B is durable with the higher sequence: it is the image, this is the
   *      commit.
   *   3. A is overwritten with the same bytes. A crash here leaves A torn, old or new; B is the image.
   *   4. Fence. Both are equal again; only now may the caller free what the old state referred to. */
  ret = persist_copy(p, SUPERBLOCK_OFFSET(first), &disk, sizeof(disk));
  if (ret == 0)
    ret = ORDERED("3.2", persist_fence(p));
  if (ret == 0)
    ret = ORDERED("3.3", persist_copy(p, SUPERBLOCK_OFFSET(1 - first), &disk, sizeof(disk)));
  if (ret == 0)
    ret = ORDERED("3.4", persist_fence(p));
  return ret;
}
