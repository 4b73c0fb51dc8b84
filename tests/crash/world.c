/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See world.h. Pages are shared, so that a copy of a world costs its number of pages.
 */
#include "world.h"

#include <inttypes.h>
#include <string.h>

#define WORDS (PCOW_PAGE_SIZE / 8)

/* ---- Patterns ---- */

uint64_t pattern_word(uint64_t version, uint64_t offset)
{
  return version << 32 | (offset / 8 & UINT32_MAX);
}

void pattern_fill(void *buffer, uint64_t version, uint64_t offset, uint64_t length)
{
  unsigned char *to = buffer;

  for (uint64_t at = 0; at < length; at++) {
    uint64_t word = pattern_word(version, offset + at);

    to[at] = (unsigned char)(word >> (offset + at) % 8 * 8);
  }
}

char *pattern_describe(uint64_t word)
{
  if (!word)
    return g_strdup("zeros");
  return g_strdup_printf("version %" PRIu64 " of 0x%" PRIx64, word >> 32, (word & UINT32_MAX) * 8);
}

/* ---- Pages ---- */

static struct page zero_page = { .holders = 1 };

static struct page *page_hold(struct page *p)
{
  if (p != &zero_page)
    g_atomic_int_inc(&p->holders);
  return p;
}

static void page_drop(struct page *p)
{
  if (p && p != &zero_page && g_atomic_int_dec_and_test(&p->holders))
    g_free(p);
}

/* Takes over nothing; zeros share one page. */
static struct page *page_make(const unsigned char *bytes)
{
  struct page *p;

  if (!bytes[0] && !memcmp(bytes, bytes + 1, PCOW_PAGE_SIZE - 1))
    return &zero_page;
  p = g_malloc(sizeof *p);
  p->holders = 1;
  memcpy(p->bytes, bytes, PCOW_PAGE_SIZE);
  return p;
}

static void page_set(struct page **to, const unsigned char *bytes)
{
  page_drop(*to);
  *to = page_make(bytes);
}

/* ---- Cells ---- */

static struct later *cell_add(struct cell *c)
{
  if (c->count == c->space) {
    c->space = c->space ? c->space * 2 : 4;
    c->later = g_realloc_n(c->later, c->space, sizeof *c->later);
  }
  memset(&c->later[c->count], 0, sizeof *c->later);
  return &c->later[c->count++];
}

static void cell_forget(struct cell *c)
{
  for (unsigned i = 0; i < c->count; i++)
    page_drop(c->later[i].page);
  c->count = 0;
}

static void cell_free(struct cell *c)
{
  cell_forget(c);
  g_free(c->later);
  page_drop(c->durable);
}

static void cell_copy(struct cell *to, const struct cell *from)
{
  to->durable = page_hold(from->durable);
  to->later = NULL;
  to->count = to->space = 0;
  for (unsigned i = 0; i < from->count; i++) {
    struct later *l = cell_add(to);

    *l = from->later[i];
    if (l->page)
      page_hold(l->page);
  }
}

static void word_put(unsigned char *bytes, uint32_t word, uint64_t value)
{
  memcpy(bytes + word * 8, &value, 8);
}

static uint64_t word_get(const unsigned char *bytes, uint32_t word)
{
  uint64_t value;

  memcpy(&value, bytes + word * 8, 8);
  return value;
}

/* What is seen now. WORDS: with what was stored word by word. */
static void cell_latest(const struct cell *c, unsigned char *bytes, bool words)
{
  memcpy(bytes, c->durable->bytes, PCOW_PAGE_SIZE);
  for (unsigned i = 0; i < c->count; i++) {
    const struct later *l = &c->later[i];

    if (l->page)
      memcpy(bytes, l->page->bytes, PCOW_PAGE_SIZE);
    else if (l->stored && words)
      word_put(bytes, l->word, l->value);
  }
}

static void cell_settle(struct cell *c, bool words)
{
  unsigned char bytes[PCOW_PAGE_SIZE];
  unsigned kept = 0, from = 0;

  if (!c->count)
    return;
  /* A page that was written after a word has it. */
  for (unsigned i = 0; i < c->count; i++)
    if (c->later[i].page)
      from = i + 1;
  cell_latest(c, bytes, words);
  page_set(&c->durable, bytes);
  for (unsigned i = 0; i < c->count; i++) {
    struct later l = c->later[i];

    page_drop(l.page);
    if (!l.page && !(l.stored && (words || i < from)))
      c->later[kept++] = l;
  }
  c->count = kept;
}

/* ---- Views ---- */

static uint64_t pages_of(uint64_t size) { return size / PAGE; }

struct face *face_new(uint64_t size)
{
  struct face *v = g_new0(struct face, 1);

  v->size = size;
  v->cells = g_new0(struct cell, pages_of(size));
  for (uint64_t i = 0; i < pages_of(size); i++)
    v->cells[i].durable = &zero_page;
  return v;
}

