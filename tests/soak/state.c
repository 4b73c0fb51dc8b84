/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The model, the operation under way, and the comparison of an image with both. See soak.h.
 */
#include "soak.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAGIC UINT64_C(0x6b616f73776f6370)
#define LANE_WORD 200u /* which word of its page a lane is */

const char *const kind_names[OP_KINDS] = { "pwrite",   "store",  "zero",   "discard", "flush",  "close",
                                           "snapshot", "delete", "revert", "resize",  "create", "remove",
                                           "rebase",   "commit", "map",    "unmap",   "open" };

uint64_t now_ms(void)
{
  struct timespec now;

  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- Content ---- */

void block_make(uint64_t *words, uint32_t seq, uint64_t page, unsigned block)
{
  unsigned writer = seq >> 31 ? COMMON_WRITER : my_number;
  uint64_t value, sum = 0;

  if (!seq) {
    memset(words, 0, BLOCK);
    return;
  }
  words[0] = MAGIC;
  words[1] = (uint64_t)writer << 48 | page << 8 | block;
  words[2] = seq;
  value = test_mix(words[1] ^ test_mix(words[2]));
  for (unsigned i = 4; i < BLOCK_WORDS; i++)
    sum += words[i] = value += UINT64_C(0x9e3779b97f4a7c15);
  words[3] = test_mix(sum);
}

uint64_t lane_word(uint32_t number)
{
  return number ? (uint64_t)(0x1a4e0000u | my_number) << 32 | number : 0;
}

void page_make(unsigned char *page, const struct view *v, uint64_t number)
{
  if (number < LANES) {
    memset(page, 0, PAGE);
    memcpy(page + LANE_WORD * 8, &(uint64_t){ lane_word(v->lane[number]) }, 8);
    return;
  }
  for (unsigned b = 0; b < PAGE_BLOCKS; b++)
    block_make((uint64_t *)(void *)(page + b * BLOCK), v->block[number * PAGE_BLOCKS + b], number, b);
}

/* ---- Journal ---- */

void say(const char *format, ...)
{
  uint32_t at = atomic_load(&me->log_count);
  char *line = me->log[at % LOG];
  int length = snprintf(line, sizeof me->log[0], "[%u] ", atomic_load(&me->incarnation));
  va_list ap;

  va_start(ap, format);
  vsnprintf(line + length, sizeof me->log[0] - (size_t)length, format, ap);
  va_end(ap);
  atomic_store(&me->log_count, at + 1);
}

void journal_print(const struct worker *w)
{
  uint32_t count = atomic_load(&w->log_count);

  for (uint32_t i = count > LOG ? count - LOG : 0; i < count; i++)
    fprintf(stderr, "  %s\n", w->log[i % LOG]);
  fprintf(stderr, "  under way: phase %u, %s of image %u\n", atomic_load(&w->op.phase),
          kind_names[w->op.kind], w->op.image);
}

/* The kernel kills this process after so many microseconds, wherever it is then. */
static void arm_kill(uint32_t usec)
{
  struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
  struct itimerspec when = { .it_value = { 0, (long)usec * 1000 + 1 } };
  timer_t timer;

  SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
  SYS(timer_settime(timer, 0, &when, NULL));
}

void op_begin(const struct op *op)
{
  const size_t skip = sizeof op->phase;
  uint32_t kind = op->kind;

  say("%s image %u blocks %u-%u seq %u id %u slot %u size %" PRIu64 " base %u:%u:%u%s", kind_names[kind],
      op->image, op->first, op->end, op->seq, op->id, op->slot, op->size, op->base.kind, op->base.image,
      op->base.id, op->durable ? " durable" : "");
  CHECK(atomic_load(&me->op.phase) == IDLE, "the soak itself is wrong: two operations at a time");
  memcpy((char *)&me->op + skip, (const char *)op + skip, sizeof *op - skip);
  atomic_store(&me->op.phase, INTENT);
  atomic_fetch_add(&me->progress, 1);
  if (atomic_load(&me->kill_kind) == kind + 1)
    arm_kill(atomic_load(&me->kill_usec));
}

void op_end(void)
{
  atomic_store(&me->op.phase, ACKED);
  atomic_fetch_add(&me->done[me->op.kind], 1);
  op_apply();
}

void op_refused(void)
{
  say("  refused: %s", pcow_errormsg());
  atomic_store(&me->op.phase, IDLE);
}

static void all_durable(struct image *i)
{
  memcpy(i->durable, i->head.block, sizeof i->durable);
}

static const struct view *base_view(const struct base *b)
{
  if (b->kind == BASE_SNAP) {
    const struct image *below = &me->image[b->image];

    for (unsigned s = 0; s < SNAPS; s++)
      if (below->snap[s].id == b->id)
        return &below->snap[s].view;
    FAIL("the soak itself is wrong: image %u has no snapshot %u", b->image, b->id);
  }
  if (b->kind == BASE_TIP)
    return &me->image[b->image].head;
  return b->kind == BASE_NO ? NULL : b->kind == BASE_RAWFILE ? &shared->raw : &shared->common;
}

static void apply_create(const struct op *op, struct image *i)
{
  const struct view *below = base_view(&op->base);

  memset(i, 0, sizeof *i);
  if (below)
    i->head = *below;
  for (uint64_t b = op->size / BLOCK; b < BLOCKS_MAX; b++)
    i->head.block[b] = 0;
  i->head.size = op->size;
  i->base = op->base;
  i->unit = op->unit;
  all_durable(i);
  i->exists = true;
}

void op_apply(void)
{
  const struct op *op = &me->op;
  struct image *i = &me->image[op->image];
  struct snap *snap = &i->snap[op->slot];

  if (op->kind < OP_FLUSH) {
    uint32_t first = op->first / PAGE_BLOCKS * PAGE_BLOCKS;
    uint32_t end = (op->end + PAGE_BLOCKS - 1) / PAGE_BLOCKS * PAGE_BLOCKS;

    for (uint32_t b = op->first; b < op->end; b++)
      i->head.block[b] = op->seq;
    if (op->durable)
      memcpy(i->durable + first, i->head.block + first, (end - first) * sizeof i->durable[0]);
  }
  switch (op->kind) {
  case OP_SNAPSHOT:
    all_durable(i);
    snap->view = i->head;
    memcpy(snap->view.lane, op->lane, sizeof op->lane);
    snap->lane_from = op->lane_from;
    snap->lane_limit = op->lane_limit;
    snap->id = op->id;
    break;
  case OP_DELETE:
    snap->id = 0;
    break;
  case OP_REVERT:
    i->head = snap->view;
    all_durable(i);
    break;
  case OP_RESIZE:
    for (uint64_t b = (op->size < op->size_before ? op->size : op->size_before) / BLOCK; b < BLOCKS_MAX; b++)
      i->head.block[b] = 0;
    i->head.size = op->size;
    all_durable(i);
    break;
  case OP_CREATE:
    apply_create(op, i);
    break;
  case OP_REMOVE:
    i->exists = false;
    break;
  case OP_REBASE:
    i->base = op->base;
    all_durable(i);
    break;
  case OP_COMMIT: {
    struct image *below = &me->image[op->other];
    uint64_t size = below->head.size > i->head.size ? below->head.size : i->head.size;

    for (uint64_t b = 0; b < i->head.size / BLOCK; b++)
      below->head.block[b] = i->head.block[b];
    memcpy(below->head.lane, i->head.lane, sizeof i->head.lane);
    below->head.size = size;
    all_durable(below);
    all_durable(i);
    break;
  }
  case OP_FLUSH:
  case OP_CLOSE:
    all_durable(i);
    break;
  case OP_UNMAP:
    if (op->durable)
      all_durable(i);
    break;
  default:
    break;
  }
  atomic_store(&me->op.phase, IDLE);
}

/* ---- Comparison ---- */

static void explain(const unsigned char *found, const unsigned char *expected, uint64_t page)
{
  for (unsigned b = 0; b < PAGE_BLOCKS; b++) {
    uint64_t words[BLOCK_WORDS], other[BLOCK_WORDS];
    unsigned at = 0;

    memcpy(words, found + b * BLOCK, BLOCK);
    memcpy(other, expected + b * BLOCK, BLOCK);
    while (at < BLOCK_WORDS && words[at] == other[at])
      at++;
    if (at < BLOCK_WORDS)
      fprintf(stderr,
              "  page %" PRIu64 " block %u differs from word %u on (0x%016" PRIx64 ", should be 0x%016" PRIx64
              "): found %s writer %" PRIu64 " page %" PRIu64 " sequence %" PRIu64 ", expected page %" PRIu64
              " sequence %" PRIu64 "\n", page, b, at, words[at], other[at],
              words[0] == MAGIC ? "a block," : words[0] ? "no block," : "zeros,", words[1] >> 48,
              words[1] >> 8 & 0xffffff, words[2], other[1] >> 8 & 0xffffff, other[2]);
  }
}

static unsigned char *read_all(pcow_image *image, uint64_t size)
{
  unsigned char *bytes = aligned_alloc(PAGE, size);

  CHECK(bytes, "out of memory");
  OK(pcow_pread(image, bytes, size, 0));
  atomic_fetch_add(&me->pages, size / PAGE);
  atomic_fetch_add(&me->progress, 1);
  return bytes;
}

static uint64_t size_of(pcow_image *image)
{
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_get_info(image, &info));
  return info.virtual_size;
}

