/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The operations on the image under test, and the model that they are compared with.
 */
#include "world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct world *world;
pcow_image *image;

/* ---- Values ---- */

void value_fill(void *page, struct value value)
{
  if (value.seed)
    test_page_fill(page, value.seed);
  else
    memset(page, 0, PAGE);
  if (value.word)
    ((uint64_t *)page)[1] = value.word;
}

bool value_is(const void *page, struct value value)
{
  uint64_t expected[PCOW_PAGE_SIZE / 8];

  value_fill(expected, value);
  return memcmp(page, expected, PAGE) == 0;
}

struct value cell_last(const struct cell *cell)
{
  return cell->count ? cell->values[cell->count - 1] : (struct value){ 0, 0 };
}

void cell_may(struct cell *cell, struct value value)
{
  if (!cell->count)
    cell->count = 1;            /* zeros, until now */
  CHECK(cell->count < VALUES_MOST, "the model is too small");
  cell->values[cell->count++] = value;
}

void cell_has(struct cell *cell, struct value value)
{
  if (!cell->count || memcmp(&cell->values[cell->count - 1], &value, sizeof value) != 0)
    cell_may(cell, value);
  cell->sure = cell->count - 1;
}

static void drop_before(struct cell *cell, unsigned first)
{
  memmove(cell->values, cell->values + first, (cell->count - first) * sizeof(cell->values[0]));
  cell->count -= first;
  cell->sure -= first;
}

void cell_settle(struct cell *cell, struct value value)
{
  for (unsigned i = 0; i < cell->count; i++)
    if (cell->values[i].seed == value.seed && cell->values[i].word == value.word) {
      cell->sure = i > cell->sure ? i : cell->sure;
      drop_before(cell, i);
      return;
    }
}

static void settle(struct view *view)
{
  for (unsigned i = 0; i < PAGES_MOST; i++)
    if (view->cells[i].sure)
      drop_before(&view->cells[i], view->cells[i].sure);
}

/* Torn: each word is from one of the values. A write that failed, or was cut off, leaves that. */
bool cell_fits(const struct cell *cell, const uint64_t *page, bool seen)
{
  static const struct cell zero = { .count = 1 };
  uint64_t expected[VALUES_MOST][PCOW_PAGE_SIZE / 8];
  const struct cell *c = cell->count ? cell : &zero;
  unsigned first = seen ? c->sure : 0;

  for (unsigned i = first; i < c->count; i++) {
    value_fill(expected[i], c->values[i]);
    if (memcmp(expected[i], page, PAGE) == 0)
      return true;
  }
  for (unsigned w = 0; w < PAGE / 8; w++) {
    bool found = false;

    for (unsigned i = first; i < c->count && !found; i++)
      found = expected[i][w] == page[w];
    if (!found)
      return false;
  }
  return true;
}

static void view_verify(pcow_image *from, const char *what, const struct view *view, bool seen)
{
  struct pcow_info info = PCOW_INIT(info);
  uint64_t page[PCOW_PAGE_SIZE / 8];

  OK(pcow_get_info(from, &info));
  CHECK(info.virtual_size == view->size || info.virtual_size == view->size_maybe,
        "%s: the size is %" PRIu64 ", not %" PRIu64, what, info.virtual_size, view->size);
  for (uint64_t i = 0; i < info.virtual_size / PAGE; i++) {
    const struct cell *cell = &view->cells[i];

    OK(pcow_pread(from, page, PAGE, i * PAGE));
    if (i == TICK_PAGE && view->tick_to) {
      CHECK(page[1] >= view->tick_from && page[1] <= view->tick_to,
            "%s: the counted page has %" PRIu64 ", not %" PRIu64 " to %" PRIu64, what, page[1], view->tick_from,
            view->tick_to);
      continue;
    }
    CHECK(cell_fits(cell, page, seen),
          "%s: page %" PRIu64 " is wrong: word 1 is 0x%" PRIx64 "; %u values are possible, the last has seed %" PRIu64
          " and word 0x%" PRIx64, what, i, page[1], cell->count - (seen ? cell->sure : 0), cell_last(cell).seed,
          cell_last(cell).word);
  }
}

