/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compares two resolved ranges page by page; see compare.h. What can be told from the runs is not read.
 */
#include "compare.h"

#include "bits.h"
#include "error.h"

#include <string.h>

#define CHUNK_PAGES 64u

bool page_is_zero(const void *page)
{
  const unsigned char *p = page;

  return p[0] == 0 && memcmp(p, p + 1, PAGE_BYTES - 1) == 0;
}

/* True when both runs show the same bytes at PAGE and on, as far as both go. */
static bool runs_same(const struct run *a, const struct run *b, uint64_t page)
{
  if (a->kind != RUN_DATA || b->kind != RUN_DATA)
    return a->kind != RUN_DATA && b->kind != RUN_DATA;
  return a->layer->dev == b->layer->dev && a->layer->ino == b->layer->ino &&
         a->offset + ((page - a->page) << PAGE_SHIFT) == b->offset + ((page - b->page) << PAGE_SHIFT);
}

static int compare_bytes(const GArray *a, const GArray *b, uint64_t page, uint64_t count,
                         unsigned char *buffer, uint64_t first, uint64_t *different)
{
  unsigned char *other = buffer + CHUNK_PAGES * PAGE_BYTES;

  while (count) {
    uint64_t n = MIN(count, CHUNK_PAGES);
    int r = view_read(a, page << PAGE_SHIFT, buffer, n << PAGE_SHIFT);

    if (r == 0)
      r = view_read(b, page << PAGE_SHIFT, other, n << PAGE_SHIFT);
    if (r < 0)
      return r;
    for (uint64_t i = 0; i < n; i++)
      if (memcmp(buffer + (i << PAGE_SHIFT), other + (i << PAGE_SHIFT), PAGE_BYTES) != 0)
        bits_set(different, page + i - first, page + i - first + 1);
    page += n;
    count -= n;
  }
  return 0;
}

int compare_pages(const char *path, const GArray *a, const GArray *b, uint64_t first, uint64_t end,
                  const uint64_t *skip, uint64_t *different)
{
  g_autofree unsigned char *buffer = NULL;
  uint64_t page = first;

  if (first >= end)
    return 0;
  for (unsigned i = view_find(a, first), j = view_find(b, first); page < end;) {
    const struct run *x = &g_array_index(a, struct run, i);
    const struct run *y = &g_array_index(b, struct run, j);
    uint64_t stop = MIN(MIN(x->page + x->count, y->page + y->count), end);

    while (page < stop && !runs_same(x, y, page)) {
      uint64_t from = skip ? first + bits_find(skip, page - first, stop - first, false) : page;
      uint64_t to = skip ? first + bits_find(skip, from - first, stop - first, true) : stop;
      int r;

      if (!buffer)
        buffer = g_try_malloc(2 * CHUNK_PAGES * PAGE_BYTES);
      if (!buffer)
        return fail(ENOMEM, "%s: no memory to compare pages", path);
      r = compare_bytes(a, b, from, to - from, buffer, first, different);
      if (r < 0)
        return r;
      page = to;
    }
    page = stop;
    i += x->page + x->count == page;
    j += y->page + y->count == page;
  }
  return 0;
}
