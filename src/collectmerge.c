/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Merges what a deleted epoch R has in one unit into its heir C, its only child: R's slot X and C's slot Y
 * become one. The fewer pages move: X's to Y, or Y's to X, which C takes over then. Every step leaves each
 * living view as it was, so that the work can be cut short anywhere and done again. (docs/format.md,
 * section 13.2, has the steps by number.)
 *
 * Nothing moves while somebody reads an epoch that sees it; what nobody sees is punched in any case.
 */
#include "collect.h"

#include "error.h"
#include "lock.h"
#include "mapping.h"
#include "order.h"

#define COPY_BYTES (1u << 20)
#define PART_PAGES 4096u        /* 16 MiB: moved, made durable and freed before the next */

int merge_prepare(struct merge *m, const struct pcow_image *image)
{
  size_t bitmap = bits_words(image->store->geo.unit_pages) * 8;

  m->buffer = g_try_malloc(COPY_BYTES);
  m->from_bits = g_try_malloc(bitmap);
  m->to_bits = g_try_malloc(bitmap);
  m->move_bits = g_try_malloc(bitmap);
  if (m->buffer && m->from_bits && m->to_bits && m->move_bits)
    return 0;
  return fail(ENOMEM, "%s: no memory to collect freed space", image->path);
}

void merge_release(struct merge *m)
{
  g_clear_pointer(&m->buffer, g_free);
  g_clear_pointer(&m->from_bits, g_free);
  g_clear_pointer(&m->to_bits, g_free);
  g_clear_pointer(&m->move_bits, g_free);
}

/* Does anybody hold an epoch that sees ID? LOCK_WALK is ours: new readers cannot walk. */
static bool has_readers(struct pcow_image *image, uint32_t id)
{
  struct store *st = image->store;
  GHashTableIter iter;
  gpointer value;

  if (!lock_range_busy(st->fd, LOCK_EPOCH(1), EPOCH_ID_MAX))
    return false;
  g_hash_table_iter_init(&iter, st->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *e = value;

    if (e->state == EPOCH_SNAPSHOT && collect_descends(st->epochs, e, id) &&
        lock_range_busy(st->fd, LOCK_EPOCH(e->id), 1))
      return true;
  }
  return false;
}

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

/* Is any of the pages mapped that the head sees of R and C? */
static bool is_mapped(const struct pcow_image *image, const struct merge *m)
{
  const struct store *st = image->store;

  return image->map && (m->to == st->sb.head_epoch ||
                        collect_descends(st->epochs, epochs_get(st->epochs, st->sb.head_parent), m->from));
}

/* Punches the pages of a slot that have data. */
static int punch_pages(struct store *st, uint64_t slot, const uint64_t *bits, uint64_t first, uint64_t end)
{
  uint64_t data = geometry_data(&st->geo, slot);
  int ret = 0;

  while (ret == 0 && (first = bits_find(bits, first, end, true)) < end) {
    uint64_t to = bits_find(bits, first, end, false);
    uint64_t stop = data + to * PAGE_BYTES;

    if (persist_seek(st->p, data + first * PAGE_BYTES, stop, true) < stop)
      ret = persist_punch(st->p, data + first * PAGE_BYTES, (to - first) * PAGE_BYTES);
    first = to;
  }
  return ret;
}

/* The heir has no slot of this unit: it takes the slot over. Nothing moves: readers need not be away. */
static int take_over(struct pcow_image *image, const struct merge *m, const struct slot_info *from,
                     uint64_t visible)
{
  struct store *st = image->store;
  uint64_t data = geometry_data(&st->geo, from->index);
  uint64_t hidden = data + visible * PAGE_BYTES, end = data + st->geo.unit_bytes;
  int ret = 0;

  /* Ordering: M.1 what the heir must not see is punched, durably; nobody alive sees it. M.2 the owner
   * word: one store. M.3 fence. A crash between them leaves either owner, each right. */
  if (persist_seek(st->p, hidden, end, true) < end) {
    ret = ORDERED("M.1", persist_punch(st->p, hidden, end - hidden));
    if (ret == 0)
      ret = ORDERED("fence M.1", persist_fence(st->p));
  }
  if (ret == 0)
    ret = slots_relabel(image->slots, from, m->to);
  return ret ? ret : ORDERED("M.3", persist_fence(st->p));
}