/* The first page that is wrong, or UINT64_MAX. */
static uint64_t view_differs(const unsigned char *bytes, const struct view *v)
{
  page_buffer page;

  for (uint64_t p = 0; p < v->size / PAGE; p++) {
    page_make(page, v, p);
    if (memcmp(page, bytes + p * PAGE, PAGE) != 0)
      return p;
  }
  return UINT64_MAX;
}

bool view_is(pcow_image *image, const struct view *v)
{
  unsigned char *bytes;
  bool same;

  if (size_of(image) != v->size)
    return false;
  bytes = read_all(image, v->size);
  same = view_differs(bytes, v) == UINT64_MAX;
  free(bytes);
  return same;
}

void view_verify(pcow_image *image, const struct view *v, const char *what)
{
  unsigned char *bytes;
  page_buffer page;
  uint64_t size = size_of(image), wrong;

  CHECK(size == v->size, "%s has %" PRIu64 " bytes, should have %" PRIu64, what, size, v->size);
  bytes = read_all(image, size);
  wrong = view_differs(bytes, v);
  if (wrong != UINT64_MAX) {
    page_make(page, v, wrong);
    explain(bytes + wrong * PAGE, page, wrong);
    FAIL("%s: page %" PRIu64 " is not what was acknowledged", what, wrong);
  }
  free(bytes);
}

