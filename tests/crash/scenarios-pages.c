/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Content: pages and slots that become present, over nothing, over snapshots, over bases; zeros and
 * discards; the map and the mark that grow; creation.
 */
#include "scenarios.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- What all scenarios share ---- */

struct subject *scenario_image(struct lab *lab, uint64_t size, unsigned count)
{
  struct subject *s = subject_new(lab, "img", size, NULL, PCOW_FORMAT_NONE, NULL, NULL);

  lab_watch(lab);
  lab->quiet = true;
  subject_open(s);
  if (count) {
    subject_scatter(s, count);
    subject_flush(s);
  }
  lab->quiet = false;
  return s;
}

static void fill(struct lab *lab, struct face *v, unsigned count, uint64_t version)
{
  unsigned char bytes[PCOW_PAGE_SIZE];

  while (count--) {
    uint64_t offset = rng_below(&lab->rng, v->size / PAGE) * PAGE;

    pattern_fill(bytes, version, offset, PAGE);
    face_write(v, offset, bytes, PAGE);
  }
  face_settle(v, true);
}

struct face *scenario_base(struct lab *lab, const char *name, uint64_t size, unsigned count)
{
  g_autofree char *path = lab_path(lab, name);
  struct face *v = face_new(size);
  pcow_image *image;

  test_create(path, size, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  fill(lab, v, count, 1000 + rng_below(&lab->rng, 1000));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t at = 0; at < size; at += PAGE) {
    unsigned char bytes[PCOW_PAGE_SIZE];

    face_read(v, at, bytes, PAGE);
    if (bytes[0] || memcmp(bytes, bytes + 1, PAGE - 1) != 0)
      OK(pcow_pwrite(image, bytes, PAGE, at));
  }
  OK(pcow_close(image));
  lab_static(lab, name);
  return v;
}

struct face *scenario_raw_base(struct lab *lab, const char *name, uint64_t size, unsigned count)
{
  g_autofree char *path = lab_path(lab, name);
  struct face *v = face_new(size);
  g_autofree unsigned char *bytes = g_malloc(size);

  fill(lab, v, count, 1000 + rng_below(&lab->rng, 1000));
  face_read(v, 0, bytes, size);
  CHECK(g_file_set_contents(path, (char *)bytes, (gssize)size, NULL), "cannot write %s", path);
  lab_static(lab, name);
  return v;
}

void scenario_end(struct lab *lab)
{
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (!s->image)
      continue;
    verify_now(s);
    subject_close(s);
  }
  /* And without any crash. */
  lab->quiet = true;
  for (unsigned i = 0; i < lab->subjects->len; i++)
    if (!((struct subject *)g_ptr_array_index(lab->subjects, i))->retired)
      verify_check(g_ptr_array_index(lab->subjects, i));
}

static void write_rounds(struct subject *s, unsigned rounds)
{
  while (rounds--) {
    subject_scatter(s, 1 + (unsigned)rng_below(&s->lab->rng, 4));
    subject_flush(s);
  }
}

/* ---- Pages ---- */

static void pages_new(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 0);

  write_rounds(s, 4);
  scenario_end(lab);
}

static void pages_again(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 12);

  write_rounds(s, 4);
  subject_close(s);
  subject_open(s);
  write_rounds(s, 2);
  scenario_end(lab);
}

static void pages_over_snapshot(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 16);

  lab->quiet = true;
  subject_snapshot(s, "one");
  lab->quiet = false;
  write_rounds(s, 3);
  subject_close(s);
  scenario_end(lab);
}

static struct subject *over_base(struct lab *lab, uint32_t format)
{
  struct face *base = format == PCOW_FORMAT_RAW ? scenario_raw_base(lab, "base", 5 * UNIT + 3 * PAGE, 30)
                                                : scenario_base(lab, "base", 3 * UNIT + 5 * PAGE, 20);
  struct subject *s = subject_new(lab, "img", 4 * UNIT, "base", format, NULL, base);

  face_free(base);
  lab_watch(lab);
  return s;
}

static void pages_over_base(struct lab *lab)
{
  struct subject *s = over_base(lab, PCOW_FORMAT_PCOW);

  subject_open(s);
  write_rounds(s, 3);
  subject_discard(s, rng_below(&lab->rng, 32) * PAGE, 5 * PAGE);
  write_rounds(s, 1);
  scenario_end(lab);
}

static void pages_over_raw(struct lab *lab)
{
  struct subject *s = over_base(lab, PCOW_FORMAT_RAW);

  subject_open(s);
  write_rounds(s, 3);
  subject_zero(s, rng_below(&lab->rng, 32) * PAGE, 5 * PAGE, 0);
  write_rounds(s, 1);
  scenario_end(lab);
}

