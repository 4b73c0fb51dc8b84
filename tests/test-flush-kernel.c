/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A flush-durable map and the rules of the kernel, one by one: more written regions than a scan gives at once, a
 * full file system, huge pages of tmpfs, fork, memory that was written without the page tables' knowledge, growth,
 * many memory areas, a kernel without PAGEMAP_SCAN, read-only maps.
 *
 *     test-flush-kernel [--nobody] [--seed N] [--dir DIR]
 */
#include "content.h"
#include "vmabudget.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SCAN_IOCTL _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, 96)

static bool nobody;

/* An overlay over SIZE bytes of pages that have their number's content; NULL: of nothing. */
static pcow_image *overlay(const char *name, uint64_t size, uint64_t unit, bool based)
{
  char *base = test_path("base-%s", name), *path = test_path("%s", name);
  char bytes[PCOW_PAGE_SIZE];
  pcow_image *image;

  if (based) {
    test_create(base, size, unit, NULL, PCOW_FORMAT_NONE, NULL);
    image = test_open(base, PCOW_OPEN_RDWR, NULL);
    for (uint64_t page = 0; page < size / PAGE; page++) {
      test_page_fill(bytes, page);
      OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
    }
    OK(pcow_close(image));
  }
  test_create(path, size, unit, based ? base : NULL, based ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
  return test_open(path, PCOW_OPEN_RDWR, NULL);
}

/* The image file as a crash would leave it: without what only the mapping has. */
static void check_flushed(const char *name, uint64_t page, uint64_t seed, const char *label)
{
  char *path = test_path("%s", name), *copy = test_path("%s-copy", name);
  char bytes[PCOW_PAGE_SIZE];
  pid_t child = (pid_t)SYS(fork());
  pcow_image *image;
  int status;

  if (child == 0) {
    execlp("cp", "cp", "--sparse=always", path, copy, (char *)NULL);
    _exit(1);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "cp failed");
  image = test_open(copy, 0, NULL);
  OK(pcow_pread(image, bytes, PAGE, page * PAGE));
  CHECK(test_page_is(bytes, seed), "%s: page %" PRIu64 " is not what was flushed", label, page);
  OK(pcow_close(image));
  SYS(unlink(copy));
}

/* ---- More regions than one scan gives ---- */

static void alternate(void)
{
  const uint64_t pages = 8192;
  pcow_image *image = overlay("alternate", pages * PAGE, 2 * MIB, true);
  pcow_mapping *map = test_map_flush(image, NULL);
  uint8_t *range = pcow_mapping_address(map);
  char bytes[PCOW_PAGE_SIZE];

  for (unsigned round = 1; round <= 2; round++) {
    struct pcow_mapping_stats before = test_stats(map), after;

    for (uint64_t page = 0; page < pages; page += 2)
      test_page_fill(range + page * PAGE, pages * round + page);
    OK(pcow_flush(map, 0, pages * PAGE));
    after = test_stats(map);
    CHECK(after.pages_flushed + after.pages_handed_over - before.pages_flushed - before.pages_handed_over == pages / 2,
          "%" PRIu64 " pages were flushed", after.pages_flushed - before.pages_flushed);
    CHECK(nobody ? !after.pages_handed_over : round == 1 || after.pages_handed_over == pages / 2,
          "%" PRIu64 " pages were handed over", after.pages_handed_over);
  }
  check_flushed("alternate", pages - 2, pages * 2 + pages - 2, "every other page");
  check_flushed("alternate", 2, pages * 2 + 2, "every other page");
  OK(pcow_unmap(map));
  for (uint64_t page = 0; page < pages; page++) {
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, page % 2 ? page : pages * 2 + page), "page %" PRIu64, page);
  }
  OK(pcow_close(image));
}

/* ---- A full file system ---- */

static int fill_up(const char *path)
{
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  struct statvfs fs;
  off_t end = 0;

  CHECK(fd >= 0, "cannot make %s", path);
  for (uint64_t step = 1 << 30; step >= PAGE;) {
    SYS(fstatvfs(fd, &fs));
    if (posix_fallocate(fd, end, (off_t)step) == 0)
      end += (off_t)step;
    else
      step /= 2;
  }
  /* XFS keeps a few blocks from fallocate(2) that write(2) may have. */
  while (pwrite(fd, &fs, sizeof fs, end) > 0)
    end += PAGE;
  return fd;
}

