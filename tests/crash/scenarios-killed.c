/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Scenarios for steps of the ordering rules that matter to somebody else than who leaves them out: to the
 * process that comes after one that was killed, to an overlay, to who finds a superblock decayed. Without a
 * model: what an image showed to who opened it must be there after the cut.
 */
#include "bench.h"

#include "geometry.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Rule 6: a rebase is killed, another process does it again, and the power is cut. */
static int rebased_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  return as_expected(b, b->killed_states, "img", PCOW_OPEN_RDWR);
}

static void rebase_to_other(struct bench *b, const char *dir)
{
  struct pcow_rebase_options how = PCOW_INIT(how);
  pcow_image *image = open_in(b, dir, "img", PCOW_OPEN_RDWR);

  how.base = "other";
  how.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_rebase(image, &how));
  OK(pcow_close(image));
}

static void explore_killed(void *opaque)
{
  struct bench *b = opaque;

  media_states(b->killed_media, b->killed_states, 8, rebased_state, b);
}

static void kill_rebase(struct bench *b)
{
  static const char *const names[] = { "base", "other" };

  if (b->cut != b->kill_at)
    return;
  b->killed_media = media_killed(b->media, b->killed, explore_killed, b);
  for (unsigned i = 0; i < 2; i++) {
    g_autofree char *from = bench_path(b->lab->dir, names[i]), *to = bench_path(b->killed, names[i]);
    g_autofree char *state = bench_path(b->killed_states, names[i]);

    copy_file(from, to);
    copy_file(from, state);
  }
  rebase_to_other(b, b->killed);
  explore_killed(b);
  media_free(b->killed_media);
}

static void rebase_killed(struct lab *lab)
{
  struct bench b = { 0 };

  create_in(lab->dir, "base", NULL);
  create_in(lab->dir, "other", NULL);
  b.lab = lab;
  write_pages(&b, lab->dir, "base", 20);
  b.expected = content_of(&b, lab->dir, "base", 0);
  create_in(lab->dir, "img", "base");
  bench_begin(&b, lab, kill_rebase);
  b.kill_at = 1 + (unsigned)rng_below(&lab->rng, 12);
  rebase_to_other(&b, lab->dir);
  bench_end(&b);
}

/* 9.2: whoever lies over the head must not open over another content. */
static int tag_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;
  g_autofree unsigned char *bytes = content_of(b, b->lab->states, "base", 0);
  g_autofree char *path = bench_path(b->lab->states, "img");
  struct pcow_open_options how = { .size = sizeof(how), .flags = PCOW_OPEN_BASES };
  pcow_image *image;

  (void)state;
  atomic_fetch_add(&counters->states, 1);
  if (!memcmp(bytes, b->expected, SIZE) || pcow_open(path, &how, &image))
    return 0;
  lab_fail(b->lab, "the image opens over a base that has changed");
}

static void explore_tag(struct bench *b) { media_states(b->media, b->lab->states, 8, tag_state, b); }

static void base_tag(struct lab *lab)
{
  struct bench b = { 0 };

  create_in(lab->dir, "base", NULL);
  create_in(lab->dir, "img", "base");
  lab_static(lab, "img");
  b.lab = lab;
  b.expected = content_of(&b, lab->dir, "base", 0);
  bench_begin(&b, lab, explore_tag);
  write_pages(&b, lab->dir, "base", 3);
  explore_tag(&b);
  bench_end(&b);
}

/* 12.9: the overlay shows the same at each moment of a commit into its base. */
static void place_raw(struct bench *b)
{
  g_autofree char *from = bench_path(b->lab->dir, "raw"), *synced = bench_path(b->killed, "raw");
  g_autofree char *state = bench_path(b->lab->states, "raw");
  static uint64_t times;
  struct stat st;

  /* A raw file is durable as it was at its last fsync(2), or anything later. */
  SYS(stat(from, &st));
  if (b->cut == 1 || lab_synced(st.st_ino) != times)
    copy_file(from, synced);
  times = lab_synced(st.st_ino);
  copy_file(rng_chance(&b->lab->rng, 50) ? synced : from, state);
}

