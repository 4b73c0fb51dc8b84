/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Scenarios with a map: threads store and persist, the image is snapshot, written and discarded beside
 * them. A store that the library cannot serve ends in SIGBUS, with a sentence in the log, or is held
 * where there is somebody to make space; it never hangs, is never dropped, and never meets another
 * page than the one that was there.
 */
#include "scenarios.h"

#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 2u

static _Thread_local sigjmp_buf after;
static _Thread_local volatile bool storing;
static pcow_mapping *map;
static bool flush_durable;      /* it is: stores are not made durable one by one */
static atomic_bool tick_stop, help_stop, help_wanted;

static void on_sigbus(int number)
{
  if (storing)
    siglongjmp(after, 1);
  signal(number, SIG_DFL);
  raise(number);
}

static void on_log(void *opaque, int level, const char *message)
{
  (void)opaque;
  if (getenv("FAULT_VERBOSE"))
    fprintf(stderr, "  log %d: %s\n", level, message);
  if (level == PCOW_LOG_ERROR && strstr(message, world->path))
    world->logged = true;
}

void mapped_signals(void)
{
  signal(SIGBUS, on_sigbus);
  pcow_set_log(on_log, NULL);
}

/* False: SIGBUS. */
static bool store(uint64_t page, uint64_t word)
{
  volatile uint64_t *at = (volatile uint64_t *)pcow_mapping_address(map) + page * (PAGE / 8) + 1;

  if (sigsetjmp(after, 1)) {
    storing = false;
    return false;
  }
  storing = true;
  *at = word;
  storing = false;
  return true;
}

static bool load(uint64_t page, void *to)
{
  if (sigsetjmp(after, 1)) {
    storing = false;
    return false;
  }
  storing = true;
  test_range_load(to, (char *)pcow_mapping_address(map) + page * PAGE, PAGE);
  storing = false;
  return true;
}

/* One store and what the model says about it. A snapshot that failed may be there all the same, when nobody
 * could say whether its commit is on the media; then it may have later stores. */
static void store_page(uint64_t page, uint64_t word)
{
  struct cell *cell = &world->head.cells[page];
  struct value value = { cell_last(cell).seed, word };
  uint64_t found[PCOW_PAGE_SIZE / 8];

  /* A failed write may have left either; whichever shows is what is stored to. */
  if (load(page, found))
    for (unsigned i = cell->count; i-- > 0;)
      if (value_is(found, cell->values[i])) {
        value.seed = cell->values[i].seed;
        break;
      }
  cell_may(cell, value);
  for (unsigned i = 0; flush_durable && i < SNAPSHOTS_MOST; i++)
    if (world->snapshots[i].name[0] && world->snapshots[i].maybe_missing)
      cell_may(&world->snapshots[i].view.cells[page], value);
  if (!store(page, word)) {
    __atomic_add_fetch(&world->lost_stores, 1, __ATOMIC_SEQ_CST);
    CHECK(world->logged, "page %u gave SIGBUS, and the log has no sentence about it", (unsigned)page);
    return;
  }
  /* A write that failed after the slot had it, and before it was mapped, shows by a store at the latest. */
  if (load(page, found) && !value_is(found, value))
    for (unsigned i = cell->count; i-- > 0;)
      if (value_is(found, (struct value){ cell->values[i].seed, word }))
        value.seed = cell->values[i].seed;
  cell_has(cell, value);
  if (load(page, found))
    CHECK(value_is(found, value), "page %u shows something else than what was stored", (unsigned)page);
  if (flush_durable)
    return;
  if (pcow_persist(map, page * PAGE, PAGE) == 0)
    cell_settle(cell, value);
  else
    CHECK(inject_hits() && strstr(pcow_errormsg(), world->path), "pcow_persist() failed: %s", pcow_errormsg());
}

struct work {
  uint64_t first, end, word;
};

static void *work_main(void *opaque)
{
  const struct work *w = opaque;

  for (uint64_t page = w->first; page < w->end; page += 2)
    if (page != TICK_PAGE)
      store_page(page, w->word + page);
  return NULL;
}

/* Even and odd pages by a thread each. */
static void store_all(uint64_t first, uint64_t end, uint64_t word)
{
  pthread_t threads[THREADS];
  struct work works[THREADS];

  for (unsigned i = 0; i < THREADS; i++) {
    works[i] = (struct work){ first + i, end, word };
    CHECK(!pthread_create(&threads[i], NULL, work_main, &works[i]), "no thread");
  }
  inject_arm(true);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  inject_arm(false);
}

