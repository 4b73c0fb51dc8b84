/* SPDX-License-Identifier: BSD-3-Clause
 *
 * persist_fill(): holes get content and space at once, nothing else changes, and where that is not
 * possible (a page that is there, no space, a file that ends before it, stores that only a sync makes
 * durable) it says so and leaves nothing that allocating and copying could not put right.
 */
#include "ground.h"

#include <sys/stat.h>
#include <sys/wait.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define BORDER (UINT64_C(64) * GIB)     /* of the mappings that persistfill.c fills through */
#define LENGTH (UINT64_C(6) * 4096)

static uint8_t *source;
static uint8_t got[LENGTH];

static struct persist *open_file(int fd, enum persist_mode mode)
{
  struct persist *p;

  set_mode(mode);
  ck_assert_int_eq(persist_open(fd, IMAGE_NAME, &p), 0);
  source = g_malloc(LENGTH);
  for (unsigned i = 0; i < LENGTH; i++)
    source[i] = (uint8_t)g_random_int_range(1, 256);
  return p;
}

static void close_file(struct persist *p, int fd)
{
  persist_close(p);
  close(fd);
  g_clear_pointer(&source, g_free);
}

static uint64_t blocks(int fd)
{
  struct stat st;

  ck_assert_int_eq(fstat(fd, &st), 0);
  return (uint64_t)st.st_blocks * 512;
}

static struct persist_counts counts(struct persist *p)
{
  struct persist_counts c;

  persist_get_counts(p, &c);
  return c;
}

/* The kernel may not let this process have a userfaultfd. */
static bool possible(void)
{
  int fd = memfd_create(IMAGE_NAME, MFD_CLOEXEC);
  struct persist *p = NULL;
  bool yes;

  set_mode(PERSIST_PMEM);
  yes = ftruncate(fd, MIB) == 0 && persist_open(fd, IMAGE_NAME, &p) == 0 && persist_fill(p, 0, NULL, 4096) == 0;
  persist_close(p);
  close(fd);
  return yes;
}

START_TEST(content)
{
  int fd = memory_file(2 * BORDER);
  struct persist *p = open_file(fd, PERSIST_PMEM);
  uint64_t at[] = { 0, 32 * 4096, BORDER - 2 * 4096 };

  for (unsigned i = 0; i < G_N_ELEMENTS(at); i++) {
    struct persist_counts before = counts(p);

    ck_assert_int_eq(persist_fill(p, at[i], source, LENGTH), 0);
    ck_assert_int_eq(persist_read(p, at[i], got, LENGTH), 0);
    ck_assert_int_eq(memcmp(got, source, LENGTH), 0);
    ck_assert_uint_eq(blocks(fd), (i + 1) * LENGTH);
    ck_assert_uint_eq(counts(p).copied_bytes - before.copied_bytes, LENGTH);
    ck_assert_uint_gt(counts(p).flushes, before.flushes);       /* it owes no more than a fence */
  }
  close_file(p, fd);
}
END_TEST

START_TEST(zeros)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, PERSIST_PMEM);

  ck_assert_int_eq(persist_fill(p, 4096, NULL, LENGTH), 0);
  ck_assert_uint_eq(blocks(fd), LENGTH);
  ck_assert_uint_eq(persist_seek(p, 0, MIB, true), 4096);
  ck_assert_uint_eq(persist_seek(p, 4096, MIB, false), 4096 + LENGTH);
  memset(got, 7, LENGTH);
  ck_assert_int_eq(persist_read(p, 4096, got, LENGTH), 0);
  for (unsigned i = 0; i < LENGTH; i++)
    ck_assert_uint_eq(got[i], 0);
  close_file(p, fd);
}
END_TEST

/* What is there stays: the caller decides what becomes of it. */
START_TEST(pages_that_are_there)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, PERSIST_PMEM);
  uint64_t word = 0;

  ck_assert_int_eq(persist_reserve(p, 2 * 4096, 8), 0);
  ck_assert_int_eq(persist_store64(p, 2 * 4096, 77), 0);
  ck_assert_int_eq(persist_fill(p, 0, source, LENGTH), -EAGAIN);
  ck_assert_int_eq(persist_read(p, 2 * 4096, &word, 8), 0);
  ck_assert_uint_eq(word, 77);
  ck_assert_int_eq(persist_fill(p, 2 * 4096, NULL, 4096), -EAGAIN);
  ck_assert_int_eq(persist_read(p, 2 * 4096, &word, 8), 0);
  ck_assert_uint_eq(word, 77);
  ck_assert_int_eq(persist_allocate(p, 0, LENGTH), 0);
  ck_assert_int_eq(persist_copy(p, 0, source, LENGTH), 0);
  ck_assert_int_eq(persist_read(p, 0, got, LENGTH), 0);
  ck_assert_int_eq(memcmp(got, source, LENGTH), 0);
  close_file(p, fd);
}
END_TEST

START_TEST(the_end_of_the_file)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, PERSIST_PMEM);

  ck_assert_int_eq(persist_fill(p, MIB - 4096, source, 2 * 4096), -EAGAIN);
  ck_assert_int_eq(persist_grow(p, 2 * MIB), 0);
  ck_assert_int_eq(persist_fill(p, MIB, source, LENGTH), 0);
  ck_assert_int_eq(persist_read(p, MIB, got, LENGTH), 0);
  ck_assert_int_eq(memcmp(got, source, LENGTH), 0);
  close_file(p, fd);
}
END_TEST

START_TEST(no_stage_for_a_page_cache)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, PERSIST_MSYNC);

  ck_assert_int_eq(persist_fill(p, 0, source, LENGTH), -EAGAIN);
  ck_assert_uint_eq(blocks(fd), 0);
  close_file(p, fd);
}
END_TEST

static bool is_mapped(void)
{
  g_autofree char *maps = NULL;

  return g_file_get_contents("/proc/self/maps", &maps, NULL, NULL) && strstr(maps, IMAGE_NAME);
}

START_TEST(a_child_has_no_stage)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, PERSIST_PMEM);
  int status = 1;
  pid_t child;

  ck_assert_int_eq(persist_fill(p, 0, source, LENGTH), 0);
  ck_assert(is_mapped());
  child = fork();
  if (child == 0)
    _exit(is_mapped());
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
  close_file(p, fd);
}
END_TEST

int main(void)
{
  Suite *s = suite_create("fill");
  TCase *c = tcase_create("all");
  SRunner *r;
  bool yes = possible();
  int failed;

  if (yes) {
    tcase_add_test(c, content);
    tcase_add_test(c, zeros);
    tcase_add_test(c, pages_that_are_there);
    tcase_add_test(c, the_end_of_the_file);
    tcase_add_test(c, a_child_has_no_stage);
  }
  tcase_add_test(c, no_stage_for_a_page_cache);
  suite_add_tcase(s, c);
  r = srunner_create(s);
  srunner_run_all(r, CK_ENV);
  failed = srunner_ntests_failed(r);
  srunner_free(r);
  if (!failed && !yes)
    printf("SKIP: no userfaultfd can be had here\n");
  return failed ? 1 : yes ? 0 : 77;
}
