/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resize, extents and diff, against content kept in memory. Every image is checked at the end.
 */
#include "content.h"
#include "store.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t units[] = { 64 * KIB, 2 * MIB };

/* An overlay of SIZE bytes over KIND: 0 nothing, 1 a pcow image, 2 a raw file, both half as large. */
static struct content make_overlay(const char *path, uint64_t size, uint64_t unit, int kind, struct rng *rng)
{
  struct content c = content_new(size), base;
  char *base_path = test_path("base-of-%s", strrchr(path, '/') + 1);
  pcow_image *image;

  if (kind == 1) {
    base = content_new(size / 2);
    test_create(base_path, base.size, 0, NULL, PCOW_FORMAT_NONE, NULL);
    image = test_open(base_path, PCOW_OPEN_RDWR, NULL);
    content_write(image, &base, rng, 0, base.size);
    OK(pcow_close(image));
  } else if (kind == 2) {
    base = content_raw_file(base_path, size / 2, rng);
  }
  test_create(path, size, unit, kind ? base_path : NULL, (uint32_t)kind, NULL);
  if (kind) {
    memcpy(c.bytes, base.bytes, base.size);
    content_free(&base);
  }
  return c;
}

/* ---- Resize -------------------------------------------------------------------------------- */

static void resize(pcow_image *image, struct content *c, uint64_t size)
{
  OK(pcow_resize(image, size, PCOW_RESIZE_SHRINK));
  content_resize(c, (size + PAGE - 1) & ~(PAGE - 1));
}

START_TEST(test_resize)
{
  uint64_t unit = units[_i % 2];
  int kind = _i / 2;
  char *path = test_path("resize%d", _i);
  struct rng rng = { (uint64_t)_i + 1 };
  struct content head = make_overlay(path, 3 * MIB, unit, kind, &rng), full, small, grown;
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

  content_scatter(image, &head, &rng, 100);
  content_snapshot(image, "full", &head, &full);
  content_scatter(image, &head, &rng, 100);

  GIVES(-EINVAL, pcow_resize(image, 1 * MIB, 0));
  GIVES(-EINVAL, pcow_resize(image, 0, PCOW_RESIZE_SHRINK));
  GIVES(-EINVAL, pcow_resize(image, MIB, 8));
  GIVES(-EFBIG, pcow_resize(image, (unit << 24) + 1, 0));
  GIVES(-EFBIG, pcow_resize(image, UINT64_MAX, 0));
  OK(pcow_resize(image, head.size, 0));
  content_compare(image, &head, "refused resizes");

  resize(image, &head, MIB + 40 * KIB - 3);
  content_compare(image, &head, "shrunk");
  resize(image, &head, 2 * MIB);
  content_compare(image, &head, "shrunk and grown");
  resize(image, &head, 70 * KIB);
  content_snapshot(image, "small", &head, &small);
  resize(image, &head, 5 * MIB);
  content_compare(image, &head, "grown");
  content_compare_view(path, "full", &full, "before the shrink");
  content_compare_view(path, "small", &small, "small");
  content_scatter(image, &head, &rng, 100);
  content_snapshot(image, "grown", &head, &grown);

  OK(pcow_close(image));
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_compare(image, &head, "opened again");
  resize(image, &head, 4 * KIB);
  resize(image, &head, 3 * MIB);
  content_compare(image, &head, "shrunk to a page and grown");

  OK(pcow_snapshot_revert(image, "small"));
  content_free(&head);
  head = content_copy(&small);
  resize(image, &head, 3 * MIB);
  content_compare(image, &head, "reverted and grown");
  content_scatter(image, &head, &rng, 50);
  OK(pcow_snapshot_delete(image, "small"));
  content_compare(image, &head, "after a deletion");
  content_compare_view(path, "grown", &grown, "grown, after a deletion");
  OK(pcow_snapshot_delete(image, "grown"));
  OK(pcow_snapshot_delete(image, "full"));
  content_compare(image, &head, "after all deletions");
  resize(image, &head, 4 * MIB);
  content_compare(image, &head, "grown at the end");
  OK(pcow_close(image));
  test_check_clean(path);
  content_compare_view(path, NULL, &head, "opened at the end");

  content_free(&head);
  content_free(&full);
  content_free(&small);
  content_free(&grown);
}
END_TEST

