/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The threads that serve events of a mapping. The handler reads events and serves those that it can serve
 * without waiting, copies of a few pages among them; the worker does what has to wait, and merges (see mapstate.h
 * for why there are two). Copiers make large copies, so that everybody else's first writes are served meanwhile.
 * More than one handler is no faster: each event wakes all of them, and what they do needs the kernel's lock of
 * the address space (docs/performance.md).
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 16
#define STACK_BYTES (512u << 10)
#define READ_PAUSE 1000         /* µs */
#define FOLLOW_AFTER 32u        /* events of one thread; more where it was found to stay, */
#define FOLLOW_MOST 1024u       /* up to so many: to look where a thread is costs about as much as an event */

static void hand_over(struct pcow_mapping *m, const struct fault *f, struct fault_queue *q)
{
  g_mutex_lock(&m->lock);
  g_queue_push_tail(&q->faults, g_memdup2(f, sizeof(*f)));
  g_cond_signal(&q->more);
  g_mutex_unlock(&m->lock);
}

/* NULL: the end. */
static struct fault *take(struct pcow_mapping *m, struct fault_queue *q)
{
  struct fault *f;

  g_mutex_lock(&m->lock);
  while (g_queue_is_empty(&q->faults) && !m->stopping)
    g_cond_wait(&q->more, &m->lock);
  f = g_queue_pop_head(&q->faults);
  g_mutex_unlock(&m->lock);
  return f;
}

static void *worker_main(void *argument)
{
  struct pcow_mapping *m = argument;
  struct fault *f;

  while ((f = take(m, &m->waiting))) {
    merge_relieve(m);
    fault_serve(m, f, m->buffers + FILL_BUFFER, true);
    g_free(f);
  }
  return NULL;
}

/* Only first writes: nothing is filled. */
static void *copier_main(void *argument)
{
  struct pcow_mapping *m = argument;
  struct fault *f;

  while ((f = take(m, &m->copying))) {
    fault_serve(m, f, NULL, true);
    g_free(f);
  }
  return NULL;
}

/* False: the end. */
static bool handle(struct pcow_mapping *m, const struct uffd_msg *msg, uint8_t *buffer)
{
  uint64_t address = msg->arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1);
  struct fault f;

  /* Moved regions need nothing but that the event was read. */
  if (msg->event != UFFD_EVENT_PAGEFAULT)
    return true;
  if (address == (uintptr_t)m->stop_page) {
    /* Whoever ends the mapping waits for the page: without memory for it, it needs no event any more. */
    if (uffd_zero(m->uffd, m->stop_page, PAGE_BYTES))
      uffd_unregister(m->uffd, m->stop_page, PAGE_BYTES);
    return false;
  }
  if (address - (uintptr_t)m->base >= m->size)
    return true;
  m->faults++;
  f.page = (address - (uintptr_t)m->base) / PAGE_BYTES;
  f.write = msg->arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
  switch (fault_serve(m, &f, buffer, false)) {
  case SERVED:
    break;
  case SERVE_WAITING:
    hand_over(m, &f, &m->waiting);
    break;
  case SERVE_COPYING:
    hand_over(m, &f, m->copiers ? &m->copying : &m->waiting);
    break;
  }
  return true;
}

/* Where a thread ran last; -1: not known. */
static int cpu_of(uint32_t tid)
{
  char text[512], *at;
  int cpu = -1, fd;
  ssize_t n;

  g_snprintf(text, sizeof(text), "/proc/self/task/%u/stat", tid);
  fd = open(text, O_RDONLY | O_CLOEXEC);
  n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
  if (fd >= 0)
    close(fd);
  text[MAX(n, 0)] = '\0';
  at = strrchr(text, ')');      /* the name's end; field 39 counts from 1, the name is 2 */
  for (unsigned field = 2; at && field < 39; field++)
    at = strchr(at + 1, ' ');
  if (at)
    cpu = atoi(at + 1);
  return cpu;
}

/* A real-time thread stays where it is. When one thread raised many events in turn, the handler goes to its
 * CPU: to wake another one costs several times what a fault does. False: it was there. */
static bool follow(uint32_t tid, const cpu_set_t *allowed)
{
  int cpu = cpu_of(tid);
  cpu_set_t there;

  if (cpu < 0 || cpu == sched_getcpu() || !CPU_ISSET(cpu, allowed))
    return false;
  CPU_ZERO(&there);
  CPU_SET(cpu, &there);
  if (pthread_setaffinity_np(pthread_self(), sizeof(there), &there) == 0)
    pthread_setaffinity_np(pthread_self(), sizeof(*allowed), allowed);
  return true;
}

