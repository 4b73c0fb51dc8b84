/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls of the library to the kernel that can be made to fail: the linker sends them here (--wrap). A
 * plan names one kind of call, the n-th of them, and what it gives; while the injection is armed all are
 * counted. Which calls of libc itself or of GLib are made does not matter: those are not wrapped.
 */
#ifndef PCOW_TEST_INJECT_H
#define PCOW_TEST_INJECT_H

#include <stdbool.h>
#include <stdint.h>

enum call {
  CALL_FALLOCATE,
  CALL_PUNCH,                   /* fallocate(2) that makes a hole */
  CALL_FTRUNCATE,
  CALL_FDATASYNC,
  CALL_FSYNC,
  CALL_PWRITE,
  CALL_PREAD,
  CALL_READ,                    /* of a userfaultfd, or of /proc */
  CALL_PIPE,
  CALL_PIPE_READ,
  CALL_VMSPLICE,
  CALL_LSEEK,
  CALL_FSTAT,
  CALL_MMAP,
  CALL_MREMAP,
  CALL_MPROTECT,
  CALL_MADVISE,
  CALL_OPEN,
  CALL_LOCK,                    /* fcntl(2) */
  CALL_USERFAULTFD,
  CALL_MEMFD,
  CALL_UFFD_API,
  CALL_UFFD_REGISTER,
  CALL_UFFD_UNREGISTER,
  CALL_UFFD_PROTECT,
  CALL_UFFD_COPY,
  CALL_UFFD_ZERO,
  CALL_SCAN,                    /* PAGEMAP_SCAN */
  CALL_THREAD,
  CALL_RANDOM,
  CALL_RENAME,
  CALL_LINK,
  CALLS
};

/* What a call gives besides errors, which are positive. */
#define GIVE_SHORT -1           /* pread, pwrite, getrandom: about half of it */
#define GIVE_EOF -2             /* pread: 0 */
#define GIVE_KILL -3            /* SIGKILL, before the call is made */

struct plan {
  enum call call;
  unsigned nth;                 /* from 1; 0: nothing fails */
  int give;
  bool on;                      /* so do all after it */
};

/* Shared by a process and its children. */
struct inject_counts {
  unsigned calls[CALLS];
  unsigned hits;
};

/* Where counts go; before all else. */
void inject_init(struct inject_counts *counts);
void inject_plan(const struct plan *plan);
void inject_arm(bool armed);
unsigned inject_hits(void);
const char *inject_name(enum call call);

/* What is worth trying for CALL: values for plan.give, ended by 0. */
const int *inject_gives(enum call call);

#endif
