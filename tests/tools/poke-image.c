/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Makes images that the library never writes, for tests of what it does with them. It knows the
 * format from docs/format.md alone and shares no code with the library.
 *
 *   poke-image set IMAGE COPY OFFSET WIDTH VALUE   a field of superblock 0, 1 or both, CRC made right
 *   poke-image get IMAGE COPY OFFSET WIDTH         prints a field, decimal
 *   poke-image damage IMAGE OFFSET                 inverts one byte of the file, no CRC made right
 *   poke-image lock IMAGE BYTE shared|exclusive    takes a lock, prints "locked", holds it until
 *                                                  standard input ends
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUPERBLOCK_BYTES 4096
#define SUPERBLOCK_OFFSET(copy) ((off_t)(copy) << 20)
#define CRC_OFFSET 4092

static void die(const char *what)
{
  fprintf(stderr, "poke-image: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t number(const char *text)
{
  char *end;
  uint64_t value;

  errno = 0;
  value = strtoull(text, &end, 0);
  if (errno || *end || end == text) {
    errno = EINVAL;
    die(text);
  }
  return value;
}

static uint32_t crc32c(const uint8_t *bytes, size_t length)
{
  uint32_t crc = 0xffffffff;

  for (size_t i = 0; i < length; i++) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; bit++)
      crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

static void store(uint8_t *at, unsigned width, uint64_t value)
{
  for (unsigned i = 0; i < width; i++)
    at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t load(const uint8_t *at, unsigned width)
{
  uint64_t value = 0;

  for (unsigned i = 0; i < width; i++)
    value |= (uint64_t)at[i] << (8 * i);
  return value;
}

/* Sets the field in one copy; with WRITE 0 prints it. */
static void field(int fd, unsigned copy, uint64_t offset, unsigned width, int write, uint64_t value)
{
  uint8_t block[SUPERBLOCK_BYTES];

  if (offset + width > CRC_OFFSET || width > 8) {
    errno = ERANGE;
    die("field");
  }
  if (pread(fd, block, sizeof(block), (off_t)copy << 20) != sizeof(block))
    die("read");
  if (!write) {
    printf("%llu\n", (unsigned long long)load(block + offset, width));
    return;
  }
  store(block + offset, width, value);
  store(block + CRC_OFFSET, 4, crc32c(block, CRC_OFFSET));
  if (pwrite(fd, block, sizeof(block), (off_t)copy << 20) != sizeof(block))
    die("write");
}

static void damage(int fd, uint64_t offset)
{
  uint8_t byte;

  if (pread(fd, &byte, 1, (off_t)offset) != 1)
    die("read");
  byte = (uint8_t)~byte;
  if (pwrite(fd, &byte, 1, (off_t)offset) != 1)
    die("write");
}

static void lock(int fd, uint64_t byte, int shared)
{
  struct flock request = { .l_type = shared ? F_RDLCK : F_WRLCK, .l_start = (off_t)byte, .l_len = 1 };
  char rest[64];

  if (fcntl(fd, F_OFD_SETLK, &request))
    die("lock");
  puts("locked");
  fflush(stdout);
  while (read(STDIN_FILENO, rest, sizeof(rest)) > 0)
    ;
}

int main(int argc, char **argv)
{
  const char *verb = argc > 2 ? argv[1] : "";
  int fd = argc > 2 ? open(argv[2], O_RDWR | O_CLOEXEC) : -1;

  if (argc > 2 && fd < 0)
    die(argv[2]);
  if (strcmp(verb, "set") == 0 && argc == 7) {
    for (unsigned copy = 0; copy < 2; copy++)
      if (strcmp(argv[3], "both") == 0 || number(argv[3]) == copy)
        field(fd, copy, number(argv[4]), (unsigned)number(argv[5]), 1, number(argv[6]));
  } else if (strcmp(verb, "get") == 0 && argc == 6) {
    field(fd, (unsigned)number(argv[3]), number(argv[4]), (unsigned)number(argv[5]), 0, 0);
  } else if (strcmp(verb, "damage") == 0 && argc == 4) {
    damage(fd, number(argv[3]));
  } else if (strcmp(verb, "lock") == 0 && argc == 5) {
    lock(fd, number(argv[3]), strcmp(argv[4], "shared") == 0);
  } else {
    fprintf(stderr, "usage: see the head of poke-image.c\n");
    return 2;
  }
  return 0;
}
