/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Gives back the space of deleted epochs and abandoned heads. A deleted epoch without children is
 * dropped from the log, and its slots are garbage then; one with one child, its heir, is merged into
 * it; one with several children stays, for they all see it. Every step leaves each living view as it
 * was, so that the work can be cut short anywhere and goes on at the next open.
 *
 * Readers: a chain is changed under LOCK_WALK, taken exclusively for that chain alone; pages are moved
 * only when at that moment no reader holds an epoch that sees them. Whoever opens such an epoch later
 * walks the chain as it is then.
 */
#include "image.h"

#include "error.h"
#include "lock.h"

#include <string.h>

#define WALK_WAIT_MS 2000
#define COPY_BYTES (1u << 20)
#define PART_PAGES 4096u        /* 16 MiB: moved, made durable and freed before the next */

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

/* A deleted epoch with that many children which was not SKIPPED, or NULL. */
static struct epoch *next_deleted(const struct store *st, GHashTable *skipped, unsigned children)
{
  g_autoptr(GHashTable) count = g_hash_table_new(g_direct_hash, g_direct_equal);
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
        !g_hash_table_contains(skipped, id))
      return e;
  }
  return NULL;
}

static bool descends(const struct epochs *epochs, const struct epoch *e, uint32_t ancestor)
{
  while (e && e->id != ancestor)
    e = e->parent ? epochs_get(epochs, e->parent) : NULL;
  return e != NULL;
}

/* Does anybody hold an epoch that sees ID? LOCK_WALK is ours: new readers cannot walk. */
static bool has_readers(struct pcow_image *image, uint32_t id)
{
  struct store *st = image->store;
  GHashTableIter iter;
  gpointer value;

  if (image->map && descends(st->epochs, epochs_get(st->epochs, st->sb.head_parent), id))
    return true;
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *e = value;

    if (e->state != EPOCH_SNAPSHOT || !descends(st->epochs, e, id))
      continue;
    if (lock_try(st->fd, st->path, LOCK_EPOCH(e->id), LOCK_EXCLUSIVE))
      return true;
    lock_try(st->fd, st->path, LOCK_EPOCH(e->id), LOCK_NONE);
  }
  return false;
}

/* Calls FN for each unit with slots: its chain, newest first. No reader walks meanwhile. */
typedef int (*chain_fn)(struct pcow_image *image, GArray *chain, void *opaque);

static int with_chain(struct pcow_image *image, uint64_t unit, uint64_t word, GArray *chain, chain_fn fn,
                      void *opaque)
{
  struct store *st = image->store;
  uint64_t index;
  int ret = slotwalk_reference(st->path, &st->sb, unit, word, &index);

  g_array_set_size(chain, 0);
  if (ret == 0)
    ret = slotwalk_chain(st->fd, st->path, &st->sb, unit, index, chain);
  if (ret)
    return ret;
  ret = lock_wait(st->fd, st->path, LOCK_WALK, LOCK_EXCLUSIVE, WALK_WAIT_MS);
  if (ret == -EAGAIN)
    return fail(EBUSY, "%s: readers are at work", st->path);
  if (ret == 0) {
    ret = fn(image, chain, opaque);
    lock_try(st->fd, st->path, LOCK_WALK, LOCK_NONE);
  }
  return ret;
}

static int foreach_chain(struct pcow_image *image, chain_fn fn, void *opaque)
{
  struct store *st = image->store;
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t end = UNIT_MAP_OFFSET + UNITS_MAX * 8;
  uint64_t at = UNIT_MAP_OFFSET;
  int ret = 0;

  while (ret == 0 && (at = persist_seek(st->p, at, end, true) & ~UINT64_C(7)) < end) {
    uint64_t words[512];
    uint64_t first = (at - UNIT_MAP_OFFSET) / 8;
    uint64_t n = MIN(G_N_ELEMENTS(words), UNITS_MAX - first);

    ret = slotwalk_map_words(st->fd, st->path, first, n, words);
    for (uint64_t i = 0; ret == 0 && i < n; i++)
      if (words[i])
        ret = with_chain(image, first + i, words[i], chain, fn, opaque);
    at += n * 8;
  }
  return ret;
}

static int sweep_chain(struct pcow_image *image, GArray *chain, void *opaque)
{
  struct store *st = image->store;
  uint64_t newer = 0;

  (void)opaque;
  for (unsigned i = 0; i < chain->len; i++) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i);

    if (slot->epoch == st->sb.head_epoch || epochs_get(st->epochs, slot->epoch)) {
      newer = slot->index;
    } else {
      int ret = slots_unlink(image->slots, slot, newer);

      if (ret)
        return ret;
    }
  }
  return 0;
}

struct merge {
  uint32_t from, to;
  uint64_t limit;               /* bytes: above, TO hides what FROM has */
  uint8_t *buffer;
  uint64_t *from_bits, *to_bits;
};