/* ---- Operations ---- */

int op_done(const char *what, int result, bool promises)
{
  inject_arm(false);
  if (result < 0) {
    const char *message = pcow_errormsg();

    world->failures++;
    if (getenv("FAULT_VERBOSE"))
      fprintf(stderr, "  %s: %d: %s\n", what, result, message);
    CHECK(inject_hits() || getenv("FAULT_VERBOSE"), "%s failed without a fault: %s", what, message);
    CHECK(strstr(message, world->path) || (world->base[0] && strstr(message, world->base)) ||
            (world->other[0] && strstr(message, world->other)),
          "%s gave %d with the message '%s', which names no file", what, result, message);
  }
  CHECK(result <= 0, "%s gave %d", what, result);
  CHECK(!(promises && world->gate && result == 0), "%s succeeded after an fdatasync(2) had failed", what);
  world->gate = world->gate_next;
  return result;
}

static const struct plan *the_plan;
void world_use_plan(const struct plan *plan)
{
  the_plan = plan;
  inject_plan(plan);
}

bool the_fault_is(enum call call) { return the_plan->nth && the_plan->call == call; }
void world_restore_plan(void) { inject_plan(the_plan); }

static unsigned syncs_before, hits_before;

void run_begin(void)
{
  syncs_before = world->counts.calls[CALL_FDATASYNC];
  hits_before = inject_hits();
  inject_arm(true);
}

/* Nothing stands in for these; elsewhere a smaller amount may do, or the space of a deletion stays. */
static bool no_way_around(const char *what)
{
  static const char *const whats[] = { "pwrite", "zeroes", "flush", "snapshot", "create" };
  enum call call = the_plan->call;

  if (the_plan->give <= 0 || world->head.tick_to)
    return false;
  /* What has blocks already needs none. */
  if (call == CALL_FALLOCATE && the_plan->give == ENOSPC)
    return false;
  if (call != CALL_FALLOCATE && call != CALL_PWRITE && call != CALL_FDATASYNC && call != CALL_FSYNC)
    return false;
  for (unsigned i = 0; i < sizeof whats / sizeof whats[0]; i++)
    if (strcmp(what, whats[i]) == 0)
      return true;
  return false;
}

int run_end(const char *what, bool promises, int result)
{
  inject_arm(false);
  CHECK(result < 0 || inject_hits() == hits_before || !no_way_around(what),
        "%s succeeded although %s(2), which it needs, failed", what, inject_name(the_plan->call));
  if (the_plan->call == CALL_FDATASYNC && world->counts.calls[CALL_FDATASYNC] != syncs_before &&
      inject_hits() != hits_before) {
    world->gate_next = true;
    /* In these the commit is what counts: it is durable before space is given back, or beside a fault. */
    if (strcmp(what, "delete") && strcmp(what, "revert") && strcmp(what, "resize") && !world->head.tick_to)
      world->gate = true;
  }
  return op_done(what, result, promises);
}

int do_open(uint32_t flags)
{
  struct pcow_open_options options = PCOW_INIT(options);
  int result;

  options.flags = flags | PCOW_OPEN_BASES;
  world->gate = world->gate_next = false;
  inject_arm(true);
  result = op_done("open", pcow_open(world->path, &options, &image), false);
  CHECK((result == 0) == (image != NULL), "open gave %d and %s handle", result, image ? "a" : "no");
  /* What a session that failed had not made durable may be gone, and is not expected any more. */
  for (unsigned i = 0; !world->closed && i < PAGES_MOST; i++)
    world->head.cells[i].sure = 0;
  if (result == 0)
    world->closed = false;
  return result;
}

int do_close(void)
{
  pcow_image *closing = image;
  int result;

  if (!image)
    return 0;
  image = NULL;
  result = RUN("close", true, pcow_close(closing));
  world->closed = result == 0;
  if (result == 0)
    settle(&world->head);
  return result;
}

