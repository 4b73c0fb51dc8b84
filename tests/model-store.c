/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Stores through the map by several threads, which draw what they write from their own seeds; the reference
 * repeats them afterwards, one thread after the other, since no two threads touch the same word. Beside them
 * others flush ranges, and this thread writes and discards what is its own among them, and takes snapshots.
 * What a device would write comes by O_DIRECT.
 */
#include "model-world.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STORERS 4u
#define FLUSHERS 2u
#define DMA_PAGES 256u
#define SWEEP_STORES 8u /* of a thread, to a page */

enum store_kind {
  STORE_DISJOINT, /* each thread has its own pages */
  STORE_SHARED, /* the threads have their own words of the same pages */
  STORE_SEQUENTIAL, /* each thread goes through its own part */
  STORE_SWEEP, /* as SHARED, all go through the pages, and what they are at is flushed */
  STORE_KINDS
};

/* What one of COUNT threads may touch of the range of all. */
struct share {
  enum store_kind kind;
  unsigned me, count;
  uint64_t first, pages;
};

/* A thread's stores: the same sequence each time it is run from its start. */
struct storer {
  struct world *w;
  pthread_t thread;
  struct rng rng;
  struct share share;
  uint64_t at; /* STORE_SEQUENTIAL, STORE_SWEEP */
  _Atomic uint64_t *now; /* the page that is stored to */
  unsigned count;
};

struct store {
  uint64_t offset;
  unsigned words;
  enum { FLUSH_NOT, FLUSH_THIS, FLUSH_ALL } flush; /* afterwards: what was stored, or the range of all */
  uint64_t value[PCOW_PAGE_SIZE / 8];
};

static void store_next(struct storer *s, struct store *store)
{
  const struct share *h = &s->share;
  uint64_t page, word = 0, part = h->pages / h->count, draw = rng_below(&s->rng, 100);

  switch (h->kind) {
  case STORE_SHARED:
  case STORE_SWEEP:
    page = h->kind == STORE_SWEEP ? s->at++ / SWEEP_STORES % h->pages : rng_below(&s->rng, h->pages);
    word = rng_below(&s->rng, PAGE / 8 / h->count) * h->count + h->me;
    store->words = 1;
    break;
  case STORE_SEQUENTIAL:
    page = h->me * part + s->at++ % part;
    store->words = PAGE / 8;
    break;
  default:
    page = rng_below(&s->rng, part) * h->count + h->me;
    word = rng_below(&s->rng, PAGE / 8);
    store->words = 1 + (unsigned)rng_below(&s->rng, rng_chance(&s->rng, 20) ? PAGE / 8 - word : 1);
  }
  store->offset = (h->first + page) * PAGE + word * 8;
  store->flush = draw < 2 ? FLUSH_ALL : draw < 8 ? FLUSH_THIS : FLUSH_NOT;
  rng_fill(&s->rng, store->value, store->words * 8);
}

static void *storer_run(void *argument)
{
  struct storer s = *(struct storer *)argument; /* the caller repeats from the start */
  struct world *w = s.w;

  for (unsigned i = 0; i < s.count; i++) {
    struct store store;

    store_next(&s, &store);
    atomic_store(s.now, store.offset / PAGE);
    if (store.words == PAGE / 8 && !TEST_TSAN)
      memcpy(w->address + store.offset, store.value, PAGE);
    else
      test_range_store(w->address + store.offset, store.value, store.words * 8);
    if (store.flush == FLUSH_THIS)
      OK(pcow_persist(w->map, store.offset, store.words * 8));
    else if (store.flush == FLUSH_ALL)
      OK(pcow_flush(w->map, s.share.first * PAGE, s.share.pages * PAGE));
  }
  return NULL;
}

/* What the storer had stored up to then is durable. */
static void storer_durable(const struct storer *whole, unsigned count)
{
  struct storer s = *whole;

  while (count--) {
    struct store store;

    store_next(&s, &store);
    durable_range(s.w, store.offset, store.words * 8);
  }
}

static void storer_repeat(const struct storer *whole, bool durable)
{
  struct storer s = *whole;

  for (unsigned i = 0; i < s.count; i++) {
    struct store store;

    store_next(&s, &store);
    durable_store(s.w, store.offset, store.value, store.words);
    model_write(s.w->head, store.value, store.words * 8, store.offset);
    if (store.flush == FLUSH_ALL)
      storer_durable(whole, i + 1);
    else if (store.flush == FLUSH_THIS || durable)
      durable_range(s.w, store.offset, store.words * 8);
  }
}

/* ---- A snapshot among stores --------------------------------------------------------------- */

static uint64_t word_at(const unsigned char *bytes, uint64_t offset)
{
  uint64_t word;

  memcpy(&word, bytes + offset, 8);
  return word;
}

