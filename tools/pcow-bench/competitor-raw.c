/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A raw file, mapped shared; see competitor.h. Also reflinked on XFS before each run: that is the copy-on-write
 * which a file system has to offer.
 */
#include "competitor.h"

#include "images.h"
#include "pattern.h"
#include "process.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct state {
  char *path;
  int fd;
};

static void unmap(struct subject *s)
{
  struct state *state = s->state;

  if (s->memory)
    munmap(s->memory, s->task->size);
  s->memory = NULL;
  if (state->fd >= 0)
    close(state->fd);
  state->fd = -1;
}

static int map(struct subject *s, int fd)
{
  struct state *state = s->state;

  if (fd < 0)
    return fd;
  state->fd = fd;
  s->memory = file_map(fd, s->task->size, MAP_SHARED);
  return s->memory ? BENCH_OK : BENCH_FAILED;
}

static int raw_open(struct subject *s)
{
  struct state *state = g_new0(struct state, 1);
  int result;

  state->fd = -1;
  state->path = g_build_filename(s->place, "file.raw", NULL);
  s->state = state;
  if (s->task->layout == LAYOUT_THIN)
    return BENCH_OK;
  result = map(s, file_fill(state->path, s->task->size));
  if (!result)
    pattern_touch(s, s->task->write);
  if (!result && s->kind != &raw_native && fsync(state->fd))
    result = bench_fail_errno("fsync");
  return result;
}

static int raw_prepare(struct subject *s)
{
  struct state *state = s->state;

  if (s->task->layout != LAYOUT_THIN)
    return BENCH_OK;
  unmap(s);
  unlink(state->path);
  memory_warm(MIN(s->task->operations * s->task->block, s->task->size));
  return map(s, file_sparse(state->path, s->task->size));
}

static int sync_all(struct subject *s)
{
  return msync(s->memory, s->task->size, MS_SYNC) ? bench_fail_errno("msync") : BENCH_OK;
}

static int run_with(struct subject *s, pattern_flush_fn flush, struct sample *sample)
{
  struct state *state = s->state;
  int result = pattern_run(s, flush, sample);
  struct stat info;

  if (!result && fstat(state->fd, &info) == 0)
    sample->values[METRIC_SPACE] = (double)info.st_blocks * 512;
  return result;
}

static int native_run(struct subject *s, struct sample *sample) { return run_with(s, NULL, sample); }
static int msync_run(struct subject *s, struct sample *sample) { return run_with(s, sync_all, sample); }

static void raw_close(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  unmap(s);
  g_free(state->path);
  g_free(state);
}

const struct kind raw_native = {
  .name = "native mapping of a raw file",
  .memory = true,
  .open = raw_open,
  .prepare = raw_prepare,
  .run = native_run,
  .close = raw_close,
};

const struct kind raw_msync = {
  .name = "raw file, msync",
  .memory = true,
  .open = raw_open,
  .prepare = raw_prepare,
  .run = msync_run,
  .close = raw_close,
};

/* ---- Reflink ---- */

static int clone_file(struct subject *s, uint64_t *took)
{
  struct state *state = s->state;
  g_autofree char *copy = g_build_filename(s->place, "copy.raw", NULL);

  unlink(copy);
  return process_run(PROCESS_ARGS("cp", "--reflink=always", state->path, copy), NULL, took);
}

/* The file shares all of its blocks with a copy when the stores begin, as after a snapshot of it. */
static int reflink_prepare(struct subject *s)
{
  int result = clone_file(s, NULL);

  return result ? result : sync_all(s);
}

static int reflink_run(struct subject *s, struct sample *sample)
{
  uint64_t took;
  int result = clone_file(s, &took);

  if (!result)
    sample->values[METRIC_TIME] = (double)took;
  return result;
}

const struct kind reflink_clone = {
  .name = "cp --reflink",
  .open = raw_open,
  .run = reflink_run,
  .close = raw_close,
};

const struct kind reflink_msync = {
  .name = "cp --reflink, msync",
  .memory = true,
  .open = raw_open,
  .prepare = reflink_prepare,
  .run = msync_run,
  .close = raw_close,
};
