/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The driver of a case; see run.h. Everybody opens, then everybody runs once without being counted, then
 * they take turns, each round beginning with another one. Where memory does not suffice for all at once
 * (plan->one_by_one), they come one after the other.
 */
#include "run.h"

#include "interrupt.h"
#include "progress.h"
#include "worker.h"

#include <math.h>

/* ---- Plans ---- */

static void contender_free(gpointer data)
{
  struct contender *contender = data;

  g_free(contender->name);
  g_free(contender);
}

unsigned plan_add(struct plan *plan, const struct kind *kind, const struct task *task, uint64_t needs,
                  const char *format, ...)
{
  struct contender *contender = g_new0(struct contender, 1);
  g_autofree char *more = NULL;
  va_list args;

  va_start(args, format);
  more = g_strdup_vprintf(format, args);
  va_end(args);
  contender->name = *more ? g_strdup_printf("%s, %s", kind->name, more) : g_strdup(kind->name);
  contender->kind = kind;
  contender->task = *task;
  contender->needs = needs;
  g_ptr_array_add(plan->contenders, contender);
  return plan->contenders->len - 1;
}

void plan_target(struct plan *plan, enum target_how how, enum metric metric, unsigned ours, unsigned against,
                 double limit)
{
  struct target target = { .how = how, .metric = metric, .ours = ours, .against = against, .limit = limit };

  g_array_append_val(plan->targets, target);
}

static struct plan *plan_new(const struct settings *settings, const struct bench_case *which)
{
  struct plan *plan = g_new0(struct plan, 1);

  plan->settings = settings;
  plan->contenders = g_ptr_array_new_with_free_func(contender_free);
  plan->targets = g_array_new(FALSE, TRUE, sizeof(struct target));
  which->build(plan, which);
  return plan;
}

/* ---- Taking turns ---- */

static void take_sample(struct worker *worker, struct row *row, bool counts)
{
  struct sample sample;

  worker_run(worker, &sample);
  if (counts && !worker->status)
    g_array_append_val(row->samples, sample);
}

static void begin(struct worker *worker, const struct result *result, unsigned number)
{
  const struct settings *settings = result->plan->settings;
  struct row *row = &g_array_index(result->rows, struct row, number);
  g_autofree char *dir = g_strdup_printf("%s/%s-%u", settings->dir, result->which->name, number);

  progress_show(settings, "%s: %s: preparing", result->which->name, row->contender->name);
  worker_begin(worker, settings, row->contender, dir);
}

static void end(struct worker *worker, struct row *row)
{
  worker_end(worker);
  row->status = worker->status;
  row->reason = worker->reason;
  g_free(worker->dir);
}

static void run_in_turn(struct result *result, unsigned first, unsigned count)
{
  const struct settings *settings = result->plan->settings;
  g_autofree struct worker *workers = g_new0(struct worker, count);
  struct row *rows = &g_array_index(result->rows, struct row, first);
  unsigned rounds = settings->repeats * (settings->quick ? 1 : MAX(result->plan->rounds, 1));

  for (unsigned i = 0; i < count && !interrupt_requested(); i++)
    begin(&workers[i], result, first + i);
  for (unsigned round = 0; round <= rounds; round++)
    for (unsigned i = 0; i < count && !interrupt_requested(); i++) {
      unsigned now = (i + round) % count;

      progress_show(settings, "%s: %s: run %u of %u", result->which->name, rows[now].contender->name, round,
                    rounds);
      take_sample(&workers[now], &rows[now], round > 0);
    }
  for (unsigned i = 0; i < count; i++)
    if (workers[i].contender)
      end(&workers[i], &rows[i]);
}

/* ---- What came of it ---- */

static double column(const struct row *row, enum metric metric, guint index)
{
  return g_array_index(row->samples, struct sample, index).values[metric];
}

static void sum_up(struct row *row)
{
  g_autofree double *values = g_new(double, row->samples->len + 1);

  for (int metric = 0; metric < METRICS; metric++) {
    for (guint i = 0; i < row->samples->len; i++)
      values[i] = column(row, metric, i);
    row->stats[metric] = stats_of(values, row->status ? 0 : row->samples->len);
  }
}

