/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A state as what it takes of each pending line. Shared by media-build.c and media-states.c.
 */
#ifndef CRASH_MEDIACHOICE_H
#define CRASH_MEDIACHOICE_H

#include "mediastate.h"

#include "testlib.h"

/* One changed word of a pending line. */
struct word {
  uint16_t offset;              /* in the line */
  uint64_t value;
};

/* After how many words a state may stop. */
struct stop {
  unsigned words;
  bool whole;                   /* the store is complete */
  uint64_t number;              /* of the store */
};

struct choice {
  unsigned file;
  uint64_t line;                /* of the file; a length: UINT64_MAX */
  GArray *words;                /* struct word; a length: none */
  GArray *stops;                /* struct stop; [0] is: none */
  unsigned wholes;              /* stops that are whole, [0] included */
};

/* What a state takes of a choice: up to a stop, and in MASK words of the store after it. */
struct pick {
  unsigned stop;
  uint64_t mask;
};

struct state_page {
  uint64_t number;
  const uint8_t *durable;
  bool zero;                    /* when durable */
  unsigned first, end;          /* choices of its lines */
};

struct state_file {
  struct media_file *file;
  char *path;
  GArray *pages;                /* struct state_page, in order */
  unsigned size_choice;         /* UINT_MAX: its length is certain */
  uint64_t *bases;              /* hash of what is not pending, for each length that it can have */
};

struct run_states {
  struct media *media;
  struct state_file *files;
  unsigned file_count;
  GArray *choices;              /* struct choice, by file and line; lengths come last */
  unsigned lines;               /* the choices that are lines */
  struct pick *picks;
  GHashTable *seen;             /* of hashes */
  struct rng rng;
  media_state_fn fn;
  void *opaque;
  struct media_state state;
  int result;
  unsigned left;                /* states that may still be built */
};

static inline struct choice *choice_at(const struct run_states *r, unsigned i)
{
  return &g_array_index(r->choices, struct choice, i);
}

static inline const struct stop *stop_at(const struct choice *c, unsigned i)
{
  return &g_array_index(c->stops, struct stop, i);
}

/* All choices of the present moment; how many combinations, of whole stores only. */
GArray *choices_find(const struct media *m);
uint64_t choices_product(const GArray *choices, bool whole);

/* What is to be built in DIR. */
void build_begin(struct run_states *r, const char *dir);
void build_end(struct run_states *r);

/* Builds what is picked, unless it was seen. False: it is enough. */
bool build(struct run_states *r, const char *how);

#endif
