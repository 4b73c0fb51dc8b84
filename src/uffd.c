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

/* PAGEMAP_SCAN (Linux 6.7), under names of our own: headers may or may not have it. */
struct scan_region {
  uint64_t start, end, categories;
};
struct scan_argument {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_argument)
#define SCAN_ZERO_PAGE (1u << 5)
#define SCAN_HUGE (1u << 6)

#define HUGE_BYTES (2u << 20)

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

static bool is_huge_zero(uint8_t *address)
{
  struct scan_region region = { 0 };
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
