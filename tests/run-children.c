/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The checks of run-calls that are about processes: what a child has of an image, by fork, vfork, spawning and
 * exec, and what is in the image when a process ends, in whatever way.
 */
#undef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64

#include "run-calls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A child's exit status; it ends by exit(), as programs do. */
static int in_child(void (*run)(void))
{
  int status;
  pid_t pid = fork();

  CHECK(pid >= 0);
  if (pid == 0) {
    run();
    exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

/* Given as standard input, in whatever way, it is the image's content. */
void check_content(void)
{
  CHECK(byte_at(0, 0) == 'A' && lseek(0, 0, SEEK_END) == SIZE);
  FAILS(syscall(SYS_read, 0, &(char){ 0 }, 1), EBADF);
}

static void waited(pid_t pid)
{
  int status;

  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

/* Children that share the memory of their parent until they are another program open the image for that. */
void check_spawn(void)
{
  char name[] = "run-calls", check[] = "content", *argv[] = { name, check, (char *)(uintptr_t)image, NULL };
  posix_spawn_file_actions_t actions;
  pid_t pid = vfork();

  if (pid == 0) {
    int fd = open(image, O_RDWR);

    if (dup2(fd, 0) == 0 && open(image, O_WRONLY | O_TRUNC) < 0 && errno == ENOTSUP)
      execv("/proc/self/exe", argv);
    _exit(1);
  }
  waited(pid);
  CHECK(posix_spawn_file_actions_init(&actions) == 0);
  CHECK(posix_spawn_file_actions_addopen(&actions, 0, image, O_WRONLY | O_TRUNC, 0) == ENOTSUP);
  CHECK(posix_spawn_file_actions_addopen(&actions, 0, image, O_RDWR, 0) == 0);
  CHECK(posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ) == 0);
  waited(pid);
  CHECK(byte_at(open_image(O_RDONLY), 0) == 'A');
}

static int shared_fd;

static void child_busy(void)
{
  FAILS(pread(shared_fd, &(char){ 0 }, 1, 0), EBUSY);
}

static void child_writes(void)
{
  CHECK(pwrite(shared_fd, "D", 1, 8192) == 1);
  CHECK(lseek(shared_fd, 77, SEEK_SET) == 77);
}

static void child_reads(void)
{
  CHECK(byte_at(shared_fd, 0) == 'A');
}

static void child_leaves(void)
{
  /* Nothing of this process is the parent's: it may close and end as it likes. */
  closefrom(3);
  _exit(0);
}

/* A child has the descriptors, but neither the parent's maps nor its locks. */
void check_fork(void)
{
  uint8_t *map;
  int fd;

  shared_fd = open_image(O_RDONLY);
  CHECK(in_child(child_reads) == 0);
  CHECK(close(shared_fd) == 0);
  /* Nobody has used it yet: it is the child's. */
  shared_fd = fd = open_image(O_RDWR);
  CHECK(in_child(child_reads) == 0);
  CHECK(pwrite(fd, "A", 1, 0) == 1);
  CHECK(in_child(child_busy) == 0);
  map = map_image(fd);
  map[0] = 'F';
  CHECK(in_child(child_busy) == 0);
  CHECK(in_child(child_leaves) == 0);
  map[4096] = 'F';
  CHECK(fsync(fd) == 0 && map[8192] == 'A');
}

/* The parent ends, and its child, forked while the image was mapped, goes on with it: what it inherited must
 * not lock it out. MORE is a file that says that it is done. */
void check_daemon(void)
{
  char byte;
  int pipes[2];

  shared_fd = open_image(O_RDWR);
  map_image(shared_fd)[0] = 'D';
  CHECK(pipe(pipes) == 0);
  if (fork()) {
    CHECK(fsync(shared_fd) == 0);
    exit(0);
  }
  close(pipes[1]);
  for (int n = 0; n < 1000 && pread(shared_fd, &byte, 1, 0) != 1; n++) {
    CHECK(errno == EBUSY);
    usleep(10000);
  }
  CHECK(byte == 'D');
  child_writes();
  CHECK(close(shared_fd) == 0);
  CHECK(close(open(more, O_CREAT | O_WRONLY, 0600)) == 0);
}

/* A child that only lives on holds neither the image nor its base, when its parent has ended. MORE: a file whose
 * removal ends it. */
void check_orphan(void)
{
  shared_fd = open_image(O_RDWR);
  map_image(shared_fd)[0] = 'O';
  if (fork())
    exit(0);
  fclose(stdin);
  CHECK(close(1) == 0 && close(2) == 0);        /* nobody waits for what it may say */
  for (int n = 0; n < 3000 && access(more, F_OK) == 0; n++)
    usleep(10000);
}

/* What a child wrote is there for whoever shares the descriptor; so is the position. */
void check_handed(void)
{
  pid_t pid;
  int status;

  /* The image is not used here, only handed on: by this process it was got through exec. */
  shared_fd = 9;
  pid = fork();
  if (pid == 0) {
    child_writes();
    exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(lseek(9, 0, SEEK_CUR) == 77);
  CHECK(byte_at(9, 8192) == 'D');
}

void check_exec(void)
{
  char name[] = "run-calls", check[] = "handed", *argv[] = { name, check, (char *)(uintptr_t)image, NULL };
  int fd = open_image(O_RDWR);

  CHECK(pwrite(fd, "E", 1, 0) == 1);
  CHECK(lseek(fd, 5, SEEK_SET) == 5);
  CHECK(fd == 9 || (dup2(fd, 9) == 9 && close(fd) == 0));
  if (more)
    execveat(AT_FDCWD, "/proc/self/exe", argv, environ, 0);
  else
    execl("/proc/self/exe", "run-calls", "handed", image, NULL);
  fail_at(__FILE__, __LINE__, "execl");
}

/* A child by vfork(2) shares the memory, and with it this library's tables. */
void check_vfork(void)
{
  int fd = open_image(O_RDWR), status;
  pid_t pid = vfork();

  if (pid == 0) {
    close(fd);
    closefrom(3);
    _exit(0);
  }
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(pwrite(fd, "V", 1, 0) == 1 && byte_at(fd, 0) == 'V');
  CHECK(system("true") == 0);
  CHECK(fsync(fd) == 0);
}

/* What was made durable survives a kill, in each of the ways in which it can be. */
void check_synced(void)
{
  int fd = open_image(O_RDWR), dsync = open_image(O_WRONLY | O_DSYNC);
  uint8_t *map;

  CHECK(pwrite(fd, "1", 1, 0) == 1 && fdatasync(fd) == 0);
  CHECK(pwrite(dsync, "2", 1, 4096) == 1);
  map = map_image(fd);
  map[2 * 4096] = '3';
  CHECK(msync(map, SIZE, MS_SYNC) == 0);
  map[3 * 4096] = '4';
  CHECK(fsync(dup(fd)) == 0);
  map[4 * 4096] = '5';
  sync();
  map[3 * 4096 + 1] = '6';      /* again in a page that was flushed */
  CHECK(fdatasync(dsync) == 0);
  map[5 * 4096] = '7';
  CHECK(msync(map + 5 * 4096, 4096, MS_SYNC) == 0);
  kill(getpid(), SIGKILL);
}

static uint8_t *stored;

static volatile bool never;

static void *store(void *opaque)
{
  unsigned seed = 1;

  while (!never) {
    seed = seed * 1103515245 + 12345;
    stored[seed % (SIZE - 4096) + 4096] = 'T';
  }
  return opaque;
}

/* A process ends as it wanted to, whoever is still storing; what was stored before is in the image. */
void check_exit(void)
{
  pthread_t thread;

  stored = map_image(open_image(O_RDWR));
  stored[0] = 'X';
  for (int n = 0; n < 3; n++)
    CHECK(pthread_create(&thread, NULL, store, NULL) == 0);
  usleep(20000);
  if (more && strcmp(more, "quick") == 0)
    quick_exit(7);
  if (more)
    _exit(7);
  exit(7);
}

/* Has it open for writing and says so, until its input ends. */
void check_hold(void)
{
  CHECK(pwrite(open_image(O_RDWR), "A", 1, 0) == 1);
  puts("held");
  fflush(stdout);
  while (getchar() != EOF)
    ;
}

void check_busy(void) { FAILS(open(image, more ? O_RDONLY : O_RDWR), EBUSY); }
