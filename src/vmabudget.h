/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many memory areas (VMAs) the process has. Beyond vm.max_map_count mmap(2), and with it large
 * allocations and new threads of the host program, fail; the library stays within half of the limit,
 * with what it found there already counted. Counting is slow (half a microsecond an area), so changes
 * are tallied and the count is taken again only now and then. Process-wide; any thread.
 */
#ifndef PCOW_VMABUDGET_H
#define PCOW_VMABUDGET_H

#include <stdbool.h>
#include <stdint.h>

/* Areas were added or, negative, removed. An overestimate is harmless. */
void vmabudget_add(int64_t areas);

/* Counts. */
void vmabudget_count(void);

/* True when ranges should be merged: the estimate, confirmed by a count where that is not too
 * expensive now, is beyond vmabudget_limit(). */
bool vmabudget_pressed(void);

/* A map that first writes split was made (1), or ended (-1). */
void vmabudget_share(int maps);
/* Whether a map, in which first writes have added USED areas, may go on to spend two on a page that stands alone:
 * while half of the budget is free; and then, if it has less than its share, until an eighth is left. */
bool vmabudget_ample(int64_t used);

/* Areas that may still be added until then; negative: that many too many. By the tally. */
int64_t vmabudget_room(void);

/* For tests: takes MAX for vm.max_map_count; 0: the kernel's again. */
void vmabudget_override(uint64_t max);

/* Three quarters of half of vm.max_map_count, and the last count. */
uint64_t vmabudget_limit(void);
uint64_t vmabudget_counted(void);

#endif
