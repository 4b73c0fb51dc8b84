/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The persist layer in both modes: stores and reads agree, also across the borders of its mappings and
 * from several threads; what a fence costs and that its failure stays; reserving on a full file system
 * is an error and never a signal. The last one mounts a small tmpfs; where that is not permitted the
 * program says so and, all else being well, exits 77.
 */
#include "ground.h"

#include <endian.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define BORDER (UINT64_C(64) * GIB)     /* of the mappings that persist.c stores through */

static struct persist *open_file(int fd, enum persist_mode mode)
{
  struct persist *p;

  set_mode(mode);
  ck_assert_int_eq(persist_open(fd, IMAGE_NAME, &p), 0);
  ck_assert_int_eq(persist_get_mode(p), mode);
  return p;
}

static uint64_t file_blocks(int fd)
{
  struct stat st;

  ck_assert_int_eq(fstat(fd, &st), 0);
  return (uint64_t)st.st_blocks * 512;
}

static uint64_t word_at(int fd, uint64_t offset)
{
  uint64_t word;

  ck_assert_int_eq(pread(fd, &word, 8, (off_t)offset), 8);
  return le64toh(word);
}

START_TEST(modes)
{
  int fd = memory_file(4096);

  set_mode(PERSIST_PMEM);
  ck_assert_int_eq(persist_detect(fd), PERSIST_PMEM);
  set_mode(PERSIST_MSYNC);
  ck_assert_int_eq(persist_detect(fd), PERSIST_MSYNC);
  unsetenv("PMEM_IS_PMEM_FORCE");
  ck_assert_int_eq(persist_detect(fd), PERSIST_MSYNC); /* tmpfs cannot MAP_SYNC */
  ck_assert(persist_is_tmpfs(fd));
  close(fd);
  fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  ck_assert(!persist_is_tmpfs(fd));
  close(fd);
}
END_TEST

/* ---- Stores, with _i as the mode ---- */

START_TEST(copies)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  uint8_t *model = g_malloc0(MIB);
  uint8_t *got = g_malloc(MIB);
  uint8_t *source = g_malloc(MIB);

  for (unsigned i = 0; i < MIB; i++)
    source[i] = (uint8_t)g_random_int();
  for (unsigned i = 0; i < 2000; i++) {
    size_t length = (size_t)g_random_int_range(0, i % 10 ? 600 : 70000);
    size_t from = (size_t)g_random_int_range(0, (int)(MIB - length));
    size_t to = (size_t)g_random_int_range(0, (int)(MIB - length));

    if (persist_copy(p, to, source + from, length))
      ck_abort_msg("%s", error_message());
    memcpy(model + to, source + from, length);
  }
  ck_assert_int_eq(persist_fence(p), 0);
  ck_assert_int_eq(persist_read(p, 0, got, MIB), 0);
  ck_assert(!memcmp(model, got, MIB));
  ck_assert_int_eq(persist_read(p, MIB - 10, got, 11), -EUCLEAN);
  ck_assert_message(IMAGE_NAME ": is truncated");
  persist_close(p);
  close(fd);
  g_free(model);
  g_free(got);
  g_free(source);
}
END_TEST

START_TEST(words)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  uint8_t first;

  ck_assert_int_eq(persist_store64(p, 4096, 0x0102030405060708), 0);
  ck_assert_int_eq(persist_or64(p, 4096, 0xf000000000000000), 0);
  ck_assert_int_eq(persist_or64(p, 4104, 1), 0);
  ck_assert_uint_eq(word_at(fd, 4096), 0xf102030405060708);
  ck_assert_uint_eq(word_at(fd, 4104), 1);
  ck_assert_uint_eq(word_at(fd, 4088), 0);
  ck_assert_int_eq(persist_read(p, 4096, &first, 1), 0);
  ck_assert_uint_eq(first, 8); /* little-endian */
  ck_assert_int_eq(persist_fence(p), 0);
  persist_close(p);
  close(fd);
}
END_TEST

static unsigned count_vmas(void)
{
  char *maps;
  unsigned n = 0;

  ck_assert(g_file_get_contents("/proc/self/maps", &maps, NULL, NULL));
  for (char *at = maps; (at = strstr(at, "memfd:" IMAGE_NAME)); at++)
    n++;
  g_free(maps);
  return n;
}

