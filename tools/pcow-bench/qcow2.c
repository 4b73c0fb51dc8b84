/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making qcow2 images; see qcow2.h.
 */
#include "qcow2.h"

#include "images.h"
#include "process.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLUSTER (64 * KIB)
#define FILLED 85  /* the byte of which the data of a full image is */
#define WRITTEN 90 /* and of a layer */

int qcow2_create(const char *path, uint64_t size, const char *base, bool metadata)
{
  g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);

  if (base)
    return process_run(PROCESS_ARGS("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path,
                                    bytes), NULL, NULL);
  if (metadata)
    return process_run(PROCESS_ARGS("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata",
                                    path, bytes), NULL, NULL);
  return process_run(PROCESS_ARGS("qemu-img", "create", "-q", "-f", "qcow2", path, bytes), NULL, NULL);
}

int qcow2_fill(const char *path, uint64_t size)
{
  g_autofree char *count = g_strdup_printf("%" G_GUINT64_FORMAT, size / MIB);

  return process_run(PROCESS_ARGS("qemu-img", "bench", "-w", "-q", "-f", "qcow2", "-s", "1M", "-S", "1M", "-d",
                                  "8", "--pattern", G_STRINGIFY(FILLED), "-c", count, path), NULL, NULL);
}

int qcow2_scatter(const char *path, uint64_t size, uint64_t data, uint64_t seed)
{
  g_autoptr(GString) commands = g_string_new(NULL);
  uint64_t count = data / PIECE;

  for (uint64_t i = 0; i < count; i++)
    g_string_append_printf(commands, "write -q -P " G_STRINGIFY(WRITTEN) " %" G_GUINT64_FORMAT " 64k\n",
                           scattered_piece(size, count, PIECE, i, seed));
  return process_feed(PROCESS_ARGS("qemu-io", "-f", "qcow2", path), commands->str);
}

static int punch_data(int fd, const char *path, uint64_t size, char byte)
{
  g_autofree char *data = g_malloc(CLUSTER), *cluster = g_malloc(CLUSTER);

  memset(data, byte, CLUSTER);
  for (uint64_t offset = 0; offset + CLUSTER <= size; offset += CLUSTER) {
    if (pread(fd, cluster, CLUSTER, (off_t)offset) != (ssize_t)CLUSTER)
      return bench_fail_errno("%s: read", path);
    if (memcmp(cluster, data, CLUSTER) == 0 &&
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)CLUSTER))
      return bench_fail_errno("%s: fallocate", path);
  }
  return BENCH_OK;
}

/* Gives the space of an image's data back: opening it reads nothing but its tables, and they stay as they are.
 * Clusters of data are known by what was written to them. */
static int forget_data(const char *path, char byte)
{
  int fd = open(path, O_RDWR | O_CLOEXEC);
  struct stat st;
  int result;

  if (fd < 0 || fstat(fd, &st))
    result = bench_fail_errno("%s", path);
  else
    result = punch_data(fd, path, (uint64_t)st.st_size, byte);
  if (fd >= 0)
    close(fd);
  return result;
}

/* Each layer is written before it has a base: otherwise making the chain would take the square of its length. */
int qcow2_chain(const char *dir, const struct task *task, char **top)
{
  g_autofree char *below = g_strdup("base.qcow2");
  g_autofree char *base = g_build_filename(dir, below, NULL);
  int result = qcow2_create(base, task->size, NULL, false);

  if (!result)
    result = qcow2_fill(base, task->size);
  if (!result)
    result = forget_data(base, FILLED);
  for (unsigned i = 0; i < task->chain && !result; i++) {
    g_autofree char *name = g_strdup_printf("layer%04u.qcow2", i);

    g_free(*top);
    *top = g_build_filename(dir, name, NULL);
    result = qcow2_create(*top, task->size, NULL, false);
    if (!result && task->layer_data)
      result = qcow2_scatter(*top, task->size, task->layer_data, i);
    if (!result)
      result = forget_data(*top, WRITTEN);
    if (!result)
      result = chain_room(dir, task, i + 1);
    if (!result)
      result = process_run(PROCESS_ARGS("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
                                        below, *top), NULL, NULL);
    g_free(below);
    below = g_steal_pointer(&name);
  }
  return result;
}

int qcow2_snapshot(const char *path, char letter, const char *name, uint64_t *nanoseconds)
{
  const char option[] = { '-', letter, '\0' };

  return process_run(PROCESS_ARGS("qemu-img", "snapshot", "-q", option, name, path), NULL, nanoseconds);
}
