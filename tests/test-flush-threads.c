/* SPDX-License-Identifier: BSD-3-Clause
 *
 * No store is lost between a flush and the next. In a child process threads store growing numbers, each into its
 * own words of the same pages (one of them through pcow_pwrite()), while others flush ranges and one takes and
 * deletes snapshots; the child is killed. What a flush that returned had before it is found afterwards, and
 * nothing that was never stored; a snapshot has what was stored before it and nothing that was stored after it.
 *
 *     test-flush-threads [--nobody] [--rounds N] [--ms N] [--writers N] [--flushers N] [--pages N] [--seed N] [--dir DIR]
 */
#include "testlib.h"

#include "image.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SNAPSHOTS 64u
#define WRITERS_MOST 8u
#define KEPT 2u                 /* snapshots that are not deleted */

/* What the parent must know; a word is [page][writer]. */
struct shared {
  _Atomic uint64_t snapshots;   /* that were made */
  _Atomic uint64_t deleted;
  _Atomic uint64_t flushed, handed_over, copied, faults;
  _Atomic bool failed;
  _Atomic uint64_t latest[WRITERS_MOST];        /* number that the writer has stored */
  _Atomic uint64_t most[SNAPSHOTS][WRITERS_MOST];       /* that may be in the snapshot */
  _Atomic uint64_t words[];     /* stored, durable, then for each snapshot what it has at least */
};

static struct shared *shared;
static uint64_t pages, size;
static unsigned writers, flushers;
static const char *path;
static bool nobody;             /* runs unprivileged */
static pcow_image *image;
static pcow_mapping *map;

static _Atomic uint64_t *array(unsigned which) { return shared->words + which * pages * WRITERS_MOST; }
static _Atomic uint64_t *stored(void) { return array(0); }
static _Atomic uint64_t *durable(void) { return array(1); }
static _Atomic uint64_t *at_least(uint64_t snapshot) { return array(2 + (unsigned)snapshot); }

static uint64_t offset_of(uint64_t page, unsigned writer) { return page * PAGE + 512 + writer * 64; }

struct thread {
  pthread_t id;
  unsigned me;
  struct rng rng;
};

static void *run_writer(void *argument)
{
  struct thread *t = argument;
  volatile uint8_t *range = pcow_mapping_address(map);
  uint64_t hot = rng_below(&t->rng, pages);

  for (uint64_t value = 1;; value++) {
    uint64_t page = rng_chance(&t->rng, 60) ? (hot + rng_below(&t->rng, 20)) % pages : rng_below(&t->rng, pages);
    uint64_t at = offset_of(page, t->me);

    if (value % 5000 == 0)
      hot = rng_below(&t->rng, pages);
    if (t->me == 0) {
      OK(pcow_pwrite(image, &value, 8, at));
      usleep(50);
    } else {
      *(volatile uint64_t *)(uintptr_t)(range + at) = value;
    }
    atomic_store(&stored()[page * WRITERS_MOST + t->me], value);
    atomic_store(&shared->latest[t->me], value);
    if (t->me == 1)
      usleep(1);
  }
  return NULL;
}

/* What the head has now, without the mapping, is at least what was stored BEFORE a flush that returned. */
static void check_head(const uint64_t *before, uint64_t page)
{
  uint64_t words[PCOW_PAGE_SIZE / 8], base[PCOW_PAGE_SIZE / 8];
  unsigned shift = image->store->sb.unit_shift;
  struct unit *u;
  int error;

  pthread_rwlock_rdlock(&image->lock);
  u = head_lock_unit(image->head, page * PAGE >> shift, &error);
  CHECK(u, "the unit cannot be locked");
  OK(head_read(image->head, u, page * PAGE & ((UINT64_C(1) << shift) - 1), words, PAGE));
  head_unlock_unit(image->head, u);
  pthread_rwlock_unlock(&image->lock);
  memset(base, 0, PAGE);
  if (page % 5)
    test_page_fill(base, page);
  for (unsigned w = 0; w < writers; w++) {
    uint64_t value = words[64 + w * 8];

    CHECK((value == base[64 + w * 8] ? 0 : value) >= before[page * WRITERS_MOST + w],
          "page %" PRIu64 ", writer %u: a flush returned before %" PRIu64 " was in the file", page, w,
          before[page * WRITERS_MOST + w]);
  }
}

