/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Verifies images as a user meets them after a crash: the check finds no damage, the image opens, the
 * head and each snapshot read as exactly one world says, and it goes on as an image: it is written,
 * discarded, resized, snapshot, closed, and read again.
 */
#ifndef CRASH_VERIFY_H
#define CRASH_VERIFY_H

#include "subject.h"

/* All images of the laboratory, which are not open: opens them, finds out which world it is, changes
 * them and closes them. */
void verify_lab(struct lab *lab, struct rng *rng);

/* S, just opened (or NULL), must read as one of the worlds, which it is from then on. */
void verify_choose(struct subject *s);
/* The open image must read as it should now: head and snapshots. */
void verify_now(struct subject *s);
/* The snapshot was taken while threads stored: it is from now on what it turned out to be. */
void verify_snapshot(struct subject *s, const char *name);
/* What an open handle of one snapshot shows must be V. */
void verify_handle(struct lab *lab, pcow_image *image, const struct face *v, const char *what);
/* No corruption. */
void verify_check(struct subject *s);

#endif