START_TEST(borders)
{
  int fd = memory_file(20 * BORDER);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  uint8_t data[10000];
  uint8_t got[sizeof(data)];

  for (unsigned i = 0; i < sizeof(data); i++)
    data[i] = (uint8_t)(i * 7);
  for (uint64_t i = 1; i < 20; i++) {
    uint64_t start = i * BORDER - 5001;

    ck_assert_int_eq(persist_store64(p, i * BORDER + 65536 - 8, i), 0);
    ck_assert_int_eq(persist_or64(p, i * BORDER - 65536, i), 0);
    ck_assert_int_eq(persist_copy(p, start, data, sizeof(data)), 0);
    ck_assert_int_eq(persist_read(p, start, got, sizeof(got)), 0);
    ck_assert_mem_eq(data, got, sizeof(data));
    ck_assert_uint_eq(word_at(fd, i * BORDER + 65536 - 8), i);
    ck_assert_uint_eq(word_at(fd, i * BORDER - 65536), i);
  }
  ck_assert_int_eq(persist_writeback(p, 0, 20 * BORDER), 0);
  ck_assert_int_eq(persist_fence(p), 0);
  ck_assert_uint_le(count_vmas(), 20); /* all of a file of 1280 GiB can be stored to */
  ck_assert_uint_lt(file_blocks(fd), 2 * MIB);
  persist_close(p);
  ck_assert_uint_eq(count_vmas(), 0);
  close(fd);
}
END_TEST

#define THREADS 8u

struct work {
  struct persist *p;
  unsigned number;
  void (*run)(struct work *work);
};

static gpointer worker(gpointer data)
{
  struct work *work = data;

  work->run(work);
  return NULL;
}

static void run_threads(struct persist *p, void (*run)(struct work *work))
{
  struct work work[THREADS];
  GThread *threads[THREADS];

  for (unsigned i = 0; i < THREADS; i++) {
    work[i] = (struct work){ .p = p, .number = i, .run = run };
    threads[i] = g_thread_new("worker", worker, &work[i]);
  }
  for (unsigned i = 0; i < THREADS; i++)
    g_thread_join(threads[i]);
}

/* Each thread sets its own bits of words that all share, in mappings that all need at the same time. */
static void set_bits(struct work *work)
{
  for (uint64_t i = 0; i < 20; i++) {
    if (persist_reserve(work->p, i * BORDER + 4096, 100 * 8))
      ck_abort_msg("%s", error_message());
    for (uint64_t word = 0; word < 100; word++)
      for (uint64_t bit = work->number; bit < 64; bit += THREADS)
        if (persist_or64(work->p, i * BORDER + 4096 + word * 8, UINT64_C(1) << bit))
          ck_abort_msg("%s", error_message());
    if (persist_fence(work->p))
      ck_abort_msg("%s", error_message());
  }
}

START_TEST(bits_of_many_threads)
{
  int fd = memory_file(20 * BORDER);
  struct persist *p = open_file(fd, (enum persist_mode)_i);

  run_threads(p, set_bits);
  for (uint64_t i = 0; i < 20; i++)
    for (uint64_t word = 0; word < 100; word++)
      if (word_at(fd, i * BORDER + 4096 + word * 8) != ~UINT64_C(0))
        ck_abort_msg("bits were lost");
  ck_assert_uint_le(count_vmas(), 20);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(a_child_does_not_have_the_mappings)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  int status;
  pid_t child;

  ck_assert_int_eq(persist_store64(p, 0, 1), 0);
  ck_assert_uint_eq(count_vmas(), 1);
  child = fork();
  ck_assert_int_ge(child, 0);
  if (child == 0)
    _exit(count_vmas() ? 1 : 0);
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert_int_eq(status, 0);
  persist_close(p);
  close(fd);
}
END_TEST

/* ---- Blocks ---- */

static uint64_t block_changes(struct persist *p)
{
  struct persist_counts counts;

  persist_get_counts(p, &counts);
  return counts.block_changes;
}

