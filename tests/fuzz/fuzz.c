/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The fuzz targets, for libFuzzer. FUZZ_FIRST and FUZZ_LIMIT, given when it is compiled, say which
 * operations it is about.
 */
#include "mutate.h"
#include "ops.h"
#include "scene.h"

#include <string.h>

#define FUZZ_READS 2u

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static struct input one, two;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
  (void)argc;
  (void)argv;
  scene_begin();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  input_parse(&one, data, size);
  ops_run(&one, FUZZ_LIMIT, FUZZ_READS);
  return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
  size_t n;

  if (seed % 64 == 0)
    return LLVMFuzzerMutate(data, size, max_size);
  input_parse(&one, data, size);
  mutate(&one, seed, FUZZ_FIRST, FUZZ_LIMIT);
  n = input_serialize(&one, data, max_size);
  return n ? n : LLVMFuzzerMutate(data, size, max_size);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2, size_t size2,
                                 uint8_t *out, size_t max_out, unsigned seed)
{
  input_parse(&one, data1, size1);
  input_parse(&two, data2, size2);
  mutate_cross(&one, &two, seed);
  return input_serialize(&one, out, max_out);
}
