/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One image file open for writing: descriptor, persist layer, superblock, epochs, and the one place
 * where commits are serialized. A failed commit poisons it: nothing is written any more.
 */
#ifndef PCOW_STORE_H
#define PCOW_STORE_H

#include "epochs.h"
#include "persist.h"
#include "superblock.h"

struct store {
  int fd;
  char *path;
  struct persist *p;
  struct geometry geo;
  struct superblock sb;         /* as committed; changed only between store_begin() and store_end() */
  struct epochs *epochs;
  GMutex lock;                  /* serializes commits */
  bool begun;                   /* this session has committed: the image is marked dirty */
  int poisoned;                 /* errno of the failure that ended writing, or 0 */
};

/* Takes FD over, also when it fails. Locks nothing: the caller holds LOCK_HEAD exclusively. Does rule 5
 * (writes back what a crashed session left) when the image was not closed cleanly. */
int store_open(int fd, const char *path, struct store **store);
void store_close(struct store *s);

/* Begins a commit: returns a copy of the superblock to change, which marks the image dirty. Waits for
 * the commit of another thread. */
struct superblock store_begin(struct store *s);
/* Ends it: commits NEXT (COMMIT) or drops it. -ENOSPC, when there is no space for the superblock, changes nothing
 * and can be repeated; any other failure ends writing. */
int store_end(struct store *s, struct superblock *next, bool commit);

/* Before the first store of a session to anything but the superblock: a commit that marks the image
 * dirty, so that the next open writes back what a crash leaves (rule 5), and after which both copies
 * of the superblock are equal. Cheap afterwards. */
int store_dirty(struct store *s);

/* 0, or -EIO with a message when an earlier failure ended writing. */
int store_check(struct store *s);

#endif
