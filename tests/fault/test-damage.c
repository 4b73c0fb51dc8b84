/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is taken away under an image: the end of its file, pages of memory (MADV_HWPOISON, where the kernel
 * has it), a superblock that the medium cannot read, address space. The library's calls give errors that
 * name the file; none ends the process. Only an access of the program itself to what is gone is a SIGBUS, as
 * for any mapped file.
 */
#include "format.h"
#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (16 * MIB)
#define UNIT (1 * MIB)
#define SECONDS 30u

static char *path, *base;
static sigjmp_buf after;
static volatile bool accessing;
static unsigned cases, errors;

static void on_sigbus(int number)
{
  if (accessing)
    siglongjmp(after, 1);
  signal(number, SIG_DFL);
  raise(number);
}

/* What a call gave while something is missing: success, or an error that says about which file. */
static int tried(const char *what, int result)
{
  if (result < 0) {
    errors++;
    CHECK(strstr(pcow_errormsg(), "image.pcow") || strstr(pcow_errormsg(), "base.pcow"),
          "%s gave %d with the message '%s', which names no file", what, result, pcow_errormsg());
    if (getenv("FAULT_VERBOSE"))
      fprintf(stderr, "  %s: %d: %s\n", what, result, pcow_errormsg());
  }
  return result;
}

static void write_pages(pcow_image *image, uint64_t first, uint64_t count, const char *what)
{
  char page[PCOW_PAGE_SIZE];

  for (uint64_t i = first; i < first + count; i++) {
    test_page_fill(page, i);
    if (what)
      tried(what, pcow_pwrite(image, page, PAGE, i * PAGE));
    else
      OK(pcow_pwrite(image, page, PAGE, i * PAGE));
  }
}

static void build(void)
{
  pcow_image *image;

  unlink(path);
  unlink(base);
  test_create(base, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  write_pages(image, 0, 64, NULL);
  OK(pcow_close(image));
  test_create(path, SIZE, UNIT, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  write_pages(image, 16, 16, NULL);
  OK(pcow_snapshot_create(image, "old"));
  write_pages(image, 20, 600, NULL);
  OK(pcow_close(image));
}

/* FN(argument) in a process of its own. */
static int in_child(void (*fn)(uint64_t), uint64_t argument)
{
  pid_t child;
  int status;

  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (!child) {
    alarm(SECONDS);
    signal(SIGBUS, on_sigbus);
    fn(argument);
    fflush(NULL);
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  cases++;
  return status;
}

static void must_end_well(const char *what, uint64_t argument, int status)
{
  CHECK(!WIFSIGNALED(status), "%s %" PRIu64 ": died of signal %d (%s)", what, argument, WTERMSIG(status),
        strsignal(WTERMSIG(status)));
  CHECK(WEXITSTATUS(status) == 0, "%s %" PRIu64 ": exit %d", what, argument, WEXITSTATUS(status));
}

/* ---- A superblock that cannot be read ---- */

static off_t unreadable = -1;

ssize_t __real_pread64(int fd, void *buffer, size_t count, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t count, off_t offset);

ssize_t __wrap_pread64(int fd, void *buffer, size_t count, off_t offset)
{
  if (unreadable < 0 || offset >= unreadable + (off_t)PAGE || offset + (off_t)count <= unreadable)
    return __real_pread64(fd, buffer, count, offset);
  errno = EIO;
  return -1;
}

/* The other copy is enough, and whoever writes makes this one anew. */
static void superblock_fails(uint64_t offset)
{
  char page[PCOW_PAGE_SIZE];

  for (unsigned flags = 0; flags < 2; flags++) {
    pcow_image *image;

    unreadable = (off_t)offset;
    image = test_open(path, flags, NULL);
    OK(pcow_pread(image, page, PAGE, 16 * PAGE));
    CHECK(test_page_is(page, 16), "page 16 is not what it was");
    if (flags)
      write_pages(image, 16, 1, NULL);
    OK(pcow_close(image));
  }
  unreadable = -1;
  test_check_clean(path);
}

/* ---- Truncation ---- */

static void use(pcow_image *image)
{
  char buffer[PCOW_PAGE_SIZE];

  for (uint64_t i = 0; i < SIZE / PAGE; i += 7)
    tried("pread", pcow_pread(image, buffer, PAGE, i * PAGE));
  write_pages(image, 24, 4, "pwrite of present pages");
  write_pages(image, 2000, 4, "pwrite of new pages");
  write_pages(image, 3900, 4, "pwrite of a new slot");
  tried("discard", pcow_discard(image, 30 * PAGE, 4 * PAGE));
  tried("flush", pcow_sync(image));
  tried("snapshot", pcow_snapshot_create(image, "new"));
  tried("delete", pcow_snapshot_delete(image, "old"));
  tried("resize", pcow_resize(image, SIZE / 2, PCOW_RESIZE_SHRINK));
  tried("flush", pcow_sync(image));
}

static void opened_fails(void)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image;

  for (unsigned flags = 0; flags < 2; flags++) {
    options.flags = flags | PCOW_OPEN_BASES;
    CHECK(tried("open", pcow_open(path, &options, &image)) < 0, "a truncated image was opened");
  }
}

/* Some words are in memory only: the flush is the first to store to the media. */
static void truncate_open(uint64_t size)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

  write_pages(image, 40, 4, NULL);
  write_pages(image, 700, 4, NULL);
  SYS(truncate(path, (off_t)size));
  tried("flush", pcow_sync(image));
  use(image);
  CHECK(errors, "nobody noticed that the file ends at byte %" PRIu64, size);
  tried("close", pcow_close(image));
  opened_fails();
}

static bool touch(volatile char *at)
{
  if (sigsetjmp(after, 1)) {
    accessing = false;
    return false;
  }
  accessing = true;
  *at = 1;
  accessing = false;
  return true;
}

static void truncate_mapped(uint64_t size)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);
  pcow_mapping *map = test_map(image, NULL);
  char *range = pcow_mapping_address(map);

  pcow_set_log(NULL, NULL);
  for (uint64_t i = 0; i < 50; i++)
    CHECK(touch(range + i * 10 * PAGE), "a store failed");
  SYS(truncate(path, (off_t)size));
  for (uint64_t i = 0; i < SIZE / PAGE; i += 3)
    touch(range + i * PAGE);    /* those of the program may fail */
  use(image);
  tried("persist", pcow_persist(map, 0, SIZE));
  CHECK(errors, "nobody noticed that the file ends at byte %" PRIu64, size);
  OK(pcow_unmap(map));
  tried("close", pcow_close(image));
  opened_fails();
}

