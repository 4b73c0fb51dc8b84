/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where inputs are run: a directory with the input's files and a guard beside them, which the library
 * cannot leave.
 */
#ifndef PCOW_FUZZ_SCENE_H
#define PCOW_FUZZ_SCENE_H

#include "input.h"

#define GUARD_BYTES 65536u

extern bool scene_trace;        /* $PCOW_FUZZ_TRACE: operations and their messages go to stderr */

/* Says what is wrong, and ends the process with SIGABRT. */
_Noreturn void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Makes the directory; it goes with the process. */
void scene_begin(void);

void scene_write(const struct input *in);

/* The first file. */
const char *scene_image(void);
/* Where it lies, with its bases. */
const char *scene_dir(void);

/* Bytes of blocks of all files of the input. */
uint64_t scene_blocks(void);

/* What was only read is as it was: the guard, and the files, the first one unless WROTE, the others unless
 * WROTE_BASE. */
void scene_check(const struct input *in, bool wrote, bool wrote_base);

#endif
