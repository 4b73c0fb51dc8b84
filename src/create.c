/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Creation: a complete image is written under a temporary name beside its own, made durable, and
 * renamed. Its blocks are two superblocks; everything else is a hole.
 */
#include "image.h"

#include "error.h"
#include "lock.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define CREATE_FLAGS (PCOW_CREATE_REPLACE | PCOW_CREATE_BASES)
#define TEMPORARY_TRIES 100

static int choose_unit(const char *path, uint64_t wanted, uint64_t size, unsigned *shift)
{
  *shift = UNIT_SHIFT_DEFAULT;
  if (wanted) {
    if (wanted & (wanted - 1) || wanted < UINT64_C(1) << UNIT_SHIFT_MIN ||
        wanted > UINT64_C(1) << UNIT_SHIFT_MAX)
      return fail(EINVAL, "%s: unit size %" PRIu64 " is not a power of two from 64 KiB to 64 GiB", path,
                  wanted);
    *shift = (unsigned)__builtin_ctzll(wanted);
  } else {
    while (*shift < UNIT_SHIFT_MAX && (size - 1) >> *shift >= UNITS_DEFAULT_MAX)
      (*shift)++;
  }
  if ((size - 1) >> *shift >= UNITS_MAX)
    return fail(EFBIG, "%s: %" PRIu64 " bytes are more than the %" PRIu64 " units of %" PRIu64
                " bytes that an image can have", path, size, (uint64_t)UNITS_MAX, UINT64_C(1) << *shift);
  return 0;
}

/* Refuses to replace an image that somebody has open, in whatever way. */
static int check_replaceable(const char *path)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat st;
  int ret = 0;

  if (fd < 0)
    return errno == ENOENT ? 0 : fail_errno(errno, "%s: cannot open the file to replace", path);
  if (fstat(fd, &st))
    ret = fail_errno(errno, "%s: cannot get the status", path);
  else if (!S_ISREG(st.st_mode))
    ret = fail(S_ISDIR(st.st_mode) ? EISDIR : EINVAL, "%s: is not a regular file and is not replaced", path);
  else if (lock_area_busy(fd))
    ret = fail(EBUSY, "%s: is in use by another process or handle and is not replaced", path);
  close(fd);
  return ret;
}

/* GLib's numbers take longer to begin with than the rest of creating an image. */
static uint32_t random_number(void)
{
  uint32_t n;

  return getrandom(&n, sizeof(n), 0) == sizeof(n) ? n : g_random_int();
}

/* Random names can meet, and a process that was killed has left its file. */
static int open_temporary(const char *path, char **temporary)
{
  g_autofree char *dir = g_path_get_dirname(path);
  int fd;

  for (unsigned tries = 0; tries < TEMPORARY_TRIES; tries++) {
    g_free(*temporary);
    *temporary = g_strdup_printf("%s/.pcow-%08x.tmp", dir, random_number());
    fd = open(*temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST)
      break;
  }
  return fd < 0 ? fail_errno(errno, "%s: cannot create", path) : fd;
}

static int write_image(int fd, const char *path, const struct superblock *sb)
{
  struct pcow_disk_superblock disk;

  superblock_encode(sb, &disk);
  if (ftruncate(fd, (off_t)geometry_file_size(&(struct geometry){ 0 }, 0)))
    return fail_errno(errno, "%s: cannot set the file size", path);
  for (unsigned n = 0; n < 2; n++) {
    ssize_t done = pwrite(fd, &disk, sizeof(disk), (off_t)SUPERBLOCK_OFFSET(n));

    if (done != sizeof(disk))
      return fail_errno(done < 0 ? errno : ENOSPC, "%s: cannot write the superblock", path);
  }
  if (fsync(fd))
    return fail_errno(errno, "%s: cannot make the image durable", path);
  return 0;
}

