/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which states a power cut can leave. Each pending line is a choice: how many of the words that were
 * stored to it, in order, reached the media. So is each file's length. All combinations are built when
 * they are few enough, else the telling ones and a sample.
 */
#include "mediachoice.h"

#include <string.h>

static void pick_all(struct run_states *r, bool all)
{
  for (unsigned i = 0; i < r->choices->len; i++)
    r->picks[i] = (struct pick){ .stop = all ? choice_at(r, i)->stops->len - 1 : 0 };
}

/* The next combination, as in counting; false after the last. */
static bool count_up(struct run_states *r, bool whole)
{
  for (unsigned i = 0; i < r->choices->len; i++) {
    const struct choice *c = choice_at(r, i);
    unsigned *stop = &r->picks[i].stop;

    do
      (*stop)++;
    while (*stop < c->stops->len && whole && !stop_at(c, *stop)->whole);
    if (*stop < c->stops->len)
      return true;
    *stop = 0;
  }
  return false;
}

static void each_combination(struct run_states *r, bool whole)
{
  pick_all(r, false);
  while (build(r, "each") && count_up(r, whole))
    ;
}

/* Everything up to store NUMBER. */
static void pick_before(struct run_states *r, uint64_t number)
{
  for (unsigned i = 0; i < r->choices->len; i++) {
    const struct choice *c = choice_at(r, i);
    unsigned stop = 0;

    for (unsigned s = 1; s < c->stops->len && stop_at(c, s)->number <= number; s++)
      stop = s;
    r->picks[i] = (struct pick){ .stop = stop };
  }
}

static gint compare_numbers(gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return x < y ? -1 : x > y;
}

/* The state of each moment since the last fence, or of MOST of them. */
static void each_moment(struct run_states *r, unsigned most)
{
  g_autoptr(GArray) numbers = g_array_new(FALSE, FALSE, sizeof(uint64_t));

  for (unsigned i = 0; i < r->choices->len; i++) {
    const struct choice *c = choice_at(r, i);

    for (unsigned s = 1; s < c->stops->len; s++)
      if (stop_at(c, s)->whole)
        g_array_append_val(numbers, stop_at(c, s)->number);
  }
  g_array_sort(numbers, compare_numbers);
  for (unsigned i = 0; i < MIN(most, numbers->len); i++) {
    guint at = most < numbers->len ? (guint)rng_below(&r->rng, numbers->len) : i;

    pick_before(r, g_array_index(numbers, uint64_t, at));
    if (!build(r, "prefixes"))
      return;
  }
}

static bool same_page(const struct run_states *r, unsigned a, unsigned b)
{
  const struct choice *x = choice_at(r, a), *y = choice_at(r, b);
  unsigned shift = 12 - r->files[x->file].file->line_shift;

  return x->file == y->file && x->line != UINT64_MAX && y->line != UINT64_MAX &&
         x->line >> shift == y->line >> shift;
}

/* Random choices: first one of each page (a page of metadata has few lines, one of data many), then
 * others. */
static GArray *shuffled(struct run_states *r, bool one_a_page)
{
  GArray *order = g_array_new(FALSE, FALSE, sizeof(unsigned));
  unsigned n = r->choices->len, firsts = 0;

  for (unsigned i = 0; i < n; i++) {
    unsigned end = i + 1, chosen;

    while (end < n && same_page(r, i, end))
      end++;
    chosen = i + (unsigned)rng_below(&r->rng, end - i);
    g_array_insert_val(order, firsts, chosen);
    firsts++;
    for (unsigned j = i; j < end && !one_a_page; j++)
      if (j != chosen)
        g_array_append_val(order, j);
    i = end - 1;
  }
  for (unsigned part = 0; part < 2; part++) {
    unsigned from = part ? firsts : 0, to = part ? order->len : firsts;

    for (unsigned i = to; i > from + 1; i--) {
      unsigned *a = &g_array_index(order, unsigned, i - 1);
      unsigned *b = &g_array_index(order, unsigned, from + rng_below(&r->rng, i - from));
      unsigned swap = *a;

      *a = *b;
      *b = swap;
    }
  }
  return order;
}

