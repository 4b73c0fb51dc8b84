/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The crash-state explorer: runs scenarios, each with a seed and in a process of its own, until so many
 * states of the media have been opened and verified. Prints the first failure with what repeats it, and
 * one line at the end.
 */
#include "scenarios.h"
#include "twins.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN_SECONDS 240         /* for one run: more is a hang */

static const struct scenario *const all[] = {
  scenarios_pages, scenarios_tree, scenarios_base, scenarios_map, scenarios_flush,
  scenarios_flush_order, scenarios_review, scenarios_order, scenarios_collect, scenarios_killed,
  scenarios_repair,
};

static const char help[] =
  "usage: %s [OPTION...]\n"
  "  --seed N          first seed (1)\n"
  "  --scenario NAME   only this one; several: separated by commas\n"
  "  --list            names the scenarios\n"
  "  --states N        verify so many states (20000), all scenarios at least once; 0: that\n"
  "  --rounds N        at most so many rounds of all scenarios\n"
  "  --limit N         states a cut (12)\n"
  "  --second N        one of N states is opened under watched media and explored again (48; 0: none)\n"
  "  --kill N          SIGKILL and another process at one of N cuts (40; 0: none)\n"
  "  --mode MODE       pmem (cache lines) or msync (written-back pages); default pmem\n"
  "  --twin STEP       leave out a step of the ordering rules (twins' build only)\n"
  "  --list-twins      lists the steps, with the scenarios that must notice\n"
  "  --keep DIR        keep each state there until it is verified\n"
  "  --dir DIR         where to work (/dev/shm)\n"
  "  --verbose         print each operation\n";

/* libpmem decides when it is loaded. */
static void choose_mode(char **argv, const char *mode)
{
  const char *now = getenv("PMEM_IS_PMEM_FORCE"), *wanted;

  options.pmem = !mode || strcmp(mode, "pmem") == 0;
  CHECK(options.pmem || strcmp(mode, "msync") == 0, "--mode %s: pmem or msync", mode);
  wanted = options.pmem ? "1" : "0";
  if (now && strcmp(now, wanted) == 0)
    return;
  setenv("PMEM_IS_PMEM_FORCE", wanted, 1);
  execv("/proc/self/exe", argv);
  FAIL("cannot run the program again: %s", strerror(errno));
}

static bool is_chosen(const char *names, const char *name)
{
  g_auto(GStrv) list = names ? g_strsplit(names, ",", -1) : NULL;

  return !list || g_strv_contains((const char *const *)list, name);
}

