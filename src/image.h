/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The image handle. What is open is either the head for writing (store and head are set) or one
 * epoch, read-only (layer alone says what it shows).
 *
 * Lock order: collecting → lock → a unit → slots → store. Structural operations hold LOCK for writing and have
 * called mapping_* where the image is mapped; content operations and faults hold it for reading.
 */
#ifndef PCOW_IMAGE_H
#define PCOW_IMAGE_H

#include "error.h"
#include "head.h"

#include <libpcow/libpcow.h>
#include <pthread.h>

/* What collection did through a handle, for tests and measurements. */
struct collect_counts {
  uint64_t steps;
  uint64_t visits;              /* of units, again for each part that was moved */
  uint64_t longest;             /* µs that the image was locked */
};

struct pcow_image {
  pthread_rwlock_t lock;        /* prefers readers: see docs/architecture.md */
  const char *path;             /* file.path, for messages */
  struct base_path file;        /* what is opened later, after a chdir(2), too */
  struct base_policy *policy;   /* for the paths of bases */
  bool base_named;              /* the base was named by the caller, in a rebase of this handle */
  unsigned flags;               /* PCOW_OPEN_* */
  struct layer *layer;          /* NULL with PCOW_OPEN_INFO; for writing: all that is beneath the head */
  struct epochs *epochs;        /* for writing: the store's */
  struct superblock sb;         /* read-only handles: as read; for writing use store->sb */
  int fd;                       /* PCOW_OPEN_INFO: the file; else -1 */
  bool raw;                     /* PCOW_OPEN_INFO: a raw base */
  GArray *seen;                 /* struct seen_file of pcow_open_base(), this image last; or NULL */
  char *snapshot;               /* name of the open snapshot, or NULL */
  GPtrArray *strings;           /* that pcow_get_info() gave out */
  struct view_cache *runs;      /* read-only: resolved pieces */

  struct store *store;          /* for writing; else NULL */
  struct slots *slots;
  struct head *head;
  bool uncollected;             /* slots of an abandoned head may be left: not closed as clean */
  GMutex collecting;            /* outermost: one collection at a time */
  struct collect_counts collected;

  GMutex maps_lock;
  pcow_mapping *map;            /* the writable mapping, or NULL */
  GPtrArray *maps;              /* all mappings of this handle */
};

/* Opens FILE, a base, for writing; its own bases follow POLICY. For a commit into it. */
int image_open_base(const struct base_path *file, struct base_policy *policy, unsigned flags,
                    pcow_image **image);
/* LAYER_* with which the chain beneath is opened. */
unsigned image_layer_flags(const struct pcow_image *image);

/* The superblock that counts for the handle. */
const struct superblock *image_superblock(const struct pcow_image *image);
uint64_t image_size(const struct pcow_image *image);

/* 0; or -EBADF when not open for writing, -EIO when an earlier failure ended writing. */
int image_check_writable(struct pcow_image *image);
/* 0; or -EBADF when the handle has no content (PCOW_OPEN_INFO, PCOW_OPEN_NO_BASE over a base). */
int image_check_content(struct pcow_image *image);
/* 0; or -EINVAL when [offset, offset + length) is not within the virtual size. */
int image_check_range(struct pcow_image *image, uint64_t offset, uint64_t length);

/* Checked reading of an options struct that begins with its size: copies what the caller knows into
 * the zeroed FULL; -EINVAL when a field beyond what this library knows is not zero. */
int options_read(const void *options, size_t smallest, void *full, size_t full_size);
/* Copies a result to a caller's struct of the caller's size. */
void result_write(void *result, const void *full, size_t full_size);

/* What lies beneath the head, as epochs. */
struct epoch_view *image_view_beneath_head(const struct store *store);

/* Settles what is pending and forgets the head's units, prepared slots that were never linked
 * included: before anything but the head changes chains. The image lock is held for writing. */
int image_quiesce(struct pcow_image *image);

/* For writing: after epochs, head, size or base changed on the media, rebuilds layer view and head to
 * match the store. BASE: the new chain beneath (ownership taken), or the present one. The image lock
 * is held for writing. */
int image_reload(struct pcow_image *image, struct layer *base);

/* All runs of what is open for pages [first, end), the head's own included (layer is image->layer,
 * offset in the file); appended to RUNS. The image lock is held. */
int image_resolve(struct pcow_image *image, uint64_t first, uint64_t end, GArray *runs);

/* view_next() for what is open, the head included. The image lock is held. */
int image_next(struct pcow_image *image, uint64_t page, uint64_t end, uint64_t *next);

/* Space of deleted epochs and abandoned heads (collect.c). Takes the image lock for writing again and
 * again, for a short while; the caller has it not. What readers, or a full file system, are in the way of
 * stays pending, which is no error. */
int collect_run(struct pcow_image *image);

#endif
