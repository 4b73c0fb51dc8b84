/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Serves events of a mapping. A first write: the pages around it become present, durably, then they
 * are mapped from the slot and the writer is woken; its store runs again and is the first to reach
 * the slot. Duplicate events are normal (signals, several threads on a page): what is already there
 * is only woken.
 *
 * The handler reads events and serves those that it can serve without waiting; the worker does the
 * rest (see mapstate.h for why there are two).
 */
#include "mapstate.h"

#include "error.h"
#include "uffd.h"
#include "vmabudget.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define EVENTS_AT_ONCE 16
#define WINDOW_MOST (HUGE_BYTES / PAGE_BYTES)
#define FACTOR_COPY 2u          /* growth of sequential first writes where there is something to copy … */
#define FACTOR_THIN 8u          /* … and where space is all that is needed */
#define WAIT_NSEC 20000000      /* between looks at whether the mapping ends */
#define STACK_BYTES (512u << 10)
#define READ_PAUSE 1000         /* µs */
#define FOLLOW_AFTER 32u        /* events of one thread */

/* What has to be done once nothing is locked any more. */
struct outcome {
  uint64_t first, end;          /* pages of the mapping to wake */
  int ret;
  bool later;                   /* for the worker */
  bool held;                    /* until pcow_mapping_resume() */
};

/* ---- First writes ---- */

/* Cuts [*first, *end) down to the pages around PAGE in which no bit is set. */
static void trim(const uint64_t *bits, uint64_t page, uint64_t *first, uint64_t *end)
{
  if (!bits)
    return;
  for (uint64_t at = *first; (at = bits_find(bits, at, page, true)) < page;)
    *first = at = bits_find(bits, at, page, false);
  *end = bits_find(bits, page, *end, true);
}

/* Sets DATA when something has to be copied for PAGE, ALL when anything lies beneath the unit; where holes
 * raise events nobody asks for more than the page. */
static int beneath(struct pcow_mapping *m, const struct unit *u, uint64_t page, bool *data, bool *all)
{
  uint64_t first = map_unit_first(m, u->number);
  g_auto(view_cursor) lower = head_lower(m->image->head);
  int ret;
  const struct run *r = view_cursor_at(&lower, first + page, &ret);

  *data = *all = r && r->kind == RUN_DATA;
  for (uint64_t at = first; r && !m->guarded && !*all && at < first + m->unit_pages;) {
    r = view_cursor_at(&lower, at, &ret);
    if (r) {
      *all = r->kind == RUN_DATA;
      at = r->page + r->count;
    }
  }
  return ret;
}

/* How much a fault on PAGE of a unit takes: as the stream goes on that it continues, else the granule;
 * but of a granule that has nothing yet the page alone, while there is room for the areas that this may
 * cost. So what is written here and there costs a page each, what is written nearby one more fault. */
static void choose_range(struct pcow_mapping *m, const struct unit *u, const struct map_unit *mu, uint64_t page,
                         unsigned factor, uint64_t *first, uint64_t *end)
{
  uint64_t pages = head_unit_pages(m->image->head, u->number);
  uint64_t window = window_find(m, map_unit_first(m, u->number) + page, 1, WINDOW_MOST, factor);

  *first = page & ~(m->granule - 1);
  *end = MIN(*first + m->granule, pages);
  if (window > 1)
    *end = MIN(MAX(*first + window, *end), pages);
  else if (m->adaptive && map_find(mu->writable, *first, *end, true) == *end && vmabudget_ample(m->areas)) {
    *first = page;
    *end = page + 1;
  }
}

static int publish(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, unsigned flags)
{
  struct head *h = m->image->head;
  struct head_counts counts = { 0, 0 };
  bool some = u->present && bits_find(u->present, first, end, true) < end;
  /* After a commit that failed on its way, the media may have what is present here as frozen. */
  int ret = store_check(m->image->store);

  /* A present page in a hole, after a discard or a sparse copy of the file, has no block yet. */
  if (ret == 0 && some && (flags & HEAD_RESERVE))
    ret = head_reserve_present(h, u, first, end);
  if (ret == 0)
    ret = head_publish(h, u, first, end, flags, &counts);
  if (ret == 0 && !m->flush_durable)    /* there the flush does */
    ret = head_settle_unit(h, u);
  if (ret == 0) {
    m->copied += counts.copied;
    m->reserved += counts.reserved;
  }
  return ret;
}

