/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rebase, safe and unsafe, and commit into the base, against content kept in memory. What a view reads
 * as must not depend on how far an operation came: cancelled and cut short is tried, too.
 */
#include "content.h"
#include "image.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A pcow image of SIZE bytes; COUNT scattered writes, or all of it when 0. */
static struct content make_image(const char *path, uint64_t size, uint64_t unit, unsigned count, struct rng *rng)
{
  struct content c = content_new(size);
  pcow_image *image;

  test_create(path, size, unit, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  if (count)
    content_scatter(image, &c, rng, count);
  else
    content_write(image, &c, rng, 0, size);
  OK(pcow_close(image));
  return c;
}

static int rebase(pcow_image *image, const char *base, uint32_t format, const char *snapshot, uint32_t flags,
                  pcow_progress_fn progress, void *opaque)
{
  struct pcow_rebase_options options = PCOW_INIT(options);

  options.flags = flags;
  options.base = base;
  options.base_format = format;
  options.base_snapshot = snapshot;
  options.progress = progress;
  options.opaque = opaque;
  return pcow_rebase(image, &options);
}

/* ---- Safe rebase --------------------------------------------------------------------------- */

#define VIEWS 6 /* five snapshots on two branches, and the head */
static const char *const names[VIEWS] = { "s1", "s2", "s3", "s4", "s5", NULL };

/* Two branches at s1: s2, s3 and s4, s5, head; with a shrink on one of them, and with SHRINK on the
 * other, too, after its last snapshot. */
static void make_tree(const char *path, uint64_t unit, const char *base, const struct content *base_content,
                      struct rng *rng, bool shrink, struct content *views)
{
  struct content head = content_copy(base_content);
  pcow_image *image;

  test_create(path, 3 * MIB, unit, base, PCOW_FORMAT_PCOW, NULL);
  content_resize(&head, 3 * MIB);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, rng, 8);
  OK(pcow_resize(image, 2 * MIB + 100 * KIB, PCOW_RESIZE_SHRINK));
  content_resize(&head, 2 * MIB + 100 * KIB);
  OK(pcow_resize(image, 3 * MIB, 0));
  content_resize(&head, 3 * MIB);
  content_snapshot(image, "s1", &head, &views[0]);
  content_scatter(image, &head, rng, 8);
  content_snapshot(image, "s2", &head, &views[1]);
  OK(pcow_resize(image, MIB, PCOW_RESIZE_SHRINK));
  content_resize(&head, MIB);
  OK(pcow_resize(image, 2 * MIB, 0));
  content_resize(&head, 2 * MIB);
  content_scatter(image, &head, rng, 8);
  content_snapshot(image, "s3", &head, &views[2]);
  OK(pcow_snapshot_revert(image, "s1"));
  content_free(&head);
  head = content_copy(&views[0]);
  content_scatter(image, &head, rng, 8);
  content_snapshot(image, "s4", &head, &views[3]);
  content_scatter(image, &head, rng, 8);
  content_snapshot(image, "s5", &head, &views[4]);
  if (shrink) {
    OK(pcow_resize(image, MIB / 2, PCOW_RESIZE_SHRINK));
    content_resize(&head, MIB / 2);
  }
  OK(pcow_resize(image, 4 * MIB, 0));
  content_resize(&head, 4 * MIB);
  content_scatter(image, &head, rng, 8);
  OK(pcow_close(image));
  views[5] = head;
}

static void compare_views(const char *path, const struct content *views, const char *label)
{
  for (unsigned i = 0; i < VIEWS; i++) {
    char text[100];

    if (!views[i].bytes)
      continue;
    snprintf(text, sizeof text, "%s of %s", names[i] ? names[i] : "head", label);
    content_compare_view(path, names[i], &views[i], text);
  }
}

