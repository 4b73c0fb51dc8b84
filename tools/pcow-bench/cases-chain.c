/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Chains of images: warm accesses and opening, by length. Each layer has 16 MiB of scattered data, or less where
 * the machine has not the memory for a thousand of them: the contenders' names say how much. What is opened only
 * and not ours (qcow2.h) keeps none of it.
 */
#include "competitor.h"
#include "images.h"
#include "manage.h"
#include "subject-pcow.h"
#include "workdir.h"

#define WARM_RATIO 0.98
#define WARM_ROUNDS 4
#define LAYER_DATA (16 * MIB)
#define QCOW2_TABLES (512 * KIB) /* of a layer; what its data takes is given back */

static const unsigned lengths[] = { 1, 10, 100, 1000 };
static const unsigned quick_lengths[] = { 1, 2, 4, 8 };

static unsigned length_at(const struct plan *plan, unsigned index)
{
  return plan->settings->quick ? quick_lengths[index] : lengths[index];
}

static void set_chain(const struct plan *plan, struct task *task, unsigned length)
{
  uint64_t room = workdir_room(plan->settings->dir);

  task->layout = LAYOUT_CHAIN;
  task->chain = length;
  task->size = plan_size(plan, GIB, 16 * MIB);
  task->layer_data = plan_size(plan, LAYER_DATA, MIB);
  while (task->layer_data > PIECE && length * task->layer_data + 4 * task->size > room)
    task->layer_data /= 2;
}

static unsigned add(struct plan *plan, const struct kind *kind, const struct task *task)
{
  g_autofree char *data = size_text(task->layer_data);
  uint64_t needs = kind == &qcow2_open ? task->size + task->chain * QCOW2_TABLES
                                       : 2 * task->size + task->chain * task->layer_data;

  return plan_add(plan, kind, task, needs, "chain of %u, %s a layer",
                  task->chain, data);
}

/* Only one mode at a time: two long chains would not fit in memory. */
static void build_warm(struct plan *plan, const struct bench_case *which)
{
  struct task task = which->task;
  const struct kind *kind = task.mapped ? &pcow_flushed : &pcow_store; /* .mapped: which mode */
  unsigned native, ours;

  task.order = ORDER_RANDOM;
  task.operations = plan_size(plan, task.block == PAGE ? 256 * KIB : MIB, 2048);
  set_chain(plan, &task, length_at(plan, which->number));
  ours = add(plan, kind, &task);
  task.layout = LAYOUT_FULL;
  native = plan_add(plan, &raw_native, &task, task.size, "%s", "");
  plan->rounds = WARM_ROUNDS;
  plan_target(plan, TARGET_FASTER, METRIC_TIME, ours, native, WARM_RATIO);
}

static void build_open(struct plan *plan, const struct bench_case *which)
{
  const struct kind *const kinds[] = { &manage_pcow, &manage_pcow_flushed, &qcow2_open };
  unsigned numbers[G_N_ELEMENTS(kinds)][G_N_ELEMENTS(lengths)];
  const unsigned last = G_N_ELEMENTS(lengths) - 1;
  struct task task = which->task;

  plan->one_by_one = true;
  for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++)
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
      if (task.action == ACTION_OPEN && k == 1)
        continue; /* opening alone knows no modes */
      set_chain(plan, &task, length_at(plan, i));
      numbers[k][i] = add(plan, kinds[k], &task);
    }
  plan_add(plan, &qemu_io_start, &task, 0, "%s", "");
  for (unsigned k = 0; k < (task.action == ACTION_OPEN ? 1 : 2); k++) {
    if (task.action == ACTION_OPEN) {
      plan_target(plan, TARGET_FASTER, METRIC_TIME, numbers[k][last], numbers[2][last], 20);
      plan_target(plan, TARGET_FASTER, METRIC_MEMORY, numbers[k][last], numbers[2][last], 15);
    }
    plan_target(plan, TARGET_WITHIN, METRIC_MEMORY, numbers[k][last], numbers[k][0], 1.2);
  }
}

#define WARM(name, title, wr, bytes, flushed, index) \
  { name, title, wr ? "write" : "read", build_warm, { .write = wr, .block = bytes, .mapped = flushed }, index }
#define WARM_BOTH(tag, text, wr, bytes, length, index) \
  WARM("chain-" tag "-" length "-store", "Chain of " length ": warm random " text ", store-durable", wr, bytes, \
       false, index), \
  WARM("chain-" tag "-" length "-flush", "Chain of " length ": warm random " text ", flush-durable", wr, bytes, \
       true, index)

const struct bench_case chain_cases[] = {
  WARM_BOTH("read-4k", "4 KiB read", false, PAGE, "1", 0),
  WARM_BOTH("read-4k", "4 KiB read", false, PAGE, "10", 1),
  WARM_BOTH("read-4k", "4 KiB read", false, PAGE, "100", 2),
  WARM_BOTH("read-4k", "4 KiB read", false, PAGE, "1000", 3),
  WARM_BOTH("write-4k", "4 KiB write + persist", true, PAGE, "1", 0),
  WARM_BOTH("write-4k", "4 KiB write + persist", true, PAGE, "10", 1),
  WARM_BOTH("write-4k", "4 KiB write + persist", true, PAGE, "100", 2),
  WARM_BOTH("write-4k", "4 KiB write + persist", true, PAGE, "1000", 3),
  WARM_BOTH("read-64", "64 B read", false, 64, "1000", 3),
  WARM_BOTH("write-64", "64 B write + persist", true, 64, "1000", 3),
  { "chain-open", "Open a chain of images", "open", build_open, { .action = ACTION_OPEN }, 0 },
  { "chain-map", "Open and map a chain of images", "open", build_open, { .action = ACTION_MAP }, 0 },
  { 0 },
};
