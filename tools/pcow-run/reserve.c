/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory that the program has reserved: anonymous, inaccessible, at an address that the kernel chose. An image
 * may lie in there as a whole although the program maps parts of it only, and what the program has not unmapped
 * when the image goes stays reserved. Ranges that are noted here are the program's own; one that is not, because
 * there are too many, is only not known. The lock is held for nothing else.
 */
#undef _FILE_OFFSET_BITS
#include "run.h"

#include "real.h"

#include <stdatomic.h>
#include <sys/mman.h>

#define MOST 128

static struct { uintptr_t from, to; } kept[MOST];
static atomic_uint count;       /* changed with the lock held */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void add(uintptr_t from, uintptr_t to)
{
  if (count == MOST || from >= to)
    return;
  kept[count].from = from;
  kept[count].to = to;
  count++;
}

static void cut(uintptr_t from, uintptr_t to)
{
  for (unsigned n = 0; n < count;) {
    uintptr_t was_from = kept[n].from, was_to = kept[n].to;

    if (was_to <= from || to <= was_from) {
      n++;
      continue;
    }
    kept[n] = kept[--count];
    /* Neither is looked at again to any effect: it does not reach into what is cut. */
    if (was_from < from)
      add(was_from, from);
    if (to < was_to)
      add(to, was_to);
  }
}

/* The first byte from AT on that is not kept, or END. */
static uintptr_t kept_until(uintptr_t at, uintptr_t end)
{
  for (unsigned n = 0; n < count && at < end; n++) {
    if (kept[n].from <= at && at < kept[n].to) {
      at = kept[n].to;
      n = UINT32_MAX;   /* again from the first */
    }
  }
  return at < end ? at : end;
}

void run_reserve_keep(const void *address, size_t length)
{
  uintptr_t from = (uintptr_t)address;

  pthread_mutex_lock(&lock);
  cut(from, from + length);
  add(from, from + length);
  pthread_mutex_unlock(&lock);
}

void run_reserve_drop(const void *address, size_t length)
{
  uintptr_t from = (uintptr_t)address, to;

  if (!atomic_load_explicit(&count, memory_order_relaxed))
    return;
  if (__builtin_add_overflow(from, length, &to))
    to = UINTPTR_MAX;
  pthread_mutex_lock(&lock);
  cut(from, to);
  pthread_mutex_unlock(&lock);
}

bool run_reserve_has(const void *address, size_t length)
{
  uintptr_t from = (uintptr_t)address;
  bool has;

  pthread_mutex_lock(&lock);
  has = kept_until(from, from + length) == from + length;
  pthread_mutex_unlock(&lock);
  return has;
}

void run_reserve_release(void *address, size_t length)
{
  uintptr_t at = (uintptr_t)address, end = at + length;

  pthread_mutex_lock(&lock);
  while ((at = kept_until(at, end)) < end) {
    uintptr_t to = end;

    for (unsigned n = 0; n < count; n++)
      if (kept[n].from > at && kept[n].from < to)
        to = kept[n].from;
    real()->munmap((void *)at, to - at);
    at = to;
  }
  pthread_mutex_unlock(&lock);
}

void run_reserve_forked(void) { pthread_mutex_init(&lock, NULL); }

void *run_reserve(void *address, size_t length, int flags)
{
  const size_t alignment = RUN_ALIGNMENT;
  bool align = !address && length >= alignment && run_images() && !(flags & MAP_HUGETLB);
  size_t full, skip;
  uint8_t *raw;

  if (__builtin_add_overflow(length, PCOW_PAGE_SIZE - 1, &full))
    full = length;
  full &= ~(size_t)(PCOW_PAGE_SIZE - 1);
  raw = align ? real()->mmap64(NULL, full + alignment, PROT_NONE, flags, -1, 0) : MAP_FAILED;
  if (raw == MAP_FAILED) {
    raw = real()->mmap64(address, length, PROT_NONE, flags, -1, 0);
  } else {
    skip = (alignment - (uintptr_t)raw % alignment) % alignment;
    if (skip)
      real()->munmap(raw, skip);
    if (skip < alignment)
      real()->munmap(raw + skip + full, alignment - skip);
    raw += skip;
  }
  if (raw != MAP_FAILED && length >= alignment && !(flags & MAP_HUGETLB))
    run_reserve_keep(raw, full);
  return raw;
}
