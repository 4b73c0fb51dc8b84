/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of an image in one page: create, map, store, take a snapshot while it is mapped, store
 * again, and read back what the snapshot holds.
 *
 *     create-and-snapshot IMAGE        (IMAGE must not exist yet)
 *
 *     cc create-and-snapshot.c $(pkg-config --cflags --libs libpcow)
 */
#include <libpcow/libpcow.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE (64u << 20)
#define OFFSET (5u << 20)
#define BEFORE "written before the snapshot"
#define AFTER "written after the snapshot"

static int persist_text(pcow_mapping *mapping, const char *text)
{
  char *memory = pcow_mapping_address(mapping);

  strcpy(memory + OFFSET, text);
  return pcow_persist(mapping, OFFSET, strlen(text) + 1);
}

/* Writes the head through a mapping. The snapshot needs no pause of other threads that store. */
static int write_image(const char *path)
{
  struct pcow_open_options how = PCOW_INIT(how);
  struct pcow_map_options map = PCOW_INIT(map);
  pcow_image *image = NULL;
  pcow_mapping *mapping = NULL;
  int r;

  how.flags = PCOW_OPEN_RDWR;
  map.durability = PCOW_STORE_DURABLE;

  r = pcow_open(path, &how, &image);
  if (r == 0)
    r = pcow_map(image, &map, &mapping);
  if (r == 0)
    r = persist_text(mapping, BEFORE);
  if (r == 0)
    r = pcow_snapshot_create(image, "first");
  if (r == 0)
    r = persist_text(mapping, AFTER);
  if (r < 0)
    fprintf(stderr, "create-and-snapshot: %s\n", pcow_errormsg());

  if (pcow_unmap(mapping) < 0 || pcow_close(image) < 0) {
    fprintf(stderr, "create-and-snapshot: %s\n", pcow_errormsg());
    r = -1;
  }
  return r;
}

/* Reads what SNAPSHOT (NULL: the head) holds; no mapping is needed for that. */
static int read_image(const char *path, const char *snapshot, const char *expected)
{
  struct pcow_open_options how = PCOW_INIT(how);
  pcow_image *image = NULL;
  char text[64];
  int r;

  how.snapshot = snapshot;

  r = pcow_open(path, &how, &image);
  if (r == 0)
    r = pcow_pread(image, text, sizeof(text), OFFSET);
  if (r < 0) {
    fprintf(stderr, "create-and-snapshot: %s\n", pcow_errormsg());
  } else {
    text[sizeof(text) - 1] = '\0';
    printf("%-14s %s\n", snapshot ? snapshot : "head", text);
    r = strcmp(text, expected) == 0 ? 0 : -1;
  }
  if (pcow_close(image) < 0)
    r = -1;
  return r;
}

int main(int argc, char **argv)
{
  if (argc != 2) {
    fprintf(stderr, "usage: create-and-snapshot IMAGE\n");
    return EXIT_FAILURE;
  }
  if (pcow_create(argv[1], SIZE, NULL) < 0) {
    fprintf(stderr, "create-and-snapshot: %s\n", pcow_errormsg());
    return EXIT_FAILURE;
  }
  if (write_image(argv[1]) < 0 || read_image(argv[1], "first", BEFORE) < 0 ||
      read_image(argv[1], NULL, AFTER) < 0)
    return EXIT_FAILURE;
  return EXIT_SUCCESS;
}
