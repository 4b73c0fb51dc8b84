/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Scenarios for steps of the ordering rules that need a situation of their own to matter: short sequences,
 * aimed at the step. More of them are in scenarios-killed.c.
 */
#include "scenarios.h"

#define SIZE (2 * UNIT)

static void map_one(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 10);

  lab->quiet = true;
  subject_snapshot(s, "one");
  subject_map(s);
  lab->quiet = false;
  for (unsigned i = 0; i < 4; i++)
    subject_store_range(s, (UNIT + 8 * PAGE) * (i % 3) + i * PAGE + 8 * rng_below(&lab->rng, 500), 16);
  subject_unmap(s);
  scenario_end(lab);
}

static void stores_closed(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 4);

  lab->quiet = true;
  subject_map(s);
  subject_store_range(s, 0, 64);
  lab->quiet = false;
  subject_store(s, 8, pattern_word(++s->version, 8), false);
  subject_unmap(s);
  scenario_end(lab);
}

static void live_snapshot(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 4);
  uint64_t at = rng_below(&lab->rng, SIZE / PAGE) * PAGE;
  bool whole = rng_chance(&lab->rng, 50);

  lab->quiet = true;
  subject_map(s);
  /* Whole units: they are mapped at once. */
  for (uint64_t page = 0; whole && page < SIZE; page += PAGE)
    subject_store_range(s, page, 8);
  subject_store_range(s, at, 64);
  lab->quiet = false;
  subject_store(s, at + 8, pattern_word(++s->version, at + 8), false);
  subject_snapshot(s, "one");
  subject_store(s, at + 16, pattern_word(++s->version, at + 16), true);
  verify_now(s);
  subject_unmap(s);
  scenario_end(lab);
}

static gpointer write_some(gpointer subject)
{
  struct subject *s = subject;

  subject_scatter(s, 3);
  return NULL;
}

/* What one thread writes another one flushes. */
static void other_writes(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 0);

  for (unsigned i = 0; i < 3; i++) {
    g_thread_join(g_thread_new("writer", write_some, s));
    subject_flush(s);
  }
  scenario_end(lab);
}

/* Slots that a revert gave up are used again at once. */
static void slot_again(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 12);

  lab->quiet = true;
  subject_snapshot(s, "one");
  subject_scatter(s, 12);
  subject_flush(s);
  subject_revert(s, "one");
  lab->quiet = false;
  subject_scatter(s, 6);
  subject_flush(s);
  scenario_end(lab);
}

/* A shrink that a cut left without its punch, then a growth. */
static void grow_again(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 20);

  subject_resize(s, UNIT + 3 * PAGE);
  subject_resize(s, SIZE);
  verify_now(s);
  scenario_end(lab);
}

static void rebase_on(struct lab *lab, bool frozen)
{
  struct face *old = scenario_base(lab, "base", SIZE, 16), *new = scenario_base(lab, "other", SIZE, 16);
  g_autofree char *base = g_strdup("base");
  struct subject *s = subject_new(lab, "img", SIZE, base, PCOW_FORMAT_PCOW, NULL, old);

  lab_watch(lab);
  lab->quiet = true;
  subject_open(s);
  subject_write(s, 3 * PAGE, PAGE);
  subject_flush(s);
  if (frozen)
    subject_snapshot(s, "one");
  lab->quiet = false;
  subject_rebase(s, "other", PCOW_FORMAT_PCOW, NULL, NULL);
  face_free(old);
  face_free(new);
  scenario_end(lab);
}

static void rebase_head(struct lab *lab) { rebase_on(lab, false); }

static void rebase_frozen(struct lab *lab) { rebase_on(lab, true); }

const struct scenario scenarios_order[] = {
  { "order-map", "first stores to pages over a snapshot", map_one, true },
  { "order-closed", "stores that nobody made durable, then a close", stores_closed, true },
  { "order-live", "a snapshot of a mapped image", live_snapshot, true },
  { "order-threads", "one thread writes, another one flushes", other_writes, false },
  { "order-slot-again", "slots are used again at once", slot_again, false },
  { "order-grow-again", "a shrink that was cut short, then a growth", grow_again, false },
  { "order-rebase-head", "a safe rebase, the head is the root epoch", rebase_head, false },
  { "order-rebase-frozen", "a safe rebase of what has a snapshot", rebase_frozen, false },
  { NULL, NULL, NULL, false },
};
