/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Scenarios without a writable map: creation, sessions, snapshots, size, base.
 */
#include "scenarios.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SIZE (192 * PAGE)
#define BASE_SEED 100000u
#define OTHER_SEED 200000u

/* Of the first 128 pages one in three, or all, with gaps. */
static bool base_has(uint64_t page, bool dense) { return dense ? page % 50 < 45 : page % 3 == 0; }

static void make_base(const char *path, uint64_t seed, bool dense)
{
  char page[PCOW_PAGE_SIZE];
  pcow_image *base;

  unlink(path);
  test_create(path, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  base = test_open(path, PCOW_OPEN_RDWR, NULL);
  for (uint64_t i = 0; i < 128; i++)
    if (base_has(i, dense)) {
      test_page_fill(page, seed + i);
      OK(pcow_pwrite(base, page, PAGE, i * PAGE));
    }
  OK(pcow_close(base));
}

/* What a case that was killed has left goes, too. */
static void names(const char *base, const char *other)
{
  DIR *dir = opendir(test_path("."));
  const struct dirent *e;

  while ((e = readdir(dir)))
    unlink(test_path("%s", e->d_name));
  closedir(dir);
  snprintf(world->path, sizeof world->path, "%s", test_path("image.pcow"));
  snprintf(world->base, sizeof world->base, "%s", base ? test_path("%s", base) : "");
  snprintf(world->other, sizeof world->other, "%s", other ? test_path("%s", other) : "");
  world->head.size = world->head.size_maybe = SIZE;
}

static void base_shows(bool dense)
{
  for (uint64_t i = 0; i < 128; i++)
    if (base_has(i, dense)) {
      cell_has(&world->head.cells[i], (struct value){ BASE_SEED + i, 0 });
      cell_settle(&world->head.cells[i], (struct value){ BASE_SEED + i, 0 });
    }
}

static void prepare(bool dense)
{
  names("base.pcow", "other.pcow");
  make_base(world->base, BASE_SEED, dense);
  base_shows(dense);
  test_create(world->path, SIZE, UNIT, world->base, PCOW_FORMAT_PCOW, NULL);
  world->made = true;
  OK(do_open(PCOW_OPEN_RDWR));
  OK(do_write(5, 3, 1000));
  OK(do_write(20, 30, 2000));
  OK(do_close());
}

static void prepare_overlay(void) { prepare(false); }
static void prepare_flush(void) { prepare(true); }

static void prepare_rebase(void)
{
  prepare_overlay();
  make_base(world->other, OTHER_SEED, false);
}

static void prepare_create(void)
{
  names("base.pcow", NULL);
  make_base(world->base, BASE_SEED, false);
}

/* ---- Creation ---- */

static void no_leftovers(void)
{
  DIR *dir = opendir(test_path("."));
  const struct dirent *e;

  while ((e = readdir(dir)))
    CHECK(strncmp(e->d_name, ".pcow-", 6) != 0, "creation left '%s' behind", e->d_name);
  closedir(dir);
}

static int create(uint32_t flags, bool over_base)
{
  struct pcow_create_options options = PCOW_INIT(options);

  options.flags = flags;
  options.unit_size = UNIT;
  if (over_base) {
    options.base = world->base;
    options.base_format = PCOW_FORMAT_PCOW;
  }
  return RUN("create", false, pcow_create(world->path, SIZE, &options));
}

static void run_create(void)
{
  int result;

  world->maybe_made = true;     /* if it is killed */
  base_shows(false);
  result = create(0, true);
  world->made = result == 0;
  no_leftovers();
  /* Only after it has its name can creation fail and leave the image. */
  CHECK(result == 0 || access(world->path, F_OK) != 0 || strstr(pcow_errormsg(), "directory"),
        "creation failed and left the image: %s", pcow_errormsg());
  if (result == 0)
    world->maybe_made = false;
  world->closed = true;
}

static void run_replace(void)
{
  if (do_open(PCOW_OPEN_RDWR) || do_close())
    return;
  for (unsigned i = 0; i < PAGES_MOST; i++)
    cell_may(&world->head.cells[i], (struct value){ 0, 0 });
  if (create(PCOW_CREATE_REPLACE, false) == 0)
    for (unsigned i = 0; i < PAGES_MOST; i++)
      world->head.cells[i] = (struct cell){ .count = 0 };
  no_leftovers();
}

/* ---- Sessions ---- */

static void run_session(void)
{
  if (do_open(PCOW_OPEN_RDWR) == 0) {
    do_write(4, 3, 3000);
    do_flush();
    do_write(60, 80, 4000);
    do_read(0, 64);
    do_discard(20, 12);
    do_zeroes(36, 8);
    do_flush();
    do_write(21, 2, 5000);
    do_discard(130, 40);
    do_close();
  }
  if (do_open(0) == 0) {
    do_read(0, 192);
    CHECK(do_close() == 0, "closing a read-only handle failed");
  }
}

#define FLUSHERS 4u
#define ROUNDS 6u

/* What begins after fdatasync(2) has failed fails, whoever met the failure; so does who waited for it. */
static void *flush_main(void *opaque)
{
  uint64_t first = (uint64_t)(uintptr_t)opaque * 16;
  char page[PCOW_PAGE_SIZE];

  for (uint64_t i = 0; i < ROUNDS; i++) {
    struct value value = { 3000 + first + i, 0 };
    struct cell *cell = &world->head.cells[first + i];
    bool late = the_fault_is(CALL_FDATASYNC) && inject_hits();
    int wrote, flushed;

    test_page_fill(page, value.seed);
    cell_may(cell, value);
    wrote = pcow_pwrite(image, page, PAGE, (first + i) * PAGE);
    flushed = pcow_sync(image);
    CHECK(!late || (wrote < 0 && flushed < 0), "written (%d) or flushed (%d) after an fdatasync(2) had failed", wrote,
          flushed);
    CHECK(flushed == 0 || inject_hits(), "a flush failed without a fault: %s", pcow_errormsg());
    CHECK(flushed == 0 || strstr(pcow_errormsg(), world->path), "'%s' names no file", pcow_errormsg());
    if (wrote == 0)
      cell_has(cell, value);
    if (wrote == 0 && flushed == 0)
      cell_settle(cell, value);
  }
  return NULL;
}

static void run_flushers(void)
{
  pthread_t threads[FLUSHERS];

  if (do_open(PCOW_OPEN_RDWR))
    return;
  for (unsigned i = 0; i < FLUSHERS; i++)
    CHECK(!pthread_create(&threads[i], NULL, flush_main, (void *)(uintptr_t)i), "no thread");
  inject_arm(true);
  for (unsigned i = 0; i < FLUSHERS; i++)
    pthread_join(threads[i], NULL);
  inject_arm(false);
  world->gate = the_fault_is(CALL_FDATASYNC) && inject_hits();
  do_flush();
  do_close();
}

static void run_snapshots(void)
{
  if (do_open(PCOW_OPEN_RDWR))
    return;
  do_snapshot("a");
  do_write(6, 20, 6000);
  do_snapshot("b");
  do_write(6, 2, 7000);
  do_write(90, 4, 7000);
  do_snapshot("c");
  do_delete("b");
  do_write(40, 10, 8000);
  do_revert("a");
  do_write(100, 3, 9000);
  do_delete("c");
  do_flush();
  do_close();
  if (do_open(PCOW_OPEN_RDWR) == 0)
    do_close();
}

static void run_resize(void)
{
  if (do_open(PCOW_OPEN_RDWR))
    return;
  do_write(180, 8, 3000);
  do_snapshot("a");
  do_resize(SIZE + 100 * PAGE);
  if (world->head.size > SIZE)
    do_write(220, 6, 4000);
  do_resize(40 * PAGE);
  do_write(2, 20, 5000);
  do_resize(SIZE);
  do_flush();
  do_close();
}

static void run_rebase(void)
{
  if (do_open(PCOW_OPEN_RDWR))
    return;
  do_write(30, 4, 3000);
  do_snapshot("a");
  do_write(32, 4, 4000);
  do_rebase(world->other);
  do_write(64, 4, 5000);
  do_rebase(NULL);
  do_flush();
  do_close();
}

static void run_commit(void)
{
  if (do_open(PCOW_OPEN_RDWR))
    return;
  do_write(9, 24, 3000);
  do_discard(60, 20);
  do_commit();
  do_read(0, 192);
  do_write(12, 2, 4000);
  do_flush();
  do_close();
}

const struct scenario scenarios[] = {
  { .name = "create", .prepare = prepare_create, .run = run_create },
  { .name = "replace", .prepare = prepare_overlay, .run = run_replace },
  { .name = "session", .prepare = prepare_overlay, .run = run_session },
  { .name = "flushers", .prepare = prepare_overlay, .run = run_flushers },
  { .name = "snapshots", .prepare = prepare_overlay, .run = run_snapshots },
  { .name = "resize", .prepare = prepare_overlay, .run = run_resize },
  { .name = "rebase", .prepare = prepare_rebase, .run = run_rebase },
  { .name = "commit", .prepare = prepare_overlay, .run = run_commit },
  { .name = "map", .prepare = prepare_overlay, .run = run_map, .maps = true },
  { .name = "map-native", .prepare = prepare_overlay, .run = run_map_native, .maps = true },
  { .name = "map-held", .prepare = prepare_overlay, .run = run_map_held, .maps = true, .held = true },
  { .name = "flush", .prepare = prepare_flush, .run = run_flush, .flush_maps = true },
  { .name = "flush-native", .prepare = prepare_flush, .run = run_flush_native, .flush_maps = true },
  { .name = "map-read", .prepare = prepare_overlay, .run = run_map_read },
};

const unsigned scenario_count = sizeof(scenarios) / sizeof(scenarios[0]);
