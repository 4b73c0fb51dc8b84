/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The soak's supervisor: starts workers, kills them with SIGKILL at random moments - from a start on, at
 * work, or some microseconds after an operation of a certain kind began -, starts them again, and fills the
 * file system now and then. Each start of a worker verifies everything that was acknowledged before.
 *
 *     soak [--seconds N] [--kills N] [--workers N] [--mode store|flush|all|no-map] [--fill] [--seed N]
 *          [--dir DIR]
 *
 * Workers map in either way, or in the given one. Ends after that many seconds, or after that many kills.
 * --fill is for a file system of the soak's own
 * (tests/with-fs.sh makes one of, say, 256M). A kill keeps what is in the page cache: what a missing
 * flush or fence loses is not seen here.
 */
#include "soak.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define STUCK_MS 30000
#define IDLE_MS 500 /* who has done nothing for so long is not killed: that would hide that it is stuck */
#define COMMON_PAGES 400u
#define RAW_PAGES 300u

enum moment { AT_START, AT_WORK, AT_OP, MOMENTS };

struct plan {
  enum moment moment;
  uint64_t started, due; /* milliseconds; due 0: once it has recovered */
  uint32_t after;
  uint64_t progress, seen, idle; /* idle: milliseconds without progress while there was space */
};

static struct plan plans[WORKERS_MAX];
static unsigned workers;
static pid_t filler, pids[WORKERS_MAX];
static struct rng rng;
static uint64_t kills, killed_at[MOMENTS];
static bool reporting;

/* ---- Ends ---- */

/* The workers end first: when the test's directory goes, they would fail as well, and hide why. */
static void report_all(void)
{
  if (!reporting || me)
    return;
  for (unsigned w = 0; w < workers; w++)
    if (pids[w] > 0) {
      kill(pids[w], SIGKILL);
      waitpid(pids[w], NULL, 0);
    }
  for (unsigned w = 0; w < workers; w++) {
    fprintf(stderr, "worker %u, the last operations:\n", w);
    journal_print(&shared->worker[w]);
  }
  fprintf(stderr, "PCOW_TEST_KEEP=1 in the environment keeps the images\n");
}

static void print_file(const char *format, pid_t pid, const char *task)
{
  char path[128], text[4096];
  ssize_t n;
  int fd;

  snprintf(path, sizeof path, format, (long)pid, task);
  fd = open(path, O_RDONLY);
  n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0)
    close(fd);
  text[n > 0 ? n : 0] = 0;
  fprintf(stderr, "%s:\n%s\n", path, text);
}

static void report_stuck(unsigned w)
{
  char command[256];
  pid_t pid = pids[w];

  fprintf(stderr, "worker %u (process %ld) has done nothing for %d s\n", w, (long)pid, STUCK_MS / 1000);
  print_file("/proc/%ld/task/../wchan%s", pid, "");
  print_file("/proc/%ld/stack%s", pid, "");
  snprintf(command, sizeof command,
           "if command -v gdb >/dev/null; then gdb -batch -p %ld -ex 'thread apply all bt' 2>&1; else "
           "for t in /proc/%ld/task/*; do cat $t/comm $t/wchan $t/stack; echo; done; fi >&2",
           (long)pid, (long)pid);
  if (system(command) != 0)
    fprintf(stderr, "no stacks\n");
}

/* ---- Set-up ---- */

static void common_view(struct view *v, unsigned pages, unsigned step, uint32_t from)
{
  v->size = pages * PAGE;
  for (uint32_t b = LANES * PAGE_BLOCKS; b < pages * PAGE_BLOCKS; b++)
    if (b / PAGE_BLOCKS % step)
      v->block[b] = UINT32_C(0x80000000) | (from + b);
}

