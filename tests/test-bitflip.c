/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flips every bit of everything that the format defines, one at a time, in a small image with a base, three
 * snapshots, a branch, and a deleted epoch that its two children keep: both superblocks with the base
 * reference, the records of the log, map words, headers and presence bitmaps. For each flip the image is
 * checked, and its views are opened and read. What is allowed:
 *
 *   superblock     the check finds it; every view is the same, for the other copy counts
 *   record         the check finds it, and nothing opens
 *   header         the check finds it; in a free slot nothing changes, for nobody reads it there
 *   reference      (map words, `previous`) the check finds it, as a fault or, where it leads to a slot
 *                  further down the same chain, as leaked slots, if those that it passes over hold blocks
 *   bitmap         no checksum can tell: bitmaps change by single words while others read. A bit beyond the
 *                  unit is found; one that is cleared over blocks is found as leaked pages; any other can
 *                  change that one page, in views that see the slot's epoch, and nothing else
 *
 * Anything else fails. No flip may crash, hang, or make a check or a reader write.
 */
#include "content.h"
#include "geometry.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNIT (64 * KIB)
#define UNITS 4
#define SIZE (UNITS * UNIT)
#define VIEWS 4
#define HANG 60 /* seconds for one flip, on however slow a machine */

enum kind { SUPERBLOCK, RECORD, HEADER, RESERVED, REFERENCE, BITMAP, KINDS };
enum outcome { BY_OPEN, BY_CHECK, AS_LEAK, NO_EFFECT, ONE_PAGE, OUTCOMES };

static const char *const kind_names[KINDS] = {
  "superblock", "record", "header", "reserved", "reference", "bitmap",
};

static const char *const names[VIEWS] = { NULL, "a", "c", "d" };
static struct content views[VIEWS];
static struct geometry g;
static char *path;
static int fd;
static unsigned long counts[KINDS][OUTCOMES];
static unsigned long flips;

/* A reader that finds one superblock damaged looks again after a pause, a commit could be running. There is
 * none: the library's pauses end at once. */
void g_usleep(gulong microseconds) { (void)microseconds; }

/* ---- The image ----------------------------------------------------------------------------- */

