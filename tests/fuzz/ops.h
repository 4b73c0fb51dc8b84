/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs an input: writes its files into a directory of this process and does with the first of them what
 * its operations say. Whatever they hold, the library opens nothing outside the directory, changes
 * nothing that was opened for reading, does not touch the guard beside them, and takes no more space
 * than it was asked for; a write session leaves an image that was whole whole. What fails that ends the
 * process with SIGABRT.
 */
#ifndef PCOW_FUZZ_OPS_H
#define PCOW_FUZZ_OPS_H

#include "input.h"

enum op_code {
  /* reading */
  OP_INFO,
  OP_READ,              /* the head: a: open flags, b: what to read */
  OP_SNAPSHOT,          /* the same of snapshot a */
  OP_CHECK,
  OP_DIFF,              /* snapshot a with snapshot b */
  OP_MAP_READ,          /* snapshot a, or the head */
  OP_CONVERT,           /* what pcow-img convert does, of snapshot a, or the head */
  OP_READ_END,
  /* writing; the image is opened for it at the first one */
  OP_WRITE = OP_READ_END,
  OP_DISCARD,
  OP_ZERO,
  OP_FLUSH,
  OP_CREATE,            /* a snapshot */
  OP_DELETE,
  OP_REVERT,
  OP_RESIZE,
  OP_FLATTEN,
  OP_REBASE,
  OP_COMMIT,
  OP_REOPEN,
  OP_REPAIR,
  OP_EXTENTS,
  OP_WRITE_END,
  /* mapped for writing */
  OP_MAP = OP_WRITE_END,
  OP_STORE,
  OP_LOAD,
  OP_UNMAP,
  OP_END,
};

/* Operations from LIMIT on are passed over, and of those that only read all after the first READS: each
 * opens the image anew, so that more of them find no more. */
void ops_run(const struct input *in, enum op_code limit, unsigned reads);

#endif
