/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush-durable maps, in both modes: the kernel copies lower pages, a flush publishes them, and pages that
 * are flushed again move to the file, where a store can be durable before anybody flushes. What a flush
 * acknowledged is there after a cut, every other word is old or new, and the base never changes.
 */
#include "scenarios.h"

#include "kernel.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define THREADS 3u

/* ---- What lies beneath ---- */

struct ground ground_over(struct lab *lab, uint64_t size, uint64_t base_size, unsigned own, uint32_t thin)
{
  struct ground g = { .raw = rng_chance(&lab->rng, 40) };

  if (rng_chance(&lab->rng, 40))
    kernel_hide_tmpfs();

  g.base = g.raw ? scenario_raw_base(lab, "base", base_size, 30) : scenario_base(lab, "base", base_size, 30);
  g.s = subject_new(lab, "img", size, "base", g.raw ? PCOW_FORMAT_RAW : PCOW_FORMAT_PCOW, NULL, g.base);
  lab_watch(lab);
  lab->quiet = true;
  subject_open(g.s);
  if (own) {
    subject_scatter(g.s, own);
    subject_flush(g.s);
  }
  subject_map_flush(g.s, thin);
  lab->quiet = false;
  return g;
}

/* What the map shows, and the image through the API. */
static void see_both(struct subject *s)
{
  uint64_t size = subject_size(s);
  g_autofree unsigned char *bytes = g_malloc(size);
  const unsigned char *range = (const unsigned char *)s->address;

  face_read(subject_world(s)->head, 0, bytes, size);
  for (uint64_t at = 0; at < size; at += PAGE)
    if (memcmp(range + at, bytes + at, PAGE) != 0)
      lab_fail(s->lab, "%s: the map shows something else than was stored at 0x%" PRIx64, s->name, at);
  verify_now(s);
}

static void see_base(struct ground *g)
{
  struct lab *lab = g->s->lab;
  g_autofree char *path = lab_path(lab, "base");
  g_autofree char *bytes = NULL;
  g_autofree unsigned char *expected = g_malloc(g->base->size);
  gsize length;

  if (g->raw) {
    face_read(g->base, 0, expected, g->base->size);
    CHECK(g_file_get_contents(path, &bytes, &length, NULL), "cannot read %s", path);
    if (length != g->base->size || memcmp(bytes, expected, length) != 0)
      lab_fail(lab, "the base was changed");
  } else {
    pcow_image *base = test_open(path, 0, NULL);

    verify_handle(lab, base, g->base, "the base");
    OK(pcow_close(base));
  }
}

void ground_see(struct ground *g) { see_both(g->s); }

static void flush_all(struct subject *s) { subject_flush_range(s, 0, subject_size(s)); }

void ground_flush(struct ground *g) { flush_all(g->s); }

void ground_end(struct ground *g)
{
  if (g->s->map)
    see_both(g->s);
  scenario_end(g->s->lab);
  see_base(g);
  face_free(g->base);
}

/* ---- What a guest does ---- */

static void put_somewhere(struct subject *s, unsigned count)
{
  struct rng *rng = &s->lab->rng;
  uint64_t pages = subject_size(s) / PAGE;

  while (count--) {
    uint64_t page = rng_below(rng, pages), words = 1 + rng_below(rng, 12), at = page * PAGE;

    if (rng_chance(rng, 25)) {
      /* Some pages, which may lie in two units. */
      subject_put(s, at, least(1 + rng_below(rng, 3), pages - page) * PAGE);
    } else {
      at += rng_below(rng, 512 - words) * 8;
      subject_put(s, at, words * 8);
    }
  }
}


static void flush_some(struct subject *s)
{
  struct rng *rng = &s->lab->rng;
  uint64_t pages = subject_size(s) / PAGE, page = rng_below(rng, pages);

  if (rng_chance(rng, 40))
    flush_all(s);
  else
    subject_flush_range(s, page * PAGE + rng_below(rng, 2) * 64,
                        (1 + rng_below(rng, pages - page)) * PAGE - 64);
}

static void flush_new(struct lab *lab)
{
  struct ground g = ground_over(lab, 4 * UNIT, 4 * UNIT, 4, PCOW_THIN_DEFAULT);

  for (unsigned i = 0; i < 3; i++) {
    put_somewhere(g.s, 4);
    flush_some(g.s);
  }
  put_somewhere(g.s, 2);
  if (rng_chance(&lab->rng, 50))
    subject_unmap(g.s);
  ground_end(&g);
}

/* The same pages again and again: they are handed over, and then stores reach the file by themselves. */
static void flush_again(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 0, PCOW_THIN_DEFAULT);
  uint64_t page = rng_below(&lab->rng, 12), pages[] = { page, page + 1, 14 + rng_below(&lab->rng, 3) };

  for (unsigned i = 0; i < 4; i++) {
    for (unsigned k = 0; k < G_N_ELEMENTS(pages); k++)
      if (i < 2 || rng_chance(&lab->rng, 70))
        subject_put(g.s, pages[k] * PAGE + rng_below(&lab->rng, 450) * 8, 8 * (1 + rng_below(&lab->rng, 20)));
    lab_acknowledged(lab);
    if (rng_chance(&lab->rng, 70))
      flush_all(g.s);
    else
      subject_flush_range(g.s, pages[i % 3] * PAGE, PAGE);
  }
  subject_put(g.s, page * PAGE, 64);
  lab_acknowledged(lab);
  if (rng_chance(&lab->rng, 50))
    subject_unmap(g.s);
  ground_end(&g);
}

