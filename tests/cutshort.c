/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Counts stores, punches and growths as persist tells of them.
 */
#include "cutshort.h"

#include "persist.h"

#include <unistd.h>

static uint64_t changes_left;

static void change(void)
{
  if (changes_left-- == 0)
    _exit(CUT_SHORT);
}

static void *watch_open(int fd, const char *path, enum persist_mode mode)
{
  (void)fd, (void)path, (void)mode;
  return &changes_left;
}

static void watch_nothing(void *file) { (void)file; }

static void watch_store(void *file, uint64_t offset, const void *from, uint64_t length, bool written_back)
{
  (void)file, (void)offset, (void)from, (void)length, (void)written_back;
  change();
}

static void watch_flush(void *file, uint64_t offset, uint64_t length)
{
  (void)file, (void)offset, (void)length;
}

static void watch_flush_memory(void *file, const void *address, uint64_t length)
{
  (void)file, (void)address, (void)length;
}

static void watch_punch(void *file, uint64_t offset, uint64_t length)
{
  (void)file, (void)offset, (void)length;
  change();
}

static void watch_grow(void *file, uint64_t size)
{
  (void)file, (void)size;
  change();
}

void cut_short_after(uint64_t changes)
{
  static const struct persist_watch watch = {
    .begin = watch_nothing, .end = watch_nothing, .open = watch_open, .close = watch_nothing,
    .store = watch_store, .flush = watch_flush, .flush_memory = watch_flush_memory,
    .drain = watch_nothing, .sync = watch_nothing, .punch = watch_punch, .grow = watch_grow,
  };

  changes_left = changes;
  persist_set_watch(&watch);
}
