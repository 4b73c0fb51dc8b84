/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The system's side of write tracking: opening a userfaultfd in one of two ways, its ioctls, and the
 * probe for the huge zero page.
 */
#include "uffd.h"

#include "error.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* PAGEMAP_SCAN (Linux 6.7), under names of our own: headers may or may not have it. Its regions are struct
 * uffd_pages. */
struct scan_argument {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_argument)
#define SCAN_WRITTEN (1u << 1)
#define SCAN_FILE (1u << 2)
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)
#define SCAN_ZERO_PAGE (1u << 5)
#define SCAN_HUGE (1u << 6)
#define SCAN_WP_MATCHING 1u

#define HUGE_BYTES (2u << 20)
#define PAGE_SIZE_BYTES 4096u

static int open_descriptor(void)
{
  long fd = syscall(SYS_userfaultfd, O_CLOEXEC);
  int device;

  if (fd >= 0 || errno != EPERM)
    return fd >= 0 ? (int)fd : -errno;
  device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0)
    return -EPERM;
  fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
  if (fd < 0)
    fd = -EPERM;
  close(device);
  return (int)fd;
}

int uffd_open(uint64_t features, const char *path)
{
  struct uffdio_api api = { .api = UFFD_API, .features = features };
  int fd = open_descriptor();

  if (fd == -EPERM)
    return fail(EPERM, "%s: cannot be mapped for writing: userfaultfd is not permitted; set the sysctl "
                "vm.unprivileged_userfaultfd to 1, or give access to /dev/userfaultfd", path);
  if (fd == -ENOSYS)
    return fail(ENOTSUP, "%s: cannot be mapped for writing: this kernel has no userfaultfd", path);
  if (fd < 0)
    return fail_errno(-fd, "%s: cannot open a userfaultfd", path);
  if (ioctl(fd, UFFDIO_API, &api)) {
    close(fd);
    return fail(ENOTSUP, "%s: cannot be mapped for writing: this kernel's userfaultfd does not protect "
                "unpopulated memory; Linux 6.4 or later is needed", path);
  }
  return fd;
}

