/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The words of pcow-bench. A *case* is one question, asked of several *contenders*: libpcow in its modes, and
 * what else there is. A contender is a *kind* (how it is done) with a *task* (what is to be done), and runs
 * in a worker process of its own, the *subject*. The driver lets all workers of a case run in turn, so that
 * whatever the machine does meanwhile hits all of them. Each run gives a *sample*; *targets* compare medians.
 */
#ifndef PCOW_BENCH_H
#define PCOW_BENCH_H

#include <glib.h>
#include <libpcow/libpcow.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)
#define PAGE PCOW_PAGE_SIZE

struct settings {
  const char *dir;     /* where files are made: ours alone, removed at the end */
  bool quick;
  bool force_pmem;     /* stores are flushed by cache line, whatever the file system: emulation */
  const char *pcow_img; /* the program, NULL: not found */
  bool progress, quiet;
  unsigned repeats;
};

/* ---- What is measured ---- */

enum metric {
  METRIC_TIME,   /* nanoseconds an operation */
  METRIC_MEMORY, /* bytes of DRAM for itself: anonymous memory and page tables; files are not counted */
  METRIC_VMAS,
  METRIC_SPACE,  /* bytes of blocks */
  METRICS
};

struct sample {
  double values[METRICS]; /* NAN: not measured */
};

/* ---- What is to be done ---- */

enum layout {
  LAYOUT_FULL,     /* every page of the image was written: nothing is a first write */
  LAYOUT_THIN,     /* a new image for each run, of which nothing was written */
  LAYOUT_BASE,     /* a new overlay for each run, on a base of which every page was written */
  LAYOUT_SNAPSHOT, /* every page was written, and each run begins with a snapshot */
  LAYOUT_CHAIN,    /* .chain layers on a full base, each with .layer_data bytes scattered over it */
  LAYOUT_ROTATED,  /* .snapshots snapshots, pages written between them, every page written after the last */
  LAYOUT_RESIDENT, /* an overlay on a full base, of which every page was read */
};

enum order {
  ORDER_SEQUENTIAL,
  ORDER_RANDOM,    /* any block, each once a round */
  ORDER_SCATTERED, /* a page in each of some 64 KiB granules: each one is a first write */
  ORDER_HOT,       /* a working set of scattered pages, the same in every run, each of them four times a run */
};

/* What the cases of management time. */
enum action {
  ACTION_CREATE,
  ACTION_CLONE,    /* an overlay of an image with task->written bytes */
  ACTION_SNAPSHOT,
  ACTION_DELETE,   /* a snapshot, with some pages written after it */
  ACTION_REVERT,   /* to a snapshot, with some pages written after it */
  ACTION_OPEN,
  ACTION_CLOSE,
  ACTION_MAP,      /* opening and mapping */
  ACTION_OVERLAYS, /* .overlays of one base, .layer_data bytes written to each */
  ACTION_FILL,     /* every page is written; space counts without the data itself */
};

enum place { PLACE_DIR, PLACE_XFS, PLACE_EXT4 }; /* the last two: loop mounts of a file in DIR */

struct task {
  enum layout layout;
  enum order order;
  enum action action;
  enum place place;
  bool write;
  bool per_flush;         /* what counts is a flush with the writes before it, not a write */
  uint32_t block;         /* bytes an operation */
  uint64_t size;          /* virtual size */
  uint64_t written;       /* bytes in the image beforehand, where the layout does not say */
  uint64_t piece;         /* they lie in pieces of so much, scattered; 0: PIECE */
  uint64_t operations;    /* in a run */
  uint64_t flush_every;   /* writes; 0: the CPU makes each store durable, and nobody flushes */
  bool flush_range;       /* a flush is one of what was written last (with flush_every 1), not of everything */
  unsigned chain, snapshots, overlays;
  bool mapped;            /* the image is mapped while it is managed */
  uint64_t layer_data;
  uint32_t thin;          /* enum pcow_thin */
};

/* ---- Who does it ---- */

