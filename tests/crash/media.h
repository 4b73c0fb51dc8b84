/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the media hold after a power cut. Watches the files of one directory through persist's hook and
 * keeps, for each line of each file, what is durable and the stores since, in program order. From that it
 * builds the states that a cut can leave.
 *
 * A line is 64 bytes (PERSIST_PMEM: a cache line) or 512 (PERSIST_MSYNC: a sector of a page that is
 * written back at any time). After a cut a line holds what is durable plus a prefix of its stores, the
 * last of them torn at 8 bytes. A thread's flush makes the line's stores so far durable at that thread's
 * next drain; a sync makes all stores so far, punches and growths durable. A punch is a store of zeros
 * to each line that only a sync makes durable.
 */
#ifndef CRASH_MEDIA_H
#define CRASH_MEDIA_H

#include <stdbool.h>
#include <stdint.h>

struct media;

/* Called where a cut is worth a look: before a fence or a sync takes effect, in the thread that fences.
 * The callback may call media_states() and may use the library on other files. */
typedef void (*media_cut_fn)(void *opaque);

/* Watches all files in DIR that are opened for writing from now on (several media can exist: each has its
 * directory). What they hold when opened first is durable. */
struct media *media_new(const char *dir, uint64_t seed, media_cut_fn cut, void *opaque);
void media_free(struct media *m);

/* Compares the files with what is known: stores that nobody announced (a guest's) become pending. Done at
 * every cut as well. */
void media_compare(struct media *m);

/* What a SIGKILL at this moment leaves: the files as all see them now are copied to DIR, and the new media
 * know what of that is durable and what is pending as the old ones do. */
struct media *media_killed(struct media *m, const char *dir, media_cut_fn cut, void *opaque);

/* Everything is durable (the machine ran on for long). */
void media_settle(struct media *m);

struct media_state {
  unsigned number;              /* of the state at this cut */
  unsigned pending;             /* lines that were pending */
  unsigned kept;                /* of them, lines that are not as they were durable */
  uint64_t hash;                /* of all files' content and length */
  const char *how;              /* "none", "all", "all but one", "one", "prefixes", "sample" */
};

/* Writes states to DIR, one after the other, holes as holes, with the names of the files, and calls FN for
 * each: all of them when at most LIMIT, else the telling ones (nothing, everything, all but one line, one line
 * alone, each page) and a seeded sample. FN may change the files in DIR. A result other than 0 ends it and
 * is returned. States whose content was seen at this cut already are not built twice. */
typedef int (*media_state_fn)(void *opaque, const struct media_state *state);
int media_states(struct media *m, const char *dir, unsigned limit, media_state_fn fn, void *opaque);

/* Of the present moment: lines with anything pending, and the number of states (saturating at UINT64_MAX). */
unsigned media_pending(const struct media *m);
uint64_t media_state_count(const struct media *m);

struct media_counts {
  uint64_t stores, flushes, drains, syncs, punches, growths, cuts;
  uint64_t unannounced;         /* stores found by comparing */
};

void media_get_counts(const struct media *m, struct media_counts *counts);

#endif
