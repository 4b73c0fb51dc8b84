/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Readers and the writer together, each a process: the writer stores, writes, discards, takes
 * snapshots, reverts and deletes; the reader holds a map of a frozen epoch and compares it again and
 * again, opening other snapshots beside it. Never a wrong byte; what is being read cannot be deleted.
 *
 *     test-readers [--seconds N] [--seed N] [--no-map] [--dir DIR]
 *
 * What each snapshot must show is in memory that both share: a seed for every page.
 */
#include "testlib.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGES 1024
#define SNAPS 12
#define READERS 2

struct frozen {
  bool live;
  unsigned number; /* of the snapshot, in its name */
  uint64_t pages;
  uint64_t seed[PAGES]; /* 0: zeros */
  atomic_uint readers; /* that have it open */
};

struct shared {
  pthread_mutex_t lock; /* of LIVE, NUMBER and what they name */
  struct frozen snaps[SNAPS];
  atomic_bool stop;
  atomic_ulong compared, opened, refused, vanished;
};

static struct shared *shared;
static char *path;
static uint64_t seed;
static unsigned seconds;

static double now(void)
{
  struct timespec ts;

  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void snap_name(char *name, unsigned number)
{
  sprintf(name, "snapshot %u", number);
}

static void compare_page(const void *bytes, uint64_t page, const uint64_t *seeds, const char *how, unsigned number)
{
  static const char zeros[PCOW_PAGE_SIZE];

  CHECK(seeds[page] ? test_page_is(bytes, seeds[page]) : memcmp(bytes, zeros, PAGE) == 0,
        "%s of snapshot %u: page %" PRIu64 " is wrong (0x%" PRIx64 ", seed %" PRIu64 " expected)", how, number,
        page, *(const uint64_t *)bytes, seeds[page]);
}

/* ---- The reader ---------------------------------------------------------------------------- */

static void compare_all(pcow_image *image, const char *range, const uint64_t *seeds, uint64_t pages,
                        unsigned number)
{
  char bytes[PCOW_PAGE_SIZE];

  for (uint64_t page = 0; page < pages; page++) {
    if (range)
      compare_page(range + page * PAGE, page, seeds, "the map", number);
    else {
      OK(pcow_pread(image, bytes, PAGE, page * PAGE));
      compare_page(bytes, page, seeds, "pcow_pread()", number);
    }
  }
  atomic_fetch_add(&shared->compared, 1);
}

/* Opens a living snapshot, or gives NULL when it went away meanwhile. */
static pcow_image *reader_open(struct rng *rng, struct frozen **which, unsigned *number)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct frozen *f = &shared->snaps[rng_below(rng, SNAPS)];
  char name[64];
  pcow_image *image = NULL;
  bool live;
  int result;

  pthread_mutex_lock(&shared->lock);
  live = f->live;
  *number = f->number;
  pthread_mutex_unlock(&shared->lock);
  if (!live)
    return NULL;
  snap_name(name, *number);
  options.flags = PCOW_OPEN_BASES;
  options.snapshot = name;
  result = pcow_open(path, &options, &image);
  if (result < 0) {
    CHECK(result == -ENOENT || result == -EBUSY, "opening '%s' gave %d: %s", name, result, pcow_errormsg());
    atomic_fetch_add(&shared->vanished, 1);
    return NULL;
  }
  atomic_fetch_add(&f->readers, 1);
  /* It cannot be deleted any more: it is still what was drawn, or was when it was opened. */
  pthread_mutex_lock(&shared->lock);
  CHECK(f->live && f->number == *number, "'%s' was deleted although it is open", name);
  pthread_mutex_unlock(&shared->lock);
  atomic_fetch_add(&shared->opened, 1);
  *which = f;
  return image;
}

static void reader(unsigned me)
{
  struct rng rng = { test_mix(seed + 77 + me) };

  while (!atomic_load(&shared->stop)) {
    struct frozen *held;
    unsigned number, rounds = 20 + (unsigned)rng_below(&rng, 200);
    pcow_image *image = reader_open(&rng, &held, &number);
    pcow_mapping *map;

    if (!image) {
      usleep(500);
      continue;
    }
    OK(pcow_map(image, NULL, &map));
    CHECK(pcow_mapping_length(map) == held->pages * PAGE, "snapshot %u has a wrong size", number);
    while (rounds-- && !atomic_load(&shared->stop)) {
      struct frozen *other;
      unsigned other_number;
      pcow_image *beside;

      compare_all(image, pcow_mapping_address(map), held->seed, held->pages, number);
      if (!rng_chance(&rng, 20))
        continue;
      beside = reader_open(&rng, &other, &other_number);
      if (!beside)
        continue;
      compare_all(beside, NULL, other->seed, other->pages, other_number);
      atomic_fetch_sub(&other->readers, 1);
      OK(pcow_close(beside));
    }
    compare_all(image, NULL, held->seed, held->pages, number);
    if (rng_chance(&rng, 50))
      OK(pcow_unmap(map));
    atomic_fetch_sub(&held->readers, 1);
    OK(pcow_close(image));
  }
}

