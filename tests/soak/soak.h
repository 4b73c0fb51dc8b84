/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The soak: workers change images of their own, the supervisor kills them. What a worker was told is
 * kept in memory that it shares with the supervisor, which no kill takes away: the model of each of its
 * images, and one operation that is under way (`struct op`). A result is acknowledged by one store to the
 * operation's phase, and only then put into the model; whoever comes after a kill does that again. So
 * the model is exact at every moment: each page has the acknowledged content, or, where an
 * operation was under way, what it was about to become.
 *
 * Content: a page has 8 blocks, a block 64 words: magic, writer and place, sequence number, checksum, and
 * words that follow from these. So a block says who wrote it, and no word of one block is a word of another.
 */
#ifndef PCOW_SOAK_H
#define PCOW_SOAK_H

#include "../testlib.h"

#include <stdatomic.h>
#include <sys/types.h>

#define BLOCK 512u
#define BLOCK_WORDS (BLOCK / 8)
#define PAGE_BLOCKS (PCOW_PAGE_SIZE / BLOCK)
#define PAGES_MAX 512u
#define PAGES_MIN 128u
#define BLOCKS_MAX (PAGES_MAX * PAGE_BLOCKS)
#define LANES 16u /* the first pages: words of the second thread, nothing else */
#define IMAGES 4u
#define SNAPS 6u
#define WORKERS_MAX 16u
#define LOG 64u

#define MODE_STORE 1u /* store-durable maps */
#define MODE_FLUSH 2u
#define COMMON_WRITER 255u

/* What one view shows. */
struct view {
  uint64_t size;
  uint32_t lane[LANES];
  uint32_t block[BLOCKS_MAX]; /* sequence numbers; 0: zeros */
};

enum base_kind { BASE_NO, BASE_COMMON, BASE_RAWFILE, BASE_SNAP, BASE_TIP };

struct base {
  uint32_t kind;  /* enum base_kind; SNAP and TIP: a snapshot, or the head, of another image of the worker */
  uint32_t image;
  uint32_t id;    /* SNAP: the snapshot's */
};

struct snap {
  uint32_t id; /* 0: not there */
  uint32_t lane_from, lane_limit; /* limit not 0: its lanes are still to be read; stores with these numbers
                                     may be there, or not */
  struct view view;
};

struct image {
  bool exists;
  struct base base;
  uint64_t unit;
  struct view head;              /* after everything that returned */
  uint32_t durable[BLOCKS_MAX];  /* what was made visible to other processes; a page shows either */
  struct snap snap[SNAPS];
};

enum kind {
  OP_WRITE, OP_STORE, OP_ZERO, OP_DISCARD, OP_FLUSH, OP_CLOSE, OP_SNAPSHOT, OP_DELETE, OP_REVERT, OP_RESIZE,
  OP_CREATE, OP_REMOVE, OP_REBASE, OP_COMMIT, OP_MAP, OP_UNMAP, OP_OPEN, OP_KINDS
};

extern const char *const kind_names[OP_KINDS];

enum phase { IDLE, INTENT, ACKED };

struct op {
  _Atomic uint32_t phase;
  uint32_t kind;
  uint32_t image, other; /* other: what it is committed into */
  uint32_t first, end;   /* blocks */
  uint32_t seq;
  uint32_t id, slot;     /* of a snapshot */
  uint32_t durable;      /* what returns can be seen by all at once; UNMAP: it flushed all */
  uint32_t lane_from, lane_limit;
  uint64_t size, size_before, unit;
  struct base base;
  uint32_t lane[LANES];
};

struct worker {
  struct image image[IMAGES];
  struct op op;
  uint32_t next_seq, next_id;

  /* The second thread stores number lane_begun, and when that is durable, by whatever the map needs for that,
   * lane_acked follows. */
  _Atomic int32_t lane_image; /* -1: it does not run */
  uint32_t lane_first;        /* the first number of this run */
  _Atomic uint32_t lane_begun, lane_acked;

  /* Supervisor and worker. */
  _Atomic uint32_t incarnation;
  _Atomic uint64_t progress;
  _Atomic uint32_t recovered;  /* it is past the verification of everything */
  _Atomic uint32_t kill_kind;  /* 1 + the kind of operation that starts the clock of the kill; 0: none */
  _Atomic uint32_t kill_usec;
  _Atomic uint32_t held;       /* a writer waits for space */

