/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What libpcow is compared with.
 */
#ifndef PCOW_BENCH_COMPETITOR_H
#define PCOW_BENCH_COMPETITOR_H

#include "bench.h"

/* A raw file, mapped: the floor of warm accesses and of first touches. */
extern const struct kind raw_native; /* the CPU flushes */
extern const struct kind raw_msync;  /* msync of the whole file is the flush: a pmem device over a page cache */

/* What the mechanisms cost at least, without an image around them. */
extern const struct kind floor_cow;     /* the kernel's copy-on-write, then a copy into a fresh page of a file */
extern const struct kind floor_uffd;    /* a write-protection fault's way to user space and back, and a copy */
extern const struct kind floor_protect; /* write-protecting what is written: the floor of a live snapshot */

extern const struct kind qcow2_bench;   /* qemu-img bench: the format without an export around it */
extern const struct kind qcow2_nbd;     /* qemu-storage-daemon over NBD */
extern const struct kind qcow2_fuse;    /* qemu-storage-daemon over FUSE */
extern const struct kind qcow2_open;    /* qemu-io opening an image */
extern const struct kind qemu_io_start; /* qemu-io alone */

extern const struct kind reflink_clone; /* cp --reflink itself */
extern const struct kind reflink_msync; /* cp --reflink on XFS, then stores and msync */

#endif
