/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process-wide least-recently-used queue of idle layer descriptors. Descriptors in use are never
 * closed; idle ones are, when there are more than an eighth of RLIMIT_NOFILE (at most 128), or when
 * opening a file fails for lack of descriptors. A file is opened again as it was opened first: by the
 * same policy (basepath.h), and it must be the same file.
 */
#include "fdpool.h"

#include "error.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static GMutex pool_lock;
static GQueue idle = G_QUEUE_INIT;      /* least recently used first */
static unsigned pool_open;              /* descriptors that the pool may close at some time */

static unsigned pool_limit(void)
{
  static gsize limit;

  if (g_once_init_enter(&limit)) {
    struct rlimit r;
    gsize n = 128;

    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur != RLIM_INFINITY)
      n = CLAMP(r.rlim_cur / 8, 8, 128);
    g_once_init_leave(&limit, n);
  }
  return (unsigned)limit;
}

static void close_idle(struct layer *l)
{
  g_queue_unlink(&idle, &l->lru);
  l->idle = false;
  close(l->fd);
  l->fd = -1;
  pool_open--;
}

static void make_idle(struct layer *l)
{
  l->idle = true;
  g_queue_push_tail_link(&idle, &l->lru);
  while (pool_open > pool_limit() && !g_queue_is_empty(&idle))
    close_idle(g_queue_peek_head(&idle));
}

void fdpool_add(struct layer *l, int fd)
{
  g_mutex_lock(&pool_lock);
  l->fd = fd;
  if (!l->own_fd) {
    pool_open++;
    make_idle(l);
  }
  g_mutex_unlock(&pool_lock);
}

void fdpool_remove(struct layer *l)
{
  g_mutex_lock(&pool_lock);
  if (l->fd >= 0 && !l->own_fd) {
    if (!l->idle)
      g_queue_push_tail_link(&idle, &l->lru);
    close_idle(l);
  }
  g_mutex_unlock(&pool_lock);
}

static int open_again(struct layer *l)
{
  struct stat st;
  int fd;

  do {
    fd = base_path_open(&l->file, O_RDONLY, l->format == BASE_RAW, &st);
    if (fd >= 0 || (fd != -EMFILE && fd != -ENFILE) || g_queue_is_empty(&idle))
      break;
    close_idle(g_queue_peek_head(&idle));
  } while (true);
  if (fd < 0)
    return fd;
  if (st.st_dev != l->dev || st.st_ino != l->ino) {
    close(fd);
    return fail(ESTALE, "%s: was replaced by another file while it was open", l->file.path);
  }
  l->fd = fd;
  pool_open++;
  return 0;
}

int fdpool_get(struct layer *l)
{
  int ret = 0;

  if (l->own_fd)
    return l->fd;
  g_mutex_lock(&pool_lock);
  if (l->idle) {
    g_queue_unlink(&idle, &l->lru);
    l->idle = false;
  } else if (l->fd < 0) {
    ret = open_again(l);
  }
  if (ret == 0) {
    l->users++;
    ret = l->fd;
  }
  g_mutex_unlock(&pool_lock);
  return ret;
}

void fdpool_put(struct layer *l)
{
  if (l->own_fd)
    return;
  g_mutex_lock(&pool_lock);
  if (--l->users == 0)
    make_idle(l);
  g_mutex_unlock(&pool_lock);
}