static void check_rebase(const char *path, const struct content *views, const char *base, uint32_t format,
                         const char *snapshot, const char *label)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL), *reader = test_open(path, 0, "s5");
  struct pcow_info info = PCOW_INIT(info);

  OK(rebase(image, base, format, snapshot, 0, NULL, NULL));
  content_compare(image, &views[5], label);
  content_compare(reader, &views[4], label);
  OK(pcow_close(reader));
  OK(pcow_get_info(image, &info));
  CHECK(info.base_format == format && !info.base == !base && (!base || strcmp(info.base, base) == 0),
        "%s: the base is %s", label, info.base);
  OK(pcow_close(image));
  compare_views(path, views, label);
  test_check_clean(path);
}

static int cancel_at(void *opaque, uint64_t done, uint64_t total)
{
  int *left = opaque;

  CHECK(done <= total, "progress of %llu in %llu", (unsigned long long)done, (unsigned long long)total);
  return --*left < 0;
}

START_TEST(test_rebase)
{
  uint64_t unit = _i % 2 ? 2 * MIB : 64 * KIB;
  char *one = test_path("rebase-one%d", _i), *two = test_path("rebase-two%d", _i);
  char *raw = test_path("rebase-raw%d", _i), *path = test_path("rebase%d", _i);
  struct rng rng = { 51 + (uint64_t)_i };
  struct content a = make_image(one, 2 * MIB, 64 * KIB, 60, &rng), views[VIEWS];
  struct content b = make_image(two, 3 * MIB, 2 * MIB, 60, &rng);
  struct content c = content_raw_file(raw, 2 * MIB + 5 * PAGE - 7, &rng);
  pcow_image *image;

  make_tree(path, unit, one, &a, &rng, _i % 2, views);
  compare_views(path, views, "the start");

  /* The root of the tree may be living, deleted with two heirs, or gone. */
  if (_i / 2) {
    image = test_open(path, PCOW_OPEN_RDWR, NULL);
    OK(pcow_snapshot_delete(image, "s1"));
    content_free(&views[0]);
    if (_i / 2 == 2) {
      OK(pcow_snapshot_delete(image, "s2"));
      OK(pcow_snapshot_delete(image, "s3"));
      content_free(&views[1]);
      content_free(&views[2]);
    }
    OK(pcow_close(image));
    compare_views(path, views, "deletions");
  }

  for (int stop = 0; stop < 3; stop++) {
    int left = stop;

    image = test_open(path, PCOW_OPEN_RDWR, NULL);
    GIVES(-ECANCELED, rebase(image, two, PCOW_FORMAT_PCOW, NULL, 0, cancel_at, &left));
    content_compare(image, &views[5], "cancelled");
    OK(pcow_close(image));
    compare_views(path, views, "cancelled");
    test_check_clean(path);
  }
  check_rebase(path, views, two, PCOW_FORMAT_PCOW, NULL, "the other base");
  check_rebase(path, views, raw, PCOW_FORMAT_RAW, NULL, "the raw base");
  image = test_open(one, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "frozen"));
  content_scatter(image, &a, &rng, 20);
  OK(pcow_close(image));
  check_rebase(path, views, one, PCOW_FORMAT_PCOW, "frozen", "a snapshot");
  check_rebase(path, views, strrchr(one, '/') + 1, PCOW_FORMAT_PCOW, NULL, "a relative path");
  check_rebase(path, views, NULL, PCOW_FORMAT_NONE, NULL, "no base");
  SYS(unlink(one));
  check_rebase(path, views, two, PCOW_FORMAT_PCOW, NULL, "a base again");
  check_rebase(path, views, NULL, PCOW_FORMAT_NONE, NULL, "no base again");
  compare_views(path, views, "the end");

  content_free(&a);
  content_free(&b);
  content_free(&c);
  for (unsigned i = 0; i < VIEWS; i++)
    content_free(&views[i]);
}
END_TEST