/* A crash after the commit of a shrink and before the punching: growth must not show old data. */
START_TEST(test_resize_crash)
{
  char *path = test_path("crash");
  struct rng rng = { 7 };
  struct content head = make_overlay(path, MIB, 64 * KIB, 0, &rng);
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);
  struct pcow_check_result result = PCOW_INIT(result);
  struct superblock next;
  struct store *store;

  content_write(image, &head, &rng, 0, head.size);
  OK(pcow_close(image));
  ck_assert_int_eq(store_open((int)SYS(open(path, O_RDWR)), path, &store), 0);
  next = store_begin(store);
  next.virtual_size = next.head_floor = 100 * KIB;
  ck_assert_int_eq(store_end(store, &next, true), 0);
  store_close(store);

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_resize(&head, 100 * KIB);
  resize(image, &head, 900 * KIB);
  content_compare(image, &head, "grown after a crash");
  OK(pcow_close(image));
  /* The unit beyond the new end was not punched by the shrink. */
  OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
  ck_assert_uint_eq(result.leaks, 1);
  ck_assert_uint_eq(result.repaired, 1);
  test_check_clean(path);
  content_free(&head);
}
END_TEST

START_TEST(test_resize_space)
{
  char *path = test_path("space");
  struct rng rng = { 8 };
  struct content head = make_overlay(path, 4 * MIB, 2 * MIB, 0, &rng);
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);
  uint64_t before;

  content_write(image, &head, &rng, 0, head.size);
  OK(pcow_sync(image));
  before = test_blocks(path);
  resize(image, &head, MIB);
  CHECK(before - test_blocks(path) >= 3 * MIB, "a shrink by 3 MiB gave back %llu bytes",
        (unsigned long long)(before - test_blocks(path)));
  OK(pcow_close(image));
  test_check_clean(path);
  content_free(&head);
}
END_TEST

/* ---- Extents ------------------------------------------------------------------------------- */

struct extents_walk {
  uint64_t at;
  const struct content *content;
  const char *paths[3];         /* by depth */
  bool merged;
  uint32_t last;
  unsigned count;
};

static int check_extent(void *opaque, const struct pcow_extent *e)
{
  struct extents_walk *w = opaque;
  unsigned char *bytes = test_alloc(e->length);
  int fd;

  CHECK(e->offset == w->at && e->length, "extent at %llu, should be at %llu",
        (unsigned long long)e->offset, (unsigned long long)w->at);
  if (w->merged) {
    CHECK(!e->path && !e->depth && e->type <= PCOW_EXTENT_DATA, "a merged extent tells too much");
    CHECK(w->count == 0 || w->last != e->type, "neighbours of one type were not merged");
  } else if (e->type != PCOW_EXTENT_ZERO) {
    CHECK(e->depth < 3 && w->paths[e->depth] && strcmp(e->path, w->paths[e->depth]) == 0,
          "extent of depth %u in %s", e->depth, e->path);
  } else {
    CHECK(!e->path, "a zero extent names %s", e->path);
  }
  if (e->type == PCOW_EXTENT_DATA && !w->merged) {
    fd = (int)SYS(open(e->path, O_RDONLY));
    CHECK(pread(fd, bytes, e->length, (off_t)e->file_offset) >= 0, "cannot read %s", e->path);
    SYS(close(fd));
  }
  if (e->type != PCOW_EXTENT_DATA || !w->merged)
    CHECK(memcmp(bytes, w->content->bytes + e->offset, e->length) == 0,
          "extent of type %u, depth %u at %llu + %llu has other bytes", e->type, e->depth,
          (unsigned long long)e->offset, (unsigned long long)e->length);
  free(bytes);
  w->at += e->length;
  w->last = e->type;
  w->count++;
  return 0;
}

