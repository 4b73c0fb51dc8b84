/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_check(): verifies all that docs/format.md promises of one image file, in one pass over what it
 * holds, with memory for what is there and not for what the numbers in it say. Looking changes nothing;
 * what repair would change is collected on the way (checking.h) and done at the end, if it was asked for.
 */
#include "checking.h"

#include "bits.h"
#include "error.h"
#include "lock.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOSS_BUDGET (UINT64_C(1) << 26)
#define CHECK_FLAGS (PCOW_CHECK_REPAIR_LEAKS | PCOW_CHECK_REPAIR_ALL | PCOW_CHECK_BASE | PCOW_CHECK_ANY_BASE)

/* ---- Superblocks, the file's length ---- */

static void check_superblocks(struct check *c)
{
  const struct superblock_state *s = &c->copies;
  uint64_t a = s->sequence[0], b = s->sequence[1];
  int bad = s->valid[0] ? a < b && s->valid[1] ? 0 : 1 : 0;
  const char *what = NULL;

  c->unequal_copies = !s->equal;
  if (!s->valid[0] || !s->valid[1]) {
    if (c->sb.dirty)
      check_say(c, "%s: superblock copy %d was being written when the image's last session ended; the next"
                " one makes it whole", c->path, bad);
    else
      what = "is damaged, or its writing was cut short; the other one is whole";
  } else if (MAX(a, b) - MIN(a, b) > 1) {
    /* A crash between the two writes of a commit leaves the state before in one copy. */
    what = "is out of date by more than one commit";
  } else if (a == b && !s->equal) {
    what = "differs from the other one, which has the same sequence";
  } else if (a != b) {
    check_say(c, "%s: superblock copy %d is one commit behind; the next session makes it equal", c->path,
              bad);
  }
  if (what) {
    check_corrupt(c, true);
    c->copy_faults++;
    check_say(c, "%s: superblock copy %d %s", c->path, bad, what);
  }
  if (c->plain && s->surplus) {
    check_corrupt(c, true);
    c->copy_faults++;
    c->unequal_copies = true; /* a commit writes zeros there */
    check_say(c, "%s: superblock: fields that must be zero are not", c->path);
  }
}

static int check_length(struct check *c)
{
  uint64_t want = geometry_file_size(&c->geo, c->slots);

  if (c->copies.file_size >= want)
    return 0;
  if (c->copies.file_size < SLOT_GROUPS_OFFSET)
    return fail(EUCLEAN, "%s: is truncated: the file has %" PRIu64 " bytes, not even its tables are there",
                c->path, c->copies.file_size);
  check_corrupt(c, true);
  c->grow = want;
  check_say(c, "%s: is truncated: the file has %" PRIu64 " bytes, its slots reach to byte %" PRIu64, c->path,
            c->copies.file_size, want);
  return 0;
}

/* ---- The base ---- */

/* The one place that follows a base path, and only when the caller asked for it. A base that is missing or
 * not what it was is no damage of this file. */
static void check_base(struct check *c)
{
  bool any = c->flags & PCOW_CHECK_ANY_BASE;
  g_autofree char *dir = g_path_get_dirname(c->path);
  struct base_policy *policy;
  struct base_path file;
  struct epoch_view *view;
  struct layer *top, *base;
  int r;

  if (!(c->flags & (PCOW_CHECK_BASE | PCOW_CHECK_ANY_BASE)) || c->sb.base.format == BASE_NONE)
    return;
  view = epoch_view_make(c->epochs, c->sb.head_epoch, c->sb.head_parent, c->sb.virtual_size,
                         c->sb.head_floor, false);
  base_path_name(&file, c->path);
  top = layer_new_top(c->fd, &file, &c->sb, view, NULL);
  r = base_policy_new(c->path, any, any ? NULL : dir, &policy);
  if (r == 0) {
    r = layer_open_base(&c->sb.base, top, policy, LAYER_NO_BASE, &base);
    base_policy_unref(policy);
  }
  if (r == 0) {
    top->base = base;
  } else {
    c->result.base_faults++;
    check_say(c, "%s", error_message());
  }
  layer_close(top);
  base_path_clear(&file);
}

/* ---- The whole ---- */

