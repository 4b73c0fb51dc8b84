/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Floors: what the mechanism under a mode of libpcow costs with nothing around it; see competitor.h. They copy
 * as many bytes, in the same granule, in the same order.
 */
#include "competitor.h"

#include "images.h"
#include "pattern.h"
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct state {
  char *base_path, *fresh_path;
  int base_fd, fresh_fd;
  char *base, *fresh; /* mappings: what lies beneath, and where copies go */
  int uffd;
  pthread_t handler;
};

static struct state *make_state(struct subject *s)
{
  struct state *state = g_new0(struct state, 1);

  s->state = state;
  state->base_path = g_build_filename(s->place, "base.raw", NULL);
  state->fresh_path = g_build_filename(s->place, "fresh.raw", NULL);
  state->fresh_fd = state->uffd = -1;
  state->base_fd = file_fill(state->base_path, s->task->size);
  return state->base_fd < 0 ? NULL : state;
}

/* ---- The kernel's copy-on-write ---- */

static int cow_open(struct subject *s) { return make_state(s) ? BENCH_OK : BENCH_FAILED; }

static int cow_prepare(struct subject *s)
{
  struct state *state = s->state;
  uint64_t size = s->task->size;

  if (s->memory)
    munmap(s->memory, size);
  if (state->fresh)
    munmap(state->fresh, size);
  if (state->fresh_fd >= 0)
    close(state->fresh_fd);
  s->memory = state->fresh = NULL;
  memory_warm(MIN(2 * s->task->operations * PAGE, size));
  state->fresh_fd = file_sparse(state->fresh_path, size);
  if (state->fresh_fd < 0)
    return BENCH_FAILED;
  state->fresh = file_map(state->fresh_fd, size, MAP_SHARED);
  s->memory = file_map(state->base_fd, size, MAP_PRIVATE | MAP_NORESERVE);
  return state->fresh && s->memory ? BENCH_OK : BENCH_FAILED;
}

/* A known number of pages, FIRST to LAST of the run's order, goes to the fresh file. */
static void copy_out(struct subject *s, uint64_t first, uint64_t last)
{
  struct state *state = s->state;

  for (uint64_t i = first; i < last; i++) {
    uint64_t offset = pattern_offset(s->task, s->run, i) & ~(uint64_t)(PAGE - 1);

    flush_copy(state->fresh + offset, s->memory + offset, PAGE);
  }
  flush_fence();
}

static int cow_run(struct subject *s, struct sample *sample)
{
  const struct task *task = s->task;
  uint64_t start, copied = 0;
  char block[PAGE];

  pattern_fill(block, sizeof(block), s->run);
  start = now_ns();
  for (uint64_t i = 0; i < task->operations; i++) {
    memcpy(s->memory + pattern_offset(task, s->run, i), block, task->block);
    if (i + 1 - copied >= MAX(task->flush_every, 1)) {
      copy_out(s, copied, i + 1);
      copied = i + 1;
    }
  }
  copy_out(s, copied, task->operations);
  sample->values[METRIC_TIME] = pattern_per_operation(task, task->operations, now_ns() - start);
  return BENCH_OK;
}

static void floor_close(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
  g_free(state->base_path); /* the rest goes with the process, the blocked handler thread included */
  g_free(state->fresh_path);
}

const struct kind floor_cow = {
  .name = "floor: kernel copy-on-write + copy to a file",
  .open = cow_open,
  .prepare = cow_prepare,
  .run = cow_run,
  .close = floor_close,
};

/* ---- userfaultfd ---- */

static int open_uffd(struct state *state)
{
  struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };

  api.features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  state->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (state->uffd < 0)
    state->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
  if (state->uffd < 0)
    return bench_skip("userfaultfd is not permitted: %s", g_strerror(errno));
  if (ioctl(state->uffd, UFFDIO_API, &api))
    return bench_skip("userfaultfd cannot protect files here: %s", g_strerror(errno));
  return BENCH_OK;
}

