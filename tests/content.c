/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See content.h.
 */
#include "content.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct content content_new(uint64_t size)
{
  return (struct content){ test_alloc(size), size };
}

struct content content_copy(const struct content *c)
{
  struct content copy = content_new(c->size);

  memcpy(copy.bytes, c->bytes, c->size);
  return copy;
}

void content_free(struct content *c)
{
  free(c->bytes);
  c->bytes = NULL;
}

void content_resize(struct content *c, uint64_t size)
{
  struct content other = content_new(size);

  memcpy(other.bytes, c->bytes, size < c->size ? size : c->size);
  content_free(c);
  *c = other;
}

void content_write(pcow_image *image, struct content *c, struct rng *rng, uint64_t offset, uint64_t length)
{
  rng_fill(rng, c->bytes + offset, length);
  OK(pcow_pwrite(image, c->bytes + offset, length, offset));
}

void content_discard(pcow_image *image, struct content *c, uint64_t offset, uint64_t length)
{
  memset(c->bytes + offset, 0, length);
  OK(pcow_discard(image, offset, length));
}

void content_scatter(pcow_image *image, struct content *c, struct rng *rng, unsigned count)
{
  for (unsigned i = 0; i < count; i++) {
    bool whole = rng_chance(rng, 70);
    uint64_t grain = whole ? PAGE : 1;
    uint64_t offset = rng_below(rng, c->size / grain) * grain;
    uint64_t length = (1 + rng_below(rng, whole ? 8 : 3 * PAGE)) * grain;

    if (length > c->size - offset)
      length = c->size - offset;
    if (rng_chance(rng, 20))
      content_discard(image, c, offset, length);
    else
      content_write(image, c, rng, offset, length);
  }
}

void content_compare(pcow_image *image, const struct content *c, const char *label)
{
  struct pcow_info info = PCOW_INIT(info);
  unsigned char *bytes = test_alloc(c->size);

  OK(pcow_get_info(image, &info));
  CHECK(info.virtual_size == c->size, "%s: size is %llu, should be %llu", label,
        (unsigned long long)info.virtual_size, (unsigned long long)c->size);
  OK(pcow_pread(image, bytes, c->size, 0));
  for (uint64_t page = 0; page < c->size / PAGE; page++)
    if (memcmp(bytes + page * PAGE, c->bytes + page * PAGE, PAGE) != 0) {
      uint64_t at = page * PAGE;

      while (bytes[at] == c->bytes[at])
        at++;
      FAIL("%s: page %llu differs at byte %llu (0x%02x, should be 0x%02x)", label,
           (unsigned long long)page, (unsigned long long)at, bytes[at], c->bytes[at]);
    }
  free(bytes);
}

void content_compare_view(const char *path, const char *snapshot, const struct content *c, const char *label)
{
  pcow_image *image = test_open(path, 0, snapshot);

  content_compare(image, c, label);
  OK(pcow_close(image));
}

struct content content_raw_file(const char *path, uint64_t size, struct rng *rng)
{
  struct content c = content_new((size + PAGE - 1) & ~(PAGE - 1));
  int fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));

  rng_fill(rng, c.bytes, size);
  SYS(pwrite(fd, c.bytes, size, 0));
  SYS(close(fd));
  return c;
}

void content_snapshot(pcow_image *image, const char *name, const struct content *head, struct content *copy)
{
  OK(pcow_snapshot_create(image, name));
  *copy = content_copy(head);
}