static int committed_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  if (b->kill_at)
    place_raw(b);
  return as_expected(b, b->lab->states, "img", 0);
}

static void explore_commit(struct bench *b) { media_states(b->media, b->lab->states, 6, committed_state, b); }

static void commit_into(struct lab *lab, bool raw)
{
  struct bench b = { .kill_at = raw };
  pcow_image *image;

  b.lab = lab;
  if (raw) {
    g_autofree char *path = bench_path(lab->dir, "raw"), *bytes = g_malloc0(SIZE);
    g_autofree char *img = bench_path(lab->dir, "img");

    CHECK(g_file_set_contents(path, bytes, SIZE, NULL), "cannot write %s", path);
    test_create(img, SIZE, UNIT, "raw", PCOW_FORMAT_RAW, NULL);
  } else {
    create_in(lab->dir, "base", NULL);
    create_in(lab->dir, "img", "base");
  }
  bench_begin(&b, lab, explore_commit);
  lab->quiet = true;
  write_pages(&b, lab->dir, "img", 6);
  if (!raw) {
    image = open_in(&b, lab->dir, "img", 0); /* both are watched from here on */
    OK(pcow_close(image));
    OK(pcow_close(open_in(&b, lab->dir, "base", PCOW_OPEN_RDWR)));
  }
  b.expected = content_of(&b, lab->dir, "img", 0);
  b.cut = 0;
  lab->quiet = false;
  image = open_in(&b, lab->dir, "img", PCOW_OPEN_RDWR);
  OK(pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));
  explore_commit(&b);
  bench_end(&b);
}

static void commit_pcow(struct lab *lab) { commit_into(lab, false); }

static void commit_raw(struct lab *lab) { commit_into(lab, true); }

/* Rule 5: the superblocks of a session that was killed while it closed. */
static int closed_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  return as_expected(b, b->killed_states, "img", PCOW_OPEN_RDWR);
}

static void open_killed(struct bench *b) { OK(pcow_close(open_in(b, b->killed, "img", PCOW_OPEN_RDWR))); }

static void kill_close(struct bench *b) { go_on_killed(b, closed_state, open_killed); }

static void close_killed(struct lab *lab)
{
  struct bench b = { .kill_at = 1 + (unsigned)rng_below(&lab->rng, 5) };
  unsigned char bytes[16] = "flushed";
  pcow_image *image;

  create_in(lab->dir, "img", NULL);
  bench_begin(&b, lab, kill_close);
  lab->quiet = true;
  image = open_in(&b, lab->dir, "img", PCOW_OPEN_RDWR);
  OK(pcow_pwrite(image, bytes, sizeof(bytes), PAGE));
  OK(pcow_sync(image));
  b.expected = g_malloc0(SIZE);
  memcpy(b.expected + PAGE, bytes, sizeof(bytes));
  b.cut = 0;
  lab->quiet = false;
  OK(pcow_close(image));
  bench_end(&b);
}

/* 12.6: a shrink is killed, another process makes it larger: what was there is zeros. */
#define SMALL (UNIT + 3 * PAGE)

static int grown_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;
  pcow_image *image = open_in(b, b->killed_states, "img", 0);
  struct pcow_info info = PCOW_INIT(info);
  g_autofree unsigned char *bytes = g_malloc0(SIZE);
  bool small;

  (void)state;
  atomic_fetch_add(&counters->states, 1);
  OK(pcow_get_info(image, &info));
  OK(pcow_pread(image, bytes, MIN(info.virtual_size, SIZE), 0));
  OK(pcow_close(image));
  small = memcmp(bytes + SMALL, b->expected + SMALL, SIZE - SMALL) != 0;
  if (small && info.virtual_size > SMALL && memcmp(bytes + SMALL, b->zeros, SIZE - SMALL))
    lab_fail(b->lab, "what was cut off is seen again");
  if (memcmp(bytes, b->expected, SMALL))
    lab_fail(b->lab, "what was not cut off is lost");
  if (info.virtual_size > SIZE && !small)
    lab_fail(b->lab, "what was cut off is seen after the growth");
  return 0;
}

