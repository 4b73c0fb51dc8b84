/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making images and files; see images.h.
 */
#include "images.h"

#include "pattern.h"
#include "workdir.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFER MIB
#define CHAIN_RESERVE (512 * MIB) /* left to others */

uint64_t scattered_piece(uint64_t size, uint64_t count, uint64_t piece, uint64_t index, uint64_t seed)
{
  uint64_t share = size / count / piece;

  if (share <= 1)
    return index * piece % size;
  return (index * share + (index * 31 + seed * 17) % share) * piece;
}

int image_create(const char *path, uint64_t size, const char *base)
{
  struct pcow_create_options how = PCOW_INIT(how);
  int result;

  if (base) {
    how.flags = PCOW_CREATE_BASES;
    how.base = base;
    how.base_format = PCOW_FORMAT_PCOW;
  }
  result = pcow_create(path, size, &how);
  return result ? bench_fail_library(result) : BENCH_OK;
}

int image_open(const char *path, uint32_t flags, pcow_image **image)
{
  struct pcow_open_options how = PCOW_INIT(how);
  int result;

  how.flags = flags | PCOW_OPEN_BASES;
  result = pcow_open(path, &how, image);
  return result ? bench_fail_library(result) : BENCH_OK;
}

/* Writes COUNT pieces of LENGTH bytes, each at where PLACE says. */
static int write_pieces(const char *path, uint64_t size, uint64_t length, uint64_t count, uint64_t seed,
                        bool scattered)
{
  g_autofree char *block = g_malloc(length);
  pcow_image *image = NULL;
  int result = image_open(path, PCOW_OPEN_RDWR, &image);

  if (result)
    return result;
  for (uint64_t i = 0; i < count && !result; i++) {
    pattern_fill(block, length, i + seed);
    result = pcow_pwrite(image, block, length, scattered ? scattered_piece(size, count, length, i, seed) : i * length);
  }
  if (result)
    result = bench_fail_library(result);
  if (pcow_close(image) && !result)
    result = bench_fail("%s", pcow_errormsg());
  return result;
}

int image_fill(const char *path, uint64_t size)
{
  return write_pieces(path, size, BUFFER, size / BUFFER, 1, false);
}

int image_scatter(const char *path, uint64_t size, uint64_t data, uint64_t piece, uint64_t seed)
{
  piece = piece ? piece : PIECE;
  return data ? write_pieces(path, size, piece, data / piece, seed, true) : BENCH_OK;
}

int chain_room(const char *dir, const struct task *task, unsigned layers)
{
  uint64_t room = workdir_room(dir);

  if (layers == task->chain || room >= CHAIN_RESERVE + task->layer_data)
    return BENCH_OK;
  return bench_skip("%s has only %" G_GUINT64_FORMAT " MiB left when %u of %u layers are made", dir, room / MIB,
                    layers, task->chain);
}

int image_chain(const char *dir, const struct task *task, char **top)
{
  g_autofree char *below = g_strdup("base.pcow");
  g_autofree char *base = g_build_filename(dir, below, NULL);
  int result = image_create(base, task->size, NULL);

  if (!result)
    result = image_fill(base, task->size);
  for (unsigned i = 0; i < task->chain && !result; i++) {
    g_autofree char *name = g_strdup_printf("layer%04u.pcow", i);

    g_free(*top);
    *top = g_build_filename(dir, name, NULL);
    result = image_create(*top, 0, below);
    if (!result)
      result = image_scatter(*top, task->size, task->layer_data, 0, i);
    if (!result)
      result = chain_room(dir, task, i + 1);
    g_free(below);
    below = g_steal_pointer(&name);
  }
  return result;
}

/* ---- Raw files ---- */

int file_sparse(const char *path, uint64_t size)
{
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
    return fd;
  bench_fail_errno("%s", path);
  if (fd >= 0)
    close(fd);
  return BENCH_FAILED;
}

int file_fill(const char *path, uint64_t size)
{
  g_autofree char *block = g_malloc(BUFFER);
  int fd = file_sparse(path, size);

  for (uint64_t offset = 0; fd >= 0 && offset < size; offset += BUFFER) {
    pattern_fill(block, BUFFER, offset);
    if (pwrite(fd, block, BUFFER, (off_t)offset) != (ssize_t)BUFFER) {
      bench_fail_errno("%s: write", path);
      close(fd);
      return BENCH_FAILED;
    }
  }
  return fd;
}

char *file_map(int fd, uint64_t size, int flags)
{
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

  if (memory != MAP_FAILED)
    return memory;
  bench_fail_errno("mmap of %" G_GUINT64_FORMAT " bytes", size);
  return NULL;
}
