/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changes bytes of an image the way a program changes persistent memory: maps the image, stores,
 * makes the stores durable.
 *
 *     pm-store [--expect OLD] IMAGE OFFSET TEXT
 *
 * With --expect nothing is stored unless the bytes at OFFSET are OLD.
 *
 *     cc pm-store.c $(pkg-config --cflags --libs libpcow)
 */
#include <libpcow/libpcow.h>

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int store(pcow_mapping *mapping, uint64_t offset, const char *text, const char *expect)
{
  char *memory = pcow_mapping_address(mapping);
  uint64_t length = pcow_mapping_length(mapping);
  size_t n = strlen(text);
  size_t reach = expect && strlen(expect) > n ? strlen(expect) : n;

  if (offset > length || reach > length - offset) {
    fprintf(stderr, "pm-store: the image ends at %llu\n", (unsigned long long)length);
    return -1;
  }
  if (expect && memcmp(memory + offset, expect, strlen(expect)) != 0) {
    fprintf(stderr, "pm-store: there is something else at %llu\n", (unsigned long long)offset);
    return -1;
  }

  memcpy(memory + offset, text, n); /* plain stores: the first one to a page makes a private copy */

  if (pcow_persist(mapping, offset, n) < 0) { /* now they are durable */
    fprintf(stderr, "pm-store: %s\n", pcow_errormsg());
    return -1;
  }
  return 0;
}

int main(int argc, char **argv)
{
  struct pcow_open_options how = PCOW_INIT(how);
  struct pcow_map_options map = PCOW_INIT(map);
  const char *expect = NULL;
  pcow_image *image = NULL;
  pcow_mapping *mapping = NULL;
  unsigned long long offset;
  char *end, *directory;
  int result = EXIT_FAILURE;

  if (argc > 2 && strcmp(argv[1], "--expect") == 0) {
    expect = argv[2];
    argc -= 2;
    argv += 2;
  }
  if (argc != 4) {
    fprintf(stderr, "usage: pm-store [--expect OLD] IMAGE OFFSET TEXT\n");
    return EXIT_FAILURE;
  }
  errno = 0;
  offset = strtoull(argv[2], &end, 0);
  if (errno || end == argv[2] || *end || argv[2][0] == '-') {
    fprintf(stderr, "pm-store: '%s' is no offset\n", argv[2]);
    return EXIT_FAILURE;
  }

  directory = strdup(argv[1]);
  if (!directory)
    return EXIT_FAILURE;
  how.flags = PCOW_OPEN_RDWR;
  how.base_dir = dirname(directory); /* an image's base is followed where it lies beside the image */
  map.durability = PCOW_STORE_DURABLE;
  if (pcow_open(argv[1], &how, &image) < 0 || pcow_map(image, &map, &mapping) < 0)
    fprintf(stderr, "pm-store: %s\n", pcow_errormsg());
  else if (store(mapping, offset, argv[3], expect) == 0)
    result = EXIT_SUCCESS;

  if (pcow_unmap(mapping) < 0 || pcow_close(image) < 0) {
    fprintf(stderr, "pm-store: %s\n", pcow_errormsg());
    result = EXIT_FAILURE;
  }
  free(directory);
  return result;
}