static struct slot_info *find_slot(GArray *chain, uint32_t epoch, uint64_t *newer)
{
  *newer = 0;
  for (unsigned i = 0; i < chain->len; i++) {
    struct slot_info *slot = &g_array_index(chain, struct slot_info, i);

    if (slot->epoch == epoch)
      return slot;
    *newer = slot->index;
  }
  return NULL;
}

/* The heir has no slot of this unit: it takes the slot over. */
static int take_over(struct pcow_image *image, const struct merge *m, const struct slot_info *from,
                     uint64_t visible)
{
  struct store *st = image->store;
  uint64_t data = geometry_data(&st->geo, from->index);
  int ret = 0;

  /* Ordering: M.1 what the heir must not see is punched, durably; nobody alive sees it. M.2 the owner
   * word: one store. M.3 fence. A crash between them leaves either owner, each right. */
  if (visible < st->geo.unit_pages) {
    ret = persist_punch(st->p, data + visible * PAGE_BYTES, (st->geo.unit_pages - visible) * PAGE_BYTES);
    if (ret == 0)
      ret = persist_fence(st->p);
  }
  if (ret == 0)
    ret = slots_relabel(image->slots, from, m->to);
  return ret ? ret : persist_fence(st->p);
}

/* Pages [first, end) of one slot to the other, holes as holes. */
static int copy_pages(struct store *st, const struct merge *m, uint64_t from, uint64_t to, uint64_t first,
                      uint64_t end)
{
  uint64_t source = geometry_data(&st->geo, from);
  uint64_t target = geometry_data(&st->geo, to);
  uint64_t at = source + first * PAGE_BYTES;
  uint64_t stop = source + end * PAGE_BYTES;
  /* What a page that is not present holds is garbage. */
  int ret = persist_punch(st->p, target + first * PAGE_BYTES, (end - first) * PAGE_BYTES);

  while (ret == 0 && (at = persist_seek(st->p, at, stop, true)) < stop) {
    uint64_t n = MIN(persist_seek(st->p, at, stop, false) - at, COPY_BYTES);

    ret = persist_allocate(st->p, target + (at - source), n);
    if (ret == 0)
      ret = persist_read(st->p, at, m->buffer, n);
    if (ret == 0)
      ret = persist_copy(st->p, target + (at - source), m->buffer, n);
    at += n;
  }
  return ret;
}

/* The pages of from_bits within [first, end), one part of the unit. */
static int move_part(struct pcow_image *image, const struct merge *m, uint64_t from, uint64_t to,
                     uint64_t first, uint64_t end)
{
  struct store *st = image->store;
  uint64_t at = bits_find(m->from_bits, first, end, true);
  int ret;

  if (at == end)
    return 0;
  ret = slots_reserve_present(image->slots, to, first, end);
  for (; ret == 0 && (at = bits_find(m->from_bits, at, end, true)) < end;) {
    uint64_t stop = bits_find(m->from_bits, at, end, false);

    ret = copy_pages(st, m, from, to, at, stop);
    at = stop;
  }
  /* Ordering: M.4 pages are in the heir's slot. M.5 fence, bits. M.6 fence: from here on everybody who
   * can see the old ones sees the new ones before them. M.7 the old ones are punched, so that the
   * whole needs no more space than one part. Bits that a killed collector left were written back when
   * the image was opened. */
  if (ret == 0)
    ret = persist_fence(st->p);
  if (ret == 0)
    ret = slots_set_present(image->slots, to, m->from_bits, first, end);
  if (ret == 0)
    ret = persist_fence(st->p);
  if (ret == 0)
    ret = persist_punch(st->p, geometry_data(&st->geo, from) + first * PAGE_BYTES, (end - first) * PAGE_BYTES);
  return ret;
}

/* Lets readers walk who wait. Only this handle changes chains: they are the same afterwards. */
static int let_readers_in(struct pcow_image *image, uint32_t epoch)
{
  struct store *st = image->store;
  int ret;

  lock_try(st->fd, st->path, LOCK_WALK, LOCK_NONE);
  ret = lock_wait(st->fd, st->path, LOCK_WALK, LOCK_EXCLUSIVE, WALK_WAIT_MS);
  if (ret == -EAGAIN || (ret == 0 && has_readers(image, epoch)))
    return fail(EBUSY, "%s: what a deleted snapshot left is being read", st->path);
  return ret;
}

