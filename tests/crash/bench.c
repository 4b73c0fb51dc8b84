/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See bench.h.
 */
#include "bench.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *bench_path(const char *dir, const char *name) { return g_build_filename(dir, name, NULL); }

static void on_cut(void *opaque)
{
  struct bench *b = opaque;

  b->cut++;
  if (b->on_cut && !b->lab->quiet)
    b->on_cut(b);
}

void bench_begin(struct bench *b, struct lab *lab, void (*fn)(struct bench *b))
{
  b->lab = lab;
  b->on_cut = fn;
  b->killed = g_strdup_printf("%s.killed", lab->dir);
  b->killed_states = g_strdup_printf("%s.killed.states", lab->dir);
  SYS(mkdir(b->killed, 0700));
  SYS(mkdir(b->killed_states, 0700));
  b->media = media_new(lab->dir, rng_next(&lab->rng), on_cut, b);
}

static void empty(const char *path)
{
  GDir *dir = g_dir_open(path, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *file = bench_path(path, name);

    unlink(file);
  }
  if (dir)
    g_dir_close(dir);
}

void bench_end(struct bench *b)
{
  media_free(b->media);
  empty(b->killed);
  empty(b->killed_states);
  rmdir(b->killed);
  rmdir(b->killed_states);
  g_free(b->killed);
  g_free(b->killed_states);
  g_free(b->expected);
  g_free(b->zeros);
}

pcow_image *open_in(struct bench *b, const char *dir, const char *name, uint32_t flags)
{
  struct pcow_open_options how = PCOW_INIT(how);
  g_autofree char *path = bench_path(dir, name);
  pcow_image *image;

  how.flags = flags | PCOW_OPEN_BASES;
  if (pcow_open(path, &how, &image))
    lab_fail(b->lab, "%s does not open: %s", name, pcow_errormsg());
  return image;
}

/* The first SIZE bytes that an image shows, and its size; to be freed. */
unsigned char *content_of(struct bench *b, const char *dir, const char *name, uint32_t flags)
{
  unsigned char *bytes = g_malloc(SIZE + sizeof(uint64_t));
  pcow_image *image = open_in(b, dir, name, flags);
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_get_info(image, &info));
  memcpy(bytes + SIZE, &info.virtual_size, sizeof(uint64_t));
  if (pcow_pread(image, bytes, SIZE, 0) || pcow_close(image))
    lab_fail(b->lab, "%s cannot be read: %s", name, pcow_errormsg());
  return bytes;
}

int as_expected(void *opaque, const char *dir, const char *name, uint32_t flags)
{
  struct bench *b = opaque;
  g_autofree unsigned char *bytes = content_of(b, dir, name, flags);

  atomic_fetch_add(&counters->states, 1);
  if (memcmp(bytes, b->expected, SIZE))
    lab_fail(b->lab, "%s shows something else", name);
  return 0;
}

void write_pages(struct bench *b, const char *dir, const char *name, unsigned count)
{
  pcow_image *image = open_in(b, dir, name, PCOW_OPEN_RDWR);
  unsigned char bytes[PCOW_PAGE_SIZE];

  while (count--) {
    rng_fill(&b->lab->rng, bytes, PAGE);
    OK(pcow_pwrite(image, bytes, PAGE, rng_below(&b->lab->rng, SIZE / PAGE) * PAGE));
  }
  OK(pcow_close(image));
}

void create_in(const char *dir, const char *name, const char *base)
{
  g_autofree char *path = bench_path(dir, name);

  test_create(path, SIZE, UNIT, base, base ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE, NULL);
}

/* What the process after the killed one can leave. */
static void explore_state(void *opaque)
{
  struct bench *b = opaque;

  media_states(b->killed_media, b->killed_states, 60, b->on_state, b);
}

/* Another process takes the place of one that was killed, at any of its cuts, and its cuts are explored. */
void go_on_killed(struct bench *b, media_state_fn fn, void (*work)(struct bench *b))
{
  if (b->cut != b->kill_at)
    return;
  b->on_state = fn;
  b->killed_media = media_killed(b->media, b->killed, explore_state, b);
  work(b);
  explore_state(b);
  media_free(b->killed_media);
}
