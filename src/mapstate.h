/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A mapping: what each page of the range is mapped from, and who may change that. Private to map.c,
 * mapplan.c, maplay.c, maplate.c, area.c, fault.c, faultthreads.c, window.c, filling.c, merge.c, maplive.c, tracking.c,
 * flush.c and handover.c.
 *
 * A page is in one of these states; only the last three can be stored to without an event:
 *
 *   armed      private memory (of a lower file on tmpfs, or zeros), write-protected: reading costs no
 *              event, the first write raises one
 *   late       of a unit that nobody has accessed since the map was made, anonymous memory without pages: as
 *              fill, but the first access lays the unit out
 *   lazy       zeros far out in a large range, or of a unit that was late: the first read of the piece arms it
 *   fill       anonymous memory, MISSING and write-protected: filled with what lies beneath when it is
 *              read, dropped when there is too much of it
 *   async      private memory of a lower file, of any kind; flush-durable maps only. The kernel makes the copy
 *              at the first write and notes which pages were written; nobody waits. What was found written and
 *              is not in the slot yet is *dirty*
 *   dense      shared from the head's slot, registered MISSING: a hole raises an event and gets space
 *   writable   shared from the head's slot, with a block beneath it
 *
 * What else is stored to is mapped from the slot alone: pages become present, in a store-durable map durably,
 * then mapped shared. Nothing that is armed is ever unprotected in place: writers could slip between two
 * steps. An async page may have a store in it that nobody knows of, at any time: before anything is mapped over
 * it, it is held (handover.c), which takes that along.
 *
 * Locks, in this order: image->lock (shared) → the unit → lazy_lock or pipe_lock → track_lock or lock. Bits of
 * a unit change under the unit's lock, or with the image lock held exclusively; of async pages, what is dirty
 * changes under track_lock. The handler thread waits for neither: faults
 * for which it cannot have both at once it hands to the worker. It moves no regions either, because
 * mremap(2) of a registered region waits until the handler has read the event; worker and callers do.
 */
#ifndef PCOW_MAPSTATE_H
#define PCOW_MAPSTATE_H

#include "image.h"

#include <stdatomic.h>

#define HUGE_BYTES (UINT64_C(2) << 20)
#define FILL_BUFFER (UINT64_C(1) << 20)
#define STREAMS 8u
#define COPIERS_MOST 4u
#define GROUP_BYTES_MOST (UINT64_C(128) << 20)  /* neighbouring units whose slots lie side by side */

/* On demand; bits of the unit's pages, NULL: none set. */
struct map_unit {
  uint64_t number;
  uint64_t *writable;
  uint64_t *dense;
  uint64_t *fill;
  uint64_t *resident;           /* of fill: there is a clean copy */
  uint64_t *lazy;               /* zeros not armed yet; but see lazies of the mapping */
  uint64_t *async;
  uint64_t *dirty;              /* of async; the four under track_lock */
  uint64_t dirty_pages;
  uint64_t dirty_first, dirty_end;      /* all of them lie in between */
  int64_t debt;                 /* nanoseconds that scans of async pages have cost in vain; under track_lock */
  uint64_t *kept;               /* of async: private copies of what the head's slot has, too */
  uint64_t kept_pages;
  uint64_t *ahead;              /* of the writable ones, those whose VMA reads ahead: area_reads_ahead() */
  uint64_t *edges;              /* a VMA begins at the page; one bit more than pages: ends with the unit */
};

/* Zeros not armed yet; pages of the mapping. */
struct lazy {
  uint64_t first, end;
  gint armed;
};

/* First writes, or fills, that follow each other. */
struct stream {
  uint64_t next;                /* page that would continue it */
  uint64_t window;              /* pages taken last */
  uint64_t used;
};

struct fault {
  uint64_t page;                /* of the mapping */
  bool write;
};

struct fault_queue {
  GQueue faults;                /* struct fault */
  GCond more;
};

