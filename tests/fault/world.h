/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An image and what must be in it, in memory that outlives the process that works on it. Each operation
 * notes what it may leave before it begins, and what it has left when it succeeds; an operation that
 * fails must say why and about which file. After a failed fdatasync(2) no operation that promises
 * durability may succeed.
 */
#ifndef PCOW_TEST_WORLD_H
#define PCOW_TEST_WORLD_H

#include "inject.h"
#include "testlib.h"

#define PAGES_MOST 512u
#define VALUES_MOST 10u
#define SNAPSHOTS_MOST 6u
#define UNIT (64 * KIB)
#define TICK_PAGE 100u

/* A page's content: as test_page_fill() makes it, or zeros for seed 0; a WORD that is not 0 was stored
 * over the second one. */
struct value {
  uint64_t seed, word;
};

/* What a page may have. Durable is one of the values from 0 on; seen, one from SURE on. */
struct cell {
  struct value values[VALUES_MOST];
  unsigned count, sure;
};

struct view {
  uint64_t size, size_maybe;    /* bytes */
  uint64_t tick_from, tick_to;  /* of TICK_PAGE, which one thread counts up; 0: it is like the others */
  struct cell cells[PAGES_MOST];
};

struct snapshot {
  char name[16];                /* "": none */
  bool maybe_missing;
  struct view view;
};

struct world {
  struct inject_counts counts;
  char path[512], base[512], other[512];        /* the image, its base or "", another base or "" */
  bool made;                    /* the image is there */
  bool maybe_made;
  bool closed;                  /* cleanly */
  bool gate, gate_next;         /* fdatasync(2) failed: nothing is acknowledged any more, or from the next
                                   operation on */
  bool called;                  /* the callback for space was */
  unsigned failures;            /* of operations */
  unsigned lost_stores;         /* that ended in SIGBUS */
  bool logged;                  /* a sentence that names the image */
  struct view head;
  struct snapshot snapshots[SNAPSHOTS_MOST];
};

extern struct world *world;
extern pcow_image *image;       /* of the process that works; NULL: not open */

/* Operations. 0, or the library's error. What is done here between them is not injected. */
int do_open(uint32_t flags);
int do_close(void);
int do_write(uint64_t page, uint64_t count, uint64_t seed);
int do_discard(uint64_t page, uint64_t count);
int do_zeroes(uint64_t page, uint64_t count);
int do_flush(void);
int do_snapshot(const char *name);
int do_delete(const char *name);
int do_revert(const char *name);
int do_resize(uint64_t size);
int do_rebase(const char *base);
int do_commit(void);
void do_read(uint64_t page, uint64_t count);

void world_use_plan(const struct plan *plan);
bool the_fault_is(enum call call);
/* After inject_plan() with another one. */
void world_restore_plan(void);

/* CALL with faults; notes when it met a failing fdatasync(2) of the image. */
#define RUN(what, promises, call) (run_begin(), run_end(what, promises, call))
void run_begin(void);
int run_end(const char *what, bool promises, int result);

/* An operation returned RESULT: checks its sentence. PROMISES: success means that all is durable. */
int op_done(const char *what, int result, bool promises);

/* The page may have VALUE from now on; has it, when KNOWN. */
void cell_may(struct cell *cell, struct value value);
void cell_has(struct cell *cell, struct value value);
/* What was there when VALUE was not yet stored is gone for good. */
void cell_settle(struct cell *cell, struct value value);
struct value cell_last(const struct cell *cell);
/* May a page with this content be there? SEEN: as who had no crash sees it. */
bool cell_fits(const struct cell *cell, const uint64_t *page, bool seen);
void value_fill(void *page, struct value value);
bool value_is(const void *page, struct value value);

/* In a process without faults: everything that must be there is. */
void world_verify(void);

#endif
