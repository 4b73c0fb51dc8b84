/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process is killed at each of its changes of the media in turn, within the copies of a superblock at a word of
 * them, too. Whatever it was doing, a check then finds neither corruption nor a leak; the next session gives back all
 * that is left, so that the image that it closes has none either; and what was there before shows the same.
 * (A kill loses no stores; what a power failure may lose is tests/crash.)
 */
#include "content.h"
#include "format.h"
#include "image.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNIT (64 * KIB)
#define SIZE (2 * MIB)
#define UNTOUCHED (28 * UNIT)   /* from here on nobody writes */
#define COPIES_END (2 * MIB)    /* the superblocks lie before */

static const char *base, *other, *made, *victim;
static struct content content;
static uint64_t seed;
static enum pcow_durability durability;

/* ---- The kill ---- */

static atomic_ulong changes;
static unsigned long deadly;    /* the change after which the process is killed; 0: none */
static int victim_fd = -1;
static uint8_t before[2][SUPERBLOCK_BYTES];

static void *watch_open(int fd, const char *path, enum persist_mode mode)
{
  (void)mode;
  if (strcmp(path, victim))
    return NULL;
  victim_fd = fd;
  return &victim_fd;
}

static void watch_nothing(void *file) { (void)file; }

static void watch_begin(void *file)
{
  (void)file;
  for (unsigned i = 0; deadly && atomic_load(&changes) + 1 == deadly && i < 2; i++)
    SYS(pread(victim_fd, before[i], SUPERBLOCK_BYTES, (off_t)SUPERBLOCK_OFFSET(i)));
}

static bool is_deadly(void)
{
  unsigned long n = atomic_fetch_add(&changes, 1) + 1;

  return deadly && n >= deadly;
}

static void die(void)
{
  kill(getpid(), SIGKILL);
  for (;;)
    pause();
}

static void watch_store(void *file, uint64_t offset, const void *from, uint64_t length, bool back)
{
  (void)file;
  (void)from;
  (void)back;
  if (!is_deadly())
    return;
  if (offset < COPIES_END && length > 8) {
    /* The copy came as far as some word. */
    struct rng rng = { seed + deadly };
    uint64_t in = offset % SUPERBLOCK_OFFSET(1), kept = rng_below(&rng, length / 8) * 8;

    if (rng_chance(&rng, 50)) /* all that is not zero is in the first words */
      kept %= 256;
    SYS(pwrite(victim_fd, before[offset / SUPERBLOCK_OFFSET(1)] + in + kept, length - kept, (off_t)(offset + kept)));
  }
  die();
}

static void watch_flush(void *file, uint64_t offset, uint64_t length)
{
  (void)file;
  (void)offset;
  (void)length;
}

static void watch_flush_memory(void *file, const void *address, uint64_t length)
{
  (void)file;
  (void)address;
  (void)length;
}

static void watch_punch(void *file, uint64_t offset, uint64_t length)
{
  watch_flush(file, offset, length);
  if (is_deadly())
    die();
}

static void watch_grow(void *file, uint64_t size)
{
  (void)file;
  (void)size;
  if (is_deadly())
    die();
}

static void watch_sync(void *file)
{
  (void)file;
  if (is_deadly())
    die();
}

static const struct persist_watch watch = {
  .begin = watch_begin,
  .end = watch_nothing,
  .open = watch_open,
  .close = watch_nothing,
  .store = watch_store,
  .flush = watch_flush,
  .flush_memory = watch_flush_memory,
  .drain = watch_nothing,
  .sync = watch_sync,
  .punch = watch_punch,
  .grow = watch_grow,
};

/* ---- What is killed ---- */

static void store(pcow_mapping *map, uint64_t offset, uint64_t length)
{
  char *at = (char *)pcow_mapping_address(map) + offset;

  memset(at, 0x5a, length);
  if (durability == PCOW_STORE_DURABLE)
    OK(pcow_persist(map, offset, length));
}

