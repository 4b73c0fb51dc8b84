/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The head's units in memory: loading, locking, and the order in which what was written becomes
 * present on the media. What changes pages is in headpages.c.
 */
#include "headstate.h"

#include "error.h"
#include "order.h"

#include <string.h>
#include <sys/random.h>

static gint compare_keys(gconstpointer a, gconstpointer b)
{
  return GPOINTER_TO_SIZE(a) < GPOINTER_TO_SIZE(b) ? -1 : GPOINTER_TO_SIZE(a) > GPOINTER_TO_SIZE(b);
}

static void unit_free(gpointer data)
{
  struct unit *u = data;

  g_free(u->present);
  g_free(u->unsettled);
  g_free(u);
}

int head_new(struct store *store, struct slots *slots, struct layer *lower, struct head **head)
{
  struct head *h = g_new0(struct head, 1);

  h->store = store;
  h->slots = slots;
  h->cache = view_cache_new(lower, store->geo.unit_pages);
  g_mutex_init(&h->table_lock);
  g_mutex_init(&h->settle_lock);
  g_mutex_init(&h->session_lock);
  for (unsigned i = 0; i < HEAD_STRIPES; i++)
    g_mutex_init(&h->stripes[i]);
  for (unsigned i = 0; i < HEAD_STRIPES; i++)
    g_cond_init(&h->landed[i]);
  h->units = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, unit_free);
  h->unsettled = g_tree_new(compare_keys);
  *head = h;
  return 0;
}

void head_free(struct head *h)
{
  if (!h)
    return;
  g_tree_unref(h->unsettled);
  g_hash_table_unref(h->units);
  view_cache_free(h->cache);
  for (unsigned i = 0; i < HEAD_STRIPES; i++)
    g_mutex_clear(&h->stripes[i]);
  for (unsigned i = 0; i < HEAD_STRIPES; i++)
    g_cond_clear(&h->landed[i]);
  g_mutex_clear(&h->session_lock);
  g_mutex_clear(&h->settle_lock);
  g_mutex_clear(&h->table_lock);
  g_free(h);
}

static gboolean cancel_unlinked(gpointer key, gpointer value, gpointer opaque)
{
  struct unit *u = value;
  struct head *h = opaque;

  (void)key;
  if (u->slot && !u->linked)
    slots_cancel(h->slots, u->slot);
  return TRUE;
}

void head_reset(struct head *h, struct layer *lower)
{
  g_hash_table_foreach_remove(h->units, cancel_unlinked, h);
  g_tree_remove_all(h->unsettled);
  h->pending = 0;
  view_cache_reset(h->cache, lower);
}

struct content_tag content_tag_next(struct content_tag tag)
{
  struct content_tag next = { .counter = tag.counter + 1 };

  while (!next.random)
    if (getrandom(&next.random, sizeof(next.random), 0) != sizeof(next.random))
      next.random = ((uint64_t)g_random_int() << 32) | g_random_int();
  return next;
}

static int begin_session(struct head *h, const struct content_tag *tag)
{
  int ret = 0;

  if (g_atomic_int_get(&h->session))
    return store_check(h->store);
  g_mutex_lock(&h->session_lock);
  if (!h->session) {
    struct superblock next = store_begin(h->store);

    next.tag = tag ? *tag : content_tag_next(next.tag);
    ret = store_end(h->store, &next, ORDERED("9.2", true));
    if (ret == 0)
      g_atomic_int_set(&h->session, 1);
  }
  g_mutex_unlock(&h->session_lock);
  return ret;
}

int head_begin_session(struct head *h)
{
  return begin_session(h, NULL);
}

int head_begin_session_with_tag(struct head *h, struct content_tag tag)
{
  return begin_session(h, &tag);
}

