/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A guest without an operating system, for tests of the memory backend: QEMU's -kernel starts it
 * (multiboot, 32 bits). It maps the memory at 4 GiB, where the first memory device lies, and goes by letters
 * from the first serial port:
 *
 *     w   writes a word to each page: the page's number and the round; says '.' after every 256, then 'w'
 *     v   reads them all, says 'v' or, where one is wrong, '!'
 *     n   the next round begins
 *
 * The number of pages to use is a parameter, -append PAGES.
 */
#include <stdint.h>

#define WINDOW 0x40000000u      /* where the memory at 4 GiB is mapped, 1 GiB */
#define COM1 0x3f8

void start(uint32_t magic, const uint32_t *info);

static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t directories[4][512] __attribute__((aligned(4096)));

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
  uint32_t pages = pages_of(info), round = 1;

  (void)magic;
  map_window();
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
    say(answer);
  }
}

__asm__(".section .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".text\n"
        ".globl _start\n"
        "_start:\n"
        "  cli\n"
        "  movl $stack_end, %esp\n"
        "  pushl %ebx\n"
        "  pushl %eax\n"
        "  call start\n"
        ".bss\n"
        ".align 16\n"
        "  .skip 16384\n"
        "stack_end:\n"
        ".text\n");
