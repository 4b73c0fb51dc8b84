/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What names on the command line mean: FILE[@SNAPSHOT], formats, -o options.
 */
#ifndef NAMING_H
#define NAMING_H

#include <libpcow/libpcow.h>
#include <stdint.h>

/* Splits FILE[@SNAPSHOT]. A file whose name is the whole text wins; else the last '@' divides.
 * DIRECTORY (NULL: the working directory) is where a relative name starts. SNAPSHOT becomes NULL when
 * none is named. The caller frees both. 0, or COMMAND_FAILED with the error recorded. */
int naming_split(const char *text, const char *directory, char **file, char **snapshot);

/* The same for the base of the image at IMAGE, to whose directory a relative base is relative. */
int naming_split_base(const char *text, const char *image, char **file, char **snapshot);

/* "raw" or "pcow", as the option OPTION gives it. NULL: DEFAULT_FORMAT. */
int naming_format(const char *option, const char *name, enum pcow_format default_format,
                  enum pcow_format *format);

/* Records the error RESULT of the library's work with a base, with a hint if only its format is missing:
 * OPTION is the value of -F, or NULL. Returns COMMAND_FAILED. */
int naming_fail_base(int result, const char *option);

const char *naming_format_name(enum pcow_format format);

/* Tells the format of a file by its first bytes: pcow when either superblock slot has the magic
 * number, else raw. A disk image of another kind is refused: nobody wants its container's bytes.
 * NONE when the file does not exist. */
int naming_probe(const char *path, enum pcow_format *format);

/* The value of unit_size in a -o list (the only option there is); 0 when LIST is NULL. */
int naming_unit_size(const char *list, uint64_t *unit_size);

#endif
