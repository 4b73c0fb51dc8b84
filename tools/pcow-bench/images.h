/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Images and files for a case to begin with.
 */
#ifndef PCOW_BENCH_IMAGES_H
#define PCOW_BENCH_IMAGES_H

#include "bench.h"

#define PIECE (64 * KIB) /* scattered data comes in pieces of so much */

/* Offset of piece INDEX of COUNT that are scattered over SIZE bytes, each in its share of them; SEED moves
 * them within it. */
uint64_t scattered_piece(uint64_t size, uint64_t count, uint64_t piece, uint64_t index, uint64_t seed);

/* An image at PATH, on BASE (NULL: none; a file name in the same directory). */
int image_create(const char *path, uint64_t size, const char *base);
int image_open(const char *path, uint32_t flags, pcow_image **image);

/* Writes every page, or DATA bytes in pieces of PIECE bytes (0: PIECE). */
int image_fill(const char *path, uint64_t size);
int image_scatter(const char *path, uint64_t size, uint64_t data, uint64_t piece, uint64_t seed);

/* A full base and LENGTH - 1 or more layers on it; *TOP is the path of the last one, to be freed. */
int image_chain(const char *dir, const struct task *task, char **top);

/* For who makes a chain, after LAYERS of it: skips the rest when others have taken so much meanwhile that the next
 * ones could fill the file system, or the memory that it is in. */
int chain_room(const char *dir, const struct task *task, unsigned layers);

/* A raw file of which every page is written. Returns a descriptor or BENCH_*. */
int file_fill(const char *path, uint64_t size);
/* A raw file that is a hole. */
int file_sparse(const char *path, uint64_t size);
/* The whole of a file, mapped. NULL and a message. */
char *file_map(int fd, uint64_t size, int flags);

#endif
