/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Management at two virtual sizes. The qcow2 of the larger one has all its tables, as after years of use.
 */
#include "competitor.h"
#include "images.h"
#include "manage.h"
#include "workdir.h"

#define SAME 1.5 /* what counts as the same at both sizes */

/* Less where the machine has not the memory for it; the contenders' names say how much. */
static uint64_t that_fits(const struct plan *plan, uint64_t written)
{
  uint64_t room = workdir_room(plan->settings->dir);

  while (written > MIB && written + GIB > room)
    written /= 2;
  return written;
}

static unsigned add(struct plan *plan, const struct kind *kind, const struct task *task, uint64_t size,
                    const char *more)
{
  struct task own = *task;
  g_autofree char *text = size_text(size);

  own.size = size;
  own.written = MIN(own.written, size);
  return plan_add(plan, kind, &own, (own.mapped ? 2 : 1) * own.written + 256 * MIB, "%s%s", text, more);
}

static void build_manage(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  uint64_t small = plan_size(plan, GIB, 64 * MIB), large = plan_size(plan, TIB, 4 * GIB);
  bool commands = task.action != ACTION_OPEN && task.action != ACTION_CLOSE;
  unsigned ours, theirs, command;

  task.written = task.action == ACTION_CREATE ? 0 : plan_size(plan, 64 * MIB, 4 * MIB);
  add(plan, &manage_pcow, &task, small, "");
  ours = add(plan, &manage_pcow, &task, large, "");
  if (!commands) {
    if (task.action == ACTION_OPEN) {
      add(plan, &qcow2_open, &task, small, "");
      add(plan, &qcow2_open, &task, large, "");
      plan_add(plan, &qemu_io_start, &task, 0, "%s", "");
    }
    return;
  }
  command = add(plan, &manage_pcow_img, &task, large, "");
  add(plan, &manage_qemu_img, &task, small, "");
  theirs = add(plan, &manage_qemu_img, &task, large, "");
  plan_add(plan, &manage_start, &task, 0, "%s", "");
  if (task.action != ACTION_CLONE)
    return;
  task.place = PLACE_XFS;
  add(plan, &reflink_clone, &task, small, " on XFS");
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, theirs, 5);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, command, theirs, 5);
  plan_target(plan, TARGET_AT_MOST, METRIC_SPACE, ours, ours, 256.0 * 1024);
}

/* What was written lies in pieces of 16 MiB; one contender, for comparison, has it in pieces of 64 KiB. */
static void build_mapped(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task, scattered, floor;
  uint64_t large = plan_size(plan, TIB, 4 * GIB);
  unsigned ours, ours_small, theirs, protect;

  task.mapped = true;
  task.written = plan_size(plan, GIB, 16 * MIB);
  task.piece = plan_size(plan, 16 * MIB, MIB);
  scattered = floor = task;
  scattered.piece = PIECE;
  floor.size = task.written;
  protect = plan_add(plan, &floor_protect, &floor, 2 * task.written, "%s", "");
  theirs = add(plan, &manage_qemu_img, &task, large, "");
  for (unsigned i = 0; i < 2; i++) {
    const struct kind *kind = i ? &manage_pcow_flushed : &manage_pcow;

    ours_small = add(plan, kind, &task, task.written, "");
    ours = add(plan, kind, &task, large, "");
    add(plan, kind, &scattered, large, ", 64 KiB pieces");
    plan_target(plan, TARGET_WITHIN, METRIC_TIME, ours, ours_small, SAME);
    plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, theirs, 1000);
    plan_target(plan, TARGET_BEYOND, METRIC_TIME, ours, protect, 5e6);
  }
}

static void build_map(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  uint64_t large = plan_size(plan, TIB, 4 * GIB);
  g_autofree char *data = NULL, *more = NULL;
  unsigned store, flushed, theirs;

  plan->one_by_one = true;
  task.written = that_fits(plan, plan_size(plan, 16 * GIB, 16 * MIB));
  data = size_text(task.written);
  more = g_strdup_printf(", %s written", data);
  store = add(plan, &manage_pcow, &task, large, more);
  flushed = add(plan, &manage_pcow_flushed, &task, large, more);
  task.written = 0;
  theirs = add(plan, &qcow2_open, &task, large, "");
  plan_add(plan, &qemu_io_start, &task, 0, "%s", "");
  plan_target(plan, TARGET_FASTER, METRIC_TIME, store, theirs, 1.0);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, flushed, theirs, 1.0);
}

static void build_map_size(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  uint64_t large = plan_size(plan, TIB, 4 * GIB), small = plan_size(plan, 16 * GIB, 64 * MIB);

  task.written = plan_size(plan, GIB, 8 * MIB);
  for (unsigned i = 0; i < 2; i++) {
    const struct kind *kind = i ? &manage_pcow_flushed : &manage_pcow;
    unsigned at_small = add(plan, kind, &task, small, ""), at_large = add(plan, kind, &task, large, "");

    plan_target(plan, TARGET_WITHIN, METRIC_TIME, at_large, at_small, SAME);
    plan_target(plan, TARGET_WITHIN, METRIC_MEMORY, at_large, at_small, SAME);
  }
}

const struct bench_case manage_cases[] = {
  { "manage-create", "Create an image", "create", build_manage, { .action = ACTION_CREATE }, 0 },
  { "manage-clone", "Clone an image (create an overlay of it)", "clone", build_manage,
    { .action = ACTION_CLONE }, 0 },
  { "manage-snapshot", "Take a snapshot", "snapshot", build_manage, { .action = ACTION_SNAPSHOT }, 0 },
  { "manage-delete", "Delete a snapshot, 1 MiB written after it", "deletion", build_manage,
    { .action = ACTION_DELETE }, 0 },
  { "manage-revert", "Revert to a snapshot, 1 MiB written after it", "revert", build_manage,
    { .action = ACTION_REVERT }, 0 },
  { "manage-open", "Open an image", "open", build_manage, { .action = ACTION_OPEN }, 0 },
  { "manage-close", "Close an image", "close", build_manage, { .action = ACTION_CLOSE }, 0 },
  { "manage-snapshot-mapped", "Snapshot of a mapped image, 1 GiB of it written", "snapshot", build_mapped,
    { .action = ACTION_SNAPSHOT }, 0 },
  { "manage-map", "Open and map an image with 16 GiB scattered over it", "open", build_map,
    { .action = ACTION_MAP }, 0 },
  { "manage-map-size", "Open and map an image with 1 GiB scattered over it", "open", build_map_size,
    { .action = ACTION_MAP }, 0 },
  { 0 },
};
