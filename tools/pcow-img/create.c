/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img create. The library makes the file complete or not at all.
 */
#include "command.h"
#include "naming.h"
#include "output.h"
#include "report.h"
#include "sizes.h"

#include <string.h>

/* Tells what was made, as qemu-img does: the sizes are those that the image has. */
static int print_created(const char *path)
{
  struct pcow_open_options options = PCOW_INIT(options);
  struct pcow_info info = PCOW_INIT(info);
  pcow_image *image = NULL;

  options.flags = PCOW_OPEN_INFO;
  if (pcow_open(path, &options, &image) || pcow_get_info(image, &info)) {
    pcow_close(image);
    return report_library();
  }
  output_printf("Formatting '%s', fmt=pcow size=%" G_GUINT64_FORMAT " unit_size=%" G_GUINT64_FORMAT, path,
                info.virtual_size, info.unit_size);
  if (info.base)
    output_printf(" backing_file=%s backing_fmt=%s", info.base, naming_format_name(info.base_format));
  output_printf("\n");
  pcow_close(image);
  return 0;
}

int verb_create(struct command *command)
{
  g_autofree char *base = NULL, *base_format = NULL, *format = NULL, *list = NULL;
  g_autofree char *base_file = NULL, *base_snapshot = NULL, *dir = NULL;
  const GOptionEntry entries[] = {
    { "format", 'f', 0, G_OPTION_ARG_FILENAME, &format, "Format of FILE: pcow, the default", "FORMAT" },
    { "backing", 'b', 0, G_OPTION_ARG_FILENAME, &base, "Layer FILE on this base", "BASE[@SNAPSHOT]" },
    { "backing-format", 'F', 0, G_OPTION_ARG_FILENAME, &base_format, "Format of BASE (default pcow)",
      "pcow|raw" },
    { "options", 'o', 0, G_OPTION_ARG_FILENAME, &list, "A power of two from 64k to 64G", "unit_size=SIZE" },
    OPTION_BASES(&command->bases),
    OPTION_QUIET(command),
    OPTION_END,
  };
  struct pcow_create_options options = PCOW_INIT(options);
  enum pcow_format parsed;
  uint64_t size = 0;
  const char *path;
  int rc = command_parse(command, entries, 1, 2);

  if (rc)
    return rc;
  path = command->operands[0];
  if (format && strcmp(format, "pcow") != 0)
    return report_fail("%s: cannot create format '%s', only pcow", path, format);
  if (!base && base_format)
    return command_usage(command, "-F needs a base, -b");
  if (!base && command->operand_count == 1)
    return report_fail("%s: an image without a base needs a size", path);
  if (command->operand_count == 2) {
    if (!sizes_parse(command->operands[1], &size))
      return report_fail("%s: '%s' is not a size", path, command->operands[1]);
    if (size == 0)
      return report_fail("%s: an image of size 0 cannot be created", path);
  }
  if (naming_unit_size(list, &options.unit_size))
    return COMMAND_FAILED;
  if (base) {
    if (naming_format("-F", base_format, PCOW_FORMAT_PCOW, &parsed) ||
        naming_split_base(base, path, &base_file, &base_snapshot))
      return COMMAND_FAILED;
    options.base = base_file;
    options.base_snapshot = base_snapshot;
    options.base_format = parsed;
    dir = bases_dir_beneath(&command->bases, base_file, path);
    options.base_dir = dir;
  }
  options.flags = PCOW_CREATE_REPLACE | (command->bases.any ? PCOW_CREATE_BASES : 0);
  rc = pcow_create(path, size, &options);
  if (rc)
    return naming_fail_base(rc, base ? base_format : "");
  return command->quiet ? 0 : print_created(path);
}
