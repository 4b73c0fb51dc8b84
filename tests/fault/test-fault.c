/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Lets every call that the library makes to the kernel fail, one at a time: a scenario is run once to
 * count the calls of each kind, and then again for the n-th call of each kind, and for all calls from
 * the n-th on, and killed at the n-th. Where there are many, first ones and a random choice. Each case
 * runs in a process of its own with a time limit, and another one looks at what is left: see world.h.
 *
 *   test-fault [--seed N] [--most N] [--scenario NAME] [--case "MODE:SCENARIO:CALL:NTH:GIVE:ON"]
 */
#include "scenarios.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS 20u             /* for a case that hangs; one takes milliseconds */
#ifdef __SANITIZE_ADDRESS__
#define MOST 1
#else
#define MOST 3
#endif

static unsigned cases, kills, failed;
static uint64_t most;
static struct rng rng;

/* FN in a child; its status. */
static int in_child(void (*fn)(const struct scenario *), const struct scenario *s, const char *mode)
{
  pid_t child;
  int status;

  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (!child) {
    alarm(SECONDS);
    setenv("PMEM_IS_PMEM_FORCE", mode, 1);
    fn(s);
    fflush(NULL);
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  return status;
}

static void child_run(const struct scenario *s)
{
  mapped_signals();
  s->run();
}

static void child_prepare(const struct scenario *s)
{
  mapped_signals();
  s->prepare();
}

static void child_verify(const struct scenario *s)
{
  (void)s;
  world_verify();
}

static bool ended_well(int status, bool killed)
{
  return (WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
         (killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static const char *describe(int status)
{
  static char text[64];

  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return "hangs";
  if (WIFSIGNALED(status))
    snprintf(text, sizeof text, "died of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
  else
    snprintf(text, sizeof text, "exit %d", WEXITSTATUS(status));
  return text;
}

/* Counts are left in world->counts. */
static void run_case(const struct scenario *s, const char *mode, const struct plan *plan)
{
  bool kill = plan->nth && plan->give == GIVE_KILL;
  const char *what = "prepare";
  int status;

  memset(world, 0, sizeof *world);
  inject_init(&world->counts);
  world_use_plan(&(struct plan){ .nth = 0 });
  status = in_child(child_prepare, s, mode);
  if (ended_well(status, false)) {
    memset(&world->counts, 0, sizeof world->counts);
    world_use_plan(plan);
    what = "run";
    status = in_child(child_run, s, mode);
  }
  if (ended_well(status, kill)) {
    what = "verify";
    status = in_child(child_verify, s, mode);
  }
  cases++;
  kills += kill;
  if (ended_well(status, false))
    return;
  failed++;
  printf("FAILED: --case %s:%s:%s:%u:%d:%d: %s %s\n", mode, s->name, plan->nth ? inject_name(plan->call) : "none",
         plan->nth, plan->give, plan->on, what, describe(status));
  fflush(stdout);
}

static bool may_stay(const struct plan *plan)
{
  return plan->give > 0 && plan->give != EINTR && plan->give != EAGAIN;
}

/* COUNT calls of one kind. */
static void run_calls(const struct scenario *s, const char *mode, enum call call, unsigned count)
{
  struct plan plan = { .call = call };

  for (const int *give = inject_gives(call); *give && (!s->held || *give == ENOSPC); give++)
    for (unsigned i = 0; i < count && i < most; i++) {
      plan.give = *give;
      plan.nth = count <= most ? i + 1 : i < most / 2 ? i + 1 : 1 + (unsigned)rng_below(&rng, count);
      plan.on = false;
      run_case(s, mode, &plan);
      plan.on = true;
      if (may_stay(&plan) && (count <= most / 2 || i % 2 == 0))
        run_case(s, mode, &plan);
    }
  plan.give = GIVE_KILL;
  plan.on = false;
  for (unsigned i = 0; i < count && i < most; i++) {
    plan.nth = count <= most ? i + 1 : 1 + (unsigned)rng_below(&rng, count);
    run_case(s, mode, &plan);
  }
}

static void run_scenario(const struct scenario *s, const char *mode)
{
  unsigned before = cases, calls = 0;
  struct inject_counts counts;

  run_case(s, mode, &(struct plan){ .nth = 0 });
  counts = world->counts;
  for (enum call call = 0; call < CALLS; call++) {
    calls += counts.calls[call];
    if (!s->held || call == CALL_FALLOCATE)
      run_calls(s, mode, call, counts.calls[call]);
  }
  printf("%-10s %s: %u calls, %u cases\n", s->name, *mode == '1' ? "pmem " : "msync", calls, cases - before);
  fflush(stdout);
}

static void one_case(const char *text)
{
  char mode[4], scenario[32], call[32];
  struct plan plan = { .nth = 0 };
  int on;

  CHECK(sscanf(text, "%3[01]:%31[^:]:%31[^:]:%u:%d:%d", mode, scenario, call, &plan.nth, &plan.give, &on) == 6,
        "'%s' is no case", text);
  plan.on = on;
  for (enum call c = 0; c < CALLS; c++)
    if (strcmp(inject_name(c), call) == 0)
      plan.call = c;
  for (unsigned i = 0; i < scenario_count; i++)
    if (strcmp(scenarios[i].name, scenario) == 0)
      run_case(&scenarios[i], mode, &plan);
}

static bool can_map(uint32_t durability)
{
  struct pcow_map_options options = PCOW_INIT(options);
  const char *path = test_path("probe.pcow");
  pcow_mapping *map = NULL;
  pcow_image *probe;
  int result;

  test_create(path, MIB, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  probe = test_open(path, PCOW_OPEN_RDWR, NULL);
  options.durability = durability;
  result = pcow_map(probe, &options, &map);
  if (result)
    printf("scenarios with a %s map are left out: %s\n",
           durability == PCOW_FLUSH_DURABLE ? "flush-durable" : "store-durable", pcow_errormsg());
  OK(pcow_unmap(map));
  OK(pcow_close(probe));
  unlink(path);
  return result == 0;
}

int main(int argc, char **argv)
{
  const char *only = test_option_string(argc, argv, "--scenario");
  const char *one = test_option_string(argc, argv, "--case");
  bool maps, flush_maps;

  test_force_pmem(argv);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  most = test_option(argc, argv, "--most", MOST);
  world = mmap(NULL, sizeof *world, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(world != MAP_FAILED, "no memory");
  inject_init(&world->counts);
  maps = can_map(PCOW_STORE_DURABLE);
  flush_maps = can_map(PCOW_FLUSH_DURABLE);
  if (one) {
    setenv("FAULT_VERBOSE", "1", 1);
    one_case(one);
  }
  for (unsigned mode = 0; !one && mode < 2; mode++)
    for (unsigned i = 0; i < scenario_count; i++)
      if ((!only || strcmp(only, scenarios[i].name) == 0) && (!scenarios[i].maps || (maps && mode == 0)) &&
          (!scenarios[i].flush_maps || flush_maps))
        run_scenario(&scenarios[i], mode ? "0" : "1");
  printf("%u cases, %u of them killed, %u failed\n", cases, kills, failed);
  return failed != 0;
}
