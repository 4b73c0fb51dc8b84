/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command line of a verb, through GOption; see command.h.
 */
#include "command.h"

#include "output.h"
#include "report.h"

#include <libpcow/libpcow.h>
#include <string.h>

int command_usage(const struct command *command, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start(args, format);
  text = g_strdup_vprintf(format, args);
  va_end(args);
  return report_fail("%s: %s (see 'pcow-img %s --help')", command->verb->name, text, command->verb->name);
}

static GOptionContext *make_context(struct command *command, const GOptionEntry *entries)
{
  GOptionEntry common[] = {
    { "help", 'h', 0, G_OPTION_ARG_NONE, &command->help, "Show this help", NULL },
    { "version", 0, 0, G_OPTION_ARG_NONE, &command->version, "Show the version", NULL },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &command->operands, NULL, NULL },
    OPTION_END,
  };
  GOptionContext *context = g_option_context_new(command->verb->synopsis);

  g_option_context_set_help_enabled(context, FALSE); /* GOption's own has --help-all and exits */
  g_option_context_set_summary(context, command->verb->summary);
  if (command->verb->details)
    g_option_context_set_description(context, command->verb->details);
  g_option_context_add_main_entries(context, entries, NULL);
  g_option_context_add_main_entries(context, common, NULL);
  return context;
}

int command_parse(struct command *command, const GOptionEntry *entries, int minimum, int maximum)
{
  g_autoptr(GOptionContext) context = make_context(command, entries);
  g_autoptr(GError) error = NULL;

  g_set_prgname("pcow-img");
  if (!g_option_context_parse(context, &command->argc, &command->argv, &error))
    return command_usage(command, "%s", error->message);
  if (command->help) {
    g_autofree char *name = g_strdup_printf("pcow-img %s", command->verb->name);
    g_autofree char *text = NULL;

    g_set_prgname(name);
    text = g_option_context_get_help(context, TRUE, NULL);
    output_printf("%s", text);
    return COMMAND_DONE;
  }
  if (command->version) {
    output_printf("pcow-img %s\n", pcow_version());
    return COMMAND_DONE;
  }

  if (command->output && strcmp(command->output, "json") == 0)
    command->json = TRUE;
  else if (command->output && strcmp(command->output, "human") != 0)
    return command_usage(command, "--output must be human or json, not '%s'", command->output);

  if (command->bases.dir && command->bases.any)
    return command_usage(command, "--base-dir and --any-base exclude each other");

  command->operand_count = command->operands ? (int)g_strv_length(command->operands) : 0;
  if (command->operand_count < minimum)
    return command_usage(command, "%s", command->operand_count ? "too few arguments" : "no file is named");
  if (command->operand_count > maximum)
    return command_usage(command, "unexpected argument '%s'", command->operands[maximum]);
  return 0;
}

void command_clear(struct command *command)
{
  g_free(command->bases.dir);
  g_free(command->output);
  g_strfreev(command->operands);
}