/* ---- The writer ---------------------------------------------------------------------------- */

struct writer {
  struct rng rng;
  pcow_image *image;
  pcow_mapping *map;
  uint64_t pages, seed[PAGES];
  uint64_t next_seed;
  unsigned next_number, snapshots, deleted, reverted;
  bool can_map;
};

static void writer_write(struct writer *w)
{
  uint64_t first = rng_below(&w->rng, w->pages), count = 1 + rng_below(&w->rng, 40);
  char bytes[PCOW_PAGE_SIZE];
  unsigned kind = (unsigned)rng_below(&w->rng, 4);

  if (count > w->pages - first)
    count = w->pages - first;
  if (kind == 0) {
    OK(pcow_discard(w->image, first * PAGE, count * PAGE));
    memset(w->seed + first, 0, count * 8);
    return;
  }
  for (uint64_t page = first; page < first + count; page++) {
    w->seed[page] = w->next_seed++;
    test_page_fill(bytes, w->seed[page]);
    if (w->map)
      memcpy((char *)pcow_mapping_address(w->map) + page * PAGE, bytes, PAGE);
    else
      OK(pcow_pwrite(w->image, bytes, PAGE, page * PAGE));
  }
}

static void writer_snapshot(struct writer *w)
{
  struct frozen *f = NULL;
  char name[64];

  for (unsigned i = 0; i < SNAPS; i++)
    if (!shared->snaps[i].live)
      f = &shared->snaps[i];
  if (!f)
    return;
  snap_name(name, ++w->next_number);
  OK(pcow_snapshot_create(w->image, name));
  pthread_mutex_lock(&shared->lock);
  memcpy(f->seed, w->seed, sizeof f->seed);
  f->pages = w->pages;
  f->number = w->next_number;
  f->live = true;
  pthread_mutex_unlock(&shared->lock);
  w->snapshots++;
}

static void writer_delete(struct writer *w)
{
  struct frozen *f = &shared->snaps[rng_below(&w->rng, SNAPS)];
  char name[64];
  unsigned before;
  int result;

  if (!f->live)
    return;
  snap_name(name, f->number);
  /* A reader counts itself after it has opened and, before it closes, no more. Whoever opens it during
   * the call looks at LIVE under the lock afterwards, when the call is over. */
  pthread_mutex_lock(&shared->lock);
  before = atomic_load(&f->readers);
  result = pcow_snapshot_delete(w->image, name);
  CHECK(result == 0 || result == -EBUSY, "deleting '%s' gave %d: %s", name, result, pcow_errormsg());
  if (result == 0) {
    CHECK(!before || !atomic_load(&f->readers), "'%s' was deleted under %u readers", name, before);
    f->live = false;
    w->deleted++;
  } else {
    atomic_fetch_add(&shared->refused, 1);
  }
  pthread_mutex_unlock(&shared->lock);
}

static void writer_revert(struct writer *w)
{
  struct frozen *f = &shared->snaps[rng_below(&w->rng, SNAPS)];
  char name[64];

  if (!f->live)
    return;
  snap_name(name, f->number);
  if (w->map) {
    GIVES(-EBUSY, pcow_snapshot_revert(w->image, name));
    return;
  }
  OK(pcow_snapshot_revert(w->image, name));
  w->pages = f->pages;
  memcpy(w->seed, f->seed, sizeof w->seed);
  w->reverted++;
}

static void writer_compare(struct writer *w)
{
  char bytes[PCOW_PAGE_SIZE];

  for (uint64_t page = 0; page < w->pages; page++) {
    OK(pcow_pread(w->image, bytes, PAGE, page * PAGE));
    compare_page(bytes, page, w->seed, "the head", 0);
    if (w->map)
      compare_page((char *)pcow_mapping_address(w->map) + page * PAGE, page, w->seed, "the head's map", 0);
  }
}

