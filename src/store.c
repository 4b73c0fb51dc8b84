/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An image file open for writing. When store_open() returns, what it has read is durable, whatever
 * ended the last session; afterwards the superblock changes by one commit at a time, and not any more
 * once a commit has failed, because what the media hold then is not known. A commit for which there is no space
 * fails before it begins.
 */
#include "store.h"

#include "error.h"
#include "order.h"

#include <libpcow/libpcow.h>
#include <string.h>
#include <unistd.h>

static int writeback_log(struct store *s)
{
  uint64_t record = sizeof(struct pcow_disk_epoch);
  uint64_t first = s->sb.log_start % EPOCH_LOG_RECORDS;
  uint64_t count = s->sb.log_end - s->sb.log_start;
  uint64_t wrapped = first + count > EPOCH_LOG_RECORDS ? first + count - EPOCH_LOG_RECORDS : 0;
  int ret = persist_writeback(s->p, EPOCH_LOG_OFFSET + first * record, (count - wrapped) * record);

  return ret ? ret : persist_writeback(s->p, EPOCH_LOG_OFFSET, wrapped * record);
}

/* Headers and bitmaps of all slots. Goes from data to data: a sparse file may have very many groups. */
static int writeback_slots(struct store *s)
{
  const struct geometry *g = &s->geo;
  uint64_t end = geometry_file_size(g, s->sb.slot_count);
  uint64_t offset = SLOT_GROUPS_OFFSET;

  while ((offset = persist_seek(s->p, offset, end, true)) < end) {
    uint64_t group = (offset - SLOT_GROUPS_OFFSET) / g->group_bytes;
    uint64_t start = SLOT_GROUPS_OFFSET + group * g->group_bytes;
    int ret = persist_writeback(s->p, start, g->bitmaps + SLOTS_PER_GROUP * g->bitmap_bytes);

    if (ret)
      return ret;
    offset = start + g->group_bytes;
  }
  return 0;
}

/* Rule 5: what a session that did not end cleanly has stored may be seen here and yet not be durable.
 * The superblocks come first in any case: they say whether the end was clean. */
static int make_durable(struct store *s, const struct superblock_state *state)
{
  bool equal = state->valid[0] && state->valid[1] && state->sequence[0] == state->sequence[1];
  int ret = 0;

  for (unsigned i = 0; ret == 0 && i < 2; i++)
    ret = ORDERED("superblocks 5", persist_writeback(s->p, SUPERBLOCK_OFFSET(i), SUPERBLOCK_BYTES));
  if (ret == 0 && (s->sb.dirty || !equal)) {
    ret = ORDERED("log 5", writeback_log(s));
    if (ret == 0)
      ret = ORDERED("map 5", persist_writeback(s->p, UNIT_MAP_OFFSET, UNITS_MAX * 8));
    if (ret == 0)
      ret = ORDERED("slots 5", writeback_slots(s));
  }
  /* Data of the ended session, too: its content tag stands for it, and may be kept. */
  if (ret == 0)
    ret = s->sb.dirty ? ORDERED("data 5", persist_sync(s->p)) : ORDERED("fence 5", persist_fence(s->p));
  if (ret == 0 && !equal)
    ret = ORDERED("equal 5", superblock_commit(s->p, s->path, &s->sb));
  return ret;
}

int store_open(int fd, const char *path, struct store **store)
{
  struct store *s = g_new0(struct store, 1);
  struct superblock_state state;
  int ret;

  s->fd = fd;
  s->path = g_strdup(path);
  g_mutex_init(&s->lock);
  ret = superblock_read(fd, path, true, &s->sb, &state);
  if (ret == 0) {
    s->geo = geometry_make(s->sb.unit_shift);
    ret = persist_open(fd, path, &s->p);
  }
  if (ret == 0)
    ret = epochs_load(fd, path, &s->sb, &s->epochs);
  if (ret == 0) /* last: an image that is refused is left as it is */
    ret = make_durable(s, &state);
  if (ret) {
    store_close(s);
    return ret;
  }
  *store = s;
  return 0;
}

void store_close(struct store *s)
{
  if (!s)
    return;
  epochs_free(s->epochs);
  persist_close(s->p);
  close(s->fd);
  g_mutex_clear(&s->lock);
  g_free(s->path);
  g_free(s);
}

struct superblock store_begin(struct store *s)
{
  struct superblock next;

  g_mutex_lock(&s->lock);
  next = s->sb;
  next.dirty = true;
  return next;
}

/* Gives back the blocks of log records that were left behind, but for those that the ring's next round
 * has reached already. Space only: failures do not matter. */
static void punch_log(struct store *s, uint64_t from, uint64_t to, uint64_t log_end)
{
  const uint64_t block = 512;   /* records; 256 KiB */

  for (uint64_t b = from / block; b < to / block; b++)
    if (log_end - b * block <= EPOCH_LOG_RECORDS)
      persist_punch(s->p,
                    EPOCH_LOG_OFFSET + b * block % EPOCH_LOG_RECORDS * sizeof(struct pcow_disk_epoch),
                    block * sizeof(struct pcow_disk_epoch));
}

/* Writes of content commit, too (the slot high-water mark), while others read what only structural
 * operations change: what is the same is not written, and a word is written at once. */
static void take_over(struct superblock *sb, const struct superblock *next)
{
  uint8_t *to = (uint8_t *)sb;
  const uint8_t *from = (const uint8_t *)next;

  static_assert(sizeof(*sb) % 8 == 0, "the superblock in memory is whole words");
  for (size_t i = 0; i < sizeof(*sb); i += 8) {
    uint64_t word;

    memcpy(&word, from + i, 8);
    if (memcmp(to + i, &word, 8))
      __atomic_store_n((uint64_t *)(void *)(to + i), word, __ATOMIC_RELAXED);
  }
}

int store_end(struct store *s, struct superblock *next, bool commit)
{
  int ret = 0;

  if (commit) {
    ret = store_check(s);
    if (ret == 0)
      ret = superblock_reserve(s->p); /* what fails here has changed nothing */
    if (ret == 0) {
      ret = superblock_commit(s->p, s->path, next);
      if (ret)
        __atomic_store_n(&s->poisoned, -ret, __ATOMIC_RELAXED);
      else {
        punch_log(s, s->sb.log_start, next->log_start, next->log_end);
        take_over(&s->sb, next);
        __atomic_store_n(&s->begun, next->dirty, __ATOMIC_RELEASE);
      }
    }
  }
  g_mutex_unlock(&s->lock);
  return ret;
}

int store_dirty(struct store *s)
{
  struct superblock next;

  if (__atomic_load_n(&s->begun, __ATOMIC_ACQUIRE))
    return store_check(s);
  next = store_begin(s);
  return store_end(s, &next, ORDERED("6", !s->begun));
}

int store_check(struct store *s)
{
  int poisoned = __atomic_load_n(&s->poisoned, __ATOMIC_RELAXED);
  int lost = persist_error(s->p);

  if (!poisoned && !lost)
    return 0;
  return fail(EIO, "%s: takes no more writes since %s failed: %s", s->path,
              poisoned ? "a commit" : "making the file durable", g_strerror(poisoned ? poisoned : lost));
}
