/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Hands extents to a caller's function, with neighbours that continue each other merged.
 */
#ifndef PCOW_EXTENTS_H
#define PCOW_EXTENTS_H

#include "view.h"

#include <libpcow/libpcow.h>

struct extent_sink {
  pcow_extent_fn fn;
  void *opaque;
  struct pcow_extent pending;   /* length 0: none */
};

/* Takes the next extent (SIZE is filled in here). Gives the caller's function what can no longer
 * grow; its result other than 0 is passed on. */
int extent_sink_add(struct extent_sink *sink, const struct pcow_extent *extent);
int extent_sink_flush(struct extent_sink *sink);

/* The part [start, end) of RUN's bytes as an extent. MERGED: DATA or ZERO is all that is told. */
struct pcow_extent extent_of_run(const struct run *run, uint64_t start, uint64_t end, bool merged);

#endif
