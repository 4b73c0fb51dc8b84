/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img convert: copies the content of a source to a target. Zeros are not written to a new file,
 * and become holes in an old one.
 */
#include "command.h"
#include "naming.h"
#include "progress.h"
#include "report.h"
#include "scan.h"
#include "source.h"
#include "target.h"

/* A scan_fn. */
static int on_run(void *opaque, uint64_t offset, uint64_t length, const void *data)
{
  return target_write(opaque, offset, length, data);
}

static int convert(const struct command *command, struct source *source, const char *path,
                   enum pcow_format format, gboolean existing, uint64_t unit_size)
{
  struct target *target = NULL;
  int rc;

  if (existing && format == PCOW_FORMAT_NONE && naming_probe(path, &format))
    return COMMAND_FAILED;
  if (format == PCOW_FORMAT_NONE)
    format = PCOW_FORMAT_RAW;
  progress_start(command->progress); /* before there is a file that an interruption could leave */
  rc = existing ? target_open(&command->bases, path, format, source_size(source), &target)
                : target_create(path, format, source_size(source), unit_size, &target);
  if (rc)
    return rc;
  rc = scan_source(source, on_run, target);
  if (rc) {
    target_abandon(target);
    return rc;
  }
  return target_finish(target);
}

int verb_convert(struct command *command)
{
  g_autofree char *source_format = NULL, *target_format = NULL, *snapshot = NULL, *list = NULL;
  gboolean existing = FALSE;
  const GOptionEntry entries[] = {
    { "source-format", 'f', 0, G_OPTION_ARG_FILENAME, &source_format,
      "Format of SOURCE (default: told by its content)", "pcow|raw" },
    { "target-format", 'O', 0, G_OPTION_ARG_FILENAME, &target_format,
      "Format of TARGET (default raw; with -n told by its content)", "pcow|raw" },
    { "snapshot", 's', 0, G_OPTION_ARG_FILENAME, &snapshot, "Convert this snapshot of SOURCE", "NAME" },
    { "existing", 'n', 0, G_OPTION_ARG_NONE, &existing, "Write into TARGET, which exists", NULL },
    { "options", 'o', 0, G_OPTION_ARG_FILENAME, &list, "A power of two from 64k to 64G, for -O pcow",
      "unit_size=SIZE" },
    OPTION_BASES(&command->bases),
    OPTION_PROGRESS(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  enum pcow_format from, to;
  struct source *source = NULL;
  uint64_t unit_size;
  int rc = command_parse(command, entries, 2, 2);

  if (rc)
    return rc;
  if (naming_format("-f", source_format, PCOW_FORMAT_NONE, &from) ||
      naming_format("-O", target_format, PCOW_FORMAT_NONE, &to) || naming_unit_size(list, &unit_size))
    return COMMAND_FAILED;
  if (unit_size && (existing || to != PCOW_FORMAT_PCOW))
    return command_usage(command, "-o is for new files in the pcow format, -O pcow");
  if (source_open(&command->bases, command->operands[0], snapshot, from, &source))
    return COMMAND_FAILED;
  rc = convert(command, source, command->operands[1], to, existing, unit_size);
  source_close(source);
  return rc;
}
