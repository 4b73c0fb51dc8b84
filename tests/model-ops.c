/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Operations on content: each is done to the image and to the reference. Stores through the map run in
 * several threads and draw what they write from their own seeds; the reference repeats them
 * afterwards, one thread after the other, since no two threads touch the same word.
 */
#include "model-world.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
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

void op_pwrite(struct world *w)
{
  uint64_t offset, length;
  unsigned char *buffer;

  world_range(w, w->head->size, 768 * KIB, &offset, &length);
  world_say(w, "pwrite %" PRIu64 "+%" PRIu64, offset, length);
  buffer = test_alloc(length);
  if (!rng_chance(&w->rng, 5)) /* else zeros */
    rng_fill(&w->rng, buffer, length);
  OK(pcow_pwrite(w->image, buffer, length, offset));
  model_write(w->head, buffer, length, offset);
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
  OK(pcow_discard(w->image, offset, length));
  model_zero(w->head, length, offset);
}

void op_zeroes(struct world *w)
{
  uint32_t flags = rng_chance(&w->rng, 50) ? PCOW_ZERO_KEEP_SPACE : 0;
  uint64_t offset, length;

  world_range(w, w->head->size, 1 * MIB, &offset, &length);
  world_say(w, "write_zeroes %" PRIu64 "+%" PRIu64 " flags %u", offset, length, flags);
  OK(pcow_write_zeroes(w->image, offset, length, flags));
  model_zero(w->head, length, offset);
}

void op_flush(struct world *w)
{
  world_say(w, "flush");
  OK(pcow_sync(w->image));
}

/* ---- Stores through the map ---------------------------------------------------------------- */

enum store_kind {
  STORE_DISJOINT, /* each thread has its own pages */
  STORE_SHARED, /* the threads have their own words of the same pages */
  STORE_SEQUENTIAL, /* each thread goes through its own part */
  STORE_KINDS
};

/* A thread's stores: the same sequence each time it is run from its start. */
struct storer {
  struct world *w;
  pthread_t thread;
  struct rng rng;
  enum store_kind kind;
  unsigned me, threads;
  uint64_t first, pages; /* of the range of all threads */
  uint64_t at; /* STORE_SEQUENTIAL */
  unsigned count;
};

struct store {
  uint64_t offset;
  unsigned words;
  uint64_t value[PCOW_PAGE_SIZE / 8];
};

static void store_next(struct storer *s, struct store *store)
{
  uint64_t page, word = 0, part = s->pages / s->threads;

  switch (s->kind) {
  case STORE_SHARED:
    page = rng_below(&s->rng, s->pages);
    word = rng_below(&s->rng, PAGE / 8 / s->threads) * s->threads + s->me;
    store->words = 1;
    break;
  case STORE_SEQUENTIAL:
    page = s->me * part + s->at++ % part;
    store->words = PAGE / 8;
    break;
  default:
    page = rng_below(&s->rng, part) * s->threads + s->me;
    word = rng_below(&s->rng, PAGE / 8);
    store->words = 1 + (unsigned)rng_below(&s->rng, rng_chance(&s->rng, 20) ? PAGE / 8 - word : 1);
  }
  store->offset = (s->first + page) * PAGE + word * 8;
  rng_fill(&s->rng, store->value, store->words * 8);
}

static void *storer_run(void *argument)
{
  struct storer s = *(struct storer *)argument; /* the caller repeats from the start */
  struct world *w = s.w;

  for (unsigned i = 0; i < s.count; i++) {
    struct store store;

    store_next(&s, &store);
    if (store.words == PAGE / 8 && !TEST_TSAN)
      memcpy(w->address + store.offset, store.value, PAGE);
    else
      test_range_store(w->address + store.offset, store.value, store.words * 8);
    if (i % 16 == 15)
      OK(pcow_persist(w->map, store.offset, store.words * 8));
  }
  return NULL;
}

static void storer_repeat(struct storer *s, struct model *c)
{
  for (unsigned i = 0; i < s->count; i++) {
    struct store store;

    store_next(s, &store);
    model_write(c, store.value, store.words * 8, store.offset);
  }
}

