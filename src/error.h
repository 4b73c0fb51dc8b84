/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The calling thread's error sentence, and the log callback. A function that finds a failure says it
 * once, where it knows the file and the cause, and returns -errno; its callers pass that on.
 */
#ifndef PCOW_ERROR_H
#define PCOW_ERROR_H

#include <errno.h>
#include <inttypes.h>
#include <glib.h>

/* Marks what leaves the library: functions that libpcow.h declares, and no others. */
#define API __attribute__((visibility("default")))

/* Sets the thread's message and returns -ERRNUM. The sentence names the file first:
 * fail(EUCLEAN, "%s: superblock …", path, …). */
int fail(int errnum, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The same with ": " and the text of ERRNUM at its end. */
int fail_errno(int errnum, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Puts text and ": " before the thread's present message, e.g. the image whose base failed. */
void error_prefix(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* For a log line out of a failure: the thread's present message. */
const char *error_message(void);

void log_message(int level, const char *format, ...) G_GNUC_PRINTF(2, 3);

#endif