/* Was WORD stored at OFFSET by one of these? */
static bool stored(const struct store *stores, unsigned count, uint64_t offset, uint64_t word)
{
  for (unsigned i = 0; i < count; i++)
    if (offset >= stores[i].offset && offset - stores[i].offset < stores[i].words * 8 &&
        stores[i].value[(offset - stores[i].offset) / 8] == word)
      return true;
  return false;
}

/* FOUND, of the pages of the range, may be what the storer had done after DONE stores, with some of the
 * next MORE ones. STATE is what the range was after DONE. */
static bool cut_is(const struct storer *s, const struct store *stores, unsigned done, unsigned more,
                   const struct model *state, const unsigned char *found)
{
  uint64_t zero = s->share.first * PAGE;

  for (unsigned i = 0; i < s->count; i++)
    for (unsigned k = 0; k < stores[i].words; k++) {
      uint64_t offset = stores[i].offset + k * 8, word = word_at(found, offset - zero);

      if (word != word_at(model_bytes(state, offset / PAGE), offset % PAGE) &&
          !stored(stores + done, more, offset, word))
        return false;
    }
  return true;
}

/* Of each thread the snapshot has what came before some moment and nothing after it. Where stores are durable,
 * that is one store; else what lies between two flushes may come in any order. BEFORE: what the head
 * was before the threads. */
static void cut_check(struct world *w, struct snap *snap, struct storer *s, const struct model *before)
{
  struct store *stores = test_alloc(s->count * sizeof *stores);
  struct model *state = model_copy(before);
  unsigned char *found = test_alloc(s->share.pages * PAGE);
  pcow_image *image = test_open(w->path, 0, snap->name);
  struct storer again = *s;
  unsigned done = 0, more;

  OK(pcow_pread(image, found, s->share.pages * PAGE, s->share.first * PAGE));
  OK(pcow_close(image));
  for (unsigned i = 0; i < s->count; i++)
    store_next(&again, &stores[i]);
  for (;; done += more) {
    for (more = 0; done + more < s->count; more++)
      if (more && (!w->flush_durable || stores[done + more - 1].flush == FLUSH_ALL))
        break;
    if (cut_is(s, stores, done, more, state, found))
      break;
    CHECK(more, "'%s' has not what thread %u had stored at any one time", snap->name, s->share.me);
    for (unsigned i = done; i < done + more; i++)
      model_write(state, stores[i].value, stores[i].words * 8, stores[i].offset);
  }
  for (unsigned i = 0; i < s->count; i++)
    model_write(snap->content, found + (stores[i].offset - s->share.first * PAGE), stores[i].words * 8,
                stores[i].offset);
  w->cuts++;
  model_free(state);
  free(found);
  free(stores);
}

/* ---- Beside the storers -------------------------------------------------------------------- */

struct flusher {
  struct world *w;
  pthread_t thread;
  struct rng rng;
  uint64_t first, pages;
  _Atomic uint64_t *now; /* NULL: anywhere */
  atomic_bool *stop;
};

static void *flusher_run(void *argument)
{
  struct flusher *f = argument;

  while (!atomic_load(f->stop)) {
    uint64_t pages = 1 + rng_below(&f->rng, rng_chance(&f->rng, 30) ? f->pages : 1);
    uint64_t first = f->first + rng_below(&f->rng, f->pages - pages + 1);

    if (f->now && rng_chance(&f->rng, 90)) {
      first = atomic_load(f->now);
      pages = 1;
    }
    OK(pcow_flush(f->w->map, first * PAGE, pages * PAGE));
    if (rng_chance(&f->rng, 50))
      sched_yield();
  }
  return NULL;
}

/* A random range of what is this thread's. */
static void share_range(struct world *w, const struct share *h, uint64_t *offset, uint64_t *length)
{
  uint64_t part = h->pages / h->count, page;

  switch (h->kind) {
  case STORE_SHARED:
  case STORE_SWEEP:
    page = rng_below(&w->rng, h->pages);
    *offset = (h->first + page) * PAGE + (rng_below(&w->rng, PAGE / 8 / h->count) * h->count + h->me) * 8;
    *length = 8;
    break;
  case STORE_SEQUENTIAL:
    world_range(w, part * PAGE, 256 * KIB, offset, length);
    *offset += (h->first + h->me * part) * PAGE;
    break;
  default:
    page = rng_below(&w->rng, part) * h->count + h->me;
    world_range(w, PAGE, PAGE, offset, length);
    *offset += (h->first + page) * PAGE;
  }
}

/* Gives the snapshot, if it took one. */
static struct snap *beside(struct world *w, const struct share *h, bool snapshot)
{
  struct snap *snap = NULL;
  uint64_t offset, length, wrong;
  unsigned draw = (unsigned)rng_below(&w->rng, 8);
  unsigned char *buffer;

