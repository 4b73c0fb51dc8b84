/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finds the choices that a power cut has and builds one state of them. Words that a store did not change
 * make no difference and are no choice. The hash of a state is the sum of its lines' hashes, so that a
 * state costs what is pending, and not what the files hold, until it is known to be new.
 */
#include "mediachoice.h"

#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define RUN_PAGES 256u

/* ---- Choices ---- */

static void choice_clear(gpointer data)
{
  struct choice *c = data;

  if (c->words)
    g_array_unref(c->words);
  g_array_unref(c->stops);
}

static struct choice choice_new(unsigned file, uint64_t line)
{
  struct choice c = { .file = file, .line = line, .wholes = 1 };
  struct stop none = { .whole = true };

  c.words = g_array_new(FALSE, FALSE, sizeof(struct word));
  c.stops = g_array_new(FALSE, FALSE, sizeof(struct stop));
  g_array_append_val(c.stops, none);
  return c;
}

static void add_stop(struct choice *c, unsigned words, bool whole, uint64_t number)
{
  struct stop s = { .words = words, .whole = whole, .number = number };

  g_array_append_val(c->stops, s);
  c->wholes += whole;
}

static struct choice line_choice(unsigned file, const struct media_file *f, const struct line *l)
{
  struct choice c = choice_new(file, l->number);
  uint64_t offset = l->number << f->line_shift;
  const struct page *p = g_hash_table_lookup(f->pages, media_key(offset / MEDIA_PAGE));
  uint8_t now[MEDIA_LINE_MAX], next[MEDIA_LINE_MAX];
  unsigned length = 1u << f->line_shift;

  memcpy(now, p->durable + offset % MEDIA_PAGE, length);
  for (guint i = 0; i < l->events->len; i++) {
    const struct event *e = g_ptr_array_index(l->events, i);
    unsigned before = c.words->len;

    memcpy(next, now, length);
    memcpy(next + e->first, e->bytes, e->length);
    for (unsigned at = 0; at < length; at += 8) {
      struct word w = { .offset = (uint16_t)at };

      if (!memcmp(now + at, next + at, 8))
        continue;
      if (c.words->len > before && !e->punch)
        add_stop(&c, c.words->len, false, e->number);
      memcpy(&w.value, next + at, 8);
      g_array_append_val(c.words, w);
    }
    if (c.words->len > before)
      add_stop(&c, c.words->len, true, e->number);
    memcpy(now, next, length);
  }
  return c;
}

static struct choice size_choice(unsigned file, const struct media_file *f)
{
  struct choice c = choice_new(file, UINT64_MAX);

  for (guint i = 0; i < f->growths->len; i++)
    add_stop(&c, 0, true, g_array_index(f->growths, struct growth, i).number);
  return c;
}

static gint compare_choices(gconstpointer a, gconstpointer b)
{
  const struct choice *x = a, *y = b;

  if ((x->line == UINT64_MAX) != (y->line == UINT64_MAX))
    return x->line == UINT64_MAX ? 1 : -1;
  if (x->file != y->file)
    return x->file < y->file ? -1 : 1;
  return x->line < y->line ? -1 : x->line > y->line;
}

GArray *choices_find(const struct media *m)
{
  GArray *choices = g_array_new(FALSE, FALSE, sizeof(struct choice));

  g_array_set_clear_func(choices, choice_clear);
  for (guint i = 0; i < m->files->len; i++) {
    const struct media_file *f = g_ptr_array_index(m->files, i);
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, f->lines);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
      struct choice c = line_choice(i, f, value);

      if (c.stops->len > 1)
        g_array_append_val(choices, c);
      else
        choice_clear(&c);
    }
    if (f->growths->len) {
      struct choice c = size_choice(i, f);

      g_array_append_val(choices, c);
    }
  }
  g_array_sort(choices, compare_choices);
  return choices;
}

uint64_t choices_product(const GArray *choices, bool whole)
{
  uint64_t product = 1;

  for (guint i = 0; i < choices->len; i++) {
    const struct choice *c = &g_array_index(choices, struct choice, i);

    if (__builtin_mul_overflow(product, whole ? c->wholes : c->stops->len, &product))
      return UINT64_MAX;
  }
  return product;
}

unsigned media_pending(const struct media *m)
{
  g_autoptr(GArray) choices = choices_find(m);

  return choices->len;
}

uint64_t media_state_count(const struct media *m)
{
  g_autoptr(GArray) choices = choices_find(m);

  return choices_product(choices, false);
}

/* ---- Content ---- */

