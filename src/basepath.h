/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which base paths are followed, and how a file of a chain is opened. A path that an image names is
 * the word of whoever made the image: it is followed only as far as the caller's policy says, and
 * nothing but a regular file (or, as a raw base, a block device) is ever opened.
 */
#ifndef PCOW_BASEPATH_H
#define PCOW_BASEPATH_H

#include "superblock.h"

#include <sys/stat.h>

/* What a caller allows. Never changed once made; shared by all layers of a chain. */
struct base_policy;

/* ANY: whatever path is named. DIR: only files beneath it. Neither: no path. Both: -EINVAL. IMAGE is for
 * messages. */
int base_policy_new(const char *image, bool any, const char *dir, struct base_policy **policy);
struct base_policy *base_policy_ref(struct base_policy *policy);
void base_policy_unref(struct base_policy *policy); /* NULL: nothing */

/* A file of a chain, as it is opened each time. */
struct base_path {
  char *path;                   /* as given or recorded, for messages; FULL itself where they are the same */
  char *full;                   /* absolute */
  const char *beneath;          /* the part of FULL within the policy's directory; NULL: FULL is opened */
  struct base_policy *policy;   /* by which the path was followed, referenced; NULL: the caller named it */
};

/* A file that the caller named: it is opened as it is. */
void base_path_name(struct base_path *file, const char *path);

/* The base that REF of the image FROM names. POLICY must allow it, unless, with NAMED, the caller has
 * named it himself. FILE is valid, for base_path_clear(), in any case. -EPERM: it is not followed. */
int base_path_follow(struct base_path *file, const struct base_path *from, const struct base_ref *ref,
                     struct base_policy *policy, bool named);

void base_path_copy(struct base_path *to, const struct base_path *file);
void base_path_clear(struct base_path *file);

/* Opens the file, O_RDONLY or O_RDWR, without waiting and without side effects: what is neither a
 * regular file nor, with BLOCK_DEVICE, a block device is refused before it is opened. The descriptor, and
 * in STATUS what it refers to. -EPERM: it does not lie beneath the policy's directory. -ENOTSUP: this
 * cannot be made sure of. */
int base_path_open(const struct base_path *file, int access, bool block_device, struct stat *status);

/* The path of REF's file as seen from the image at IMAGE_PATH, for messages; free with g_free(). */
char *base_path_display(const char *image_path, const struct base_ref *ref);

#endif
