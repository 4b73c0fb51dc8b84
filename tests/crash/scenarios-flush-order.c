/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Another thread comes between two steps of a flush: it stores to the page that is being copied or handed
 * over, or flushes it, too. It is asked to at every cut, and whenever the flush is about to map or to move
 * memory; the flush goes on when it has done so, or when it seems to be held.
 */
#include "scenarios.h"

#include "kernel.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define PATIENCE 40u            /* looks, half a millisecond apart */

struct other {
  struct subject *s;
  uint64_t page, version;
  bool flushes;
  unsigned requests;            /* at most so many; then nothing is asked any more */
  pthread_t me, thread;
  atomic_bool wanted, busy, stop;
};

static void pause_a_moment(void)
{
  nanosleep(&(struct timespec){ .tv_nsec = 500000 }, NULL);
}

static void *other_thread(void *opaque)
{
  struct other *o = opaque;

  for (unsigned i = 0; !o->stop;) {
    uint64_t offset = o->page * PAGE + 2048 + 8 * i;

    if (!atomic_exchange(&o->wanted, false)) {
      pause_a_moment();
      continue;
    }
    if (o->flushes) {
      OK(pcow_flush(o->s->map, o->page * PAGE, PAGE));
      g_mutex_lock(&o->s->lab->lock);
      face_persisted(subject_world(o->s)->head, o->page * PAGE, PAGE);
      g_mutex_unlock(&o->s->lab->lock);
    } else {
      subject_store(o->s, offset, pattern_word(o->version + i, offset), false);
      i++;
    }
    o->busy = false;
  }
  return NULL;
}

/* Lets the other one act now, or finish what it was held in. */
static void ask(void *opaque)
{
  struct other *o = opaque;

  if (!pthread_equal(pthread_self(), o->me) || o->s->lab->quiet)
    return;
  if (!o->busy && o->requests) {
    o->requests--;
    o->busy = true;
    o->wanted = true;
  }
  for (unsigned i = 0; o->busy && i < PATIENCE; i++)
    pause_a_moment();
}

static void ask_at_cut(struct lab *lab) { ask(lab->look_opaque); }

static void other_begin(struct other *o)
{
  struct lab *lab = o->s->lab;

  o->me = pthread_self();
  lab->threads = true;
  lab->look_opaque = o;
  lab->look = ask_at_cut;
  SYS(pthread_create(&o->thread, NULL, other_thread, o) ? -1 : 0);
  kernel_set_between(ask, o);
}

static void other_end(struct other *o)
{
  kernel_set_between(NULL, NULL);
  o->s->lab->look = NULL;
  while (o->busy)
    pause_a_moment();
  o->stop = true;
  pthread_join(o->thread, NULL);
  o->s->lab->threads = false;
}

static struct other other_new(struct ground *g, uint64_t page, bool flushes, unsigned requests)
{
  struct other o = { .s = g->s, .page = page, .flushes = flushes, .requests = requests };

  o.version = g->s->version + 1;
  g->s->version += 1 + requests;
  return o;
}

/* One flush, while the other thread acts. */
static void flush_beset(struct ground *g, uint64_t page, bool flushes, unsigned requests)
{
  struct other o = other_new(g, page, flushes, requests);
  bool done;

  subject_put(g->s, page * PAGE, 64);
  other_begin(&o);
  done = subject_flush_range(g->s, page * PAGE, 2048);
  CHECK(done, "a flush gave %s", pcow_errormsg());
  other_end(&o);
  ground_see(g);
}

/* A page is taken from the kernel's hands, because it is written through the API. */
static void write_beset(struct ground *g, uint64_t page, bool flushes, unsigned requests)
{
  struct other o = other_new(g, page, flushes, requests);

  other_begin(&o);
  subject_write(g->s, page * PAGE, 512);
  other_end(&o);
  ground_see(g);
}

/* Copied, found again, handed over, shared: in each there is a store between any two steps. */
static void stores_between(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 0, PCOW_THIN_DEFAULT);
  uint64_t page = rng_below(&lab->rng, 2 * UNIT / PAGE);

  for (unsigned i = 0; i < 3; i++)
    flush_beset(&g, page, false, 8);
  write_beset(&g, (page + 1 + rng_below(&lab->rng, 20)) % (2 * UNIT / PAGE), false, 8);
  lab_acknowledged(lab);
  ground_flush(&g);
  ground_end(&g);
}

/* The same page is flushed by another one, who must not be told too early that it is durable. */
static void flush_between(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 0, PCOW_THIN_DEFAULT);
  uint64_t page = rng_below(&lab->rng, 2 * UNIT / PAGE);

  for (unsigned i = 0; i < 3; i++)
    flush_beset(&g, page, true, 1);
  ground_end(&g);
}

/* The same while it is taken from the kernel's hands, with what was stored to it. */
static void write_between(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 0, PCOW_THIN_DEFAULT);
  uint64_t page = rng_below(&lab->rng, 2 * UNIT / PAGE);

  for (unsigned i = 0; i < 3; i++, page = (page + 1) % (2 * UNIT / PAGE)) {
    subject_put(g.s, page * PAGE + 1024, 64);
    write_beset(&g, page, true, 1);
    lab_acknowledged(lab);
  }
  ground_flush(&g);
  ground_end(&g);
}

/* The same where nothing is tracked, so that a flush would have nothing to do but for what another one is settling. */
static void flush_idle(struct lab *lab)
{
  struct ground g = ground_over(lab, 4 * UNIT, UNIT, 0, PCOW_THIN_GUARDED);

  subject_write(g.s, 0, UNIT);
  ground_flush(&g);
  for (unsigned i = 1; i < 4; i++)
    flush_beset(&g, i * (UNIT / PAGE) + rng_below(&lab->rng, UNIT / PAGE), true, 1);
  ground_end(&g);
}

const struct scenario scenarios_flush_order[] = {
  { "order-flush-stores", "stores between the steps of a flush", stores_between, false },
  { "order-flush-wait", "the page of a flush is flushed by another thread", flush_between, false },
  { "order-flush-idle", "the same, of a map of which no page is tracked", flush_idle, false },
  { "order-flush-write", "a stored-to page is written through the API, and flushed", write_between, false },
  { NULL, NULL, NULL, false },
};
