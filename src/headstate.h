/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What head.c and headpages.c share; private to them.
 */
#ifndef PCOW_HEADSTATE_H
#define PCOW_HEADSTATE_H

#include "head.h"

#include <stdatomic.h>

#define HEAD_STRIPES 64

struct head {
  struct store *store;
  struct slots *slots;
  struct view_cache *cache;     /* what lies beneath */
  GMutex session_lock;
  gint session;                 /* the content tag was renewed */
  GMutex stripes[HEAD_STRIPES]; /* a unit's mutex is that of its number mod HEAD_STRIPES */
  GCond landed[HEAD_STRIPES];   /* with it: a unit has no pages in flight any more */
  GMutex table_lock;            /* innermost: guards the two tables */
  GHashTable *units;            /* number + 1 → struct unit */
  GTree *unsettled;             /* set of number + 1, ordered */
  _Atomic uint64_t pending;     /* how many there are, and how many were taken out that are not settled yet */
  GMutex settle_lock;           /* outermost: one head_settle() at a time */
};

/* The unit has a slot afterwards, prepared if not linked. Owed: a fence, before it is linked. */
int head_ensure_slot(struct head *h, struct unit *u);

/* Lets the lock of a unit go while pages are in flight, and takes it again. Not when somebody waits for all of the
 * unit: then nothing happens, and *F is not used. */
void head_take_off(struct head *h, struct unit *u, struct flight *f, uint64_t first, uint64_t end);
void head_land(struct head *h, struct unit *u, struct flight *f);

/* Pages become present in memory, to be settled. */
int head_mark_present(struct head *h, struct unit *u, uint64_t first, uint64_t end);

#endif
