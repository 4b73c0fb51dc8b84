/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The mapping, quickly: what each kind of page reads as, that reading costs no event and no space,
 * first writes, pages changed through the API, discards, snapshots, growth, read-only maps, both thin
 * policies, large images, the caller's address. Run on tmpfs and, for pages that userfaultfd cannot
 * protect where they are, on another file system (--dir).
 */
#include "testlib.h"
#include "vmabudget.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *dir;
static bool tmpfs;

/* Pages 0 … COUNT - 1 with seed 1 + page, except every third, which is a hole. */
static char *make_base(char *path, uint64_t count)
{
  uint8_t page[PCOW_PAGE_SIZE];
  FILE *f = fopen(path, "w");

  CHECK(f, "%s: cannot create", path);
  for (uint64_t i = 0; i < count; i++) {
    if (i % 3 == 2)
      continue;
    test_page_fill(page, 1 + i);
    fseek(f, (long)(i * PAGE), SEEK_SET);
    fwrite(page, PAGE, 1, f);
  }
  fclose(f);
  SYS(truncate(path, (off_t)(count * PAGE)));
  return path;
}

static bool is_base(const void *page, uint64_t number)
{
  static const uint8_t zeros[PCOW_PAGE_SIZE];

  return number % 3 == 2 ? !memcmp(page, zeros, PAGE) : test_page_is(page, 1 + number);
}

static void check_base(const uint8_t *range, uint64_t first, uint64_t end)
{
  for (uint64_t i = first; i < end; i++)
    CHECK(is_base(range + i * PAGE, i), "page %lu is not the base's", (unsigned long)i);
}

