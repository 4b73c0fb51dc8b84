/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One session of test-model: an image with its chain of bases, and what each of its views must read
 * as. test-model.c runs sessions, model-bases.c makes what lies beneath, model-ops.c changes the image
 * and the reference alike, model-store.c does the same through the map, model-struct.c with structural
 * operations, model-view.c compares, model-durable.c knows what a crash may leave.
 */
#ifndef PCOW_TEST_MODEL_WORLD_H
#define PCOW_TEST_MODEL_WORLD_H

#include "model.h"

#define SNAPS_MAX 6
#define BASES_MAX 48
#define FILES_MAX 16
#define HISTORY 20

#define MODE_STORE 1u /* store-durable maps */
#define MODE_FLUSH 2u

struct snap {
  char name[48];
  unsigned key, parent; /* the model's own numbers; parent 0: none */
  struct model *content;
  pcow_image *handle; /* held open by the test, or NULL */
  pcow_mapping *map;
};

struct file {
  char *path;
  uint32_t format;
  int over; /* what it is layered on: an index of bases, or -1 */
};

/* What an image can be layered on. */
struct base {
  int file;
  char snapshot[48]; /* "": the head, or a raw file */
  struct model *content;
  bool stale; /* something beneath was changed by a commit: must be refused */
  bool dead; /* not to be used any more */
};

struct world {
  uint64_t seed, op;
  unsigned session;
  struct rng rng;
  unsigned modes; /* MODE_*; 0: nothing is mapped for writing */
  bool msync; /* stores cannot be durable here */
  unsigned threads, layers;
  uint64_t unit, size_max, max_maps;
  bool large; /* several units of 128 MiB: few comparisons */

  struct file files[FILES_MAX];
  unsigned file_count;
  struct base bases[BASES_MAX];
  unsigned base_count;
  int base; /* of the image, or -1 */

  char *path;
  pcow_image *image;
  struct model *head;
  unsigned head_parent, next_key;
  struct snap snaps[SNAPS_MAX];
  unsigned snap_count;

  pcow_mapping *map;
  bool flush_durable; /* the map is */
  unsigned char *address;
  struct durable *durable;
  void *reserved; /* address space that the test owns, or NULL */
  uint64_t reserved_length, reserve;

  char history[HISTORY][160];
  unsigned history_count;
  unsigned long compared, bytes_compared, maps, merges, checks, flushes, flushed, handed_over, older, cuts;
};

/* The session that runs, for the report of a failure. */
extern struct world *world_now;

/* Notes the operation for the report. */
void world_say(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Opens the image for writing; closes it, its map included. */
void world_open(struct world *w);
void world_close(struct world *w);

/* ---- model-bases.c ---- */

void bases_build(struct world *w, uint64_t size);
void bases_compare(struct world *w);
/* The path as given to pcow: absolute, or relative to the image's directory. */
const char *bases_spelling(struct world *w, const char *path);
const struct model *bases_content(const struct world *w, int base);
/* The head BASE was changed. */
void bases_changed(struct world *w, int base, bool differs);
/* Random content, bytes 0 … size - 1. */
void bases_patch(struct world *w, pcow_image *image, struct model *c);

/* ---- model-view.c ---- */

/* Compares every live view byte for byte. */
void views_compare(struct world *w);
void view_compare(struct world *w, const char *name, pcow_image *image, const struct model *c);
void view_compare_map(struct world *w, const char *name, pcow_mapping *map, const struct model *c);
void view_check_file(struct world *w);
void view_list(struct world *w);

/* ---- model-durable.c ---- */

void durable_begin(struct world *w);
void durable_end(struct world *w);
/* The head as the reference has it is about to change. May sync. */
void durable_note(struct world *w);
/* The words of the range, or all of the head, are durable as they are. */
void durable_range(struct world *w, uint64_t offset, uint64_t length);
void durable_all(struct world *w);
/* Words are about to be stored that may have been stored since durable_note(), too. */
void durable_store(struct world *w, uint64_t offset, const uint64_t *value, unsigned words);
/* Every word of IMAGE, a copy of the head as a crash would leave it, is one that may be. */
void durable_compare(struct world *w, const char *name, pcow_image *image);

/* ---- operations; each draws its own arguments ---- */

void op_pwrite(struct world *w);
void op_pread(struct world *w);
void op_discard(struct world *w);
void op_zeroes(struct world *w);
void op_flush(struct world *w);
void op_sync(struct world *w);
void op_dma(struct world *w);
void op_stores(struct world *w);
void op_self_copy(struct world *w);
void op_map(struct world *w);
void op_unmap(struct world *w);
void op_extents(struct world *w);
void op_diff(struct world *w);

void op_snapshot(struct world *w);
void op_delete(struct world *w);
void op_revert(struct world *w);
void op_resize(struct world *w);
void op_rebase(struct world *w);
void op_commit(struct world *w);
void op_reopen(struct world *w);
void op_hold(struct world *w);
void op_release(struct world *w);
void op_child(struct world *w);
void op_crash_copy(struct world *w);
void op_refused(struct world *w);

/* Ends the map with a good chance, for what cannot be done while the image is mapped. */
void world_maybe_unmap(struct world *w, unsigned percent);
void world_map(struct world *w);
void world_unmap(struct world *w);
/* Adds the map's statistics. */
void world_count(struct world *w);
/* Takes one of what the head is; there is room for it. */
struct snap *world_snapshot(struct world *w);
void world_unreserve(struct world *w);
void snap_release(struct snap *s);
/* A random range within SIZE of at most MAX bytes, more often than not on page boundaries. */
void world_range(struct world *w, uint64_t size, uint64_t max, uint64_t *offset, uint64_t *length);

#endif
