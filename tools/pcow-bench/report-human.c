/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tables; see report.h.
 */
#include "report.h"

#include <math.h>
#include <stdio.h>

#define COLUMNS 6

static const char *const headings[COLUMNS] = { "median", "quartiles", "min, max", "memory", "VMAs", "space" };

/* Characters, not bytes. */
static void pad(const char *text, int width, bool right)
{
  int missing = MAX(width - (int)g_utf8_strlen(text, -1), 0);

  if (right)
    printf("%*s%s", missing, "", text);
  else
    printf("%s%*s", text, missing, "");
}

static char *pair(enum metric metric, double low, double high)
{
  g_autofree char *a = report_value(metric, low);
  g_autofree char *b = report_value(metric, high);

  return isnan(low) ? g_strdup("-") : g_strdup_printf("%s, %s", a, b);
}

static char *cell(const struct result *result, const struct row *row, int column)
{
  const struct stats *shown = &row->stats[METRIC_TIME];

  (void)result;
  switch (column) {
    case 0:
      return report_value(METRIC_TIME, shown->median);
    case 1:
      return pair(METRIC_TIME, shown->lower, shown->upper);
    case 2:
      return pair(METRIC_TIME, shown->min, shown->max);
    default:
      return report_value((enum metric)(column - 2), row->stats[column - 2].median);
  }
}

static void print_row(const struct result *result, const struct row *row, const int *widths, int name_width)
{
  printf("  ");
  pad(row->contender->name, name_width, false);
  for (int column = 0; column < COLUMNS; column++) {
    g_autofree char *text = cell(result, row, column);

    printf("  ");
    pad(text, widths[column], true);
  }
  printf("\n");
}

void report_human(const struct result *result)
{
  int widths[COLUMNS], name_width = 0;

  for (int column = 0; column < COLUMNS; column++)
    widths[column] = (int)g_utf8_strlen(headings[column], -1);
  for (guint i = 0; i < result->rows->len; i++) {
    const struct row *row = &g_array_index(result->rows, struct row, i);

    if (row->status)
      continue;
    name_width = MAX(name_width, (int)g_utf8_strlen(row->contender->name, -1));
    for (int column = 0; column < COLUMNS; column++) {
      g_autofree char *text = cell(result, row, column);

      widths[column] = MAX(widths[column], (int)g_utf8_strlen(text, -1));
    }
  }
  printf("%s: %s (per %s)\n", result->which->name, result->which->title, result->which->unit);
  if (name_width) {
    printf("  %*s", name_width, "");
    for (int column = 0; column < COLUMNS; column++) {
      printf("  ");
      pad(headings[column], widths[column], true);
    }
    printf("\n");
  }
  for (guint i = 0; i < result->rows->len; i++) {
    const struct row *row = &g_array_index(result->rows, struct row, i);

    if (!row->status)
      print_row(result, row, widths, name_width);
  }
  for (guint i = 0; i < result->rows->len; i++) {
    const struct row *row = &g_array_index(result->rows, struct row, i);

    if (row->status)
      printf("  %s: %s: %s\n", row->status == BENCH_SKIPPED ? "skipped" : "failed", row->contender->name,
             row->reason);
  }
  for (guint i = 0; i < result->verdicts->len; i++) {
    g_autofree char *text = report_verdict(result, &g_array_index(result->verdicts, struct verdict, i));

    printf("  -> %s\n", text);
  }
  printf("\n");
  fflush(stdout);
}

void report_sum(GPtrArray *results, const struct settings *settings)
{
  unsigned met = 0, missed = 0, unknown = 0;

  for (guint i = 0; i < results->len; i++) {
    const struct result *result = g_ptr_array_index(results, i);

    for (guint k = 0; k < result->verdicts->len; k++) {
      const struct verdict *verdict = &g_array_index(result->verdicts, struct verdict, k);
      g_autofree char *text = NULL;

      *(!verdict->known ? &unknown : verdict->met ? &met : &missed) += 1;
      if (verdict->met || !verdict->known || settings->quiet)
        continue;
      text = report_verdict(result, verdict);
      printf("%s: %s\n", result->which->name, text);
    }
  }
  printf("%u targets met, %u missed, %u not known\n", met, missed, unknown);
}
