/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What scenarios without a model share: what an image showed to who opened it must be there after the cut.
 * A bench has the media of a laboratory without subjects, and a second one for the process that comes after a
 * SIGKILL.
 */
#ifndef CRASH_BENCH_H
#define CRASH_BENCH_H

#include "scenarios.h"

#define SIZE (2 * UNIT)         /* of the images */

struct bench {
  struct lab *lab;
  struct media *media, *killed_media;
  char *killed, *killed_states;
  unsigned cut, kill_at;
  unsigned char *expected;      /* SIZE bytes that an image shows */
  unsigned char *zeros;         /* as many */
  void (*on_cut)(struct bench *b);
  media_state_fn on_state;      /* of the second process */
};

char *bench_path(const char *dir, const char *name);

/* Media begin; FN (or NULL) is called at each cut unless the laboratory is quiet. */
void bench_begin(struct bench *b, struct lab *lab, void (*fn)(struct bench *b));
void bench_end(struct bench *b);

/* Each ends the process when it fails. */
pcow_image *open_in(struct bench *b, const char *dir, const char *name, uint32_t flags);
/* The first SIZE bytes that an image shows, and its size; to be freed. */
unsigned char *content_of(struct bench *b, const char *dir, const char *name, uint32_t flags);
/* For media_states(): counts a state, in which NAME must show what is expected. 0. */
int as_expected(void *opaque, const char *dir, const char *name, uint32_t flags);
void write_pages(struct bench *b, const char *dir, const char *name, unsigned count);
void create_in(const char *dir, const char *name, const char *base);

/* Another process takes the place of one that was killed, at the cut KILL_AT, and its cuts are explored. */
void go_on_killed(struct bench *b, media_state_fn fn, void (*work)(struct bench *b));

#endif
