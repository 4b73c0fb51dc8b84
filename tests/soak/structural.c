/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What changes the structure of an image: snapshots, size, base, and the image as a whole. Each is there or
 * not there after a kill. Refused for want of space, everything is verified as after a kill.
 */
#include "soak.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A random snapshot's slot, or -1. */
static int pick_snap(struct session *s, const struct image *i, bool there)
{
  unsigned count = 0, slots[SNAPS];

  for (unsigned n = 0; n < SNAPS; n++)
    if (!i->snap[n].id != there)
      slots[count++] = n;
  return count ? (int)slots[rng_below(&s->rng, count)] : -1;
}

/* Settles how an operation ended. False: the session is over. */
static bool ended(struct session *s, int result, uint64_t since)
{
  if (nospace(result, since)) {
    session_restart(s);
    return false;
  }
  OK(result);
  return true;
}

void do_snapshot(struct session *s)
{
  struct op op = { .kind = OP_SNAPSHOT, .image = s->index };
  int slot = pick_snap(s, s->image, false), result;
  uint64_t since = now_ms();

  if (slot < 0)
    return;
  op.slot = (uint32_t)slot;
  op.id = me->next_id++;
  op.lane_from = lanes_now(s, op.lane);
  op_begin(&op);
  result = pcow_snapshot_create(s->handle, snap_name(op.id));
  if (!ended(s, result, since))
    return;
  me->op.lane_limit = op.lane_from ? atomic_load(&me->lane_begun) : 0;
  op_end();
  snap_resolve(s->index, op.slot);
}

void do_delete(struct session *s)
{
  struct op op = { .kind = OP_DELETE, .image = s->index };
  int slot = pick_snap(s, s->image, true), result;
  uint64_t since = now_ms();

  if (slot < 0 || snap_is_base(s->index, s->image->snap[slot].id))
    return;
  op.slot = (uint32_t)slot;
  op.id = s->image->snap[slot].id;
  op_begin(&op);
  result = pcow_snapshot_delete(s->handle, snap_name(op.id));
  if (s->reader && s->reader_slot == op.slot) {
    CHECK(result == -EBUSY, "deleting a snapshot that is being read gave %d", result);
    op_refused();
    return;
  }
  if (ended(s, result, since))
    op_end();
}

void do_revert(struct session *s)
{
  struct op op = { .kind = OP_REVERT, .image = s->index };
  int slot = pick_snap(s, s->image, true);
  uint64_t since = now_ms();

  if (slot < 0)
    return;
  op.slot = (uint32_t)slot;
  op_begin(&op);
  if (ended(s, pcow_snapshot_revert(s->handle, snap_name(s->image->snap[slot].id)), since))
    op_end();
}

void do_resize(struct session *s)
{
  uint64_t before = s->image->head.size;
  struct op op = { .kind = OP_RESIZE, .image = s->index, .size_before = before };
  uint64_t since = now_ms();

  op.size = s->map ? before + rng_below(&s->rng, PAGES_MAX - before / PAGE + 1) * PAGE
                   : (PAGES_MIN + rng_below(&s->rng, PAGES_MAX - PAGES_MIN + 1)) * PAGE;
  if (op.size == before)
    return;
  op_begin(&op);
  if (ended(s, pcow_resize(s->handle, op.size, op.size < before ? PCOW_RESIZE_SHRINK : 0), since))
    op_end();
}

/* Does the chain of image I come to IMAGE? */
static bool lies_on(unsigned i, unsigned image)
{
  while (i != image && me->image[i].exists && me->image[i].base.kind >= BASE_SNAP)
    i = me->image[i].base.image;
  return i == image;
}

/* What image INDEX can be layered on. */
static struct base base_choose(struct session *s, unsigned index)
{
  struct base base = { .kind = (uint32_t)rng_below(&s->rng, BASE_SNAP) };
  unsigned i = (unsigned)rng_below(&s->rng, IMAGES);
  int slot;

  if (rng_chance(&s->rng, 40) || !me->image[i].exists || i == index || lies_on(i, index))
    return base;
  slot = pick_snap(s, &me->image[i], true);
  return slot < 0 ? base : (struct base){ BASE_SNAP, i, me->image[i].snap[slot].id };
}

