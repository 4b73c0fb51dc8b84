/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Makes the crafted images of tests/fuzz/corpus: a plain image of two snapshots (or one over a base),
 * and one thing wrong with it. The list is in crafted.h; its lines become the README of the corpus.
 *
 *     fuzz-craft DIRECTORY
 */
#include "ops.h"

#include "../testlib.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof(*(a)))
#define LOG UINT64_C(0x200000)
#define MAP UINT64_C(0x30000000)
#define GROUPS UINT64_C(0x40000000)

/* Fields of a superblock */
#define SHIFT 12, 4
#define SEQUENCE 56, 8
#define SIZE 80, 8
#define FLOOR 88, 8
#define HEAD 96, 4
#define PARENT 100, 4
#define NEXT 104, 4
#define STATE 108, 4
#define LOG_FROM 112, 8
#define LOG_TO 120, 8
#define SLOTS 128, 8

static struct input in;
static struct input_file *a = &in.file[0], *b = &in.file[1];
static uint64_t unit_shift;

static void put(struct input_file *f, uint64_t offset, unsigned width, uint64_t value)
{
  CHECK(input_put(&in, f, offset, width, value), "an input is too large");
}

static uint64_t bitmap_bytes(void)
{
  uint64_t pages = UINT64_C(1) << (unit_shift - 12);

  return pages <= 64 ? 8 : pages / 8;
}

static uint64_t group_data(void)
{
  uint64_t align = unit_shift < 21 ? UINT64_C(1) << unit_shift : 0x200000;

  return (0x400000 + 65536 * bitmap_bytes() + align - 1) / align * align;
}

static uint64_t group_of(uint64_t slot)
{
  return GROUPS + (slot - 1) / 65536 * (group_data() + (UINT64_C(65536) << unit_shift));
}

static uint64_t header_of(uint64_t slot)
{
  return group_of(slot) + (slot - 1) % 65536 * 64;
}

static uint64_t bitmap_of(uint64_t slot)
{
  return group_of(slot) + 0x400000 + (slot - 1) % 65536 * bitmap_bytes();
}

static uint64_t data_of(uint64_t slot)
{
  return group_of(slot) + group_data() + (((slot - 1) % 65536) << unit_shift);
}

static void slot(struct input_file *f, uint64_t index, uint64_t unit, unsigned epoch, uint64_t previous,
                 uint64_t bits)
{
  put(f, header_of(index), 4, 0x544f4c53);
  put(f, header_of(index) + 8, 8, unit);
  put(f, header_of(index) + 16, 4, epoch);
  put(f, header_of(index) + 24, 8, previous << 8);
  put(f, bitmap_of(index), 8, bits);
  put(f, data_of(index), 8, index * 0x0101010101010101);
}

static void record(struct input_file *f, uint64_t number, unsigned id, unsigned parent, unsigned state,
                   const char *name)
{
  uint64_t at = LOG + number % (1 << 20) * 512;

  put(f, at, 4, 0x48435045);
  put(f, at + 4, 4, id);
  put(f, at + 8, 4, parent);
  put(f, at + 12, 4, state);
  put(f, at + 44, 4, strlen(name));
  put(f, at + 48, 8, input_get(f, SIZE));
  put(f, at + 56, 8, input_get(f, SIZE));
  for (unsigned i = 0; name[i]; i++)
    put(f, at + 64 + i, 1, (uint8_t)name[i]);
  put(f, at + 320, 8, number);
}

static void base(struct input_file *f, unsigned format, const char *path)
{
  put(f, 256, 4, format);
  put(f, 348, 4, strlen(path));
  for (unsigned i = 0; path[i]; i++)
    put(f, 352 + i, 1, (uint8_t)path[i]);
}

static void image(struct input_file *f, unsigned shift, uint64_t size, uint64_t slots)
{
  unit_shift = shift;
  *f = (struct input_file){ 0 };
  put(f, 0, 8, UINT64_C(0x0a1a0a0d574f4350));
  put(f, 8, 4, 1);
  put(f, SHIFT, shift);
  put(f, 40, 8, 0x1111 + (uint64_t)(f - in.file));
  put(f, SEQUENCE, 7);
  put(f, 64, 8, 1);
  put(f, 72, 8, 99);
  put(f, SIZE, size);
  put(f, FLOOR, size);
  put(f, HEAD, 3);
  put(f, PARENT, 2);
  put(f, NEXT, 4);
  put(f, LOG_FROM, 0);
  put(f, LOG_TO, 2);
  put(f, SLOTS, slots);
  f->length = slots ? data_of(slots) + (UINT64_C(1) << shift) : GROUPS;
}

