/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Operations on the structure: snapshots, size, base, handles. What is refused in the state that the
 * session is in must be refused with the documented error and change nothing.
 */
#include "model-world.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Handles ------------------------------------------------------------------------------- */

void world_open(struct world *w)
{
  w->image = test_open(w->path, PCOW_OPEN_RDWR, NULL);
}

void world_close(struct world *w)
{
  if (w->map && rng_chance(&w->rng, 50))
    world_unmap(w);
  if (w->map)
    world_count(w);
  OK(pcow_close(w->image)); /* unmaps what is mapped */
  durable_all(w);
  w->image = NULL;
  w->map = NULL;
  w->address = NULL;
  world_unreserve(w);
}

void op_reopen(struct world *w)
{
  world_say(w, "reopen%s", w->map ? " (mapped)" : "");
  world_close(w);
  view_check_file(w);
  if (rng_chance(&w->rng, 40)) {
    struct pcow_open_options options = PCOW_INIT(options);
    pcow_image *reader = test_open(w->path, 0, NULL), *writer;

    view_compare(w, "the head, read-only,", reader, w->head);
    if (rng_chance(&w->rng, 50)) {
      pcow_mapping *map;

      OK(pcow_map(reader, NULL, &map));
      view_compare_map(w, "the head, read-only,", map, w->head);
      if (rng_chance(&w->rng, 50))
        OK(pcow_unmap(map)); /* else by closing */
    }
    options.flags = PCOW_OPEN_RDWR;
    GIVES(-EBUSY, pcow_open(w->path, &options, &writer));
    GIVES(-EBADF, pcow_pwrite(reader, "", 1, 0));
    OK(pcow_close(reader));
  }
  world_open(w);
}

void snap_release(struct snap *s)
{
  if (s->map)
    OK(pcow_unmap(s->map));
  if (s->handle)
    OK(pcow_close(s->handle));
  s->map = NULL;
  s->handle = NULL;
}

static struct snap *snap_draw(struct world *w)
{
  return w->snap_count ? &w->snaps[rng_below(&w->rng, w->snap_count)] : NULL;
}

void op_hold(struct world *w)
{
  struct snap *s = snap_draw(w);

  if (!s || s->handle)
    return;
  world_say(w, "hold '%s'", s->name);
  s->handle = test_open(w->path, 0, s->name);
  if (rng_chance(&w->rng, 60)) {
    world_say(w, "  and map it");
    OK(pcow_map(s->handle, NULL, &s->map));
  }
}

void op_release(struct world *w)
{
  struct snap *s = snap_draw(w);

  if (!s || !s->handle)
    return;
  world_say(w, "release '%s'", s->name);
  snap_release(s);
}

/* ---- Snapshots ----------------------------------------------------------------------------- */

struct snap *world_snapshot(struct world *w)
{
  struct snap *s = &w->snaps[w->snap_count];

  memset(s, 0, sizeof *s);
  s->key = ++w->next_key;
  snprintf(s->name, sizeof s->name, "%s %u", rng_chance(&w->rng, 50) ? "état" : "state", s->key);
  OK(pcow_snapshot_create(w->image, s->name));
  durable_all(w);
  s->parent = w->head_parent;
  s->content = model_copy(w->head);
  w->head_parent = s->key;
  w->snap_count++;
  return s;
}

void op_snapshot(struct world *w)
{
  if (w->snap_count == SNAPS_MAX) {
    op_delete(w);
    return;
  }
  world_say(w, "snapshot '%s'%s", world_snapshot(w)->name, w->map ? " (mapped)" : "");
}

static void snap_forget(struct world *w, struct snap *s)
{
  for (unsigned i = 0; i < w->snap_count; i++)
    if (w->snaps[i].parent == s->key)
      w->snaps[i].parent = s->parent;
  if (w->head_parent == s->key)
    w->head_parent = s->parent;
  model_free(s->content);
  w->snap_count--;
  memmove(s, s + 1, (size_t)(&w->snaps[w->snap_count] - s) * sizeof *s);
}