static int check_open(struct check *c)
{
  bool writing = c->flags & (PCOW_CHECK_REPAIR_LEAKS | PCOW_CHECK_REPAIR_ALL);
  struct stat st;
  int r;

  c->fd = open(c->path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
  if (c->fd < 0)
    return fail_errno(errno, "%s: cannot open%s", c->path, writing ? " for writing" : "");
  if (fstat(c->fd, &st) < 0)
    return fail_errno(errno, "%s: cannot get the status", c->path);
  c->pages_are_blocks = st.st_blksize <= (blksize_t)PAGE_BYTES;
  if (S_ISREG(st.st_mode)) {
    r = lock_try(c->fd, c->path, LOCK_HEAD, writing ? LOCK_EXCLUSIVE : LOCK_SHARED);
    if (r == -EAGAIN)
      return fail(EBUSY, "%s: is in use by another process or handle", c->path);
    if (r < 0)
      return r;
  }
  return superblock_read_at_rest(c->fd, c->path, writing, &c->sb, &c->copies);
}

static void check_pending(struct check *c)
{
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init(&iter, c->epochs->by_id);
  while (g_hash_table_iter_next(&iter, NULL, &value))
    c->result.pending += ((struct epoch *)value)->state == EPOCH_DELETED;
}

static bool is_repair_due(const struct check *c)
{
  const struct pcow_check_result *r = &c->result;

  if (c->flags & PCOW_CHECK_REPAIR_ALL)
    return r->repairable || (r->leaks && r->corruptions == 0) || c->unequal_copies;
  return c->flags & PCOW_CHECK_REPAIR_LEAKS && r->corruptions == 0 && (r->leaks || c->unequal_copies);
}

static int check_run(struct check *c)
{
  int r = check_open(c);

  if (r < 0)
    return r;
  c->geo = geometry_make(c->sb.unit_shift);
  c->slots = c->sb.slot_count;
  c->plain = !c->sb.compat && !c->sb.ro_compat;
  check_superblocks(c);
  r = check_length(c);
  if (r == 0)
    r = check_log(c);
  if (r == 0 && c->epochs) { /* without the tree nobody can tell whose a slot is */
    check_tree(c);
    check_pending(c);
    check_base(c);
    r = check_chains(c);
    if (r == 0)
      r = check_orphans(c);
    if (r == 0)
      r = check_space(c);
  }
  if (r == 0)
    r = check_progress(c, 2 * c->slots);
  if (c->findings > CHECK_FINDINGS_MAX && c->fn) {
    g_autofree char *text = g_strdup_printf("%s: %" PRIu64 " more findings", c->path,
                                            c->findings - CHECK_FINDINGS_MAX);

    c->fn(c->opaque, text);
  }
  return r == 0 && is_repair_due(c) ? check_repair(c) : r;
}

API int pcow_check(const char *path, uint32_t flags, struct pcow_check_result *result, pcow_check_fn fn,
                   pcow_progress_fn progress, void *opaque)
{
  struct check c = { .path = path, .fd = -1, .flags = flags, .fn = fn, .progress = progress,
                     .opaque = opaque };
  int r;

  if (flags & ~CHECK_FLAGS)
    return fail(EINVAL, "%s: unknown flags 0x%x for a check", path, flags);
  c.loss_budget = LOSS_BUDGET;
  c.reached = slotset_new();
  c.garbage = slotset_new();
  c.nodes = g_hash_table_new_full(NULL, NULL, NULL, g_free);
  c.cuts = g_ptr_array_new_with_free_func(check_cut_free);
  c.words = g_array_new(FALSE, FALSE, sizeof(struct check_word));
  c.owners = g_array_new(FALSE, FALSE, sizeof(struct check_word));
  c.holes = g_array_new(FALSE, FALSE, sizeof(struct check_hole));
  r = check_run(&c);
  if (r == 0)
    result_write(result, &c.result, sizeof c.result);
  if (c.fd >= 0)
    close(c.fd);
  epochs_free(c.epochs);
  g_array_unref(c.holes);
  g_array_unref(c.words);
  g_array_unref(c.owners);
  g_ptr_array_unref(c.cuts);
  g_hash_table_unref(c.nodes);
  slotset_free(c.garbage);
  slotset_free(c.reached);
  return r;
}
