/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See verify.h. A state costs a check, an open for writing, an open of each snapshot, a few writes, and a
 * second check: images are small, so that this is a millisecond.
 */
#include "verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define READ_WHOLE MIB          /* larger images are read where they have data */

/* ---- Looking ---- */

struct findings {
  unsigned copies;              /* about a copy of the superblock */
  char *first;                  /* another one */
};

static void note_finding(void *opaque, const char *text)
{
  struct findings *f = opaque;

  if (strstr(text, ": superblock copy "))
    f->copies++;
  if (!f->first)
    f->first = g_strdup(text);
}

/* The check cannot know that a copy of the superblock was torn by a cut within a commit, and did not decay:
 * with DAMAGED it may say so of one copy. */
static void check(struct subject *s, bool damaged)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct findings f = { 0, NULL };
  int ret = pcow_check(s->path, 0, &result, note_finding, NULL, &f);

  if (ret < 0)
    lab_fail(s->lab, "%s: the check gave %d: %s", s->name, ret, pcow_errormsg());
  if (result.corruptions > (damaged && f.copies == 1 ? 1 : 0))
    lab_fail(s->lab, "%s: %" PRIu64 " corruptions, the first finding: %s", s->name, result.corruptions,
             f.first ? f.first : "none");
  g_free(f.first);
}

void verify_check(struct subject *s)
{
  check(s, false);
}

struct reading {
  pcow_image *image;
  struct shown *shown;
  int ret;
};

static int read_extent(void *opaque, const struct pcow_extent *e)
{
  struct reading *r = opaque;

  if (e->type != PCOW_EXTENT_DATA)
    return 0;
  for (uint64_t page = e->offset / PAGE; page * PAGE < e->offset + e->length; page++)
    r->shown->data[page] = true;
  r->ret = pcow_pread(r->image, r->shown->bytes + e->offset, e->length, e->offset);
  return r->ret;
}

/* What the open image shows. */
static struct shown read_all(struct lab *lab, pcow_image *image, const char *what)
{
  struct pcow_info info = PCOW_INIT(info);
  struct shown shown = { 0 };
  int ret = pcow_get_info(image, &info);

  if (ret < 0)
    lab_fail(lab, "%s: information gave %d: %s", what, ret, pcow_errormsg());
  shown.size = info.virtual_size;
  if (shown.size > READ_WHOLE) {
    struct reading r = { .image = image, .shown = &shown };

    shown.bytes = g_malloc0(shown.size);
    shown.data = g_new0(bool, shown.size / PAGE);
    ret = pcow_extents(image, 0, shown.size, PCOW_EXTENTS_MERGE, read_extent, &r);
  } else {
    shown.bytes = g_malloc(shown.size);
    ret = pcow_pread(image, shown.bytes, shown.size, 0);
  }
  if (ret < 0)
    lab_fail(lab, "%s: reading gave %d: %s", what, ret, pcow_errormsg());
  return shown;
}

static void shown_clear(struct shown *shown)
{
  g_free(shown->bytes);
  g_free(shown->data);
}

/* What an image shows: its head and snapshots. */
struct seen {
  struct shown head;
  GPtrArray *names;
  struct shown snapshots[16];
};

static int note_name(void *opaque, const struct pcow_snapshot_info *info)
{
  g_ptr_array_add(opaque, g_strdup(info->name));
  return 0;
}