static double median(const struct result *result, unsigned number, enum metric metric)
{
  return g_array_index(result->rows, struct row, number).stats[metric].median;
}

/* Runs of the same round had the same machine: their ratios differ less than their times. */
static double ratio(const struct result *result, unsigned over, unsigned under, enum metric metric)
{
  const struct row *a = &g_array_index(result->rows, struct row, over);
  const struct row *b = &g_array_index(result->rows, struct row, under);
  guint count = a->samples->len;
  g_autofree double *values = g_new(double, count + 1);

  if (a->status || b->status)
    return NAN;
  if (result->plan->one_by_one || count != b->samples->len)
    return a->stats[metric].median / b->stats[metric].median;
  for (guint i = 0; i < count; i++)
    values[i] = column(a, metric, i) / column(b, metric, i);
  return stats_of(values, count).median;
}

static struct verdict judge(const struct result *result, const struct target *target)
{
  struct verdict verdict = { .target = *target };
  double ours = median(result, target->ours, target->metric);
  double against = median(result, target->against, target->metric);

  switch (target->how) {
    case TARGET_FASTER:
      verdict.measured = ratio(result, target->against, target->ours, target->metric);
      verdict.met = verdict.measured >= target->limit;
      break;
    case TARGET_WITHIN:
      verdict.measured = ratio(result, target->ours, target->against, target->metric);
      verdict.met = verdict.measured <= target->limit;
      break;
    case TARGET_BEYOND:
      verdict.measured = ours - against;
      verdict.met = verdict.measured <= target->limit;
      break;
    case TARGET_AT_MOST:
      verdict.measured = ours;
      verdict.met = verdict.measured <= target->limit;
      break;
  }
  verdict.known = !isnan(verdict.measured);
  return verdict;
}

struct result *run_case(const struct settings *settings, const struct bench_case *which)
{
  struct result *result = g_new0(struct result, 1);
  struct plan *plan = plan_new(settings, which);

  result->which = which;
  result->plan = plan;
  result->rows = g_array_new(FALSE, TRUE, sizeof(struct row));
  result->verdicts = g_array_new(FALSE, TRUE, sizeof(struct verdict));
  for (unsigned i = 0; i < plan->contenders->len; i++) {
    struct row row = { .contender = g_ptr_array_index(plan->contenders, i) };

    row.samples = g_array_new(FALSE, FALSE, sizeof(struct sample));
    g_array_append_val(result->rows, row);
  }
  if (plan->one_by_one)
    for (unsigned i = 0; i < plan->contenders->len; i++)
      run_in_turn(result, i, 1);
  else
    run_in_turn(result, 0, plan->contenders->len);
  progress_show(settings, NULL);
  if (interrupt_requested()) {
    result_free(result);
    return NULL;
  }
  for (guint i = 0; i < result->rows->len; i++)
    sum_up(&g_array_index(result->rows, struct row, i));
  for (guint i = 0; i < plan->targets->len; i++) {
    struct verdict verdict = judge(result, &g_array_index(plan->targets, struct target, i));

    g_array_append_val(result->verdicts, verdict);
  }
  return result;
}

bool result_failed(const struct result *result)
{
  for (guint i = 0; i < result->rows->len; i++) {
    const struct row *row = &g_array_index(result->rows, struct row, i);

    if (row->contender->kind->ours && row->status == BENCH_FAILED)
      return true;
  }
  return false;
}

void result_free(struct result *result)
{
  if (!result)
    return;
  for (guint i = 0; i < result->rows->len; i++) {
    struct row *row = &g_array_index(result->rows, struct row, i);

    g_array_unref(row->samples);
    g_free(row->reason);
  }
  g_array_unref(result->rows);
  g_array_unref(result->verdicts);
  g_ptr_array_unref(result->plan->contenders);
  g_array_unref(result->plan->targets);
  g_free(result->plan);
  g_free(result);
}