static void set_up(void)
{
  const char *path = test_path("common.pcow"), *raw = test_path("common.raw");
  page_buffer page;
  pcow_image *image;
  int fd = (int)SYS(open(raw, O_RDWR | O_CREAT | O_EXCL, 0600));

  common_view(&shared->common, COMMON_PAGES, 3, 1);
  common_view(&shared->raw, RAW_PAGES, 4, UINT32_C(0x1000000));
  test_create(path, shared->common.size, 256 * KIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (unsigned p = LANES; p < COMMON_PAGES; p++) {
    page_make(page, &shared->common, p);
    if (shared->common.block[p * PAGE_BLOCKS])
      OK(pcow_pwrite(image, page, PAGE, p * PAGE));
  }
  OK(pcow_snapshot_create(image, "gold"));
  OK(pcow_close(image));
  for (unsigned p = 0; p < RAW_PAGES; p++) {
    page_make(page, &shared->raw, p);
    SYS(pwrite(fd, page, PAGE, (off_t)(p * PAGE)));
  }
  SYS(fsync(fd));
  SYS(close(fd));
}

/* In a process of its own: afterwards this one has no threads of the library. */
static bool can_map(uint32_t durability)
{
  pid_t child = (pid_t)SYS(fork());
  int status;

  if (!child) {
    struct pcow_map_options options = PCOW_INIT(options);
    const char *path = test_path("probe.pcow");
    pcow_mapping *map;
    int result;

    test_create(path, MIB, 0, NULL, PCOW_FORMAT_NONE, NULL);
    options.durability = durability;
    result = pcow_map(test_open(path, PCOW_OPEN_RDWR, NULL), &options, &map);
    if (result < 0)
      printf("not mapped so: %s\n", pcow_errormsg());
    fflush(stdout);
    unlink(path);
    _exit(result < 0);
  }
  SYS(waitpid(child, &status, 0));
  return status == 0;
}

/* ---- The file system fills ---- */

static void fill(void)
{
  const char *path = test_path("ballast");
  struct rng own = { shared->seed + 77 };

  prctl(PR_SET_PDEATHSIG, SIGKILL);
  while (!atomic_load(&shared->stop)) {
    off_t size = 0;
    int fd;

    usleep((useconds_t)(200000 + rng_below(&own, 2000000)));
    fd = (int)SYS(open(path, O_RDWR | O_CREAT, 0600));
    atomic_store(&shared->full, 1);
    for (off_t step = (off_t)MIB; step >= (off_t)PAGE; step /= 4)
      while (fallocate(fd, 0, size, step) == 0)
        size += step;
    atomic_fetch_add(&shared->filled, 1);
    usleep((useconds_t)rng_below(&own, 500000));
    unlink(path);
    close(fd);
    atomic_store(&shared->full_until, now_ms());
    atomic_store(&shared->full, 0);
  }
  _exit(0);
}

static void check_own_file_system(const char *dir)
{
  struct statfs fs;

  SYS(statfs(dir, &fs));
  CHECK((uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize <= 4 * GIB,
        "--fill is for a file system of the soak's own; that of %s is larger than 4 GiB", dir);
}

/* ---- Workers ---- */

static void plan_kill(unsigned w)
{
  struct worker *k = &shared->worker[w];
  struct plan *p = &plans[w];
  unsigned what = (unsigned)rng_below(&rng, 100);

  p->started = p->seen = now_ms();
  p->idle = 0;
  p->moment = what < 15 ? AT_START : what < 45 ? AT_WORK : AT_OP;
  p->after = (uint32_t)rng_below(&rng, rng_chance(&rng, 8) ? 2000 : 100);
  p->due = p->moment == AT_START ? p->started + p->after : 0;
  if (p->moment == AT_OP)
    p->after = 1000; /* when there is no such operation for so long */
  atomic_store(&k->kill_usec, (uint32_t)rng_below(&rng, UINT64_C(1) << (4 + rng_below(&rng, 9))));
  atomic_store(&k->kill_kind, p->moment == AT_OP ? 1 + (uint32_t)rng_below(&rng, OP_OPEN) : 0);
  atomic_store(&k->recovered, 0);
}

static void start(unsigned w)
{
  pid_t pid;

  plan_kill(w);
  fflush(stdout);
  pid = (pid_t)SYS(fork());
  if (!pid) {
    reporting = false;
    worker_main(w);
  }
  pids[w] = pid;
}

static unsigned worker_of(pid_t pid)
{
  for (unsigned w = 0; w < workers; w++)
    if (pids[w] == pid)
      return w;
  return WORKERS_MAX;
}

/* On a page cache with large folios a store may need blocks for pages beside its own, which nobody reserved:
 * on a full file system that is a SIGBUS (docs/limits.md). */
static bool may_be_sigbus(int status)
{
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS && shared->fills && !test_is_tmpfs(test_path("common.pcow")) &&
         (atomic_load(&shared->full) || atomic_load(&shared->full_until) + 2000 >= now_ms());
}

/* One worker's end, if there was one. AGAIN: it is started again. */
static bool reap(bool again)
{
  int status;
  pid_t pid = waitpid(-1, &status, WNOHANG);
  unsigned w = worker_of(pid);
  struct worker *k = &shared->worker[w];

  if (pid <= 0)
    return false;
  CHECK(pid != filler || atomic_load(&shared->stop),
        "the process that fills the file system ended with status 0x%x", status);
  if (w == WORKERS_MAX)
    return true;
  pids[w] = 0;
  if (may_be_sigbus(status)) {
    printf("worker %u got SIGBUS while the file system was full\n", w);
  } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
    kills++;
    killed_at[plans[w].moment]++;
    if (atomic_load(&k->op.phase) == INTENT)
      atomic_fetch_add(&k->killed[k->op.kind], 1);
  } else {
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0 && !again,
          "worker %u ended with status 0x%x", w, status);
  }
  atomic_fetch_add(&k->incarnation, 1);
  if (again)
    start(w);
  return true;
}

