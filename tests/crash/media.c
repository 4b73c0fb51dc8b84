/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is durable and what is pending, line by line, and copies of that. media-watch.c tells of each
 * change.
 *
 * Stores that nobody announced are found by comparing the files with what is known to be visible: all
 * of them before a cut and before a sync, and the range that is written back before a flush of memory or
 * of more than a line. What is found in one line counts as one store, made then, that may be torn into any
 * subset of its words: the order of its words, and words that changed twice, are not known. A flush of
 * single words does not compare: only metadata are stored by words, and never by a guest. So a store that
 * nobody announced never becomes durable earlier than it may, and becomes durable by whatever really
 * covers it.
 */
#include "mediastate.h"

#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const uint8_t media_zeros[MEDIA_PAGE];

/* ---- Lines and pages ---- */

static void line_free(gpointer data)
{
  struct line *l = data;

  g_ptr_array_unref(l->events);
  g_free(l);
}

static struct page *page_get(struct media_file *f, uint64_t number)
{
  struct page *p = g_hash_table_lookup(f->pages, media_key(number));

  if (!p) {
    p = g_new0(struct page, 1);
    p->number = number;
    g_hash_table_insert(f->pages, media_key(number), p);
  }
  return p;
}

static struct line *line_get(struct media_file *f, uint64_t number)
{
  struct line *l = g_hash_table_lookup(f->lines, media_key(number));

  if (!l) {
    l = g_new0(struct line, 1);
    l->number = number;
    l->events = g_ptr_array_new_with_free_func(g_free);
    g_hash_table_insert(f->lines, media_key(number), l);
  }
  return l;
}

/* Stores LENGTH bytes within one line. */
void media_add_event(struct media_file *f, uint64_t offset, const void *bytes, unsigned length, bool punch)
{
  struct page *p = page_get(f, offset / MEDIA_PAGE);
  uint8_t *visible = p->visible + offset % MEDIA_PAGE;
  struct event *e;

  if (!memcmp(visible, bytes, length))
    return;                     /* in whatever state: it changes nothing */
  e = g_malloc(sizeof(*e) + length);
  e->number = ++f->media->number;
  e->first = (uint16_t)(offset & ((1u << f->line_shift) - 1));
  e->length = (uint16_t)length;
  e->punch = punch;
  memcpy(e->bytes, bytes, length);
  memcpy(visible, bytes, length);
  g_ptr_array_add(line_get(f, offset >> f->line_shift)->events, e);
}

void media_note_size(struct media_file *f, uint64_t size)
{
  struct growth g = { .number = ++f->media->number, .size = size };

  if (size == f->visible_size)
    return;
  f->visible_size = size;
  g_array_append_val(f->growths, g);
}

void media_store_bytes(struct media_file *f, uint64_t offset, const uint8_t *bytes, uint64_t length)
{
  if (offset + length > f->visible_size)
    media_note_size(f, offset + length);
  while (length) {
    uint64_t line = UINT64_C(1) << f->line_shift;
    uint64_t n = MIN(length, line - (offset & (line - 1)));

    media_add_event(f, offset, bytes, (unsigned)n, false);
    offset += n;
    bytes += n;
    length -= n;
  }
}

static gint compare_numbers(gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return x < y ? -1 : x > y;
}

/* The keys in [first, end), in order. */
GArray *media_numbers_in(GHashTable *table, uint64_t first, uint64_t end)
{
  GArray *numbers = g_array_new(FALSE, FALSE, sizeof(uint64_t));
  GHashTableIter iter;
  gpointer key;

  if (end - first <= g_hash_table_size(table)) {
    for (uint64_t n = first; n < end; n++)
      if (g_hash_table_contains(table, media_key(n)))
        g_array_append_val(numbers, n);
    return numbers;
  }
  g_hash_table_iter_init(&iter, table);
  while (g_hash_table_iter_next(&iter, &key, NULL)) {
    uint64_t n = GPOINTER_TO_SIZE(key) - 1;

    if (n >= first && n < end)
      g_array_append_val(numbers, n);
  }
  g_array_sort(numbers, compare_numbers);
  return numbers;
}

