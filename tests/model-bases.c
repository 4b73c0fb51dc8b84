/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the image of a session can be layered on: a chain of raw files, images at their head and images
 * at snapshots, with sizes and units of their own, and some files beside it that hold the same content
 * as the chain, or another.
 */
#include "model-world.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *bases_spelling(struct world *w, const char *path)
{
  return rng_chance(&w->rng, 50) ? path : strrchr(path, '/') + 1;
}

const struct model *bases_content(const struct world *w, int base)
{
  static struct model none;

  return base < 0 ? &none : w->bases[base].content;
}

static int base_add(struct world *w, int file, const char *snapshot, struct model *content)
{
  struct base *b = &w->bases[w->base_count];

  CHECK(w->base_count < BASES_MAX, "too many bases");
  memset(b, 0, sizeof *b);
  b->file = file;
  snprintf(b->snapshot, sizeof b->snapshot, "%s", snapshot);
  b->content = content;
  return (int)w->base_count++;
}

static int file_add(struct world *w, uint32_t format, int over)
{
  struct file *f = &w->files[w->file_count];

  CHECK(w->file_count < FILES_MAX, "too many files");
  f->path = test_path("s%u-base%u.%s", w->session, w->file_count,
                      format == PCOW_FORMAT_RAW ? "raw" : "pcow");
  f->format = format;
  f->over = over;
  return (int)w->file_count++;
}

void bases_patch(struct world *w, pcow_image *image, struct model *c)
{
  unsigned count = 1 + (unsigned)rng_below(&w->rng, 12);
  uint64_t max = c->size / 6 < 512 * KIB ? c->size / 6 + 1 : 512 * KIB;
  unsigned char *buffer = test_alloc(max);

  while (count--) {
    uint64_t offset, length;

    world_range(w, c->size, max, &offset, &length);
    if (rng_chance(&w->rng, 15)) {
      model_zero(c, length, offset);
      if (image)
        OK(pcow_discard(image, offset, length));
    } else {
      rng_fill(&w->rng, buffer, length);
      model_write(c, buffer, length, offset);
      if (image)
        OK(pcow_pwrite(image, buffer, length, offset));
    }
  }
  free(buffer);
}

/* A raw file with this content; its length may end within the last page, which is zeros from there. */
static int raw_build(struct world *w, struct model *c)
{
  int file = file_add(w, PCOW_FORMAT_RAW, -1);
  int fd = (int)SYS(open(w->files[file].path, O_RDWR | O_CREAT | O_EXCL, 0600));
  uint64_t size = c->size;

  if (rng_chance(&w->rng, 30)) {
    size -= rng_below(&w->rng, PAGE);
    model_zero(c, c->size - size, size);
  }
  SYS(ftruncate(fd, (off_t)size));
  for (uint64_t page = 0; page < c->size / PAGE; page++) {
    uint64_t count = size - page * PAGE < PAGE ? size - page * PAGE : PAGE;

    if (!model_is_zero(c, page))
      SYS(pwrite(fd, model_bytes(c, page), count, (off_t)(page * PAGE)));
  }
  SYS(fsync(fd));
  SYS(close(fd));
  return base_add(w, file, "", c);
}

static uint64_t unit_draw(struct world *w)
{
  static const uint64_t units[] = { 64 * KIB, 2 * MIB, 128 * MIB, 0 };

  return units[rng_below(&w->rng, 4)];
}

/* An image over the base OVER, at its head or with snapshots; gives one of its bases. */
static int pcow_build(struct world *w, int over, uint64_t size)
{
  struct model *c = model_copy(bases_content(w, over));
  int file = file_add(w, PCOW_FORMAT_PCOW, over), first = -1;
  unsigned snapshots = (unsigned)rng_below(&w->rng, 3);
  pcow_image *image;

  model_resize(c, size);
  test_create(w->files[file].path, size, unit_draw(w),
              over < 0 ? NULL : bases_spelling(w, w->files[w->bases[over].file].path),
              over < 0 ? PCOW_FORMAT_NONE : w->files[w->bases[over].file].format,
              over < 0 || !w->bases[over].snapshot[0] ? NULL : w->bases[over].snapshot);
  image = test_open(w->files[file].path, PCOW_OPEN_RDWR, NULL);
  bases_patch(w, image, c);
  for (unsigned i = 0; i < snapshots; i++) {
    char name[48];
    int added;

    snprintf(name, sizeof name, "base %u", i);
    OK(pcow_snapshot_create(image, name));
    added = base_add(w, file, name, model_copy(c));
    if (first < 0)
      first = added;
    if (rng_chance(&w->rng, 30)) {
      uint64_t now = (1 + rng_below(&w->rng, w->size_max / PAGE)) * PAGE;

      OK(pcow_resize(image, now, PCOW_RESIZE_SHRINK));
      model_resize(c, now);
    }
    bases_patch(w, image, c);
  }
  OK(pcow_close(image));
  if (first < 0)
    first = (int)w->base_count;
  return first + (int)rng_below(&w->rng, (uint64_t)(base_add(w, file, "", c) - first + 1));
}

