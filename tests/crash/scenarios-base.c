/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bases: the image gets another one, or none; what it has goes into its base, which is watched, too, or,
 * when it is a raw file, is made here in the state that a cut may leave it in.
 */
#include "scenarios.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Another base ---- */

static void quiet_writes(struct subject *s, unsigned count)
{
  s->lab->quiet = true;
  subject_scatter(s, count);
  subject_flush(s);
  s->lab->quiet = false;
}

/* An image over "base", with a second base "other" beside it. */
static struct subject *two_bases(struct lab *lab, struct face **other)
{
  struct face *base = scenario_base(lab, "base", 3 * UNIT + 5 * PAGE, 12);
  struct subject *s = subject_new(lab, "img", 4 * UNIT, "base", PCOW_FORMAT_PCOW, NULL, base);

  *other = rng_chance(&lab->rng, 50) ? scenario_base(lab, "other", 4 * UNIT, 10)
                                     : scenario_base(lab, "other", 2 * UNIT, 6);
  face_free(base);
  lab_watch(lab);
  lab->quiet = true;
  subject_open(s);
  subject_scatter(s, 4);
  subject_flush(s);
  lab->quiet = false;
  return s;
}

static void rebase_safe(struct lab *lab)
{
  struct face *other;
  struct subject *s = two_bases(lab, &other);

  subject_rebase(s, "other", PCOW_FORMAT_PCOW, NULL, NULL);
  subject_scatter(s, 1);
  scenario_end(lab);
  face_free(other);
}

/* The root epoch is a snapshot, and one that was shrunk. */
static void rebase_snapshots(struct lab *lab)
{
  struct face *other;
  struct subject *s = two_bases(lab, &other);

  lab->quiet = true;
  if (rng_chance(&lab->rng, 50)) {
    subject_resize(s, 2 * UNIT + 3 * PAGE);
    subject_resize(s, 4 * UNIT);
  }
  subject_snapshot(s, "one");
  lab->quiet = false;
  quiet_writes(s, 3);
  if (rng_chance(&lab->rng, 50)) {
    lab->quiet = true;
    subject_snapshot(s, "two");
    subject_revert(s, "one");
    lab->quiet = false;
    quiet_writes(s, 2);
  }
  subject_rebase(s, "other", PCOW_FORMAT_PCOW, NULL, NULL);
  subject_scatter(s, 1);
  scenario_end(lab);
  face_free(other);
}

static void rebase_unsafe(struct lab *lab)
{
  struct face *other;
  struct subject *s = two_bases(lab, &other);

  subject_rebase(s, "other", PCOW_FORMAT_PCOW, NULL, other);
  subject_scatter(s, 2);
  subject_flush(s);
  scenario_end(lab);
  face_free(other);
}

static void flatten(struct lab *lab)
{
  struct face *other;
  struct subject *s = two_bases(lab, &other);

  if (rng_chance(&lab->rng, 50)) {
    lab->quiet = true;
    subject_snapshot(s, "one");
    lab->quiet = false;
    quiet_writes(s, 2);
  }
  subject_rebase(s, NULL, PCOW_FORMAT_NONE, NULL, NULL);
  subject_scatter(s, 2);
  scenario_end(lab);
  face_free(other);
}

/* ---- Into a pcow base ---- */

/* While it runs, each word of the base is what it was or what the overlay shows, at either size. */
static void allow_commit(struct subject *base, const struct face *shown)
{
  struct world *w = subject_world(base);
  uint64_t size = MAX(w->head->size, shown->size);
  g_autofree unsigned char *bytes = g_malloc(shown->size);
  struct world *larger = world_copy(w, "grown by the commit");

  face_read(shown, 0, bytes, shown->size);
  face_write(w->head, 0, bytes, MIN(w->head->size, shown->size));
  if (size > w->head->size) {
    face_resize(larger->head, size);
    face_write(larger->head, 0, bytes, shown->size);
    expect_add(base->expect, larger);
  } else {
    world_free(larger);
  }
}

static void after_commit(struct subject *base)
{
  struct world *w = base->expect->worlds[base->expect->count - 1];

  face_settle(w->head, true);
  expect_choose(base->expect, w);
}

static void commit(struct subject *s)
{
  atomic_fetch_add(&counters->operations, 1);
  lab_doing(s->lab, "commit %s into its base", s->name);
  face_settle(subject_world(s)->head, true);
  if (pcow_commit(s->image, NULL, NULL) < 0)
    lab_fail(s->lab, "%s: the commit gave: %s", s->name, pcow_errormsg());
}

