/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fresh pages with their content in one step. A hole of a file on tmpfs that is given space, then
 * cleared, then mapped, then copied to is gone through four times; UFFDIO_COPY makes a page with its
 * content and maps it at once. For that the file has mappings of its own, *stages*, registered with a
 * userfaultfd that nobody reads: no access but these calls ever reaches a hole through them.
 *
 * Where that is not possible (another file system, no userfaultfd, a page that is there already, no
 * space) the caller has to do it step by step, and learns what is wrong in doing so.
 */
#include "persiststate.h"

#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STAGE_SHIFT 36
#define STAGE_BYTES (UINT64_C(1) << STAGE_SHIFT)
#define USER_MODE_ONLY 1        /* needs no privilege; and nothing is to be read from it */

/* -1: not possible here. The lock is held. */
static int open_stages(struct persist *p)
{
  struct uffdio_api api = { .api = UFFD_API };
  int fd = -1;

  if (p->mode == PERSIST_PMEM && persist_is_tmpfs(p->fd))
    fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | USER_MODE_ONLY);
  if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
    close(fd);
    fd = -1;
  }
  return fd;
}

/* The lock is held. */
static char *add_stage(struct persist *p, uint64_t number)
{
  void *base = mmap(NULL, STAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, p->fd,
                    (off_t)(number << STAGE_SHIFT));

  if (base == MAP_FAILED)
    return NULL;
  madvise(base, STAGE_BYTES, MADV_DONTFORK);
  madvise(base, STAGE_BYTES, MADV_DONTDUMP);
  if (uffd_register(p->stage_fd, base, STAGE_BYTES, UFFD_MISSING)) {
    munmap(base, STAGE_BYTES);
    return NULL;
  }
  g_hash_table_insert(p->stages, GSIZE_TO_POINTER((gsize)number + 1), base);
  return base;
}

/* Where OFFSET of the file lies on a stage. *LENGTH is lowered to what is contiguous there. NULL: there
 * are none. */
static char *stage_get(struct persist *p, uint64_t offset, uint64_t *length)
{
  uint64_t within = offset & (STAGE_BYTES - 1);
  char *base = NULL;

  g_mutex_lock(&p->lock);
  if (!p->stages) {
    p->stages = g_hash_table_new(NULL, NULL);
    p->stage_fd = open_stages(p);
  }
  if (p->stage_fd >= 0) {
    base = g_hash_table_lookup(p->stages, GSIZE_TO_POINTER((gsize)(offset >> STAGE_SHIFT) + 1));
    if (!base)
      base = add_stage(p, offset >> STAGE_SHIFT);
  }
  g_mutex_unlock(&p->lock);
  *length = MIN(*length, STAGE_BYTES - within);
  return base ? base + within : NULL;
}

static int media_fill(struct persist *p, uint64_t offset, char *target, const char *source, uint64_t length)
{
  uint64_t done = 0;
  int ret;

  watch_begin(p);
  ret = source ? uffd_copy(p->stage_fd, target, source, length, false, &done)
               : uffd_zero(p->stage_fd, target, length);
  if (p->watched && source && done)
    persist_watch->store(p->watched, offset, source, done, false);
  if (ret == 0 && source)
    media_flush(p, offset, target, length);
  watch_end(p);
  return ret;
}

int persist_fill(struct persist *p, uint64_t offset, const void *source, uint64_t length)
{
  const char *from = source;

  while (length) {
    uint64_t n = length;
    char *target = stage_get(p, offset, &n);

    if (!target || media_fill(p, offset, target, from, n))
      return -EAGAIN;
    count(&p->copies, from != NULL);
    count(&p->copied_bytes, from ? n : 0);
    count(&p->block_changes, 1);
    offset += n;
    from = from ? from + n : NULL;
    length -= n;
  }
  return 0;
}

static void unmap_stage(gpointer key, gpointer base, gpointer opaque)
{
  (void)key;
  (void)opaque;
  munmap(base, STAGE_BYTES);
}

void persist_close_stages(struct persist *p)
{
  if (!p->stages)
    return;
  g_hash_table_foreach(p->stages, unmap_stage, NULL);
  g_hash_table_unref(p->stages);
  if (p->stage_fd >= 0)
    close(p->stage_fd);
}
