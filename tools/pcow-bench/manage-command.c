/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Management by commands, pcow-img and qemu-img, whose options are the same; see manage.h. What is timed is the
 * whole command.
 */
#include "images.h"
#include "manage.h"
#include "process.h"
#include "qcow2.h"
#include "workdir.h"

#include <unistd.h>

struct state {
  char *path, *target;
  const char *program, *format;
};

static bool is_qcow2(const struct subject *s) { return s->kind == &manage_qemu_img; }

static int make_image(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  int result;

  if (is_qcow2(s)) /* a large image is one whose tables are all there */
    return qcow2_create(state->path, task->size, NULL, task->action != ACTION_OVERLAYS);
  result = image_create(state->path, task->size, NULL);
  return result ? result : image_scatter(state->path, task->size, task->written, task->piece, 0);
}

static int command_open(struct subject *s)
{
  struct state *state = g_new0(struct state, 1);
  int result;

  s->state = state;
  state->format = is_qcow2(s) ? "qcow2" : "pcow";
  state->program = is_qcow2(s) ? "qemu-img" : s->settings->pcow_img;
  state->path = g_strdup_printf("%s/image.%s", s->place, state->format);
  state->target = g_strdup_printf("%s/target.%s", s->place, state->format);
  if (!state->program)
    return bench_skip("pcow-img is not installed");
  if ((result = process_needs(state->program)))
    return result;
  return s->task->action == ACTION_CREATE ? BENCH_OK : make_image(s);
}

static int snapshot(struct subject *s, const char *option, unsigned run, uint64_t *nanoseconds)
{
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", run);

  return process_run(PROCESS_ARGS(state->program, "snapshot", "-q", option, name, state->path), NULL,
                     nanoseconds);
}

static int write_after(struct subject *s)
{
  struct state *state = s->state;

  if (is_qcow2(s))
    return qcow2_scatter(state->path, s->task->size, MANAGE_PIECES * PIECE, 3);
  return image_scatter(state->path, s->task->size, MANAGE_PIECES * PIECE, 0, 3);
}

static int command_prepare(struct subject *s)
{
  struct state *state = s->state;
  int result = BENCH_OK;

  switch (s->task->action) {
    case ACTION_CREATE:
    case ACTION_CLONE:
      unlink(state->target);
      return BENCH_OK;
    case ACTION_SNAPSHOT:
      return s->run > 0 ? snapshot(s, "-d", s->run - 1, NULL) : BENCH_OK;
    case ACTION_DELETE:
    case ACTION_REVERT:
      if (s->task->action == ACTION_REVERT && s->run > 0)
        result = snapshot(s, "-d", s->run - 1, NULL);
      if (!result)
        result = snapshot(s, "-c", s->run, NULL);
      return result ? result : write_after(s);
    default:
      return BENCH_OK;
  }
}

static int make_overlays(struct subject *s, uint64_t *sum)
{
  struct state *state = s->state;
  g_autofree char *base = g_path_get_basename(state->path);
  int result = BENCH_OK;

  for (unsigned i = 0; i < s->task->overlays && !result; i++) {
    g_autofree char *path = g_strdup_printf("%s/overlay%u.qcow2", s->place, i);

    unlink(path);
    result = qcow2_create(path, s->task->size, base, false);
    if (!result)
      result = qcow2_scatter(path, s->task->size, s->task->layer_data, i);
    *sum += workdir_blocks(path);
  }
  return result;
}

static int fill(struct subject *s, uint64_t *excess)
{
  struct state *state = s->state;
  int result;

  unlink(state->path);
  result = qcow2_create(state->path, s->task->size, NULL, false);
  if (!result)
    result = qcow2_fill(state->path, s->task->size);
  *excess = workdir_blocks(state->path) - s->task->size;
  return result;
}

static int create(struct subject *s, const char *base, uint64_t *took)
{
  struct state *state = s->state;
  g_autofree char *size = g_strdup_printf("%" G_GUINT64_FORMAT, s->task->size);

  return base ? process_run(PROCESS_ARGS(state->program, "create", "-q", "-f", state->format, "-b", base, "-F",
                                         state->format, state->target, size), NULL, took)
              : process_run(PROCESS_ARGS(state->program, "create", "-q", "-f", state->format, state->target, size),
                            NULL, took);
}

static int command_run(struct subject *s, struct sample *sample)
{
  struct state *state = s->state;
  g_autofree char *base = g_path_get_basename(state->path);
  uint64_t begin = now_ns(), took = 0, blocks = 0;
  int result;

  switch (s->task->action) {
    case ACTION_CREATE:
    case ACTION_CLONE:
      result = create(s, s->task->action == ACTION_CLONE ? base : NULL, &took);
      blocks = workdir_blocks(state->target);
      break;
    case ACTION_SNAPSHOT:
      result = snapshot(s, "-c", s->run, &took);
      blocks = workdir_blocks(state->path);
      break;
    case ACTION_DELETE:
      result = snapshot(s, "-d", s->run, &took);
      blocks = workdir_blocks(state->path);
      break;
    case ACTION_REVERT:
      result = snapshot(s, "-a", s->run, &took);
      blocks = workdir_blocks(state->path);
      break;
    case ACTION_OVERLAYS:
      result = make_overlays(s, &blocks);
      took = now_ns() - begin;
      break;
    case ACTION_FILL:
      result = fill(s, &blocks);
      took = now_ns() - begin;
      break;
    default:
      return bench_skip("%s has no command for that alone", state->program);
  }
  sample->values[METRIC_TIME] = (double)took;
  sample->values[METRIC_SPACE] = (double)blocks;
  return result;
}

static void command_close(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  g_free(state->path);
  g_free(state->target);
  g_free(state);
}

const struct kind manage_pcow_img = {
  .name = "pcow-img",
  .ours = true,
  .open = command_open,
  .prepare = command_prepare,
  .run = command_run,
  .close = command_close,
};

const struct kind manage_qemu_img = {
  .name = "qemu-img",
  .open = command_open,
  .prepare = command_prepare,
  .run = command_run,
  .close = command_close,
};

/* ---- The start of a process ---- */

static int start_open(struct subject *s)
{
  (void)s;
  return process_needs("qemu-img");
}

static int start_run(struct subject *s, struct sample *sample)
{
  uint64_t took;
  int result = process_run(PROCESS_ARGS("qemu-img", "--version"), NULL, &took);

  (void)s;
  if (!result)
    sample->values[METRIC_TIME] = (double)took;
  return result;
}

const struct kind manage_start = {
  .name = "qemu-img --version",
  .open = start_open,
  .run = start_run,
};