static void check_extents(pcow_image *image, const struct content *c, const char *const *paths,
                          uint64_t offset, uint64_t length)
{
  for (unsigned merged = 0; merged < 2; merged++) {
    struct extents_walk w = { .at = offset, .content = c, .merged = merged };

    memcpy(w.paths, paths, sizeof w.paths);
    OK(pcow_extents(image, offset, length, merged ? PCOW_EXTENTS_MERGE : 0, check_extent, &w));
    CHECK(w.at == offset + length, "the extents end at %llu", (unsigned long long)w.at);
  }
}

static int stop_walk(void *opaque, const struct pcow_extent *e)
{
  (void)e;
  return ++*(int *)opaque == 2 ? 42 : 0;
}

START_TEST(test_extents)
{
  char *raw = test_path("e-raw-%d", _i), *middle = test_path("e-middle-%d", _i), *top = test_path("e-top-%d", _i);
  const char *paths[3] = { top, middle, raw };
  struct rng rng = { 21 + (uint64_t)_i };
  struct content c = content_raw_file(raw, MIB - 100, &rng);
  pcow_image *image;
  int calls = 0;

  test_create(middle, 2 * MIB, units[_i], raw, PCOW_FORMAT_RAW, NULL);
  content_resize(&c, 2 * MIB);
  image = test_open(middle, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &c, &rng, 40);
  OK(pcow_close(image));
  test_create(top, 3 * MIB, units[_i], middle, PCOW_FORMAT_PCOW, NULL);
  content_resize(&c, 3 * MIB);
  image = test_open(top, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &c, &rng, 20);
  check_extents(image, &c, paths, 0, c.size); /* not settled */
  OK(pcow_snapshot_create(image, "one"));
  content_scatter(image, &c, &rng, 20);
  OK(pcow_sync(image));
  check_extents(image, &c, paths, 0, c.size);
  check_extents(image, &c, paths, 12345, MIB + 777);
  check_extents(image, &c, paths, 5000, 0);
  GIVES(-EINVAL, pcow_extents(image, c.size, 1, 0, stop_walk, &calls));
  GIVES(-EINVAL, pcow_extents(image, 0, 1, 4, stop_walk, &calls));
  ck_assert_int_eq(calls, 0);
  ck_assert_int_eq(pcow_extents(image, 0, c.size, 0, stop_walk, &calls), 42);
  OK(pcow_close(image));

  image = test_open(top, 0, NULL);
  check_extents(image, &c, paths, 0, c.size);
  OK(pcow_close(image));
  image = test_open(top, PCOW_OPEN_INFO, NULL);
  GIVES(-EBADF, pcow_extents(image, 0, c.size, 0, stop_walk, &calls));
  OK(pcow_close(image));
  content_free(&c);
}
END_TEST

/* ---- Diff ---------------------------------------------------------------------------------- */

struct diff_walk {
  unsigned char *marked;        /* a byte a page: 1 + type */
  uint64_t end;
  uint32_t last;
};

static int mark_extent(void *opaque, const struct pcow_extent *e)
{
  struct diff_walk *w = opaque;

  CHECK(e->offset >= w->end && e->length && e->offset % PAGE == 0 && e->length % PAGE == 0,
        "extent at %llu after one that ended at %llu", (unsigned long long)e->offset,
        (unsigned long long)w->end);
  CHECK(e->offset != w->end || e->type != w->last || w->end == 0, "neighbours were not merged");
  CHECK(e->type == PCOW_EXTENT_DATA || e->type == PCOW_EXTENT_ZERO, "type %u", e->type);
  memset(w->marked + e->offset / PAGE, 1 + (int)e->type, e->length / PAGE);
  w->end = e->offset + e->length;
  w->last = e->type;
  return 0;
}

