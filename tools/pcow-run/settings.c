/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What pcow-run was told, as it arrives in the environment of each process; and how this library says
 * something: in one sentence on standard error.
 */
#undef _FILE_OFFSET_BITS
#include "settings.h"

#include "real.h"
#include "run.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static struct run_settings settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* LINES is cut into its lines. */
static char **split(const char *lines)
{
  char *copy = strdup(lines);
  size_t count = 2;
  char **all;

  for (const char *at = lines; *at; at++)
    count += *at == '\n';
  all = calloc(count, sizeof(*all));
  if (!copy || !all)
    return NULL;
  count = 0;
  for (char *rest = copy, *line; (line = strsep(&rest, "\n"));)
    if (*line)
      all[count++] = line;
  return all;
}

static void read_settings(void)
{
  const char *durability = getenv(RUN_ENV_DURABILITY);
  const char *bases = getenv(RUN_ENV_BASES);
  const char *images = getenv(RUN_ENV_IMAGES);

  if (durability && strcmp(durability, "store") == 0)
    settings.durability = RUN_STORE;
  else if (durability && strcmp(durability, "flush") == 0)
    settings.durability = RUN_FLUSH;
  if (bases && strcmp(bases, RUN_ANY_BASE) == 0)
    settings.any_base = true;
  else if (bases)
    settings.base_dir = strdup(bases);
  if (images)
    settings.images = split(images);
}

const struct run_settings *run_settings(void)
{
  pthread_once(&once, read_settings);
  return &settings;
}

bool run_settings_serve(const char *path, const char **snapshot)
{
  const struct run_settings *s = run_settings();

  *snapshot = NULL;
  if (!s->images)
    return true;
  for (char **image = s->images; *image; image++) {
    size_t length = strcspn(*image, "\t");

    if (strncmp(*image, path, length) != 0 || path[length])
      continue;
    if ((*image)[length])
      *snapshot = *image + length + 1;
    return true;
  }
  return false;
}

/* Into a buffer, and out in one piece: the stream may be the program's, and locked. */
void run_complain(const char *format, ...)
{
  char text[2048] = "pcow-run: ";
  int error = errno;
  size_t length = strlen(text);
  va_list list;

  va_start(list, format);
  vsnprintf(text + length, sizeof(text) - length - 1, format, list);
  va_end(list);
  length = strlen(text);
  text[length++] = '\n';
  if (!run_table_has(2))
    length = (size_t)real()->write(2, text, length);
  errno = error;
}

int run_complain_library(int error)
{
  run_complain("%s", pcow_errormsg());
  return error;
}

long run_result(long result)
{
  if (result >= 0)
    return result;
  errno = (int)-result;
  return -1;
}
