/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The environment variables in which pcow-run tells libpcow-run what it was told.
 */
#ifndef RUN_SETTINGS_H
#define RUN_SETTINGS_H

#define RUN_ENV_DURABILITY "PCOW_RUN_DURABILITY"        /* "store", "flush"; unset: as it suits */
#define RUN_ENV_BASES "PCOW_RUN_BASES"                  /* a directory, or: */
#define RUN_ANY_BASE "any"                              /* not absolute, so no directory */
#define RUN_ENV_IMAGES "PCOW_RUN_IMAGES"                /* lines; unset: all images */

#endif
