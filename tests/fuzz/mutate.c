/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See mutate.h. It knows the format from docs/format.md.
 */
#include "mutate.h"

#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof(*(a)))
#define COPY_1 0x100000u
#define LOG 0x200000u
#define LOG_RECORDS (UINT64_C(1) << 20)
#define MAP UINT64_C(0x30000000)
#define GROUPS UINT64_C(0x40000000)

struct field {
  uint16_t offset;
  uint8_t width;
};

static const struct field superblock_fields[] = {
  { 0, 8 }, { 8, 4 }, { 12, 4 }, { 16, 8 }, { 24, 8 }, { 32, 8 }, { 40, 8 }, { 48, 8 }, { 56, 8 },
  { 64, 8 }, { 72, 8 }, { 80, 8 }, { 88, 8 }, { 96, 4 }, { 100, 4 }, { 104, 4 }, { 108, 4 }, { 112, 8 },
  { 120, 8 }, { 128, 8 }, { 136, 8 }, { 4088, 4 },
  /* those that structure hangs on, once more */
  { 80, 8 }, { 88, 8 }, { 96, 4 }, { 100, 4 }, { 104, 4 }, { 112, 8 }, { 120, 8 }, { 128, 8 },
};

static const struct field base_fields[] = {
  { 256, 4 }, { 260, 4 }, { 264, 8 }, { 272, 8 }, { 280, 8 }, { 288, 8 }, { 296, 8 }, { 304, 8 }, { 312, 8 },
  { 320, 8 }, { 328, 8 }, { 336, 8 }, { 344, 4 }, { 348, 4 }, { 352, 8 }, { 360, 8 }, { 1368, 8 },
};

static const struct field record_fields[] = {
  { 0, 4 }, { 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 8 }, { 24, 8 }, { 32, 8 }, { 40, 4 }, { 44, 4 }, { 48, 8 },
  { 56, 8 }, { 64, 8 }, { 72, 8 }, { 320, 8 }, { 504, 4 },
  { 4, 4 }, { 8, 4 }, { 12, 4 }, { 48, 8 }, { 56, 8 },
};

static const struct field header_fields[] = {
  { 0, 4 }, { 8, 8 }, { 16, 4 }, { 20, 4 }, { 24, 8 }, { 8, 8 }, { 16, 4 }, { 24, 8 }, { 24, 8 },
};

/* ---- Choices ---- */

static uint64_t state;