/* All choices but one (KEEP), or one alone; PAGES: the same with whole pages. */
static void each_one(struct run_states *r, bool keep, bool pages, unsigned most, const char *how)
{
  g_autoptr(GArray) order = shuffled(r, pages);

  for (unsigned i = 0; i < MIN(most, order->len); i++) {
    unsigned at = g_array_index(order, unsigned, i);

    pick_all(r, keep);
    for (unsigned j = 0; j < r->choices->len; j++)
      if (j == at || (pages && same_page(r, at, j)))
        r->picks[j].stop = keep ? 0 : choice_at(r, j)->stops->len - 1;
    if (!build(r, how))
      return;
  }
}

static struct pick random_pick(struct run_states *r, const struct choice *c, bool torn)
{
  struct pick pick = { .stop = (unsigned)rng_below(&r->rng, c->stops->len) };
  unsigned next;

  while (!stop_at(c, pick.stop)->whole)
    pick.stop++;
  /* Any words of the store that comes next. */
  for (next = pick.stop + 1; torn && next < c->stops->len && !stop_at(c, next)->whole;)
    next++;
  if (torn && next < c->stops->len && next > pick.stop + 1) {
    unsigned words = stop_at(c, next)->words - stop_at(c, pick.stop)->words;

    pick.mask = rng_next(&r->rng) & (words == 64 ? ~UINT64_C(0) : (UINT64_C(1) << words) - 1);
  }
  return pick;
}

/* Whole pages, or lines, that are there or not, with one probability a state; some of them torn. */
static void sample(struct run_states *r, bool torn)
{
  unsigned percent = 1 + (unsigned)rng_below(&r->rng, 99);
  unsigned between = (unsigned)rng_below(&r->rng, 3) * 15;
  bool pages = rng_chance(&r->rng, 40);
  bool there = false;

  for (unsigned i = 0; i < r->choices->len; i++) {
    const struct choice *c = choice_at(r, i);

    if (!pages || !i || !same_page(r, i - 1, i))
      there = rng_chance(&r->rng, percent);
    r->picks[i] = (struct pick){ .stop = there ? c->stops->len - 1 : 0 };
    if (rng_chance(&r->rng, between + (torn ? 10 : 0)))
      r->picks[i] = random_pick(r, c, torn);
  }
}

static void telling_states(struct run_states *r, unsigned limit)
{
  unsigned part = MAX(limit / 6, 1);

  pick_all(r, true);
  if (!build(r, "all"))
    return;
  pick_all(r, false);
  if (!build(r, "none"))
    return;
  each_one(r, false, true, part, "one page");
  each_one(r, true, true, part, "all but one page");
  each_one(r, false, false, part, "one");
  each_one(r, true, false, part, "all but one");
  each_moment(r, part);
  /* Some are seen already, and there may be no others. */
  for (unsigned tries = 0; tries < 4 * limit; tries++) {
    bool torn = tries % 3 == 0;

    sample(r, torn);
    if (!build(r, torn ? "torn sample" : "sample"))
      return;
  }
}

int media_states(struct media *m, const char *dir, unsigned limit, media_state_fn fn, void *opaque)
{
  struct run_states r = { .media = m, .fn = fn, .opaque = opaque, .left = MAX(limit, 1) };

  g_rec_mutex_lock(&m->lock);
  r.rng.state = test_mix(m->seed + test_mix(++m->asked));
  r.choices = choices_find(m);
  r.picks = g_new0(struct pick, r.choices->len + 1);
  r.seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  r.state.pending = r.choices->len;
  build_begin(&r, dir);

  if (choices_product(r.choices, false) <= limit)
    each_combination(&r, false);
  else if (choices_product(r.choices, true) <= limit / 2)
    each_combination(&r, true);
  if (r.left && choices_product(r.choices, false) > limit)
    telling_states(&r, r.left);

  build_end(&r);
  g_hash_table_unref(r.seen);
  g_free(r.picks);
  g_array_unref(r.choices);
  g_rec_mutex_unlock(&m->lock);
  return r.result;
}
