/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Operations on content: each is done to the image and to the reference. Where the image is mapped
 * store-durably, what returns is durable; else once it is flushed.
 */
#include "model-world.h"

#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void world_range(struct world *w, uint64_t size, uint64_t max, uint64_t *offset, uint64_t *length)
{
  struct rng *rng = &w->rng;
  uint64_t at, count;

  if (max > size)
    max = size;
  count = 1 + rng_below(rng, UINT64_C(1) << rng_below(rng, 21));
  if (count > max)
    count = max;
  at = rng_below(rng, size - count + 1);
  switch (rng_below(rng, 6)) {
  case 0: /* anywhere, any length */
    break;
  case 1: /* at the end */
    at = size - count;
    break;
  case 2: /* across the end of a unit */
    if (w->unit < size) {
      at = (1 + rng_below(rng, (size - 1) / w->unit)) * w->unit;
      at -= at < count / 2 ? at : count / 2;
      if (count > size - at)
        count = size - at;
    }
    break;
  default: /* whole pages */
    at = at / PAGE * PAGE;
    count = (count + PAGE - 1) / PAGE * PAGE;
    if (count > max)
      count = max / PAGE ? max / PAGE * PAGE : max;
    if (count > size - at)
      count = size - at;
  }
  *offset = at;
  *length = count;
}

/* The range was written, otherwise than through the map. */
static void content_changed(struct world *w, uint64_t offset, uint64_t length)
{
  if (w->map && !w->flush_durable)
    durable_range(w, offset, length);
}

void op_pwrite(struct world *w)
{
  uint64_t offset, length;
  unsigned char *buffer;

  world_range(w, w->head->size, 768 * KIB, &offset, &length);
  world_say(w, "pwrite %" PRIu64 "+%" PRIu64, offset, length);
  buffer = test_alloc(length);
  if (!rng_chance(&w->rng, 5)) /* else zeros */
    rng_fill(&w->rng, buffer, length);
  durable_note(w);
  OK(pcow_pwrite(w->image, buffer, length, offset));
  model_write(w->head, buffer, length, offset);
  content_changed(w, offset, length);
  free(buffer);
}

void op_pread(struct world *w)
{
  uint64_t offset, length, wrong;
  unsigned char *buffer;

  world_range(w, w->head->size, 2 * MIB, &offset, &length);
  world_say(w, "pread %" PRIu64 "+%" PRIu64, offset, length);
  buffer = test_alloc(length);
  OK(pcow_pread(w->image, buffer, length, offset));
  wrong = model_differs(w->head, buffer, length, offset);
  if (wrong != UINT64_MAX) {
    model_explain(w->head, buffer, offset, length, wrong);
    FAIL("pcow_pread() reads wrong at 0x%" PRIx64, wrong);
  }
  free(buffer);
}

void op_discard(struct world *w)
{
  uint64_t offset, length;

  world_range(w, w->head->size, 4 * MIB, &offset, &length);
  world_say(w, "discard %" PRIu64 "+%" PRIu64, offset, length);
  durable_note(w);
  OK(pcow_discard(w->image, offset, length));
  model_zero(w->head, length, offset);
  content_changed(w, offset, length);
}

void op_zeroes(struct world *w)
{
  uint32_t flags = rng_chance(&w->rng, 50) ? PCOW_ZERO_KEEP_SPACE : 0;
  uint64_t offset, length;

  world_range(w, w->head->size, 1 * MIB, &offset, &length);
  world_say(w, "write_zeroes %" PRIu64 "+%" PRIu64 " flags %u", offset, length, flags);
  durable_note(w);
  OK(pcow_write_zeroes(w->image, offset, length, flags));
  model_zero(w->head, length, offset);
  content_changed(w, offset, length);
}

void op_sync(struct world *w)
{
  world_say(w, "sync");
  OK(pcow_sync(w->image));
  durable_all(w);
}

void op_flush(struct world *w)
{
  uint64_t offset, length;

  if (!w->map) {
    op_sync(w);
    return;
  }
  world_range(w, w->head->size, 4 * MIB, &offset, &length);
  world_say(w, "flush %" PRIu64 "+%" PRIu64, offset, length);
  OK(pcow_flush(w->map, offset, length));
  durable_range(w, offset, length);
}

