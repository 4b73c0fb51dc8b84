/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Out of space, on a tmpfs of 64 MiB that this program mounts in a mount namespace of its own (root
 * only): a writer of an overlay that is larger is held, the callback fires once, the file system is
 * grown, pcow_mapping_resume() lets the writer go on and nothing is lost. Without a callback the
 * storing thread dies of SIGBUS, a system call gets EFAULT, the log says why and the image stays
 * consistent. pcow_pwrite() gives -ENOSPC.
 */
#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (160 * MIB)
#define PAGES (SIZE / PAGE)
#define EARLY 256 /* pages that are written while there is space */

static char *mount_path, *base, *overlay;
static atomic_uint called, done_pages;
static atomic_uint_least64_t called_offset;
static char called_file[1024];
static char logged[8][1024];
static atomic_uint logged_count;

static void tmpfs_resize(unsigned mib)
{
  char options[64];

  snprintf(options, sizeof options, "size=%uM", mib);
  SYS(mount(NULL, mount_path, NULL, MS_REMOUNT, options));
}

static uint64_t base_seed(uint64_t page)
{
  return page % 4 == 1 && page < 8192 ? 100000 + page : 0;
}

/* The base is beside the small file system, and small itself. */
static void build(void)
{
  char bytes[PCOW_PAGE_SIZE];
  pcow_image *image;

  unlink(overlay);
  tmpfs_resize(64);
  if (access(base, F_OK) != 0) {
    test_create(base, SIZE, 2 * MIB, NULL, PCOW_FORMAT_NONE, NULL);
    image = test_open(base, PCOW_OPEN_RDWR, NULL);
    for (uint64_t page = 0; page < PAGES; page++)
      if (base_seed(page)) {
        test_page_fill(bytes, base_seed(page));
        OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
      }
    OK(pcow_close(image));
  }
  test_create(overlay, SIZE, 2 * MIB, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < EARLY; page++) {
    test_page_fill(bytes, 1 + page);
    OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
  }
  OK(pcow_close(image));
}

/* The word at 8 of each page below WRITTEN from EARLY on is the page's number, all else the base's. */
static void verify(const char *how, uint64_t written, uint64_t maybe)
{
  pcow_image *image = test_open(overlay, 0, NULL);
  uint64_t found[PCOW_PAGE_SIZE / 8], expected[PCOW_PAGE_SIZE / 8];

  for (uint64_t page = 0; page < PAGES; page++) {
    memset(expected, 0, PAGE);
    if (page < EARLY)
      test_page_fill(expected, 1 + page);
    else if (base_seed(page))
      test_page_fill(expected, base_seed(page));
    OK(pcow_pread(image, found, PAGE, page * PAGE));
    if (page >= EARLY && (page < written || (page < maybe && found[1] == page)))
      expected[1] = page;
    CHECK(memcmp(found, expected, PAGE) == 0, "%s: page %" PRIu64 " is wrong (%" PRIu64 " were written)", how,
          page, written);
  }
  OK(pcow_close(image));
  test_check_clean(overlay);
}

static void on_nospace(void *opaque, const char *file, uint64_t offset)
{
  (void)opaque;
  snprintf(called_file, sizeof called_file, "%s", file);
  atomic_store(&called_offset, offset);
  atomic_fetch_add(&called, 1);
}

static void on_log(void *opaque, int level, const char *message)
{
  unsigned at = atomic_fetch_add(&logged_count, 1);

  (void)opaque;
  if (at < 8)
    snprintf(logged[at], sizeof logged[at], "%d %s", level, message);
}

static void *writer(void *address)
{
  volatile uint64_t *range = address;

  for (uint64_t page = EARLY; page < PAGES; page++) {
    range[page * (PAGE / 8) + 1] = page;
    atomic_store(&done_pages, (unsigned)page + 1);
  }
  return NULL;
}

/* Waits for CONDITION; the time limit of the test run ends a wait that never does. */
#define WAIT_FOR(condition)                                                                      \
  while (!(condition))                                                                           \
  usleep(1000)

