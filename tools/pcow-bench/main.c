/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-bench: measures libpcow and the alternatives side by side. This file has the command line and the course
 * of a run. A missed target is a result, not a failure: the exit status is 1 only when something of libpcow did
 * not work.
 */
#include "interrupt.h"
#include "pattern.h"
#include "process.h"
#include "report.h"
#include "workdir.h"

#include <locale.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REPEATS 5
#define QUICK_REPEATS 1

struct options {
  gboolean list, json, quick, force_pmem, all_cpus, progress, quiet, help, version;
  char **cases, **operands;
  char *svg, *dir;
  int repeats;
};

static int complain(const char *message)
{
  fprintf(stderr, "pcow-bench: %s\n", message);
  return EXIT_FAILURE;
}

static GOptionContext *make_context(struct options *o)
{
  const GOptionEntry entries[] = {
    { "list", 0, 0, G_OPTION_ARG_NONE, &o->list, "List the cases", NULL },
    { "case", 'c', 0, G_OPTION_ARG_STRING_ARRAY, &o->cases, "Run the cases that match, * and ? allowed", "PATTERN" },
    { "quick", 0, 0, G_OPTION_ARG_NONE, &o->quick, "Small sizes, one run: see that it works", NULL },
    { "repeat", 'r', 0, G_OPTION_ARG_INT, &o->repeats, "Runs of each contender (5)", "COUNT" },
    { "dir", 'd', 0, G_OPTION_ARG_FILENAME, &o->dir, "Make files beneath DIR (/dev/shm)", "DIR" },
    { "force-pmem", 0, 0, G_OPTION_ARG_NONE, &o->force_pmem, "Take any file system for persistent memory", NULL },
    { "all-cpus", 0, 0, G_OPTION_ARG_NONE, &o->all_cpus, "Do not stay on one CPU", NULL },
    { "json", 0, 0, G_OPTION_ARG_NONE, &o->json, "Print JSON", NULL },
    { "svg", 0, 0, G_OPTION_ARG_FILENAME, &o->svg, "Draw charts, into DIR", "DIR" },
    { "progress", 'p', 0, G_OPTION_ARG_NONE, &o->progress, "Show progress", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &o->quiet, "Print the last line only", NULL },
    { "help", 'h', 0, G_OPTION_ARG_NONE, &o->help, "Show this help", NULL },
    { "version", 0, 0, G_OPTION_ARG_NONE, &o->version, "Show the version", NULL },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &o->operands, NULL, NULL },
    { NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL },
  };
  GOptionContext *context = g_option_context_new(NULL);

  g_option_context_set_help_enabled(context, FALSE); /* GOption's own has --help-all and exits */
  g_option_context_set_summary(context, "Measure libpcow and the alternatives side by side.");
  g_option_context_add_main_entries(context, entries, NULL);
  return context;
}

/* ---- Cases ---- */

static bool matches(const struct options *o, const struct bench_case *which)
{
  if (!o->cases)
    return true;
  for (char **pattern = o->cases; *pattern; pattern++)
    if (g_pattern_match_simple(*pattern, which->name))
      return true;
  return false;
}

static int list_cases(const struct options *o)
{
  const struct bench_case *which;

  for (unsigned i = 0; (which = cases_at(i)); i++)
    if (matches(o, which))
      printf("%-26s  %s\n", which->name, which->title);
  return EXIT_SUCCESS;
}

/* pcow-img of the same build, or of the same place, or the one in PATH. */
static char *find_pcow_img(void)
{
  static const char *const places[] = { "pcow-img", "../pcow-img/pcow-img" };
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = g_path_get_dirname(self ? self : ".");

  for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
    g_autofree char *path = g_build_filename(dir, places[i], NULL);

    if (g_file_test(path, G_FILE_TEST_IS_EXECUTABLE) && !g_file_test(path, G_FILE_TEST_IS_DIR))
      return g_steal_pointer(&path);
  }
  return process_find("pcow-img");
}

/* A wake-up on another CPU can cost twenty times as much as one on the same, and differs from machine to machine:
 * it is left out for everybody, which favours those who talk to another process. */
