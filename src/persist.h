/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The one layer through which an image file is changed, and the only caller of libpmem. A store made
 * here is durable after the next persist_fence() by the same thread, in both modes:
 *
 *   PERSIST_PMEM   DAX (MAP_SYNC succeeds), or emulation (PMEM_IS_PMEM_FORCE=1): cache lines are
 *                  written back at the store, the fence is an sfence, with fdatasync(2) only after
 *                  the file's blocks changed by a punch or a growth.
 *   PERSIST_MSYNC  any other file system: stores go to the page cache, the fence is fdatasync(2),
 *                  which also covers what others stored through shared mappings of the file.
 *
 * An error of a fence is sticky: no later fence succeeds.
 * Offsets are of the file. Metadata that is stored to must have space first (persist_reserve()), or a
 * full file system would be a SIGBUS.
 */
#ifndef PCOW_PERSIST_H
#define PCOW_PERSIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct persist;

enum persist_mode { PERSIST_MSYNC = 0, PERSIST_PMEM = 1 };

/* The mode that stores to the regular file FD can have. No side effects. */
enum persist_mode persist_detect(int fd);

/* True when the file lies on a file system whose mappings synchronous userfaultfd protects (tmpfs). */
bool persist_is_tmpfs(int fd);
/* True when the file's pages are mapped from the memory that it lies in: it has no page cache. */
bool persist_is_dax(int fd);

/* FD is borrowed and must stay open and writable. PATH is copied, for messages. -ENOTSUP when libpmem is
 * needed and cannot be loaded. */
int persist_open(int fd, const char *path, struct persist **persist);
void persist_close(struct persist *p);

enum persist_mode persist_get_mode(const struct persist *p);

/* What was done so far, for tests and measurements. */
struct persist_counts {
  uint64_t stores;              /* words: persist_store64(), persist_or64() */
  uint64_t copies;
  uint64_t copied_bytes;
  uint64_t flushes;             /* calls for ranges of cache lines, besides those of copies */
  uint64_t fences;
  uint64_t syncs;               /* fdatasync(2) */
  uint64_t block_changes;       /* fallocate(2), ftruncate(2) */
};

void persist_get_counts(const struct persist *p, struct persist_counts *counts);

/* What a test may watch: every change of the media as it is made. Each change and the call that tells of
 * it are made between begin() and end(), which are to exclude other threads, and may be nested: so the
 * order of the calls is the order of the changes. */
struct persist_watch {
  void (*begin)(void *file);
  void (*end)(void *file);
  /* A file was opened for writing: returns what the other calls get as FILE; NULL: it is not watched. */
  void *(*open)(int fd, const char *path, enum persist_mode mode);
  void (*close)(void *file);
  /* LENGTH bytes were stored, as FROM has them. WRITTEN_BACK: past the cache, so that the thread's next
   * drain makes them durable (a copy in PMEM mode). */
  void (*store)(void *file, uint64_t offset, const void *from, uint64_t length, bool written_back);
  /* The thread's next drain makes durable what is stored there now: a range of the file, or of any
   * mapping in this process. */
  void (*flush)(void *file, uint64_t offset, uint64_t length);
  void (*flush_memory)(void *file, const void *address, uint64_t length);
  void (*drain)(void *file);    /* before a store fence */
  void (*sync)(void *file);     /* before fdatasync(2) */
  void (*punch)(void *file, uint64_t offset, uint64_t length);          /* done, owes a sync */
  void (*grow)(void *file, uint64_t size);                              /* done, owes a sync */
};

/* For files opened from now on; NULL: none. Only while none is open. */
void persist_set_watch(const struct persist_watch *watch);

/* Reads through the file (coherent with all stores made here). A short read is -EUCLEAN. Any thread. */
int persist_read(struct persist *p, uint64_t offset, void *buffer, size_t length);

/* Copies bytes to the file, any alignment. Owed: a fence. Space must be there. */
int persist_copy(struct persist *p, uint64_t offset, const void *source, size_t length);

