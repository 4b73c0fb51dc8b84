/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A worker: verifies what it finds, then works in sessions, each with one image open for writing, often
 * mapped in one way or the other, with a second thread that stores numbers and makes each durable before the
 * next. Writers that are held for want of space are let go when there is some; a flush that found none is
 * repeated, and meanwhile nothing is lost.
 */
#include "soak.h"

#include "mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct shared *shared;
struct worker *me;
unsigned my_number;

static pthread_mutex_t lanes_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t lanes_thread, resume_thread;
static bool lanes_run;
static atomic_bool lanes_stop, resume_stop;

/* ---- Threads beside a mapping ---- */

/* Until there is space. Otherwise the error. */
static int flush_patiently(struct session *s, uint64_t offset, uint64_t length, const void *stored)
{
  for (;;) {
    uint64_t since = now_ms();
    int result = pcow_flush(s->map, offset, length);
    unsigned char *bytes;

    if (!nospace(result, since))
      return result;
    atomic_fetch_add(&me->again, 1);
    atomic_fetch_add(&me->progress, 1);
    bytes = test_alloc(length);
    test_range_load(bytes, s->address + offset, length);
    CHECK(memcmp(bytes, stored, length) == 0,
          "image %u: after a flush that found no space, stores at %" PRIu64 " are gone from the map", s->index,
          offset);
    OK(pcow_pread(s->handle, bytes, length, offset));
    CHECK(memcmp(bytes, stored, length) == 0,
          "image %u: after a flush that found no space, stores at %" PRIu64 " do not read", s->index, offset);
    free(bytes);
    usleep(20000);
  }
}

static void *store_lanes(void *argument)
{
  struct session *s = argument;
  struct rng rng = { atomic_load(&me->lane_begun) ^ shared->seed };
  volatile unsigned char *range = s->address;

  while (!atomic_load(&lanes_stop)) {
    uint32_t number = atomic_load(&me->lane_begun) + 1;
    uint64_t at = (number % LANES) * PAGE + 200 * 8, word = lane_word(number);

    atomic_store(&me->lane_begun, number);
    test_range_store(range + at, &word, 8);
    if (s->flush_durable) {
      page_buffer page = { 0 };

      memcpy(page + at % PAGE, &word, 8);
      OK(flush_patiently(s, at - at % PAGE, PAGE, page));
    } else {
      OK(pcow_persist(s->map, at, 8));
    }
    pthread_mutex_lock(&lanes_lock);
    atomic_store(&me->lane_acked, number);
    s->image->head.lane[number % LANES] = number;
    pthread_mutex_unlock(&lanes_lock);
    atomic_fetch_add(&me->lane_stores, 1);
    if (rng_chance(&rng, 30))
      usleep((useconds_t)rng_below(&rng, 1500));
  }
  return NULL;
}

static void lanes_begin(struct session *s)
{
  atomic_store(&me->lane_acked, atomic_load(&me->lane_begun));
  me->lane_first = atomic_load(&me->lane_begun) + 1;
  atomic_store(&me->lane_image, (int32_t)s->index);
  atomic_store(&lanes_stop, false);
  CHECK(!pthread_create(&lanes_thread, NULL, store_lanes, s), "no thread");
  lanes_run = true;
}

static void lanes_end(void)
{
  if (!lanes_run)
    return;
  atomic_store(&lanes_stop, true);
  pthread_join(lanes_thread, NULL);
  atomic_store(&me->lane_image, -1);
  lanes_run = false;
}

uint32_t lanes_now(const struct session *s, uint32_t *lane)
{
  uint32_t next;

  pthread_mutex_lock(&lanes_lock);
  memcpy(lane, s->image->head.lane, sizeof s->image->head.lane);
  next = lanes_run ? atomic_load(&me->lane_acked) + 1 : 0;
  pthread_mutex_unlock(&lanes_lock);
  return next;
}