/* Pages [first, end) of one slot to the other, holes as holes. */
static int copy_pages(struct store *st, const struct merge *m, uint64_t from, uint64_t to, uint64_t first,
                      uint64_t end)
{
  uint64_t source = geometry_data(&st->geo, from), target = geometry_data(&st->geo, to);
  uint64_t at = source + first * PAGE_BYTES, stop = source + end * PAGE_BYTES;
  uint64_t offset = target - source;
  int ret = 0;

  while (ret == 0 && at < stop) {
    uint64_t data = persist_seek(st->p, at, stop, true);
    uint64_t n;

    /* What a page that is not present, or is hidden, holds there must not show. */
    if (data > at && persist_seek(st->p, at + offset, data + offset, true) < data + offset)
      ret = ORDERED("holes M.4", persist_punch(st->p, at + offset, data - at));
    at = data;
    if (ret || at >= stop)
      break;
    n = MIN(persist_seek(st->p, at, stop, false) - at, COPY_BYTES);
    ret = persist_allocate(st->p, at + offset, n);
    if (ret == 0)
      ret = persist_read(st->p, at, m->buffer, n);
    if (ret == 0)
      ret = persist_copy(st->p, at + offset, m->buffer, n);
    at += n;
  }
  return ret;
}

static int copy_runs(struct store *st, const struct merge *m, const uint64_t *bits, uint64_t from,
                     uint64_t to, uint64_t first, uint64_t end)
{
  int ret = 0;

  while (ret == 0 && (first = bits_find(bits, first, end, true)) < end) {
    uint64_t stop = bits_find(bits, first, end, false);

    ret = copy_pages(st, m, from, to, first, stop);
    first = stop;
  }
  return ret;
}

/* Where a part that begins at FIRST ends: it has at most PART_PAGES pages to move. */
static uint64_t part_end(const uint64_t *bits, uint64_t first, uint64_t end)
{
  uint64_t left = PART_PAGES;

  while (left && (first = bits_find(bits, first, end, true)) < end) {
    uint64_t stop = MIN(bits_find(bits, first, end, false), first + left);

    left -= stop - first;
    first = stop;
  }
  return first;
}

/* ---- Up: X's pages to Y ---- */

/* The head, in memory, is the authority for its slot: it fetches the pages from beneath. */
static int fetch_part(struct pcow_image *image, const struct merge *m, uint64_t unit, uint64_t first,
                      uint64_t end)
{
  int ret = 0;
  struct unit *u = head_lock_unit(image->head, unit, &ret);

  if (!u)
    return ret;
  while (ret == 0 && (first = bits_find(m->move_bits, first, end, true)) < end) {
    uint64_t stop = bits_find(m->move_bits, first, end, false);

    ret = head_publish(image->head, u, first, stop, 0, NULL);
    first = stop;
  }
  if (ret == 0)
    ret = head_settle_unit(image->head, u);
  head_unlock_unit(image->head, u);
  return ret;
}

static int copy_part_up(struct pcow_image *image, const struct merge *m, uint64_t from, uint64_t to,
                        uint64_t first, uint64_t end)
{
  struct store *st = image->store;
  /* Ordering: M.4 pages are in the heir's slot. M.5 fence, bits. M.6 fence: from here on everybody who
   * can see the old ones sees the new ones before them. Bits that a killed collector left were written
   * back when the image was opened. */
  int ret = slots_reserve_present(image->slots, to, first, end);

  if (ret == 0)
    ret = copy_runs(st, m, m->move_bits, from, to, first, end);
  if (ret == 0)
    ret = ORDERED("M.5", persist_fence(st->p));
  if (ret == 0)
    ret = slots_set_present(image->slots, to, m->move_bits, first, end);
  return ret ? ret : ORDERED("M.6", persist_fence(st->p));
}

