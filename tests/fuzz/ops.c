/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See ops.h.
 */
#include "ops.h"

#include "scene.h"

#include <glib.h>
#include <inttypes.h>
#include <libpcow/libpcow.h>
#include <stdio.h>
#include <string.h>

#define PAGE UINT64_C(4096)
#define PLACES 64u
#define EXTENTS_MOST 4096u
#define CONVERT_MOST (UINT64_C(1) << 20)
#define SNAPSHOTS_MOST 16u
#define IO_BYTES (128u << 10)
#define MAP_MOST (UINT64_C(1) << 36)
#define SLACK_BYTES (UINT64_C(8) << 20)

static uint8_t buffer[IO_BYTES], other[IO_BYTES];

/* What an input's operations share. */
static struct {
  const struct input *in;
  pcow_image *image;                    /* open for writing */
  pcow_mapping *map;
  uint64_t size;                        /* of what is looked at */
  uint64_t session_size;                /* of IMAGE */
  uint64_t places[PLACES];              /* offsets at which extents begin */
  unsigned place_count;
  unsigned extents;
  uint64_t next;                        /* where the next extent must begin */
  uint64_t converted;
  char names[SNAPSHOTS_MOST][PCOW_NAME_MAX + 1];
  unsigned snapshots;
  uint64_t written;
  bool was_clean;                       /* a check before the session found nothing */
  bool commits;                         /* a commit into the base writes other files */
} now;

/* ---- Reading ---- */

static pcow_image *open_image(uint32_t flags, const char *snapshot)
{
  struct pcow_open_options o = PCOW_INIT(o);
  struct pcow_info info = PCOW_INIT(info);
  pcow_image *image = NULL;

  o.flags = flags;
  o.snapshot = snapshot;
  o.base_dir = scene_dir();
  if (pcow_open(scene_image(), &o, &image) < 0) {
    if (image || !*pcow_errormsg())
      wrong("a failed open without a message, or with a handle");
    return NULL;
  }
  if (pcow_get_info(image, &info) == 0) {
    now.size = info.virtual_size;
    if (!info.virtual_size || info.virtual_size % PAGE || info.virtual_size > UINT64_C(1) << 60)
      wrong("virtual size %" PRIu64, info.virtual_size);
  }
  return image;
}

static int on_snapshot(void *opaque, const struct pcow_snapshot_info *info)
{
  (void)opaque;
  if (now.snapshots < SNAPSHOTS_MOST)
    g_strlcpy(now.names[now.snapshots++], info->name, sizeof(now.names[0]));
  return 0;
}

static void list(pcow_image *image)
{
  now.snapshots = 0;
  pcow_snapshot_list(image, on_snapshot, NULL);
}

/* NULL: the head, or there is none of that number. */
static const char *name_of(unsigned number)
{
  number %= SNAPSHOTS_MOST;
  return number < now.snapshots ? now.names[number] : NULL;
}

static int on_extent(void *opaque, const struct pcow_extent *e)
{
  (void)opaque;
  if (e->offset != now.next || !e->length || e->length > now.size - e->offset)
    wrong("an extent of %" PRIu64 " bytes at %" PRIu64 " where %" PRIu64 " was expected, size %" PRIu64,
          e->length, e->offset, now.next, now.size);
  now.next = e->offset + e->length;
  if (now.place_count < PLACES)
    now.places[now.place_count++] = e->offset;
  else
    now.places[now.extents % PLACES] = e->offset;
  return ++now.extents > EXTENTS_MOST;
}

static int walk_extents(pcow_image *image, uint32_t flags)
{
  int ret;

  now.next = now.place_count = now.extents = 0;
  ret = pcow_extents(image, 0, now.size, flags, on_extent, NULL);
  if (ret == 0 && now.next != now.size)
    wrong("the extents end at %" PRIu64 " of %" PRIu64, now.next, now.size);
  return ret;
}

/* An offset that is likely to be of interest. */
static uint64_t place(unsigned a, unsigned b)
{
  uint64_t at;

  switch (a % 4) {
  case 0:
    at = b * PAGE;
    break;
  case 1:
    at = now.size - 1 - b * UINT64_C(512);
    break;
  case 2:
    at = now.place_count ? now.places[b % now.place_count] + (b / PLACES) * UINT64_C(512) : 0;
    break;
  default:
    at = (uint64_t)(b + 1) << (12 + a % 48);
    break;
  }
  return at % now.size;
}

