/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process that ends in the middle of an operation, at a change of the media that is counted off: what
 * SIGKILL there would do, at a place that can be repeated.
 */
#ifndef CUTSHORT_H
#define CUTSHORT_H

#include <stdint.h>

#define CUT_SHORT 9             /* the exit status then */

/* For a child, before it opens images: after CHANGES more changes the next one is its last. */
void cut_short_after(uint64_t changes);

#endif