static void *resume_held(void *argument)
{
  while (!atomic_load(&resume_stop)) {
    if (!atomic_load(&shared->full) && atomic_exchange(&me->held, 0))
      OK(pcow_mapping_resume(argument));
    usleep(5000);
  }
  return NULL;
}

static void on_nospace(void *opaque, const char *file, uint64_t offset)
{
  (void)opaque;
  (void)file;
  (void)offset;
  atomic_fetch_add(&me->holds, 1);
  atomic_store(&me->held, 1);
}

static void session_map(struct session *s)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct op op = { .kind = OP_MAP, .image = s->index };
  uint64_t since = now_ms();
  int result;

  s->flush_durable = shared->modes == MODE_FLUSH || (shared->modes & MODE_FLUSH && rng_chance(&s->rng, 50));
  options.durability = s->flush_durable ? PCOW_FLUSH_DURABLE : PCOW_STORE_DURABLE;
  if (s->flush_durable && (shared->fills || rng_chance(&s->rng, 50)))
    options.thin = PCOW_THIN_GUARDED; /* else a store on a full file system is a SIGBUS */
  options.reserve = PAGES_MAX * PAGE;
  options.granule = rng_chance(&s->rng, 50) ? PAGE : 0;
  mapping_override_eager(rng_chance(&s->rng, 50) ? rng_below(&s->rng, 50) : UINT64_MAX);
  options.nospace = on_nospace;
  atomic_store(&me->held, 0);
  op_begin(&op);
  result = pcow_map(s->handle, &options, &s->map);
  if (nospace(result, since)) {
    op_refused();
    return;
  }
  OK(result);
  op_end();
  if (s->flush_durable)
    atomic_fetch_add(&me->flush_maps, 1);
  s->address = pcow_mapping_address(s->map);
  atomic_store(&resume_stop, false);
  CHECK(!pthread_create(&resume_thread, NULL, resume_held, s->map), "no thread");
  if (rng_chance(&s->rng, 60))
    lanes_begin(s);
}

static void end_threads(struct session *s)
{
  if (!s->map)
    return;
  lanes_end();
  atomic_store(&resume_stop, true);
  pthread_join(resume_thread, NULL);
}

static void session_unmap(struct session *s)
{
  struct op op = { .kind = OP_UNMAP, .image = s->index, .durable = s->flush_durable };
  bool noted = atomic_load(&me->op.phase) == IDLE;

  if (!s->map)
    return;
  end_threads(s);
  if (noted)
    op_begin(&op);
  for (;;) {
    uint64_t since = now_ms();
    int result = pcow_unmap(s->map);

    if (!s->flush_durable || !nospace(result, since)) {
      OK(result);
      break;
    }
    atomic_fetch_add(&me->again, 1); /* the mapping is still there */
    atomic_fetch_add(&me->progress, 1);
    usleep(20000);
  }
  if (noted)
    op_end();
  s->map = NULL;
}

/* ---- Sessions ---- */

bool image_is_base(unsigned index)
{
  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists && me->image[i].base.kind == BASE_TIP && me->image[i].base.image == index)
      return true;
  return false;
}

bool snap_is_base(unsigned index, uint32_t id)
{
  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists && me->image[i].base.kind == BASE_SNAP && me->image[i].base.image == index &&
        me->image[i].base.id == id)
      return true;
  return false;
}

void session_open(struct session *s, unsigned index)
{
  s->index = index;
  s->image = &me->image[index];
  say("open image %u", index);
  s->handle = soak_open(image_path(index), PCOW_OPEN_RDWR, NULL);
}

bool session_close(struct session *s)
{
  struct op op = { .kind = OP_CLOSE, .image = s->index };
  uint64_t since = now_ms();
  int result;

  if (s->map && rng_chance(&s->rng, 30)) /* closing unmaps */
    end_threads(s);
  else
    session_unmap(s);
  reader_end(s);
  op_begin(&op);
  result = pcow_close(s->handle);
  s->handle = NULL;
  s->map = NULL;
  if (nospace(result, since)) {
    recover(); /* what was not flushed may be lost */
    return false;
  }
  OK(result);
  op_end();
  return true;
}

