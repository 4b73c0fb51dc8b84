/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a store becomes durable. Stores go through aliases: mappings of the file that belong to this
 * module alone, made on demand, one for each 64 GiB of the file that is touched and each one VMA.
 * What changes the media passes one of a few places: media_copy(), media_word(), media_flush*(),
 * media_drain(), media_sync(), media_fill() in persistfill.c and change_*() in persistspace.c; each counts,
 * and says what it did to whoever watches.
 */
#include "persiststate.h"

#include "error.h"
#include "format.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x200000
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define ALIAS_SHIFT 36
#define ALIAS_BYTES (UINT64_C(1) << ALIAS_SHIFT)

/* Never changed or removed once it is in its bucket, so that looking one up takes no lock. */
struct alias {
  struct alias *next;
  uint64_t number;              /* of the ALIAS_BYTES of the file */
  char *base;
};

const struct persist_watch *persist_watch;

void watch_begin(const struct persist *p)
{
  if (p->watched)
    persist_watch->begin(p->watched);
}

void watch_end(const struct persist *p)
{
  if (p->watched)
    persist_watch->end(p->watched);
}

void persist_set_watch(const struct persist_watch *w) { persist_watch = w; }

/* ---- What a file can do ---- */

static bool can_map_sync(int fd)
{
  long page = sysconf(_SC_PAGESIZE);
  void *address = mmap(NULL, (size_t)page, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);

  if (address == MAP_FAILED)
    return false;
  munmap(address, (size_t)page);
  return true;
}

enum persist_mode persist_detect(int fd)
{
  const char *force = g_getenv("PMEM_IS_PMEM_FORCE"); /* as libpmem understands it */

  if (force && !strcmp(force, "1"))
    return PERSIST_PMEM;
  if (force && !strcmp(force, "0"))
    return PERSIST_MSYNC;
  return can_map_sync(fd) ? PERSIST_PMEM : PERSIST_MSYNC;
}