/* M.7: nobody sees any page of X. */
static int drop(struct pcow_image *image, const struct merge *m, const struct slot_info *from, uint64_t newer,
                uint64_t visible)
{
  int ret = 0;

  /* A first write that failed after its page was published may have left what it was copied from. */
  if (image->map && m->to == image->store->sb.head_epoch)
    ret = mapping_leave(image, from->unit, m->from_bits, 0, visible);
  return ret ? ret : slots_unlink(image->slots, from, newer);
}

/* One part of the pages of move_bits, which lie below VISIBLE. */
static int move_up(struct pcow_image *image, const struct merge *m, const struct slot_info *from,
                   const struct slot_info *to, uint64_t newer, uint64_t visible)
{
  uint64_t first = bits_find(m->move_bits, 0, visible, true);
  uint64_t end = part_end(m->move_bits, first, visible);
  int ret = 0;

  /* First what is mapped: when that fails nothing has moved. */
  if (is_mapped(image, m))
    ret = mapping_leave(image, from->unit, m->move_bits, first, end);
  if (ret)
    return ret;
  if (m->to == image->store->sb.head_epoch)
    ret = fetch_part(image, m, from->unit, first, end);
  else
    ret = copy_part_up(image, m, from->index, to->index, first, end);
  if (ret)
    return ret;
  if (bits_find(m->move_bits, end, visible, true) == visible)
    return drop(image, m, from, newer, visible);
  /* M.7 for the part: the whole needs no more space than one part. */
  ret = punch_pages(image->store, from->index, m->move_bits, first, end);
  return ret ? ret : VISIT_AGAIN;
}

/* ---- Down: Y's pages to X ---- */

static int move_down(struct pcow_image *image, struct merge *m, const struct slot_info *from,
                     const struct slot_info *to, uint64_t newer, uint64_t visible)
{
  struct store *st = image->store;
  bool head = m->to == st->sb.head_epoch, mapped = is_mapped(image, m);
  int ret = 0;

  /* Ordering: N.1 Y's pages are in X, where Y hides them from all who see X. N.2 fence, bits. N.3 fence:
   * X has all that its viewers see of both. N.4 Y is freed by rule 4; X still belongs to the deleted
   * epoch. N.5 the heir takes it over, M.1 to M.3. The head, which may be written to when the image is
   * unlocked, is done at once. */
  while (ret == 0 && (m->copied_to = bits_find(m->to_bits, m->copied_to, visible, true)) < visible) {
    uint64_t first = m->copied_to, end = part_end(m->to_bits, first, visible);

    if (mapped)
      ret = mapping_leave(image, from->unit, m->to_bits, first, end);
    if (ret == 0)
      ret = slots_reserve_present(image->slots, from->index, first, end);
    if (ret == 0)
      ret = copy_runs(st, m, m->to_bits, to->index, from->index, first, end);
    if (ret == 0)
      ret = ORDERED("N.2", persist_fence(st->p));
    if (ret == 0)
      ret = slots_set_present(image->slots, from->index, m->to_bits, first, end);
    if (ret == 0)
      ret = ORDERED("N.3", persist_fence(st->p));
    if (ret)
      return ret;
    m->copied_to = end;
    if (!head && bits_find(m->to_bits, end, visible, true) < visible)
      return VISIT_AGAIN;
  }
  if (ret == 0)
    ret = slots_unlink(image->slots, to, newer);
  return ret ? ret : take_over(image, m, from, visible);
}

/* ---- One unit ---- */

