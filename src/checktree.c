/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The tree of epochs as a check asks about it: who descends from whom, in a time that does not go by the
 * tree's depth, and up to which byte anybody sees what an epoch has. The tree was validated before.
 */
#include "checking.h"

uint32_t check_parent(const struct check *c, uint32_t id)
{
  const struct epoch *e = epochs_get(c->epochs, id);

  return e ? e->parent : id == c->sb.head_epoch ? c->sb.head_parent : 0;
}

static struct check_node *node_of(const struct check *c, uint32_t id)
{
  return g_hash_table_lookup(c->nodes, GUINT_TO_POINTER(id));
}

bool check_epoch_exists(const struct check *c, uint32_t id)
{
  return node_of(c, id) != NULL;
}

/* ---- Numbering ---- */

struct place {
  struct check_node *node;
  uint32_t id;
  uint32_t child, sibling;      /* positions + 1; 0: none */
};

static void add_place(struct check *c, GArray *places, GHashTable *where, uint32_t id, uint64_t limit)
{
  struct place place = { .node = g_new0(struct check_node, 1), .id = id };

  place.node->limit = limit;
  g_hash_table_insert(c->nodes, GUINT_TO_POINTER(id), place.node);
  g_array_append_val(places, place);
  g_hash_table_insert(where, GUINT_TO_POINTER(id), GUINT_TO_POINTER(places->len));
}

/* What a child may see of its parent it sees up to its floor. Of a deleted epoch the rest is collected. */
static void add_floor(const struct check *c, uint32_t parent, uint64_t floor)
{
  struct check_node *node = node_of(c, parent);

  if (node)
    node->limit = MAX(node->limit, floor);
}

void check_tree(struct check *c)
{
  g_autoptr(GArray) places = g_array_new(FALSE, FALSE, sizeof(struct place));
  g_autoptr(GHashTable) where = g_hash_table_new(NULL, NULL);
  g_autoptr(GArray) stack = g_array_new(FALSE, FALSE, sizeof(uint32_t));
  uint32_t number = 0, root = 0;
  GHashTableIter iter;
  gpointer value;

  add_place(c, places, where, c->sb.head_epoch, c->sb.virtual_size);
  g_hash_table_iter_init(&iter, c->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct epoch *e = value;

    add_place(c, places, where, e->id, e->state == EPOCH_DELETED ? UINT64_MAX : e->virtual_size);
  }
  for (uint32_t i = 0; i < places->len; i++) {
    struct place *place = &g_array_index(places, struct place, i);
    const struct epoch *e = epochs_get(c->epochs, place->id);
    uint32_t parent = check_parent(c, place->id);
    uint32_t at = GPOINTER_TO_UINT(g_hash_table_lookup(where, GUINT_TO_POINTER(parent)));

    add_floor(c, parent, e ? e->floor : c->sb.head_floor);
    if (!at) {
      root = i;
      continue;
    }
    place->sibling = g_array_index(places, struct place, at - 1).child;
    g_array_index(places, struct place, at - 1).child = i + 1;
  }

  /* Down to the first child, then to the next sibling of whoever has one: STACK is the way up. */
  g_array_append_val(stack, root);
  g_array_index(places, struct place, root).node->first = number++;
  while (stack->len) {
    uint32_t top = g_array_index(stack, uint32_t, stack->len - 1);
    struct place *place = &g_array_index(places, struct place, top);
    uint32_t child = place->child;

    if (!child) {
      place->node->last = number - 1;
      g_array_set_size(stack, stack->len - 1);
      continue;
    }
    place->child = g_array_index(places, struct place, child - 1).sibling;
    g_array_index(places, struct place, child - 1).node->first = number++;
    child--;
    g_array_append_val(stack, child);
  }
}

/* ---- The owners of a chain ---- */

static int compare_firsts(gconstpointer a, gconstpointer b, gpointer data)
{
  guint x = GPOINTER_TO_UINT(a), y = GPOINTER_TO_UINT(b);

  (void)data;
  return (x > y) - (x < y);
}

void check_owners_init(struct check_owners *owners)
{
  owners->ids = g_hash_table_new(NULL, NULL);
  owners->spans = g_tree_new_full(compare_firsts, NULL, NULL, NULL);
}

void check_owners_clear(struct check_owners *owners)
{
  g_tree_unref(owners->spans);
  g_hash_table_unref(owners->ids);
}

int check_order(const struct check *c, const struct check_owners *owners, uint32_t epoch)
{
  const struct check_node *node = node_of(c, epoch), *span;
  GTreeNode *at;

  if (g_hash_table_contains(owners->ids, GUINT_TO_POINTER(epoch)))
    return 'd';
  at = g_tree_upper_bound(owners->spans, GUINT_TO_POINTER(node->first));
  at = at ? g_tree_node_previous(at) : g_tree_node_last(owners->spans);
  span = at ? g_tree_node_value(at) : NULL;
  return span && span->last >= node->first ? 'o' : 0;
}

void check_owners_add(const struct check *c, struct check_owners *owners, uint32_t epoch)
{
  struct check_node *node = node_of(c, epoch);
  GTreeNode *at;

  g_hash_table_add(owners->ids, GUINT_TO_POINTER(epoch));
  /* Those that descend from it are within its span. */
  while ((at = g_tree_lower_bound(owners->spans, GUINT_TO_POINTER(node->first))) &&
         GPOINTER_TO_UINT(g_tree_node_key(at)) <= node->last)
    g_tree_remove(owners->spans, g_tree_node_key(at));
  g_tree_insert(owners->spans, GUINT_TO_POINTER(node->first), node);
}