bool persist_is_tmpfs(int fd)
{
  struct statfs info;

  return fstatfs(fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
}

bool persist_is_dax(int fd)
{
  struct statx info;

  return statx(fd, "", AT_EMPTY_PATH, 0, &info) == 0 && (info.stx_attributes & STATX_ATTR_DAX);
}

int persist_open(int fd, const char *path, struct persist **persist)
{
  enum persist_mode mode = persist_detect(fd);
  const struct pmem_calls *pmem = NULL;
  struct persist *p;
  int ret = mode == PERSIST_PMEM ? persist_pmem(path, &pmem) : 0;

  if (ret)
    return ret;
  p = g_new0(struct persist, 1);
  p->fd = fd;
  p->path = g_strdup(path);
  p->mode = mode;
  p->pmem = pmem;
  p->map_sync = p->mode == PERSIST_PMEM && can_map_sync(fd);
  p->tmpfs = persist_is_tmpfs(fd);
  g_mutex_init(&p->lock);
  g_mutex_init(&p->sync_lock);
  g_mutex_init(&p->seek_lock);
  p->reserved = g_hash_table_new(NULL, NULL);
  if (persist_watch)
    p->watched = persist_watch->open(fd, path, p->mode);
  *persist = p;
  return 0;
}

void persist_close(struct persist *p)
{
  if (!p)
    return;
  if (p->watched)
    persist_watch->close(p->watched);
  for (unsigned i = 0; i < ALIAS_BUCKETS; i++) {
    struct alias *next;

    for (struct alias *a = p->aliases[i]; a; a = next) {
      next = a->next;
      munmap(a->base, ALIAS_BYTES);
      g_free(a);
    }
  }
  persist_close_stages(p);
  g_hash_table_unref(p->reserved);
  g_mutex_clear(&p->lock);
  g_mutex_clear(&p->sync_lock);
  g_mutex_clear(&p->seek_lock);
  g_free(p->path);
  g_free(p);
}

enum persist_mode persist_get_mode(const struct persist *p) { return p->mode; }

void persist_get_counts(const struct persist *p, struct persist_counts *counts)
{
  counts->stores = p->stores;
  counts->copies = p->copies;
  counts->copied_bytes = p->copied_bytes;
  counts->flushes = p->flushes;
  counts->fences = p->fences;
  counts->syncs = p->syncs;
  counts->block_changes = p->block_changes;
}

/* ---- Aliases ---- */

static char *alias_find(struct persist *p, uint64_t number)
{
  struct alias *a = atomic_load_explicit(&p->aliases[number % ALIAS_BUCKETS], memory_order_acquire);

  while (a && a->number != number)
    a = a->next;
  return a ? a->base : NULL;
}

static char *alias_add(struct persist *p, uint64_t number)
{
  int flags = p->map_sync ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
  struct alias *a;
  void *base;

  /* Beyond the end of the file, too: what it grows by is reached without mapping anything anew. */
  base = mmap(NULL, ALIAS_BYTES, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, p->fd,
              (off_t)(number << ALIAS_SHIFT));
  if (base == MAP_FAILED) {
    fail_errno(errno, "%s: cannot map the file at byte %" PRIu64, p->path, number << ALIAS_SHIFT);
    return NULL;
  }
  /* A child must not write to the image, and a core dump is no place for it. */
  madvise(base, ALIAS_BYTES, MADV_DONTFORK);
  /* In a page cache, reading ahead makes folios larger than a page, and the first store to one gives
   * blocks to all of it: to slots that are free, too. */
  madvise(base, ALIAS_BYTES, MADV_RANDOM);
  madvise(base, ALIAS_BYTES, MADV_DONTDUMP);
  /* With DAX, a first store that finds 2 MiB of the device in one piece takes all of it: of free slots, too. */
  if (p->map_sync)
    madvise(base, ALIAS_BYTES, MADV_NOHUGEPAGE);
  a = g_new(struct alias, 1);
  a->number = number;
  a->base = base;
  a->next = p->aliases[number % ALIAS_BUCKETS];
  atomic_store_explicit(&p->aliases[number % ALIAS_BUCKETS], a, memory_order_release);
  return base;
}

/* Where byte OFFSET of the file can be stored to. *LENGTH is lowered to what is contiguous there. NULL
 * with a message. */
static char *alias_get(struct persist *p, uint64_t offset, uint64_t *length)
{
  uint64_t number = offset >> ALIAS_SHIFT;
  uint64_t within = offset & (ALIAS_BYTES - 1);
  char *base = alias_find(p, number);

  if (!base) {
    g_mutex_lock(&p->lock);
    base = alias_find(p, number);
    if (!base)
      base = alias_add(p, number);
    g_mutex_unlock(&p->lock);
    if (!base)
      return NULL;
  }
  *length = MIN(*length, ALIAS_BYTES - within);
  return base + within;
}

/* An access to what the file does not have any more, or to memory that failed, is a SIGBUS: whoever is
 * about to access an alias anew has the kernel do it first, which says so in an error. */
static int alias_probe(struct persist *p, char *address, uint64_t offset, uint64_t length, int advice)
{
  uint64_t within = (uintptr_t)address % PAGE_BYTES;
  struct stat st;

  if (!length || madvise(address - within, (length + within + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1),
                         advice) == 0)
    return 0;
  if (errno == EINVAL)          /* before Linux 5.14 */
    return 0;
  if (errno == ENOMEM)
    return fail(ENOMEM, "%s: no memory to access byte %" PRIu64, p->path, offset);
  if (fstat(p->fd, &st) == 0 && (uint64_t)st.st_size < offset + length)
    return fail(EUCLEAN, "%s: is truncated: ends at byte %jd, before byte %" PRIu64, p->path,
                (intmax_t)st.st_size, offset + length);
  return fail(EIO, "%s: %" PRIu64 " bytes at byte %" PRIu64 " cannot be accessed: the memory or the medium is "
              "damaged", p->path, length, offset);
}

int persist_alias(struct persist *p, uint64_t offset, uint64_t length)
{
  while (length) {
    uint64_t n = length;

    if (!alias_get(p, offset, &n))
      return -ENOMEM;
    offset += n;
    length -= n;
  }
  return 0;
}

int persist_probe(struct persist *p, uint64_t offset, uint64_t length)
{
  int ret = 0;

  while (ret == 0 && length) {
    uint64_t n = length;
    char *address = alias_get(p, offset, &n);

    if (!address)
      return -ENOMEM;
    ret = alias_probe(p, address, offset, n, MADV_POPULATE_WRITE);
    offset += n;
    length -= n;
  }
  return ret;
}

/* ---- The places that change the media ---- */

void media_flush(struct persist *p, uint64_t offset, const void *address, uint64_t length)
{
  watch_begin(p);
  p->pmem->flush(address, length);
  if (p->watched)
    persist_watch->flush(p->watched, offset, length);
  watch_end(p);
  count(&p->flushes, 1);
}

/* A mapping that belongs to others. */
static void media_flush_memory(struct persist *p, const void *address, uint64_t length)
{
  watch_begin(p);
  p->pmem->flush(address, length);
  if (p->watched)
    persist_watch->flush_memory(p->watched, address, length);
  watch_end(p);
  count(&p->flushes, 1);
}

static void media_drain(struct persist *p)
{
  watch_begin(p);
  if (p->watched)
    persist_watch->drain(p->watched);
  p->pmem->drain();
  watch_end(p);
}

/* Stores a word, or sets bits of it, and in PMEM mode flushes it. */
static int media_word(struct persist *p, uint64_t offset, uint64_t value, bool set_bits)
{
  uint64_t length = 8;
  uint64_t *word = (uint64_t *)(void *)alias_get(p, offset, &length);

  if (!word)
    return -ENOMEM;
  value = htole64(value);
  watch_begin(p);
  if (set_bits)
    value |= __atomic_fetch_or(word, value, __ATOMIC_SEQ_CST);
  else
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
  if (p->watched)
    persist_watch->store(p->watched, offset, &value, 8, false);
  watch_end(p);
  count(&p->stores, 1);
  if (p->mode == PERSIST_PMEM)
    media_flush(p, offset, word, 8);
  return 0;
}

static int media_copy_file(struct persist *p, uint64_t offset, const char *source, size_t length)
{
  while (length) {
    ssize_t n;

    watch_begin(p);
    n = pwrite(p->fd, source, length, (off_t)offset);
    if (p->watched && n > 0)
      persist_watch->store(p->watched, offset, source, (uint64_t)n, false);
    watch_end(p);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && (errno == ENOSPC || errno == EDQUOT))
      return fail(ENOSPC, "%s: no space left %s (%zu bytes at offset %" PRIu64 " needed)", p->path,
                  errno == ENOSPC ? "on the file system" : "in the disk quota", length, offset);
    if (n <= 0)
      return fail_errno(n < 0 ? errno : EIO, "%s: cannot write at byte %" PRIu64, p->path, offset);
    offset += (uint64_t)n;
    source += n;
    length -= (size_t)n;
  }
  return 0;
}

