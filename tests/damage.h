/* SPDX-License-Identifier: BSD-3-Clause
 *
 * For tests of the checker: an image of which each place is known, means to damage it, and what a check
 * says. The image has 16 units of 64 KiB, a snapshot "one" of all of them, and a head that wrote the first 8
 * again. Check's assertions need a test around them; these do not.
 */
#ifndef PCOW_TEST_DAMAGE_H
#define PCOW_TEST_DAMAGE_H

#include "content.h"
#include "geometry.h"
#include "slotwalk.h"

#define UNIT (64 * KIB)
#define SIZE MIB

struct world {
  char *path;
  struct content head, one;
};

struct world damage_make(const char *name);
void damage_end(struct world *w);
/* Both views are what they should be. */
void damage_compare(struct world *w, const char *label);
/* The unit shows in one view what it shows in the other (NULL: zeros). */
void damage_lose(struct content *c, uint64_t unit, const struct content *beneath);

const struct geometry *damage_geo(void);
void damage_poke(const char *path, uint64_t offset, const void *bytes, size_t length);
void damage_poke64(const char *path, uint64_t offset, uint64_t word);
uint64_t damage_peek64(const char *path, uint64_t offset);
void damage_flip(const char *path, uint64_t offset, uint64_t bits);

/* Slots of a unit, and where the reference to the next older one lies. */
uint64_t damage_newest(const char *path, uint64_t unit);
uint64_t damage_older(const char *path, uint64_t slot);
uint64_t damage_previous_at(uint64_t slot);

extern char *damage_said; /* all sentences of the last check, or NULL */

struct pcow_check_result damage_check(const char *path, uint32_t flags);
void damage_must_say(const char *text);
void damage_must_not_say(const char *text);
void damage_be_silent(void);

/* Repairs all, leaks alone first, which must do nothing. All is repaired, the views are as they should be,
 * and doing it again finds nothing. */
void damage_repair(struct world *w, const char *label);

#endif
