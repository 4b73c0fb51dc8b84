/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-img info: what an image says of itself. It takes no lock and needs no base, so that it works on
 * images in use and on overlays whose base is gone. A base is asked for its snapshot's name, or, for
 * --backing-chain, described, where it may be followed.
 */
#include "command.h"
#include "naming.h"
#include "output.h"
#include "report.h"
#include "sizes.h"
#include "snapshot.h"

#include <string.h>

/* One layer of a chain. Only the one that is being described is open. */
struct layer {
  char *path;     /* as it is opened */
  char *snapshot; /* at which it is read; NULL: the head */
  enum pcow_format format;
  uint64_t virtual_size;
  uint64_t actual_size;
  pcow_image *image;
  struct pcow_info info; /* its strings belong to the image */
  /* For pcow: */
  GPtrArray *snapshots;
  char *base_snapshot; /* at which the base is read: a name, or "#ID"; NULL: its head */
};

static void layer_free(struct layer *layer)
{
  if (layer->snapshots)
    g_ptr_array_unref(layer->snapshots);
  pcow_close(layer->image);
  g_free(layer->path);
  g_free(layer->snapshot);
  g_free(layer->base_snapshot);
  g_free(layer);
}

struct lookup {
  uint32_t id;
  char *name;
};

static int on_lookup(void *opaque, const struct pcow_snapshot_info *info)
{
  struct lookup *lookup = opaque;

  if (info->id != lookup->id)
    return 0;
  lookup->name = g_strdup(info->name);
  return 1;
}

/* The snapshot that the base is read at. The image has recorded its id only, so this asks the base. */
static char *base_snapshot_name(const struct layer *layer)
{
  const struct pcow_info *info = &layer->info;
  pcow_image *base = NULL;
  char *name = NULL;

  if (info->base_format != PCOW_FORMAT_PCOW || info->base_epoch == 0)
    return NULL;
  if (pcow_open_base(layer->image, &base) == 0) {
    struct lookup lookup = { .id = info->base_epoch };

    pcow_snapshot_list(base, on_lookup, &lookup);
    name = lookup.name;
  }
  pcow_close(base);
  return name ? name : g_strdup_printf("#%" G_GUINT32_FORMAT, info->base_epoch);
}

/* Takes what is to be said from the layer's open image. */
static int layer_read(struct layer *layer)
{
  layer->info = (struct pcow_info)PCOW_INIT(layer->info);
  if (pcow_get_info(layer->image, &layer->info))
    return report_library();
  layer->actual_size = layer->info.allocated_size;
  layer->virtual_size = layer->info.virtual_size;
  if (layer->format == PCOW_FORMAT_RAW)
    return 0;
  layer->snapshots = snapshot_list(layer->image);
  if (!layer->snapshots)
    return COMMAND_FAILED;
  layer->base_snapshot = base_snapshot_name(layer);
  if (!layer->snapshot)
    return 0;
  for (guint i = 0; i < layer->snapshots->len; i++) {
    const struct snapshot *s = g_ptr_array_index(layer->snapshots, i);

    if (strcmp(s->info.name, layer->snapshot) == 0) {
      layer->virtual_size = s->info.virtual_size;
      return 0;
    }
  }
  return report_fail("%s: has no snapshot '%s'", layer->path, layer->snapshot);
}

static const char *durability_name(uint32_t durability)
{
  return durability == PCOW_STORE_DURABLE ? "store-durable" : "flush-durable";
}

