/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What media.c and media-states.c share; private to them.
 */
#ifndef CRASH_MEDIASTATE_H
#define CRASH_MEDIASTATE_H

#include "media.h"

#include "persist.h"

#include <glib.h>
#include <sys/types.h>

#define MEDIA_PAGE 4096u
#define MEDIA_LINE_MAX 512u

/* One store that is not durable yet, as far as it lies in one line. */
struct event {
  uint64_t number;              /* in the order of all changes that these media saw */
  uint16_t first, length;       /* bytes of the line */
  bool punch;                   /* all of it at once, not torn */
  uint8_t bytes[];
};

/* A line with stores that are not durable. */
struct line {
  uint64_t number;              /* of the file's lines */
  GPtrArray *events;            /* struct event, oldest first */
};

/* Pages that read as zeros and are not here are holes; so is, after a cut, each page of zeros. */
struct page {
  uint64_t number;
  unsigned seen;                /* the last comparison that met data here */
  uint8_t durable[MEDIA_PAGE];
  uint8_t visible[MEDIA_PAGE];
};

struct growth {
  uint64_t number;              /* as of an event */
  uint64_t size;
};

struct media_file {
  struct media *media;
  char *name;
  int fd;                       /* our own, for reading */
  dev_t dev;
  ino_t ino;
  enum persist_mode mode;
  unsigned line_shift;
  unsigned opens;
  GHashTable *pages;            /* number → struct page */
  GHashTable *lines;            /* number → struct line */
  uint64_t durable_size, visible_size;
  GArray *growths;              /* struct growth, after durable_size */
};

/* A thread's next drain makes the line's stores up to number UPTO durable. */
struct flushed {
  struct media_file *file;
  uint64_t line;
  uint64_t upto;
};

struct media {
  char *dir;
  uint64_t seed;
  uint64_t asked;               /* calls of media_states(): each samples anew */
  media_cut_fn cut;
  void *opaque;
  GPtrArray *files;             /* struct media_file */
  GHashTable *flushed;          /* thread → GArray of struct flushed */
  uint64_t number;              /* of the last event */
  unsigned comparisons;
  struct media_counts counts;
};

#endif