/* The root epoch is the head itself. */
START_TEST(test_rebase_head)
{
  char *one = test_path("rh-one"), *two = test_path("rh-two"), *path = test_path("rh");
  struct rng rng = { 61 };
  struct content a = make_image(one, 2 * MIB, 0, 0, &rng), b = make_image(two, 3 * MIB, 0, 0, &rng);
  struct content head = content_copy(&a);
  struct content snapshot;
  pcow_image *image;

  test_create(path, 3 * MIB, 64 * KIB, one, PCOW_FORMAT_PCOW, NULL);
  content_resize(&head, 3 * MIB);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, &rng, 20);
  OK(rebase(image, two, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  content_compare(image, &head, "rebased");
  content_scatter(image, &head, &rng, 20);
  content_snapshot(image, "s", &head, &snapshot);
  content_scatter(image, &head, &rng, 20);
  OK(rebase(image, NULL, PCOW_FORMAT_NONE, NULL, 0, NULL, NULL));
  content_compare(image, &head, "rebased to nothing");
  OK(pcow_close(image));
  content_compare_view(path, NULL, &head, "opened again");
  content_compare_view(path, "s", &snapshot, "snapshot");
  test_check_clean(path);
  content_free(&a);
  content_free(&b);
  content_free(&head);
  content_free(&snapshot);
}
END_TEST

/* What a crash left in a slot beside its pages must not become visible where the old base had zeros. */
START_TEST(test_rebase_garbage)
{
  char *one = test_path("rg-one"), *two = test_path("rg-two"), *path = test_path("rg");
  struct rng rng = { 64 };
  struct content a = content_new(64 * KIB), b = make_image(two, 64 * KIB, 0, 0, &rng);
  struct geometry g = geometry_make(16);
  unsigned char *garbage = test_alloc(15 * PAGE);
  uint64_t word;
  pcow_image *image;
  int fd;

  test_create(one, 64 * KIB, 0, NULL, PCOW_FORMAT_NONE, NULL);
  test_create(path, 0, 64 * KIB, one, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_write(image, &a, &rng, 0, PAGE);
  OK(pcow_snapshot_create(image, "s"));
  OK(pcow_close(image));
  fd = (int)SYS(open(path, O_RDWR));
  SYS(pread(fd, &word, 8, (off_t)geometry_map_word(0)));
  rng_fill(&rng, garbage, 15 * PAGE);
  SYS(pwrite(fd, garbage, 15 * PAGE, (off_t)(geometry_data(&g, SLOT_REF_INDEX(word)) + PAGE)));
  SYS(close(fd));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(rebase(image, two, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  content_compare(image, &a, "rebased");
  OK(pcow_close(image));
  content_compare_view(path, "s", &a, "snapshot");
  free(garbage);
  content_free(&a);
  content_free(&b);
}
END_TEST

/* What both bases have the same costs nothing. */
START_TEST(test_rebase_cost)
{
  char *one = test_path("rc-one"), *two = test_path("rc-two"), *path = test_path("rc");
  struct rng rng = { 62 };
  struct content a = make_image(one, 4 * MIB, 0, 0, &rng), b = content_copy(&a);
  pcow_image *image;
  uint64_t before;

  test_create(two, 0, 0, one, PCOW_FORMAT_PCOW, NULL);
  image = test_open(two, PCOW_OPEN_RDWR, NULL);
  content_write(image, &b, &rng, MIB, 10 * PAGE);
  OK(pcow_close(image));
  test_create(path, 0, 0, two, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  before = test_blocks(path);
  OK(rebase(image, one, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  CHECK(test_blocks(path) - before < 30 * PAGE, "10 pages took %llu bytes",
        (unsigned long long)(test_blocks(path) - before));
  content_compare(image, &b, "rebased");
  OK(pcow_close(image));
  test_check_clean(path);
  content_free(&a);
  content_free(&b);
}
END_TEST

START_TEST(test_rebase_refused)
{
  char *one = test_path("rr-one"), *two = test_path("rr-two"), *path = test_path("rr"), *above = test_path("rr-above");
  struct rng rng = { 63 };
  struct content a = make_image(one, MIB, 0, 0, &rng), b = make_image(two, MIB, 0, 0, &rng);
  struct pcow_rebase_options options = PCOW_INIT(options);
  pcow_image *image, *other;

  test_create(path, 0, 0, one, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "s"));
  OK(pcow_close(image));
  test_create(above, 0, 0, path, PCOW_FORMAT_PCOW, "s");

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  GIVES(-ELOOP, rebase(image, path, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  GIVES(-ELOOP, rebase(image, path, PCOW_FORMAT_PCOW, "s", PCOW_REBASE_UNSAFE, NULL, NULL));
  GIVES(-ELOOP, rebase(image, above, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  GIVES(-ENOENT, rebase(image, test_path("none"), PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  GIVES(-ENOENT, rebase(image, two, PCOW_FORMAT_PCOW, "none", 0, NULL, NULL));
  GIVES(-EINVAL, rebase(image, two, PCOW_FORMAT_NONE, NULL, 0, NULL, NULL));
  GIVES(-EINVAL, rebase(image, NULL, PCOW_FORMAT_RAW, NULL, 0, NULL, NULL));
  GIVES(-EINVAL, rebase(image, two, PCOW_FORMAT_RAW, "s", 0, NULL, NULL));
  options.flags = 64;
  GIVES(-EINVAL, pcow_rebase(image, &options));
  other = test_open(two, PCOW_OPEN_RDWR, NULL);
  GIVES(-EBUSY, rebase(image, two, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  OK(pcow_close(other));
  content_compare(image, &a, "refused");
  OK(pcow_close(image));
  image = test_open(path, 0, NULL);
  GIVES(-EBADF, rebase(image, two, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  OK(pcow_close(image));

  /* Unsafe: another content, also without the old base. */
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(rebase(image, two, PCOW_FORMAT_PCOW, NULL, PCOW_REBASE_UNSAFE, NULL, NULL));
  content_compare(image, &b, "unsafe");
  OK(pcow_close(image));
  SYS(unlink(two));
  image = test_open(path, PCOW_OPEN_RDWR | PCOW_OPEN_NO_BASE, NULL);
  GIVES(-EBADF, rebase(image, one, PCOW_FORMAT_PCOW, NULL, 0, NULL, NULL));
  OK(rebase(image, one, PCOW_FORMAT_PCOW, NULL, PCOW_REBASE_UNSAFE, NULL, NULL));
  GIVES(-EBADF, pcow_pread(image, &options, 1, 0));
  OK(pcow_close(image));
  content_compare_view(path, NULL, &a, "unsafe without the old base");
  test_check_clean(path);
  content_free(&a);
  content_free(&b);
}
END_TEST

/* ---- Commit -------------------------------------------------------------------------------- */

/* Bases: 0 pcow, 1 pcow over another, 2 raw. Sizes of the overlay against a base of 2 MiB (of a raw
 * file somewhat less): smaller, equal, larger. */
START_TEST(test_commit)
{
  int kind = _i % 3;
  uint64_t base_size = 2 * MIB, size = (uint64_t)(1 + _i / 3) * MIB + 36 * KIB, unit = _i % 2 ? 64 * KIB : 2 * MIB;
  char *lowest = test_path("commit-lowest%d", _i), *base = test_path("commit-base%d", _i), *path = test_path("commit%d", _i);
  uint32_t format = kind == 2 ? PCOW_FORMAT_RAW : PCOW_FORMAT_PCOW;
  struct rng rng = { 71 + (uint64_t)_i };
  struct content below, head, expected;
  struct stat st;
  pcow_image *image;

  if (kind == 0) {
    below = make_image(base, base_size, 0, 60, &rng);
  } else if (kind == 1) {
    below = make_image(lowest, base_size, 0, 0, &rng);
    test_create(base, 0, 64 * KIB, lowest, PCOW_FORMAT_PCOW, NULL);
  } else {
    base_size -= 1234;
    below = content_raw_file(base, base_size, &rng);
  }
  test_create(path, 0, unit, base, format, NULL);
  head = content_copy(&below);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, &rng, 20);
  /* Above the floor the base is hidden. */
  OK(pcow_resize(image, MIB - 20 * KIB, PCOW_RESIZE_SHRINK));
  content_resize(&head, MIB - 20 * KIB);
  OK(pcow_resize(image, size, 0));
  content_resize(&head, size);
  content_scatter(image, &head, &rng, 20);
  OK(pcow_snapshot_create(image, "s"));
  GIVES(-EBUSY, pcow_commit(image, NULL, NULL));
  content_scatter(image, &head, &rng, 20);
  OK(pcow_snapshot_delete(image, "s"));

  for (int stop = 0; stop < 2; stop++) {
    int left = stop;

    GIVES(-ECANCELED, pcow_commit(image, cancel_at, &left));
    content_compare(image, &head, "cancelled");
    OK(pcow_close(image));
    content_compare_view(path, NULL, &head, "cancelled and opened");
    image = test_open(path, PCOW_OPEN_RDWR, NULL);
  }
  OK(pcow_commit(image, NULL, NULL));
  content_compare(image, &head, "committed");
  OK(pcow_close(image));
  content_compare_view(path, NULL, &head, "committed and opened");
  test_check_clean(path);
  CHECK(test_blocks(path) < 200 * KIB, "the emptied overlay takes %llu bytes", (unsigned long long)test_blocks(path));

  /* The base has it, and what lies beyond the overlay's end is as it was. */
  expected = content_copy(&head);
  if (below.size > head.size) {
    content_resize(&expected, below.size);
    memcpy(expected.bytes + head.size, below.bytes + head.size, below.size - head.size);
  }
  if (kind == 2) {
    unsigned char *bytes = test_alloc(expected.size);
    int fd = (int)SYS(open(base, O_RDONLY));

    SYS(fstat(fd, &st));
    CHECK((uint64_t)st.st_size >= base_size && (uint64_t)st.st_size <= expected.size, "the raw base has %lld bytes",
          (long long)st.st_size);
    SYS(pread(fd, bytes, expected.size, 0));
    CHECK(memcmp(bytes, expected.bytes, expected.size) == 0, "the raw base has other bytes");
    SYS(close(fd));
    free(bytes);
  } else {
    content_compare_view(base, NULL, &expected, "the base");
    test_check_clean(base);
  }

  /* The overlay goes on, and a second commit works as the first. */
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, &rng, 20);
  OK(pcow_commit(image, NULL, NULL));
  content_compare(image, &head, "committed again");
  OK(pcow_snapshot_create(image, "later"));
  OK(pcow_close(image));
  content_compare_view(path, "later", &head, "a snapshot after the commit");
  test_check_clean(path);
  content_free(&below);
  content_free(&head);
  content_free(&expected);
}
END_TEST

struct hook {
  const char *path, *base;
  const struct content *head;
  int left;
};

/* In the middle of a commit: copies of both files are what a crash would leave. */
static int copy_files(void *opaque, uint64_t done, uint64_t total)
{
  struct hook *hook = opaque;
  char command[2000];

  (void)done;
  (void)total;
  if (--hook->left)
    return 0;
  snprintf(command, sizeof command, "cp --sparse=always -p %s %s.copy && cp --sparse=always -p %s %s.copy", hook->path,
           hook->path, hook->base, hook->base);
  CHECK(system(command) == 0, "%s", command);
  return 0;
}

START_TEST(test_commit_crash)
{
  bool raw = _i >= 2;
  char *base = test_path("cc-base%d", _i), *path = test_path("cc%d", _i);
  char *saved_base = test_path("cc-base%d.copy", _i), *saved = test_path("cc%d.copy", _i);
  struct rng rng = { 81 + (uint64_t)_i };
  struct content below = raw ? content_raw_file(base, MIB, &rng) : make_image(base, MIB, 0, 0, &rng);
  struct content head = content_copy(&below);
  struct hook hook = { path, base, &head, 1 + _i % 2 };
  struct pcow_open_options how = PCOW_INIT(how);
  pcow_image *image;

  test_create(path, 70 * MIB, 64 * KIB, base, raw ? PCOW_FORMAT_RAW : PCOW_FORMAT_PCOW, NULL);
  content_resize(&head, 70 * MIB);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, &rng, 300);
  OK(pcow_commit(image, copy_files, &hook));
  OK(pcow_close(image));
  SYS(rename(saved, path));
  SYS(rename(saved_base, base));
  content_compare_view(path, NULL, &head, "after a crash");

  /* Again, and a second crash. */
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  hook.left = 2;
  OK(pcow_commit(image, copy_files, &hook));
  OK(pcow_close(image));
  SYS(rename(saved, path));
  SYS(rename(saved_base, base));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_compare(image, &head, "after a second crash");
  OK(pcow_commit(image, NULL, NULL));
  content_compare(image, &head, "committed at last");
  OK(pcow_close(image));
  content_compare_view(path, NULL, &head, "committed at last and opened");
  test_check_clean(path);

  /* After all of that the base is again what it must be. */
  if (raw) {
    int fd = (int)SYS(open(base, O_RDWR));

    SYS(pwrite(fd, "x", 1, 0));
    SYS(futimens(fd, (struct timespec[2]){ { .tv_sec = 5 }, { .tv_sec = 5 } }));
    SYS(close(fd));
  } else {
    image = test_open(base, PCOW_OPEN_RDWR, NULL);
    OK(pcow_pwrite(image, "x", 1, 0));
    OK(pcow_close(image));
  }
  how.flags = PCOW_OPEN_BASES;
  GIVES(-ESTALE, pcow_open(path, &how, &image));
  content_free(&below);
  content_free(&head);
}
END_TEST

START_TEST(test_commit_refused)
{
  char *base = test_path("cr-base"), *path = test_path("cr"), *second = test_path("cr-second"), *none = test_path("cr-none");
  char *frozen = test_path("cr-frozen");
  struct rng rng = { 91 };
  struct content a = make_image(base, MIB, 0, 0, &rng), head = content_copy(&a);
  struct pcow_open_options how = PCOW_INIT(how);
  pcow_image *image, *other;

  test_create(none, MIB, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(none, PCOW_OPEN_RDWR, NULL);
  GIVES(-EINVAL, pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));
  test_create(path, 0, 0, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, 0, NULL);
  GIVES(-EBADF, pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));

  /* Another overlay reads the base. */
  test_create(second, 0, 0, base, PCOW_FORMAT_PCOW, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &head, &rng, 20);
  other = test_open(second, 0, NULL);
  GIVES(-EBUSY, pcow_commit(image, NULL, NULL));
  content_compare(image, &head, "refused");
  content_scatter(image, &head, &rng, 20);
  OK(pcow_close(image));
  OK(pcow_close(other));
  content_compare_view(path, NULL, &head, "refused and opened");
  content_compare_view(second, NULL, &a, "the other overlay");

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));
  content_compare_view(base, NULL, &head, "the base");
  how.flags = PCOW_OPEN_BASES;
  GIVES(-ESTALE, pcow_open(second, &how, &other));

  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_create(image, "s"));
  OK(pcow_close(image));
  test_create(frozen, 0, 0, base, PCOW_FORMAT_PCOW, "s");
  image = test_open(frozen, PCOW_OPEN_RDWR, NULL);
  GIVES(-EROFS, pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));
  content_free(&a);
  content_free(&head);
}
END_TEST

int main(int argc, char **argv)
{
  Suite *suite = suite_create("base");
  TCase *tests = tcase_create("all");
  SRunner *runner = srunner_create(suite);
  int failed;

  test_dir(argc, argv);
  tcase_add_loop_test(tests, test_rebase, 0, 6);
  tcase_add_test(tests, test_rebase_head);
  tcase_add_test(tests, test_rebase_garbage);
  tcase_add_test(tests, test_rebase_cost);
  tcase_add_test(tests, test_rebase_refused);
  tcase_add_loop_test(tests, test_commit, 0, 9);
  tcase_add_loop_test(tests, test_commit_crash, 0, 4);
  tcase_add_test(tests, test_commit_refused);
  suite_add_tcase(suite, tests);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}
