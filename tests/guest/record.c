// SPDX-License-Identifier: BSD-3-Clause
//
// What a guest writes and what must be found again: numbered records of one page, each with a checksum. A
// record is acknowledged on the console after its fsync() returned; from then on it must be there, whatever
// happens. Linked statically, it runs in any guest.
//
//     record write FILE FIRST COUNT     append records; COUNT 0 means for ever
//     record verify FILE LAST           every record is whole and in its place, and LAST is among them (-1: none need be)

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096, WORDS = SIZE / 8 };

static const uint64_t magic = UINT64_C(0x6472636572776f63);

// Every word depends on the number, so that a page of another record, or half of one, is noticed.
static void fill(uint64_t *record, uint64_t number)
{
  uint64_t state = number * UINT64_C(0x9e3779b97f4a7c15) + 1;
  uint64_t sum = UINT64_C(0xcbf29ce484222325);
  record[0] = magic;
  record[1] = number;
  for (int i = 2; i < WORDS - 1; i++) { // xorshift64 (Marsaglia, 2003)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    record[i] = state;
  }
  for (int i = 0; i < WORDS - 1; i++) // FNV-1a, by words
    sum = (sum ^ record[i]) * UINT64_C(0x100000001b3);
  record[WORDS - 1] = sum;
}

static int die(const char *what, const char *file)
{
  fprintf(stderr, "record: %s %s: %s\n", what, file, strerror(errno));
  return 1;
}

static double now_ms(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int write_records(const char *file, uint64_t first, uint64_t count)
{
  uint64_t record[WORDS];
  int fd = open(file, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (fd < 0)
    return die("open", file);
  double last = now_ms(), longest = 0;
  for (uint64_t n = first; count == 0 || n < first + count; n++) {
    fill(record, n);
    if (write(fd, record, SIZE) != SIZE)
      return die("write", file);
    if (fsync(fd) != 0)
      return die("fsync", file);
    double t = now_ms();
    if (t - last > longest) {
      longest = t - last;
      printf("PAUSE %.1f\n", longest);
    }
    printf("ACK %" PRIu64 "\n", n);
    fflush(stdout);
    last = now_ms(); // the console's time is not counted
  }
  return close(fd) == 0 ? 0 : die("close", file);
}

static int verify(const char *file, int64_t last)
{
  uint64_t record[WORDS], wanted[WORDS];
  struct stat st;
  int fd = open(file, O_RDONLY);
  if (fd < 0 && errno == ENOENT && last < 0)
    return 0;
  if (fd < 0 || fstat(fd, &st) != 0)
    return die("open", file);
  int64_t count = st.st_size / SIZE;
  if (st.st_size % SIZE != 0) {
    fprintf(stderr, "record: %s ends within record %" PRId64 "\n", file, count);
    return 1;
  }
  for (int64_t n = 0; n < count; n++) {
    if (read(fd, record, SIZE) != SIZE)
      return die("read", file);
    fill(wanted, (uint64_t)n);
    if (memcmp(record, wanted, SIZE) != 0) {
      fprintf(stderr, "record: record %" PRId64 " of %s is not what was written\n", n, file);
      return 1;
    }
  }
  if (last >= count) {
    fprintf(stderr, "record: %s has %" PRId64 " records, but %" PRId64 " was acknowledged\n", file, count,
            last);
    return 1;
  }
  printf("VERIFIED %" PRId64 "\n", count);
  return 0;
}

int main(int argc, char **argv)
{
  if (argc == 5 && strcmp(argv[1], "write") == 0)
    return write_records(argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
  if (argc == 4 && strcmp(argv[1], "verify") == 0)
    return verify(argv[2], strtoll(argv[3], NULL, 10));
  fprintf(stderr, "usage: record write FILE FIRST COUNT | record verify FILE LAST\n");
  return 2;
}
