/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How the head's pages get their content: copied from beneath, written, or emptied. Nothing here makes
 * a page present on the media; head_settle() does, after a fence.
 */
#include "headstate.h"

#include "error.h"
#include "order.h"

#include <string.h>

#define COPY_BYTES (256u << 10)

/* Pages of the data area that are not present become zeros: a crash may have left anything in them,
 * and presence over nothing must read as zeros. Once a session for a slot that is older than it. */
static int scrub(struct head *h, struct unit *u)
{
  struct store *st = h->store;
  uint64_t pages = st->geo.unit_pages;
  uint64_t data = head_page_offset(h, u, 0);

  for (uint64_t at = 0; !u->clean && (at = bits_find(u->present, at, pages, false)) < pages;) {
    uint64_t to = bits_find(u->present, at, pages, true);
    uint64_t from = persist_seek(st->p, data + at * PAGE_BYTES, data + to * PAGE_BYTES, true);

    if (from < data + to * PAGE_BYTES) {
      int ret = ORDERED("scrub 1.1", persist_clear(st->p, data + at * PAGE_BYTES, (to - at) * PAGE_BYTES));

      if (ret)
        return ret;
    }
    at = to;
  }
  u->clean = true;
  return 0;
}

/* Empties what a failed operation put into pages that did not become present. */
static void undo_pages(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  for (uint64_t at = first; (at = bits_find(u->present, at, end, false)) < end;) {
    uint64_t to = bits_find(u->present, at, end, true);

    if (persist_punch(h->store->p, head_page_offset(h, u, at), (to - at) * PAGE_BYTES))
      u->clean = false;
    at = to;
  }
}

/* Absent pages get space, and what lies beneath. */
static int copy_run(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  uint64_t unit_start = u->number * h->store->geo.unit_bytes;
  g_autofree uint8_t *buffer = g_try_malloc(MIN((end - first) * PAGE_BYTES, COPY_BYTES));
  bool allocated = false;
  int ret = 0;

  if (!buffer)
    return fail(ENOMEM, "%s: no memory to copy pages", h->store->path);
  while (ret == 0 && first < end) {
    uint64_t n = MIN((end - first) * PAGE_BYTES, COPY_BYTES), at = head_page_offset(h, u, first);

    ret = view_cache_read(h->cache, unit_start + first * PAGE_BYTES, buffer, n);
    if (ret == 0 && (allocated || persist_fill(h->store->p, at, buffer, n))) {
      if (!allocated)
        ret = persist_prepare(h->store->p, at, (end - first) * PAGE_BYTES);
      allocated = true;
      if (ret == 0)
        ret = persist_copy(h->store->p, at, buffer, n);
    }
    first += n / PAGE_BYTES;
  }
  return ret;
}

/* Absent pages get space. */
static int reserve_run(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  uint64_t at = head_page_offset(h, u, first), n = (end - first) * PAGE_BYTES;

  return persist_fill(h->store->p, at, NULL, n) ? persist_allocate(h->store->p, at, n) : 0;
}

/* Brings the content of absent pages [first, end) into the slot, run by run of what lies beneath.
 * Marks in TAKEN (bits of pages relative to FIRST) which ones are to become present. */
static int fetch(struct head *h, struct unit *u, view_cursor *lower, uint64_t first, uint64_t end,
                 unsigned flags, uint64_t *taken, uint64_t base, struct head_counts *counts)
{
  uint64_t unit_first = u->number * h->store->geo.unit_pages;
  int ret = 0;

  while (ret == 0 && first < end) {
    const struct run *r = view_cursor_at(lower, unit_first + first, &ret);
    bool data = r && r->kind == RUN_DATA;
    uint64_t to;

    if (!r)
      break;
    to = MIN(end, r->page + r->count - unit_first);
    if (data || !(flags & HEAD_SKIP_ZERO)) {
      if (data)
        ret = copy_run(h, u, first, to);
      else if (flags & HEAD_RESERVE)
        ret = reserve_run(h, u, first, to);
      bits_set(taken, first - base, to - base);
      if (data)
        counts->copied += to - first;
      else
        counts->reserved += to - first;
    }
    first = to;
  }
  return ret;
}

