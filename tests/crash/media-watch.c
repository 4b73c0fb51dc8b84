/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Hears of every change of the watched files, from persist. Media have a lock each, which is held from
 * before a change until it is recorded: a cut that is being explored keeps all threads that change its
 * own files waiting, and only those.
 */
#include "mediastate.h"

#include "testlib.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static GMutex all_lock;         /* the list alone */
static GPtrArray *all_media;
static _Thread_local struct media_file *announced; /* whose fdatasync(2) persist is about to make */

/* ---- Files ---- */

static struct media_file *file_find(struct media *m, const struct stat *st)
{
  for (guint i = 0; i < m->files->len; i++) {
    struct media_file *f = g_ptr_array_index(m->files, i);

    if (f->dev == st->st_dev && f->ino == st->st_ino)
      return f;
  }
  return NULL;
}

/* Another file has this name now. */
static void file_forget(struct media *m, const char *name)
{
  for (guint i = 0; i < m->files->len; i++) {
    struct media_file *f = g_ptr_array_index(m->files, i);

    if (!strcmp(f->name, name)) {
      g_hash_table_remove_all(m->flushed);
      g_ptr_array_remove_index(m->files, i);
      return;
    }
  }
}

static struct media_file *file_watch(struct media *m, int fd, const char *path, enum persist_mode mode)
{
  g_autofree char *name = g_path_get_basename(path);
  struct media_file *f;
  struct stat st;

  SYS(fstat(fd, &st));
  f = file_find(m, &st);
  if (f) {
    CHECK(f->mode == mode || !g_hash_table_size(f->lines), "%s: the mode changes while stores are pending",
          f->name);
    f->mode = mode;
    f->line_shift = mode == PERSIST_PMEM ? 6 : 9;
    media_compare_file(f);
  } else {
    uint64_t before = m->counts.unannounced;

    file_forget(m, name);
    f = media_file_new(m, path, mode);
    media_compare_file(f);
    media_settle_file(f);
    m->counts.unannounced = before;
  }
  return f;
}

/* ---- What is watched ---- */

static void cut(struct media *m)
{
  m->counts.cuts++;
  media_compare(m);
  if (m->cut)
    m->cut(m->opaque);
}

static void watch_begin(void *file) { g_rec_mutex_lock(&((struct media_file *)file)->media->lock); }

static void watch_end(void *file) { g_rec_mutex_unlock(&((struct media_file *)file)->media->lock); }

/* The media of a directory, or NULL. */
static struct media *find_media(const char *dir)
{
  struct media *found = NULL;

  g_mutex_lock(&all_lock);
  for (guint i = 0; all_media && i < all_media->len && !found; i++) {
    struct media *m = g_ptr_array_index(all_media, i);

    if (!strcmp(m->dir, dir))
      found = m;
  }
  g_mutex_unlock(&all_lock);
  return found;
}

static char *real_path(int fd)
{
  g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);

  return g_file_read_link(link, NULL);
}

static void *watch_open(int fd, const char *path, enum persist_mode mode)
{
  g_autofree char *real = real_path(fd);
  g_autofree char *dir = g_path_get_dirname(real ? real : path);
  struct media *m = find_media(dir);
  struct media_file *f;

  if (!m)
    return NULL;
  g_rec_mutex_lock(&m->lock);
  f = file_watch(m, fd, real, mode);
  f->opens++;
  g_rec_mutex_unlock(&m->lock);
  return f;
}

static void watch_close(void *file)
{
  struct media_file *f = file;

  watch_begin(f);
  f->opens--;
  watch_end(f);
}

static GArray *flushed_by_me(struct media *m)
{
  gpointer me = GINT_TO_POINTER(gettid());
  GArray *flushed = g_hash_table_lookup(m->flushed, me);

  if (!flushed) {
    flushed = g_array_new(FALSE, FALSE, sizeof(struct flushed));
    g_hash_table_insert(m->flushed, me, flushed);
  }
  return flushed;
}

/* The lines' stores so far are on their way. */
static void note_flushed(struct media_file *f, uint64_t offset, uint64_t length)
{
  g_autoptr(GArray) lines = NULL;
  GArray *flushed = flushed_by_me(f->media);

  if (!length || f->mode != PERSIST_PMEM)
    return;
  lines = media_numbers_in(f->lines, offset >> f->line_shift, ((offset + length - 1) >> f->line_shift) + 1);
  for (guint i = 0; i < lines->len; i++) {
    struct flushed entry = { f, g_array_index(lines, uint64_t, i), f->media->number };

    g_array_append_val(flushed, entry);
  }
}

static void watch_store(void *file, uint64_t offset, const void *from, uint64_t length, bool written_back)
{
  struct media_file *f = file;

  f->media->counts.stores++;
  media_store_bytes(f, offset, from, length);
  if (written_back)
    note_flushed(f, offset, length);
}

