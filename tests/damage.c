/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See damage.h.
 */
#include "damage.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct geometry *damage_geo(void)
{
  static struct geometry g;

  g = geometry_make(16);
  return &g;
}

/* ---- The file ------------------------------------------------------------------------------ */

void damage_poke(const char *path, uint64_t offset, const void *bytes, size_t length)
{
  int fd = (int)SYS(open(path, O_RDWR));

  SYS(pwrite(fd, bytes, length, (off_t)offset));
  SYS(close(fd));
}

void damage_poke64(const char *path, uint64_t offset, uint64_t word)
{
  damage_poke(path, offset, &word, 8);
}

uint64_t damage_peek64(const char *path, uint64_t offset)
{
  int fd = (int)SYS(open(path, O_RDONLY));
  uint64_t word = 0;

  SYS(pread(fd, &word, sizeof word, (off_t)offset));
  SYS(close(fd));
  return word;
}

void damage_flip(const char *path, uint64_t offset, uint64_t bits)
{
  damage_poke64(path, offset, damage_peek64(path, offset) ^ bits);
}

uint64_t damage_newest(const char *path, uint64_t unit)
{
  return damage_peek64(path, geometry_map_word(unit)) >> 8;
}

uint64_t damage_previous_at(uint64_t slot)
{
  return geometry_header(damage_geo(), slot) + offsetof(struct pcow_disk_slot, previous);
}

uint64_t damage_older(const char *path, uint64_t slot)
{
  return damage_peek64(path, damage_previous_at(slot)) >> 8;
}

/* ---- Checks -------------------------------------------------------------------------------- */

char *damage_said;

static void on_finding(void *opaque, const char *finding)
{
  char *all;

  (void)opaque;
  SYS(asprintf(&all, "%s%s\n", damage_said ? damage_said : "", finding));
  free(damage_said);
  damage_said = all;
}

void damage_be_silent(void)
{
  free(damage_said);
  damage_said = NULL;
}

struct pcow_check_result damage_check(const char *path, uint32_t flags)
{
  struct pcow_check_result result = PCOW_INIT(result);

  damage_be_silent();
  OK(pcow_check(path, flags, &result, on_finding, NULL, NULL));
  return result;
}

void damage_must_say(const char *text)
{
  CHECK(damage_said && strstr(damage_said, text), "no finding says '%s':\n%s", text,
        damage_said ? damage_said : "nothing was found");
}

void damage_must_not_say(const char *text)
{
  CHECK(!damage_said || !strstr(damage_said, text), "a finding says '%s':\n%s", text, damage_said);
}

struct world damage_make(const char *name)
{
  struct world w = { .path = test_path("check-%s", name), .head = content_new(SIZE) };
  struct rng rng = { 41 };
  pcow_image *image;

  test_create(w.path, SIZE, UNIT, NULL, PCOW_FORMAT_NONE, NULL);
  image = test_open(w.path, PCOW_OPEN_RDWR, NULL);
  content_write(image, &w.head, &rng, 0, SIZE);
  content_snapshot(image, "one", &w.head, &w.one);
  content_write(image, &w.head, &rng, 0, SIZE / 2);
  OK(pcow_close(image));
  return w;
}

void damage_compare(struct world *w, const char *label)
{
  content_compare_view(w->path, NULL, &w->head, label);
  content_compare_view(w->path, "one", &w->one, label);
}

void damage_end(struct world *w)
{
  damage_be_silent();
  content_free(&w->head);
  content_free(&w->one);
  SYS(unlink(w->path));
}

/* All is repaired, and again there is nothing to do. */
void damage_repair(struct world *w, const char *label)
{
  struct pcow_check_result result = damage_check(w->path, 0);
  uint64_t corruptions = result.corruptions;
  pcow_image *image;

  CHECK(corruptions > 0, "%s: nothing was found", label);
  CHECK(result.repairable == corruptions, "%s: result.repairable is %llu", label,
        (unsigned long long)result.repairable);
  result = damage_check(w->path, PCOW_CHECK_REPAIR_LEAKS);
  CHECK(result.repaired == 0, "%s: result.repaired is %llu", label,
        (unsigned long long)result.repaired);
  result = damage_check(w->path, PCOW_CHECK_REPAIR_ALL);
  CHECK(result.corruptions == corruptions, "%s: result.corruptions is %llu", label,
        (unsigned long long)result.corruptions);
  CHECK(result.repaired == result.corruptions + result.leaks, "%s: result.repaired is %llu", label,
        (unsigned long long)result.repaired);
  damage_compare(w, label);
  test_check_clean(w->path);
  result = damage_check(w->path, PCOW_CHECK_REPAIR_ALL);
  CHECK(result.repaired == 0, "%s: result.repaired is %llu", label,
        (unsigned long long)result.repaired);
  CHECK(!damage_said, "%s: repaired, and yet: %s", label, damage_said);
  image = test_open(w->path, PCOW_OPEN_RDWR, NULL);
  OK(pcow_pwrite(image, "still writable", 14, 2 * UNIT));
  memcpy(w->head.bytes + 2 * UNIT, "still writable", 14);
  OK(pcow_close(image));
  test_check_clean(w->path);
}

/* The unit shows in one view what it shows in the other, or zeros. */
void damage_lose(struct content *c, uint64_t unit, const struct content *beneath)
{
  if (beneath)
    memcpy(c->bytes + unit * UNIT, beneath->bytes + unit * UNIT, UNIT);
  else
    memset(c->bytes + unit * UNIT, 0, UNIT);
}
