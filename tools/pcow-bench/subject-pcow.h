/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libpcow at work: its mapping in both modes.
 */
#ifndef PCOW_BENCH_SUBJECT_PCOW_H
#define PCOW_BENCH_SUBJECT_PCOW_H

#include "bench.h"

extern const struct kind pcow_store; /* stores are durable when their cache lines are flushed */
extern const struct kind pcow_flushed; /* stores are durable when pcow_flush() returns */

/* Maps an image that is open. BENCH_*. */
int subject_map(pcow_image *image, uint32_t mode, uint32_t thin, pcow_mapping **mapping);
/* Makes all stores into a flush-durable mapping durable. BENCH_*. */
int subject_flush(pcow_mapping *mapping, uint64_t offset, uint64_t length);

#endif