START_TEST(reserving)
{
  int fd = memory_file(GIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  uint64_t before;

  ck_assert_int_eq(persist_reserve(p, 4095, 2), 0); /* a byte of each of two pages */
  ck_assert_uint_eq(file_blocks(fd), 8192);
  before = block_changes(p);
  ck_assert_int_eq(persist_reserve(p, 0, 8192), 0);
  ck_assert_int_eq(persist_reserve(p, 100, 8), 0);
  ck_assert_uint_eq(block_changes(p), before); /* remembered */
  ck_assert_int_eq(persist_reserve(p, 60 * 4096, 140 * 4096), 0); /* over chunks */
  ck_assert_uint_eq(file_blocks(fd), 142 * 4096);
  before = block_changes(p);
  ck_assert_int_eq(persist_reserve(p, 60 * 4096, 140 * 4096), 0);
  ck_assert_uint_eq(block_changes(p), before);

  /* what was punched is not remembered, whichever way it was found */
  ck_assert_int_eq(persist_store64(p, 61 * 4096, 5), 0);
  ck_assert_int_eq(persist_punch(p, 61 * 4096, 4096), 0);
  ck_assert_uint_eq(word_at(fd, 61 * 4096), 0);
  ck_assert_uint_eq(file_blocks(fd), 141 * 4096);
  ck_assert_int_eq(persist_reserve(p, 61 * 4096, 8), 0);
  ck_assert_uint_eq(file_blocks(fd), 142 * 4096);
  ck_assert_int_eq(persist_punch(p, 0, GIB), 0);
  ck_assert_uint_eq(file_blocks(fd), 0);
  ck_assert_int_eq(persist_reserve(p, 199 * 4096, 1), 0);
  ck_assert_uint_eq(file_blocks(fd), 4096);
  ck_assert_int_eq(persist_reserve(p, 0, 0), 0);
  ck_assert_int_eq(persist_allocate(p, 0, 0), 0);
  ck_assert_int_eq(persist_punch(p, 0, 0), 0);
  ck_assert_uint_eq(file_blocks(fd), 4096);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(allocating_keeps_content_and_size)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  struct stat st;

  ck_assert_int_eq(persist_copy(p, 8192, "content", 7), 0);
  ck_assert_int_eq(persist_allocate(p, 0, MIB), 0);
  ck_assert_uint_eq(file_blocks(fd), MIB);
  ck_assert_uint_eq(word_at(fd, 8192), 0x00746e65746e6f63);
  ck_assert_uint_eq(word_at(fd, 4096), 0);
  ck_assert_int_eq(fstat(fd, &st), 0);
  ck_assert_int_eq(st.st_size, MIB);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(growing)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  struct stat st;

  ck_assert_int_eq(persist_store64(p, 0, 1), 0); /* the mapping is there before the file has grown */
  ck_assert_int_eq(persist_grow(p, GIB), 0);
  ck_assert_int_eq(persist_store64(p, GIB - 8, 7), 0);
  ck_assert_uint_eq(word_at(fd, GIB - 8), 7);
  ck_assert_int_eq(persist_grow(p, MIB), 0); /* never smaller */
  ck_assert_int_eq(fstat(fd, &st), 0);
  ck_assert_uint_eq((uint64_t)st.st_size, GIB);
  ck_assert_int_eq(persist_grow(p, UINT64_C(1) << 63), -EFBIG);
  ck_assert_message("allows no file of 9223372036854775808 bytes");
  ck_assert_int_eq(persist_fence(p), 0);
  persist_close(p);
  close(fd);
}
END_TEST

static void grow_by_steps(struct work *work)
{
  for (uint64_t i = 1; i <= 200; i++)
    if (persist_grow(work->p, i * MIB + work->number * 4096) ||
        persist_store64(work->p, i * MIB - 8, i))
      ck_abort_msg("%s", error_message());
}

START_TEST(growing_by_many_threads)
{
  int fd = memory_file(0);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  struct stat st;

  run_threads(p, grow_by_steps);
  ck_assert_int_eq(fstat(fd, &st), 0);
  ck_assert_uint_eq((uint64_t)st.st_size, 200 * MIB + (THREADS - 1) * 4096);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(seeking)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);

  ck_assert_int_eq(persist_store64(p, 16384, 1), 0);
  ck_assert_uint_eq(persist_seek(p, 0, MIB, true), 16384);
  ck_assert_uint_eq(persist_seek(p, 0, MIB, false), 0);
  ck_assert_uint_eq(persist_seek(p, 16390, MIB, true), 16390);
  ck_assert_uint_eq(persist_seek(p, 16384, MIB, false), 20480);
  ck_assert_uint_eq(persist_seek(p, 16384, 18000, false), 18000);
  ck_assert_uint_eq(persist_seek(p, 20480, MIB, true), MIB);
  ck_assert_uint_eq(persist_seek(p, 0, 8192, true), 8192);
  ck_assert_uint_eq(persist_seek(p, 2 * MIB, 3 * MIB, true), 3 * MIB); /* beyond the end */
  ck_assert_uint_eq(persist_seek(p, 2 * MIB, 3 * MIB, false), 2 * MIB);
  ck_assert_uint_eq(persist_seek(p, 5, 5, true), 5);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(writing_back_touches_data_alone)
{
  int fd = memory_file(100 * MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  struct persist_counts before;
  struct persist_counts after;

  ck_assert_int_eq(pwrite(fd, "x", 1, 0), 1); /* by somebody else */
  ck_assert_int_eq(pwrite(fd, "x", 1, 50 * MIB), 1);
  persist_get_counts(p, &before);
  ck_assert_int_eq(persist_writeback(p, 0, 100 * MIB), 0);
  ck_assert_int_eq(persist_writeback(p, 4096, 0), 0);
  persist_get_counts(p, &after);
  ck_assert_uint_eq(after.flushes - before.flushes, _i == PERSIST_PMEM ? 2 : 0);
  ck_assert_uint_eq(file_blocks(fd), 8192);
  persist_close(p);
  close(fd);
}
END_TEST

/* ---- Fences ---- */

static uint64_t syncs(struct persist *p)
{
  struct persist_counts counts;

  persist_get_counts(p, &counts);
  return counts.syncs;
}

START_TEST(what_a_fence_costs)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);
  uint64_t before = syncs(p);

  for (unsigned i = 0; i < 3; i++) {
    ck_assert_int_eq(persist_store64(p, 0, i), 0);
    ck_assert_int_eq(persist_fence(p), 0);
  }
  ck_assert_uint_eq(syncs(p) - before, _i == PERSIST_PMEM ? 0 : 3);
  before = syncs(p);
  ck_assert_int_eq(persist_punch(p, 0, 4096), 0);
  ck_assert_int_eq(persist_grow(p, 2 * MIB), 0);
  ck_assert_int_eq(persist_allocate(p, 0, 8192), 0);
  ck_assert_int_eq(persist_fence(p), 0);
  ck_assert_uint_eq(syncs(p) - before, 1); /* for all of them */
  before = syncs(p);
  ck_assert_int_eq(persist_grow(p, MIB), 0); /* is that large: nothing is owed */
  persist_drain(p);
  ck_assert_int_eq(persist_fence(p), 0);
  ck_assert_uint_eq(syncs(p) - before, _i == PERSIST_PMEM ? 0 : 1);
  persist_close(p);
  close(fd);
}
END_TEST

