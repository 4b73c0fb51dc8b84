/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A model-based random test: sessions, each with a chain of bases, a unit size and a number of threads
 * of its own, do random operations to an image and to a reference in memory; after every tenth
 * operation every byte of every view is compared. The seed repeats a run:
 *
 *     test-model [--seed N] [--ops N] [--session K] [--session-ops N] [--layers N] [--unit SIZE]
 *                [--size SIZE] [--max-maps N] [--dir DIR] [--mode store|flush|all|no-map] [--msync]
 *                [--nobody] [--without NAME,…] [--verbose]
 *
 * --session K begins at the K-th session of the seed. --without leaves operations out, and --mode maps (and
 * so both change what the seed draws). With --msync only fdatasync(2) makes stores durable, so that maps are
 * flush-durable. --nobody runs unprivileged: maps are flush-durable and nobody can be made to wait.
 */
#include "model-world.h"
#include "vmabudget.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct world *world_now;
static bool verbose;

static struct operation {
  const char *name;
  unsigned weight;
  void (*run)(struct world *w);
} operations[] = {
  { "pwrite", 16, op_pwrite },
  { "pread", 5, op_pread },
  { "discard", 7, op_discard },
  { "zeroes", 5, op_zeroes },
  { "sync", 2, op_sync },
  { "flush", 4, op_flush },
  { "stores", 22, op_stores },
  { "dma", 2, op_dma },
  { "self-copy", 3, op_self_copy },
  { "map", 2, op_map },
  { "unmap", 2, op_unmap },
  { "extents", 2, op_extents },
  { "diff", 3, op_diff },
  { "snapshot", 6, op_snapshot },
  { "delete", 5, op_delete },
  { "revert", 3, op_revert },
  { "resize", 4, op_resize },
  { "rebase", 3, op_rebase },
  { "commit", 2, op_commit },
  { "reopen", 3, op_reopen },
  { "hold", 2, op_hold },
  { "release", 2, op_release },
  { "child", 1, op_child },
  { "crash-copy", 3, op_crash_copy },
  { "refused", 1, op_refused },
};

#define OPERATIONS (sizeof operations / sizeof operations[0])

void world_say(struct world *w, const char *format, ...)
{
  char *line = w->history[w->history_count++ % HISTORY];
  int used = snprintf(line, sizeof w->history[0], "%" PRIu64 ": ", w->op);
  va_list ap;

  va_start(ap, format);
  vsnprintf(line + used, sizeof w->history[0] - (size_t)used, format, ap);
  va_end(ap);
  if (verbose)
    fprintf(stderr, "%s\n", line);
}

static void report(void)
{
  struct world *w = world_now;

  if (!w)
    return;
  fprintf(stderr, "seed %" PRIu64 ", session %u, operation %" PRIu64 ": repeat with --seed %" PRIu64
                  " --session %u\n",
          w->seed, w->session, w->op, w->seed, w->session);
  fprintf(stderr, "unit %" PRIu64 ", %u layers, base %d, %u threads, %u snapshots, head of %" PRIu64
                  " bytes%s\n",
          w->unit, w->layers, w->base, w->threads, w->snap_count, w->head ? w->head->size : 0,
          !w->map ? "" : w->flush_durable ? ", mapped flush-durable" : ", mapped store-durable");
  fprintf(stderr, "the last operations:\n");
  for (unsigned i = w->history_count > HISTORY ? w->history_count - HISTORY : 0; i < w->history_count; i++)
    fprintf(stderr, "  %s\n", w->history[i % HISTORY]);
}

static void (*crash_handlers[NSIG])(int);

/* A crash is reported like a wrong byte, then comes again to whoever handled it before. */
static void on_crash(int number)
{
  signal(number, crash_handlers[number]);
  fprintf(stderr, "FAIL: signal %d\n", number);
  report();
}

static void operations_without(const char *list)
{
  char *copy = strdup(list ? list : "");

  for (char *at = strtok(copy, ","); at; at = strtok(NULL, ",")) {
    bool found = false;

    for (unsigned i = 0; i < OPERATIONS; i++)
      if (strcmp(operations[i].name, at) == 0) {
        operations[i].weight = 0;
        found = true;
      }
    CHECK(found, "there is no operation '%s'", at);
  }
  free(copy);
}

static struct operation *operation_draw(struct rng *rng)
{
  uint64_t all = 0, at;

  for (unsigned i = 0; i < OPERATIONS; i++)
    all += operations[i].weight;
  at = rng_below(rng, all);
  for (unsigned i = 0;; i++) {
    if (at < operations[i].weight)
      return &operations[i];
    at -= operations[i].weight;
  }
}

/* 1 to 16 MiB, most of them small: every comparison reads all of every view. */
static uint64_t size_draw(struct rng *rng)
{
  uint64_t one = rng_below(rng, 4), other = rng_below(rng, 4);
  uint64_t pages = UINT64_C(256) << (one < other ? one : other);

  return (pages + rng_below(rng, pages)) * PAGE;
}