uint64_t head_unit_pages(const struct head *h, uint64_t unit)
{
  const struct geometry *g = &h->store->geo;
  uint64_t pages = h->store->sb.virtual_size >> PAGE_SHIFT;
  uint64_t first = unit * g->unit_pages;

  return first >= pages ? 0 : MIN(pages - first, g->unit_pages);
}

/* Looks for the head's slot in the unit's chain. A slot of the head need not be the newest: slots of an
 * abandoned head may lie before it until they are collected. */
static int unit_load(struct head *h, uint64_t number, struct unit **unit)
{
  struct store *st = h->store;
  g_autoptr(GArray) chain = NULL;
  struct unit *u;
  uint64_t index;
  int ret;

  ret = slotwalk_map(st->fd, st->path, &st->sb, number, &index);
  if (ret)
    return ret;
  u = g_new0(struct unit, 1);
  u->number = number;
  if (index) {
    chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
    ret = slotwalk_chain(st->fd, st->path, &st->sb, number, index, chain);
  }
  for (unsigned i = 0; ret == 0 && chain && i < chain->len && !u->slot; i++) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i);

    if (slot->epoch != st->sb.head_epoch)
      continue;
    u->slot = slot->index;
    u->linked = true;
    u->present = slotwalk_bitmap_new(st->fd, st->path, &st->geo, u->slot, 0, st->geo.unit_pages, &ret);
  }
  if (ret) {
    unit_free(u);
    return ret;
  }
  *unit = u;
  return 0;
}

/* The stripe's mutex is held. */
static struct unit *find_or_load(struct head *h, uint64_t unit, int *error)
{
  gpointer key = GSIZE_TO_POINTER(unit + 1);
  struct unit *u;

  g_mutex_lock(&h->table_lock);
  u = g_hash_table_lookup(h->units, key);
  g_mutex_unlock(&h->table_lock);
  *error = 0;
  if (!u) {
    *error = unit_load(h, unit, &u);
    if (*error)
      return NULL;
    g_mutex_lock(&h->table_lock);
    g_hash_table_insert(h->units, key, u);
    g_mutex_unlock(&h->table_lock);
  }
  return u;
}

static GMutex *stripe(struct head *h, uint64_t unit)
{
  return &h->stripes[unit % HEAD_STRIPES];
}

struct unit *head_lock_beside(struct head *h, uint64_t unit, int *error)
{
  struct unit *u;

  g_mutex_lock(stripe(h, unit));
  u = find_or_load(h, unit, error);
  if (!u)
    g_mutex_unlock(stripe(h, unit));
  return u;
}

struct unit *head_lock_unit(struct head *h, uint64_t unit, int *error)
{
  struct unit *u = head_lock_beside(h, unit, error);

  /* A unit with pages in flight has a slot, and stays in memory. */
  if (u && u->flights) {
    u->waiting++;
    while (u->flights)
      g_cond_wait(&h->landed[unit % HEAD_STRIPES], stripe(h, unit));
    u->waiting--;
  }
  return u;
}

struct unit *head_trylock_beside(struct head *h, uint64_t unit, int *error)
{
  struct unit *u;

  if (!g_mutex_trylock(stripe(h, unit))) {
    *error = -EAGAIN;
    return NULL;
  }
  u = find_or_load(h, unit, error);
  if (!u)
    g_mutex_unlock(stripe(h, unit));
  return u;
}

struct unit *head_trylock_unit(struct head *h, uint64_t unit, int *error)
{
  struct unit *u = head_trylock_beside(h, unit, error);

  if (u && u->flights) {
    g_mutex_unlock(stripe(h, unit));
    *error = -EAGAIN;
    return NULL;
  }
  return u;
}

bool head_in_flight(const struct unit *u, uint64_t page)
{
  for (const struct flight *f = u->flights; f; f = f->next)
    if (page >= f->first && page < f->end)
      return true;
  return false;
}

void head_trim_flights(const struct unit *u, uint64_t page, uint64_t *first, uint64_t *end)
{
  for (const struct flight *f = u->flights; f; f = f->next) {
    if (f->end <= page)
      *first = MAX(*first, f->end);
    else
      *end = MIN(*end, f->first);
  }
}