static int write_value(const char *what, uint64_t page, uint64_t count, uint64_t seed,
                       int (*call)(uint64_t, uint64_t, uint64_t))
{
  int result;

  for (uint64_t i = page; i < page + count; i++)
    cell_may(&world->head.cells[i], (struct value){ seed ? seed + i : 0, 0 });
  result = RUN(what, true, call(page, count, seed));
  for (uint64_t i = page; result == 0 && i < page + count; i++)
    cell_has(&world->head.cells[i], (struct value){ seed ? seed + i : 0, 0 });
  return result;
}

static int call_write(uint64_t page, uint64_t count, uint64_t seed)
{
  static char buffer[PAGES_MOST * PCOW_PAGE_SIZE];

  for (uint64_t i = 0; i < count; i++)
    test_page_fill(buffer + i * PAGE, seed + page + i);
  return pcow_pwrite(image, buffer, count * PAGE, page * PAGE);
}

static int call_discard(uint64_t page, uint64_t count, uint64_t seed)
{
  (void)seed;
  return pcow_discard(image, page * PAGE, count * PAGE);
}

static int call_zeroes(uint64_t page, uint64_t count, uint64_t seed)
{
  (void)seed;
  return pcow_write_zeroes(image, page * PAGE, count * PAGE, PCOW_ZERO_KEEP_SPACE);
}

int do_write(uint64_t page, uint64_t count, uint64_t seed)
{
  return write_value("pwrite", page, count, seed, call_write);
}

int do_discard(uint64_t page, uint64_t count) { return write_value("discard", page, count, 0, call_discard); }
int do_zeroes(uint64_t page, uint64_t count) { return write_value("zeroes", page, count, 0, call_zeroes); }

int do_flush(void)
{
  int result = RUN("flush", true, pcow_sync(image));

  if (result == 0)
    settle(&world->head);
  return result;
}

static struct snapshot *snapshot_of(const char *name)
{
  for (unsigned i = 0; i < SNAPSHOTS_MOST; i++)
    if (strcmp(world->snapshots[i].name, name) == 0)
      return &world->snapshots[i];
  return NULL;
}

int do_snapshot(const char *name)
{
  struct snapshot *s = snapshot_of("");
  int result;

  CHECK(s, "no room for a snapshot");
  s->view = world->head;
  s->maybe_missing = true;
  for (unsigned i = 0; i < PAGES_MOST; i++)
    if (s->view.cells[i].sure)
      drop_before(&s->view.cells[i], s->view.cells[i].sure);
  if (s->view.tick_to)
    s->view.tick_to = UINT64_MAX;
  snprintf(s->name, sizeof s->name, "%s", name);
  result = RUN("snapshot", true, pcow_snapshot_create(image, name));
  if (s->view.tick_to)
    s->view.tick_to = __atomic_load_n(&world->head.tick_to, __ATOMIC_SEQ_CST);
  if (result == 0) {
    s->maybe_missing = false;
    settle(&world->head);
  }
  return result;
}

int do_delete(const char *name)
{
  struct snapshot *s = snapshot_of(name);
  int result;

  if (!s)
    return 0;
  s->maybe_missing = true;
  result = RUN("delete", true, pcow_snapshot_delete(image, name));
  if (result == 0)
    s->name[0] = '\0';
  return result;
}

int do_revert(const char *name)
{
  struct snapshot *s = snapshot_of(name);
  int result;

  if (!s || s->maybe_missing)
    return 0;
  world->head.size_maybe = s->view.size;
  for (unsigned i = 0; i < PAGES_MOST; i++)
    cell_may(&world->head.cells[i], cell_last(&s->view.cells[i]));
  result = RUN("revert", true, pcow_snapshot_revert(image, name));
  if (result == 0)
    world->head = s->view;
  return result;
}