void op_delete(struct world *w)
{
  struct snap *s = snap_draw(w);

  if (!s)
    return;
  world_say(w, "delete '%s'%s", s->name, s->handle ? " (held)" : "");
  if (s->handle) {
    GIVES(-EBUSY, pcow_snapshot_delete(w->image, s->name));
    return;
  }
  OK(pcow_snapshot_delete(w->image, s->name));
  snap_forget(w, s);
}

void op_revert(struct world *w)
{
  struct snap *s = snap_draw(w);

  if (!s)
    return;
  world_maybe_unmap(w, 80);
  world_say(w, "revert to '%s'%s", s->name, w->map ? " (mapped)" : "");
  if (w->map) {
    GIVES(-EBUSY, pcow_snapshot_revert(w->image, s->name));
    return;
  }
  OK(pcow_snapshot_revert(w->image, s->name));
  model_free(w->head);
  w->head = model_copy(s->content);
  durable_all(w);
  w->head_parent = s->key;
}

/* ---- Size ---------------------------------------------------------------------------------- */

void op_resize(struct world *w)
{
  uint64_t pages = w->head->size / PAGE, most = w->size_max / PAGE, size, kept;

  switch (rng_below(&w->rng, 4)) {
  case 0:
    size = (1 + rng_below(&w->rng, most)) * PAGE;
    break;
  case 1: /* by little */
    size = (pages / 2 + rng_below(&w->rng, pages) + 1) * PAGE;
    break;
  case 2: /* to the end of a unit */
    size = (w->head->size + w->unit) / w->unit * w->unit;
    break;
  default: /* larger */
    size = (pages + rng_below(&w->rng, most - pages + 1)) * PAGE;
  }
  if (size > w->size_max)
    size = w->size_max;
  if (size < w->head->size)
    world_maybe_unmap(w, 80);
  world_say(w, "resize %" PRIu64 " to %" PRIu64 "%s", w->head->size, size, w->map ? " (mapped)" : "");
  if (size < w->head->size) {
    GIVES(-EINVAL, pcow_resize(w->image, size, 0));
    if (w->map) {
      GIVES(-EBUSY, pcow_resize(w->image, size, PCOW_RESIZE_SHRINK));
      return;
    }
  } else if (w->map && size > w->reserve) {
    int result = pcow_resize(w->image, size, 0);

    CHECK(result < 0, "grew to %" PRIu64 " beyond the reserved %" PRIu64, size, w->reserve);
    return;
  }
  durable_note(w);
  OK(pcow_resize(w->image, size, size < w->head->size ? PCOW_RESIZE_SHRINK : 0));
  kept = size < w->head->size ? size : w->head->size;
  model_resize(w->head, size);
  durable_range(w, kept, size - kept);
}

/* ---- Base ---------------------------------------------------------------------------------- */

static int progress_cancel(void *opaque, uint64_t done, uint64_t total)
{
  (void)done;
  (void)total;
  return --*(int *)opaque < 0;
}

static void rebase_options(struct world *w, struct pcow_rebase_options *options, int to)
{
  if (to < 0)
    return;
  options->base_format = w->files[w->bases[to].file].format;
  options->base = bases_spelling(w, w->files[w->bases[to].file].path);
  options->base_snapshot = w->bases[to].snapshot[0] ? w->bases[to].snapshot : NULL;
}

/* To another base and back without a look at content, or to one with the same content. */
static void rebase_unsafe(struct world *w, int to)
{
  struct pcow_rebase_options options = PCOW_INIT(options), back = PCOW_INIT(back);
  bool same = model_equal(bases_content(w, to), bases_content(w, w->base));

  options.flags = back.flags = PCOW_REBASE_UNSAFE;
  rebase_options(w, &options, to);
  rebase_options(w, &back, w->base);
  world_say(w, "rebase unsafe from base %d to %d (%s)", w->base, to, same ? "same" : "and back");
  if (rng_chance(&w->rng, 40)) {
    world_say(w, "  without opening the base");
    world_close(w);
    w->image = test_open(w->path, PCOW_OPEN_RDWR | PCOW_OPEN_NO_BASE, NULL);
    if (w->base >= 0)
      GIVES(-EBADF, pcow_pread(w->image, &(char){ 0 }, 1, 0));
    OK(pcow_rebase(w->image, &options));
    if (!same)
      OK(pcow_rebase(w->image, &back));
    OK(pcow_close(w->image));
    world_open(w);
  } else {
    OK(pcow_rebase(w->image, &options));
    if (!same)
      OK(pcow_rebase(w->image, &back));
  }
  if (same)
    w->base = to;
}