static void *handler_main(void *argument)
{
  struct pcow_mapping *m = argument;
  cpu_set_t allowed;
  uint32_t tid = 0;
  unsigned in_turn = 0, follow_after = FOLLOW_AFTER;
  bool followed;
  struct uffd_msg msgs[EVENTS_AT_ONCE];

  followed = pthread_getaffinity_np(pthread_self(), sizeof(allowed), &allowed) == 0;
  /* A blocking read wakes faster than poll or a spinning thread. */
  for (;;) {
    ssize_t n = read(m->uffd, msgs, sizeof(msgs));

    if (n < 0 && errno != EINTR)
      g_usleep(READ_PAUSE);     /* does not happen; if it does, the machine must not be taken for it */
    for (ssize_t i = 0; i < n / (ssize_t)sizeof(msgs[0]); i++) {
      if (!handle(m, &msgs[i], m->buffers))
        return NULL;
      if (msgs[i].arg.pagefault.feat.ptid != tid) {
        tid = msgs[i].arg.pagefault.feat.ptid;
        in_turn = 0;
        follow_after = FOLLOW_AFTER;
      }
      if (++in_turn >= follow_after && followed) {
        follow_after = follow(tid, &allowed) ? FOLLOW_AFTER : MIN(2 * follow_after, FOLLOW_MOST);
        in_turn = 0;
      }
    }
  }
}

int fault_thread(struct pcow_mapping *m, pthread_t *thread, void *(*run)(void *), const char *name)
{
  pthread_attr_t attr;
  sigset_t all, before;
  int error;

  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  error = pthread_create(thread, &attr, run, m);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  if (error)
    return fail_errno(error, "%s: cannot start a thread for the mapping", m->image->path);
  pthread_setname_np(*thread, name);
  return 0;
}

/* Where it is permitted. A guest waits for the thread, and has done without its CPU. */
static void prefer(pthread_t thread, int priority)
{
  const struct sched_param param = { .sched_priority = priority };

  pthread_setschedparam(thread, SCHED_FIFO, &param);
}

/* As many as there are CPUs to copy with; fewer when there are no more threads. The worker does without. */
static void start_copiers(struct pcow_mapping *m)
{
  unsigned wanted = CLAMP((unsigned)g_get_num_processors(), 1, COPIERS_MOST);

  while (m->writable && m->copiers < wanted &&
         fault_thread(m, &m->copier[m->copiers], copier_main, "pcow-copier") == 0)
    prefer(m->copier[m->copiers++], 1);
}

/* All but the handler. */
static void stop_waiting(struct pcow_mapping *m)
{
  g_mutex_lock(&m->lock);
  m->stopping = true;
  g_cond_broadcast(&m->waiting.more);
  g_cond_broadcast(&m->copying.more);
  g_mutex_unlock(&m->lock);
  pthread_join(m->worker, NULL);
  while (m->copiers)
    pthread_join(m->copier[--m->copiers], NULL);
}

int fault_start(struct pcow_mapping *m)
{
  int ret;

  if (m->uffd < 0)
    return 0;
  m->buffers = g_try_malloc(2 * FILL_BUFFER);
  if (!m->buffers)
    return fail(ENOMEM, "%s: no memory for the buffers of a mapping", m->image->path);
  m->stop_page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m->stop_page == MAP_FAILED) {
    m->stop_page = NULL;
    return fail_errno(errno, "%s: cannot map a page", m->image->path);
  }
  madvise(m->stop_page, PAGE_BYTES, MADV_DONTFORK);
  ret = uffd_register(m->uffd, m->stop_page, PAGE_BYTES, UFFD_MISSING);
  if (ret)
    return fail_errno(-ret, "%s: cannot register a page", m->image->path);
  ret = fault_thread(m, &m->worker, worker_main, "pcow-worker");
  if (ret)
    return ret;
  start_copiers(m);
  ret = fault_thread(m, &m->handler, handler_main, "pcow-faults");
  if (ret) {
    stop_waiting(m);
    return ret;
  }
  prefer(m->handler, 2);
  m->threads = true;
  return 0;
}

void fault_stop(struct pcow_mapping *m)
{
  if (m->threads) {
    (void)*(volatile uint8_t *)m->stop_page;
    pthread_join(m->handler, NULL);
    stop_waiting(m);
    m->threads = false;
  }
  if (m->stop_page)
    munmap(m->stop_page, PAGE_BYTES);
  m->stop_page = NULL;
  g_clear_pointer(&m->buffers, g_free);
}
