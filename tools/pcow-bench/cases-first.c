/* SPDX-License-Identifier: BSD-3-Clause
 *
 * First writes: to thin space, over a base, after a snapshot. Random ones write a page in each of many 64 KiB
 * granules, so that each is the first in its cluster for qcow2, too.
 */
#include "competitor.h"
#include "subject-pcow.h"

#define FLOOR_RATIO 0.7

static struct task first_task(const struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;

  task.block = PAGE;
  task.write = true;
  task.size = plan_size(plan, GIB, 32 * MIB);
  task.operations = task.order == ORDER_SEQUENTIAL ? plan_size(plan, 64 * KIB, 4096) : plan_size(plan, 8192, 256);
  return task;
}

static void build_thin(struct plan *plan, const struct bench_case *which)
{
  struct task task = first_task(plan, which), guarded, unguarded;
  unsigned native, store, flushed;

  guarded = unguarded = task;
  guarded.thin = PCOW_THIN_GUARDED;
  unguarded.thin = PCOW_THIN_NATIVE;
  native = plan_add(plan, &raw_native, &task, task.size, "%s", "");
  store = plan_add(plan, &pcow_store, &guarded, task.size, "guarded");
  plan_add(plan, &pcow_store, &unguarded, task.size, "native thin space");
  flushed = plan_add(plan, &pcow_flushed, &unguarded, task.size, "%s", "");
  plan_add(plan, &qcow2_bench, &task, task.size, "%s", "");
  if (task.order != ORDER_SEQUENTIAL)
    return;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, store, native, 1.0);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, flushed, native, 1.0);
}

/* Store-durable: each store is durable. Flush-durable: a flush every .flush_every writes. */
static void build_base(struct plan *plan, const struct bench_case *which)
{
  struct task task = first_task(plan, which), persisted;
  unsigned cow, uffd, store, flushed;

  persisted = task;
  persisted.flush_every = 0;
  cow = plan_add(plan, &floor_cow, &task, 2 * task.size, "%s", "");
  flushed = plan_add(plan, &pcow_flushed, &task, 3 * task.size, "%s", "");
  uffd = plan_add(plan, &floor_uffd, &persisted, 2 * task.size, "%s", "");
  store = plan_add(plan, &pcow_store, &persisted, 2 * task.size, "%s", "");
  plan_add(plan, &qcow2_bench, &task, 2 * task.size, "%s", "");
  if (task.order == ORDER_SEQUENTIAL)
    return;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, flushed, cow, FLOOR_RATIO);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, store, uffd, FLOOR_RATIO);
}

/* Everybody flushes after each write. */
static void build_base_flush(struct plan *plan, const struct bench_case *which)
{
  struct task task = first_task(plan, which), ranged;
  unsigned store, flushed, qcow2;

  task.operations = MIN(task.operations, plan_size(plan, 4096, 64));
  ranged = task;
  ranged.flush_range = true;
  plan_add(plan, &pcow_flushed, &task, 3 * task.size, "a flush of everything");
  flushed = plan_add(plan, &pcow_flushed, &ranged, 3 * task.size, "a flush of what was written");
  store = plan_add(plan, &pcow_store, &task, 2 * task.size, "%s", "");
  qcow2 = plan_add(plan, &qcow2_bench, &task, 2 * task.size, "%s", "");
  if (task.order == ORDER_SEQUENTIAL)
    return;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, flushed, qcow2, 10);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, store, qcow2, 2);
}

static void build_snapshot(struct plan *plan, const struct bench_case *which)
{
  struct task task = first_task(plan, which), persisted;

  persisted = task;
  persisted.flush_every = 0;
  plan_add(plan, &pcow_flushed, &task, 3 * task.size, "%s", "");
  plan_add(plan, &pcow_store, &persisted, 3 * task.size, "%s", "");
  plan_add(plan, &qcow2_bench, &task, 3 * task.size, "%s", "");
}

const struct bench_case first_cases[] = {
  { "first-thin-seq", "First write to thin space, sequential 4 KiB", "write", build_thin,
    { .layout = LAYOUT_THIN, .order = ORDER_SEQUENTIAL }, 0 },
  { "first-thin-random", "First write to thin space, random 4 KiB", "write", build_thin,
    { .layout = LAYOUT_THIN, .order = ORDER_SCATTERED }, 0 },
  { "first-base-seq", "First write over a base, sequential 4 KiB, a flush every 256", "write", build_base,
    { .layout = LAYOUT_BASE, .order = ORDER_SEQUENTIAL, .flush_every = 256 }, 0 },
  { "first-base-random", "First write over a base, random 4 KiB, a flush every 256", "write", build_base,
    { .layout = LAYOUT_BASE, .order = ORDER_SCATTERED, .flush_every = 256 }, 0 },
  { "first-base-flush-seq", "First write over a base, sequential 4 KiB, a flush after each", "write",
    build_base_flush, { .layout = LAYOUT_BASE, .order = ORDER_SEQUENTIAL, .flush_every = 1 }, 0 },
  { "first-base-flush-random", "First write over a base, random 4 KiB, a flush after each", "write",
    build_base_flush, { .layout = LAYOUT_BASE, .order = ORDER_SCATTERED, .flush_every = 1 }, 0 },
  { "first-snapshot-seq", "First write after a snapshot, sequential 4 KiB, a flush every 256", "write",
    build_snapshot, { .layout = LAYOUT_SNAPSHOT, .order = ORDER_SEQUENTIAL, .flush_every = 256 }, 0 },
  { "first-snapshot-random", "First write after a snapshot, random 4 KiB, a flush every 256", "write",
    build_snapshot, { .layout = LAYOUT_SNAPSHOT, .order = ORDER_SCATTERED, .flush_every = 256 }, 0 },
  { 0 },
};
