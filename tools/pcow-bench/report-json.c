/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The JSON document; see report.h. Times are nanoseconds, sizes bytes.
 */
#include "report.h"

#include "json.h"

#include <stdio.h>

#define SCHEMA_VERSION 1

static const char *const metric_names[METRICS] = { "time", "memory", "vmas", "space" };
static const char *const status_names[] = { "ok", "failed", "skipped" };
static const char *const how_names[] = { "faster", "within", "beyond", "at-most" };

static void add_stats(json_writer *j, const struct row *row, enum metric metric)
{
  const struct stats *s = &row->stats[metric];

  json_begin_object(j, metric_names[metric]);
  json_real(j, "median", s->median);
  json_real(j, "min", s->min);
  json_real(j, "lower-quartile", s->lower);
  json_real(j, "upper-quartile", s->upper);
  json_real(j, "max", s->max);
  json_begin_array(j, "samples");
  for (guint i = 0; i < row->samples->len; i++)
    json_real(j, NULL, g_array_index(row->samples, struct sample, i).values[metric]);
  json_end(j);
  json_end(j);
}

static void add_row(json_writer *j, const struct row *row)
{
  json_begin_object(j, NULL);
  json_text(j, "name", row->contender->name);
  json_text(j, "status", status_names[-row->status]);
  if (row->status)
    json_text(j, "reason", row->reason);
  for (int metric = 0; metric < METRICS; metric++)
    if (row->stats[metric].count && row->stats[metric].count == row->samples->len)
      add_stats(j, row, (enum metric)metric);
  json_end(j);
}

static void add_verdict(json_writer *j, const struct result *result, const struct verdict *verdict)
{
  const struct target *t = &verdict->target;
  const struct contender *ours = g_ptr_array_index(result->plan->contenders, t->ours);
  const struct contender *against = g_ptr_array_index(result->plan->contenders, t->against);
  g_autofree char *sentence = report_verdict(result, verdict);

  json_begin_object(j, NULL);
  json_text(j, "contender", ours->name);
  if (t->how != TARGET_AT_MOST)
    json_text(j, "against", against->name);
  json_text(j, "metric", metric_names[t->metric]);
  json_text(j, "how", how_names[t->how]);
  json_real(j, "limit", t->limit);
  json_real(j, "measured", verdict->measured);
  if (verdict->known) {
    json_flag(j, "met", verdict->met);
  }
  json_text(j, "sentence", sentence);
  json_end(j);
}

static void add_result(json_writer *j, const struct result *result)
{
  json_begin_object(j, NULL);
  json_text(j, "name", result->which->name);
  json_text(j, "title", result->which->title);
  json_text(j, "unit", result->which->unit);
  json_begin_array(j, "contenders");
  for (guint i = 0; i < result->rows->len; i++)
    add_row(j, &g_array_index(result->rows, struct row, i));
  json_end(j);
  json_begin_array(j, "targets");
  for (guint i = 0; i < result->verdicts->len; i++)
    add_verdict(j, result, &g_array_index(result->verdicts, struct verdict, i));
  json_end(j);
  json_end(j);
}

void report_json(GPtrArray *results, const struct settings *settings)
{
  g_autoptr(json_writer) j = json_new();
  g_auto(GStrv) setting = report_setting(settings);

  json_begin_object(j, NULL);
  json_number(j, "schema-version", SCHEMA_VERSION);
  json_text(j, "version", pcow_version());
  json_begin_array(j, "setting");
  for (char **line = setting; *line; line++)
    json_text(j, NULL, *line);
  json_end(j);
  json_number(j, "repeats", settings->repeats);
  json_flag(j, "quick", settings->quick);
  json_flag(j, "emulated", settings->force_pmem);
  json_begin_array(j, "cases");
  for (guint i = 0; i < results->len; i++)
    add_result(j, g_ptr_array_index(results, i));
  json_end(j);
  json_end(j);
  fputs(json_document(j), stdout);
}
