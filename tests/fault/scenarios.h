/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is done while something fails.
 */
#ifndef PCOW_TEST_SCENARIOS_H
#define PCOW_TEST_SCENARIOS_H

#include "world.h"

struct scenario {
  const char *name;
  void (*prepare)(void);        /* without faults */
  void (*run)(void);            /* ends with the image closed, unless the process is killed */
  bool maps;                    /* needs store-durable maps */
  bool flush_maps;              /* needs flush-durable maps */
  bool held;                    /* only what takes space fails, and then space is made */
};

extern const struct scenario scenarios[];
extern const unsigned scenario_count;

/* With a map (mapped.c). */
void run_map(void);
void run_map_native(void);
void run_map_held(void);
void run_map_read(void);
void run_flush(void);
void run_flush_native(void);

/* The process: SIGBUS in a storing thread ends that store. */
void mapped_signals(void);

#endif
