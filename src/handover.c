/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Takes async pages back from the kernel's hands without losing a store, and without asking anybody to stop:
 * whoever stores meanwhile waits, as at any first write. Of a file on tmpfs the pages are protected where they
 * are; of any other their memory is kept in a pipe while memory that raises events is moved over them.
 * The pages that the kernel had copied become present and are mapped from the slot. When that fails the
 * pages are async again, and all copied ones count as written.
 */
#include "mapstate.h"

#include "error.h"
#include "order.h"
#include "uffd.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define PIPE_PAGES 16u          /* a pipe has room for as many without asking */

static int failed(const struct pcow_mapping *m, int error, const char *what, uint64_t page, uint64_t pages)
{
  return fail_errno(error, "%s: cannot %s %" PRIu64 " bytes of the mapping at offset %" PRIu64 "%s",
                    m->image->path, what, pages * PAGE_BYTES, page * PAGE_BYTES,
                    error == ENOMEM ? " (is vm.max_map_count reached?)" : "");
}

/* The content of pages whose bits are set lies at SOURCE + their place, and becomes the slot's. */
static int write_pages(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, const uint64_t *bits,
                       const uint8_t *source)
{
  int ret = 0;

  for (uint64_t at = 0; ret == 0 && (at = bits_find(bits, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(bits, at, end - first, false);

    ret = head_write(m->image->head, u, (first + at) * PAGE_BYTES, source + at * PAGE_BYTES,
                     (to - at) * PAGE_BYTES);
    at = to;
  }
  return ret;
}

/* Async pages that the slot has got are copies of it. */
static void keep_written(struct pcow_mapping *m, const struct unit *u, struct map_unit *mu, uint64_t first,
                         uint64_t end)
{
  while (u->present && (first = bits_find(u->present, first, end, true)) < end) {
    uint64_t to = bits_find(u->present, first, end, false);

    adapt_keep(m, mu, first, to);
    first = to;
  }
}

/* Pages whose bits are set are mapped from the slot. Where there are too many VMAs for that they stay protected. */
static int share_pages(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, const uint64_t *bits)
{
  int ret = 0;

  for (uint64_t at = 0; ret == 0 && (at = bits_find(bits, at, end - first, true)) < end - first;) {
    uint64_t to = bits_find(bits, at, end - first, false);

    ret = area_share(m, u, first + at, first + to);
    m->handed_over += to - at;
    at = to;
  }
  return ret == -ENOMEM ? 0 : ret;
}

/* ---- On tmpfs ---- */

/* Protected pages are async again. What was copied reads as written. */
static int give_back(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end)
{
  uint64_t page = map_unit_first(m, mu->number) + first;
  int ret;

  uffd_unregister(m->uffd, map_address(m, page), (end - first) * PAGE_BYTES);
  ret = tracking_register(m, map_address(m, page), (end - first) * PAGE_BYTES);
  if (ret) {
    tracking_note(m, mu->number, first, end);
    tracking_lose(m, mu->number);
    return failed(m, -ret, "track", page, end - first);
  }
  tracking_note(m, mu->number, first, end);
  return 0;
}

/* -EINVAL: the file is of another kind. */
static int hold_in_place(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first,
                         uint64_t end)
{
  uint64_t page = map_unit_first(m, u->number) + first, length = (end - first) * PAGE_BYTES;
  uint8_t *address = map_address(m, page);
  g_autofree uint64_t *copied = g_try_malloc0(bits_words(end - first) * 8);
  int ret;

  if (!copied)
    return fail(ENOMEM, "%s: no memory to hold %" PRIu64 " pages", m->image->path, end - first);
  /* What has no page yet would get a marker when it is protected, which looks like a copy that was swapped out. */
  madvise(address, length, MADV_POPULATE_READ);
  /* Ordering: H.1 both registrations. H.2 protected: from here on stores wait. H.3 what was copied up to then,
   * whether it is known to be dirty or not. */
  uffd_unregister(m->track_fd, address, length);
  ret = uffd_register(m->uffd, address, length, UFFD_WP);
  if (ret == 0)
    ret = ORDERED("hold H.2", uffd_protect(m->uffd, address, length));
  if (ret) {
    int again = give_back(m, mu, first, end);

    return again ? again : ret == -EINVAL ? ret : failed(m, -ret, "protect", page, end - first);
  }
  ret = tracking_copied(m, u->number, first, end, copied);
  if (ret == 0)
    ret = write_pages(m, u, first, end, copied, address);
  if (ret) {
    g_autofree char *message = g_strdup(error_message());

    keep_written(m, u, mu, first, end);
    if (give_back(m, mu, first, end) == 0)
      fail(-ret, "%s", message);
    return ret;
  }
  tracking_forget(m, mu, first, end);
  area_note(m, mu, first, end, false, false);
  ret = share_pages(m, u, first, end, copied);
  uffd_wake(m->uffd, address, length);
  return ret;
}

/* ---- On any file system ---- */

static int make_pipe(struct pcow_mapping *m)
{
  if (m->pipe[0] >= 0)
    return 0;
  if (pipe2(m->pipe, O_CLOEXEC) == 0)
    return 0;
  m->pipe[0] = m->pipe[1] = -1;
  return fail_errno(errno, "%s: cannot make a pipe", m->image->path);
}

/* After a failure nobody knows what is in it. */
static void drop_pipe(struct pcow_mapping *m)
{
  close(m->pipe[0]);
  close(m->pipe[1]);
  m->pipe[0] = m->pipe[1] = -1;
}

/* The pages themselves are in the pipe: what is stored to them until they are unmapped is, too. */
static int fill_pipe(struct pcow_mapping *m, uint8_t *address, uint64_t length)
{
  while (length) {
    struct iovec part = { address, length };
    ssize_t n = vmsplice(m->pipe[1], &part, 1, SPLICE_F_NONBLOCK);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n < 0 ? -errno : -EIO;
    address += n;
    length -= (uint64_t)n;
  }
  return 0;
}

static int empty_pipe(struct pcow_mapping *m, uint8_t *buffer, uint64_t length)
{
  while (length) {
    ssize_t n = read(m->pipe[0], buffer, length);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n < 0 ? -errno : -EIO;
    buffer += n;
    length -= (uint64_t)n;
  }
  return 0;
}

/* The pages have become absent anonymous memory that raises events: BUFFER has their content. They become
 * async ones of that memory. */
static void put_back(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end,
                     const uint8_t *buffer)
{
  uint64_t page = map_unit_first(m, mu->number) + first, length = (end - first) * PAGE_BYTES, at = 0;

  while (at < length) {
    uint64_t done;
    int ret = uffd_copy(m->uffd, map_address(m, page) + at, buffer + at, length - at, false, &done);

    at += done;
    /* Until there is memory: nothing else keeps these bytes. */
    if (ret && !done)
      sched_yield();
  }
  if (mu->fill)
    bits_clear(mu->fill, first, end);
  give_back(m, mu, first, end);
}

/* Marks in KEEP what must be in the slot: what is there already, what was copied before, and what is not
 * as it is beneath. */
static int choose(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, const uint8_t *buffer,
                  uint64_t *keep)
{
  uint8_t beneath[PAGE_BYTES];

  for (uint64_t at = first; at < end; at++) {
    int ret;

    if (bits_test(keep, at - first))
      continue;
    ret = head_read(m->image->head, u, at * PAGE_BYTES, beneath, PAGE_BYTES);
    if (ret)
      return ret;
    if (memcmp(beneath, buffer + (at - first) * PAGE_BYTES, PAGE_BYTES))
      bits_set(keep, at - first, at - first + 1);
  }
  return 0;
}

/* Where a scan would find what was only read, too: the others are compared. */
static void note_certain(struct pcow_mapping *m, const struct unit *u, uint64_t first, uint64_t end, uint64_t *keep)
{
  tracking_certain(m, u->number, first, end, keep);
  for (uint64_t at = first; u->present && (at = bits_find(u->present, at, end, true)) < end; at++)
    bits_set(keep, at - first, at - first + 1);
}

/* At most PIPE_PAGES. pipe_lock is held. */
static int hold_by_pipe(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end,
                        uint8_t *buffer)
{
  uint64_t page = map_unit_first(m, u->number) + first, length = (end - first) * PAGE_BYTES;
  uint8_t *address = map_address(m, page);
  uint64_t keep[1] = { 0 };
  int ret = make_pipe(m);

  if (ret == 0 && m->lower_dax)
    note_certain(m, u, first, end, keep);
  else if (ret == 0)
    ret = tracking_copied(m, u->number, first, end, keep);
  if (ret)
    return ret;
  /* Ordering: P.1 every page is copied: the pipe must not get the file's. P.2 the pages are in the pipe. P.3
   * others lie over them: from here on stores wait. P.4 their content is read. */
  if (ORDERED("pipe P.1", madvise(address, length, MADV_POPULATE_WRITE)))
    return failed(m, errno, "copy", page, end - first);
  ret = fill_pipe(m, address, length);
  if (ret) {
    drop_pipe(m);
    return failed(m, -ret, "keep", page, end - first);
  }
  ret = area_fill(m, u->number, first, end);
  if (ret) {
    drop_pipe(m);
    return ret;
  }
  ret = empty_pipe(m, buffer, length);
  if (ret) {
    drop_pipe(m);               /* does not happen: the bytes are there */
    return failed(m, -ret, "read back", page, end - first);
  }
  ret = choose(m, u, first, end, buffer, keep);
  if (ret == 0)
    ret = write_pages(m, u, first, end, keep, buffer);
  if (ret) {
    g_autofree char *message = g_strdup(error_message());

    put_back(m, mu, first, end, buffer);
    keep_written(m, u, mu, first, end);
    return fail(-ret, "%s", message);
  }
  ret = share_pages(m, u, first, end, keep);
  uffd_wake(m->uffd, address, length);
  return ret;
}

static int hold_pieces(struct pcow_mapping *m, struct unit *u, struct map_unit *mu, uint64_t first, uint64_t end)
{
  g_autofree uint8_t *buffer = g_try_malloc(PIPE_PAGES * PAGE_BYTES);
  int ret = 0;

  if (!buffer)
    return fail(ENOMEM, "%s: no memory to hold %" PRIu64 " pages", m->image->path, end - first);
  g_mutex_lock(&m->pipe_lock);
  for (uint64_t to; ret == 0 && first < end; first = to) {
    to = MIN(end, (first / PIPE_PAGES + 1) * PIPE_PAGES);
    ret = hold_by_pipe(m, u, mu, first, to, buffer);
  }
  g_mutex_unlock(&m->pipe_lock);
  return ret;
}

int handover_hold(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end)
{
  struct map_unit *mu;
  int ret = 0;

  if (map_is_late(m, u->number))
    return 0;
  mu = map_unit_get(m, u->number);
  if (m->all_async && map_find(mu->async, first, end, true) < end)
    return fail(EBUSY, "%s: pages of the mapping cannot be moved: userfaultfd, which would hold who writes to "
                "them, is not permitted", m->image->path);
  if (map_find(mu->async, first, end, true) < end)
    ORDERED_VOID("hold F.2", tracking_busy(m, u->number));
  while (ret == 0 && (first = map_find(mu->async, first, end, true)) < end) {
    uint64_t to = map_find(mu->async, first, end, false);

    ret = m->lower_tmpfs ? hold_in_place(m, u, mu, first, to) : -EINVAL;
    if (ret == -EINVAL)
      ret = hold_pieces(m, u, mu, first, to);
    first = to;
  }
  return ret;
}

void handover_protect(struct pcow_mapping *m, struct unit *u)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t first = 0;
  int ret = 0;

  if (map_find(mu->async, 0, m->unit_pages, true) < m->unit_pages)
    ORDERED_VOID("hold F.2", tracking_busy(m, u->number));
  while (ret == 0 && (first = map_find(mu->async, first, m->unit_pages, true)) < m->unit_pages) {
    uint64_t to = map_find(mu->async, first, m->unit_pages, false);

    ret = hold_in_place(m, u, mu, first, to);
    first = to;
  }
  g_mutex_lock(&m->track_lock);
  mu->debt = ret == -EINVAL ? ADAPT_NEVER : 0;  /* else, no space say, that may change */
  g_mutex_unlock(&m->track_lock);
  if (ret == 0)
    m->units_protected++;
}

int handover_retrack(struct pcow_mapping *m)
{
  int ret = 0;

  for (uint64_t unit = 0; ret == 0 && (unit = tracking_next_lost(m, unit)) < m->unit_count; unit++) {
    struct map_unit *mu = map_unit_get(m, unit);
    struct unit *u = head_lock_unit(m->image->head, unit, &ret);

    if (!u)
      break;
    for (uint64_t first = 0, to; ret == 0; first = to) {
      first = map_find(mu->async, first, m->unit_pages, true);
      to = map_find(mu->async, first, m->unit_pages, false);
      if (first == to)
        break;
      ret = give_back(m, mu, first, to);
      /* Some of them may be registered for events, and others not: one at a time none is both. */
      for (uint64_t at = first; ret && at < to; at++) {
        ret = give_back(m, mu, at, at + 1);
        if (ret)
          break;
      }
    }
    if (ret == 0)
      tracking_found(m, unit);
    head_unlock_unit(m->image->head, u);
  }
  return ret;
}