/* Is every word of the block one of the two? */
static bool mixed(const void *found, const uint64_t *a, const uint64_t *b)
{
  uint64_t words[BLOCK_WORDS];

  memcpy(words, found, BLOCK);
  for (unsigned i = 0; i < BLOCK_WORDS; i++)
    if (words[i] != a[i] && words[i] != b[i])
      return false;
  return true;
}

/* One page of the head after a kill; MODEL: the model learns what was found. False: it is wrong. */
static bool page_settle(struct image *i, const struct op *op, const unsigned char *found, uint64_t p,
                        bool model, unsigned *torn)
{
  uint64_t blocks[PAGE_BLOCKS][BLOCK_WORDS], new[BLOCK_WORDS];
  uint32_t *head = i->head.block + p * PAGE_BLOCKS, *durable = i->durable + p * PAGE_BLOCKS;
  bool old = true;

  for (unsigned b = 0; b < PAGE_BLOCKS; b++) {
    block_make(blocks[b], durable[b], p, b);
    old = old && memcmp(found + b * BLOCK, blocks[b], BLOCK) == 0;
  }
  for (unsigned b = 0; !old && b < PAGE_BLOCKS; b++) {
    uint32_t at = (uint32_t)(p * PAGE_BLOCKS + b);
    const unsigned char *block = found + b * BLOCK;

    block_make(blocks[0], head[b], p, b);
    if (memcmp(block, blocks[0], BLOCK) == 0)
      continue;
    if (!op || at < op->first || at >= op->end)
      return false;
    block_make(new, op->seq, p, b);
    if (!mixed(block, blocks[0], new))
      return false;
    if (memcmp(block, new, BLOCK) != 0)
      ++*torn; /* to be written again */
    else if (model)
      head[b] = op->seq;
  }
  if (model)
    memcpy(old ? head : durable, old ? durable : head, PAGE_BLOCKS * sizeof head[0]);
  return true;
}

/* A lane after a kill: the store under way is there, or not. */
static bool lane_settle(struct image *i, unsigned index, const unsigned char *found, unsigned lane,
                        bool model)
{
  uint32_t number = atomic_load(&me->lane_begun);
  struct view with = i->head;
  page_buffer page;

  if (atomic_load(&me->lane_image) != (int32_t)index || number % LANES != lane || number < me->lane_first)
    return false;
  with.lane[lane] = number;
  page_make(page, &with, lane);
  if (memcmp(page, found, PAGE) != 0)
    return false;
  if (model)
    i->head.lane[lane] = number;
  return true;
}