/* What the session is, from its own seed. */
static void session_begin(struct world *w, int argc, char **argv)
{
  static const uint64_t units[] = { 64 * KIB, 2 * MIB, 128 * MIB };
  uint64_t size = size_draw(&w->rng);

  w->unit = units[rng_below(&w->rng, 3)];
  w->unit = test_option(argc, argv, "--unit", w->unit);
  w->layers = 1 + (unsigned)rng_below(&w->rng, 8);
  w->layers = (unsigned)test_option(argc, argv, "--layers", w->layers);
  w->threads = 1 + (unsigned)rng_below(&w->rng, 4);
  if (w->unit >= 128 * MIB && rng_chance(&w->rng, 10)) {
    w->large = true;
    size = 2 * w->unit + rng_below(&w->rng, 4096) * PAGE;
  }
  size = test_option(argc, argv, "--size", size);
  /* As if vm.max_map_count were that low: ranges are merged. */
  w->max_maps = rng_chance(&w->rng, 30) ? 200 + rng_below(&w->rng, 1000) : 0;
  w->max_maps = test_option(argc, argv, "--max-maps", w->max_maps);
  vmabudget_override(w->max_maps);
  w->size_max = w->large ? size + 32 * MIB : size + size / 4 / PAGE * PAGE;
  printf("session %u: unit %" PRIu64 " KiB, %u layers, %" PRIu64 " KiB, %u threads", w->session,
         w->unit / KIB, w->layers, size / KIB, w->threads);
  if (w->max_maps)
    printf(", %" PRIu64 " VMAs", w->max_maps);
  printf("%s\n", w->modes ? "" : ", no map");
  fflush(stdout);
  w->base = -1;
  bases_build(w, size);
  w->path = test_path("s%u.pcow", w->session);
  test_create(w->path, size, w->unit,
              w->base < 0 ? NULL : bases_spelling(w, w->files[w->bases[w->base].file].path),
              w->base < 0 ? PCOW_FORMAT_NONE : w->files[w->bases[w->base].file].format,
              w->base < 0 || !w->bases[w->base].snapshot[0] ? NULL : w->bases[w->base].snapshot);
  w->head = model_copy(bases_content(w, w->base));
  model_resize(w->head, size);
  durable_begin(w);
  world_open(w);
  views_compare(w);
}

static void session_end(struct world *w)
{
  views_compare(w);
  for (unsigned i = 0; i < w->snap_count; i++)
    snap_release(&w->snaps[i]);
  world_close(w);
  view_check_file(w);
  world_open(w);
  views_compare(w);
  world_close(w);
  bases_compare(w);
  for (unsigned i = 0; i < w->snap_count; i++)
    model_free(w->snaps[i].content);
  for (unsigned i = 0; i < w->base_count; i++)
    model_free(w->bases[i].content);
  for (unsigned i = 0; i < w->file_count; i++)
    SYS(unlink(w->files[i].path));
  durable_end(w);
  model_free(w->head);
  SYS(unlink(w->path));
}

static unsigned modes_of(const char *name, bool msync)
{
  unsigned modes = MODE_STORE | MODE_FLUSH;

  if (name && strcmp(name, "store") == 0)
    modes = MODE_STORE;
  else if (name && strcmp(name, "flush") == 0)
    modes = MODE_FLUSH;
  else if (name && strcmp(name, "no-map") == 0)
    modes = 0;
  else
    CHECK(!name || strcmp(name, "all") == 0, "unknown mode '%s'", name);
  CHECK(!msync || modes != MODE_STORE, "--msync and --mode store exclude each other");
  return msync ? modes & MODE_FLUSH : modes;
}

int main(int argc, char **argv)
{
  uint64_t ops, per_session, done = 0;
  unsigned only;
  unsigned long compared = 0, maps = 0, merges = 0, checks = 0, flushes = 0, flushed = 0, handed_over = 0;
  unsigned long older = 0, cuts = 0;
  uint64_t bytes = 0, seed;
  bool msync = test_flag(argc, argv, "--msync");
  unsigned modes = modes_of(test_option_string(argc, argv, "--mode"), msync);

  if (msync)
    test_unforce_pmem(argv);
  else
    test_force_pmem(argv);
  seed = test_seed(argc, argv);
  ops = test_option(argc, argv, "--ops", 10000);
  per_session = test_option(argc, argv, "--session-ops", 500);
  only = (unsigned)test_option(argc, argv, "--session", 0);
  verbose = test_flag(argc, argv, "--verbose");
  operations_without(test_option_string(argc, argv, "--without"));
  test_dir(argc, argv);
  if (test_flag(argc, argv, "--nobody")) {
    test_become_nobody();
    modes &= MODE_FLUSH;
  }
  test_on_failure(report);
  crash_handlers[SIGSEGV] = signal(SIGSEGV, on_crash);
  crash_handlers[SIGBUS] = signal(SIGBUS, on_crash);
  crash_handlers[SIGABRT] = signal(SIGABRT, on_crash);

  for (unsigned session = only; done < ops; session++) {
    struct world *w = test_alloc(sizeof *w);
    uint64_t count;

    w->seed = seed;
    w->session = session;
    w->rng.state = test_mix(seed + 1) ^ test_mix(session + UINT64_C(0x5eed));
    w->modes = modes;
    w->msync = msync;
    world_now = w;
    session_begin(w, argc, argv);
    count = w->large ? per_session / 10 : per_session; /* comparing costs by size */
    for (w->op = 0; w->op < count && done < ops; w->op++, done++) {
      operation_draw(&w->rng)->run(w);
      if (w->op % 10 == 9)
        views_compare(w);
      if (w->op % 250 == 249)
        bases_compare(w);
    }
    session_end(w);
    compared += w->compared;
    bytes += w->bytes_compared;
    maps += w->maps;
    merges += w->merges;
    checks += w->checks;
    flushes += w->flushes;
    flushed += w->flushed;
    handed_over += w->handed_over;
    older += w->older;
    cuts += w->cuts;
    world_now = NULL;
    free(w);
  }
  printf("%" PRIu64 " operations, %lu views compared (%" PRIu64 " MiB), %lu maps, %lu merges, %lu checks\n",
         done, compared, bytes / MIB, maps, merges, checks);
  printf("%lu flushes of maps, %lu pages flushed, %lu handed over, %lu words of crashes older than stored, "
         "%lu cuts\n",
         flushes, flushed, handed_over, older, cuts);
  return 0;
}