/* Counts up, and stops at a SIGBUS. */
static void *tick_main(void *opaque)
{
  (void)opaque;
  while (!atomic_load(&tick_stop)) {
    uint64_t next = world->head.tick_to + 1;

    __atomic_store_n(&world->head.tick_to, next, __ATOMIC_SEQ_CST);
    if (!store(TICK_PAGE, next))
      return NULL;
    __atomic_store_n(&world->head.tick_from, next, __ATOMIC_SEQ_CST);
    usleep(50);
  }
  return NULL;
}

static void snapshot_ticking(const char *name)
{
  pthread_t thread;

  atomic_store(&tick_stop, false);
  CHECK(!pthread_create(&thread, NULL, tick_main, NULL), "no thread");
  usleep(200);
  do_snapshot(name);
  atomic_store(&tick_stop, true);
  pthread_join(thread, NULL);
}

static void on_nospace(void *opaque, const char *file, uint64_t offset)
{
  (void)opaque;
  (void)offset;
  CHECK(strcmp(file, world->path) == 0, "the callback named '%s'", file);
  world->called = true;
  atomic_store(&help_wanted, true);
}

/* Ends the fault when somebody asks for space, or when a writer is held because not even SIGBUS could be
 * arranged, which the log has to say. */
static void *help_main(void *opaque)
{
  (void)opaque;
  while (!atomic_load(&help_stop)) {
    bool wanted = atomic_exchange(&help_wanted, false);

    if (wanted || test_stats(map).held_writers) {
      CHECK(wanted || world->called || world->logged, "a writer is held and nobody is told");
      inject_plan(&(struct plan){ .nth = 0 });
      OK(pcow_mapping_resume(map));
    }
    usleep(200);
  }
  return NULL;
}

static int do_map(uint32_t thin, pcow_nospace_fn nospace)
{
  struct pcow_map_options options = PCOW_INIT(options);
  int result;

  options.durability = flush_durable ? PCOW_FLUSH_DURABLE : PCOW_STORE_DURABLE;
  options.thin = thin;
  options.nospace = nospace;
  options.granule = PAGE;
  inject_arm(true);
  result = op_done("map", pcow_map(image, &options, &map), false);
  CHECK((result == 0) == (map != NULL), "pcow_map() gave %d and %s mapping", result, map ? "a" : "no");
  return result;
}

static void work_mapped(void)
{
  store_all(0, 40, 1 << 20);
  world->head.tick_from = 0;
  world->head.tick_to = 1;
  store(TICK_PAGE, 1);
  snapshot_ticking("a");
  store_all(4, 60, 2 << 20);
  do_write(10, 4, 3000);
  do_discard(30, 8);
  store_all(28, 34, 3 << 20);
  snapshot_ticking("b");
  store_all(0, 12, 4 << 20);
  do_flush();
}

static void finish(void)
{
  /* The fault is over: what it took away can be used again. */
  inject_plan(&(struct plan){ .nth = 0 });
  if (do_flush() == 0) {
    unsigned lost = world->lost_stores;

    OK(pcow_mapping_resume(map));
    store_all(0, 64, 5 << 20);
    CHECK(world->lost_stores == lost, "stores give SIGBUS although nothing fails any more");
    OK(do_flush());
  }
}

static void run_mapped(uint32_t thin, pcow_nospace_fn nospace)
{
  pthread_t helper;

  if (do_open(PCOW_OPEN_RDWR))
    return;
  if (do_map(thin, nospace)) {
    do_close();
    return;
  }
  atomic_store(&help_stop, false);
  CHECK(!pthread_create(&helper, NULL, help_main, NULL), "no thread");
  work_mapped();
  CHECK(!nospace || !world->lost_stores, "a store gave SIGBUS although there is a callback that makes space");
  finish();
  atomic_store(&help_stop, true);
  pthread_join(helper, NULL);
  world_restore_plan();
  inject_arm(true);
  op_done("unmap", pcow_unmap(map), false);
  map = NULL;
  do_close();
}

void run_map(void) { run_mapped(PCOW_THIN_GUARDED, NULL); }
void run_map_native(void) { run_mapped(PCOW_THIN_NATIVE, NULL); }
void run_map_held(void) { run_mapped(PCOW_THIN_GUARDED, on_nospace); }

/* ---- Flush-durable ---- */

/* Nothing is lost, whatever failed: the map shows what was stored, and so does the image. Without faults:
 * there would be many more of these calls than of those that matter. */
