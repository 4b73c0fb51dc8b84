/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Wrong-order twins: the library with one step of its ordering rules left out (src/order.h). What the
 * explorer does not find in a twin it could not find in the library either.
 */
#ifndef CRASH_TWINS_H
#define CRASH_TWINS_H

#include <stdbool.h>

/* Leaves STEP out from now on. False where there is no such step, or where this is not the twins' build. */
bool twins_choose(const char *step);

/* A line for each step: its name, the mode, the scenarios that must notice (after "-": must not), more options ("-": none),
 * what it is; with tabs between. */
void twins_list(void);

/* Prints how often the step was left out, in all processes. */
void twins_report(void);

#endif