static void grow_killed(struct bench *b)
{
  pcow_image *image = open_in(b, b->killed, "img", PCOW_OPEN_RDWR);
  struct pcow_info info = PCOW_INIT(info);

  OK(pcow_get_info(image, &info));
  if (info.virtual_size == SMALL)
    OK(pcow_resize(image, SIZE + PAGE, 0));
  OK(pcow_close(image));
}

static void kill_shrink(struct bench *b) { go_on_killed(b, grown_state, grow_killed); }

static void shrink_killed(struct lab *lab)
{
  struct bench b = { .kill_at = 2 + (unsigned)rng_below(&lab->rng, 8) };
  pcow_image *image;

  create_in(lab->dir, "img", NULL);
  b.lab = lab;
  write_pages(&b, lab->dir, "img", 24);
  b.expected = content_of(&b, lab->dir, "img", 0);
  b.zeros = g_malloc0(SIZE);
  bench_begin(&b, lab, kill_shrink);
  image = open_in(&b, lab->dir, "img", PCOW_OPEN_RDWR);
  OK(pcow_resize(image, SMALL, PCOW_RESIZE_SHRINK));
  OK(pcow_close(image));
  bench_end(&b);
}

/* Rule 5 of readers: what one saw of a killed session is there after the cut. */
static int seen_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  return as_expected(b, b->killed_states, "img", 0);
}

static void kill_and_read(struct bench *b)
{
  if (b->cut != b->kill_at)
    return;
  b->killed_media = media_killed(b->media, b->killed, NULL, b);
  g_free(b->expected);
  b->expected = content_of(b, b->killed, "img", 0);
  media_states(b->killed_media, b->killed_states, 12, seen_state, b);
  media_free(b->killed_media);
}

static void read_killed(struct lab *lab)
{
  struct bench b = { .kill_at = 1 + (unsigned)rng_below(&lab->rng, 12) };

  create_in(lab->dir, "img", NULL);
  bench_begin(&b, lab, kill_and_read);
  write_pages(&b, lab->dir, "img", 3);
  bench_end(&b);
}

/* The same of who records an identity: the snapshot that an image was made over does not vanish. */
static int recorded_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  return as_expected(b, b->killed_states, "img", 0);
}

static void kill_and_record(struct bench *b)
{
  g_autofree char *img = bench_path(b->killed, "img"), *copy = bench_path(b->killed_states, "img");
  struct pcow_create_options how = PCOW_INIT(how);

  if (b->cut != b->kill_at)
    return;
  b->killed_media = media_killed(b->media, b->killed, NULL, b);
  how.base = "base";
  how.base_format = PCOW_FORMAT_PCOW;
  how.base_snapshot = "one";
  if (pcow_create(img, SIZE, &how) == 0) {
    copy_file(img, copy);
    b->expected = content_of(b, b->killed, "img", 0);
    media_states(b->killed_media, b->killed_states, 12, recorded_state, b);
  }
  media_free(b->killed_media);
}

static void record_killed(struct lab *lab)
{
  struct bench b = { .kill_at = 1 + (unsigned)rng_below(&lab->rng, 10) };
  pcow_image *image;

  create_in(lab->dir, "base", NULL);
  b.lab = lab;
  write_pages(&b, lab->dir, "base", 3);
  bench_begin(&b, lab, kill_and_record);
  image = open_in(&b, lab->dir, "base", PCOW_OPEN_RDWR);
  OK(pcow_snapshot_create(image, "one"));
  OK(pcow_close(image));
  bench_end(&b);
}

