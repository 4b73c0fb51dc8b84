/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2 as a virtual machine manager or a tool gets at it: qemu-storage-daemon exports the image, over NBD (a
 * Unix socket, libnbd) or over FUSE (O_DIRECT on the exported file); see competitor.h. One request at a time.
 */
#include "competitor.h"

#include "pattern.h"
#include "process.h"
#include "qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef BENCH_HAVE_LIBNBD
#include <libnbd.h>
#endif

struct state {
  char *image, *point, *errors;
  struct process daemon;
  int fd;      /* FUSE */
  void *nbd;   /* struct nbd_handle */
  char *block; /* aligned for O_DIRECT */
};

/* ---- The daemon ---- */

static int start_daemon(struct subject *s, const char *export, const char *server, const char *aio)
{
  struct state *state = s->state;
  g_autofree char *file = g_strdup_printf("driver=file,node-name=file,aio=%s,filename=%s", aio, state->image);

  return process_start(server ? PROCESS_ARGS("qemu-storage-daemon", "--blockdev", file, "--blockdev",
                                             "driver=qcow2,node-name=disk,file=file", "--nbd-server", server,
                                             "--export", export)
                              : PROCESS_ARGS("qemu-storage-daemon", "--blockdev", file, "--blockdev",
                                             "driver=qcow2,node-name=disk,file=file", "--export", export),
                       state->errors, &state->daemon);
}

static bool is_up(const struct state *state, bool nbd, dev_t device)
{
  struct stat info;

  if (stat(state->point, &info))
    return false;
  return nbd ? S_ISSOCK(info.st_mode) : info.st_dev != device;
}

/* BENCH_SKIPPED, with what the daemon said, where it does not work. */
static int export_with(struct subject *s, bool nbd, const char *aio)
{
  struct state *state = s->state;
  g_autofree char *server = g_strdup_printf("addr.type=unix,addr.path=%s", state->point);
  g_autofree char *export =
      nbd ? g_strdup("type=nbd,id=export,node-name=disk,name=disk,writable=on")
          : g_strdup_printf("type=fuse,id=export,node-name=disk,mountpoint=%s,writable=on", state->point);
  g_autofree char *said = NULL;
  struct stat info;
  int result;

  if (stat(s->place, &info))
    return bench_fail_errno("%s", s->place);
  result = start_daemon(s, export, nbd ? server : NULL, aio);
  if (result)
    return result;
  for (int i = 0; i < 1000 && process_alive(&state->daemon); i++) {
    if (is_up(state, nbd, info.st_dev))
      return BENCH_OK;
    g_usleep(5000);
  }
  process_stop(&state->daemon);
  g_file_get_contents(state->errors, &said, NULL, NULL);
  return bench_skip("qemu-storage-daemon cannot export over %s here: %s", nbd ? "NBD" : "FUSE",
                    said && *said ? g_strchomp(said) : "it says nothing");
}

