/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What collect.c (which units are visited, and when) and collectmerge.c (what is done to one unit) share;
 * private to them.
 */
#ifndef PCOW_COLLECT_H
#define PCOW_COLLECT_H

#include "image.h"

/* A visit's result, or -errno. */
enum visit {
  VISIT_DONE,                   /* the epoch has no slot in the unit any more */
  VISIT_AGAIN,                  /* one part was moved: there is more to do */
  VISIT_LATER                   /* what may not be moved now stays; a message says why */
};

/* A deleted epoch and its only child. */
struct merge {
  uint32_t from, to;
  uint64_t limit;               /* bytes: above, TO hides what FROM has */

  uint8_t *buffer;
  uint64_t *from_bits, *to_bits, *move_bits;

  uint64_t unit;                /* of the last visit + 1 */
  uint64_t copied_to;           /* pages of it that were copied down already */
  bool squeezed;                /* what nobody sees of it was punched to make space */
};

/* Memory for the above. */
int merge_prepare(struct merge *m, const struct pcow_image *image);
void merge_release(struct merge *m);

/* The image is locked for writing, nobody else walks, and nothing of the unit is pending or cached. CHAIN
 * is the unit's. */
int merge_visit(struct pcow_image *image, struct merge *m, GArray *chain);

/* Is ID the epoch E or one of its ancestors? E may be NULL. */
bool collect_descends(const struct epochs *epochs, const struct epoch *e, uint32_t id);

#endif