/* The image is there already: what fails is only the promise that it will be after a power cut. */
static int sync_directory(const char *path)
{
  g_autofree char *dir = g_path_get_dirname(path);
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int ret = 0;

  if (fd < 0 || fsync(fd))
    ret = fail_errno(errno, "%s: is created, but its directory cannot be made durable", path);
  if (fd >= 0)
    close(fd);
  return ret;
}

static int put_in_place(const char *temporary, const char *path, bool replace)
{
  if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, replace ? 0 : RENAME_NOREPLACE) == 0)
    return 0;
  if (errno == EEXIST)
    return fail(EEXIST, "%s: exists already", path);
  if (errno != EINVAL || replace)
    return fail_errno(errno, "%s: cannot create", path);
  /* A file system without RENAME_NOREPLACE: a second name does the same. */
  if (link(temporary, path))
    return fail_errno(errno, "%s: cannot create", path);
  unlink(temporary);
  return 0;
}

static int new_identity(const char *path, struct superblock *sb)
{
  ssize_t n = getrandom(sb->uuid, sizeof(sb->uuid), 0);

  if (n != sizeof(sb->uuid))
    return fail_errno(n < 0 ? errno : EIO, "%s: no random numbers for a UUID", path);
  sb->uuid[6] = (sb->uuid[6] & 0x0f) | 0x40;    /* RFC 4122, version 4 */
  sb->uuid[8] = (sb->uuid[8] & 0x3f) | 0x80;
  sb->tag = content_tag_next((struct content_tag){ 0, 0 });
  return 0;
}

API int pcow_create(const char *path, uint64_t virtual_size, const struct pcow_create_options *options)
{
  struct pcow_create_options o = { 0 };
  struct superblock sb = { .sequence = 1, .head_epoch = 1, .next_epoch = 2 };
  struct base_policy *policy = NULL;
  g_autofree char *temporary = NULL;
  uint64_t base_size = 0;
  int ret = 0;
  int fd;

  if (options)
    ret = options_read(options, sizeof(size_t), &o, sizeof(o));
  if (ret)
    return ret;
  if (o.flags & ~CREATE_FLAGS)
    return fail(EINVAL, "%s: unknown creation flags 0x%x", path, o.flags & ~CREATE_FLAGS);
  if (!*path)
    return fail(EINVAL, "the path of the image is empty");
  if (o.base_snapshot && !o.base)
    return fail(EINVAL, "%s: a base snapshot is given without a base", path);
  if (o.flags & PCOW_CREATE_REPLACE)
    ret = check_replaceable(path);
  else if (access(path, F_OK) == 0)
    ret = fail(EEXIST, "%s: exists already", path);
  if (ret == 0)
    ret = base_policy_new(path, o.flags & PCOW_CREATE_BASES, o.base_dir, &policy);
  if (ret == 0 && o.base)
    ret = layer_describe_base(path, o.base, o.base_format, o.base_snapshot, policy, &sb.base, &base_size);
  base_policy_unref(policy);
  if (ret)
    return ret;

  if (!virtual_size)
    virtual_size = base_size;
  if (!virtual_size)
    return fail(EINVAL, "%s: the virtual size must not be 0", path);
  if (virtual_size > (uint64_t)INT64_MAX)
    return fail(EFBIG, "%s: %" PRIu64 " bytes are beyond every limit", path, virtual_size);
  sb.virtual_size = (virtual_size + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
  sb.head_floor = sb.virtual_size;
  ret = choose_unit(path, o.unit_size, sb.virtual_size, &sb.unit_shift);
  if (ret == 0)
    ret = new_identity(path, &sb);
  if (ret)
    return ret;

  fd = open_temporary(path, &temporary);
  if (fd < 0)
    return fd;
  ret = write_image(fd, path, &sb);
  close(fd);
  if (ret == 0)
    ret = put_in_place(temporary, path, o.flags & PCOW_CREATE_REPLACE);
  if (ret) {
    unlink(temporary);
    return ret;
  }
  return sync_directory(path);
}
