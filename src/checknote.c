/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What every part of a check does: says what it found, counts it, notes what a repair is to change, and
 * reads a bitmap.
 */
#include "checking.h"

#include "error.h"

#include <string.h>
#include <unistd.h>

void check_say(struct check *c, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  if (c->findings++ >= CHECK_FINDINGS_MAX || !c->fn)
    return;
  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  c->fn(c->opaque, text);
}

void check_corrupt(struct check *c, bool repairable)
{
  c->result.corruptions++;
  c->result.repairable += repairable;
}

static bool add_word(struct check *c, GArray *words, struct check_word word)
{
  if (words->len >= CHECK_CHANGES_MAX) {
    c->words_left = true;
    return false;
  }
  g_array_append_val(words, word);
  return true;
}

bool check_add_word(struct check *c, uint64_t offset, uint64_t value)
{
  return add_word(c, c->words, (struct check_word){ offset, value });
}

bool check_add_owner(struct check *c, uint64_t offset)
{
  return add_word(c, c->owners, (struct check_word){ offset, 0 });
}

void check_add_hole(struct check *c, uint64_t offset, uint64_t length)
{
  struct check_hole hole = { offset, length };

  if (c->holes->len < CHECK_CHANGES_MAX)
    g_array_append_val(c->holes, hole);
  else
    c->holes_left = true;
}

int check_progress(struct check *c, uint64_t done)
{
  if (c->progress && c->progress(c->opaque, MIN(done, 2 * c->slots), 2 * c->slots))
    return fail(ECANCELED, "%s: the check was canceled", c->path);
  return 0;
}

int check_read_bitmap(struct check *c, uint64_t index, uint64_t *bits)
{
  uint64_t at = geometry_bitmap(&c->geo, index), length = c->geo.bitmap_bytes, skip = 0;
  int r;

  if (length > PAGE_BYTES) {
    off_t data = lseek(c->fd, (off_t)at, SEEK_DATA);

    if (data >= 0 || errno == ENXIO)
      skip = data < 0 ? length : MIN(length, MAX((uint64_t)data, at) - at) & ~UINT64_C(7);
  }
  memset(bits, 0, skip);
  r = file_read(c->fd, c->path, at + skip, bits + skip / 8, length - skip, true);
  for (uint64_t i = skip / 8; r == 0 && i < length / 8; i++)
    bits[i] = le64toh(bits[i]);
  return r;
}
