/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A source of content: a pcow image at its head or at a snapshot, or a raw file or block device. Read
 * through one interface: size, bytes, and which ranges hold data at all.
 */
#ifndef SOURCE_H
#define SOURCE_H

#include "bases.h"

#include <libpcow/libpcow.h>
#include <stdbool.h>
#include <stdint.h>

struct source;

struct source_extent {
  uint64_t offset;
  uint64_t length;
  bool zero; /* nothing is stored: reads as zeros */
};

/* Opens FILE[@SNAPSHOT] for reading, with its bases. SNAPSHOT, if not NULL, is a name given by an option instead.
 * FORMAT NONE: told by the file's first bytes. 0, or COMMAND_FAILED with the error recorded. */
int source_open(const struct bases *bases, const char *name, const char *snapshot, enum pcow_format format,
                struct source **source);

void source_close(struct source *source); /* NULL: nothing */

const char *source_path(const struct source *source);
enum pcow_format source_format(const struct source *source);
uint64_t source_size(const struct source *source);

/* NULL unless the source is a pcow image. */
pcow_image *source_image(const struct source *source);

/* Reads COUNT bytes, which must lie inside. 0 or COMMAND_FAILED. */
int source_read(struct source *source, void *buffer, size_t count, uint64_t offset);

/* The rest, from OFFSET on, of the extent that OFFSET is in; its neighbour may be of the same kind.
 * Cheap when offsets ascend. 0 or COMMAND_FAILED. */
int source_extent(struct source *source, uint64_t offset, struct source_extent *extent);

#endif