static void see_all(void)
{
  uint64_t found[2][PCOW_PAGE_SIZE / 8];

  for (uint64_t page = 0; page < world->head.size / PAGE; page++) {
    const struct cell *cell = &world->head.cells[page];

    if (!load(page, found[0])) {
      CHECK(world->logged, "page %" PRIu64 " gave SIGBUS, and the log has no sentence about it", page);
      continue;
    }
    OK(pcow_pread(image, found[1], PAGE, page * PAGE));
    for (unsigned i = 0; i < 2; i++)
      CHECK(cell_fits(cell, found[i], true),
            "page %" PRIu64 " of the %s lost what was stored: it begins with 0x%" PRIx64 ", 0x%" PRIx64
            "; last was 0x%" PRIx64, page, i ? "image" : "map", found[i][0], found[i][1],
            cell_last(cell).word);
  }
}

static int flush(uint64_t page, uint64_t count)
{
  int result = RUN("flush", true, pcow_flush(map, page * PAGE, count * PAGE));

  for (uint64_t i = page; result == 0 && i < page + count; i++) {
    struct cell *cell = &world->head.cells[i];

    cell_settle(cell, cell->values[cell->sure]);
  }
  see_all();
  return result;
}

static int flush_whole(void) { return flush(0, world->head.size / PAGE); }

static void work_flushed(void)
{
  store_all(0, 40, 1 << 20);
  store_all(126, 132, 1 << 20);
  flush_whole();
  store_all(10, 50, 2 << 20);   /* most of them: handed over */
  flush(8, 36);
  store_all(14, 20, 3 << 20);
  do_read(10, 4);
  do_write(12, 4, 3000);
  do_write(70, 2, 3000);        /* nobody stored to them */
  do_discard(30, 8);
  do_zeroes(60, 4);
  see_all();
  do_snapshot("a");
  store_all(16, 36, 4 << 20);
  flush_whole();
  store_all(90, 96, 5 << 20);
  do_delete("a");
  see_all();
}

/* The fault is over: what it kept from being durable can be, and is, without a close. */
static void finish_flushed(void)
{
  unsigned lost = world->lost_stores;

  inject_plan(&(struct plan){ .nth = 0 });
  see_all();
  OK(pcow_mapping_resume(map));
  if (flush_whole()) {
    CHECK(the_fault_is(CALL_FDATASYNC) || strstr(pcow_errormsg(), "since a commit failed"),
          "a flush cannot be repeated: %s", pcow_errormsg());
    return;
  }
  store_all(72, 84, 6 << 20);   /* other pages: a lost one is to stay lost */
  CHECK(world->lost_stores == lost, "stores give SIGBUS although nothing fails any more");
  CHECK(flush_whole() == 0, "a flush fails although nothing fails any more: %s", pcow_errormsg());
}

static void run_flushed(uint32_t thin)
{
  pthread_t helper;

  flush_durable = true;
  if (do_open(PCOW_OPEN_RDWR))
    return;
  if (do_map(thin, NULL)) {
    do_close();
    return;
  }
  atomic_store(&help_stop, false);
  CHECK(!pthread_create(&helper, NULL, help_main, NULL), "no thread");
  work_flushed();
  finish_flushed();
  atomic_store(&help_stop, true);
  pthread_join(helper, NULL);
  if (world->counts.hits % 2)
    return;                     /* not closed: what was flushed is there all the same */
  world_restore_plan();
  if (RUN("unmap", true, pcow_unmap(map)))
    see_all();                  /* it stays */
  do_close();
}

void run_flush(void) { run_flushed(PCOW_THIN_GUARDED); }
void run_flush_native(void) { run_flushed(PCOW_THIN_NATIVE); }

void run_map_read(void)
{
  uint64_t found[PCOW_PAGE_SIZE / 8];

  if (do_open(0))
    return;
  inject_arm(true);
  if (op_done("map", pcow_map(image, NULL, &map), false) == 0) {
    for (uint64_t page = 0; page < world->head.size / PAGE; page++) {
      inject_arm(true);
      if (load(page, found))
        CHECK(value_is(found, cell_last(&world->head.cells[page])), "page %u of the map is wrong", (unsigned)page);
      else
        CHECK(world->logged, "page %u gave SIGBUS, and the log has no sentence about it", (unsigned)page);
    }
    inject_arm(false);
    OK(pcow_unmap(map));
    map = NULL;
  }
  CHECK(do_close() == 0, "closing a read-only handle failed");
}
