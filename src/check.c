/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow_check(): both superblock copies, the epoch log, the unit map and its chains, the order of each
 * chain, and slots that nothing reaches but that hold blocks. Looking changes nothing; repair opens the
 * file as a writer does, and gives space back only in an image that has no other fault: what a broken
 * chain no longer reaches is not garbage.
 */
#include "bits.h"
#include "error.h"
#include "image.h"
#include "lock.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define WORDS_AT_ONCE 512u
#define BITMAP_PAGES (UINT64_C(1) << 18)
#define WALK_WAIT_MS 10000u     /* for readers of snapshots to end their walks */

/* A slot that belongs to no epoch, or that no chain reaches, and yet holds blocks. */
struct leak {
  struct slot_info slot;        /* index alone when no chain reaches it */
  uint64_t newer;               /* the slot before it that is no garbage, 0: the unit map */
  bool reached;
  uint64_t bytes;
};

struct check {
  const char *path;
  int fd;
  struct superblock sb;
  struct superblock_state copies;
  struct geometry geo;
  struct epochs *epochs;
  GHashTable *reached;          /* indices of slots */
  GArray *leaks;                /* struct leak */
  struct pcow_check_result result;
  bool unequal_copies;          /* of the superblock: one is damaged or out of date */
  uint64_t copy_faults;         /* how many of the corruptions that is */
  pcow_check_fn fn;
  pcow_progress_fn progress;
  void *opaque;
};

static void finding(struct check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void finding(struct check *c, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  if (c->fn)
    c->fn(c->opaque, text);
}

/* The result of reading a part: damage is a finding, anything else ends the check. */
static int damage(struct check *c, int r)
{
  if (r != -EUCLEAN)
    return r;
  c->result.corruptions++;
  finding(c, "%s", error_message());
  return 0;
}

static int report_progress(struct check *c)
{
  if (c->progress && c->progress(c->opaque, MIN(c->result.slots, c->sb.slot_count), c->sb.slot_count))
    return fail(ECANCELED, "%s: the check was canceled", c->path);
  return 0;
}

/* Bytes of [offset, end) that have blocks. */
static uint64_t blocks_in(int fd, uint64_t offset, uint64_t end)
{
  uint64_t sum = 0;

  while (offset < end) {
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA), hole;

    if (data < 0 || (uint64_t)data >= end)
      break;
    hole = lseek(fd, data, SEEK_HOLE);
    offset = hole < 0 ? end : MIN((uint64_t)hole, end);
    sum += offset - (uint64_t)data;
  }
  return sum;
}

/* ---- Superblocks, epochs ---- */

static void check_superblocks(struct check *c)
{
  uint64_t a = c->copies.sequence[0], b = c->copies.sequence[1];

  if (c->copies.valid[0] && c->copies.valid[1]) {
    /* A crash between the two writes of a commit leaves the older state in one copy. */
    if (MAX(a, b) - MIN(a, b) > 1) {
      c->result.corruptions++;
      c->copy_faults++;
      c->unequal_copies = true;
      finding(c, "%s: superblock copy %d is out of date (commit %" PRIu64 " of %" PRIu64 ")", c->path,
              a < b ? 0 : 1, MIN(a, b), MAX(a, b));
    }
    return;
  }
  c->unequal_copies = true;
  if (c->sb.dirty) {
    finding(c, "%s: superblock copy %d was being written when the image's last session ended; the next"
            " one makes it whole", c->path, c->copies.valid[0] ? 1 : 0);
    return;
  }
  c->result.corruptions++;
  c->copy_faults++;
  finding(c, "%s: superblock copy %d is damaged", c->path, c->copies.valid[0] ? 1 : 0);
}

/* ---- Chains ---- */

static uint32_t parent_of(const struct check *c, uint32_t id)
{
  const struct epoch *e = epochs_get(c->epochs, id);

  return e ? e->parent : id == c->sb.head_epoch ? c->sb.head_parent : 0;
}

static bool is_garbage(const struct check *c, uint32_t id)
{
  return id != c->sb.head_epoch && !epochs_get(c->epochs, id);
}

/* An ancestor must not come before (be newer than) its descendant, and no epoch has two slots. */
static void check_order(struct check *c, const GArray *chain)
{
  g_autoptr(GHashTable) ancestors = g_hash_table_new(NULL, NULL);
  g_autoptr(GHashTable) owners = g_hash_table_new(NULL, NULL);

  for (unsigned i = chain->len; i > 0; i--) {
    const struct slot_info *slot = &g_array_index(chain, struct slot_info, i - 1);

    if (is_garbage(c, slot->epoch))
      continue;
    if (!g_hash_table_add(owners, GUINT_TO_POINTER(slot->epoch))) {
      c->result.corruptions++;
      finding(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " is the second one of epoch %" PRIu32, c->path,
              slot->unit, slot->index, slot->epoch);
    }
    if (g_hash_table_contains(ancestors, GUINT_TO_POINTER(slot->epoch))) {
      c->result.corruptions++;
      finding(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " of epoch %" PRIu32 " comes before a slot of an"
              " epoch that descends from it", c->path, slot->unit, slot->index, slot->epoch);
    }
    for (uint32_t id = parent_of(c, slot->epoch);
         id && g_hash_table_add(ancestors, GUINT_TO_POINTER(id)); id = parent_of(c, id))
      ;
  }
}

