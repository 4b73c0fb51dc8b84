/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process is killed again and again while it rebases, commits into a base, or resizes. Whatever it
 * was doing, the image opens and every view reads as before; the next process goes on from there.
 * (A kill loses no stores; what a power failure may lose is not tried here.)
 */
#include "content.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *one, *two;

static void work_rebase(const char *path)
{
  for (unsigned i = 0;; i++) {
    struct pcow_rebase_options options = PCOW_INIT(options);
    pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

    options.base = i % 3 == 0 ? two : i % 3 == 1 ? one : NULL;
    options.base_format = options.base ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE;
    OK(pcow_rebase(image, &options));
    OK(pcow_close(image));
  }
}

static void work_commit(const char *path)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

  OK(pcow_commit(image, NULL, NULL));
  OK(pcow_close(image));
  pause();
}

static void work_resize(const char *path)
{
  for (;;) {
    pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

    OK(pcow_resize(image, MIB + 20 * KIB, PCOW_RESIZE_SHRINK));
    OK(pcow_resize(image, 2 * MIB, 0));
    OK(pcow_pwrite(image, "x", 1, 2 * MIB - 1));
    OK(pcow_close(image));
  }
}

static void kill_during(void (*work)(const char *path), const char *path, struct rng *rng, uint64_t longest)
{
  pid_t child = fork();

  CHECK(child >= 0, "cannot fork");
  if (child == 0) {
    work(path);
    _exit(0);
  }
  usleep((useconds_t)rng_below(rng, longest));
  SYS(kill(child, SIGKILL));
  SYS(waitpid(child, NULL, 0));
}

static struct content make(const char *path, uint64_t unit, const char *base, uint32_t format, struct rng *rng,
                           const struct content *below)
{
  struct content c = below ? content_copy(below) : content_new(4 * MIB);
  pcow_image *image;

  test_create(path, c.size, unit, base, format, NULL);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_scatter(image, &c, rng, 40);
  OK(pcow_close(image));
  return c;
}

static void add(const char *path, struct content *c, struct rng *rng, unsigned count)
{
  pcow_image *image = test_open(path, PCOW_OPEN_RDWR, NULL);

  content_scatter(image, c, rng, count);
  OK(pcow_close(image));
}

/* Slots that were being made may be left over. */
static void check_repaired(const char *path)
{
  struct pcow_check_result result = PCOW_INIT(result);

  OK(pcow_check(path, PCOW_CHECK_REPAIR_LEAKS, &result, NULL, NULL, NULL));
  CHECK(result.corruptions == 0 && result.repaired == result.leaks, "%s: %llu corruptions, %llu of %llu leaks repaired",
        path, (unsigned long long)result.corruptions, (unsigned long long)result.repaired,
        (unsigned long long)result.leaks);
  printf("%s: %llu leaks\n", path, (unsigned long long)result.leaks);
  test_check_clean(path);
}

int main(int argc, char **argv)
{
  struct content a, b, head, frozen, over, cut, raw;
  const char *path, *overlay, *resized, *raw_path, *raw_overlay;
  uint64_t rounds = test_option(argc, argv, "--rounds", 60);
  pcow_image *image;
  struct rng rng;

  test_force_pmem(argv);
  test_dir(argc, argv);
  rng.state = test_seed(argc, argv);
  one = test_path("one");
  two = test_path("two");
  path = test_path("rebased");
  overlay = test_path("overlay");
  resized = test_path("resized");
  raw_path = test_path("raw");
  raw_overlay = test_path("raw-overlay");
  a = make(one, 0, NULL, PCOW_FORMAT_NONE, &rng, NULL);
  b = make(two, 64 * KIB, NULL, PCOW_FORMAT_NONE, &rng, NULL);
  head = make(path, 64 * KIB, one, PCOW_FORMAT_PCOW, &rng, &a);
  image = test_open(path, PCOW_OPEN_RDWR, NULL);
  content_snapshot(image, "frozen", &head, &frozen);
  content_scatter(image, &head, &rng, 40);
  OK(pcow_close(image));
  for (uint64_t i = 0; i < rounds; i++) {
    kill_during(work_rebase, path, &rng, 30000);
    content_compare_view(path, NULL, &head, "killed in a rebase");
    content_compare_view(path, "frozen", &frozen, "frozen, killed in a rebase");
  }

  over = make(overlay, 64 * KIB, two, PCOW_FORMAT_PCOW, &rng, &b);
  raw = content_raw_file(raw_path, 4 * MIB, &rng);
  cut = make(raw_overlay, 64 * KIB, raw_path, PCOW_FORMAT_RAW, &rng, &raw);
  content_free(&raw);
  raw = cut;
  for (uint64_t i = 0; i < rounds; i++) {
    kill_during(work_commit, overlay, &rng, 15000);
    content_compare_view(overlay, NULL, &over, "killed in a commit");
    add(overlay, &over, &rng, 60);
    kill_during(work_commit, raw_overlay, &rng, 15000);
    content_compare_view(raw_overlay, NULL, &raw, "killed in a commit into a raw base");
    add(raw_overlay, &raw, &rng, 60);
  }

  cut = make(resized, 64 * KIB, two, PCOW_FORMAT_PCOW, &rng, NULL);
  content_free(&cut);
  image = test_open(resized, PCOW_OPEN_RDWR, NULL);
  OK(pcow_resize(image, MIB + 20 * KIB, PCOW_RESIZE_SHRINK));
  cut = content_new(MIB + 20 * KIB);
  OK(pcow_pread(image, cut.bytes, cut.size, 0));
  OK(pcow_close(image));
  for (uint64_t i = 0; i < rounds; i++) {
    struct pcow_info info = PCOW_INIT(info);

    kill_during(work_resize, resized, &rng, 15000);
    image = test_open(resized, PCOW_OPEN_RDWR, NULL);
    OK(pcow_get_info(image, &info));
    CHECK(info.virtual_size == MIB + 20 * KIB || info.virtual_size == 2 * MIB, "a size in between");
    content_resize(&cut, MIB + 20 * KIB); /* what was written above is not to come back */
    content_resize(&cut, info.virtual_size);
    if (cut.size == 2 * MIB) /* written or not */
      OK(pcow_pread(image, cut.bytes + cut.size - 1, 1, cut.size - 1));
    content_compare(image, &cut, "killed in a resize");
    OK(pcow_close(image));
  }
  check_repaired(path);
  check_repaired(overlay);
  check_repaired(raw_overlay);
  check_repaired(resized);
  content_free(&a);
  content_free(&b);
  content_free(&head);
  content_free(&frozen);
  content_free(&over);
  content_free(&raw);
  content_free(&cut);
  return 0;
}
