/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The progress line of -p, as qemu-img draws it, but on stderr: stdout stays for results. The same
 * calls are where long work notices that it was interrupted.
 */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Work that polls begins: from here on signals interrupt it instead of ending the process. SHOW: draw
 * the line. */
void progress_start(bool show);

/* A pcow_progress_fn (OPAQUE is not used). Nonzero when the user wants the work to end. */
int progress_update(void *opaque, uint64_t done, uint64_t total);

/* The same for loops of the tool itself: 0, or COMMAND_FAILED with the error recorded. */
int progress_step(uint64_t done, uint64_t total);

/* Ends the line; after success it has reached 100 %. */
void progress_end(bool success);

#endif