static unsigned io_length(uint64_t at, unsigned wanted)
{
  return (unsigned)MIN(MIN(wanted, IO_BYTES), now.size - at);
}

static void read_some(pcow_image *image, unsigned b)
{
  for (unsigned i = 0; i < now.place_count && i < 4; i++) {
    uint64_t at = now.places[(b + i) % now.place_count];

    at -= MIN(at, 100);
    pcow_pread(image, buffer, io_length(at, 4500), at);
  }
  for (unsigned a = 1; a < 4; a += 2) {
    uint64_t at = place(a, b);

    pcow_pread(image, buffer, io_length(at, 5000), at);
  }
  if (pcow_pread(image, buffer, 2, now.size - 1) == 0)
    wrong("a read beyond the end");
}

static void do_info(void)
{
  pcow_image *image = open_image(PCOW_OPEN_INFO, NULL);

  if (!image)
    return;
  list(image);
  pcow_close(image);
}

static void do_read(const char *snapshot, unsigned flags, unsigned b)
{
  pcow_image *image = open_image(flags & (PCOW_OPEN_NO_BASE | PCOW_OPEN_FORCE_BASE), snapshot);

  if (!image)
    return;
  list(image);
  walk_extents(image, b % 2 ? PCOW_EXTENTS_MERGE : 0);
  read_some(image, b);
  pcow_close(image);
}

static void on_finding(void *opaque, const char *text)
{
  unsigned *count = opaque;

  ++*count;
  if (!*text)
    wrong("an empty finding");
}

/* True when nothing is corrupt. */
static bool do_check(uint32_t flags)
{
  struct pcow_check_result result = PCOW_INIT(result);
  unsigned findings = 0;

  return pcow_check(scene_image(), flags, &result, on_finding, NULL, &findings) == 0 && !result.corruptions;
}

static int on_difference(void *opaque, const struct pcow_extent *e)
{
  (void)opaque;
  if (e->offset < now.next || !e->length)
    wrong("differences out of order");
  now.next = e->offset + e->length;
  return ++now.extents > EXTENTS_MOST;
}

static void do_diff(unsigned a, unsigned b)
{
  pcow_image *image = now.image ? now.image : open_image(PCOW_OPEN_FORCE_BASE, NULL);

  if (!image)
    return;
  list(image);
  now.next = now.extents = 0;
  if (name_of(a))
    pcow_diff(image, name_of(a), name_of(b), on_difference, NULL);
  if (!now.image)
    pcow_close(image);
}

static void touch(const volatile uint8_t *range, uint64_t at)
{
  (void)range[at];
}

static void do_map_read(const char *snapshot)
{
  pcow_image *image = open_image(PCOW_OPEN_FORCE_BASE, snapshot);
  pcow_mapping *map = NULL;

  if (!image)
    return;
  walk_extents(image, 0);
  if (now.size <= MAP_MOST && pcow_map(image, NULL, &map) == 0) {
    const volatile uint8_t *range = pcow_mapping_address(map);

    for (unsigned i = 0; i < now.place_count && i < 16; i++) {
      touch(range, now.places[i]);
      touch(range, now.places[i] ? now.places[i] - 1 : 0);
    }
    touch(range, now.size - 1);
    pcow_unmap(map);
  }
  pcow_close(image);
}

static int on_convert(void *opaque, const struct pcow_extent *e)
{
  if (e->offset != now.next)
    wrong("extents with a gap");
  now.next = e->offset + e->length;
  for (uint64_t at = e->offset; e->type == PCOW_EXTENT_DATA && at < now.next;) {
    unsigned n = (unsigned)MIN(now.next - at, IO_BYTES);

    if (pcow_pread(opaque, buffer, n, at) < 0)
      return -1;
    at += n;
    now.converted += n;
    if (now.converted > CONVERT_MOST)
      return 1;
  }
  return ++now.extents > EXTENTS_MOST;
}

static void do_convert(const char *snapshot)
{
  pcow_image *image = open_image(0, snapshot);

  if (!image)
    return;
  now.next = now.converted = now.extents = 0;
  pcow_extents(image, 0, now.size, PCOW_EXTENTS_MERGE, on_convert, image);
  pcow_close(image);
}

/* ---- Writing ---- */

