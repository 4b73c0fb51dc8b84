/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The middle one of a hundred snapshots of a sparse image of 10 GiB with 1 GiB of data is deleted: exactly the
 * blocks that only it held are given back, no other view changes, and the work is that of its units and of
 * the fewer pages, not of the image. What is right is computed from what was written.
 *
 *     test-collect-middle [--seed N] [--dir DIR]
 */
#include "figures.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static struct rng rng;

static uint64_t log_bytes(int fd)
{
  return data_bytes(fd, EPOCH_LOG_OFFSET, EPOCH_LOG_OFFSET + EPOCH_LOG_RECORDS * sizeof(struct pcow_disk_epoch));
}

/* ---- The middle one of a hundred ---- */

#define SNAPSHOTS 100u
#define MIDDLE 50u
#define CHUNK (64 * KIB)        /* one of ten has data */
#define CHUNK_PAGES (CHUNK / PAGE)
#define NARROW 4u               /* units that the middle one and the next write to */

struct middle {
  uint64_t size, pages, unit_pages;
  uint64_t *now;                /* the seed of each page, 0: zeros */
  GArray *changes[SNAPSHOTS + 2];       /* of struct change, by the snapshot that has them first */
};

struct change {
  uint64_t page, seed, before;
};

static void fill_page(uint64_t *page, uint64_t seed)
{
  for (unsigned i = 0; i < PAGE / 8; i++)
    page[i] = seed;
}

static void check_page(pcow_image *view, const char *name, uint64_t page, uint64_t seed)
{
  uint64_t words[PAGE / 8];

  OK(pcow_pread(view, words, PAGE, page * PAGE));
  for (unsigned i = 0; i < PAGE / 8; i++)
    CHECK(words[i] == seed, "%s: page %" PRIu64 " has %" PRIu64 " instead of %" PRIu64, name, page, words[i],
          seed);
}

static uint64_t data_page(const struct middle *m, bool narrow)
{
  uint64_t chunks = narrow ? NARROW * m->unit_pages / CHUNK_PAGES : m->pages / CHUNK_PAGES;

  return rng_below(&rng, chunks / 10) * 10 * CHUNK_PAGES + rng_below(&rng, CHUNK_PAGES);
}

static void churn(struct middle *m, pcow_image *image, unsigned epoch, unsigned count)
{
  bool narrow = epoch == MIDDLE || epoch == MIDDLE + 1;
  uint64_t words[PAGE / 8];

  m->changes[epoch] = g_array_new(FALSE, FALSE, sizeof(struct change));
  for (unsigned i = 0; i < count; i++) {
    struct change c = { .page = data_page(m, narrow), .seed = rng_next(&rng) | 1 };

    c.before = m->now[c.page];
    if (rng_chance(&rng, 10)) {
      c.seed = 0;
      OK(pcow_discard(image, c.page * PAGE, PAGE));
    } else {
      fill_page(words, c.seed);
      OK(pcow_pwrite(image, words, PAGE, c.page * PAGE));
    }
    m->now[c.page] = c.seed;
    g_array_append_val(m->changes[epoch], c);
  }
}

/* What the epoch changed, page by page, as it was in the end. */
static GHashTable *changed(const struct middle *m, unsigned epoch)
{
  GHashTable *pages = g_hash_table_new(g_direct_hash, g_direct_equal);

  for (unsigned i = 0; i < m->changes[epoch]->len; i++) {
    const struct change *c = &g_array_index(m->changes[epoch], struct change, i);

    g_hash_table_insert(pages, GSIZE_TO_POINTER(c->page + 1), GSIZE_TO_POINTER(c->seed));
  }
  return pages;
}

/* Pages that only the middle one holds, units in which it and the next one have a slot, and units in which
 * it has one. */
static void expect(const struct middle *m, uint64_t *freed, uint64_t *both, uint64_t *own)
{
  GHashTable *middle = changed(m, MIDDLE), *next = changed(m, MIDDLE + 1);
  GHashTable *middle_units = g_hash_table_new(NULL, NULL), *next_units = g_hash_table_new(NULL, NULL);
  GHashTableIter iter;
  gpointer page, seed;

  *freed = *both = *own = 0;
  g_hash_table_iter_init(&iter, next);
  while (g_hash_table_iter_next(&iter, &page, &seed))
    g_hash_table_add(next_units, GSIZE_TO_POINTER((GPOINTER_TO_SIZE(page) - 1) / m->unit_pages + 1));
  g_hash_table_iter_init(&iter, middle);
  while (g_hash_table_iter_next(&iter, &page, &seed)) {
    g_hash_table_add(middle_units, GSIZE_TO_POINTER((GPOINTER_TO_SIZE(page) - 1) / m->unit_pages + 1));
    *freed += seed && g_hash_table_contains(next, page);
  }
  g_hash_table_iter_init(&iter, middle_units);
  while (g_hash_table_iter_next(&iter, &page, &seed)) {
    *own += 1;
    *both += g_hash_table_contains(next_units, page);
  }
  g_hash_table_unref(middle);
  g_hash_table_unref(next);
  g_hash_table_unref(middle_units);
  g_hash_table_unref(next_units);
}

/* All views but the deleted one: every page that ever changed and some of the others; the ones on both sides
 * whole. Goes back from the head, undoing what each epoch changed. */