enum { BENCH_OK = 0, BENCH_FAILED = -1, BENCH_SKIPPED = -2 };

struct subject;

struct kind {
  const char *name;  /* in the JSON and the tables, with what the contender adds */
  bool ours;         /* libpcow: that it fails is an error, not a remark */
  bool memory;       /* memory and VMAs of its process mean something */
  uint32_t mode;     /* enum pcow_durability of ours */
  int (*open)(struct subject *s);                       /* once */
  int (*prepare)(struct subject *s);                    /* before each run, not timed; may be NULL */
  int (*run)(struct subject *s, struct sample *sample);
  void (*close)(struct subject *s);                     /* also after a failed open; may be NULL */
};

struct contender {
  char *name;
  const struct kind *kind;
  struct task task;
  uint64_t needs;  /* bytes of space and memory, roughly */
};

struct subject {
  const struct settings *settings;
  const struct task *task;
  const struct kind *kind;
  const char *dir;     /* its own, empty at first */
  const char *place;   /* where its images lie: DIR, or what task->place says that is mounted there */
  uint64_t last;       /* offset of the last write */
  unsigned run;        /* number of the run, from 0, the warm-up included */
  pid_t server;        /* whose memory counts; 0: the worker's own */
  char *memory;        /* what mapped kinds store into */
  void *state;
};

/* ---- Cases ---- */

enum target_how {
  TARGET_FASTER,  /* AGAINST / OURS is at least LIMIT; of runs that took turns, the median of their ratios */
  TARGET_WITHIN,  /* OURS / AGAINST is at most LIMIT; likewise */
  TARGET_BEYOND,  /* OURS - AGAINST is at most LIMIT, in the metric's unit */
  TARGET_AT_MOST, /* OURS is at most LIMIT */
};

struct target {
  enum target_how how;
  enum metric metric;
  unsigned ours, against; /* numbers of contenders */
  double limit;
};

struct plan {
  const struct settings *settings;
  GPtrArray *contenders; /* struct contender */
  GArray *targets;       /* struct target */
  enum metric shown;     /* what the chart shows, METRIC_TIME unless set */
  bool one_by_one;       /* not in turn: together they would need too much memory */
  unsigned rounds;       /* times settings->repeats; 0: once. For short runs of which little differences count */
};

struct bench_case {
  const char *name;
  const char *title;
  const char *unit;    /* of a timed operation: "write", "flush", "open" … */
  void (*build)(struct plan *plan, const struct bench_case *which);
  struct task task;    /* for BUILD */
  unsigned number;     /* for BUILD */
};

extern const struct bench_case warm_cases[], first_cases[], flush_cases[], manage_cases[], chain_cases[],
    space_cases[];

/* All cases, in order; NULL after the last. Each of the arrays above ends with a case without a name. */
const struct bench_case *cases_at(unsigned index);

/* Adds a contender and returns its number. */
unsigned plan_add(struct plan *plan, const struct kind *kind, const struct task *task, uint64_t needs,
                  const char *format, ...) G_GNUC_PRINTF(5, 6);
void plan_target(struct plan *plan, enum target_how how, enum metric metric, unsigned ours, unsigned against,
                 double limit);

/* "1 TiB"; to be freed. */
char *size_text(uint64_t bytes);

/* FULL, or QUICK when only the working of a case is wanted. */
static inline uint64_t plan_size(const struct plan *plan, uint64_t full, uint64_t quick)
{
  return plan->settings->quick ? quick : full;
}

/* ---- Why something was not done: the worker's message, one sentence ---- */

int bench_fail(const char *format, ...) G_GNUC_PRINTF(1, 2);
int bench_skip(const char *format, ...) G_GNUC_PRINTF(1, 2);
int bench_fail_errno(const char *format, ...) G_GNUC_PRINTF(1, 2);
int bench_fail_library(int error); /* -ENOTSUP and -EPERM of the library are skips, all else a failure */
const char *bench_message(void);

/* ---- Time ---- */

uint64_t now_ns(void);

#endif
