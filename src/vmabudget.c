/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The process's VMA count: one estimate for all mappings, corrected by counting /proc/self/maps.
 */
#include "vmabudget.h"

#include <fcntl.h>
#include <glib.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MAX 65530u
#define RECOUNT_PRESSED 512     /* changes after which a count is worth it when there are too many … */
#define RECOUNT_ALWAYS 8192     /* … and when there are not: the host program maps memory, too */

static GMutex lock;             /* counting */
static _Atomic uint64_t counted;
static _Atomic uint64_t limit;
static _Atomic int64_t tally;   /* since the count */
static _Atomic uint64_t override;
static _Atomic int maps;        /* that first writes split */
static _Atomic int64_t changes; /* since the count, whatever their sign */

static uint64_t read_max(void)
{
  char text[32];
  int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
  uint64_t max = 0;

  if (fd >= 0)
    close(fd);
  if (n > 0) {
    text[n] = '\0';
    max = strtoull(text, NULL, 10);
  }
  return max ? max : DEFAULT_MAX;
}

/* Lines of /proc/self/maps; 0 when it cannot be read. */
static uint64_t count_areas(void)
{
  size_t size = 64u << 10;
  g_autofree char *buffer = g_malloc(size);
  int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  uint64_t lines = 0;
  ssize_t n;

  if (fd < 0)
    return 0;
  while ((n = read(fd, buffer, size)) > 0)
    for (const char *at = buffer, *end = buffer + n; at < end; at++) {
      at = memchr(at, '\n', (size_t)(end - at));
      if (!at)
        break;
      lines++;
    }
  close(fd);
  return lines;
}

void vmabudget_add(int64_t areas)
{
  atomic_fetch_add_explicit(&tally, areas, memory_order_relaxed);
  atomic_fetch_add_explicit(&changes, areas < 0 ? -areas : areas, memory_order_relaxed);
}

void vmabudget_count(void)
{
  int64_t before;
  uint64_t n;

  g_mutex_lock(&lock);
  limit = (override ? override : read_max()) / 2 / 4 * 3;
  before = tally;
  n = count_areas();
  /* What was added while the lines were read may be counted twice: an overestimate. */
  if (n) {
    counted = n;
    tally -= before;
  }
  changes = 0;
  g_mutex_unlock(&lock);
}

int64_t vmabudget_room(void)
{
  return (int64_t)(limit - counted) - tally;
}

bool vmabudget_pressed(void)
{
  int64_t room = vmabudget_room();

  if (changes >= (room < 0 ? RECOUNT_PRESSED : RECOUNT_ALWAYS)) {
    vmabudget_count();
    room = vmabudget_room();
  }
  return room < 0;
}

void vmabudget_share(int more)
{
  atomic_fetch_add(&maps, more);
}

bool vmabudget_ample(int64_t used)
{
  int64_t all = (int64_t)limit, kept = all / 8, room = vmabudget_room();

  return room > all / 2 || (room > kept && used <= (all - kept) / MAX(maps, 1));
}

void vmabudget_override(uint64_t max)
{
  override = max;
  vmabudget_count();
}

uint64_t vmabudget_limit(void)
{
  return limit;
}

uint64_t vmabudget_counted(void)
{
  return counted;
}