struct face *face_copy(const struct face *v)
{
  struct face *copy = g_new0(struct face, 1);

  copy->size = v->size;
  copy->cells = g_new(struct cell, pages_of(v->size));
  for (uint64_t i = 0; i < pages_of(v->size); i++)
    cell_copy(&copy->cells[i], &v->cells[i]);
  return copy;
}

struct face *face_frozen(const struct face *v)
{
  struct face *copy = face_copy(v);

  face_settle(copy, true);
  return copy;
}

void face_free(struct face *v)
{
  if (!v)
    return;
  for (uint64_t i = 0; i < pages_of(v->size); i++)
    cell_free(&v->cells[i]);
  g_free(v->cells);
  g_free(v);
}

void face_resize(struct face *v, uint64_t size)
{
  for (uint64_t i = pages_of(size); i < pages_of(v->size); i++)
    cell_free(&v->cells[i]);
  v->cells = g_renew(struct cell, v->cells, pages_of(size));
  for (uint64_t i = pages_of(v->size); i < pages_of(size); i++)
    v->cells[i] = (struct cell){ .durable = &zero_page };
  v->size = size;
}

/* DATA NULL: zeros. */
static void change(struct face *v, uint64_t offset, const unsigned char *data, uint64_t length)
{
  while (length) {
    struct cell *c = &v->cells[offset / PAGE];
    uint64_t within = offset % PAGE, n = MIN(length, PAGE - within);
    unsigned char bytes[PCOW_PAGE_SIZE];
    struct page *page;

    cell_latest(c, bytes, true);
    if (data)
      memcpy(bytes + within, data, n);
    else
      memset(bytes + within, 0, n);
    page = page_make(bytes);
    cell_add(c)->page = page;
    offset += n;
    length -= n;
    data = data ? data + n : NULL;
  }
}

void face_write(struct face *v, uint64_t offset, const void *data, uint64_t length)
{
  change(v, offset, data, length);
}

void face_zero(struct face *v, uint64_t offset, uint64_t length)
{
  change(v, offset, NULL, length);
}

void face_storing(struct face *v, uint64_t offset, uint64_t value)
{
  struct later *l = cell_add(&v->cells[offset / PAGE]);

  l->word = (uint32_t)(offset % PAGE / 8);
  l->value = value;
}

void face_stored(struct face *v, uint64_t offset, uint64_t value)
{
  struct cell *c = &v->cells[offset / PAGE];

  for (unsigned i = c->count; i > 0; i--) {
    struct later *l = &c->later[i - 1];

    if (!l->page && l->word == offset % PAGE / 8 && l->value == value) {
      l->stored = true;
      return;
    }
  }
}

/* The word is VALUE in the page, which others may share. */
static void page_put(struct page **page, uint32_t word, uint64_t value)
{
  unsigned char bytes[PCOW_PAGE_SIZE];

  memcpy(bytes, (*page)->bytes, PCOW_PAGE_SIZE);
  word_put(bytes, word, value);
  page_set(page, bytes);
}

void face_persisted(struct face *v, uint64_t offset, uint64_t length)
{
  for (uint64_t page = offset / PAGE; page * PAGE < offset + length; page++) {
    struct cell *c = &v->cells[page];
    unsigned kept = 0;

    for (unsigned i = 0; i < c->count; i++) {
      struct later l = c->later[i];
      uint64_t at = page * PAGE + l.word * 8;

      if (l.page || !l.stored || at < offset || at >= offset + length) {
        c->later[kept++] = l;
        continue;
      }
      /* Whatever the page was to become before, this word came after it. */
      page_put(&c->durable, l.word, l.value);
      for (unsigned k = 0; k < kept; k++)
        if (c->later[k].page)
          page_put(&c->later[k].page, l.word, l.value);
    }
    c->count = kept;
  }
}

void face_settle(struct face *v, bool words)
{
  for (uint64_t i = 0; i < pages_of(v->size); i++)
    cell_settle(&v->cells[i], words);
}

static const unsigned char *shown_page(const struct shown *shown, uint64_t page)
{
  return shown->data && !shown->data[page] ? zero_page.bytes : shown->bytes + page * PAGE;
}

void face_adopt(struct face *v, const struct shown *shown)
{
  for (uint64_t i = 0; i < pages_of(v->size); i++) {
    const unsigned char *found = shown_page(shown, i);

    cell_forget(&v->cells[i]);
    if (v->cells[i].durable->bytes != found && memcmp(v->cells[i].durable->bytes, found, PAGE) != 0)
      page_set(&v->cells[i].durable, found);
  }
}

void face_read(const struct face *v, uint64_t offset, void *buffer, uint64_t length)
{
  unsigned char bytes[PCOW_PAGE_SIZE], *to = buffer;

  for (uint64_t n; length; offset += n, length -= n, to += n) {
    n = MIN(length, PAGE - offset % PAGE);
    cell_latest(&v->cells[offset / PAGE], bytes, true);
    memcpy(to, bytes + offset % PAGE, n);
  }
}