static void work_map(void)
{
  pcow_image *image = test_open(victim, PCOW_OPEN_RDWR, NULL);
  pcow_mapping *map = durability == PCOW_STORE_DURABLE ? test_map(image, NULL) : test_map_flush(image, NULL);

  for (unsigned round = 0; round < 3; round++) {
    store(map, 20 * UNIT + round * 3 * PAGE, 2 * PAGE); /* over the base */
    store(map, 2 * UNIT + round * PAGE, 100);           /* over a snapshot, or present */
    store(map, (22 + round) * UNIT + 5 * PAGE, 1);
    OK(pcow_flush(map, 0, SIZE));
    OK(pcow_discard(image, 20 * UNIT + round * 3 * PAGE, PAGE));
    if (round == 1)
      OK(pcow_snapshot_create(image, "live"));
  }
  OK(pcow_unmap(map));
  OK(pcow_close(image));
}

static void write_pages(pcow_image *image, uint64_t offset, uint64_t pages)
{
  g_autofree char *bytes = g_malloc(pages * PAGE);

  memset(bytes, 0x6b, pages * PAGE);
  OK(pcow_pwrite(image, bytes, pages * PAGE, offset));
}

static void work_snapshots(void)
{
  pcow_image *image = test_open(victim, PCOW_OPEN_RDWR, NULL);

  write_pages(image, 10 * UNIT, 14);
  write_pages(image, 12 * UNIT, 2);
  write_pages(image, 14 * UNIT, 2);
  OK(pcow_snapshot_create(image, "a"));
  write_pages(image, 10 * UNIT + PAGE, 2);              /* moves down: few over many */
  write_pages(image, 12 * UNIT + PAGE, 14);             /* moves up */
  OK(pcow_snapshot_create(image, "b"));
  write_pages(image, 10 * UNIT + 2 * PAGE, 1);
  OK(pcow_snapshot_delete(image, "a"));
  OK(pcow_snapshot_delete(image, "b"));
  OK(pcow_snapshot_create(image, "c"));
  write_pages(image, 16 * UNIT, 3);
  OK(pcow_snapshot_revert(image, "c"));
  OK(pcow_close(image));
}

static void work_sizes(void)
{
  pcow_image *image = test_open(victim, PCOW_OPEN_RDWR, NULL);
  struct pcow_rebase_options options = PCOW_INIT(options);

  OK(pcow_resize(image, SIZE + 2 * UNIT, 0));
  write_pages(image, SIZE, 20);
  OK(pcow_resize(image, SIZE + PAGE, PCOW_RESIZE_SHRINK));
  OK(pcow_resize(image, SIZE, PCOW_RESIZE_SHRINK));
  options.base = other;
  options.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_rebase(image, &options));
  OK(pcow_close(image));
}

/* ---- The rounds ---- */

/* As cp --sparse: what is copied is what there is. */
static void copy_file(const char *from, const char *to)
{
  static char buffer[256 << 10];
  int in = (int)SYS(open(from, O_RDONLY)), out = (int)SYS(open(to, O_RDWR | O_CREAT | O_TRUNC, 0600));
  off_t end = (off_t)SYS(lseek(in, 0, SEEK_END)), at = 0;

  SYS(ftruncate(out, end));
  while ((at = lseek(in, at, SEEK_DATA)) >= 0) {
    off_t stop = (off_t)SYS(lseek(in, at, SEEK_HOLE));

    for (; at < stop; at += (off_t)sizeof buffer) {
      size_t n = MIN(sizeof buffer, (size_t)(stop - at));

      CHECK(SYS(pread(in, buffer, n, at)) == (long)n && SYS(pwrite(out, buffer, n, at)) == (long)n, "a short copy");
    }
    at = stop;
  }
  SYS(close(in));
  SYS(close(out));
}

static void print_finding(void *opaque, const char *finding)
{
  (void)opaque;
  fprintf(stderr, "%s\n", finding);
}

