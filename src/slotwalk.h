/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Walks an untrusted unit map and its chains of slots by reading the file: every index, owner and
 * length is validated before use, and a chain can be no longer than there are slots.
 */
#ifndef PCOW_SLOTWALK_H
#define PCOW_SLOTWALK_H

#include "geometry.h"
#include "superblock.h"

#include <glib.h>

struct slot_info {
  uint64_t index;
  uint64_t unit;
  uint32_t epoch;
  uint64_t previous;            /* index of the next older slot, 0: none */
};

/* One unit-map word as an index, 0: none. -EUCLEAN when it is no valid reference. */
int slotwalk_map(int fd, const char *path, const struct superblock *sb, uint64_t unit, uint64_t *index);

/* Reads COUNT map words from unit FIRST at once (raw words, host order, not validated). */
int slotwalk_map_words(int fd, const char *path, uint64_t first, uint64_t count, uint64_t *words);

/* Validates a map or previous-slot word. */
int slotwalk_reference(const char *path, const struct superblock *sb, uint64_t unit, uint64_t word,
                       uint64_t *index);

/* Reads and validates one header, which must belong to UNIT. */
int slotwalk_header(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                    uint64_t index, struct slot_info *info);

/* Appends the chain that begins at INDEX (struct slot_info) to CHAIN, newest first. */
int slotwalk_chain(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                   uint64_t index, GArray *chain);

/* The same for who walks many chains while nobody changes any: headers are read a page at a time. */
#define SLOT_WINDOW 64u         /* divides the slots of a group */
struct slot_window {
  uint64_t first;               /* slot; 0: nothing was read */
  struct pcow_disk_slot slots[SLOT_WINDOW];
};
int slotwalk_chain_window(int fd, const char *path, const struct superblock *sb, uint64_t unit,
                          uint64_t index, struct slot_window *window, GArray *chain);

/* Reads a slot's presence bitmap for pages [first, first + n) of the unit, both multiples of 64 (or
 * the unit's page count), into WORDS (host order). */
int slotwalk_bitmap(int fd, const char *path, const struct geometry *g, uint64_t index, uint64_t first,
                    uint64_t n, uint64_t *words);

/* The same, allocated, for bitmaps that are kept: memory only for what is no hole. NULL with *ERROR. */
uint64_t *slotwalk_bitmap_new(int fd, const char *path, const struct geometry *g, uint64_t index,
                              uint64_t first, uint64_t n, int *error);

/* CRC of a slot's identity, and the owner word as it lies on the media (host order). */
uint32_t slot_identity_crc(uint64_t unit, uint32_t epoch, uint64_t index);
uint64_t slot_owner_word(uint64_t unit, uint32_t epoch, uint64_t index);

/* pread(2) that fails on short reads: -EUCLEAN "ends at …". What lies beyond the end of the file but
 * within table regions reads as zeros if ALLOW_EOF. */
int file_read(int fd, const char *path, uint64_t offset, void *buffer, size_t length, bool allow_eof);

#endif
