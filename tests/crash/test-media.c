/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of the media themselves: short sequences of stores, flushes and fences on a file, and exactly the
 * states that a power cut may leave of them, written as the words that were stored to ("1 0 2": the
 * first has value 1, the second is 0, the third 2).
 */
#include "media.h"

#include "persist.h"
#include "testlib.h"

#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (64 * KIB)
#define MANY 100000u

static const char *media_dir, *state_dir;
static struct media *media;
static struct persist *p;
static int fd;
static char *path;

/* What a test looks at in each state. */
static const uint64_t *watched;
static unsigned watched_count;
static bool with_size;
static const char *state_name;

static void begin(const char *mode)
{
  setenv("PMEM_IS_PMEM_FORCE", mode, 1);
  path = g_strdup_printf("%s/file", media_dir);
  fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0666));
  SYS(ftruncate(fd, SIZE));
  media = media_new(media_dir, 1, NULL, NULL);
  OK(persist_open(fd, path, &p));
  state_name = "file";
  with_size = false;
}

static void end(void)
{
  persist_close(p);
  media_free(media);
  close(fd);
  unlink(path);
  g_free(path);
}

static int look(void *opaque, const struct media_state *state)
{
  g_autofree char *file = g_strdup_printf("%s/%s", state_dir, state_name);
  g_autoptr(GString) text = g_string_new(NULL);
  int in = (int)SYS(open(file, O_RDONLY));
  struct stat st;

  CHECK(state->kept <= state->pending, "%u of %u", state->kept, state->pending);
  SYS(fstat(in, &st));
  for (unsigned i = 0; i < watched_count; i++) {
    uint64_t word = 0;

    SYS(pread(in, &word, 8, (off_t)watched[i]));
    g_string_append_printf(text, "%s%" PRIu64, i ? " " : "", word);
  }
  if (with_size)
    g_string_append_printf(text, " /%" PRIu64, (uint64_t)st.st_size / 1024);
  close(in);
  g_ptr_array_add(opaque, g_string_free(g_steal_pointer(&text), FALSE));
  return 0;
}

static gint compare_strings(gconstpointer a, gconstpointer b)
{
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The states of M at the words of OFFSETS are EXPECTED: sorted, with commas between. */
static void expect_of(const char *file, int line, struct media *m, const uint64_t *offsets, unsigned count,
                      const char *expected)
{
  g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);
  g_autofree char *text = NULL;

  watched = offsets;
  watched_count = count;
  OK(media_states(m, state_dir, MANY, look, found));
  g_ptr_array_sort(found, compare_strings);
  CHECK(media_state_count(m) >= found->len, "%" PRIu64 " states counted, %u built", media_state_count(m), found->len);
  g_ptr_array_add(found, NULL);
  text = g_strjoinv(", ", (char **)found->pdata);
  if (strcmp(text, expected))
    test_fail(file, line, "states are\n  %s\nand not\n  %s", text, expected);
}

#define EXPECT_OF(m, expected, ...)                                                                 \
  do {                                                                                              \
    const uint64_t offsets[] = { __VA_ARGS__ };                                                     \
    expect_of(__FILE__, __LINE__, m, offsets, sizeof(offsets) / sizeof(offsets[0]), expected);      \
  } while (0)
#define EXPECT(expected, ...) EXPECT_OF(media, expected, __VA_ARGS__)

/* ---- Lines ---- */

static void test_order_in_a_line(void)
{
  begin("1");
  EXPECT("0 0", 0, 8);
  OK(persist_store64(p, 0, 1));
  OK(persist_store64(p, 8, 2));
  EXPECT("0 0, 1 0, 1 2", 0, 8);
  OK(persist_store64(p, 0, 3));
  EXPECT("0 0, 1 0, 1 2, 3 2", 0, 8);
  OK(persist_fence(p));
  EXPECT("3 2", 0, 8);
  /* The same again is nothing new. */
  OK(persist_store64(p, 0, 3));
  EXPECT("3 2", 0, 8);
  end();
}

static void test_lines_are_independent(void)
{
  begin("1");
  OK(persist_store64(p, 0, 1));
  OK(persist_store64(p, 64, 2));
  EXPECT("0 0, 0 2, 1 0, 1 2", 0, 64);
  CHECK(media_state_count(media) == 4 && media_pending(media) == 2, "two lines are four states");
  OK(persist_or64(p, 64, 5));
  EXPECT("0 0, 0 2, 0 7, 1 0, 1 2, 1 7", 0, 64);
  OK(persist_fence(p));
  EXPECT("1 7", 0, 64);
  end();
}

