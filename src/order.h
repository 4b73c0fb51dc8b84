/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Marks the call that carries out one step of the ordering rules (docs/format.md, sections 11 to 14).
 * STEP is the step's number there, with the place in front where several carry it out ("rebase 1.2").
 * A test build with PCOW_TWINS leaves out the step that it is told to, so that the crash explorer can
 * prove that it would notice (tests/crash); in any other build nothing is left of the mark.
 *
 * ORDERED() gives the value of CALL, and 0 when it is left out; ORDERED_VOID() is for calls without one.
 */
#ifndef PCOW_ORDER_H
#define PCOW_ORDER_H

#ifdef PCOW_TWINS
#include <stdbool.h>

bool order_left_out(const char *step);

#define ORDERED(step, call) (order_left_out(step) ? 0 : (call))
#define ORDERED_VOID(step, call)                                                                    \
  do {                                                                                              \
    if (!order_left_out(step))                                                                      \
      call;                                                                                         \
  } while (0)
#else
#define ORDERED(step, call) (call)
#define ORDERED_VOID(step, call) call
#endif

#endif
