/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See testlib.h. The directory of a run is removed in every way the program can end but SIGKILL; what
 * that leaves is removed by the next program that starts under the same parent.
 */
#include "testlib.h"

#include "mapping.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <limits.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define DIR_PREFIX "pcow-test."

static char dir_path[PATH_MAX];
static pid_t dir_owner;
static char **paths; /* what test_path() gave, so that leak checkers see an owner */
static size_t path_count;
static void (*failure_hook)(void);

/* ---- Results ------------------------------------------------------------------------------- */

void test_on_failure(void (*fn)(void))
{
  failure_hook = fn;
}

void test_fail(const char *file, int line, const char *format, ...)
{
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  va_list ap;

  pthread_mutex_lock(&lock); /* never unlocked: the first failure is the one to see */
  fflush(stdout);
  fprintf(stderr, "FAIL %s:%d: ", file, line);
  va_start(ap, format);
  vfprintf(stderr, format, ap);
  va_end(ap);
  fputc('\n', stderr);
  if (failure_hook)
    failure_hook();
  fflush(stderr);
  exit(1);
}

void test_skip(const char *format, ...)
{
  va_list ap;

  printf("SKIP: ");
  va_start(ap, format);
  vprintf(format, ap);
  va_end(ap);
  putchar('\n');
  exit(77);
}

int test_ok(const char *file, int line, const char *call, int result)
{
  if (result < 0)
    test_fail(file, line, "%s gave %d (%s): %s", call, result, strerror(-result), pcow_errormsg());
  return result;
}

void test_gives(const char *file, int line, const char *call, int result, int error)
{
  if (result != error)
    test_fail(file, line, "%s gave %d instead of %d (%s); last message: %s", call, result, error,
              strerror(-error), pcow_errormsg());
  if (!pcow_errormsg()[0])
    test_fail(file, line, "%s gave %d without a message", call, result);
}

long test_sys(const char *file, int line, const char *call, long result)
{
  if (result == -1)
    test_fail(file, line, "%s: %s", call, strerror(errno));
  return result;
}

/* ---- Set-up -------------------------------------------------------------------------------- */

const char *test_option_string(int argc, char **argv, const char *name)
{
  size_t length = strlen(name);

  for (int i = 1; i < argc; i++) {
    if (strncmp(argv[i], name, length) != 0)
      continue;
    if (argv[i][length] == '=')
      return argv[i] + length + 1;
    if (!argv[i][length] && i + 1 < argc)
      return argv[i + 1];
  }
  return NULL;
}

uint64_t test_option(int argc, char **argv, const char *name, uint64_t fallback)
{
  const char *text = test_option_string(argc, argv, name);
  char *end;
  uint64_t value;

  if (!text)
    return fallback;
  errno = 0;
  value = strtoull(text, &end, 0);
  for (const char *at = *end ? strchr("TGMK", *end) : NULL; at && *at; at++)
    value *= 1024;
  if (*end && strchr("TGMK", *end))
    end++;
  CHECK(end != text && !*end && !errno, "%s: '%s' is not a number", name, text);
  return value;
}

bool test_flag(int argc, char **argv, const char *name)
{
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], name) == 0)
      return true;
  return false;
}

uint64_t test_seed(int argc, char **argv)
{
  struct timespec now;
  uint64_t seed;

  clock_gettime(CLOCK_REALTIME, &now);
  seed = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + (uint64_t)getpid();
  seed = test_option(argc, argv, "--seed", test_mix(seed) >> 32);
  printf("seed %llu\n", (unsigned long long)seed);
  fflush(stdout);
  return seed;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
  (void)st;
  (void)type;
  (void)ftw;
  remove(path);
  return 0;
}

