/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See twins.h. A step that another one covers is listed with that reason. Nobody can notice; when somebody
 * does, the reason does not hold any more.
 */
#include "twins.h"

#include "order.h"
#include "testlib.h"

#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

struct twin {
  const char *step;             /* several, left out together: "a+b" */
  const char *mode;             /* "pmem", "msync"; "ext4": pmem with files there */
  const char *scenarios;        /* that must notice; "-": must not */
  const char *options;          /* more of them; "" */
  const char *about;
};

static const struct twin all[] = {
  { "1.2", "msync", "order-rebase-head", "", "fence between pages and their bits, one unit" },
  { "1.4", "pmem", "order-map", "", "fence after the bits, one unit" },
  { "1.4", "msync", "order-rebase-head", "", "fence after the bits, one unit" },
  { "flush 1.2", "pmem", "pages-new", "", "fence between pages and their bits, a flush" },
  { "flush 1.2", "msync", "pages-new", "", "fence between pages and their bits, a flush" },
  { "flush 1.4", "msync", "pages-new", "", "fence after the bits, a flush" },
  { "write 1.2", "pmem", "order-threads", "", "hand-over of written pages to the thread that flushes" },
  { "publish 1.2", "pmem", "-order-threads", "", "write 1.2 or 1.2 follows in the same thread with the unit locked" },
  { "zero 1.2", "pmem", "-zeros", "", "the punch owes a sync, which covers the new slot's header" },
  { "settle 1.4", "pmem", "-order-threads", "", "flush 1.4 follows in the same thread before anybody may rely on it" },
  { "scrub 1.1", "pmem", "pages-new,pages-again", "", "punch of what a crash left where a bit is to be set" },
  { "zero 1.1", "pmem", "zeros", "", "punch of what is to read as zeros" },
  { "2.0", "pmem", "mark-growth", "", "commit of the high-water mark before a slot is used" },
  { "2.0 fence", "pmem", "mark-growth", "", "fence between the longer file and the mark" },
  { "2.0 fence", "msync", "mark-growth", "", "fence between the longer file and the mark" },
  { "2.1", "pmem", "order-slot-again", "", "punch of a slot that was used before" },
  { "bitmap 2.1", "pmem", "order-slot-again", "", "empty bitmap of a slot that was used before" },
  { "3.2", "pmem", "pages-new", "", "fence between the copies of the superblock" },
  { "3.2", "msync", "pages-new", "", "fence between the copies of the superblock" },
  { "3.3", "pmem", "order-damage", "", "second copy of the superblock" },
  { "3.4", "pmem", "pages-new", "", "fence after the second copy" },
  { "3.4", "msync", "pages-new", "", "fence after the second copy" },
  { "4.2", "pmem", "order-move-down", "", "fence between unlinking a slot and punching it" },
  { "4.2", "msync", "order-move-down", "", "fence between unlinking a slot and punching it" },
  { "superblocks 5", "pmem", "order-close-killed", "", "superblocks durable before the image is opened" },
  { "fence 5", "pmem", "order-close-killed", "", "fence after the superblocks of a clean image" },
  { "fence 5", "msync", "order-close-killed", "", "fence after the superblocks of a clean image" },
  { "data 5", "pmem", "pages-new", "--kill 2", "data of a crashed session" },
  { "data 5+slots 5", "pmem", "rule-5", "", "presence bits of a killed session: one covers the other" },
  { "log 5", "pmem", "-sessions", "", "data 5, a sync of the file, covers it" },
  { "map 5", "pmem", "-sessions", "", "data 5, a sync of the file, covers it" },
  { "slots 5", "pmem", "-sessions", "", "data 5, a sync of the file, covers it" },
  { "equal 5", "pmem", "order-damage", "", "superblock copies that differ are made equal" },
  { "base 5", "pmem", "order-read-killed", "", "a reader makes a crashed session's head durable" },
  { "recorded 5", "pmem", "order-record-killed", "", "a base is durable before its identity is recorded" },
  { "6", "pmem", "order-rebase-killed", "", "dirty before the first store" },
  { "9.2", "pmem", "order-base-tag", "", "new content tag before the head changes" },
  { "S.2", "pmem", "-snapshot", "", "S.3, a fence of the same thread, comes before the commit" },
  { "S.3", "pmem", "snapshot", "", "fence of a record before its commit" },
  { "S.3", "msync", "snapshot", "", "fence of a record before its commit" },
  { "live S.1", "pmem", "order-live", "", "writers stopped before a live snapshot" },
  { "live S.2", "pmem", "order-live", "", "what was stored is written back, live snapshot" },
  { "moved S.2", "ext4", "order-live", "", "the same where memory is moved over the range" },
  { "12.6.1", "pmem", "order-shrink-killed", "", "punch of what the growth lets be seen" },
  { "fence 12.6.1", "pmem", "order-shrink-killed", "", "fence between that punch and the commit" },
  { "fence 12.6.1", "msync", "order-shrink-killed", "", "fence between that punch and the commit" },
  { "rebase 1.2", "pmem", "order-rebase-frozen", "", "fence between pages and bits of the root epoch" },
  { "rebase 1.2", "msync", "order-rebase-frozen", "", "fence between pages and bits of the root epoch" },
  { "rebase 1.4", "pmem", "order-rebase-frozen", "", "fence between these bits and the commit" },
  { "rebase 1.4", "msync", "order-rebase-frozen", "", "fence between these bits and the commit" },
  { "12.9.1", "pmem", "order-commit", "", "the overlay accepts the base's next tag" },
  { "raw 12.9.4", "pmem", "order-commit-raw", "", "a raw base is durable before the overlay is emptied" },
  { "1.2", "pmem", "flush-new", "", "the same, a flush of a map that has one unit to settle" },
  { "flush 1.2", "pmem", "flush-new", "", "fence between pages and their bits, a flush of a map" },
  { "flush 1.2", "msync", "flush-again", "", "the same, which makes stores to shared pages durable, too" },
  { "flush 1.4", "msync", "flush-new", "", "fence after the bits, a flush of a map" },
  { "write 1.2", "pmem", "flush-threads", "", "hand-over of copied pages to another thread's flush" },
  { "F.2", "pmem", "order-flush-wait", "", "a flush waits for another one that took its pages" },
  { "F.2", "msync", "order-flush-wait", "", "a flush waits for another one that took its pages" },
  { "idle F.1", "pmem", "flush-new", "", "a flush looks for what is tracked" },
  { "idle F.1", "msync", "flush-new", "", "a flush looks for what is tracked" },
  { "idle F.3", "pmem", "order-flush-idle", "", "a flush that finds nothing waits for what another one is settling" },
  { "idle F.3", "msync", "order-flush-idle", "", "a flush that finds nothing waits for what another one is settling" },
  { "idle F.4", "pmem", "flush-thin", "", "stores to a map of which no page is tracked" },
  { "hold F.2", "pmem", "order-flush-write", "", "a flush waits for pages that are taken from the kernel's hands" },
  { "hold F.2", "msync", "order-flush-write", "", "a flush waits for pages that are taken from the kernel's hands" },
  { "F.4", "pmem", "flush-again", "", "stores to shared pages of a flush-durable map" },
  { "F.4+live S.2", "pmem", "flush-snapshot", "", "the same before a snapshot: one covers the other" },
  { "hold H.2", "pmem", "order-flush-stores", "", "pages are protected before they are handed over" },
  { "hold H.2", "msync", "order-flush-stores", "", "pages are protected before they are handed over" },
  { "pipe P.1", "pmem", "order-flush-stores", "", "pages are copied before they are put into the pipe" },
  { "M.1", "pmem", "order-take-over", "", "punch of what an heir that takes a slot over must not see" },
  { "fence M.1", "pmem", "order-take-over", "", "fence between that punch and the owner word" },
  { "fence M.1", "msync", "order-take-over", "", "fence between that punch and the owner word" },
  { "M.3", "pmem", "order-take-over-step", "", "fence after the owner word of a slot that is taken over" },
  { "M.3", "msync", "-order-take-over-step", "", "the sync of whoever relies on the owner covers it" },
  { "holes M.4", "pmem", "order-move-down", "", "punch where a page that moves is a hole" },
  { "M.5", "pmem", "order-move-up", "", "fence between pages that moved up and their bits" },
  { "M.5", "msync", "order-move-up", "", "fence between pages that moved up and their bits" },
  { "M.6", "pmem", "order-move-up", "", "fence between these bits and the slot that is freed" },
  { "M.6", "msync", "order-move-up", "", "fence between these bits and the slot that is freed" },
  { "M.8", "pmem", "order-floor", "", "the heir inherits the floor" },
  { "head M.8", "pmem", "order-head-floor", "", "the head inherits the floor" },
  { "N.2", "pmem", "-order-move-down,collect-move", "", "N.3 comes before the heir's slot is freed, which hides what moved" },
  { "N.3", "pmem", "order-move-down", "", "fence between these bits and the slot that is freed" },
  { "N.3", "pmem", "order-move-live", "", "the same under a map" },
  { "N.3", "msync", "order-move-down", "", "fence between these bits and the slot that is freed" },
  { "end 13", "pmem", "-order-use-again", "", "4.2 of each slot comes before it is released" },
  { "repair 5", "pmem", "repair-killed", "", "what a repair goes by is durable" },
  { "repair 6", "pmem", "repair", "", "a repair marks the image dirty first" },
  { "repair 4.1", "pmem", "repair-ambiguous", "", "fence before the owners of slots that are given up" },
  { "repair 4.1+repair 4.2", "pmem", "repair-second", "", "before a repair punches: one covers the other" },
  { "repair 4.1+repair 4.2", "msync", "repair-second", "", "before a repair punches: one covers the other" },
  { "repair 4.2", "pmem", "-repair-second,repair", "", "4.1 comes first where pages are given up" },
  { "repair 4.2", "msync", "-repair-second,repair", "", "4.1 comes first where pages are given up" },
  { "14.7", "pmem", "order-closed", "", "data durable before the image is marked clean" },
  { NULL, NULL, NULL, NULL, NULL },
};

void twins_list(void)
{
  for (const struct twin *t = all; t->step; t++)
    printf("%s\t%s\t%s\t%s\t%s\n", t->step, t->mode, t->scenarios, t->options[0] ? t->options : "-", t->about);
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
  g_auto(GStrv) steps = chosen ? g_strsplit(chosen->step, "+", -1) : NULL;

  if (!chosen || !g_strv_contains((const char *const *)steps, step))
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
