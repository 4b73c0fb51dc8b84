/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Management by calls of the library; see manage.h. Each run leaves the image as the next one expects it.
 */
#include "images.h"
#include "manage.h"
#include "pattern.h"
#include "process.h"
#include "subject-pcow.h"
#include "workdir.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct state {
  char *path, *target; /* the image, and what a run makes */
  pcow_image *image;
  pcow_mapping *mapping;
};

static uint64_t piece_of(const struct task *task) { return task->piece ? task->piece : PIECE; }

/* ---- Before ---- */

static int begin(struct subject *s)
{
  struct state *state = s->state;
  bool map = s->task->mapped || s->task->action == ACTION_MAP;
  int result = image_open(state->path, PCOW_OPEN_RDWR, &state->image);

  if (!result && map)
    result = subject_map(state->image, s->kind->mode, s->task->thin, &state->mapping);
  if (!result && map)
    s->memory = pcow_mapping_address(state->mapping);
  return result;
}

static int end(struct state *state)
{
  int result = state->mapping ? pcow_unmap(state->mapping) : 0;

  state->mapping = NULL;
  if (pcow_close(state->image))
    result = -1;
  state->image = NULL;
  return result ? bench_fail("%s", pcow_errormsg()) : BENCH_OK;
}

static int make_image(const struct state *state, const struct task *task)
{
  int result = image_create(state->path, task->size, NULL);

  return result ? result : image_scatter(state->path, task->size, task->written, task->piece, 0);
}

/* By a process of its own: what the allocator keeps of that is not memory that a map takes. */
static int make_image_apart(const struct state *state, const struct task *task)
{
  char text[1000] = "";
  pid_t parent = getpid(), child;
  int fds[2], status, result;

  if (pipe(fds))
    return bench_fail_errno("pipe");
  child = fork();
  if (child == 0) {
    process_die_with(parent);
    result = make_image(state, task);
    if (result && write(fds[1], bench_message(), MIN(strlen(bench_message()), sizeof(text) - 1)) < 0)
      _exit(1);
    _exit(!result ? 0 : result == BENCH_SKIPPED ? 2 : 1);
  }
  close(fds[1]);
  if (child > 0 && read(fds[0], text, sizeof(text) - 1) < 0)
    text[0] = '\0';
  close(fds[0]);
  if (child < 0 || waitpid(child, &status, 0) != child)
    return bench_fail_errno("fork");
  if (!WIFEXITED(status))
    return bench_fail("who made the image was killed");
  return !WEXITSTATUS(status) ? BENCH_OK : WEXITSTATUS(status) == 2 ? bench_skip("%s", text) : bench_fail("%s", text);
}

static int manage_open(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = g_new0(struct state, 1);
  int result;

  s->state = state;
  state->path = g_build_filename(s->place, "image.pcow", NULL);
  state->target = g_build_filename(s->place, "target.pcow", NULL);
  if (task->action == ACTION_CREATE)
    return BENCH_OK;
  if (task->layout == LAYOUT_CHAIN)
    return image_chain(s->place, task, &state->path);
  result = task->action == ACTION_MAP ? make_image_apart(state, task) : make_image(state, task);
  if (!result && (task->mapped || task->action == ACTION_SNAPSHOT))
    result = begin(s);
  return result;
}

/* Everything that was written is written again, through the mapping: it is the head's, and writable. */
static int write_again(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  uint64_t length = piece_of(task), count = task->written / length;

  for (uint64_t i = 0; i < count; i++) {
    char *piece = s->memory + scattered_piece(task->size, count, length, i, 0);

    for (uint64_t offset = 0; offset < length; offset += 64) {
      uint64_t word;

      memcpy(&word, piece + offset, sizeof(word));
      word++;
      flush_copy(piece + offset, &word, sizeof(word));
    }
  }
  flush_fence();
  return s->kind->mode == PCOW_FLUSH_DURABLE ? subject_flush(state->mapping, 0, task->size) : BENCH_OK;
}

static int write_after(struct subject *s)
{
  struct state *state = s->state;
  g_autofree char *block = g_malloc(PIECE);
  int result = 0;

  pattern_fill(block, PIECE, s->run);
  for (uint64_t i = 0; i < MANAGE_PIECES && !result; i++)
    result = pcow_pwrite(state->image, block, PIECE, scattered_piece(s->task->size, MANAGE_PIECES, PIECE, i, 3));
  return result ? bench_fail_library(result) : BENCH_OK;
}

