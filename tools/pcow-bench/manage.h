/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Management: creating, snapshots, opening. task->action says what is timed.
 */
#ifndef PCOW_BENCH_MANAGE_H
#define PCOW_BENCH_MANAGE_H

#include "bench.h"

#define MANAGE_PIECES 16 /* 64 KiB each, written after a snapshot that is to be deleted or reverted to */

extern const struct kind manage_pcow;        /* calls of the library; mapped, if at all, store-durable */
extern const struct kind manage_pcow_flushed; /* the same, mapped flush-durable */
extern const struct kind manage_pcow_img;    /* pcow-img as a command */
extern const struct kind manage_qemu_img;    /* qemu-img as a command */
extern const struct kind manage_start;       /* qemu-img --version: what of that is the start of a process */

#endif