static int media_copy(struct persist *p, uint64_t offset, const char *source, size_t length)
{
  count(&p->copies, 1);
  count(&p->copied_bytes, length);
  /* By system call where there is a page cache: an I/O error is then an error and not a SIGBUS. */
  if (p->mode == PERSIST_MSYNC)
    return media_copy_file(p, offset, source, length);
  while (length) {
    uint64_t n = length;
    char *target = alias_get(p, offset, &n);
    int ret = target ? alias_probe(p, target, offset, n, MADV_POPULATE_WRITE) : -ENOMEM;

    if (ret)
      return ret;
    watch_begin(p);
    p->pmem->memcpy_nodrain(target, source, n);
    if (p->watched)
      persist_watch->store(p->watched, offset, source, n, true);
    watch_end(p);
    offset += n;
    source += n;
    length -= n;
  }
  return 0;
}

/* Pays the syncs that are owed so far. */
static void media_sync(struct persist *p)
{
  uint64_t debt = p->owed;

  if (p->paid >= debt)
    return;
  g_mutex_lock(&p->sync_lock);
  if (p->paid < debt && !p->error) {
    debt = p->owed;
    count(&p->syncs, 1);
    watch_begin(p);
    if (p->watched)
      persist_watch->sync(p->watched);
    watch_end(p);
    if (fdatasync(p->fd) < 0)
      p->error = errno; /* the kernel tells only once, and has dropped what it could not write */
    else
      p->paid = debt;
  }
  g_mutex_unlock(&p->sync_lock);
}

/* ---- Stores ---- */

int persist_copy(struct persist *p, uint64_t offset, const void *source, size_t length)
{
  return media_copy(p, offset, source, length);
}

int persist_store64(struct persist *p, uint64_t offset, uint64_t value)
{
  return media_word(p, offset, value, false);
}

int persist_or64(struct persist *p, uint64_t offset, uint64_t bits)
{
  return media_word(p, offset, bits, true);
}

void persist_drain(struct persist *p)
{
  if (p->mode == PERSIST_PMEM)
    media_drain(p);
}

int persist_fence(struct persist *p)
{
  int error;

  count(&p->fences, 1);
  if (p->mode == PERSIST_PMEM)
    media_drain(p);
  else
    atomic_fetch_add(&p->owed, 1);
  media_sync(p);
  error = p->error;
  if (error)
    return fail_errno(error, "%s: cannot make the file durable", p->path);
  return 0;
}

int persist_error(const struct persist *p) { return p->error; }

int persist_sync(struct persist *p)
{
  atomic_fetch_add(&p->owed, 1);
  return persist_fence(p);
}

int persist_sync_stores(struct persist *p)
{
  if (p->mode == PERSIST_MSYNC || p->map_sync || p->watched || !p->tmpfs)
    return persist_sync(p);
  count(&p->syncs, 1);
  return persist_fence(p);
}

int persist_writeback(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t end = offset + length;

  if (p->mode == PERSIST_MSYNC)
    return 0; /* the fence covers the whole file */
  for (;;) {
    uint64_t hole;

    offset = persist_seek(p, offset, end, true);
    if (offset >= end)
      return 0;
    hole = persist_seek(p, offset, end, false);
    while (offset < hole) {
      uint64_t n = hole - offset;
      char *address = alias_get(p, offset, &n);
      int ret = address ? alias_probe(p, address, offset, n, MADV_POPULATE_READ) : -ENOMEM;

      if (ret)
        return ret;
      media_flush(p, offset, address, n);
      offset += n;
    }
  }
}

void persist_flush_memory(struct persist *p, const void *address, uint64_t length)
{
  media_flush_memory(p, address, length);
}

/* ---- Reading ---- */

int persist_read(struct persist *p, uint64_t offset, void *buffer, size_t length)
{
  char *target = buffer;

  while (length) {
    ssize_t n = pread(p->fd, target, length, (off_t)offset);

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return fail_errno(errno, "%s: cannot read at byte %" PRIu64, p->path, offset);
    if (n == 0)
      return fail(EUCLEAN, "%s: is truncated: ends before byte %" PRIu64, p->path, offset);
    offset += (uint64_t)n;
    target += n;
    length -= (size_t)n;
  }
  return 0;
}