static void *run_flusher(void *argument)
{
  struct thread *t = argument;
  uint64_t *before = test_alloc(pages * WRITERS_MOST * 8);

  for (;;) {
    uint64_t first = rng_below(&t->rng, pages), count = 1 + rng_below(&t->rng, pages - first);
    struct pcow_mapping_stats stats;

    if (rng_chance(&t->rng, 30)) {
      first = 0;
      count = pages;
    }
    for (uint64_t i = first * WRITERS_MOST; i < (first + count) * WRITERS_MOST; i++)
      before[i] = atomic_load(&stored()[i]);
    OK(pcow_flush(map, first * PAGE, count * PAGE));
    for (uint64_t i = first * WRITERS_MOST; i < (first + count) * WRITERS_MOST; i++) {
      uint64_t now = atomic_load(&durable()[i]);

      while (now < before[i] && !atomic_compare_exchange_weak(&durable()[i], &now, before[i]))
        continue;
    }
    for (unsigned i = 0; i < 100; i++)
      check_head(before, first + rng_below(&t->rng, count));
    stats = test_stats(map);
    shared->flushed = stats.pages_flushed;
    shared->handed_over = stats.pages_handed_over;
    shared->faults = stats.write_faults;
    usleep((useconds_t)rng_below(&t->rng, 2000));
  }
  return NULL;
}

static void *run_snapshots(void *argument)
{
  struct thread *t = argument;
  char name[24];

  for (unsigned n = 0; n < SNAPSHOTS; n++) {
    usleep((useconds_t)rng_below(&t->rng, 20000));
    for (uint64_t i = 0; i < pages * WRITERS_MOST; i++)
      at_least(n)[i] = atomic_load(&stored()[i]);
    snprintf(name, sizeof name, "s%u", n);
    OK(pcow_snapshot_create(image, name));
    for (unsigned w = 0; w < WRITERS_MOST; w++)
      shared->most[n][w] = atomic_load(&shared->latest[w]) + 1; /* one may be stored and not noted */
    shared->snapshots = n + 1;
    if (n >= KEPT && rng_chance(&t->rng, 70)) {
      shared->deleted = n + 1 - KEPT;
      snprintf(name, sizeof name, "s%u", n - KEPT);
      pcow_snapshot_delete(image, name);        /* those before may be gone already */
    }
  }
  pause();
  return NULL;
}

static void on_failure(void) { shared->failed = true; }

static void child(struct rng *rng)
{
  struct thread *threads = test_alloc((writers + flushers + 1) * sizeof *threads);

  test_on_failure(on_failure);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  map = test_map_flush(image, NULL);
  for (unsigned i = 0; i < writers + flushers + 1; i++) {
    threads[i].me = i;
    threads[i].rng.state = rng_next(rng);
    CHECK(!pthread_create(&threads[i].id, NULL,
                          i < writers ? run_writer : i < writers + flushers ? run_flusher : run_snapshots,
                          &threads[i]), "no thread");
  }
  pause();
}

/* Each word of the view is at least LEAST, and at most the writer's MOST. Counts the words that are newer than they
 * had to be. */
static uint64_t check_view(const char *snapshot, _Atomic uint64_t *least, _Atomic uint64_t *most)
{
  pcow_image *view = test_open(path, 0, snapshot);
  uint8_t bytes[PCOW_PAGE_SIZE], below[PCOW_PAGE_SIZE];
  uint64_t newer = 0;

  for (uint64_t page = 0; page < pages; page++) {
    OK(pcow_pread(view, bytes, PAGE, page * PAGE));
    memset(below, 0, PAGE);
    if (page % 5)
      test_page_fill(below, page);
    for (unsigned w = 0; w < writers; w++) {
      uint64_t value, base, i = page * WRITERS_MOST + w;

      memcpy(&value, bytes + 512 + w * 64, 8);
      memcpy(&base, below + 512 + w * 64, 8);
      memcpy(below + 512 + w * 64, &value, 8);
      if (value == base) {
        CHECK(least[i] == 0, "%s: page %" PRIu64 ", writer %u: %" PRIu64 " is lost, the base shows",
              snapshot ? snapshot : "head", page, w, least[i]);
        continue;
      }
      CHECK(value >= least[i], "%s: page %" PRIu64 ", writer %u has %" PRIu64 ", not %" PRIu64 " that was durable",
            snapshot ? snapshot : "head", page, w, value, least[i]);
      CHECK(value <= most[w], "%s: page %" PRIu64 ", writer %u has %" PRIu64 ", but %" PRIu64 " is the last",
            snapshot ? snapshot : "head", page, w, value, most[w]);
      newer += value > least[i];
    }
    CHECK(!memcmp(bytes, below, PAGE), "%s: page %" PRIu64 ": bytes that nobody stored changed",
          snapshot ? snapshot : "head", page);
  }
  OK(pcow_close(view));
  return newer;
}

