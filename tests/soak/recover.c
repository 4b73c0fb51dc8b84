/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a worker does first: everything that it has is checked as the kill left it, opened, and compared
 * with what was acknowledged. Of the operation that was under way it is found out whether it took place.
 * Killed here, too, so each step can be repeated.
 */
#include "soak.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *image_path(unsigned index)
{
  static char *path[IMAGES];

  if (!path[index])
    path[index] = test_path("%s", image_name(index));
  return path[index];
}

/* Relative: beside the image that it is the base of. */
const char *image_name(unsigned index)
{
  static char name[IMAGES][32];

  snprintf(name[index], sizeof name[index], "worker%u-%u.pcow", my_number, index);
  return name[index];
}

const char *snap_name(uint32_t id)
{
  static _Thread_local char name[4][32];
  static _Thread_local unsigned turn;

  turn = (turn + 1) % 4;
  snprintf(name[turn], sizeof name[0], "snapshot %u", id);
  return name[turn];
}

bool nospace(int result, uint64_t since)
{
  if (result != -ENOSPC)
    return false;
  CHECK(shared->fills && (atomic_load(&shared->full) || atomic_load(&shared->full_until) + 1000 >= since),
        "-ENOSPC on a file system with space: %s", pcow_errormsg());
  atomic_fetch_add(&me->enospc, 1);
  return true;
}

pcow_image *soak_open(const char *path, uint32_t flags, const char *snapshot)
{
  for (;;) {
    struct pcow_open_options options = PCOW_INIT(options);
    pcow_image *image = NULL;
    uint64_t since = now_ms();
    int result;

    options.flags = flags | PCOW_OPEN_BASES;
    options.snapshot = snapshot;
    result = pcow_open(path, &options, &image);
    atomic_fetch_add(&me->progress, 1);
    if (result == 0) {
      if (flags & PCOW_OPEN_RDWR)
        atomic_fetch_add(&me->done[OP_OPEN], 1);
      return image;
    }
    CHECK(nospace(result, since), "pcow_open(%s, flags %u, snapshot %s) gave %d: %s", path, flags,
          snapshot ? snapshot : "-", result, pcow_errormsg());
    usleep(20000);
  }
}

void base_options(const struct base *b, const char **path, uint32_t *format, const char **snapshot)
{
  *format = b->kind == BASE_NO        ? PCOW_FORMAT_NONE
            : b->kind == BASE_RAWFILE ? PCOW_FORMAT_RAW
                                      : PCOW_FORMAT_PCOW;
  *snapshot = b->kind == BASE_COMMON ? "gold" : b->kind == BASE_SNAP ? snap_name(b->id) : NULL;
  *path = b->kind == BASE_NO        ? NULL
          : b->kind == BASE_COMMON  ? "common.pcow"
          : b->kind == BASE_RAWFILE ? "common.raw"
                                    : image_name(b->image);
}

/* ---- One image ---- */

/* Kept until it is known whether there is more than leaks. */
struct findings {
  char text[4096];
  size_t length;
  unsigned copies; /* about a copy of the superblock */
};

static void note_finding(void *opaque, const char *finding)
{
  struct findings *f = opaque;
  int n = snprintf(f->text + f->length, sizeof f->text - f->length, "  %s\n", finding);

  f->length += n < (int)(sizeof f->text - f->length) ? (size_t)n : 0;
  if (strstr(finding, ": superblock copy "))
    f->copies++;
}

/* Leaks may be: slots that were being made or freed. The check cannot know that a copy of the superblock
 * was torn by a kill within the commit that begins or ends a session, and did not decay: right after a kill
 * (KILLED) it may say so of one copy. */
static void check_file(unsigned index, bool killed)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct findings findings = { .length = 0, .copies = 0 };
  const char *path = image_path(index);

  findings.text[0] = 0;
  OK(pcow_check(path, 0, &result, note_finding, NULL, &findings));
  CHECK(result.corruptions <= (killed && findings.copies == 1 ? 1 : 0), "%s: %" PRIu64 " corruptions:\n%s", path, result.corruptions, findings.text);
  atomic_fetch_add(&me->leaks, result.leaks);
  atomic_fetch_add(&me->progress, 1);
}

struct names {
  unsigned count;
  uint32_t id[SNAPS + 1];
  uint64_t size[SNAPS + 1];
};

static int list_one(void *opaque, const struct pcow_snapshot_info *info)
{
  struct names *n = opaque;

  CHECK(n->count <= SNAPS, "more snapshots than were made");
  CHECK(sscanf(info->name, "snapshot %u", &n->id[n->count]) == 1,
        "a snapshot '%s', which nobody made", info->name);
  n->size[n->count++] = info->virtual_size;
  return 0;
}

static bool listed(const struct names *n, uint32_t id)
{
  for (unsigned i = 0; i < n->count; i++)
    if (n->id[i] == id)
      return true;
  return false;
}

