/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See input.h. It knows the format from docs/format.md: positions are literals here, not the library's.
 */
#include "input.h"

#include "crc32c.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 256u
#define COPY_1 0x100000u
#define LOG_START 0x200000u
#define LOG_END 0x20200000u
#define GROUPS 0x40000000u
#define GROUP_SLOTS 65536u

const char *const input_names[INPUT_FILES] = { "a", "b", "c" };

/* ---- Bytes ---- */

static uint64_t load(const uint8_t *at, unsigned width)
{
  uint64_t v = 0;

  for (unsigned i = 0; i < width; i++)
    v |= (uint64_t)at[i] << (8 * i);
  return v;
}

static void store(uint8_t *at, unsigned width, uint64_t v)
{
  for (unsigned i = 0; i < width; i++)
    at[i] = (uint8_t)(v >> (8 * i));
}

struct reader {
  const uint8_t *at;
  size_t left;
};

static uint64_t take(struct reader *r, unsigned width)
{
  uint8_t bytes[8] = { 0 };
  size_t n = r->left < width ? r->left : width;

  memcpy(bytes, r->at, n);
  r->at += n;
  r->left -= n;
  return load(bytes, width);
}

static void take_file(struct input *in, struct input_file *f, struct reader *r)
{
  unsigned chunks;

  f->flags = (unsigned)take(r, 1) & (FILE_OWN_COPY | FILE_PLAIN);
  f->length = take(r, 8) % (INPUT_END + 1);
  f->chunks = 0;
  chunks = (unsigned)take(r, 1);
  while (chunks-- && r->left) {
    uint64_t offset = take(r, 8);
    unsigned length = (unsigned)take(r, 2);

    if (length > r->left)
      length = (unsigned)r->left;
    if (!input_add(in, f, offset, r->at, length))
      break;
    r->at += length;
    r->left -= length;
  }
}

void input_parse(struct input *in, const uint8_t *data, size_t size)
{
  struct reader r = { data, size };
  unsigned ops, files;

  in->used = 0;
  in->flags = (unsigned)take(&r, 1) & 7;
  ops = (unsigned)take(&r, 1) % (INPUT_OPS + 1);
  for (in->ops = 0; in->ops < ops && r.left; in->ops++) {
    struct input_op *op = &in->op[in->ops];

    op->code = (uint8_t)take(&r, 1);
    op->a = (uint8_t)take(&r, 1);
    op->b = (uint16_t)take(&r, 2);
  }
  files = (unsigned)take(&r, 1) % (INPUT_FILES + 1);
  for (in->files = 0; in->files < files && r.left; in->files++)
    take_file(in, &in->file[in->files], &r);
}

size_t input_serialize(const struct input *in, uint8_t *data, size_t size)
{
  size_t need = 3 + 4 * (size_t)in->ops;
  uint8_t *at = data;

  for (unsigned i = 0; i < in->files; i++) {
    need += 10;
    for (unsigned c = 0; c < in->file[i].chunks; c++)
      need += 10 + in->file[i].chunk[c].length;
  }
  if (need > size)
    return 0;
  *at++ = (uint8_t)in->flags;
  *at++ = (uint8_t)in->ops;
  for (unsigned i = 0; i < in->ops; i++, at += 4) {
    at[0] = in->op[i].code;
    at[1] = in->op[i].a;
    store(at + 2, 2, in->op[i].b);
  }
  *at++ = (uint8_t)in->files;
  for (unsigned i = 0; i < in->files; i++) {
    const struct input_file *f = &in->file[i];

    *at++ = (uint8_t)f->flags;
    store(at, 8, f->length);
    at[8] = (uint8_t)f->chunks;
    at += 9;
    for (unsigned c = 0; c < f->chunks; c++) {
      store(at, 8, f->chunk[c].offset);
      store(at + 8, 2, f->chunk[c].length);
      memcpy(at + 10, f->chunk[c].bytes, f->chunk[c].length);
      at += 10 + f->chunk[c].length;
    }
  }
  return (size_t)(at - data);
}

struct chunk *input_add(struct input *in, struct input_file *f, uint64_t offset, const void *bytes,
                        unsigned length)
{
  struct chunk *c = &f->chunk[f->chunks];

  if (f->chunks == INPUT_CHUNKS || length > sizeof(in->bytes) - in->used || length > 0xffff)
    return NULL;
  *c = (struct chunk){ offset, length, in->bytes + in->used };
  memcpy(c->bytes, bytes, length);
  in->used += length;
  f->chunks++;
  return c;
}