static void commit_pcow(struct lab *lab)
{
  uint64_t base_size = rng_chance(&lab->rng, 40) ? 2 * UNIT + 3 * PAGE : 3 * UNIT;
  struct subject *base = subject_new(lab, "base", base_size, NULL, PCOW_FORMAT_NONE, NULL, NULL);
  struct subject *s;

  base->is_base = true;
  lab_watch(lab);
  lab->quiet = true;
  subject_open(base);
  subject_scatter(base, 8);
  subject_close(base);
  s = subject_new(lab, "img", 3 * UNIT, "base", PCOW_FORMAT_PCOW, NULL, subject_world(base)->head);
  s->version = 5000;
  subject_open(s);
  subject_scatter(s, 5);
  subject_discard(s, rng_below(&lab->rng, 40) * PAGE, 4 * PAGE);
  if (rng_chance(&lab->rng, 40)) {
    subject_resize(s, UNIT + 3 * PAGE);
    subject_resize(s, 3 * UNIT);
    subject_scatter(s, 2);
  }
  subject_flush(s);
  lab->quiet = false;
  for (unsigned i = 0; i < 2; i++) {
    allow_commit(base, subject_world(s)->head);
    commit(s);
    after_commit(base);
    lab_acknowledged(lab);
    subject_scatter(s, 2);
    subject_flush(s);
  }
  scenario_end(lab);
}

/* ---- Into a raw base ---- */

/* What the raw file holds: as it was before the commit, now, and whether that is durable. */
struct raw {
  char *path;
  unsigned char *before;
  uint64_t size;
  uint64_t synced;              /* times, before the commit */
  struct stat status;           /* before the commit */
};

/* Sectors old or new, time old or new; after fsync(2) as it is. */
static void place_raw(struct lab *lab, const char *dir, struct rng *rng)
{
  const struct raw *raw = lab->place_opaque;
  g_autofree char *to = g_build_filename(dir, "base", NULL);
  g_autofree char *now = NULL;
  gsize length;
  struct stat st;
  int fd;

  SYS(stat(raw->path, &st));
  copy_file(raw->path, to);
  if (lab_synced(st.st_ino) > raw->synced)
    return;
  CHECK(g_file_get_contents(raw->path, &now, &length, NULL), "cannot read %s", raw->path);
  fd = (int)SYS(open(to, O_WRONLY | O_CLOEXEC));
  for (uint64_t at = 0; at < raw->size; at += 512)
    if (memcmp(raw->before + at, now + at, 512) != 0 && rng_chance(rng, 50))
      SYS(pwrite(fd, raw->before + at, 512, (off_t)at));
  if (rng_chance(rng, 50))
    SYS(ftruncate(fd, (off_t)raw->size));
  if (rng_chance(rng, 50))
    SYS(futimens(fd, (struct timespec[]){ raw->status.st_atim, raw->status.st_mtim }));
  else
    SYS(futimens(fd, (struct timespec[]){ st.st_atim, st.st_mtim }));
  close(fd);
}

static void commit_raw(struct lab *lab)
{
  uint64_t base_size = rng_chance(&lab->rng, 40) ? 2 * UNIT : 3 * UNIT;
  struct face *face = scenario_raw_base(lab, "base", base_size, 12);
  struct subject *s = subject_new(lab, "img", 3 * UNIT, "base", PCOW_FORMAT_RAW, NULL, face);
  struct raw raw = { .path = lab_path(lab, "base"), .size = base_size };
  g_autofree char *content = NULL;
  gsize length;

  lab_watch(lab);
  lab->quiet = true;
  subject_open(s);
  subject_scatter(s, 6);
  subject_discard(s, rng_below(&lab->rng, 30) * PAGE, 3 * PAGE);
  subject_flush(s);
  lab->quiet = false;
  raw.before = g_malloc(base_size);
  face_read(face, 0, raw.before, base_size);
  SYS(stat(raw.path, &raw.status));
  raw.synced = lab_synced(raw.status.st_ino);
  lab->place_opaque = &raw;
  lab->place = place_raw;
  commit(s);
  CHECK(g_file_get_contents(raw.path, &content, &length, NULL), "cannot read %s", raw.path);
  if (length != subject_size(s) ||
      !face_allows(subject_world(s)->head, &(struct shown){ length, (unsigned char *)content, NULL }, NULL))
    lab_fail(lab, "base: does not hold what was committed into it");
  if (lab_synced(raw.status.st_ino) <= raw.synced)
    lab_fail(lab, "base: was not made durable by the commit");
  lab_acknowledged(lab);
  subject_scatter(s, 2);
  subject_flush(s);
  scenario_end(lab);
  lab->place = NULL;
  g_free(raw.before);
  g_free(raw.path);
  face_free(face);
}

const struct scenario scenarios_base[] = {
  { "rebase", "safe rebase of a head", rebase_safe, false },
  { "rebase-snapshots", "safe rebase of an image with snapshots", rebase_snapshots, false },
  { "rebase-unsafe", "unsafe rebase", rebase_unsafe, false },
  { "flatten", "rebase to no base", flatten, false },
  { "commit", "commit into a pcow base, twice", commit_pcow, false },
  { "commit-raw", "commit into a raw base", commit_raw, false },
  { NULL, NULL, NULL, false },
};