struct pcow_mapping {
  struct pcow_image *image;
  bool writable;
  bool flush_durable;
  bool all_async;               /* userfaultfd may make nobody wait: all that is not shared is async */
  bool dense_holes;             /* shared pages without a block raise events, where there may be some */
  bool guarded;                 /* pages get space before they can be stored to */
  bool tmpfs;                   /* the head's file is on tmpfs: its shared pages can be protected */
  bool own_address;             /* the range was reserved by the library */
  int shared_flags;             /* of mmap(2) for the head's file */
  bool populate;                /* page tables are worth filling at once */
  bool page_cache;              /* the image's file has one (no DAX, no tmpfs): area_advise() */
  bool huge_zero;
  bool adaptive;                /* the granule grows with sequential writes */
  int uffd;                     /* -1: none (read-only) */
  int void_fd;                  /* an empty file, whose pages are SIGBUS */
  uint8_t *base;
  uint64_t reserve;             /* bytes of address space */
  _Atomic uint64_t size;        /* bytes of it that are mapped */
  unsigned unit_shift;          /* pages of a unit as a power of two */
  uint64_t unit_pages;
  uint64_t granule;             /* pages */
  uint64_t dram_limit;          /* pages */
  struct map_unit **units;
  uint64_t unit_count;
  uint64_t *late;               /* bits of units: late, while they have no map_unit; NULL: none */
  uint64_t late_count;          /* how many there were when they were planned */
  pcow_nospace_fn nospace;
  void *opaque;

  uint64_t eager_left;          /* bytes of zeros that may still be armed at once */
  GMutex lazy_lock;             /* arming */
  GArray *lazies;               /* of struct lazy, sorted; changes with the image lock held exclusively */
  gint lazy_left;

  bool threads;
  atomic_bool stopping;
  pthread_t handler, worker;
  pthread_t copier[COPIERS_MOST];
  unsigned copiers;
  uint8_t *buffers;             /* FILL_BUFFER bytes for each of the two */
  uint8_t *stop_page;           /* an access to it ends the handler */

  GMutex lock;                  /* all below */
  struct fault_queue waiting;   /* for the worker */
  struct fault_queue copying;   /* for copiers */
  GArray *held;                 /* uint64_t pages whose writers wait for space */
  bool told;                    /* the callback was called for them */
  GArray *lost;                 /* uint64_t pages that give SIGBUS */
  GQueue fills;                 /* clean copies, oldest first: page << 16 | count in a pointer */
  struct stream streams[STREAMS];
  uint64_t clock;

  int track_fd;                 /* userfaultfd for async pages; -1: none */
  int pagemap_fd;
  int stop_fd;                  /* all_async: ends the thread that reads of moved regions */
  pthread_t tracker;
  GMutex track_lock;            /* scans, and what is dirty; innermost */
  GTree *async_units;           /* set of number + 1: has async pages */
  GTree *dirty_units;           /* set of number + 1: has, or had when a flush began to copy, dirty pages */
  GTree *lost_units;            /* set of number + 1: has async pages of which nobody tells when they are written */
  struct uffd_pages *found;     /* by a scan */
  int64_t scan_since, scan_nsec;        /* time that scans took since then; track_lock */
  _Atomic uint64_t tracked;     /* 0: all of these sets are empty, and no page is async; changes under track_lock */
  atomic_bool losing;           /* there are lost units; changes likewise */
  bool scan_failed;             /* what was written is not known: all copied pages count as dirty */
  atomic_bool lower_tmpfs;      /* some async pages are of files that a protected map can have */
  atomic_bool lower_dax;        /* some may be of files with DAX: a scan finds those that were read, too */
  GMutex pipe_lock;
  int pipe[2];                  /* -1: not made yet */

  uint64_t merge_pages;         /* worker: size of regions that are merged now */
  uint64_t merge_unit;          /* worker: unit to look at next */
  uint64_t merge_units;         /* worker: when units are not enough: size of groups that are merged */
  _Atomic int64_t areas;        /* that were added since the map was laid out; negative: merged */
  int64_t merge_pause;          /* room below which merging, which found nothing, is tried again */

  _Atomic uint64_t faults, write_faults, fill_faults, duplicates, copied, reserved, dram_pages, merges;
  _Atomic uint64_t late_units;
  _Atomic uint64_t flushes, flushed, handed_over, scans, kept, units_protected;
};

static inline uint8_t *map_address(const struct pcow_mapping *m, uint64_t page)
{
  return m->base + page * PAGE_BYTES;
}

/* Units of the largest group that merging makes one piece; 1: a unit is as large. */
static inline uint64_t map_group_most(const struct pcow_mapping *m)
{
  return MAX(GROUP_BYTES_MOST / PAGE_BYTES >> m->unit_shift, 1);
}