uint64_t input_get(const struct input_file *f, uint64_t offset, unsigned width)
{
  uint8_t bytes[8] = { 0 };

  for (unsigned i = 0; i < f->chunks; i++) {
    const struct chunk *c = &f->chunk[i];

    for (unsigned b = 0; b < width; b++)
      if (offset + b - c->offset < c->length)
        bytes[b] = c->bytes[offset + b - c->offset];
  }
  return load(bytes, width);
}

bool input_put(struct input *in, struct input_file *f, uint64_t offset, unsigned width, uint64_t value)
{
  uint8_t bytes[8];

  for (unsigned i = f->chunks; i-- > 0;) {
    struct chunk *c = &f->chunk[i];

    if (offset - c->offset < c->length && width <= c->length - (offset - c->offset)) {
      store(c->bytes + (offset - c->offset), width, value);
      return true;
    }
  }
  store(bytes, width, value);
  return input_add(in, f, offset, bytes, width);
}

/* ---- Pages ---- */

struct page {
  uint64_t number;
  uint8_t bytes[PAGE];
};

static struct page pages[PAGES];
static unsigned page_count;

static struct page *page_find(uint64_t number)
{
  for (unsigned i = page_count; i-- > 0;)
    if (pages[i].number == number)
      return &pages[i];
  return NULL;
}

static struct page *page_get(uint64_t number)
{
  struct page *p = page_find(number);

  if (p || page_count == PAGES)
    return p;
  p = &pages[page_count++];
  p->number = number;
  memset(p->bytes, 0, PAGE);
  return p;
}

static void apply_chunk(const struct chunk *c)
{
  uint64_t offset = c->offset;
  const uint8_t *from = c->bytes;

  for (unsigned left = c->length; left && offset < INPUT_END;) {
    unsigned within = (unsigned)(offset % PAGE);
    unsigned n = left < PAGE - within ? left : PAGE - within;
    struct page *p = page_get(offset / PAGE);

    if (p)
      memcpy(p->bytes + within, from, n);
    offset += n;
    from += n;
    left -= n;
  }
}

static bool any(const uint8_t *bytes, unsigned length)
{
  while (length && !bytes[length - 1])
    length--;
  return length;
}

static void fix_superblock(struct page *p)
{
  if (p)
    store(p->bytes + 4092, 4, crc32c(p->bytes, 4092));
}

static void fix_records(struct page *p)
{
  for (uint8_t *r = p->bytes; r < p->bytes + PAGE; r += 512)
    if (any(r, 508))
      store(r + 508, 4, crc32c(r, 508));
}

static uint32_t header_crc(const uint8_t *header, uint64_t index)
{
  uint8_t identity[32] = { 0 };

  memcpy(identity, header, 4);
  memcpy(identity + 8, header + 8, 12);
  store(identity + 24, 8, index);
  return crc32c(identity, sizeof(identity));
}

/* The index of the slot whose header begins at OFFSET, 0: there are no headers there. */
static uint64_t header_index(unsigned unit_shift, uint64_t offset)
{
  uint64_t unit, pages_a_unit, bitmap, align, data, group, within;

  if (unit_shift < 16 || unit_shift > 36 || offset < GROUPS)
    return 0;
  unit = UINT64_C(1) << unit_shift;
  pages_a_unit = unit / PAGE;
  bitmap = pages_a_unit <= 64 ? 8 : pages_a_unit / 8;
  align = unit < 0x200000 ? unit : 0x200000;
  data = (GROUP_SLOTS * UINT64_C(64) + GROUP_SLOTS * bitmap + align - 1) / align * align;
  group = data + GROUP_SLOTS * unit;
  within = (offset - GROUPS) % group;
  return within < GROUP_SLOTS * 64 ? (offset - GROUPS) / group * GROUP_SLOTS + within / 64 + 1 : 0;
}

static void fix_headers(struct page *p, unsigned unit_shift)
{
  for (unsigned i = 0; i < PAGE; i += 64) {
    uint64_t index = header_index(unit_shift, p->number * PAGE + i);

    if (index && any(p->bytes + i, 32))
      store(p->bytes + i + 20, 4, header_crc(p->bytes + i, index));
  }
}

static void fix(const struct input *in, const struct input_file *f)
{
  struct page *first = page_find(0);
  struct page *second = page_find(COPY_1 / PAGE);
  unsigned shift = first ? first->bytes[12] : second ? second->bytes[12] : 0;

  if (f->flags & FILE_PLAIN)
    return;
  if (!(in->flags & INPUT_RAW_SUPERBLOCKS)) {
    fix_superblock(first);
    fix_superblock(second);
  }
  if (!(f->flags & FILE_OWN_COPY) && first) {
    second = page_get(COPY_1 / PAGE);
    if (second)
      memcpy(second->bytes, first->bytes, PAGE);
  }
  for (unsigned i = 0; i < page_count; i++) {
    uint64_t offset = pages[i].number * PAGE;

    if (!(in->flags & INPUT_RAW_RECORDS) && offset >= LOG_START && offset < LOG_END)
      fix_records(&pages[i]);
    if (!(in->flags & INPUT_RAW_HEADERS))
      fix_headers(&pages[i], shift);
  }
}