static uint64_t random64(void)
{
  uint64_t x = state += UINT64_C(0x9e3779b97f4a7c15);

  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

static unsigned below(unsigned n)
{
  return (unsigned)(random64() % n);
}

static const struct field *pick(const struct field *fields, size_t count)
{
  return &fields[below((unsigned)count)];
}

static unsigned unit_shift(const struct input_file *f)
{
  uint64_t shift = input_get(f, 12, 4);

  return shift < 16 ? 16 : shift > 36 ? 36 : (unsigned)shift;
}

static uint64_t header_offset(const struct input_file *f, uint64_t index)
{
  unsigned shift = unit_shift(f);
  uint64_t unit = UINT64_C(1) << shift;
  uint64_t bitmap = unit / 4096 <= 64 ? 8 : unit / 32768;
  uint64_t align = unit < 0x200000 ? unit : 0x200000;
  uint64_t data = (0x400000 + 65536 * bitmap + align - 1) / align * align;

  return GROUPS + (index - 1) / 65536 * (data + 65536 * unit) + (index - 1) % 65536 * 64;
}

static uint64_t bitmap_offset(const struct input_file *f, uint64_t index)
{
  uint64_t pages = UINT64_C(1) << (unit_shift(f) - 12);

  return header_offset(f, index) - (index - 1) % 65536 * 64 + 0x400000 +
         (index - 1) % 65536 * (pages <= 64 ? 8 : pages / 8);
}

static uint64_t file_size(const struct input_file *f, uint64_t slots)
{
  uint64_t unit = UINT64_C(1) << unit_shift(f);
  uint64_t align = unit < 0x200000 ? unit : 0x200000;
  uint64_t bitmap = unit / 4096 <= 64 ? 8 : unit / 32768;

  if (!slots)
    return GROUPS;
  return header_offset(f, (slots - 1) / 65536 * 65536 + 1) + (0x400000 + 65536 * bitmap + align - 1) / align * align +
         ((slots - 1) % 65536 + 1) * unit;
}

/* A field somewhere, of WIDTH or less. */
static uint64_t existing(const struct input *in)
{
  const struct input_file *f = &in->file[below(in->files)];
  const struct chunk *c;
  unsigned at;

  if (!f->chunks)
    return 0;
  c = &f->chunk[below(f->chunks)];
  if (c->length < 4)
    return 0;
  at = below(c->length) & ~3u;
  return input_get(f, c->offset + at, below(2) ? 4 : 8);
}

static uint64_t value(const struct input *in, const struct input_file *f, uint64_t old)
{
  static const uint64_t known[] = {
    0, 1, 2, 3, 4, 5, 7, 8, 16, 36, 37, 63, 64, 255, 256, 511, 512, 1023, 1024, 4095, 4096, 65535, 65536, 65537,
    0x100000, 0xfffff, 0x1000000, 0xffffff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x100000000,
    UINT64_C(1) << 36, UINT64_C(1) << 40, UINT64_C(1) << 46, UINT64_C(1) << 47, (UINT64_C(1) << 48) - 1,
    UINT64_C(1) << 56, UINT64_C(1) << 60, UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 1,
    (UINT64_C(1) << 60) - 4096, UINT64_MAX - 4095, INT64_MAX,
  };
  uint64_t v;

  switch (below(12)) {
  case 0:
    return old + 1;
  case 1:
    return old - 1;
  case 2:
    return old ^ UINT64_C(1) << below(64);
  case 3:
    return old + 4096 * (below(2) ? 1 + below(16) : UINT64_MAX);
  case 4:
    return old << 1;
  case 5:
    return (uint64_t)below(8) << 8;             /* a slot reference */
  case 6:
    return (input_get(f, 128, 8) + below(3) - 1) << 8;
  case 7:
    return existing(in);
  case 8:
    return 1 + below(8);
  case 9:
    v = UINT64_C(1) << below(64);
    return below(2) ? v : v - 1;
  case 10:
    return random64();
  default:
    return known[below(COUNT(known))];
  }
}

/* ---- Changes ---- */

static void change_field(struct input *in, struct input_file *f, uint64_t at, const struct field *fields,
                         size_t count)
{
  const struct field *field = pick(fields, count);
  uint64_t old = input_get(f, at + field->offset, field->width);

  input_put(in, f, at + field->offset, field->width, value(in, f, old));
}

static uint64_t some_slot(const struct input_file *f)
{
  uint64_t slots = input_get(f, 128, 8);

  if (below(4) && slots)
    return 1 + below(slots < 8 ? (unsigned)slots : 8);
  return below(16) && slots ? 1 + random64() % slots : 1 + below(70000);
}

static uint64_t some_unit(const struct input_file *f)
{
  uint64_t units = (input_get(f, 80, 8) >> unit_shift(f)) + 1;

  return below(4) ? below(4) : below(4) ? random64() % (units & 0xffffff ? units & 0xffffff : 1)
                                        : random64() & 0xffffff;
}

static void change_base(struct input *in, struct input_file *f)
{
  static const char *const names[] = { "a", "b", "c", "guard", "./b", "../a", "/a", "b/", "nothing", "." };
  const char *name = names[below(COUNT(names))];

  if (below(3)) {
    change_field(in, f, 0, base_fields, COUNT(base_fields));
    return;
  }
  input_put(in, f, 348, 4, strlen(name));
  input_put(in, f, 352, 8, 0);
  for (size_t i = 0; name[i]; i++)
    input_put(in, f, 352 + i, 1, (uint8_t)name[i]);
  if (below(2))
    input_put(in, f, 256, 4, 1 + below(2));
}

/* A whole record, header or map word that fits to the others. */
static void add_record(struct input *in, struct input_file *f)
{
  uint64_t number = input_get(f, 120, 8);
  uint64_t at = LOG + number % LOG_RECORDS * 512;
  uint64_t next = input_get(f, 104, 4);

  input_put(in, f, at, 4, 0x48435045);
  input_put(in, f, at + 4, 4, below(3) ? next : 1 + below(8));
  input_put(in, f, at + 8, 4, below(3) ? input_get(f, 100, 4) : below(8));
  input_put(in, f, at + 12, 4, 1 + below(3));
  input_put(in, f, at + 44, 4, 1);
  input_put(in, f, at + 48, 8, input_get(f, 80, 8));
  input_put(in, f, at + 56, 8, below(2) ? input_get(f, 80, 8) : 4096 * below(64));
  input_put(in, f, at + 64, 1, 'a' + below(26));
  input_put(in, f, at + 320, 8, number);
  input_put(in, f, 120, 8, number + 1);
  if (below(3))
    input_put(in, f, 104, 4, next + 1);
  if (below(2))
    input_put(in, f, 100, 4, input_get(f, at + 4, 4));
}

static void add_slot(struct input *in, struct input_file *f)
{
  uint64_t slot = some_slot(f), unit = some_unit(f), at = header_offset(f, slot);
  uint64_t word = MAP + unit * 8;

  if (slot > input_get(f, 128, 8)) {
    input_put(in, f, 128, 8, slot + below(3));
    f->length = file_size(f, slot + 2);
  }
  input_put(in, f, at, 4, 0x544f4c53);
  input_put(in, f, at + 8, 8, unit);
  input_put(in, f, at + 16, 4, below(2) ? input_get(f, 96, 4) : 1 + below(6));
  input_put(in, f, at + 24, 8, input_get(f, word, 8));
  input_put(in, f, word, 8, slot << 8);
  input_put(in, f, bitmap_offset(f, slot) + 8 * below(2), 8, below(2) ? UINT64_MAX : random64());
}

static void change_length(struct input *in, struct input_file *f)
{
  uint64_t v;

  switch (below(6)) {
  case 0:
    v = file_size(f, input_get(f, 128, 8));
    break;
  case 1:
    v = f->chunks ? f->chunk[below(f->chunks)].offset + below(5000) : 0;
    break;
  case 2:
    v = f->length + below(3) - 1;
    break;
  case 3:
    v = UINT64_C(1) << below(63);
    break;
  case 4:
    v = UINT64_C(1) << 62;
    break;
  default:
    v = value(in, f, f->length);
    break;
  }
  f->length = v % (INPUT_END + 1);
}

static void change_chunks(struct input *in, struct input_file *f)
{
  struct chunk *c = f->chunks ? &f->chunk[below(f->chunks)] : NULL;
  uint8_t bytes[64];

  switch (below(4)) {
  case 0:
    if (c)
      *c = f->chunk[--f->chunks];
    break;
  case 1:
    if (c && c->length)
      c->bytes[below(c->length)] ^= (uint8_t)(1u << below(8));
    break;
  case 2:
    if (c)
      input_add(in, f, f->chunk[below(f->chunks)].offset + 64 * below(8), c->bytes, c->length);
    break;
  default:
    memset(bytes, below(2) ? 0xff : (int)below(256), sizeof(bytes));
    input_add(in, f, bitmap_offset(f, some_slot(f)), bytes, 8 + below(56));
    break;
  }
}

static void change_file(struct input *in, struct input_file *f)
{
  uint64_t start = input_get(f, 112, 8), count = input_get(f, 120, 8) - start;

  switch (below(16)) {
  case 0: case 1: case 2: case 3:
    change_field(in, f, (f->flags & FILE_OWN_COPY) && below(2) ? COPY_1 : 0, superblock_fields,
                 COUNT(superblock_fields));
    break;
  case 4:
    change_base(in, f);
    break;
  case 5: case 6: case 7:
    start += count && count < LOG_RECORDS ? random64() % count : 0;
    change_field(in, f, LOG + start % LOG_RECORDS * 512, record_fields, COUNT(record_fields));
    break;
  case 8:
    input_put(in, f, MAP + some_unit(f) * 8, 8, value(in, f, input_get(f, MAP, 8)));
    break;
  case 9: case 10:
    change_field(in, f, header_offset(f, some_slot(f)), header_fields, COUNT(header_fields));
    break;
  case 11:
    input_put(in, f, bitmap_offset(f, some_slot(f)) + 8 * below(8), 8, value(in, f, 0));
    break;
  case 12:
    change_length(in, f);
    break;
  case 13:
    add_record(in, f);
    break;
  case 14:
    add_slot(in, f);
    break;
  default:
    change_chunks(in, f);
    break;
  }
  if (below(200) == 0)
    f->flags ^= 1u << below(2);
}

static void change_ops(struct input *in, unsigned first, unsigned codes)
{
  struct input_op op = { (uint8_t)(first + below(codes - first)), (uint8_t)random64(), (uint16_t)random64() };
  unsigned at = in->ops ? below(in->ops) : 0;

  if (below(2))
    op.b %= 64;
  if (below(8) == 0)
    op.code = (uint8_t)below(codes);
  switch (below(4)) {
  case 0:
    if (in->ops > 1)
      in->op[at] = in->op[--in->ops];
    break;
  case 1:
    if (in->ops)
      in->op[at] = op;
    break;
  case 2:
    if (in->ops < INPUT_OPS) {
      memmove(&in->op[at + 1], &in->op[at], (in->ops - at) * sizeof(op));
      in->op[at] = op;
      in->ops++;
    }
    break;
  default:
    if (in->ops < INPUT_OPS)
      in->op[in->ops++] = op;
    break;
  }
}

static void copy_file(struct input *in, struct input_file *to, const struct input_file *from)
{
  *to = (struct input_file){ .flags = from->flags, .length = from->length };
  for (unsigned i = 0; i < from->chunks; i++)
    input_add(in, to, from->chunk[i].offset, from->chunk[i].bytes, from->chunk[i].length);
}

void mutate(struct input *in, unsigned seed, unsigned first, unsigned codes)
{
  state = seed;
  for (unsigned n = 1 + below(below(3) ? 2 : 6); n; n--) {
    if (!in->ops || below(4) == 0)
      change_ops(in, first, codes);
    else if (in->files)
      change_file(in, &in->file[below(4) ? 0 : below(in->files)]);
  }
  if (below(100) == 0)
    in->flags ^= 1u << below(3);
  else if (below(20) == 0)
    in->flags = 0;
  if (below(200) == 0 && in->files && in->files < INPUT_FILES)
    copy_file(in, &in->file[in->files++], &in->file[0]);
}

void mutate_cross(struct input *in, const struct input *other, unsigned seed)
{
  state = seed;
  if (!in->files || !other->files)
    return;
  switch (below(4)) {
  case 0:
    memcpy(in->op, other->op, sizeof(in->op));
    in->ops = other->ops;
    break;
  case 1:
    if (in->files < INPUT_FILES)
      copy_file(in, &in->file[in->files++], &other->file[below(other->files)]);
    break;
  case 2:
    copy_file(in, &in->file[below(in->files)], &other->file[below(other->files)]);
    break;
  default:
    for (unsigned n = below(other->file[0].chunks + 1), i = 0; i < n; i++) {
      const struct chunk *c = &other->file[0].chunk[below(other->file[0].chunks)];

      input_add(in, &in->file[0], c->offset, c->bytes, c->length);
    }
    break;
  }
}
