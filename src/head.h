/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The head of a writable image: which of its units have a slot and which pages are present, in memory
 * and authoritative for this process, and the order in which pages become present on the media
 * (docs/format.md, steps 1 and 2). A present page lies at head_page_offset() in the file.
 *
 * Presence that was set in memory but not yet on the media is *pending*; head_settle() publishes it in
 * two fences, however much it is. A caller that cannot wait settles at once. While the image is mapped
 * nothing stays pending beyond a unit's lock: a fault may take what it finds present as durable.
 *
 * Everything on one unit happens between head_lock_unit() and head_unlock_unit(); pages are numbered
 * within the unit there, ranges are [first, end).
 *
 * A first write may let the lock go while it copies pages from beneath (HEAD_UNLOCKED). These are *in flight*:
 * head_lock_unit() waits until none is, so whoever has the unit that way has all of it, as if copies held the
 * lock. Who has it from head_lock_beside() has the pages that are not in flight.
 */
#ifndef PCOW_HEAD_H
#define PCOW_HEAD_H

#include "bits.h"
#include "slots.h"
#include "store.h"
#include "view.h"

/* Pages that are copied while the unit is not locked. */
struct flight {
  uint64_t first, end;
  struct flight *next;
};

struct unit {
  uint64_t number;
  uint64_t slot;                /* index of the head's slot, 0: none */
  uint64_t *present;            /* unit_pages bits; NULL without a slot */
  bool linked;                  /* the chain reaches the slot on the media */
  bool clean;                   /* pages that are not present are holes of the data area */
  uint64_t *unsettled;          /* bits set in memory but not on the media; NULL: never any */
  uint64_t unsettled_first;     /* all of them lie in [unsettled_first, unsettled_end) */
  uint64_t unsettled_end;
  struct flight *flights;       /* apart from each other */
  unsigned waiting;             /* threads that wait until there are none: no copy lets the lock go then */
};

struct head;

/* LOWER: what lies beneath the head (the layer's view leaves the head's epoch out). Borrowed. */
int head_new(struct store *store, struct slots *slots, struct layer *lower, struct head **head);
void head_free(struct head *h);

/* The head became a new epoch, or its size or lower view changed: forgets all units. Nothing may be
 * pending. */
void head_reset(struct head *h, struct layer *lower);

/* The unit's chain is about to be changed by others than the head, or was: settles what is pending of it
 * and forgets it, a prepared slot that was never linked included, and what lies beneath. The image lock
 * is held for writing. */
int head_forget_unit(struct head *h, uint64_t unit);

/* Once a session before any page can be written: renews the content tag. Cheap afterwards. */
int head_begin_session(struct head *h);
/* The same with a tag that the caller drew (a commit into this image announced it). */
int head_begin_session_with_tag(struct head *h, struct content_tag tag);
/* A tag that follows TAG. */
struct content_tag content_tag_next(struct content_tag tag);

/* Number of pages of the unit that lie within the virtual size. */
uint64_t head_unit_pages(const struct head *h, uint64_t unit);

/* NULL with *ERROR when the unit's metadata cannot be read. */
struct unit *head_lock_unit(struct head *h, uint64_t unit, int *error);
/* The same without waiting: NULL with *ERROR -EAGAIN when another thread has it, or pages are in flight. */
struct unit *head_trylock_unit(struct head *h, uint64_t unit, int *error);
/* The same beside copies: pages in flight are not to be touched, nor taken for present or absent. */
struct unit *head_lock_beside(struct head *h, uint64_t unit, int *error);
struct unit *head_trylock_beside(struct head *h, uint64_t unit, int *error);
void head_unlock_unit(struct head *h, struct unit *u);

/* Whether PAGE is in flight. */
bool head_in_flight(const struct unit *u, uint64_t page);
/* Cuts pages [*first, *end) down to those around PAGE, which is not in flight, that are not. */
void head_trim_flights(const struct unit *u, uint64_t page, uint64_t *first, uint64_t *end);

/* What lies beneath the head, by pages of the whole view, resolved piece by piece; use with g_auto(). */
view_cursor head_lower(struct head *h);

/* File offset of a page of a unit that has a slot. */
uint64_t head_page_offset(const struct head *h, const struct unit *u, uint64_t page);

struct head_counts {
  uint64_t copied;              /* pages copied from beneath */
  uint64_t reserved;            /* pages made present over nothing */
};

#define HEAD_RESERVE 1u         /* reserve space also for pages with nothing beneath; else they become
                                   present as holes */
#define HEAD_SKIP_ZERO 2u       /* leave pages with nothing beneath alone */
#define HEAD_UNLOCKED 4u        /* the unit's lock may be let go meanwhile; the pages are in flight then */

/* Makes pages present with the content that they show now. Pending. On failure (-ENOSPC) nothing has
 * become present. COUNTS may be NULL; is added to. -EAGAIN, without a message: not beside copies. */
int head_publish(struct head *h, struct unit *u, uint64_t first, uint64_t end, unsigned flags,
                 struct head_counts *counts);

/* Writes bytes at OFFSET within the unit; pages become present. Pending. BUFFER must not lie in the
 * image's own mapping. */
int head_write(struct head *h, struct unit *u, uint64_t offset, const void *buffer, uint64_t length);

/* Whole pages read as zeros and give their space back: present ones are punched, others become
 * present as holes where something lies beneath. Pending. With KEEP_SPACE all become present and
 * backed, and are zeroed. */
int head_zero(struct head *h, struct unit *u, uint64_t first, uint64_t end, bool keep_space);

/* Reads bytes of the unit: present pages from the head, others from beneath. */
int head_read(struct head *h, struct unit *u, uint64_t offset, void *buffer, uint64_t length);

/* Publishes what is pending of one unit, durably: two fences. The unit is locked. */
int head_settle_unit(struct head *h, struct unit *u);

/* The same for all units, two fences in all, and makes all writes durable. No unit may be locked by
 * the caller. */
int head_settle(struct head *h);

/* Nothing is pending, nor on its way to the media: all that was present before is so durably, but for a fence. Takes no
 * lock. */
bool head_is_settled(const struct head *h);

/* The first unit from UNIT on of which something is pending: the unit map may not name it yet. UINT64_MAX:
 * none. */
uint64_t head_next_pending(struct head *h, uint64_t unit);

/* Space for present pages (a hole after a discard or a sparse copy counts as none). */
int head_reserve_present(struct head *h, struct unit *u, uint64_t first, uint64_t end);

/* Calls FN for each unit in which the head has a slot and that overlaps bytes [first, end); costs by
 * units that have any slot. The unit is locked meanwhile. A result other than 0 ends it. */
typedef int (*head_unit_fn)(struct head *h, struct unit *u, void *opaque);
int head_foreach_unit(struct head *h, uint64_t first, uint64_t end, head_unit_fn fn, void *opaque);

#endif
