/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img map: which layer's file holds which part of an image, and where in it.
 */
#include "command.h"
#include "output.h"
#include "report.h"
#include "sizes.h"
#include "source.h"

static int print_extent(void *opaque, const struct pcow_extent *e)
{
  (void)opaque;
  if (e->type == PCOW_EXTENT_DATA)
    output_printf("%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER "x%#-16" G_GINT64_MODIFIER "x%s\n",
                  e->offset, e->length, e->file_offset, e->path);
  return 0;
}

static int build_extent(void *opaque, const struct pcow_extent *e)
{
  json_writer *json = opaque;
  const gboolean data = e->type == PCOW_EXTENT_DATA;

  json_begin_object(json, NULL);
  json_number(json, "start", e->offset);
  json_number(json, "length", e->length);
  json_number(json, "depth", e->depth);
  json_flag(json, "present", e->type != PCOW_EXTENT_ZERO);
  json_flag(json, "zero", !data);
  json_flag(json, "data", data);
  if (data)
    json_number(json, "offset", e->file_offset);
  json_text(json, "filename", e->path);
  json_end(json);
  return 0;
}

static int map(const struct command *command, struct source *source, uint64_t start, uint64_t length)
{
  pcow_image *image = source_image(source);
  const uint64_t size = source_size(source);

  if (start >= size)
    return report_fail("%s: offset %" G_GUINT64_FORMAT " is not within its %" G_GUINT64_FORMAT " bytes",
                       source_path(source), start, size);
  length = MIN(length, size - start);
  if (command->json) {
    g_autoptr(json_writer) json = json_new();

    json_begin_array(json, NULL);
    if (pcow_extents(image, start, length, 0, build_extent, json) < 0)
      return report_library();
    json_end(json);
    output_json(g_steal_pointer(&json));
    return 0;
  }
  output_printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  return pcow_extents(image, start, length, 0, print_extent, NULL) < 0 ? report_library() : 0;
}

int verb_map(struct command *command)
{
  g_autofree char *start_text = NULL, *length_text = NULL;
  const GOptionEntry entries[] = {
    { "start-offset", 's', 0, G_OPTION_ARG_FILENAME, &start_text, "Begin here", "OFFSET" },
    { "max-length", 'l', 0, G_OPTION_ARG_FILENAME, &length_text, "List so many bytes", "LENGTH" },
    OPTION_BASES(&command->bases),
    OPTION_OUTPUT(command),
    OPTION_END,
  };
  struct source *source = NULL;
  uint64_t start = 0, length = UINT64_MAX;
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  if (start_text && !sizes_parse(start_text, &start))
    return command_usage(command, "--start-offset: '%s' is not a size", start_text);
  if (length_text && (!sizes_parse(length_text, &length) || length == 0))
    return command_usage(command, "--max-length: '%s' is not a length", length_text);
  if (source_open(&command->bases, command->operands[0], NULL, PCOW_FORMAT_PCOW, &source))
    return COMMAND_FAILED;
  rc = map(command, source, start, length);
  source_close(source);
  return rc;
}
