/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_rebase(): another base, one commit. Before a safe rebase, every page that some view sees of
 * the old base and that the new base shows otherwise is copied into the root epoch, which all views
 * see above the base: none of them changes content, and none notices when the work stops half-way.
 */
#include "compare.h"
#include "error.h"
#include "image.h"
#include "order.h"

#include <string.h>
#include <sys/stat.h>

#define CHUNK_PAGES 64u
#define REBASE_FLAGS (PCOW_REBASE_UNSAFE | PCOW_REBASE_BASES)

struct rebase {
  pcow_image *image;
  struct store *s;
  struct layer *old_base;       /* NULL: none */
  struct layer *new_base;
  struct view_cache *old_view;  /* of old_base, NULL without one */
  uint32_t root;                /* the root epoch */
  uint64_t limit;               /* bytes of the base that any view sees */
};

/* The epoch that every view begins with. */
static uint32_t root_epoch(const struct store *s)
{
  uint32_t id = s->sb.head_epoch;

  for (uint32_t parent = s->sb.head_parent; parent; parent = epochs_get(s->epochs, id)->parent)
    id = parent;
  return id;
}

/* The largest part of the base that any living snapshot or the head sees. Above the root epoch's
 * floor nobody sees the base, so that up to this limit a page of the root epoch is seen by exactly
 * those who saw the base there. */
static uint64_t seen_of_base(const struct store *s)
{
  g_autoptr(GPtrArray) snapshots = epochs_snapshots(s->epochs);
  struct epoch_view *view = epoch_view_make(s->epochs, s->sb.head_epoch, s->sb.head_parent,
                                            s->sb.virtual_size, s->sb.head_floor, true);
  uint64_t limit = view->base_limit;

  epoch_view_free(view);
  for (unsigned i = 0; i < snapshots->len; i++) {
    const struct epoch *e = g_ptr_array_index(snapshots, i);

    view = epoch_view_make(s->epochs, e->id, e->parent, e->virtual_size, e->floor, false);
    limit = MAX(limit, view->base_limit);
    epoch_view_free(view);
  }
  return limit;
}

/* The root epoch's slot of the unit, or NULL. */
static const struct slot_info *root_slot(const struct rebase *r, const GArray *chain)
{
  for (unsigned i = 0; i < chain->len; i++)
    if (g_array_index(chain, struct slot_info, i).epoch == r->root)
      return &g_array_index(chain, struct slot_info, i);
  return NULL;
}

/* What BASE (NULL: zeros) shows of pages [first, end) of the view. */
static GArray *base_runs(struct layer *base, uint64_t first, uint64_t end, int *error)
{
  GArray *runs = g_array_new(FALSE, FALSE, sizeof(struct run));
  struct run zero = { .page = first, .count = end - first, .kind = RUN_ZERO };

  *error = 0;
  if (base)
    *error = view_resolve(base, first, end - first, runs);
  else
    g_array_append_val(runs, zero);
  if (*error < 0)
    g_clear_pointer(&runs, g_array_unref);
  return runs;
}

/* Writes pages [first, end) of the unit, as the old base shows them, to the data area at DATA. Zeros become
 * holes; with CLEAN they are holes already. Owed: a fence. */