static uint64_t size_near(struct world *w, uint64_t size)
{
  uint64_t pages = size / PAGE;

  if (rng_chance(&w->rng, 60))
    return size;
  pages = pages / 2 + rng_below(&w->rng, pages + 1);
  return (pages ? pages : 1) * PAGE;
}

void bases_build(struct world *w, uint64_t size)
{
  int below = -1;

  for (unsigned layer = 1; layer < w->layers; layer++) {
    if (layer == 1 && rng_chance(&w->rng, 35)) {
      struct model *c = model_new(size_near(w, size));

      bases_patch(w, NULL, c);
      below = raw_build(w, c);
    } else {
      below = pcow_build(w, below, size_near(w, size));
    }
  }
  w->base = below;

  /* Somewhere else to go: the same content in one raw file and in one image, and other content. */
  if (below >= 0) {
    struct model *c = model_copy(bases_content(w, below));
    int file;
    pcow_image *image;

    raw_build(w, model_copy(c));
    file = file_add(w, PCOW_FORMAT_PCOW, -1);
    test_create(w->files[file].path, c->size, unit_draw(w), NULL, PCOW_FORMAT_NONE, NULL);
    image = test_open(w->files[file].path, PCOW_OPEN_RDWR, NULL);
    for (uint64_t page = 0; page < c->size / PAGE; page++)
      if (!model_is_zero(c, page))
        OK(pcow_pwrite(image, model_bytes(c, page), PAGE, page * PAGE));
    OK(pcow_close(image));
    base_add(w, file, "", c);
  }
  pcow_build(w, -1, size_near(w, size));
  if (rng_chance(&w->rng, 50)) {
    struct model *c = model_new(size_near(w, size));

    bases_patch(w, NULL, c);
    raw_build(w, c);
  }
}

static bool file_depends(const struct world *w, int file, int base)
{
  while (w->files[file].over >= 0) {
    if (w->files[file].over == base)
      return true;
    file = w->bases[w->files[file].over].file;
  }
  return false;
}

void bases_changed(struct world *w, int base, bool differs)
{
  for (unsigned i = 0; i < w->base_count; i++)
    if (file_depends(w, w->bases[i].file, base)) {
      w->bases[i].stale = true;
      if (!differs)
        w->bases[i].dead = true;
    }
}

void bases_compare(struct world *w)
{
  for (unsigned i = 0; i < w->base_count; i++) {
    struct base *b = &w->bases[i];
    struct file *f = &w->files[b->file];
    struct pcow_open_options options = PCOW_INIT(options);
    const char *snapshot = b->snapshot[0] ? b->snapshot : NULL;
    char name[128];
    pcow_image *image;

    if (b->dead)
      continue;
    snprintf(name, sizeof name, "base %u (%s@%s)", i, strrchr(f->path, '/') + 1, b->snapshot);
    if (f->format == PCOW_FORMAT_RAW) {
      int fd = (int)SYS(open(f->path, O_RDONLY));
      unsigned char *bytes = test_alloc(b->content->size);
      uint64_t wrong;

      SYS(pread(fd, bytes, b->content->size, 0));
      SYS(close(fd));
      wrong = model_differs(b->content, bytes, b->content->size, 0);
      CHECK(wrong == UINT64_MAX, "%s was changed at 0x%" PRIx64, name, wrong);
      free(bytes);
      continue;
    }
    test_check_clean(f->path);
    options.flags = PCOW_OPEN_BASES;
    options.snapshot = snapshot;
    if (b->stale) {
      GIVES(-ESTALE, pcow_open(f->path, &options, &image));
      continue;
    }
    image = test_open(f->path, 0, snapshot);
    view_compare(w, name, image, b->content);
    OK(pcow_close(image));
  }
}
