/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Children through vfork and exec, and what /proc says of them; see process.h.
 */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

char *process_find(const char *program)
{
  static const char *const more[] = { "/usr/sbin", "/sbin", "/usr/local/sbin" };
  char *path = g_find_program_in_path(program);

  for (gsize i = 0; !path && i < G_N_ELEMENTS(more); i++) {
    path = g_build_filename(more[i], program, NULL);
    if (access(path, X_OK))
      g_clear_pointer(&path, g_free);
  }
  return path;
}

int process_needs(const char *program)
{
  g_autofree char *path = process_find(program);

  return path ? BENCH_OK : bench_skip("%s is not installed", program);
}

void process_die_with(pid_t parent)
{
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent)
    _exit(127);
}

/* ERRORS is a descriptor, closed here. */
static int start(const char *const *argv, int input, int output, int errors, pid_t *pid)
{
  g_autofree char *path = process_find(argv[0]);
  pid_t parent = getpid();

  if (!path)
    return bench_skip("%s is not installed", argv[0]);
  /* A fork would copy the page tables of the bench, which is none of what a command costs. */
  *pid = vfork();
  if (*pid < 0)
    return bench_fail_errno("vfork");
  if (*pid == 0) {
    sigset_t none;

    process_die_with(parent);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < NSIG; number++)
      signal(number, SIG_DFL);
    dup2(input, 0);
    dup2(output, 1);
    dup2(errors, 2);
    execv(path, (char *const *)(uintptr_t)argv);
    _exit(127);
  }
  return BENCH_OK;
}

/* The last line that is not empty, or NULL. */
static char *last_line(const char *text)
{
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

  for (guint i = g_strv_length(lines); i > 0; i--)
    if (*g_strstrip(lines[i - 1]))
      return g_strdup(lines[i - 1]);
  return NULL;
}

static void read_both(int out, int err, GString *output, GString *errors)
{
  struct pollfd polls[2] = { { .fd = out, .events = POLLIN }, { .fd = err, .events = POLLIN } };
  GString *texts[2] = { output, errors };
  char buffer[4096];

  while (polls[0].fd >= 0 || polls[1].fd >= 0) {
    if (poll(polls, 2, -1) < 0 && errno != EINTR)
      return;
    for (int i = 0; i < 2; i++) {
      ssize_t got;

      if (polls[i].fd < 0 || !polls[i].revents)
        continue;
      got = read(polls[i].fd, buffer, sizeof(buffer));
      if (got > 0)
        g_string_append_len(texts[i], buffer, got);
      else if (got == 0 || errno != EINTR)
        polls[i].fd = -1;
    }
  }
}

static int run(const char *const *argv, int input, char **output, uint64_t *nanoseconds)
{
  g_autoptr(GString) out_text = g_string_new(NULL);
  g_autoptr(GString) error_text = g_string_new(NULL);
  int out[2], err[2], status = 0, result;
  uint64_t begin;
  pid_t pid;

  if (pipe2(out, O_CLOEXEC))
    return bench_fail_errno("pipe");
  if (pipe2(err, O_CLOEXEC)) {
    close(out[0]);
    close(out[1]);
    return bench_fail_errno("pipe");
  }
  begin = now_ns();
  result = start(argv, input, out[1], err[1], &pid);
  close(out[1]);
  close(err[1]);
  if (!result) {
    read_both(out[0], err[0], out_text, error_text);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
      ;
    if (nanoseconds)
      *nanoseconds = now_ns() - begin;
  }
  close(out[0]);
  close(err[0]);
  if (result)
    return result;
  if (!WIFEXITED(status) || WEXITSTATUS(status)) {
    g_autofree char *said = last_line(error_text->len ? error_text->str : out_text->str);

    return bench_fail("%s failed: %s", argv[0], said ? said : "it says nothing");
  }
  if (output)
    *output = g_strdup(out_text->str);
  return BENCH_OK;
}

int process_run(const char *const *argv, char **output, uint64_t *nanoseconds)
{
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int result = run(argv, null, output, nanoseconds);

  close(null);
  return result;
}

int process_feed(const char *const *argv, const char *input)
{
  int fd = memfd_create("pcow-bench-input", MFD_CLOEXEC);
  size_t length = strlen(input);
  int result;

  if (fd < 0 || write(fd, input, length) != (ssize_t)length || lseek(fd, 0, SEEK_SET))
    result = bench_fail_errno("memfd");
  else
    result = run(argv, fd, NULL, NULL);
  if (fd >= 0)
    close(fd);
  return result;
}

int process_start(const char *const *argv, const char *errors, struct process *process)
{
  int to[2], from[2], err, result;

  if (pipe2(to, O_CLOEXEC))
    return bench_fail_errno("pipe");
  if (pipe2(from, O_CLOEXEC)) {
    close(to[0]);
    close(to[1]);
    return bench_fail_errno("pipe");
  }
  err = open(errors ? errors : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  result = start(argv, to[0], from[1], err, &process->pid);
  close(to[0]);
  close(from[1]);
  if (err >= 0)
    close(err);
  if (result) {
    close(to[1]);
    close(from[0]);
    process->pid = 0;
    return result;
  }
  process->to = to[1];
  process->from = from[0];
  return BENCH_OK;
}

bool process_alive(struct process *process)
{
  return process->pid > 0 && waitpid(process->pid, NULL, WNOHANG) == 0;
}

void process_stop(struct process *process)
{
  if (process->pid <= 0)
    return;
  close(process->to);
  close(process->from);
  kill(process->pid, SIGTERM); /* it unmounts what it has mounted */
  for (int i = 0; i < 500; i++) {
    if (waitpid(process->pid, NULL, WNOHANG) != 0) {
      process->pid = 0;
      return;
    }
    g_usleep(10000);
  }
  kill(process->pid, SIGKILL);
  waitpid(process->pid, NULL, 0);
  process->pid = 0;
}

void process_memory(pid_t pid, struct sample *sample)
{
  g_autofree char *name =
      pid ? g_strdup_printf("/proc/%d/status", (int)pid) : g_strdup("/proc/self/status");
  g_autofree char *maps = pid ? g_strdup_printf("/proc/%d/maps", (int)pid) : g_strdup("/proc/self/maps");
  FILE *file = fopen(name, "re");
  uint64_t sum = 0, value;
  char line[512];

  if (!file)
    return;
  while (fgets(line, sizeof(line), file))
    if (sscanf(line, "RssAnon: %" SCNu64 " kB", &value) == 1 ||
        sscanf(line, "VmPTE: %" SCNu64 " kB", &value) == 1)
      sum += value * KIB;
  fclose(file);
  sample->values[METRIC_MEMORY] = (double)sum;

  file = fopen(maps, "re");
  value = 0;
  while (file && fgets(line, sizeof(line), file))
    value += strchr(line, '\n') != NULL;
  if (file)
    fclose(file);
  sample->values[METRIC_VMAS] = (double)value;
}

void memory_warm(uint64_t bytes)
{
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (memory == MAP_FAILED)
    return;
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  for (uint64_t i = 0; i < bytes; i += PAGE)
    ((volatile char *)memory)[i] = 1;
  munmap(memory, bytes);
}
