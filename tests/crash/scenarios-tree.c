/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Structure: snapshots that are taken, deleted, reverted to; the space that deleted ones leave, taken over
 * or moved or dropped; the ring of the epoch log; sizes.
 */
#include "scenarios.h"

#include <stdio.h>
#include <string.h>

static void quiet_snapshot(struct subject *s, const char *name)
{
  s->lab->quiet = true;
  subject_snapshot(s, name);
  s->lab->quiet = false;
}

/* Pages of a range of units, durable, without exploring. */
static void quiet_pages(struct subject *s, uint64_t first, uint64_t end, unsigned count)
{
  s->lab->quiet = true;
  while (count--) {
    uint64_t page = (first * UNIT + rng_below(&s->lab->rng, (end - first) * 16) * PAGE);

    subject_write(s, page, rng_chance(&s->lab->rng, 50) ? PAGE : 800);
  }
  subject_flush(s);
  s->lab->quiet = false;
}

static void snapshots(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 8);

  subject_snapshot(s, "one");
  subject_scatter(s, 3);
  subject_snapshot(s, "two");
  subject_snapshot(s, "three");
  subject_scatter(s, 2);
  subject_flush(s);
  scenario_end(lab);
}

/* The heir has no slot of the deleted epoch's units: it takes them over. With a smaller floor, a part of
 * them only. */
static void collect_take_over(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 6 * UNIT, 0);

  quiet_pages(s, 0, 6, 12);
  quiet_snapshot(s, "one");
  quiet_pages(s, 0, 2, 4);
  quiet_snapshot(s, "two");
  lab->quiet = true;
  if (rng_chance(&lab->rng, 50)) {
    subject_resize(s, 4 * UNIT + 5 * PAGE);
    subject_resize(s, 6 * UNIT);
  }
  lab->quiet = false;
  quiet_pages(s, 4, 6, 2);
  quiet_snapshot(s, "three");
  subject_delete(s, rng_chance(&lab->rng, 50) ? "one" : "two");
  subject_scatter(s, 2);
  subject_flush(s);
  scenario_end(lab);
}

/* Both have slots: pages move. */
static void collect_move(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 0);
  static const char *const names[] = { "one", "two", "three" };

  for (unsigned i = 0; i < 3; i++) {
    quiet_pages(s, 0, 3, 10);
    lab->quiet = true;
    subject_discard(s, rng_below(&lab->rng, 40) * PAGE, 3 * PAGE);
    lab->quiet = false;
    quiet_snapshot(s, names[i]);
  }
  quiet_pages(s, 0, 3, 5);
  subject_delete(s, names[rng_below(&lab->rng, 3)]);
  subject_scatter(s, 1);
  subject_flush(s);
  scenario_end(lab);
}

/* A tree with branches: what is deleted has several children, then one, then none. */
static void collect_branches(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 6);

  quiet_snapshot(s, "root");
  quiet_pages(s, 0, 3, 5);
  quiet_snapshot(s, "left");
  quiet_pages(s, 0, 3, 4);
  lab->quiet = true;
  subject_revert(s, "root");
  lab->quiet = false;
  quiet_pages(s, 0, 3, 4);
  quiet_snapshot(s, "right");
  quiet_pages(s, 1, 3, 3);
  subject_delete(s, "root");
  subject_delete(s, rng_chance(&lab->rng, 50) ? "left" : "right");
  subject_scatter(s, 1);
  scenario_end(lab);
}

/* Everything goes, in an order drawn by lot. */
static void delete_all(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 2 * UNIT, 4);
  const char *names[4] = { "a", "b", "c", "d" };

  for (unsigned i = 0; i < 4; i++) {
    quiet_pages(s, 0, 2, 3);
    quiet_snapshot(s, names[i]);
  }
  for (unsigned i = 4; i > 0; i--) {
    unsigned k = (unsigned)rng_below(&lab->rng, i);
    const char *name = names[k];

    names[k] = names[i - 1];
    subject_delete(s, name);
    if (i == 3) {
      subject_close(s);
      subject_open(s);
    }
  }
  scenario_end(lab);
}

