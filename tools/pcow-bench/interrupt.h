/* SPDX-License-Identifier: BSD-3-Clause
 *
 * SIGINT, SIGTERM and SIGHUP as a request to end, which loses no wake-up.
 */
#ifndef PCOW_BENCH_INTERRUPT_H
#define PCOW_BENCH_INTERRUPT_H

#include <poll.h>
#include <stdbool.h>

void interrupt_install(void);
bool interrupt_requested(void);
/* Waits for a descriptor. -1: a signal came instead. */
int interrupt_poll(struct pollfd *wait);
/* Ends the program by the signal that asked for it, if one did. */
void interrupt_reraise(void);

#endif
