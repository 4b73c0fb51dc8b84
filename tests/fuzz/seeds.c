/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writes the first inputs of the fuzzer: images that the library made, in many shapes, packed.
 *
 *     fuzz-seeds DIRECTORY
 */
#include "ops.h"

#include "../testlib.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct input in;
static uint8_t packed[INPUT_BYTES * 2];
static const char *target;

static void put_file(const char *path)
{
  int fd = (int)SYS(open(path, O_RDONLY));

  CHECK(input_read_file(&in, fd, 16) == 0, "%s does not fit into an input", path);
  close(fd);
}

static void put_op(unsigned code, unsigned a, unsigned b)
{
  in.op[in.ops++] = (struct input_op){ (uint8_t)code, (uint8_t)a, (uint16_t)b };
}

static void save(const char *name, const char *kind)
{
  char path[512];
  size_t n = input_serialize(&in, packed, sizeof(packed));
  FILE *f;

  CHECK(n, "%s does not fit", name);
  snprintf(path, sizeof(path), "%s/%s-%s", target, name, kind);
  f = fopen(path, "wb");
  CHECK(f && fwrite(packed, 1, n, f) == n && fclose(f) == 0, "cannot write %s", path);
  in.ops = 0;
}

/* The same files with the operations of each target. */
static void save_all(const char *name)
{
  put_op(OP_INFO, 0, 0);
  put_op(OP_READ, 0, 5);
  for (unsigned i = 0; i < 3; i++)
    put_op(OP_SNAPSHOT, i, i);
  save(name, "read");
  put_op(OP_CHECK, 0, 0);
  put_op(OP_DIFF, 0, 1);
  put_op(OP_DIFF, 1, 15);
  put_op(OP_CONVERT, 0, 0);
  put_op(OP_MAP_READ, 15, 0);
  save(name, "more");
  put_op(OP_CHECK, 0, 0);
  put_op(OP_WRITE, 0, 3);
  put_op(OP_CREATE, 0, 7);
  put_op(OP_WRITE, 4, 0x3003);
  put_op(OP_DISCARD, 2, 0x100);
  put_op(OP_DELETE, 0, 0);
  put_op(OP_EXTENTS, 0, 0);
  put_op(OP_REVERT, 0, 0);
  put_op(OP_FLUSH, 0, 0);
  save(name, "write");
  put_op(OP_CHECK, 0, 0);
  put_op(OP_RESIZE, 1, 9);
  put_op(OP_RESIZE, 3, 2);
  put_op(OP_FLATTEN, 0, 0);
  put_op(OP_REOPEN, 0, 0);
  put_op(OP_REPAIR, 1, 0);
  put_op(OP_ZERO, 1, 400);
  save(name, "change");
  put_op(OP_REBASE, 12, 1);
  put_op(OP_COMMIT, 0, 0);
  put_op(OP_EXTENTS, 0, 0);
  save(name, "base");
  put_op(OP_MAP, 2, 0);
  put_op(OP_STORE, 0, 1);
  put_op(OP_LOAD, 2, 1);
  put_op(OP_CREATE, 0, 6);
  put_op(OP_STORE, 2, 2);
  put_op(OP_WRITE, 0, 3);
  put_op(OP_DISCARD, 0, 0x203);
  put_op(OP_UNMAP, 0, 0);
  save(name, "map");
}

static void write_page(pcow_image *image, uint64_t page, unsigned seed)
{
  static uint8_t bytes[PAGE];

  memset(bytes, (int)(seed | 1), sizeof(bytes));
  OK(pcow_pwrite(image, bytes, sizeof(bytes), page * PAGE));
}

/* Three snapshots, a branch, a deleted one, a shrink. */
static void make(const char *path, uint64_t unit, uint64_t size, const char *base, uint32_t format,
                 const char *snapshot, unsigned shape)
{
  uint64_t unit_pages = unit / PAGE;
  uint64_t last = size / PAGE - 1;
  pcow_image *image;

  unlink(path);
  test_create(path, size, unit, base, format, snapshot);
  if (shape == 0)
    return;
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  write_page(image, 0, 1);
  write_page(image, unit_pages % last, 2);
  if (shape > 1) {
    OK(pcow_snapshot_create(image, "one"));
    write_page(image, 1, 3);
    write_page(image, last, 4);
    OK(pcow_snapshot_create(image, "two"));
    write_page(image, 0, 5);
    OK(pcow_discard(image, PAGE, PAGE));
  }
  if (shape > 2) {
    OK(pcow_snapshot_create(image, "three"));
    OK(pcow_snapshot_revert(image, "one"));
    write_page(image, 2, 6);
    OK(pcow_snapshot_create(image, "branch"));
    OK(pcow_resize(image, size / 2 / PAGE * PAGE, PCOW_RESIZE_SHRINK));
    OK(pcow_resize(image, size, 0));
    write_page(image, last, 7);
  }
  if (shape > 3)
    OK(pcow_snapshot_delete(image, "one"));
  OK(pcow_close(image));
}

/* Its time is the one that the harness gives to all files. */
static void make_raw(const char *path)
{
  const struct timespec long_ago[2] = { { 1000000000, 0 }, { 1000000000, 0 } };
  int fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));

  SYS(ftruncate(fd, 200000));
  SYS(pwrite(fd, "base", 4, 8192));
  SYS(pwrite(fd, "base", 4, 100000));
  SYS(futimens(fd, long_ago));
  close(fd);
}

int main(int argc, char **argv)
{
  static const unsigned shifts[] = { 16, 21, 27, 36 };
  char *a, *b, *c;

  CHECK(argc > 1, "usage: fuzz-seeds DIRECTORY");
  test_force_pmem(argv);
  target = argv[1];
  mkdir(target, 0777);
  test_dir(0, argv);
  a = test_path("a");
  b = test_path("b");
  c = test_path("c");
  for (unsigned s = 0; s < 4; s++)
    for (unsigned shape = 0; shape < 5; shape++) {
      uint64_t unit = UINT64_C(1) << shifts[s];
      char name[32];

      snprintf(name, sizeof(name), "u%u-%u", shifts[s], shape);
      in = (struct input){ 0 };
      make(a, unit, shape % 2 ? unit * 3 : unit + 7 * PAGE, NULL, 0, NULL, shape);
      put_file(a);
      save_all(name);

      if (s == 1 || s == 2)
        continue;
      /* a over b over the raw c */
      in = (struct input){ 0 };
      make_raw(c);
      make(b, 65536, 300000, "c", PCOW_FORMAT_RAW, NULL, 2);
      make(a, unit, 300000 + 5 * PAGE, "b", PCOW_FORMAT_PCOW, shape % 2 ? "one" : NULL, shape);
      put_file(a);
      put_file(b);
      put_file(c);
      snprintf(name, sizeof(name), "over%u-%u", shifts[s], shape);
      save_all(name);
    }
  return 0;
}
