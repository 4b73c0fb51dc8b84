/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resolves a range of a layer's view, top down through slots and bases, into runs of pages in files.
 * Each layer costs a look at its unit map and the bitmaps of its slots, until nothing is left open.
 */
#ifndef PCOW_VIEW_H
#define PCOW_VIEW_H

#include "layer.h"

#include <glib.h>

enum run_kind {
  RUN_ZERO,                     /* nothing stored: reads as zeros. layer is NULL */
  RUN_DATA,                     /* backed by blocks of layer's file at offset */
  RUN_MASK                      /* present but a hole of layer's file: zeros that hide what is beneath */
};

struct run {
  uint64_t page;                /* first, of the view */
  uint64_t count;
  enum run_kind kind;
  struct layer *layer;          /* borrowed */
  uint64_t offset;              /* of page, in the file */
};

/* Appends to RUNS (of struct run) what [first, first + count) consists of: sorted, without gaps,
 * neighbours that continue each other merged. */
int view_resolve(struct layer *top, uint64_t first, uint64_t count, GArray *runs);

/* The first page of [page, end) at which TOP or a layer beneath may have something, END if none: what is
 * passed over reads as zeros. Costs by what the files hold, not by the range. TOP may be NULL. */
int view_next(struct layer *top, uint64_t page, uint64_t end, uint64_t *next);

/* Whoever resolves at most so much at a time has at most as many runs: 1.25 MiB. */
#define VIEW_PIECE_BYTES (UINT64_C(128) << 20)
#define VIEW_PIECE_PAGES (VIEW_PIECE_BYTES >> PAGE_SHIFT)

/* Resolved pieces of one layer's view, at most 128 MiB each, kept while the view cannot change: up to 2^20
 * runs in all, then those used longest ago are dropped. Thread-safe. */
struct view_cache;

struct view_cache *view_cache_new(struct layer *top, uint64_t unit_pages);
void view_cache_free(struct view_cache *c);
/* One unit is to be resolved again: its slots changed, and may have been used again. */
void view_cache_forget(struct view_cache *c, uint64_t unit);
/* TOP's view changed (NULL: as before). */
void view_cache_reset(struct view_cache *c, struct layer *top);
/* Reads LENGTH bytes at byte OFFSET of the view. */
int view_cache_read(struct view_cache *c, uint64_t offset, void *buffer, size_t length);

/* Goes through the runs of a view, resolved as it gets to them. Holds one piece at a time. */
typedef struct view_cursor {
  struct view_cache *cache;
  GArray *runs;
  unsigned at;
} view_cursor;

/* The run that holds PAGE (beyond the view's size all is zero); pages of the whole view. Runs end with
 * their piece at the latest. Valid until the next call; NULL with *ERROR on failure. */
const struct run *view_cursor_at(struct view_cursor *cursor, uint64_t page, int *error);
void view_cursor_end(struct view_cursor *cursor);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(view_cursor, view_cursor_end)

/* Position in RUNS of the run that holds PAGE. */
unsigned view_find(const GArray *runs, uint64_t page);

/* Reads LENGTH bytes at byte OFFSET within what RUNS cover. */
int view_read(const GArray *runs, uint64_t offset, void *buffer, size_t length);

#endif