static char *format_uuid(const uint8_t *uuid)
{
  g_autofree char *hex = output_hex(uuid, 16);

  return g_strdup_printf("%.8s-%.4s-%.4s-%.4s-%s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

static char *format_tag(const struct pcow_info *info)
{
  return g_strdup_printf("%" G_GUINT64_FORMAT "-%016" G_GINT64_MODIFIER "x", info->content_tag[0],
                         info->content_tag[1]);
}

/* ---- For people ---- */

static void print_base(const struct layer *layer)
{
  const struct pcow_info *info = &layer->info;
  g_autofree char *base = output_name(info->base), *path = output_name(info->base_path);
  g_autofree char *snapshot = output_name(layer->base_snapshot);

  if (!info->base)
    return;
  output_printf("backing file: %s", base);
  if (path && strcmp(base, path) != 0)
    output_printf(" (actual path: %s)", path);
  output_printf("\nbacking file format: %s\n", naming_format_name(info->base_format));
  if (snapshot)
    output_printf("backing snapshot: %s\n", snapshot);
}

static void print_pcow(const struct layer *layer)
{
  const struct pcow_info *info = &layer->info;
  g_autofree char *uuid = format_uuid(info->uuid);
  g_autofree char *tag = format_tag(info);

  output_printf("unit_size: %" G_GUINT64_FORMAT "\n", info->unit_size);
  print_base(layer);
  snapshot_print_table(layer->snapshots);
  output_printf("Format specific information:\n"
                "    format version: %" G_GUINT32_FORMAT "\n"
                "    durability: %s%s\n"
                "    closed cleanly: %s\n"
                "    deletions pending: %" G_GUINT32_FORMAT "\n"
                "    uuid: %s\n"
                "    content tag: %s\n"
                "    commits: %" G_GUINT64_FORMAT "\n"
                "    slots, high-water mark: %" G_GUINT64_FORMAT "\n",
                info->format_version, durability_name(info->durability),
                info->durability == PCOW_STORE_DURABLE ? "" : " (the file system is not DAX)",
                info->flags & PCOW_INFO_DIRTY ? "no, or in use" : "yes",
                info->deletions_pending, uuid, tag, info->sequence, info->slot_count);
}

static void print_layer(const struct layer *layer)
{
  g_autofree char *virtual_text = sizes_format(layer->virtual_size);
  g_autofree char *disk_text = sizes_format(layer->actual_size);
  g_autofree char *path = output_name(layer->path), *snapshot = output_name(layer->snapshot);

  output_printf("image: %s\n", path);
  if (snapshot)
    output_printf("snapshot: %s\n", snapshot);
  output_printf("file format: %s\nvirtual size: %s (%" G_GUINT64_FORMAT " bytes)\ndisk size: %s\n",
                naming_format_name(layer->format), virtual_text, layer->virtual_size, disk_text);
  if (layer->format == PCOW_FORMAT_PCOW)
    print_pcow(layer);
}

/* ---- For programs ---- */

static void build_base(json_writer *json, const struct layer *layer)
{
  const struct pcow_info *info = &layer->info;

  if (!info->base)
    return;
  json_text(json, "backing-filename", info->base);
  json_text(json, "full-backing-filename", info->base_path);
  json_text(json, "backing-filename-format", naming_format_name(info->base_format));
  json_text(json, "backing-snapshot", layer->base_snapshot);
}

static void build_pcow(json_writer *json, const struct layer *layer)
{
  const struct pcow_info *info = &layer->info;
  g_autofree char *uuid = format_uuid(info->uuid);
  g_autofree char *tag = format_tag(info);

  json_number(json, "unit-size", info->unit_size);
  json_flag(json, "dirty-flag", (info->flags & PCOW_INFO_DIRTY) != 0);
  build_base(json, layer);
  snapshot_build_json(json, "snapshots", layer->snapshots);
  json_begin_object(json, "format-specific");
  json_text(json, "type", "pcow");
  json_begin_object(json, "data");
  json_number(json, "format-version", info->format_version);
  json_text(json, "durability", durability_name(info->durability));
  json_flag(json, "deletions-pending", (info->flags & PCOW_INFO_PENDING) != 0);
  json_number(json, "deletions-pending-count", info->deletions_pending);
  json_text(json, "uuid", uuid);
  json_text(json, "content-tag", tag);
  json_number(json, "commits", info->sequence);
  json_number(json, "slots", info->slot_count);
  json_end(json);
  json_end(json);
}

static void build_layer(json_writer *json, const struct layer *layer)
{
  json_begin_object(json, NULL);
  json_number(json, "schema-version", OUTPUT_SCHEMA_VERSION);
  json_text(json, "filename", layer->path);
  json_text(json, "snapshot", layer->snapshot);
  json_text(json, "format", naming_format_name(layer->format));
  json_number(json, "virtual-size", layer->virtual_size);
  json_number(json, "actual-size", layer->actual_size);
  if (layer->format == PCOW_FORMAT_PCOW)
    build_pcow(json, layer);
  json_end(json);
}

/* ---- The chain ---- */

/* The layer that LAYER rests on, open, in NEXT; NULL when it is the last one. */
static int layer_next(const struct layer *layer, struct layer **next)
{
  const struct pcow_info *info = &layer->info;
  pcow_image *base = NULL;

  *next = NULL;
  if (!info->base)
    return 0;
  if (pcow_open_base(layer->image, &base))
    return report_library();
  if (layer->base_snapshot && layer->base_snapshot[0] == '#') {
    pcow_close(base);
    return report_fail("%s: the snapshot %s of its base %s does not exist any more", layer->path,
                       layer->base_snapshot, info->base_path);
  }
  *next = g_new0(struct layer, 1);
  (*next)->path = g_strdup(info->base_path);
  (*next)->snapshot = g_strdup(layer->base_snapshot);
  (*next)->format = info->base_format;
  (*next)->image = base;
  return 0;
}

/* Describes LAYER, which is open, and ends, and with WHOLE_CHAIN what is beneath. BUILDER is NULL for people. */
static int describe(struct layer *layer, gboolean whole_chain, json_writer *json)
{
  gboolean first = TRUE;
  int rc = 0;

  for (struct layer *next = NULL; layer; layer = next) {
    rc = layer_read(layer);
    if (rc == 0 && json)
      build_layer(json, layer);
    if (rc == 0 && !json) {
      output_printf("%s", first ? "" : "\n");
      print_layer(layer);
    }
    first = FALSE;
    next = NULL;
    if (rc == 0 && whole_chain)
      rc = layer_next(layer, &next);
    layer_free(layer);
  }
  return rc;
}

int verb_info(struct command *command)
{
  gboolean whole_chain = FALSE;
  const GOptionEntry entries[] = {
    { "backing-chain", 0, 0, G_OPTION_ARG_NONE, &whole_chain, "Describe all its bases as well", NULL },
    OPTION_BASES(&command->bases),
    OPTION_OUTPUT(command),
    OPTION_END,
  };
  struct pcow_open_options options = PCOW_INIT(options);
  g_autofree char *path = NULL, *snapshot = NULL;
  g_autoptr(json_writer) json = NULL;
  struct layer *layer;
  int rc = command_parse(command, entries, 1, 1);

  if (rc)
    return rc;
  if (naming_split(command->operands[0], NULL, &path, &snapshot))
    return COMMAND_FAILED;
  layer = g_new0(struct layer, 1);
  layer->path = g_steal_pointer(&path);
  layer->snapshot = g_steal_pointer(&snapshot);
  layer->format = PCOW_FORMAT_PCOW;
  options.flags = PCOW_OPEN_INFO;
  if (bases_open(&command->bases, layer->path, &options, &layer->image)) {
    layer_free(layer);
    return report_library();
  }

  json = command->json ? json_new() : NULL;
  if (json && whole_chain)
    json_begin_array(json, NULL);
  rc = describe(layer, whole_chain, json);
  if (rc == 0 && json) {
    if (whole_chain)
      json_end(json);
    output_json(g_steal_pointer(&json));
  }
  return rc;
}