static bool base_is(const struct pcow_info *info, const struct base *b)
{
  const char *path, *snapshot;
  uint32_t format;

  base_options(b, &path, &format, &snapshot);
  return info->base_format == format && !path == !info->base && (!path || strcmp(path, info->base) == 0) &&
         !snapshot == !info->base_snapshot && (!snapshot || strcmp(snapshot, info->base_snapshot) == 0);
}

/* Whether the operation took place that was under way in this image, where that can be seen. */
static bool took_place(pcow_image *image, const struct op *op, const struct names *names)
{
  struct pcow_info info = PCOW_INIT(info);
  struct image *i = &me->image[op->image];

  OK(pcow_get_info(image, &info));
  switch (op->kind) {
  case OP_SNAPSHOT:
    return listed(names, op->id);
  case OP_DELETE:
    return !listed(names, op->id);
  case OP_RESIZE:
    return info.virtual_size == op->size;
  case OP_REVERT:
    return !head_is(image, op->image) && view_is(image, &i->snap[op->slot].view);
  case OP_REBASE:
    return base_is(&info, &op->base);
  default:
    return false;
  }
}

static void names_verify(unsigned index, const struct names *names)
{
  const struct image *i = &me->image[index];
  unsigned expected = 0;

  for (unsigned s = 0; s < SNAPS; s++) {
    if (!i->snap[s].id)
      continue;
    expected++;
    CHECK(listed(names, i->snap[s].id), "image %u: snapshot %u was acknowledged and is not there", index,
          i->snap[s].id);
  }
  CHECK(names->count == expected, "image %u has %u snapshots, should have %u", index, names->count, expected);
}

void snap_verify(unsigned index, unsigned slot)
{
  const struct snap *s = &me->image[index].snap[slot];
  pcow_image *image;
  char what[64];

  snap_resolve(index, slot);
  snprintf(what, sizeof what, "snapshot %u of image %u", s->id, index);
  image = soak_open(image_path(index), 0, snap_name(s->id));
  view_verify(image, &s->view, what);
  OK(pcow_close(image));
}

/* What was torn is written again, as whoever was told nothing would do. */
static void write_again(pcow_image *image, const struct op *op)
{
  page_buffer page;
  uint64_t words[BLOCK_WORDS];

  for (uint64_t b = op->first; b < op->end; b++) {
    uint64_t old[BLOCK_WORDS];

    block_make(words, op->seq, b / PAGE_BLOCKS, b % PAGE_BLOCKS);
    block_make(old, me->image[op->image].head.block[b], b / PAGE_BLOCKS, b % PAGE_BLOCKS);
    OK(pcow_pread(image, page, BLOCK, b * BLOCK));
    if (memcmp(page, words, BLOCK) == 0 || memcmp(page, old, BLOCK) == 0)
      continue;
    for (;;) { /* the page is there: this needs no space, except where a discard took it away */
      uint64_t since = now_ms();
      int result = pcow_pwrite(image, words, BLOCK, b * BLOCK);

      atomic_fetch_add(&me->progress, 1);
      if (!nospace(result, since)) {
        OK(result);
        break;
      }
      usleep(20000);
    }
    atomic_fetch_add(&me->torn, 1);
  }
}

static int flush_waiting(pcow_image *image)
{
  for (;;) {
    uint64_t since = now_ms();
    int result = pcow_sync(image);

    if (!nospace(result, since))
      return result;
    usleep(20000);
  }
}

/* Adopts what the blocks of the range became. */
static void learn_range(pcow_image *image, const struct op *op)
{
  struct image *i = &me->image[op->image];

  range_adopt(image, op->image);
  OK(flush_waiting(image));
  memcpy(i->durable + op->first, i->head.block + op->first, (op->end - op->first) * sizeof i->durable[0]);
}

