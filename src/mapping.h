/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the rest of the library says to a writable mapping of an image (image->map, NULL when there is
 * none; all of these do nothing then).
 */
#ifndef PCOW_MAPPING_H
#define PCOW_MAPPING_H

#include "image.h"

/* The unit is locked and pages [first, end) of it have just become present, durably, and backed: they
 * are mapped from the file now. */
int mapping_published(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end);

/* What a flush-durable map has that the head has not (stores are durable only after a flush), of pages
 * [first, end) of the image, becomes the head's, pending. No unit is locked. -ENOSPC: not all of it. */
int mapping_publish(struct pcow_image *image, uint64_t first, uint64_t end);

/* head_settle(), with all that was stored through a flush-durable map. */
int mapping_sync(struct pcow_image *image);

/* Whether what becomes present under the map must be settled at once. */
bool mapping_settles(const struct pcow_image *image);

/* BUFFER has bytes of the locked unit, as head_read() gave them: puts those in that were stored through a
 * flush-durable map since. */
int mapping_overlay(struct pcow_image *image, struct unit *u, uint64_t offset, void *buffer, uint64_t length);

/* Whether the library's own writes must go through the map as well, and writes a part of the locked unit so. */
bool mapping_stores(const struct pcow_image *image);
int mapping_store(struct pcow_image *image, struct unit *u, uint64_t offset, const void *buffer, uint64_t length);

/* The unit is locked and pages [first, end) are about to be written otherwise than through the map: what was
 * stored to them becomes the head's, and further stores wait. */
int mapping_hold(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end);

/* The image is locked for writing. Whether stores reach pages of the unit that nobody knows of; and the end of
 * that. What is pending of the unit changes. -EBUSY: while it is mapped that is not possible. */
bool mapping_tracks(struct pcow_image *image, uint64_t unit);
int mapping_hold_unit(struct pcow_image *image, uint64_t unit);

/* The unit is locked and pages [first, end) are about to be punched: from now on they read as zeros
 * and their first write is held until the unit is unlocked and the fault is served. */
int mapping_discard(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end);
/* They were punched. */
int mapping_discarded(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end);

/* The discard failed: the mapping shows what the unit has again. */
void mapping_undo_discard(struct pcow_image *image, struct unit *u, uint64_t first, uint64_t end);

/* Around a live snapshot, with the image lock held for writing. cut: write-protects all that is
 * writable; when it returns no store reaches the head any more, and what was stored is written back
 * (durable after the next fence). release: the head is a new epoch (or, after a failed commit, is
 * not): lets writers go on. */
int mapping_snapshot_cut(struct pcow_image *image);
int mapping_snapshot_release(struct pcow_image *image, bool committed);

/* The image is locked for writing and the pages of the unit whose bits are set are about to lie elsewhere,
 * with the same content: what is mapped from lower slots becomes memory that is filled with what the
 * head sees when it is read. Pages that can be stored to stay. */
int mapping_leave(struct pcow_image *image, uint64_t unit, const uint64_t *bits, uint64_t first, uint64_t end);

/* The virtual size rose: maps what was added. -ENOSPC when the reservation is too small. */
int mapping_grow(struct pcow_image *image, uint64_t old_size, uint64_t new_size);

/* For tests: takes PIECES for how many are laid out when a map is made; UINT64_MAX: as always. */
void mapping_override_eager(uint64_t pieces);

/* Unmaps all mappings of the handle, for pcow_close(); also when a flush fails, which is returned. */
int mapping_close_all(struct pcow_image *image);

#endif