static void stay_on_one_cpu(void)
{
  cpu_set_t set;
  int cpu = sched_getcpu();

  if (cpu < 0)
    return;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

/* ---- A run ---- */

static int run_cases(const struct options *o, const struct settings *settings, GPtrArray *results)
{
  const struct bench_case *which;
  int status = EXIT_SUCCESS;

  for (unsigned i = 0; (which = cases_at(i)); i++) {
    struct result *result;

    if (!matches(o, which))
      continue;
    result = run_case(settings, which);
    if (!result)
      return EXIT_FAILURE;
    g_ptr_array_add(results, result);
    if (result_failed(result))
      status = EXIT_FAILURE;
    if (!o->json && !o->quiet)
      report_human(result);
  }
  return status;
}

static int run_all(const struct options *o, struct settings *settings)
{
  g_autoptr(GPtrArray) results = g_ptr_array_new_with_free_func((GDestroyNotify)result_free);
  int status;

  if (!o->json && !o->quiet) {
    g_auto(GStrv) lines = report_setting(settings);

    for (char **line = lines; *line; line++)
      printf("%s\n", *line);
    printf("\n");
  }
  status = run_cases(o, settings, results);
  if (interrupt_requested())
    return status;
  if (!results->len)
    return complain("no case matches (see 'pcow-bench --list')");
  if (o->json)
    report_json(results, settings);
  else
    report_sum(results, settings);
  if (o->svg && report_svg(results, settings, o->svg))
    return complain(bench_message());
  if (fflush(stdout) || ferror(stdout))
    return complain("standard output cannot be written");
  if (status)
    complain("something of libpcow did not work; the report calls it failed");
  return status;
}

static int run(const struct options *o)
{
  g_autofree char *pcow_img = find_pcow_img();
  g_autofree char *dir = NULL;
  struct settings settings = {
    .quick = o->quick,
    .force_pmem = o->force_pmem,
    .progress = o->progress,
    .quiet = o->quiet,
    .pcow_img = pcow_img,
    .repeats = o->repeats > 0 ? (unsigned)o->repeats : o->quick ? QUICK_REPEATS : REPEATS,
  };
  int status;

  pattern_init();
  if (o->force_pmem)
    g_setenv("PMEM_IS_PMEM_FORCE", "1", TRUE);
  else
    g_unsetenv("PMEM_IS_PMEM_FORCE"); /* emulation is said on the command line, and in the report */
  if (!o->all_cpus)
    stay_on_one_cpu();
  interrupt_install();
  if (workdir_make(o->dir, &dir))
    return complain(bench_message());
  settings.dir = dir;
  status = run_all(o, &settings);
  workdir_clear(dir);
  workdir_end();
  interrupt_reraise();
  return status;
}

static int decide(struct options *o, GOptionContext *context)
{
  if (o->help) {
    g_autofree char *text = g_option_context_get_help(context, TRUE, NULL);

    printf("%s", text);
    return EXIT_SUCCESS;
  }
  if (o->version) {
    printf("pcow-bench %s\n", pcow_version());
    return EXIT_SUCCESS;
  }
  if (o->operands)
    return complain("there are no arguments but options (see 'pcow-bench --help')");
  if (o->repeats < 0)
    return complain("--repeat must be a positive number");
  return o->list ? list_cases(o) : run(o);
}

int main(int argc, char **argv)
{
  struct options options = { 0 };
  g_autoptr(GOptionContext) context = make_context(&options);
  g_autoptr(GError) error = NULL;
  int status;

  setlocale(LC_CTYPE, "");
  g_set_prgname("pcow-bench");
  if (!g_option_context_parse(context, &argc, &argv, &error)) {
    fprintf(stderr, "pcow-bench: %s (see 'pcow-bench --help')\n", error->message);
    return EXIT_FAILURE;
  }
  status = decide(&options, context);
  g_strfreev(options.cases);
  g_strfreev(options.operands);
  g_free(options.svg);
  g_free(options.dir);
  return status;
}
