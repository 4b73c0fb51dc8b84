/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which pages differ between two resolved ranges. Pages that lie at the same place of the same file,
 * or that nothing is stored for on either side, are known to be equal without being read.
 */
#ifndef PCOW_COMPARE_H
#define PCOW_COMPARE_H

#include "view.h"

/* Sets in DIFFERENT (of bits page - FIRST, zeroed by the caller) the pages of [first, end) whose bytes
 * differ between A and B, which both cover that range. Pages in SKIP (same numbering, may be NULL)
 * are left alone. PATH is for messages. */
int compare_pages(const char *path, const GArray *a, const GArray *b, uint64_t first, uint64_t end,
                  const uint64_t *skip, uint64_t *different);

/* True when a page's bytes are all zero. */
bool page_is_zero(const void *page);

#endif