static void no_space(void)
{
  const uint64_t pages = 2048;
  char *filler = test_path("filler");
  struct pcow_mapping_stats stats;
  struct pcow_map_options options = PCOW_INIT(options);
  pcow_image *image;
  pcow_mapping *map;
  unsigned refused = 0;
  bool failed[100];
  uint8_t *range;
  struct statvfs fs;

  SYS(statvfs(test_path("."), &fs));
  if ((uint64_t)fs.f_bavail * fs.f_bsize > 2 * GIB) {
    puts("no small file system: a full one is not tried");
    return;
  }
  image = overlay("full", pages * PAGE, MIB, true);
  options.thin = PCOW_THIN_GUARDED;
  map = test_map_flush(image, &options);
  range = pcow_mapping_address(map);
  for (uint64_t page = 0; page < 8; page++)
    test_page_fill(range + page * PAGE, pages + page);
  OK(pcow_flush(map, 0, pages * PAGE));
  close(fill_up(filler));
  /* Stores that no flush has met yet. */
  for (uint64_t page = 1000; page < 1100; page++)
    test_page_fill(range + page * PAGE, 3 * pages + page);
  /* XFS puts more by for a write than it needs in the end: a few blocks may be left. */
  for (uint64_t page = 1000; page < 1100; page++) {
    int ret = pcow_pwrite(image, "no", 2, page * PAGE);

    CHECK(ret == 0 || ret == -ENOSPC, "pcow_pwrite() gave %d on a full file system", ret);
    failed[page - 1000] = ret != 0;
    refused += ret != 0;
  }
  CHECK(refused > 50, "the file system was not full: %u of 100 writes were refused", refused);
  SYS(unlink(filler));
  OK(pcow_flush(map, 0, pages * PAGE));
  for (uint64_t page = 1000; page < 1100; page++)
    if (failed[page - 1000])
      check_flushed("full", page, 3 * pages + page, "after a pcow_pwrite() that failed");
  close(fill_up(filler));
  for (uint64_t page = 0; page < pages; page++)
    test_page_fill(range + page * PAGE, 2 * pages + page);
  GIVES(-ENOSPC, pcow_flush(map, 0, pages * PAGE));
  GIVES(-ENOSPC, pcow_sync(image));
  GIVES(-ENOSPC, pcow_unmap(map));
  GIVES(-ENOSPC, pcow_snapshot_create(image, "no"));
  for (uint64_t page = 0; page < pages; page++)
    CHECK(test_page_is(range + page * PAGE, 2 * pages + page), "page %" PRIu64 " changed", page);
  SYS(unlink(filler));
  OK(pcow_flush(map, 0, pages * PAGE));
  stats = test_stats(map);
  CHECK(stats.pages_flushed + stats.pages_handed_over >= pages, "%" PRIu64 " pages were flushed", stats.pages_flushed);
  for (uint64_t page = 0; page < pages; page += 97)
    check_flushed("full", page, 2 * pages + page, "after a full file system");
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  image = test_open(test_path("full"), 0, NULL);
  for (uint64_t page = 0; page < pages; page++) {
    char bytes[PCOW_PAGE_SIZE];

    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, 2 * pages + page), "page %" PRIu64 " is lost", page);
  }
  OK(pcow_close(image));
}

/* ---- fork ---- */

static void forked(void)
{
  pcow_image *image = overlay("forked", 256 * PAGE, MIB, true);
  pcow_mapping *map = test_map_flush(image, NULL);
  volatile uint8_t *range = pcow_mapping_address(map);

  /* Of each kind: not copied, copied, flushed, handed over; after pcow_pwrite(), a discard and a snapshot. */
  for (unsigned i = 1; i < 5; i++)
    range[i * 16 * PAGE] = 1;
  OK(pcow_flush(map, 2 * 16 * PAGE, 3 * 16 * PAGE));
  range[4 * 16 * PAGE] = 2;
  OK(pcow_flush(map, 4 * 16 * PAGE, PAGE));
  OK(pcow_pwrite(image, "x", 1, 5 * 16 * PAGE));
  OK(pcow_discard(image, 6 * 16 * PAGE, PAGE));
  for (unsigned round = 0; round < 2; round++) {
    for (unsigned i = 0; i < 7; i++) {
      int status;
      pid_t child;

      fflush(NULL);
      child = (pid_t)SYS(fork());
      if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(range[i * 16 * PAGE] == 255);
      }
      SYS(waitpid(child, &status, 0));
      CHECK(WIFSIGNALED(status), "round %u: a child inherited a page of kind %u", round, i);
    }
    if (round == 0)
      OK(pcow_snapshot_create(image, "one"));
  }
  OK(pcow_unmap(map));
  OK(pcow_close(image));
}

/* ---- Written behind the page tables ---- */