static void do_unmap(void)
{
  pcow_unmap(now.map);
  now.map = NULL;
}

static void end_session(void)
{
  do_unmap();
  pcow_close(now.image);
  now.image = NULL;
}

static bool begin_session(unsigned flags)
{
  if (!now.image) {
    now.image = open_image(PCOW_OPEN_RDWR | (flags & (PCOW_OPEN_NO_BASE | PCOW_OPEN_FORCE_BASE)), NULL);
    if (now.image)
      list(now.image);
    now.session_size = now.size;
  }
  now.size = now.session_size;
  return now.image;
}

static void do_write(const struct input_op *op)
{
  uint64_t at = place(op->a, op->b);
  unsigned n = io_length(at, (op->b >> 8) * 160u + 1 + op->a);

  memset(buffer, op->a | 1, n);
  if (pcow_pwrite(now.image, buffer, n, at) < 0)
    return;
  now.written += n + 2 * PAGE;
  if (pcow_pread(now.image, other, n, at) < 0 || memcmp(buffer, other, n))
    wrong("%u bytes at %" PRIu64 " are not read as they were written", n, at);
}

static void do_zero(const struct input_op *op, bool discard)
{
  uint64_t at = place(op->a, op->b);
  uint64_t length = op->a & 0x80 ? now.size - at : io_length(at, (op->b >> 7) * 300u + 1);
  bool keep = !discard && length <= IO_BYTES && op->a & 0x40;
  unsigned n = io_length(at, 4096);
  int ret = discard ? pcow_discard(now.image, at, length)
                    : pcow_write_zeroes(now.image, at, length, keep ? PCOW_ZERO_KEEP_SPACE : 0);

  if (ret < 0)
    return;
  now.written += keep ? length + 2 * PAGE : 2 * PAGE;
  n = (unsigned)MIN(n, length);
  /* What lies beneath elsewhere in the unit may be damaged: then nothing of it can be read. */
  if (pcow_pread(now.image, other, n, at) == 0 && (other[0] || memcmp(other, other + 1, n - 1)))
    wrong("%u bytes at %" PRIu64 " are not zeros", n, at);
}

static void do_resize(const struct input_op *op)
{
  struct pcow_info info = PCOW_INIT(info);
  uint64_t size = op->a & 1 ? place(op->a >> 2, op->b) : now.size + ((uint64_t)(op->b & 255) << (op->a >> 2));

  pcow_resize(now.image, size, op->a & 2 ? PCOW_RESIZE_SHRINK : 0);
  if (pcow_get_info(now.image, &info) == 0)
    now.size = now.session_size = info.virtual_size;
}

static void do_rebase(const struct input_op *op, bool flatten)
{
  struct pcow_rebase_options o = PCOW_INIT(o);

  if (!flatten) {
    o.base = op->a & 4 ? "guard" : input_names[op->b % INPUT_FILES];
    o.base_format = op->a & 6 ? PCOW_FORMAT_RAW : PCOW_FORMAT_PCOW;
    o.flags = op->a & 8 ? PCOW_REBASE_UNSAFE : 0;
  }
  pcow_rebase(now.image, &o);
}

static void do_snapshot(const struct input_op *op)
{
  struct pcow_info info = PCOW_INIT(info);
  char name[16];

  snprintf(name, sizeof(name), "s%u", op->b % 8u);
  if (op->code == OP_CREATE)
    pcow_snapshot_create(now.image, name);
  else if (op->code == OP_DELETE && name_of(op->b))
    pcow_snapshot_delete(now.image, name_of(op->b));
  else if (op->code == OP_REVERT && name_of(op->b))
    pcow_snapshot_revert(now.image, name_of(op->b));
  if (pcow_get_info(now.image, &info) == 0)
    now.size = now.session_size = info.virtual_size;
  list(now.image);
}

static void do_write_op(const struct input_op *op)
{
  switch (op->code) {
  case OP_WRITE:
    do_write(op);
    break;
  case OP_DISCARD:
  case OP_ZERO:
    do_zero(op, op->code == OP_DISCARD);
    break;
  case OP_FLUSH:
    pcow_sync(now.image);
    break;
  case OP_CREATE:
  case OP_DELETE:
  case OP_REVERT:
    do_snapshot(op);
    break;
  case OP_RESIZE:
    do_resize(op);
    break;
  case OP_FLATTEN:
  case OP_REBASE:
    do_rebase(op, op->code == OP_FLATTEN);
    break;
  case OP_COMMIT:
    now.commits = true;
    pcow_commit(now.image, NULL, NULL);
    break;
  case OP_EXTENTS:
    walk_extents(now.image, op->a % 2 ? PCOW_EXTENTS_MERGE : 0);
    read_some(now.image, op->b);
    break;
  default:
    break;
  }
}

