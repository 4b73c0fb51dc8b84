/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which bases are followed; see bases.h.
 */
#include "bases.h"

static char *bases_dir(const struct bases *bases, const char *path)
{
  if (bases->any)
    return NULL;
  return bases->dir ? g_strdup(bases->dir) : g_path_get_dirname(path);
}

char *bases_dir_beneath(const struct bases *bases, const char *base, const char *image)
{
  g_autofree char *image_dir = g_path_get_dirname(image), *path = NULL;

  path = g_path_is_absolute(base) ? g_strdup(base) : g_build_filename(image_dir, base, NULL);
  return bases_dir(bases, path);
}

int bases_open(const struct bases *bases, const char *path, const struct pcow_open_options *options,
               pcow_image **image)
{
  g_autofree char *dir = bases_dir(bases, path);
  struct pcow_open_options full = *options;

  full.base_dir = dir;
  if (bases->any)
    full.flags |= PCOW_OPEN_BASES;
  return pcow_open(path, &full, image);
}