static void writer(const char *base)
{
  struct writer *w = test_alloc(sizeof *w);
  double end = now() + seconds;

  w->can_map = getenv("PMEM_IS_PMEM_FORCE") != NULL;
  w->rng.state = test_mix(seed);
  w->next_seed = 1000000;
  w->pages = PAGES;
  for (uint64_t page = 0; page < PAGES; page++)
    w->seed[page] = page % 3 ? 1 + page : 0;
  test_create(path, PAGES * PAGE, 1 * MIB, base, PCOW_FORMAT_PCOW, NULL);
  w->image = test_open(path, PCOW_OPEN_RDWR, NULL);
  while (now() < end) {
    uint64_t what = rng_below(&w->rng, 100);

    if (what < 60) {
      writer_write(w);
    } else if (what < 74) {
      writer_snapshot(w);
    } else if (what < 86) {
      writer_delete(w);
    } else if (what < 90) {
      writer_revert(w);
    } else if (what < 93 && !w->map) {
      uint64_t size = (PAGES / 2 + rng_below(&w->rng, PAGES / 2 + 1)) * PAGE;

      OK(pcow_resize(w->image, size, PCOW_RESIZE_SHRINK));
      for (uint64_t page = size / PAGE < w->pages ? size / PAGE : w->pages; page < PAGES; page++)
        w->seed[page] = 0;
      w->pages = size / PAGE;
    } else if (what < 96 && w->can_map) {
      if (w->map) {
        OK(pcow_unmap(w->map));
        w->map = NULL;
      } else {
        w->map = test_map(w->image, NULL);
      }
    } else if (what < 97) {
      OK(pcow_close(w->image));
      w->map = NULL;
      w->image = test_open(path, PCOW_OPEN_RDWR, NULL);
    } else {
      writer_compare(w);
    }
  }
  writer_compare(w);
  atomic_store(&shared->stop, true);
  OK(pcow_close(w->image));
  printf("writer: %u snapshots, %u deleted, %lu refused, %u reverted\n", w->snapshots, w->deleted,
         atomic_load(&shared->refused), w->reverted);
  fflush(stdout);
  free(w);
}

int main(int argc, char **argv)
{
  pthread_mutexattr_t attributes;
  pid_t children[READERS + 1];
  pcow_image *image;
  char *base, bytes[PCOW_PAGE_SIZE];
  bool failed = false, skipped = false;

  if (test_flag(argc, argv, "--no-map"))
    test_unforce_pmem(argv);
  else
    test_force_pmem(argv);
  seed = test_seed(argc, argv);
  seconds = (unsigned)test_option(argc, argv, "--seconds", 60);
  test_dir(argc, argv);
  path = test_path("image.pcow");
  base = test_path("base.pcow");
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED, "no memory");
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&shared->lock, &attributes);
  test_create(base, PAGES * PAGE, 2 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < PAGES; page++)
    if (page % 3) {
      test_page_fill(bytes, 1 + page);
      OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
    }
  OK(pcow_close(image));
  fflush(stdout);
  for (unsigned i = 0; i <= READERS; i++) {
    children[i] = (pid_t)SYS(fork());
    if (!children[i]) {
      if (i)
        reader(i);
      else
        writer(base);
      exit(0);
    }
  }
  for (unsigned i = 0; i <= READERS; i++) {
    int status;
    pid_t ended = (pid_t)SYS(wait(&status));

    skipped = skipped || (WIFEXITED(status) && WEXITSTATUS(status) == 77);
    if (status) {
      fprintf(stderr, "the %s ended with status 0x%x\n", ended == children[0] ? "writer" : "reader", status);
      failed = true;
      atomic_store(&shared->stop, true);
      for (unsigned j = 0; j <= READERS; j++)
        if (children[j] != ended)
          kill(children[j], SIGTERM);
    }
  }
  if (skipped)
    exit(77); /* the child has said why */
  CHECK(!failed, "a process failed");
  test_check_clean(path);
  for (unsigned i = 0; i < SNAPS; i++)
    if (shared->snaps[i].live) {
      char name[64];

      snap_name(name, shared->snaps[i].number);
      image = test_open(path, 0, name);
      compare_all(image, NULL, shared->snaps[i].seed, shared->snaps[i].pages, shared->snaps[i].number);
      OK(pcow_close(image));
    }
  printf("readers: %lu snapshots opened, %lu compared, %lu gone before they were open\n",
         atomic_load(&shared->opened), atomic_load(&shared->compared), atomic_load(&shared->vanished));
  return 0;
}