void op_stores(struct world *w)
{
  struct storer storers[4];
  uint64_t pages = w->head->size / PAGE, part, apart = 0;
  unsigned threads = w->threads, others = 0;
  enum store_kind kind = (enum store_kind)rng_below(&w->rng, STORE_KINDS);
  uint64_t first = 0;

  if (!w->map) {
    world_map(w);
    if (!w->map) {
      op_pwrite(w);
      return;
    }
  }
  /* With OTHERS, this thread does something in the first half while the storers are in the second. */
  if (pages >= 16 && rng_chance(&w->rng, 40)) {
    others = 1 + (unsigned)rng_below(&w->rng, 6);
    first = apart = pages / 2;
    pages -= apart;
  }
  if (pages > 8 && rng_chance(&w->rng, 50)) { /* close together */
    part = 1 + rng_below(&w->rng, pages);
    first += rng_below(&w->rng, pages - part + 1);
    pages = part;
  }
  if (pages < threads)
    threads = 1;
  world_say(w, "stores: kind %u, %u threads, pages %" PRIu64 "+%" PRIu64 ", %u others", kind, threads,
            first, pages, others);
  for (unsigned i = 0; i < threads; i++) {
    storers[i] = (struct storer){ .w = w, .kind = kind, .me = i, .threads = threads, .first = first,
                                  .pages = pages, .rng = { rng_next(&w->rng) } };
    storers[i].count = 1 + (unsigned)rng_below(&w->rng, kind == STORE_SHARED ? 200 : 60);
    storers[i].at = rng_below(&w->rng, pages / threads);
    CHECK(!pthread_create(&storers[i].thread, NULL, storer_run, &storers[i]), "no thread");
  }
  for (unsigned i = 0; i < others; i++) {
    uint64_t offset, length;
    unsigned char *buffer;

    world_range(w, apart * PAGE, 256 * KIB, &offset, &length);
    buffer = test_alloc(length);
    switch (rng_below(&w->rng, 4)) {
    case 0:
      world_say(w, "  beside them discard %" PRIu64 "+%" PRIu64, offset, length);
      OK(pcow_discard(w->image, offset, length));
      model_zero(w->head, length, offset);
      break;
    case 1:
      world_say(w, "  beside them flush");
      OK(pcow_sync(w->image));
      break;
    default:
      world_say(w, "  beside them pwrite %" PRIu64 "+%" PRIu64, offset, length);
      rng_fill(&w->rng, buffer, length);
      OK(pcow_pwrite(w->image, buffer, length, offset));
      model_write(w->head, buffer, length, offset);
    }
    free(buffer);
  }
  for (unsigned i = 0; i < threads; i++) {
    pthread_join(storers[i].thread, NULL);
    storer_repeat(&storers[i], w->head);
  }
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

  options.durability = PCOW_STORE_DURABLE;
  options.thin = rng_chance(&w->rng, 30) ? PCOW_THIN_NATIVE : PCOW_THIN_GUARDED;
  options.granule = granules[rng_below(&w->rng, 5)];
  options.dram_limit = rng_chance(&w->rng, 40) ? 1 * MIB : 0;
  if (rng_chance(&w->rng, 60))
    options.reserve = (w->head->size + rng_below(&w->rng, 8 * MIB)) / PAGE * PAGE;
  if (rng_chance(&w->rng, 40)) {
    uint64_t length = options.reserve ? options.reserve : w->head->size;

    w->reserved_length = length + 4 * MIB;
    w->reserved = mmap(NULL, w->reserved_length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(w->reserved != MAP_FAILED, "no address space");
    options.address = (void *)(((uintptr_t)w->reserved + 2 * MIB - 1) / (2 * MIB) * (2 * MIB));
  }
  result = pcow_map(w->image, &options, &w->map);
  if (!w->can_map) {
    CHECK(result == -ENOTSUP && strstr(pcow_errormsg(), "flush-durable"),
          "pcow_map() where stores are not durable gave %d: %s", result, pcow_errormsg());
    w->map = NULL;
    world_unreserve(w);
    return;
  }
  CHECK(result >= 0, "pcow_map() gave %d: %s", result, pcow_errormsg());
  w->reserve = options.reserve ? options.reserve : w->head->size;
  w->address = pcow_mapping_address(w->map);
  CHECK(!options.address || w->address == options.address, "mapped at another address");
  w->maps++;
}

void world_unmap(struct world *w)
{
  if (!w->map)
    return;
  w->merges += test_stats(w->map).merges;
  OK(pcow_unmap(w->map));
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
  world_say(w, "map: %s address, reserve %" PRIu64, w->reserved ? "own" : "any", w->reserve);
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