static void truncate_base(uint64_t size)
{
  pcow_image *image = test_open(path, 0, NULL);
  char buffer[PCOW_PAGE_SIZE];

  SYS(truncate(base, (off_t)size));
  for (uint64_t i = 0; i < 16; i++)
    tried("pread", pcow_pread(image, buffer, PAGE, i * PAGE));
  /* Its data begins 6 MiB after its first slot group does. */
  CHECK(errors || size > SLOT_GROUPS_OFFSET + 6 * MIB, "nobody noticed that the base ends at byte %" PRIu64, size);
  OK(pcow_close(image));
}

/* ---- Memory failures ---- */

static bool poison(uint64_t offset)
{
  int fd = (int)SYS(open(path, O_RDWR | O_CLOEXEC));
  char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
  int result;

  CHECK(page != MAP_FAILED, "cannot map: %s", strerror(errno));
  *(volatile char *)page = *(volatile char *)page;
  result = madvise(page, PAGE, MADV_HWPOISON);
  munmap(page, PAGE);
  close(fd);
  return result == 0;
}

/* The page at OFFSET fails: before the image is opened, and while it is. */
static void poison_closed(uint64_t offset)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image;

  SYS(poison(offset) ? 0 : -1);
  options.flags = PCOW_OPEN_RDWR | PCOW_OPEN_BASES;
  if (tried("open", pcow_open(path, &options, &image)) == 0) {
    use(image);
    tried("close", pcow_close(image));
  }
  CHECK(errors, "nobody noticed that the page at byte %" PRIu64 " failed", offset);
}

static void poison_open(uint64_t offset)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

  write_pages(image, 40, 4, NULL);
  SYS(poison(offset) ? 0 : -1);
  use(image);
  tried("close", pcow_close(image));
  CHECK(errors, "nobody noticed that the page at byte %" PRIu64 " failed", offset);
}

/* ---- Address space ---- */

/* Exits 3 where GLib ended the process for want of a few bytes. */
static void little_memory(uint64_t more)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct pcow_map_options map_options = PCOW_INIT(map_options);
  struct rlimit limit;
  unsigned long pages = 0;
  pcow_mapping *map = NULL;
  pcow_image *image;
  FILE *statm = fopen("/proc/self/statm", "r");

  CHECK(statm && fscanf(statm, "%lu", &pages) == 1, "cannot read /proc/self/statm");
  fclose(statm);
  limit.rlim_cur = limit.rlim_max = pages * PAGE + more;
  SYS(setrlimit(RLIMIT_AS, &limit));
  options.flags = PCOW_OPEN_RDWR | PCOW_OPEN_BASES;
  if (tried("open", pcow_open(path, &options, &image)))
    return;
  use(image);
  map_options.durability = PCOW_STORE_DURABLE;
  if (tried("map", pcow_map(image, &map_options, &map)) == 0)
    for (uint64_t i = 0; i < SIZE / 2 / PAGE; i += 5)
      touch((char *)pcow_mapping_address(map) + i * PAGE);
  tried("snapshot", pcow_snapshot_create(image, "mapped"));
  OK(pcow_unmap(map));
  tried("commit", pcow_commit(image, NULL, NULL));
  tried("close", pcow_close(image));
}

