/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The mapped image; see subject-pcow.h. What is timed is stores into memory and, in flush-durable mode,
 * pcow_flush() of the whole range: a guest's flush names no part of the device. Only where a contender says
 * so, the caller knows what was written, and flushes that.
 */
#include "subject-pcow.h"

#include "images.h"
#include "pattern.h"
#include "process.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROTATION_PAGES 64 /* written between two snapshots */
#define WARM_ROUNDS 3     /* of writing everything and flushing it, for whatever adapts */

struct state {
  char *path;
  pcow_image *image;
  pcow_mapping *mapping;
};

int subject_map(pcow_image *image, uint32_t mode, uint32_t thin, pcow_mapping **mapping)
{
  struct pcow_map_options how = PCOW_INIT(how);
  int result;

  how.durability = mode;
  how.thin = thin;
  result = pcow_map(image, &how, mapping);
  return result ? bench_fail_library(result) : BENCH_OK;
}

int subject_flush(pcow_mapping *mapping, uint64_t offset, uint64_t length)
{
  int result = pcow_flush(mapping, offset, length);

  return result ? bench_fail_library(result) : BENCH_OK;
}

static int flush(struct subject *s)
{
  struct state *state = s->state;

  return s->task->flush_range ? subject_flush(state->mapping, s->last, s->task->block)
                              : subject_flush(state->mapping, 0, s->task->size);
}

/* ---- Opening ---- */

static int begin(struct subject *s)
{
  struct state *state = s->state;
  int result = image_open(state->path, PCOW_OPEN_RDWR, &state->image);

  if (!result)
    result = subject_map(state->image, s->kind->mode, s->task->thin, &state->mapping);
  if (!result)
    s->memory = pcow_mapping_address(state->mapping);
  return result;
}

static int end(struct state *state)
{
  int result = state->mapping ? pcow_unmap(state->mapping) : 0;

  if (result)
    bench_fail_library(result);
  state->mapping = NULL;
  if (pcow_close(state->image) && !result)
    result = bench_fail("%s", pcow_errormsg());
  state->image = NULL;
  return result ? BENCH_FAILED : BENCH_OK;
}

/* Everything has been written, and what adapts to that has had its time. */
static int warm(struct subject *s)
{
  bool flushed = s->kind->mode == PCOW_FLUSH_DURABLE;
  int result = BENCH_OK;

  for (int i = 0; i < (flushed ? WARM_ROUNDS : 1) && !result; i++) {
    pattern_touch(s, true);
    if (flushed)
      result = flush(s);
  }
  return result;
}

static int rotate(struct subject *s)
{
  struct state *state = s->state;

  for (unsigned i = 0; i < s->task->snapshots; i++) {
    g_autofree char *name = g_strdup_printf("s%u", i);
    int result;

    for (uint64_t k = 0; k < ROTATION_PAGES; k++)
      s->memory[pattern_offset(s->task, i, k) & ~(uint64_t)(PAGE - 1)] ^= 1;
    result = pcow_snapshot_create(state->image, name);
    if (result)
      return bench_fail_library(result);
  }
  return BENCH_OK;
}

static int pcow_open_subject(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = g_new0(struct state, 1);
  g_autofree char *base = g_build_filename(s->place, "base.pcow", NULL);
  int result = BENCH_OK;

  s->state = state;
  state->path = g_build_filename(s->place, "image.pcow", NULL);
  if (task->layout == LAYOUT_CHAIN)
    result = image_chain(s->place, task, &state->path);
  if (task->layout == LAYOUT_BASE || task->layout == LAYOUT_RESIDENT) {
    result = image_create(base, task->size, NULL);
    if (!result)
      result = image_fill(base, task->size);
  }
  if (result || task->layout == LAYOUT_THIN || task->layout == LAYOUT_BASE)
    return result; /* each run makes its own */
  if (task->layout != LAYOUT_CHAIN)
    result = image_create(state->path, task->size, task->layout == LAYOUT_RESIDENT ? "base.pcow" : NULL);
  if (!result)
    result = begin(s);
  if (result)
    return result;
  if (task->layout == LAYOUT_ROTATED) {
    pattern_touch(s, true);
    result = rotate(s);
  }
  if (!result && (task->layout == LAYOUT_RESIDENT || (task->layout == LAYOUT_CHAIN && !task->write)))
    pattern_touch(s, false);
  else if (!result)
    result = warm(s);
  return result;
}

/* ---- Runs ---- */

static int make_anew(struct subject *s)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  int result = end(state);

  if (result)
    return result;
  unlink(state->path);
  memory_warm(MIN(task->operations * (task->order == ORDER_SCATTERED ? PIECE : task->block), task->size));
  result = image_create(state->path, task->size, task->layout == LAYOUT_BASE ? "base.pcow" : NULL);
  return result ? result : begin(s);
}

/* Two at a time: the older one is deleted, and its space is there for the next run. */
static int snapshot_anew(struct subject *s)
{
  struct state *state = s->state;
  g_autofree char *name = g_strdup_printf("s%u", s->run);
  g_autofree char *old = s->run > 1 ? g_strdup_printf("s%u", s->run - 2) : NULL;
  int result = old ? pcow_snapshot_delete(state->image, old) : 0;

  memory_warm(MIN(s->task->operations * PIECE, s->task->size));
  if (!result)
    result = pcow_snapshot_create(state->image, name);
  return result ? bench_fail_library(result) : BENCH_OK;
}

static int pcow_prepare_subject(struct subject *s)
{
  switch (s->task->layout) {
    case LAYOUT_THIN:
    case LAYOUT_BASE:
      return make_anew(s);
    case LAYOUT_SNAPSHOT:
      return snapshot_anew(s);
    default:
      return BENCH_OK;
  }
}

static int pcow_run_subject(struct subject *s, struct sample *sample)
{
  struct state *state = s->state;
  bool flushed = s->kind->mode == PCOW_FLUSH_DURABLE && s->task->flush_every;
  int result = pattern_run(s, flushed ? flush : NULL, sample);

  if (!result) {
    struct stat info;

    if (stat(state->path, &info) == 0)
      sample->values[METRIC_SPACE] = (double)info.st_blocks * 512;
  }
  return result;
}

static void pcow_close_subject(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  end(state);
  g_free(state->path);
  g_free(state);
}

const struct kind pcow_store = {
  .name = "libpcow store-durable",
  .memory = true,
  .ours = true,
  .mode = PCOW_STORE_DURABLE,
  .open = pcow_open_subject,
  .prepare = pcow_prepare_subject,
  .run = pcow_run_subject,
  .close = pcow_close_subject,
};

const struct kind pcow_flushed = {
  .name = "libpcow flush-durable",
  .memory = true,
  .ours = true,
  .mode = PCOW_FLUSH_DURABLE,
  .open = pcow_open_subject,
  .prepare = pcow_prepare_subject,
  .run = pcow_run_subject,
  .close = pcow_close_subject,
};
