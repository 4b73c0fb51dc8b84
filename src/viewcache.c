/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs that were resolved, kept by pieces of at most 128 MiB: however large a unit is and however its
 * pages alternate, one resolution has at most 32768 runs (1.25 MiB). All pieces together are bounded, too:
 * those that were not used for longest go first. Whoever still reads one holds a reference.
 */
#include "view.h"

#define CACHE_RUNS_MAX (1u << 20)       /* 40 MiB */
#define PIECE_COST 4u           /* what an entry takes besides its runs, in runs */

struct piece {
  uint64_t number;
  GArray *runs;
};

struct view_cache {
  GMutex lock;
  struct layer *top;
  uint64_t unit_pages;
  uint64_t piece_pages;
  GHashTable *pieces;           /* number + 1 → link of USED */
  GQueue used;                  /* struct piece, used last first */
  uint64_t runs;                /* in all of them */
};

struct view_cache *view_cache_new(struct layer *top, uint64_t unit_pages)
{
  struct view_cache *c = g_new0(struct view_cache, 1);

  g_mutex_init(&c->lock);
  c->top = top;
  c->unit_pages = unit_pages;
  c->piece_pages = MIN(unit_pages, VIEW_PIECE_PAGES);
  c->pieces = g_hash_table_new(g_direct_hash, g_direct_equal);
  g_queue_init(&c->used);
  return c;
}

static gpointer key_of(uint64_t number) { return GSIZE_TO_POINTER(number + 1); }

static void drop(struct view_cache *c, GList *link)
{
  struct piece *p = link->data;

  g_hash_table_remove(c->pieces, key_of(p->number));
  g_queue_delete_link(&c->used, link);
  c->runs -= p->runs->len + PIECE_COST;
  g_array_unref(p->runs);
  g_free(p);
}

static void drop_all(struct view_cache *c)
{
  while (c->used.head)
    drop(c, c->used.head);
}

void view_cache_free(struct view_cache *c)
{
  if (!c)
    return;
  drop_all(c);
  g_hash_table_unref(c->pieces);
  g_mutex_clear(&c->lock);
  g_free(c);
}

void view_cache_forget(struct view_cache *c, uint64_t unit)
{
  uint64_t n = c->unit_pages / c->piece_pages;

  g_mutex_lock(&c->lock);
  for (uint64_t number = unit * n; number < (unit + 1) * n && c->used.head; number++) {
    GList *link = g_hash_table_lookup(c->pieces, key_of(number));

    if (link)
      drop(c, link);
  }
  g_mutex_lock(&c->top->walk_mutex);
  c->top->data_from = c->top->data_to = 0;
  g_mutex_unlock(&c->top->walk_mutex);
  g_mutex_unlock(&c->lock);
}

void view_cache_reset(struct view_cache *c, struct layer *top)
{
  g_mutex_lock(&c->lock);
  drop_all(c);
  if (top)
    c->top = top;
  c->top->data_from = c->top->data_to = 0;      /* slots may have been punched, and used again */
  g_mutex_unlock(&c->lock);
}

/* A reference to what is kept, which is now used last; NULL: nothing. */
static GArray *look_up(struct view_cache *c, uint64_t number)
{
  GList *link = g_hash_table_lookup(c->pieces, key_of(number));

  if (!link)
    return NULL;
  if (link != c->used.head) {
    g_queue_unlink(&c->used, link);
    g_queue_push_head_link(&c->used, link);
  }
  return g_array_ref(((struct piece *)link->data)->runs);
}

static void keep(struct view_cache *c, uint64_t number, GArray *runs)
{
  struct piece *p = g_new(struct piece, 1);

  *p = (struct piece){ number, g_array_ref(runs) };
  g_queue_push_head(&c->used, p);
  g_hash_table_insert(c->pieces, key_of(number), c->used.head);
  c->runs += runs->len + PIECE_COST;
  while (c->runs > CACHE_RUNS_MAX && c->used.tail != c->used.head)
    drop(c, c->used.tail);
}

/* What is kept takes no more than it needs: an array that grew has reserved up to twice as much. */
static GArray *exact(GArray *runs)
{
  GArray *same = g_array_sized_new(FALSE, FALSE, sizeof(struct run), runs->len);

  g_array_append_vals(same, runs->data, runs->len);
  g_array_unref(runs);
  return same;
}

static GArray *get(struct view_cache *c, uint64_t page, int *error)
{
  uint64_t number = page / c->piece_pages;
  GArray *runs, *same;

  g_mutex_lock(&c->lock);
  runs = look_up(c, number);
  g_mutex_unlock(&c->lock);
  if (runs)
    return runs;

  runs = g_array_new(FALSE, FALSE, sizeof(struct run));
  *error = view_resolve(c->top, number * c->piece_pages, c->piece_pages, runs);
  if (*error) {
    g_array_unref(runs);
    return NULL;
  }
  runs = exact(runs);
  g_mutex_lock(&c->lock);
  /* Another thread may have resolved it meanwhile: one of two equal results stays. */
  same = look_up(c, number);
  if (same)
    g_array_unref(same);
  else
    keep(c, number, runs);
  g_mutex_unlock(&c->lock);
  return runs;
}

void view_cursor_end(struct view_cursor *cursor)
{
  g_clear_pointer(&cursor->runs, g_array_unref);
}

const struct run *view_cursor_at(struct view_cursor *cursor, uint64_t page, int *error)
{
  const struct run *r = NULL;

  *error = 0;
  if (cursor->runs) {
    const struct run *last = &g_array_index(cursor->runs, struct run, cursor->runs->len - 1);

    if (page < g_array_index(cursor->runs, struct run, 0).page || page >= last->page + last->count)
      view_cursor_end(cursor);
  }
  if (!cursor->runs) {
    cursor->runs = get(cursor->cache, page, error);
    if (!cursor->runs)
      return NULL;
    cursor->at = view_find(cursor->runs, page);
  }
  r = &g_array_index(cursor->runs, struct run, cursor->at);
  if (page >= r->page + r->count)       /* most often the next one */
    r = &g_array_index(cursor->runs, struct run, ++cursor->at);
  if (page < r->page || page >= r->page + r->count) {
    cursor->at = view_find(cursor->runs, page);
    r = &g_array_index(cursor->runs, struct run, cursor->at);
  }
  return r;
}

int view_cache_read(struct view_cache *c, uint64_t offset, void *buffer, size_t length)
{
  uint64_t piece_bytes = c->piece_pages * PAGE_BYTES;
  uint8_t *out = buffer;
  int ret = 0;

  while (ret == 0 && length) {
    size_t n = MIN(length, piece_bytes - offset % piece_bytes);
    g_autoptr(GArray) runs = get(c, offset >> PAGE_SHIFT, &ret);

    if (runs)
      ret = view_read(runs, offset, out, n);
    out += n;
    offset += n;
    length -= n;
  }
  return ret;
}
