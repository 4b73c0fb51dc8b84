/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Workers; see worker.h. Program and worker talk over a pair of sockets: a byte that says what to do, and an
 * answer of fixed size. The program waits for answers with an eye on signals (interrupt.h).
 */
#include "worker.h"

#include "interrupt.h"
#include "process.h"
#include "workdir.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct answer {
  int status;
  struct sample sample;
  char text[1000];
};

/* ---- The worker's side ---- */

static void forget(struct sample *sample)
{
  for (int i = 0; i < METRICS; i++)
    sample->values[i] = NAN;
}

static int open_subject(struct subject *s, char **place)
{
  int result;

  if (s->task->place == PLACE_DIR)
    *place = g_strdup(s->dir);
  else if ((result = workdir_loop(s->dir, s->task->place, 4 * s->task->size + GIB, place)))
    return result;
  s->place = *place;
  return s->kind->open(s);
}

static int run_subject(struct subject *s, struct sample *sample)
{
  int result = s->kind->prepare ? s->kind->prepare(s) : BENCH_OK;

  if (!result)
    result = s->kind->run(s, sample);
  /* Some kinds know better, because what was measured has ended already. */
  if (!result && s->kind->memory && isnan(sample->values[METRIC_MEMORY]))
    process_memory(s->server, sample);
  s->run++;
  return result;
}

static int work(struct subject *s, int fd)
{
  g_autofree char *place = NULL;
  char command;

  while (read(fd, &command, 1) == 1) {
    struct answer answer = { .status = BENCH_OK };

    forget(&answer.sample);
    if (command == 'o')
      answer.status = open_subject(s, &place);
    else if (command == 'r')
      answer.status = run_subject(s, &answer.sample);
    else if (s->kind->close)
      s->kind->close(s);
    if (answer.status)
      g_strlcpy(answer.text, bench_message(), sizeof(answer.text));
    if (write(fd, &answer, sizeof(answer)) != sizeof(answer))
      return 1;
    if (command == 'c')
      return 0;
  }
  return 1;
}

static G_GNUC_NORETURN void be_worker(const struct settings *settings, const struct contender *contender,
                                      const char *dir, int fd)
{
  struct subject subject = {
    .settings = settings,
    .task = &contender->task,
    .kind = contender->kind,
    .dir = dir,
  };
  struct rlimit files;

  /* Chains of a thousand files are for those who can open them. */
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  signal(SIGINT, SIG_IGN); /* the program ends its workers */
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  if (contender->task.place != PLACE_DIR)
    g_unsetenv("PMEM_IS_PMEM_FORCE"); /* a page cache is no persistent memory */
  _exit(work(&subject, fd));
}

/* ---- The program's side ---- */

static void give_up(struct worker *worker, int status, const char *reason)
{
  worker->status = status;
  g_free(worker->reason);
  worker->reason = g_strdup(reason);
}

/* False: the worker is dead, or the program shall end. */
static bool wait_answer(struct worker *worker, struct answer *answer)
{
  size_t got = 0;

  while (got < sizeof(*answer)) {
    struct pollfd wait = { .fd = worker->fd, .events = POLLIN };
    ssize_t part;

    if (interrupt_requested())
      return false;
    if (interrupt_poll(&wait) < 0)
      continue;
    part = read(worker->fd, (char *)answer + got, sizeof(*answer) - got);
    if (part <= 0)
      return false;
    got += (size_t)part;
  }
  answer->text[sizeof(answer->text) - 1] = '\0';
  return true;
}

static void tell_death(struct worker *worker)
{
  g_autofree char *reason = NULL;
  int status = 0;

  kill(worker->pid, SIGKILL);
  while (waitpid(worker->pid, &status, 0) < 0 && errno == EINTR)
    ;
  worker->pid = 0;
  if (interrupt_requested())
    reason = g_strdup("interrupted");
  else if (WIFSIGNALED(status))
    reason = g_strdup_printf("its process died of signal %d (%s)", WTERMSIG(status),
                             strsignal(WTERMSIG(status)));
  else
    reason = g_strdup_printf("its process ended with status %d", WEXITSTATUS(status));
  give_up(worker, BENCH_FAILED, reason);
}

static void ask(struct worker *worker, char command, struct answer *answer)
{
  if (send(worker->fd, &command, 1, MSG_NOSIGNAL) != 1 || !wait_answer(worker, answer))
    tell_death(worker);
  else if (answer->status)
    give_up(worker, answer->status, answer->text);
}

void worker_begin(struct worker *worker, const struct settings *settings, const struct contender *contender,
                  const char *dir)
{
  struct answer answer;
  int ends[2] = { -1, -1 };
  uint64_t room = workdir_room(settings->dir);
  pid_t parent = getpid();

  *worker = (struct worker){ .contender = contender, .dir = g_strdup(dir), .fd = -1 };
  if (room < contender->needs + contender->needs / 16) {
    g_autofree char *wanted = g_format_size_full(contender->needs, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *there = g_format_size_full(room, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *reason = g_strdup_printf("needs %s in %s, where %s are free", wanted, settings->dir, there);

    give_up(worker, BENCH_SKIPPED, reason);
    return;
  }
  if (mkdir(dir, 0700) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) {
    give_up(worker, BENCH_FAILED, g_strerror(errno));
    return;
  }
  fflush(NULL);
  worker->pid = fork();
  if (worker->pid < 0) {
    give_up(worker, BENCH_FAILED, g_strerror(errno));
    close(ends[0]);
    close(ends[1]);
    return;
  }
  if (worker->pid == 0) {
    process_die_with(parent);
    close(ends[0]);
    be_worker(settings, contender, dir, ends[1]);
  }
  close(ends[1]);
  worker->fd = ends[0];
  ask(worker, 'o', &answer);
}

void worker_run(struct worker *worker, struct sample *sample)
{
  struct answer answer;

  forget(sample);
  if (worker->status)
    return;
  ask(worker, 'r', &answer);
  if (!worker->status)
    *sample = answer.sample;
}

void worker_end(struct worker *worker)
{
  struct answer answer;

  if (worker->pid > 0) {
    int status = worker->status;
    g_autofree char *reason = g_strdup(worker->reason);

    ask(worker, 'c', &answer);
    if (status)
      give_up(worker, status, reason);
  }
  if (worker->pid > 0)
    while (waitpid(worker->pid, NULL, 0) < 0 && errno == EINTR)
      ;
  worker->pid = 0;
  if (worker->fd >= 0)
    close(worker->fd);
  worker->fd = -1;
  workdir_clear(worker->dir);
}
