/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The policy for base paths, in one place. Where lookup is confined to a directory, the kernel does the
 * confining while it opens (openat2 with RESOLVE_BENEATH), so that nobody can swap a symbolic link
 * between a check and the opening; comparing names beforehand only makes clearer messages.
 */
#include "basepath.h"

#include "error.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OPEN_SAFELY (O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
#define RENAME_TRIES 1000       /* lookups that a rename in the directory may disturb */

struct base_policy {
  gatomicrefcount references;
  bool any;
  char *named;                  /* the directory, absolute; NULL: bases are not confined */
  char *real;                   /* absolute, without symbolic links */
  int fd;                       /* of the directory, -1: none */
};

int base_policy_new(const char *image, bool any, const char *dir, struct base_policy **policy)
{
  struct base_policy *p;
  char *real = NULL;
  int fd = -1;

  *policy = NULL;
  if (any && dir)
    return fail(EINVAL, "%s: bases are to be followed anywhere and also only beneath %s", image, dir);
  if (dir) {
    real = realpath(dir, NULL);
    fd = real ? open(real, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0) {
      int errnum = errno;

      free(real);
      return fail_errno(errnum, "%s: cannot open the directory %s, to which bases are confined", image, dir);
    }
  }
  p = g_new0(struct base_policy, 1);
  g_atomic_ref_count_init(&p->references);
  p->any = any;
  p->named = dir ? g_canonicalize_filename(dir, NULL) : NULL;
  p->real = g_strdup(real);
  p->fd = fd;
  free(real);
  *policy = p;
  return 0;
}

struct base_policy *base_policy_ref(struct base_policy *p)
{
  if (p)
    g_atomic_ref_count_inc(&p->references);
  return p;
}

void base_policy_unref(struct base_policy *p)
{
  if (!p || !g_atomic_ref_count_dec(&p->references))
    return;
  if (p->fd >= 0)
    close(p->fd);
  g_free(p->named);
  g_free(p->real);
  g_free(p);
}

/* A chain has many paths: what they were made in is larger than they are, and most are the same twice. */
static void make_small(struct base_path *file)
{
  char *full = g_strdup(file->full);

  if (file->beneath)
    file->beneath = full + (file->beneath - file->full);
  g_free(file->full);
  file->full = full;
  if (strcmp(file->path, file->full) == 0) {
    g_free(file->path);
    file->path = file->full;
  }
}

void base_path_name(struct base_path *file, const char *path)
{
  g_autofree char *dir = g_path_get_dirname(path);
  g_autofree char *base = g_path_get_basename(path);
  char *real = realpath(dir, NULL);

  file->path = g_strdup(path);
  /* A name relative to this file is relative to the directory in which it really is. */
  file->full = real ? g_canonicalize_filename(base, real) : g_canonicalize_filename(path, NULL);
  file->beneath = NULL;
  file->policy = NULL;
  free(real);
  make_small(file);
}

/* What follows DIR in FULL; NULL: FULL does not lie beneath DIR. */
static const char *part_beneath(const char *full, const char *dir)
{
  size_t n = strlen(dir);

  if (n && dir[n - 1] == '/')   /* the root directory */
    n--;
  if (strncmp(full, dir, n) != 0 || (full[n] && full[n] != '/'))
    return NULL;
  full += n;
  return full + strspn(full, "/");
}

static int confine(struct base_path *file)
{
  const struct base_policy *p = file->policy;
  const char *part = part_beneath(file->full, p->real);
  size_t n;

  if (!part)
    part = part_beneath(file->full, p->named);
  if (!part || !*part)
    return fail(EPERM, "%s: is not followed, because it does not lie beneath %s", file->path, p->named);
  n = strlen(part);
  part = g_build_filename(p->real, part, NULL);
  g_free(file->full);
  file->full = (char *)part;
  file->beneath = part + strlen(part) - n;
  return 0;
}

char *base_path_display(const char *image_path, const struct base_ref *ref)
{
  g_autofree char *dir = NULL;

  if (g_path_is_absolute(ref->path))
    return g_strdup(ref->path);
  dir = g_path_get_dirname(image_path);
  return strcmp(dir, ".") ? g_build_filename(dir, ref->path, NULL) : g_strdup(ref->path);
}