static void make(const char *base)
{
  pcow_image *below;
  struct pcow_create_options create = PCOW_INIT(create);

  create.flags = PCOW_CREATE_REPLACE;
  create.unit_size = MIB;
  OK(pcow_create(base, size, &create));
  below = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < pages; page++) {
    char bytes[PCOW_PAGE_SIZE];

    test_page_fill(bytes, page);
    if (page % 5)
      OK(pcow_pwrite(below, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(below));
}

int main(int argc, char **argv)
{
  uint64_t rounds = test_option(argc, argv, "--rounds", 12), ms = test_option(argc, argv, "--ms", 700);
  struct rng rng = { test_seed(argc, argv) };
  struct pcow_create_options create = PCOW_INIT(create);
  uint64_t checked = 0, newer = 0, flushed = 0, handed_over = 0, faults = 0;
  size_t bytes;
  const char *base;

  writers = (unsigned)test_option(argc, argv, "--writers", 4);
  flushers = (unsigned)test_option(argc, argv, "--flushers", 2);
  pages = test_option(argc, argv, "--pages", 1024);
  CHECK(writers <= WRITERS_MOST, "too many writers");
  size = pages * PAGE;
  test_dir(argc, argv);
  nobody = test_flag(argc, argv, "--nobody");
  if (nobody)
    test_become_nobody();
  base = test_path("base");
  path = test_path("image");
  make(base);
  bytes = sizeof(struct shared) + (2 + SNAPSHOTS) * pages * WRITERS_MOST * 8;
  shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED, "no memory");
  create.flags = PCOW_CREATE_REPLACE;
  create.base = base;
  create.base_format = PCOW_FORMAT_PCOW;

  for (uint64_t round = 0; round < rounds; round++) {
    struct pcow_check_result result = PCOW_INIT(result);
    int status;
    pid_t pid;

    SYS(madvise(shared, bytes, MADV_REMOVE));
    create.unit_size = round % 2 ? 64 * KIB : 2 * MIB;
    OK(pcow_create(path, size, &create));
    fflush(NULL);
    pid = (pid_t)SYS(fork());
    if (pid == 0)
      child(&rng);
    rng_next(&rng);
    usleep((useconds_t)(ms * 500 + rng_below(&rng, ms * 1000)));
    SYS(kill(pid, SIGKILL));
    SYS(waitpid(pid, &status, 0));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
      return 77;
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !shared->failed, "the child failed");
    for (unsigned w = 0; w < WRITERS_MOST; w++)
      shared->latest[w]++;
    newer += check_view(NULL, durable(), shared->latest);
    for (uint64_t i = 0; i < pages * WRITERS_MOST; i++)
      checked += durable()[i] > 0;
    for (uint64_t n = shared->snapshots > KEPT ? shared->snapshots - KEPT : 0; n < shared->snapshots; n++) {
      char name[24];

      if (n < shared->deleted)
        continue;
      snprintf(name, sizeof name, "s%" PRIu64, n);
      check_view(name, at_least(n), shared->most[n]);
    }
    OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
    CHECK(result.corruptions == 0, "%" PRIu64 " corruptions", result.corruptions);
    flushed += shared->flushed;
    handed_over += shared->handed_over;
    faults += shared->faults;
  }
  printf("%" PRIu64 " rounds: %" PRIu64 " durable words were there, %" PRIu64 " were newer; %" PRIu64 " pages flushed, %"
         PRIu64 " handed over, %" PRIu64 " first writes\n", rounds, checked, newer, flushed, handed_over, faults);
  CHECK(checked && flushed && (handed_over || nobody), "nothing of that happened");
  return 0;
}