static int export_open(struct subject *s, bool nbd)
{
  struct state *state = g_new0(struct state, 1);
  int result;

  s->state = state;
  state->fd = -1;
  state->image = g_build_filename(s->place, "image.qcow2", NULL);
  state->point = g_build_filename(s->place, nbd ? "socket" : "export", NULL);
  state->errors = g_build_filename(s->place, "errors", NULL);
  if (posix_memalign((void **)&state->block, PAGE, PAGE))
    return bench_fail("no memory");
  if ((result = process_needs("qemu-img")) || (result = process_needs("qemu-storage-daemon")))
    return result;
  if ((result = qcow2_create(state->image, s->task->size, NULL, false)) ||
      (result = qcow2_fill(state->image, s->task->size)))
    return result;
  if (!nbd) {
    int fd = open(state->point, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
      return bench_fail_errno("%s", state->point);
    close(fd);
  }
  if (export_with(s, nbd, "io_uring") && (result = export_with(s, nbd, "threads")))
    return result;
  s->server = state->daemon.pid;
  return BENCH_OK;
}

static void export_close(struct subject *s)
{
  struct state *state = s->state;

  if (!state)
    return;
#ifdef BENCH_HAVE_LIBNBD
  if (state->nbd) {
    nbd_shutdown(state->nbd, 0);
    nbd_close(state->nbd);
  }
#endif
  if (state->fd >= 0)
    close(state->fd);
  process_stop(&state->daemon);
  free(state->block);
  g_free(state->image);
  g_free(state->point);
  g_free(state->errors);
  g_free(state);
}

/* ---- The loop ---- */

struct access {
  int (*write)(struct state *state, uint64_t offset, uint32_t length);
  int (*read)(struct state *state, uint64_t offset, uint32_t length);
  int (*flush)(struct state *state);
};

/* The number of accesses, or BENCH_*. */
static int64_t access_loop(struct subject *s, const struct access *how, uint64_t start)
{
  const struct task *task = s->task;
  struct state *state = s->state;
  int result = BENCH_OK;
  uint64_t i;

  pattern_fill(state->block, PAGE, s->run);
  for (i = 0; i < task->operations && !result && !pattern_over(start); i++) {
    uint64_t offset = pattern_offset(task, s->run, i);

    result = task->write ? how->write(state, offset, task->block) : how->read(state, offset, task->block);
    if (!result && task->write && task->flush_every && (i + 1) % task->flush_every == 0)
      result = how->flush(state);
  }
  return result ? result : (int64_t)i;
}

static int access_run(struct subject *s, const struct access *how, struct sample *sample)
{
  uint64_t start = now_ns();
  int64_t done = access_loop(s, how, start);

  if (done < 0)
    return (int)done;
  sample->values[METRIC_TIME] = pattern_per_operation(s->task, (uint64_t)done, now_ns() - start);
  return BENCH_OK;
}

/* ---- FUSE ---- */

static int fuse_write(struct state *state, uint64_t offset, uint32_t length)
{
  return pwrite(state->fd, state->block, length, (off_t)offset) == (ssize_t)length
             ? BENCH_OK : bench_fail_errno("write to the FUSE export");
}

static int fuse_read(struct state *state, uint64_t offset, uint32_t length)
{
  return pread(state->fd, state->block, length, (off_t)offset) == (ssize_t)length
             ? BENCH_OK : bench_fail_errno("read from the FUSE export");
}

static int fuse_flush(struct state *state)
{
  return fdatasync(state->fd) ? bench_fail_errno("fdatasync of the FUSE export") : BENCH_OK;
}

static int fuse_open(struct subject *s)
{
  struct state *state;
  int result = export_open(s, false);

  if (result)
    return result;
  state = s->state;
  state->fd = open(state->point, O_RDWR | O_DIRECT | O_CLOEXEC);
  return state->fd < 0 ? bench_fail_errno("%s: open with O_DIRECT", state->point) : BENCH_OK;
}

static int fuse_run(struct subject *s, struct sample *sample)
{
  static const struct access how = { fuse_write, fuse_read, fuse_flush };

  return access_run(s, &how, sample);
}

const struct kind qcow2_fuse = {
  .name = "qcow2 over FUSE",
  .memory = true,
  .open = fuse_open,
  .run = fuse_run,
  .close = export_close,
};

/* ---- NBD ---- */

#ifdef BENCH_HAVE_LIBNBD

static int told(int result)
{
  return result < 0 ? bench_fail("NBD: %s", nbd_get_error()) : BENCH_OK;
}

static int nbd_write_block(struct state *state, uint64_t offset, uint32_t length)
{
  return told(nbd_pwrite(state->nbd, state->block, length, offset, 0));
}

static int nbd_read_block(struct state *state, uint64_t offset, uint32_t length)
{
  return told(nbd_pread(state->nbd, state->block, length, offset, 0));
}

static int nbd_flush_all(struct state *state) { return told(nbd_flush(state->nbd, 0)); }

static int nbd_open(struct subject *s)
{
  struct state *state;
  int result = export_open(s, true);

  if (result)
    return result;
  state = s->state;
  state->nbd = nbd_create();
  if (!state->nbd || nbd_set_export_name(state->nbd, "disk") < 0)
    return told(-1);
  return told(nbd_connect_unix(state->nbd, state->point));
}

static int nbd_run(struct subject *s, struct sample *sample)
{
  static const struct access how = { nbd_write_block, nbd_read_block, nbd_flush_all };

  return access_run(s, &how, sample);
}

#else

static int nbd_open(struct subject *s)
{
  (void)s;
  return bench_skip("pcow-bench was built without libnbd");
}

static int nbd_run(struct subject *s, struct sample *sample)
{
  (void)s;
  (void)sample;
  return BENCH_FAILED;
}

#endif

const struct kind qcow2_nbd = {
  .name = "qcow2 over NBD",
  .memory = true,
  .open = nbd_open,
  .run = nbd_run,
  .close = export_close,
};