static int write_pages(const struct input_file *f, int fd)
{
  for (unsigned i = 0; i < page_count; i++) {
    uint64_t offset = pages[i].number * PAGE;
    size_t n = offset >= f->length ? 0 : f->length - offset < PAGE ? (size_t)(f->length - offset) : PAGE;

    if (n && pwrite(fd, pages[i].bytes, n, (off_t)offset) != (ssize_t)n)
      return errno ? -errno : -EIO;
  }
  return 0;
}

int input_write_file(const struct input *in, const struct input_file *f, int fd)
{
  page_count = 0;
  for (unsigned i = 0; i < f->chunks; i++)
    apply_chunk(&f->chunk[i]);
  fix(in, f);
  if (ftruncate(fd, 0) || ftruncate(fd, (off_t)f->length))
    return -errno;
  return write_pages(f, fd);
}

/* ---- From a file ---- */

/* Where bytes that are not zero lie in PAGE from AT on, less than 16 zeros apart. */
static bool next_part(const uint8_t *page, unsigned *at, unsigned *end)
{
  unsigned zeros = 0;

  while (*at < PAGE && !page[*at])
    ++*at;
  *end = *at;
  for (unsigned i = *at; i < PAGE && zeros < 16; i++) {
    zeros = page[i] ? 0 : zeros + 1;
    if (page[i])
      *end = i + 1;
  }
  return *at < PAGE;
}

static int read_page(struct input *in, struct input_file *f, int fd, uint64_t offset, uint64_t data_from,
                     unsigned shift, unsigned keep)
{
  uint8_t page[PAGE] = { 0 };
  unsigned at = 0, end;

  if (pread(fd, page, PAGE, (off_t)offset) < 0)
    return -errno;
  if (offset == 0 || offset == COPY_1)
    memset(page + 4092, 0, 4);
  for (unsigned r = 0; r < PAGE && offset >= LOG_START && offset < LOG_END; r += 512)
    memset(page + r + 508, 0, 4);
  for (unsigned h = 0; h < PAGE; h += 64)
    if (header_index(shift, offset + h))
      memset(page + h + 20, 0, 4);
  if (offset >= data_from && keep < PAGE)
    memset(page + keep, 0, PAGE - keep);
  for (; next_part(page, &at, &end); at = end)
    if (!input_add(in, f, offset + at, page + at, end - at))
      return -E2BIG;
  return 0;
}

int input_read_file(struct input *in, int fd, unsigned keep)
{
  struct input_file *f = &in->file[in->files];
  uint8_t copies[2][PAGE] = { 0 };
  uint64_t bitmap, data = 0;            /* where the first group's data begins; a plain file is all data */
  unsigned shift;
  struct stat st;

  if (in->files == INPUT_FILES || fstat(fd, &st))
    return -E2BIG;
  if (pread(fd, copies[0], PAGE, 0) < 0 || pread(fd, copies[1], PAGE, COPY_1) < 0)
    return -errno;
  *f = (struct input_file){ .length = (uint64_t)st.st_size };
  f->flags = memcmp(copies[0], "PCOW", 4) ? FILE_PLAIN : 0;
  if (memcmp(copies[0], copies[1], PAGE))
    f->flags |= FILE_OWN_COPY;
  shift = f->flags & FILE_PLAIN ? 0 : copies[0][12];
  bitmap = shift >= 16 && shift <= 36 ? (UINT64_C(1) << shift) / PAGE / 8 : 0;
  if (shift)
    data = GROUPS + 0x400000 + GROUP_SLOTS * (bitmap < 8 ? 8 : bitmap);

  for (off_t at = 0; (at = lseek(fd, at, SEEK_DATA)) >= 0;) {
    off_t hole = lseek(fd, at, SEEK_HOLE);

    for (at = at / PAGE * PAGE; at < hole; at += PAGE) {
      int ret;

      if (at == COPY_1 && !(f->flags & (FILE_OWN_COPY | FILE_PLAIN)))
        continue;
      ret = read_page(in, f, fd, (uint64_t)at, data, shift, keep);
      if (ret)
        return ret;
    }
  }
  in->files++;
  return 0;
}
