/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img compare: the content of two sources, whatever their formats. What neither stores is not
 * read.
 */
#include "command.h"
#include "naming.h"
#include "output.h"
#include "progress.h"
#include "report.h"
#include "scan.h"
#include "source.h"

#include <string.h>

enum { COMPARE_SAME = 0, COMPARE_DIFFERENT = 1 };

struct comparison {
  struct source *a, *b;
  unsigned char *buffer_a, *buffer_b;
  uint64_t mismatch; /* offset of the first byte that differs */
};

/* The first place where the buffers differ; LENGTH when they do not. */
static size_t first_difference(const unsigned char *a, const unsigned char *b, size_t length)
{
  size_t i = 0;

  if (memcmp(a, b, length) == 0)
    return length;
  while (a[i] == b[i])
    i++;
  return i;
}

/* Content beyond the end of a source is zeros. */
static int extent_at(struct source *source, uint64_t offset, struct source_extent *extent)
{
  if (offset >= source_size(source)) {
    *extent = (struct source_extent){ .offset = offset, .length = UINT64_MAX - offset, .zero = true };
    return 0;
  }
  return source_extent(source, offset, extent);
}

static int content(struct source *source, const struct source_extent *extent, unsigned char *buffer,
                   size_t length)
{
  if (!extent->zero)
    return source_read(source, buffer, length, extent->offset);
  memset(buffer, 0, length);
  return 0;
}

/* Compares up to SIZE. 0 or COMMAND_FAILED; RESULT says what was found. */
static int compare(struct comparison *c, uint64_t size, int *result)
{
  struct source_extent a, b;
  uint64_t length;

  *result = COMPARE_SAME;
  for (uint64_t offset = 0; offset < size; offset += length) {
    if (extent_at(c->a, offset, &a) || extent_at(c->b, offset, &b))
      return COMMAND_FAILED;
    length = MIN(MIN(a.length, b.length), size - offset);
    if (!a.zero || !b.zero) {
      size_t same;

      length = MIN(length, SCAN_CHUNK);
      if (content(c->a, &a, c->buffer_a, length) || content(c->b, &b, c->buffer_b, length))
        return COMMAND_FAILED;
      same = first_difference(c->buffer_a, c->buffer_b, length);
      if (same < length) {
        c->mismatch = offset + same;
        *result = COMPARE_DIFFERENT;
        return 0;
      }
    }
    if (progress_step(offset + length, size))
      return COMMAND_FAILED;
  }
  return 0;
}

/* Compares sizes and content, and says what the result is. */
static int judge(struct comparison *c, gboolean strict, gboolean quiet)
{
  const uint64_t size_a = source_size(c->a), size_b = source_size(c->b);
  int result;

  if (size_a != size_b && strict) {
    if (!quiet)
      output_printf("Strict mode: Image size mismatch!\n");
    return COMPARE_DIFFERENT;
  }
  if (compare(c, MAX(size_a, size_b), &result))
    return COMMAND_FAILED;
  if (quiet)
    return result;
  if (size_a != size_b)
    output_printf("Warning: Image size mismatch!\n");
  if (result == COMPARE_DIFFERENT)
    output_printf("Content mismatch at offset %" G_GUINT64_FORMAT "!\n", c->mismatch);
  else
    output_printf("Images are identical.\n");
  return result;
}

int verb_compare(struct command *command)
{
  g_autofree char *format_a = NULL, *format_b = NULL;
  gboolean strict = FALSE;
  const GOptionEntry entries[] = {
    { "format", 'f', 0, G_OPTION_ARG_FILENAME, &format_a, "Format of FILE1 (default: told by its content)",
      "pcow|raw" },
    { "second-format", 'F', 0, G_OPTION_ARG_FILENAME, &format_b,
      "Format of FILE2 (default: told by its content)", "pcow|raw" },
    { "strict", 's', 0, G_OPTION_ARG_NONE, &strict, "The sizes must agree as well", NULL },
    OPTION_BASES(&command->bases),
    OPTION_PROGRESS(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  struct comparison c = { 0 };
  enum pcow_format format[2];
  int rc = command_parse(command, entries, 2, 2);

  if (rc)
    return rc;
  if (naming_format("-f", format_a, PCOW_FORMAT_NONE, &format[0]) ||
      naming_format("-F", format_b, PCOW_FORMAT_NONE, &format[1]))
    return COMMAND_FAILED;
  rc = source_open(&command->bases, command->operands[0], NULL, format[0], &c.a);
  if (rc == 0)
    rc = source_open(&command->bases, command->operands[1], NULL, format[1], &c.b);
  if (rc == 0) {
    c.buffer_a = g_malloc(SCAN_CHUNK);
    c.buffer_b = g_malloc(SCAN_CHUNK);
    progress_start(command->progress);
    rc = judge(&c, strict, command->quiet);
  }
  g_free(c.buffer_a);
  g_free(c.buffer_b);
  source_close(c.a);
  source_close(c.b);
  return rc;
}