static inline uint64_t map_pages(const struct pcow_mapping *m) { return m->size >> PAGE_SHIFT; }

static inline uint64_t map_unit_first(const struct pcow_mapping *m, uint64_t unit)
{
  return unit << m->unit_shift;
}

/* The unit was not laid out yet. Says so until the unit's lock is let go by who has it. */
static inline bool map_is_late(const struct pcow_mapping *m, uint64_t unit)
{
  return m->late && bits_test(m->late, unit) && !g_atomic_pointer_get(&m->units[unit]);
}

static inline bool map_test(const uint64_t *bits, uint64_t page) { return bits && bits_test(bits, page); }

/* As bits_find() for a bitmap that may be missing. */
static inline uint64_t map_find(const uint64_t *bits, uint64_t first, uint64_t end, bool value)
{
  return bits ? bits_find(bits, first, end, value) : value ? end : first;
}

/* ---- area.c: what is mapped; bits are kept up to date ---- */

/* A unit that was late is filled on demand from now on. The unit is locked, or the image exclusively. */
struct map_unit *map_unit_get(struct pcow_mapping *m, uint64_t unit);
void map_unit_set(struct pcow_mapping *m, uint64_t **bits, uint64_t first, uint64_t end);
void map_unit_free_all(struct pcow_mapping *m);

/* Pages [first, end) of a unit are one VMA now. */
void area_note(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end, bool joins_left,
               bool joins_right);
/* They lost all their states. */
void area_forget(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end);

/* What is mapped shared from the slot is not inherited, and in a page cache not read ahead: that makes folios larger
 * than a page, and the first store to one wants blocks for all of it, for pages that are not present and for free
 * slots, too; on a full file system it is a SIGBUS. */
void area_advise(const struct pcow_mapping *m, uint8_t *address, uint64_t length);
/* But runs that are long when the map is made are: those are read in order, and only their ends have such
 * neighbours. */
bool area_reads_ahead(const struct pcow_mapping *m, uint64_t length);

/* Present, durable and backed pages are mapped from the slot. -ENOMEM: too many VMAs. Any thread. */
int area_share(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);
/* The same for pages that are not yet: their page tables are left to whoever accesses them. */
int area_share_late(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);

/* Writes back the cache lines of pages that are mapped from the slot. Owed: a fence. */
int area_write_back(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);

/* The following move a region over running writers: not on the handler thread. */
int area_zero(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end);
int area_fill(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end);
/* What lies at OFFSET of a lower file on tmpfs, armed. */
int area_lower(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, int fd, uint64_t offset);
/* All pages are present, and the slot is about to be frozen: they are async ones of it. */
int area_track(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);
/* All pages are present. One VMA; -ENOTSUP never. */
int area_join(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);

/* The lazy chunk that holds PAGE and is not armed, or NULL. */
struct lazy *area_lazy(struct pcow_mapping *m, uint64_t page);
int area_arm_lazy(struct pcow_mapping *m, struct lazy *z);
/* Arms all lazy chunks in pages [first, end) of the mapping. */
int area_arm_range(struct pcow_mapping *m, uint64_t first, uint64_t end);
/* Cuts pages [*first, *end) of the unit, which hold PAGE, down to what is not lazy. */
void area_trim_lazy(struct pcow_mapping *m, uint64_t unit, uint64_t page, uint64_t *first, uint64_t *end);

/* Prepares fresh memory of zeros: makes reading cheap, registers and protects it. */
int area_arm_memory(struct pcow_mapping *m, uint8_t *address, uint64_t length);

/* PAGE of the mapping gives SIGBUS from now on. LOCKED: its unit is. False: there are too many VMAs even
 * for that. */
bool area_lose(struct pcow_mapping *m, uint64_t page, bool locked);

/* ---- mapplan.c: what should be mapped ---- */

enum segment_kind { SEGMENT_ZERO, SEGMENT_PRIVATE, SEGMENT_FILL, SEGMENT_SHARED, SEGMENT_DENSE, SEGMENT_LATE };

struct segment {
  uint64_t page, count;         /* of the mapping */
  enum segment_kind kind;
  struct layer *layer;          /* PRIVATE, SHARED (NULL: the head's own file) */
  uint64_t offset;
};

/* Lays out pages [first, end) of the mapping, which nobody may access yet. Image lock exclusive. */
int plan_apply(struct pcow_mapping *m, uint64_t first, uint64_t end);