/* Rule 5 as a script: a guest's first store to a page; SIGKILL between its presence bit and the fence;
 * another process opens the image and sees the bit; its guest stores to the page, durably; then the cut. */
#define RULE_PAGE (UNIT + 5 * PAGE)
#define RULE_WORDS 8u

struct rule {
  struct bench bench;           /* first: what others get is a bench */
  bool killed, lost;            /* it was killed there; a cut would have taken the bit back */
  uint64_t words[RULE_WORDS];
};

/* Is the page present in the head, as the file has it? */
static bool has_bit(const char *dir)
{
  g_autofree char *path = bench_path(dir, "img");
  int fd = (int)SYS(open(path, O_RDONLY | O_CLOEXEC));
  struct geometry geo = geometry_make(16);
  uint64_t word = 0;

  SYS(pread(fd, &word, sizeof(word), (off_t)geometry_map_word(RULE_PAGE / UNIT)));
  if (word)
    SYS(pread(fd, &word, sizeof(word), (off_t)geometry_bitmap(&geo, SLOT_REF_INDEX(word))));
  close(fd);
  return word >> RULE_PAGE % UNIT / PAGE & 1;
}

static int look_for_bit(void *opaque, const struct media_state *state)
{
  struct rule *r = opaque;

  (void)state;
  r->lost |= !has_bit(r->bench.killed_states);
  return 0;
}

static int ruled_state(void *opaque, const struct media_state *state)
{
  struct rule *r = opaque;
  g_autofree unsigned char *bytes = content_of(&r->bench, r->bench.killed_states, "img", PCOW_OPEN_RDWR);

  (void)state;
  atomic_fetch_add(&counters->states, 1);
  if (memcmp(bytes + RULE_PAGE, r->words, sizeof(r->words)))
    lab_fail(r->bench.lab, "what the guest made durable is lost");
  return 0;
}

/* The other process. */
static void store_durably(struct rule *r)
{
  struct bench *b = &r->bench;
  struct pcow_map_options how = PCOW_INIT(how);
  pcow_image *image = open_in(b, b->killed, "img", PCOW_OPEN_RDWR);
  pcow_mapping *map;
  uint64_t *address;

  how.durability = PCOW_STORE_DURABLE;
  OK(pcow_map(image, &how, &map));
  address = (uint64_t *)pcow_mapping_address(map) + RULE_PAGE / 8;
  for (unsigned i = 0; i < RULE_WORDS; i++)
    __atomic_store_n(&address[i], r->words[i] = rng_next(&b->lab->rng), __ATOMIC_SEQ_CST);
  OK(pcow_persist(map, RULE_PAGE, sizeof(r->words)));
  media_states(b->killed_media, b->killed_states, 40, ruled_state, r);
  OK(pcow_unmap(map));
  OK(pcow_close(image));
}

static void kill_at_bit(struct bench *b)
{
  struct rule *r = (struct rule *)b;

  if (r->killed || !has_bit(b->lab->dir))
    return;
  r->killed = true;
  b->killed_media = media_killed(b->media, b->killed, NULL, NULL);
  media_states(b->killed_media, b->killed_states, 40, look_for_bit, r);
  store_durably(r);
  media_free(b->killed_media);
}

static void rule_5(struct lab *lab)
{
  struct rule r = { .killed = false };
  bool frozen = rng_chance(&lab->rng, 50);
  pcow_image *image;
  pcow_mapping *map;
  struct pcow_map_options how = PCOW_INIT(how);
  uint64_t *address;

  create_in(lab->dir, "img", NULL);
  bench_begin(&r.bench, lab, kill_at_bit);
  lab->quiet = true;
  if (frozen)
    write_pages(&r.bench, lab->dir, "img", 12);
  image = open_in(&r.bench, lab->dir, "img", PCOW_OPEN_RDWR);
  if (frozen)
    OK(pcow_snapshot_create(image, "one"));
  /* The head has a slot of the unit, or gets one. */
  if (rng_chance(&lab->rng, 50)) {
    OK(pcow_pwrite(image, "other", 5, UNIT));
    OK(pcow_sync(image));
  }
  how.durability = PCOW_STORE_DURABLE;
  OK(pcow_map(image, &how, &map));
  address = (uint64_t *)pcow_mapping_address(map) + RULE_PAGE / 8;
  lab->quiet = false;
  __atomic_store_n(&address[1], rng_next(&lab->rng), __ATOMIC_SEQ_CST);
  lab->quiet = true;
  CHECK(r.killed, "no cut between the presence bit and its fence");
  CHECK(r.lost, "the presence bit was durable before its fence");
  OK(pcow_unmap(map));
  OK(pcow_close(image));
  bench_end(&r.bench);
}

