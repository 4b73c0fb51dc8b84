/* SPDX-License-Identifier: BSD-3-Clause
 *
 * SIGINT, SIGTERM and SIGHUP as a request that long work polls, so that an interrupted command cleans
 * up like a failed one. A second signal ends the process at once.
 */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include <stdbool.h>

void interrupt_install(void);

/* True once a signal has come. */
bool interrupt_requested(void);

/* Dies of the signal that came, as the shell expects; returns when none did. */
void interrupt_reraise(void);

#endif