static unsigned head_compare(pcow_image *image, unsigned index, bool exact, bool model, uint64_t *wrong)
{
  struct image *i = &me->image[index];
  bool under_way = atomic_load(&me->op.phase) == INTENT && me->op.image == index && me->op.kind < OP_FLUSH;
  const struct op *op = under_way ? &me->op : NULL;
  unsigned char *bytes;
  page_buffer page;
  uint64_t size = size_of(image);
  unsigned torn = 0;

  *wrong = 0;
  if (size != i->head.size)
    return 0;
  bytes = read_all(image, size);
  *wrong = UINT64_MAX;
  for (uint64_t p = 0; p < size / PAGE && *wrong == UINT64_MAX; p++) {
    const unsigned char *found = bytes + p * PAGE;

    page_make(page, &i->head, p);
    if (memcmp(page, found, PAGE) == 0) {
      if (model)
        memcpy(i->durable + p * PAGE_BLOCKS, i->head.block + p * PAGE_BLOCKS,
               PAGE_BLOCKS * sizeof i->durable[0]);
      continue;
    }
    if (!exact && (p < LANES ? lane_settle(i, index, found, (unsigned)p, model)
                             : page_settle(i, op, found, p, model, &torn)))
      continue;
    *wrong = p;
    if (model || exact)
      explain(found, page, p);
  }
  free(bytes);
  return torn;
}

unsigned head_verify(pcow_image *image, unsigned index, bool exact)
{
  uint64_t wrong;
  unsigned torn = head_compare(image, index, exact, !exact, &wrong);

  CHECK(size_of(image) == me->image[index].head.size,
        "the head of image %u has %" PRIu64 " bytes, should have %" PRIu64, index, size_of(image),
        me->image[index].head.size);
  CHECK(wrong == UINT64_MAX, "the head of image %u: page %" PRIu64 " is not what was acknowledged%s", index,
        wrong, exact ? "" : ", nor old or new");
  return torn;
}

bool head_is(pcow_image *image, unsigned index)
{
  uint64_t wrong;

  head_compare(image, index, false, false, &wrong);
  return wrong == UINT64_MAX;
}

void range_adopt(pcow_image *image, unsigned index)
{
  const struct op *op = &me->op;
  struct image *i = &me->image[index];
  uint64_t first = op->first, count = op->end - op->first, words[BLOCK_WORDS];
  unsigned char *bytes = test_alloc(count * BLOCK);

  OK(pcow_pread(image, bytes, count * BLOCK, first * BLOCK));
  for (uint64_t b = first; b < first + count; b++) {
    const unsigned char *found = bytes + (b - first) * BLOCK;

    block_make(words, i->head.block[b], b / PAGE_BLOCKS, b % PAGE_BLOCKS);
    if (memcmp(words, found, BLOCK) == 0)
      continue;
    block_make(words, op->seq, b / PAGE_BLOCKS, b % PAGE_BLOCKS);
    CHECK(memcmp(words, found, BLOCK) == 0,
          "image %u: block %" PRIu64 " is neither old nor new after -ENOSPC", index, b);
    i->head.block[b] = op->seq;
  }
  free(bytes);
}

/* ---- The cut of a snapshot ---- */

void snap_resolve(unsigned index, unsigned slot)
{
  struct snap *s = &me->image[index].snap[slot];
  uint32_t found[LANES], cut = 0;
  pcow_image *image;

  if (!s->lane_limit)
    return;
  image = soak_open(image_path(index), 0, snap_name(s->id));
  for (unsigned i = 0; i < LANES; i++) {
    uint64_t word;

    OK(pcow_pread(image, &word, 8, i * PAGE + LANE_WORD * 8));
    found[i] = (uint32_t)word;
    CHECK(word == lane_word(found[i]), "snapshot %u: lane %u has 0x%" PRIx64, s->id, i, word);
    cut = found[i] > cut ? found[i] : cut;
  }
  OK(pcow_close(image));
  CHECK(cut <= s->lane_limit,
        "snapshot %u has store %u of the second thread, which began only after it was taken", s->id, cut);
  /* What was acknowledged before is there, and of later numbers each up to the cut. */
  for (uint32_t n = s->lane_from; n <= cut; n++)
    s->view.lane[n % LANES] = n;
  for (unsigned i = 0; i < LANES; i++)
    CHECK(found[i] == s->view.lane[i],
          "snapshot %u: lane %u has store %u, and should have %u (%u was acknowledged before, the newest in "
          "it is %u)", s->id, i, found[i], s->view.lane[i], s->lane_from - 1, cut);
  s->lane_limit = 0;
  atomic_fetch_add(&me->cuts, 1);
}