static void held_and_resumed(void)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_mapping_stats stats;
  pcow_mapping *map;
  pcow_image *image;
  pthread_t thread;
  unsigned rounds = 0;

  build();
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  options.nospace = on_nospace;
  map = test_map(image, &options);
  CHECK(!pthread_create(&thread, NULL, writer, pcow_mapping_address(map)), "no thread");
  for (unsigned mib = 96; atomic_load(&done_pages) < PAGES; mib += 48) {
    unsigned before = rounds, done;
    char byte;

    WAIT_FOR(atomic_load(&called) > before || atomic_load(&done_pages) == PAGES);
    if (atomic_load(&called) == before)
      break;
    rounds++;
    WAIT_FOR(test_stats(map).held_writers);
    stats = test_stats(map);
    done = atomic_load(&done_pages);
    CHECK(stats.held_writers == 1, "%" PRIu64 " writers are held", stats.held_writers);
    CHECK(strcmp(called_file, overlay) == 0, "the callback named '%s'", called_file);
    CHECK(atomic_load(&called_offset) / PAGE == done, "the callback named page %" PRIu64 ", the writer is at %u",
          atomic_load(&called_offset) / PAGE, done);

    /* Held means held, and everybody else goes on. */
    usleep(100000);
    CHECK(atomic_load(&done_pages) == done, "the writer was not held");
    CHECK(atomic_load(&called) == rounds, "the callback was called %u times", atomic_load(&called));
    OK(pcow_pread(image, &byte, 1, SIZE - 1));
    CHECK(((volatile char *)pcow_mapping_address(map))[SIZE - 1] == 0, "a read is wrong");
    CHECK(test_page_is(pcow_mapping_address(map), 1), "a present page is wrong");

    if (rounds == 1) { /* no space yet: held again, called again */
      OK(pcow_mapping_resume(map));
      WAIT_FOR(atomic_load(&called) == 2);
      rounds = 2;
    }
    tmpfs_resize(mib);
    OK(pcow_mapping_resume(map));
  }
  pthread_join(thread, NULL);
  stats = test_stats(map);
  CHECK(rounds >= 2, "the writer was never held");
  CHECK(!stats.held_writers, "%" PRIu64 " writers are still held", stats.held_writers);
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  verify("held and resumed", PAGES, PAGES);
  printf("held %u times, %" PRIu64 " pages written\n", rounds, PAGES - EARLY);
}

static atomic_uint *shared_pages;

static void on_sigbus(int number)
{
  (void)number;
  _exit(42);
}

/* The child stores until SIGBUS; its image is left as a crash leaves it, or closed cleanly. */
static void sigbus_child(bool syscall)
{
  pcow_image *image;
  pcow_mapping *map;
  volatile uint64_t *range;
  pid_t child;
  int status;
  unsigned written;

  build();
  fflush(stdout);
  atomic_store(shared_pages, EARLY);
  child = (pid_t)SYS(fork());
  if (!child) {
    signal(SIGBUS, on_sigbus);
    pcow_set_log(on_log, NULL);
    image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
    map = test_map(image, NULL);
    range = pcow_mapping_address(map);
    if (!syscall) {
      for (uint64_t page = EARLY; page < PAGES; page++) {
        range[page * (PAGE / 8) + 1] = page;
        atomic_store(shared_pages, (unsigned)page + 1);
      }
      _exit(43);
    } else {
      int pipes[2], error = 0;

      SYS(pipe(pipes));
      for (uint64_t page = EARLY; page < PAGES && !error; page++) {
        SYS(write(pipes[1], &page, 8));
        if (read(pipes[0], (void *)(uintptr_t)&range[page * (PAGE / 8) + 1], 8) != 8)
          error = errno;
        else
          atomic_store(shared_pages, (unsigned)page + 1);
      }
      CHECK(error == EFAULT, "the system call ended with: %s", strerror(error));
      CHECK(atomic_load(&logged_count), "nothing was logged");
      CHECK(strstr(logged[0], overlay) && strstr(logged[0], "space"), "the log says: %s", logged[0]);
      printf("log: %s\n", logged[0]);
      CHECK(atomic_load(&logged_count) < 4, "%u lines were logged", atomic_load(&logged_count));

      /* What was there can be read and written; with space, resume lets the page be written, too. */
      CHECK(test_page_is((const char *)range + PAGE, 2), "an early page is wrong");
      range[EARLY * (PAGE / 8) + 1] = EARLY;
      tmpfs_resize(256);
      OK(pcow_mapping_resume(map));
      for (uint64_t page = atomic_load(shared_pages); page < PAGES; page++) {
        range[page * (PAGE / 8) + 1] = page;
        atomic_store(shared_pages, (unsigned)page + 1);
      }
      OK(pcow_unmap(map));
      OK(pcow_close(image));
      fflush(stdout);
      _exit(44);
    }
  }
  SYS(waitpid(child, &status, 0));
  written = atomic_load(shared_pages);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (syscall ? 44 : 42), "the child ended with status 0x%x after %u pages",
        status, written);
  CHECK(written > EARLY, "nothing was written before the space ended");
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL); /* an unclean end: made durable, collected */
  OK(pcow_close(image));
  verify(syscall ? "after EFAULT" : "after SIGBUS", written, written + 1);
  printf("%s: %u pages written in the end\n", syscall ? "EFAULT, resumed" : "SIGBUS", written - EARLY);
}

