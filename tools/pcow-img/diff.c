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
  JsonBuilder *builder = opaque;

  json_builder_begin_object(builder);
  output_member_number(builder, "offset", e->offset);
  output_member_number(builder, "length", e->length);
  output_member_text(builder, "type", type_name(e));
  json_builder_end_object(builder);
  return 0;
}

int verb_diff(struct command *command)
{
  const GOptionEntry entries[] = { OPTION_BASES(&command->bases), OPTION_OUTPUT(command), OPTION_END };
  struct pcow_open_options options = PCOW_INIT(options);
  g_autoptr(JsonBuilder) builder = NULL;
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
    builder = json_builder_new();
    json_builder_begin_array(builder);
    rc = pcow_diff(image, from, to, build_extent, builder);
    json_builder_end_array(builder);
  } else {
    output_printf("%-16s%-16s%s\n", "Offset", "Length", "Type");
    rc = pcow_diff(image, from, to, print_extent, NULL);
  }
  if (rc < 0)
    rc = report_library();
  else if (builder)
    output_json(g_steal_pointer(&builder));
  pcow_close(image);
  return rc;
}