static void verify(struct middle *m, const char *path)
{
  GHashTable *ever = g_hash_table_new(NULL, NULL);

  for (unsigned i = 1; i <= SNAPSHOTS + 1; i++)
    for (unsigned n = 0; n < m->changes[i]->len; n++)
      g_hash_table_add(ever, GSIZE_TO_POINTER(g_array_index(m->changes[i], struct change, n).page + 1));
  for (unsigned i = SNAPSHOTS + 1; i >= 1; i--) {
    char name[32];
    GHashTableIter iter;
    pcow_image *view;
    gpointer page;

    snprintf(name, sizeof(name), "%u", i);
    if (i != MIDDLE) {
      view = test_open(path, 0, i > SNAPSHOTS ? NULL : name);
      g_hash_table_iter_init(&iter, ever);
      while (g_hash_table_iter_next(&iter, &page, NULL))
        check_page(view, name, GPOINTER_TO_SIZE(page) - 1, m->now[GPOINTER_TO_SIZE(page) - 1]);
      for (uint64_t p = 0; p < m->pages; p += i == MIDDLE - 1 || i == MIDDLE + 1 ? 1 : 97)
        if (m->now[p] || p % 1000 == 0)
          check_page(view, name, p, m->now[p]);
      OK(pcow_close(view));
    }
    for (unsigned n = m->changes[i]->len; n--;) {
      const struct change *c = &g_array_index(m->changes[i], struct change, n);

      m->now[c->page] = c->before;
    }
  }
  g_hash_table_unref(ever);
}

static void middle(void)
{
  struct middle m = { .size = 10 * GIB };
  char *path = test_path("middle.pcow");
  uint64_t freed, both, own, blocks, log, shrunk, chunk[CHUNK / 8];
  struct persist_counts before, after;
  struct collect_counts visited;
  pcow_image *image;
  gint64 began;

  m.pages = m.size / PAGE;
  m.now = test_alloc(m.pages * 8);
  test_create(path, m.size, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  m.unit_pages = image->store->geo.unit_pages;
  m.changes[1] = g_array_new(FALSE, FALSE, sizeof(struct change));
  for (uint64_t page = 0; page + 10 * CHUNK_PAGES <= m.pages; page += 10 * CHUNK_PAGES) {
    for (unsigned i = 0; i < CHUNK_PAGES; i++) {
      m.now[page + i] = (page + i) * 2 + 1;
      fill_page(chunk + i * (PAGE / 8), m.now[page + i]);
    }
    OK(pcow_pwrite(image, chunk, CHUNK, page * PAGE));
  }
  for (unsigned i = 1; i <= SNAPSHOTS; i++) {
    char name[32];

    if (i > 1)
      churn(&m, image, i, i == MIDDLE ? 12000 : i == MIDDLE + 1 ? 9000 : 150);
    snprintf(name, sizeof(name), "%u", i);
    OK(pcow_snapshot_create(image, name));
  }
  churn(&m, image, SNAPSHOTS + 1, 150);
  OK(pcow_sync(image));

  expect(&m, &freed, &both, &own);
  blocks = test_blocks(path);
  log = log_bytes(image->store->fd);
  persist_get_counts(image->store->p, &before);
  visited = image->collected;
  began = g_get_monotonic_time();
  OK(pcow_snapshot_delete(image, "50"));
  began = g_get_monotonic_time() - began;
  persist_get_counts(image->store->p, &after);
  shrunk = blocks - test_blocks(path);
  printf("the middle one of %u: %" PRIu64 " pages only it held, %" PRIu64 " KiB given back, %" PRIu64
         " units visited, %" PRIu64 " KiB copied, %" PRIu64 " changes of blocks, %.1f ms (longest step %.1f)\n",
         SNAPSHOTS, freed, shrunk / KIB, image->collected.visits - visited.visits,
         (after.copied_bytes - before.copied_bytes) / KIB, after.block_changes - before.block_changes,
         (double)began / 1000, (double)image->collected.longest / 1000);
  /* The bitmap of a slot of 128 MiB is one page, and the log grew by what the log grew. */
  if (test_is_tmpfs(path))
    CHECK(shrunk + log_bytes(image->store->fd) - log == (freed + both) * PAGE,
          "%" PRIu64 " bytes were given back, %" PRIu64 " pages and %" PRIu64 " bitmaps are what only it held",
          shrunk, freed, both);
  CHECK(!pending(image), "something is pending");
  CHECK(image->collected.visits - visited.visits == own, "%" PRIu64 " units were visited, it had slots in %" PRIu64,
        image->collected.visits - visited.visits, own);
  /* The smaller side of what was written once, records and commits. */
  CHECK(after.copied_bytes - before.copied_bytes <= 9000 * PAGE + 64 * KIB, "%" PRIu64 " bytes were copied",
        after.copied_bytes - before.copied_bytes);
  CHECK(after.block_changes - before.block_changes <= 3 * 9000 + 100, "%" PRIu64 " changes of blocks",
        after.block_changes - before.block_changes);
  OK(pcow_close(image));
  verify(&m, path);
  test_check_clean(path);
  for (unsigned i = 1; i <= SNAPSHOTS + 1; i++)
    g_array_unref(m.changes[i]);
  free(m.now);
  SYS(unlink(path));
}

int main(int argc, char **argv)
{
  test_force_pmem(argv);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  middle();
  return 0;
}
