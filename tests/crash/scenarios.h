/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is explored. Each scenario gets an empty laboratory and a seed's random numbers; the same seed gives
 * the same operations.
 */
#ifndef CRASH_SCENARIOS_H
#define CRASH_SCENARIOS_H

#include "subject.h"
#include "verify.h"

struct scenario {
  const char *name;
  const char *about;
  void (*run)(struct lab *lab);
  bool mapped;                  /* needs store-durable maps: PMEM mode only */
};

/* Each ends with an entry without a name. */
extern const struct scenario scenarios_pages[];
extern const struct scenario scenarios_tree[];
extern const struct scenario scenarios_collect[];
extern const struct scenario scenarios_base[];
extern const struct scenario scenarios_map[];
extern const struct scenario scenarios_flush[];
extern const struct scenario scenarios_flush_order[];
extern const struct scenario scenarios_review[];
extern const struct scenario scenarios_order[];
extern const struct scenario scenarios_killed[];
extern const struct scenario scenarios_repair[];

/* An image of SIZE bytes under watched media, open; what COUNT writes put into it is durable. */
struct subject *scenario_image(struct lab *lab, uint64_t size, unsigned count);
/* A base of SIZE bytes with COUNT pages, not watched yet, and what it shows; "base" or what NAME says. */
struct face *scenario_base(struct lab *lab, const char *name, uint64_t size, unsigned count);
/* The same, a raw file. */
struct face *scenario_raw_base(struct lab *lab, const char *name, uint64_t size, unsigned count);
/* An image over a base of one kind or the other, with some pages of its own, mapped flush-durable. */
struct ground {
  struct subject *s;
  struct face *base;
  bool raw;
};
struct ground ground_over(struct lab *lab, uint64_t size, uint64_t base_size, unsigned own, uint32_t thin);
/* Flushes all of it. */
void ground_flush(struct ground *g);
/* What the map shows, and the image through the API. */
void ground_see(struct ground *g);
/* The base is as it was. */
void ground_end(struct ground *g);

/* The end: closes, and verifies the files as they are. */
void scenario_end(struct lab *lab);

#endif
