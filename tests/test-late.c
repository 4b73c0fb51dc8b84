/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Units that are laid out when they are first accessed: a map of a large image takes areas and memory for few of
 * them; a first access of any kind (loads, stores, system calls in either direction, the library's own calls) finds what
 * is there and loses nothing; what is done to units that nobody has accessed shows; and what several
 * threads store, flushing at once, while a unit is laid out is in the head when their flush returns.
 *
 *     test-late [--rounds N] [--seed S] [--dir DIR]
 */
#include "testlib.h"

#include "bits.h"
#include "image.h"
#include "mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNIT (2 * MIB)
#define UNIT_PAGES (UNIT / PAGE)
#define UNITS 32u
#define THREADS 8u

static bool flush_durable;
static const char *mode;

static pcow_mapping *map_image(pcow_image *image, struct pcow_map_options *options)
{
  return flush_durable ? test_map_flush(image, options) : test_map(image, options);
}

/* ---- What a map costs ---- */

static uint64_t areas(void)
{
  FILE *f = fopen("/proc/self/maps", "r");
  uint64_t n = 0;

  for (int c; (c = fgetc(f)) != EOF;)
    n += c == '\n';
  fclose(f);
  return n;
}

/* Anonymous memory and page tables. */
static uint64_t memory(void)
{
  static const char *const files[] = { "/proc/self/smaps_rollup", "/proc/self/status" };
  static const char *const names[] = { "Anonymous: %lu", "VmPTE: %lu" };
  unsigned long kib, sum = 0;
  char line[256];

  for (unsigned i = 0; i < 2; i++) {
    FILE *f = fopen(files[i], "r");

    while (fgets(line, sizeof(line), f))
      if (sscanf(line, names[i], &kib) == 1)
        sum += kib;
    fclose(f);
  }
  return sum * KIB;
}

/* Its pieces lie in as many units. */
static void large(void)
{
  const uint64_t size = TIB, pieces = 4096, share = size / pieces;
  char *path = test_path("large-%s", mode);
  uint64_t areas_before, memory_before, late;
  uint8_t page[PCOW_PAGE_SIZE];
  const uint8_t *range;
  pcow_image *image;
  pcow_mapping *m;

  test_create(path, size, 0, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < pieces; i++) {
    test_page_fill(page, i + 1);
    OK(pcow_pwrite(image, page, PAGE, i * share + i % 7 * PAGE));
  }
  OK(pcow_close(image));

  mapping_override_eager(UINT64_MAX);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  areas_before = areas();
  memory_before = memory();
  m = map_image(image, NULL);
  range = pcow_mapping_address(m);
  CHECK(areas() - areas_before < 300, "%" PRIu64 " areas more", areas() - areas_before);
  CHECK(memory() - memory_before < 16 * MIB, "%" PRIu64 " bytes of memory", memory() - memory_before);
  CHECK(test_stats(m).units_late == 0 && test_stats(m).faults == 0, "units were accessed when the map was made");
  CHECK(test_page_is(range + 2000 * share + 2000 % 7 * PAGE, 2001), "a page is wrong");
  CHECK(test_stats(m).units_late == 1, "one access laid out %" PRIu64 " units", test_stats(m).units_late);
  CHECK(test_page_is(range + 2000 * share + 2000 % 7 * PAGE, 2001), "a page is wrong");
  CHECK(test_stats(m).faults == 1, "%" PRIu64 " events for one page", test_stats(m).faults);
  for (uint64_t i = 0; i < pieces; i++)
    CHECK(test_page_is(range + i * share + i % 7 * PAGE, i + 1), "page %" PRIu64 " is wrong", i);
  late = test_stats(m).units_late;
  CHECK(late > pieces - 256 && late < pieces, "%" PRIu64 " units were late", late);
  OK(pcow_close(image));
  test_check_clean(path);
  printf("%s: %" PRIu64 " of %" PRIu64 " units were late\n", mode, late, pieces);
}

/* ---- First accesses, and calls ---- */

/* Of each unit pages 0 … 3 are the base's, 4 a snapshot's, 5 and 6 the head's; the others nobody's. */
static uint64_t seed_of(uint64_t page)
{
  uint64_t n = page % UNIT_PAGES;

  return n < 7 ? page + (n < 4 ? 1000000 : n == 4 ? 2000000 : 3000000) : 0;
}

static bool shows(const void *page, uint64_t number)
{
  static const uint8_t zeros[PCOW_PAGE_SIZE];

  return seed_of(number) ? test_page_is(page, seed_of(number)) : !memcmp(page, zeros, PAGE);
}

static void put(pcow_image *image, uint64_t first, uint64_t end)
{
  uint8_t page[PCOW_PAGE_SIZE];

  for (uint64_t u = 0; u < UNITS; u++)
    for (uint64_t n = first; n < end; n++) {
      test_page_fill(page, seed_of(u * UNIT_PAGES + n));
      OK(pcow_pwrite(image, page, PAGE, (u * UNIT_PAGES + n) * PAGE));
    }
}

static char *build(const char *name, uint64_t size)
{
  char *base = test_path("%s-%s-base", name, mode), *path = test_path("%s-%s", name, mode);
  pcow_image *image;

  test_create(base, size, UNIT, NULL, 0, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  put(image, 0, 4);
  OK(pcow_close(image));
  test_create(path, 0, UNIT, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  put(image, 4, 5);
  OK(pcow_snapshot_create(image, "first"));
  put(image, 5, 7);
  OK(pcow_close(image));
  return path;
}

struct fixture {
  char *path;
  pcow_image *image;
  pcow_mapping *m;
  uint8_t *range;
};

static struct fixture begin(const char *name, uint64_t size)
{
  struct pcow_map_options options = PCOW_INIT(options);
  struct fixture f = { .path = build(name, size) };

  mapping_override_eager(0);
  options.reserve = size + 64 * MIB;
  f.image = test_open(f.path, PCOW_OPEN_RDWR, NULL);
  f.m = map_image(f.image, &options);
  f.range = pcow_mapping_address(f.m);
  CHECK(test_stats(f.m).units_late == 0, "units were laid out when the map was made");
  return f;
}

#define AT(unit, page) (f.range + ((uint64_t)(unit) * UNIT_PAGES + (page)) * PAGE)

/* KIND by KIND, the first access of a unit at PAGE of it. Stores leave 0xa5 in byte 9. */
static void access_page(const struct fixture *f, unsigned kind, uint8_t *at)
{
  static const char byte = (char)0xa5;
  uint8_t buffer[PCOW_PAGE_SIZE];
  struct iovec here = { (void *)(uintptr_t)&byte, 1 }, there = { at + 9, 1 };
  uint64_t number = (uint64_t)(at - f->range) / PAGE;
  int fds[2];

  SYS(pipe(fds));
  switch (kind) {
  case 0:
    CHECK(shows(at, number), "a load sees page %" PRIu64 " wrong", number);
    break;
  case 1:
    *(volatile char *)(at + 9) = byte;
    break;
  case 2:                       /* read(2) into it */
    SYS(write(fds[1], &byte, 1));
    CHECK(read(fds[0], at + 9, 1) == 1, "read(2): %s", strerror(errno));
    break;
  case 3:
    CHECK(write(fds[1], at, PAGE) == (ssize_t)PAGE, "write(2): %s", strerror(errno));
    CHECK(read(fds[0], buffer, PAGE) == (ssize_t)PAGE && shows(buffer, number), "write(2) sees a page wrong");
    break;
  case 4:
    CHECK(process_vm_writev(getpid(), &here, 1, &there, 1, 0) == 1, "process_vm_writev: %s", strerror(errno));
    break;
  case 5:
    atomic_fetch_xor((_Atomic uint8_t *)(at + 9), (uint8_t)(at[9] ^ 0xa5));
    break;
  case 6:                       /* a buffer of the library's calls, of itself */
    OK(pcow_pread(f->image, at, PAGE, number * PAGE));
    CHECK(shows(at, number), "pcow_pread() into the page itself");
    break;
  case 7:
    OK(pcow_pwrite(f->image, at, PAGE, number * PAGE));
    CHECK(shows(at, number), "pcow_pwrite() from the page itself");
    break;
  }
  close(fds[0]);
  close(fds[1]);
}

#define KINDS 8u
static bool stores(unsigned kind) { return kind == 1 || kind == 2 || kind == 4 || kind == 5; }

static void check_pages(const struct fixture *f, uint64_t unit, uint64_t changed, bool stored)
{
  for (uint64_t n = 0; n < UNIT_PAGES; n += n < 16 ? 1 : 61) {
    uint64_t number = unit * UNIT_PAGES + n;
    uint8_t copy[PCOW_PAGE_SIZE], seen[PCOW_PAGE_SIZE];

    memcpy(copy, f->range + number * PAGE, PAGE);
    OK(pcow_pread(f->image, seen, PAGE, number * PAGE));
    CHECK(!memcmp(copy, seen, PAGE), "the map and pcow_pread() differ in page %" PRIu64, number);
    if (n == changed && stored) {
      uint8_t was[PCOW_PAGE_SIZE] = { 0 };

      if (seed_of(number))
        test_page_fill(was, seed_of(number));
      CHECK(copy[9] == 0xa5, "a store to page %" PRIu64 " is lost", number);
      copy[9] = was[9];
    }
    CHECK(shows(copy, number), "page %" PRIu64 " is wrong", number);
  }
}

static void accesses(void)
{
  static const uint64_t pages[] = { 2, 4, 5, 11 };      /* base, snapshot, head, nothing */
  struct fixture f = begin("accesses", UNITS * UNIT);

  for (unsigned pass = 0; pass < 2; pass++) {
    for (unsigned u = 0; u < UNITS; u++) {
      if (pass == 0)
        access_page(&f, u % KINDS, AT(u, pages[u / KINDS]));
      check_pages(&f, u, pages[u / KINDS], stores(u % KINDS));
    }
    if (pass == 0)
      CHECK(test_stats(f.m).units_late >= UNITS - 4, "%" PRIu64 " units were late", test_stats(f.m).units_late);
    OK(pcow_flush(f.m, 0, UNITS * UNIT));
    OK(pcow_unmap(f.m));
    f.m = map_image(f.image, NULL);
    f.range = pcow_mapping_address(f.m);
  }
  OK(pcow_close(f.image));
  test_check_clean(f.path);
}

static void calls(void)
{
  struct fixture f = begin("calls", UNITS * UNIT - 64 * KIB);
  uint8_t page[PCOW_PAGE_SIZE], seen[PCOW_PAGE_SIZE];
  pcow_image *snapshot;
  int status;
  pid_t child;

  test_page_fill(page, 77);
  OK(pcow_pwrite(f.image, page, PAGE, (2 * UNIT_PAGES + 3) * PAGE));
  OK(pcow_pwrite(f.image, "x", 1, (3 * UNIT_PAGES + 5) * PAGE));
  OK(pcow_discard(f.image, 4 * UNIT, 5 * PAGE));
  OK(pcow_write_zeroes(f.image, 5 * UNIT + 4 * PAGE, 2 * PAGE, PCOW_ZERO_KEEP_SPACE));
  OK(pcow_flush(f.m, 0, pcow_mapping_length(f.m)));
  OK(pcow_persist(f.m, 0, pcow_mapping_length(f.m)));
  OK(pcow_pread(f.image, seen, PAGE, (6 * UNIT_PAGES + 5) * PAGE));
  CHECK(shows(seen, 6 * UNIT_PAGES + 5), "pcow_pread() sees a page wrong");
  OK(pcow_snapshot_create(f.image, "second"));
  OK(pcow_snapshot_delete(f.image, "first"));
  OK(pcow_resize(f.image, (UNITS + 2) * UNIT, 0));
  CHECK(test_stats(f.m).units_late == 0 && test_stats(f.m).faults == 0, "calls laid out units");

  child = fork();
  CHECK(child >= 0, "fork");
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);           /* not a sanitizer's */
    *(volatile uint8_t *)AT(7, 1);      /* the child has not the map */
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV,
        "the child ended with 0x%x", status);

  CHECK(test_page_is(AT(2, 3), 77) && shows(AT(2, 4), 2 * UNIT_PAGES + 4), "what was written is not seen");
  CHECK(*AT(3, 5) == 'x', "a byte that was written is not seen");
  for (unsigned n = 0; n < 5; n++)
    CHECK(!*AT(4, n) && !AT(4, n)[100], "discarded page %u is not zero", n);
  CHECK(!AT(5, 4)[100] && !AT(5, 5)[100] && shows(AT(5, 6), 5 * UNIT_PAGES + 6), "pages that were zeroed are not");
  for (unsigned n = 0; n < 8; n++)
    AT(8, n)[8] = AT(UNITS - 1, n)[8] = 0x5a;
  *AT(UNITS - 1, UNIT_PAGES - 1) = 1;
  *AT(UNITS + 1, 3) = 2;
  OK(pcow_snapshot_create(f.image, "third"));
  *AT(8, 5) = 3;
  *AT(9, 5) = 4;
  OK(pcow_snapshot_delete(f.image, "second"));
  CHECK(AT(8, 6)[8] == 0x5a && *AT(UNITS - 1, UNIT_PAGES - 1) == 1 && *AT(UNITS + 1, 3) == 2, "stores are lost");
  snapshot = test_open(f.path, 0, "third");
  OK(pcow_pread(snapshot, seen, PAGE, (9 * UNIT_PAGES + 5) * PAGE));
  CHECK(shows(seen, 9 * UNIT_PAGES + 5), "a store is in the snapshot that was taken before it");
  OK(pcow_close(snapshot));
  OK(pcow_close(f.image));
  test_check_clean(f.path);
  f.image = test_open(f.path, PCOW_OPEN_RDWR, NULL);
  f.m = map_image(f.image, NULL);       /* and ended without an access */
  OK(pcow_unmap(f.m));
  OK(pcow_pread(f.image, seen, PAGE, (8 * UNIT_PAGES + 5) * PAGE));
  CHECK(seen[0] == 3 && seen[8] == 0x5a, "a store is lost");
  OK(pcow_close(f.image));
}

/* With nothing beneath, a first write makes the unit native, but not zeros of it that nobody has accessed. */
static void native(void)
{
  char *path = test_path("native-%s", mode);
  volatile uint8_t *range;
  pcow_image *image;
  pcow_mapping *m;
  uint64_t before;

  test_create(path, UNITS * UNIT, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (unsigned u = 0; u < UNITS; u++)
    OK(pcow_pwrite(image, "native", 6, u * UNIT));
  mapping_override_eager(0);
  m = map_image(image, NULL);
  range = pcow_mapping_address(m);
  range[UNIT] = 'N';
  OK(pcow_snapshot_create(image, "first"));
  OK(pcow_snapshot_delete(image, "first"));
  range[UNIT + 1] = 'A';
  CHECK(test_stats(m).write_faults == 1, "%" PRIu64 " first writes", test_stats(m).write_faults);
  before = test_stats(m).faults;
  CHECK(!range[UNIT + 100 * PAGE], "a page is not zero");
  CHECK(test_stats(m).faults == before + 1, "zeros that nobody had accessed were mapped");
  CHECK(range[UNIT] == 'N' && range[UNIT + 1] == 'A' && range[UNIT + 2] == 't', "a store is lost");
  OK(pcow_unmap(m));
  OK(pcow_close(image));
  test_check_clean(path);
}

/* Many pieces, for which there are areas enough: all are mapped, none is filled. */
static void fragmented(void)
{
  enum { LARGE = 32 * MIB, LARGE_UNITS = 2 };
  char *base = test_path("pieces-%s", mode), *path = test_path("over-%s", mode);
  volatile uint8_t *range;
  pcow_image *image;
  pcow_mapping *m;
  uint64_t before = 0;

  test_create(base, LARGE_UNITS * LARGE, LARGE, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  for (uint64_t at = 0; at < LARGE_UNITS * LARGE; at += 2 * PAGE)
    OK(pcow_pwrite(image, "piece", 5, at));
  OK(pcow_close(image));
  test_create(path, 0, LARGE, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  mapping_override_eager(0);
  m = map_image(image, NULL);
  range = pcow_mapping_address(m);
  for (unsigned pass = 0; pass < 2; pass++) {
    before = test_stats(m).faults;
    for (uint64_t at = 0; at < LARGE_UNITS * LARGE; at += 2 * PAGE)
      CHECK(range[at] == 'p', "the map is wrong at %" PRIu64, at);
  }
  if (test_stats(m).dram_pages == 0)    /* else the file system cannot be mapped so */
    CHECK(test_stats(m).faults == before, "pages that are mapped raised events");
  CHECK(!flush_durable || test_stats(m).dram_pages == 0, "%" PRIu64 " pages were filled", test_stats(m).dram_pages);
  OK(pcow_unmap(m));
  OK(pcow_close(image));
}

/* ---- Threads ---- */

struct thread {
  struct fixture *f;
  pthread_barrier_t *barrier;
  unsigned index;
  struct rng rng;
};

/* Flushed: in the head's slot, not in the kernel's copy alone. */
static void check_head(pcow_image *image, uint64_t number, uint64_t at, uint64_t word)
{
  uint64_t found = 0;
  int error;
  struct unit *u = head_lock_unit(image->head, number / UNIT_PAGES, &error);

  CHECK(u && u->present && bits_test(u->present, number % UNIT_PAGES), "a flushed page %" PRIu64 " is not present",
        number);
  OK(head_read(image->head, u, (number % UNIT_PAGES) * PAGE + at, &found, 8));
  head_unlock_unit(image->head, u);
  CHECK(found == word, "page %" PRIu64 " was flushed and has 0x%" PRIx64 " instead of 0x%" PRIx64, number, found, word);
}

static void *thread_main(void *argument)
{
  struct thread *t = argument;
  struct fixture f = *t->f;

  for (unsigned u = 0; u < UNITS; u++) {
    uint64_t n = rng_below(&t->rng, 8), number = u * UNIT_PAGES + n, word = rng_next(&t->rng) | 1, found;
    volatile uint64_t *at = (volatile uint64_t *)(void *)AT(u, n) + 8 + t->index;

    pthread_barrier_wait(t->barrier);
    for (uint64_t spin = rng_below(&t->rng, 4000); spin; spin--)
      __asm__ volatile("");
    test_range_store(at, &word, 8);
    OK(pcow_flush(f.m, number * PAGE, PAGE));
    check_head(f.image, number, (8 + t->index) * 8, word);
    test_range_load(&found, at, 8);
    CHECK(found == word, "a store to page %" PRIu64 " is lost", number);
  }
  return NULL;
}

static void threads(unsigned rounds, uint64_t seed)
{
  struct fixture f = { .path = build("threads", UNITS * UNIT) };

  mapping_override_eager(0);
  f.image = test_open(f.path, PCOW_OPEN_RDWR, NULL);
  for (unsigned round = 0; round < rounds; round++) {
    struct thread all[THREADS];
    pthread_t ids[THREADS];
    pthread_barrier_t barrier;
    g_autofree char *name = g_strdup_printf("r%u", round);

    f.m = map_image(f.image, NULL);
    f.range = pcow_mapping_address(f.m);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
      all[i] = (struct thread){ &f, &barrier, i, { test_mix(seed + round * THREADS + i) } };
      SYS(-pthread_create(&ids[i], NULL, thread_main, &all[i]));
    }
    for (unsigned i = 0; i < THREADS; i++)
      pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&barrier);
    CHECK(test_stats(f.m).units_late >= UNITS / 2, "%" PRIu64 " units were late", test_stats(f.m).units_late);
    OK(pcow_unmap(f.m));
    /* What is the head's becomes what lies beneath again. */
    OK(pcow_snapshot_create(f.image, name));
    if (round) {
      g_autofree char *before = g_strdup_printf("r%u", round - 1);

      OK(pcow_snapshot_delete(f.image, before));
    }
  }
  OK(pcow_close(f.image));
  test_check_clean(f.path);
}

int main(int argc, char **argv)
{
  uint64_t seed;

  test_force_pmem(argv);
  seed = test_seed(argc, argv);
  test_dir(argc, argv);
  for (unsigned i = 0; i < 2; i++) {
    flush_durable = i == 1;
    mode = i ? "flush" : "store";
    /* ThreadSanitizer has not the address space, and takes mapping a page for writing it. */
    if (!TEST_TSAN) {
      large();
      accesses();
      calls();
      native();
      fragmented();
    }
    threads((unsigned)test_option(argc, argv, "--rounds", 20), seed);
  }
  return 0;
}