  _Atomic uint64_t done[OP_KINDS], killed[OP_KINDS];
  _Atomic uint64_t reopens, pages, enospc, holds, lane_stores, cuts, readers, torn, leaks;
  _Atomic uint64_t flush_maps, flush_stores, again; /* again: flushes that were repeated for want of space */

  char log[LOG][120]; /* the last operations */
  _Atomic uint32_t log_count;
};

typedef unsigned char page_buffer[PCOW_PAGE_SIZE] __attribute__((aligned(8)));

struct shared {
  uint64_t seed;
  _Atomic uint32_t stop;
  _Atomic uint32_t full;        /* the supervisor fills the file system */
  _Atomic uint64_t full_until;  /* milliseconds; when that ended last */
  _Atomic uint32_t filled;      /* how often */
  uint32_t fills;               /* whether it ever does */
  uint32_t modes;               /* MODE_*: the maps that there can be */
  struct view common, raw;      /* the bases that all workers share */
  struct worker worker[WORKERS_MAX];
};

extern struct shared *shared;
extern struct worker *me; /* in a worker */
extern unsigned my_number;

uint64_t now_ms(void);

/* ---- state.c: content, the model, the journal ---- */

/* The page as the view has it: for writer NUMBER's images. */
void page_make(unsigned char *page, const struct view *v, uint64_t number);
void block_make(uint64_t *words, uint32_t seq, uint64_t page, unsigned block);
uint64_t lane_word(uint32_t number);

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void journal_print(const struct worker *w);

/* Says what is about to be done; arms the kill when this kind was asked for. */
void op_begin(const struct op *op);
/* It returned: from now on it counts. */
void op_end(void);
/* It was refused and has changed nothing. */
void op_refused(void);
/* Puts an acknowledged operation into the model, as often as you like. */
void op_apply(void);

/* Reads all of what is open and compares; at a difference the test ends. EXACT: what returned and no
 * less. Else pages may show what is durable, and the operation under way may be anywhere between before and
 * after; then the model of the head becomes what was found. Gives the number of blocks that were torn. */
unsigned head_verify(pcow_image *image, unsigned index, bool exact);
void view_verify(pcow_image *image, const struct view *v, const char *what);
/* As head_verify(), without failing. */
bool head_is(pcow_image *image, unsigned index);
bool view_is(pcow_image *image, const struct view *v);
/* After -ENOSPC: each block of the operation's range is old or new; the model learns which. */
void range_adopt(pcow_image *image, unsigned index);
/* What the second thread had stored when the snapshot was taken: a prefix. */
void snap_resolve(unsigned index, unsigned slot);

/* ---- recover.c: opening, verifying after a kill ---- */

const char *image_path(unsigned index);
const char *image_name(unsigned index);
const char *snap_name(uint32_t id);
/* The only place that opens images; waits while the file system is full. */
pcow_image *soak_open(const char *path, uint32_t flags, const char *snapshot);
/* Is RESULT a refusal for want of space, and may it be? SINCE: when the operation began. */
bool nospace(int result, uint64_t since);
void snap_verify(unsigned index, unsigned slot);
/* Everything that this worker has. Afterwards no operation is under way. */
void recover(void);
void base_options(const struct base *b, const char **path, uint32_t *format, const char **snapshot);

/* ---- worker.c, structural.c: what a worker does ---- */

struct session {
  struct rng rng;
  unsigned index;
  struct image *image;
  pcow_image *handle;
  pcow_mapping *map;
  bool flush_durable; /* the map is */
  unsigned char *address;
  pcow_image *reader; /* of a snapshot, held open */
  unsigned reader_slot;
};

_Noreturn void worker_main(unsigned number);
bool image_is_base(unsigned index);             /* some image lies on its head */
bool snap_is_base(unsigned index, uint32_t id); /* … on this snapshot */
/* After a refusal: before or after is found by looking. */
void session_restart(struct session *s);

void session_open(struct session *s, unsigned index);
/* False: it was refused for want of space. */
bool session_close(struct session *s);
/* What the second thread has stored and acknowledged; gives the next number, 0 when it does not run. */
uint32_t lanes_now(const struct session *s, uint32_t *lane);

void do_snapshot(struct session *s);
void do_delete(struct session *s);
void do_revert(struct session *s);
void do_resize(struct session *s);
void do_rebase(struct session *s);
void do_commit(struct session *s);
void do_create(struct session *s);
void do_remove(struct session *s);
void do_reader(struct session *s);
void reader_end(struct session *s);

#endif