/* With nothing beneath and holes left to the file system the whole unit becomes shared at once. */
static int write_native(struct pcow_mapping *m, struct unit *u, uint64_t page, struct outcome *o)
{
  uint64_t first = 0, end = head_unit_pages(m->image->head, u->number);
  int ret;

  area_trim_lazy(m, u->number, page, &first, &end);
  ret = publish(m, u, first, end, 0);
  if (ret == 0)
    ret = area_join(m, u, first, end);
  o->first = first;
  o->end = end;
  return ret;
}

static int first_write(struct pcow_mapping *m, struct unit *u, uint64_t page, bool patient, struct outcome *o)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t zero = map_unit_first(m, u->number);
  uint64_t first, end;
  bool data = false, all = false;
  int ret = beneath(m, u, page, &data, &all);

  if (ret)
    return ret;
  if (!m->guarded && !all && map_find(mu->async, 0, m->unit_pages, true) == m->unit_pages)
    return write_native(m, u, page, o);
  choose_range(m, u, mu, page, data ? FACTOR_COPY : FACTOR_THIN, &first, &end);
  trim(mu->writable, page, &first, &end);
  trim(mu->dense, page, &first, &end);
  trim(mu->async, page, &first, &end);
  area_trim_lazy(m, u->number, page, &first, &end);
  ret = publish(m, u, first, end, HEAD_RESERVE);
  if (ret == -ENOSPC && end - first > 1) {
    first = page;
    end = page + 1;
    ret = publish(m, u, first, end, HEAD_RESERVE);
  }
  o->first = first;
  o->end = end;
  if (ret == 0)
    ret = area_share(m, u, first, end);
  if (ret == -ENOMEM && !patient)
    return -EAGAIN;
  if (ret == -ENOMEM) {
    o->first = 0;
    o->end = m->unit_pages;
    ret = merge_unit(m, u);
  }
  if (ret == 0)
    window_used(m, zero + page, zero + end);
  return ret;
}

/* A hole of a dense region was accessed, by a read, too: it gets space. */
static int dense_hole(struct pcow_mapping *m, struct unit *u, uint64_t page, struct outcome *o)
{
  struct map_unit *mu = map_unit_get(m, u->number);
  uint64_t zero = map_unit_first(m, u->number);
  uint64_t first, end;
  int ret;

  choose_range(m, u, mu, page, FACTOR_THIN, &first, &end);
  for (uint64_t at = page; at > first; at--)
    if (!map_test(mu->dense, at - 1))
      first = at;
  end = map_find(mu->dense, page, end, false);
  ret = head_reserve_present(m->image->head, u, first, end);
  if (ret == -ENOSPC && end - first > 1) {
    first = page;
    end = page + 1;
    ret = head_reserve_present(m->image->head, u, first, end);
  }
  o->first = first;
  o->end = end;
  if (ret)
    return ret;
  if (m->populate)
    madvise(map_address(m, zero + first), (end - first) * PAGE_BYTES, MADV_POPULATE_WRITE);
  m->reserved += end - first - (mu->writable ? bits_count(mu->writable, first, end) : 0);
  map_unit_set(m, &mu->writable, first, end);
  window_used(m, zero + page, zero + end);
  return 0;
}

/* ---- Without space ---- */

static bool contains(const GArray *pages, uint64_t page)
{
  for (unsigned i = 0; i < pages->len; i++)
    if (g_array_index(pages, uint64_t, i) == page)
      return true;
  return false;
}

