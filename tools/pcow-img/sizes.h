/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sizes as people write and read them. All suffixes are binary: k = K = 1024.
 */
#ifndef SIZES_H
#define SIZES_H

#include <stdbool.h>
#include <stdint.h>

/* Digits, with a fraction if a suffix other than b follows, and at most one suffix of b k K M G T P E.
 * False for anything else and beyond 2^63 - 1. */
bool sizes_parse(const char *text, uint64_t *size);

/* "1.25 GiB", three digits as qemu-img prints them. The caller frees it. */
char *sizes_format(uint64_t size);

/* SIZE rounded up to a page. SIZE comes from sizes_parse() or a file: it cannot overflow. */
uint64_t sizes_page_up(uint64_t size);

#endif
