/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making and removing what a run leaves on file systems; see workdir.h. The janitor holds the reading end of a
 * pipe whose writing end every other process of the run has inherited: it reads the end of file when the last
 * of them has ended, by whatever signal.
 */
#include "workdir.h"

#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <mntent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

static pid_t janitor;
static int janitor_pipe = -1;

/* ---- Removing ---- */

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
  (void)info;
  (void)type;
  (void)ftw;
  remove(path);
  return 0;
}

static void unmount_beneath(const char *dir)
{
  g_autofree char *prefix = g_strconcat(dir, "/", NULL);
  g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);
  FILE *mounts = setmntent("/proc/self/mounts", "re");
  struct mntent *entry;

  if (!mounts)
    return;
  while ((entry = getmntent(mounts)))
    if (g_str_has_prefix(entry->mnt_dir, prefix))
      g_ptr_array_add(found, g_strdup(entry->mnt_dir));
  endmntent(mounts);
  for (guint i = found->len; i > 0; i--) {
    const char *path = g_ptr_array_index(found, i - 1);

    if (umount2(path, 0) && umount2(path, MNT_DETACH))
      process_run(PROCESS_ARGS("fusermount3", "-u", "-z", path), NULL, NULL);
  }
}

void workdir_clear(const char *dir)
{
  unmount_beneath(dir);
  nftw(dir, remove_entry, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/* ---- The janitor ---- */

static void be_janitor(const char *dir, int fd)
{
  char byte;

  setsid(); /* a terminal's signals are not for it */
  for (int number = 1; number < NSIG; number++)
    if (number != SIGCHLD)
      signal(number, SIG_IGN);
  prctl(PR_SET_NAME, "bench-janitor");
  while (read(fd, &byte, 1) < 0 && errno == EINTR)
    ;
  workdir_clear(dir);
  _exit(0);
}

static int start_janitor(const char *dir)
{
  int ends[2];

  if (pipe(ends)) /* inherited by programs, too: they are waited for */
    return bench_fail_errno("pipe");
  janitor = fork();
  if (janitor < 0)
    return bench_fail_errno("fork");
  if (janitor == 0) {
    int null = open("/dev/null", O_RDWR);

    close(ends[1]);
    dup2(null, 0); /* whoever reads our output must not wait for the janitor */
    dup2(null, 1);
    dup2(null, 2);
    be_janitor(dir, ends[0]);
  }
  close(ends[0]);
  janitor_pipe = ends[1];
  return BENCH_OK;
}

void workdir_end(void)
{
  if (janitor <= 0)
    return;
  close(janitor_pipe);
  waitpid(janitor, NULL, 0);
  janitor = 0;
}

int workdir_make(const char *parent, char **dir)
{
  g_autofree char *made = NULL;

  if (!parent)
    parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : g_get_tmp_dir();
  made = g_build_filename(parent, "pcow-bench.XXXXXX", NULL);
  if (!mkdtemp(made))
    return bench_fail_errno("%s: cannot make a directory there", parent);
  *dir = realpath(made, NULL); /* as /proc/self/mounts has it */
  if (!*dir)
    return bench_fail_errno("%s", made);
  if (start_janitor(*dir)) {
    rmdir(*dir);
    return BENCH_FAILED;
  }
  /* After the janitor has begun, which must not keep the namespace alive. Without the permission, mounts are
   * ended by hand. */
  if (geteuid() == 0 && unshare(CLONE_NEWNS) == 0)
    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
  return BENCH_OK;
}

/* ---- Room ---- */

bool workdir_is_tmpfs(const char *dir)
{
  struct statfs info;

  return statfs(dir, &info) == 0 && info.f_type == TMPFS_MAGIC;
}

static uint64_t memory_available(void)
{
  FILE *file = fopen("/proc/meminfo", "re");
  uint64_t value = 0;
  char line[256];

  while (file && fgets(line, sizeof(line), file))
    if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &value) == 1)
      break;
  if (file)
    fclose(file);
  return value * KIB;
}

uint64_t workdir_room(const char *dir)
{
  struct statvfs info;
  uint64_t room;

  if (statvfs(dir, &info))
    return 0;
  room = (uint64_t)info.f_bavail * info.f_frsize;
  return workdir_is_tmpfs(dir) ? MIN(room, memory_available()) : room;
}

static uint64_t blocks_sum;

static int add_blocks(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
  (void)path;
  (void)ftw;
  if (type == FTW_F)
    blocks_sum += (uint64_t)info->st_blocks * 512;
  return 0;
}

uint64_t workdir_blocks(const char *path)
{
  blocks_sum = 0;
  nftw(path, add_blocks, 32, FTW_PHYS | FTW_MOUNT);
  return blocks_sum;
}

/* ---- Loop mounts ---- */

int workdir_loop(const char *dir, enum place place, uint64_t size, char **where)
{
  bool xfs = place == PLACE_XFS;
  const char *type = xfs ? "xfs" : "ext4";
  const char *mkfs = xfs ? "mkfs.xfs" : "mkfs.ext4";
  g_autofree char *image = g_strdup_printf("%s/%s.img", dir, type);
  g_autofree char *point = g_strdup_printf("%s/%s", dir, type);
  struct statfs info;
  int fd, result;

  if (place == PLACE_DIR ||
      (statfs(dir, &info) == 0 && info.f_type == (xfs ? XFS_SUPER_MAGIC : EXT4_SUPER_MAGIC))) {
    *where = g_strdup(dir);
    return BENCH_OK;
  }
  if (geteuid() != 0)
    return bench_skip("mounting a loop device with %s needs root; --dir on %s does without", type, type);
  if ((result = process_needs(mkfs)) || (result = process_needs("mount")))
    return result;
  fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 || ftruncate(fd, (off_t)MAX(size, 384 * MIB)) || mkdir(point, 0700)) {
    result = bench_fail_errno("%s", image);
    if (fd >= 0)
      close(fd);
    return result;
  }
  close(fd);
  result = xfs ? process_run(PROCESS_ARGS(mkfs, "-q", image), NULL, NULL)
               : process_run(PROCESS_ARGS(mkfs, "-q", "-F", image), NULL, NULL);
  if (result || process_run(PROCESS_ARGS("mount", "-t", type, "-o", "loop", image, point), NULL, NULL)) {
    g_autofree char *why = g_strdup(bench_message());

    return bench_skip("%s cannot be mounted here: %s", type, why);
  }
  *where = g_steal_pointer(&point);
  return BENCH_OK;
}