static void tend(unsigned w, bool killing)
{
  struct worker *k = &shared->worker[w];
  struct plan *p = &plans[w];
  uint64_t now = now_ms(), progress = atomic_load(&k->progress);

  if (!pids[w])
    return;
  if (progress != p->progress)
    p->idle = 0;
  else if (!atomic_load(&shared->full))
    p->idle += now - p->seen < IDLE_MS ? now - p->seen : 0; /* else this process was not running itself */
  p->progress = progress;
  p->seen = now;
  if (p->idle > STUCK_MS) {
    report_stuck(w);
    FAIL("worker %u is stuck", w);
  }
  if (!p->due && atomic_load(&k->recovered))
    p->due = now + p->after;
  if (killing && p->due && now >= p->due && p->idle < IDLE_MS) {
    SYS(kill(pids[w], SIGKILL));
    p->due = UINT64_MAX;
  }
}

static void run(uint64_t seconds, uint64_t most)
{
  uint64_t begin = now_ms();
  unsigned left;

  for (unsigned w = 0; w < workers; w++)
    start(w);
  while (now_ms() - begin < seconds * 1000 && (!most || kills < most)) {
    usleep(500);
    while (reap(true))
      ;
    for (unsigned w = 0; w < workers; w++)
      tend(w, true);
  }
  for (unsigned w = 0; w < workers; w++)
    atomic_store(&shared->worker[w].kill_kind, 0);
  atomic_store(&shared->stop, 1);
  do {
    usleep(1000);
    while (reap(false))
      ;
    left = 0;
    for (unsigned w = 0; w < workers; w++) {
      tend(w, false);
      left += pids[w] != 0;
    }
  } while (left);
}