/* The map as the buffer of a read or write of the same image. */
void op_self_copy(struct world *w)
{
  uint64_t half = w->head->size / 2, from, to, length;
  unsigned char *bytes;
  bool write = rng_chance(&w->rng, 50);

  if (!w->map || half < PAGE || TEST_TSAN)
    return;
  world_range(w, half, 300 * KIB, &from, &length);
  to = half + rng_below(&w->rng, half - length + 1);
  if (rng_chance(&w->rng, 50)) {
    uint64_t other = from;

    from = to;
    to = other;
  }
  world_say(w, "%s between the map and the image: %" PRIu64 "+%" PRIu64 " to %" PRIu64,
            write ? "pwrite" : "pread", from, length, to);
  durable_note(w);
  if (write)
    OK(pcow_pwrite(w->image, w->address + from, length, to));
  else
    OK(pcow_pread(w->image, w->address + to, length, from));
  bytes = test_alloc(length);
  for (uint64_t at = 0, count; at < length; at += count) {
    uint64_t within = (from + at) % PAGE;

    count = PAGE - within < length - at ? PAGE - within : length - at;
    memcpy(bytes + at, model_bytes(w->head, (from + at) / PAGE) + within, count);
  }
  model_write(w->head, bytes, length, to);
  free(bytes);
}

/* ---- Mapping ------------------------------------------------------------------------------- */

void world_unreserve(struct world *w)
{
  if (w->reserved)
    SYS(munmap(w->reserved, w->reserved_length));
  w->reserved = NULL;
}

void world_map(struct world *w)
{
  static const uint64_t granules[] = { 0, 4 * KIB, 8 * KIB, 64 * KIB, 2 * MIB };
  struct pcow_map_options options = PCOW_INIT(options);
  int result;

  if (!w->modes)
    return;
  w->flush_durable = w->modes == MODE_FLUSH || (w->modes & MODE_FLUSH && rng_chance(&w->rng, 55));
  options.durability = w->flush_durable ? PCOW_FLUSH_DURABLE : PCOW_STORE_DURABLE;
  options.thin = (uint32_t)rng_below(&w->rng, 3);
  options.granule = granules[rng_below(&w->rng, 5)];
  options.dram_limit = rng_chance(&w->rng, 40) ? 1 * MIB : 0;
  mapping_override_eager(rng_chance(&w->rng, 60) ? rng_below(&w->rng, 20) : UINT64_MAX);
  if (rng_chance(&w->rng, 60))
    options.reserve = (w->head->size + rng_below(&w->rng, 8 * MIB)) / PAGE * PAGE;
  if (rng_chance(&w->rng, 40)) {
    uint64_t length = options.reserve ? options.reserve : w->head->size;

    w->reserved_length = length + 4 * MIB;
    w->reserved = mmap(NULL, w->reserved_length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                       0);
    CHECK(w->reserved != MAP_FAILED, "no address space");
    options.address = (void *)(((uintptr_t)w->reserved + 2 * MIB - 1) / (2 * MIB) * (2 * MIB));
  }
  if (w->msync && rng_chance(&w->rng, 10)) {
    struct pcow_map_options other = options;

    other.durability = PCOW_STORE_DURABLE;
    result = pcow_map(w->image, &other, &w->map);
    CHECK(result == -ENOTSUP && strstr(pcow_errormsg(), "flush-durable"),
          "pcow_map() where stores are not durable gave %d: %s", result, pcow_errormsg());
  }
  result = pcow_map(w->image, &options, &w->map);
  CHECK(result >= 0, "pcow_map() gave %d: %s", result, pcow_errormsg());
  w->reserve = options.reserve ? options.reserve : w->head->size;
  w->address = pcow_mapping_address(w->map);
  CHECK(!options.address || w->address == options.address, "mapped at another address");
  w->maps++;
}

void world_count(struct world *w)
{
  struct pcow_mapping_stats stats = test_stats(w->map);

  w->merges += stats.merges;
  w->flushes += stats.flushes;
  w->flushed += stats.pages_flushed;
  w->handed_over += stats.pages_handed_over;
}

void world_unmap(struct world *w)
{
  if (!w->map)
    return;
  world_count(w);
  OK(pcow_unmap(w->map));
  if (w->flush_durable)
    durable_all(w);
  w->map = NULL;
  w->address = NULL;
  world_unreserve(w);
}

void world_maybe_unmap(struct world *w, unsigned percent)
{
  if (w->map && rng_chance(&w->rng, percent)) {
    world_say(w, "  unmap first");
    world_unmap(w);
  }
}

void op_map(struct world *w)
{
  if (w->map) {
    op_unmap(w);
    return;
  }
  world_map(w);
  if (w->map)
    world_say(w, "map: %s-durable, %s address, reserve %" PRIu64, w->flush_durable ? "flush" : "store",
              w->reserved ? "own" : "any", w->reserve);
}

void op_unmap(struct world *w)
{
  if (!w->map) {
    op_map(w);
    return;
  }
  world_say(w, "unmap");
  world_unmap(w);
}

/* ---- What the library says about content --------------------------------------------------- */

struct walk {
  struct world *w;
  const struct model *c, *from;
  uint64_t at, end;
  bool merge, diff;
};

