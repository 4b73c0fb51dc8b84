/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img snapshot and rollback. Listing takes no lock, so that it works while the image is in use.
 */
#include "snapshot.h"

#include "command.h"
#include "output.h"
#include "report.h"
#include "sizes.h"

#include <locale.h>

static void snapshot_free(gpointer data)
{
  struct snapshot *snapshot = data;

  g_free((char *)snapshot->info.name);
  g_free(snapshot);
}

static int on_snapshot(void *opaque, const struct pcow_snapshot_info *info)
{
  struct snapshot *snapshot = g_new(struct snapshot, 1);

  snapshot->info = *info;
  snapshot->info.name = g_strdup(info->name);
  g_ptr_array_add(opaque, snapshot);
  return 0;
}

GPtrArray *snapshot_list(pcow_image *image)
{
  g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(snapshot_free);

  if (pcow_snapshot_list(image, on_snapshot, list) < 0) {
    report_library();
    return NULL;
  }
  return g_steal_pointer(&list);
}

static char *format_time(int64_t seconds)
{
  g_autoptr(GDateTime) time = g_date_time_new_from_unix_local(seconds);

  return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

void snapshot_print_table(const GPtrArray *list)
{
  if (list->len == 0)
    return;
  output_printf("Snapshot list:\n%-9s %-24s %10s  %s\n", "ID", "TAG", "VM SIZE", "DATE");
  for (guint i = 0; i < list->len; i++) {
    const struct snapshot *s = g_ptr_array_index(list, i);
    g_autofree char *size = sizes_format(s->info.virtual_size);
    g_autofree char *date = format_time(s->info.created_sec), *name = output_name(s->info.name);

    output_printf("%-9" G_GUINT32_FORMAT " %-24s %10s  %s\n", s->info.id, name, size, date);
  }
}

void snapshot_build_json(json_writer *json, const char *key, const GPtrArray *list)
{
  json_begin_array(json, key);
  for (guint i = 0; i < list->len; i++) {
    const struct snapshot *s = g_ptr_array_index(list, i);
    g_autofree char *id = g_strdup_printf("%" G_GUINT32_FORMAT, s->info.id);
    g_autofree char *parent = s->info.parent ? g_strdup_printf("%" G_GUINT32_FORMAT, s->info.parent) : NULL;
    g_autofree char *guid = output_hex(s->info.guid, sizeof(s->info.guid));

    json_begin_object(json, NULL);
    json_text(json, "id", id); /* a string, as in qemu-img */
    json_text(json, "name", s->info.name);
    json_text(json, "parent-id", parent);
    json_flag(json, "current", (s->info.flags & PCOW_SNAPSHOT_CURRENT) != 0);
    json_number(json, "virtual-size", s->info.virtual_size);
    json_signed(json, "date-sec", s->info.created_sec);
    json_number(json, "date-nsec", s->info.created_nsec);
    json_text(json, "guid", guid);
    json_end(json);
  }
  json_end(json);
}

/* ---- The tree ---- */

/* A node that is still to be drawn: what stands before its name, and before its descendants' lines. */
struct drawing {
  uint32_t id; /* of the snapshot; HEAD for the head */
  const char *name;
  char *before;
  char *beneath;
};

#define HEAD UINT32_MAX /* no epoch has this id (docs/format.md) */

static void add_child(GHashTable *children, uint32_t parent, struct drawing child)
{
  GArray *siblings = g_hash_table_lookup(children, GUINT_TO_POINTER(parent));

  if (!siblings) {
    siblings = g_array_new(FALSE, FALSE, sizeof(struct drawing));
    g_hash_table_insert(children, GUINT_TO_POINTER(parent), siblings);
  }
  g_array_append_val(siblings, child);
}

/* From each snapshot (0: none) to those that come directly after it, oldest first, the head last. */
static GHashTable *find_children(const GPtrArray *list)
{
  GHashTable *children = g_hash_table_new_full(NULL, NULL, NULL, (GDestroyNotify)g_array_unref);
  uint32_t current = 0;

  for (guint i = 0; i < list->len; i++) {
    const struct snapshot *s = g_ptr_array_index(list, i);

    add_child(children, s->info.parent, (struct drawing){ .id = s->info.id, .name = s->info.name });
    if (s->info.flags & PCOW_SNAPSHOT_CURRENT)
      current = s->info.id;
  }
  add_child(children, current, (struct drawing){ .id = HEAD, .name = "(head)" });
  return children;
}

/* Draws the snapshots beneath the file's name. An only child stands in its parent's column, so that a
 * long history without branches stays readable; and nothing recurses, because it may be very long. */
static void print_tree(const char *path, const GPtrArray *list)
{
  /* Whether the terminal can draw the lines. Nothing else depends on the locale, which takes time to load. */
  const gboolean utf8 = setlocale(LC_CTYPE, "") && g_get_charset(NULL);
  const char *branch = utf8 ? "├── " : "|-- ", *last_branch = utf8 ? "└── " : "`-- ";
  const char *bar = utf8 ? "│   " : "|   ", *gap = "    ";
  g_autoptr(GHashTable) children = find_children(list);
  g_autoptr(GArray) stack = g_array_new(FALSE, FALSE, sizeof(struct drawing));
  struct drawing top = { .id = 0, .name = path, .before = g_strdup(""), .beneath = g_strdup("") };

  g_array_append_val(stack, top);
  while (stack->len) {
    struct drawing node = g_array_index(stack, struct drawing, stack->len - 1);
    const GArray *next = g_hash_table_lookup(children, GUINT_TO_POINTER(node.id));
    const gboolean only = next && next->len == 1 && node.id != 0;

    g_autofree char *name = output_name(node.name);

    g_array_set_size(stack, stack->len - 1);
    output_printf("%s%s\n", node.before, name);
    for (guint i = next ? next->len : 0; i-- > 0;) {
      struct drawing child = g_array_index(next, struct drawing, i);
      const gboolean last = i + 1 == next->len;

      child.before = g_strconcat(node.beneath, only ? "" : last ? last_branch : branch, NULL);
      child.beneath = g_strconcat(node.beneath, only ? "" : last ? gap : bar, NULL);
      g_array_append_val(stack, child);
    }
    g_free(node.before);
    g_free(node.beneath);
  }
}

/* ---- The verbs ---- */

static int list_snapshots(const struct command *command, gboolean tree)
{
  struct pcow_open_options options = PCOW_INIT(options);
  g_autoptr(GPtrArray) list = NULL;
  pcow_image *image = NULL;

  options.flags = PCOW_OPEN_INFO;
  if (pcow_open(command->operands[0], &options, &image))
    return report_library();
  list = snapshot_list(image);
  pcow_close(image);
  if (!list)
    return COMMAND_FAILED;
  if (command->json) {
    json_writer *json = json_new();

    snapshot_build_json(json, NULL, list);
    output_json(json);
  } else if (tree) {
    print_tree(command->operands[0], list);
  } else {
    snapshot_print_table(list);
  }
  return 0;
}

/* Opens the image for writing and does ACTION with the snapshot NAME. */
static int change(const struct command *command, int (*action)(pcow_image *, const char *), const char *name)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  int rc = 0;

  options.flags = PCOW_OPEN_RDWR;
  if (bases_open(&command->bases, command->operands[0], &options, &image))
    return report_library();
  if (action(image, name))
    rc = report_library();
  if (pcow_close(image) && rc == 0)
    rc = report_library();
  return rc;
}

