/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image that is open for writing takes, found out without the code that is tested: by asking the file
 * system for blocks, and by walking the chains.
 */
#ifndef PCOW_TEST_FIGURES_H
#define PCOW_TEST_FIGURES_H

#include "image.h"
#include "testlib.h"

#include <unistd.h>

static inline uint32_t pending(pcow_image *image)
{
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_get_info(image, &info));
  CHECK(!info.deletions_pending == !(info.flags & PCOW_INFO_PENDING), "flag and number differ");
  return info.deletions_pending;
}

/* Bytes that [from, to) of the file takes, as the file system tells. */
static inline uint64_t data_bytes(int fd, uint64_t from, uint64_t to)
{
  uint64_t sum = 0;

  while (from < to) {
    off_t data = lseek(fd, (off_t)from, SEEK_DATA), hole;

    if (data < 0 || (uint64_t)data >= to)
      break;
    hole = lseek(fd, data, SEEK_HOLE);
    sum += MIN((uint64_t)hole, to) - (uint64_t)data;
    from = (uint64_t)hole;
  }
  return sum;
}

/* The longest chain of a unit, by reading the file. */
static inline uint64_t slots_a_unit(pcow_image *image)
{
  struct store *st = image->store;
  GArray *chain = g_array_new(FALSE, FALSE, sizeof(struct slot_info));
  uint64_t most = 0;

  for (uint64_t unit = 0; unit < geometry_units(&st->geo, st->sb.virtual_size); unit++) {
    uint64_t index;

    g_array_set_size(chain, 0);
    OK(slotwalk_map(st->fd, st->path, &st->sb, unit, &index));
    OK(slotwalk_chain(st->fd, st->path, &st->sb, unit, index, chain));
    most = MAX(most, chain->len);
  }
  g_array_unref(chain);
  return most;
}

#endif
