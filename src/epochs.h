/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The epoch log and the tree of epochs that it describes. The log is a ring of records, numbered on
 * and on; the superblock bounds it by numbers. A later record with the same id supersedes an earlier
 * one. Old records are left behind (log_start rises) when superseded, and copied to the end when they
 * still live and the ring has grown to several times what lives.
 */
#ifndef PCOW_EPOCHS_H
#define PCOW_EPOCHS_H

#include "superblock.h"

#include <glib.h>

struct epoch {
  uint32_t id;
  uint32_t parent;
  enum epoch_state state;       /* EPOCH_SNAPSHOT or EPOCH_DELETED */
  uint8_t guid[16];
  int64_t created_sec;
  uint32_t created_nsec;
  uint64_t virtual_size;
  uint64_t floor;
  uint64_t number;              /* of its newest record */
  char name[SNAPSHOT_NAME_MAX + 1];
};

struct epochs {
  GHashTable *by_id;            /* id → struct epoch *, owned */

  /* private to epochs.c */
  GTree *by_name;               /* living snapshots: name → struct epoch *. Not hashed: names can be
                                   made that have all the same hash */
  GTree *by_number;             /* number → struct epoch *: the first is where the ring must begin */
  GHashTable *pending;          /* id → what epochs_append() wrote of it and no commit confirmed yet */
  uint64_t committed_start;     /* sb->log_start as on the media */
};

struct epoch_sight {
  uint32_t id;
  uint64_t limit;               /* bytes: what lies above is hidden from the viewer */
};

/* What an epoch sees: itself and its ancestors, from the epoch itself to the root. */
struct epoch_view {
  uint64_t base_limit;          /* bytes of the base that are seen */
  GHashTable *index;            /* id → position + 1; NULL: they are few, and gone through */
  unsigned count;
  struct epoch_sight sights[];
};

/* What is wrong with the LENGTH bytes of NAME as the name of a snapshot (docs/format.md, section 5), as the
 * rest of a sentence that begins "the name"; NULL: nothing. */
const char *epoch_name_fault(const char *name, size_t length);

/* Reads and validates the log: records, CRCs, ids, a tree without cycles in which every parent and
 * the head's parent exist. -EUCLEAN. */
int epochs_load(int fd, const char *path, const struct superblock *sb, struct epochs **epochs);
void epochs_free(struct epochs *e);

/* NULL when there is none. */
struct epoch *epochs_get(const struct epochs *e, uint32_t id);
struct epoch *epochs_find(const struct epochs *e, const char *name); /* living snapshots only */

/* Living snapshots, oldest id first: array of struct epoch * (borrowed). */
GPtrArray *epochs_snapshots(const struct epochs *e);

/* Number of epochs, and the head when it counts, whose parent is ID. */
unsigned epochs_children(const struct epochs *e, const struct superblock *sb, uint32_t id);

/* Number of deleted epochs that collection can deal with: at most one living branch sees what is theirs. */
unsigned epochs_pending(const struct epochs *e, const struct superblock *sb);

/* The view of epoch ID at SIZE, whose floor is FLOOR: sights begin with ID itself (limit SIZE) unless
 * SKIP_SELF, then its ancestors, each limited by the smallest floor on the way, the viewer's own
 * included. For a snapshot pass its own parent, virtual_size and floor. */
struct epoch_view *epoch_view_make(const struct epochs *e, uint32_t id, uint32_t parent, uint64_t size,
                                   uint64_t floor, bool skip_self);
void epoch_view_free(struct epoch_view *v);

/* Limit of what VIEW sees of epoch ID; 0: nothing. */
uint64_t epoch_view_limit(const struct epoch_view *v, uint32_t id);

/* Writes RECORD (its number is not looked at; GONE: drop the epoch) at sb->log_end, makes it durable,
 * and raises sb->log_end in memory; it takes effect with the caller's commit of SB. Several records may
 * go into one commit. -EMFILE when there are too many epochs for one more. Leaves superseded records
 * behind by raising sb->log_start, copying living ones on where needed. The in-memory tree is changed
 * by epochs_apply(), after the commit and before the next begins. */
int epochs_append(struct persist *p, const char *path, struct epochs *e, struct superblock *sb,
                  const struct epoch *record, bool gone);

/* Makes the in-memory tree what the appended record says. NUMBER: sb->log_end as it was before its
 * epochs_append(). */
void epochs_apply(struct epochs *e, const struct epoch *record, bool gone, uint64_t number);

#endif
