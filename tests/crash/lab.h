/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A laboratory is a directory with images, the media that watch it, and what the images should hold. At
 * each cut and each acknowledgement it has the media build states of the files in a second directory and
 * verifies each. A state that is opened under media of its own is a laboratory, too: that is the second
 * crash; and so is what a SIGKILL leaves.
 */
#ifndef CRASH_LAB_H
#define CRASH_LAB_H

#include "media.h"
#include "world.h"

#include <stdatomic.h>

/* Over all processes of a run. */
struct counters {
  _Atomic uint64_t operations, cuts, states, second, kills, runs, failures;
  _Atomic uint64_t pending_most;
};

struct options {
  uint64_t seed;
  const char *scenario;         /* name of the one that runs */
  unsigned limit;               /* states a cut */
  unsigned second_in;           /* one of so many states is explored once more; 0: none */
  unsigned kill_in;             /* the same for SIGKILL and cuts */
  const char *keep;             /* directory for the state that fails, or NULL */
  bool pmem;
  bool flush_maps;              /* the kernel has what flush-durable maps need */
  bool empty_only;              /* pages are emptied in each state */
  bool verbose;
};

extern struct counters *counters;
extern struct options options;

struct lab {
  struct lab *above;
  const char *kind;             /* "second crash", "killed", … */
  unsigned depth;               /* 0: the scenario's own */
  char *dir, *states;
  struct media *media;          /* NULL: nobody watches */
  struct rng rng;
  unsigned limit;
  bool quiet;                   /* cuts are not explored now */
  bool within;                  /* this is a cut, within an operation; else it is acknowledged */
  bool threads;                 /* others store meanwhile: only cuts are explored */
  GMutex lock;                  /* expectations, against threads that store */
  GPtrArray *subjects;          /* struct subject; owned */
  char doing[160];
  uint64_t looked_at;           /* changes that the media had seen */
  unsigned cut;
  const struct media_state *state;      /* that is being verified */
  /* Puts into DIR what the media do not watch. NULL: nothing changes but what they watch. */
  void (*place)(struct lab *lab, const char *dir, struct rng *rng);
  void *place_opaque;
  /* Called at every cut. NULL: nothing. */
  void (*look)(struct lab *lab);
  void *look_opaque;
  /* Called where an image is about to be locked for writing, which whoever works in steps does before each of
   * them then. NULL: nothing. */
  void (*between)(struct lab *lab);
  void *between_opaque;
};

/* A laboratory in a new directory under the program's. */
struct lab *lab_new(uint64_t seed);
/* Its media begin now: what the files hold is durable. */
void lab_watch(struct lab *lab);
void lab_free(struct lab *lab);

/* Where the file is, for the caller to free. */
char *lab_path(const struct lab *lab, const char *name);
/* Copies a file that only is read, holes as holes, to where states are built. */
void lab_static(struct lab *lab, const char *name);
void copy_file(const char *from, const char *to);

/* Says what runs now, for messages. */
void lab_doing(struct lab *lab, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* An operation has returned. */
void lab_acknowledged(struct lab *lab);
/* Explores this moment. */
void lab_explore(struct lab *lab);
/* What a SIGKILL leaves, with media of its own, as another laboratory with the same expectations. */
struct lab *lab_killed(struct lab *lab, const char *name);

/* Prints the laboratory, the cut and the state with the sentence, and ends the process. */
_Noreturn void lab_fail(struct lab *lab, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* fsync(2) of a file of this inode so far; the last rename of a file whose content had been made durable. */
uint64_t lab_synced(uint64_t inode);
bool lab_created_in_order(void);

#endif
