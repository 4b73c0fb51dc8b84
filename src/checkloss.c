/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which pages of which snapshots a damage takes: those that only what is lost of a chain can have had. An
 * ancestor's slot never comes before its descendant's, and no epoch has two, so that a lost end of a chain
 * can only have been of epochs above the owners that are still there.
 */
#include "checking.h"

#include "bits.h"
#include "error.h"

#include <string.h>

#define NAMES_MAX 16u
#define RANGES_TEXT_MAX 4000u

struct loss {
  struct check *c;
  uint64_t unit;
  const GArray *chain;
  uint64_t slot;                /* 0: all that came after CHAIN */
  uint32_t epoch;               /* of the slot, 0: not known */
  bool truncated;               /* the slot is there, but what it has from page FIRST on is not */
  uint64_t first;
  bool given_up;                /* the tree is too large to go through for each damage */
  GHashTable *owners;           /* id → position in the chain + 1 */
  GHashTable *after;            /* ids of owners behind what is lost */
  uint64_t *bits, *other;       /* of one unit */
  GHashTable *views;            /* text of ranges → GPtrArray of names */
};

/* Pages of the unit that lie below LIMIT. */
static uint64_t pages_below(const struct check *c, uint64_t unit, uint64_t limit)
{
  uint64_t start = unit * c->geo.unit_bytes;

  return limit <= start ? 0 : MIN(c->geo.unit_bytes, limit - start + PAGE_BYTES - 1) >> PAGE_SHIFT;
}

/* False when enough work was done: an image could have as many damages as snapshots. */
static bool spend(struct loss *l, uint64_t steps)
{
  l->given_up |= l->c->loss_budget < steps;
  l->c->loss_budget -= MIN(steps, l->c->loss_budget);
  return !l->given_up;
}

/* The largest limit under which the view sees an epoch that what is lost can be of; 0: none. */
static uint64_t lost_limit(struct loss *l, uint32_t id, uint64_t size, uint64_t floor)
{
  uint64_t limit = size, found = size, rest = floor;
  uint32_t nearest = id;

  for (uint32_t at = id; at && spend(l, 1); limit = MIN(limit, rest)) {
    const struct epoch *e = epochs_get(l->c->epochs, at);
    bool owner = g_hash_table_contains(l->owners, GUINT_TO_POINTER(at));

    if (l->epoch && at == l->epoch)
      return limit;
    if (e && at != id)
      rest = e->floor;
    at = check_parent(l->c, at);
    if (owner) {
      found = MIN(limit, rest);
      nearest = at;
    }
  }
  return l->epoch || !nearest || g_hash_table_contains(l->after, GUINT_TO_POINTER(nearest)) ? 0 : found;
}

/* Takes off what the view still finds in the slots before. */
static int remove_found(struct loss *l, uint32_t id, uint64_t size, uint64_t floor)
{
  uint64_t limit = size, rest = floor;
  int r = 0;

  for (uint32_t at = id; r == 0 && at && spend(l, 1); limit = MIN(limit, rest)) {
    const struct epoch *e = epochs_get(l->c->epochs, at);
    guint owner = GPOINTER_TO_UINT(g_hash_table_lookup(l->owners, GUINT_TO_POINTER(at)));

    if (owner && spend(l, l->c->geo.bitmap_bytes / 64)) {
      uint64_t end = pages_below(l->c, l->unit, limit);

      r = check_read_bitmap(l->c, g_array_index(l->chain, struct check_link, owner - 1).slot.index, l->other);
      bits_clear(l->other, end, l->c->geo.bitmap_bytes * 8);
      for (uint64_t w = 0; r == 0 && w < l->c->geo.bitmap_bytes / 8; w++)
        l->bits[w] &= ~l->other[w];
    }
    if (e && at != id)
      rest = e->floor;
    at = check_parent(l->c, at);
  }
  return r;
}

static char *ranges_text(const struct loss *l)
{
  GString *text = g_string_new(NULL);
  uint64_t pages = l->c->geo.unit_pages, start = l->unit * l->c->geo.unit_bytes;

  for (uint64_t p = 0; (p = bits_find(l->bits, p, pages, true)) < pages;) {
    uint64_t end = bits_find(l->bits, p, pages, false);

    if (text->len > RANGES_TEXT_MAX) { /* the rest of the unit as one */
      for (uint64_t q = end; (q = bits_find(l->bits, q, pages, true)) < pages; q = end)
        end = bits_find(l->bits, q, pages, false);
    }
    g_string_append_printf(text, "%s%" PRIu64 "-%" PRIu64, text->len ? ", " : "", start + p * PAGE_BYTES,
                           start + end * PAGE_BYTES - 1);
    p = end;
  }
  return g_string_free(text, FALSE);
}

