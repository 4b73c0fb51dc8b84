/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A chain of open files as one view sees it: an image at an epoch, its base, the base's base. Opening
 * validates and locks every file: what a layer shows cannot change while it is open. Which bases are
 * followed is a policy (basepath.h). Descriptors are few: a layer that is not being read may be closed and
 * is opened again, by the same policy, when it is needed; a mapped page keeps the open file, and so its
 * locks, alive meanwhile.
 */
#ifndef PCOW_LAYER_H
#define PCOW_LAYER_H

#include "basepath.h"
#include "epochs.h"
#include "geometry.h"
#include "superblock.h"

#include <sys/types.h>

/* A chain may be a thousand long: what only opening needs of a file is not kept, and the order leaves no
 * gaps. */
struct layer {
  enum base_format format;      /* BASE_PCOW or BASE_RAW */
  uint32_t epoch;               /* 0: the head */
  struct base_path file;        /* as it is opened, each time; its path is for messages */
  dev_t dev;
  ino_t ino;
  uint64_t size;                /* bytes of the view; a raw file's tail is rounded up */
  struct layer *base;           /* NULL: zeros beneath */
  struct layer *above;          /* whose base this is; NULL: the top */

  /* BASE_PCOW */
  const struct geometry *geo;
  struct epoch_view *view;      /* which epochs of the file are seen */
  uint64_t slot_count;          /* of the superblock; both rise with what a writer does: see view.c */
  uint32_t next_epoch;

  unsigned depth;               /* 0: top */
  bool tmpfs;                   /* pages can be mapped private and protected by userfaultfd */
  bool dax;                     /* a scan does not tell the file's pages from copies of them */
  bool own_fd;                  /* the top of a writable image: never closed early, not to be locked */
  bool walk_lock;               /* somebody may write and collect in this file meanwhile */

  /* private to layer.c and fdpool.c */
  bool idle;                    /* open, unused, in the pool's queue */
  int fd;
  unsigned users;
  unsigned walkers;
  void *pin;
  GList lru;
  GMutex walk_mutex;

  /* private to view.c: where data was found last; under walk_mutex */
  uint64_t data_from, data_to;
};

/* Bytes of the base that are seen. */
static inline uint64_t layer_base_limit(const struct layer *layer)
{
  return layer->view ? layer->view->base_limit : 0;
}

#define LAYER_NO_BASE 1u        /* do not open the chain beneath */
#define LAYER_FORCE_BASE 2u     /* take bases that are not what they were */
#define LAYER_WRITING 4u        /* features that only matter to writers count */
#define LAYER_NAMED_BASE 8u     /* the first base was named by the caller: no policy is asked */

/* Opens PATH, which the caller named, at SNAPSHOT (NULL: its head) and the chain beneath as far as
 * POLICY, read-only, with shared locks. SB gets the image's superblock; EPOCHS, when not NULL, its epoch
 * tree. Errors as for pcow_open(). */
int layer_open_image(const char *path, const char *snapshot, struct base_policy *policy, unsigned flags,
                     struct layer **layer, struct superblock *sb, struct epochs **epochs);

/* Opens what REF names as the base of ABOVE, with the chain beneath, as far as POLICY allows, and checks
 * that it is what REF recorded. */
int layer_open_base(const struct base_ref *ref, struct layer *above, struct base_policy *policy,
                    unsigned flags, struct layer **base);

/* Superblock and log as of one moment, lock-free: both are read again when a commit came between. */
int layer_read_tree(int fd, const char *path, bool writing, struct superblock *sb,
                    struct epochs **epochs);

/* Fills REF from the file PATH, which the caller named, as recorded in an image at IMAGE_PATH, as it is
 * now, with its virtual size. SNAPSHOT NULL: head. Its own base follows POLICY. -EBUSY when it is being
 * written (head). */
int layer_describe_base(const char *image_path, const char *path, enum base_format format,
                        const char *snapshot, struct base_policy *policy, struct base_ref *ref,
                        uint64_t *size);

/* The top of an image that this process writes: FD stays the caller's; FILE is copied; VIEW becomes the
 * layer's. */
struct layer *layer_new_top(int fd, const struct base_path *file, const struct superblock *sb,
                            struct epoch_view *view, struct layer *base);

/* Bytes of a raw file or block device, not rounded. */
int raw_size(int fd, const char *path, const struct stat *st, uint64_t *size);

/* Closes the whole chain. NULL: nothing. */
void layer_close(struct layer *layer);

/* A descriptor of the layer's file until layer_fd_put(). -errno when it cannot be opened again. */
int layer_fd_get(struct layer *layer);
void layer_fd_put(struct layer *layer);

/* Brackets a walk of the file's unit map and chains: keeps a collector of another handle out. FD is
 * from layer_fd_get(). -EBUSY when a collector did not finish in time. */
int layer_walk_begin(struct layer *layer, int fd);
void layer_walk_end(struct layer *layer, int fd);

#endif