static void make(struct rng *rng)
{
  char *base = test_path("base");
  struct content head = content_new(SIZE), b;
  pcow_image *image;

  test_create(base, SIZE - UNIT, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(base, PCOW_OPEN_RDWR, NULL);
  content_write(image, &head, rng, 0, SIZE - 2 * UNIT);
  OK(pcow_snapshot_create(image, "golden"));
  OK(pcow_close(image));

  path = test_path("image");
  test_create(path, SIZE, UNIT, "base", PCOW_FORMAT_PCOW, "golden");
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_write(image, &head, rng, 3 * PAGE, 4 * PAGE);
  content_write(image, &head, rng, 2 * UNIT, 5 * PAGE);
  content_snapshot(image, "a", &head, &views[1]);
  content_write(image, &head, rng, 5 * PAGE, 4 * PAGE);
  content_discard(image, &head, UNIT, 3 * PAGE);
  content_snapshot(image, "b", &head, &b);
  content_write(image, &head, rng, 0, 2 * PAGE);
  content_write(image, &head, rng, 2 * UNIT + 2 * PAGE, 9 * PAGE);
  content_snapshot(image, "c", &head, &views[2]);
  content_free(&head);
  OK(pcow_snapshot_revert(image, "b"));
  content_write(image, &b, rng, 4 * PAGE, 3 * PAGE);
  content_discard(image, &b, 2 * UNIT, 2 * PAGE);
  content_snapshot(image, "d", &b, &views[3]);
  content_write(image, &b, rng, 7 * PAGE, 3 * PAGE);
  content_write(image, &b, rng, 3 * UNIT, PAGE);
  views[0] = b;
  OK(pcow_snapshot_delete(image, "b")); /* "c" and "d" keep it */
  OK(pcow_close(image));
  test_check_clean(path);
}

/* ---- One flip ------------------------------------------------------------------------------ */

struct look {
  bool refused;                 /* a view does not open, or does not read */
  uint64_t pages;               /* of all views that read, how many differ, */
  uint64_t page;                /* and one of them */
};

static void look_at_view(unsigned v, struct look *look)
{
  static unsigned char bytes[SIZE];
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  int r;

  options.flags = PCOW_OPEN_BASES;
  options.snapshot = names[v];
  r = pcow_open(path, &options, &image);
  if (r == 0) {
    memset(bytes, 0x5a, sizeof bytes);
    r = pcow_pread(image, bytes, SIZE, 0);
    OK(pcow_close(image));
  }
  CHECK(r == 0 || pcow_errormsg()[0], "an error without a sentence");
  if (r) {
    look->refused = true;
    return;
  }
  for (uint64_t page = 0; page < SIZE / PAGE; page++)
    if (memcmp(bytes + page * PAGE, views[v].bytes + page * PAGE, PAGE)) {
      CHECK(!look->pages || look->page == page, "more than one page differs");
      look->page = page;
      look->pages++;
    }
}

static struct pcow_check_result check(int *error)
{
  struct pcow_check_result result = PCOW_INIT(result);

  *error = pcow_check(path, 0, &result, NULL, NULL, NULL);
  return result;
}

static enum outcome judge(enum kind kind, bool used, bool beyond, uint64_t page, bool read_views)
{
  struct look look = { .refused = false };
  struct pcow_check_result result;
  bool found;
  int error;

  result = check(&error);
  found = error || result.corruptions;
  /* A chain that is cut short shows other pages, as many as it likes: that is for the check to find. */
  if (kind != REFERENCE || !(found || result.leaks))
    for (unsigned v = 0; read_views && v < VIEWS; v++)
      look_at_view(v, &look);

  switch (kind) {
  case SUPERBLOCK:
    CHECK(found && !look.refused && !look.pages, "a damaged superblock is not found, or counts");
    return BY_CHECK;
  case RECORD:
    CHECK(found && look.refused, "a damaged record is taken");
    return BY_OPEN;
  case HEADER:
    CHECK(used ? found && look.refused && !look.pages : !look.refused && !look.pages,
          "a damaged header is taken");
    return used ? BY_OPEN : NO_EFFECT;
  case RESERVED:
    CHECK(!look.refused && !look.pages && found == used,
          "reserved bytes of a header count, or are not found");
    return used ? BY_CHECK : NO_EFFECT;
  case REFERENCE:
    if (found)
      return BY_CHECK;
    if (result.leaks)
      return AS_LEAK;
    CHECK(!used && !look.refused && !look.pages, "a damaged reference is taken");
    return NO_EFFECT;
  default:
    CHECK(!look.refused && (!look.pages || look.page == page),
          "a bit of a bitmap changes more than its page");
    CHECK(beyond ? found && !look.pages : !found, "bits beyond the unit are %sfound", found ? "" : "not ");
    CHECK(used || (!look.pages && !result.leaks), "a bitmap of a free slot counts");
    return found ? BY_CHECK : result.leaks ? AS_LEAK : look.pages ? ONE_PAGE : NO_EFFECT;
  }
}

static uint64_t at_offset, at_bit;

static void say_where(void)
{
  fprintf(stderr, "with bit %llu of the byte at 0x%llx flipped\n", (unsigned long long)at_bit,
          (unsigned long long)at_offset);
}

static void flip_byte(uint64_t offset, unsigned bit)
{
  unsigned char byte;

  at_offset = offset;
  at_bit = bit;
  SYS(pread(fd, &byte, 1, (off_t)offset));
  byte ^= (unsigned char)(1u << bit);
  SYS(pwrite(fd, &byte, 1, (off_t)offset));
}

/* LENGTH bytes; PAGE is the page of the range that the first bit stands for. */
static void flip_range(enum kind kind, uint64_t offset, uint64_t length, bool used, uint64_t page)
{
  for (uint64_t i = 0; i < length * 8; i++) {
    bool read_views = kind != SUPERBLOCK || flips % 61 == 0;

    alarm(HANG);
    flip_byte(offset + i / 8, i % 8);
    counts[kind][judge(kind, used, kind == BITMAP && used && i >= g.unit_pages, page + i, read_views)]++;
    flip_byte(offset + i / 8, i % 8);
    flips++;
  }
}

/* ---- All of them --------------------------------------------------------------------------- */

static uint64_t peek64(uint64_t offset)
{
  uint64_t word = 0;

  SYS(pread(fd, &word, 8, (off_t)offset));
  return word;
}

/* The file as it is, to be the same at the end. */
static uint64_t digest(void)
{
  static unsigned char bytes[65536];
  uint64_t sum = 0;
  off_t data = 0;

  while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
    ssize_t n = SYS(pread(fd, bytes, PAGE, data));

    for (ssize_t i = 0; i < n; i++)
      sum = test_mix(sum + bytes[i] + (uint64_t)data);
    data += (off_t)PAGE;
  }
  return sum;
}

