/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Between inputs of the fuzzer and files.
 *
 *     fuzz-pack unpack INPUT DIRECTORY      the files of an input, for pcow-img: DIRECTORY/a, b, c
 *     fuzz-pack pack INPUT FILE [FILE…]     an input of up to three files, without operations
 *     fuzz-pack show INPUT                  what is in it
 */
#include "input.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct input in;
static uint8_t data[INPUT_BYTES * 2];

_Noreturn static void die(const char *what)
{
  fprintf(stderr, "fuzz-pack: %s\n", what);
  exit(1);
}

static void load(const char *path)
{
  FILE *f = fopen(path, "rb");

  if (!f)
    die("cannot read the input");
  input_parse(&in, data, fread(data, 1, sizeof(data), f));
  fclose(f);
}

static void unpack(const char *dir)
{
  for (unsigned i = 0; i < in.files; i++) {
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, input_names[i]);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || input_write_file(&in, &in.file[i], fd) < 0)
      die("cannot write a file");
    close(fd);
  }
}

static void pack(const char *to, char **files, int count)
{
  size_t n;
  FILE *f;

  for (int i = 0; i < count; i++) {
    int fd = open(files[i], O_RDONLY | O_CLOEXEC);

    if (fd < 0 || input_read_file(&in, fd, 16) < 0)
      die("cannot read a file, or it does not fit into an input");
    close(fd);
  }
  n = input_serialize(&in, data, sizeof(data));
  f = fopen(to, "wb");
  if (!n || !f || fwrite(data, 1, n, f) != n || fclose(f))
    die("cannot write the input");
}

static void show(void)
{
  printf("flags %u, operations:", in.flags);
  for (unsigned i = 0; i < in.ops; i++)
    printf(" %u(%u, %u)", in.op[i].code, in.op[i].a, in.op[i].b);
  for (unsigned i = 0; i < in.files; i++) {
    const struct input_file *f = &in.file[i];

    printf("\n%s: flags %u, %" PRIu64 " bytes", input_names[i], f->flags, f->length);
    for (unsigned c = 0; c < f->chunks; c++) {
      printf("\n  0x%" PRIx64 ":", f->chunk[c].offset);
      for (unsigned b = 0; b < f->chunk[c].length && b < 48; b++)
        printf("%s%02x", b % 8 ? "" : " ", f->chunk[c].bytes[b]);
    }
  }
  printf("\n");
}

int main(int argc, char **argv)
{
  if (argc > 3 && strcmp(argv[1], "pack") == 0) {
    pack(argv[2], argv + 3, argc - 3);
  } else if (argc == 4 && strcmp(argv[1], "unpack") == 0) {
    load(argv[2]);
    unpack(argv[3]);
  } else if (argc == 3 && strcmp(argv[1], "show") == 0) {
    load(argv[2]);
    show();
  } else {
    die("usage: fuzz-pack unpack INPUT DIRECTORY | pack INPUT FILE… | show INPUT");
  }
  return 0;
}