static void test_torn(void)
{
  const uint64_t words[] = { 1, 2, 3 };

  begin("1");
  OK(persist_copy(p, 128, words, sizeof(words)));
  EXPECT("0 0 0, 1 0 0, 1 2 0, 1 2 3", 128, 136, 144);
  OK(persist_fence(p));
  EXPECT("1 2 3", 128, 136, 144);
  end();
}

/* ---- Threads ---- */

static gpointer other_fence(gpointer opaque)
{
  (void)opaque;
  OK(persist_fence(p));
  return NULL;
}

static gpointer other_store(gpointer opaque)
{
  (void)opaque;
  OK(persist_store64(p, 8, 2));
  OK(persist_fence(p));
  return NULL;
}

static gpointer other_flush(gpointer opaque)
{
  (void)opaque;
  OK(persist_writeback(p, 0, 64));
  OK(persist_fence(p));
  return NULL;
}

static void in_a_thread(GThreadFunc fn) { g_thread_join(g_thread_new("other", fn, NULL)); }

static void test_fences_of_others(void)
{
  const uint64_t word = 4;

  begin("1");
  OK(persist_store64(p, 0, 1));
  OK(persist_copy(p, 64, &word, 8));
  in_a_thread(other_fence);
  EXPECT("0 0, 0 4, 1 0, 1 4", 0, 64);
  /* Its flush writes back the line, with what this thread stored to it. */
  in_a_thread(other_store);
  EXPECT("1 2 0, 1 2 4", 0, 8, 64);
  in_a_thread(other_flush);
  EXPECT("1 2 0, 1 2 4", 0, 8, 64);
  OK(persist_fence(p));
  EXPECT("1 2 4", 0, 8, 64);
  OK(persist_store64(p, 0, 7));
  in_a_thread(other_flush);
  EXPECT("7 2 4", 0, 8, 64);
  end();
}

/* ---- Punches, lengths ---- */

static void test_punch(void)
{
  begin("1");
  OK(persist_store64(p, 4096, 1));
  OK(persist_store64(p, 4096 + 64, 2));
  OK(persist_fence(p));
  OK(persist_punch(p, 4096, 4096));
  EXPECT("0 0, 0 2, 1 0, 1 2", 4096, 4096 + 64);
  /* Only a sync makes it durable, but a later store to its line is not durable without it. */
  persist_drain(p);
  EXPECT("0 0, 0 2, 1 0, 1 2", 4096, 4096 + 64);
  OK(persist_store64(p, 4096 + 8, 5));
  EXPECT("0 0 0, 0 0 2, 0 5 0, 0 5 2, 1 0 0, 1 0 2", 4096, 4096 + 8, 4096 + 64);
  persist_drain(p);
  EXPECT("0 5 0, 0 5 2", 4096, 4096 + 8, 4096 + 64);
  OK(persist_fence(p));
  EXPECT("0 5 0", 4096, 4096 + 8, 4096 + 64);
  end();
}

static void test_growth(void)
{
  begin("1");
  with_size = true;
  OK(persist_grow(p, 2 * SIZE));
  OK(persist_store64(p, SIZE, 1));
  persist_drain(p);
  EXPECT("0 /64, 1 /128", SIZE);
  OK(persist_grow(p, 3 * SIZE));
  OK(persist_store64(p, 2 * SIZE, 2));
  EXPECT("0 0 /64, 1 0 /128, 1 0 /192, 1 2 /192", SIZE, 2 * SIZE);
  OK(persist_fence(p));
  EXPECT("1 2 /192", SIZE, 2 * SIZE);
  end();
}

/* ---- Stores that nobody announces ---- */

