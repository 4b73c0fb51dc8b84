/* SPDX-License-Identifier: BSD-3-Clause
 *
 * CRC32C (Castagnoli, RFC 3720 appendix B.4), as all checksums of the format.
 */
#ifndef PCOW_CRC32C_H
#define PCOW_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#define CRC32C_POLYNOMIAL 0x82f63b78u   /* reflected */

uint32_t crc32c(const void *data, size_t length);

/* The same without instructions that not every CPU has; for tests. */
uint32_t crc32c_portable(const void *data, size_t length);

#endif
