/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The VMA budget, shared: a map that is alone in its process spends most of it on first writes that stand
 * alone, which take a page and two areas each; of two maps, none takes what the other one may have; maps in which
 * nothing happens are in nobody's way.
 *
 *     test-map-share [--dir DIR]
 */
#include "testlib.h"

#include "vmabudget.h"

#include <inttypes.h>
#include <stdio.h>

#define MOST 3000u              /* granules of an image, of which each fifth is written to */
#define ROOM 1600u              /* areas, for half as many pages */

/* First writes that stand alone, a page in each granule of 64 KiB, up to the first that takes more than its
 * page. */
static unsigned write_alone(pcow_mapping *m)
{
  volatile uint8_t *p = pcow_mapping_address(m);
  unsigned n = 0;
  uint64_t taken;

  do {
    struct pcow_mapping_stats before = test_stats(m), after;

    p[(16 * n * 5 + 3 * (n % 4)) * PAGE] = 1;
    after = test_stats(m);
    taken = after.pages_copied + after.pages_reserved - before.pages_copied - before.pages_reserved;
  } while (taken == 1 && ++n < MOST);
  return n;
}

static pcow_image *make(const char *name)
{
  char *path = test_path("%s", name);

  test_create(path, (uint64_t)MOST * 5 * 16 * PAGE, 0, NULL, PCOW_FORMAT_NONE, NULL);
  return test_open(path, PCOW_OPEN_RDWR, NULL);
}

int main(int argc, char **argv)
{
  pcow_image *image[4];
  pcow_mapping *m[3];
  unsigned alone, first, second;

  test_force_pmem(argv);
  test_dir(argc, argv);
  for (unsigned i = 0; i < 3; i++)
    image[i] = make((const char *[]){ "alone", "first", "second" }[i]);

  m[0] = test_map(image[0], NULL);
  vmabudget_override((vmabudget_counted() + ROOM) * 8 / 3);     /* the limit is 3/8 of it */
  alone = write_alone(m[0]);
  CHECK(alone > ROOM / 2 * 3 / 4 && alone < ROOM / 2, "a map alone may have %u pages alone, where %u have room", alone,
        ROOM / 2);
  OK(pcow_unmap(m[0]));

  m[1] = test_map(image[1], NULL);
  m[2] = test_map(image[2], NULL);
  vmabudget_override((vmabudget_counted() + ROOM) * 8 / 3);
  first = write_alone(m[1]);
  second = write_alone(m[2]);
  printf("alone %u, first of two %u, second %u\n", alone, first, second);
  CHECK(first > alone / 3 && first < alone * 2 / 3, "the first of two may have %u, one alone %u", first, alone);
  CHECK(second > alone / 3, "the second of two may have %u, one alone %u", second, alone);
  OK(pcow_unmap(m[1]));
  OK(pcow_unmap(m[2]));

  /* Many that do nothing. */
  image[3] = make("busy");
  m[0] = test_map(image[3], NULL);
  vmabudget_share(100);
  vmabudget_override((vmabudget_counted() + ROOM) * 8 / 3);
  first = write_alone(m[0]);
  CHECK(first > alone / 3, "one map among idle ones may have %u pages alone, without them %u", first, alone);
  vmabudget_share(-100);
  vmabudget_override(0);
  for (unsigned i = 0; i < 4; i++)
    OK(pcow_close(image[i]));
  return 0;
}