void head_take_off(struct head *h, struct unit *u, struct flight *f, uint64_t first, uint64_t end)
{
  *f = (struct flight){ 0, 0, NULL };
  if (u->waiting)
    return;
  *f = (struct flight){ first, end, u->flights };
  u->flights = f;
  g_mutex_unlock(stripe(h, u->number));
}

void head_land(struct head *h, struct unit *u, struct flight *f)
{
  struct flight **at = &u->flights;

  if (f->first >= f->end)
    return;
  g_mutex_lock(stripe(h, u->number));
  while (*at != f)
    at = &(*at)->next;
  *at = f->next;
  if (!u->flights && u->waiting)
    g_cond_broadcast(&h->landed[u->number % HEAD_STRIPES]);
}

void head_unlock_unit(struct head *h, struct unit *u)
{
  GMutex *mutex = stripe(h, u->number);

  /* Only units with a slot are worth their memory: a walk over an empty image must not fill it. */
  if (!u->slot) {
    g_mutex_lock(&h->table_lock);
    g_hash_table_remove(h->units, GSIZE_TO_POINTER(u->number + 1));
    g_mutex_unlock(&h->table_lock);
  }
  g_mutex_unlock(mutex);
}

int head_forget_unit(struct head *h, uint64_t unit)
{
  gpointer key = GSIZE_TO_POINTER(unit + 1);
  struct unit *u;
  int ret = 0;

  g_mutex_lock(stripe(h, unit));
  g_mutex_lock(&h->table_lock);
  u = g_hash_table_lookup(h->units, key);
  g_mutex_unlock(&h->table_lock);
  if (u)
    ret = head_settle_unit(h, u);
  if (u && ret == 0) {
    if (u->slot && !u->linked)
      slots_cancel(h->slots, u->slot);
    g_mutex_lock(&h->table_lock);
    g_hash_table_remove(h->units, key);
    g_mutex_unlock(&h->table_lock);
  }
  g_mutex_unlock(stripe(h, unit));
  view_cache_forget(h->cache, unit);
  return ret;
}

view_cursor head_lower(struct head *h)
{
  return (view_cursor){ .cache = h->cache };
}

uint64_t head_page_offset(const struct head *h, const struct unit *u, uint64_t page)
{
  return geometry_data(&h->store->geo, u->slot) + page * PAGE_BYTES;
}

int head_ensure_slot(struct head *h, struct unit *u)
{
  struct store *st = h->store;
  uint64_t *present, newest;
  int ret;

  if (u->slot)
    return 0;
  present = g_try_malloc0(bits_words(st->geo.unit_pages) * 8);
  if (!present)
    return fail(ENOMEM, "%s: no memory for a presence bitmap", st->path);
  ret = slotwalk_map(st->fd, st->path, &st->sb, u->number, &newest);
  if (ret == 0)
    ret = slots_prepare(h->slots, u->number, st->sb.head_epoch, newest, &u->slot);
  if (ret) {
    g_free(present);
    return ret;
  }
  u->present = present;
  u->linked = false;
  u->clean = true;
  return 0;
}

int head_mark_present(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  if (first >= end)
    return 0;
  if (!u->unsettled) {
    u->unsettled = g_try_malloc0(bits_words(h->store->geo.unit_pages) * 8);
    if (!u->unsettled)
      return fail(ENOMEM, "%s: no memory for a presence bitmap", h->store->path);
  }
  if (u->unsettled_first >= u->unsettled_end) {
    u->unsettled_first = first;
    u->unsettled_end = end;
    g_mutex_lock(&h->table_lock);
    g_tree_insert(h->unsettled, GSIZE_TO_POINTER(u->number + 1), u);
    h->pending++;
    g_mutex_unlock(&h->table_lock);
  } else {
    u->unsettled_first = MIN(u->unsettled_first, first);
    u->unsettled_end = MAX(u->unsettled_end, end);
  }
  bits_set(u->present, first, end);
  bits_set(u->unsettled, first, end);
  return 0;
}