static void test_unannounced(void)
{
  struct media_counts counts;
  uint64_t *words;

  begin("1");
  words = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
  CHECK(words != MAP_FAILED, "mmap");
  words[0] = 1;
  words[512] = 2;
  media_compare(media);
  words[0] = 3;
  persist_drain(p);
  EXPECT("0 0, 0 2, 1 0, 1 2, 3 0, 3 2", 4096, 8192);
  /* A flush of one of the two pages. */
  persist_flush_memory(p, words, 4096);
  EXPECT("0 0, 0 2, 1 0, 1 2, 3 0, 3 2", 4096, 8192);
  persist_drain(p);
  EXPECT("3 0, 3 2", 4096, 8192);
  words[1] = 4;
  persist_flush_memory(p, words, 8);
  words[0] = 0;
  persist_drain(p);
  EXPECT("0 4 0, 0 4 2, 3 4 0, 3 4 2", 4096, 4096 + 8, 8192);
  OK(persist_writeback(p, 4096, 8192));
  OK(persist_fence(p));
  EXPECT("0 4 2", 4096, 4096 + 8, 8192);
  words[8] = 9;
  OK(persist_sync(p));
  EXPECT("9", 4096 + 64);
  words[8] = 10;
  SYS(fdatasync(fd)); /* who is not persist */
  EXPECT("10", 4096 + 64);
  media_get_counts(media, &counts);
  CHECK(counts.unannounced == 7, "%" PRIu64 " stores that nobody announced", counts.unannounced);
  munmap(words, 8192);
  end();
}

/* ---- Page cache ---- */

static void test_page_cache(void)
{
  begin("0");
  OK(persist_store64(p, 0, 1));
  OK(persist_store64(p, 64, 2));    /* the same sector */
  OK(persist_store64(p, 512, 3));
  EXPECT("0 0 0, 0 0 3, 1 0 0, 1 0 3, 1 2 0, 1 2 3", 0, 64, 512);
  persist_drain(p);
  OK(persist_writeback(p, 0, 4096));
  EXPECT("0 0 0, 0 0 3, 1 0 0, 1 0 3, 1 2 0, 1 2 3", 0, 64, 512);
  OK(persist_fence(p));
  EXPECT("1 2 3", 0, 64, 512);
  OK(persist_punch(p, 0, 4096));
  EXPECT("0 0 0, 0 0 3, 1 2 0, 1 2 3", 0, 64, 512);
  in_a_thread(other_fence);         /* a sync covers what all have stored */
  EXPECT("0 0 0", 0, 64, 512);
  end();
}

/* ---- SIGKILL, settling, opening again ---- */

static void test_killed(void)
{
  struct media *old, *killed;
  struct persist *q;
  int copy;
  g_autofree char *dir = g_strdup_printf("%s-killed", media_dir);
  g_autofree char *name = g_strdup_printf("%s/file", dir);
  uint64_t word;

  begin("1");
  SYS(mkdir(dir, 0777));
  OK(persist_store64(p, 0, 1));
  OK(persist_fence(p));
  OK(persist_store64(p, 0, 2));
  OK(persist_store64(p, 64, 3));
  OK(persist_grow(p, 2 * SIZE));
  killed = media_killed(media, dir, NULL, NULL);
  with_size = true;
  EXPECT_OF(killed, "1 0 /128, 1 0 /64, 1 3 /128, 1 3 /64, 2 0 /128, 2 0 /64, 2 3 /128, 2 3 /64", 0, 64);
  copy = (int)SYS(open(name, O_RDWR));
  SYS(pread(copy, &word, 8, 0));
  CHECK(word == 2, "the file shows what all saw");
  old = media;
  OK(persist_open(copy, name, &q));
  OK(persist_fence(q));             /* the flushes were another process's; only the sync counts */
  EXPECT_OF(killed, "1 0 /128, 1 0 /64, 1 3 /128, 1 3 /64, 2 0 /128, 2 0 /64, 2 3 /128, 2 3 /64", 0, 64);
  OK(persist_writeback(q, 0, 64));
  OK(persist_fence(q));
  EXPECT_OF(killed, "2 0 /128, 2 0 /64, 2 3 /128, 2 3 /64", 0, 64);
  OK(persist_sync(q));
  EXPECT_OF(killed, "2 3 /128", 0, 64);
  EXPECT_OF(old, "1 0 /128, 1 0 /64, 1 3 /128, 1 3 /64, 2 0 /128, 2 0 /64, 2 3 /128, 2 3 /64", 0, 64);
  media_settle(old);
  EXPECT_OF(old, "2 3 /128", 0, 64);
  persist_close(q);
  media_free(killed);
  close(copy);
  unlink(name);
  rmdir(dir);

  /* Closed and opened again it is the same file. */
  OK(persist_store64(p, 0, 5));
  persist_close(p);
  EXPECT("2 /128, 5 /128", 0);
  OK(persist_open(fd, path, &p));
  EXPECT("2 /128, 5 /128", 0);
  end();
}