void op_rebase(struct world *w)
{
  struct pcow_rebase_options options = PCOW_INIT(options);
  int to = (int)rng_below(&w->rng, w->base_count + w->base_count / 4 + 1) - 1, result;
  int calls = rng_chance(&w->rng, 10) ? (int)rng_below(&w->rng, 4) : 1 << 30;

  if (to >= (int)w->base_count)
    to = -1;
  if (to >= 0 && w->bases[to].dead)
    return;
  world_maybe_unmap(w, 80);
  rebase_options(w, &options, to);
  if (w->map) {
    world_say(w, "rebase to base %d (mapped)", to);
    GIVES(-EBUSY, pcow_rebase(w->image, &options));
    return;
  }
  if (to >= 0 && w->bases[to].stale) {
    world_say(w, "rebase to base %d (stale)", to);
    GIVES(-ESTALE, pcow_rebase(w->image, &options));
    return;
  }
  if (rng_chance(&w->rng, 25)) {
    rebase_unsafe(w, to);
    return;
  }
  options.progress = progress_cancel;
  options.opaque = &calls;
  world_say(w, "rebase from base %d to %d%s", w->base, to, calls < 4 ? ", to be cancelled" : "");
  result = pcow_rebase(w->image, &options);
  if (calls < 0) {
    CHECK(result == -ECANCELED, "a cancelled rebase gave %d: %s", result, pcow_errormsg());
    return;
  }
  CHECK(result >= 0, "pcow_rebase() gave %d: %s", result, pcow_errormsg());
  w->base = to;
}

/* After a commit the base shows what the image shows, as far as that goes; after a part of one, page by
 * page, that or what it was. */
static void commit_adopt(struct world *w, const struct model *before, bool whole)
{
  struct base *b = &w->bases[w->base];
  const char *path = w->files[b->file].path;
  struct model *c;
  unsigned char bytes[PCOW_PAGE_SIZE];

  if (w->files[b->file].format == PCOW_FORMAT_RAW) {
    int fd = (int)SYS(open(path, O_RDONLY));
    uint64_t size = (uint64_t)SYS(lseek(fd, 0, SEEK_END));

    c = model_new((size + PAGE - 1) / PAGE * PAGE);
    for (uint64_t offset = 0; offset < size; offset += PAGE)
      model_write(c, bytes, (uint64_t)SYS(pread(fd, bytes, PAGE, (off_t)offset)), offset);
    SYS(close(fd));
  } else {
    struct pcow_info info = PCOW_INIT(info);
    pcow_image *image = test_open(path, 0, NULL);

    OK(pcow_get_info(image, &info));
    c = model_new(info.virtual_size);
    for (uint64_t offset = 0; offset < c->size; offset += PAGE) {
      OK(pcow_pread(image, bytes, PAGE, offset));
      model_write(c, bytes, PAGE, offset);
    }
    OK(pcow_close(image));
  }
  CHECK(c->size >= before->size, "the base shrank");
  CHECK(!whole || c->size >= w->head->size, "the base did not grow");
  for (uint64_t page = 0; page < c->size / PAGE; page++) {
    bool same = memcmp(model_bytes(c, page), model_bytes(w->head, page), PAGE) == 0;
    bool old = memcmp(model_bytes(c, page), model_bytes(before, page), PAGE) == 0;

    CHECK(page < w->head->size / PAGE ? same || (old && !whole) : old,
          "page %" PRIu64 " of the base is wrong after a commit%s", page, whole ? "" : " that was cancelled");
  }
  model_free(b->content);
  b->content = c;
}