/* Gives a hole of the file, whole pages, space and content: SOURCE, or zeros when it is NULL. Owed: a fence.
 * -EAGAIN, without a message: not possible here, and anything may be in these pages; the caller gets space
 * for them and copies. */
int persist_fill(struct persist *p, uint64_t offset, const void *source, uint64_t length);

/* Stores one 8-byte word (host order in, little-endian on the media), atomically for other processes
 * and for a crash. OFFSET is a multiple of 8. Owed: a fence. */
int persist_store64(struct persist *p, uint64_t offset, uint64_t value);

/* Sets bits of a word, atomically with other threads' persist_or64. Owed: a fence. */
int persist_or64(struct persist *p, uint64_t offset, uint64_t bits);

/* In PMEM mode orders this thread's copies so far before anything a later fence of *another* thread
 * makes durable (an sfence); nothing in MSYNC mode. */
void persist_drain(struct persist *p);

/* Everything stored before by this thread, or by others up to their persist_drain(), is durable. */
int persist_fence(struct persist *p);

/* errno of the first fence that failed; 0: none. */
int persist_error(const struct persist *p);

/* fdatasync(2) in either mode: also what other processes and unflushed stores of a mapping left. */
int persist_sync(struct persist *p);

/* What was stored through shared mappings of the file, by whomever and whether its cache lines were flushed or not,
 * is durable: the kernel knows which pages that are, so this costs by what is dirty. On tmpfs, which emulates the
 * medium, there is nothing behind the pages: fdatasync(2) does nothing there, and is not called. */
int persist_sync_stores(struct persist *p);

/* Writes back what is stored in a range, by whomever (crash rule 5). Owed: a fence. Holes are skipped. */
int persist_writeback(struct persist *p, uint64_t offset, uint64_t length);

/* Writes back cache lines of a mapping of the file. PMEM mode. Owed: persist_drain(), or a fence. */
void persist_flush_memory(struct persist *p, const void *address, uint64_t length);

/* Space for a range: present pages keep their content, holes become zeros. -ENOSPC leaves things as
 * they were. */
int persist_allocate(struct persist *p, uint64_t offset, uint64_t length);

/* Space for what is copied there next, with persist_copy(). In MSYNC mode copies are system calls, which get blocks
 * by themselves, when they are written back, or give -ENOSPC: reserved ones would be one more change of the file's
 * extents for each copy, and would be taken one by one where some hundred copies wait for the same fence. */
int persist_prepare(struct persist *p, uint64_t offset, uint64_t length);

/* The same for metadata: whole pages around the range, remembered, so that asking again is cheap. */
int persist_reserve(struct persist *p, uint64_t offset, uint64_t length);
/* The same for what is not stored to at once: where there was space already, it is not asked again whether
 * the file still has it. */
int persist_reserve_ahead(struct persist *p, uint64_t offset, uint64_t length);

/* Whole pages become a hole. Owed: a fence. Mappings of the range see zeros at once. */
int persist_punch(struct persist *p, uint64_t offset, uint64_t length);

/* Whole pages that nobody has mapped become zeros, beside pages that a device may be writing to: punched on tmpfs and
 * with DAX, overwritten where they hold data on any other file system. There a hole next to a page that is pinned
 * takes the page from the file when both lie in one large folio that is clean, and with it what the device
 * writes (seen on XFS and ext4, Linux 6.18). Owed: a fence. */
int persist_clear(struct persist *p, uint64_t offset, uint64_t length);

/* Makes the file at least SIZE bytes long. Owed: a fence. -EFBIG. */
int persist_grow(struct persist *p, uint64_t size);

/* The first offset in [offset, end) that is (DATA) or is not backed by blocks, or END. On file
 * systems that cannot tell everything is data. */
uint64_t persist_seek(struct persist *p, uint64_t offset, uint64_t end, bool data);

#endif
