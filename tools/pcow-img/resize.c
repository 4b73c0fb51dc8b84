/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img resize: to a size, or by one, with the arithmetic checked.
 */
#include "command.h"
#include "output.h"
#include "report.h"
#include "sizes.h"

#include <libpcow/libpcow.h>

/* The size that TEXT asks for, of an image that has PRESENT bytes; rounded up to a page. */
static int requested_size(const char *path, const char *text, uint64_t present, uint64_t *size)
{
  const char sign = *text;
  const gboolean relative = sign == '+' || sign == '-';
  uint64_t number;

  if (!sizes_parse(text + relative, &number))
    return report_fail("%s: '%s' is not a size", path, text);
  if (sign == '-' && number >= present)
    return report_fail("%s: has %" G_GUINT64_FORMAT " bytes, its size cannot become less by %s", path,
                       present, text + 1);
  if (sign == '+' && number > INT64_MAX - present)
    return report_fail("%s: '%s' more than its %" G_GUINT64_FORMAT " bytes is beyond any limit", path,
                       text + 1, present);
  *size = sizes_page_up(sign == '-' ? present - number : sign == '+' ? present + number : number);
  return *size ? 0 : report_fail("%s: an image cannot have size 0", path);
}

static int resize(pcow_image *image, const char *path, const char *text, gboolean shrink)
{
  struct pcow_info info = PCOW_INIT(info);
  uint64_t size;

  if (pcow_get_info(image, &info))
    return report_library();
  if (requested_size(path, text, info.virtual_size, &size))
    return COMMAND_FAILED;
  if (size < info.virtual_size && !shrink)
    return report_fail("%s: shrinking from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT
                       " bytes loses what lies beyond; it needs --shrink", path, info.virtual_size, size);
  if (pcow_resize(image, size, shrink ? PCOW_RESIZE_SHRINK : 0))
    return report_library();
  return 0;
}

int verb_resize(struct command *command)
{
  gboolean shrink = FALSE;
  const GOptionEntry entries[] = {
    { "shrink", 0, 0, G_OPTION_ARG_NONE, &shrink, "Allow a smaller size", NULL },
    OPTION_BASES(&command->bases),
    OPTION_QUIET(command),
    OPTION_END,
  };
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  const char *size_text;
  int rc;

  /* To GOption "-1G" is an option; no option of this verb begins with a digit. It is set aside. */
  char *negative = NULL;

  for (int i = 1; i < command->argc; i++)
    if (command->argv[i][0] == '-' && g_ascii_isdigit(command->argv[i][1])) {
      negative = command->argv[i];
      for (int j = i; j < command->argc; j++)
        command->argv[j] = command->argv[j + 1];
      command->argc--;
      break;
    }
  rc = command_parse(command, entries, negative ? 1 : 2, negative ? 1 : 2);
  if (rc)
    return rc;
  size_text = negative ? negative : command->operands[1];

  options.flags = PCOW_OPEN_RDWR;
  if (bases_open(&command->bases, command->operands[0], &options, &image))
    return report_library();
  rc = resize(image, command->operands[0], size_text, shrink);
  if (pcow_close(image) && rc == 0)
    rc = report_library();
  if (rc == 0 && !command->quiet)
    output_printf("Image resized.\n");
  return rc;
}