static void see(struct subject *s, struct seen *seen)
{
  int ret;

  seen->head = read_all(s->lab, s->image, s->name);
  seen->names = g_ptr_array_new_with_free_func(g_free);
  ret = pcow_snapshot_list(s->image, note_name, seen->names);
  if (ret < 0)
    lab_fail(s->lab, "%s: the list of snapshots gave %d: %s", s->name, ret, pcow_errormsg());
  CHECK(seen->names->len <= G_N_ELEMENTS(seen->snapshots), "too many snapshots");
  for (unsigned i = 0; i < seen->names->len; i++) {
    struct pcow_open_options how = PCOW_INIT(how);
    pcow_image *image;

    how.flags = PCOW_OPEN_BASES;
    how.snapshot = g_ptr_array_index(seen->names, i);
    ret = pcow_open(s->path, &how, &image);
    if (ret < 0)
      lab_fail(s->lab, "%s: opening snapshot '%s' gave %d: %s", s->name, how.snapshot, ret, pcow_errormsg());
    seen->snapshots[i] = read_all(s->lab, image, how.snapshot);
    pcow_close(image);
  }
}

static void unsee(struct seen *seen)
{
  for (unsigned i = 0; i < seen->names->len; i++)
    shown_clear(&seen->snapshots[i]);
  g_ptr_array_unref(seen->names);
  shown_clear(&seen->head);
}

/* ---- Comparing ---- */

static bool is_face(const struct face *v, const struct shown *shown, const char *what, GString *why)
{
  if (shown->size == v->size) {
    if (face_allows(v, shown, NULL))
      return true;
    g_string_append_printf(why, "%s: ", what);
    return face_allows(v, shown, why);
  }
  g_string_append_printf(why, "%s has 0x%" PRIx64 " bytes instead of 0x%" PRIx64, what, shown->size,
                         v->size);
  return false;
}

static bool is_world(const struct world *w, const struct seen *seen, GString *why)
{
  if (w->snapshots->len != seen->names->len) {
    g_string_append_printf(why, "there are %u snapshots instead of %u", seen->names->len, w->snapshots->len);
    return false;
  }
  for (unsigned i = 0; i < seen->names->len; i++) {
    const char *name = g_ptr_array_index(seen->names, i);
    const struct snapshot *s = world_find(w, name);

    if (!s) {
      g_string_append_printf(why, "there is a snapshot '%s'", name);
      return false;
    }
    if (!is_face(s->face, &seen->snapshots[i], name, why))
      return false;
  }
  return is_face(w->head, &seen->head, "the head", why);
}

void verify_choose(struct subject *s)
{
  const struct expect *e = s->given ? s->given : s->expect;
  g_autoptr(GString) why = g_string_new(NULL);
  struct world *found = NULL;
  struct seen seen = { 0 };

  see(s, &seen);
  for (unsigned i = 0; i < e->count && !found; i++) {
    const struct world *w = e->worlds[i];

    g_string_append_printf(why, "%s%s: ", i ? "; or " : "", w->label);
    if (is_world(w, &seen, why))
      found = world_copy(w, "as it was found");
  }
  if (!found)
    lab_fail(s->lab, "%s: is none of %u worlds: %s", s->name, e->count, why->str);
  face_adopt(found->head, &seen.head);
  for (unsigned i = 0; i < seen.names->len; i++)
    face_adopt(world_find(found, g_ptr_array_index(seen.names, i))->face, &seen.snapshots[i]);
  unsee(&seen);
  g_mutex_lock(&s->lab->lock);
  s->given = NULL;
  expect_free(s->expect);
  s->expect = expect_new(found);
  g_mutex_unlock(&s->lab->lock);
}

/* What is seen by who has no crash: the latest of everything. */
static void compare_latest(struct subject *s, const struct seen *seen)
{
  struct world *latest = world_copy(subject_world(s), "as written");
  g_autoptr(GString) why = g_string_new(NULL);

  face_settle(latest->head, true);
  if (!is_world(latest, seen, why))
    lab_fail(s->lab, "%s: reads wrong without a crash: %s", s->name, why->str);
  world_free(latest);
}

void verify_now(struct subject *s)
{
  struct seen seen = { 0 };

  see(s, &seen);
  compare_latest(s, &seen);
  unsee(&seen);
}

void verify_handle(struct lab *lab, pcow_image *image, const struct face *v, const char *what)
{
  g_autoptr(GString) why = g_string_new(NULL);
  struct shown shown = read_all(lab, image, what);

  if (!is_face(v, &shown, what, why))
    lab_fail(lab, "an open handle reads wrong: %s", why->str);
  shown_clear(&shown);
}

