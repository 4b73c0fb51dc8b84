/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A guest without an operating system, for tests of the memory backend: QEMU's -kernel starts it
 * (multiboot, 32 bits). It maps the memory at 4 GiB, where the first memory device lies, and goes by letters
 * from the first serial port:
 *
 *     w   writes a word to each page: the page's number and the round; says '.' after every 256, then 'w'
 *     v   reads them all, says 'v' or, where one is wrong, '!'
 *     n   the next round begins
 *     b   gives all pages to a balloon (virtio, of the old kind) and takes them back, and reports them as free
 *
 * The number of pages to use is a parameter, -append PAGES; compiled with ROM it is the firmware, -bios,
 * and uses 1024 pages of the VM's memory from 16 MiB, without paging: for a KVM that can do little.
 */
#include <stdint.h>

#ifdef ROM
#define WINDOW 0x1000000u       /* in the VM's only memory */
#else
#define WINDOW 0x40000000u      /* where the memory at 4 GiB is mapped, 1 GiB */
#endif
#define COM1 0x3f8

void start(uint32_t magic, const uint32_t *info);

static void out8(uint16_t port, uint8_t value)
{
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port)
{
  uint8_t value;

  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void out16(uint16_t port, uint16_t value)
{
  __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}

static void out32(uint16_t port, uint32_t value)
{
  __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static uint32_t in32(uint16_t port)
{
  uint32_t value;

  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void say(uint8_t letter)
{
  while (!(in8(COM1 + 5) & 0x20))
    ;
  out8(COM1, letter);
}

static uint8_t hear(void)
{
  while (!(in8(COM1 + 5) & 1))
    ;
  return in8(COM1);
}

#ifndef ROM
static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t directories[4][512] __attribute__((aligned(4096)));

/* What lies below stays where it is, but for the window. Pages of 2 MiB. */
static void map_window(void)
{
  for (uint32_t i = 0; i < 4; i++) {
    pdpt[i] = (uintptr_t)directories[i] | 1;
    for (uint32_t j = 0; j < 512; j++)
      directories[i][j] = ((uint64_t)(i == 1 ? 4 : i) << 30) + ((uint64_t)j << 21) + 0x83;
  }
  __asm__ volatile("movl %%cr4, %%eax\n\torl $0x20, %%eax\n\tmovl %%eax, %%cr4\n\t"
                   "movl %0, %%cr3\n\t"
                   "movl %%cr0, %%eax\n\torl $0x80000000, %%eax\n\tmovl %%eax, %%cr0" ::"r"(pdpt)
                   : "eax", "memory");
}
#endif

/* ---- The balloon: queues, of whose entries one is used at a time ---- */

enum { INFLATE, DEFLATE, REPORT = 3, QUEUES };
enum { FEATURES = 4, QUEUE_ADDRESS = 8, QUEUE_SELECT = 14, QUEUE_NOTIFY = 16, STATUS = 18 }; /* registers */

struct queue {
  struct {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
  } entries[200]; /* as many as there are, then what is available: flags, count, ring */
  uint16_t used_flags __attribute__((aligned(4096)));
  volatile uint16_t used;
};

static struct queue queues[QUEUES] __attribute__((aligned(4096)));
static uint32_t frames[256];

/* Its ports; 0: there is none. */
static uint16_t find_balloon(void)
{
  for (uint32_t device = 0; device < 32; device++) {
    uint32_t at = 0x80000000u | device << 11;

    out32(0xcf8, at);
    if (in32(0xcfc) != 0x10021af4)
      continue;
    out32(0xcf8, at | 4);
    out32(0xcfc, 5); /* ports, and memory of ours */
    out32(0xcf8, at | 0x10);
    return (uint16_t)(in32(0xcfc) & ~3u);
  }
  return 0;
}

static volatile uint16_t *available_of(uint16_t number)
{
  return (volatile uint16_t *)&queues[number].entries[number == REPORT ? 32 : 128];
}

static void give(uint16_t ports, uint16_t number, uint64_t address, uint32_t length, uint16_t flags)
{
  struct queue *q = &queues[number];
  volatile uint16_t *available = available_of(number);

  q->entries[0].address = address;
  q->entries[0].length = length;
  q->entries[0].flags = flags;
  __asm__ volatile("" ::: "memory");
  available[1]++; /* the ring is all zeros: always the first entry */
  out16(ports + QUEUE_NOTIFY, number);
  while (q->used != available[1])
    ;
}

static uint8_t balloon(uint32_t pages)
{
  uint16_t ports = find_balloon();

  if (!ports)
    return '!';
  out8(ports + STATUS, 0);
  out8(ports + STATUS, 3);
  out32(ports + FEATURES, 0x20); /* free pages are reported */
  for (uint16_t i = 0; i < QUEUES; i++) {
    available_of(i)[1] = queues[i].used = 0;
    out16(ports + QUEUE_SELECT, i);
    out32(ports + QUEUE_ADDRESS, (uintptr_t)&queues[i] >> 12);
  }
  out8(ports + STATUS, 7);
  for (uint16_t number = INFLATE; number <= DEFLATE; number++) {
    for (uint32_t page = 0; page < pages; page += 256) {
      for (uint32_t i = 0; i < 256; i++)
        frames[i] = 0x100000 + page + i;
      give(ports, number, (uintptr_t)frames, sizeof frames, 0);
    }
  }
  for (uint32_t page = 0; page < pages; page += 512)
    give(ports, REPORT, (1ull << 32) + ((uint64_t)page << 12), 512 << 12, 2);
  return 'b';
}

/* The last word of the command line. */
static uint32_t pages_of(const uint32_t *info)
{
  const char *text = (const char *)(uintptr_t)info[4];
  uint32_t pages = 0;

  for (; *text; text++)
    pages = *text == ' ' ? 0 : pages * 10 + (uint32_t)(*text - '0');
  return pages;
}

void start(uint32_t magic, const uint32_t *info)
{
  volatile uint32_t *memory = (volatile uint32_t *)WINDOW;
  uint32_t pages = info ? pages_of(info) : 1024, round = 1;

  (void)magic;
#ifndef ROM
  map_window();
#endif
  say('g');
  for (;;) {
    uint8_t letter = hear(), answer = letter;

    for (uint32_t page = 0; page < pages; page++) {
      volatile uint32_t *word = memory + page * 1024 + page % 512 * 2;

      if (letter == 'w') {
        word[1] = page;
        word[0] = round;
        if (page % 256 == 255)
          say('.');
      } else if (letter == 'v' && (word[0] != round || word[1] != page)) {
        answer = '!';
      }
    }
    if (letter == 'n')
      round++;
    else if (letter == 'b')
      answer = balloon(pages);
    say(answer);
  }
}

/* As firmware: the last 256 bytes below 4 GiB, of which the last 16 are where the CPU begins. The
 * program is copied to where it is linked for. */
#ifdef ROM
#define BEGINNING \
  ".section .reset, \"ax\"\n" \
  ".code16\n" \
  "begin:\n" \
  "  cli\n" \
  "  lgdtl %cs:0xff00 + (table_pointer - begin)\n" \
  "  movl %cr0, %eax\n" \
  "  orb $1, %al\n" \
  "  movl %eax, %cr0\n" \
  "  ljmpl $8, $begin32\n" \
  ".code32\n" \
  "begin32:\n" \
  "  movw $16, %ax\n" \
  "  movw %ax, %ds\n" \
  "  movw %ax, %es\n" \
  "  movw %ax, %ss\n" \
  "  movl $0xffff0000, %esi\n" \
  "  movl $text_begin, %edi\n" \
  "  movl $4096, %ecx\n" \
  "  cld\n" \
  "  rep movsl\n" \
  "  xorl %ebx, %ebx\n" \
  "  movl $_start, %eax\n" \
  "  jmp *%eax\n" \
  ".align 8\n" \
  "table: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n" \
  "table_pointer: .word 23\n" \
  "  .long table\n" \
  ".org 0xf0\n" \
  ".code16\n" \
  "  ljmpw $0xf000, $0xff00\n" \
  ".org 0x100\n" \
  ".code32\n" \
  ".text\n" \
  ".globl _start\n" \
  "_start:\n"
#else
#define BEGINNING \
  ".section .multiboot, \"a\"\n" \
  ".align 4\n" \
  ".long 0x1badb002, 0, -0x1badb002\n" \
  ".text\n" \
  ".globl _start\n" \
  "_start:\n" \
  "  cli\n"
#endif

__asm__(BEGINNING
        "  movl $stack_end, %esp\n"
        "  pushl %ebx\n"
        "  pushl %eax\n"
        "  call start\n"
        ".bss\n"
        ".align 16\n"
        "  .skip 16384\n"
        "stack_end:\n"
        ".text\n");
