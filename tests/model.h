/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The reference that test-model compares with: the whole content of a view, in memory, page by page;
 * copies share pages until one of them changes. Nothing here knows how libpcow works.
 */
#ifndef PCOW_TEST_MODEL_H
#define PCOW_TEST_MODEL_H

#include "testlib.h"

struct model_page;

struct model {
  uint64_t size; /* bytes, a multiple of a page */
  struct model_page **page; /* NULL: zeros */
};

struct model *model_new(uint64_t size);
struct model *model_copy(const struct model *c);
void model_free(struct model *c);

/* What is added reads as zeros. */
void model_resize(struct model *c, uint64_t size);
void model_write(struct model *c, const void *data, uint64_t length, uint64_t offset);
void model_zero(struct model *c, uint64_t length, uint64_t offset);

/* PCOW_PAGE_SIZE bytes; zeros beyond the end. */
const unsigned char *model_bytes(const struct model *c, uint64_t page);
bool model_is_zero(const struct model *c, uint64_t page);

/* Offset of the first byte in which DATA, found at OFFSET, is wrong; UINT64_MAX: none is. */
uint64_t model_differs(const struct model *c, const void *data, uint64_t length, uint64_t offset);

/* The same bytes, zeros beyond the shorter end. */
bool model_equal(const struct model *a, const struct model *b);

/* Prints what was expected and found around OFFSET, in pages of C and DATA (found at START). */
void model_explain(const struct model *c, const void *data, uint64_t start, uint64_t length,
                     uint64_t offset);

#endif