static void punch_and_fence(struct work *work)
{
  for (unsigned i = 0; i < 500; i++)
    if (persist_punch(work->p, work->number * 4096, 4096) || persist_fence(work->p))
      ck_abort_msg("%s", error_message());
}

START_TEST(fences_of_many_threads_share_syncs)
{
  int fd = memory_file(MIB);
  struct persist *p = open_file(fd, (enum persist_mode)_i);

  run_threads(p, punch_and_fence);
  ck_assert_uint_ge(syncs(p), 500); /* a thread's debt is never paid by a sync that began before it */
  ck_assert_uint_le(syncs(p), 500 * THREADS);
  persist_close(p);
  close(fd);
}
END_TEST

START_TEST(a_failed_fence_stays_failed)
{
  int fd = memory_file(MIB);
  int keep = dup(fd);
  struct persist *p = open_file(fd, (enum persist_mode)_i);

  ck_assert_int_eq(persist_punch(p, 0, 4096), 0);
  close(fd); /* the only way to make a sync of tmpfs fail */
  ck_assert_int_eq(persist_fence(p), -EBADF);
  ck_assert_message(IMAGE_NAME ": cannot make the file durable");
  ck_assert_int_eq(dup2(keep, fd), fd);
  ck_assert_int_eq(persist_fence(p), -EBADF);
  ck_assert_int_eq(persist_fence(p), -EBADF);
  persist_close(p);
  close(fd);
  close(keep);
}
END_TEST

/* ---- A full file system ---- */

/* A tmpfs of 1 MiB in a mount namespace of the calling process; its directory. NULL with *REASON. */
static char *mount_small_tmpfs(const char **reason)
{
  char *dir;

  if (unshare(CLONE_NEWNS) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) {
    *reason = "no mount namespace can be made here";
    return NULL;
  }
  dir = g_dir_make_tmp("pcow-persist.XXXXXX", NULL);
  if (!dir) {
    *reason = "no temporary directory can be made";
    return NULL;
  }
  if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
      mount("pcow-test", dir, "tmpfs", 0, "size=1m") < 0) {
    *reason = "tmpfs cannot be mounted here";
    rmdir(dir);
    g_free(dir);
    return NULL;
  }
  return dir;
}