/* Appends what pages [first, end) of a locked unit consist of. */
int plan_unit(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end, GArray *segments);

/* ---- maplay.c: mapping it ---- */

struct laying {
  struct pcow_mapping *m;
  uint64_t arm_from, arm_to;    /* laid out, to be registered and protected */
  uint64_t track_from, track_to;        /* laid out, to be tracked */
};

int lay_segment(struct laying *l, const struct segment *s);
int lay_end(struct laying *l);

/* One mmap(2) of a file; pages beneath the head can be stored to, as far as the map can, until they are protected. */
int lay_file(struct pcow_mapping *m, const struct segment *s);

/* ---- maplate.c: laying out units at their first access ---- */

/* The locked unit is late: lays it out, and wakes who waits in it. -EAGAIN: not PATIENT, and regions have to be
 * moved, or many. Nothing else fails: what cannot be laid out is filled on demand. */
int late_lay_out(struct pcow_mapping *m, struct unit *u, bool patient);
/* No unit is locked; UNIT was laid out: so are those beside it, where units are small. */
void late_neighbours(struct pcow_mapping *m, uint64_t unit, bool patient);

/* ---- fault.c: serving events ---- */

enum served {
  SERVED,                       /* whoever waited goes on, or is held */
  SERVE_WAITING,                /* not without waiting */
  SERVE_COPYING                 /* a large copy is to be made */
};

/* PATIENT: waits for locks, and serves in any case; not on the handler thread. BUFFER: FILL_BUFFER bytes for what is
 * filled when it is read. */
enum served fault_serve(struct pcow_mapping *m, const struct fault *f, uint8_t *buffer, bool patient);

/* ---- faultthreads.c ---- */

int fault_start(struct pcow_mapping *m);
void fault_stop(struct pcow_mapping *m);
/* A thread that takes no signals of the program. */
int fault_thread(struct pcow_mapping *m, pthread_t *thread, void *(*run)(void *), const char *name);

/* ---- window.c: sequences ---- */

/* How many pages a fault on PAGE should take: FACTOR times what the stream that it continues took last,
 * from LEAST to MOST. */
uint64_t window_find(struct pcow_mapping *m, uint64_t page, uint64_t least, uint64_t most, unsigned factor);
/* It took pages [page, end). */
void window_used(struct pcow_mapping *m, uint64_t page, uint64_t end);

/* ---- filling.c: clean copies of lower pages ---- */

/* PAGE of a locked unit (U is NULL for read-only maps) lies in a fill region and is absent: brings it
 * and some after it. -EAGAIN when a region is being moved: not PATIENT, try again later. */
int filling_read(struct pcow_mapping *m, struct unit *u, uint64_t unit, uint64_t page, uint8_t *buffer,
                 bool patient);

/* Reads pages of the view: of a read-only map, or what lies in the locked unit. */
int filling_bytes(struct pcow_mapping *m, struct unit *u, uint64_t unit, uint64_t page, uint64_t count,
                  uint8_t *buffer);

/* ---- tracking.c: async pages, and what was written of them ---- */

int tracking_start(struct pcow_mapping *m);
void tracking_stop(struct pcow_mapping *m);

/* Memory that nobody stores to yet, or of which all copied pages are to count as written, is
 * tracked from now on. -errno. */
int tracking_register(struct pcow_mapping *m, uint8_t *address, uint64_t length);
/* Pages of the unit are async now, or are not any more. The unit is locked. */
void tracking_note(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end);
void tracking_forget(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end);
/* Nobody tells what is written of async pages of the unit, until it is found: then all that was copied by
 * then counts as written. */
void tracking_lose(struct pcow_mapping *m, uint64_t unit);
void tracking_found(struct pcow_mapping *m, uint64_t unit);
/* The first unit from UNIT on that is lost, or the number of units. */
uint64_t tracking_next_lost(struct pcow_mapping *m, uint64_t unit);

/* Async pages of [first, end) of the mapping that the kernel has copied become dirty: they could be stored to
 * before they were tracked. */
void tracking_catch_up(struct pcow_mapping *m, uint64_t first, uint64_t end);
/* What was written in pages [first, end) of the mapping since the last call becomes dirty. */
int tracking_take(struct pcow_mapping *m, uint64_t first, uint64_t end);
/* Async ones of pages [first, end) of the mapping become dirty. */
void tracking_mark(struct pcow_mapping *m, uint64_t first, uint64_t end);
/* Stores to pages of the locked unit are about to be on their way to the slot: a flush that finds nothing must
 * wait for the unit all the same. The next flush ends that. */