static void marked(void)
{
  pcow_image *image = overlay("marked", 256 * PAGE, MIB, true);
  pcow_mapping *map = test_map_flush(image, NULL);
  uint8_t *range = pcow_mapping_address(map);
  int ends[2];
  char bytes[PCOW_PAGE_SIZE];
  struct iovec part = { range + 5 * PAGE, PAGE };
  struct pcow_mapping_stats stats;

  /* A page that was copied and flushed is not found again; marked, it is. The store goes through the page tables
   * here, and is hidden from the scan by scanning first. */
  test_page_fill(range + 5 * PAGE, 1);
  OK(pcow_flush(map, 5 * PAGE, PAGE));
  check_flushed("marked", 5, 1, "flushed");
  stats = test_stats(map);
  OK(pcow_flush(map, 5 * PAGE, PAGE));
  CHECK(test_stats(map).pages_flushed == stats.pages_flushed, "a clean page was flushed");
  /* Somebody else has the page itself, pinned: what is written there is not noted. */
  SYS(pipe(ends));
  CHECK(vmsplice(ends[1], &part, 1, 0) == (ssize_t)PAGE, "no vmsplice()");
  OK(pcow_mark_dirty(map, 5 * PAGE + 17, 3));
  OK(pcow_flush(map, 0, 4 * PAGE));
  CHECK(test_stats(map).pages_flushed + test_stats(map).pages_handed_over ==
        stats.pages_flushed + stats.pages_handed_over, "a flush of other pages took it");
  OK(pcow_flush(map, 5 * PAGE, PAGE));
  CHECK(test_stats(map).pages_flushed + test_stats(map).pages_handed_over ==
        stats.pages_flushed + stats.pages_handed_over + 1, "the marked page was not flushed");
  CHECK(read(ends[0], bytes, PAGE) == (ssize_t)PAGE && test_page_is(bytes, 1), "not the page");
  GIVES(-EINVAL, pcow_mark_dirty(map, 256 * PAGE, 1));
  OK(pcow_mark_dirty(map, 256 * PAGE, 0));
  SYS(close(ends[0]));
  SYS(close(ends[1]));
  OK(pcow_unmap(map));
  OK(pcow_close(image));
}

/* ---- Sizes, arguments, read-only ---- */

static void grown(void)
{
  struct pcow_map_options options = PCOW_INIT(options);
  pcow_image *image = overlay("grown", 300 * PAGE, MIB, true);
  pcow_mapping *map;
  uint8_t *range;

  options.reserve = 4 * MIB;
  map = test_map_flush(image, &options);
  range = pcow_mapping_address(map);
  test_page_fill(range + 299 * PAGE, 1);
  OK(pcow_resize(image, 4 * MIB, 0));
  CHECK(pcow_mapping_length(map) == 4 * MIB, "it did not grow");
  test_page_fill(range + 1023 * PAGE, 2);
  test_page_fill(range + 300 * PAGE, 3);
  OK(pcow_flush(map, 300 * PAGE, PAGE));
  OK(pcow_flush(map, 299 * PAGE, 725 * PAGE));
  check_flushed("grown", 1023, 2, "grown");
  check_flushed("grown", 300, 3, "grown");
  check_flushed("grown", 299, 1, "grown");
  GIVES(-EINVAL, pcow_flush(map, 4 * MIB, 1));
  GIVES(-EINVAL, pcow_flush(map, 1, UINT64_MAX));
  OK(pcow_flush(map, 4 * MIB, 0));
  test_page_fill(range + 7 * PAGE, 4);
  OK(pcow_persist(map, 7 * PAGE + 5, 1));
  check_flushed("grown", 7, 4, "persisted");
  OK(pcow_unmap(map));
  OK(pcow_close(image));

  image = test_open(test_path("grown"), 0, NULL);
  OK(pcow_map(image, NULL, &map));
  CHECK(test_page_is((uint8_t *)pcow_mapping_address(map) + 7 * PAGE, 4), "read-only");
  GIVES(-EBADF, pcow_flush(map, 0, PAGE));
  GIVES(-EBADF, pcow_mark_dirty(map, 0, PAGE));
  OK(pcow_close(image));
}

/* pcow_close() flushes, too. */
static void closed(void)
{
  pcow_image *image = overlay("closed", 256 * PAGE, MIB, true);
  pcow_mapping *map = test_map_flush(image, NULL);

  test_page_fill((uint8_t *)pcow_mapping_address(map) + 9 * PAGE, 77);
  OK(pcow_close(image));
  check_flushed("closed", 9, 77, "closed");
}

/* ---- Few memory areas ---- */

