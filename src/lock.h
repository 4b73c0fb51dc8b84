/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Open-file-description locks on single bytes of the format's lock area (format.h). They belong to
 * the open file, not to the process: two handles of one process exclude each other as two processes
 * do, and they last until the last descriptor *and mapping* of that open file is gone.
 */
#ifndef PCOW_LOCK_H
#define PCOW_LOCK_H

#include <stdbool.h>
#include <stdint.h>

enum lock_kind { LOCK_NONE, LOCK_SHARED, LOCK_EXCLUSIVE };

/* Takes, changes or (LOCK_NONE) gives up the lock. -EAGAIN when another holds it (no message is set:
 * the caller knows what the byte means), other errors with a message that names PATH. */
int lock_try(int fd, const char *path, uint64_t byte, enum lock_kind kind);

/* The same, but waits up to MILLISECONDS for it. */
int lock_wait(int fd, const char *path, uint64_t byte, enum lock_kind kind, unsigned milliseconds);

/* True when another open file holds a lock on any of COUNT bytes from BYTE on, or nobody can tell. */
bool lock_range_busy(int fd, uint64_t byte, uint64_t count);

/* Takes every byte of the lock area exclusively, at once. -EAGAIN when another holds one. */
int lock_all(int fd, const char *path);

/* True when another open file holds a lock on any byte of the lock area: the image is in use. */
bool lock_area_busy(int fd);

#endif
