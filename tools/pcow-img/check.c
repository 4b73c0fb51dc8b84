/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img check: verifies an image, repairs it with -r, and then verifies once more, so that the exit
 * status always speaks of the image as it is left.
 */
#include "command.h"
#include "output.h"
#include "progress.h"
#include "report.h"

#include <libpcow/libpcow.h>
#include <string.h>

enum { CHECK_CLEAN = 0, CHECK_CORRUPT = 2, CHECK_LEAKS = 3 };

static void on_finding(void *opaque, const char *finding)
{
  g_ptr_array_add(opaque, g_strdup(finding));
}

static int status(const struct pcow_check_result *r)
{
  return r->corruptions || r->base_faults ? CHECK_CORRUPT : r->leaks ? CHECK_LEAKS : CHECK_CLEAN;
}

static void print_json(const char *path, const GPtrArray *findings, const struct pcow_check_result *r,
                       uint64_t repaired)
{
  json_writer *json = json_new();

  json_begin_object(json, NULL);
  json_number(json, "schema-version", OUTPUT_SCHEMA_VERSION);
  json_text(json, "filename", path);
  json_text(json, "format", "pcow");
  json_number(json, "check-errors", 0);
  json_number(json, "corruptions", r->corruptions);
  json_number(json, "repairable", r->repairable);
  json_number(json, "base-faults", r->base_faults);
  json_number(json, "leaks", r->leaks);
  json_number(json, "leaked-size", r->leaked_size);
  json_number(json, "repaired", repaired);
  json_number(json, "pending", r->pending);
  json_number(json, "slots", r->slots);
  json_number(json, "pages", r->pages);
  json_begin_array(json, "findings");
  for (guint i = 0; i < findings->len; i++)
    json_text(json, NULL, g_ptr_array_index(findings, i));
  json_end(json);
  json_end(json);
  output_json(json);
}

static void print_human(const GPtrArray *findings, const struct pcow_check_result *r, uint64_t repaired,
                        gboolean quiet)
{
  for (guint i = 0; i < findings->len; i++)
    output_printf("%s\n", (const char *)g_ptr_array_index(findings, i));
  if (repaired)
    output_printf("%" G_GUINT64_FORMAT " inconsistencies were found and repaired. The image as it is now:\n",
                  repaired);
  if (r->corruptions)
    output_printf("\n%" G_GUINT64_FORMAT " errors were found on the image.\n"
                  "Data may be corrupted, or further writes to the image may corrupt it.\n",
                  r->corruptions);
  if (r->corruptions && r->repairable)
    output_printf("%" G_GUINT64_FORMAT " of them can be repaired with -r all.\n", r->repairable);
  if (r->base_faults)
    output_printf("\nThe base is missing, is not what it was, or is not followed.\n");
  if (r->leaks)
    output_printf("\n%" G_GUINT64_FORMAT " leaks (%" G_GUINT64_FORMAT " bytes) were found on the image.\n"
                  "This means waste of disk space, but no harm to data.\n",
                  r->leaks, r->leaked_size);
  if (quiet)
    return;
  if (r->pending)
    output_printf("%" G_GUINT64_FORMAT " deleted snapshots wait for their space to be collected.\n",
                  r->pending);
  if (status(r) == CHECK_CLEAN)
    output_printf("No errors were found on the image.\n");
  output_printf("%" G_GUINT64_FORMAT " slots in use, %" G_GUINT64_FORMAT " pages present\n", r->slots,
                r->pages);
}

static int parse_repair(const struct command *command, const char *repair, uint32_t *flags)
{
  *flags = 0;
  if (!repair)
    return 0;
  if (strcmp(repair, "leaks") == 0)
    *flags = PCOW_CHECK_REPAIR_LEAKS;
  else if (strcmp(repair, "all") == 0)
    *flags = PCOW_CHECK_REPAIR_LEAKS | PCOW_CHECK_REPAIR_ALL;
  else
    return command_usage(command, "-r must be leaks or all, not '%s'", repair);
  return 0;
}

int verb_check(struct command *command)
{
  g_autoptr(GPtrArray) findings = g_ptr_array_new_with_free_func(g_free);
  g_autofree char *repair = NULL;
  gboolean base = FALSE, any_base = FALSE;
  const GOptionEntry entries[] = {
    { "base", 0, 0, G_OPTION_ARG_NONE, &base, "Is the base, within the image's directory, what it was?", NULL },
    { "any-base", 0, 0, G_OPTION_ARG_NONE, &any_base, "The same wherever the base lies; trusted images only",
      NULL },
    { "repair", 'r', 0, G_OPTION_ARG_FILENAME, &repair, "Repair what wastes space, or all that can be",
      "leaks|all" },
    OPTION_PROGRESS(command),
    OPTION_OUTPUT(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  struct pcow_check_result result = PCOW_INIT(result);
  uint64_t repaired;
  uint32_t flags;
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  if (parse_repair(command, repair, &flags))
    return COMMAND_FAILED;
  if (base)
    flags |= PCOW_CHECK_BASE;
  if (any_base)
    flags |= PCOW_CHECK_ANY_BASE;
  progress_start(command->progress);
  if (pcow_check(command->operands[0], flags, &result, on_finding, progress_update, findings))
    return report_library();
  repaired = result.repaired;
  if (repaired) {
    result = (struct pcow_check_result)PCOW_INIT(result);
    if (pcow_check(command->operands[0], flags & (PCOW_CHECK_BASE | PCOW_CHECK_ANY_BASE), &result, NULL, progress_update, NULL))
      return report_library();
  }
  if (command->json)
    print_json(command->operands[0], findings, &result, repaired);
  else
    print_human(findings, &result, repaired, command->quiet);
  return status(&result);
}