/* Presence of one unit on its way to the media. */
struct settling {
  struct unit *unit;
  uint64_t *bits;
  uint64_t first, end;
};

/* Takes the unit's unsettled bits. The unit is locked. */
static void capture(struct head *h, struct unit *u, struct settling *s)
{
  s->unit = u;
  s->bits = g_steal_pointer(&u->unsettled);
  s->first = u->unsettled_first;
  s->end = u->unsettled_end;
  u->unsettled_first = u->unsettled_end = 0;
  g_mutex_lock(&h->table_lock);
  g_tree_remove(h->unsettled, GSIZE_TO_POINTER(u->number + 1));
  g_mutex_unlock(&h->table_lock);
}

/* Back to the unit, for the next attempt or, when they are on the media, to have the buffer again. The
 * unit is locked. */
static void give_back(struct head *h, struct settling *s, bool settled)
{
  struct unit *u = s->unit;

  if (settled) {
    if (!u->unsettled) {
      bits_clear(s->bits, s->first, s->end);
      u->unsettled = s->bits;
    } else {
      g_free(s->bits);
    }
    h->pending--;
    return;
  }
  if (!u->unsettled)
    u->unsettled = g_malloc0(bits_words(h->store->geo.unit_pages) * 8);
  for (uint64_t at = s->first; (at = bits_find(s->bits, at, s->end, true)) < s->end;) {
    uint64_t to = bits_find(s->bits, at, s->end, false);

    head_mark_present(h, u, at, to);
    at = to;
  }
  h->pending--;                 /* it is counted again */
  g_free(s->bits);
}

/* Ordering 1.3 and 2.3: what the words refer to is durable by now. The unit is locked. */
static int publish_words(struct head *h, const struct settling *s)
{
  struct unit *u = s->unit;
  int ret = 0;

  if (!u->linked) {
    ret = slots_link(h->slots, u->number, u->slot);
    if (ret == 0)
      u->linked = true;
  }
  return ret ? ret : slots_set_present(h->slots, u->slot, s->bits, s->first, s->end);
}

int head_settle_unit(struct head *h, struct unit *u)
{
  struct settling s;
  int ret;

  if (u->unsettled_first >= u->unsettled_end)
    return 0;
  capture(h, u, &s);
  /* Ordering: 1.1 pages, 2.1 header and empty bitmap are written. 1.2, 2.2 fence: a crash before it
   * leaves a slot that nothing reaches, or pages whose bit is not set. 1.3, 2.3 bits and map word. 1.4,
   * 2.4 fence: a crash before it leaves some of the bits, each over a page that is there. */
  ret = ORDERED("1.2", persist_fence(h->store->p));
  if (ret == 0)
    ret = publish_words(h, &s);
  if (ret == 0)
    ret = ORDERED("1.4", persist_fence(h->store->p));
  give_back(h, &s, ret == 0);
  return ret;
}

static GArray *capture_all(struct head *h)
{
  GArray *all = g_array_new(FALSE, FALSE, sizeof(struct settling));

  for (uint64_t number = 0; (number = head_next_pending(h, number)) != UINT64_MAX; number++) {
    struct settling s;
    int error;
    struct unit *u = head_lock_unit(h, number, &error);

    if (!u)
      continue;                 /* cannot be: it is in memory */
    if (u->unsettled_first < u->unsettled_end) {
      capture(h, u, &s);
      g_array_append_val(all, s);
    }
    head_unlock_unit(h, u);
  }
  return all;
}

