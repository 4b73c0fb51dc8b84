/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changes an input where it counts: fields of superblocks, base references, epoch records, map words,
 * slot headers and bitmaps, by values at the edges of what the format allows, by values that other
 * fields have; the length of files; the operations.
 */
#ifndef PCOW_FUZZ_MUTATE_H
#define PCOW_FUZZ_MUTATE_H

#include "input.h"

/* CODES: operations have codes from FIRST to CODES - 1 mostly. */
void mutate(struct input *in, unsigned seed, unsigned first, unsigned codes);

/* Takes parts of OTHER. */
void mutate_cross(struct input *in, const struct input *other, unsigned seed);

#endif