/* The writer stays blocked until pcow_mapping_resume(). */
static void hold(struct pcow_mapping *m, uint64_t page)
{
  bool tell;

  g_mutex_lock(&m->lock);
  if (!contains(m->held, page))
    g_array_append_val(m->held, page);
  tell = !m->told;
  m->told = true;
  g_mutex_unlock(&m->lock);
  if (tell && m->nospace)
    m->nospace(m->opaque, m->image->path, page * PAGE_BYTES);
  else if (tell)
    log_message(PCOW_LOG_ERROR, "%s: a writer of the mapping at offset %" PRIu64 " is held: %s", m->image->path,
                page * PAGE_BYTES, error_message());
}

/* The page cannot be served: its writer is held where there is somebody to make space, else it gets
 * SIGBUS; held as well when even that takes one VMA too many. */
static void give_up(struct pcow_mapping *m, uint64_t page, bool locked, struct outcome *o)
{
  bool space = o->ret == -ENOSPC || o->ret == -ENOMEM;

  o->held = (m->nospace && space) || !area_lose(m, page, locked);
}

/* ---- One fault ---- */

/* The unit is locked. */
static void resolve(struct pcow_mapping *m, struct unit *u, const struct fault *f, uint8_t *buffer, bool patient,
                    struct outcome *o)
{
  uint64_t zero = map_unit_first(m, u->number), page = f->page - zero;
  struct map_unit *mu = map_unit_get(m, u->number);

  o->first = page;
  o->end = page + 1;
  if (map_test(mu->dense, page)) {
    m->write_faults++;
    o->ret = dense_hole(m, u, page, o);
  } else if (map_test(mu->writable, page) || map_test(mu->async, page)) {
    m->duplicates++;
  } else if (f->write) {
    /* While there are too many VMAs, writers wait until the worker has merged some. */
    if (!patient && vmabudget_pressed()) {
      o->later = true;
      return;
    }
    o->ret = first_write(m, u, page, patient, o);
    if (o->ret != -EAGAIN)
      m->write_faults++;
  } else if (map_test(mu->fill, page) && !map_test(mu->resident, page)) {
    o->ret = filling_read(m, u, u->number, page, buffer, patient);
    if (o->ret != -EAGAIN)
      m->fill_faults++;
  } else {
    m->duplicates++;
  }
  o->first += zero;
  o->end += zero;
  if (o->ret == -EAGAIN)
    o->later = true;
  else if (o->ret)
    give_up(m, f->page, true, o);
}

static void serve_writable(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, bool patient,
                           struct outcome *o)
{
  struct head *h = m->image->head;
  uint64_t unit = f->page >> m->unit_shift;
  struct lazy *z = area_lazy(m, f->page);
  struct unit *u;

  if (z && !patient) {
    o->later = true;
    return;
  }
  if (z) {
    o->ret = area_arm_lazy(m, z);
    if (o->ret)
      give_up(m, f->page, false, o);
    if (o->ret || !f->write)
      return;
  }
  u = patient ? head_lock_unit(h, unit, &o->ret) : head_trylock_unit(h, unit, &o->ret);
  if (!u) {
    o->later = o->ret == -EAGAIN;
    if (!o->later)
      give_up(m, f->page, false, o);
    return;
  }
  resolve(m, u, f, buffer, patient, o);
  head_unlock_unit(h, u);
}

static void serve_readonly(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, struct outcome *o)
{
  uint64_t unit = f->page >> m->unit_shift, page = f->page - map_unit_first(m, unit);
  struct map_unit *mu = map_unit_get(m, unit);

  if (map_test(mu->resident, page)) {
    m->duplicates++;
    return;
  }
  o->ret = filling_read(m, NULL, unit, page, buffer, true);
  m->fill_faults++;
  if (o->ret)
    give_up(m, f->page, true, o);
}

/* The worker waits for a structural operation to end, but not for pcow_unmap(), which waits for it. */
static bool lock_image(struct pcow_mapping *m, bool patient)
{
  while (pthread_rwlock_tryrdlock(&m->image->lock)) {
    struct timespec until;

    if (!patient || m->stopping)
      return false;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_NSEC;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_rwlock_timedrdlock(&m->image->lock, &until) == 0)
      return true;
  }
  return true;
}

