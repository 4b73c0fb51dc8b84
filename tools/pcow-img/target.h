/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a conversion writes to: a new file, which is made beside its final name and renamed over it
 * when it is complete, so that a failure leaves what was there; or an existing image, in place.
 */
#ifndef TARGET_H
#define TARGET_H

#include "bases.h"

#include <libpcow/libpcow.h>
#include <stddef.h>
#include <stdint.h>

struct target;

/* A new file of SIZE bytes; UNIT_SIZE (0: default) is for pcow. A block device is not replaced but
 * written in place. 0, or COMMAND_FAILED with the error recorded. */
int target_create(const char *path, enum pcow_format format, uint64_t size, uint64_t unit_size,
                  struct target **target);

/* An existing image, file or device of at least SIZE bytes, in place. */
int target_open(const struct bases *bases, const char *path, enum pcow_format format, uint64_t size,
                struct target **target);

/* DATA NULL: the range shall read as zeros. A new file's ranges are written once, in any order. */
int target_write(struct target *target, uint64_t offset, uint64_t length, const void *data);

/* Makes everything durable and gives a new file its name. Ends the target in any case. */
int target_finish(struct target *target);

/* Ends the target; a new file goes away. NULL: nothing. */
void target_abandon(struct target *target);

#endif