static bool word_allowed(const struct cell *c, uint32_t word, uint64_t value)
{
  if (word_get(c->durable->bytes, word) == value)
    return true;
  for (unsigned i = 0; i < c->count; i++) {
    const struct later *l = &c->later[i];

    if (l->page ? word_get(l->page->bytes, word) == value : l->word == word && l->value == value)
      return true;
  }
  return false;
}

static void explain(const struct cell *c, uint64_t offset, uint64_t value, GString *why)
{
  uint32_t word = (uint32_t)(offset % PAGE / 8);
  g_autofree char *found = pattern_describe(value);
  g_autofree char *durable = pattern_describe(word_get(c->durable->bytes, word));

  g_string_append_printf(why, "the word at 0x%" PRIx64 " is %s; durable is %s", offset, found, durable);
  for (unsigned i = 0; i < c->count; i++) {
    const struct later *l = &c->later[i];
    g_autofree char *text = NULL;

    if (!l->page && l->word != word)
      continue;
    text = pattern_describe(l->page ? word_get(l->page->bytes, word) : l->value);
    g_string_append_printf(why, ", then written %s", text);
  }
}

bool face_allows(const struct face *v, const struct shown *shown, GString *why)
{
  for (uint64_t i = 0; i < pages_of(v->size); i++) {
    const struct cell *c = &v->cells[i];
    const unsigned char *found = shown_page(shown, i);

    if (c->durable->bytes == found || memcmp(c->durable->bytes, found, PAGE) == 0)
      continue;
    for (uint32_t w = 0; w < WORDS; w++)
      if (!word_allowed(c, w, word_get(found, w))) {
        if (why)
          explain(c, i * PAGE + w * 8, word_get(found, w), why);
        return false;
      }
  }
  return true;
}

uint64_t face_open_page(const struct face *v, struct rng *rng)
{
  uint64_t pages = pages_of(v->size), first = rng_below(rng, pages);

  for (uint64_t i = 0; i < pages; i++)
    if (v->cells[(first + i) % pages].count)
      return (first + i) % pages * PAGE;
  return first * PAGE;
}

/* ---- Worlds ---- */

static void snapshot_free(gpointer data)
{
  struct snapshot *s = data;

  face_free(s->face);
  g_free(s);
}

struct world *world_new(uint64_t size)
{
  struct world *w = g_new0(struct world, 1);

  w->label = g_strdup("as it was made");
  w->head = face_new(size);
  w->snapshots = g_ptr_array_new_with_free_func(snapshot_free);
  return w;
}

struct world *world_copy(const struct world *w, const char *label)
{
  struct world *copy = g_new0(struct world, 1);

  copy->label = g_strdup(label ? label : w->label);
  copy->head = face_copy(w->head);
  copy->snapshots = g_ptr_array_new_with_free_func(snapshot_free);
  for (unsigned i = 0; i < w->snapshots->len; i++) {
    const struct snapshot *s = g_ptr_array_index(w->snapshots, i);

    world_add(copy, s->name, face_copy(s->face));
  }
  return copy;
}

void world_free(struct world *w)
{
  if (!w)
    return;
  face_free(w->head);
  g_ptr_array_unref(w->snapshots);
  g_free(w->label);
  g_free(w);
}

struct snapshot *world_find(const struct world *w, const char *name)
{
  for (unsigned i = 0; i < w->snapshots->len; i++) {
    struct snapshot *s = g_ptr_array_index(w->snapshots, i);

    if (strcmp(s->name, name) == 0)
      return s;
  }
  return NULL;
}

void world_add(struct world *w, const char *name, struct face *view)
{
  struct snapshot *s = g_new0(struct snapshot, 1);

  g_strlcpy(s->name, name, sizeof s->name);
  s->face = view;
  g_ptr_array_add(w->snapshots, s);
}

void world_remove(struct world *w, const char *name)
{
  g_ptr_array_remove(w->snapshots, world_find(w, name));
}

/* ---- Expectations ---- */

struct expect *expect_new(struct world *w)
{
  struct expect *e = g_new0(struct expect, 1);

  expect_add(e, w);
  return e;
}

struct expect *expect_copy(const struct expect *e)
{
  struct expect *copy = g_new0(struct expect, 1);

  for (unsigned i = 0; i < e->count; i++)
    expect_add(copy, world_copy(e->worlds[i], NULL));
  return copy;
}

void expect_free(struct expect *e)
{
  for (unsigned i = 0; e && i < e->count; i++)
    world_free(e->worlds[i]);
  g_free(e);
}

void expect_add(struct expect *e, struct world *w)
{
  CHECK(e->count < WORLDS_MOST, "too many worlds");
  e->worlds[e->count++] = w;
}

void expect_choose(struct expect *e, struct world *w)
{
  for (unsigned i = 0; i < e->count; i++)
    if (e->worlds[i] != w)
      world_free(e->worlds[i]);
  e->worlds[0] = w;
  e->count = 1;
}
