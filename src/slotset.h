/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A set of slot indices that costs by its members and not by the largest: an image may claim 2^46 slots
 * and be a sparse file of a few blocks.
 */
#ifndef PCOW_SLOTSET_H
#define PCOW_SLOTSET_H

#include <stdbool.h>
#include <stdint.h>

struct slotset;

struct slotset *slotset_new(void);
void slotset_free(struct slotset *s);   /* NULL: nothing */

bool slotset_has(const struct slotset *s, uint64_t i);
/* False when it was a member already. */
bool slotset_add(struct slotset *s, uint64_t i);
void slotset_remove(struct slotset *s, uint64_t i);
uint64_t slotset_count(const struct slotset *s);

/* The first of [first, end) that is a member, or is none; END if there is no such. */
uint64_t slotset_find(const struct slotset *s, uint64_t first, uint64_t end, bool member);

#endif