/* ---- Cuts ---- */

static unsigned cuts;

static void cut_in_fence(void *opaque)
{
  (void)opaque;
  cuts++;
  EXPECT("0, 1", 0);
}

static void test_cut(void)
{
  begin("1");
  media_free(NULL);
  persist_close(p);
  media_free(media);
  media = media_new(media_dir, 1, cut_in_fence, NULL);
  OK(persist_open(fd, path, &p));
  OK(persist_store64(p, 0, 1));
  OK(persist_fence(p));
  CHECK(cuts == 1, "%u cuts", cuts);
  EXPECT("1", 0);
  end();
}

/* ---- Too many ---- */

struct tally {
  unsigned all, none, one, all_but_one, torn, prefixes, states;
  GHashTable *hashes;
  uint64_t last;
};

static int tally_state(void *opaque, const struct media_state *s)
{
  struct tally *t = opaque;
  g_autofree char *file = g_strdup_printf("%s/file", state_dir);
  static uint8_t content[SIZE];
  GChecksum *sum = g_checksum_new(G_CHECKSUM_SHA1);
  int in = (int)SYS(open(file, O_RDWR));

  CHECK(SYS(pread(in, content, SIZE, 0)) == (long)SIZE, "a state of another length");
  CHECK(s->number == t->states, "states are numbered");
  g_checksum_update(sum, content, SIZE);
  CHECK(g_hash_table_add(t->hashes, g_strdup(g_checksum_get_string(sum))), "a state comes twice");
  g_checksum_free(sum);
  t->all += s->kept == s->pending;
  t->none += s->kept == 0;
  t->one += s->kept == 1;
  t->all_but_one += s->kept == s->pending - 1;
  t->torn += !strcmp(s->how, "torn sample");
  t->prefixes += !strcmp(s->how, "prefixes");
  t->states++;
  /* The next state is none the worse for it. */
  memset(content, 0xa5, SIZE);
  SYS(pwrite(in, content, SIZE, 0));
  SYS(ftruncate(in, 17 * 4096));
  close(in);
  return 0;
}

static void test_many(void)
{
  struct tally t = { .hashes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL) };
  struct rng rng = { 1 };
  uint8_t page[4096];

  begin("1");
  for (unsigned i = 0; i < 4; i++) {
    rng_fill(&rng, page, sizeof(page));
    OK(persist_copy(p, i * UINT64_C(8192), page, sizeof(page)));
  }
  OK(persist_store64(p, 4096, 1));
  CHECK(media_state_count(media) == UINT64_MAX, "more states than can be counted");
  OK(media_states(media, state_dir, 2000, tally_state, &t));
  /* Tearing gives others at which all lines are changed. */
  CHECK(t.none == 1 && t.all >= 1 && t.one >= 257 && t.all_but_one >= 257, "%u none, %u all, %u one, %u all but one",
        t.none, t.all, t.one, t.all_but_one);
  CHECK(t.states == 2000 && t.torn > 100 && t.prefixes > 100, "%u states, %u torn, %u prefixes", t.states, t.torn,
        t.prefixes);
  g_hash_table_unref(t.hashes);
  end();
}

static int stop_at_third(void *opaque, const struct media_state *s)
{
  (void)opaque;
  return s->number == 2 ? 42 : 0;
}

static void test_stop(void)
{
  begin("1");
  for (unsigned i = 0; i < 4; i++)
    OK(persist_store64(p, i * 64, 1));
  CHECK(media_states(media, state_dir, MANY, stop_at_third, NULL) == 42, "the result is returned");
  end();
}

int main(int argc, char **argv)
{
  test_force_pmem(argv);
  media_dir = g_strdup_printf("%s/media", test_dir(argc, argv));
  state_dir = g_strdup_printf("%s/state", test_dir(argc, argv));
  SYS(mkdir(media_dir, 0777));
  SYS(mkdir(state_dir, 0777));
  test_order_in_a_line();
  test_lines_are_independent();
  test_torn();
  test_fences_of_others();
  test_punch();
  test_growth();
  test_unannounced();
  test_page_cache();
  test_killed();
  test_cut();
  test_many();
  test_stop();
  return 0;
}
