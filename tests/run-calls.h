/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the files of run-calls share: how a check says what is not as promised, and the image that it is about.
 */
#ifndef RUN_CALLS_H
#define RUN_CALLS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#define SIZE (8u << 20)
#define HUGE (2u << 20)

extern const char *image, *more;

void fail_at(const char *file, int line, const char *format, ...)
  __attribute__((noreturn, format(printf, 3, 4)));
int open_image(int flags);
uint8_t *map_image(int fd);
char byte_at(int fd, off_t offset);

#define CHECK(condition)                    \
  do {                                      \
    if (!(condition))                       \
      fail_at(__FILE__, __LINE__, "%s", #condition);  \
  } while (0)

#define FAILS(call, error)                                                     \
  do {                                                                         \
    errno = 0;                                                                 \
    if ((long)(call) != -1 || errno != (error))                                \
      fail_at(__FILE__, __LINE__, "%s: not %s", #call, strerror(error));                 \
  } while (0)

/* Checks of run-children.c. */
void check_content(void);
void check_spawn(void);
void check_fork(void);
void check_daemon(void);
void check_orphan(void);
void check_handed(void);
void check_exec(void);
void check_vfork(void);
void check_synced(void);
void check_exit(void);
void check_hold(void);
void check_busy(void);

#endif
