/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Scenarios for the single steps of collection (docs/format.md, section 13): each brings about one way in
 * which a deleted epoch's slot goes to its heir, the heir being a snapshot or the head.
 */
#include "scenarios.h"

#include "geometry.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (2 * UNIT)

static void quiet_snapshot(struct subject *s, const char *name)
{
  s->lab->quiet = true;
  subject_snapshot(s, name);
  s->lab->quiet = false;
}

/* Every page of [first, end). */
static void quiet_fill(struct subject *s, uint64_t first, uint64_t end)
{
  s->lab->quiet = true;
  subject_write(s, first * PAGE, (end - first) * PAGE);
  subject_flush(s);
  s->lab->quiet = false;
}

static void quiet_cut_off(struct subject *s, uint64_t size)
{
  uint64_t old = subject_size(s);

  s->lab->quiet = true;
  subject_resize(s, size);
  subject_resize(s, old);
  s->lab->quiet = false;
}

/* M.1 to M.3: what lies above the heir's floor must be gone before the owner word says so. */
static void take_over(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 0);
  bool head = rng_chance(&lab->rng, 50);

  quiet_fill(s, 0, 32);
  quiet_snapshot(s, "one");
  quiet_cut_off(s, UNIT + (1 + rng_below(&lab->rng, 14)) * PAGE);
  if (!head)
    quiet_snapshot(s, "two");
  subject_delete(s, "one");
  scenario_end(lab);
}

/* Where the owner of a unit's newest slot can be read, as all see it. */
static const uint32_t *owner_of(int fd, uint64_t unit)
{
  struct geometry geo = geometry_make(16);
  uint64_t word = 0, at;
  char *page;

  SYS(pread(fd, &word, sizeof(word), (off_t)geometry_map_word(unit)));
  at = geometry_header(&geo, SLOT_REF_INDEX(word)) + offsetof(struct pcow_disk_slot, epoch);
  page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, (off_t)(at & ~(PAGE - 1)));
  CHECK(page != MAP_FAILED, "cannot map the file");
  return (const uint32_t *)(void *)(page + at % PAGE);
}

/* Stores to each unit as soon as it was taken over. */
static gpointer store_above(gpointer subject)
{
  struct subject *s = subject;
  int fd = (int)SYS(open(s->path, O_RDONLY | O_CLOEXEC));
  const uint32_t *owners[6];
  uint32_t before;

  for (uint64_t unit = 1; unit < 6; unit++)
    owners[unit] = owner_of(fd, unit);
  before = *owners[1];
  for (unsigned left = 0x3e; left;)
    for (uint64_t unit = 1; unit < 6; unit++) {
      uint64_t at = unit * UNIT + 3 * PAGE;

      if (!(left >> unit & 1) || __atomic_load_n(owners[unit], __ATOMIC_RELAXED) == before)
        continue;
      subject_store(s, at, pattern_word(1000 + unit, at), true);
      left &= ~(1u << unit);
    }
  close(fd);
  return NULL;
}

/* The same while another thread stores there, durably: the fences of the one do nothing for the other. */
static void take_over_live(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 6 * UNIT, 0);
  GThread *thread;

  quiet_fill(s, 0, 96);
  quiet_snapshot(s, "one");
  quiet_cut_off(s, PAGE);
  lab->quiet = true;
  subject_map(s);
  lab->quiet = false;
  lab->threads = true;
  thread = g_thread_new("stores", store_above, s);
  subject_delete(s, "one");
  g_thread_join(thread);
  lab->threads = false;
  scenario_end(lab);
}

/* Between two steps another thread changes, durably, what was taken over in the last one: its own fences do
 * nothing for the owner word. */
#define STEP_UNITS 3u

struct steps {
  struct subject *subject;
  const uint32_t *owners[STEP_UNITS];
  uint32_t before;
  uint64_t unit;                /* that was taken over */
  unsigned left;                /* units that were not yet: bits */
};

static gpointer change_unit(gpointer opaque)
{
  const struct steps *steps = opaque;
  struct subject *s = steps->subject;
  uint64_t at = steps->unit * UNIT + 3 * PAGE;

  if (s->map) {
    subject_store(s, at, pattern_word(++s->version, at), true);
  } else {
    subject_write(s, at, 100);
    subject_flush(s);
  }
  return NULL;
}

static void between_steps(struct lab *lab)
{
  struct steps *steps = lab->between_opaque;

  for (steps->unit = 0; steps->unit < STEP_UNITS; steps->unit++) {
    if (!(steps->left >> steps->unit & 1) || *steps->owners[steps->unit] == steps->before)
      continue;
    steps->left &= ~(1u << steps->unit);
    g_thread_join(g_thread_new("changes", change_unit, steps));
  }
}

static void take_over_steps(struct lab *lab)
{
  struct subject *s = scenario_image(lab, STEP_UNITS * UNIT, 0);
  struct steps steps = { .subject = s, .left = (1u << STEP_UNITS) - 1 };
  int fd = (int)SYS(open(s->path, O_RDONLY | O_CLOEXEC));

  quiet_fill(s, 0, STEP_UNITS * 16);
  quiet_snapshot(s, "one");
  quiet_cut_off(s, PAGE);
  if (options.pmem && rng_chance(&lab->rng, 50)) {
    lab->quiet = true;
    subject_map(s);
    lab->quiet = false;
  }
  for (unsigned unit = 0; unit < STEP_UNITS; unit++)
    steps.owners[unit] = owner_of(fd, unit);
  steps.before = *steps.owners[0];
  lab->between_opaque = &steps;
  lab->between = between_steps;
  subject_delete(s, "one");
  lab->between = NULL;
  CHECK(!steps.left, "nothing happened between the steps of the collection");
  close(fd);
  scenario_end(lab);
}

