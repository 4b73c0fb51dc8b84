/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Parsing and printing of sizes; see sizes.h.
 */
#include "sizes.h"

#include <glib.h>
#include <libpcow/libpcow.h>
#include <string.h>

__extension__ typedef unsigned __int128 wide;

/* The shift of a suffix letter; -1 for any other. */
static int suffix_shift(char letter)
{
  static const char letters[] = "bkmgtpe";
  const char *found = letter ? strchr(letters, g_ascii_tolower(letter)) : NULL;

  return found ? (int)(found - letters) * 10 : -1;
}

bool sizes_parse(const char *text, uint64_t *size)
{
  wide value = 0, fraction = 0, divisor = 1;
  const char *c = text;
  int shift = 0;

  if (!g_ascii_isdigit(*c))
    return false;
  for (; g_ascii_isdigit(*c); c++) {
    value = value * 10 + (unsigned)(*c - '0');
    if (value > INT64_MAX)
      return false;
  }
  if (*c == '.') {
    if (!g_ascii_isdigit(*++c))
      return false;
    /* Digits past the 18th cannot matter to a byte count below 2^63. */
    for (; g_ascii_isdigit(*c); c++)
      if (divisor < UINT64_C(1000000000000000000)) {
        fraction = fraction * 10 + (unsigned)(*c - '0');
        divisor *= 10;
      }
  }
  if (*c) {
    shift = suffix_shift(*c++);
    if (shift < 0 || *c)
      return false;
  }
  if (divisor > 1 && shift == 0)
    return false;
  value = (value << shift) + (fraction << shift) / divisor;
  if (value > INT64_MAX)
    return false;
  *size = (uint64_t)value;
  return true;
}

char *sizes_format(uint64_t size)
{
  static const char *const prefixes[] = { "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei" };
  double value = (double)size;
  unsigned i = 0;

  /* From 1000 on the next unit is used, so that three digits are enough. */
  while (value >= 999.5 && i + 1 < G_N_ELEMENTS(prefixes)) {
    value /= 1024;
    i++;
  }
  return g_strdup_printf("%0.3g %sB", value, prefixes[i]);
}

uint64_t sizes_page_up(uint64_t size)
{
  return (size + PCOW_PAGE_SIZE - 1) & ~(uint64_t)(PCOW_PAGE_SIZE - 1);
}
