/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The list of all cases: the arrays of the cases-*.c files, one after the other.
 */
#include "bench.h"

const struct bench_case *cases_at(unsigned index)
{
  const struct bench_case *const lists[] = { warm_cases,   first_cases, flush_cases,
                                             manage_cases, chain_cases, space_cases };

  for (gsize i = 0; i < G_N_ELEMENTS(lists); i++)
    for (const struct bench_case *c = lists[i]; c->name; c++)
      if (index-- == 0)
        return c;
  return NULL;
}

char *size_text(uint64_t bytes)
{
  static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
  unsigned unit = 0;

  while (unit + 1 < G_N_ELEMENTS(units) && bytes >= 1024 && bytes % 1024 == 0) {
    bytes /= 1024;
    unit++;
  }
  return g_strdup_printf("%" G_GUINT64_FORMAT " %s", bytes, units[unit]);
}
