/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What it takes to store: overlays of one base, and the format's own share of a full image.
 */
#include "manage.h"

#define METADATA_SHARE 0.0001

static void build_overlays(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  uint64_t all;

  plan->shown = METRIC_SPACE;
  task.size = plan_size(plan, GIB, 64 * MIB);
  task.overlays = (unsigned)plan_size(plan, 20, 3);
  task.layer_data = plan_size(plan, 16 * MIB, MIB);
  task.written = task.size;
  all = task.size + task.overlays * task.layer_data;
  plan_add(plan, &manage_pcow, &task, all, "%u overlays", task.overlays);
  plan_add(plan, &manage_qemu_img, &task, all, "%u overlays", task.overlays);
}

static void build_metadata(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  unsigned ours;

  plan->shown = METRIC_SPACE;
  task.size = plan_size(plan, 4 * GIB, 64 * MIB);
  ours = plan_add(plan, &manage_pcow, &task, task.size, "%s", "");
  plan_add(plan, &manage_qemu_img, &task, task.size, "%s", "");
  plan_target(plan, TARGET_AT_MOST, METRIC_SPACE, ours, ours, METADATA_SHARE * (double)task.size);
}

const struct bench_case space_cases[] = {
  { "space-overlays", "Space of overlays of one base, 16 MiB scattered data each", "all overlays", build_overlays,
    { .action = ACTION_OVERLAYS }, 0 },
  { "space-metadata", "Space beyond the data of a full image", "fill", build_metadata,
    { .action = ACTION_FILL }, 0 },
  { 0 },
};
