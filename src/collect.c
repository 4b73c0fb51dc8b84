/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Gives back the space of deleted epochs and abandoned heads. A deleted epoch without children is
 * dropped from the log, and its slots are garbage then; one with one child, its heir, is merged into
 * it (collectmerge.c); one with several children stays, for they all see it. Every step leaves each
 * living view as it was, so that the work can be cut short anywhere and goes on at the next open.
 *
 * The work costs by the slots of what is dropped or merged: only their units are visited (slots.c knows
 * which). It is done in steps of at most one unit, or one part of a large one, and the image is unlocked
 * between them: writers of a mapping wait for one step. What is to be done is found out anew in each.
 *
 * Readers: a chain is changed under LOCK_WALK, taken exclusively for that chain alone; pages are moved
 * only when at that moment no reader holds an epoch that sees them. Whoever opens such an epoch later
 * walks the chain as it is then.
 */
#include "collect.h"

#include "error.h"
#include "lock.h"
#include "order.h"

#include <string.h>

#define WALK_WAIT_MS 2000u

/* µs after which the image is unlocked, between two steps: writers of a mapping wait for it. */
#define HOLD_MAPPED 1000
#define HOLD 20000

enum step { STEP_END, STEP_MORE, STEP_WAIT };

struct collector {
  struct pcow_image *image;
  GHashTable *skipped;          /* deleted epochs that have to wait */
  uint32_t epoch;               /* whose units are visited */
  bool merging;                 /* it has an heir; else its slots are garbage */
  GArray *units;                /* still to be visited, the last one first; NULL: choose what is next */
  GArray *later;                /* visited, and left for another run */
  struct merge merge;
  bool reload;                  /* epochs are gone since */
};

/* One commit: GONE leaves the log, its HEIR (NULL: none, or the head) has the record that is given, and
 * NEXT says the rest. */
static int commit_gone(struct store *st, struct superblock *next, const struct epoch *gone,
                       const struct epoch *heir)
{
  uint64_t heir_number = next->log_end, gone_number;
  int ret = 0;

  if (heir)
    ret = epochs_append(st->p, st->path, st->epochs, next, heir, false);
  gone_number = next->log_end;
  if (ret == 0)
    ret = epochs_append(st->p, st->path, st->epochs, next, gone, true);
  if (ret) {
    store_end(st, next, false);
    return ret;
  }
  ret = store_end(st, next, true);
  if (ret)
    return ret;
  if (heir)
    epochs_apply(st->epochs, heir, false, heir_number);
  epochs_apply(st->epochs, gone, true, gone_number);
  return 0;
}

/* The oldest deleted epoch with that many children which was not SKIPPED, or NULL. */
static struct epoch *next_deleted(const struct store *st, GHashTable *skipped, unsigned children)
{
  g_autoptr(GHashTable) count = g_hash_table_new(g_direct_hash, g_direct_equal);
  struct epoch *oldest = NULL;
  GHashTableIter iter;
  gpointer value;

  g_hash_table_insert(count, GUINT_TO_POINTER(st->sb.head_parent), GUINT_TO_POINTER(1));
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    gpointer parent = GUINT_TO_POINTER(((struct epoch *)value)->parent);
    unsigned n = GPOINTER_TO_UINT(g_hash_table_lookup(count, parent));

    g_hash_table_insert(count, parent, GUINT_TO_POINTER(n + 1));
  }
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    struct epoch *e = value;
    gpointer id = GUINT_TO_POINTER(e->id);

    if (e->state == EPOCH_DELETED && GPOINTER_TO_UINT(g_hash_table_lookup(count, id)) == children &&
        !g_hash_table_contains(skipped, id) && (!oldest || e->id < oldest->id))
      oldest = e;
  }
  return oldest;
}

bool collect_descends(const struct epochs *epochs, const struct epoch *e, uint32_t id)
{
  while (e && e->id > id)       /* an ancestor's id is smaller */
    e = e->parent ? epochs_get(epochs, e->parent) : NULL;
  return e && e->id == id;
}

/* ---- What is next ---- */

static bool is_garbage(uint32_t epoch, const void *opaque)
{
  const struct store *st = opaque;

  return epoch != st->sb.head_epoch && !epochs_get(st->epochs, epoch);
}