/* A session that writes only when the image was not closed cleanly, and one that never flushes. */
static void sessions(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 6);

  subject_scatter(s, 3);
  subject_close(s);
  subject_open(s);
  subject_close(s);
  subject_open(s);
  subject_scatter(s, 2);
  subject_close(s);
  scenario_end(lab);
}

/* ---- Zeros ---- */

static void zero_somewhere(struct subject *s)
{
  struct rng *rng = &s->lab->rng;
  uint64_t size = subject_size(s), offset = rng_below(rng, size / PAGE) * PAGE;
  uint64_t length = least(size - offset, (1 + rng_below(rng, 6)) * PAGE);

  if (rng_chance(rng, 30)) {
    offset += rng_below(rng, 4000);
    length = least(size - offset, rng_below(rng, 9000) + 1);
  }
  switch (rng_below(rng, 3)) {
  case 0:
    subject_discard(s, offset, length);
    break;
  case 1:
    subject_zero(s, offset, length, 0);
    break;
  default:
    subject_zero(s, offset, length, PCOW_ZERO_KEEP_SPACE);
  }
}

static void zeros(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 24);

  if (rng_chance(&lab->rng, 60)) {
    lab->quiet = true;
    subject_snapshot(s, "full");
    subject_scatter(s, 6);
    subject_flush(s);
    lab->quiet = false;
  }
  for (unsigned i = 0; i < 3; i++) {
    zero_somewhere(s);
    if (rng_chance(&lab->rng, 40))
      subject_scatter(s, 1);
    zero_somewhere(s);
    subject_flush(s);
  }
  scenario_end(lab);
}

/* ---- What grows ---- */

/* Units so far apart that their words lie in pages of the map that were never stored to. */
static void map_growth(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 515 * UNIT, 1);
  static const uint64_t far[] = { 3, 510, 512, 514 };

  lab->limit = MAX(lab->limit / 3, 3);  /* larger than the others */
  for (unsigned i = 0; i < 3; i++) {
    subject_write(s, far[rng_below(&lab->rng, 4)] * UNIT + rng_below(&lab->rng, 16) * PAGE, PAGE);
    subject_flush(s);
  }
  scenario_end(lab);
}

/* Many units get their first slot, in several epochs: the mark is raised on the way. */
static void mark_growth(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 16 * UNIT, 0);

  for (unsigned round = 0; round < 3; round++) {
    for (unsigned unit = 0; unit < 16; unit += 1 + (unsigned)rng_below(&lab->rng, 4))
      subject_write(s, unit * UNIT + rng_below(&lab->rng, 16) * PAGE, 600);
    subject_flush(s);
    if (round < 2) {
      g_autofree char *name = g_strdup_printf("round %u", round);

      lab->quiet = true;
      subject_snapshot(s, name);
      lab->quiet = false;
    }
  }
  scenario_end(lab);
}

/* ---- Creation: it does not pass through the watched layer, so its order is seen at its calls ---- */

static void creation_used(struct lab *lab)
{
  struct subject *s;
  struct stat st;

  s = subject_new(lab, "img", 4 * UNIT, NULL, PCOW_FORMAT_NONE, NULL, NULL);
  SYS(stat(s->path, &st));
  if (!lab_created_in_order() || lab_synced(st.st_ino) == 0)
    lab_fail(lab, "img: creation did not make content, name and directory durable in this order");
  lab_watch(lab);
  subject_open(s);
  lab_explore(lab);
  subject_write(s, rng_below(&lab->rng, 64) * PAGE, PAGE);
  lab_explore(lab);
  scenario_end(lab);
}

const struct scenario scenarios_pages[] = {
  { "pages-new", "pages over nothing, in new slots", pages_new, false },
  { "pages-again", "pages that are there, in a second session", pages_again, false },
  { "pages-over-snapshot", "copy-on-write over a snapshot", pages_over_snapshot, false },
  { "pages-over-base", "copy-on-write over a pcow base", pages_over_base, false },
  { "pages-over-raw", "copy-on-write over a raw base", pages_over_raw, false },
  { "sessions", "sessions that are opened and closed, flushed or not", sessions, false },
  { "zeros", "discards and zeros over pages of all kinds", zeros, false },
  { "map-growth", "first slots of far units", map_growth, false },
  { "mark-growth", "the high-water mark is raised, with and without snapshots", mark_growth, false },
  { "create", "a new image and its first use", creation_used, false },
  { NULL, NULL, NULL, false },
};
