/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A fuzz input: up to three sparse files and what is to be done with them, in a few hundred bytes. Any
 * bytes are an input. Checksums are made right when the files are written, unless the input says
 * otherwise, so that a changed field is seen by the code behind the checksum.
 *
 * Serialized, little-endian:  u8 flags, u8 operations, {u8 code, u8 a, u16 b} each, u8 files, and for
 * each file: u8 flags, u64 length, u8 chunks, {u64 offset, u16 length, bytes} each. What is cut short
 * counts as far as it goes.
 */
#ifndef PCOW_FUZZ_INPUT_H
#define PCOW_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INPUT_FILES 3u
#define INPUT_OPS 32u
#define INPUT_CHUNKS 255u
#define INPUT_BYTES (96u << 10)         /* of all chunks */
#define INPUT_END (UINT64_C(1) << 62)   /* where files end at the latest */

/* Flags of an input: what is left as it is. */
#define INPUT_RAW_SUPERBLOCKS 1u
#define INPUT_RAW_RECORDS 2u
#define INPUT_RAW_HEADERS 4u

/* Flags of a file. */
#define FILE_OWN_COPY 1u                /* superblock copy 1 is not made equal to copy 0 */
#define FILE_PLAIN 2u                   /* no image: nothing is made right in it */

struct chunk {
  uint64_t offset;
  unsigned length;
  uint8_t *bytes;
};

struct input_file {
  unsigned flags;
  uint64_t length;
  unsigned chunks;
  struct chunk chunk[INPUT_CHUNKS];
};

struct input_op {
  uint8_t code, a;
  uint16_t b;
};

struct input {
  unsigned flags;
  unsigned ops;
  struct input_op op[INPUT_OPS];
  unsigned files;
  struct input_file file[INPUT_FILES];
  size_t used;
  uint8_t bytes[INPUT_BYTES];
};

extern const char *const input_names[INPUT_FILES];      /* "a", "b", "c" */

void input_parse(struct input *in, const uint8_t *data, size_t size);
/* The length, or 0 when it does not fit. */
size_t input_serialize(const struct input *in, uint8_t *data, size_t size);

/* A chunk at the end of the list; NULL when there is no room. */
struct chunk *input_add(struct input *in, struct input_file *f, uint64_t offset, const void *bytes,
                        unsigned length);

/* A field of up to 8 bytes as the file would have it, and setting it. */
uint64_t input_get(const struct input_file *f, uint64_t offset, unsigned width);
bool input_put(struct input *in, struct input_file *f, uint64_t offset, unsigned width, uint64_t value);

/* Writes the file to FD, which may hold an older one. 0 or -errno. */
int input_write_file(const struct input *in, const struct input_file *f, int fd);

/* Appends what FD holds as a file of its own; of data areas only the first KEEP bytes a page. Checksums
 * that are right are left out. 0, or -E2BIG. */
int input_read_file(struct input *in, int fd, unsigned keep);

#endif