static int look_at(struct loss *l, uint32_t id, uint64_t size, uint64_t floor, const char *name)
{
  struct check *c = l->c;
  uint64_t limit = lost_limit(l, id, size, floor);
  uint64_t end = pages_below(c, l->unit, limit);
  g_autofree char *text = NULL;
  GPtrArray *names;
  int r = 0;

  if (!end)
    return 0;
  if (l->slot)
    r = check_read_bitmap(c, l->slot, l->bits);
  else
    bits_set(l->bits, 0, c->geo.unit_pages);
  bits_clear(l->bits, 0, l->first);
  bits_clear(l->bits, end, c->geo.bitmap_bytes * 8);
  if (r == 0)
    r = remove_found(l, id, size, floor);
  if (r || bits_find(l->bits, 0, c->geo.unit_pages, true) == c->geo.unit_pages)
    return r;
  text = ranges_text(l);
  names = g_hash_table_lookup(l->views, text);
  if (!names) {
    names = g_ptr_array_new();
    g_hash_table_insert(l->views, g_steal_pointer(&text), names);
  }
  g_ptr_array_add(names, (gpointer)(uintptr_t)name);
  if (!name)
    c->head_lost = true;
  return 0;
}

/* NULL among the names is the head, which comes first. */
static void say_views(struct loss *l, const char *ranges, const GPtrArray *names)
{
  g_autoptr(GString) text = g_string_new(NULL);
  bool head = g_ptr_array_index(names, 0) == NULL;
  guint count = names->len - head;

  for (guint i = 0; i < MIN(count, NAMES_MAX); i++)
    g_string_append_printf(text, "%s'%s'", i ? ", " : count > 1 ? "snapshots " : "snapshot ",
                           (const char *)g_ptr_array_index(names, i + head));
  if (count > NAMES_MAX)
    g_string_append_printf(text, ", %u more", count - NAMES_MAX);
  if (head)
    g_string_append(text, count ? " and the head" : "the head");
  check_say(l->c, "%s: the pages at %s of %s %s", l->c->path, ranges, text->str,
            l->truncated ? "lie beyond the end of the file and read as zeros: what was in them is lost"
                     : "are lost: what is beneath them shows");
}

static int look_at_all(struct loss *l)
{
  struct check *c = l->c;
  g_autoptr(GPtrArray) snapshots = NULL;
  int r = 0;

  if (!l->given_up)
    snapshots = epochs_snapshots(c->epochs);
  if (snapshots && spend(l, snapshots->len))
    r = look_at(l, c->sb.head_epoch, c->sb.virtual_size, c->sb.head_floor, NULL);
  for (guint i = 0; r == 0 && !l->given_up && i < snapshots->len; i++) {
    const struct epoch *e = g_ptr_array_index(snapshots, i);

    r = look_at(l, e->id, e->virtual_size, e->floor, e->name);
  }
  if (l->given_up) {
    check_say(c, "%s: pages at %" PRIu64 "-%" PRIu64 " are lost, of the head or of snapshots", c->path,
              l->unit * c->geo.unit_bytes, (l->unit + 1) * c->geo.unit_bytes - 1);
    c->head_lost = true;
  }
  return r;
}

int check_loss(struct check *c, uint64_t unit, const GArray *chain, uint64_t slot, uint32_t epoch,
               bool truncated, uint64_t first, const GArray *after)
{
  struct loss l = { .c = c, .unit = unit, .chain = chain, .slot = slot, .epoch = epoch,
                    .truncated = truncated, .first = first };
  GHashTableIter iter;
  gpointer ranges, names;
  int r;

  l.bits = g_try_malloc0(c->geo.bitmap_bytes);
  l.other = g_try_malloc0(c->geo.bitmap_bytes);
  l.owners = g_hash_table_new(NULL, NULL);
  l.after = g_hash_table_new(NULL, NULL);
  spend(&l, 1 + chain->len + (after ? after->len : 0));
  for (guint i = 0; !l.given_up && after && i < after->len; i++)
    g_hash_table_add(l.after, GUINT_TO_POINTER(g_array_index(after, struct slot_info, i).epoch));
  l.views = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_ptr_array_unref);
  for (guint i = 0; !l.given_up && i < chain->len; i++)
    g_hash_table_insert(l.owners, GUINT_TO_POINTER(g_array_index(chain, struct check_link, i).slot.epoch),
                        GUINT_TO_POINTER(i + 1));
  if (l.bits && l.other)
    r = look_at_all(&l);
  else
    r = fail(ENOMEM, "%s: no memory for the bitmaps of a unit", c->path);
  g_hash_table_iter_init(&iter, l.views);
  while (r == 0 && !l.given_up && g_hash_table_iter_next(&iter, &ranges, &names))
    say_views(&l, ranges, names);
  g_hash_table_unref(l.views);
  g_hash_table_unref(l.after);
  g_hash_table_unref(l.owners);
  g_free(l.other);
  g_free(l.bits);
  return r;
}