static void do_map_op(const struct input_op *op)
{
  struct pcow_map_options o = PCOW_INIT(o);
  volatile uint8_t *range;
  uint64_t at = place(op->a, op->b);

  if (op->code == OP_MAP && !now.map && now.size <= MAP_MOST) {
    o.durability = PCOW_STORE_DURABLE;
    o.thin = op->a & 1 ? PCOW_THIN_NATIVE : PCOW_THIN_GUARDED;
    o.granule = op->a & 2 ? PAGE : 0;
    pcow_map(now.image, &o, &now.map);
    return;
  }
  if (op->code == OP_UNMAP)
    do_unmap();
  if (!now.map)
    return;
  if (scene_trace)
    fprintf(stderr, "at %" PRIu64 " of %" PRIu64 "\n", at, now.size);
  range = pcow_mapping_address(now.map);
  at %= pcow_mapping_length(now.map);
  if (op->code == OP_STORE) {
    range[at] = op->a;
    now.written += UINT64_C(4) << 20;
    if (pcow_pread(now.image, other, 1, at) < 0 || other[0] != op->a)
      wrong("a store at %" PRIu64 " is not read", at);
    pcow_persist(now.map, at, 1);
  } else if (op->code == OP_LOAD) {
    if (pcow_pread(now.image, other, 1, at) == 0 && range[at] != other[0])
      wrong("the mapping shows something else at %" PRIu64 " than pcow_pread()", at);
  }
}

static void do_op(const struct input_op *op)
{
  switch (op->code) {
  case OP_INFO:
    do_info();
    break;
  case OP_READ:
    do_read(NULL, op->a, op->b);
    break;
  case OP_SNAPSHOT:
    do_read(name_of(op->a), op->a >> 4, op->b);
    break;
  case OP_CHECK:
    do_check(0);
    break;
  case OP_DIFF:
    do_diff(op->a, op->b);
    break;
  case OP_MAP_READ:
    do_map_read(name_of(op->a));
    break;
  case OP_CONVERT:
    do_convert(name_of(op->a));
    break;
  case OP_REOPEN:
    end_session();
    break;
  case OP_REPAIR:
    end_session();
    do_check(op->a % 2 ? PCOW_CHECK_REPAIR_ALL : PCOW_CHECK_REPAIR_LEAKS);
    break;
  default:
    if (begin_session(op->a >> 4)) {
      if (op->code < OP_WRITE_END)
        do_write_op(op);
      else
        do_map_op(op);
    }
  }
}

void ops_run(const struct input *in, enum op_code limit, unsigned reads)
{
  bool writes = false;
  uint64_t before;

  memset(&now, 0, sizeof(now));
  now.in = in;
  now.size = PAGE;
  if (!in->files)
    return;
  scene_write(in);
  before = scene_blocks();
  for (unsigned i = 0; i < in->ops; i++)
    writes |= in->op[i].code % OP_END >= OP_WRITE && in->op[i].code % OP_END < (unsigned)limit;
  now.was_clean = writes && in->op[0].code % OP_END == OP_CHECK && do_check(0);
  for (unsigned i = 0; i < in->ops; i++) {
    struct input_op op = in->op[i];

    op.code %= OP_END;
    if (op.code >= (unsigned)limit || (op.code < OP_READ_END && !reads))
      continue;
    reads -= op.code < OP_READ_END;
    if (scene_trace)
      fprintf(stderr, "operation %u(%u, %u), before: %s\n", op.code, op.a, op.b, pcow_errormsg());
    do_op(&op);
  }
  end_session();
  if (now.was_clean && !do_check(0))
    wrong("an image that was whole is not any more");
  scene_check(in, writes, now.commits);
  if (scene_blocks() > (before + GUARD_BYTES) * 4 + now.written + SLACK_BYTES)
    wrong("%" PRIu64 " bytes of blocks became %" PRIu64 ", %" PRIu64 " were written", before, scene_blocks(),
          now.written);
}