static void flip_slot(uint64_t slot, bool used)
{
  uint64_t header = geometry_header(&g, slot);
  uint64_t unit = peek64(header + 8);

  flip_range(HEADER, header, 4, used, 0);
  flip_range(RESERVED, header + 4, 4, used, 0);
  flip_range(HEADER, header + 8, 16, used, 0);
  flip_range(REFERENCE, header + 24, 8, used, 0);
  flip_range(RESERVED, header + 32, 32, used, 0);
  flip_range(BITMAP, geometry_bitmap(&g, slot), 8, used, unit * g.unit_pages);
}

int main(int argc, char **argv)
{
  bool used[256] = { false };
  struct pcow_disk_superblock sb;
  uint64_t before, slots = 0;
  unsigned long all = 0;
  struct rng rng;

  test_force_pmem(argv);
  test_dir(argc, argv);
  test_on_failure(say_where);
  rng.state = test_seed(argc, argv);
  g = geometry_make(16);
  make(&rng);
  fd = (int)SYS(open(path, O_RDWR));
  SYS(pread(fd, &sb, sizeof sb, 0));
  before = digest();

  for (unsigned i = 0; i < 2; i++)
    flip_range(SUPERBLOCK, SUPERBLOCK_OFFSET(i), SUPERBLOCK_BYTES, true, 0);
  CHECK(le64_get(sb.log_end) >= le64_get(sb.log_start) + 4, "the log is too short for the test");
  for (uint64_t n = le64_get(sb.log_start); n < le64_get(sb.log_end); n++)
    flip_range(RECORD, EPOCH_LOG_OFFSET + n * 512, 512, true, 0);
  for (uint64_t unit = 0; unit < UNITS; unit++)
    for (uint64_t slot = peek64(geometry_map_word(unit)) >> 8; slot;
         slot = peek64(geometry_header(&g, slot) + 24) >> 8) {
      CHECK(slot < sizeof used && !used[slot], "a chain that is not valid");
      used[slot] = true;
      slots++;
    }
  CHECK(slots >= 8, "%llu slots are too few for the test", (unsigned long long)slots);
  flip_range(REFERENCE, geometry_map_word(0), (UNITS + 2) * 8, true, 0);
  for (uint64_t slot = 1; slot < sizeof used && slot <= le64_get(sb.slot_count); slot++)
    if (used[slot] || peek64(geometry_header(&g, slot)) || slot == le64_get(sb.slot_count))
      flip_slot(slot, used[slot]);
  CHECK(digest() == before, "the file was changed");
  test_check_clean(path);

  printf("%-11s %8s %8s %8s %8s %8s\n", "", "by open", "by check", "as leak", "nothing", "one page");
  for (unsigned k = 0; k < KINDS; k++) {
    printf("%-11s", kind_names[k]);
    for (unsigned o = 0; o < OUTCOMES; o++) {
      printf(" %8lu", counts[k][o]);
      all += counts[k][o];
    }
    printf("\n");
  }
  printf("%lu flips, %llu slots in use; neither found nor harmless: 0\n", flips, (unsigned long long)slots);
  CHECK(all == flips, "%lu flips are accounted for", all);
  for (unsigned v = 0; v < VIEWS; v++)
    content_free(&views[v]);
  SYS(close(fd));
  return 0;
}
