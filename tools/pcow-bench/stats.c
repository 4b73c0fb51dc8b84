/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Medians and quartiles, between two values linearly; see stats.h.
 */
#include "stats.h"

#include <glib.h>
#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
  double x = *(const double *)a, y = *(const double *)b;

  return (x > y) - (x < y);
}

static double quantile(const double *sorted, size_t count, double at)
{
  double place = at * (double)(count - 1);
  size_t below = (size_t)place;
  double part = place - (double)below;

  return below + 1 < count ? sorted[below] * (1 - part) + sorted[below + 1] * part : sorted[below];
}

struct stats stats_of(const double *values, size_t count)
{
  struct stats s = { .min = NAN, .lower = NAN, .median = NAN, .upper = NAN, .max = NAN };
  g_autofree double *sorted = g_new(double, count + 1);

  for (size_t i = 0; i < count; i++)
    if (!isnan(values[i]))
      sorted[s.count++] = values[i];
  if (!s.count)
    return s;
  qsort(sorted, s.count, sizeof(*sorted), compare);
  s.min = sorted[0];
  s.lower = quantile(sorted, s.count, 0.25);
  s.median = quantile(sorted, s.count, 0.5);
  s.upper = quantile(sorted, s.count, 0.75);
  s.max = sorted[s.count - 1];
  return s;
}