int uffd_register(int fd, void *address, uint64_t length, uint64_t mode)
{
  struct uffdio_register reg = { .range = { (uintptr_t)address, length }, .mode = mode };

  return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int uffd_protect(int fd, void *address, uint64_t length)
{
  struct uffdio_writeprotect wp = {
    .range = { (uintptr_t)address, length },
    .mode = UFFDIO_WRITEPROTECT_MODE_WP,
  };

  while (ioctl(fd, UFFDIO_WRITEPROTECT, &wp)) {
    if (errno != EAGAIN && errno != EINTR)
      return -errno;
    sched_yield();
  }
  return 0;
}

int uffd_copy(int fd, void *address, const void *source, uint64_t length, bool protect, uint64_t *done)
{
  struct uffdio_copy copy = {
    .dst = (uintptr_t)address,
    .src = (uintptr_t)source,
    .len = length,
    .mode = protect ? UFFDIO_COPY_MODE_WP : 0,
  };
  int ret = ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;

  *done = copy.copy > 0 ? (uint64_t)copy.copy : 0;
  return ret;
}

int uffd_zero(int fd, void *address, uint64_t length)
{
  struct uffdio_zeropage zero = { .range = { (uintptr_t)address, length } };

  while (ioctl(fd, UFFDIO_ZEROPAGE, &zero)) {
    if (errno != EAGAIN && errno != EINTR)
      return -errno;
    zero.zeropage = 0;
  }
  return 0;
}

void uffd_unregister(int fd, void *address, uint64_t length)
{
  struct uffdio_range range = { (uintptr_t)address, length };

  ioctl(fd, UFFDIO_UNREGISTER, &range);
}

void uffd_wake(int fd, void *address, uint64_t length)
{
  struct uffdio_range range = { (uintptr_t)address, length };

  ioctl(fd, UFFDIO_WAKE, &range);
}

int uffd_scan(int pagemap, uint64_t start, uint64_t end, bool protect, struct uffd_pages *pages, unsigned count,
              uint64_t *walked)
{
  /* Not SCAN_CHECK_WPASYNC: it would fail at memory that is not tracked, after having protected pages that it
   * does not report. Pages of the file itself, and zeros that were only read, are nobody's stores. */
  struct scan_argument scan = {
    .size = sizeof(scan),
    .flags = protect ? SCAN_WP_MATCHING : 0,
    .start = start,
    .end = end,
    .vec = (uintptr_t)pages,
    .vec_len = count,
    .category_inverted = SCAN_FILE | SCAN_ZERO_PAGE,
    .category_mask = SCAN_FILE | SCAN_ZERO_PAGE | (protect ? SCAN_WRITTEN : 0),
    .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
    .return_mask = SCAN_WRITTEN | SCAN_PRESENT | SCAN_SWAPPED,
  };
  int n = ioctl(pagemap, SCAN_IOCTL, &scan);

  if (n < 0)
    return -errno;
  *walked = scan.walk_end;
  return n;
}

static int cannot_track(const char *path, const char *what)
{
  return fail(ENOTSUP, "%s: cannot be mapped flush-durable: this kernel %s; Linux 6.7 or later is needed", path,
              what);
}

/* Does a store show, and does it show again once it was seen? */
static bool probe_tracking(int fd, int pagemap)
{
  volatile uint8_t *page = mmap(NULL, PAGE_SIZE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint64_t start = (uintptr_t)page, walked;
  struct uffd_pages found;
  bool works = false;

  if (page == MAP_FAILED)
    return false;
  if (uffd_register(fd, (void *)(uintptr_t)page, PAGE_SIZE_BYTES, UFFD_WP) == 0) {
    *page = 1;
    works = uffd_scan(pagemap, start, start + PAGE_SIZE_BYTES, true, &found, 1, &walked) == 1 &&
            uffd_scan(pagemap, start, start + PAGE_SIZE_BYTES, true, &found, 1, &walked) == 0;
    *page = 2;
    works = works && uffd_scan(pagemap, start, start + PAGE_SIZE_BYTES, true, &found, 1, &walked) == 1;
  }
  munmap((void *)(uintptr_t)page, PAGE_SIZE_BYTES);
  return works;
}

int uffd_open_tracking(const char *path, bool moved, int *fd, int *pagemap)
{
  struct uffdio_api api = {
    .api = UFFD_API,
    .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
                (moved ? UFFD_FEATURE_EVENT_REMAP : 0),
  };

  /* No fault of the kernel ever waits for this descriptor: no privilege is needed. */
  *fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  if (*fd < 0 && errno == ENOSYS)
    return cannot_track(path, "has no userfaultfd");
  if (*fd < 0)
    return fail_errno(errno, "%s: cannot be mapped flush-durable: cannot open a userfaultfd", path);
  *pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (*pagemap < 0) {
    int error = errno;

    close(*fd);
    return fail_errno(error, "%s: cannot be mapped flush-durable: cannot open /proc/self/pagemap", path);
  }
  if (ioctl(*fd, UFFDIO_API, &api) == 0 && probe_tracking(*fd, *pagemap))
    return 0;
  close(*fd);
  close(*pagemap);
  return cannot_track(path, "does not tell which pages were written (PAGEMAP_SCAN with UFFD_FEATURE_WP_ASYNC)");
}

static bool is_huge_zero(uint8_t *address)
{
  struct uffd_pages region = { 0 };
  struct scan_argument scan = {
    .size = sizeof(scan),
    .start = (uintptr_t)address,
    .end = (uintptr_t)address + HUGE_BYTES,
    .vec = (uintptr_t)&region,
    .vec_len = 1,
    .category_anyof_mask = 0xff,
    .return_mask = 0xff,
  };
  int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  int n;

  if (fd < 0)
    return false;
  n = ioctl(fd, SCAN_IOCTL, &scan);
  close(fd);
  return n == 1 && region.end - region.start == HUGE_BYTES && (region.categories & SCAN_ZERO_PAGE) &&
         (region.categories & SCAN_HUGE);
}

bool uffd_probe_huge_zero(void)
{
  uint8_t *region = mmap(NULL, 2 * HUGE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  uint8_t *probe;
  bool huge;

  if (region == MAP_FAILED)
    return false;
  probe = (uint8_t *)(((uintptr_t)region + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
  huge = madvise(probe, HUGE_BYTES, MADV_HUGEPAGE) == 0 &&
         madvise(probe, HUGE_BYTES, MADV_POPULATE_READ) == 0 && is_huge_zero(probe);
  munmap(region, 2 * HUGE_BYTES);
  return huge;
}