/* Events up to number UPTO, oldest first, become durable. */
void media_settle_line(struct media_file *f, struct line *l, uint64_t upto)
{
  uint64_t offset = l->number << f->line_shift;
  uint8_t *durable = page_get(f, offset / MEDIA_PAGE)->durable + offset % MEDIA_PAGE;
  guint n = 0;

  while (n < l->events->len) {
    const struct event *e = g_ptr_array_index(l->events, n);

    if (e->number > upto)
      break;
    memcpy(durable + e->first, e->bytes, e->length);
    n++;
  }
  if (n == l->events->len)
    g_hash_table_remove(f->lines, media_key(l->number));
  else if (n)
    g_ptr_array_remove_range(l->events, 0, n);
}

void media_settle_file(struct media_file *f)
{
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init(&iter, f->pages);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    struct page *p = value;

    memcpy(p->durable, p->visible, MEDIA_PAGE);
  }
  g_hash_table_remove_all(f->lines);
  g_array_set_size(f->growths, 0);
  f->durable_size = f->visible_size;
}

/* ---- Comparing ---- */

static void compare_page(struct media_file *f, uint64_t number, const uint8_t *now)
{
  unsigned line = 1u << f->line_shift;
  struct page *p = g_hash_table_lookup(f->pages, media_key(number));

  if (!p && !memcmp(media_zeros, now, MEDIA_PAGE))
    return;
  p = page_get(f, number);
  p->seen = f->media->comparisons;
  if (!memcmp(p->visible, now, MEDIA_PAGE))
    return;
  for (unsigned at = 0; at < MEDIA_PAGE; at += line) {
    unsigned first = at, end = at + line;

    if (!memcmp(p->visible + at, now + at, line))
      continue;
    while (!memcmp(p->visible + first, now + first, 8))
      first += 8;
    while (!memcmp(p->visible + end - 8, now + end - 8, 8))
      end -= 8;
    media_add_event(f, number * MEDIA_PAGE + first, now + first, end - first, false);
    f->media->counts.unannounced++;
  }
}

/* Reads one page; media_zeros beyond the end of the file. */
static void read_page(const struct media_file *f, uint64_t number, uint8_t *page)
{
  ssize_t n = SYS(pread(f->fd, page, MEDIA_PAGE, (off_t)(number * MEDIA_PAGE)));

  memset(page + n, 0, MEDIA_PAGE - (size_t)n);
}

typedef void (*page_fn)(struct media_file *f, uint64_t number, const uint8_t *page);

/* Calls FN for the pages with data in [first, end). */
static void each_data_page(struct media_file *f, uint64_t first, uint64_t end, page_fn fn)
{
  uint64_t stop = end * MEDIA_PAGE;
  uint8_t page[MEDIA_PAGE];

  for (uint64_t at = first * MEDIA_PAGE; at < stop;) {
    off_t data = lseek(f->fd, (off_t)at, SEEK_DATA);
    off_t hole;

    if (data < 0) {
      CHECK(errno == ENXIO, "%s: SEEK_DATA fails: %s", f->name, strerror(errno));
      return;
    }
    hole = (off_t)SYS(lseek(f->fd, data, SEEK_HOLE));
    for (at = (uint64_t)data & ~(uint64_t)(MEDIA_PAGE - 1); at < (uint64_t)hole && at < stop; at += MEDIA_PAGE) {
      read_page(f, at / MEDIA_PAGE, page);
      fn(f, at / MEDIA_PAGE, page);
    }
  }
}

void media_compare_range(struct media_file *f, uint64_t first, uint64_t end)
{
  g_autoptr(GArray) known = NULL;

  f->media->comparisons++;
  each_data_page(f, first, end, compare_page);
  known = media_numbers_in(f->pages, first, end);
  for (guint i = 0; i < known->len; i++) {
    uint64_t number = g_array_index(known, uint64_t, i);
    struct page *p = g_hash_table_lookup(f->pages, media_key(number));

    if (p->seen != f->media->comparisons)
      compare_page(f, number, media_zeros);
  }
}

void media_compare_file(struct media_file *f)
{
  struct stat st;

  SYS(fstat(f->fd, &st));
  media_note_size(f, (uint64_t)st.st_size);
  media_compare_range(f, 0, UINT64_MAX / MEDIA_PAGE / 2);
}

void media_compare(struct media *m)
{
  g_rec_mutex_lock(&m->lock);
  for (guint i = 0; i < m->files->len; i++)
    media_compare_file(g_ptr_array_index(m->files, i));
  g_rec_mutex_unlock(&m->lock);
}

/* ---- Files ---- */