static int copy_pages(struct rebase *r, uint64_t data, uint64_t unit_page, uint64_t first, uint64_t end,
                      bool clean)
{
  struct store *s = r->s;
  struct persist *p = s->p;
  g_autofree unsigned char *buffer = g_try_malloc(CHUNK_PAGES * PAGE_BYTES);

  if (!buffer)
    return fail(ENOMEM, "%s: no memory to copy pages", s->path);
  for (uint64_t n; first < end; first += n) {
    int ret = 0;

    n = MIN(end - first, CHUNK_PAGES);
    if (r->old_view)
      ret = view_cache_read(r->old_view, (unit_page + first) << PAGE_SHIFT, buffer, n << PAGE_SHIFT);
    else
      memset(buffer, 0, n << PAGE_SHIFT);
    for (uint64_t i = 0, stop; ret == 0 && i < n; i = stop) {
      bool zero = page_is_zero(buffer + (i << PAGE_SHIFT));
      uint64_t at = data + ((first + i) << PAGE_SHIFT);

      for (stop = i + 1; stop < n && page_is_zero(buffer + (stop << PAGE_SHIFT)) == zero;)
        stop++;
      if (!zero) {
        ret = persist_allocate(p, at, (stop - i) << PAGE_SHIFT);
        if (ret == 0)
          ret = persist_copy(p, at, buffer + (i << PAGE_SHIFT), (stop - i) << PAGE_SHIFT);
      } else if (!clean) {
        ret = persist_punch(p, at, (stop - i) << PAGE_SHIFT);
      }
    }
    if (ret < 0)
      return ret;
  }
  return 0;
}

/* The space of pages that did not become present, e.g. on a full file system. */
static void give_back(struct store *s, uint64_t index, const uint64_t *wanted, uint64_t pages)
{
  for (uint64_t first = 0, end; (first = bits_find(wanted, first, pages, true)) < pages; first = end) {
    end = bits_find(wanted, first, pages, false);
    if (persist_punch(s->p, geometry_data(&s->geo, index) + (first << PAGE_SHIFT), (end - first) << PAGE_SHIFT))
      break;
  }
}

/* The root epoch is frozen: the pages of WANTED go into its slot of the unit, made if need be at the
 * end of the CHAIN. Readers of snapshots may be at work; they read the same bytes before and after. */
static int add_to_slot(struct rebase *r, uint64_t unit, const GArray *chain, const uint64_t *wanted,
                       uint64_t pages)
{
  const struct slot_info *slot = root_slot(r, chain);
  struct slots *slots = r->image->slots;
  uint64_t index = slot ? slot->index : 0;
  int ret = slot ? 0 : slots_prepare(slots, unit, r->root, 0, &index);

  if (ret < 0)
    return ret;
  /* Ordering: 1.1 pages, 2.1 header and empty bitmap of a new slot. 1.2, 2.2 fence. 1.3 presence bits,
   * 2.3 the word that links the slot. 1.4, 2.4 fence. A crash in between leaves a slot, or bits, that
   * add nothing to what is seen: the base beneath still shows the same. */
  for (uint64_t first = 0, end; ret == 0 && (first = bits_find(wanted, first, pages, true)) < pages;
       first = end) {
    end = bits_find(wanted, first, pages, false);
    ret = slots_reserve_present(slots, index, first, end);
    if (ret == 0)
      ret = copy_pages(r, geometry_data(&r->s->geo, index), unit * r->s->geo.unit_pages, first, end, !slot);
  }
  if (ret == 0)
    ret = ORDERED("rebase 1.2", persist_fence(r->s->p));
  if (ret < 0) {
    give_back(r->s, index, wanted, pages);
    if (!slot)
      slots_cancel(slots, index);
    return ret;
  }

  ret = slots_set_present(slots, index, wanted, 0, pages);
  if (ret == 0 && !slot)
    ret = chain->len ? slots_link_after(slots, g_array_index(chain, struct slot_info, chain->len - 1).index,
                                        index)
                     : slots_link(slots, unit, index);
  return ret < 0 ? ret : ORDERED("rebase 1.4", persist_fence(r->s->p));
}

/* The root epoch is the head. */
static int add_to_head(struct rebase *r, uint64_t unit, const uint64_t *wanted, uint64_t pages)
{
  int ret = 0;
  struct unit *u = head_lock_unit(r->image->head, unit, &ret);

  if (!u)
    return ret;
  for (uint64_t first = 0, end; ret == 0 && (first = bits_find(wanted, first, pages, true)) < pages;
       first = end) {
    end = bits_find(wanted, first, pages, false);
    ret = head_publish(r->image->head, u, first, end, 0, NULL);
  }
  if (ret == 0)
    ret = head_settle_unit(r->image->head, u);
  head_unlock_unit(r->image->head, u);
  return ret;
}

