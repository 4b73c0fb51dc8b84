/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Carries out what a check has collected. Everything that is looked at is made durable first, the image is
 * marked as being written, then words change, and only when they are durable blocks are given back: after a
 * crash each word is old or new, each of them right by itself, and a repair that is begun again ends the
 * same. The base is not touched.
 */
#include "checking.h"

#include "error.h"
#include "head.h"
#include "lock.h"
#include "order.h"
#include "persist.h"

#define WALK_WAIT_MS 10000u     /* for readers of snapshots to end their walks */

static int lock_readers(struct check *c)
{
  int r;

  /* To change what a snapshot shows nobody may have it open, not even for a moment in between. */
  if (c->flags & PCOW_CHECK_REPAIR_ALL && c->result.corruptions > c->copy_faults) {
    r = lock_all(c->fd, c->path);
    return r == -EAGAIN ? fail(EBUSY, "%s: cannot be repaired while it is being read", c->path) : r;
  }
  r = lock_wait(c->fd, c->path, LOCK_WALK, LOCK_EXCLUSIVE, WALK_WAIT_MS);
  if (r == -EAGAIN)
    return fail(EBUSY, "%s: leaks cannot be repaired while its snapshots are being read", c->path);
  return r;
}

static int commit(struct check *c, struct persist *p, bool dirty)
{
  struct superblock next = c->sb;
  int r;

  next.dirty = dirty;
  if (c->head_lost && !dirty)
    next.tag = content_tag_next(next.tag);
  r = superblock_commit(p, c->path, &next);
  if (r == 0)
    c->sb = next;
  return r;
}

static int store_words(struct persist *p, const GArray *words)
{
  int r = 0;

  for (guint i = 0; r == 0 && i < words->len; i++) {
    const struct check_word *word = &g_array_index(words, struct check_word, i);

    r = persist_reserve(p, word->offset, 8);
    if (r == 0)
      r = persist_store64(p, word->offset, word->value);
  }
  return r;
}

/* Damaged structures alone, or, in an image that has nothing else, leaks. */
static int change(struct check *c, struct persist *p)
{
  bool whole = c->result.corruptions == c->result.repairable && !c->words_left;
  int r = 0;

  if (c->grow)
    r = persist_grow(p, c->grow);
  if (r == 0)
    r = store_words(p, c->words);
  /* The owners of slots that were given up: as long as the reference is damaged that could have led to
   * them, the one that is left of several would be taken for what it led to. */
  if (r == 0 && c->owners->len)
    r = ORDERED("repair 4.1", persist_fence(p));
  if (r == 0)
    r = store_words(p, c->owners);
  if (r == 0)
    r = ORDERED("repair 4.2", persist_fence(p));
  if (r == 0)
    c->result.repaired = c->result.repairable;
  /* What a chain that is still broken does not reach is not free. */
  for (guint i = 0; r == 0 && whole && i < c->holes->len; i++) {
    const struct check_hole *hole = &g_array_index(c->holes, struct check_hole, i);

    r = persist_punch(p, hole->offset, hole->length);
  }
  if (r == 0 && whole && !c->holes_left)
    c->result.repaired += c->result.leaks;
  return r == 0 ? persist_fence(p) : r;
}

int check_repair(struct check *c)
{
  bool dirty = c->sb.dirty;
  struct persist *p = NULL;
  int r = lock_readers(c);

  if (r == 0)
    r = persist_open(c->fd, c->path, &p);
  /* Ordering: rule 5, what is gone by is durable, data included; rule 6, a commit that says dirty, after
   * which both superblocks are equal. 4.1 the words, those of slots that are given up last; 4.2 fence: what
   * they no longer lead to is free, and 4.3 may be punched. The last commit ends the session as the check has
   * found the image. */
  if (r == 0)
    r = ORDERED("repair 5", persist_sync(p));
  if (r == 0)
    r = ORDERED("repair 6", commit(c, p, true));
  if (r == 0)
    r = change(c, p);
  if (r == 0)
    r = commit(c, p, dirty);
  persist_close(p);
  return r;
}
