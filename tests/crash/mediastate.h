/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What media*.c share; private to them.
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
  GRecMutex lock;               /* recursive: a cut is explored with it */
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

extern const uint8_t media_zeros[MEDIA_PAGE];

/* Key of a page or line in the tables of a file. */
static inline gpointer media_key(uint64_t number) { return GSIZE_TO_POINTER(number + 1); }

/* Those that are in the TABLE of [first, end), in order. */
GArray *media_numbers_in(GHashTable *table, uint64_t first, uint64_t end);

/* media.c. A store of LENGTH bytes within one line; of any bytes; a new length. */
void media_add_event(struct media_file *f, uint64_t offset, const void *bytes, unsigned length, bool punch);
void media_store_bytes(struct media_file *f, uint64_t offset, const uint8_t *bytes, uint64_t length);
void media_note_size(struct media_file *f, uint64_t size);

/* A line's stores up to number UPTO, or all of a file, are durable. The line may be gone afterwards. */
void media_settle_line(struct media_file *f, struct line *l, uint64_t upto);
void media_settle_file(struct media_file *f);

/* Finds stores that nobody announced, in pages [first, end) or in all of the file. */
void media_compare_range(struct media_file *f, uint64_t first, uint64_t end);
void media_compare_file(struct media_file *f);

/* A file of which nothing is known yet. */
struct media_file *media_file_new(struct media *m, const char *path, enum persist_mode mode);

/* media-watch.c */
void media_watch(struct media *m);
void media_unwatch(struct media *m);

#endif
