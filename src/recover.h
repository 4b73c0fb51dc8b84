/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a session leaves that was not closed: blocks that nobody sees (docs/format.md, section 14.1). An image is
 * valid with them; the next session gives them back before it does anything else.
 */
#ifndef PCOW_RECOVER_H
#define PCOW_RECOVER_H

#include "epochs.h"
#include "slotwalk.h"

struct pcow_image;

/* At the opening of a dirty image, before collection. Costs by the slots and blocks that there are. What fails
 * is logged and stays for the next time, unless it ends writing. */
int recover_run(struct pcow_image *image);

/* Whether SLOT, which no chain reaches and which has the pages in BITS, is one whose pages a collection has moved
 * down the chain before it ended (N.4): the parent of its epoch is deleted, has no other child, and has them all. */
int recover_was_copied(int fd, const char *path, const struct superblock *sb, const struct epochs *epochs,
                       const struct slot_info *slot, const uint64_t *bits, bool *copied);

#endif