/* Gives back what nobody sees of X, whoever reads: what Y has, and what lies above the heir's floor. */
static int squeeze(struct pcow_image *image, struct merge *m, const struct slot_info *from, uint64_t visible)
{
  struct store *st = image->store;
  uint64_t pages = st->geo.unit_pages;
  g_autofree uint64_t *bits = g_try_malloc(bits_words(pages) * 8);
  int ret = 0;

  if (!bits)
    return fail(ENOMEM, "%s: no memory for a presence bitmap", st->path);
  m->copied_to = 0;             /* copies that Y still hides go, too */
  for (uint64_t w = 0; w < bits_words(pages); w++)
    bits[w] = m->from_bits[w] & m->to_bits[w];
  for (uint64_t at = visible; (at = bits_find(m->from_bits, at, pages, true)) < pages; at++)
    bits_set(bits, at, at + 1);
  if (image->map && m->to == st->sb.head_epoch)
    ret = mapping_leave(image, from->unit, bits, 0, visible);
  return ret ? ret : punch_pages(st, from->index, bits, 0, pages);
}

/* MOVE_BITS: what X has and Y has not; below VISIBLE it counts. */
static int load_bits(struct pcow_image *image, struct merge *m, const struct slot_info *from,
                     const struct slot_info *to)
{
  struct store *st = image->store;
  uint64_t pages = st->geo.unit_pages;
  int ret = slotwalk_bitmap(st->fd, st->path, &st->geo, from->index, 0, pages, m->from_bits);

  if (ret == 0)
    ret = slotwalk_bitmap(st->fd, st->path, &st->geo, to->index, 0, pages, m->to_bits);
  if (ret)
    return ret;
  for (uint64_t w = 0; w < bits_words(pages); w++)
    m->move_bits[w] = m->from_bits[w] & ~m->to_bits[w];
  return 0;
}

int merge_visit(struct pcow_image *image, struct merge *m, GArray *chain)
{
  struct store *st = image->store;
  const struct geometry *g = &st->geo;
  uint64_t newer, heir_newer, unit_start, visible, up, down;
  struct slot_info *from = find_slot(chain, m->from, &newer);
  struct slot_info *to = find_slot(chain, m->to, &heir_newer);
  bool head = m->to == st->sb.head_epoch, cheap_down;
  int ret;

  if (!from)
    return VISIT_DONE;
  if (m->unit != from->unit + 1) {
    m->unit = from->unit + 1;
    m->copied_to = 0;
    m->squeezed = false;
  }
  unit_start = from->unit * g->unit_bytes;
  visible = m->limit <= unit_start ? 0 : MIN(g->unit_bytes, m->limit - unit_start) >> PAGE_SHIFT;
  if (!to)
    return take_over(image, m, from, visible);
  ret = load_bits(image, m, from, to);
  if (ret)
    return ret;

  /* Stores that nobody knows of yet may need a slot of the head: another chain. */
  if (is_mapped(image, m) && mapping_tracks(image, from->unit)) {
    ret = mapping_hold_unit(image, from->unit);
    return ret == -EBUSY ? VISIT_LATER : ret ? ret : VISIT_AGAIN;
  }

  up = bits_count(m->move_bits, 0, visible);
  down = bits_count(m->to_bits, 0, visible);
  if (!up)
    return drop(image, m, from, newer, visible);
  cheap_down = m->copied_to ||
               (down < up && bits_find(m->to_bits, visible, g->unit_pages, true) == g->unit_pages);
  if (has_readers(image, m->from)) {
    fail(EBUSY, "%s: what a deleted snapshot left is being read", st->path);
    ret = squeeze(image, m, from, visible);
    return ret ? ret : VISIT_LATER;
  }
  /* The head's own pages cannot move under a mapping, and copying the many to the few would cost what
   * nobody asked for: the next snapshot makes the head one that can move. */
  if (cheap_down && head && image->map) {
    fail(EBUSY, "%s: what a deleted snapshot left is mapped as part of the head", st->path);
    ret = squeeze(image, m, from, visible);
    return ret ? ret : VISIT_LATER;
  }
  ret = cheap_down ? move_down(image, m, from, to, heir_newer, visible)
                   : move_up(image, m, from, to, newer, visible);
  if (ret == -ENOSPC && !m->squeezed && store_check(st) == 0) {
    m->squeezed = true;
    ret = squeeze(image, m, from, visible);
    return ret ? ret : VISIT_AGAIN;
  }
  return ret;
}
