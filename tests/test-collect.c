/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Deleting snapshots anywhere in a tree, cut short at any change of the media, and cut short again in what the
 * next open does: no other view changes, and in the end nothing is left over. And with a reader of a
 * descendant in the way.
 *
 *     test-collect [--stride N] [--seed N] [--dir DIR]
 */
#include "content.h"
#include "cutshort.h"
#include "figures.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static struct rng rng;

/* ---- Cut short ---- */

#define VIEWS 8u

struct tree {
  const char *path;
  struct content head;
  struct { const char *name; struct content content; bool alive; } snapshots[VIEWS];
  unsigned count;
};

static void tree_snapshot(struct tree *t, pcow_image *image, const char *name)
{
  t->snapshots[t->count].name = name;
  t->snapshots[t->count].alive = true;
  content_snapshot(image, name, &t->head, &t->snapshots[t->count].content);
  t->count++;
}

/* root - a - b - c - d - head, and from b: e, f. Some of it was shrunk and grown again, so that floors hide
 * what lies beneath. */
static struct tree tree_new(const char *path, uint64_t unit)
{
  struct tree t = { .path = path, .head = content_new(MIB) };
  pcow_image *image;

  test_create(path, t.head.size, unit, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_write(image, &t.head, &rng, 0, t.head.size);
  tree_snapshot(&t, image, "root");
  content_scatter(image, &t.head, &rng, 8);
  tree_snapshot(&t, image, "a");
  content_scatter(image, &t.head, &rng, 40);
  tree_snapshot(&t, image, "b");
  content_scatter(image, &t.head, &rng, 10);
  tree_snapshot(&t, image, "e");
  content_scatter(image, &t.head, &rng, 10);
  tree_snapshot(&t, image, "f");
  OK(pcow_snapshot_revert(image, "b"));
  content_free(&t.head);
  t.head = content_copy(&t.snapshots[2].content);
  content_scatter(image, &t.head, &rng, 12);
  OK(pcow_resize(image, MIB * 2 / 3 / PAGE * PAGE, PCOW_RESIZE_SHRINK));
  content_resize(&t.head, MIB * 2 / 3 / PAGE * PAGE);
  content_scatter(image, &t.head, &rng, 4);
  OK(pcow_resize(image, MIB, 0));
  content_resize(&t.head, MIB);
  content_scatter(image, &t.head, &rng, 6);
  tree_snapshot(&t, image, "c");
  content_scatter(image, &t.head, &rng, 30);
  tree_snapshot(&t, image, "d");
  content_scatter(image, &t.head, &rng, 10);
  OK(pcow_close(image));
  return t;
}

static void tree_compare(const struct tree *t, const char *path, const char *doomed, const char *label)
{
  for (unsigned i = 0; i < t->count; i++)
    if (t->snapshots[i].alive && strcmp(t->snapshots[i].name, doomed))
      content_compare_view(path, t->snapshots[i].name, &t->snapshots[i].content, label);
}

static bool has_snapshot(pcow_image *image, const char *name)
{
  return epochs_find(image->epochs, name) != NULL;
}

static void copy_file(const char *from, const char *to)
{
  g_autofree char *command = g_strdup_printf("cp --sparse=always '%s' '%s'", from, to);

  CHECK(system(command) == 0, "%s failed", command);
}

/* A process deletes NAME and ends at its N-th change of the media. True: it came to the end. */
static bool cut_at(const char *path, const char *name, uint64_t n)
{
  pid_t child = fork();
  int status;

  CHECK(child >= 0, "cannot fork");
  if (child == 0) {
    pcow_image *image;

    cut_short_after(n);
    image = test_open(path, PCOW_OPEN_RDWR, NULL);
    if (has_snapshot(image, name))
      OK(pcow_snapshot_delete(image, name));
    OK(pcow_close(image));
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == CUT_SHORT || WEXITSTATUS(status) == 0), "the child ended with %d", status);
  return WEXITSTATUS(status) == 0;
}