static int take_units(struct collector *c, uint32_t epoch, bool merging)
{
  int ret;

  c->units = slots_take_units(c->image->slots, epoch, &ret);
  if (!c->units)
    return ret;
  c->epoch = epoch;
  c->merging = merging;
  c->merge.unit = 0;
  g_array_set_size(c->later, 0);
  return STEP_MORE;
}

/* What was not done stays on the list. */
static void give_back(struct collector *c)
{
  for (unsigned i = 0; c->units && i < c->units->len; i++)
    slots_note_unit(c->image->slots, c->epoch, g_array_index(c->units, uint64_t, i));
  for (unsigned i = 0; c->units && i < c->later->len; i++)
    slots_note_unit(c->image->slots, c->epoch, g_array_index(c->later, uint64_t, i));
  g_clear_pointer(&c->units, g_array_unref);
}

static int choose_step(struct collector *c)
{
  struct store *st = c->image->store;
  struct epoch *e = next_deleted(st, c->skipped, 0);
  uint32_t garbage;
  int ret;

  if (e) {
    struct epoch gone = *e;
    struct superblock next = store_begin(st);

    ret = commit_gone(st, &next, &gone, NULL);
    c->reload = true;
    return ret ? ret : STEP_MORE;
  }
  ret = slots_find_epoch(c->image->slots, is_garbage, st, &garbage);
  if (ret)
    return ret;
  if (garbage)
    return take_units(c, garbage, false);
  e = next_deleted(st, c->skipped, 1);
  return e ? take_units(c, e->id, true) : STEP_END;
}

/* ---- Units ---- */

/* The only child of a deleted epoch. HEIR's id is 0 when it is the head. False: there is none, or more. */
static bool find_heir(struct store *st, const struct epoch *e, struct epoch *heir)
{
  unsigned children = st->sb.head_parent == e->id;
  GHashTableIter iter;
  gpointer value;

  memset(heir, 0, sizeof(*heir));
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (children < 2 && g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *child = value;

    if (child->parent == e->id) {
      children++;
      *heir = *child;
    }
  }
  return children == 1;
}

static int sweep_chain(struct pcow_image *image, GArray *chain)
{
  struct store *st = image->store;
  uint64_t newer = 0;

  for (unsigned i = 0; i < chain->len; i++) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i);
    int ret = 0;

    if (is_garbage(slot->epoch, st))
      ret = slots_unlink(image->slots, slot, newer);
    else
      newer = slot->index;
    if (ret)
      return ret;
  }
  return VISIT_DONE;
}

static int visit(struct collector *c, uint64_t unit)
{
  struct pcow_image *image = c->image;
  struct store *st = image->store;
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t index;
  int ret = head_forget_unit(image->head, unit), forgotten;

  image->collected.visits++;
  if (ret == 0)
    ret = slotwalk_map(st->fd, st->path, &st->sb, unit, &index);
  if (ret == 0)
    ret = slotwalk_chain(st->fd, st->path, &st->sb, unit, index, chain);
  if (ret == 0)
    ret = c->merging ? merge_visit(image, &c->merge, chain) : sweep_chain(image, chain);
  forgotten = head_forget_unit(image->head, unit);
  return ret < 0 ? ret : forgotten ? forgotten : ret;
}

/* E has no slot any more: everything that it had is its heir's. */
static int drop_merged(struct collector *c, const struct epoch *e, struct epoch *heir)
{
  struct store *st = c->image->store;
  struct superblock next = store_begin(st);
  struct epoch gone = *e;
  int ret;

  /* Ordering: M.8, which follows M.3 or M.7 of the last unit. What E's floor hid must stay hidden: the
   * heir inherits it, in the commit that drops E. */
  if (heir->id) {
    heir->parent = gone.parent;
    ORDERED_VOID("M.8", heir->floor = MIN(heir->floor, gone.floor));
  } else {
    next.head_parent = gone.parent;
    ORDERED_VOID("head M.8", next.head_floor = MIN(next.head_floor, gone.floor));
  }
  ret = commit_gone(st, &next, &gone, heir->id ? heir : NULL);
  c->reload = true;
  /* If it is deleted as well, and was found to have to wait, it has more now that nobody sees. */
  g_hash_table_remove(c->skipped, GUINT_TO_POINTER(heir->id));
  return ret ? ret : STEP_MORE;
}

/* Others may still go. */
static int skip(struct collector *c)
{
  log_message(PCOW_LOG_WARNING, "%s; freed space is collected later", error_message());
  g_hash_table_add(c->skipped, GUINT_TO_POINTER(c->epoch));
  give_back(c);
  return STEP_MORE;
}