void op_commit(struct world *w)
{
  struct model *before;
  int calls = 1 << 30, result;

  if (w->snap_count && rng_chance(&w->rng, 30)) { /* make it possible */
    world_say(w, "delete all snapshots");
    while (w->snap_count) {
      struct snap *s = &w->snaps[w->snap_count - 1];

      snap_release(s);
      OK(pcow_snapshot_delete(w->image, s->name));
      snap_forget(w, s);
    }
  }
  world_maybe_unmap(w, 80);
  world_say(w, "commit into base %d%s", w->base, w->map ? " (mapped)" : w->snap_count ? " (snapshots)" : "");
  if (w->base < 0) {
    result = pcow_commit(w->image, NULL, NULL);
    CHECK(result < 0, "committed into nothing");
    return;
  }
  if (w->bases[w->base].snapshot[0]) {
    result = pcow_commit(w->image, NULL, NULL);
    CHECK(result == -EROFS || (result == -EBUSY && (w->map || w->snap_count)),
          "commit into a snapshot gave %d: %s", result, pcow_errormsg());
    return;
  }
  if (w->map || w->snap_count) {
    GIVES(-EBUSY, pcow_commit(w->image, NULL, NULL));
    return;
  }
  before = model_copy(w->bases[w->base].content);
  if (rng_chance(&w->rng, 20))
    calls = (int)rng_below(&w->rng, 3);
  result = pcow_commit(w->image, progress_cancel, &calls);
  CHECK(result == (calls < 0 ? -ECANCELED : 0), "pcow_commit() gave %d: %s", result, pcow_errormsg());
  commit_adopt(w, before, calls >= 0);
  bases_changed(w, w->base, !model_equal(before, w->bases[w->base].content));
  model_free(before);
}

/* ---- Others -------------------------------------------------------------------------------- */

/* An overlay over one of the image's own snapshots, while the image is written. */
void op_child(struct world *w)
{
  struct snap *s = snap_draw(w);
  struct model *c;
  pcow_image *image;
  char *path;

  if (!s)
    return;
  world_say(w, "an overlay over '%s'", s->name);
  path = test_path("s%u-child.pcow", w->session);
  test_create(path, 0, 0, bases_spelling(w, w->path), PCOW_FORMAT_PCOW, s->name);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  c = model_copy(s->content);
  view_compare(w, "an overlay over a snapshot", image, c);
  bases_patch(w, image, c);
  view_compare(w, "an overlay over a snapshot, written,", image, c);
  GIVES(-EBUSY, pcow_snapshot_delete(w->image, s->name));
  OK(pcow_close(image));
  model_free(c);
  SYS(unlink(path));
}

static void copy_sparse(const char *from, const char *to)
{
  int in = (int)SYS(open(from, O_RDONLY)), out = (int)SYS(open(to, O_RDWR | O_CREAT | O_TRUNC, 0600));
  off_t at = 0, size = (off_t)SYS(lseek(in, 0, SEEK_END));
  static char buffer[256 * 1024];

  SYS(ftruncate(out, size));
  while (at < size) {
    off_t data = lseek(in, at, SEEK_DATA), end;

    if (data < 0)
      break;
    end = (off_t)SYS(lseek(in, data, SEEK_HOLE));
    for (at = data; at < end;) {
      size_t want = end - at < (off_t)sizeof buffer ? (size_t)(end - at) : sizeof buffer;
      ssize_t count = SYS(pread(in, buffer, want, at));

      SYS(pwrite(out, buffer, (size_t)count, at));
      at += count;
    }
  }
  SYS(close(in));
  SYS(close(out));
}

/* What a crash would leave, when nothing that the system has is lost: a copy of the file as it is while the
 * image is in use. After a sync all of the head is in it. */
