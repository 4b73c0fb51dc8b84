/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Mapped images: first stores publish pages while the storing thread waits; several threads store and
 * make durable what they like while snapshots are taken and deleted. What threads do depends on how they
 * are scheduled: a seed repeats their numbers, but not their moments.
 */
#include "scenarios.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>

#define THREADS 3u

/* One thread's stores, in order, then a few at random that are not made durable. */
static void store_somewhere(struct subject *s, unsigned count)
{
  struct rng *rng = &s->lab->rng;
  uint64_t pages = subject_size(s) / PAGE;

  while (count--) {
    uint64_t offset = rng_below(rng, pages) * PAGE + rng_below(rng, 500) * 8;

    if (rng_chance(rng, 60))
      subject_store_range(s, offset, 8 * (1 + rng_below(rng, 12)));
    else
      subject_store(s, offset, pattern_word(++s->version, offset), rng_chance(rng, 30));
  }
}

static void stores_new(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 3);

  subject_map(s);
  store_somewhere(s, 6);
  subject_write(s, rng_below(&lab->rng, 64) * PAGE, PAGE);
  store_somewhere(s, 2);
  if (rng_chance(&lab->rng, 50))
    subject_unmap(s);
  scenario_end(lab);
}

static void stores_over_snapshot(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 20);

  lab->quiet = true;
  subject_snapshot(s, "one");
  subject_map(s);
  lab->quiet = false;
  store_somewhere(s, 6);
  subject_snapshot(s, "two");
  store_somewhere(s, 3);
  subject_delete(s, rng_chance(&lab->rng, 50) ? "one" : "two");
  store_somewhere(s, 2);
  scenario_end(lab);
}

static void stores_over_base(struct lab *lab)
{
  struct face *base = rng_chance(&lab->rng, 50) ? scenario_base(lab, "base", 3 * UNIT, 20) : NULL;
  uint32_t format = base ? PCOW_FORMAT_PCOW : PCOW_FORMAT_RAW;
  struct subject *s;

  if (!base)
    base = scenario_raw_base(lab, "base", 3 * UNIT, 20);
  s = subject_new(lab, "img", 4 * UNIT, "base", format, NULL, base);
  face_free(base);
  lab_watch(lab);
  subject_open(s);
  subject_map(s);
  store_somewhere(s, 6);
  subject_flush(s);
  subject_discard(s, rng_below(&lab->rng, 40) * PAGE, 3 * PAGE);
  store_somewhere(s, 3);
  scenario_end(lab);
}

static void grow_mapped(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 2 * UNIT, 12);

  lab->quiet = true;
  subject_resize(s, UNIT);
  subject_map(s);
  lab->quiet = false;
  store_somewhere(s, 2);
  subject_resize(s, 3 * UNIT + PAGE);
  store_somewhere(s, 4);
  scenario_end(lab);
}

/* ---- Threads ---- */

struct storing {
  struct subject *s;
  unsigned number, stores;
  struct rng rng;
  pthread_t thread;
};

/* Words of its own, on pages that all share. */
static void *store_thread(void *opaque)
{
  struct storing *t = opaque;

  for (unsigned i = 0; i < t->stores; i++) {
    uint64_t page = rng_below(&t->rng, 32), word = rng_below(&t->rng, PAGE / 8 / THREADS) * THREADS + t->number;
    uint64_t offset = page * PAGE + word * 8;

    subject_store(t->s, offset, pattern_word(10000 * (t->number + 1) + i, offset), rng_chance(&t->rng, 50));
  }
  return NULL;
}

static void threads_begin(struct subject *s, struct storing *t, unsigned stores)
{
  s->lab->threads = true;
  for (unsigned i = 0; i < THREADS; i++) {
    t[i] = (struct storing){ .s = s, .number = i, .stores = stores, .rng = { rng_next(&s->lab->rng) } };
    SYS(pthread_create(&t[i].thread, NULL, store_thread, &t[i]) ? -1 : 0);
  }
  lab_doing(s->lab, "%u threads store to %s", THREADS, s->name);
}

static void threads_end(struct subject *s, struct storing *t)
{
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join(t[i].thread, NULL);
  s->lab->threads = false;
}

static void threads_storing(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 12);
  struct storing t[THREADS];

  lab->quiet = true;
  subject_snapshot(s, "one");
  subject_map(s);
  lab->quiet = false;
  threads_begin(s, t, 25);
  threads_end(s, t);
  scenario_end(lab);
}

/* Snapshots are taken, and one is deleted, while threads store. */
static void threads_snapshot(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 3 * UNIT, 12);
  struct storing t[THREADS];

  lab->quiet = true;
  subject_map(s);
  lab->quiet = false;
  threads_begin(s, t, 30);
  subject_snapshot(s, "one");
  verify_snapshot(s, "one");
  subject_snapshot(s, "two");
  verify_snapshot(s, "two");
  subject_delete(s, "one");
  threads_end(s, t);
  scenario_end(lab);
}

const struct scenario scenarios_map[] = {
  { "map-new", "stores to a map, over nothing", stores_new, true },
  { "map-over-snapshot", "stores over snapshots that come and go", stores_over_snapshot, true },
  { "map-over-base", "stores over a base, with discards", stores_over_base, true },
  { "map-grow", "a map grows over what a shrink left", grow_mapped, true },
  { "map-threads", "several threads store", threads_storing, true },
  { "map-snapshot-live", "snapshots while several threads store", threads_snapshot, true },
  { NULL, NULL, NULL, false },
};
