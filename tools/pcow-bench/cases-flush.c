/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Guest-like flushes: some pages of a working set are written, then a flush. The rest of the image, all of it
 * read before, is resident and clean: what a flush costs by that shows between the two sizes.
 */
#include "competitor.h"
#include "subject-pcow.h"

#define STEADY_RATIO 1.5

static unsigned add(struct plan *plan, const struct kind *kind, const struct task *task, uint64_t size,
                    enum place place, const char *more)
{
  struct task own = *task;
  g_autofree char *text = size_text(size);

  own.size = size;
  own.place = place;
  return plan_add(plan, kind, &own, place == PLACE_DIR ? size + plan_size(plan, GIB / 2, MIB) : 2 * size, "%s resident%s", text, more);
}

static void build_flush(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  uint64_t small = plan_size(plan, GIB, 16 * MIB), large = plan_size(plan, 8 * GIB, 64 * MIB);
  unsigned ours, ours_large, xfs, ext4, qcow2;

  task.order = ORDER_HOT;
  task.layout = LAYOUT_RESIDENT;
  task.write = task.per_flush = true;
  task.block = PAGE;
  task.operations = plan_size(plan, MIN(16384, 1024 * task.flush_every), 256);
  ours = add(plan, &pcow_flushed, &task, small, PLACE_DIR, "");
  ours_large = add(plan, &pcow_flushed, &task, large, PLACE_DIR, "");
  add(plan, &pcow_store, &task, small, PLACE_DIR, "");
  xfs = add(plan, &raw_msync, &task, small, PLACE_XFS, ", XFS");
  ext4 = add(plan, &raw_msync, &task, small, PLACE_EXT4, ", ext4");
  qcow2 = add(plan, &qcow2_bench, &task, small, PLACE_DIR, "");
  if (task.flush_every != 1)
    return;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, xfs, 1.0);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, ext4, 1.0);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, qcow2, 1.0);
  plan_target(plan, TARGET_WITHIN, METRIC_TIME, ours_large, ours, STEADY_RATIO);
}

/* The same on a page cache, each page shared with a base (or a reflinked copy) until it is written. */
static void build_page_cache(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task, xfs, ext4;
  unsigned ours_xfs, ours_ext4, reflink;

  task.order = ORDER_SCATTERED;
  task.layout = LAYOUT_BASE;
  task.write = task.per_flush = true;
  task.block = PAGE;
  task.size = plan_size(plan, 256 * MIB, 32 * MIB);
  task.operations = plan_size(plan, 2048, 256);
  xfs = ext4 = task;
  xfs.place = PLACE_XFS;
  ext4.place = PLACE_EXT4;
  ours_xfs = plan_add(plan, &pcow_flushed, &xfs, 4 * task.size, "XFS");
  ours_ext4 = plan_add(plan, &pcow_flushed, &ext4, 4 * task.size, "ext4");
  reflink = plan_add(plan, &reflink_msync, &xfs, 4 * task.size, "XFS");
  plan_add(plan, &qcow2_bench, &xfs, 4 * task.size, "XFS");
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours_xfs, reflink, 5);
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours_ext4, reflink, 5);
}

const struct bench_case flush_cases[] = {
  { "flush-1", "Write 1 page, flush; the working set again and again", "flush", build_flush,
    { .flush_every = 1 }, 0 },
  { "flush-16", "Write 16 scattered pages, flush; the working set again and again", "flush", build_flush,
    { .flush_every = 16 }, 0 },
  { "flush-256", "Write 256 scattered pages, flush; the working set again and again", "flush", build_flush,
    { .flush_every = 256 }, 0 },
  { "flush-256-page-cache", "Write 256 scattered pages over a base, flush; on a page cache", "flush",
    build_page_cache, { .flush_every = 256 }, 0 },
  { 0 },
};
