/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a store becomes durable. Stores go through aliases: mappings of the file that belong to this
 * module alone, made on demand, one for each 64 GiB of the file that is touched and each one VMA.
 * What changes the media passes one of five places: media_copy(), media_word(), media_flush(),
 * media_sync() and change_blocks(); each counts.
 */
#include "persist.h"

#include "error.h"
#include "format.h"

#include <endian.h>
#include <fcntl.h>
#include <glib.h>
#include <libpmem.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define ALIAS_SHIFT 36
#define ALIAS_BYTES (UINT64_C(1) << ALIAS_SHIFT)
#define ALIAS_BUCKETS 256u

/* Reserved pages are remembered by chunks, a bit a page. */
#define CHUNK_SHIFT (PAGE_SHIFT + 6)
static_assert(sizeof(gpointer) >= 8, "chunks and their bits are kept in pointers");

/* Never changed or removed once it is in its bucket, so that looking one up takes no lock. */
struct alias {
  struct alias *next;
  uint64_t number;              /* of the ALIAS_BYTES of the file */
  char *base;
};

struct persist {
  int fd;
  char *path;
  enum persist_mode mode;
  bool map_sync;                /* the file system makes blocks durable before a store can reach them */
  GMutex lock;                  /* aliases (adding), reserved, growing */
  _Atomic(struct alias *) aliases[ALIAS_BUCKETS];
  GHashTable *reserved;         /* chunk number → bits */

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

/* Orders nothing. */
static void count(_Atomic uint64_t *counter, uint64_t n)
{
  atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

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

int persist_open(int fd, const char *path, struct persist **persist)
{
  struct persist *p = g_new0(struct persist, 1);

  p->fd = fd;
  p->path = g_strdup(path);
  p->mode = persist_detect(fd);
  p->map_sync = p->mode == PERSIST_PMEM && can_map_sync(fd);
  g_mutex_init(&p->lock);
  g_mutex_init(&p->sync_lock);
  g_mutex_init(&p->seek_lock);
  p->reserved = g_hash_table_new(NULL, NULL);
  *persist = p;
  return 0;
}

void persist_close(struct persist *p)
{
  if (!p)
    return;
  for (unsigned i = 0; i < ALIAS_BUCKETS; i++) {
    struct alias *next;

    for (struct alias *a = p->aliases[i]; a; a = next) {
      next = a->next;
      munmap(a->base, ALIAS_BYTES);
      g_free(a);
    }
  }
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

/* ---- The places that change the media ---- */

static void media_flush(struct persist *p, const void *address, uint64_t length)
{
  pmem_flush(address, length);
  count(&p->flushes, 1);
}

/* Stores a word, or sets bits of it, and in PMEM mode flushes it. */
static int media_word(struct persist *p, uint64_t offset, uint64_t value, bool set_bits)
{
  uint64_t length = 8;
  uint64_t *word = (uint64_t *)(void *)alias_get(p, offset, &length);

  if (!word)
    return -ENOMEM;
  if (set_bits)
    __atomic_fetch_or(word, htole64(value), __ATOMIC_SEQ_CST);
  else
    __atomic_store_n(word, htole64(value), __ATOMIC_SEQ_CST);
  count(&p->stores, 1);
  if (p->mode == PERSIST_PMEM)
    media_flush(p, word, 8);
  return 0;
}

static int media_copy_file(struct persist *p, uint64_t offset, const char *source, size_t length)
{
  while (length) {
    ssize_t n = pwrite(p->fd, source, length, (off_t)offset);

    if (n < 0 && errno == EINTR)
      continue;
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

    if (!target)
      return -ENOMEM;
    pmem_memcpy_nodrain(target, source, n);
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
    if (fdatasync(p->fd) < 0)
      p->error = errno; /* the kernel tells only once, and has dropped what it could not write */
    else
      p->paid = debt;
  }
  g_mutex_unlock(&p->sync_lock);
}

static int change_blocks(struct persist *p, int mode, uint64_t offset, uint64_t length)
{
  count(&p->block_changes, 1);
  while (fallocate(p->fd, mode, (off_t)offset, (off_t)length) < 0)
    if (errno != EINTR)
      return -errno;
  return 0;
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
    pmem_drain();
}

int persist_fence(struct persist *p)
{
  int error;

  count(&p->fences, 1);
  if (p->mode == PERSIST_PMEM)
    pmem_drain();
  else
    atomic_fetch_add(&p->owed, 1);
  media_sync(p);
  error = p->error;
  if (error)
    return fail_errno(error, "%s: cannot make the file durable", p->path);
  return 0;
}

int persist_sync(struct persist *p)
{
  atomic_fetch_add(&p->owed, 1);
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

      if (!address)
        return -ENOMEM;
      media_flush(p, address, n);
      offset += n;
    }
  }
}

void persist_flush_memory(struct persist *p, const void *address, uint64_t length)
{
  media_flush(p, address, length);
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

uint64_t persist_seek(struct persist *p, uint64_t offset, uint64_t end, bool data)
{
  uint64_t punches = p->punches;
  off_t found;

  if (offset >= end)
    return end;
  g_mutex_lock(&p->seek_lock);
  found = offset >= p->data_from && offset < p->data_to ? (off_t)p->data_to : -1;
  g_mutex_unlock(&p->seek_lock);
  if (found >= 0)
    return data ? offset : MIN((uint64_t)found, end);
  found = lseek(p->fd, (off_t)offset, data ? SEEK_DATA : SEEK_HOLE);
  if (found >= 0) {
    g_mutex_lock(&p->seek_lock);
    if (!data && (uint64_t)found > offset && p->punches == punches) {
      p->data_from = offset;
      p->data_to = (uint64_t)found;
    }
    g_mutex_unlock(&p->seek_lock);
    return MIN((uint64_t)found, end);
  }
  if (errno == ENXIO) /* at or beyond the end of the file, or no more data */
    return data ? end : offset;
  return data ? offset : end;
}

/* ---- Blocks ---- */

static int blocks_failed(struct persist *p, int ret, const char *what, uint64_t offset, uint64_t length)
{
  if (ret == -ENOSPC || ret == -EDQUOT)
    return fail(ENOSPC, "%s: no space left %s (%" PRIu64 " bytes at offset %" PRIu64 " needed)", p->path,
                ret == -ENOSPC ? "on the file system" : "in the disk quota", length, offset);
  if (ret == -EOPNOTSUPP)
    return fail(ENOTSUP, "%s: the file system cannot %s", p->path, what);
  return fail_errno(-ret, "%s: cannot %s (%" PRIu64 " bytes at offset %" PRIu64 ")", p->path, what,
                    length, offset);
}

int persist_allocate(struct persist *p, uint64_t offset, uint64_t length)
{
  int ret;

  if (!length)
    return 0;
  /* Owes no sync: a crash that loses blocks of zeros leaves holes, which read as zeros. */
  ret = change_blocks(p, FALLOC_FL_KEEP_SIZE, offset, length);
  return ret ? blocks_failed(p, ret, "reserve space", offset, length) : 0;
}

static gpointer reserved_key(uint64_t chunk) { return GSIZE_TO_POINTER((gsize)chunk); }

static uint64_t reserved_get(const struct persist *p, uint64_t chunk)
{
  return GPOINTER_TO_SIZE(g_hash_table_lookup(p->reserved, reserved_key(chunk)));
}

/* The bits of CHUNK that stand for pages [first, end) of the file. */
static uint64_t reserved_bits(uint64_t chunk, uint64_t first, uint64_t end)
{
  uint64_t from = MAX(first, chunk * 64) - chunk * 64;
  uint64_t to = MIN(end, chunk * 64 + 64) - chunk * 64;

  return (to == 64 ? ~UINT64_C(0) : (UINT64_C(1) << to) - 1) & ~UINT64_C(0) << from;
}

int persist_reserve(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t first = offset >> PAGE_SHIFT;
  uint64_t end = (offset + length + PAGE_BYTES - 1) >> PAGE_SHIFT;
  uint64_t from = end;          /* [from, to): from the first page that is missing to the last one */
  uint64_t to = end;
  int ret = 0;

  g_mutex_lock(&p->lock);
  for (uint64_t chunk = first / 64; chunk * 64 < end; chunk++) {
    uint64_t missing = reserved_bits(chunk, first, end) & ~reserved_get(p, chunk);

    if (!missing)
      continue;
    from = MIN(from, chunk * 64 + (uint64_t)__builtin_ctzll(missing));
    to = chunk * 64 + 64 - (uint64_t)__builtin_clzll(missing);
  }
  /* In one call, so that it is all or nothing: asking for what is there is harmless. */
  if (from < end)
    ret = persist_allocate(p, from << PAGE_SHIFT, (to - from) << PAGE_SHIFT);
  for (uint64_t chunk = from / 64; ret == 0 && from < end && chunk * 64 < to; chunk++)
    g_hash_table_replace(
      p->reserved, reserved_key(chunk),
      GSIZE_TO_POINTER((gsize)(reserved_get(p, chunk) | reserved_bits(chunk, from, to))));
  g_mutex_unlock(&p->lock);
  return ret;
}

static gboolean reserved_forget(gpointer key, gpointer value, gpointer range)
{
  uint64_t chunk = GPOINTER_TO_SIZE(key);
  const uint64_t *chunks = range;

  (void)value;
  return chunk >= chunks[0] && chunk < chunks[1];
}

int persist_punch(struct persist *p, uint64_t offset, uint64_t length)
{
  uint64_t chunks[2] = { offset >> CHUNK_SHIFT, ((offset + length - 1) >> CHUNK_SHIFT) + 1 };
  int ret;

  if (!length)
    return 0;
  g_mutex_lock(&p->lock);
  if (chunks[1] - chunks[0] > g_hash_table_size(p->reserved))
    g_hash_table_foreach_remove(p->reserved, reserved_forget, chunks);
  else
    for (uint64_t chunk = chunks[0]; chunk < chunks[1]; chunk++)
      g_hash_table_remove(p->reserved, reserved_key(chunk));
  g_mutex_unlock(&p->lock);
  ret = change_blocks(p, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  g_mutex_lock(&p->seek_lock);
  p->punches++;
  if (offset < p->data_to && offset + length > p->data_from)
    p->data_from = p->data_to = 0;
  g_mutex_unlock(&p->seek_lock);
  if (ret)
    return blocks_failed(p, ret, "punch holes", offset, length);
  atomic_fetch_add(&p->owed, 1);
  return 0;
}

int persist_grow(struct persist *p, uint64_t size)
{
  struct stat st;
  int ret = 0;

  g_mutex_lock(&p->lock); /* or the smaller of two growths could come last */
  if (fstat(p->fd, &st) < 0)
    ret = fail_errno(errno, "%s: cannot get the size of the file", p->path);
  else if ((uint64_t)st.st_size < size) {
    count(&p->block_changes, 1);
    while (ret == 0 && ftruncate(p->fd, (off_t)size) < 0)
      if (errno == EFBIG || errno == EINVAL)
        ret = fail(EFBIG, "%s: the file system allows no file of %" PRIu64 " bytes", p->path, size);
      else if (errno != EINTR)
        ret = fail_errno(errno, "%s: cannot grow the file to %" PRIu64 " bytes", p->path, size);
    if (ret == 0)
      atomic_fetch_add(&p->owed, 1);
  }
  g_mutex_unlock(&p->lock);
  return ret;
}
