// SPDX-License-Identifier: BSD-3-Clause
//
// What a disk of the guest writes into persistent memory: reads from the disk with O_DIRECT into the mapping of
// a file on a DAX file system. Each read is a step; which blocks it brings where follows from its number
// alone, so that the file can be checked later, by the number of the last step that was acknowledged. Steps are
// acknowledged on the console after a flush; from then on what they brought must be there, whatever happens.
// Every fourth page is the CPU's: no read goes there, and what it holds is not checked. First writes after a
// snapshot make the host copy pages beside them, too, while the disk writes to those.
//
//     dma disk FILE                     makes the disk's content
//     dma run FILE DISK                 for ever; other threads flush, and store to the CPU's pages, all the time
//     dma verify FILE LAST NEWEST       all steps to LAST are there, of those to NEWEST what there is
//
// Linked statically, it runs in any guest.

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, BLOCKS = 8192, RUN = 64, STEPS_PER_ACK = 2, CPU_EVERY = 4 };

static int die(const char *what, const char *file)
{
  fprintf(stderr, "dma: %s %s: %s\n", what, file, strerror(errno));
  return 1;
}

static uint64_t word(uint64_t block, int i)
{
  return (block + 1) << 20 | (uint64_t)i;
}

struct step {
  uint64_t page, block, count;
};

static struct step step_of(uint64_t number, uint64_t pages)
{
  uint64_t x = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);
  struct step s;

  x ^= x >> 29;
  x *= UINT64_C(0xbf58476d1ce4e5b9);
  x ^= x >> 32;
  s.count = 1 + x % RUN;
  s.page = (x >> 8) % (pages - s.count + 1);
  s.block = (x >> 32) % (BLOCKS - s.count + 1);
  return s;
}

static int make_disk(const char *file)
{
  uint64_t page[WORDS];
  FILE *f = fopen(file, "w");

  if (!f)
    return die("open", file);
  for (uint64_t block = 0; block < BLOCKS; block++) {
    for (int i = 0; i < WORDS; i++)
      page[i] = word(block, i);
    if (fwrite(page, PAGE, 1, f) != 1)
      return die("write", file);
  }
  return fclose(f) == 0 ? 0 : die("close", file);
}

static bool is_cpus(uint64_t page)
{
  return page % CPU_EVERY == CPU_EVERY - 1;
}

struct target {
  char *at;
  uint64_t pages;
  int fd;
};

static void *flush_always(void *opaque)
{
  const struct target *t = opaque;

  for (;;)
    fsync(t->fd);
  return NULL;
}

static void *store_always(void *opaque)
{
  const struct target *t = opaque;

  for (uint64_t round = 1;; round++) {
    for (uint64_t page = 0; page < t->pages; page++)
      if (is_cpus(page))
        *(volatile uint64_t *)(t->at + page * PAGE) = round;
    usleep(1000);
  }
  return NULL;
}

// One request: what the disk has for the CPU's pages goes elsewhere.
static bool read_step(int from, const struct target *to, struct step s)
{
  static char elsewhere[PAGE] __attribute__((aligned(PAGE)));
  struct iovec iov[RUN];

  for (uint64_t i = 0; i < s.count; i++)
    iov[i] = (struct iovec){ is_cpus(s.page + i) ? elsewhere : to->at + (s.page + i) * PAGE, PAGE };
  return preadv(from, iov, (int)s.count, (off_t)(s.block * PAGE)) == (ssize_t)(s.count * PAGE);
}

static char *map_file(const char *file, int prot, int *fd, uint64_t *pages)
{
  struct stat st;
  char *address = MAP_FAILED;

  *fd = open(file, prot & PROT_WRITE ? O_RDWR : O_RDONLY);
  if (*fd >= 0 && fstat(*fd, &st) == 0) {
    *pages = (uint64_t)st.st_size / PAGE;
    address = mmap(NULL, (size_t)st.st_size, prot, MAP_SHARED, *fd, 0);
  }
  return address;
}

static int run(const char *file, const char *disk)
{
  static struct target to;
  int from = open(disk, O_RDONLY | O_DIRECT);
  pthread_t flusher, writer;

  to.at = map_file(file, PROT_READ | PROT_WRITE, &to.fd, &to.pages);
  if (from < 0)
    return die("open", disk);
  if (to.at == MAP_FAILED)
    return die("map", file);
  if (pthread_create(&flusher, NULL, flush_always, &to) != 0 ||
      pthread_create(&writer, NULL, store_always, &to) != 0)
    return die("thread for", file);
  for (uint64_t n = 0;; n++) {
    if (!read_step(from, &to, step_of(n, to.pages)))
      return die("read", disk);
    if (n % STEPS_PER_ACK != STEPS_PER_ACK - 1)
      continue;
    if (fsync(to.fd) != 0)
      return die("fsync", file);
    printf("ACK %" PRIu64 "\n", n);
    fflush(stdout);
  }
}

// A word of the page is what step N brought there.
static bool is_of(uint64_t n, uint64_t pages, uint64_t page, int i, uint64_t value)
{
  struct step s = step_of(n, pages);

  return page >= s.page && page < s.page + s.count && value == word(s.block + page - s.page, i);
}

static int verify(const char *file, int64_t last, int64_t newest)
{
  uint64_t pages, wrong = 0, newer = 0;
  int fd;
  char *at = map_file(file, PROT_READ, &fd, &pages);
  int64_t *step = at == MAP_FAILED ? NULL : malloc(pages * sizeof *step);

  if (!step)
    return die("map", file);
  for (uint64_t page = 0; page < pages; page++)
    step[page] = -1;
  for (int64_t n = 0; n <= last; n++) {
    struct step s = step_of((uint64_t)n, pages);

    for (uint64_t page = s.page; page < s.page + s.count; page++)
      step[page] = n;
  }
  for (uint64_t page = 0; page < pages; page++) {
    const uint64_t *content = (const uint64_t *)(at + page * PAGE);
    bool bad = false;

    for (int i = is_cpus(page) ? WORDS : 0; i < WORDS && !bad; i++) {
      if (step[page] < 0 ? content[i] == 0 : is_of((uint64_t)step[page], pages, page, i, content[i]))
        continue;
      bad = true;
      for (int64_t n = last + 1; n <= newest && bad; n++)
        bad = !is_of((uint64_t)n, pages, page, i, content[i]);
      newer += !bad;
    }
    if (bad && wrong++ == 0)
      fprintf(stderr, "dma: page %" PRIu64 " of %s is not what step %" PRId64 " brought\n", page, file,
              step[page]);
  }
  printf("VERIFIED %" PRIu64 " pages to step %" PRId64 ": %" PRIu64 " wrong, %" PRIu64 " words newer\n", pages, last,
         wrong, newer);
  return wrong != 0;
}

int main(int argc, char **argv)
{
  if (argc == 3 && strcmp(argv[1], "disk") == 0)
    return make_disk(argv[2]);
  if (argc == 4 && strcmp(argv[1], "run") == 0)
    return run(argv[2], argv[3]);
  if (argc == 5 && strcmp(argv[1], "verify") == 0)
    return verify(argv[2], strtoll(argv[3], NULL, 10), strtoll(argv[4], NULL, 10));
  fprintf(stderr, "usage: dma disk FILE | dma run FILE DISK | dma verify FILE LAST NEWEST\n");
  return 2;
}