  if (draw == 4 && (!snapshot || w->snap_count == SNAPS_MAX))
    draw++;
  share_range(w, h, &offset, &length);
  buffer = test_alloc(length);
  switch (draw) {
  case 0:
    world_say(w, "  beside them discard %" PRIu64 "+%" PRIu64, offset, length);
    durable_note(w);
    OK(pcow_discard(w->image, offset, length));
    model_zero(w->head, length, offset);
    break;
  case 1:
    world_say(w, "  beside them write_zeroes %" PRIu64 "+%" PRIu64, offset, length);
    durable_note(w);
    OK(pcow_write_zeroes(w->image, offset, length, PCOW_ZERO_KEEP_SPACE));
    model_zero(w->head, length, offset);
    break;
  case 2:
    world_say(w, "  beside them sync");
    OK(pcow_sync(w->image));
    durable_all(w);
    break;
  case 3:
    world_say(w, "  beside them flush %" PRIu64 "+%" PRIu64, offset, length);
    OK(pcow_flush(w->map, offset, length));
    durable_range(w, offset, length);
    break;
  case 4:
    world_say(w, "  beside them a snapshot");
    snap = world_snapshot(w);
    break;
  case 5:
    OK(pcow_pread(w->image, buffer, length, offset));
    wrong = model_differs(w->head, buffer, length, offset);
    CHECK(wrong == UINT64_MAX, "beside stores pcow_pread() reads wrong at 0x%" PRIx64, wrong);
    break;
  default:
    world_say(w, "  beside them pwrite %" PRIu64 "+%" PRIu64, offset, length);
    rng_fill(&w->rng, buffer, length);
    durable_note(w);
    OK(pcow_pwrite(w->image, buffer, length, offset));
    model_write(w->head, buffer, length, offset);
  }
  if ((draw < 2 || draw > 5) && !w->flush_durable)
    durable_range(w, offset, length);
  free(buffer);
  return snap;
}

void op_stores(struct world *w)
{
  struct storer storers[STORERS];
  struct flusher flushers[FLUSHERS];
  struct share share = { .count = w->threads };
  struct snap *snap = NULL;
  struct model *before;
  atomic_bool stop = false;
  _Atomic uint64_t now;
  uint64_t pages = w->head->size / PAGE;
  unsigned others = rng_chance(&w->rng, 40) ? 1 + (unsigned)rng_below(&w->rng, 6) : 0, flushing = 0;
  bool hot;

  if (!w->map) {
    world_map(w);
    if (!w->map) {
      op_pwrite(w);
      return;
    }
  }
  share.kind = (enum store_kind)rng_below(&w->rng, STORE_KINDS);
  hot = share.kind == STORE_SHARED && rng_chance(&w->rng, 30); /* the same pages again and again */
  share.pages = pages;
  if (pages > 8 && (hot || rng_chance(&w->rng, 50))) { /* close together */
    share.pages = hot ? 1 + rng_below(&w->rng, 8) : 1 + rng_below(&w->rng, pages);
    share.first = rng_below(&w->rng, pages - share.pages + 1);
  }
  if (share.pages <= share.count) {
    share.count = 1;
    others = 0;
  }
  share.count += others > 0; /* the last one is this thread */
  if (rng_chance(&w->rng, w->flush_durable ? 60 : 10))
    flushing = 1 + (unsigned)rng_below(&w->rng, FLUSHERS);
  world_say(w, "stores: kind %u%s, %u threads, pages %" PRIu64 "+%" PRIu64 ", %u others, %u flushers",
            share.kind, hot ? " (hot)" : "", share.count, share.first, share.pages, others, flushing);

  atomic_init(&now, share.first);
  before = model_copy(w->head);
  for (unsigned i = 0; i < flushing; i++) {
    flushers[i] = (struct flusher){ .w = w, .rng = { rng_next(&w->rng) }, .first = share.first,
                                    .pages = share.pages, .stop = &stop };
    flushers[i].now = share.kind == STORE_SWEEP ? &now : NULL;
    CHECK(!pthread_create(&flushers[i].thread, NULL, flusher_run, &flushers[i]), "no thread");
  }
  for (unsigned i = 0; i < share.count - (others > 0); i++) {
    struct storer *s = &storers[i];

    *s = (struct storer){ .w = w, .share = share, .rng = { rng_next(&w->rng) }, .now = &now };
    s->share.me = i;
    s->count = 1 + (unsigned)rng_below(&w->rng, hot ? 1500 : share.kind == STORE_SHARED ? 200 : 60);
    if (share.kind == STORE_SWEEP)
      s->count = SWEEP_STORES * (unsigned)(share.pages < 200 ? share.pages : 200);
    else
      s->at = rng_below(&w->rng, share.pages / share.count);
    CHECK(!pthread_create(&s->thread, NULL, storer_run, s), "no thread");
  }
  share.me = share.count - 1;
  for (unsigned i = 0; i < others; i++) {
    struct snap *taken = beside(w, &share, !snap);

    snap = taken ? taken : snap;
  }
  for (unsigned i = 0; i < share.count - (others > 0); i++)
    pthread_join(storers[i].thread, NULL);
  atomic_store(&stop, true);
  for (unsigned i = 0; i < flushing; i++)
    pthread_join(flushers[i].thread, NULL);
  durable_note(w); /* what was made durable beside them may be what was there before */
  for (unsigned i = 0; i < share.count - (others > 0); i++) {
    if (snap)
      cut_check(w, snap, &storers[i], before);
    storer_repeat(&storers[i], !w->flush_durable);
  }
  model_free(before);
}

