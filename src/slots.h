/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which slots of a writable image are free; publishing a slot at the front of its unit's chain, and
 * freeing one. The orderings are steps 2 and 4 of docs/format.md. Thread-safe.
 */
#ifndef PCOW_SLOTS_H
#define PCOW_SLOTS_H

#include "slotwalk.h"
#include "store.h"

struct slots;

struct slots *slots_new(struct store *store);
void slots_free(struct slots *s);

/* Slots of the image that nothing reaches, as found by the first allocation or by this; for check and
 * statistics. */
int slots_count_free(struct slots *s, uint64_t *count);

/* A slot of UNIT for EPOCH, header (previous slot PREVIOUS, 0: none) and empty bitmap written, space
 * for its metadata and its unit-map word reserved, its data area a hole. Reached by nothing yet.
 * Owed: a fence, then slots_link(). */
int slots_prepare(struct slots *s, uint64_t unit, uint32_t epoch, uint64_t previous, uint64_t *index);

/* Makes a prepared slot the unit's newest. Owed: a fence. */
int slots_link(struct slots *s, uint64_t unit, uint64_t index);

/* Makes a prepared slot the one after LAST, the oldest of its unit. Owed: a fence. */
int slots_link_after(struct slots *s, uint64_t last, uint64_t index);

/* In which units an epoch has slots, as found by the walk of all chains and kept up since: a unit may be
 * listed that has none any more, none is missing. Takes the list, which then begins anew: sorted, each
 * unit once. NULL with *ERROR. */
GArray *slots_take_units(struct slots *s, uint32_t epoch, int *error);
/* Puts a unit back on the list. */
void slots_note_unit(struct slots *s, uint32_t epoch, uint64_t unit);
/* An epoch with a list that is WANTED; 0: none. */
typedef bool (*slots_epoch_fn)(uint32_t epoch, const void *opaque);
int slots_find_epoch(struct slots *s, slots_epoch_fn wanted, const void *opaque, uint32_t *epoch);

/* Takes a slot out of its chain (NEWER: the slot before it, 0: the unit map), durably, punches its
 * data area, and its bitmap where that is whole pages, and makes it free. */
int slots_unlink(struct slots *s, const struct slot_info *slot, uint64_t newer);

/* Gives a prepared slot back that was never linked. */
void slots_cancel(struct slots *s, uint64_t index);

/* Gives the slot to another epoch: one word. Owed: a fence. */
int slots_relabel(struct slots *s, const struct slot_info *slot, uint32_t epoch);

/* Space for the presence bits of pages [first, end): slots_set_present() cannot meet a full file
 * system afterwards. */
int slots_reserve_present(struct slots *s, uint64_t index, uint64_t first, uint64_t end);

/* Sets the presence bits of the pages that BITS (of the whole unit) has in [first, end). Owed: a
 * fence. */
int slots_set_present(struct slots *s, uint64_t index, const uint64_t *bits, uint64_t first,
                      uint64_t end);

#endif
