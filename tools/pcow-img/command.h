/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A run of one verb: its description, the parsing of its command line, and the options that several
 * verbs share. A verb is a function that gets a struct command whose argc and argv begin with the
 * verb's name. It returns 0 or another exit status that is a result, COMMAND_FAILED with the error
 * recorded (report.h), or COMMAND_DONE when the command line asked for help or the version only.
 */
#ifndef COMMAND_H
#define COMMAND_H

#include "bases.h"

#include <glib.h>

#define COMMAND_DONE (-2)

struct command;

struct verb {
  const char *name;
  const char *synopsis; /* what follows the name, without the options that GOption describes */
  const char *summary;  /* one line */
  const char *details;  /* more lines for the verb's --help, or NULL */
  int failure_status;   /* exit status of a failed command */
  int (*run)(struct command *command);
};

struct command {
  const struct verb *verb;
  int argc;
  char **argv;
  gboolean quiet;    /* -q */
  gboolean progress; /* -p */
  gboolean json;     /* --output=json */
  gboolean help;
  gboolean version;
  struct bases bases; /* --base-dir, --any-base */
  char *output;
  char **operands; /* what is not an option; NULL-terminated */
  int operand_count;
};

/* Entries that verbs put into their tables. */
#define OPTION_QUIET(command) \
  { "quiet", 'q', 0, G_OPTION_ARG_NONE, &(command)->quiet, "Print nothing but errors", NULL }
#define OPTION_PROGRESS(command) \
  { "progress", 'p', 0, G_OPTION_ARG_NONE, &(command)->progress, "Show progress on stderr", NULL }
#define OPTION_OUTPUT(command)                                                                           \
  { "output", 0, 0, G_OPTION_ARG_FILENAME, &(command)->output, "Output for people or for programs", \
    "human|json" }
#define OPTION_END { NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL }

/* Parses the command line by ENTRIES; between MINIMUM and MAXIMUM operands remain. 0, COMMAND_FAILED
 * or COMMAND_DONE. */
int command_parse(struct command *command, const GOptionEntry *entries, int minimum, int maximum);

/* Records the error of a wrong command line. */
int command_usage(const struct command *command, const char *format, ...) G_GNUC_PRINTF(2, 3);

void command_clear(struct command *command);

int verb_check(struct command *command);
int verb_commit(struct command *command);
int verb_compare(struct command *command);
int verb_convert(struct command *command);
int verb_create(struct command *command);
int verb_diff(struct command *command);
int verb_info(struct command *command);
int verb_map(struct command *command);
int verb_measure(struct command *command);
int verb_rebase(struct command *command);
int verb_resize(struct command *command);
int verb_rollback(struct command *command);
int verb_snapshot(struct command *command);

#endif