void session_restart(struct session *s)
{
  say("  refused, to be looked into: %s", pcow_errormsg());
  session_unmap(s);
  reader_end(s);
  if (s->handle)
    pcow_close(s->handle); /* an error is part of it */
  s->handle = NULL;
  recover();
}

/* ---- Content ---- */

static void range_choose(struct session *s, struct op *op, bool pages)
{
  uint32_t from = LANES * PAGE_BLOCKS, end = (uint32_t)(s->image->head.size / BLOCK);
  uint32_t count = 1 + (uint32_t)rng_below(&s->rng, UINT64_C(1) << rng_below(&s->rng, 9));

  op->image = s->index;
  op->durable = s->map && (!s->flush_durable || op->kind == OP_STORE);
  op->first = from + (uint32_t)rng_below(&s->rng, end - from);
  if (pages) {
    op->first -= op->first % PAGE_BLOCKS;
    count = (count + PAGE_BLOCKS - 1) / PAGE_BLOCKS * PAGE_BLOCKS;
  }
  op->end = count > end - op->first ? end : op->first + count;
}

static unsigned char *range_make(const struct op *op)
{
  unsigned char *bytes = test_alloc((op->end - op->first) * BLOCK);

  for (uint32_t b = op->first; b < op->end; b++)
    block_make((uint64_t *)(void *)(bytes + (b - op->first) * BLOCK), op->seq, b / PAGE_BLOCKS,
               b % PAGE_BLOCKS);
  return bytes;
}

/* Ends an operation on content: done, or refused somewhere on the way. */
static void range_end(struct session *s, int result, uint64_t since)
{
  if (nospace(result, since)) {
    say("  refused: %s", pcow_errormsg());
    range_adopt(s->handle, s->index);
    atomic_store(&me->op.phase, IDLE);
    return;
  }
  OK(result);
  op_end();
}

static void do_write(struct session *s)
{
  struct op op = { .kind = OP_WRITE, .seq = me->next_seq++ };
  uint64_t since = now_ms();
  unsigned char *bytes;

  range_choose(s, &op, rng_chance(&s->rng, 50));
  bytes = range_make(&op);
  op_begin(&op);
  range_end(s, pcow_pwrite(s->handle, bytes, (op.end - op.first) * BLOCK, op.first * (uint64_t)BLOCK), since);
  free(bytes);
}

static void do_store(struct session *s)
{
  struct op op = { .kind = OP_STORE, .seq = me->next_seq++ };
  unsigned char *bytes;
  uint64_t offset, length;

  range_choose(s, &op, rng_chance(&s->rng, 30));
  bytes = range_make(&op);
  offset = op.first * (uint64_t)BLOCK;
  length = (op.end - op.first) * (uint64_t)BLOCK;
  op_begin(&op);
  if (rng_chance(&s->rng, 15)) { /* now and then a store takes its time: a kill finds half of it */
    uint64_t part = rng_below(&s->rng, length / 8) * 8;

    test_range_store(s->address + offset, bytes, part);
    usleep((useconds_t)rng_below(&s->rng, 800));
    test_range_store(s->address + offset + part, bytes + part, length - part);
  } else {
    test_range_store(s->address + offset, bytes, length);
  }
  if (s->flush_durable) {
    OK(flush_patiently(s, offset, length, bytes));
    atomic_fetch_add(&me->flush_stores, 1);
  } else {
    OK(pcow_persist(s->map, offset, length));
  }
  op_end();
  free(bytes);
}

