/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sequences among faults: how much one fault takes. A few streams are remembered; a fault that continues
 * one takes several times what the last one took.
 */
#include "mapstate.h"

uint64_t window_find(struct pcow_mapping *m, uint64_t page, uint64_t least, uint64_t most, unsigned factor)
{
  uint64_t window = least;

  if (!m->adaptive)
    return window;
  g_mutex_lock(&m->lock);
  for (unsigned i = 0; i < STREAMS; i++) {
    const struct stream *s = &m->streams[i];

    if (s->window && page >= s->next && page < s->next + s->window)
      window = CLAMP(s->window * factor, least, most);
  }
  g_mutex_unlock(&m->lock);
  return window;
}

void window_used(struct pcow_mapping *m, uint64_t page, uint64_t end)
{
  struct stream *oldest = &m->streams[0];

  if (!m->adaptive)
    return;
  g_mutex_lock(&m->lock);
  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &m->streams[i];

    if (s->window && page >= s->next && page < s->next + s->window) {
      oldest = s;
      break;
    }
    if (s->used < oldest->used)
      oldest = s;
  }
  oldest->next = end;
  oldest->window = end > page ? end - page : 1;
  oldest->used = ++m->clock;
  g_mutex_unlock(&m->lock);
}
