/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which descriptors are of images. Descriptors of other files cost one load, without a lock, so that the
 * program may use them wherever it could before, in signal handlers for instance. A descriptor may be closed past
 * this library, by fclose(3) for instance, and its number be another file's: whoever asks gets the handle only
 * while it is a placeholder.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static _Atomic(struct run_handle *) table[RUN_FD_MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int most;                /* no descriptor above it was ever of an image */
static pid_t owner;             /* 0: the library has not begun */

bool run_own_process(void)
{
  return !owner || owner == getpid();
}

void run_table_begin(void) { owner = getpid(); }

bool run_table_has(int fd)
{
  return fd >= 0 && fd < RUN_FD_MOST && atomic_load_explicit(&table[fd], memory_order_acquire);
}

static bool is_placeholder(int fd)
{
  int error = errno, flags = real()->fcntl64(fd, F_GETFL);

  errno = error;
  return flags >= 0 && (flags & O_ACCMODE) == RUN_ACCESS_NONE;
}

/* FD is none of HANDLE any more, if it is not another one's by now. */
static void forget(int fd, struct run_handle *handle)
{
  bool was;

  pthread_mutex_lock(&lock);
  was = table[fd] == handle;
  if (was)
    table[fd] = NULL;
  pthread_mutex_unlock(&lock);
  if (was)
    run_table_put(handle);
}

struct run_handle *run_table_get(int fd)
{
  struct run_handle *handle;

  if (!run_table_has(fd))
    return NULL;
  pthread_mutex_lock(&lock);
  handle = table[fd];
  if (handle)
    handle->uses++;
  pthread_mutex_unlock(&lock);
  if (!handle || is_placeholder(fd))
    return handle;
  if (run_own_process())
    forget(fd, handle);
  run_table_put(handle);
  return NULL;
}

bool run_table_is(int fd)
{
  struct run_handle *handle = run_table_get(fd);

  if (handle)
    run_table_put(handle);
  return handle;
}

int run_table_put(struct run_handle *handle)
{
  bool last;
  int ret;

  pthread_mutex_lock(&lock);
  last = --handle->uses == 0;
  pthread_mutex_unlock(&lock);
  if (!last)
    return 0;
  ret = run_image_close(handle->image);
  pthread_mutex_destroy(&handle->position);
  free(handle);
  return ret;
}

void run_table_set(int fd, struct run_handle *handle)
{
  struct run_handle *old;

  pthread_mutex_lock(&lock);
  handle->uses++;
  if (fd > most)
    most = fd;
  old = atomic_exchange(&table[fd], handle);
  pthread_mutex_unlock(&lock);
  if (old)
    run_table_put(old);
}

int run_table_clear(int fd)
{
  struct run_handle *old;

  if (!run_table_has(fd))
    return 0;
  pthread_mutex_lock(&lock);
  old = atomic_exchange(&table[fd], NULL);
  pthread_mutex_unlock(&lock);
  return old ? run_table_put(old) : 0;
}

int run_table_next(int fd)
{
  while (fd <= most && fd < RUN_FD_MOST && !run_table_has(fd))
    fd++;
  return fd <= most ? fd : RUN_FD_MOST;
}

struct run_handle *run_handle_new(struct run_image *image, bool readable, bool writable)
{
  struct run_handle *handle = calloc(1, sizeof(*handle));

  if (!handle)
    return NULL;
  handle->image = image;
  handle->readable = readable;
  handle->writable = writable;
  pthread_mutex_init(&handle->position, NULL);
  return handle;
}

void run_table_forking(void) { pthread_mutex_lock(&lock); }

void run_table_forked(bool child)
{
  if (!child) {
    pthread_mutex_unlock(&lock);
    return;
  }
  /* Threads that were in a call are not there any more. */
  pthread_mutex_init(&lock, NULL);
  owner = getpid();
  for (int fd = 0; fd <= most; fd++)
    if (table[fd])
      pthread_mutex_init(&table[fd]->position, NULL);
}