static void thin(uint32_t policy, uint64_t unit)
{
  char *path = test_path("thin-%u-%lu", policy, (unsigned long)unit);
  struct pcow_map_options o = PCOW_INIT(o);
  pcow_mapping *m;
  pcow_image *image;
  uint64_t blocks, sum = 0;
  uint8_t *p, buffer[3] = { 0 };

  test_create(path, 8 * MIB + PAGE, unit, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  o.thin = policy;
  m = test_map(image, &o);
  p = pcow_mapping_address(m);
  CHECK(pcow_mapping_length(m) == 8 * MIB + PAGE, "wrong length");
  blocks = test_blocks(path);
  for (uint64_t i = 0; i < 8 * MIB + PAGE; i += PAGE)
    sum += p[i];
  CHECK(sum == 0 && test_stats(m).faults == 0, "reading zeros raised events");
  CHECK(test_blocks(path) == blocks, "reading zeros took space");
  p[5 * PAGE + 7] = 1;
  p[8 * MIB + 100] = 2;
  OK(pcow_persist(m, 5 * PAGE, PAGE));
  CHECK(test_stats(m).write_faults == 2, "%lu first writes", (unsigned long)test_stats(m).write_faults);
  for (uint64_t i = 0; i < 4 * MIB; i += PAGE)
    p[i + 1] = (uint8_t)(i / PAGE);
  OK(pcow_persist(m, 0, 8 * MIB + PAGE));
  OK(pcow_pread(image, buffer, 1, 5 * PAGE + 7));
  CHECK(buffer[0] == 1, "the store is not seen");
  OK(pcow_unmap(m));
  OK(pcow_close(image));
  test_check_clean(path);

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  m = test_map(image, &o);
  p = pcow_mapping_address(m);
  CHECK(p[5 * PAGE + 7] == 1 && p[8 * MIB + 100] == 2, "stores are lost");
  for (uint64_t i = 0; i < 4 * MIB; i += PAGE)
    CHECK(p[i + 1] == (uint8_t)(i / PAGE), "page %lu is lost", (unsigned long)(i / PAGE));
  OK(pcow_close(image));
}

static void overlay(uint64_t unit, uint32_t base_format)
{
  uint64_t pages = 1024, faults;
  char *raw = make_base(test_path("raw-%lu-%u", (unsigned long)unit, base_format), pages);
  char *base = raw, *path = test_path("over-%lu-%u", (unsigned long)unit, base_format);
  uint8_t *range, page[PCOW_PAGE_SIZE];
  pcow_mapping *m, *frozen;
  pcow_image *image, *snapshot;

  if (base_format == PCOW_FORMAT_PCOW) {
    base = test_path("base-%lu", (unsigned long)unit);
    test_create(base, pages * PAGE, 64 * KIB, NULL, 0, NULL);
    image = test_open(base, PCOW_OPEN_RDWR, NULL);
    for (uint64_t i = 0; i < pages; i++)
      if (i % 3 != 2) {
        test_page_fill(page, 1 + i);
        OK(pcow_pwrite(image, page, PAGE, i * PAGE));
      }
    OK(pcow_close(image));
  }
  test_create(path, 0, unit, base, base_format, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  m = test_map(image, NULL);
  range = pcow_mapping_address(m);
  check_base(range, 0, pages);
  faults = test_stats(m).faults;
  if (tmpfs)
    CHECK(faults == 0, "reading raised %lu events", (unsigned long)faults);

  /* A store, a write through the API, a discard. */
  range[10 * PAGE + 1] ^= 0xff;
  CHECK(range[10 * PAGE + 1] != 0 || true, "unreachable");
  range[10 * PAGE + 1] ^= 0xff;
  check_base(range, 0, pages);
  test_page_fill(page, 77);
  OK(pcow_pwrite(image, page, PAGE, 300 * PAGE));
  CHECK(test_page_is(range + 300 * PAGE, 77), "a write is not seen in the mapping");
  OK(pcow_pwrite(image, "x", 1, 301 * PAGE));
  CHECK(range[301 * PAGE] == 'x', "a byte is not seen");
  OK(pcow_discard(image, 8 * PAGE, 8 * PAGE));
  for (uint64_t i = 8 * PAGE; i < 16 * PAGE; i++)
    CHECK(range[i] == 0, "discarded byte %lu is not zero", (unsigned long)i);
  OK(pcow_discard(image, 500 * PAGE, 40 * PAGE));
  for (uint64_t i = 500 * PAGE; i < 540 * PAGE; i++)
    CHECK(range[i] == 0, "discarded byte %lu is not zero", (unsigned long)i);
  test_page_fill(range + 9 * PAGE, 78);
  test_page_fill(range + 520 * PAGE, 79);
  CHECK(range[521 * PAGE] == 0 && range[8 * PAGE] == 0, "a neighbour changed");

  /* A live snapshot. */
  OK(pcow_snapshot_create(image, "one"));
  CHECK(test_page_is(range + 9 * PAGE, 78) && test_page_is(range + 300 * PAGE, 77), "pages changed");
  test_page_fill(range + 9 * PAGE, 80);
  test_page_fill(range + 600 * PAGE, 81);
  OK(pcow_discard(image, 520 * PAGE, PAGE));
  CHECK(range[520 * PAGE] == 0, "not zero after a discard");
  snapshot = test_open(path, 0, "one");
  OK(pcow_map(snapshot, NULL, &frozen));
  range = pcow_mapping_address(frozen);
  CHECK(test_page_is(range + 9 * PAGE, 78) && test_page_is(range + 520 * PAGE, 79) &&
        test_page_is(range + 300 * PAGE, 77), "the snapshot changed");
  check_base(range, 540, pages);
  OK(pcow_close(snapshot));
  OK(pcow_snapshot_create(image, "two"));
  range = pcow_mapping_address(m);
  test_page_fill(range + 9 * PAGE, 82);
  OK(pcow_snapshot_delete(image, "one"));
  CHECK(test_page_is(range + 9 * PAGE, 82) && test_page_is(range + 600 * PAGE, 81), "pages changed");
  for (uint64_t i = 302; i < pages; i++)
    if (i == 600)
      CHECK(test_page_is(range + i * PAGE, 81), "lost");
    else if (i >= 500 && i < 540)
      CHECK(range[i * PAGE] == 0, "discarded page %lu is not zero", (unsigned long)i);
    else
      check_base(range, i, i + 1);
  OK(pcow_close(image));
  test_check_clean(path);

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  m = test_map(image, NULL);
  range = pcow_mapping_address(m);
  CHECK(test_page_is(range + 9 * PAGE, 82) && test_page_is(range + 300 * PAGE, 77) &&
        test_page_is(range + 600 * PAGE, 81) && range[520 * PAGE] == 0, "not what was written");
  check_base(range, 16, 300);
  check_base(range, 302, 500);
  check_base(range, 540, 600);
  check_base(range, 601, pages);
  OK(pcow_close(image));
}

/* How much first writes take: a page for one that stands alone, its granule for the second one there, and
 * more and more for a sequence; the granule at once where areas are scarce, or a granule was asked for. */
static void amounts(bool base)
{
  const uint64_t pages = 4096;
  char *path = test_path("amounts-%d", base);
  struct pcow_map_options o = PCOW_INIT(o);
  struct pcow_mapping_stats before, after;
  pcow_image *image;
  pcow_mapping *m;
  volatile uint8_t *p;

  test_create(path, pages * PAGE, 128 * MIB, base ? make_base(test_path("amounts-raw"), pages) : NULL,
              PCOW_FORMAT_RAW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  m = test_map(image, NULL);
  p = pcow_mapping_address(m);
#define TAKEN(count, faults, ...)                                                                      \
  do {                                                                                                 \
    before = test_stats(m);                                                                            \
    __VA_ARGS__;                                                                                       \
    after = test_stats(m);                                                                             \
    CHECK(after.pages_copied + after.pages_reserved - before.pages_copied - before.pages_reserved ==   \
            (uint64_t)(count),                                                                         \
          "%s: %lu pages instead of %lu", #__VA_ARGS__,                                                \
          (unsigned long)(after.pages_copied + after.pages_reserved - before.pages_copied -            \
                          before.pages_reserved),                                                      \
          (unsigned long)(count));                                                                     \
    CHECK(after.write_faults - before.write_faults <= (faults), "%s: %lu first writes", #__VA_ARGS__,  \
          (unsigned long)(after.write_faults - before.write_faults));                                  \
  } while (0)
  TAKEN(1, 1, p[37 * PAGE] = 1);
  TAKEN(1, 1, p[100 * PAGE] = 1);
  TAKEN(10, 1, p[42 * PAGE] = 1);       /* the rest of 32 … 47 behind page 37 */
  TAKEN(5, 1, p[32 * PAGE] = 1);        /* and before it */
  TAKEN(0, 0, for (unsigned i = 32; i < 48; i++) p[i * PAGE] = 2);
  before = test_stats(m);
  for (unsigned i = 1024; i < 3072; i++)
    p[i * PAGE] = 3;
  after = test_stats(m);
  CHECK(after.write_faults - before.write_faults <= (base ? 16 : 20),
        "%lu first writes in 8 MiB one after the other", (unsigned long)(after.write_faults - before.write_faults));
  /* What is reserved ahead of a stream that ends: half a MiB at most. */
  before = test_stats(m);
  for (unsigned i = 3200; !base && i < 3500; i++)
    p[i * PAGE] = 3;
  after = test_stats(m);
  CHECK(after.pages_reserved - before.pages_reserved < 300 + 128, "%lu pages for 300",
        (unsigned long)(after.pages_reserved - before.pages_reserved));
  OK(pcow_unmap(m));
  o.granule = 64 * KIB;
  m = test_map(image, &o);
  p = pcow_mapping_address(m);
  TAKEN(16, 1, p[300 * PAGE] = 1);
  OK(pcow_unmap(m));
  m = test_map(image, NULL);
  p = pcow_mapping_address(m);
  TAKEN(1, 1, p[400 * PAGE] = 1);
  vmabudget_override(8 * vmabudget_counted() / 3 + 16);         /* the limit is 3/8 of it */
  TAKEN(16, 1, p[200 * PAGE] = 1);
  vmabudget_override(0);
#undef TAKEN
  OK(pcow_close(image));
}

/* At a caller's address, beside other memory, growing. */
static void growing(void)
{
  char *path = test_path("growing");
  struct pcow_map_options o = PCOW_INIT(o);
  pcow_image *image;
  pcow_mapping *m;
  uint8_t *raw, *range;

  test_create(path, 3 * MIB, 2 * MIB, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  raw = mmap(NULL, 12 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(raw != MAP_FAILED, "no address space");
  range = (uint8_t *)(((uintptr_t)raw + 2 * MIB - 1) & ~(uintptr_t)(2 * MIB - 1));
  o.address = range;
  o.reserve = 8 * MIB;
  m = test_map(image, &o);
  CHECK(pcow_mapping_address(m) == range, "not at the address");
  range[3 * MIB - 1] = 1;
  OK(pcow_resize(image, 7 * MIB, 0));
  CHECK(pcow_mapping_length(m) == 7 * MIB, "did not grow");
  CHECK(range[3 * MIB] == 0 && range[7 * MIB - 1] == 0, "not zero");
  range[7 * MIB - 1] = 2;
  range[3 * MIB] = 3;
  GIVES(-ENOSPC, pcow_resize(image, 9 * MIB, 0));
  GIVES(-EBUSY, pcow_resize(image, 3 * MIB, PCOW_RESIZE_SHRINK));
  CHECK(range[3 * MIB - 1] == 1 && range[7 * MIB - 1] == 2 && range[3 * MIB] == 3, "lost");
  OK(pcow_unmap(m));
  SYS(munmap(raw, 12 * MIB));
  OK(pcow_close(image));
  test_check_clean(path);
}

static void enormous(uint32_t policy)
{
  char *path = test_path("enormous-%u", policy);
  struct pcow_map_options o = PCOW_INIT(o);
  pcow_image *image;
  pcow_mapping *m;
  uint8_t *range;
  struct pcow_mapping_stats stats;

  test_create(path, 8 * TIB, 0, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  o.thin = policy;
  m = test_map(image, &o);
  range = pcow_mapping_address(m);
  range[0] = 1;
  range[8 * TIB - 1] = 2;
  CHECK(range[4 * TIB] == 0 && range[4 * TIB + 5 * MIB] == 0, "not zero");
  stats = test_stats(m);
  CHECK(stats.faults < 12, "%lu events", (unsigned long)stats.faults);
  OK(pcow_pwrite(image, "y", 1, 6 * TIB + 12345));
  CHECK(range[6 * TIB + 12345] == 'y' && range[6 * TIB + 12346] == 0, "not what was written");
  OK(pcow_snapshot_create(image, "one"));
  range[8 * TIB - 2] = 3;
  OK(pcow_discard(image, TIB, 4 * TIB));
  CHECK(range[8 * TIB - 1] == 2 && range[6 * TIB + 12345] == 'y' && range[2 * TIB] == 0, "a snapshot changed it");
  OK(pcow_close(image));
  CHECK(test_blocks(path) < 20 * MIB, "takes %lu bytes", (unsigned long)test_blocks(path));
  image = test_open(path, 0, NULL);
  OK(pcow_map(image, NULL, &m));
  range = pcow_mapping_address(m);
  CHECK(range[0] == 1 && range[8 * TIB - 1] == 2 && range[6 * TIB + 12345] == 'y' && range[TIB] == 0,
        "not what was written");
  OK(pcow_close(image));
}

static uint64_t page_table_bytes(void)
{
  FILE *f = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long kib = 0;

  while (f && fgets(line, sizeof(line), f))
    if (sscanf(line, "VmPTE: %lu kB", &kib) == 1)
      break;
  if (f)
    fclose(f);
  return kib * KIB;
}

/* What a mapping takes goes by what was written: not by the zeros between it, which are armed when they are
 * accessed, and can be written, snapshotted and discarded like any others. */
static void scattered(void)
{
  const uint64_t pieces = 800, apart = 63 * MIB, from = 6 * TIB;
  char *path = test_path("scattered");
  uint8_t page[PCOW_PAGE_SIZE];
  uint64_t tables;
  pcow_image *image;
  pcow_mapping *m;
  uint8_t *range;

  test_create(path, 8 * TIB, 0, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < pieces; i++) {
    test_page_fill(page, 1 + i);
    OK(pcow_pwrite(image, page, PAGE, from + i * apart));
  }
  OK(pcow_sync(image));
  tables = page_table_bytes();
  m = test_map(image, NULL);
  range = pcow_mapping_address(m);
  tables = page_table_bytes() - tables;
  CHECK(!tmpfs || tables < 32 * MIB, "%lu MiB of page tables for %lu pages", (unsigned long)(tables / MIB),
        (unsigned long)pieces);
  /* Far beyond what is armed at once: read, then write; write across a page that is there; discard. */
  for (uint64_t i = pieces - 100; i < pieces; i++) {
    uint8_t *at = range + from + i * apart;

    CHECK(test_page_is(at, 1 + i), "piece %lu", (unsigned long)i);
    if (i % 3 == 0)
      CHECK(at[PAGE] == 0 && at[30 * MIB] == 0 && at[-1] == 0, "not zero beside piece %lu", (unsigned long)i);
    if (i % 4 == 0)
      for (int64_t p = -40; p < 40; p++)
        if (p)
          at[p * (int64_t)PAGE + 9] = (uint8_t)(100 + p);
    if (i % 5 == 0)
      OK(pcow_discard(image, from + i * apart - 20 * PAGE, 10 * PAGE));
    if (i == pieces - 50)
      OK(pcow_snapshot_create(image, "one"));
    if (i % 7 == 0)
      at[31 * MIB] = 5;
  }
  for (unsigned again = 0; again < 2; again++) {
    for (uint64_t i = pieces - 100; i < pieces; i++) {
      uint8_t *at = range + from + i * apart;

      CHECK(test_page_is(at, 1 + i), "piece %lu at the end", (unsigned long)i);
      for (int64_t p = -40; p < 40; p++)
        if (p)
          CHECK(at[p * (int64_t)PAGE + 9] == (i % 4 || (i % 5 == 0 && p >= -20 && p < -10) ? 0 : 100 + p),
                "beside piece %lu, page %d", (unsigned long)i, (int)p);
      CHECK(at[31 * MIB] == (i % 7 ? 0 : 5), "between pieces %lu and %lu", (unsigned long)i, (unsigned long)i + 1);
    }
    OK(pcow_close(image));
    image = test_open(path, again ? 0 : PCOW_OPEN_RDWR, NULL);
    m = again ? NULL : test_map(image, NULL);
    range = m ? pcow_mapping_address(m) : NULL;
  }
  OK(pcow_close(image));
}

static void refused(void)
{
  char *path = test_path("refused");
  struct pcow_map_options o = PCOW_INIT(o);
  pcow_image *image;
  pcow_mapping *m, *other;

  test_create(path, MIB, 64 * KIB, NULL, 0, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  o.durability = PCOW_STORE_DURABLE + 1;
  GIVES(-EINVAL, pcow_map(image, &o, &m));
  o.durability = PCOW_STORE_DURABLE;
  o.address = (void *)4096;
  GIVES(-EINVAL, pcow_map(image, &o, &m));
  o.address = NULL;
  o.granule = 5000;
  GIVES(-EINVAL, pcow_map(image, &o, &m));
  o.granule = 0;
  m = test_map(image, &o);
  GIVES(-EBUSY, pcow_map(image, &o, &other));
  OK(pcow_unmap(m));
  OK(pcow_unmap(NULL));
  OK(pcow_close(image));
}

/* ---- Everything at once ---- */

#define WRITERS 4u

struct writer {
  pthread_t id;
  unsigned me;
  pcow_image *image;
  uint8_t *range;
  uint64_t pages;
  uint64_t *expected;           /* first word of each page */
  struct rng rng;
  atomic_bool *stop;
};

static volatile uint64_t *word(const struct writer *w, uint64_t page)
{
  return (volatile uint64_t *)(void *)(w->range + page * PAGE);
}

static void one_operation(struct writer *w, uint64_t page, uint64_t other)
{
  uint64_t value = rng_next(&w->rng), found;
  unsigned what = (unsigned)rng_below(&w->rng, 100);

  if (what < 55) {
    *word(w, page) = value;
    w->expected[page] = value;
  } else if (what < 65) {
    OK(pcow_pwrite(w->image, &value, 8, page * PAGE));
    w->expected[page] = value;
  } else if (what < 70) {
    OK(pcow_discard(w->image, page * PAGE, PAGE));
    w->expected[page] = 0;
  } else if (what < 80) {
    found = *word(w, page);
    CHECK(found == w->expected[page], "page %" PRIu64 ": read %" PRIx64 " instead of %" PRIx64, page, found,
          w->expected[page]);
  } else if (what < 90) {
    OK(pcow_pread(w->image, &found, 8, page * PAGE));
    CHECK(found == w->expected[page], "page %" PRIu64 ": pread %" PRIx64 " instead of %" PRIx64, page, found,
          w->expected[page]);
  } else if (what < 95) {       /* buffers that lie in the mapping */
    OK(pcow_pread(w->image, w->range + other * PAGE, PAGE, page * PAGE));
    w->expected[other] = w->expected[page];
  } else {
    OK(pcow_pwrite(w->image, w->range + other * PAGE, PAGE, page * PAGE));
    w->expected[page] = w->expected[other];
  }
}

static void *writer_main(void *argument)
{
  struct writer *w = argument;

  while (!atomic_load(w->stop))
    one_operation(w, rng_below(&w->rng, w->pages / WRITERS) * WRITERS + w->me,
                  rng_below(&w->rng, w->pages / WRITERS) * WRITERS + w->me);
  return NULL;
}

/* A child of fork(2) must not have any of the range: what is registered would be unprotected there. */
static void check_not_inherited(pcow_mapping *m)
{
  uintptr_t from = (uintptr_t)pcow_mapping_address(m), to = from + pcow_mapping_length(m), at = 0, end;
  FILE *f = fopen("/proc/self/smaps", "r");
  char line[512];

  CHECK(f, "cannot read /proc/self/smaps");
  while (fgets(line, sizeof(line), f)) {
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &at, &end) == 2)
      continue;
    if (!strncmp(line, "VmFlags:", 8) && at >= from && at < to)
      CHECK(strstr(line, " dc"), "%" PRIxPTR " is inherited by fork: %s", at, line);
  }
  fclose(f);
}

/* MAX_AREAS: as if vm.max_map_count were that. */
static void together(uint32_t policy, uint64_t unit, uint64_t pages, uint64_t max_areas, unsigned snapshots,
                     uint64_t seed)
{
  char *base = make_base(test_path("raw-together"), pages), *path = test_path("together");
  struct pcow_map_options o = PCOW_INIT(o);
  uint64_t *expected = test_alloc(pages * 8);
  struct writer writers[WRITERS];
  struct pcow_mapping_stats stats;
  atomic_bool stop = false;
  pcow_image *image;
  pcow_mapping *m;
  char name[32];

  unlink(path);
  vmabudget_override(max_areas);
  test_create(path, 0, unit, base, PCOW_FORMAT_RAW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  o.thin = policy;
  o.granule = max_areas ? PAGE : 0;
  o.dram_limit = 4 * MIB;
  m = test_map(image, &o);
  for (uint64_t i = 0; i < pages; i++)
    expected[i] = *(uint64_t *)(void *)((uint8_t *)pcow_mapping_address(m) + i * PAGE);
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer){ .me = i, .image = image, .range = pcow_mapping_address(m), .pages = pages,
                                  .expected = expected, .rng = { seed + i }, .stop = &stop };
    SYS(-pthread_create(&writers[i].id, NULL, writer_main, &writers[i]));
  }
  for (unsigned i = 0; i < snapshots; i++) {
    usleep(10000);
    snprintf(name, sizeof(name), "s%u", i);
    OK(pcow_snapshot_create(image, name));
    if (i >= 4) {
      snprintf(name, sizeof(name), "s%u", i - 4);
      OK(pcow_snapshot_delete(image, name));
    }
  }
  usleep(200000);
  stop = true;
  for (unsigned i = 0; i < WRITERS; i++)
    pthread_join(writers[i].id, NULL);
  check_not_inherited(m);
  stats = test_stats(m);
  printf("%" PRIu64 " KiB units, %s: %" PRIu64 " faults, %" PRIu64 " duplicates, %" PRIu64 " fills, %" PRIu64
         " merges, %" PRIu64 " areas\n", unit / 1024, policy ? "native" : "guarded", stats.faults,
         stats.duplicate_faults, stats.fill_faults, stats.merges, stats.vmas);
  for (uint64_t i = 0; i < pages; i++)
    CHECK(*word(&writers[0], i) == expected[i], "page %" PRIu64 " of the mapping", i);
  OK(pcow_close(image));
  test_check_clean(path);
  for (unsigned writable = 0; writable < 2; writable++) {
    image = test_open(path, writable ? PCOW_OPEN_RDWR : 0, NULL);
    if (writable)
      m = test_map(image, &o);
    else
      OK(pcow_map(image, NULL, &m));
    writers[0].range = pcow_mapping_address(m);
    for (uint64_t i = 0; i < pages; i++)
      CHECK(*word(&writers[0], i) == expected[i], "page %" PRIu64 " after opening again", i);
    OK(pcow_close(image));
  }
  vmabudget_override(0);
  free(expected);
}

int main(int argc, char **argv)
{
  uint64_t seed;

  test_force_pmem(argv);
  seed = test_seed(argc, argv);
  dir = test_dir(argc, argv);
  tmpfs = test_is_tmpfs(dir);
  refused();
  thin(PCOW_THIN_GUARDED, 64 * KIB);
  thin(PCOW_THIN_GUARDED, 4 * MIB);
  thin(PCOW_THIN_NATIVE, 64 * KIB);
  thin(PCOW_THIN_NATIVE, 4 * MIB);
  overlay(64 * KIB, PCOW_FORMAT_RAW);
  overlay(2 * MIB, PCOW_FORMAT_RAW);
  overlay(64 * KIB, PCOW_FORMAT_PCOW);
  overlay(128 * MIB, PCOW_FORMAT_PCOW);
  amounts(false);
  amounts(true);
  growing();
  enormous(PCOW_THIN_GUARDED);
  enormous(PCOW_THIN_NATIVE);
  scattered();
  together(PCOW_THIN_GUARDED, 2 * MIB, 4096, 0, 10, seed);
  together(PCOW_THIN_GUARDED, 2 * MIB, 16384, 1500, 10, seed);
  together(PCOW_THIN_GUARDED, 16 * MIB, 16384, 1500, 0, seed);
  together(PCOW_THIN_NATIVE, 16 * MIB, 16384, 1500, 10, seed);
  return 0;
}