static int unit_step(struct collector *c)
{
  struct store *st = c->image->store;
  struct epoch *e = epochs_get(st->epochs, c->epoch);
  struct epoch heir;
  int ret;

  /* Between two steps anything may have happened. */
  if (c->merging && (!e || e->state != EPOCH_DELETED || !find_heir(st, e, &heir))) {
    give_back(c);
    return STEP_MORE;
  }
  if (!c->units->len && c->later->len)
    return skip(c);
  if (!c->units->len) {
    g_clear_pointer(&c->units, g_array_unref);
    return c->merging ? drop_merged(c, e, &heir) : STEP_MORE;
  }
  if (c->merging) {
    uint32_t to = heir.id ? heir.id : st->sb.head_epoch;

    if (c->merge.to != to)
      c->merge.unit = 0;
    c->merge.from = c->epoch;
    c->merge.to = to;
    c->merge.limit = heir.id ? heir.floor : st->sb.head_floor;
  }

  ret = store_dirty(st);
  if (ret == 0)
    ret = lock_try(st->fd, st->path, LOCK_WALK, LOCK_EXCLUSIVE);
  if (ret)
    return ret == -EAGAIN ? STEP_WAIT : ret;
  ret = visit(c, g_array_index(c->units, uint64_t, c->units->len - 1));
  lock_try(st->fd, st->path, LOCK_WALK, LOCK_NONE);
  if (ret == VISIT_LATER)
    g_array_append_val(c->later, g_array_index(c->units, uint64_t, c->units->len - 1));
  if (ret == VISIT_DONE || ret == VISIT_LATER)
    g_array_set_size(c->units, c->units->len - 1);
  if (ret >= 0)
    return STEP_MORE;
  return c->merging && (ret == -ENOSPC || ret == -ENOMEM) && store_check(st) == 0 ? skip(c) : ret;
}

static int step(struct collector *c)
{
  struct pcow_image *image = c->image;
  int ret = store_check(image->store);

  image->collected.steps++;
  if (ret == 0)
    ret = c->units ? unit_step(c) : choose_step(c);
  if (ret == STEP_END) {
    ret = ORDERED("end 13", persist_fence(image->store->p));
    if (ret == 0)
      image->uncollected = false;
  }
  return ret;
}

/* Short steps go together: the lock prefers readers, and who reads all the time makes each wait. */
static int locked_steps(struct collector *c)
{
  struct pcow_image *image = c->image;
  gint64 began, spent;
  int ret;

  pthread_rwlock_wrlock(&image->lock);
  began = g_get_monotonic_time();
  image->uncollected = true;
  do {
    ret = step(c);
    spent = g_get_monotonic_time() - began;
  } while (ret == STEP_MORE && spent < (image->map ? HOLD_MAPPED : HOLD));
  image->collected.longest = MAX(image->collected.longest, (uint64_t)spent);
  pthread_rwlock_unlock(&image->lock);
  return ret;
}

static int run(struct collector *c)
{
  unsigned waited = 0;
  int ret;

  while ((ret = locked_steps(c)) > 0) {
    if (ret == STEP_WAIT && waited++ == WALK_WAIT_MS)
      return fail(EBUSY, "%s: readers are at work", c->image->path);
    if (ret == STEP_WAIT)
      g_usleep(1000);
    else
      waited = 0;
  }
  return ret;
}

int collect_run(struct pcow_image *image)
{
  struct store *st = image->store;
  struct collector c = { .image = image };
  int ret;

  g_mutex_lock(&image->collecting);
  c.skipped = g_hash_table_new(g_direct_hash, g_direct_equal);
  c.later = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  ret = merge_prepare(&c.merge, image);
  if (ret == 0)
    ret = run(&c);
  give_back(&c);
  merge_release(&c.merge);
  g_array_unref(c.later);
  g_hash_table_unref(c.skipped);
  if (ret) {
    /* What was asked for is committed, and every view is as it should be: the space waits. */
    log_message(PCOW_LOG_WARNING, "freed space is collected later: %s", error_message());
    ret = store_check(st);
  }
  if (ret == 0 && c.reload) {
    pthread_rwlock_wrlock(&image->lock);
    ret = head_settle(image->head);
    if (ret == 0)
      ret = image_reload(image, NULL);
    pthread_rwlock_unlock(&image->lock);
  }
  g_mutex_unlock(&image->collecting);
  return ret;
}