void do_rebase(struct session *s)
{
  struct pcow_rebase_options options = PCOW_INIT(options);
  struct op op = { .kind = OP_REBASE, .image = s->index };
  uint64_t since = now_ms();

  op.base = base_choose(s, s->index);
  if (memcmp(&op.base, &s->image->base, sizeof op.base) == 0)
    return; /* it could not be seen whether that took place */
  base_options(&op.base, &options.base, &options.base_format, &options.base_snapshot);
  op_begin(&op);
  if (ended(s, pcow_rebase(s->handle, &options), since))
    op_end();
}

void do_commit(struct session *s)
{
  struct op op = { .kind = OP_COMMIT, .image = s->index, .other = s->image->base.image };
  uint64_t since = now_ms();

  if (s->image->base.kind != BASE_TIP || pick_snap(s, s->image, true) >= 0)
    return;
  op_begin(&op);
  if (ended(s, pcow_commit(s->handle, NULL, NULL), since))
    op_end();
}

/* An image that nobody writes now and on whose head nothing lies: the head can be a base, too. */
static int pick_tip(struct session *s)
{
  unsigned count = 0, images[IMAGES];

  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists && !image_is_base(i) &&
        memcmp(me->image[i].durable, me->image[i].head.block, sizeof me->image[i].durable) == 0)
      images[count++] = i;
  return count ? (int)images[rng_below(&s->rng, count)] : -1;
}

void do_create(struct session *s)
{
  static const uint64_t units[] = { 64 * KIB, 256 * KIB, MIB, 2 * MIB };
  struct pcow_create_options options = PCOW_INIT(options);
  struct op op = { .kind = OP_CREATE };
  int tip = rng_chance(&s->rng, 50) ? pick_tip(s) : -1, result;
  uint64_t since = now_ms();

  op.size = (PAGES_MIN + rng_below(&s->rng, PAGES_MAX - PAGES_MIN + 1)) * PAGE;
  while (op.image < IMAGES && me->image[op.image].exists)
    op.image++;
  CHECK(op.image < IMAGES, "the soak itself is wrong: no place for an image");
  op.unit = units[rng_below(&s->rng, 4)];
  op.base = tip >= 0 ? (struct base){ BASE_TIP, (uint32_t)tip, 0 } : base_choose(s, op.image);
  base_options(&op.base, &options.base, &options.base_format, &options.base_snapshot);
  options.unit_size = op.unit;
  options.flags = PCOW_CREATE_BASES;
  op_begin(&op);
  result = pcow_create(image_path(op.image), op.size, &options);
  if (nospace(result, since)) {
    CHECK(access(image_path(op.image), F_OK) != 0, "a failed pcow_create() left a file");
    op_refused();
    usleep(10000);
    return;
  }
  OK(result);
  op_end();
}

void do_remove(struct session *s)
{
  struct op op = { .kind = OP_REMOVE, .image = s->index };

  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists && me->image[i].base.kind >= BASE_SNAP && me->image[i].base.image == s->index)
      return;
  op_begin(&op);
  SYS(unlink(image_path(s->index)));
  op_end();
}

/* ---- A reader of a snapshot, beside all this ---- */

void do_reader(struct session *s)
{
  int slot;

  if (s->reader) {
    reader_end(s);
    return;
  }
  slot = pick_snap(s, s->image, true);
  if (slot < 0)
    return;
  s->reader_slot = (unsigned)slot;
  s->reader = soak_open(image_path(s->index), 0, snap_name(s->image->snap[slot].id));
  say("reader of snapshot %u", s->image->snap[slot].id);
}

/* It must read the same to the end, through a map as well. */
void reader_end(struct session *s)
{
  const struct snap *snap = &s->image->snap[s->reader_slot];
  pcow_mapping *map = NULL;

  if (!s->reader)
    return;
  say("reader of snapshot %u ends", snap->id);
  view_verify(s->reader, &snap->view, "a snapshot that was held open");
  if (shared->modes && rng_chance(&s->rng, 50)) {
    const unsigned char *range;

    OK(pcow_map(s->reader, NULL, &map));
    range = pcow_mapping_address(map);
    for (uint64_t p = 0; p < snap->view.size / PAGE; p++) {
      page_buffer page;

      page_make(page, &snap->view, p);
      CHECK(memcmp(range + p * PAGE, page, PAGE) == 0,
            "snapshot %u, mapped: page %" PRIu64 " is wrong", snap->id, p);
    }
    OK(pcow_unmap(map));
  }
  OK(pcow_close(s->reader));
  s->reader = NULL;
  atomic_fetch_add(&me->readers, 1);
}