/* Deletes NAME of the tree, cut short at one change after the other, each time going on from a copy. */
static uint64_t cut_deletion(struct tree *t, const char *name, unsigned stride)
{
  char *copy = test_path("cut.pcow");
  uint64_t n = 0, cuts = 0, living;
  pcow_image *image;
  bool done;

  do {
    struct pcow_check_result result = PCOW_INIT(result);

    copy_file(t->path, copy);
    done = cut_at(copy, name, n);
    /* As it was left, to those who only read; then a second cut, in what the next open does. */
    tree_compare(t, copy, name, "cut short");
    if (!done)
      cut_at(copy, name, rng_below(&rng, n + 1));
    tree_compare(t, copy, name, "cut short twice");
    OK(pcow_check(copy, 0, &result, NULL, NULL, NULL));
    CHECK(!result.corruptions, "%" PRIu64 " corruptions after cut %" PRIu64, result.corruptions, n);
    image = test_open(copy, PCOW_OPEN_RDWR, NULL);
    content_compare(image, &t->head, "the head, cut short");
    if (has_snapshot(image, name))
      OK(pcow_snapshot_delete(image, name));
    CHECK(!pending(image), "%u deletions are pending after '%s' was deleted", pending(image), name);
    content_compare(image, &t->head, "the head, collected");
    OK(pcow_close(image));
    tree_compare(t, copy, name, "collected");
    n += 1 + rng_below(&rng, stride);
    cuts++;
  } while (!done);

  image = test_open(t->path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_snapshot_delete(image, name));
  living = 1;
  for (unsigned i = 0; i < t->count; i++) {
    t->snapshots[i].alive &= strcmp(t->snapshots[i].name, name) != 0;
    living += t->snapshots[i].alive;
  }
  /* One more where a deleted epoch branches. */
  CHECK(slots_a_unit(image) <= 2 * living - 1 && slots_a_unit(image) <= living + 1,
        "a unit has %" PRIu64 " slots with %" PRIu64 " living epochs", slots_a_unit(image), living);
  OK(pcow_close(image));
  SYS(unlink(copy));
  return cuts;
}

/* Oldest, middle, newest, the one that branches, its branches. */
static const char *const orders[][8] = {
  { "root", "a", "c", "d", "b", "f", "e" },
  { "d", "b", "a", "e", "c", "f", "root" },
  { "f", "e", "b", "root", "a", "c", "d" },
};

static void cut(uint64_t unit, const char *const *order, unsigned stride)
{
  struct tree t = tree_new(test_path("tree.pcow"), unit);
  uint64_t cuts = 0;

  for (unsigned i = 0; order[i]; i++)
    cuts += cut_deletion(&t, order[i], stride);
  test_check_clean(t.path);
  printf("units of %" PRIu64 " KiB: %" PRIu64 " times cut short, order %s %s ...\n", unit / KIB, cuts, order[0],
         order[1]);
  for (unsigned i = 0; i < t.count; i++)
    content_free(&t.snapshots[i].content);
  content_free(&t.head);
  SYS(unlink(t.path));
}

/* ---- With a reader ---- */

/* Somebody has a descendant mapped: what the deleted one and the heir have moves when he has gone, what only
 * the deleted one held is given back at once. */
static void readers(uint64_t unit)
{
  struct tree t = tree_new(test_path("read.pcow"), unit);
  pcow_image *image = test_open(t.path, PCOW_OPEN_RDWR, NULL), *reader = test_open(t.path, 0, "c");
  const struct content *seen = &t.snapshots[5].content;
  const unsigned char *mapped;
  uint64_t before;
  pcow_mapping *map;

  CHECK(!strcmp(t.snapshots[5].name, "c"), "not c");
  OK(pcow_map(reader, NULL, &map));
  mapped = pcow_mapping_address(map);
  before = data_bytes(image->store->fd, geometry_data(&image->store->geo, 1), UINT64_C(1) << 60);
  OK(pcow_snapshot_delete(image, "a"));
  OK(pcow_snapshot_delete(image, "root"));
  t.snapshots[0].alive = t.snapshots[1].alive = false;
  CHECK(pending(image), "nothing is pending while a descendant is read");
  CHECK(data_bytes(image->store->fd, geometry_data(&image->store->geo, 1), UINT64_C(1) << 60) < before,
        "what nobody sees was not given back");
  CHECK(memcmp(mapped, seen->bytes, seen->size) == 0, "what is mapped changed");
  content_compare(reader, seen, "read meanwhile");
  tree_compare(&t, t.path, "", "while a reader is in the way");
  OK(pcow_unmap(map));
  OK(pcow_close(reader));
  OK(pcow_snapshot_delete(image, "d"));
  t.snapshots[6].alive = false;
  CHECK(!pending(image), "%u are pending when the reader has gone", pending(image));
  tree_compare(&t, t.path, "", "the reader has gone");
  content_compare(image, &t.head, "the head");
  OK(pcow_close(image));
  test_check_clean(t.path);
  for (unsigned i = 0; i < t.count; i++)
    content_free(&t.snapshots[i].content);
  content_free(&t.head);
  SYS(unlink(t.path));
}

int main(int argc, char **argv)
{
  unsigned stride;

  test_force_pmem(argv);
  stride = (unsigned)test_option(argc, argv, "--stride", 8);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  cut(64 * KIB, orders[0], stride);
  cut(64 * KIB, orders[2], stride);
  cut(256 * KIB, orders[1], stride);
  cut(2 * MIB, orders[0], stride);
  cut(2 * MIB, orders[1], stride);
  cut(2 * MIB, orders[2], stride);
  readers(64 * KIB);
  readers(2 * MIB);
  return 0;
}