void tracking_busy(struct pcow_mapping *m, uint64_t unit);
/* The first unit from UNIT to END of which pages are dirty, or are being copied; or END. */
uint64_t tracking_next_dirty(struct pcow_mapping *m, uint64_t unit, uint64_t end);
/* What is dirty of pages [*FIRST, *END) of a locked unit is not any more: returns its bits, of pages relative to *FIRST,
 * to be freed, and narrows the range to them. NULL: nothing is, *FIRST == *END, or there is no memory. The unit stays
 * among the dirty ones until tracking_done(). */
uint64_t *tracking_claim(struct pcow_mapping *m, struct map_unit *mu, uint64_t *first, uint64_t *end);
void tracking_done(struct pcow_mapping *m, struct map_unit *mu);
/* Sets in BITS (of pages relative to FIRST) the pages that the kernel copied; with lower_dax also pages that were
 * only read. */
int tracking_copied(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, uint64_t *bits);
/* Sets in BITS the pages that the kernel has certainly copied. It may miss some: those have to be looked at. */
void tracking_certain(struct pcow_mapping *m, uint64_t unit, uint64_t first, uint64_t end, uint64_t *bits);

/* The first unit from UNIT to END whose scans cost more than they are worth; or END. */
uint64_t tracking_next_costly(struct pcow_mapping *m, uint64_t unit, uint64_t end);

/* ---- adapt.c: what async pages may cost ---- */

#define ADAPT_NEVER INT64_MIN   /* debt of a unit that cannot be protected */

int64_t adapt_clock(void);      /* nanoseconds */
/* A scan of a unit lasted from then to now and found so many pages. track_lock is held, in the next as well. */
void adapt_scanned(struct pcow_mapping *m, struct map_unit *mu, int64_t since, int64_t now, uint64_t found);
bool adapt_is_costly(const struct pcow_mapping *m, const struct map_unit *mu);
/* Async ones of pages [first, end) of the locked unit are in the slot as well; they are not async any more. */
void adapt_keep(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end);
void adapt_unkeep(struct pcow_mapping *m, struct map_unit *mu, uint64_t first, uint64_t end);
/* Nothing is in a slot of the head any more, which is a new one. */
void adapt_forget_kept(struct pcow_mapping *m);
/* Pages [first, end) of the locked unit were flushed: hands over what has become too much. */
int adapt_flushed(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);
/* Units of [first, end) of the mapping that are costly are protected. No unit is locked. */
int adapt_units(struct pcow_mapping *m, uint64_t first, uint64_t end);

/* ---- handover.c ---- */

/* No page of [first, end) of the locked unit is async any more: those that were copied are present and mapped
 * from the slot, the others are armed or filled on demand. Not on the handler thread. -ENOSPC: some still
 * are, nothing is lost. */
int handover_hold(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);

/* The same for all of the locked unit, where protecting it is enough; else it stays as it is. It is not tried
 * again when the file is of a kind that cannot be protected. */
void handover_protect(struct pcow_mapping *m, struct unit *u);

/* Async pages that are not tracked any more, because that failed, are. No unit is locked. */
int handover_retrack(struct pcow_mapping *m);

/* ---- flush.c ---- */

/* Pages [first, end) of the mapping: what was written of async ones is in the head, pending. The image lock is
 * held, in any way; no unit is locked. */
int flush_publish(struct pcow_mapping *m, uint64_t first, uint64_t end);
/* What is in the head is durable, stores through pages that are mapped from it included. The same locks. */
int flush_settle(struct pcow_mapping *m);
/* Both, for all of the mapping. */
int flush_all(struct pcow_mapping *m);
/* Offers [first, end) of a locked unit: dirty pages are in the head, pending. */
int flush_unit(struct pcow_mapping *m, struct unit *u, uint64_t first, uint64_t end);

/* ---- merge.c: fewer VMAs. Worker and callers only ---- */

/* Merges while the process has too many VMAs. No unit may be locked. */
void merge_relieve(struct pcow_mapping *m);
/* The locked unit becomes one VMA. */
int merge_unit(struct pcow_mapping *m, struct unit *u);

#endif
