/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading the unit map, slot headers and bitmaps. Nothing that comes from the file is used before it
 * was checked: references are within the superblock's slot count, a header belongs to its place and its
 * unit, a chain that runs in a circle is found out, bits beyond the unit's pages are dropped.
 */
#include "slotwalk.h"

#include "bits.h"
#include "crc32c.h"
#include "error.h"

#include <string.h>
#include <unistd.h>

int file_read(int fd, const char *path, uint64_t offset, void *buffer, size_t length, bool allow_eof)
{
  char *target = buffer;

  while (length) {
    ssize_t n = pread(fd, target, length, (off_t)offset);

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return fail_errno(errno, "%s: cannot read at byte %" PRIu64, path, offset);
    if (n == 0 && allow_eof) {
      memset(target, 0, length);
      return 0;
    }
    if (n == 0)
      return fail(EUCLEAN, "%s: is truncated: the file ends at or before byte %" PRIu64, path, offset);
    offset += (uint64_t)n;
    target += n;
    length -= (size_t)n;
  }
  return 0;
}

/* Words beside a writer: a system call may copy a word in parts while it changes, so what was read counts
 * only when it is the same twice. */
int slotwalk_map_words(int fd, const char *path, uint64_t first, uint64_t count, uint64_t *words)
{
  uint64_t again[512];

  while (count) {
    uint64_t n = MIN(count, G_N_ELEMENTS(again));
    int ret = file_read(fd, path, geometry_map_word(first), words, n * 8, false);

    if (ret == 0)
      ret = file_read(fd, path, geometry_map_word(first), again, n * 8, false);
    if (ret)
      return ret;
    if (memcmp(words, again, n * 8))
      continue;
    for (uint64_t i = 0; i < n; i++)
      words[i] = le64toh(words[i]);
    first += n;
    words += n;
    count -= n;
  }
  return 0;
}

int slotwalk_reference(const char *path, const struct superblock *sb, uint64_t unit, uint64_t word,
                       uint64_t *index)
{
  uint64_t count = __atomic_load_n(&sb->slot_count, __ATOMIC_RELAXED);        /* a writer raises it */

  if (word && (!SLOT_REF_VALID(word) || SLOT_REF_INDEX(word) > count))
    return fail(EUCLEAN, "%s: unit %" PRIu64 ": the slot reference 0x%" PRIx64 " is not valid", path,
                unit, word);
  *index = SLOT_REF_INDEX(word);
  return 0;
}

int slotwalk_map(int fd, const char *path, const struct superblock *sb, uint64_t unit, uint64_t *index)
{
  uint64_t word;
  int ret = slotwalk_map_words(fd, path, unit, 1, &word);

  return ret ? ret : slotwalk_reference(path, sb, unit, word, index);
}

uint32_t slot_identity_crc(uint64_t unit, uint32_t epoch, uint64_t index)
{
  struct pcow_disk_slot_identity identity = {
    .magic = le32_make(SLOT_MAGIC),
    .unit = le64_make(unit),
    .epoch = le32_make(epoch),
    .index = le64_make(index),
  };

  return crc32c(&identity, sizeof(identity));
}

uint64_t slot_owner_word(uint64_t unit, uint32_t epoch, uint64_t index)
{
  return epoch | (uint64_t)slot_identity_crc(unit, epoch, index) << 32;
}

/* The header of slot INDEX as it lies on the media, with its neighbours where a window is given. */
static int read_header(int fd, const char *path, const struct superblock *sb, uint64_t index,
                       struct slot_window *window, struct pcow_disk_slot *disk)
{
  struct geometry g = geometry_make(sb->unit_shift);
  uint64_t first = (index - 1) / SLOT_WINDOW * SLOT_WINDOW + 1;
  int ret = 0;

  if (!window)
    return file_read(fd, path, geometry_header(&g, index), disk, sizeof(*disk), false);
  if (window->first != first) {
    ret = file_read(fd, path, geometry_header(&g, first), window->slots, sizeof(window->slots), false);
    window->first = ret ? 0 : first;
  }
  if (ret == 0)
    *disk = window->slots[index - first];
  return ret;
}

static int check_header(int fd, const char *path, const struct superblock *sb, uint64_t unit, uint64_t index,
                        struct slot_window *window, struct slot_info *info)
{
  struct pcow_disk_slot disk;
  int ret = read_header(fd, path, sb, index, window, &disk);