static int remove_snapshot(struct subject *s, unsigned run)
{
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", run);
  int result = pcow_snapshot_delete(state->image, name);

  return result ? bench_fail_library(result) : BENCH_OK;
}

static int take_snapshot(struct subject *s)
{
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", s->run);
  int result = pcow_snapshot_create(state->image, name);

  return result ? bench_fail_library(result) : BENCH_OK;
}

static int manage_prepare(struct subject *s)
{
  struct state *state = s->state;
  int result = BENCH_OK;

  switch (s->task->action) {
    case ACTION_CREATE:
    case ACTION_CLONE:
      unlink(state->target);
      return BENCH_OK;
    case ACTION_SNAPSHOT:
      if (s->run > 0)
        result = remove_snapshot(s, s->run - 1);
      return result || !s->task->mapped ? result : write_again(s);
    case ACTION_DELETE:
    case ACTION_REVERT:
      if (!state->image)
        result = begin(s);
      if (!result && s->task->action == ACTION_REVERT && s->run > 0)
        result = remove_snapshot(s, s->run - 1);
      if (!result)
        result = take_snapshot(s);
      return result ? result : write_after(s);
    case ACTION_CLOSE:
      return begin(s);
    case ACTION_OPEN:
    case ACTION_MAP:
      return end(state);
    default:
      return BENCH_OK;
  }
}

/* ---- What is timed ---- */

static int make_overlays(struct subject *s)
{
  const struct task *task = s->task;
  int result = BENCH_OK;

  for (unsigned i = 0; i < task->overlays && !result; i++) {
    g_autofree char *path = g_strdup_printf("%s/overlay%u.pcow", s->place, i);

    unlink(path);
    result = image_create(path, 0, "image.pcow");
    if (!result)
      result = image_scatter(path, task->size, task->layer_data, 0, i);
  }
  return result;
}

static int act(struct subject *s)
{
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", s->run);
  int result;

  switch (s->task->action) {
    case ACTION_CREATE:
      return image_create(state->target, s->task->size, NULL);
    case ACTION_CLONE:
      return image_create(state->target, 0, "image.pcow");
    case ACTION_SNAPSHOT:
      return take_snapshot(s);
    case ACTION_DELETE:
      return remove_snapshot(s, s->run);
    case ACTION_REVERT:
      result = pcow_snapshot_revert(state->image, name);
      return result ? bench_fail_library(result) : BENCH_OK;
    case ACTION_OPEN:
    case ACTION_MAP:
      return begin(s);
    case ACTION_CLOSE:
      return end(state);
    case ACTION_OVERLAYS:
      return make_overlays(s);
    case ACTION_FILL:
    default:
      return image_fill(state->path, s->task->size);
  }
}

/* What a run has made, or of what it filled the part that is not its data. */
static double space(struct subject *s)
{
  struct state *state = s->state;
  uint64_t sum = 0;

  switch (s->task->action) {
    case ACTION_CREATE:
    case ACTION_CLONE:
      return (double)workdir_blocks(state->target);
    case ACTION_OVERLAYS:
      for (unsigned i = 0; i < s->task->overlays; i++) {
        g_autofree char *path = g_strdup_printf("%s/overlay%u.pcow", s->place, i);

        sum += workdir_blocks(path);
      }
      return (double)sum;
    case ACTION_FILL:
      return (double)workdir_blocks(state->path) - (double)s->task->size;
    default:
      return (double)workdir_blocks(state->path);
  }
}

static int manage_run(struct subject *s, struct sample *sample)
{
  uint64_t start = now_ns();
  int result = act(s);

  sample->values[METRIC_TIME] = (double)(now_ns() - start);
  if (!result)
    sample->values[METRIC_SPACE] = space(s);
  return result;
}

static void manage_close(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  end(state);
  g_free(state->path);
  g_free(state->target);
  g_free(state);
}

const struct kind manage_pcow = {
  .name = "libpcow",
  .ours = true,
  .memory = true,
  .mode = PCOW_STORE_DURABLE,
  .open = manage_open,
  .prepare = manage_prepare,
  .run = manage_run,
  .close = manage_close,
};

const struct kind manage_pcow_flushed = {
  .name = "libpcow flush-durable",
  .ours = true,
  .memory = true,
  .mode = PCOW_FLUSH_DURABLE,
  .open = manage_open,
  .prepare = manage_prepare,
  .run = manage_run,
  .close = manage_close,
};
