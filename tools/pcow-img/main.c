/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img: makes, inspects and converts pcow images. This file has the table of verbs, and the end
 * of every run: either the result goes to stdout, or one line to stderr.
 */
#include "command.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"
#include "report.h"

#include <libpcow/libpcow.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char snapshot_note[] = "FILE@SNAPSHOT names a snapshot of FILE.";
static const char size_note[] =
    "SIZE is in bytes, or has one of the suffixes k M G T P E (k = K = 1024).";
static const char create_note[] =
    "SIZE is in bytes, or has one of the suffixes k M G T P E (k = K = 1024); with a base it may be left\n"
    "out. A relative BASE is relative to the directory of FILE. An existing FILE is replaced, unless it\n"
    "is an image in use.";

static const struct verb verbs[] = {
  { "check", "FILE", "Verify an image, and repair it on request.",
    "Exit status: 0 clean, 1 could not check, 2 corrupt, 3 leaks only.", 1, verb_check },
  { "commit", "FILE", "Write what an image has of its own into its base, and empty it.", NULL, 1,
    verb_commit },
  { "compare", "FILE1 FILE2", "Compare the content of two images, whatever their formats.",
    "FILE@SNAPSHOT names a snapshot of FILE. Exit status: 0 same, 1 different, 2 error.", 2,
    verb_compare },
  { "convert", "SOURCE TARGET", "Copy the content of an image into a new file, or with -n into an old one.",
    "SOURCE@SNAPSHOT names a snapshot of SOURCE. Holes and zeros are not written.", 1, verb_convert },
  { "create", "FILE [SIZE]", "Create an image.", create_note, 1, verb_create },
  { "diff", "FILE FROM [TO]", "List the ranges that differ between two snapshots.",
    "Without TO, between the snapshot FROM and the present content.", 1, verb_diff },
  { "info", "FILE", "Describe an image, also while it is in use.", snapshot_note, 1, verb_info },
  { "map", "FILE", "List where the content of an image lies.", snapshot_note, 1, verb_map },
  { "measure", "[FILE]", "Tell how much space a conversion would need.", size_note, 1, verb_measure },
  { "rebase", "FILE", "Change the base of an image.",
    "BASE@SNAPSHOT names a snapshot of BASE. A relative BASE is relative to the directory of FILE.", 1,
    verb_rebase },
  { "resize", "FILE [+|-]SIZE", "Change the virtual size of an image.", size_note, 1, verb_resize },
  { "rollback", "FILE SNAPSHOT", "Make a snapshot the present content (snapshot -a).", NULL, 1,
    verb_rollback },
  { "snapshot", "FILE", "List, create, apply or delete snapshots.", NULL, 1, verb_snapshot },
};

static void print_help(void)
{
  output_printf("Usage:\n  pcow-img VERB [OPTION...] ARGUMENT...\n\nVerbs:\n");
  for (gsize i = 0; i < G_N_ELEMENTS(verbs); i++)
    output_printf("  %-9s  %-18s  %s\n", verbs[i].name, verbs[i].synopsis, verbs[i].summary);
  output_printf("\n'pcow-img VERB --help' (or 'pcow-img help VERB') describes a verb; see also pcow-img(1).\n"
                "'pcow-img --version' shows the version.\n");
}

static const struct verb *find_verb(const char *name)
{
  for (gsize i = 0; i < G_N_ELEMENTS(verbs); i++)
    if (strcmp(name, verbs[i].name) == 0)
      return &verbs[i];
  return NULL;
}

static int run_verb(const struct verb *verb, int argc, char **argv)
{
  struct command command = { .verb = verb, .argc = argc, .argv = argv };
  int status = verb->run(&command);

  progress_end(status >= 0);
  command_clear(&command);
  return status;
}

/* Ends the run: STATUS as a verb returned it, FAILURE_STATUS for a failed one. */
static int finish(int status, int failure_status)
{
  if (status != COMMAND_FAILED && output_finish())
    status = COMMAND_FAILED;
  if (status == COMMAND_FAILED) {
    interrupt_reraise();
    report_print_error();
    return failure_status;
  }
  report_print_warnings();
  return status == COMMAND_DONE ? EXIT_SUCCESS : status;
}

int main(int argc, char **argv)
{
  const char *name = argc > 1 ? argv[1] : NULL;
  const struct verb *verb;

  report_collect_warnings();

  if (!name)
    return finish(report_fail("no verb is named (see 'pcow-img --help')"), EXIT_FAILURE);
  if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
    output_printf("pcow-img %s\n", pcow_version());
    return finish(COMMAND_DONE, EXIT_FAILURE);
  }
  if (strcmp(name, "help") == 0 && argc > 2) {
    char option[] = "--help";
    char *help[] = { argv[2], option, NULL };

    verb = find_verb(argv[2]);
    return verb ? finish(run_verb(verb, 2, help), EXIT_FAILURE)
                : finish(report_fail("unknown verb '%s' (see 'pcow-img --help')", argv[2]), EXIT_FAILURE);
  }
  if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
    print_help();
    return finish(COMMAND_DONE, EXIT_FAILURE);
  }
  verb = find_verb(name);
  if (!verb)
    return finish(report_fail("unknown verb '%s' (see 'pcow-img --help')", name), EXIT_FAILURE);
  return finish(run_verb(verb, argc - 1, argv + 1), verb->failure_status);
}