static uint64_t leftovers;      /* found after kills */

/* FINISHED: by a session that was closed. */
static void look(const char *what, unsigned long n, bool finished)
{
  struct pcow_check_result result = PCOW_INIT(result);

  OK(pcow_check(victim, 0, &result, NULL, NULL, NULL));
  if (result.corruptions || result.leaks || (finished && result.leftovers))
    OK(pcow_check(victim, 0, &result, print_finding, NULL, NULL));
  CHECK(!result.corruptions && !result.leaks && !result.base_faults,
        "%s, %s change %lu: %llu corruptions, %llu leaks", what, finished ? "closed after" : "killed at", n,
        (unsigned long long)result.corruptions, (unsigned long long)result.leaks);
  CHECK(!finished || (!result.leftovers && !result.pending), "%s, closed after change %lu: %llu leftovers, %llu pending",
        what, n, (unsigned long long)result.leftovers, (unsigned long long)result.pending);
  leftovers += result.leftovers;
}

/* Whether WORK was killed at change N: it has that many. */
static bool killed_at(void (*work)(void), unsigned long n)
{
  pid_t child;
  int status;

  copy_file(made, victim);
  child = (pid_t)SYS(fork());
  if (child == 0) {
    deadly = n;
    persist_set_watch(&watch);
    work();
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0, "status %#x", (unsigned)status);
  return WIFSIGNALED(status);
}

static void kill_all(const char *what, void (*work)(void), uint64_t stride)
{
  struct rng rng = { seed };
  unsigned long kills = 0, n = 1 + rng_below(&rng, stride);

  leftovers = 0;
  for (; killed_at(work, n); n += 1 + rng_below(&rng, 2 * stride - 1)) {
    g_autofree char *bytes = g_malloc(SIZE - UNTOUCHED);
    pcow_image *image;

    kills++;
    look(what, n, false);
    image = test_open(victim, PCOW_OPEN_RDWR, NULL);
    OK(pcow_pread(image, bytes, SIZE - UNTOUCHED, UNTOUCHED));
    CHECK(!memcmp(bytes, content.bytes + UNTOUCHED, SIZE - UNTOUCHED), "%s, killed at change %lu: other content", what, n);
    OK(pcow_close(image));
    look(what, n, true);
    content_compare_view(victim, "kept", &content, what);
  }
  look(what, n, true);
  printf("%s: %lu kills, %llu leftovers\n", what, kills, (unsigned long long)leftovers);
}

static void make(const char *path, const char *below, struct content *c, struct rng *rng, unsigned writes)
{
  pcow_image *image;

  test_create(path, SIZE, UNIT, below, below ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, c, rng, writes);
  OK(pcow_close(image));
}

int main(int argc, char **argv)
{
  uint64_t stride = test_option(argc, argv, "--stride", 1);
  bool msync = test_flag(argc, argv, "--msync");
  struct content below;
  pcow_image *image;
  struct rng rng;

  if (msync)
    test_unforce_pmem(argv);
  else
    test_force_pmem(argv);
  test_dir(argc, argv);
  seed = test_seed(argc, argv);
  rng.state = seed;
  base = test_path("base");
  other = test_path("other");
  made = test_path("made");
  victim = test_path("victim");
  below = content_new(SIZE);
  make(other, NULL, &below, &rng, 40);
  content_free(&below);
  below = content_new(SIZE);
  make(base, NULL, &below, &rng, 60);
  content = content_copy(&below);
  make(made, base, &content, &rng, 30);
  image = test_open(made, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "kept"));
  OK(pcow_close(image));

  kill_all("snapshots", work_snapshots, stride);
  kill_all("sizes", work_sizes, stride);
  durability = PCOW_FLUSH_DURABLE;
  kill_all("flush-durable", work_map, stride);
  if (!msync) {
    durability = PCOW_STORE_DURABLE;
    kill_all("store-durable", work_map, stride);
  }
  content_free(&content);
  content_free(&below);
  return 0;
}
