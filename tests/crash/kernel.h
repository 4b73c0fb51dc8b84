/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls of the library to the kernel that a scenario can have go another way (by the linker's --wrap).
 */
#ifndef CRASH_KERNEL_H
#define CRASH_KERNEL_H

#include <stdbool.h>

/* From now on the COUNT-th time that the file is to get space (from 1) and all later ones fail; 0: none. */
void kernel_take_space(const char *path, unsigned count);
/* Was that refused since? */
bool kernel_refused_space(void);

/* Until the process ends tmpfs looks like another file system: what is done where pages cannot be protected
 * where they are is done there, too. */
void kernel_hide_tmpfs(void);

/* FN is called before this thread maps anything, or moves memory. NULL: nothing is. */
void kernel_set_between(void (*fn)(void *opaque), void *opaque);

#endif
