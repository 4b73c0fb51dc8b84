/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img measure: how much space a conversion would need. For pcow these are allocated bytes: the
 * file is sparse, and its length says nothing (docs/format.md tells what lies where).
 */
#include "command.h"
#include "naming.h"
#include "output.h"
#include "progress.h"
#include "report.h"
#include "sizes.h"
#include "source.h"

#define SUPERBLOCK_BYTES 8192 /* both */
#define MAP_WORD_BYTES 8      /* per unit */
#define SLOT_HEADER_BYTES 64
#define UNIT_SIZE_MIN (UINT64_C(64) << 10)
#define UNIT_SIZE_MAX (UINT64_C(64) << 30)
#define UNIT_SIZE_DEFAULT (UINT64_C(128) << 20)
#define UNITS_DEFAULT_MAX 8192 /* the default unit grows beyond this many */
#define UNITS_MAX (UINT64_C(1) << 24)

struct measurement {
  enum pcow_format format;
  uint64_t unit_size;
  uint64_t size;
  uint64_t data;      /* bytes in pages that hold data */
  uint64_t units;     /* that hold data */
  uint64_t map_pages; /* of the unit map, that name them */
};

static uint64_t required(const struct measurement *m, uint64_t units, uint64_t map_pages, uint64_t data)
{
  /* A bitmap has a bit a page, at least one word. A group holds 2^16 slots: one page more for each
   * group allows for tables that begin within a page. */
  const uint64_t bitmap = MAX(m->unit_size / PCOW_PAGE_SIZE / 8, 8);
  const uint64_t groups = (units + 65535) / 65536;

  if (m->format == PCOW_FORMAT_RAW)
    return m->size;
  return SUPERBLOCK_BYTES + map_pages * PCOW_PAGE_SIZE + sizes_page_up(units * SLOT_HEADER_BYTES) +
         sizes_page_up(units * bitmap) + 2 * groups * PCOW_PAGE_SIZE + data;
}

static uint64_t units_of(const struct measurement *m, uint64_t size)
{
  return (size + m->unit_size - 1) / m->unit_size;
}

static uint64_t map_pages_of(uint64_t units)
{
  return sizes_page_up(units * MAP_WORD_BYTES) / PCOW_PAGE_SIZE;
}

/* Counts what SOURCE stores; zeros that are stored count, because finding them costs reading all. */
static int count(struct measurement *m, struct source *source)
{
  const uint64_t map_page_units = PCOW_PAGE_SIZE / MAP_WORD_BYTES;
  uint64_t page = 0, unit = 0, map_page = 0; /* counted up to here */
  struct source_extent extent;

  for (uint64_t offset = 0; offset < source_size(source); offset += extent.length) {
    uint64_t first, last;

    if (source_extent(source, offset, &extent) || progress_step(offset, source_size(source)))
      return COMMAND_FAILED;
    if (extent.zero)
      continue;
    first = MAX(offset / PCOW_PAGE_SIZE, page);
    page = sizes_page_up(offset + extent.length) / PCOW_PAGE_SIZE;
    if (page <= first)
      continue;
    m->data += (page - first) * PCOW_PAGE_SIZE;
    last = (page - 1) / (m->unit_size / PCOW_PAGE_SIZE);
    first = MAX(first / (m->unit_size / PCOW_PAGE_SIZE), unit);
    unit = last + 1;
    if (unit <= first)
      continue;
    m->units += unit - first;
    first = MAX(first / map_page_units, map_page);
    map_page = last / map_page_units + 1;
    m->map_pages += map_page > first ? map_page - first : 0;
  }
  return 0;
}

/* The unit size that the library would choose, or UNIT_SIZE, checked as the library does. */
static int choose_unit_size(struct measurement *m, uint64_t unit_size)
{
  if (unit_size && (unit_size < UNIT_SIZE_MIN || unit_size > UNIT_SIZE_MAX || (unit_size & (unit_size - 1))))
    return report_fail("a unit size is a power of two from 64k to 64G, %" G_GUINT64_FORMAT " is none",
                       unit_size);
  m->unit_size = unit_size ? unit_size : UNIT_SIZE_DEFAULT;
  while (!unit_size && units_of(m, m->size) > UNITS_DEFAULT_MAX && m->unit_size < UNIT_SIZE_MAX)
    m->unit_size *= 2;
  if (m->format == PCOW_FORMAT_PCOW && units_of(m, m->size) > UNITS_MAX)
    return report_fail("%" G_GUINT64_FORMAT " bytes are too many for units of %" G_GUINT64_FORMAT " bytes",
                       m->size, m->unit_size);
  return 0;
}

static void print(const struct command *command, const struct measurement *m)
{
  const uint64_t units = units_of(m, m->size);
  const uint64_t needed = required(m, m->units, m->map_pages, m->data);
  const uint64_t full = required(m, units, map_pages_of(units), m->size);

  if (command->json) {
    json_writer *json = json_new();

    json_begin_object(json, NULL);
    json_number(json, "schema-version", OUTPUT_SCHEMA_VERSION);
    json_number(json, "required", needed);
    json_number(json, "fully-allocated", full);
    json_end(json);
    output_json(json);
  } else {
    output_printf("required size: %" G_GUINT64_FORMAT "\n"
                  "fully allocated size: %" G_GUINT64_FORMAT "\n", needed, full);
  }
}

int verb_measure(struct command *command)
{
  g_autofree char *source_format = NULL, *target_format = NULL, *snapshot = NULL, *list = NULL;
  g_autofree char *size_text = NULL;
  const GOptionEntry entries[] = {
    { "source-format", 'f', 0, G_OPTION_ARG_FILENAME, &source_format,
      "Format of FILE (default: told by its content)", "pcow|raw" },
    { "target-format", 'O', 0, G_OPTION_ARG_FILENAME, &target_format, "Format to convert to (default raw)",
      "pcow|raw" },
    { "snapshot", 's', 0, G_OPTION_ARG_FILENAME, &snapshot, "Measure this snapshot of FILE", "NAME" },
    { "size", 0, 0, G_OPTION_ARG_FILENAME, &size_text, "Measure an empty image instead of FILE", "SIZE" },
    { "options", 'o', 0, G_OPTION_ARG_FILENAME, &list, "A power of two from 64k to 64G, for -O pcow",
      "unit_size=SIZE" },
    OPTION_BASES(&command->bases),
    OPTION_OUTPUT(command),
    OPTION_END,
  };
  struct measurement m = { 0 };
  struct source *source = NULL;
  enum pcow_format from;
  uint64_t unit_size;
  int rc = command_parse(command, entries, 0, 1);

  if (rc)
    return rc;
  if ((command->operand_count == 0) == !size_text)
    return command_usage(command, "either a file or --size is needed");
  if (naming_format("-f", source_format, PCOW_FORMAT_NONE, &from) ||
      naming_format("-O", target_format, PCOW_FORMAT_RAW, &m.format) || naming_unit_size(list, &unit_size))
    return COMMAND_FAILED;
  if (size_text && !sizes_parse(size_text, &m.size))
    return command_usage(command, "--size: '%s' is not a size", size_text);
  if (!size_text) {
    if (source_open(&command->bases, command->operands[0], snapshot, from, &source))
      return COMMAND_FAILED;
    m.size = source_size(source);
  }
  if (m.format == PCOW_FORMAT_PCOW)
    m.size = sizes_page_up(m.size);
  rc = choose_unit_size(&m, unit_size);
  if (rc == 0 && source)
    rc = count(&m, source);
  source_close(source);
  if (rc == 0)
    print(command, &m);
  return rc;
}