void verify_snapshot(struct subject *s, const char *name)
{
  g_autoptr(GString) why = g_string_new(NULL);
  pcow_image *image = test_open(s->path, 0, name);
  struct shown shown = read_all(s->lab, image, name);
  struct face *face = world_find(subject_world(s), name)->face;

  OK(pcow_close(image));
  g_mutex_lock(&s->lab->lock);
  if (!is_face(face, &shown, name, why))
    lab_fail(s->lab, "%s: a live snapshot: %s", s->name, why->str);
  face_adopt(face, &shown);
  s->racing[0] = '\0';
  g_mutex_unlock(&s->lab->lock);
  shown_clear(&shown);
}

static int open_reader(struct subject *s)
{
  struct pcow_open_options how = { .size = sizeof(how), .flags = PCOW_OPEN_BASES };

  return subject_try_open(s, &how);
}

static void compare_reader(struct subject *s)
{
  struct seen seen = { 0 };
  int ret = open_reader(s);

  if (ret < 0)
    lab_fail(s->lab, "%s: opening read-only gave %d: %s", s->name, ret, pcow_errormsg());
  see(s, &seen);
  pcow_close(s->image);
  s->image = NULL;
  compare_latest(s, &seen);
  unsee(&seen);
}

/* A reader, or an overlay, takes the image as the crash left it: nothing was recovered. */
static void look_unrecovered(struct subject *s)
{
  const struct expect *e = s->given ? s->given : s->expect;
  g_autoptr(GString) why = g_string_new(NULL);
  struct seen seen = { 0 };
  bool found = false;
  int ret = open_reader(s);

  if (ret < 0)
    lab_fail(s->lab, "%s: opening read-only after the cut gave %d: %s", s->name, ret, pcow_errormsg());
  see(s, &seen);
  pcow_close(s->image);
  s->image = NULL;
  for (unsigned i = 0; i < e->count && !found; i++) {
    g_string_append_printf(why, "%s%s: ", i ? "; or " : "", e->worlds[i]->label);
    found = is_world(e->worlds[i], &seen, why);
  }
  if (!found)
    lab_fail(s->lab, "%s: read-only, is none of %u worlds: %s", s->name, e->count, why->str);
  unsee(&seen);
}

/* ---- Going on ---- */

static uint64_t any_page(struct subject *s, struct rng *rng)
{
  uint64_t size = subject_size(s), page;

  if (s->hint_count && rng_chance(rng, 70)) {
    page = s->hints[rng_below(rng, s->hint_count)];
    if (page < size)
      return page;
  }
  return rng_below(rng, size / PAGE) * PAGE;
}

/* A part of a page: the rest of it is what was there. */
static void write_part(struct subject *s, struct rng *rng)
{
  subject_write(s, any_page(s, rng) + rng_below(rng, 4000), 1 + rng_below(rng, 96));
}

/* Something in each unit, so that units without a slot get one, used before or not. */
static void write_units(struct subject *s, struct rng *rng)
{
  uint64_t size = subject_size(s), step = MAX(UNIT, size / 8);

  for (uint64_t start = 0; start < size; start += step) {
    uint64_t page = start + rng_below(rng, least(UNIT, size - start) / PAGE) * PAGE;

    subject_write(s, page + rng_below(rng, 2) * 512, 512);
  }
}

static const char *any_snapshot(struct subject *s, struct rng *rng)
{
  const GPtrArray *all = subject_world(s)->snapshots;

  return all->len ? ((struct snapshot *)g_ptr_array_index(all, rng_below(rng, all->len)))->name : NULL;
}