static void file_free(gpointer data)
{
  struct media_file *f = data;

  CHECK(!f->opens, "%s: its media are freed while it is open", f->name);
  close(f->fd);
  g_hash_table_unref(f->lines);
  g_hash_table_unref(f->pages);
  g_array_unref(f->growths);
  g_free(f->name);
  g_free(f);
}

struct media_file *media_file_new(struct media *m, const char *path, enum persist_mode mode)
{
  struct media_file *f = g_new0(struct media_file, 1);
  struct stat st;

  f->media = m;
  f->name = g_path_get_basename(path);
  f->fd = (int)SYS(open(path, O_RDONLY | O_CLOEXEC));
  SYS(fstat(f->fd, &st));
  f->dev = st.st_dev;
  f->ino = st.st_ino;
  f->mode = mode;
  f->line_shift = mode == PERSIST_PMEM ? 6 : 9;
  f->pages = g_hash_table_new_full(NULL, NULL, NULL, g_free);
  f->lines = g_hash_table_new_full(NULL, NULL, NULL, line_free);
  f->growths = g_array_new(FALSE, FALSE, sizeof(struct growth));
  g_ptr_array_add(m->files, f);
  return f;
}

/* ---- The media ---- */

static void flushed_free(gpointer data) { g_array_unref(data); }

struct media *media_new(const char *dir, uint64_t seed, media_cut_fn fn, void *opaque)
{
  struct media *m = g_new0(struct media, 1);
  char *real = realpath(dir, NULL);

  CHECK(real, "%s: %s", dir, strerror(errno));
  g_rec_mutex_init(&m->lock);
  m->dir = g_strdup(real);
  free(real);
  m->seed = seed;
  m->cut = fn;
  m->opaque = opaque;
  m->files = g_ptr_array_new_with_free_func(file_free);
  m->flushed = g_hash_table_new_full(NULL, NULL, NULL, flushed_free);
  media_watch(m);
  return m;
}

void media_free(struct media *m)
{
  if (!m)
    return;
  media_unwatch(m);
  g_ptr_array_unref(m->files);
  g_hash_table_unref(m->flushed);
  g_rec_mutex_clear(&m->lock);
  g_free(m->dir);
  g_free(m);
}

void media_settle(struct media *m)
{
  g_rec_mutex_lock(&m->lock);
  media_compare(m);
  for (guint i = 0; i < m->files->len; i++)
    media_settle_file(g_ptr_array_index(m->files, i));
  g_rec_mutex_unlock(&m->lock);
}

/* A file with what all see of F, of which the same is pending. */
static void file_clone(struct media *m, const struct media_file *f)
{
  g_autofree char *path = g_build_filename(m->dir, f->name, NULL);
  int fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  struct media_file *copy;
  GHashTableIter iter;
  gpointer value;

  SYS(ftruncate(fd, (off_t)f->visible_size));
  copy = media_file_new(m, path, f->mode);
  copy->durable_size = f->durable_size;
  copy->visible_size = f->visible_size;
  g_array_append_vals(copy->growths, f->growths->data, f->growths->len);
  g_hash_table_iter_init(&iter, f->pages);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct page *p = value;
    uint64_t at = p->number * MEDIA_PAGE;

    *page_get(copy, p->number) = *p;
    if (at < f->visible_size && memcmp(p->visible, media_zeros, MEDIA_PAGE))
      SYS(pwrite(fd, p->visible, MIN(MEDIA_PAGE, f->visible_size - at), (off_t)at));
  }
  g_hash_table_iter_init(&iter, f->lines);
  while (g_hash_table_iter_next(&iter, NULL, &value)) {
    const struct line *l = value;
    struct line *line = line_get(copy, l->number);

    for (guint i = 0; i < l->events->len; i++) {
      const struct event *e = g_ptr_array_index(l->events, i);

      g_ptr_array_add(line->events, g_memdup2(e, sizeof(*e) + e->length));
    }
  }
  close(fd);
}

struct media *media_killed(struct media *m, const char *dir, media_cut_fn fn, void *opaque)
{
  struct media *copy = media_new(dir, m->seed, fn, opaque);

  g_rec_mutex_lock(&m->lock);
  media_compare(m);
  copy->number = m->number;
  for (guint i = 0; i < m->files->len; i++)
    file_clone(copy, g_ptr_array_index(m->files, i));
  g_rec_mutex_unlock(&m->lock);
  return copy;
}

void media_get_counts(const struct media *m, struct media_counts *counts) { *counts = m->counts; }