int head_publish(struct head *h, struct unit *u, uint64_t first, uint64_t end, unsigned flags,
                 struct head_counts *counts)
{
  struct head_counts sum = { 0, 0 };
  g_autofree uint64_t *taken = NULL, *absent = NULL;
  g_auto(view_cursor) lower = head_lower(h);
  struct flight flight;
  int ret;

  if (u->present && bits_find(u->present, first, end, false) == end)
    return 0;
  /* What cannot be read is found before anything changes. */
  if (!view_cursor_at(&lower, u->number * h->store->geo.unit_pages + first, &ret))
    return ret;
  taken = g_try_malloc0(bits_words(end - first) * 8);
  absent = g_try_malloc0(bits_words(end - first) * 8);
  if (!taken || !absent)
    return fail(ENOMEM, "%s: no memory for a presence bitmap", h->store->path);
  ret = head_ensure_slot(h, u);
  /* Pages in flight look like what a crash has left. */
  if (ret == 0 && !u->clean && u->flights)
    return -EAGAIN;
  if (ret == 0)
    ret = scrub(h, u);
  if (ret == 0)
    ret = slots_reserve_present(h->slots, u->slot, first, end);
  if (ret)
    return ret;

  /* Of a unit that is not locked only what does not change is looked at: its number and its slot. */
  for (uint64_t at = first; (at = bits_find(u->present, at, end, false)) < end;) {
    uint64_t to = bits_find(u->present, at, end, true);

    bits_set(absent, at - first, to - first);
    at = to;
  }
  if (flags & HEAD_UNLOCKED)
    head_take_off(h, u, &flight, first, end);
  for (uint64_t at = 0; ret == 0 && (at = bits_find(absent, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(absent, at, end - first, false);

    ret = fetch(h, u, &lower, first + at, first + to, flags, taken, first, &sum);
    at = to;
  }
  if (ret == 0)
    ORDERED_VOID("publish 1.2", persist_drain(h->store->p));
  if (flags & HEAD_UNLOCKED)
    head_land(h, u, &flight);
  if (ret) {
    undo_pages(h, u, first, end);
    return ret;
  }
  for (uint64_t at = 0; ret == 0 && (at = bits_find(taken, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(taken, at, end - first, false);

    ret = head_mark_present(h, u, first + at, first + to);
    at = to;
  }
  if (counts) {
    counts->copied += sum.copied;
    counts->reserved += sum.reserved;
  }
  return ret;
}

static bool is_present(const struct unit *u, uint64_t page)
{
  return u->present && bits_test(u->present, page);
}

/* Whole pages, of which the slot has none yet. */
static bool writes_fresh(const struct unit *u, uint64_t offset, uint64_t length)
{
  uint64_t first = offset >> PAGE_SHIFT, end = (offset + length) >> PAGE_SHIFT;

  return (offset | length) % PAGE_BYTES == 0 && bits_find(u->present, first, end, true) == end;
}

int head_write(struct head *h, struct unit *u, uint64_t offset, const void *buffer, uint64_t length)
{
  struct persist *p = h->store->p;
  uint64_t first = offset >> PAGE_SHIFT;
  uint64_t end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  int ret = 0;

  if (!length)
    return 0;
  /* Pages that are only partly written show what lies beneath in the rest. */
  if (offset % PAGE_BYTES && !is_present(u, first))
    ret = head_publish(h, u, first, first + 1, HEAD_RESERVE, NULL);
  if (ret == 0 && (offset + length) % PAGE_BYTES && !is_present(u, end - 1))
    ret = head_publish(h, u, end - 1, end, HEAD_RESERVE, NULL);
  if (ret == 0)
    ret = head_ensure_slot(h, u);
  if (ret == 0)
    ret = slots_reserve_present(h->slots, u->slot, first, end);
  if (ret)
    return ret;

  if (!writes_fresh(u, offset, length) || persist_fill(p, head_page_offset(h, u, first), buffer, length)) {
    ret = persist_prepare(p, head_page_offset(h, u, first), (end - first) * PAGE_BYTES);
    if (ret == 0)
      ret = persist_copy(p, head_page_offset(h, u, 0) + offset, buffer, length);
  }
  if (ret) {
    undo_pages(h, u, first, end);
    return ret;
  }
  ORDERED_VOID("write 1.2", persist_drain(p));
  for (uint64_t at = first; ret == 0 && (at = bits_find(u->present, at, end, false)) < end;) {
    uint64_t to = bits_find(u->present, at, end, true);

    ret = head_mark_present(h, u, at, to);
    at = to;
  }
  return ret;
}

/* Marks in HIDING (bits of pages relative to FIRST) the absent pages that must become present for zeros to
 * be seen: gaps between present ones in which something lies beneath. */
static int find_hiding(struct head *h, const struct unit *u, uint64_t first, uint64_t end, uint64_t *hiding)
{
  uint64_t unit_first = u->number * h->store->geo.unit_pages;
  g_auto(view_cursor) lower = head_lower(h);

  for (uint64_t at = first, to; at < end; at = to) {
    bool present = is_present(u, at);

    to = u->present ? bits_find(u->present, at, end, !present) : end;
    for (uint64_t page = at; !present && page < to;) {
      int error;
      const struct run *r = view_cursor_at(&lower, unit_first + page, &error);

      if (!r)
        return error;
      page = r->page + r->count - unit_first;
      if (r->kind == RUN_DATA) {
        bits_set(hiding, at - first, to - first);
        break;
      }
    }
  }
  return 0;
}

static int zero_keeping_space(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  g_autofree uint8_t *zeros = g_try_malloc0(COPY_BYTES);
  int ret = 0;

  if (!zeros)
    return fail(ENOMEM, "%s: no memory for zeros", h->store->path);
  for (uint64_t at = first; ret == 0 && at < end; at += COPY_BYTES / PAGE_BYTES) {
    uint64_t to = MIN(end, at + COPY_BYTES / PAGE_BYTES);

    ret = head_write(h, u, at * PAGE_BYTES, zeros, (to - at) * PAGE_BYTES);
  }
  return ret;
}

int head_zero(struct head *h, struct unit *u, uint64_t first, uint64_t end, bool keep_space)
{
  g_autofree uint64_t *hiding = NULL;
  int ret;

  if (keep_space)
    return zero_keeping_space(h, u, first, end);
  hiding = g_try_malloc0(bits_words(end - first) * 8);
  if (!hiding)
    return fail(ENOMEM, "%s: no memory for a presence bitmap", h->store->path);
  ret = find_hiding(h, u, first, end, hiding);
  if (ret || (!u->slot && bits_find(hiding, 0, end - first, true) == end - first))
    return ret;
  ret = head_ensure_slot(h, u);
  if (ret == 0)
    ret = slots_reserve_present(h->slots, u->slot, first, end);
  /* Also pages that are not present: what a crash left in them must not show. */
  if (ret == 0)
    ret = ORDERED("zero 1.1",
                  persist_punch(h->store->p, head_page_offset(h, u, first), (end - first) * PAGE_BYTES));
  ORDERED_VOID("zero 1.2", persist_drain(h->store->p));
  for (uint64_t at = 0; ret == 0 && (at = bits_find(hiding, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(hiding, at, end - first, false);

    ret = head_mark_present(h, u, first + at, first + to);
    at = to;
  }
  return ret;
}

int head_read(struct head *h, struct unit *u, uint64_t offset, void *buffer, uint64_t length)
{
  uint64_t unit_start = u->number * h->store->geo.unit_bytes;
  uint8_t *out = buffer;

  while (length) {
    uint64_t page = offset >> PAGE_SHIFT;
    bool present = is_present(u, page);
    uint64_t stop = u->present ? bits_find(u->present, page, h->store->geo.unit_pages, !present)
                               : h->store->geo.unit_pages;
    uint64_t n = MIN(length, stop * PAGE_BYTES - offset);
    int ret;

    if (present) {
      ret = persist_read(h->store->p, head_page_offset(h, u, 0) + offset, out, n);
    } else {
      ret = view_cache_read(h->cache, unit_start + offset, out, n);
    }
    if (ret)
      return ret;
    out += n;
    offset += n;
    length -= n;
  }
  return 0;
}

int head_reserve_present(struct head *h, struct unit *u, uint64_t first, uint64_t end)
{
  return persist_allocate(h->store->p, head_page_offset(h, u, first), (end - first) * PAGE_BYTES);
}