static void empty_pages(struct subject *s, struct rng *rng)
{
  for (unsigned i = 0; i < 2; i++) {
    uint64_t page = any_page(s, rng), length = least(subject_size(s) - page, PAGE * (1 + rng_below(rng, 3)));

    switch (rng_below(rng, 3)) {
    case 0:
      subject_discard(s, page, length);
      break;
    case 1:
      subject_zero(s, page, length, 0);
      break;
    default:
      subject_zero(s, page, length, PCOW_ZERO_KEEP_SPACE);
    }
  }
  write_part(s, rng);
}

static void change_size(struct subject *s, struct rng *rng)
{
  uint64_t size = subject_size(s), other = (1 + rng_below(rng, size / PAGE)) * PAGE;

  if (other < size)
    subject_resize(s, other);
  subject_resize(s, size + (1 + rng_below(rng, 20)) * PAGE);
  verify_now(s);
  subject_write(s, size + rng_below(rng, 4000), 9);
}

/* Its name tells the depth: the state of a state may have one already. */
static void take_snapshot(struct subject *s)
{
  g_autofree char *name = g_strdup_printf("later %u", s->lab->depth);

  subject_snapshot(s, name);
}

static void change_tree(struct subject *s, struct rng *rng)
{
  g_autofree char *name = g_strdup(any_snapshot(s, rng));

  if (!name) {
    take_snapshot(s);
    write_units(s, rng);
    return;
  }
  if (rng_chance(rng, 50))
    subject_delete(s, name);
  else
    subject_revert(s, name);
  write_part(s, rng);
}

static void store_mapped(struct subject *s, struct rng *rng)
{
  uint64_t page = any_page(s, rng);

  if (options.flush_maps && (!options.pmem || rng_chance(rng, 50)))
    subject_map_flush(s, (uint32_t)rng_below(rng, 3));
  else
    subject_map(s);
  subject_store_range(s, page + rng_below(rng, 500) * 8, 64);
  subject_store_range(s, any_page(s, rng) + 8, 8);
  verify_now(s);
  subject_unmap(s);
}

/* A few changes, durable, and read back. */
static void go_on(struct subject *s, struct rng *rng)
{
  switch (options.empty_only ? 0 : rng_below(rng, 10)) {
  case 0:
  case 1:
    empty_pages(s, rng);
    break;
  case 2:
    change_size(s, rng);
    break;
  case 3:
    change_tree(s, rng);
    break;
  case 4:
    take_snapshot(s);
    write_units(s, rng);
    break;
  case 5:
    /* Not where others watch: the thread that publishes would wait for the one that watches, which stores. */
    if ((options.pmem || options.flush_maps) && !s->lab->media && rng_chance(rng, 25)) {
      store_mapped(s, rng);
      break;
    }
    G_GNUC_FALLTHROUGH;
  case 6:
  case 7:
    write_units(s, rng);
    break;
  default:
    write_part(s, rng);
    subject_write(s, any_page(s, rng), PAGE);
  }
  subject_flush(s);
  verify_now(s);
}

/* The image as a user meets it: checked, opened, compared, changed, closed, checked. */
static void verify_subject(struct subject *s, struct rng *rng)
{
  check(s, s->damaged || s->torn);
  if (rng_chance(rng, 15))
    look_unrecovered(s);
  subject_open(s);
  verify_choose(s);
  s->damaged = false;
  lab_acknowledged(s->lab);
  go_on(s, rng);
  subject_close(s);
  verify_check(s);
  if (rng_chance(rng, 25))
    compare_reader(s);
}

/* Opened for writing and closed, without a change: whoever lies over it must not notice. */
static void visit_base(struct subject *s)
{
  subject_open(s);
  verify_choose(s);
  subject_close(s);
}

void verify_lab(struct lab *lab, struct rng *rng)
{
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (s->is_base && rng_chance(rng, 30))
      visit_base(s);
  }
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (s->is_base)
      continue;
    verify_subject(s, rng);
    s->retired = true;
  }
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (!s->is_base)
      continue;
    if (s->expect)
      s->given = NULL;
    verify_subject(s, rng);
  }
}