static void reverts(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 6);

  quiet_snapshot(s, "one");
  quiet_pages(s, 0, 3, 4);
  if (rng_chance(&lab->rng, 50)) {
    quiet_snapshot(s, "two");
    quiet_pages(s, 0, 3, 4);
  }
  subject_scatter(s, 2);
  subject_revert(s, "one");
  subject_scatter(s, 3);
  subject_flush(s);
  subject_revert(s, "one");
  scenario_end(lab);
}

/* A revert to what has another size. */
static void revert_size(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 9);

  quiet_snapshot(s, "large");
  lab->quiet = true;
  subject_resize(s, UNIT + 7 * PAGE);
  lab->quiet = false;
  quiet_pages(s, 0, 1, 3);
  quiet_snapshot(s, "small");
  subject_revert(s, "large");
  subject_scatter(s, 2);
  subject_revert(s, "small");
  subject_resize(s, 3 * UNIT);
  scenario_end(lab);
}

/* Many snapshots, few at a time: the ring's start goes on, and records are copied. */
static void log_ring(struct lab *lab)
{
  struct subject *s = scenario_image(lab, UNIT, 1);
  unsigned rounds = 12 + (unsigned)rng_below(&lab->rng, 20);

  lab->limit = MAX(lab->limit / 3, 3);
  for (unsigned i = 0; i < rounds; i++) {
    g_autofree char *name = g_strdup_printf("s%u", i), *old = g_strdup_printf("s%u", i - 3);

    lab->quiet = i + 4 < rounds;
    subject_write(s, rng_below(&lab->rng, 16) * PAGE, 512);
    subject_snapshot(s, name);
    if (i >= 3)
      subject_delete(s, old);
  }
  lab->quiet = false;
  scenario_end(lab);
}

static void sizes(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT + 3 * PAGE, 20);

  if (rng_chance(&lab->rng, 40)) {
    quiet_snapshot(s, "large");
    quiet_pages(s, 0, 3, 5);
  }
  subject_resize(s, UNIT + rng_below(&lab->rng, 20) * PAGE + PAGE);
  if (rng_chance(&lab->rng, 50))
    subject_scatter(s, 2);
  subject_resize(s, 3 * UNIT + rng_below(&lab->rng, 20) * PAGE);
  subject_scatter(s, 3);
  subject_flush(s);
  scenario_end(lab);
}

/* What a shrink left behind must not come back: sessions end between the steps. */
static void shrink_then_grow(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 30);

  subject_resize(s, UNIT + 5 * PAGE);
  subject_close(s);
  subject_open(s);
  subject_resize(s, 2 * UNIT + 2 * PAGE);
  subject_resize(s, UNIT + 3 * PAGE);
  subject_resize(s, 3 * UNIT);
  subject_write(s, 2 * UNIT + 100, 50);
  scenario_end(lab);
}

const struct scenario scenarios_tree[] = {
  { "snapshot", "snapshots are taken", snapshots, false },
  { "collect-take-over", "a deleted snapshot's slots go to its heir", collect_take_over, false },
  { "collect-move", "a deleted snapshot's pages go to its heir's slots", collect_move, false },
  { "collect-branches", "deletions in a tree with branches", collect_branches, false },
  { "delete-all", "all snapshots are deleted, in any order", delete_all, false },
  { "revert", "reverts, twice to the same", reverts, false },
  { "revert-size", "reverts to what has another size", revert_size, false },
  { "log-ring", "many snapshots, few at a time", log_ring, false },
  { "resize", "smaller and larger", sizes, false },
  { "shrink-then-grow", "with a session's end between", shrink_then_grow, false },
  { NULL, NULL, NULL, false },
};
