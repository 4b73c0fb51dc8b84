/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The second reference: what a crash may leave of the head. Each word must be as it was when something made
 * it durable, or as it became at any time after that, and nothing else. So what the head was before each
 * change is kept, with the time at which the change came, until everything is durable.
 */
#include "model-world.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSIONS 48u
#define WORDS (PCOW_PAGE_SIZE / 8)
#define PIECE (1 * MIB)

struct version {
  struct model *content;
  uint32_t until;
};

/* What a word was within an operation: no version has it. */
struct between {
  uint64_t offset, value;
  uint32_t until;
};

struct durable {
  uint32_t clock, all; /* all: when everything was */
  struct version versions[VERSIONS];
  unsigned count;
  uint64_t pages;
  uint32_t *page;  /* when it was; by page */
  uint32_t **word; /* the same for single words of a page; NULL: none */
  struct between *between;
  size_t between_count, between_room;
};

static void forget(struct durable *d)
{
  while (d->count)
    model_free(d->versions[--d->count].content);
  for (uint64_t i = 0; i < d->pages; i++)
    free(d->word[i]);
  memset(d->word, 0, d->pages * sizeof *d->word);
  d->between_count = 0;
}

void durable_begin(struct world *w)
{
  struct durable *d = w->durable = test_alloc(sizeof *d);

  d->pages = w->size_max / PAGE;
  if (d->pages < w->head->size / PAGE)
    d->pages = w->head->size / PAGE;
  d->page = test_alloc(d->pages * sizeof *d->page);
  d->word = test_alloc(d->pages * sizeof *d->word);
}

void durable_end(struct world *w)
{
  forget(w->durable);
  free(w->durable->page);
  free(w->durable->word);
  free(w->durable->between);
  free(w->durable);
}

void durable_all(struct world *w)
{
  forget(w->durable);
  w->durable->all = w->durable->clock;
}

void durable_note(struct world *w)
{
  struct durable *d = w->durable;

  if (d->count == VERSIONS) {
    OK(pcow_sync(w->image));
    durable_all(w);
  }
  d->versions[d->count].content = model_copy(w->head);
  d->versions[d->count++].until = ++d->clock;
}

void durable_range(struct world *w, uint64_t offset, uint64_t length)
{
  struct durable *d = w->durable;
  uint64_t end = offset + length, at = (offset + 7) / 8 * 8;

  while (at + 8 <= end) {
    uint64_t page = at / PAGE;

    if (at % PAGE == 0 && end - at >= PAGE) {
      d->page[page] = d->clock;
      at += PAGE;
      continue;
    }
    if (!d->word[page])
      d->word[page] = test_alloc(WORDS * sizeof **d->word);
    d->word[page][at % PAGE / 8] = d->clock;
    at += 8;
  }
}

void durable_store(struct world *w, uint64_t offset, const uint64_t *value, unsigned words)
{
  struct durable *d = w->durable;
  const struct model *before = d->versions[d->count - 1].content;

  d->clock++;
  for (unsigned i = 0; i < words; i++, offset += 8) {
    uint64_t now, was;

    memcpy(&now, model_bytes(w->head, offset / PAGE) + offset % PAGE, 8);
    memcpy(&was, model_bytes(before, offset / PAGE) + offset % PAGE, 8);
    if (now == was || now == value[i])
      continue;
    if (d->between_count == d->between_room) {
      d->between_room = 2 * d->between_room + 64;
      d->between = realloc(d->between, d->between_room * sizeof *d->between);
      CHECK(d->between, "out of memory");
    }
    d->between[d->between_count++] = (struct between){ offset, now, d->clock };
  }
}

static bool may_be(const struct durable *d, uint64_t offset, uint64_t value)
{
  uint64_t page = offset / PAGE, word = offset % PAGE / 8;
  uint32_t since = d->all > d->page[page] ? d->all : d->page[page];

  if (d->word[page] && d->word[page][word] > since)
    since = d->word[page][word];
  for (unsigned i = d->count; i-- && d->versions[i].until > since;)
    if (memcmp(model_bytes(d->versions[i].content, page) + word * 8, &value, 8) == 0)
      return true;
  for (size_t i = d->between_count; i-- && d->between[i].until > since;)
    if (d->between[i].offset == offset && d->between[i].value == value)
      return true;
  return false;
}

void durable_compare(struct world *w, const char *name, pcow_image *image)
{
  static unsigned char buffer[PIECE];
  const struct model *c = w->head;

  for (uint64_t at = 0; at < c->size; at += PAGE) {
    const unsigned char *found = buffer + at % PIECE, *newest = model_bytes(c, at / PAGE);

    if (at % PIECE == 0)
      OK(pcow_pread(image, buffer, c->size - at < PIECE ? c->size - at : PIECE, at));
    for (unsigned i = 0; memcmp(found, newest, PAGE) != 0 && i < PAGE; i += 8) {
      uint64_t word;

      memcpy(&word, found + i, 8);
      if (memcmp(&word, newest + i, 8) == 0)
        continue;
      if (!may_be(w->durable, at + i, word)) {
        model_explain(c, found, at, PAGE, at + i);
        FAIL("%s has a word at 0x%" PRIx64 " that is older than what was made durable there, or was never "
             "there", name, at + i);
      }
      w->older++;
    }
  }
  w->compared++;
  w->bytes_compared += c->size;
}
