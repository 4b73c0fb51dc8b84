/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the test programs share: failing with the place and libpcow's message, skipping with a reason,
 * a directory that goes away with the program, options, random numbers that a seed repeats. Checks
 * end the program; nothing here asserts a time.
 */
#ifndef PCOW_TESTLIB_H
#define PCOW_TESTLIB_H

#include <libpcow/libpcow.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)
#define PAGE ((uint64_t)PCOW_PAGE_SIZE)

/* ---- Results ------------------------------------------------------------------------------- */

/* Prints and exits 1. */
_Noreturn void test_fail(const char *file, int line, const char *format, ...)
  __attribute__((format(printf, 3, 4)));

/* Prints the reason and exits 77, which meson and automake count as skipped. */
_Noreturn void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* More about the state at a failure; called once by test_fail(). */
void test_on_failure(void (*fn)(void));

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition, ...)                                                                    \
  do {                                                                                           \
    if (!(condition))                                                                            \
      test_fail(__FILE__, __LINE__, __VA_ARGS__);                                                \
  } while (0)

/* A libpcow call that must succeed; its value. */
#define OK(call) test_ok(__FILE__, __LINE__, #call, (call))
/* A libpcow call that must give the error, with a message. */
#define GIVES(error, call) test_gives(__FILE__, __LINE__, #call, (call), (error))
/* A system call that must not return -1; its value. */
#define SYS(call) test_sys(__FILE__, __LINE__, #call, (long)(call))

int test_ok(const char *file, int line, const char *call, int result);
void test_gives(const char *file, int line, const char *call, int result, int error);
long test_sys(const char *file, int line, const char *call, long result);

/* ---- Set-up -------------------------------------------------------------------------------- */

/* Value of "NAME VALUE" or "NAME=VALUE" among the arguments, with suffixes K, M, G, T; else FALLBACK.
 * NULL and false: not given. */
uint64_t test_option(int argc, char **argv, const char *name, uint64_t fallback);
const char *test_option_string(int argc, char **argv, const char *name);
bool test_flag(int argc, char **argv, const char *name);

/* The seed of --seed, else from the clock; printed. */
uint64_t test_seed(int argc, char **argv);

/* The program's directory, made under --dir, $PCOW_TEST_DIR or /dev/shm at the first call and removed
 * when the process that made it ends ($PCOW_TEST_KEEP: kept). The library's log goes to stderr from then
 * on: errors, or all of it with $PCOW_TEST_LOG. With --eager N maps lay
 * out N pieces when they are made; 0: each unit is laid out at its first access. */
const char *test_dir(int argc, char **argv);

/* DIR/NAME; lives until the program ends. */
char *test_path(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* libpmem decides when it is loaded whether stores count as durable on tmpfs and page cache: runs the
 * program again with PMEM_IS_PMEM_FORCE=1 unless it is set, or the tests run on real DAX ($PCOW_TEST_DAX), where
 * nothing is to be emulated; or without it when it is. */
void test_force_pmem(char **argv);
void test_unforce_pmem(char **argv);

/* Maps for writing, store-durable; skips the program where this machine does not allow it. OPTIONS
 * may be NULL; its durability is set here. */
pcow_mapping *test_map(pcow_image *image, struct pcow_map_options *options);

/* The same, flush-durable: in either persist mode. */
pcow_mapping *test_map_flush(pcow_image *image, struct pcow_map_options *options);

/* For the rest of the program somebody who may not hold the kernel's own faults with userfaultfd(2): gives the
 * directory away and changes the user. Skips without root, and where everybody may. */
void test_become_nobody(void);

/* Both follow all bases: what does not is the business of test-untrusted.c. */
pcow_image *test_open(const char *path, uint32_t flags, const char *snapshot);
void test_create(const char *path, uint64_t size, uint64_t unit, const char *base,
                 uint32_t base_format, const char *base_snapshot);

/* pcow_check() that finds nothing wrong. */
void test_check_clean(const char *path);

struct pcow_mapping_stats test_stats(pcow_mapping *mapping);

bool test_is_tmpfs(const char *path);
uint64_t test_blocks(const char *path); /* bytes allocated to a file */

/* Memory, zeroed. Never NULL. */
void *test_alloc(size_t size);

/* ThreadSanitizer takes the library's mmap() over a mapping for a write to it. These accesses it does not
 * see; whole words. */
#define NO_TSAN __attribute__((no_sanitize("thread"), noinline))
void test_range_load(void *to, const volatile void *from, size_t length);
void test_range_store(volatile void *to, const void *from, size_t length);
#ifdef __SANITIZE_THREAD__
#define TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_TSAN 1
#endif
#endif
#ifndef TEST_TSAN
#define TEST_TSAN 0
#endif

/* ---- Random numbers ------------------------------------------------------------------------ */

struct rng {
  uint64_t state;
};

uint64_t rng_next(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t limit); /* 0 … limit - 1 */
bool rng_chance(struct rng *rng, unsigned percent);
void rng_fill(struct rng *rng, void *buffer, size_t length);

/* The 64-bit mix of splitmix64: a value that depends on every bit of X. */
uint64_t test_mix(uint64_t x);

/* A page that belongs to SEED, and whether a page is that one. */
void test_page_fill(void *page, uint64_t seed);
bool test_page_is(const void *page, uint64_t seed);

#endif
