/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Charts; see report.h. A bar a contender, on a logarithmic scale where the values differ much, and a line from
 * the least to the largest sample. Colours follow what the reader's browser prefers, light or dark.
 */
#include "report.h"

#include <errno.h>
#include <math.h>
#include <sys/stat.h>

#define WIDTH 880
#define NAMES 380       /* where bars begin */
#define BARS 360        /* their room */
#define ROW 26
#define LETTERS 50      /* of a name, which have room */
#define TOP 64
#define MUCH 30.0       /* from here on the scale is logarithmic */

static const char style[] =
    "<style>\n"
    "text{font:13px system-ui,sans-serif;fill:#1f2328}\n"
    ".title{font-size:15px;font-weight:600}\n"
    ".note{font-size:11px;fill:#59636e}\n"
    ".end{text-anchor:end}\n"
    ".ours{fill:#0969da}.theirs{fill:#9aa4af}.met{fill:#1a7f37}.missed{fill:#cf222e}\n"
    ".spread,.mark{stroke:#1f2328;stroke-width:1.5}\n"
    ".axis{stroke:#d1d9e0}\n"
    "@media(prefers-color-scheme:dark){\n"
    "text{fill:#e6edf3}.note{fill:#9198a1}.ours{fill:#4493f8}.theirs{fill:#656c76}.met{fill:#3fb950}\n"
    ".missed{fill:#f85149}.spread,.mark{stroke:#e6edf3}.axis{stroke:#3d444d}}\n"
    "</style>\n";

static void begin(GString *svg, const char *title, const char *note, int rows)
{
  g_autofree char *safe_title = g_markup_escape_text(title, -1);
  g_autofree char *safe_note = g_markup_escape_text(note, -1);
  int height = TOP + rows * ROW + 16;

  g_string_append_printf(svg,
                         "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
                         "role=\"img\">\n<title>%s</title>\n%s",
                         WIDTH, height, WIDTH, height, safe_title, style);
  g_string_append_printf(svg, "<text class=\"title\" x=\"16\" y=\"26\">%s</text>\n", safe_title);
  g_string_append_printf(svg, "<text class=\"note\" x=\"16\" y=\"46\">%s</text>\n", safe_note);
  g_string_append_printf(svg, "<line class=\"axis\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", NAMES, TOP - 4, NAMES,
                         height - 12);
}

static void name(GString *svg, int row, const char *text)
{
  g_autofree char *safe = g_markup_escape_text(text, -1);

  g_string_append_printf(svg, "<text class=\"end\" x=\"%d\" y=\"%d\">%s</text>\n", NAMES - 8, TOP + row * ROW + 16,
                         safe);
}

/* Not g_string_append_printf("%f"): a locale must not make commas of points. */
static const char *decimal(char *buffer, double value)
{
  return g_ascii_formatd(buffer, G_ASCII_DTOSTR_BUF_SIZE, "%.1f", value);
}

static void bar(GString *svg, int row, double length, const char *class, const char *label)
{
  char width[G_ASCII_DTOSTR_BUF_SIZE], x[G_ASCII_DTOSTR_BUF_SIZE];
  g_autofree char *safe = g_markup_escape_text(label, -1);

  g_string_append_printf(svg, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%s\" height=\"%d\" rx=\"2\"/>\n", class,
                         NAMES, TOP + row * ROW + 3, decimal(width, MAX(length, 1)), ROW - 8);
  g_string_append_printf(svg, "<text x=\"%s\" y=\"%d\">%s</text>\n", decimal(x, NAMES + MAX(length, 1) + 8),
                         TOP + row * ROW + 16, safe);
}

/* ---- A case ---- */

struct scale {
  double low, high;
  bool logarithmic;
};

static double place(const struct scale *scale, double value)
{
  if (scale->logarithmic)
    return BARS * (0.06 + 0.94 * log(MAX(value, scale->low) / scale->low) / log(scale->high / scale->low));
  return scale->high > 0 ? BARS * MAX(value, 0) / scale->high : 0;
}

static struct scale scale_of(const struct result *result, enum metric metric)
{
  struct scale scale = { .low = INFINITY, .high = 0 };

  for (guint i = 0; i < result->rows->len; i++) {
    const struct stats *s = &g_array_index(result->rows, struct row, i).stats[metric];

    if (!s->count)
      continue;
    scale.low = MIN(scale.low, s->min);
    scale.high = MAX(scale.high, s->max);
  }
  scale.logarithmic = scale.low > 0 && scale.high / scale.low > MUCH;
  return scale;
}

static void spread(GString *svg, int row, double from, double to)
{
  char a[G_ASCII_DTOSTR_BUF_SIZE], b[G_ASCII_DTOSTR_BUF_SIZE];
  int y = TOP + row * ROW + ROW - 3;

  g_string_append_printf(svg, "<line class=\"spread\" x1=\"%s\" y1=\"%d\" x2=\"%s\" y2=\"%d\"/>\n",
                         decimal(a, NAMES + from), y, decimal(b, NAMES + to), y);
}

/* What a chart must not be shown without. */
static const char *warning(const struct settings *settings)
{
  if (settings->quick)
    return "; --quick: the figures mean nothing";
  return settings->force_pmem ? "; emulated persistent memory" : "";
}