/* Bytes that GLib could not get when it ended the child, from its last words; 0: it did not. */
static uint64_t abort_bytes(uint64_t more, int *status)
{
  char text[4096] = "";
  const char *at;
  FILE *words = fopen(test_path("words"), "w+");
  int saved = (int)SYS(dup(2));

  SYS(dup2(fileno(words), 2));
  *status = in_child(little_memory, more);
  SYS(dup2(saved, 2));
  close(saved);
  rewind(words);
  text[fread(text, 1, sizeof text - 1, words)] = '\0';
  fclose(words);
  at = strstr(text, "failed to allocate ");
  if (!at && *text)
    fputs(text, stderr);
  return at ? strtoull(at + strlen("failed to allocate "), NULL, 10) : 0;
}

static void address_space(void)
{
  unsigned ended = 0;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  printf("address space: left out, a sanitizer needs all of it\n");
  return;
#endif
  for (uint64_t more = 64 * KIB; more < 512 * GIB; more += more / 2) {
    uint64_t bytes;
    int status;

    build();
    bytes = abort_bytes(more, &status);
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGTRAP || WTERMSIG(status) == SIGABRT) && bytes) {
      CHECK(bytes <= 64 * KIB, "with %" PRIu64 " KiB GLib ended the process for %" PRIu64 " bytes",
            more / KIB, bytes);
      ended++;
      continue;
    }
    must_end_well("address space and", more, status);
    test_check_clean(path);
  }
  printf("address space: ended by GLib for a small allocation in %u cases\n", ended);
}

int main(int argc, char **argv)
{
  static const uint64_t ends[] = {
    0, PAGE, SUPERBLOCK_OFFSET(1), EPOCH_LOG_OFFSET, UNIT_MAP_OFFSET, SLOT_GROUPS_OFFSET,
    SLOT_GROUPS_OFFSET + PAGE, SLOT_GROUPS_OFFSET + 4 * MIB, SLOT_GROUPS_OFFSET + 8 * MIB,
  };
  static const uint64_t failing[] = { SUPERBLOCK_OFFSET(0), SUPERBLOCK_OFFSET(1), EPOCH_LOG_OFFSET, UNIT_MAP_OFFSET,
    SLOT_GROUPS_OFFSET, SLOT_GROUPS_OFFSET + 4 * MIB };
  struct pcow_map_options options = PCOW_INIT(options);
  pcow_mapping *map = NULL;
  pcow_image *image;
  bool maps;

  test_force_pmem(argv);
  test_dir(argc, argv);
  path = test_path("image.pcow");
  base = test_path("base.pcow");
  build();
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  options.durability = PCOW_STORE_DURABLE;
  maps = pcow_map(image, &options, &map) == 0;
  if (!maps)
    printf("cases with a map are left out: %s\n", pcow_errormsg());
  OK(pcow_unmap(map));
  OK(pcow_close(image));

  for (unsigned i = 0; i < sizeof ends / sizeof ends[0]; i++) {
    for (unsigned mode = 0; mode < 2; mode++) {
      setenv("PMEM_IS_PMEM_FORCE", mode ? "0" : "1", 1);
      build();
      must_end_well("truncated under an open image to", ends[i], in_child(truncate_open, ends[i]));
    }
    setenv("PMEM_IS_PMEM_FORCE", "1", 1);
    build();
    if (maps)
      must_end_well("truncated under a map to", ends[i], in_child(truncate_mapped, ends[i]));
    build();
    must_end_well("base truncated to", ends[i], in_child(truncate_base, ends[i]));
  }

  for (unsigned i = 0; i < 2; i++) {
    build();
    must_end_well("unreadable superblock", i, in_child(superblock_fails, SUPERBLOCK_OFFSET(i)));
  }
  build();
  if (!poison(SLOT_GROUPS_OFFSET)) {
    printf("memory failures are left out: madvise(MADV_HWPOISON): %s\n", strerror(errno));
  } else {
    for (unsigned i = 0; i < sizeof failing / sizeof failing[0]; i++) {
      build();
      must_end_well("page failed, closed, at", failing[i], in_child(poison_closed, failing[i]));
      build();
      must_end_well("page failed, open, at", failing[i], in_child(poison_open, failing[i]));
    }
  }
  address_space();
  printf("%u cases\n", cases);
  return 0;
}