static void remove_tree(const char *path)
{
  nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void remove_dir(void)
{
  if (dir_path[0] && dir_owner == getpid() && !getenv("PCOW_TEST_KEEP"))
    remove_tree(dir_path);
}

/* A time limit's SIGTERM, or Ctrl-C: only what a signal handler may call. */
static void on_signal(int number)
{
  if (dir_path[0] && dir_owner == getpid() && fork() == 0) {
    execl("/bin/rm", "rm", "-rf", "--", dir_path, (char *)NULL);
    _exit(127);
  }
  signal(number, SIG_DFL);
  raise(number);
}

static void remove_stale(const char *parent)
{
  DIR *dir = opendir(parent);
  struct dirent *entry;

  if (!dir)
    return;
  while ((entry = readdir(dir))) {
    const char *dot = strrchr(entry->d_name, '.');
    char path[PATH_MAX];

    if (strncmp(entry->d_name, DIR_PREFIX, strlen(DIR_PREFIX)) != 0 || !dot)
      continue;
    if (kill((pid_t)atol(dot + 1), 0) == 0 || errno != ESRCH)
      continue;
    if (snprintf(path, sizeof path, "%s/%s", parent, entry->d_name) < (int)sizeof path)
      remove_tree(path);
  }
  closedir(dir);
}

static void print_log(void *opaque, int level, const char *message)
{
  (void)opaque;
  if (level <= PCOW_LOG_ERROR || getenv("PCOW_TEST_LOG"))
    fprintf(stderr, "log: %s\n", message);
}

const char *test_dir(int argc, char **argv)
{
  const char *parent = test_option_string(argc, argv, "--dir");
  const char *program = strrchr(argv[0], '/');

  if (dir_path[0])
    return dir_path;
  mapping_override_eager(test_option(argc, argv, "--eager", UINT64_MAX));
  if (!parent)
    parent = getenv("PCOW_TEST_DIR");
  if (!parent || !*parent)
    parent = "/dev/shm";
  if (!getenv("PCOW_TEST_KEEP"))
    remove_stale(parent);
  pcow_set_log(print_log, NULL);
  dir_owner = getpid();
  snprintf(dir_path, sizeof dir_path, "%s/" DIR_PREFIX "%s.%ld", parent,
           program ? program + 1 : argv[0], (long)dir_owner);
  SYS(mkdir(dir_path, 0700));
  atexit(remove_dir);
  signal(SIGTERM, on_signal);
  signal(SIGINT, on_signal);
  return dir_path;
}

char *test_path(const char *format, ...)
{
  char *name = NULL, *path = NULL;
  va_list ap;

  va_start(ap, format);
  SYS(vasprintf(&name, format, ap));
  va_end(ap);
  SYS(asprintf(&path, "%s/%s", dir_path, name));
  free(name);
  paths = realloc(paths, (path_count + 1) * sizeof *paths);
  CHECK(paths, "out of memory");
  return paths[path_count++] = path;
}

void test_force_pmem(char **argv)
{
  const char *now = getenv("PMEM_IS_PMEM_FORCE");

  if (getenv("PCOW_TEST_DAX") || (now && strcmp(now, "1") == 0))
    return;
  setenv("PMEM_IS_PMEM_FORCE", "1", 1);
  execv("/proc/self/exe", argv);
  FAIL("cannot run the program again: %s", strerror(errno));
}

void test_unforce_pmem(char **argv)
{
  if (!getenv("PMEM_IS_PMEM_FORCE"))
    return;
  unsetenv("PMEM_IS_PMEM_FORCE");
  execv("/proc/self/exe", argv);
  FAIL("cannot run the program again: %s", strerror(errno));
}

static pcow_mapping *map_writable(pcow_image *image, struct pcow_map_options *options, uint32_t durability)
{
  struct pcow_map_options plain = PCOW_INIT(plain);
  pcow_mapping *mapping = NULL;
  int result;

  if (!options)
    options = &plain;
  options->durability = durability;
  result = pcow_map(image, options, &mapping);
  if (result == -EPERM || (result == -ENOTSUP && durability == PCOW_FLUSH_DURABLE))
    test_skip("this machine does not let the test map: %s", pcow_errormsg());
  test_ok(__FILE__, __LINE__, "pcow_map()", result);
  CHECK(mapping, "pcow_map() gave no mapping");
  return mapping;
}

pcow_mapping *test_map(pcow_image *image, struct pcow_map_options *options)
{
  return map_writable(image, options, PCOW_STORE_DURABLE);
}

pcow_mapping *test_map_flush(pcow_image *image, struct pcow_map_options *options)
{
  return map_writable(image, options, PCOW_FLUSH_DURABLE);
}

void test_become_nobody(void)
{
  const uid_t nobody = 65534;
  char may = '0';
  int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);

  if (fd >= 0) {
    SYS(read(fd, &may, 1));
    close(fd);
  }
  if (getuid() != 0)
    test_skip("becoming nobody needs root");
  if (may != '0')
    test_skip("vm.unprivileged_userfaultfd is not 0");
  SYS(chown(dir_path, nobody, nobody));
  SYS(setgroups(0, NULL));
  SYS(setresgid(nobody, nobody, nobody));
  SYS(setresuid(nobody, nobody, nobody));
  /* As in a program that was started so. */
  SYS(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

pcow_image *test_open(const char *path, uint32_t flags, const char *snapshot)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  int result;

  options.flags = flags | PCOW_OPEN_BASES;
  options.snapshot = snapshot;
  result = pcow_open(path, &options, &image);
  CHECK(result >= 0, "pcow_open(%s, flags %u, snapshot %s) gave %d: %s", path, flags,
        snapshot ? snapshot : "-", result, pcow_errormsg());
  return image;
}

void test_create(const char *path, uint64_t size, uint64_t unit, const char *base,
                 uint32_t base_format, const char *base_snapshot)
{
  struct pcow_create_options options = PCOW_INIT(options);
  int result;

  options.flags = PCOW_CREATE_BASES;
  options.unit_size = unit;
  options.base = base;
  options.base_format = base_format;
  options.base_snapshot = base_snapshot;
  result = pcow_create(path, size, &options);
  CHECK(result >= 0, "pcow_create(%s, %llu) over %s gave %d: %s", path, (unsigned long long)size,
        base ? base : "nothing", result, pcow_errormsg());
}

static void print_finding(void *opaque, const char *finding)
{
  fprintf(stderr, "check of %s: %s\n", (const char *)opaque, finding);
}

void test_check_clean(const char *path)
{
  struct pcow_check_result result = PCOW_INIT(result);
  struct stat st;
  int error = pcow_check(path, 0, &result, print_finding, NULL, (void *)(uintptr_t)path);

  CHECK(error >= 0, "pcow_check(%s) gave %d: %s", path, error, pcow_errormsg());
  /* Where stores go through a page cache (which PMEM_IS_PMEM_FORCE does) or to huge pages, the first one
   * to a large folio gives blocks to all of it, in a neighbouring slot that is free, too. */
  SYS(stat(path, &st));
  if (st.st_blksize > (blksize_t)PAGE || (getenv("PMEM_IS_PMEM_FORCE") && !test_is_tmpfs(path)))
    result.leaks = 0;
  CHECK(!result.corruptions && !result.leaks, "%s: %llu corruptions, %llu leaks", path,
        (unsigned long long)result.corruptions, (unsigned long long)result.leaks);
}

struct pcow_mapping_stats test_stats(pcow_mapping *mapping)
{
  struct pcow_mapping_stats stats = PCOW_INIT(stats);

  OK(pcow_mapping_get_stats(mapping, &stats));
  return stats;
}

bool test_is_tmpfs(const char *path)
{
  struct statfs fs;

  SYS(statfs(path, &fs));
  return fs.f_type == TMPFS_MAGIC;
}

uint64_t test_blocks(const char *path)
{
  struct stat st;

  SYS(stat(path, &st));
  return (uint64_t)st.st_blocks * 512;
}

void *test_alloc(size_t size)
{
  void *memory = calloc(1, size ? size : 1);

  CHECK(memory, "out of memory (%zu bytes)", size);
  return memory;
}

NO_TSAN void test_range_load(void *to, const volatile void *from, size_t length)
{
  for (size_t i = 0; i < length / 8; i++)
    ((volatile uint64_t *)to)[i] = ((const volatile uint64_t *)from)[i];
}

NO_TSAN void test_range_store(volatile void *to, const void *from, size_t length)
{
  for (size_t i = 0; i < length / 8; i++)
    ((volatile uint64_t *)to)[i] = ((const volatile uint64_t *)from)[i];
}

/* ---- Random numbers ------------------------------------------------------------------------ */

uint64_t test_mix(uint64_t x)
{
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

uint64_t rng_next(struct rng *rng)
{
  return test_mix(rng->state += UINT64_C(0x9e3779b97f4a7c15));
}

uint64_t rng_below(struct rng *rng, uint64_t limit)
{
  return limit ? rng_next(rng) % limit : 0;
}

bool rng_chance(struct rng *rng, unsigned percent)
{
  return rng_below(rng, 100) < percent;
}

void rng_fill(struct rng *rng, void *buffer, size_t length)
{
  unsigned char *to = buffer;

  for (; length >= 8; length -= 8, to += 8)
    memcpy(to, &(uint64_t){ rng_next(rng) }, 8);
  if (length)
    memcpy(to, &(uint64_t){ rng_next(rng) }, length);
}

void test_page_fill(void *page, uint64_t seed)
{
  uint64_t *word = page, value = test_mix(seed);

  for (unsigned i = 0; i < PAGE / 8; i++)
    word[i] = value + i;
}

bool test_page_is(const void *page, uint64_t seed)
{
  const uint64_t *word = page;
  uint64_t value = test_mix(seed);

  for (unsigned i = 0; i < PAGE / 8; i++)
    if (word[i] != value + i)
      return false;
  return true;
}
