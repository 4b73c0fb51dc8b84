// SPDX-License-Identifier: BSD-3-Clause
//
// Preloaded, it makes pcow_flush() fail with the errno value that the file $FAIL_FLUSH holds, while it is there.

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int pcow_flush(void *mapping, uint64_t offset, uint64_t length);

int pcow_flush(void *mapping, uint64_t offset, uint64_t length)
{
  const char *name = getenv("FAIL_FLUSH");
  FILE *file = name ? fopen(name, "r") : NULL;
  int (*real)(void *mapping, uint64_t offset, uint64_t length), error = 0;

  if (file) {
    if (fscanf(file, "%d", &error) != 1)
      error = EIO;
    fclose(file);
    return -error;
  }
  *(void **)&real = dlsym(RTLD_NEXT, "pcow_flush");
  return real(mapping, offset, length);
}
