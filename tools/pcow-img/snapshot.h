/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The snapshots of an image as a list, for the verbs that show them.
 */
#ifndef SNAPSHOT_H
#define SNAPSHOT_H

#include "json.h"

#include <glib.h>
#include <libpcow/libpcow.h>

struct snapshot {
  struct pcow_snapshot_info info; /* its name is owned by the list */
};

/* All snapshots of IMAGE, oldest first, as struct snapshot *. NULL with the error recorded. */
GPtrArray *snapshot_list(pcow_image *image);

/* qemu-img's table, without a line when there are none. */
void snapshot_print_table(const GPtrArray *list);

/* An array. */
void snapshot_build_json(json_writer *json, const char *key, const GPtrArray *list);

#endif