static int check_bitmap(struct check *c, const struct slot_info *slot)
{
  g_autofree uint64_t *words = g_malloc(bits_words(MIN(BITMAP_PAGES, c->geo.unit_pages)) * 8);
  int r = 0;

  for (uint64_t page = 0, n; r == 0 && page < c->geo.unit_pages; page += n) {
    n = MIN(BITMAP_PAGES, c->geo.unit_pages - page);
    r = slotwalk_bitmap(c->fd, c->path, &c->geo, slot->index, page, n, words);
    if (r == 0)
      c->result.pages += bits_count(words, 0, n);
  }
  return damage(c, r);
}

static void add_leak(struct check *c, const struct leak *leak)
{
  c->result.leaks++;
  c->result.leaked_size += leak->bytes;
  g_array_append_val(c->leaks, *leak);
  finding(c, leak->reached ? "%s: slot %" PRIu64 " belongs to no epoch, but holds %" PRIu64 " bytes"
                           : "%s: slot %" PRIu64 " is not in use, but holds %" PRIu64 " bytes",
          c->path, leak->slot.index, leak->bytes);
}

/* Garbage of the chain that holds blocks. */
static void check_garbage(struct check *c, const GArray *chain)
{
  uint64_t newer = 0;

  for (unsigned i = 0; i < chain->len; i++) {
    struct leak leak = { .slot = g_array_index(chain, struct slot_info, i), .newer = newer, .reached = true };
    uint64_t data = geometry_data(&c->geo, leak.slot.index);

    leak.bytes = is_garbage(c, leak.slot.epoch) ? blocks_in(c->fd, data, data + c->geo.unit_bytes) : 0;
    if (leak.bytes)
      add_leak(c, &leak);
    else
      newer = leak.slot.index;
  }
}

static int check_unit(struct check *c, uint64_t unit, uint64_t word, GArray *chain)
{
  struct slot_info slot = { .previous = 0 };
  uint64_t index;
  int r = slotwalk_reference(c->path, &c->sb, unit, word, &index);

  g_array_set_size(chain, 0);
  for (; r == 0 && index; index = slot.previous) {
    /* Also what ends the walk of a chain that runs in a circle. */
    if (!g_hash_table_add(c->reached, GSIZE_TO_POINTER(index))) {
      c->result.corruptions++;
      finding(c, "%s: unit %" PRIu64 ": slot %" PRIu64 " is reached a second time", c->path, unit, index);
      break;
    }
    c->result.slots++;
    r = slotwalk_header(c->fd, c->path, &c->sb, unit, index, &slot);
    if (r == 0) {
      g_array_append_val(chain, slot);
      r = check_bitmap(c, &slot);
    }
  }
  r = damage(c, r);
  if (r == 0) {
    check_order(c, chain);
    check_garbage(c, chain);
  }
  return r;
}

static int check_map(struct check *c)
{
  g_autoptr(GArray) chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t words[WORDS_AT_ONCE];
  int r = 0;

  for (uint64_t unit = 0, n; r == 0 && unit < UNITS_MAX; unit += n) {
    off_t data = lseek(c->fd, (off_t)geometry_map_word(unit), SEEK_DATA);

    if (data >= 0 && (uint64_t)data > geometry_map_word(unit))
      unit = ((uint64_t)data - UNIT_MAP_OFFSET) / 8;
    if ((data < 0 && errno == ENXIO) || unit >= UNITS_MAX)
      break;
    n = MIN(UNITS_MAX - unit, WORDS_AT_ONCE);
    r = slotwalk_map_words(c->fd, c->path, unit, n, words);
    for (uint64_t i = 0; r == 0 && i < n; i++)
      if (words[i])
        r = check_unit(c, unit + i, words[i], chain);
    if (r == 0)
      r = report_progress(c);
  }
  return r;
}

/* ---- Slots that nothing reaches ---- */

