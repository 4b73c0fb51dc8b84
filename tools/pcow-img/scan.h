/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads a source from its first byte to its last as runs of data and runs of zeros. Zeros are found
 * page by page in what is stored, too, and merged into wide runs, so that a caller that skips them
 * writes nothing that it need not.
 */
#ifndef SCAN_H
#define SCAN_H

#include "source.h"

#define SCAN_CHUNK (UINT64_C(1) << 20) /* bytes of one read, and the longest data run */

/* DATA is NULL for a run of zeros. Runs come in order, without gaps, at page-aligned offsets; the
 * last one may have a ragged end. 0 or COMMAND_FAILED, which ends the scan. */
typedef int (*scan_fn)(void *opaque, uint64_t offset, uint64_t length, const void *data);

/* Steps the progress (progress.h), by bytes. 0 or COMMAND_FAILED. */
int scan_source(struct source *source, scan_fn fn, void *opaque);

bool scan_is_zero(const void *data, size_t length);

#endif
