/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2 without an export around it: qemu-img bench, and qemu-io opening images; see competitor.h.
 */
#include "competitor.h"

#include "process.h"
#include "qcow2.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* qemu-img bench tells milliseconds; a run of less than this many operations would be told too roughly. */
#define ENOUGH 32768

struct state {
  char *path;
};

static int qcow2_begin(struct subject *s)
{
  struct state *state = g_new0(struct state, 1);
  int result;

  s->state = state;
  state->path = g_build_filename(s->place, "image.qcow2", NULL);
  if ((result = process_needs("qemu-img")))
    return result;
  return process_needs("qemu-io");
}

static void qcow2_end(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  g_free(state->path);
  g_free(state);
}

/* ---- qemu-img bench ---- */

static bool fresh(const struct task *task)
{
  return task->layout == LAYOUT_THIN || task->layout == LAYOUT_BASE;
}

static int bench_open(struct subject *s)
{
  struct state *state;
  g_autofree char *base = g_build_filename(s->place, "base.qcow2", NULL);
  const char *path;
  int result = qcow2_begin(s);

  if (result || s->task->layout == LAYOUT_THIN)
    return result;
  state = s->state;
  path = s->task->layout == LAYOUT_BASE ? base : state->path;
  result = qcow2_create(path, s->task->size, NULL, false);
  return result ? result : qcow2_fill(path, s->task->size);
}

static int bench_prepare(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", s->run);
  g_autofree char *old = s->run > 1 ? g_strdup_printf("s%u", s->run - 2) : NULL;
  int result = BENCH_OK;

  if (fresh(task)) {
    unlink(state->path);
    memory_warm(MIN(task->operations * 64 * KIB, task->size));
    return qcow2_create(state->path, task->size, task->layout == LAYOUT_BASE ? "base.qcow2" : NULL, false);
  }
  if (task->layout != LAYOUT_SNAPSHOT)
    return BENCH_OK;
  if (old)
    result = qcow2_snapshot(state->path, 'd', old, NULL);
  memory_warm(MIN(task->operations * 64 * KIB, task->size));
  return result ? result : qcow2_snapshot(state->path, 'c', name, NULL);
}

/* qemu-img goes on by a fixed step, and around at the end: the golden section of the size leaves no two of the
 * first operations in one cluster while they are no more than half of the clusters. */
static uint64_t step_of(const struct task *task)
{
  if (task->order == ORDER_SEQUENTIAL)
    return task->block;
  return (uint64_t)((double)task->size * 0.6180339887) / PAGE * PAGE + PAGE;
}

static int bench_run(struct subject *s, struct sample *sample)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  bool first = fresh(task) || task->layout == LAYOUT_SNAPSHOT;
  uint64_t operations = first || s->settings->quick ? task->operations : MAX(task->operations, ENOUGH);
  g_autofree char *count = g_strdup_printf("%" G_GUINT64_FORMAT, operations);
  g_autofree char *block = g_strdup_printf("%u", task->block);
  g_autofree char *step = g_strdup_printf("%" G_GUINT64_FORMAT, step_of(task));
  g_autofree char *flush = g_strdup_printf("--flush-interval=%" G_GUINT64_FORMAT, task->flush_every);
  g_autofree char *said = NULL;
  const char *argv[20] = { "qemu-img", "bench", "-f", "qcow2", "-d", "1", "-c", count, "-s", block, "-S", step };
  unsigned n = 12;
  const char *figure;
  double seconds;
  int result;

  if (task->write)
    argv[n++] = "-w";
  if (task->write && task->flush_every)
    argv[n++] = flush;
  argv[n++] = state->path;
  result = process_run(argv, &said, NULL);
  if (result)
    return result;
  figure = strstr(said, "completed in ");
  if (!figure || sscanf(figure, "completed in %lf", &seconds) != 1)
    return bench_fail("qemu-img bench does not tell how long it took");
  sample->values[METRIC_TIME] = seconds * 1e9 / (double)operations;
  if (task->per_flush)
    sample->values[METRIC_TIME] *= (double)task->flush_every;
  return BENCH_OK;
}

const struct kind qcow2_bench = {
  .name = "qcow2 in process (qemu-img bench)",
  .open = bench_open,
  .prepare = bench_prepare,
  .run = bench_run,
  .close = qcow2_end,
};

/* ---- Opening, by qemu-io ---- */

static int open_open(struct subject *s)
{
  struct state *state;
  int result = qcow2_begin(s);

  if (result)
    return result;
  state = s->state;
  if (s->task->layout == LAYOUT_CHAIN)
    return qcow2_chain(s->place, s->task, &state->path);
  return qcow2_create(state->path, s->task->size, NULL, true);
}

/* Started until it asks for a command: then the image is open. */
static int run_qemu_io(const char *path, struct sample *sample)
{
  static const char prompt[] = "qemu-io> ";
  struct process process = { .pid = 0 };
  char said[sizeof(prompt)] = "";
  size_t got = 0;
  uint64_t start = now_ns();
  int result = path ? process_start(PROCESS_ARGS("qemu-io", "-f", "qcow2", path), NULL, &process)
                    : process_start(PROCESS_ARGS("qemu-io"), NULL, &process);

  if (result)
    return result;
  while (got < sizeof(prompt) - 1) {
    ssize_t part = read(process.from, said + got, sizeof(prompt) - 1 - got);

    if (part <= 0)
      break;
    got += (size_t)part;
  }
  sample->values[METRIC_TIME] = (double)(now_ns() - start);
  process_memory(process.pid, sample);
  process_stop(&process);
  return strcmp(said, prompt) ? bench_fail("qemu-io cannot open the image") : BENCH_OK;
}

static int open_run(struct subject *s, struct sample *sample)
{
  struct state *state = s->state;

  return run_qemu_io(state->path, sample);
}

static int start_run(struct subject *s, struct sample *sample)
{
  (void)s;
  return run_qemu_io(NULL, sample);
}

const struct kind qcow2_open = {
  .name = "qemu-io opening a qcow2",
  .memory = true,
  .open = open_open,
  .run = open_run,
  .close = qcow2_end,
};

const struct kind qemu_io_start = {
  .name = "qemu-io without an image",
  .memory = true,
  .open = qcow2_begin,
  .run = start_run,
  .close = qcow2_end,
};