/* Both have a slot: pages that the heir lacks are moved, part by part, then the slot is freed. */
static int move_over(struct pcow_image *image, const struct merge *m, const struct slot_info *from,
                     const struct slot_info *to, uint64_t newer, uint64_t visible)
{
  struct store *st = image->store;
  uint64_t pages = st->geo.unit_pages;
  int ret;

  ret = slotwalk_bitmap(st->fd, st->path, &st->geo, from->index, 0, pages, m->from_bits);
  if (ret == 0)
    ret = slotwalk_bitmap(st->fd, st->path, &st->geo, to->index, 0, pages, m->to_bits);
  if (ret)
    return ret;
  for (uint64_t w = 0; w < bits_words(pages); w++)
    m->from_bits[w] &= ~m->to_bits[w];
  bits_clear(m->from_bits, visible, pages);
  for (uint64_t first = 0; ret == 0 && first < pages; first += PART_PAGES) {
    uint64_t end = MIN(first + PART_PAGES, pages);

    if (bits_find(m->from_bits, first, end, true) == end)
      continue;
    ret = move_part(image, m, from->index, to->index, first, end);
    if (ret == 0 && end < pages)
      ret = let_readers_in(image, m->from);
  }
  return ret ? ret : slots_unlink(image->slots, from, newer);
}

static int merge_chain(struct pcow_image *image, GArray *chain, void *opaque)
{
  const struct geometry *g = &image->store->geo;
  const struct merge *m = opaque;
  uint64_t newer, heir_newer, unit_start, visible;
  struct slot_info *from = find_slot(chain, m->from, &newer);
  struct slot_info *to = find_slot(chain, m->to, &heir_newer);

  if (!from)
    return 0;
  if (has_readers(image, m->from))
    return fail(EBUSY, "%s: what a deleted snapshot left is being read", image->path);
  unit_start = from->unit * g->unit_bytes;
  visible = m->limit <= unit_start ? 0 : MIN(g->unit_bytes, m->limit - unit_start) >> PAGE_SHIFT;
  return to ? move_over(image, m, from, to, newer, visible) : take_over(image, m, from, visible);
}

/* E has one child: everything that E has becomes the child's. */
static int merge_epoch(struct pcow_image *image, const struct epoch *e)
{
  struct store *st = image->store;
  size_t bitmap = bits_words(st->geo.unit_pages) * 8;
  struct epoch gone = *e;
  struct epoch heir = { 0 };
  struct superblock next;
  struct merge m = { .from = e->id, .to = st->sb.head_epoch, .limit = st->sb.head_floor };
  GHashTableIter iter;
  gpointer value;
  int ret;

  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value))
    if (((struct epoch *)value)->parent == e->id)
      heir = *(struct epoch *)value;
  if (heir.id) {
    m.to = heir.id;
    m.limit = heir.floor;
  }
  m.buffer = g_try_malloc(COPY_BYTES);
  m.from_bits = g_try_malloc(bitmap);
  m.to_bits = g_try_malloc(bitmap);
  if (m.buffer && m.from_bits && m.to_bits)
    ret = foreach_chain(image, merge_chain, &m);
  else
    ret = fail(ENOMEM, "%s: no memory to collect freed space", st->path);
  g_free(m.buffer);
  g_free(m.from_bits);
  g_free(m.to_bits);
  if (ret)
    return ret;

  /* What E's floor hid must stay hidden: the heir inherits it, in the commit that drops E. */
  next = store_begin(st);
  if (heir.id) {
    heir.parent = gone.parent;
    heir.floor = MIN(heir.floor, gone.floor);
  } else {
    next.head_parent = gone.parent;
    next.head_floor = MIN(next.head_floor, gone.floor);
  }
  return commit_gone(st, &next, &gone, heir.id ? &heir : NULL);
}

static int collect(struct pcow_image *image)
{
  g_autoptr(GHashTable) skipped = g_hash_table_new(g_direct_hash, g_direct_equal);
  struct store *st = image->store;
  struct epoch *e;
  int ret = 0;

  while (ret == 0 && (e = next_deleted(st, skipped, 0))) {
    struct epoch gone = *e;
    struct superblock next = store_begin(st);

    ret = commit_gone(st, &next, &gone, NULL);
  }
  if (ret == 0)
    ret = foreach_chain(image, sweep_chain, NULL);
  while (ret == 0 && (e = next_deleted(st, skipped, 1))) {
    g_hash_table_add(skipped, GUINT_TO_POINTER(e->id));
    ret = merge_epoch(image, e);
    /* Readers, or no space to copy to: others may still go. */
    if ((ret == -EBUSY || ret == -ENOSPC) && store_check(st) == 0) {
      log_message(PCOW_LOG_WARNING, "%s; freed space is collected later", error_message());
      ret = 0;
    }
  }
  return ret;
}

int collect_run(struct pcow_image *image)
{
  struct store *st = image->store;
  int ret;

  /* While the image is mapped nothing is pending, and the head's slots are left alone. */
  if (!image->map) {
    ret = image_quiesce(image);
    if (ret)
      return ret;
  }
  image->uncollected = true;
  ret = store_dirty(st);
  if (ret == 0)
    ret = collect(image);
  if (ret == 0)
    ret = persist_fence(st->p);
  if (ret == 0)
    image->uncollected = false;
  if (ret) {
    /* What was asked for is committed, and every view is as it should be: the space waits. */
    log_message(PCOW_LOG_WARNING, "freed space is collected later: %s", error_message());
    ret = store_check(st);
  }
  return ret ? ret : image_reload(image, NULL);
}
