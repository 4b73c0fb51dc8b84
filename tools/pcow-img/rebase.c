/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img rebase and commit: the two verbs that work between an image and its base.
 */
#include "command.h"
#include "naming.h"
#include "output.h"
#include "progress.h"
#include "report.h"

/* Ends IMAGE; its closing may be what fails. RC is what the work on it returned. */
static int close_written(pcow_image *image, int rc)
{
  if (rc < 0) {
    report_library();
    pcow_close(image);
    return COMMAND_FAILED;
  }
  return pcow_close(image) ? report_library() : 0;
}

static int open_written(const struct command *command, uint32_t flags, pcow_image **image)
{
  struct pcow_open_options options = PCOW_INIT(options);

  options.flags = PCOW_OPEN_RDWR | flags;
  return bases_open(&command->bases, command->operands[0], &options, image) ? report_library() : 0;
}

int verb_rebase(struct command *command)
{
  g_autofree char *base = NULL, *base_format = NULL, *base_file = NULL, *base_snapshot = NULL;
  g_autofree char *dir = NULL;
  gboolean unsafe = FALSE;
  const GOptionEntry entries[] = {
    { "backing", 'b', 0, G_OPTION_ARG_FILENAME, &base, "The new base; '' makes FILE independent",
      "BASE[@SNAPSHOT]" },
    { "backing-format", 'F', 0, G_OPTION_ARG_FILENAME, &base_format, "Format of BASE (default pcow)",
      "pcow|raw" },
    { "unsafe", 'u', 0, G_OPTION_ARG_NONE, &unsafe,
      "Change the reference only: if the bases differ, the content changes", NULL },
    OPTION_BASES(&command->bases),
    OPTION_PROGRESS(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  struct pcow_rebase_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  enum pcow_format format = PCOW_FORMAT_NONE;
  const char *path;
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  path = command->operands[0];
  if (!base)
    return command_usage(command, "the new base is missing, -b");
  if (*base && (naming_format("-F", base_format, PCOW_FORMAT_PCOW, &format) ||
                naming_split_base(base, path, &base_file, &base_snapshot)))
    return COMMAND_FAILED;

  options.flags = unsafe ? PCOW_REBASE_UNSAFE : 0;
  options.base = base_file;
  options.base_snapshot = base_snapshot;
  options.base_format = format;
  options.progress = progress_update;
  dir = base_file ? bases_dir_beneath(&command->bases, base_file, path) : NULL;
  options.base_dir = dir;
  if (command->bases.any)
    options.flags |= PCOW_REBASE_BASES;
  if (open_written(command, unsafe ? PCOW_OPEN_NO_BASE : 0, &image))
    return COMMAND_FAILED;
  progress_start(command->progress);
  rc = pcow_rebase(image, &options);
  if (rc)
    naming_fail_base(rc, base_format);
  return close_written(image, rc);
}

int verb_commit(struct command *command)
{
  const GOptionEntry entries[] = {
    OPTION_BASES(&command->bases),
    OPTION_PROGRESS(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  pcow_image *image = NULL;
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  if (open_written(command, 0, &image))
    return COMMAND_FAILED;
  progress_start(command->progress);
  rc = close_written(image, pcow_commit(image, progress_update, NULL));
  if (rc == 0 && !command->quiet)
    output_printf("Image committed.\n");
  return rc;
}
