/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which bases are followed: those that lie beside or beneath the image that the command line names,
 * unless an option says otherwise. An image from a stranger cannot make the tool open anything else.
 */
#ifndef BASES_H
#define BASES_H

#include <glib.h>
#include <libpcow/libpcow.h>

struct bases {
  char *dir;    /* --base-dir */
  gboolean any; /* --any-base */
};

/* Entries that verbs put into their tables. */
#define OPTION_BASES(bases)                                                                                \
  { "base-dir", 0, 0, G_OPTION_ARG_FILENAME, &(bases)->dir,                                                \
    "Follow bases within DIR (default: the image's directory)", "DIR" },                                   \
  { "any-base", 0, 0, G_OPTION_ARG_NONE, &(bases)->any, "Follow bases wherever they lie; trusted images only", \
    NULL }

/* pcow_open() of what the command line named, following bases so. OPTIONS has flags and snapshot. */
int bases_open(const struct bases *bases, const char *path, const struct pcow_open_options *options,
               pcow_image **image);

/* The directory to which the bases beneath BASE are confined, NULL: none, when the command line names
 * BASE for the image at IMAGE: it is BASE then that they lie beside. The caller frees it. */
char *bases_dir_beneath(const struct bases *bases, const char *base, const char *image);

#endif
