/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What reaches the range without a store of this program: system calls and a virtual CPU. Their first
 * writes land in the overlay, durably, and not in the base. Reads, whoever makes them, of lower and of
 * unbacked pages cost no event of the library where lower pages can be mapped, and nowhere a block.
 * Where userfaultfd is not permitted, a map for writing is refused in a sentence that says what to do.
 *
 *     test-map-kernel [--part syscalls|reads|kvm|refused] [--dir DIR]          (default: all)
 */
#include "testlib.h"

#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (16 * MIB)
#define PAGES (SIZE / PAGE)
#define RAW_PAGES 2048 /* data in the first half, then a hole */
#define MIDDLE(page) ((page) % 7 == 3) /* pages that the middle image has */
#define TOP(page) ((page) % 64 == 5) /* pages that the overlay has from the start */

static char *raw, *middle, *overlay;

/* What a page shows before anybody writes: a seed for test_page_fill(), 0 for zeros. */
static uint64_t seed_of(uint64_t page)
{
  if (TOP(page))
    return 3000000 + page;
  if (MIDDLE(page))
    return 2000000 + page;
  return page < RAW_PAGES / 2 ? 1000000 + page : 0;
}

static bool page_shows(const void *bytes, uint64_t seed)
{
  static const char zeros[PCOW_PAGE_SIZE];

  return seed ? test_page_is(bytes, seed) : memcmp(bytes, zeros, PAGE) == 0;
}

static void build(void)
{
  char bytes[PCOW_PAGE_SIZE];
  pcow_image *image;
  int fd;

  raw = test_path("raw");
  middle = test_path("middle.pcow");
  overlay = test_path("overlay.pcow");
  fd = (int)SYS(open(raw, O_RDWR | O_CREAT | O_TRUNC, 0600));
  SYS(ftruncate(fd, RAW_PAGES * (off_t)PAGE));
  for (uint64_t page = 0; page < RAW_PAGES / 2; page++) {
    test_page_fill(bytes, 1000000 + page);
    SYS(pwrite(fd, bytes, PAGE, (off_t)(page * PAGE)));
  }
  SYS(fsync(fd));
  SYS(close(fd));
  unlink(middle);
  unlink(overlay);
  test_create(middle, SIZE, 2 * MIB, raw, PCOW_FORMAT_RAW, NULL);
  image = test_open(middle, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < PAGES; page++)
    if (MIDDLE(page)) {
      test_page_fill(bytes, 2000000 + page);
      OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
    }
  OK(pcow_close(image));
  test_create(overlay, SIZE, 2 * MIB, middle, PCOW_FORMAT_PCOW, NULL);
  image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  for (uint64_t page = 0; page < PAGES; page++)
    if (TOP(page)) {
      test_page_fill(bytes, 3000000 + page);
      OK(pcow_pwrite(image, bytes, PAGE, page * PAGE));
    }
  OK(pcow_close(image));
}

/* Every page through pcow_pread(): WRITTEN tells a page that was filled with its own seed. */
static void verify(const char *path, uint64_t (*seed)(uint64_t page))
{
  pcow_image *image = test_open(path, 0, NULL);
  char bytes[PCOW_PAGE_SIZE];

  for (uint64_t page = 0; page < PAGES; page++) {
    OK(pcow_pread(image, bytes, PAGE, page * PAGE));
    CHECK(page_shows(bytes, seed(page)), "%s: page %" PRIu64 " is wrong", path, page);
  }
  OK(pcow_close(image));
}

static uint64_t seed_of_middle(uint64_t page)
{
  return MIDDLE(page) ? 2000000 + page : page < RAW_PAGES / 2 ? 1000000 + page : 0;
}

/* ---- System calls -------------------------------------------------------------------------- */

#define BY_READ(page) ((page) % 5 == 1)
#define BY_VM(page) ((page) % 5 == 2)

static uint64_t seed_after_syscalls(uint64_t page)
{
  return BY_READ(page) ? 5000000 + page : BY_VM(page) ? 6000000 + page : seed_of(page);
}

