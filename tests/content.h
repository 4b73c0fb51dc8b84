/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a view should read as, kept in memory beside the image, for tests of whole operations.
 */
#ifndef PCOW_TEST_CONTENT_H
#define PCOW_TEST_CONTENT_H

#include "testlib.h"

struct content {
  unsigned char *bytes;
  uint64_t size;
};

struct content content_new(uint64_t size); /* zeros */
struct content content_copy(const struct content *c);
void content_free(struct content *c);

/* To SIZE bytes; what is added is zeros. */
void content_resize(struct content *c, uint64_t size);

/* Random bytes to the image and to C. */
void content_write(pcow_image *image, struct content *c, struct rng *rng, uint64_t offset, uint64_t length);
/* Discards in both. */
void content_discard(pcow_image *image, struct content *c, uint64_t offset, uint64_t length);
/* COUNT writes (some of them of parts of pages) and, one in five, discards, anywhere. */
void content_scatter(pcow_image *image, struct content *c, struct rng *rng, unsigned count);

/* The image, as it is open, or the view of the file at PATH that SNAPSHOT (NULL: the head) names, must
 * read as C and have its size. LABEL says in a failure which step it was. */
void content_compare(pcow_image *image, const struct content *c, const char *label);
void content_compare_view(const char *path, const char *snapshot, const struct content *c, const char *label);

/* A raw file of random bytes, returned as C; SIZE need not be whole pages, C's is rounded up. */
struct content content_raw_file(const char *path, uint64_t size, struct rng *rng);

/* A snapshot and what it should read as. */
void content_snapshot(pcow_image *image, const char *name, const struct content *head, struct content *copy);

#endif
