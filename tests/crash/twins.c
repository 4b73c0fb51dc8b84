/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See twins.h. A step that the text of the format has no fence for any more, because another one covers
 * it, is listed with the reason and is not expected to be noticed.
 */
#include "twins.h"

#include "order.h"
#include "testlib.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

struct twin {
  const char *step;
  const char *mode;             /* "pmem", "msync" */
  const char *scenarios;        /* "-": none can notice */
  const char *about;
};

static const struct twin all[] = {
  { "1.2", "pmem", "map-stores", "fence between pages and their bits, one unit" },
  { "1.4", "pmem", "map-stores", "fence after the bits, one unit" },
  { "flush 1.2", "pmem", "pages-new", "fence between pages and their bits, a flush" },
  { "flush 1.4", "pmem", "pages-new", "fence after the bits, a flush" },
  { "publish 1.2", "pmem", "threads-flush", "hand-over of copied pages to the thread that flushes" },
  { "write 1.2", "pmem", "threads-flush", "hand-over of written pages to the thread that flushes" },
  { "zero 1.2", "pmem", "threads-flush", "hand-over of a slot of zeros to the thread that flushes" },
  { "settle 1.4", "pmem", "threads-flush", "hand-over of bits to the thread that finds them" },
  { "scrub 1.1", "pmem", "zeros,garbage", "punch of what a crash left where a bit is to be set" },
  { "zero 1.1", "pmem", "zeros", "punch of what is to read as zeros" },
  { "2.0", "pmem", "mark-growth", "commit of the high-water mark before a slot is used" },
  { "2.0 fence", "pmem", "mark-growth", "fence between the longer file and the mark" },
  { "2.1", "pmem", "slot-again,revert", "punch of a slot that was used before" },
  { "bitmap 2.1", "pmem", "slot-again,revert", "empty bitmap of a slot that was used before" },
  { "3.2", "pmem", "pages-again", "fence between the copies of the superblock" },
  { "3.3", "pmem", "sessions", "second copy of the superblock" },
  { "3.4", "pmem", "revert,collect-move", "fence after the second copy" },
  { "4.2", "pmem", "revert,delete-all", "fence between unlinking a slot and punching it" },
  { "superblocks 5", "pmem", "sessions", "superblocks durable before the image is opened" },
  { "log 5", "pmem", "sessions", "log of a crashed session" },
  { "map 5", "pmem", "sessions", "unit map of a crashed session" },
  { "slots 5", "pmem", "sessions", "headers and bitmaps of a crashed session" },
  { "data 5", "pmem", "sessions", "data of a crashed session" },
  { "fence 5", "pmem", "sessions", "fence after the superblocks of a clean image" },
  { "equal 5", "pmem", "sessions", "superblock copies that differ are made equal" },
  { "base 5", "pmem", "base-crashed", "a reader makes a crashed session's head durable" },
  { "recorded 5", "pmem", "base-crashed", "a base is durable before its identity is recorded" },
  { "6", "pmem", "rebase", "dirty before the first store" },
  { "9.2", "pmem", "base-changes", "new content tag before the head changes" },
  { "S.2", "pmem", "snapshot", "fence before the record of a snapshot" },
  { "S.3", "pmem", "snapshot", "fence of a record before its commit" },
  { "live S.1", "pmem", "map-snapshot", "writers stopped before a live snapshot" },
  { "live S.2", "pmem", "map-snapshot", "what was stored is written back, live snapshot" },
  { "moved S.2", "pmem", "map-snapshot", "the same where memory is moved over the range" },
  { "12.6.1", "pmem", "shrink-then-grow", "punch of what the growth lets be seen" },
  { "fence 12.6.1", "pmem", "shrink-then-grow", "fence between that punch and the commit" },
  { "rebase 1.2", "pmem", "rebase", "fence between pages and bits in the root epoch's slot" },
  { "rebase 1.4", "pmem", "rebase", "fence between bits and the commit of the rebase" },
  { "12.9.1", "pmem", "commit", "the overlay accepts the base's next tag" },
  { "raw 12.9.4", "pmem", "commit-raw", "a raw base is durable before the overlay is emptied" },
  { "14.7", "pmem", "map-stores", "data durable before the image is marked clean" },
  { NULL, NULL, NULL, NULL },
};

void twins_list(void)
{
  for (const struct twin *t = all; t->step; t++)
    printf("%s\t%s\t%s\t%s\n", t->step, t->mode, t->scenarios, t->about);
}

#ifdef PCOW_TWINS
static const struct twin *chosen;
static uint64_t *times;         /* shared by all processes */

bool twins_choose(const char *step)
{
  for (const struct twin *t = all; t->step; t++)
    if (!strcmp(t->step, step))
      chosen = t;
  times = mmap(NULL, sizeof(*times), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(times != MAP_FAILED, "no memory");
  return chosen;
}

bool order_left_out(const char *step)
{
  if (!chosen || strcmp(chosen->step, step))
    return false;
  __atomic_add_fetch(times, 1, __ATOMIC_RELAXED);
  return true;
}

void twins_report(void)
{
  if (chosen)
    printf("step %s was left out %" PRIu64 " times\n", chosen->step, *times);
}
#else
bool twins_choose(const char *step)
{
  (void)step;
  return false;
}

void twins_report(void) {}
#endif
