/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The beginning and the end of a process. A forked child has neither the maps nor the locks of its parent, but
 * the descriptors: it opens an image anew when it uses one. A program that is executed finds the descriptors
 * that were left to it. A process that ends closes its images, so that what was stored is in them.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* ---- fork ---- */

static void before_fork(void)
{
  pthread_mutex_lock(&run_structure);
  run_table_forking();
}

static void after_fork(void)
{
  run_table_forked(false);
  pthread_mutex_unlock(&run_structure);
}

/* What libpcow had in memory is left alone: its threads are gone, and its locks may be held. */
static void in_child(void)
{
  run_own_close_all();
  for (struct run_image *i = run_images(); i; i = i->next) {
    pthread_rwlock_init(&i->use, NULL);
    i->image = NULL;
    /* Nothing of it was inherited, but for a range that the program reserved. */
    i->fixed = false;
    run_maps_forget(i);
  }
  run_table_forked(true);
  run_reserve_forked();
  run_stdio_forked();
  pthread_mutex_init(&run_structure, NULL);
}

/* ---- exec ---- */

void run_life_exec(void)
{
  if (!run_own_process())
    return;
  for (struct run_image *i = run_images(); i; i = i->next) {
    run_image_park(i, true);
    run_content_sync_image(i);
  }
}

/* ---- exit ---- */

/* Other threads may be storing into a range that goes away: they are held, for the process ends. */
static void on_fault(int number)
{
  (void)number;
  for (;;)
    pause();
}

void run_life_exit(void)
{
  struct timespec until;

  if (!run_images() || !run_own_process())
    return;
  /* Not for ever: this may be a signal handler's doing, in the middle of one of our calls. */
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 5;
  if (pthread_mutex_timedlock(&run_structure, &until))
    return;
  if (run_maps_any()) {
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
  }
  for (struct run_image *i = run_images(); i; i = i->next) {
    if (pthread_rwlock_timedwrlock(&i->use, &until))
      continue;
    i->handles = 0;
    i->view_count = 0;
    run_image_idle(i);
    pthread_rwlock_unlock(&i->use);
  }
  pthread_mutex_unlock(&run_structure);
}

static void __attribute__((destructor)) at_exit(void)
{
  if (run_images())
    fflush(NULL);
  run_life_exit();
}

static void __attribute__((constructor)) at_start(void)
{
  struct dirent *entry;
  int error = errno;
  DIR *fds;

  run_table_begin();
  pthread_atfork(before_fork, after_fork, in_child);
  at_quick_exit(run_life_exit);
  fds = opendir("/proc/self/fd");
  while (fds && (entry = readdir(fds)))
    if (entry->d_name[0] != '.')
      run_open_adopt(atoi(entry->d_name));
  if (fds)
    closedir(fds);
  run_stdio_adopt();
  errno = error;
}

RUN_API void run_exit(int status) __asm__("_exit");
RUN_ALSO(_Exit, _exit);
RUN_API void run_exit(int status)
{
  run_life_exit();
  real()->_exit(status);
}

RUN_API int run_execve(const char *path, char *const *argv, char *const *envp) __asm__("execve");
RUN_API int run_execve(const char *path, char *const *argv, char *const *envp)
{
  run_life_exec();
  return real()->execve(path, argv, envp);
}

RUN_API int run_execv(const char *path, char *const *argv) __asm__("execv");
RUN_API int run_execv(const char *path, char *const *argv)
{
  run_life_exec();
  return real()->execve(path, argv, environ);
}

RUN_API int run_execvpe(const char *file, char *const *argv, char *const *envp) __asm__("execvpe");
RUN_API int run_execvpe(const char *file, char *const *argv, char *const *envp)
{
  run_life_exec();
  return real()->execvpe(file, argv, envp);
}

RUN_API int run_execvp(const char *file, char *const *argv) __asm__("execvp");
RUN_API int run_execvp(const char *file, char *const *argv)
{
  run_life_exec();
  return real()->execvpe(file, argv, environ);
}

#define ARGUMENTS_MOST 4096

/* The rest of a list of arguments that begins with FIRST; false: too long. */
static bool collect(va_list list, const char *first, char *argv[ARGUMENTS_MOST])
{
  unsigned n = 0;

  for (const char *each = first; n < ARGUMENTS_MOST; each = va_arg(list, const char *)) {
    argv[n++] = (char *)(uintptr_t)each;
    if (!each)
      return true;
  }
  errno = E2BIG;
  return false;
}

RUN_API int run_execl(const char *path, const char *first, ...) __asm__("execl");
RUN_API int run_execl(const char *path, const char *first, ...)
{
  char *argv[ARGUMENTS_MOST];
  va_list list;
  bool fits;

  va_start(list, first);
  fits = collect(list, first, argv);
  va_end(list);
  return fits ? run_execv(path, argv) : -1;
}

RUN_API int run_execlp(const char *file, const char *first, ...) __asm__("execlp");
RUN_API int run_execlp(const char *file, const char *first, ...)
{
  char *argv[ARGUMENTS_MOST];
  va_list list;
  bool fits;

  va_start(list, first);
  fits = collect(list, first, argv);
  va_end(list);
  return fits ? run_execvp(file, argv) : -1;
}

RUN_API int run_execle(const char *path, const char *first, ...) __asm__("execle");
RUN_API int run_execle(const char *path, const char *first, ...)
{
  char *argv[ARGUMENTS_MOST];
  char *const *envp = NULL;
  va_list list;
  bool fits;

  va_start(list, first);
  fits = collect(list, first, argv);
  if (fits)
    envp = va_arg(list, char *const *);
  va_end(list);
  return fits ? run_execve(path, argv, envp) : -1;
}

RUN_API int run_fexecve(int fd, char *const *argv, char *const *envp) __asm__("fexecve");
RUN_API int run_fexecve(int fd, char *const *argv, char *const *envp)
{
  run_life_exec();
  return real()->fexecve(fd, argv, envp);
}

RUN_API int run_execveat(int dirfd, const char *path, char *const *argv, char *const *envp, int flags)
  __asm__("execveat");
RUN_API int run_execveat(int dirfd, const char *path, char *const *argv, char *const *envp, int flags)
{
  run_life_exec();
  return real()->execveat(dirfd, path, argv, envp, flags);
}
