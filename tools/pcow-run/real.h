/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The functions that this library stands before, as the next object of the process has them: everything
 * that is not about an image goes there as it came, and so do all calls of the library itself.
 */
#ifndef RUN_REAL_H
#define RUN_REAL_H

#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#define RUN_API __attribute__((visibility("default")))

/* NAME is exported, and ALSO is another name of the same function: off_t has 64 bits here, so the names with
 * and without 64 do the same. */
#define RUN_ALSO(also, name) \
  __asm__(".globl " #also "\n.type " #also ", @function\n.set " #also ", " #name)

struct aiocb64;
struct statx;

/* Result, name, arguments. */
#define RUN_REAL_FUNCTIONS(F)                                                                              \
  F(int, openat64, (int, const char *, int, ...))                                                          \
  F(int, close, (int))                                                                                     \
  F(int, close_range, (unsigned, unsigned, int))                                                           \
  F(void, closefrom, (int))                                                                                \
  F(int, dup, (int))                                                                                       \
  F(int, dup2, (int, int))                                                                                 \
  F(int, dup3, (int, int, int))                                                                            \
  F(int, fcntl64, (int, int, ...))                                                                         \
  F(int, ioctl, (int, unsigned long, ...))                                                                 \
  F(off_t, lseek64, (int, off_t, int))                                                                     \
  F(ssize_t, read, (int, void *, size_t))                                                                  \
  F(ssize_t, write, (int, const void *, size_t))                                                           \
  F(ssize_t, pread64, (int, void *, size_t, off_t))                                                        \
  F(ssize_t, pwrite64, (int, const void *, size_t, off_t))                                                 \
  F(ssize_t, readv, (int, const struct iovec *, int))                                                      \
  F(ssize_t, writev, (int, const struct iovec *, int))                                                     \
  F(ssize_t, preadv64, (int, const struct iovec *, int, off_t))                                            \
  F(ssize_t, pwritev64, (int, const struct iovec *, int, off_t))                                           \
  F(ssize_t, preadv64v2, (int, const struct iovec *, int, off_t, int))                                     \
  F(ssize_t, pwritev64v2, (int, const struct iovec *, int, off_t, int))                                    \
  F(int, fsync, (int))                                                                                     \
  F(int, fdatasync, (int))                                                                                 \
  F(int, sync_file_range, (int, off_t, off_t, unsigned))                                                   \
  F(int, syncfs, (int))                                                                                    \
  F(void, sync, (void))                                                                                    \
  F(int, ftruncate64, (int, off_t))                                                                        \
  F(int, truncate64, (const char *, off_t))                                                                \
  F(int, fallocate64, (int, int, off_t, off_t))                                                            \
  F(int, posix_fallocate64, (int, off_t, off_t))                                                           \
  F(ssize_t, readahead, (int, off_t, size_t))                                                              \
  F(ssize_t, copy_file_range, (int, off_t *, int, off_t *, size_t, unsigned))                              \
  F(ssize_t, sendfile64, (int, int, off_t *, size_t))                                                      \
  F(ssize_t, splice, (int, off_t *, int, off_t *, size_t, unsigned))                                       \
  F(int, stat64, (const char *, struct stat *))                                                            \
  F(int, lstat64, (const char *, struct stat *))                                                           \
  F(int, fstat64, (int, struct stat *))                                                                    \
  F(int, fstatat64, (int, const char *, struct stat *, int))                                               \
  F(int, statx, (int, const char *, int, unsigned, struct statx *))                                        \
  F(void *, mmap64, (void *, size_t, int, int, int, off_t))                                                \
  F(int, munmap, (void *, size_t))                                                                         \
  F(void *, mremap, (void *, size_t, size_t, int, ...))                                                    \
  F(int, mprotect, (void *, size_t, int))                                                                  \
  F(int, msync, (void *, size_t, int))                                                                     \
  F(int, madvise, (void *, size_t, int))                                                                   \
  F(FILE *, fopen64, (const char *, const char *))                                                         \
  F(FILE *, freopen64, (const char *, const char *, FILE *))                                               \
  F(FILE *, fdopen, (int, const char *))                                                                   \
  F(int, fileno, (FILE *))                                                                                 \
  F(int, execve, (const char *, char *const *, char *const *))                                             \
  F(int, execvpe, (const char *, char *const *, char *const *))                                            \
  F(int, execveat, (int, const char *, char *const *, char *const *, int))                                 \
  F(int, flock, (int, int))                                                                                \
  F(int, lockf64, (int, int, off_t))                                                                       \
  F(int, aio_fsync64, (int, struct aiocb64 *))                                                             \
  F(int, posix_spawn_file_actions_addopen, (posix_spawn_file_actions_t *, int, const char *, int, mode_t)) \
  F(int, fexecve, (int, char *const *, char *const *))                                                     \
  F(void, _exit, (int))

struct run_real {
#define F(result, name, arguments) result (*name) arguments;
  RUN_REAL_FUNCTIONS(F)
#undef F
};

extern struct run_real run_real_table;
extern bool run_real_ready;
void run_real_find(void);

/* Other libraries begin before this one, and call it. */
static inline const struct run_real *real(void)
{
  if (__builtin_expect(!run_real_ready, 0))
    run_real_find();
  return &run_real_table;
}

#endif