void op_crash_copy(struct world *w)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct snap *s = snap_draw(w);
  char *path = test_path("s%u-copy.pcow", w->session);
  bool sync = rng_chance(&w->rng, 35);
  pcow_image *image;

  world_say(w, "%s from a copy%s", sync ? "sync, and go on" : "go on", w->map ? " (mapped)" : "");
  if (sync) {
    OK(pcow_sync(w->image));
    durable_all(w);
  }
  copy_sparse(w->path, path);
  OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
  CHECK(!result.corruptions, "a copy of the image in use has %" PRIu64 " corruptions", result.corruptions);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  if (sync)
    view_compare(w, "a copy", image, w->head);
  else
    durable_compare(w, "a copy", image);
  OK(pcow_close(image));
  /* The mapping's worker may have been merging pieces when the copy was made: what it had copied and not
   * yet made present is a leak there, as after a crash. */
  if (w->map)
    OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
  test_check_clean(path);
  if (s) {
    image = test_open(path, 0, s->name);
    view_compare(w, "a snapshot of a copy", image, s->content);
    OK(pcow_close(image));
  }
  SYS(unlink(path));
}

void op_refused(struct world *w)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct snap *s = snap_draw(w);
  char byte = 0, name[PCOW_NAME_MAX + 2];
  pcow_image *image;
  pcow_mapping *map;

  world_say(w, "what is refused");
  memset(name, 'x', sizeof name);
  name[sizeof name - 1] = 0;
  GIVES(-EINVAL, pcow_pread(w->image, &byte, 1, w->head->size));
  GIVES(-EINVAL, pcow_pwrite(w->image, &byte, 1, w->head->size));
  GIVES(-EINVAL, pcow_pwrite(w->image, &byte, 1, UINT64_MAX));
  GIVES(-EINVAL, pcow_discard(w->image, PAGE, w->head->size));
  GIVES(-EINVAL, pcow_write_zeroes(w->image, 1, UINT64_MAX, 0));
  GIVES(-EINVAL, pcow_snapshot_create(w->image, name));
  GIVES(-EINVAL, pcow_snapshot_create(w->image, ""));
  GIVES(-EINVAL, pcow_snapshot_create(w->image, "a@b"));
  GIVES(-EINVAL, pcow_snapshot_create(w->image, "a\nb"));
  GIVES(-ENOENT, pcow_snapshot_delete(w->image, "none"));
  if (!w->map)
    GIVES(-ENOENT, pcow_snapshot_revert(w->image, "none"));
  options.flags = PCOW_OPEN_RDWR;
  GIVES(-EBUSY, pcow_open(w->path, &options, &image));
  options.flags = 0;
  GIVES(-EBUSY, pcow_open(w->path, &options, &image));
  options.snapshot = "none";
  GIVES(-ENOENT, pcow_open(w->path, &options, &image));
  if (w->map) {
    struct pcow_map_options again = PCOW_INIT(again);

    again.durability = w->flush_durable ? PCOW_FLUSH_DURABLE : PCOW_STORE_DURABLE;
    GIVES(-EBUSY, pcow_map(w->image, &again, &map));
    GIVES(-EINVAL, pcow_flush(w->map, w->head->size, 1));
    GIVES(-EINVAL, pcow_flush(w->map, PAGE, UINT64_MAX));
    GIVES(-EINVAL, pcow_persist(w->map, w->head->size - 1, 2));
    GIVES(-EINVAL, pcow_mark_dirty(w->map, w->head->size, 1));
    OK(pcow_flush(w->map, w->head->size, 0));
  }
  if (s && s->map) {
    GIVES(-EBADF, pcow_flush(s->map, 0, 1));
    GIVES(-EBADF, pcow_mark_dirty(s->map, 0, 1));
  }
  if (s) {
    GIVES(-EEXIST, pcow_snapshot_create(w->image, s->name));
    if (s->handle) {
      GIVES(-EBADF, pcow_pwrite(s->handle, &byte, 1, 0));
      GIVES(-EBADF, pcow_snapshot_create(s->handle, "new"));
    }
  }
}