static void part_syscalls(void)
{
  struct pcow_map_options options = PCOW_INIT(options);
  pcow_image *image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  struct pcow_mapping_stats stats;
  pcow_mapping *map;
  char *range, bytes[PCOW_PAGE_SIZE];
  int pipes[2];

  options.granule = 4 * KIB;
  map = test_map(image, &options);
  range = pcow_mapping_address(map);
  SYS(pipe(pipes));
  for (uint64_t page = 0; page < PAGES; page++) {
    ssize_t count;

    if (BY_READ(page)) {
      test_page_fill(bytes, 5000000 + page);
      SYS(write(pipes[1], bytes, PAGE));
      count = read(pipes[0], range + page * PAGE, PAGE);
      CHECK(count == (ssize_t)PAGE, "read(2) into page %" PRIu64 " gave %zd: %s", page, count, strerror(errno));
    } else if (BY_VM(page)) {
      struct iovec from = { bytes, PAGE }, to = { range + page * PAGE, PAGE };

      test_page_fill(bytes, 6000000 + page);
      count = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
      if (count < 0 && (errno == EPERM || errno == ENOSYS))
        test_skip("process_vm_writev: %s", strerror(errno));
      CHECK(count == (ssize_t)PAGE, "process_vm_writev into page %" PRIu64 " gave %zd: %s", page, count,
            strerror(errno));
    }
  }
  for (uint64_t page = 0; page < PAGES; page++)
    CHECK(page_shows(range + page * PAGE, seed_after_syscalls(page)), "the map's page %" PRIu64 " is wrong", page);
  stats = test_stats(map);
  CHECK(stats.write_faults, "no write was seen");
  OK(pcow_close(image));
  verify(overlay, seed_after_syscalls);
  verify(middle, seed_of_middle);
  close(pipes[0]);
  close(pipes[1]);
  printf("system calls: %" PRIu64 " write faults, %" PRIu64 " pages copied, %" PRIu64 " reserved\n",
         stats.write_faults, stats.pages_copied, stats.pages_reserved);
}

/* ---- Reads --------------------------------------------------------------------------------- */

static void part_reads(void)
{
  bool tmpfs = test_is_tmpfs(overlay);
  char *files[] = { raw, middle, overlay }, bytes[PCOW_PAGE_SIZE];
  uint64_t before[3];
  int memory = (int)SYS(memfd_create("reads", MFD_CLOEXEC));

  mapping_override_eager(PAGES);        /* the image has more pieces than are laid out at once */

  for (unsigned read_only = 0; read_only < 2; read_only++) {
    pcow_image *image = test_open(overlay, read_only ? 0 : PCOW_OPEN_RDWR, NULL);
    struct pcow_mapping_stats first, last;
    pcow_mapping *map;
    char *range;

    for (unsigned i = 0; i < 3; i++)
      before[i] = test_blocks(files[i]);
    if (read_only)
      OK(pcow_map(image, NULL, &map));
    else
      map = test_map(image, NULL);
    range = pcow_mapping_address(map);
    first = test_stats(map);
    for (unsigned pass = 0; pass < 2; pass++)
      for (uint64_t page = 0; page < PAGES; page++) {
        /* half of the pages are first read by the kernel */
        if (pass == page % 2)
          CHECK(page_shows(range + page * PAGE, seed_of(page)), "page %" PRIu64 " reads wrong", page);
        else {
          ssize_t count = pwrite(memory, range + page * PAGE, PAGE, 0);

          CHECK(count == (ssize_t)PAGE, "write(2) from page %" PRIu64 ": %s", page, strerror(errno));
          SYS(pread(memory, bytes, PAGE, 0));
          CHECK(page_shows(bytes, seed_of(page)), "write(2) sees page %" PRIu64 " wrong", page);
        }
      }
    last = test_stats(map);
    CHECK(last.write_faults == first.write_faults, "reads were taken for writes");
    CHECK(last.pages_copied == 0 && last.pages_reserved == 0, "reads made pages present");
    CHECK(!tmpfs || last.faults == first.faults, "%" PRIu64 " faults of reads", last.faults - first.faults);
    OK(pcow_unmap(map));
    for (unsigned i = 0; i < 3; i++) {
      uint64_t now = test_blocks(files[i]);

      CHECK(now == before[i], "reading allocated %" PRId64 " bytes in %s (%s map)", (int64_t)(now - before[i]),
            files[i], read_only ? "read-only" : "writable");
    }
    OK(pcow_close(image));
    printf("%s map: %" PRIu64 " pages read twice, %" PRIu64 " events, %" PRIu64 " fills\n",
           read_only ? "read-only" : "writable", PAGES, last.faults - first.faults, last.fill_faults);
  }
  close(memory);
}