static void check_diff(pcow_image *image, const char *from, const struct content *a, const char *to,
                       const struct content *b)
{
  static const unsigned char zeros[4096];
  uint64_t size = a->size > b->size ? a->size : b->size;
  struct diff_walk w = { .marked = test_alloc(size / PAGE) };

  OK(pcow_diff(image, from, to, mark_extent, &w));
  for (uint64_t at = 0; at < size; at += PAGE) {
    bool beyond = at >= a->size || at >= b->size;
    bool differs = beyond || memcmp(a->bytes + at, b->bytes + at, PAGE) != 0;
    unsigned mark = w.marked[at / PAGE];

    CHECK(differs == (mark != 0), "%s to %s: page %llu %s", from, to ? to : "the head",
          (unsigned long long)(at / PAGE), differs ? "differs and is not told" : "is the same and is told");
    if (mark == 1 + PCOW_EXTENT_ZERO && at < b->size)
      CHECK(memcmp(b->bytes + at, zeros, PAGE) == 0, "page %llu is not zero", (unsigned long long)(at / PAGE));
  }
  free(w.marked);
}

START_TEST(test_diff)
{
  uint64_t unit = units[_i % 2];
  char *path = test_path("diff%d", _i);
  struct rng rng = { 31 + (uint64_t)_i };
  struct content head = make_overlay(path, 3 * MIB, unit, _i / 2, &rng), views[6];
  const char *names[6] = { "a", "b", "c", "d", "e", NULL };
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);
  struct content short_head;

  content_scatter(image, &head, &rng, 30);
  content_snapshot(image, "a", &head, &views[0]);
  content_scatter(image, &head, &rng, 5);
  content_snapshot(image, "b", &head, &views[1]);
  resize(image, &head, MIB + 12 * KIB); /* also of the base, less is seen from here on */
  resize(image, &head, 4 * MIB);
  content_scatter(image, &head, &rng, 10);
  content_snapshot(image, "c", &head, &views[2]);
  OK(pcow_snapshot_revert(image, "a"));
  content_free(&head);
  head = content_copy(&views[0]);
  content_scatter(image, &head, &rng, 10);
  content_snapshot(image, "d", &head, &views[3]);
  content_snapshot(image, "e", &head, &views[4]);
  content_scatter(image, &head, &rng, 10);
  views[5] = head;
  for (unsigned i = 0; i < 5; i++)
    for (unsigned j = 0; j < 6; j++)
      check_diff(image, names[i], &views[i], names[j], &views[j]);
  GIVES(-ENOENT, pcow_diff(image, "none", NULL, mark_extent, NULL));
  GIVES(-ENOENT, pcow_diff(image, "a", "none", mark_extent, NULL));
  GIVES(-EINVAL, pcow_diff(image, NULL, "a", mark_extent, NULL));
  OK(pcow_snapshot_delete(image, "b"));
  check_diff(image, "a", &views[0], "c", &views[2]);
  check_diff(image, "c", &views[2], NULL, &views[5]);
  OK(pcow_close(image));
  test_check_clean(path);

  image = test_open(path, 0, NULL);
  check_diff(image, "c", &views[2], NULL, &views[5]);
  OK(pcow_close(image));
  image = test_open(path, 0, "d");
  check_diff(image, "d", &views[3], "c", &views[2]);
  check_diff(image, "c", &views[2], "d", &views[3]);
  check_diff(image, "a", &views[0], NULL, &views[5]);
  OK(pcow_close(image));

  /* The head smaller than a snapshot. */
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  short_head = content_copy(&head);
  resize(image, &short_head, MIB + PAGE);
  check_diff(image, "e", &views[4], NULL, &short_head);
  OK(pcow_close(image));
  content_free(&short_head);
  for (unsigned i = 0; i < 6; i++)
    content_free(&views[i]);
}
END_TEST

int main(int argc, char **argv)
{
  Suite *suite = suite_create("ops");
  TCase *tests = tcase_create("all");
  SRunner *runner = srunner_create(suite);
  int failed;

  test_dir(argc, argv);
  tcase_add_loop_test(tests, test_resize, 0, 6);
  tcase_add_test(tests, test_resize_crash);
  tcase_add_test(tests, test_resize_space);
  tcase_add_loop_test(tests, test_extents, 0, 2);
  tcase_add_loop_test(tests, test_diff, 0, 6);
  suite_add_tcase(suite, tests);
  srunner_run_all(runner, CK_ENV);
  failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? 1 : 0;
}