/* Goes from data to data of the file: costs by blocks, not by slots. */
static void check_unreached(struct check *c)
{
  const struct geometry *g = &c->geo;
  uint64_t end = geometry_file_size(g, c->sb.slot_count);

  for (uint64_t offset = SLOT_GROUPS_OFFSET; offset < end;) {
    struct leak leak = { .reached = false };
    off_t data = lseek(c->fd, (off_t)offset, SEEK_DATA);
    uint64_t group, areas;

    if (data < 0 || (uint64_t)data >= end)
      break;
    group = ((uint64_t)data - SLOT_GROUPS_OFFSET) / g->group_bytes;
    areas = SLOT_GROUPS_OFFSET + group * g->group_bytes + g->data;
    if ((uint64_t)data < areas) {
      offset = areas;
      continue;
    }
    leak.slot.index = group * SLOTS_PER_GROUP + (((uint64_t)data - areas) >> g->unit_shift) + 1;
    offset = geometry_data(g, leak.slot.index) + g->unit_bytes;
    if (!g_hash_table_contains(c->reached, GSIZE_TO_POINTER(leak.slot.index))) {
      leak.bytes = blocks_in(c->fd, (uint64_t)data, offset);
      add_leak(c, &leak);
    }
  }
}

/* ---- Repair ---- */

static int repair_leaks(struct check *c, struct store *s)
{
  struct slots *slots = slots_new(s);
  int r = lock_wait(s->fd, s->path, LOCK_WALK, LOCK_EXCLUSIVE, WALK_WAIT_MS);

  if (r == -EAGAIN)
    r = fail(EBUSY, "%s: leaks cannot be repaired while its snapshots are being read", c->path);
  if (r == 0)
    r = store_dirty(s);
  for (unsigned i = 0; r == 0 && i < c->leaks->len; i++) {
    const struct leak *leak = &g_array_index(c->leaks, struct leak, i);

    if (leak->reached)
      r = slots_unlink(slots, &leak->slot, leak->newer);
    else
      r = persist_punch(s->p, geometry_data(&s->geo, leak->slot.index), s->geo.unit_bytes);
    if (r == 0)
      c->result.repaired++;
  }
  if (r == 0)
    r = persist_fence(s->p);
  slots_free(slots);
  return r;
}

/* Takes C->FD over. */
static int repair(struct check *c)
{
  bool was_dirty = c->sb.dirty;
  struct superblock next;
  struct store *s;
  int r;

  /* Opening for writing makes the two superblock copies equal again. */
  r = store_open(c->fd, c->path, &s);
  c->fd = -1;
  if (r < 0)
    return r;
  c->result.repaired += c->copy_faults;
  if (c->leaks->len)
    r = repair_leaks(c, s);
  if (r == 0 && !was_dirty && s->sb.dirty) {
    next = store_begin(s);
    next.dirty = false;
    r = store_end(s, &next, true);
  }
  store_close(s);
  return r;
}

static bool is_repairable(const struct check *c, uint32_t flags)
{
  uint64_t known = flags & PCOW_CHECK_REPAIR_ALL ? c->copy_faults : 0;

  return flags && c->result.corruptions == known && (c->leaks->len || c->unequal_copies);
}

/* ---- The whole ---- */

static int check_open(struct check *c, bool writing)
{
  int r;

  c->fd = open(c->path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
  if (c->fd < 0)
    return fail_errno(errno, "%s: cannot open%s", c->path, writing ? " for writing" : "");
  r = superblock_read(c->fd, c->path, writing, &c->sb, &c->copies);
  if (r == 0)
    r = lock_try(c->fd, c->path, LOCK_HEAD, writing ? LOCK_EXCLUSIVE : LOCK_SHARED);
  if (r == -EAGAIN)
    return fail(EBUSY, "%s: is in use by another process or handle", c->path);
  if (r == 0)
    r = superblock_read(c->fd, c->path, writing, &c->sb, &c->copies);
  return r;
}

static int check_run(struct check *c, uint32_t flags)
{
  int r = check_open(c, flags != 0);

  if (r < 0)
    return r;
  c->geo = geometry_make(c->sb.unit_shift);
  check_superblocks(c);
  r = damage(c, epochs_load(c->fd, c->path, &c->sb, &c->epochs));
  if (r < 0 || !c->epochs)
    return r; /* without the tree nobody can tell whose a slot is */
  r = check_map(c);
  if (r == 0)
    check_unreached(c);
  if (r == 0 && is_repairable(c, flags))
    r = repair(c);
  return r ? r : report_progress(c);
}

API int pcow_check(const char *path, uint32_t flags, struct pcow_check_result *result, pcow_check_fn fn,
                   pcow_progress_fn progress, void *opaque)
{
  struct check c = { .path = path, .fd = -1, .fn = fn, .progress = progress, .opaque = opaque };
  int r;

  if (flags & ~(PCOW_CHECK_REPAIR_LEAKS | PCOW_CHECK_REPAIR_ALL))
    return fail(EINVAL, "%s: unknown flags 0x%x for a check", path, flags);
  c.reached = g_hash_table_new(NULL, NULL);
  c.leaks = g_array_new(FALSE, FALSE, sizeof(struct leak));
  r = check_run(&c, flags);
  if (r == 0)
    result_write(result, &c.result, sizeof c.result);
  if (c.fd >= 0)
    close(c.fd);
  epochs_free(c.epochs);
  g_array_unref(c.leaks);
  g_hash_table_unref(c.reached);
  return r;
}