/* In a child, because no file may be open when media begin to watch. */
static bool can_map_flush(void)
{
  int status;
  pid_t child;

  fflush(stdout);
  child = fork();
  CHECK(child >= 0, "cannot fork: %s", strerror(errno));
  if (child == 0) {
    struct pcow_map_options how = PCOW_INIT(how);
    const char *path = test_path("probe");
    pcow_mapping *map;
    int ret;

    how.durability = PCOW_FLUSH_DURABLE;
    test_create(path, UNIT, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
    ret = pcow_map(test_open(path, PCOW_OPEN_RDWR, NULL), &how, &map);
    if (ret)
      printf("flush-durable maps are left out: %s\n", pcow_errormsg());
    fflush(stdout);
    unlink(path);
    _exit(ret != 0);
  }
  while (waitpid(child, &status, 0) < 0)
    CHECK(errno == EINTR, "cannot wait: %s", strerror(errno));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool can_run(const struct scenario *list, const struct scenario *s)
{
  bool flush = list == scenarios_flush || list == scenarios_flush_order;

  return (options.pmem || !s->mapped) && (options.flush_maps || !flush);
}

/* One run in a child: a failure, a crash or a hang there is counted here. */
static void run(const struct scenario *s, uint64_t seed)
{
  int status;
  pid_t child;

  fflush(stdout);
  fflush(stderr);
  child = fork();
  CHECK(child >= 0, "cannot fork: %s", strerror(errno));
  if (child == 0) {
    struct lab *lab;

    alarm(RUN_SECONDS);
    options.seed = seed;
    options.scenario = s->name;
    lab = lab_new(seed);
    s->run(lab);
    lab_free(lab);
    fflush(stdout);
    _exit(0);
  }
  while (waitpid(child, &status, 0) < 0)
    CHECK(errno == EINTR, "cannot wait: %s", strerror(errno));
  atomic_fetch_add(&counters->runs, 1);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return;
  atomic_fetch_add(&counters->failures, 1);
  if (WIFSIGNALED(status))
    fprintf(stderr, "FAIL: scenario %s, seed %" PRIu64 ", mode %s: %s\n", s->name, seed,
            options.pmem ? "pmem" : "msync",
            WTERMSIG(status) == SIGALRM ? "hangs" : strsignal(WTERMSIG(status)));
}

static unsigned list_all(void)
{
  for (unsigned i = 0; i < G_N_ELEMENTS(all); i++)
    for (const struct scenario *s = all[i]; s->name; s++)
      printf("%-24s %s%s\n", s->name, s->about, s->mapped ? " (pmem mode only)" : "");
  return 0;
}

static unsigned skip_mapped(const char *names)
{
  unsigned n = 0;

  for (unsigned i = 0; i < G_N_ELEMENTS(all); i++)
    for (const struct scenario *s = all[i]; s->name; s++)
      if (s->mapped && !options.pmem && is_chosen(names, s->name)) {
        printf("not run in this mode: %s (store-durable maps need pmem mode)\n", s->name);
        n++;
      }
  return n;
}

static void print_summary(uint64_t first_seed)
{
  printf("crash explorer, %s: %" PRIu64 " runs from seed %" PRIu64 ", %" PRIu64 " operations, %" PRIu64
         " cuts (up to %" PRIu64 " pending lines), %" PRIu64 " crash states opened, %" PRIu64
         " of them second crashes, %" PRIu64 " kills, %" PRIu64 " failures\n",
         options.pmem ? "pmem" : "msync", counters->runs, first_seed, counters->operations, counters->cuts,
         counters->pending_most, counters->states, counters->second, counters->kills, counters->failures);
}

int main(int argc, char **argv)
{
  uint64_t goal = test_option(argc, argv, "--states", 20000);
  uint64_t rounds = test_option(argc, argv, "--rounds", goal ? UINT64_MAX : 1);
  uint64_t first = test_option(argc, argv, "--seed", 1), seed = first, before;
  const char *names = test_option_string(argc, argv, "--scenario");
  const char *twin = test_option_string(argc, argv, "--twin");

  if (test_flag(argc, argv, "--help"))
    return printf(help, argv[0]) < 0;
  if (test_flag(argc, argv, "--list"))
    return (int)list_all();
  if (test_flag(argc, argv, "--list-twins")) {
    twins_list();
    return 0;
  }
  choose_mode(argv, test_option_string(argc, argv, "--mode"));
  options.limit = (unsigned)test_option(argc, argv, "--limit", 12);
  options.second_in = (unsigned)test_option(argc, argv, "--second", 48);
  options.kill_in = (unsigned)test_option(argc, argv, "--kill", 40);
  options.keep = test_option_string(argc, argv, "--keep");
  options.verbose = test_flag(argc, argv, "--verbose");
  if (options.keep && mkdir(options.keep, 0700) && errno != EEXIST)
    FAIL("%s: %s", options.keep, strerror(errno));
  CHECK(!twin || twins_choose(twin), "--twin %s: no such step, or this is not the twins' build", twin);
  test_dir(argc, argv);
  printf("seed %" PRIu64 "\n", first);
  counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(counters != MAP_FAILED, "no memory");

  /* A megabyte that is read into and freed again and again is not to go back to the kernel each time. */
  mallopt(M_MMAP_THRESHOLD, 8 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  skip_mapped(names);
  options.flush_maps = can_map_flush();
  do {
    before = counters->runs;
    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++)
      for (const struct scenario *s = all[i]; s->name && !counters->failures; s++)
        if ((seed == first || counters->states < goal) && is_chosen(names, s->name) && can_run(all[i], s))
          run(s, seed);
    seed++;
    CHECK(counters->runs > before, "no scenario is called '%s'", names ? names : "");
  } while (!counters->failures && seed - first < rounds && counters->states < goal);
  print_summary(first);
  twins_report();
  return counters->failures ? 1 : 0;
}
