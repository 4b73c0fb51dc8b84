/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See subject.h. The expectation allows what is about to be written before the library is called, and
 * takes as durable only what a call that has returned promised.
 */
#include "subject.h"

#include "kernel.h"
#include "mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- Making them ---- */

static struct subject *make(struct lab *lab, const char *name)
{
  struct subject *s = g_new0(struct subject, 1);

  s->lab = lab;
  s->name = g_strdup(name);
  s->path = lab_path(lab, name);
  g_ptr_array_add(lab->subjects, s);
  return s;
}

struct subject *subject_new(struct lab *lab, const char *name, uint64_t size, const char *base,
                            uint32_t format, const char *base_snapshot, const struct face *head)
{
  struct subject *s = make(lab, name);
  struct world *w = world_new(size);

  test_create(s->path, size, UNIT, base, format, base_snapshot);
  if (head) {
    face_free(w->head);
    w->head = face_frozen(head);
    face_resize(w->head, size);
  }
  s->expect = expect_new(w);
  s->own = g_new0(uint64_t, 4096);
  return s;
}

static void take_hints(struct subject *s)
{
  struct rng rng = { rng_next(&s->lab->rng) };

  for (unsigned i = 0; i < s->given->count && s->hint_count < HINTS_MOST; i++) {
    const struct face *head = s->given->worlds[i]->head;

    for (unsigned n = 0; n < 3 && s->hint_count < HINTS_MOST; n++)
      s->hints[s->hint_count++] = face_open_page(head, &rng);
  }
}

struct subject *subject_in(struct subject *s, struct lab *below)
{
  struct subject *copy = make(below, s->name);

  copy->watched = s->watched;
  copy->torn = s->lab->within || (s->torn && !s->watched);
  copy->given = s->given ? s->given : s->expect;
  copy->version = s->version;
  copy->is_base = s->is_base;
  copy->damaged = s->damaged;
  take_hints(copy);
  return copy;
}

void subject_free(struct subject *s)
{
  if (s->image && !s->lab->media)
    pcow_close(s->image);
  expect_free(s->expect);
  g_free(s->own);
  g_free(s->path);
  g_free(s->name);
  g_free(s);
}

struct world *subject_world(struct subject *s)
{
  if (s->expect->count != 1)
    lab_fail(s->lab, "%s: it is not known which of %u worlds is", s->name, s->expect->count);
  return s->expect->worlds[0];
}

uint64_t subject_size(struct subject *s)
{
  return subject_world(s)->head->size;
}

/* ---- Calls ---- */

#define begin(s, ...)                                                                            \
  do {                                                                                           \
    if ((s)->lab->depth == 0)                                                                    \
      atomic_fetch_add(&counters->operations, 1);                                                \
    lab_doing((s)->lab, __VA_ARGS__);                                                            \
  } while (0)

static void succeed(struct subject *s, int result)
{
  if (result < 0)
    lab_fail(s->lab, "%s: gave %d: %s", s->name, result, pcow_errormsg());
}

/* The locks of a process that was killed go with its memory, which somebody who looks at the process (ps) may
 * hold a little longer than waitpid(2) takes. */
int subject_try_open(struct subject *s, const struct pcow_open_options *how)
{
  int ret = pcow_open(s->path, how, &s->image);

  for (unsigned i = 0; ret == -EBUSY && i < 200; i++) {
    g_usleep(5000);
    ret = pcow_open(s->path, how, &s->image);
  }
  return ret;
}

void subject_open(struct subject *s)
{
  struct pcow_open_options how = PCOW_INIT(how);

  begin(s, "open %s", s->name);
  how.flags = PCOW_OPEN_RDWR | PCOW_OPEN_BASES;
  s->watched = true;
  succeed(s, subject_try_open(s, &how));
  if (s->expect)
    lab_acknowledged(s->lab);
}