/* Nothing beneath: pages are the file's from the first store on. */
static void flush_thin(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, (unsigned)rng_below(&lab->rng, 6));

  subject_map_flush(s, rng_chance(&lab->rng, 50) ? PCOW_THIN_NATIVE : PCOW_THIN_GUARDED);
  for (unsigned i = 0; i < 3; i++) {
    put_somewhere(s, 3);
    lab_acknowledged(lab);
    flush_some(s);
  }
  put_somewhere(s, 2);
  lab_acknowledged(lab);
  see_both(s);
  scenario_end(lab);
}

static void flush_snapshot(struct lab *lab)
{
  struct ground g = ground_over(lab, 3 * UNIT, 2 * UNIT + 3 * PAGE, 6, PCOW_THIN_DEFAULT);

  put_somewhere(g.s, 3);
  flush_some(g.s);
  put_somewhere(g.s, 3);
  subject_snapshot(g.s, "one");
  put_somewhere(g.s, 3);
  flush_some(g.s);
  if (rng_chance(&lab->rng, 50))
    subject_snapshot(g.s, "two");
  put_somewhere(g.s, 2);
  subject_delete(g.s, "one");
  put_somewhere(g.s, 2);
  flush_some(g.s);
  ground_end(&g);
}

static void change_beside(struct subject *s)
{
  struct rng *rng = &s->lab->rng;
  uint64_t pages = subject_size(s) / PAGE, page = rng_below(rng, pages);
  uint64_t n = least(pages - page, 1 + rng_below(rng, 4));

  switch (rng_below(rng, 6)) {
  case 0:
    subject_discard(s, page * PAGE, n * PAGE);
    break;
  case 1:
    subject_zero(s, page * PAGE, n * PAGE, rng_below(rng, 2) ? PCOW_ZERO_KEEP_SPACE : 0);
    break;
  case 2:
    subject_flush(s);
    break;
  case 3:
    OK(pcow_mark_dirty(s->map, page * PAGE, n * PAGE));
    break;
  default:
    subject_scatter(s, 1);
  }
}

static void flush_beside(struct lab *lab)
{
  struct ground g = ground_over(lab, 3 * UNIT, 3 * UNIT, 4, PCOW_THIN_DEFAULT);

  for (unsigned i = 0; i < 5; i++) {
    put_somewhere(g.s, 2);
    change_beside(g.s);
    put_somewhere(g.s, 1);
    if (rng_chance(&lab->rng, 60))
      flush_some(g.s);
  }
  ground_end(&g);
}

static void flush_grow(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 3 * UNIT, 8, PCOW_THIN_DEFAULT);

  put_somewhere(g.s, 3);
  subject_resize(g.s, 3 * UNIT + PAGE);
  put_somewhere(g.s, 4);
  flush_some(g.s);
  put_somewhere(g.s, 2);
  ground_end(&g);
}

/* A flush finds the file system full, at any of its steps, and is repeated when there is space. */
static void flush_nospace(struct lab *lab)
{
  struct ground g = ground_over(lab, 3 * UNIT, 3 * UNIT, 3, PCOW_THIN_GUARDED);

  for (unsigned i = 0; i < 3; i++) {
    put_somewhere(g.s, 4);
    kernel_take_space(g.s->path, 1 + (unsigned)rng_below(&lab->rng, 5));
    flush_all(g.s);
    kernel_take_space(g.s->path, 0);
    see_both(g.s);
    if (rng_chance(&lab->rng, 30))
      put_somewhere(g.s, 1);
    if (rng_chance(&lab->rng, 80))
      flush_all(g.s);
  }
  ground_end(&g);
}

/* ---- Threads ---- */

struct storing {
  struct subject *s;
  unsigned number, stores;
  struct rng rng;
  pthread_t thread;
};

/* Words of its own, on a few pages that all share and flush, or not. */
static void *store_thread(void *opaque)
{
  struct storing *t = opaque;

  for (unsigned i = 0; i < t->stores; i++) {
    uint64_t page = 12 + rng_below(&t->rng, 8);
    uint64_t word = rng_below(&t->rng, PAGE / 8 / THREADS) * THREADS + t->number;
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
  lab_doing(s->lab, "%u threads store to %s and flush", THREADS, s->name);
}

static void threads_end(struct subject *s, struct storing *t)
{
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join(t[i].thread, NULL);
  s->lab->threads = false;
}

static void flush_threads(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 2, PCOW_THIN_DEFAULT);
  struct storing t[THREADS];

  threads_begin(g.s, t, 15);
  threads_end(g.s, t);
  ground_end(&g);
}

static void flush_snapshot_live(struct lab *lab)
{
  struct ground g = ground_over(lab, 2 * UNIT, 2 * UNIT, 2, PCOW_THIN_DEFAULT);
  struct storing t[THREADS];

  threads_begin(g.s, t, 15);
  subject_snapshot(g.s, "one");
  verify_snapshot(g.s, "one");
  subject_snapshot(g.s, "two");
  verify_snapshot(g.s, "two");
  subject_delete(g.s, "one");
  threads_end(g.s, t);
  ground_end(&g);
}

const struct scenario scenarios_flush[] = {
  { "flush-new", "stores to lower pages, flushes of ranges", flush_new, false },
  { "flush-again", "pages that are flushed again are handed over", flush_again, false },
  { "flush-thin", "a flush-durable map over nothing", flush_thin, false },
  { "flush-snapshot", "snapshots of a flush-durable map", flush_snapshot, false },
  { "flush-beside", "writes, discards and syncs beside stores", flush_beside, false },
  { "flush-grow", "a flush-durable map grows", flush_grow, false },
  { "flush-nospace", "a flush fails for lack of space, and is repeated", flush_nospace, false },
  { "flush-threads", "several threads store and flush", flush_threads, false },
  { "flush-snapshot-live", "snapshots while threads store and flush", flush_snapshot_live, false },
  { NULL, NULL, NULL, false },
};