static void do_zero(struct session *s)
{
  struct op op = { .kind = rng_chance(&s->rng, 60) ? OP_DISCARD : OP_ZERO };
  uint32_t flags = rng_chance(&s->rng, 50) ? PCOW_ZERO_KEEP_SPACE : 0;
  uint64_t offset, length, since = now_ms();

  range_choose(s, &op, rng_chance(&s->rng, 70));
  offset = op.first * (uint64_t)BLOCK;
  length = (op.end - op.first) * (uint64_t)BLOCK;
  op_begin(&op);
  range_end(s, op.kind == OP_DISCARD ? pcow_discard(s->handle, offset, length)
                                     : pcow_write_zeroes(s->handle, offset, length, flags), since);
}

static void do_flush(struct session *s)
{
  struct op op = { .kind = OP_FLUSH, .image = s->index };
  uint64_t since = now_ms();
  int result;

  op_begin(&op);
  result = pcow_sync(s->handle);
  if (nospace(result, since)) {
    op_refused();
    return;
  }
  OK(result);
  op_end();
}

/* Some pages, by a read or as they are mapped. */
static void do_read(struct session *s)
{
  page_buffer found, page;

  for (unsigned i = 0; i < 16; i++) {
    uint64_t p = LANES + rng_below(&s->rng, s->image->head.size / PAGE - LANES);
    bool mapped = s->map && rng_chance(&s->rng, 60);

    if (mapped)
      test_range_load(found, s->address + p * PAGE, PAGE);
    else
      OK(pcow_pread(s->handle, found, PAGE, p * PAGE));
    page_make(page, &s->image->head, p);
    CHECK(memcmp(found, page, PAGE) == 0, "image %u: page %" PRIu64 " %s wrong", s->index, p,
          mapped ? "is mapped" : "reads");
  }
  atomic_fetch_add(&me->pages, 16);
}

static void work_once(struct session *s, bool base)
{
  unsigned what = (unsigned)rng_below(&s->rng, 100);

  if (what < 10)
    do_snapshot(s);
  else if (what < 17)
    do_delete(s);
  else if (what < 20)
    do_reader(s);
  else if (what < 24)
    do_flush(s);
  else if (what < 30)
    do_read(s);
  else if (what < 33 && !s->map)
    do_rebase(s);
  else if (base) /* its head must stay as it is */
    return;
  else if (what < 36)
    do_resize(s);
  else if (what < 40 && !s->map)
    do_revert(s);
  else if (what < 50 && !s->map)
    do_commit(s);
  else if (what < 62)
    do_zero(s);
  else if (what < 76 || !s->map)
    do_write(s);
  else
    do_store(s);
}

static void session_run(struct session *s)
{
  unsigned there[IMAGES], count = 0, ops;
  bool base;

  for (unsigned i = 0; i < IMAGES; i++)
    if (me->image[i].exists)
      there[count++] = i;
  if (count < 2 || (count < IMAGES && rng_chance(&s->rng, 25))) {
    do_create(s);
    return;
  }
  session_open(s, there[rng_below(&s->rng, count)]);
  base = image_is_base(s->index);
  if (rng_chance(&s->rng, 20))
    head_verify(s->handle, s->index, true);
  if (!base && shared->modes && rng_chance(&s->rng, 60))
    session_map(s);
  for (ops = 5 + (unsigned)rng_below(&s->rng, 35); ops && s->handle && !atomic_load(&shared->stop); ops--)
    work_once(s, base);
  if (s->handle && session_close(s) && rng_chance(&s->rng, 8))
    do_remove(s);
}

void worker_main(unsigned number)
{
  struct session s = { 0 };

  prctl(PR_SET_PDEATHSIG, SIGKILL);
  my_number = number;
  me = &shared->worker[number];
  s.rng.state = test_mix(shared->seed ^ test_mix(number * UINT64_C(1000003) + atomic_load(&me->incarnation)));
  recover();
  atomic_store(&me->recovered, 1);
  while (!atomic_load(&shared->stop))
    session_run(&s);
  exit(0);
}
