/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2 images for a case to begin with, made by qemu-img and qemu-io with their defaults (64 KiB clusters).
 */
#ifndef PCOW_BENCH_QCOW2_H
#define PCOW_BENCH_QCOW2_H

#include "bench.h"

/* METADATA: all tables are there, as when every cluster was written, but no data takes space. */
int qcow2_create(const char *path, uint64_t size, const char *base, bool metadata);
int qcow2_fill(const char *path, uint64_t size);
int qcow2_scatter(const char *path, uint64_t size, uint64_t data, uint64_t seed);
/* A full base and task->chain overlays, to be opened only: the space of their data is given back once it is
 * written. *TOP to be freed. */
int qcow2_chain(const char *dir, const struct task *task, char **top);

int qcow2_snapshot(const char *path, char letter, const char *name, uint64_t *nanoseconds);

#endif