/* ---- A virtual CPU ------------------------------------------------------------------------- */

#define GUEST_PAGES 64

/* Real mode: in each of 64 pages from 0x10000, stores the segment at 0x10 and copies the word at 0x20
 * to 0x18. */
static const unsigned char guest_code[] = {
  0xb8, 0x00, 0x10, /*       mov  ax, 0x1000 */
  0xb9, 0x40, 0x00, /*       mov  cx, 64     */
  0x8e, 0xd8, /*       next: mov  ds, ax     */
  0xa3, 0x10, 0x00, /*       mov  [0x10], ax */
  0x8b, 0x1e, 0x20, 0x00, /* mov  bx, [0x20] */
  0x89, 0x1e, 0x18, 0x00, /* mov  [0x18], bx */
  0x05, 0x00, 0x01, /*       add  ax, 0x100  */
  0xe2, 0xee, /*             loop next       */
  0xf4, /*                   hlt             */
};

/* Runs the code with RANGE as the guest's memory from 0x10000. */
static void guest_run(void *range)
{
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, cpu;
  struct kvm_userspace_memory_region region = { .slot = 0, .memory_size = 64 * KIB };
  struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
  struct kvm_sregs sregs;
  struct kvm_run *run;
  unsigned char *low;
  long run_size;

  if (kvm < 0)
    test_skip("/dev/kvm: %s", strerror(errno));
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0)
    test_skip("KVM makes no virtual machine: %s", strerror(errno));
  low = mmap(NULL, 64 * KIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(low != MAP_FAILED, "no memory");
  memcpy(low + 0x1000, guest_code, sizeof guest_code);
  region.userspace_addr = (uintptr_t)low;
  SYS(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
  region.slot = 1;
  region.guest_phys_addr = 0x10000;
  region.memory_size = GUEST_PAGES * PAGE;
  region.userspace_addr = (uintptr_t)range;
  SYS(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
  cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0)
    test_skip("KVM makes no virtual CPU: %s", strerror(errno));
  run_size = SYS(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
  run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  CHECK(run != MAP_FAILED, "KVM's run area: %s", strerror(errno));
  SYS(ioctl(cpu, KVM_GET_SREGS, &sregs));
  sregs.cs.base = sregs.cs.selector = 0;
  SYS(ioctl(cpu, KVM_SET_SREGS, &sregs));
  SYS(ioctl(cpu, KVM_SET_REGS, &regs));
  while (ioctl(cpu, KVM_RUN, 0) < 0)
    CHECK(errno == EINTR || errno == EAGAIN, "KVM_RUN: %s", strerror(errno));
  if (run->exit_reason == KVM_EXIT_MMIO)
    test_skip("this KVM emulates the guest's stores (exit with MMIO at 0x%llx)",
              (unsigned long long)run->mmio.phys_addr);
  CHECK(run->exit_reason == KVM_EXIT_HLT, "the guest ended with exit %u (%llu)", run->exit_reason,
        (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
  SYS(munmap(run, (size_t)run_size));
  SYS(munmap(low, 64 * KIB));
  close(cpu);
  close(vm);
  close(kvm);
}

#define GUEST_FIRST 512 /* the guest's pages in the image */

static void guest_page(uint64_t page, unsigned char *bytes)
{
  uint64_t n = page - GUEST_FIRST;
  uint16_t segment = (uint16_t)(0x1000 + n * 0x100);

  memset(bytes, 0, PAGE);
  if (seed_of(page))
    test_page_fill(bytes, seed_of(page));
  if (n < GUEST_PAGES) {
    memcpy(bytes + 0x10, &segment, 2);
    memcpy(bytes + 0x18, bytes + 0x20, 2);
  }
}

static void part_kvm(void)
{
  pcow_image *image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  struct pcow_map_options options = PCOW_INIT(options);
  struct pcow_mapping_stats stats;
  pcow_mapping *map;
  unsigned char expected[PCOW_PAGE_SIZE], found[PCOW_PAGE_SIZE];

  options.granule = 4 * KIB;
  map = test_map(image, &options);
  guest_run((char *)pcow_mapping_address(map) + GUEST_FIRST * PAGE);
  stats = test_stats(map);
  OK(pcow_close(image));
  image = test_open(overlay, 0, NULL);
  for (uint64_t page = 0; page < PAGES; page++) {
    guest_page(page, expected);
    OK(pcow_pread(image, found, PAGE, page * PAGE));
    CHECK(memcmp(expected, found, PAGE) == 0, "page %" PRIu64 " is wrong after the guest ran", page);
  }
  OK(pcow_close(image));
  verify(middle, seed_of_middle);
  CHECK(stats.write_faults, "no write of the guest was seen");
  printf("virtual CPU: %" PRIu64 " write faults, %" PRIu64 " pages copied\n", stats.write_faults,
         stats.pages_copied);
}

/* In a child, which gives up root for good after it has opened the image. */
static int map_without_rights(void)
{
  struct pcow_map_options options = PCOW_INIT(options);
  pcow_image *image = test_open(overlay, PCOW_OPEN_RDWR, NULL);
  pcow_mapping *map;
  int result;

  options.durability = PCOW_STORE_DURABLE;
  SYS(setresgid(65534, 65534, 65534));
  SYS(setresuid(65534, 65534, 65534));
  result = pcow_map(image, &options, &map);
  printf("without rights: %d, %s\n", result, pcow_errormsg());
  if (result != -EPERM || !strstr(pcow_errormsg(), overlay) ||
      !strstr(pcow_errormsg(), "vm.unprivileged_userfaultfd") ||
      !strstr(pcow_errormsg(), "/dev/userfaultfd"))
    return 1;
  return pcow_close(image) ? 2 : 0;
}

static void part_refused(void)
{
  FILE *file = fopen("/proc/sys/vm/unprivileged_userfaultfd", "r");
  int permitted = 1, status;
  pid_t child;

  if (file && fscanf(file, "%d", &permitted) != 1)
    permitted = 1;
  if (file)
    fclose(file);
  if (permitted || geteuid() != 0) {
    printf("(not refused: everybody may use userfaultfd here, or this is not root)\n");
    return;
  }
  fflush(NULL);
  child = fork();
  CHECK(child >= 0, "fork");
  if (child == 0) {
    status = map_without_rights();
    fflush(NULL);
    _exit(status);
  }
  CHECK(waitpid(child, &status, 0) == child, "waitpid");
  CHECK(status == 0, "without rights, pcow_map() is to give -EPERM and to say why (status 0x%x)", status);
}

int main(int argc, char **argv)
{
  const char *part = test_option_string(argc, argv, "--part");
  static const struct {
    const char *name;
    void (*run)(void);
  } parts[] = { { "syscalls", part_syscalls }, { "reads", part_reads }, { "kvm", part_kvm },
              { "refused", part_refused } };

  test_force_pmem(argv);
  test_dir(argc, argv);
  for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
    if (!part || strcmp(part, parts[i].name) == 0) {
      mapping_override_eager(test_option(argc, argv, "--eager", UINT64_MAX));
      build();
      parts[i].run();
    }
  return 0;
}