int verb_snapshot(struct command *command)
{
  g_autofree char *create = NULL, *apply = NULL, *delete = NULL;
  gboolean list = FALSE, tree = FALSE;
  const GOptionEntry entries[] = {
    { "list", 'l', 0, G_OPTION_ARG_NONE, &list, "List the snapshots (the default)", NULL },
    { "tree", 0, 0, G_OPTION_ARG_NONE, &tree, "Draw the tree of the snapshots", NULL },
    { "create", 'c', 0, G_OPTION_ARG_FILENAME, &create, "Freeze the present content under a name", "NAME" },
    { "apply", 'a', 0, G_OPTION_ARG_FILENAME, &apply, "Make a snapshot the present content", "NAME" },
    { "delete", 'd', 0, G_OPTION_ARG_FILENAME, &delete, "Delete a snapshot", "NAME" },
    OPTION_BASES(&command->bases),
    OPTION_OUTPUT(command),
    OPTION_QUIET(command),
    OPTION_END,
  };
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  if (list + tree + !!create + !!apply + !!delete > 1)
    return command_usage(command, "-l, --tree, -c, -a and -d exclude each other");
  if (create)
    return change(command, pcow_snapshot_create, create);
  if (apply)
    return change(command, pcow_snapshot_revert, apply);
  if (delete)
    return change(command, pcow_snapshot_delete, delete);
  return list_snapshots(command, tree);
}

int verb_rollback(struct command *command)
{
  const GOptionEntry entries[] = { OPTION_BASES(&command->bases), OPTION_QUIET(command), OPTION_END };
  int rc = command_parse(command, entries, 2, 2);

  return rc ? rc : change(command, pcow_snapshot_revert, command->operands[1]);
}
