/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What persist.c, persistfill.c, persistpmem.c and persistspace.c share; private to them.
 */
#ifndef PCOW_PERSISTSTATE_H
#define PCOW_PERSISTSTATE_H

#include "persist.h"

#include <glib.h>
#include <libpmem.h>
#include <stdatomic.h>

#define ALIAS_BUCKETS 256u

struct alias;

/* What is called of libpmem. */
struct pmem_calls {
  __typeof__(pmem_flush) *flush;
  __typeof__(pmem_drain) *drain;
  __typeof__(pmem_memcpy_nodrain) *memcpy_nodrain;
};

/* Loads libpmem if that was not done yet. PATH is for the message. -ENOTSUP: it is not there. */
int persist_pmem(const char *path, const struct pmem_calls **pmem);

struct persist {
  int fd;
  void *watched;                /* what watch->open() gave; NULL: nobody watches */
  char *path;
  enum persist_mode mode;
  const struct pmem_calls *pmem; /* NULL unless MODE is PERSIST_PMEM */
  bool tmpfs;
  bool map_sync;                /* the file system makes blocks durable before a store can reach them */
  GMutex lock;                  /* aliases (adding), stages, reserved, growing */
  _Atomic(struct alias *) aliases[ALIAS_BUCKETS];
  GHashTable *reserved;         /* chunk number → bits */
  GHashTable *stages;           /* number of STAGE_BYTES + 1 → mapping; NULL: not asked for yet */
  int stage_fd;                 /* userfaultfd that they are registered with; -1: none */

  /* Syncs that are owed and done are counted, not flagged: one thread's sync pays for all that was
   * owed when it began, and a thread whose debt is being paid by another waits for it. */
  _Atomic uint64_t owed;
  _Atomic uint64_t paid;
  _Atomic int error;            /* errno of the first failed sync; set under sync_lock */
  GMutex sync_lock;

  /* Where data was found last: tmpfs looks for the end of data page by page, so that asking for each of
   * many runs in one large extent would cost the square of its size. Only a punch makes data a hole. */
  GMutex seek_lock;
  uint64_t data_from, data_to;
  _Atomic uint64_t punches;

  _Atomic uint64_t stores;
  _Atomic uint64_t copies;
  _Atomic uint64_t copied_bytes;
  _Atomic uint64_t flushes;
  _Atomic uint64_t fences;
  _Atomic uint64_t syncs;
  _Atomic uint64_t block_changes;
};

/* Makes the aliases of a range, so that persist_probe() takes no lock. */
int persist_alias(struct persist *p, uint64_t offset, uint64_t length);

/* Can a range be stored to? Else a SIGBUS becomes -EIO, or -EUCLEAN where the file ends before it. */
int persist_probe(struct persist *p, uint64_t offset, uint64_t length);

/* Writes back the cache lines of a range of the file, which is mapped at ADDRESS. */
void media_flush(struct persist *p, uint64_t offset, const void *address, uint64_t length);

void persist_close_stages(struct persist *p);

/* Orders nothing, and does not even wait for the caller's stores, as an atomic addition would: of threads that count
 * the same at once one may be missed. */
static inline void count(_Atomic uint64_t *counter, uint64_t n)
{
  atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

/* Watching is for tests: NULL otherwise. */
extern const struct persist_watch *persist_watch;

/* Around each change of a watched file: the order of calls is the order of changes. */
void watch_begin(const struct persist *p);
void watch_end(const struct persist *p);

#endif