static void watch_flush(void *file, uint64_t offset, uint64_t length)
{
  struct media_file *f = file;

  f->media->counts.flushes++;
  if (length > 64)
    media_compare_range(f, offset / MEDIA_PAGE, (offset + length + MEDIA_PAGE - 1) / MEDIA_PAGE);
  note_flushed(f, offset, length);
}

/* Which parts of the file the addresses map; /proc/self/maps says so. */
static void watch_flush_memory(void *file, const void *address, uint64_t length)
{
  struct media_file *f = file;
  uint64_t from = (uintptr_t)address, to = from + length;
  FILE *maps = fopen("/proc/self/maps", "re");
  char text[8192];

  CHECK(maps, "/proc/self/maps: %s", strerror(errno));
  f->media->counts.flushes++;
  while (fgets(text, sizeof(text), maps)) {
    uint64_t start, end, offset, ino, first, last;
    unsigned dev_major, dev_minor;

    if (sscanf(text, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %x:%x %" SCNu64, &start, &end, &offset, &dev_major,
               &dev_minor, &ino) != 6 || end <= from)
      continue;
    if (start >= to)
      break;
    if (ino != f->ino || makedev(dev_major, dev_minor) != f->dev)
      continue;
    first = offset + (MAX(start, from) - start);
    last = offset + (MIN(end, to) - start);
    media_compare_range(f, first / MEDIA_PAGE, (last + MEDIA_PAGE - 1) / MEDIA_PAGE);
    note_flushed(f, first, last - first);
  }
  fclose(maps);
}

static void watch_drain(void *file)
{
  struct media_file *f = file;
  struct media *m = f->media;
  GArray *flushed;

  m->counts.drains++;
  cut(m);
  flushed = flushed_by_me(m);
  for (guint i = 0; i < flushed->len; i++) {
    const struct flushed *entry = &g_array_index(flushed, struct flushed, i);
    struct line *l = g_hash_table_lookup(entry->file->lines, media_key(entry->line));

    if (l)
      media_settle_line(entry->file, l, entry->upto);
  }
  g_array_set_size(flushed, 0);
}

static void watch_sync(void *file)
{
  struct media_file *f = file;

  f->media->counts.syncs++;
  cut(f->media);
  media_settle_file(f);
  announced = f;
}

/* Others than persist make files durable, too: whoever reads a crashed session's. (The linker's --wrap.) */
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);

int __wrap_fdatasync(int fd)
{
  g_autofree char *real = real_path(fd);
  g_autofree char *dir = g_path_get_dirname(real);
  struct media *m = find_media(dir);
  struct media_file *f;
  struct stat st;

  if (m) {
    SYS(fstat(fd, &st));
    g_rec_mutex_lock(&m->lock);
    f = file_find(m, &st);
    if (f && f != announced)
      watch_sync(f);
    g_rec_mutex_unlock(&m->lock);
  }
  announced = NULL;
  return __real_fdatasync(fd);
}

static void watch_punch(void *file, uint64_t offset, uint64_t length)
{
  struct media_file *f = file;
  uint64_t line = UINT64_C(1) << f->line_shift;
  g_autoptr(GArray) pages = media_numbers_in(f->pages, offset / MEDIA_PAGE,
                                       (offset + length + MEDIA_PAGE - 1) / MEDIA_PAGE);

  f->media->counts.punches++;
  for (guint i = 0; i < pages->len; i++) {
    uint64_t at = MAX(offset, g_array_index(pages, uint64_t, i) * MEDIA_PAGE);
    uint64_t end = MIN(offset + length, (g_array_index(pages, uint64_t, i) + 1) * MEDIA_PAGE);

    for (uint64_t n; at < end; at += n) {
      n = MIN(end - at, line - (at & (line - 1)));
      media_add_event(f, at, media_zeros, (unsigned)n, true);
    }
  }
}

static void watch_grow(void *file, uint64_t size)
{
  struct media_file *f = file;

  f->media->counts.growths++;
  media_note_size(f, size);
}

static const struct persist_watch watch = {
  .begin = watch_begin,
  .end = watch_end,
  .open = watch_open,
  .close = watch_close,
  .store = watch_store,
  .flush = watch_flush,
  .flush_memory = watch_flush_memory,
  .drain = watch_drain,
  .sync = watch_sync,
  .punch = watch_punch,
  .grow = watch_grow,
};

void media_watch(struct media *m)
{
  g_mutex_lock(&all_lock);
  if (!all_media) {
    all_media = g_ptr_array_new();
    persist_set_watch(&watch);
  }
  g_ptr_array_add(all_media, m);
  g_mutex_unlock(&all_lock);
}

void media_unwatch(struct media *m)
{
  g_mutex_lock(&all_lock);
  g_ptr_array_remove(all_media, m);
  g_mutex_unlock(&all_lock);
}