/* Snapshots one and two, a slot of each epoch in unit 0, the head's in unit 1. */
static void plain(unsigned shift)
{
  uint64_t unit = UINT64_C(1) << shift;

  in = (struct input){ .files = 1 };
  image(a, shift, 3 * unit, 8);
  record(a, 0, 1, 0, 1, "one");
  record(a, 1, 2, 1, 1, "two");
  slot(a, 1, 0, 1, 0, 0xff);
  slot(a, 2, 0, 2, 1, 0x0f);
  slot(a, 3, 0, 3, 2, 0x03);
  slot(a, 4, 1, 3, 0, 0x01);
  put(a, MAP, 8, 3 << 8);
  put(a, MAP + 8, 8, 4 << 8);
}

/* The same over image b at its head. */
static void over(void)
{
  plain(16);
  in.files = 2;
  image(b, 16, 0x40000, 2);
  record(b, 0, 1, 0, 1, "one");
  record(b, 1, 2, 1, 1, "two");
  slot(b, 1, 0, 3, 0, 0xffff);
  put(b, MAP, 8, 1 << 8);
  base(a, 1, "b");
  put(a, 264, 8, input_get(b, 40, 8));
  put(a, 296, 8, 1);
  put(a, 304, 8, 99);
}

static void set(uint64_t offset, unsigned width, uint64_t value) { put(a, offset, width, value); }
static void size(uint64_t v) { set(SIZE, v); }

static void put_op(unsigned code, unsigned op_a, unsigned op_b)
{
  in.op[in.ops++] = (struct input_op){ (uint8_t)code, (uint8_t)op_a, (uint16_t)op_b };
}

#define CRAFT(name, attacks, ...) static void make_##name(void) __VA_ARGS__
#define FOUND(name, attacks)
#include "crafted.h"
#undef CRAFT
#undef FOUND

#define CRAFT(name, attacks, ...) { #name, make_##name, attacks },
#define FOUND(name, attacks) { #name, NULL, attacks },
static const struct {
  const char *name;
  void (*make)(void);
  const char *attacks;
} table[] = {
#include "crafted.h"
};

/* Everything that is done to an image, reading first. */
static void put_ops(void)
{
  put_op(OP_INFO, 0, 0);
  put_op(OP_READ, 8, 5);
  put_op(OP_SNAPSHOT, 0, 4);
  put_op(OP_CHECK, 0, 0);
  put_op(OP_DIFF, 0, 1);
  put_op(OP_DIFF, 1, 0);
  put_op(OP_DIFF, 0, 15);
  put_op(OP_CONVERT, 15, 0);
  put_op(OP_CONVERT, 0, 0);
  put_op(OP_MAP_READ, 15, 0);
  put_op(OP_EXTENTS, 128, 3);
  put_op(OP_WRITE, 0, 1);
  put_op(OP_WRITE, 1, 2);
  put_op(OP_DISCARD, 0x82, 1);
  put_op(OP_CREATE, 0, 7);
  put_op(OP_WRITE, 0, 0x4001);
  put_op(OP_DELETE, 0, 1);
  put_op(OP_REVERT, 0, 0);
  put_op(OP_RESIZE, 1, 40);
  put_op(OP_RESIZE, 3, 2);
  put_op(OP_REOPEN, 0, 0);
  put_op(OP_REPAIR, 1, 0);
  put_op(OP_FLATTEN, 128, 0);
  put_op(OP_DELETE, 128, 0);
  put_op(OP_MAP, 128, 0);
  put_op(OP_STORE, 0, 2);
  put_op(OP_LOAD, 0, 1);
}

int main(int argc, char **argv)
{
  static uint8_t packed[INPUT_BYTES * 2];
  char path[512];
  FILE *readme;

  CHECK(argc > 1, "usage: fuzz-craft DIRECTORY");
  snprintf(path, sizeof(path), "%s/README", argv[1]);
  readme = fopen(path, "w");
  CHECK(readme, "cannot write %s", path);
  fputs("Hostile images, packed (tests/fuzz/input.h; fuzz-pack unpacks them), each with what it attacks.\n"
        "fuzz-craft makes those of the first list, and this file; those of the second were found by the\n"
        "fuzzer, and are named in crafted.h. test-corpus runs all of them.\n\n", readme);
  for (unsigned i = 0; i < COUNT(table); i++) {
    if (table[i].make) {
      size_t n;
      FILE *f;

      table[i].make();
      if (!in.ops)
        put_ops();
      n = input_serialize(&in, packed, sizeof(packed));
      snprintf(path, sizeof(path), "%s/%s", argv[1], table[i].name);
      f = fopen(path, "wb");
      CHECK(n && f && fwrite(packed, 1, n, f) == n && fclose(f) == 0, "cannot write %s", path);
    } else if (i && table[i - 1].make) {
      fputs("\n", readme);
    }
    fprintf(readme, "%s: %s\n", table[i].name, table[i].attacks);
  }
  CHECK(fclose(readme) == 0, "cannot write the README");
  return 0;
}