static void recover_image(unsigned index)
{
  struct image *i = &me->image[index];
  struct op *op = &me->op;
  struct names names = { 0 };
  struct pcow_info info = PCOW_INIT(info);
  pcow_image *image;
  int result;

  check_file(index, true);
  image = soak_open(image_path(index), PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_list(image, list_one, &names));
  if (atomic_load(&op->phase) == INTENT && op->image == index && op->kind > OP_CLOSE &&
      op->kind != OP_COMMIT) {
    if (took_place(image, op, &names)) {
      if (op->kind == OP_SNAPSHOT && op->lane_from)
        op->lane_limit = atomic_load(&me->lane_begun);
      say("recovery: it took place");
      atomic_store(&op->phase, ACKED);
      op_apply();
    } else {
      say("recovery: it did not take place");
      atomic_store(&op->phase, IDLE);
    }
  }
  names_verify(index, &names);
  OK(pcow_get_info(image, &info));
  CHECK(base_is(&info, &i->base), "image %u has the base %s@%s, which is not the acknowledged one", index,
        info.base ? info.base : "none", info.base_snapshot ? info.base_snapshot : "");
  head_verify(image, index, false);
  if (atomic_load(&op->phase) == INTENT && op->image == index && op->kind != OP_COMMIT) {
    if (op->kind < OP_FLUSH) {
      write_again(image, op);
      learn_range(image, op);
    }
    atomic_store(&op->phase, IDLE);
  }
  if (atomic_load(&me->lane_image) == (int32_t)index)
    atomic_store(&me->lane_image, -1); /* the model has it */
  for (unsigned s = 0; s < SNAPS; s++)
    if (i->snap[s].id)
      snap_verify(index, s);
  result = pcow_close(image);
  CHECK(result == 0 || nospace(result, now_ms()), "pcow_close() gave %d: %s", result, pcow_errormsg());
  check_file(index, false);
  atomic_fetch_add(&me->reopens, 1);
}

/* ---- Operations that reach over two images, or make or remove one ---- */

static void recover_create(void)
{
  struct op *op = &me->op;

  if (access(image_path(op->image), F_OK) != 0) {
    atomic_store(&op->phase, IDLE);
    return;
  }
  atomic_store(&op->phase, ACKED); /* complete, or the verification will tell */
  op_apply();
}

/* The base of a commit that was cut short: old, or what was to be written, word by word. */
static void target_verify(const struct op *op)
{
  struct image *below = &me->image[op->other], *above = &me->image[op->image];
  pcow_image *image = soak_open(image_path(op->other), 0, NULL);
  struct pcow_info info = PCOW_INIT(info);
  page_buffer old, new;
  unsigned char *bytes;

  OK(pcow_get_info(image, &info));
  CHECK(info.virtual_size == below->head.size || info.virtual_size == above->head.size, "a size in between");
  bytes = test_alloc(info.virtual_size);
  OK(pcow_pread(image, bytes, info.virtual_size, 0));
  for (uint64_t p = 0; p < info.virtual_size / PAGE; p++) {
    page_make(old, &below->head, p);
    page_make(new, p < above->head.size / PAGE ? &above->head : &below->head, p);
    for (unsigned w = 0; w < PAGE; w += 8)
      CHECK(memcmp(bytes + p * PAGE + w, old + w, 8) == 0 || memcmp(bytes + p * PAGE + w, new + w, 8) == 0,
            "image %u, into which image %u was being committed: page %" PRIu64 " is neither old nor new at "
            "byte %u", op->other, op->image, p, w);
  }
  OK(pcow_close(image));
  free(bytes);
}

/* The overlay reads as before, and the commit can be repeated. */
static void recover_commit(void)
{
  struct op *op = &me->op;
  pcow_image *image;
  int result;

  check_file(op->other, true);
  target_verify(op);
  for (unsigned s = 0; s < SNAPS; s++)
    if (me->image[op->other].snap[s].id)
      snap_verify(op->other, s);
  recover_image(op->image);
  for (;;) {
    uint64_t since = now_ms();

    image = soak_open(image_path(op->image), PCOW_OPEN_RDWR, NULL);
    view_verify(image, &me->image[op->image].head, "the overlay of a commit that was cut short");
    result = pcow_commit(image, NULL, NULL);
    if (!nospace(result, since))
      break;
    pcow_close(image);
    atomic_fetch_add(&me->progress, 1);
    usleep(20000);
  }
  OK(result);
  atomic_store(&op->phase, ACKED);
  op_apply();
  result = pcow_close(image);
  CHECK(result == 0 || nospace(result, now_ms()), "pcow_close() gave %d: %s", result, pcow_errormsg());
}

void recover(void)
{
  struct op *op = &me->op;
  int32_t lanes = atomic_load(&me->lane_image);
  uint32_t acked = atomic_load(&me->lane_acked);

  say("recovery");
  if (atomic_load(&op->phase) == ACKED)
    op_apply();
  if (lanes >= 0 && acked >= me->lane_first)
    me->image[lanes].head.lane[acked % LANES] = acked;
  if (atomic_load(&op->phase) == INTENT && op->kind == OP_CREATE)
    recover_create();
  if (atomic_load(&op->phase) == INTENT && op->kind == OP_REMOVE) {
    CHECK(unlink(image_path(op->image)) == 0 || errno == ENOENT, "cannot remove an image");
    atomic_store(&op->phase, ACKED);
    op_apply();
  }
  if (atomic_load(&op->phase) == INTENT && op->kind == OP_COMMIT)
    recover_commit();
  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists)
      recover_image(i);
  if (atomic_load(&op->phase) == INTENT) /* open, map, unmap: nothing to find out */
    atomic_store(&op->phase, IDLE);
  atomic_store(&me->lane_image, -1);
}