void subject_close(struct subject *s)
{
  begin(s, "close %s", s->name);
  succeed(s, pcow_close(s->image));
  s->image = NULL;
  s->map = NULL;
  face_settle(subject_world(s)->head, true);
  lab_acknowledged(s->lab);
}

static void note_own(struct subject *s, uint64_t offset, uint64_t length)
{
  for (uint64_t page = offset / PAGE; s->own && page * PAGE < offset + length; page++)
    s->own[page / 64] |= UINT64_C(1) << page % 64;
}

void subject_write(struct subject *s, uint64_t offset, uint64_t length)
{
  g_autofree unsigned char *bytes = g_malloc(length);

  begin(s, "write %s 0x%" PRIx64 "+0x%" PRIx64, s->name, offset, length);
  pattern_fill(bytes, ++s->version, offset, length);
  g_mutex_lock(&s->lab->lock);
  for (unsigned i = 0; i < s->expect->count; i++)
    face_write(s->expect->worlds[i]->head, offset, bytes, length);
  g_mutex_unlock(&s->lab->lock);
  note_own(s, offset, length);
  succeed(s, pcow_pwrite(s->image, bytes, length, offset));
  if (rng_chance(&s->lab->rng, 25))
    lab_acknowledged(s->lab);
}

void subject_scatter(struct subject *s, unsigned count)
{
  struct rng *rng = &s->lab->rng;
  uint64_t size = subject_size(s);

  while (count--) {
    uint64_t offset = rng_below(rng, size / PAGE) * PAGE;

    switch (rng_below(rng, 4)) {
    case 0:
      subject_write(s, offset + rng_below(rng, 500) * 8, 8 + rng_below(rng, 10) * 8);
      break;
    case 1:
      subject_write(s, offset + rng_below(rng, 4000), 1 + rng_below(rng, 90));
      break;
    case 2:
      subject_write(s, offset, least(size - offset, (1 + rng_below(rng, 4)) * PAGE));
      break;
    default:
      subject_write(s, offset, PAGE);
    }
  }
}

void subject_discard(struct subject *s, uint64_t offset, uint64_t length)
{
  begin(s, "discard %s 0x%" PRIx64 "+0x%" PRIx64, s->name, offset, length);
  face_zero(subject_world(s)->head, offset, length);
  note_own(s, offset, length);
  succeed(s, pcow_discard(s->image, offset, length));
  lab_acknowledged(s->lab);
}

void subject_zero(struct subject *s, uint64_t offset, uint64_t length, uint32_t flags)
{
  begin(s, "write zeroes %s 0x%" PRIx64 "+0x%" PRIx64 ", flags %u", s->name, offset, length, flags);
  face_zero(subject_world(s)->head, offset, length);
  note_own(s, offset, length);
  succeed(s, pcow_write_zeroes(s->image, offset, length, flags));
  lab_acknowledged(s->lab);
}

void subject_flush(struct subject *s)
{
  begin(s, "flush %s", s->name);
  succeed(s, pcow_sync(s->image));
  g_mutex_lock(&s->lab->lock);
  for (unsigned i = 0; i < s->expect->count; i++)
    face_settle(s->expect->worlds[i]->head, s->map && s->flush_durable);
  g_mutex_unlock(&s->lab->lock);
  lab_acknowledged(s->lab);
}

/* ---- The structure: two worlds, then one ---- */

static struct world *other_world(struct subject *s, const char *what, const char *name)
{
  g_autofree char *label = g_strdup_printf("after %s '%s'", what, name);

  return world_copy(subject_world(s), label);
}

/* The library returned: AFTER is the world. */
static void chosen(struct subject *s, struct world *after, int result)
{
  succeed(s, result);
  g_mutex_lock(&s->lab->lock);
  expect_choose(s->expect, after);
  g_mutex_unlock(&s->lab->lock);
  lab_acknowledged(s->lab);
}