static void budget(struct rng *rng)
{
  const uint64_t pages = 16384;
  pcow_image *image = overlay("budget", pages * PAGE, 2 * MIB, true);
  struct pcow_mapping_stats stats;
  pcow_mapping *map;
  uint8_t *range;
  uint64_t *seeds;

  if (nobody) {                 /* nothing is handed over: areas stay few */
    OK(pcow_close(image));
    return;
  }
  seeds = test_alloc(pages * 8);
  vmabudget_override(1200);
  map = test_map_flush(image, NULL);
  range = pcow_mapping_address(map);
  for (uint64_t page = 0; page < pages; page++)
    seeds[page] = page;
  for (unsigned round = 1; round < 40; round++) {
    for (unsigned i = 0; i < 300; i++) {
      uint64_t page = rng_below(rng, 900) * 17;

      seeds[page] = pages * round + page;
      test_page_fill(range + page * PAGE, seeds[page]);
    }
    OK(pcow_flush(map, 0, pages * PAGE));
  }
  stats = test_stats(map);
  for (uint64_t page = 0; page < pages; page++)
    CHECK(test_page_is(range + page * PAGE, seeds[page]), "page %" PRIu64, page);
  printf("budget: %" PRIu64 " of %" PRIu64 " areas, %" PRIu64 " handed over\n", stats.vmas, stats.vma_budget,
         stats.pages_handed_over);
  OK(pcow_unmap(map));
  vmabudget_override(0);
  for (uint64_t page = 0; page < pages; page++) {
    char bytes[PCOW_PAGE_SIZE];

    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, seeds[page]), "page %" PRIu64, page);
  }
  OK(pcow_close(image));
  free(seeds);
}

/* ---- A kernel without it ---- */

static void forbid_ioctl(uint32_t number)
{
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { sizeof code / sizeof *code, code };

  SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void no_scan(void)
{
  int status;
  pid_t child;

  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (child == 0) {
    struct pcow_map_options options = PCOW_INIT(options);
    pcow_image *image = overlay("no-scan", 256 * PAGE, MIB, true);
    pcow_mapping *map;

    forbid_ioctl(SCAN_IOCTL);
    GIVES(-ENOTSUP, pcow_map(image, &options, &map));
    CHECK(strstr(pcow_errormsg(), "PAGEMAP_SCAN") && strstr(pcow_errormsg(), "6.7"), "says: %s", pcow_errormsg());
    OK(pcow_close(image));
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "without PAGEMAP_SCAN it goes wrong");
}

/* A scan that fails while the map is in use: all copies count as written. */
static void failing_scan(void)
{
  int status;
  pid_t child;

  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (child == 0) {
    pcow_image *image = overlay("failing", 256 * PAGE, MIB, true);
    pcow_mapping *map = test_map_flush(image, NULL);
    uint8_t *range = pcow_mapping_address(map);

    test_page_fill(range + 3 * PAGE, 1);
    OK(pcow_flush(map, 0, MIB));
    test_page_fill(range + 4 * PAGE, 2);
    forbid_ioctl(SCAN_IOCTL);
    CHECK(pcow_flush(map, 0, MIB) < 0, "a flush without a scan succeeded");
    CHECK(pcow_unmap(map) < 0, "the map was ended without a flush");
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a scan that fails goes wrong");
}

/* ---- Huge pages of tmpfs ---- */

static void huge(struct rng *rng)
{
  char *mount_point = test_path("huge"), *base = test_path("huge/base"), *path = test_path("huge/image");
  const uint64_t pages = 4096;
  uint64_t *seeds = test_alloc(pages * 8);
  pcow_image *image;
  pcow_mapping *map;
  uint8_t *range;
  char bytes[PCOW_PAGE_SIZE];

  SYS(mkdir(mount_point, 0700));
  if (nobody || mount("pcow-test", mount_point, "tmpfs", 0, "size=256M,huge=always")) {
    puts("no tmpfs with huge pages: not tried");
    return;
  }
  test_create(base, pages * PAGE, 2 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < pages; page++) {
    seeds[page] = page;
    test_page_fill(bytes, page);
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(image));
  test_create(path, pages * PAGE, 2 * MIB, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (unsigned round = 1; round <= 100; round++) {
    map = test_map_flush(image, NULL);
    range = pcow_mapping_address(map);
    for (uint64_t page = 0; page < pages; page += 64)
      CHECK(range[page * PAGE] || 1, "never");
    for (unsigned i = 0; i < 60; i++) {
      uint64_t page = rng_below(rng, pages);

      seeds[page] = pages * round + i;
      test_page_fill(range + page * PAGE, seeds[page]);
      if (i % 20 == 0)
        OK(pcow_flush(map, 0, pages * PAGE));
    }
    OK(pcow_unmap(map));
  }
  for (uint64_t page = 0; page < pages; page++) {
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, seeds[page]), "huge=always: page %" PRIu64 " is lost", page);
  }
  OK(pcow_close(image));
  SYS(umount(mount_point));
  free(seeds);
}

int main(int argc, char **argv)
{
  struct rng rng = { test_seed(argc, argv) };

  test_dir(argc, argv);
  nobody = test_flag(argc, argv, "--nobody");
  if (nobody)
    test_become_nobody();
  alternate();
  no_space();
  forked();
  marked();
  grown();
  closed();
  budget(&rng);
  no_scan();
  failing_scan();
  huge(&rng);
  return 0;
}