/* M.4 to M.7: the heir has many pages, the deleted epoch few, one of them a hole. */
static void move_up(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 0);

  quiet_fill(s, 0, 3);
  lab->quiet = true;
  subject_zero(s, PAGE, PAGE, 0);
  quiet_snapshot(s, "one");
  quiet_fill(s, 3, 10);
  quiet_snapshot(s, "two");
  quiet_fill(s, 10, 11);
  subject_delete(s, "one");
  scenario_end(lab);
}

/* N.1 to N.5: the deleted epoch has many pages, the heir few, of which one is a hole and some are in places
 * where the deleted epoch has none; above the heir's floor it may have something that must not come back. */
static void move_down(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 0);
  bool head = rng_chance(&lab->rng, 40), cut = rng_chance(&lab->rng, 50);

  quiet_fill(s, 4, 32);
  quiet_snapshot(s, "one");
  if (cut)
    quiet_cut_off(s, 12 * PAGE);
  quiet_fill(s, 2, 4);
  lab->quiet = true;
  subject_zero(s, 5 * PAGE, PAGE, 0);
  subject_flush(s);
  lab->quiet = false;
  if (!head)
    quiet_snapshot(s, "two");
  subject_delete(s, "one");
  subject_write(s, 2 * PAGE, 100);
  subject_flush(s);
  scenario_end(lab);
}

/* The same under a map, of which the pages are a part, while another thread stores to it. */
static gpointer store_meanwhile(gpointer subject)
{
  struct subject *s = subject;

  for (uint64_t page = 0; page < 32; page += 3)
    subject_store(s, page * PAGE + 8, pattern_word(2000 + page, page * PAGE + 8), true);
  return NULL;
}

static void move_live(struct lab *lab)
{
  struct subject *s = scenario_image(lab, SIZE, 0);
  bool down = rng_chance(&lab->rng, 70);
  GThread *thread;

  if (down)
    quiet_fill(s, 4, 32);
  else
    quiet_fill(s, 2, 4);
  quiet_snapshot(s, "one");
  if (down)
    quiet_fill(s, 2, 4);
  else
    quiet_fill(s, 4, 32);
  quiet_snapshot(s, "two");
  lab->quiet = true;
  subject_map(s);
  lab->quiet = false;
  lab->threads = true;
  thread = g_thread_new("stores", store_meanwhile, s);
  subject_delete(s, "one");
  g_thread_join(thread);
  lab->threads = false;
  scenario_end(lab);
}

/* M.8: what the deleted epoch's floor hid stays hidden. */
static void inherit_floor(struct lab *lab, bool head)
{
  struct subject *s = scenario_image(lab, SIZE, 0);

  quiet_fill(s, 0, 32);
  quiet_snapshot(s, "one");
  quiet_cut_off(s, 12 * PAGE);
  quiet_snapshot(s, "two");
  if (!head) {
    quiet_fill(s, 1, 2);
    quiet_snapshot(s, "three");
  }
  subject_delete(s, "two");
  scenario_end(lab);
}

static void inherit_by_snapshot(struct lab *lab) { inherit_floor(lab, false); }

static void inherit_by_head(struct lab *lab) { inherit_floor(lab, true); }

/* The slots that a collection gave up are used at once, by other units. */
static void use_again(struct lab *lab)
{
  struct subject *s = scenario_image(lab, 4 * UNIT, 0);

  quiet_fill(s, 0, 32);
  quiet_snapshot(s, "one");
  quiet_fill(s, 2, 4);
  quiet_fill(s, 18, 20);
  if (rng_chance(&lab->rng, 50))
    quiet_snapshot(s, "two");
  subject_delete(s, "one");
  subject_write(s, 2 * UNIT + 5 * PAGE, PAGE);
  subject_write(s, 3 * UNIT + 5 * PAGE, 100);
  subject_flush(s);
  scenario_end(lab);
}

const struct scenario scenarios_collect[] = {
  { "order-take-over", "an heir takes a slot over, with pages above its floor", take_over, false },
  { "order-take-over-live", "the same under a map that a thread stores to", take_over_live, true },
  { "order-take-over-step", "the same, another thread writes between two steps", take_over_steps, false },
  { "order-move-up", "a deleted snapshot's few pages go to its heir", move_up, false },
  { "order-move-down", "an heir's few pages go to the deleted snapshot's slot", move_down, false },
  { "order-move-live", "pages move under a map that a thread stores to", move_live, true },
  { "order-floor", "a snapshot inherits the floor of a deleted one", inherit_by_snapshot, false },
  { "order-head-floor", "the head inherits the floor of a deleted snapshot", inherit_by_head, false },
  { "order-use-again", "slots are used again after a collection", use_again, false },
  { NULL, NULL, NULL, false },
};
