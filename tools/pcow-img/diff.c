/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img diff: the ranges that differ between two snapshots, or between one and the head.
 */
#include "command.h"
#include "output.h"
#include "report.h"

#include <libpcow/libpcow.h>

static const char *type_name(const struct pcow_extent *e)
{
  return e->type == PCOW_EXTENT_DATA ? "data" : "zero";
}

static int print_extent(void *opaque, const struct pcow_extent *e)
{
  (void)opaque;
  output_printf("%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER "x%s\n", e->offset, e->length,
                type_name(e));
  return 0;
}

static int build_extent(void *opaque, const struct pcow_extent *e)
{
  json_writer *json = opaque;

  json_begin_object(json, NULL);
  json_number(json, "offset", e->offset);
  json_number(json, "length", e->length);
  json_text(json, "type", type_name(e));
  json_end(json);
  return 0;
}

int verb_diff(struct command *command)
{
  const GOptionEntry entries[] = { OPTION_BASES(&command->bases), OPTION_OUTPUT(command), OPTION_END };
  struct pcow_open_options options = PCOW_INIT(options);
  g_autoptr(json_writer) json = NULL;
  pcow_image *image = NULL;
  const char *from, *to;
  int rc = command_parse(command, entries, 2, 3);

  if (rc)
    return rc;
  from = command->operands[1];
  to = command->operands[2]; /* NULL when it is not given */
  if (bases_open(&command->bases, command->operands[0], &options, &image))
    return report_library();
  if (command->json) {
    json = json_new();
    json_begin_array(json, NULL);
    rc = pcow_diff(image, from, to, build_extent, json);
    json_end(json);
  } else {
    output_printf("%-16s%-16s%s\n", "Offset", "Length", "Type");
    rc = pcow_diff(image, from, to, print_extent, NULL);
  }
  if (rc < 0)
    rc = report_library();
  else if (json)
    output_json(g_steal_pointer(&json));
  pcow_close(image);
  return rc;
}
