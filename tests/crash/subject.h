/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An image under test and what it should hold. Each operation changes the expectation before the library
 * is called (the old world and the new one), explores what the laboratory's media can be like, and knows
 * afterwards which world it is.
 */
#ifndef CRASH_SUBJECT_H
#define CRASH_SUBJECT_H

#include "lab.h"

#define UNIT (64 * KIB)
#define HINTS_MOST 6u

struct subject {
  struct lab *lab;
  char *name, *path;
  struct expect *expect;        /* NULL while a state is being opened: */
  const struct expect *given;   /* what the laboratory above expects */
  pcow_image *image;
  pcow_mapping *map;
  uint64_t *address;            /* of the map */
  bool flush_durable;           /* the map is */
  uint64_t version;             /* last one that was written */
  uint64_t *own;                /* pages that the image ever had of its own: bits */
  uint64_t hints[HINTS_MOST];   /* pages that were not durable at the cut */
  unsigned hint_count;
  bool watched;                 /* the laboratory's media know the file: it was opened */
  bool is_base;                 /* of another subject: written last */
  bool retired;                 /* no longer what it was: not looked at any more */
  bool torn;                    /* it comes from a cut within an operation: so may be a superblock copy */
  bool damaged;                 /* one copy of the superblock was damaged on purpose */
  char racing[24];              /* snapshot that is being taken while threads store, or "" */
};

/* An empty image of the laboratory, created and closed. BASE and FORMAT as for pcow_create(); HEAD: what
 * it shows over the base, or NULL. */
struct subject *subject_new(struct lab *lab, const char *name, uint64_t size, const char *base,
                            uint32_t format, const char *base_snapshot, const struct face *head);
/* The same image in the laboratory BELOW; expects what S expects. */
struct subject *subject_in(struct subject *s, struct lab *below);
void subject_free(struct subject *s);

/* The one world that is now. */
struct world *subject_world(struct subject *s);
uint64_t subject_size(struct subject *s);

int subject_try_open(struct subject *s, const struct pcow_open_options *how);
void subject_open(struct subject *s);
void subject_close(struct subject *s);
void subject_write(struct subject *s, uint64_t offset, uint64_t length);
/* COUNT writes of pages or parts of them anywhere. */
void subject_scatter(struct subject *s, unsigned count);
void subject_discard(struct subject *s, uint64_t offset, uint64_t length);
void subject_zero(struct subject *s, uint64_t offset, uint64_t length, uint32_t flags);
void subject_flush(struct subject *s);
void subject_snapshot(struct subject *s, const char *name);
void subject_delete(struct subject *s, const char *name);
void subject_revert(struct subject *s, const char *name);
void subject_resize(struct subject *s, uint64_t size);
/* Safe: content stays. With SHOWN (unsafe): pages that the image does not have are SHOWN's then. */
void subject_rebase(struct subject *s, const char *base, uint32_t format, const char *snapshot,
                    const struct face *shown);

/* Store-durable. The caller has made sure that the mode allows it. */
void subject_map(struct subject *s);
/* Flush-durable. THIN: of enum pcow_thin. */
void subject_map_flush(struct subject *s, uint32_t thin);
void subject_unmap(struct subject *s);
/* Words of a range, in order, of a flush-durable map; nothing makes them durable. */
void subject_put(struct subject *s, uint64_t offset, uint64_t length);
/* pcow_flush(). False: there was no space, and nothing is promised. */
bool subject_flush_range(struct subject *s, uint64_t offset, uint64_t length);
/* One word; with PERSIST it is durable afterwards. By any thread. */
void subject_store(struct subject *s, uint64_t offset, uint64_t value, bool persist);
/* Words of a range, in order, then one persist. */
void subject_store_range(struct subject *s, uint64_t offset, uint64_t length);

#endif