/* Of LENGTH bytes at OFFSET: the same in whatever lines they were stored. Zeros: 0. */
static uint64_t hash_bytes(unsigned file, uint64_t offset, const uint8_t *bytes, unsigned length)
{
  uint64_t sum = 0;

  for (unsigned at = 0; at < length; at += 64) {
    uint64_t words[8], h = test_mix(offset + at + ((uint64_t)file << 58)), any = 0;

    memcpy(words, bytes + at, 64);
    for (unsigned i = 0; i < 8; i++) {
      any |= words[i];
      h = (h ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15);
      h ^= h >> 29;
    }
    sum += any ? test_mix(h) : 0;
  }
  return sum;
}

static uint64_t state_size(const struct run_states *r, unsigned file)
{
  const struct state_file *sf = &r->files[file];
  unsigned stop = sf->size_choice == G_MAXUINT ? 0 : r->picks[sf->size_choice].stop;

  return stop ? g_array_index(sf->file->growths, struct growth, stop - 1).size : sf->file->durable_size;
}

/* Makes LINE, which is as it was durable, what the state has. */
static void apply(const struct choice *c, const struct pick *pick, uint8_t *line)
{
  unsigned words = stop_at(c, pick->stop)->words;

  for (unsigned i = 0; i < words; i++) {
    const struct word *w = &g_array_index(c->words, struct word, i);

    memcpy(line + w->offset, &w->value, 8);
  }
  for (uint64_t mask = pick->mask; mask; mask &= mask - 1) {
    const struct word *w = &g_array_index(c->words, struct word, words + (unsigned)__builtin_ctzll(mask));

    memcpy(line + w->offset, &w->value, 8);
  }
}

static struct state_page *page_of(const struct state_file *sf, uint64_t number)
{
  unsigned low = 0, high = sf->pages->len;

  while (low < high) {
    unsigned mid = (low + high) / 2;

    if (g_array_index(sf->pages, struct state_page, mid).number < number)
      low = mid + 1;
    else
      high = mid;
  }
  return &g_array_index(sf->pages, struct state_page, low);
}

static gint compare_pages(gconstpointer a, gconstpointer b)
{
  const struct state_page *x = a, *y = b;

  return x->number < y->number ? -1 : x->number > y->number;
}

static bool is_zero(const uint8_t *page)
{
  return page[0] == 0 && memcmp(page, page + 1, MEDIA_PAGE - 1) == 0;
}

/* The hash of what is not pending below each length. */
static void hash_bases(struct run_states *r, unsigned file)
{
  struct state_file *sf = &r->files[file];
  guint sizes = sf->file->growths->len + 1;

  sf->bases = g_new0(uint64_t, sizes);
  for (guint s = 0; s < sizes; s++) {
    uint64_t size = s ? g_array_index(sf->file->growths, struct growth, s - 1).size : sf->file->durable_size;

    sf->bases[s] = test_mix(size ^ ((uint64_t)file << 56));
    for (guint i = 0; i < sf->pages->len; i++) {
      const struct state_page *p = &g_array_index(sf->pages, struct state_page, i);
      uint64_t at = p->number * MEDIA_PAGE;

      if (at >= size)
        break;
      if (!p->zero)
        sf->bases[s] += hash_bytes(file, at, p->durable, MEDIA_PAGE);
      for (unsigned c = p->first; c < p->end; c++) {
        unsigned length = 1u << sf->file->line_shift;
        uint64_t offset = choice_at(r, c)->line << sf->file->line_shift;

        sf->bases[s] -= hash_bytes(file, offset, p->durable + offset % MEDIA_PAGE, length);
      }
    }
  }
}

void build_begin(struct run_states *r, const char *dir)
{
  r->file_count = r->media->files->len;
  r->files = g_new0(struct state_file, r->file_count);
  for (unsigned i = 0; i < r->file_count; i++) {
    struct state_file *sf = &r->files[i];
    GHashTableIter iter;
    gpointer value;

    sf->file = g_ptr_array_index(r->media->files, i);
    sf->path = g_build_filename(dir, sf->file->name, NULL);
    sf->size_choice = G_MAXUINT;
    sf->pages = g_array_new(FALSE, FALSE, sizeof(struct state_page));
    g_hash_table_iter_init(&iter, sf->file->pages);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
      const struct page *page = value;
      struct state_page p = { .number = page->number, .durable = page->durable };

      p.zero = is_zero(p.durable);
      g_array_append_val(sf->pages, p);
    }
    g_array_sort(sf->pages, compare_pages);
  }
  for (unsigned i = 0; i < r->choices->len; i++) {
    const struct choice *c = choice_at(r, i);
    struct state_file *sf = &r->files[c->file];
    struct state_page *p;

    if (c->line == UINT64_MAX) {
      sf->size_choice = i;
      continue;
    }
    r->lines = i + 1;
    p = page_of(sf, (c->line << sf->file->line_shift) / MEDIA_PAGE);
    if (!p->end)
      p->first = i;
    p->end = i + 1;
  }
  for (unsigned i = 0; i < r->file_count; i++)
    hash_bases(r, i);
}

