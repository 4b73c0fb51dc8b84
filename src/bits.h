/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bit strings in 64-bit words, bit i being bit i mod 64 of word i / 64: presence bitmaps in memory
 * and sets of pages. Ranges are [first, end).
 */
#ifndef PCOW_BITS_H
#define PCOW_BITS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

static inline uint64_t bits_words(uint64_t bits) { return (bits + 63) / 64; }

static inline bool bits_test(const uint64_t *map, uint64_t i) { return map[i / 64] >> (i % 64) & 1; }

/* The bits of word W that lie in [first, end). */
static inline uint64_t bits_word_mask(uint64_t w, uint64_t first, uint64_t end)
{
  uint64_t mask = ~UINT64_C(0);

  if (w == first / 64)
    mask &= ~UINT64_C(0) << (first % 64);
  if (w == end / 64)
    mask &= (UINT64_C(1) << (end % 64)) - 1;
  return mask;
}

static inline void bits_set(uint64_t *map, uint64_t first, uint64_t end)
{
  if (first >= end)
    return;
  for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
    map[w] |= bits_word_mask(w, first, end);
}

static inline void bits_clear(uint64_t *map, uint64_t first, uint64_t end)
{
  if (first >= end)
    return;
  for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
    map[w] &= ~bits_word_mask(w, first, end);
}

/* The first bit in [first, end) that is VALUE, or END. */
static inline uint64_t bits_find(const uint64_t *map, uint64_t first, uint64_t end, bool value)
{
  for (uint64_t w = first / 64; first < end; w++) {
    uint64_t word = (value ? map[w] : ~map[w]) & (~UINT64_C(0) << (first % 64));

    if (word)
      return MIN(end, w * 64 + (uint64_t)__builtin_ctzll(word));
    first = (w + 1) * 64;
  }
  return end;
}

static inline uint64_t bits_count(const uint64_t *map, uint64_t first, uint64_t end)
{
  uint64_t n = 0;

  if (first >= end)
    return 0;
  for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
    n += (uint64_t)__builtin_popcountll(map[w] & bits_word_mask(w, first, end));
  return n;
}

#endif
