/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The JSON document; see report.h. Times are nanoseconds, sizes bytes.
 */
#include "report.h"

#include <json-glib/json-glib.h>
#include <math.h>
#include <stdio.h>

#define SCHEMA_VERSION 1

static const char *const metric_names[METRICS] = { "time", "memory", "vmas", "space" };
static const char *const status_names[] = { "ok", "failed", "skipped" };
static const char *const how_names[] = { "faster", "within", "beyond", "at-most" };

static void text_member(JsonBuilder *b, const char *name, const char *text)
{
  json_builder_set_member_name(b, name);
  json_builder_add_string_value(b, text);
}

static void number_member(JsonBuilder *b, const char *name, double value)
{
  json_builder_set_member_name(b, name);
  if (isfinite(value))
    json_builder_add_double_value(b, value);
  else
    json_builder_add_null_value(b);
}

static void add_stats(JsonBuilder *b, const struct row *row, enum metric metric)
{
  const struct stats *s = &row->stats[metric];

  json_builder_set_member_name(b, metric_names[metric]);
  json_builder_begin_object(b);
  number_member(b, "median", s->median);
  number_member(b, "min", s->min);
  number_member(b, "lower-quartile", s->lower);
  number_member(b, "upper-quartile", s->upper);
  number_member(b, "max", s->max);
  json_builder_set_member_name(b, "samples");
  json_builder_begin_array(b);
  for (guint i = 0; i < row->samples->len; i++)
    json_builder_add_double_value(b, g_array_index(row->samples, struct sample, i).values[metric]);
  json_builder_end_array(b);
  json_builder_end_object(b);
}

static void add_row(JsonBuilder *b, const struct row *row)
{
  json_builder_begin_object(b);
  text_member(b, "name", row->contender->name);
  text_member(b, "status", status_names[-row->status]);
  if (row->status)
    text_member(b, "reason", row->reason);
  for (int metric = 0; metric < METRICS; metric++)
    if (row->stats[metric].count && row->stats[metric].count == row->samples->len)
      add_stats(b, row, (enum metric)metric);
  json_builder_end_object(b);
}

static void add_verdict(JsonBuilder *b, const struct result *result, const struct verdict *verdict)
{
  const struct target *t = &verdict->target;
  const struct contender *ours = g_ptr_array_index(result->plan->contenders, t->ours);
  const struct contender *against = g_ptr_array_index(result->plan->contenders, t->against);
  g_autofree char *sentence = report_verdict(result, verdict);

  json_builder_begin_object(b);
  text_member(b, "contender", ours->name);
  if (t->how != TARGET_AT_MOST)
    text_member(b, "against", against->name);
  text_member(b, "metric", metric_names[t->metric]);
  text_member(b, "how", how_names[t->how]);
  number_member(b, "limit", t->limit);
  number_member(b, "measured", verdict->measured);
  if (verdict->known) {
    json_builder_set_member_name(b, "met");
    json_builder_add_boolean_value(b, verdict->met);
  }
  text_member(b, "sentence", sentence);
  json_builder_end_object(b);
}

static void add_result(JsonBuilder *b, const struct result *result)
{
  json_builder_begin_object(b);
  text_member(b, "name", result->which->name);
  text_member(b, "title", result->which->title);
  text_member(b, "unit", result->which->unit);
  json_builder_set_member_name(b, "contenders");
  json_builder_begin_array(b);
  for (guint i = 0; i < result->rows->len; i++)
    add_row(b, &g_array_index(result->rows, struct row, i));
  json_builder_end_array(b);
  json_builder_set_member_name(b, "targets");
  json_builder_begin_array(b);
  for (guint i = 0; i < result->verdicts->len; i++)
    add_verdict(b, result, &g_array_index(result->verdicts, struct verdict, i));
  json_builder_end_array(b);
  json_builder_end_object(b);
}

void report_json(GPtrArray *results, const struct settings *settings)
{
  g_autoptr(JsonBuilder) b = json_builder_new();
  g_autoptr(JsonGenerator) generator = json_generator_new();
  g_autoptr(JsonNode) root = NULL;
  g_autofree char *text = NULL;
  g_auto(GStrv) setting = report_setting(settings);

  json_builder_begin_object(b);
  json_builder_set_member_name(b, "schema-version");
  json_builder_add_int_value(b, SCHEMA_VERSION);
  text_member(b, "version", pcow_version());
  json_builder_set_member_name(b, "setting");
  json_builder_begin_array(b);
  for (char **line = setting; *line; line++)
    json_builder_add_string_value(b, *line);
  json_builder_end_array(b);
  json_builder_set_member_name(b, "repeats");
  json_builder_add_int_value(b, settings->repeats);
  json_builder_set_member_name(b, "quick");
  json_builder_add_boolean_value(b, settings->quick);
  json_builder_set_member_name(b, "emulated");
  json_builder_add_boolean_value(b, settings->force_pmem);
  json_builder_set_member_name(b, "cases");
  json_builder_begin_array(b);
  for (guint i = 0; i < results->len; i++)
    add_result(b, g_ptr_array_index(results, i));
  json_builder_end_array(b);
  json_builder_end_object(b);

  root = json_builder_get_root(b);
  json_generator_set_pretty(generator, TRUE);
  json_generator_set_indent(generator, 4);
  json_generator_set_root(generator, root);
  text = json_generator_to_data(generator, NULL);
  printf("%s\n", text);
}
