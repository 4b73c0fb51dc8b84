/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a review of the design found fatal when done carelessly, each by its name.
 */
#include "scenarios.h"

#include "crc32c.h"
#include "format.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* SIGKILL between a presence bit and its flush; another process opens the image and sees the bit; its guest
 * writes the page durably; then the power cut (rule 5). At every cut. */
static void kill_between(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 2 * UNIT, 4);

  options.kill_in = 1;
  if (rng_chance(&lab->rng, 50)) {
    lab->quiet = true;
    subject_snapshot(s, "one");
    lab->quiet = false;
  }
  lab->limit = 4;
  subject_scatter(s, 2);
  subject_flush(s);
  scenario_end(lab);
}

/* ---- One copy of the superblock decays ---- */

static bool is_valid(int fd, unsigned copy)
{
  struct pcow_disk_superblock sb;

  SYS(pread(fd, &sb, sizeof sb, (off_t)SUPERBLOCK_OFFSET(copy)));
  return !memcmp(sb.magic, PCOW_MAGIC, 8) &&
         le32_get(sb.crc) == crc32c(&sb, offsetof(struct pcow_disk_superblock, crc));
}

/* Either copy, the newer one included, where the other one is whole. */
static void decay(struct lab *lab, const char *dir, struct rng *rng)
{
  struct subject *s = g_ptr_array_index(lab->subjects, 0);
  g_autofree char *path = g_build_filename(dir, s->name, NULL);
  int fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));
  unsigned copy = (unsigned)rng_below(rng, 2);
  unsigned char bytes[64];

  s->damaged = false;
  if (is_valid(fd, !copy)) {
    rng_fill(rng, bytes, sizeof bytes);
    SYS(pwrite(fd, bytes, sizeof bytes, (off_t)(SUPERBLOCK_OFFSET(copy) + rng_below(rng, 60) * 64)));
    s->damaged = true;
  }
  close(fd);
}

static void decay_at_rest(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 6);

  options.kill_in = 0;
  lab->place = decay;
  lab->quiet = true;
  subject_snapshot(s, "one");
  subject_scatter(s, 4);
  subject_snapshot(s, "two");
  subject_scatter(s, 4);
  lab->quiet = false;
  subject_flush(s);
  subject_close(s);
  for (unsigned i = 0; i < 6; i++)
    lab_explore(lab);
  subject_open(s);
  subject_delete(s, "one");
  subject_revert(s, "two");
  subject_resize(s, 2 * UNIT);
  subject_resize(s, 3 * UNIT);
  scenario_end(lab);
}

/* ---- Somebody reads a descendant ---- */

struct readers {
  pcow_image *images[3];
  struct face *faces[3];
  const char *names[3];
  unsigned count;
};

/* At every cut: what has been open for long shows the same. */
static void readers_look(struct lab *lab)
{
  const struct readers *r = lab->look_opaque;

  for (unsigned i = 0; i < r->count; i++)
    verify_handle(lab, r->images[i], r->faces[i], r->names[i]);
}

static void readers_add(struct lab *lab, struct readers *r, struct subject *s, const char *name)
{
  r->images[r->count] = test_open(s->path, 0, name);
  r->faces[r->count] = face_frozen(world_find(subject_world(s), name)->face);
  r->names[r->count] = name;
  r->count++;
  readers_look(lab);            /* has found its pages */
}

static void read_descendant(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 12);
  static const char *const names[] = { "one", "two", "three", "four" };
  struct readers r = { .count = 0 };

  lab->quiet = true;
  for (unsigned i = 0; i < 4; i++) {
    subject_snapshot(s, names[i]);
    subject_scatter(s, 6);
  }
  subject_flush(s);
  lab->quiet = false;
  lab->look_opaque = &r;
  readers_add(lab, &r, s, "two");
  if (rng_chance(&lab->rng, 50))
    readers_add(lab, &r, s, "four");
  lab->look = readers_look;
  subject_delete(s, "one");     /* an ancestor of what is read */
  subject_delete(s, "three");
  if (pcow_snapshot_delete(s->image, "two") == 0)
    lab_fail(lab, "a snapshot that is being read was deleted");
  subject_scatter(s, 2);
  subject_flush(s);
  /* The readers leave: what waited for them is collected by the next writer. */
  lab->look = NULL;
  for (unsigned i = 0; i < r.count; i++) {
    OK(pcow_close(r.images[i]));
    face_free(r.faces[i]);
  }
  subject_close(s);
  subject_open(s);
  subject_delete(s, "two");
  scenario_end(lab);
}

/* ---- Slots and pages that hold what nobody wants ---- */

/* A cut between unlink and punch leaves a free slot full of blocks: used again, it shows none of them. */
static void reuse_slots(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 0);

  lab->quiet = true;
  subject_write(s, 0, UNIT / 2);
  subject_snapshot(s, "one");
  subject_write(s, 0, 3 * UNIT);
  subject_flush(s);
  lab->quiet = false;
  subject_revert(s, "one");
  subject_write(s, rng_below(&lab->rng, 3) * UNIT + 100, 20);
  subject_flush(s);
  lab->quiet = true;
  subject_write(s, UNIT, 2 * UNIT);
  subject_snapshot(s, "two");
  subject_write(s, 0, 2 * UNIT);
  subject_snapshot(s, "three");
  lab->quiet = false;
  subject_delete(s, rng_chance(&lab->rng, 50) ? "two" : "three");
  subject_write(s, rng_below(&lab->rng, 3) * UNIT + 9000, 20);
  scenario_end(lab);
}

/* A cut while pages are published leaves garbage under bits that are not set: discarded, zeroed, allocated
 * ahead or written in part, it does not show. */
static void garbage_pages(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 2 * UNIT, 3);

  options.empty_only = true;
  if (rng_chance(&lab->rng, 50)) {
    lab->quiet = true;
    subject_snapshot(s, "one");
    lab->quiet = false;
  }
  for (unsigned i = 0; i < 3; i++) {
    subject_scatter(s, 2);
    subject_flush(s);
  }
  scenario_end(lab);
}

const struct scenario scenarios_review[] = {
  { "kill-between", "SIGKILL at every cut, another process goes on, then the cut", kill_between, false },
  { "superblock-decay", "one copy of the superblock is damaged at rest or after a cut", decay_at_rest, false },
  { "read-descendant", "deletion and collection while others read", read_descendant, false },
  { "reuse-slots", "slots that a cut left full are used again", reuse_slots, false },
  { "garbage-pages", "pages that a cut left as garbage are emptied or written in part", garbage_pages, false },
  { NULL, NULL, NULL, false },
};