/* ---- A device ------------------------------------------------------------------------------ */

struct transfer {
  int fd;
  unsigned char *to;
  uint64_t length;
  atomic_bool begun, done;
};

static void *transfer_run(void *argument)
{
  struct transfer *t = argument;
  ssize_t n;

  atomic_store(&t->begun, true);
  n = pread(t->fd, t->to, t->length, 0);

  CHECK(n == (ssize_t)t->length, "a read of %" PRIu64 " bytes with O_DIRECT into the range gave %zd: %s",
        t->length, n, strerror(errno));
  atomic_store(&t->done, true);
  return NULL;
}

/* Pages are written, and stay what they are. */
static void touch(struct world *w, uint64_t first, uint64_t end)
{
  for (; first < end; first++) {
    uint64_t word;

    test_range_load(&word, w->address + first * PAGE, 8);
    test_range_store(w->address + first * PAGE, &word, 8);
  }
}

/* Data goes from a file into the range, past the page tables where the file system can do that, while other
 * ranges are flushed. */
void op_dma(struct world *w)
{
  struct transfer t = { .fd = -1 };
  uint64_t pages = w->head->size / PAGE, first, count;
  unsigned char *bytes;
  pthread_t thread;
  char *path;

  /* Near the limit of memory areas regions are merged, and pages are replaced, at any time. */
  if (!w->map || w->max_maps || TEST_TSAN)
    return;
  count = 1 + rng_below(&w->rng, pages < DMA_PAGES ? pages : DMA_PAGES);
  first = rng_below(&w->rng, pages - count + 1);
  world_say(w, "O_DIRECT into pages %" PRIu64 "+%" PRIu64, first, count);
  path = test_path("s%u-device", w->session);
  bytes = aligned_alloc(PAGE, count * PAGE);
  CHECK(bytes, "out of memory");
  rng_fill(&w->rng, bytes, count * PAGE);
  t.fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
  SYS(pwrite(t.fd, bytes, count * PAGE, 0));
  SYS(fsync(t.fd));
  SYS(close(t.fd));
  t.fd = open(path, O_RDONLY | O_DIRECT);
  if (t.fd < 0) /* tmpfs before Linux 6.6 */
    t.fd = (int)SYS(open(path, O_RDONLY));
  t.to = w->address + first * PAGE;
  t.length = count * PAGE;
  if (rng_chance(&w->rng, 60)) { /* those beside it are about to be mapped from the file, and it could be, too */
    uint64_t from = first < 16 ? 0 : first - 16, to = first + count + 16 < pages ? first + count + 16 : pages;

    touch(w, from, to);
    OK(pcow_flush(w->map, from * PAGE, (to - from) * PAGE));
    touch(w, from, first);
    touch(w, first + count, to);
  }
  durable_note(w);
  CHECK(!pthread_create(&thread, NULL, transfer_run, &t), "no thread");
  while (!atomic_load(&t.begun))
    sched_yield();
  while (!atomic_load(&t.done)) {
    /* Up to the transfer, or from its end on. */
    uint64_t from = rng_chance(&w->rng, 50) ? 0 : first + count, to = from ? pages : first;

    if (to > from)
      OK(pcow_flush(w->map, from * PAGE, (to - from) * PAGE));
  }
  pthread_join(thread, NULL);
  SYS(close(t.fd));
  SYS(unlink(path));
  OK(pcow_mark_dirty(w->map, first * PAGE, count * PAGE));
  model_write(w->head, bytes, count * PAGE, first * PAGE);
  if (!w->flush_durable || rng_chance(&w->rng, 60)) {
    OK(pcow_flush(w->map, first * PAGE, count * PAGE));
    durable_range(w, first * PAGE, count * PAGE);
  }
  free(bytes);
}
