/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See model.h. Used by one thread.
 */
#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_page {
  unsigned users;
  unsigned char bytes[PCOW_PAGE_SIZE];
};

static const unsigned char zeros[PCOW_PAGE_SIZE];

struct model *model_new(uint64_t size)
{
  struct model *c = test_alloc(sizeof *c);

  CHECK(size % PAGE == 0, "the model is given a size of %" PRIu64, size);
  c->size = size;
  c->page = test_alloc(size / PAGE * sizeof(struct model_page *));
  return c;
}

static void page_drop(struct model_page *p)
{
  if (p && !--p->users)
    free(p);
}

struct model *model_copy(const struct model *c)
{
  struct model *copy = model_new(c->size);

  for (uint64_t i = 0; i < c->size / PAGE; i++)
    if ((copy->page[i] = c->page[i]))
      copy->page[i]->users++;
  return copy;
}

void model_free(struct model *c)
{
  if (!c)
    return;
  for (uint64_t i = 0; i < c->size / PAGE; i++)
    page_drop(c->page[i]);
  free(c->page);
  free(c);
}

void model_resize(struct model *c, uint64_t size)
{
  uint64_t before = c->size / PAGE, after = size / PAGE;

  CHECK(size && size % PAGE == 0, "the model is given a size of %" PRIu64, size);
  for (uint64_t i = after; i < before; i++)
    page_drop(c->page[i]);
  c->page = realloc(c->page, after * sizeof(struct model_page *));
  CHECK(c->page, "out of memory");
  for (uint64_t i = before; i < after; i++)
    c->page[i] = NULL;
  c->size = size;
}

/* The page's bytes, to be changed. */
static unsigned char *page_own(struct model *c, uint64_t page)
{
  struct model_page *p = c->page[page];

  if (!p || p->users > 1) {
    struct model_page *own = malloc(sizeof *own);

    CHECK(own, "out of memory");
    own->users = 1;
    memcpy(own->bytes, p ? p->bytes : zeros, PAGE);
    page_drop(p);
    c->page[page] = p = own;
  }
  return p->bytes;
}

void model_write(struct model *c, const void *data, uint64_t length, uint64_t offset)
{
  const unsigned char *from = data;

  CHECK(offset <= c->size && length <= c->size - offset, "the model is written beyond its end");
  while (length) {
    uint64_t within = offset % PAGE, count = PAGE - within < length ? PAGE - within : length;

    memcpy(page_own(c, offset / PAGE) + within, from, count);
    from += count;
    offset += count;
    length -= count;
  }
}

void model_zero(struct model *c, uint64_t length, uint64_t offset)
{
  CHECK(offset <= c->size && length <= c->size - offset, "the model is zeroed beyond its end");
  while (length) {
    uint64_t within = offset % PAGE, count = PAGE - within < length ? PAGE - within : length;

    if (count == PAGE) {
      page_drop(c->page[offset / PAGE]);
      c->page[offset / PAGE] = NULL;
    } else if (c->page[offset / PAGE]) {
      memset(page_own(c, offset / PAGE) + within, 0, count);
    }
    offset += count;
    length -= count;
  }
}

const unsigned char *model_bytes(const struct model *c, uint64_t page)
{
  return page < c->size / PAGE && c->page[page] ? c->page[page]->bytes : zeros;
}

bool model_is_zero(const struct model *c, uint64_t page)
{
  return memcmp(model_bytes(c, page), zeros, PAGE) == 0;
}

uint64_t model_differs(const struct model *c, const void *data, uint64_t length, uint64_t offset)
{
  const unsigned char *found = data;

  while (length) {
    uint64_t within = offset % PAGE, count = PAGE - within < length ? PAGE - within : length;
    const unsigned char *expected = model_bytes(c, offset / PAGE) + within;

    if (memcmp(expected, found, count) != 0) {
      while (*expected == *found) {
        expected++;
        found++;
        offset++;
      }
      return offset;
    }
    found += count;
    offset += count;
    length -= count;
  }
  return UINT64_MAX;
}

bool model_equal(const struct model *a, const struct model *b)
{
  uint64_t pages = (a->size > b->size ? a->size : b->size) / PAGE;

  for (uint64_t i = 0; i < pages; i++)
    if (model_bytes(a, i) != model_bytes(b, i) &&
        memcmp(model_bytes(a, i), model_bytes(b, i), PAGE) != 0)
      return false;
  return true;
}

static void print_bytes(const char *what, const unsigned char *bytes, uint64_t count)
{
  fprintf(stderr, "  %s:", what);
  for (uint64_t i = 0; i < count; i++)
    fprintf(stderr, " %02x", bytes[i]);
  fputc('\n', stderr);
}

void model_explain(const struct model *c, const void *data, uint64_t start, uint64_t length,
                     uint64_t offset)
{
  const unsigned char *found = data;
  uint64_t from = offset / 16 * 16 < start ? start : offset / 16 * 16;
  uint64_t count = start + length - from < 32 ? start + length - from : 32, wrong = 0;

  if (from % PAGE + count > PAGE)
    count = PAGE - from % PAGE;
  fprintf(stderr, "  at 0x%" PRIx64 " (page %" PRIu64 "), bytes from 0x%" PRIx64 ":\n", offset,
          offset / PAGE, from);
  print_bytes("expected", model_bytes(c, from / PAGE) + from % PAGE, count);
  print_bytes("found   ", found + (from - start), count);
  fprintf(stderr, "  wrong pages:");
  for (uint64_t at = start / PAGE; at * PAGE < start + length; at++) {
    uint64_t first = at * PAGE < start ? start : at * PAGE;
    uint64_t end = (at + 1) * PAGE > start + length ? start + length : (at + 1) * PAGE;

    if (model_differs(c, found + (first - start), end - first, first) == UINT64_MAX)
      continue;
    if (wrong++ < 24) {
      bool zero = end - first == PAGE && memcmp(found + (first - start), zeros, PAGE) == 0;

      fprintf(stderr, " %" PRIu64 "%s", at, zero ? "(found zeros)" : model_is_zero(c, at) ? "(zeros expected)" : "");
    }
  }
  fprintf(stderr, "; %" PRIu64 " in this piece of %" PRIu64 "\n", wrong, (length + PAGE - 1) / PAGE);
}
