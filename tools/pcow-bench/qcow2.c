/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making qcow2 images; see qcow2.h.
 */
#include "qcow2.h"

#include "images.h"
#include "process.h"

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
                                  "8", "--pattern", "85", "-c", count, path), NULL, NULL);
}

int qcow2_scatter(const char *path, uint64_t size, uint64_t data, uint64_t seed)
{
  g_autoptr(GString) commands = g_string_new(NULL);
  uint64_t count = data / PIECE;

  for (uint64_t i = 0; i < count; i++)
    g_string_append_printf(commands, "write -q -P 90 %" G_GUINT64_FORMAT " 64k\n",
                           scattered_piece(size, count, PIECE, i, seed));
  return process_feed(PROCESS_ARGS("qemu-io", "-f", "qcow2", path), commands->str);
}

/* Each layer is written before it has a base: otherwise making the chain would take the square of its length. */
int qcow2_chain(const char *dir, const struct task *task, char **top)
{
  g_autofree char *below = g_strdup("base.qcow2");
  g_autofree char *base = g_build_filename(dir, below, NULL);
  int result = qcow2_create(base, task->size, NULL, false);

  if (!result)
    result = qcow2_fill(base, task->size);
  for (unsigned i = 0; i < task->chain && !result; i++) {
    g_autofree char *name = g_strdup_printf("layer%04u.qcow2", i);

    g_free(*top);
    *top = g_build_filename(dir, name, NULL);
    result = qcow2_create(*top, task->size, NULL, false);
    if (!result && task->layer_data)
      result = qcow2_scatter(*top, task->size, task->layer_data, i);
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
