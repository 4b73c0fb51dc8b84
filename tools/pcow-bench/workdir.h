/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The directory of a run, and what is mounted in it. It is gone when the run has ended, however it ended: a
 * janitor, a small process that outlives all others of the run by a moment, sees to that.
 */
#ifndef PCOW_BENCH_WORKDIR_H
#define PCOW_BENCH_WORKDIR_H

#include "bench.h"

/* Makes a directory in PARENT (NULL: /dev/shm, or the directory for temporary files) and starts the janitor.
 * Where permitted, later mounts go to a mount namespace of this process tree, and end with it. */
int workdir_make(const char *parent, char **dir);

/* Unmounts what is beneath DIR and removes what is in it, and DIR itself. */
void workdir_clear(const char *dir);

/* Waits until the janitor has done its work. All workers must have ended. */
void workdir_end(void);

/* Bytes that can be written beneath DIR, the memory that they take there considered. */
uint64_t workdir_room(const char *dir);

/* Files there take memory. */
bool workdir_is_tmpfs(const char *dir);

/* Makes DIR/NAME a file system of its own kind: a loop mount of a sparse file of SIZE bytes. DIR itself is taken
 * when it lies on that file system already. *PLACE is where files go, to be freed. */
int workdir_loop(const char *dir, enum place place, uint64_t size, char **where);

/* Bytes that the blocks of a file take, or of all files beneath a directory. */
uint64_t workdir_blocks(const char *path);

#endif