/* Marks in WANTED what the bases show differently of pages [from, to) of the unit and is not PRESENT. */
static int compare_piece(struct rebase *r, uint64_t unit, uint64_t from, uint64_t to, const uint64_t *present,
                         uint64_t *wanted)
{
  uint64_t first = unit * r->s->geo.unit_pages;
  g_autoptr(GArray) old_runs = NULL, new_runs = NULL;
  int ret;

  old_runs = base_runs(r->old_base, first + from, first + to, &ret);
  if (ret == 0)
    new_runs = base_runs(r->new_base, first + from, first + to, &ret);
  return ret ? ret : compare_pages(r->s->path, old_runs, new_runs, first + from, first + to,
                                   present + from / 64, wanted + from / 64);
}

/* What the root epoch lacks of the unit's first PAGES pages and the two bases show differently. */
static int rebase_unit(struct rebase *r, uint64_t unit, uint64_t pages)
{
  struct store *s = r->s;
  uint64_t words = bits_words(s->geo.unit_pages), index;
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  g_autofree uint64_t *present = NULL, *wanted = NULL;
  const struct slot_info *slot;
  int ret = slotwalk_map(s->fd, s->path, &s->sb, unit, &index);

  if (ret == 0 && index)
    ret = slotwalk_chain(s->fd, s->path, &s->sb, unit, index, chain);
  if (ret < 0)
    return ret;

  present = g_try_new0(uint64_t, words);
  wanted = g_try_new0(uint64_t, words);
  if (!present || !wanted)
    return fail(ENOMEM, "%s: no memory to compare a unit of %" PRIu64 " pages", s->path, s->geo.unit_pages);
  slot = root_slot(r, chain);
  if (slot)
    ret = slotwalk_bitmap(s->fd, s->path, &s->geo, slot->index, 0, s->geo.unit_pages, present);
  for (uint64_t from = 0, to; ret == 0 && from < pages; from = to) {
    to = MIN(pages, from + VIEW_PIECE_PAGES);
    ret = compare_piece(r, unit, from, to, present, wanted);
  }
  if (ret < 0 || bits_find(wanted, 0, pages, true) == pages)
    return ret;
  return r->root == s->sb.head_epoch ? add_to_head(r, unit, wanted, pages)
                                     : add_to_slot(r, unit, chain, wanted, pages);
}

/* Raises *UNIT to the first one of which a base may have something: the others look the same. */
static int skip_units(const struct rebase *r, uint64_t *unit, uint64_t units)
{
  const struct geometry *g = &r->s->geo;
  uint64_t page = *unit * g->unit_pages, end = units * g->unit_pages, from = end, to = end;
  int ret = view_next(r->old_base, page, end, &from);

  if (ret == 0)
    ret = view_next(r->new_base, page, end, &to);
  *unit = MIN(from, to) < end ? MIN(from, to) / g->unit_pages : units;
  return ret;
}

static int rebase_copy(struct rebase *r, pcow_progress_fn progress, void *opaque)
{
  const struct geometry *g = &r->s->geo;
  int ret = 0;

  r->root = root_epoch(r->s);
  r->limit = seen_of_base(r->s);
  for (uint64_t unit = 0, units = geometry_units(g, r->limit); ret == 0 && unit < units; unit++) {
    uint64_t start;

    ret = skip_units(r, &unit, units);
    if (ret || unit == units)
      break;
    start = unit << g->unit_shift;
    if (progress && progress(opaque, start, r->limit))
      return fail(ECANCELED, "%s: the rebase was canceled", r->image->path);
    ret = rebase_unit(r, unit, MIN(r->limit - start, g->unit_bytes) >> PAGE_SHIFT);
  }
  if (ret == 0 && progress && progress(opaque, r->limit, r->limit))
    return fail(ECANCELED, "%s: the rebase was canceled", r->image->path);
  return ret;
}

