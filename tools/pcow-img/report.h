/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The one error of a run. Whoever finds a failure records its sentence here, once, and returns -1;
 * everybody above passes that on, and main prints it after the clean-up: one line on stderr.
 */
#ifndef REPORT_H
#define REPORT_H

#include <glib.h>

#define COMMAND_FAILED (-1)

/* Each records a sentence and returns COMMAND_FAILED. The first one recorded stays. */
int report_fail(const char *format, ...) G_GNUC_PRINTF(1, 2);
int report_errno(int errnum, const char *format, ...) G_GNUC_PRINTF(2, 3); /* adds ": " and its text */
int report_library(void);                                                  /* pcow_errormsg() */

/* Library messages that belong to no call's result are kept from here on, and printed as warnings by
 * report_print_warnings() (after a failure they would hide the error: then nobody prints them). */
void report_collect_warnings(void);
void report_print_warnings(void);

void report_print_error(void);

#endif