void build_end(struct run_states *r)
{
  for (unsigned i = 0; i < r->file_count; i++) {
    g_array_unref(r->files[i].pages);
    g_free(r->files[i].path);
    g_free(r->files[i].bases);
  }
  g_free(r->files);
}

/* ---- One state ---- */

static void describe(struct run_states *r)
{
  struct media_state *s = &r->state;

  s->hash = 0;
  s->kept = 0;
  for (unsigned i = 0; i < r->file_count; i++) {
    const struct state_file *sf = &r->files[i];

    s->hash += sf->bases[sf->size_choice == G_MAXUINT ? 0 : r->picks[sf->size_choice].stop];
    s->kept += sf->size_choice != G_MAXUINT && r->picks[sf->size_choice].stop;
  }
  for (unsigned i = 0; i < r->lines; i++) {
    const struct choice *c = choice_at(r, i);
    const struct media_file *f = r->files[c->file].file;
    uint64_t offset = c->line << f->line_shift;
    uint8_t line[MEDIA_LINE_MAX];

    if (offset >= state_size(r, c->file))
      continue;
    memcpy(line, page_of(&r->files[c->file], offset / MEDIA_PAGE)->durable + offset % MEDIA_PAGE,
           1u << f->line_shift);
    apply(c, &r->picks[i], line);
    s->hash += hash_bytes(c->file, offset, line, 1u << f->line_shift);
    s->kept += r->picks[i].stop || r->picks[i].mask;
  }
}

static void write_run(int fd, const struct iovec *run, unsigned count, uint64_t first, uint64_t size)
{
  struct iovec last[RUN_PAGES];
  uint64_t at = first * MEDIA_PAGE, length = count * (uint64_t)MEDIA_PAGE;

  memcpy(last, run, count * sizeof(*run));
  if (at + length > size) {
    last[count - 1].iov_len -= at + length - size;
    length = size - at;
  }
  CHECK(SYS(pwritev(fd, last, (int)count, (off_t)at)) == (long)length, "a short write of a state");
}

static void build_file(const struct run_states *r, unsigned file)
{
  const struct state_file *sf = &r->files[file];
  uint64_t size = state_size(r, file), first = 0;
  int fd = (int)SYS(open(sf->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  static uint8_t pages[RUN_PAGES][MEDIA_PAGE];
  struct iovec run[RUN_PAGES];
  unsigned count = 0;

  SYS(ftruncate(fd, (off_t)size));
  for (guint i = 0; i < sf->pages->len; i++) {
    const struct state_page *p = &g_array_index(sf->pages, struct state_page, i);
    const uint8_t *content = p->durable;
    bool zero = p->zero;

    if (p->number * MEDIA_PAGE >= size)
      break;
    if (count && (count == RUN_PAGES || p->number != first + count)) {
      write_run(fd, run, count, first, size);
      count = 0;
    }
    if (p->end) {
      uint8_t *changed = pages[count];

      memcpy(changed, content, MEDIA_PAGE);
      for (unsigned c = p->first; c < p->end; c++)
        apply(choice_at(r, c), &r->picks[c],
              changed + (choice_at(r, c)->line << sf->file->line_shift) % MEDIA_PAGE);
      zero = is_zero(changed);
      content = changed;
    }
    if (zero)
      continue;
    if (!count)
      first = p->number;
    run[count++] = (struct iovec){ (void *)(uintptr_t)content, MEDIA_PAGE };
  }
  if (count)
    write_run(fd, run, count, first, size);
  close(fd);
}

bool build(struct run_states *r, const char *how)
{
  uint64_t *key;

  if (r->result || !r->left)
    return false;
  describe(r);
  if (g_hash_table_contains(r->seen, &r->state.hash))
    return true;
  key = g_new(uint64_t, 1);
  *key = r->state.hash;
  g_hash_table_add(r->seen, key);
  for (unsigned i = 0; i < r->file_count; i++)
    build_file(r, i);
  r->state.how = how;
  r->result = r->fn(r->opaque, &r->state);
  r->state.number++;
  r->left--;
  return !r->result && r->left;
}