/* Looks up and opens what the options name, before anything is changed. */
static int open_new_base(pcow_image *image, const struct pcow_rebase_options *options,
                         struct base_policy *policy, struct base_ref *ref, struct layer **base)
{
  g_autofree char *full = NULL;
  struct stat st;
  uint64_t size;
  int r;

  memset(ref, 0, sizeof *ref);
  *base = NULL;
  if (!options->base) {
    if (options->base_format != PCOW_FORMAT_NONE || options->base_snapshot)
      return fail(EINVAL, "%s: a base's format or snapshot is given, but no base", image->path);
    return 0;
  }

  if (strlen(options->base) <= BASE_PATH_MAX) {
    g_strlcpy(ref->path, options->base, sizeof ref->path);
    full = base_path_display(image->file.full, ref);
    if (stat(full, &st) == 0 && st.st_dev == image->layer->dev && st.st_ino == image->layer->ino)
      return fail(ELOOP, "%s: cannot be its own base", image->path);
  }
  r = layer_describe_base(image->file.full, options->base, (enum base_format)options->base_format,
                          options->base_snapshot, policy, ref, &size);
  return r < 0 ? r : layer_open_base(ref, image->layer, policy, LAYER_NAMED_BASE, base);
}

static int rebase_locked(pcow_image *image, const struct pcow_rebase_options *options,
                         struct base_policy *policy)
{
  bool safe = !(options->flags & PCOW_REBASE_UNSAFE);
  struct rebase rebase = { .image = image, .s = image->store };
  struct superblock next;
  struct base_ref ref;
  int r = image_check_writable(image);

  if (r == 0 && safe)
    r = image_check_content(image);
  if (r < 0)
    return r;
  if (image->map)
    return fail(EBUSY, "%s: cannot be rebased while mapped", image->path);
  r = open_new_base(image, options, policy, &ref, &rebase.new_base);
  if (r < 0)
    return r;

  rebase.old_base = image->layer->base;
  r = image_quiesce(image);
  if (r == 0 && safe)
    r = store_dirty(image->store);
  if (r == 0 && safe && rebase.old_base)
    rebase.old_view = view_cache_new(rebase.old_base, image->store->geo.unit_pages);
  if (r == 0 && safe)
    r = rebase_copy(&rebase, options->progress, options->opaque);
  view_cache_free(rebase.old_view);
  /* An unsafe rebase may change what an overlay over this head sees. */
  if (r == 0 && !safe)
    r = head_begin_session(image->head);
  if (r == 0) {
    /* Ordering (12.7): 1. all pages are durable. 2. The commit. */
    next = store_begin(image->store);
    next.base = ref;
    r = store_end(image->store, &next, true);
  }
  if (r == 0) {
    base_policy_ref(policy);    /* first: it may be the handle's */
    base_policy_unref(image->policy);
    image->policy = policy;
    image->base_named = true;
  }
  if (r == 0 && image->flags & PCOW_OPEN_NO_BASE) {
    layer_close(rebase.new_base);
    return image_reload(image, NULL);
  }
  if (r < 0) {
    layer_close(rebase.new_base);
    return r;
  }
  return image_reload(image, rebase.new_base);
}

API int pcow_rebase(pcow_image *image, const struct pcow_rebase_options *options)
{
  struct pcow_rebase_options full = { 0 };
  struct base_policy *policy = NULL;
  int r = options ? options_read(options, sizeof full.size, &full, sizeof full) : 0;

  if (r < 0)
    return r;
  if (full.flags & ~REBASE_FLAGS)
    return fail(EINVAL, "%s: unknown flags 0x%x for a rebase", image->path, full.flags & ~REBASE_FLAGS);
  if (full.flags & PCOW_REBASE_BASES || full.base_dir)
    r = base_policy_new(image->path, full.flags & PCOW_REBASE_BASES, full.base_dir, &policy);
  if (r < 0)
    return r;
  pthread_rwlock_wrlock(&image->lock);
  r = rebase_locked(image, &full, policy ? policy : image->policy);
  pthread_rwlock_unlock(&image->lock);
  base_policy_unref(policy);
  return r;
}
