/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A source as runs of data and zeros; see scan.h.
 */
#include "scan.h"

#include "progress.h"
#include "report.h"
#include "sizes.h"

#include <glib.h>
#include <string.h>

struct scan {
  scan_fn fn;
  void *opaque;
  uint64_t zero_offset; /* zeros found but not yet told, because more may follow */
  uint64_t zero_length;
};

bool scan_is_zero(const void *data, size_t length)
{
  const unsigned char *bytes = data;

  /* If the first bytes are zero and each byte equals the one before, all are. */
  for (size_t i = 0; i < MIN(length, 16); i++)
    if (bytes[i])
      return false;
  return length <= 16 || memcmp(bytes, bytes + 16, length - 16) == 0;
}

static int tell_zeros(struct scan *scan)
{
  uint64_t length = scan->zero_length;

  scan->zero_length = 0;
  return length ? scan->fn(scan->opaque, scan->zero_offset, length, NULL) : 0;
}

static void add_zeros(struct scan *scan, uint64_t offset, uint64_t length)
{
  if (scan->zero_length == 0)
    scan->zero_offset = offset;
  scan->zero_length += length;
}

/* Divides DATA into runs of pages that are zero and pages that are not. */
static int divide(struct scan *scan, uint64_t offset, const unsigned char *data, size_t length)
{
  for (size_t start = 0, end; start < length; start = end) {
    bool zero = scan_is_zero(data + start, MIN(length - start, PCOW_PAGE_SIZE));

    for (end = start + PCOW_PAGE_SIZE; end < length; end += PCOW_PAGE_SIZE)
      if (scan_is_zero(data + end, MIN(length - end, PCOW_PAGE_SIZE)) != zero)
        break;
    end = MIN(end, length);
    if (zero) {
      add_zeros(scan, offset + start, end - start);
    } else {
      int rc = tell_zeros(scan);

      if (rc == 0)
        rc = scan->fn(scan->opaque, offset + start, end - start, data + start);
      if (rc)
        return rc;
    }
  }
  return 0;
}

int scan_source(struct source *source, scan_fn fn, void *opaque)
{
  const uint64_t size = source_size(source);
  g_autofree unsigned char *buffer = g_malloc(SCAN_CHUNK);
  struct scan scan = { .fn = fn, .opaque = opaque };
  struct source_extent extent;
  uint64_t length;
  int rc;

  for (uint64_t offset = 0; offset < size; offset += length) {
    rc = source_extent(source, offset, &extent);
    if (rc)
      return rc;
    length = extent.length;
    if (extent.zero && offset + length < size)
      length &= ~(uint64_t)(PCOW_PAGE_SIZE - 1);
    if (extent.zero && length) {
      add_zeros(&scan, offset, length);
    } else {
      /* Data, or a page in which a hole ends: read whole pages. */
      length = MIN(MIN(sizes_page_up(extent.length), SCAN_CHUNK), size - offset);
      rc = source_read(source, buffer, length, offset);
      if (rc == 0)
        rc = divide(&scan, offset, buffer, length);
      if (rc)
        return rc;
    }
    rc = progress_step(offset + length, size);
    if (rc)
      return rc;
  }
  return tell_zeros(&scan);
}
