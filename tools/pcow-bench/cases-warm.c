/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Warm accesses: every page is there and was touched, so that what is measured is the mapping. Stores are made
 * durable by the CPU in both modes; what a flush costs is the matter of cases-flush.c.
 */
#include "competitor.h"
#include "subject-pcow.h"

#define WARM_RATIO 0.98
#define WARM_ROUNDS 4

static struct task warm_task(const struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;

  task.size = plan_size(plan, GIB, 16 * MIB);
  task.operations = plan_size(plan, task.block == PAGE ? 256 * KIB : MIB, 2048);
  task.snapshots = task.snapshots ? (unsigned)plan_size(plan, task.snapshots, 3) : 0;
  return task;
}

static void build_warm(struct plan *plan, const struct bench_case *which)
{
  struct task task = warm_task(plan, which);
  unsigned native, store, flushed;

  native = plan_add(plan, &raw_native, &task, task.size, "%s", "");
  store = plan_add(plan, &pcow_store, &task, 2 * task.size, "%s", "");
  flushed = plan_add(plan, &pcow_flushed, &task, 2 * task.size, "%s", "");
  plan->rounds = WARM_ROUNDS;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, store, native, WARM_RATIO);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, flushed, native, WARM_RATIO);
}

/* Each write with a flush: what a guest gets of a block device at queue depth 1. */
static void build_flushed(struct plan *plan, const struct bench_case *which)
{
  struct task task = warm_task(plan, which);
  unsigned store, flushed, nbd, fuse, bench;

  task.operations = plan_size(plan, 8192, 128);
  store = plan_add(plan, &pcow_store, &task, task.size, "%s", "");
  flushed = plan_add(plan, &pcow_flushed, &task, task.size, "%s", "");
  nbd = plan_add(plan, &qcow2_nbd, &task, task.size, "%s", "");
  fuse = plan_add(plan, &qcow2_fuse, &task, task.size, "%s", "");
  bench = plan_add(plan, &qcow2_bench, &task, task.size, "%s", "");
  for (unsigned i = 0; i < 2; i++) {
    unsigned ours = i ? flushed : store;

    plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, nbd, 80);
    plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, fuse, 50);
    plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, bench, 15);
  }
}

#define WARM(wr, ord, bytes, lay, snaps) \
  { .write = wr, .order = ord, .block = bytes, .layout = lay, .snapshots = snaps }

const struct bench_case warm_cases[] = {
  { "warm-write-4k-seq", "Warm sequential 4 KiB write + persist", "write", build_warm,
    WARM(true, ORDER_SEQUENTIAL, PAGE, LAYOUT_FULL, 0), 0 },
  { "warm-write-4k-random", "Warm random 4 KiB write + persist", "write", build_warm,
    WARM(true, ORDER_RANDOM, PAGE, LAYOUT_FULL, 0), 0 },
  { "warm-write-64-seq", "Warm sequential 64 B write + persist", "write", build_warm,
    WARM(true, ORDER_SEQUENTIAL, 64, LAYOUT_FULL, 0), 0 },
  { "warm-write-64-random", "Warm random 64 B write + persist", "write", build_warm,
    WARM(true, ORDER_RANDOM, 64, LAYOUT_FULL, 0), 0 },
  { "warm-read-4k-seq", "Warm sequential 4 KiB read", "read", build_warm,
    WARM(false, ORDER_SEQUENTIAL, PAGE, LAYOUT_FULL, 0), 0 },
  { "warm-read-4k-random", "Warm random 4 KiB read", "read", build_warm,
    WARM(false, ORDER_RANDOM, PAGE, LAYOUT_FULL, 0), 0 },
  { "warm-read-64-seq", "Warm sequential 64 B read", "read", build_warm,
    WARM(false, ORDER_SEQUENTIAL, 64, LAYOUT_FULL, 0), 0 },
  { "warm-read-64-random", "Warm random 64 B read", "read", build_warm,
    WARM(false, ORDER_RANDOM, 64, LAYOUT_FULL, 0), 0 },
  { "snapshots-write-4k", "After 100 snapshots: warm random 4 KiB write + persist", "write", build_warm,
    WARM(true, ORDER_RANDOM, PAGE, LAYOUT_ROTATED, 100), 0 },
  { "snapshots-write-64", "After 100 snapshots: warm random 64 B write + persist", "write", build_warm,
    WARM(true, ORDER_RANDOM, 64, LAYOUT_ROTATED, 100), 0 },
  { "snapshots-read-4k", "After 100 snapshots: warm random 4 KiB read", "read", build_warm,
    WARM(false, ORDER_RANDOM, PAGE, LAYOUT_ROTATED, 100), 0 },
  { "snapshots-read-64", "After 100 snapshots: warm random 64 B read", "read", build_warm,
    WARM(false, ORDER_RANDOM, 64, LAYOUT_ROTATED, 100), 0 },
  { "warm-flush-4k-random", "Warm random 4 KiB write, a flush after each", "write", build_flushed,
    { .write = true, .order = ORDER_RANDOM, .block = PAGE, .layout = LAYOUT_FULL, .flush_every = 1 }, 0 },
  { 0 },
};