int base_path_follow(struct base_path *file, const struct base_path *from, const struct base_ref *ref,
                     struct base_policy *policy, bool named)
{
  g_autofree char *dir = g_path_get_dirname(from->full);
  int ret = 0;

  file->path = base_path_display(from->path, ref);
  file->full = g_canonicalize_filename(ref->path, dir);
  file->beneath = NULL;
  file->policy = base_policy_ref(policy);
  /* It is made of the names of all layers above: with a ".." in each it would grow without end. */
  if (strlen(file->path) > strlen(file->full)) {
    g_free(file->path);
    file->path = g_strdup(file->full);
  }
  if (!named && !policy->any)
    ret = policy->named ? confine(file) :
          fail(EPERM, "%s: is not followed without permission: PCOW_OPEN_BASES or base_dir gives it",
               file->path);
  make_small(file);
  return ret;
}

void base_path_copy(struct base_path *to, const struct base_path *file)
{
  to->full = g_strdup(file->full);
  to->path = file->path == file->full ? to->full : g_strdup(file->path);
  to->beneath = file->beneath ? to->full + (file->beneath - file->full) : NULL;
  to->policy = base_policy_ref(file->policy);
}

void base_path_clear(struct base_path *file)
{
  if (file->path != file->full)
    g_free(file->path);
  g_clear_pointer(&file->full, g_free);
  file->path = NULL;
  file->beneath = NULL;
  g_clear_pointer(&file->policy, base_policy_unref);
}

static int open_beneath(int dir, const char *path, int flags)
{
  struct open_how how = {
    .flags = (uint64_t)flags,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
  };
  long fd;

  for (unsigned tries = 0; ; tries++) {
    fd = syscall(SYS_openat2, dir, path, &how, sizeof(how));
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR) || tries == RENAME_TRIES)
      return (int)fd;
  }
}

static int open_flags(const struct base_path *file, int flags)
{
  if (!file->beneath)
    return open(file->full, flags);
  return open_beneath(file->policy->fd, file->beneath, flags);
}

/* Says why openat2() refused. PROBE: it was asked for O_PATH, which needs no permission on the file. */
static int fail_open(const struct base_path *file, int access, bool probe, int errnum)
{
  const char *dir = file->beneath ? file->policy->named : NULL;

  if (dir && errnum == EXDEV)
    return fail(EPERM, "%s: is not followed, because it leads out of %s", file->path, dir);
  if (dir && errnum == ELOOP)
    return fail(EPERM, "%s: is not followed, because its symbolic links do not lead to a file beneath %s",
                file->path, dir);
  if (dir && (errnum == ENOSYS || (probe && errnum == EPERM)))
    return fail(ENOTSUP, "%s: cannot be confined to %s, because openat2(2) is %s", file->path, dir,
                errnum == ENOSYS ? "missing in this kernel" : "not permitted here");
  return fail_errno(errnum, access == O_RDWR ? "%s: cannot open for writing" : "%s: cannot open", file->path);
}

static int check_type(const struct base_path *file, bool block_device, const struct stat *st)
{
  if (S_ISDIR(st->st_mode))
    return fail(EISDIR, "%s: is a directory", file->path);
  if (!S_ISREG(st->st_mode) && !(S_ISBLK(st->st_mode) && block_device))
    return fail(EINVAL, "%s: is not a regular file", file->path);
  return 0;
}

int base_path_open(const struct base_path *file, int access, bool block_device, struct stat *st)
{
  /* Opening a FIFO, a terminal or another device may wake or start something. O_PATH does not open what
   * it finds. If the file is swapped for such a one right afterwards, OPEN_SAFELY at least does not wait,
   * and the second look refuses it. */
  for (int probe = 1; ; probe--) {
    int fd = open_flags(file, probe ? O_PATH | O_CLOEXEC : access | OPEN_SAFELY);
    int ret;

    if (fd < 0)
      return fail_open(file, access, probe, errno);
    ret = fstat(fd, st) ? fail_errno(errno, "%s: cannot get the status", file->path)
                        : check_type(file, block_device, st);
    if (ret == 0 && !probe)
      return fd;
    close(fd);
    if (ret)
      return ret;
  }
}