/* DATA lies in the file where the extent says. */
static void extent_compare(struct walk *k, const struct pcow_extent *e)
{
  unsigned char *bytes = test_alloc(e->length);
  int fd = open(e->path, O_RDONLY | O_CLOEXEC);
  uint64_t wrong;

  CHECK(fd >= 0, "an extent lies in '%s': %s", e->path, strerror(errno));
  SYS(pread(fd, bytes, e->length, (off_t)e->file_offset)); /* a raw file may end earlier: zeros */
  close(fd);
  wrong = model_differs(k->c, bytes, e->length, e->offset);
  if (wrong != UINT64_MAX) {
    model_explain(k->c, bytes, e->offset, e->length, wrong);
    FAIL("the extent %" PRIu64 "+%" PRIu64 " at %" PRIu64 " of %s, depth %u, is not what it holds",
         e->offset, e->length, e->file_offset, e->path, e->depth);
  }
  free(bytes);
}

static int extent_one(void *opaque, const struct pcow_extent *e)
{
  struct walk *k = opaque;

  CHECK(e->length && e->offset % PAGE == 0, "an extent is %" PRIu64 "+%" PRIu64, e->offset, e->length);
  CHECK(e->offset == k->at, "an extent begins at %" PRIu64 " instead of %" PRIu64, e->offset, k->at);
  CHECK(e->length <= k->end - k->at, "an extent ends beyond %" PRIu64, k->end);
  k->at += e->length;
  if (e->type != PCOW_EXTENT_DATA) {
    for (uint64_t page = e->offset / PAGE; page < k->at / PAGE; page++)
      CHECK(model_is_zero(k->c, page), "page %" PRIu64 " is in an extent of type %u", page, e->type);
  } else if (!k->merge) {
    CHECK(e->path, "a data extent has no file");
    extent_compare(k, e);
  }
  return 0;
}

void op_extents(struct world *w)
{
  struct walk k = { .w = w, .c = w->head, .end = w->head->size };
  uint64_t pages = w->head->size / PAGE;

  k.merge = rng_chance(&w->rng, 40);
  if (rng_chance(&w->rng, 50)) {
    k.at = rng_below(&w->rng, pages) * PAGE;
    k.end = k.at + (1 + rng_below(&w->rng, pages - k.at / PAGE)) * PAGE;
  }
  world_say(w, "extents %" PRIu64 "-%" PRIu64 "%s", k.at, k.end, k.merge ? ", merged" : "");
  OK(pcow_extents(w->image, k.at, k.end - k.at, k.merge ? PCOW_EXTENTS_MERGE : 0, extent_one, &k));
  CHECK(k.at == k.end, "the extents end at %" PRIu64 " instead of %" PRIu64, k.at, k.end);
}

static bool page_differs(const struct walk *k, uint64_t page)
{
  uint64_t common = k->from->size < k->c->size ? k->from->size : k->c->size;

  return page >= common / PAGE || memcmp(model_bytes(k->from, page), model_bytes(k->c, page), PAGE) != 0;
}

static int diff_one(void *opaque, const struct pcow_extent *e)
{
  struct walk *k = opaque;

  CHECK(e->length && e->offset >= k->at && e->offset + e->length <= k->end,
        "a difference is %" PRIu64 "+%" PRIu64 " after %" PRIu64, e->offset, e->length, k->at);
  for (; k->at < e->offset; k->at += PAGE)
    CHECK(!page_differs(k, k->at / PAGE), "page %" PRIu64 " differs and is left out", k->at / PAGE);
  for (; k->at < e->offset + e->length; k->at += PAGE) {
    CHECK(page_differs(k, k->at / PAGE), "page %" PRIu64 " is said to differ", k->at / PAGE);
    CHECK(e->type == PCOW_EXTENT_DATA || model_is_zero(k->c, k->at / PAGE),
          "page %" PRIu64 " is said to be zero", k->at / PAGE);
  }
  return 0;
}

void op_diff(struct world *w)
{
  struct walk k = { .w = w, .c = w->head };
  struct snap *from, *to = NULL;

  if (!w->snap_count)
    return;
  from = &w->snaps[rng_below(&w->rng, w->snap_count)];
  if (rng_chance(&w->rng, 50)) {
    to = &w->snaps[rng_below(&w->rng, w->snap_count)];
    k.c = to->content;
  }
  k.from = from->content;
  k.end = k.from->size > k.c->size ? k.from->size : k.c->size;
  world_say(w, "diff '%s' to '%s'", from->name, to ? to->name : "the head");
  OK(pcow_diff(w->image, from->name, to ? to->name : NULL, diff_one, &k));
  for (; k.at < k.end; k.at += PAGE)
    CHECK(!page_differs(&k, k.at / PAGE), "page %" PRIu64 " differs and is left out", k.at / PAGE);
}