void subject_snapshot(struct subject *s, const char *name)
{
  struct world *after;
  int result;

  begin(s, "snapshot '%s' of %s", name, s->name);
  g_mutex_lock(&s->lab->lock);
  after = other_world(s, "the snapshot", name);
  world_add(after, name, face_frozen(after->head));
  face_settle(after->head, true);
  expect_add(s->expect, after);
  if (s->lab->threads)
    g_strlcpy(s->racing, name, sizeof s->racing);
  g_mutex_unlock(&s->lab->lock);
  result = pcow_snapshot_create(s->image, name);
  chosen(s, after, result);
}

void subject_delete(struct subject *s, const char *name)
{
  struct world *after;

  begin(s, "delete '%s' of %s", name, s->name);
  g_mutex_lock(&s->lab->lock);
  after = other_world(s, "the deletion of", name);
  world_remove(after, name);
  expect_add(s->expect, after);
  g_mutex_unlock(&s->lab->lock);
  chosen(s, after, pcow_snapshot_delete(s->image, name));
}

void subject_revert(struct subject *s, const char *name)
{
  struct world *after;

  begin(s, "revert %s to '%s'", s->name, name);
  after = other_world(s, "the revert to", name);
  face_free(after->head);
  after->head = face_frozen(world_find(after, name)->face);
  expect_add(s->expect, after);
  chosen(s, after, pcow_snapshot_revert(s->image, name));
}

void subject_resize(struct subject *s, uint64_t size)
{
  struct world *after;
  uint64_t old = subject_size(s);

  begin(s, "resize %s from 0x%" PRIx64 " to 0x%" PRIx64, s->name, old, size);
  after = other_world(s, "the resize", "");
  face_resize(after->head, size);
  expect_add(s->expect, after);
  chosen(s, after, pcow_resize(s->image, size, size < old ? PCOW_RESIZE_SHRINK : 0));
}

/* What the head shows over SHOWN instead. */
static void put_beneath(struct subject *s, struct face *head, const struct face *shown)
{
  for (uint64_t page = 0; page < head->size / PAGE; page++) {
    unsigned char bytes[PCOW_PAGE_SIZE] = { 0 };

    if (s->own[page / 64] >> page % 64 & 1)
      continue;
    if (page * PAGE < shown->size)
      face_read(shown, page * PAGE, bytes, PAGE);
    face_write(head, page * PAGE, bytes, PAGE);
  }
  face_settle(head, true);
}

void subject_rebase(struct subject *s, const char *base, uint32_t format, const char *snapshot,
                    const struct face *shown)
{
  struct pcow_rebase_options how = PCOW_INIT(how);
  struct world *after;

  begin(s, "rebase %s %s to %s%s%s", s->name, shown ? "unsafe" : "safe", base ? base : "nothing",
        snapshot ? "@" : "", snapshot ? snapshot : "");
  how.flags = shown ? PCOW_REBASE_UNSAFE : 0;
  how.base = base;
  how.base_format = format;
  how.base_snapshot = snapshot;
  after = other_world(s, "the rebase", "");
  if (shown)
    put_beneath(s, after->head, shown);
  expect_add(s->expect, after);
  chosen(s, after, pcow_rebase(s->image, &how));
}

/* ---- Mapped ---- */

static void map(struct subject *s, uint32_t durability, uint32_t thin)
{
  struct pcow_map_options how = PCOW_INIT(how);

  begin(s, "map %s%s", s->name, durability == PCOW_FLUSH_DURABLE ? ", flush-durable" : "");
  how.durability = durability;
  how.thin = thin;
  how.granule = PAGE << rng_below(&s->lab->rng, 5);
  mapping_override_eager(rng_chance(&s->lab->rng, 50) ? rng_below(&s->lab->rng, 4) : UINT64_MAX);
  how.reserve = 4 * MIB;
  succeed(s, pcow_map(s->image, &how, &s->map));
  s->address = pcow_mapping_address(s->map);
  s->flush_durable = durability == PCOW_FLUSH_DURABLE;
  lab_acknowledged(s->lab);
}

