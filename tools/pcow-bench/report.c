/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What all reports say in the same words; see report.h.
 */
#include "report.h"

#include "pattern.h"
#include "workdir.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

static char *scaled(double value, double step, const char *const *units)
{
  double magnitude = fabs(value);

  while (magnitude >= step && units[1]) {
    value /= step;
    magnitude /= step;
    units++;
  }
  return g_strdup_printf("%.*f %s", magnitude < 10 ? 2 : magnitude < 100 ? 1 : 0, value, *units);
}

char *report_value(enum metric metric, double value)
{
  static const char *const times[] = { "ns", "µs", "ms", "s", NULL };
  static const char *const bytes[] = { "B", "KiB", "MiB", "GiB", "TiB", NULL };

  if (isnan(value))
    return g_strdup("-");
  if (metric == METRIC_TIME)
    return scaled(value, 1000, times);
  if (metric == METRIC_VMAS)
    return g_strdup_printf("%.0f", value);
  return scaled(value, 1024, bytes);
}

static const char *name_of(const struct result *result, unsigned number)
{
  return ((const struct contender *)g_ptr_array_index(result->plan->contenders, number))->name;
}

static char *ratio_text(double ratio)
{
  if (ratio < 0.1)
    return g_strdup_printf("%.2g", ratio);
  return g_strdup_printf("%.*f", ratio < 10 ? 2 : ratio < 100 ? 1 : 0, ratio);
}

static double median_of(const struct result *result, unsigned number, enum metric metric)
{
  return g_array_index(result->rows, struct row, number).stats[metric].median;
}

char *report_verdict(const struct result *result, const struct verdict *verdict)
{
  static const char *const better[METRICS] = { "as fast as", "less memory than", "fewer VMAs than",
                                               "less space than" };
  static const char *const what[METRICS] = { "time", "memory", "VMAs", "space" };
  const struct target *t = &verdict->target;
  const char *ours = name_of(result, t->ours), *against = name_of(result, t->against);
  g_autofree char *measured = t->how <= TARGET_WITHIN ? ratio_text(verdict->measured)
                                                      : report_value(t->metric, verdict->measured);
  g_autofree char *limit = t->how <= TARGET_WITHIN ? ratio_text(t->limit) : report_value(t->metric, t->limit);
  const char *end = verdict->met ? "met" : "MISSED";

  if (!verdict->known)
    return g_strdup_printf("%s: %s was not measured: not known", ours,
                           t->how == TARGET_AT_MOST || isnan(median_of(result, t->ours, t->metric)) ? "it" : against);
  switch (t->how) {
    case TARGET_FASTER:
      return g_strdup_printf("%s: %sx %s %s, at least %sx: %s", ours, measured, better[t->metric], against, limit,
                             end);
    case TARGET_WITHIN:
      return g_strdup_printf("%s: %sx the %s of %s, at most %sx: %s", ours, measured, what[t->metric], against,
                             limit, end);
    case TARGET_BEYOND:
      return g_strdup_printf("%s: %s beyond %s, at most %s: %s", ours, measured, against, limit, end);
    case TARGET_AT_MOST:
    default:
      return g_strdup_printf("%s: %s of %s, at most %s: %s", ours, measured, what[t->metric], limit, end);
  }
}

char **report_setting(const struct settings *settings)
{
  GPtrArray *lines = g_ptr_array_new();
  struct utsname os;
  cpu_set_t cpus;

  uname(&os);
  CPU_ZERO(&cpus);
  sched_getaffinity(0, sizeof(cpus), &cpus);
  g_ptr_array_add(lines, g_strdup_printf("pcow-bench %s, Linux %s %s, %d of %ld CPUs, cache lines flushed by %s",
                                         pcow_version(), os.release, os.machine, CPU_COUNT(&cpus),
                                         sysconf(_SC_NPROCESSORS_ONLN), pattern_flush_name()));
  g_ptr_array_add(lines, g_strdup_printf("%u runs of each contender after one that does not count; medians",
                                         settings->repeats));
  if (settings->force_pmem)
    g_ptr_array_add(lines, g_strdup("persistent memory is emulated (--force-pmem): no figure is of the real thing"));
  if (workdir_is_tmpfs(settings->dir))
    g_ptr_array_add(lines, g_strdup("files lie on tmpfs"));
  if (settings->quick)
    g_ptr_array_add(lines, g_strdup("sizes are so small (--quick) that the figures mean nothing"));
  g_ptr_array_add(lines, NULL);
  return (char **)g_ptr_array_free(lines, FALSE);
}