static char *draw_case(const struct result *result, const struct settings *settings)
{
  GString *svg = g_string_new(NULL);
  enum metric metric = result->plan->shown;
  struct scale scale = scale_of(result, metric);
  g_autofree char *note =
      g_strdup_printf("%s%s%s; median, line: least to largest sample%s", metric == METRIC_TIME ? "time per " : "space",
                      metric == METRIC_TIME ? result->which->unit : "", scale.logarithmic ? ", logarithmic" : "",
                      warning(settings));

  begin(svg, result->which->title, note, (int)result->rows->len);
  for (guint i = 0; i < result->rows->len; i++) {
    const struct row *row = &g_array_index(result->rows, struct row, i);
    const struct stats *s = &row->stats[metric];
    g_autofree char *label = report_value(metric, s->median);

    name(svg, (int)i, row->contender->name);
    if (!s->count) {
      g_string_append_printf(svg, "<text class=\"note\" x=\"%d\" y=\"%d\">%s</text>\n", NAMES + 8,
                             TOP + (int)i * ROW + 16, row->status == BENCH_FAILED ? "failed" : "skipped");
      continue;
    }
    bar(svg, (int)i, place(&scale, s->median), row->contender->kind->ours ? "ours" : "theirs", label);
    spread(svg, (int)i, place(&scale, s->min), place(&scale, s->max));
  }
  g_string_append(svg, "</svg>\n");
  return g_string_free(svg, FALSE);
}

/* ---- All targets ---- */

/* How far a target is met: 1 is just so, more is better. */
static double share_met(const struct verdict *verdict)
{
  const struct target *t = &verdict->target;

  if (t->how == TARGET_FASTER)
    return verdict->measured / t->limit;
  return verdict->measured > 0 ? t->limit / verdict->measured : 100;
}

/* The case, and what libpcow is compared with, as far as there is room. The whole sentence is the tool tip. */
static char *target_name(const struct result *result, const struct verdict *verdict)
{
  const struct contender *against = g_ptr_array_index(result->plan->contenders, verdict->target.against);
  g_autofree char *text = verdict->target.how == TARGET_AT_MOST
                              ? g_strdup(result->which->name)
                              : g_strdup_printf("%s v. %s", result->which->name, against->name);
  g_autofree char *head = NULL;

  if (g_utf8_strlen(text, -1) <= LETTERS)
    return g_steal_pointer(&text);
  head = g_utf8_substring(text, 0, LETTERS - 1);
  return g_strconcat(head, "…", NULL);
}

static char *draw_overview(GPtrArray *results, const struct settings *settings)
{
  GString *svg = g_string_new(NULL), *rows = g_string_new(NULL);
  g_autofree char *note =
      g_strdup_printf("measured over wanted, logarithmic; the line is the target%s", warning(settings));
  double unit = BARS / log(1000 * 10), middle = log(10) * unit; /* a tenth of the target to a thousand times */
  char x[G_ASCII_DTOSTR_BUF_SIZE];
  int count = 0;

  for (guint i = 0; i < results->len; i++) {
    const struct result *result = g_ptr_array_index(results, i);

    for (guint k = 0; k < result->verdicts->len; k++) {
      const struct verdict *verdict = &g_array_index(result->verdicts, struct verdict, k);
      g_autofree char *label = NULL;
      g_autofree char *sentence = report_verdict(result, verdict);
      g_autofree char *safe = g_markup_escape_text(sentence, -1);
      g_autofree char *left = target_name(result, verdict);
      double share;

      if (!verdict->known)
        continue;
      share = share_met(verdict);
      label = share < 0.1  ? g_strdup_printf("%.2g", share)
              : share < 10 ? g_strdup_printf("%.2f", share)
                           : g_strdup_printf("%.0f", share);
      share = CLAMP(share, 0.1, 1000);
      g_string_append_printf(rows, "<g><title>%s</title>\n", safe);
      name(rows, count, left);
      bar(rows, count, log(share * 10) * unit, verdict->met ? "met" : "missed", label);
      g_string_append(rows, "</g>\n");
      count++;
    }
  }
  begin(svg, "Targets", note, count);
  g_string_append_len(svg, rows->str, (gssize)rows->len);
  decimal(x, NAMES + middle);
  g_string_append_printf(svg, "<line class=\"mark\" x1=\"%s\" y1=\"%d\" x2=\"%s\" y2=\"%d\"/>\n</svg>\n", x, TOP - 4, x,
                         TOP + count * ROW + 4);
  g_string_free(rows, TRUE);
  return g_string_free(svg, FALSE);
}

static int save(const char *dir, const char *base, const char *svg)
{
  g_autofree char *file = g_strdup_printf("%s.svg", base);
  g_autofree char *path = g_build_filename(dir, file, NULL);
  g_autoptr(GError) error = NULL;

  return g_file_set_contents(path, svg, -1, &error) ? BENCH_OK : bench_fail("%s", error->message);
}

int report_svg(GPtrArray *results, const struct settings *settings, const char *dir)
{
  g_autofree char *overview = draw_overview(results, settings);
  int result;

  if (g_mkdir_with_parents(dir, 0777))
    return bench_fail_errno("%s", dir);
  result = save(dir, "overview", overview);
  for (guint i = 0; i < results->len && !result; i++) {
    const struct result *one = g_ptr_array_index(results, i);
    g_autofree char *svg = draw_case(one, settings);

    result = save(dir, one->which->name, svg);
  }
  return result;
}
