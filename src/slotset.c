/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See slotset.h: chunks of bits in a hash table, those without a member left out.
 */
#include "slotset.h"

#include "bits.h"

#define CHUNK_BITS UINT64_C(4096)

struct slotset {
  GHashTable *chunks;           /* number + 1 → bits */
  uint64_t count;
};

struct slotset *slotset_new(void)
{
  struct slotset *s = g_new0(struct slotset, 1);

  s->chunks = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, g_free);
  return s;
}

void slotset_free(struct slotset *s)
{
  if (!s)
    return;
  g_hash_table_unref(s->chunks);
  g_free(s);
}

static uint64_t *chunk_of(const struct slotset *s, uint64_t i)
{
  return g_hash_table_lookup(s->chunks, GSIZE_TO_POINTER(i / CHUNK_BITS + 1));
}

bool slotset_has(const struct slotset *s, uint64_t i)
{
  const uint64_t *bits = chunk_of(s, i);

  return bits && bits_test(bits, i % CHUNK_BITS);
}

bool slotset_add(struct slotset *s, uint64_t i)
{
  uint64_t *bits = chunk_of(s, i);

  if (!bits) {
    bits = g_new0(uint64_t, CHUNK_BITS / 64);
    g_hash_table_insert(s->chunks, GSIZE_TO_POINTER(i / CHUNK_BITS + 1), bits);
  }
  if (bits_test(bits, i % CHUNK_BITS))
    return false;
  bits_set(bits, i % CHUNK_BITS, i % CHUNK_BITS + 1);
  s->count++;
  return true;
}

void slotset_remove(struct slotset *s, uint64_t i)
{
  uint64_t *bits = chunk_of(s, i);

  if (!bits || !bits_test(bits, i % CHUNK_BITS))
    return;
  bits_clear(bits, i % CHUNK_BITS, i % CHUNK_BITS + 1);
  s->count--;
  if (bits_find(bits, 0, CHUNK_BITS, true) == CHUNK_BITS)
    g_hash_table_remove(s->chunks, GSIZE_TO_POINTER(i / CHUNK_BITS + 1));
}

uint64_t slotset_count(const struct slotset *s) { return s->count; }

uint64_t slotset_find(const struct slotset *s, uint64_t first, uint64_t end, bool member)
{
  while (first < end) {
    const uint64_t *bits = chunk_of(s, first);
    uint64_t start = first / CHUNK_BITS * CHUNK_BITS;
    uint64_t stop = MIN(end - start, CHUNK_BITS);
    uint64_t at = member ? stop : first - start;        /* of a chunk that is left out */

    if (bits)
      at = bits_find(bits, first - start, stop, member);
    if (at < stop)
      return start + at;
    first = start + stop;
  }
  return end;
}
