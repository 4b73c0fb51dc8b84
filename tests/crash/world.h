/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image may hold after a power cut. A face, what one view shows, keeps for each page what is
 * durable and every later content that was not acknowledged: each 8-byte word may have the value of any
 * of them. A world is a head and its snapshots; an expectation is a list of worlds, of which an image must be exactly one: two
 * while an operation runs that takes effect at once.
 */
#ifndef CRASH_WORLD_H
#define CRASH_WORLD_H

#include "testlib.h"

#include <glib.h>

/* MIN() evaluates twice. */
static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Every word of a pattern tells its version (1 … 2^31 - 1) and its place. */
uint64_t pattern_word(uint64_t version, uint64_t offset);
void pattern_fill(void *buffer, uint64_t version, uint64_t offset, uint64_t length);
/* A word in words, for messages. */
char *pattern_describe(uint64_t word);

/* 4096 bytes that never change, shared by those who hold them. */
struct page {
  gint holders;
  unsigned char bytes[PCOW_PAGE_SIZE];
};

/* A later content of a page (PAGE) or of one word of it. */
struct later {
  struct page *page;
  uint64_t value;
  uint32_t word;
  bool stored;                  /* a word: the store has been made */
};

struct cell {
  struct page *durable;
  struct later *later;
  unsigned count, space;
};

struct face {
  uint64_t size;
  struct cell *cells;
};

/* What was read of an image. */
struct shown {
  uint64_t size;
  unsigned char *bytes;
  bool *data;                   /* which pages were read, the others being zeros; NULL: all */
};

struct face *face_new(uint64_t size);   /* zeros */
struct face *face_copy(const struct face *v);
/* As it is seen now, all of it durable; stores that are being made stay open. */
struct face *face_frozen(const struct face *v);
void face_free(struct face *v);
void face_resize(struct face *v, uint64_t size); /* what is added is zeros, durably */

/* Not durable yet. */
void face_write(struct face *v, uint64_t offset, const void *data, uint64_t length);
void face_zero(struct face *v, uint64_t offset, uint64_t length);
/* One word, before it is stored and after. */
void face_storing(struct face *v, uint64_t offset, uint64_t value);
void face_stored(struct face *v, uint64_t offset, uint64_t value);
/* The words of a range are durable as they were stored last. */
void face_persisted(struct face *v, uint64_t offset, uint64_t length);
/* Everything is; words that were stored through a mapping only with WORDS. */
void face_settle(struct face *v, bool words);
/* SHOWN is what the image turned out to hold, durably. */
void face_adopt(struct face *v, const struct shown *shown);
/* As it is seen now. */
void face_read(const struct face *v, uint64_t offset, void *buffer, uint64_t length);

/* Is each word of SHOWN, which has the same size, one that may be there? If not and WHY is not NULL, it gets
 * a sentence. */
bool face_allows(const struct face *v, const struct shown *shown, GString *why);
/* A page with something that is not durable, at random, or any page. */
uint64_t face_open_page(const struct face *v, struct rng *rng);

struct snapshot {
  char name[24];
  struct face *face;
};

struct world {
  char *label;                  /* "before the deletion of 'a'" */
  struct face *head;
  GPtrArray *snapshots;         /* struct snapshot */
};

struct world *world_new(uint64_t size);
struct world *world_copy(const struct world *w, const char *label);
void world_free(struct world *w);
struct snapshot *world_find(const struct world *w, const char *name);
void world_add(struct world *w, const char *name, struct face *view); /* takes VIEW over */
void world_remove(struct world *w, const char *name);

#define WORLDS_MOST 4u

struct expect {
  struct world *worlds[WORLDS_MOST];
  unsigned count;
};

struct expect *expect_new(struct world *w);
struct expect *expect_copy(const struct expect *e);
void expect_free(struct expect *e);
void expect_add(struct expect *e, struct world *w);
/* W, one of the worlds, is the one; the others go. */
void expect_choose(struct expect *e, struct world *w);

#endif
