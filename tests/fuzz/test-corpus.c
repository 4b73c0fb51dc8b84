/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs every image of the corpus through all operations of the fuzzer, without the fuzzer: none may
 * crash, hang, take memory without bound, or change what it must not. Every image has its line in the
 * README.
 *
 *     test-corpus DIRECTORY [NAME]
 */
#include "ops.h"
#include "scene.h"

#include "../testlib.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define MEMORY_MOST (UINT64_C(1) << 30)

static struct input in;
static uint8_t data[INPUT_BYTES * 2];
static char readme[65536];
static const char *running = "nothing";

static size_t load(const char *dir, const char *name, void *buffer, size_t most)
{
  char path[1024];
  FILE *f;
  size_t n;

  snprintf(path, sizeof(path), "%s/%s", dir, name);
  f = fopen(path, "rb");
  CHECK(f, "cannot read %s", path);
  n = fread(buffer, 1, most, f);
  CHECK(n < most, "%s is too large", path);
  fclose(f);
  return n;
}

static void on_failure(void)
{
  fprintf(stderr, "while running %s\n", running);
}

static int is_input(const struct dirent *entry)
{
  return entry->d_name[0] != '.' && strcmp(entry->d_name, "README") != 0;
}

int main(int argc, char **argv)
{
  struct dirent **list;
  struct rusage usage;
  int n;

  CHECK(argc > 1, "usage: test-corpus DIRECTORY [NAME]");
  test_force_pmem(argv);
  test_on_failure(on_failure);
  scene_begin();
  load(argv[1], "README", readme, sizeof(readme));
  n = (int)SYS(scandir(argv[1], &list, is_input, alphasort));
  for (int i = 0; i < n; i++) {
    char line[300];

    running = list[i]->d_name;
    snprintf(line, sizeof(line), "\n%s: ", running);
    CHECK(strstr(readme, line), "the README of the corpus does not say what %s attacks", running);
    if (argc > 2 && strcmp(argv[2], running) != 0)
      continue;
    input_parse(&in, data, load(argv[1], running, data, sizeof(data)));
    CHECK(in.files && in.ops, "%s is no input", running);
    printf("%s\n", running);
    fflush(stdout);
    ops_run(&in, OP_END, INPUT_OPS);
    SYS(getrusage(RUSAGE_SELF, &usage));
    CHECK((uint64_t)usage.ru_maxrss * 1024 < MEMORY_MOST, "%ld KiB of memory were taken", usage.ru_maxrss);
  }
  CHECK(n > 100, "the corpus has %d images", n);
  printf("%d images\n", n);
  for (int i = 0; i < n; i++)
    free(list[i]);
  free(list);
  return 0;
}