/* False: to be served by the worker. */
static bool serve(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, bool patient)
{
  struct outcome o = { .first = f->page, .end = f->page + 1 };

  if (!lock_image(m, patient))
    return false;
  if (f->page < map_pages(m)) {
    if (m->writable)
      serve_writable(m, f, buffer, patient, &o);
    else
      serve_readonly(m, f, buffer, &o);
  }
  pthread_rwlock_unlock(&m->image->lock);
  if (o.later)
    return false;
  if (o.held) {
    hold(m, f->page);
    return true;
  }
  if (o.ret)
    log_message(PCOW_LOG_ERROR, "%s: access to the mapping at offset %" PRIu64 " gives SIGBUS: %s",
                m->image->path, f->page * PAGE_BYTES, error_message());
  uffd_wake(m->uffd, map_address(m, o.first), (o.end - o.first) * PAGE_BYTES);
  return true;
}

/* ---- Threads ---- */

static void hand_over(struct pcow_mapping *m, const struct fault *f)
{
  g_mutex_lock(&m->lock);
  g_queue_push_tail(&m->queue, g_memdup2(f, sizeof(*f)));
  g_cond_signal(&m->work);
  g_mutex_unlock(&m->lock);
}

static void *worker_main(void *argument)
{
  struct pcow_mapping *m = argument;
  struct fault *f;

  for (;;) {
    g_mutex_lock(&m->lock);
    while (g_queue_is_empty(&m->queue) && !m->stopping)
      g_cond_wait(&m->work, &m->lock);
    f = g_queue_pop_head(&m->queue);
    g_mutex_unlock(&m->lock);
    if (!f)
      return NULL;
    merge_relieve(m);
    serve(m, f, m->buffers + FILL_BUFFER, true);
    g_free(f);
  }
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
  if (!serve(m, &f, buffer, false))
    hand_over(m, &f);
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
 * CPU: to wake another one costs several times what a fault does. */
static void follow(uint32_t tid, const cpu_set_t *allowed)
{
  int cpu = cpu_of(tid);
  cpu_set_t there;

  if (cpu < 0 || cpu == sched_getcpu() || !CPU_ISSET(cpu, allowed))
    return;
  CPU_ZERO(&there);
  CPU_SET(cpu, &there);
  if (pthread_setaffinity_np(pthread_self(), sizeof(there), &there) == 0)
    pthread_setaffinity_np(pthread_self(), sizeof(*allowed), allowed);
}

static void *handler_main(void *argument)
{
  struct pcow_mapping *m = argument;
  cpu_set_t allowed;
  uint32_t tid = 0;
  unsigned in_turn = 0;
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
      in_turn = msgs[i].arg.pagefault.feat.ptid == tid ? in_turn + 1 : 0;
      tid = msgs[i].arg.pagefault.feat.ptid;
      if (in_turn % FOLLOW_AFTER == FOLLOW_AFTER - 1 && followed)
        follow(tid, &allowed);
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

int fault_start(struct pcow_mapping *m)
{
  const struct sched_param priority = { .sched_priority = 1 };
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
  ret = fault_thread(m, &m->handler, handler_main, "pcow-faults");
  if (ret) {
    g_mutex_lock(&m->lock);
    m->stopping = true;
    g_cond_signal(&m->work);
    g_mutex_unlock(&m->lock);
    pthread_join(m->worker, NULL);
    return ret;
  }
  pthread_setschedparam(m->handler, SCHED_FIFO, &priority);     /* where it is permitted */
  m->threads = true;
  return 0;
}

void fault_stop(struct pcow_mapping *m)
{
  if (m->threads) {
    (void)*(volatile uint8_t *)m->stop_page;
    pthread_join(m->handler, NULL);
    g_mutex_lock(&m->lock);
    m->stopping = true;
    g_cond_signal(&m->work);
    g_mutex_unlock(&m->lock);
    pthread_join(m->worker, NULL);
    m->threads = false;
  }
  if (m->stop_page)
    munmap(m->stop_page, PAGE_BYTES);
  m->stop_page = NULL;
  g_clear_pointer(&m->buffers, g_free);
}