/* At rest, and after who opened it closed it again, either copy of the superblock may decay. */
static void damage_each_copy(struct bench *b, const char *dir, uint32_t flags)
{
  g_autofree unsigned char *before = content_of(b, dir, "img", flags);
  g_autofree char *path = bench_path(dir, "img"), *kept = bench_path(dir, "kept");

  copy_file(path, kept);
  for (unsigned i = 0; i < 2; i++) {
    g_autofree unsigned char *bytes = NULL;
    int fd = (int)SYS(open(path, O_RDWR));

    SYS(pwrite(fd, "decayed", 7, (off_t)(i * MIB + 256)));
    close(fd);
    bytes = content_of(b, dir, "img", PCOW_OPEN_RDWR);
    atomic_fetch_add(&counters->states, 1);
    if (memcmp(bytes, before, SIZE + sizeof(uint64_t)))
      lab_fail(b->lab, "with copy %u of the superblock damaged the image shows something else", i);
    copy_file(kept, path);
  }
  unlink(kept);
}

static int damaged_state(void *opaque, const struct media_state *state)
{
  struct bench *b = opaque;

  (void)state;
  /* Within a commit one copy alone has what is new, until somebody opens the image for writing. */
  damage_each_copy(b, b->lab->states, b->kill_at ? 0 : PCOW_OPEN_RDWR);
  return 0;
}

static void explore_damage(struct bench *b)
{
  media_states(b->media, b->lab->states, 6, damaged_state, b);
}

static void damage(struct lab *lab)
{
  struct bench b = { 0 };
  pcow_image *image;

  create_in(lab->dir, "img", NULL);
  bench_begin(&b, lab, explore_damage);
  lab->quiet = true;
  write_pages(&b, lab->dir, "img", 3);
  image = open_in(&b, lab->dir, "img", PCOW_OPEN_RDWR);
  OK(pcow_snapshot_create(image, "one"));
  OK(pcow_pwrite(image, "after", 5, 4096));
  OK(pcow_sync(image));
  lab->quiet = false;
  OK(pcow_snapshot_revert(image, "one"));
  lab->quiet = true;
  OK(pcow_resize(image, 2 * SIZE, 0));
  b.kill_at = 1; /* at rest */
  explore_damage(&b);
  b.kill_at = 0;
  lab->quiet = false;
  OK(pcow_close(image));
  bench_end(&b);
}

const struct scenario scenarios_killed[] = {
  { "order-rebase-killed", "a rebase is killed and done again", rebase_killed, false },
  { "order-base-tag", "a base changes beneath an overlay", base_tag, false },
  { "order-commit", "commit into a pcow base", commit_pcow, false },
  { "order-commit-raw", "commit into a raw base", commit_raw, false },
  { "order-close-killed", "a session is killed while it closes", close_killed, false },
  { "order-shrink-killed", "a shrink is killed, then a growth", shrink_killed, false },
  { "order-read-killed", "a killed session's image is read", read_killed, false },
  { "order-record-killed", "an overlay over a killed session's snapshot", record_killed, false },
  { "rule-5", "killed between a bit and its fence, a durable store, a cut", rule_5, true },
  { "order-damage", "either copy of the superblock decays", damage, false },
  { NULL, NULL, NULL, false },
};