  if (ret)
    return ret;
  info->index = index;
  info->unit = le64_get(disk.unit);
  info->epoch = le32_get(disk.epoch);
  if (le32_get(disk.magic) != SLOT_MAGIC ||
      le32_get(disk.crc) != slot_identity_crc(info->unit, info->epoch, index))
    return fail(EUCLEAN, "%s: unit %" PRIu64 ": the header of slot %" PRIu64 " is damaged", path, unit,
                index);
  if (info->unit != unit)
    return fail(EUCLEAN, "%s: unit %" PRIu64 ": slot %" PRIu64 " in its chain belongs to unit %" PRIu64,
                path, unit, index, info->unit);
  if (info->epoch < 1 || info->epoch >= sb->next_epoch)
    return fail(EUCLEAN, "%s: unit %" PRIu64 ": slot %" PRIu64 " belongs to epoch %" PRIu32
                ", which does not exist yet", path, unit, index, info->epoch);
  return slotwalk_reference(path, sb, unit, le64_get(disk.previous), &info->previous);
}

int slotwalk_header(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                    uint64_t index, struct slot_info *info)
{
  return check_header(fd, path, sb, unit, index, NULL, info);
}

int slotwalk_chain(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                   uint64_t index, GArray *chain)
{
  return slotwalk_chain_window(fd, path, sb, unit, index, NULL, chain);
}

int slotwalk_chain_window(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                          uint64_t index, struct slot_window *window, GArray *chain)
{
  /* Brent: whoever walks in a circle comes back to a mark that is set anew after 1, 2, 4, 8 … steps. */
  uint64_t mark = 0;
  uint64_t next_mark = 1;

  for (uint64_t steps = 0; index; steps++) {
    struct slot_info info;
    int ret;

    if (index == mark)
      return fail(EUCLEAN, "%s: unit %" PRIu64 ": the chain of slots runs in a circle through slot %"
                  PRIu64, path, unit, index);
    if (steps == next_mark) {
      mark = index;
      next_mark *= 2;
    }
    ret = check_header(fd, path, sb, unit, index, window, &info);
    if (ret)
      return ret;
    g_array_append_val(chain, info);
    index = info.previous;
  }
  return 0;
}

/* Like file_read(). A BUFFER of more than a page is all zeros, and what is a hole is not touched. */
static int read_bits(int fd, const char *path, uint64_t offset, void *buffer, uint64_t length)
{
  uint64_t end = offset + length;

  if (length <= PAGE_BYTES)
    return file_read(fd, path, offset, buffer, length, false);
  for (uint64_t at = offset; at < end;) {
    off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;
    int ret;

    if (data < 0 && errno == ENXIO)
      break;
    at = data < 0 ? at : (uint64_t)data;
    hole = at < end ? lseek(fd, (off_t)at, SEEK_HOLE) : -1;
    if (at >= end)
      break;
    length = MIN(end, hole < 0 ? end : (uint64_t)hole) - at;
    ret = file_read(fd, path, at, (char *)buffer + (at - offset), length, false);
    if (ret)
      return ret;
    at += length;
  }
  return 0;
}

/* The first N bits are in host order; what lies beyond them is dropped. */
static void make_bits(uint64_t *words, uint64_t n)
{
  uint64_t count = bits_words(n);

  for (uint64_t i = 0; le64toh(1) != 1 && i < count; i++)
    words[i] = le64toh(words[i]);
  if (n % 64)
    words[count - 1] &= (UINT64_C(1) << n % 64) - 1;
}

uint64_t *slotwalk_bitmap_new(int fd, const char *path, const struct geometry *g, uint64_t index,
                              uint64_t first, uint64_t n, int *error)
{
  uint64_t *words = g_try_malloc0(bits_words(n) * 8);

  if (!words) {
    *error = fail(ENOMEM, "%s: no memory for a presence bitmap", path);
    return NULL;
  }
  *error = read_bits(fd, path, geometry_bitmap(g, index) + first / 8, words, bits_words(n) * 8);
  if (*error)
    g_clear_pointer(&words, g_free);
  else
    make_bits(words, n);
  return words;
}

int slotwalk_bitmap(int fd, const char *path, const struct geometry *g, uint64_t index, uint64_t first,
                    uint64_t n, uint64_t *words)
{
  uint64_t count = bits_words(n);
  int ret;

  if (count * 8 > PAGE_BYTES)
    memset(words, 0, count * 8);
  ret = read_bits(fd, path, geometry_bitmap(g, index) + first / 8, words, count * 8);
  if (ret == 0)
    make_bits(words, n);
  return ret;
}