/* Everything once more; what kills left behind can be given back. */
static void verify_all(void)
{
  for (unsigned w = 0; w < workers; w++) {
    pid_t child = (pid_t)SYS(fork());
    int status;

    if (!child) {
      reporting = false;
      me = &shared->worker[w];
      my_number = w;
      recover();
      for (unsigned i = 0; i < IMAGES; i++) {
        struct pcow_check_result result = PCOW_INIT(result);

        if (!me->image[i].exists)
          continue;
        OK(pcow_check(image_path(i), PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
        CHECK(!result.corruptions && result.repaired == result.leaks,
              "image %u: %" PRIu64 " corruptions, %" PRIu64 " of %" PRIu64 " leaks repaired", i,
              result.corruptions, result.repaired, result.leaks);
        test_check_clean(image_path(i));
      }
      exit(0);
    }
    SYS(waitpid(child, &status, 0));
    CHECK(status == 0, "the last verification of worker %u ended with status 0x%x", w, status);
  }
}

/* Of a counter, over the workers. */
static uint64_t sum_at(size_t offset)
{
  uint64_t sum = 0;

  for (unsigned w = 0; w < workers; w++)
    sum += atomic_load((_Atomic uint64_t *)(void *)((char *)&shared->worker[w] + offset));
  return sum;
}

#define SUM(field) sum_at(offsetof(struct worker, field))

static void summary(uint64_t begin)
{
  uint64_t all = 0;

  printf("operations (killed in one):");
  for (unsigned k = 0; k < OP_KINDS; k++) {
    uint64_t done = sum_at(offsetof(struct worker, done) + k * sizeof(uint64_t));

    printf(" %s %" PRIu64 " (%" PRIu64 ")", kind_names[k], done,
           sum_at(offsetof(struct worker, killed) + k * sizeof(uint64_t)));
    all += done;
  }
  printf("\nflush-durable maps %" PRIu64 ", stores to them %" PRIu64
         ", flushes repeated for want of space %" PRIu64,
         SUM(flush_maps), SUM(flush_stores), SUM(again));
  printf("\nstores of second threads %" PRIu64 ", cuts under them %" PRIu64 ", readers held %" PRIu64
         ", torn blocks written again %" PRIu64 ", leaked slots seen %" PRIu64 "\n",
         SUM(lane_stores), SUM(cuts), SUM(readers), SUM(torn), SUM(leaks));
  printf("soak: %" PRIu64 " s, kills %" PRIu64 " (%" PRIu64 " from a start on, %" PRIu64 " at work, %" PRIu64
         " in a chosen operation), reopens verified %" PRIu64 ", operations %" PRIu64
         ", pages verified %" PRIu64 ", times full %u, ENOSPC %" PRIu64 ", writers held %" PRIu64
         ", failures 0\n",
         (now_ms() - begin) / 1000, kills, killed_at[AT_START], killed_at[AT_WORK], killed_at[AT_OP],
         SUM(reopens), all, SUM(pages), atomic_load(&shared->filled), SUM(enospc), SUM(holds));
}

int main(int argc, char **argv)
{
  uint64_t seconds = test_option(argc, argv, "--seconds", 10), most = test_option(argc, argv, "--kills", 0);
  const char *mode = test_option_string(argc, argv, "--mode");
  uint64_t begin = now_ms();

  workers = (unsigned)test_option(argc, argv, "--workers", 3);
  CHECK(workers && workers <= WORKERS_MAX, "1 to %u workers", WORKERS_MAX);
  CHECK(!mode || strcmp(mode, "all") == 0 || strcmp(mode, "store") == 0 || strcmp(mode, "flush") == 0 ||
        strcmp(mode, "no-map") == 0, "unknown mode '%s'", mode);
  if (most && !test_option_string(argc, argv, "--seconds"))
    seconds = 3600;
  test_dir(argc, argv);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED, "no memory");
  rng.state = shared->seed = test_seed(argc, argv);
  if (test_flag(argc, argv, "--fill")) {
    check_own_file_system(test_dir(argc, argv));
    shared->fills = 1;
  }
  for (unsigned w = 0; w < workers; w++) {
    shared->worker[w].next_seq = shared->worker[w].next_id = 1;
    atomic_store(&shared->worker[w].lane_image, -1);
  }
  set_up();
  if ((!mode || strcmp(mode, "flush") != 0) && can_map(PCOW_STORE_DURABLE))
    shared->modes |= MODE_STORE;
  if ((!mode || strcmp(mode, "store") != 0) && can_map(PCOW_FLUSH_DURABLE))
    shared->modes |= MODE_FLUSH;
  if (mode && strcmp(mode, "no-map") == 0)
    shared->modes = 0;
  if (mode && strcmp(mode, "no-map") != 0 && !shared->modes)
    test_skip("nothing can be mapped so here");
  test_on_failure(report_all);
  reporting = true;
  if (shared->fills) {
    filler = (pid_t)SYS(fork());
    if (!filler) {
      reporting = false;
      fill();
    }
  }
  run(seconds, most);
  if (filler)
    waitpid(filler, NULL, 0);
  verify_all();
  summary(begin);
  return 0;
}