void subject_map(struct subject *s) { map(s, PCOW_STORE_DURABLE, PCOW_THIN_DEFAULT); }

void subject_map_flush(struct subject *s, uint32_t thin) { map(s, PCOW_FLUSH_DURABLE, thin); }

void subject_unmap(struct subject *s)
{
  begin(s, "unmap %s", s->name);
  succeed(s, pcow_unmap(s->map));
  s->map = NULL;
  if (s->flush_durable)
    face_settle(subject_world(s)->head, true);
  lab_acknowledged(s->lab);
}

/* In all worlds, and in a snapshot that is being taken. */
static void each_world(struct subject *s, void (*fn)(struct face *v, uint64_t at, uint64_t value),
                       uint64_t offset, uint64_t value)
{
  g_mutex_lock(&s->lab->lock);
  for (unsigned i = 0; i < s->expect->count; i++) {
    struct world *w = s->expect->worlds[i];
    struct snapshot *racing = s->racing[0] ? world_find(w, s->racing) : NULL;

    fn(w->head, offset, value);
    if (racing)
      fn(racing->face, offset, value);
  }
  g_mutex_unlock(&s->lab->lock);
}

static void persisted(struct face *v, uint64_t offset, uint64_t length)
{
  face_persisted(v, offset, length);
}

void subject_store(struct subject *s, uint64_t offset, uint64_t value, bool persist)
{
  if (!s->lab->threads)
    begin(s, "store to %s at 0x%" PRIx64, s->name, offset);
  each_world(s, face_storing, offset, value);
  __atomic_store_n(&s->address[offset / 8], value, __ATOMIC_SEQ_CST);
  each_world(s, face_stored, offset, value);
  if (!persist)
    return;
  succeed(s, pcow_persist(s->map, offset, 8));
  g_mutex_lock(&s->lab->lock);
  for (unsigned i = 0; i < s->expect->count; i++)
    persisted(s->expect->worlds[i]->head, offset, 8);
  g_mutex_unlock(&s->lab->lock);
  lab_acknowledged(s->lab);
}

static void store_words(struct subject *s, uint64_t offset, uint64_t length)
{
  uint64_t version = ++s->version;

  begin(s, "store to %s at 0x%" PRIx64 "+0x%" PRIx64, s->name, offset, length);
  for (uint64_t at = offset; at < offset + length; at += 8) {
    uint64_t value = pattern_word(version, at);

    each_world(s, face_storing, at, value);
    __atomic_store_n(&s->address[at / 8], value, __ATOMIC_SEQ_CST);
    each_world(s, face_stored, at, value);
  }
  note_own(s, offset, length);
}

void subject_store_range(struct subject *s, uint64_t offset, uint64_t length)
{
  store_words(s, offset, length);
  lab_acknowledged(s->lab);
  begin(s, "persist %s 0x%" PRIx64 "+0x%" PRIx64, s->name, offset, length);
  succeed(s, pcow_persist(s->map, offset, length));
  for (unsigned i = 0; i < s->expect->count; i++)
    persisted(s->expect->worlds[i]->head, offset, length);
  lab_acknowledged(s->lab);
}

/* ---- Flush-durable ---- */

void subject_put(struct subject *s, uint64_t offset, uint64_t length)
{
  store_words(s, offset, length);
  if (rng_chance(&s->lab->rng, 25))
    lab_acknowledged(s->lab);
}

bool subject_flush_range(struct subject *s, uint64_t offset, uint64_t length)
{
  int result;

  begin(s, "flush %s 0x%" PRIx64 "+0x%" PRIx64, s->name, offset, length);
  result = pcow_flush(s->map, offset, length);
  if (result != -ENOSPC || !kernel_refused_space())
    succeed(s, result);
  if (result == 0)
    for (unsigned i = 0; i < s->expect->count; i++)
      persisted(s->expect->worlds[i]->head, offset, length);
  lab_acknowledged(s->lab);
  return result == 0;
}