static void unmount_small_tmpfs(char *dir)
{
  umount2(dir, MNT_DETACH);
  rmdir(dir);
  g_free(dir);
}

START_TEST(a_full_file_system)
{
  const char *reason = "";
  char *dir = mount_small_tmpfs(&reason);
  char *path = g_build_filename(dir, "image", NULL);
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct persist *p;
  uint64_t used;

  ck_assert_msg(fd >= 0 && ftruncate(fd, GIB) == 0, "%s", reason);
  set_mode((enum persist_mode)_i);
  ck_assert_int_eq(persist_open(fd, path, &p), 0);
  ck_assert_int_eq(persist_reserve(p, 0, MIB / 2), 0);
  ck_assert_int_eq(persist_store64(p, 0, 1), 0);
  used = file_blocks(fd);

  ck_assert_int_eq(persist_reserve(p, MIB, MIB), -ENOSPC);
  ck_assert_message(path);
  ck_assert_message(": no space left on the file system (");
  ck_assert_message(" at offset 1048576 needed)");
  ck_assert_int_eq(persist_allocate(p, 4 * MIB, MIB), -ENOSPC);
  ck_assert_message("(1048576 bytes at offset 4194304 needed)");
  ck_assert_uint_eq(persist_seek(p, 4 * MIB, 5 * MIB, true), 5 * MIB); /* nothing was left behind */
  while (persist_reserve(p, used, 4096) == 0)
    used += 4096;
  ck_assert_uint_eq(file_blocks(fd), MIB);
  ck_assert_int_eq(persist_store64(p, used - 8, 9), 0); /* in the last page that there is */
  ck_assert_int_eq(persist_reserve(p, 0, 4096), 0);     /* what is there is there */
  ck_assert_int_eq(persist_reserve(p, used, 8), -ENOSPC);

  ck_assert_int_eq(persist_punch(p, 4096, 4096), 0); /* space was made */
  ck_assert_int_eq(persist_reserve(p, used, 8), 0);
  ck_assert_int_eq(persist_store64(p, used, 3), 0);
  ck_assert_int_eq(persist_reserve(p, 4096, 8), -ENOSPC); /* and is not remembered where it was */
  ck_assert_uint_eq(word_at(fd, 0), 1);
  ck_assert_int_eq(persist_fence(p), 0);
  persist_close(p);
  close(fd);
  g_free(path);
  unmount_small_tmpfs(dir);
}
END_TEST

/* In a process of its own, so that this one keeps its namespace. */
static bool can_mount(void)
{
  int status = 1;
  pid_t child = fork();

  if (child == 0) {
    const char *reason;
    char *dir = mount_small_tmpfs(&reason);

    if (!dir)
      printf("SKIP: a full file system was not tested: %s\n", reason);
    else
      unmount_small_tmpfs(dir);
    fflush(stdout);
    _exit(!dir);
  }
  return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(void)
{
  Suite *suite = suite_create("persist");
  TCase *t = tcase_create("persist");
  bool mounts = can_mount();
  int result;

  tcase_add_test(t, modes);
  tcase_add_loop_test(t, copies, 0, 2);
  tcase_add_loop_test(t, words, 0, 2);
  tcase_add_loop_test(t, borders, 0, 2);
  tcase_add_loop_test(t, bits_of_many_threads, 0, 2);
  tcase_add_loop_test(t, a_child_does_not_have_the_mappings, 0, 2);
  tcase_add_loop_test(t, reserving, 0, 2);
  tcase_add_loop_test(t, allocating_keeps_content_and_size, 0, 2);
  tcase_add_loop_test(t, growing, 0, 2);
  tcase_add_loop_test(t, growing_by_many_threads, 0, 2);
  tcase_add_loop_test(t, seeking, 0, 2);
  tcase_add_loop_test(t, writing_back_touches_data_alone, 0, 2);
  tcase_add_loop_test(t, what_a_fence_costs, 0, 2);
  tcase_add_loop_test(t, fences_of_many_threads_share_syncs, 0, 2);
  tcase_add_loop_test(t, a_failed_fence_stays_failed, 0, 2);
  if (mounts)
    tcase_add_loop_test(t, a_full_file_system, 0, 2);
  suite_add_tcase(suite, t);
  result = run_suite(suite);
  return result == 0 && !mounts ? 77 : result;
}
