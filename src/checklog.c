/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checks the epoch log record by record and the tree that it describes. A record of which one bit is wrong
 * is made right: its CRC tells which bit, and the other fields confirm it. Any other damage here cannot be
 * repaired: leaving a record out could bring back a snapshot, or a floor, that a later record took away,
 * with slots that were given to others since.
 */
#include "checking.h"

#include "crc32c.h"
#include "error.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define READ_RECORDS 256u       /* at a time */
#define TRIES_MAX 4096u         /* records of which a wrong bit is looked for */
#define RECORD_BYTES sizeof(struct pcow_disk_epoch)

struct log {
  struct check *c;
  uint64_t damaged;             /* records, and how many of them are made right */
  uint64_t mended;
  unsigned tries;
};

static uint64_t record_offset(uint64_t number)
{
  return EPOCH_LOG_OFFSET + number % EPOCH_LOG_RECORDS * RECORD_BYTES;
}

static bool is_whole(const struct pcow_disk_epoch *disk, uint64_t number)
{
  return le32_get(disk->magic) == EPOCH_MAGIC && le64_get(disk->number) == number &&
         le32_get(disk->crc) == crc32c(disk, offsetof(struct pcow_disk_epoch, crc));
}

/* The one wrong bit of which the checksum differs by DIFFERENCE. A CRC is linear: the difference depends on
 * the bit's place alone. It is the polynomial for the last bit, and one step of the register more for each
 * bit that follows. */
static bool find_bit(uint32_t difference, unsigned *bit)
{
  const unsigned bits = offsetof(struct pcow_disk_epoch, crc) * 8;
  uint32_t seen = CRC32C_POLYNOMIAL;

  if (difference && (difference & (difference - 1)) == 0) {
    *bit = bits + (unsigned)__builtin_ctz(difference);  /* of the checksum itself */
    return true;
  }
  for (*bit = bits; (*bit)--; seen = seen >> 1 ^ (seen & 1 ? CRC32C_POLYNOMIAL : 0))
    if (seen == difference)
      return true;
  return false;
}

/* Finds the one bit that makes the record whole. BYTE: where it is. */
static bool mend(struct pcow_disk_epoch *disk, uint64_t number, unsigned *byte)
{
  uint8_t *bytes = (uint8_t *)disk;
  unsigned bit;

  /* Most of what is no record is far from one. */
  if (__builtin_popcount(le32_get(disk->magic) ^ EPOCH_MAGIC) +
      __builtin_popcountll(le64_get(disk->number) ^ number) > 1)
    return false;
  if (!find_bit(crc32c(disk, offsetof(struct pcow_disk_epoch, crc)) ^ le32_get(disk->crc), &bit))
    return false;
  *byte = bit / 8;
  bytes[*byte] ^= (uint8_t)(1u << bit % 8);
  if (is_whole(disk, number))
    return true;
  bytes[*byte] ^= (uint8_t)(1u << bit % 8);
  return false;
}

static bool is_zero(const void *data, size_t length)
{
  const uint8_t *bytes = data;

  while (length && !bytes[length - 1])
    length--;
  return length == 0;
}

static void check_record(struct log *l, uint64_t number, struct pcow_disk_epoch *disk)
{
  struct check *c = l->c;
  uint32_t length;
  unsigned byte;

  if (!is_whole(disk, number)) {
    uint64_t word;
    bool mended = l->tries++ < TRIES_MAX && mend(disk, number, &byte);

    if (mended) {
      memcpy(&word, (const uint8_t *)disk + byte / 8 * 8, 8);
      mended = check_add_word(c, record_offset(number) + byte / 8 * 8, le64toh(word));
    }
    l->damaged++;
    l->mended += mended;
    check_corrupt(c, mended);
    check_say(c, "%s: record %" PRIu64 " of the epoch log is damaged%s", c->path, number,
              mended ? " in one bit" : " and cannot be repaired");
    if (!mended)
      return;
  }
  length = le32_get(disk->name_length);
  if (c->plain && (!is_zero(disk->reserved, sizeof disk->reserved) ||
                   (length <= SNAPSHOT_NAME_MAX &&
                    !is_zero(disk->name + length, sizeof disk->name - length)))) {
    check_corrupt(c, false);
    check_say(c, "%s: record %" PRIu64 " of the epoch log: fields that must be zero are not", c->path,
              number);
  }
}

/* Reads all records; those that were mended go to COPY, at the same places, if it is not -1. */
static int check_records(struct log *l, int copy, struct pcow_disk_epoch *buffer)
{
  struct check *c = l->c;
  int r = 0;

  for (uint64_t number = c->sb.log_start, n; r == 0 && number < c->sb.log_end; number += n) {
    n = MIN(c->sb.log_end - number, READ_RECORDS);
    n = MIN(n, EPOCH_LOG_RECORDS - number % EPOCH_LOG_RECORDS);
    r = file_read(c->fd, c->path, record_offset(number), buffer, n * RECORD_BYTES, true);
    for (uint64_t i = 0; r == 0 && i < n; i++)
      check_record(l, number + i, &buffer[i]);
    if (r == 0 && copy >= 0 &&
        pwrite(copy, buffer, n * RECORD_BYTES, (off_t)record_offset(number)) != (ssize_t)(n * RECORD_BYTES))
      r = fail_errno(errno, "%s: no memory for its epoch log", c->path);
  }
  return r;
}

/* What the tree promises beyond what every reader needs. */
static void check_epochs(struct check *c)
{
  GHashTableIter iter;
  gpointer value;

  if (c->sb.head_parent > c->sb.head_epoch) {
    check_corrupt(c, false);
    check_say(c, "%s: the head, epoch %" PRIu32 ", has a parent that is younger, %" PRIu32, c->path,
              c->sb.head_epoch, c->sb.head_parent);
  }
  g_hash_table_iter_init(&iter, c->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *e = value;

    if (e->parent > e->id) {
      check_corrupt(c, false);
      check_say(c, "%s: epoch %" PRIu32 " has a parent that is younger, %" PRIu32, c->path, e->id, e->parent);
    }
  }
}

int check_log(struct check *c)
{
  struct log l = { .c = c };
  g_autofree struct pcow_disk_epoch *buffer = g_new(struct pcow_disk_epoch, READ_RECORDS);
  int from = c->fd, copy = -1;
  int r = check_records(&l, -1, buffer);

  if (r == 0 && l.damaged && l.damaged == l.mended) {
    /* Once more, and what is found now is known already. */
    struct pcow_check_result result = c->result;
    uint64_t findings = c->findings;
    pcow_check_fn fn = c->fn;
    guint words = c->words->len;

    copy = memfd_create("pcow-check", MFD_CLOEXEC);
    if (copy < 0)
      return fail_errno(errno, "%s: no memory for its epoch log", c->path);
    c->fn = NULL;
    l.tries = 0;
    r = check_records(&l, copy, buffer);
    c->fn = fn;
    c->findings = findings;
    c->result = result;
    g_array_set_size(c->words, words);
    from = copy;
  }
  if (r == 0 && l.damaged == l.mended) {
    r = epochs_load(from, c->path, &c->sb, &c->epochs);
    if (r == 0)
      check_epochs(c);
    else if (r == -EUCLEAN) {
      check_corrupt(c, false);
      check_say(c, "%s", error_message());
      r = 0;
    }
  }
  if (r == 0 && !c->epochs)
    check_say(c, "%s: without the tree of epochs nobody can tell whose the slots are: they are not checked,"
              " and nothing is changed", c->path);
  if (copy >= 0)
    close(copy);
  return r;
}
