/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a device writes to a flush-durable map: a buffer that is registered with io_uring keeps its pages
 * pinned, and a read into it passes the page tables by, so that no scan tells of it. Said with
 * pcow_mark_dirty(), it is durable after the next flush; flushing pages beside the buffer leaves the buffer as it is.
 * The kernel pins nothing for long that is mapped from a file with DAX: there an ordinary read stands for the device.
 *
 *     test-flush-dma [--seed N] [--dir DIR]
 */
#include "testlib.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGES 64u

struct ring {
  int fd;
  unsigned char *queue; /* both queues */
  struct io_uring_sqe *entries;
  struct io_uring_params params;
};

static _Atomic unsigned *field(const struct ring *r, uint32_t offset)
{
  return (_Atomic unsigned *)(void *)(r->queue + offset);
}

static void ring_open(struct ring *r)
{
  memset(r, 0, sizeof *r);
  r->fd = (int)syscall(SYS_io_uring_setup, 4, &r->params);
  if (r->fd < 0)
    test_skip("no io_uring: %s", strerror(errno));
  if (!(r->params.features & IORING_FEAT_SINGLE_MMAP))
    test_skip("this kernel's io_uring is too old");
  r->queue = mmap(NULL, 64 * KIB, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
  r->entries = mmap(NULL, r->params.sq_entries * sizeof *r->entries, PROT_READ | PROT_WRITE, MAP_SHARED,
                    r->fd, IORING_OFF_SQES);
  if (r->queue == MAP_FAILED || r->entries == MAP_FAILED)
    test_skip("the queues of io_uring cannot be mapped: %s", strerror(errno));
}

/* LENGTH bytes of the file into the buffer that is registered, from its start on. */
static void ring_read(struct ring *r, int fd, void *to, uint32_t length)
{
  unsigned tail = atomic_load(field(r, r->params.sq_off.tail)), at = tail % r->params.sq_entries;
  struct io_uring_cqe *done;

  memset(&r->entries[at], 0, sizeof r->entries[at]);
  r->entries[at].opcode = IORING_OP_READ_FIXED;
  r->entries[at].fd = fd;
  r->entries[at].addr = (uint64_t)(uintptr_t)to;
  r->entries[at].len = length;
  atomic_store(field(r, r->params.sq_off.array + at * (uint32_t)sizeof(unsigned)), at);
  atomic_store(field(r, r->params.sq_off.tail), tail + 1);
  SYS(syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
  done = (struct io_uring_cqe *)(void *)(r->queue + r->params.cq_off.cqes) +
         atomic_load(field(r, r->params.cq_off.head)) % r->params.cq_entries;
  CHECK(done->res == (int)length, "a read into a registered buffer gave %d", done->res);
  atomic_fetch_add(field(r, r->params.cq_off.head), 1);
}

int main(int argc, char **argv)
{
  struct rng rng = { test_seed(argc, argv) };
  unsigned char *device = test_alloc(PAGES * PAGE), *expected = test_alloc(PAGES * PAGE);
  unsigned char found[PCOW_PAGE_SIZE];
  char *base, *path, *data;
  struct pcow_mapping_stats before;
  pcow_image *image;
  pcow_mapping *map;
  unsigned char *range;
  struct iovec buffer;
  struct ring ring;
  bool pinned;
  int fd;

  test_dir(argc, argv);
  base = test_path("base");
  path = test_path("image");
  data = test_path("device");
  ring_open(&ring);
  rng_fill(&rng, expected, PAGES * PAGE);
  rng_fill(&rng, device, PAGES * PAGE);
  test_create(base, PAGES * PAGE, 0, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, expected, PAGES * PAGE, 0));
  OK(pcow_close(image));
  test_create(path, PAGES * PAGE, 0, base, PCOW_FORMAT_PCOW, NULL);
  fd = (int)SYS(open(data, O_RDWR | O_CREAT, 0600));
  SYS(pwrite(fd, device, PAGES * PAGE, 0));

  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  map = test_map_flush(image, NULL);
  range = pcow_mapping_address(map);
  /* What was only read is nobody's store. */
  CHECK(!memcmp(range, expected, PAGES * PAGE), "the map does not show the base");
  OK(pcow_flush(map, 0, PAGES * PAGE));
  CHECK(test_stats(map).pages_flushed == 0, "pages that were only read were flushed");
  range[7 * PAGE] = expected[7 * PAGE] = 1;
  buffer = (struct iovec){ range + 8 * PAGE, 40 * PAGE };
  pinned = syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) == 0;
  CHECK(pinned || (getenv("PCOW_TEST_DAX") && errno == EOPNOTSUPP), "a buffer cannot be registered: %s",
        strerror(errno));
  /* Registering has touched the pages; from here on they are clean. */
  OK(pcow_flush(map, 0, PAGES * PAGE));
  before = test_stats(map);
  OK(pcow_flush(map, 0, PAGES * PAGE));
  CHECK(test_stats(map).pages_flushed == before.pages_flushed &&
        test_stats(map).pages_handed_over == before.pages_handed_over, "what was flushed is not clean");
  /* A neighbour that is flushed again is mapped from the file: without the pages that nobody asked to flush. */
  range[7 * PAGE] = expected[7 * PAGE] = 2;
  OK(pcow_flush(map, 0, 8 * PAGE));
  CHECK(test_stats(map).pages_handed_over == before.pages_handed_over + 1, "not one page was handed over");
  if (pinned)
    ring_read(&ring, fd, range + 8 * PAGE, 40 * PAGE);
  else
    SYS(pread(fd, range + 8 * PAGE, 40 * PAGE, 0));
  CHECK(!memcmp(range + 8 * PAGE, device, 40 * PAGE), "the device wrote somewhere else");
  OK(pcow_mark_dirty(map, 8 * PAGE, 40 * PAGE));
  OK(pcow_flush(map, 8 * PAGE, 40 * PAGE));
  memcpy(expected + 8 * PAGE, device, 40 * PAGE);
  if (pinned)
    SYS(syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0));
  CHECK(!memcmp(range, expected, PAGES * PAGE), "the map does not show what the device wrote");
  OK(pcow_close(image));

  image = test_open(path, 0, NULL);
  for (uint64_t page = 0; page < PAGES; page++) {
    OK(pcow_pread(image, found, PAGE, page * PAGE));
    CHECK(!memcmp(found, expected + page * PAGE, PAGE), "page %u is not what the device wrote", (unsigned)page);
  }
  OK(pcow_close(image));
  free(device);
  free(expected);
  return 0;
}