int do_resize(uint64_t size)
{
  struct view *head = &world->head;
  int result;

  if (head->size_maybe != head->size)
    return 0;                   /* one failed: which size it is shows later */
  head->size_maybe = size;
  for (uint64_t i = size / PAGE; i < head->size / PAGE; i++)
    cell_may(&head->cells[i], (struct value){ 0, 0 });
  result = RUN("resize", true, pcow_resize(image, size, PCOW_RESIZE_SHRINK));
  if (result == 0) {
    for (uint64_t i = size / PAGE; i < PAGES_MOST; i++)
      head->cells[i] = (struct cell){ .count = 0 };
    head->size = head->size_maybe = size;
  }
  return result;
}

int do_rebase(const char *base)
{
  struct pcow_rebase_options options = PCOW_INIT(options);

  options.base = base;
  options.base_format = base ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE;
  inject_arm(true);
  return op_done("rebase", pcow_rebase(image, &options), false);
}

int do_commit(void)
{
  inject_arm(true);
  return op_done("commit", pcow_commit(image, NULL, NULL), false);
}

void do_read(uint64_t page, uint64_t count)
{
  uint64_t found[PCOW_PAGE_SIZE / 8];

  for (uint64_t i = page; i < page + count; i++) {
    inject_arm(true);
    if (op_done("pread", pcow_pread(image, found, PAGE, i * PAGE), false) == 0)
      CHECK(cell_fits(&world->head.cells[i], found, true),
            "page %" PRIu64 " reads wrong in the same session: it begins with 0x%" PRIx64 ", 0x%" PRIx64, i, found[0],
            found[1]);
  }
}

/* ---- Afterwards ---- */

static int seen_snapshot(void *opaque, const struct pcow_snapshot_info *info)
{
  unsigned *seen = opaque;
  struct snapshot *s = snapshot_of(info->name);

  CHECK(s, "there is a snapshot '%s' that nobody made", info->name);
  *seen |= 1u << (s - world->snapshots);
  return 0;
}

static void print_finding(void *opaque, const char *finding)
{
  (void)opaque;
  fprintf(stderr, "check: %s\n", finding);
}

static void check_image(void)
{
  struct pcow_check_result result = PCOW_INIT(result);

  OK(pcow_check(world->path, 0, &result, NULL, NULL, NULL));
  if (result.corruptions)
    OK(pcow_check(world->path, 0, &result, print_finding, NULL, NULL));
  CHECK(!result.corruptions, "the check found %" PRIu64 " corruptions", result.corruptions);
}

void world_verify(void)
{
  bool seen = world->closed;
  unsigned found = 0;
  pcow_image *i;
  char page[PCOW_PAGE_SIZE];

  if (world->maybe_made && access(world->path, F_OK) != 0)
    return;
  CHECK(world->made || world->maybe_made || access(world->path, F_OK) != 0, "creation failed and left an image");
  if (!world->made && !world->maybe_made)
    return;
  check_image();
  i = test_open(world->path, 0, NULL);
  view_verify(i, "read-only", &world->head, seen);
  OK(pcow_close(i));

  i = test_open(world->path, PCOW_OPEN_RDWR, NULL);
  view_verify(i, "head", &world->head, seen);
  OK(pcow_snapshot_list(i, seen_snapshot, &found));
  for (unsigned n = 0; n < SNAPSHOTS_MOST; n++)
    CHECK(!world->snapshots[n].name[0] || world->snapshots[n].maybe_missing || found & 1u << n,
          "snapshot '%s' is gone", world->snapshots[n].name);

  /* It can be written again. */
  test_page_fill(page, 77777);
  OK(pcow_pwrite(i, page, PAGE, 3 * PAGE));
  OK(pcow_sync(i));
  OK(pcow_close(i));
  world->head.cells[3] = (struct cell){ .values = { { 77777, 0 } }, .count = 1 };
  i = test_open(world->path, 0, NULL);
  view_verify(i, "after another session", &world->head, seen);
  OK(pcow_close(i));
  for (unsigned n = 0; n < SNAPSHOTS_MOST; n++)
    if (found & 1u << n) {
      i = test_open(world->path, 0, world->snapshots[n].name);
      view_verify(i, world->snapshots[n].name, &world->snapshots[n].view, true);
      OK(pcow_close(i));
    }
  check_image();
}
