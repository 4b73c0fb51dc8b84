/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the parts of pcow_check() share: what is being checked, what was found, and the changes that would
 * repair it. Looking only collects; checkrepair.c alone changes the file. Every change is one word, one
 * hole, or the file's length, and each is right by itself, in any order with the others.
 *
 *   check.c       the whole, superblocks, base
 *   checklog.c    the epoch log and the tree
 *   checktree.c   where each epoch stands in the tree, and what of it anybody sees
 *   checkchain.c  the unit map and the chains
 *   checkorphan.c what a damaged reference led to, found again by its headers
 *   checkloss.c   which pages of which views a damage takes
 *   checkspace.c  bitmaps, and blocks that nobody sees
 *   checknote.c   what all of them use to say what they found
 */
#ifndef PCOW_CHECKING_H
#define PCOW_CHECKING_H

#include "image.h"
#include "slotset.h"
#include "slotwalk.h"

#define CHECK_FINDINGS_MAX 65536u      /* sentences; the rest is counted */
#define CHECK_CHANGES_MAX (1u << 20)    /* what one repair changes at most; the next one goes on */

struct check_word {
  uint64_t offset;
  uint64_t value;
};

struct check_hole {
  uint64_t offset;
  uint64_t length;
};

/* A slot as its chain has it. */
struct check_link {
  struct slot_info slot;
  uint64_t word;                /* where the reference to the next older slot lies, */
  uint64_t next;                /* and what is there */
};

/* An epoch that exists, the head included. */
struct check_node {
  uint32_t first, last;         /* it and its descendants, in the order in which a walk meets them */
  uint64_t limit;               /* above this byte nobody sees what it has */
};

/* The epochs that own the slots of one chain so far. */
struct check_owners {
  GHashTable *ids;
  GTree *spans;                 /* of those of which no other is an ancestor: first → struct check_node */
};

/* A reference that leads nowhere, to be set to 0 unless what it led to is found again. */
struct check_cut {
  uint64_t unit;
  GArray *chain;                /* struct check_link: the slots before it; owned */
  uint64_t word;                /* where the reference lies, */
  uint64_t value;               /* and what is there */
  uint64_t erased;              /* a slot that it leads to, whose header is gone; 0: none */
  GArray *orphans;              /* struct slot_info, or NULL; owned */
};

struct check {
  const char *path;
  int fd;
  uint32_t flags;
  struct superblock sb;
  struct superblock_state copies;
  struct geometry geo;
  uint64_t slots;               /* sb.slot_count, or fewer */
  struct epochs *epochs;
  bool plain;                   /* no feature is set that could use reserved fields: they are zero */
  bool pages_are_blocks;        /* the file system gives blocks page by page */

  struct slotset *reached;
  struct slotset *garbage;      /* slots that were counted as leaks before their blocks were */
  GHashTable *nodes;            /* id of an epoch that exists → struct check_node */
  GPtrArray *cuts;              /* struct check_cut */

  struct pcow_check_result result;
  uint64_t copy_faults;         /* of the corruptions: what a commit alone repairs */
  bool unequal_copies;
  bool head_lost;               /* pages of the head are lost: it is another content */
  uint64_t grow;                /* the length that the file should have; 0: is right */
  GArray *words;                /* struct check_word */
  GArray *owners;               /* the same, after them: owners of slots that nothing reaches */
  GArray *holes;                /* struct check_hole */
  bool words_left, holes_left;  /* there was no room for all */

  uint64_t findings;
  uint64_t loss_budget;
  pcow_check_fn fn;
  pcow_progress_fn progress;
  void *opaque;
};

/* ---- checknote.c ---- */

void check_say(struct check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Counts a corruption, which is repaired when all words are stored that were added (REPAIRABLE). */
void check_corrupt(struct check *c, bool repairable);
/* Whether there was room. */
bool check_add_word(struct check *c, uint64_t offset, uint64_t value);
bool check_add_owner(struct check *c, uint64_t offset);
void check_add_hole(struct check *c, uint64_t offset, uint64_t length);
/* DONE of twice the number of slots. -ECANCELED. */
int check_progress(struct check *c, uint64_t done);

/* The bitmap as it is, in host order. Holes cost little. */
int check_read_bitmap(struct check *c, uint64_t index, uint64_t *bits);

/* ---- The parts. 0 or what ends the check; findings are no errors ---- */

/* C->EPOCHS stays NULL when there is no valid tree. */
int check_log(struct check *c);

void check_tree(struct check *c);
bool check_epoch_exists(const struct check *c, uint32_t id);
uint32_t check_parent(const struct check *c, uint32_t id);

void check_owners_init(struct check_owners *owners);
void check_owners_clear(struct check_owners *owners);
/* Whether a slot of EPOCH may come after theirs: 0, or 'd' (the second of its epoch), 'o' (the epoch
 * descends from one of them). */
int check_order(const struct check *c, const struct check_owners *owners, uint32_t epoch);
void check_owners_add(const struct check *c, struct check_owners *owners, uint32_t epoch);

int check_chains(struct check *c);
/* Stores into the words of the chain what its slots and then END say. */
void check_relink(struct check *c, uint64_t map_word, uint64_t map_value, const GArray *chain, uint64_t end);

/* Restores or gives up what the cuts are about. */
int check_orphans(struct check *c);
void check_cut_free(void *cut);

/* Says which pages are lost with a part of UNIT's chain after the slots in CHAIN. SLOT: that slot alone,
 * of EPOCH (0: whose it was is not known); TRUNCATED: what it has from page FIRST on lies beyond the end of
 * the file. SLOT 0: all that may have come. AFTER (or NULL): struct slot_info, what comes behind it. */
int check_loss(struct check *c, uint64_t unit, const GArray *chain, uint64_t slot, uint32_t epoch,
               bool truncated, uint64_t first, const GArray *after);

int check_space(struct check *c);

/* Applies what was collected. */
int check_repair(struct check *c);

#endif