static void pwrite_fails(void)
{
  char *bytes = test_alloc(MIB);
  uint64_t offset, first, page;
  pcow_image *image;
  int result = 0;

  build();
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  for (offset = EARLY * PAGE; offset < SIZE; offset += MIB) {
    for (page = 0; page < MIB / PAGE; page++)
      test_page_fill(bytes + page * PAGE, 7000000 + offset / PAGE + page);
    result = pcow_pwrite(image, bytes, MIB, offset);
    if (result < 0)
      break;
  }
  CHECK(result == -ENOSPC, "pcow_pwrite() on a full file system gave %d: %s", result, pcow_errormsg());
  CHECK(strstr(pcow_errormsg(), overlay), "the message does not name the file: %s", pcow_errormsg());
  printf("pcow_pwrite(): %s\n", pcow_errormsg());
  result = pcow_snapshot_create(image, "full");
  CHECK(result == 0 || result == -ENOSPC, "a snapshot on a full file system gave %d: %s", result, pcow_errormsg());
  OK(pcow_discard(image, 0, 64 * PAGE)); /* of what nobody else sees when there is no snapshot */
  OK(pcow_close(image));
  test_check_clean(overlay);
  image = test_open(overlay, 0, NULL);
  for (first = EARLY; first < offset / PAGE; first++) {
    OK(pcow_pread(image, bytes, PAGE, first * PAGE));
    CHECK(test_page_is(bytes, 7000000 + first), "page %" PRIu64 " is wrong after -ENOSPC", first);
  }
  for (page = 64; page < EARLY; page++) {
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(test_page_is(bytes, 1 + page), "page %" PRIu64 " is wrong after -ENOSPC", page);
  }
  for (page = offset / PAGE; page < PAGES; page++) { /* new, or as before; beyond the write as before */
    static const char zeros[PCOW_PAGE_SIZE];
    bool before, new;

    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    before = base_seed(page) ? test_page_is(bytes, base_seed(page)) : memcmp(bytes, zeros, PAGE) == 0;
    new = page < offset / PAGE + MIB / PAGE && test_page_is(bytes, 7000000 + page);
    CHECK(before || new, "page %" PRIu64 " is wrong after -ENOSPC", page);
  }
  OK(pcow_close(image));
  tmpfs_resize(256);
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  memset(bytes, 3, MIB);
  OK(pcow_pwrite(image, bytes, MIB, SIZE - MIB));
  OK(pcow_close(image));
  test_check_clean(overlay);
  free(bytes);
}

/* Not even the slot of the first page can be had: refused as often as it is tried, and nothing remembers it. */
static void first_slot_fails(void)
{
  char *ballast = test_path("mount/ballast"), *path = test_path("mount/fresh.pcow");
  int fd = (int)SYS(open(ballast, O_RDWR | O_CREAT, 0600));
  char page[PCOW_PAGE_SIZE];
  pcow_image *image;

  unlink(overlay);
  tmpfs_resize(16);
  test_create(path, MIB, 64 * KIB, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (off_t size = 0; fallocate(fd, 0, size, PAGE) == 0; size += (off_t)PAGE)
    ;
  test_page_fill(page, 5);
  for (unsigned i = 0; i < 6; i++)
    GIVES(-ENOSPC, pcow_pwrite(image, page, PAGE, i % 2 * 64 * KIB));
  SYS(unlink(ballast));
  SYS(close(fd));
  for (unsigned i = 0; i < 2; i++)
    OK(pcow_pwrite(image, page, PAGE, i * 64 * KIB));
  OK(pcow_close(image));
  test_check_clean(path);
  image = test_open(path, 0, NULL);
  for (unsigned i = 0; i < 2; i++) {
    memset(page, 0, PAGE);
    OK(pcow_pread(image, page, PAGE, i * 64 * KIB));
    CHECK(test_page_is(page, 5), "a page is wrong that was written when there was space again");
  }
  OK(pcow_close(image));
  SYS(unlink(path));
}

static void unmount(void)
{
  umount2(mount_path, MNT_DETACH);
}

int main(int argc, char **argv)
{
  test_force_pmem(argv);
  test_dir(argc, argv);
  mount_path = test_path("mount");
  if (geteuid() != 0)
    test_skip("a file system cannot be mounted without root");
  SYS(mkdir(mount_path, 0700));
  if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
      mount("pcow-test", mount_path, "tmpfs", 0, "size=64M") < 0)
    test_skip("tmpfs cannot be mounted here: %s", strerror(errno));
  atexit(unmount);
  base = test_path("base.pcow");
  overlay = test_path("mount/overlay.pcow");
  shared_pages = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared_pages != MAP_FAILED, "no memory");
  first_slot_fails();
  held_and_resumed();
  sigbus_child(false);
  sigbus_child(true);
  pwrite_fails();
  return 0;
}