/* Where a fence is soon over, the lock of a unit may be held across it. False: there is none. */
static bool settle_one(struct head *h, int *error)
{
  uint64_t number = persist_get_mode(h->store->p) == PERSIST_PMEM ? head_next_pending(h, 0) : UINT64_MAX;
  struct unit *u = number < UINT64_MAX ? head_lock_unit(h, number, error) : NULL;
  bool some = u && u->unsettled_first < u->unsettled_end;

  if (some)
    *error = head_settle_unit(h, u);
  if (u)
    head_unlock_unit(h, u);
  return some;
}

int head_settle(struct head *h)
{
  g_autoptr(GArray) all = NULL;
  int ret;

  /* One at a time: a second flush must not return before the first, which may have taken its pages. */
  g_mutex_lock(&h->settle_lock);
  if (atomic_load(&h->pending) == 0) {
    ret = ORDERED("flush 1.2", persist_fence(h->store->p));
    g_mutex_unlock(&h->settle_lock);
    return ret;
  }
  if (atomic_load(&h->pending) == 1 && settle_one(h, &ret)) {
    g_mutex_unlock(&h->settle_lock);
    return ret;
  }
  all = capture_all(h);
  /* Ordering as in head_settle_unit(), for all units at once. */
  ret = ORDERED("flush 1.2", persist_fence(h->store->p));
  for (unsigned i = 0; ret == 0 && i < all->len; i++) {
    const struct settling *s = &g_array_index(all, struct settling, i);

    g_mutex_lock(stripe(h, s->unit->number));
    ret = publish_words(h, s);
    ORDERED_VOID("settle 1.4", persist_drain(h->store->p));
    g_mutex_unlock(stripe(h, s->unit->number));
  }
  if (ret == 0 && all->len)
    ret = ORDERED("flush 1.4", persist_fence(h->store->p));
  for (unsigned i = 0; i < all->len; i++) {
    struct settling *s = &g_array_index(all, struct settling, i);

    g_mutex_lock(stripe(h, s->unit->number));
    give_back(h, s, ret == 0);
    g_mutex_unlock(stripe(h, s->unit->number));
  }
  g_mutex_unlock(&h->settle_lock);
  return ret;
}

bool head_is_settled(const struct head *h) { return ORDERED("idle F.3", atomic_load(&h->pending)) == 0; }

uint64_t head_next_pending(struct head *h, uint64_t unit)
{
  GTreeNode *node;
  uint64_t next;

  g_mutex_lock(&h->table_lock);
  node = g_tree_lower_bound(h->unsettled, GSIZE_TO_POINTER(unit + 1));
  next = node ? GPOINTER_TO_SIZE(g_tree_node_key(node)) - 1 : UINT64_MAX;
  g_mutex_unlock(&h->table_lock);
  return next;
}

int head_foreach_unit(struct head *h, uint64_t first, uint64_t end, head_unit_fn fn, void *opaque)
{
  struct store *st = h->store;
  uint64_t unit = first >> st->geo.unit_shift;
  uint64_t units = geometry_units(&st->geo, end);
  bool unsettled = head_next_pending(h, 0) != UINT64_MAX;
  int ret = 0;

  while (ret == 0 && unit < units) {
    uint64_t words[512];
    uint64_t n = MIN(units - unit, G_N_ELEMENTS(words));
    uint64_t data = persist_seek(st->p, geometry_map_word(unit), geometry_map_word(units), true);

    /* Whole pages of the map without a block have no slot; those in memory only are not linked yet. */
    if (data > geometry_map_word(unit) && !unsettled) {
      unit = (data - UNIT_MAP_OFFSET) / 8;
      continue;
    }
    ret = slotwalk_map_words(st->fd, st->path, unit, n, words);
    for (uint64_t i = 0; ret == 0 && i < n; i++) {
      struct unit *u;

      if (!words[i] && !unsettled)
        continue;
      u = head_lock_unit(h, unit + i, &ret);
      if (!u)
        break;
      if (u->slot)
        ret = fn(h, u, opaque);
      head_unlock_unit(h, u);
    }
    unit += n;
  }
  return ret;
}