static int protect(const struct state *state, const char *memory, uint64_t length, bool on)
{
  struct uffdio_writeprotect wp = {
    .range = { .start = (uintptr_t)memory, .len = length },
    .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
  };

  return ioctl(state->uffd, UFFDIO_WRITEPROTECT, &wp) ? bench_fail_errno("UFFDIO_WRITEPROTECT") : BENCH_OK;
}

/* Maps the base's own pages, all of them present, so that taking protection away is all that a store waits for. */
static int map_guarded(struct subject *s)
{
  struct state *state = s->state;
  struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
  int result = open_uffd(state);

  if (result)
    return result;
  s->memory = file_map(state->base_fd, s->task->size, MAP_SHARED);
  if (!s->memory)
    return BENCH_FAILED;
  madvise(s->memory, s->task->size, MADV_POPULATE_WRITE);
  reg.range.start = (uintptr_t)s->memory;
  reg.range.len = s->task->size;
  if (ioctl(state->uffd, UFFDIO_REGISTER, &reg))
    return bench_skip("userfaultfd cannot protect files here: %s", g_strerror(errno));
  return BENCH_OK;
}

/* As much as libpcow copies: a page that stands alone, and 64 KiB or more where writes follow each other. */
static uint64_t piece_of(const struct task *task)
{
  return task->order == ORDER_SEQUENTIAL ? PIECE : PAGE;
}

/* Where it runs decides: a realtime thread takes over the CPU of the thread that waits for it. */
static void *handle_faults(void *argument)
{
  struct subject *s = argument;
  struct state *state = s->state;
  struct sched_param priority = { .sched_priority = 1 };
  uint64_t piece = piece_of(s->task);
  struct uffd_msg message;

  pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
  while (read(state->uffd, &message, sizeof(message)) == sizeof(message)) {
    uint64_t offset;

    if (message.event != UFFD_EVENT_PAGEFAULT)
      continue;
    offset = (message.arg.pagefault.address - (uintptr_t)s->memory) & ~(piece - 1);
    flush_copy(state->fresh + offset, state->base + offset, piece);
    flush_fence();
    protect(state, s->memory + offset, piece, false);
  }
  return NULL;
}

static int uffd_open(struct subject *s)
{
  struct state *state = make_state(s);
  int result;

  if (!state)
    return BENCH_FAILED;
  if ((result = map_guarded(s)))
    return result;
  state->base = file_map(state->base_fd, s->task->size, MAP_SHARED);
  state->fresh_fd = file_fill(state->fresh_path, s->task->size);
  if (state->fresh_fd < 0 || !state->base)
    return BENCH_FAILED;
  state->fresh = file_map(state->fresh_fd, s->task->size, MAP_SHARED);
  if (!state->fresh)
    return BENCH_FAILED;
  madvise(state->fresh, s->task->size, MADV_POPULATE_WRITE);
  madvise(state->base, s->task->size, MADV_POPULATE_WRITE);
  if (pthread_create(&state->handler, NULL, handle_faults, s))
    return bench_fail("no thread can be made");
  return BENCH_OK;
}

static int uffd_prepare(struct subject *s)
{
  return protect(s->state, s->memory, s->task->size, true);
}

static int uffd_run(struct subject *s, struct sample *sample) { return pattern_run(s, NULL, sample); }

const struct kind floor_uffd = {
  .name = "floor: userfaultfd round trip + copy to prepared pages",
  .open = uffd_open,
  .prepare = uffd_prepare,
  .run = uffd_run,
  .close = floor_close,
};

static int protect_open(struct subject *s) { return make_state(s) ? map_guarded(s) : BENCH_FAILED; }

static int protect_prepare(struct subject *s)
{
  int result = protect(s->state, s->memory, s->task->size, false);

  if (!result)
    pattern_touch(s, true);
  return result;
}

static int protect_run(struct subject *s, struct sample *sample)
{
  uint64_t start = now_ns();
  int result = protect(s->state, s->memory, s->task->size, true);

  sample->values[METRIC_TIME] = (double)(now_ns() - start);
  return result;
}

const struct kind floor_protect = {
  .name = "floor: write-protecting what is written",
  .open = protect_open,
  .prepare = protect_prepare,
  .run = protect_run,
  .close = floor_close,
};
