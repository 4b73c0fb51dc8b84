/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Untrusted base paths over the life of a handle: every layer of a chain is held to what the caller
 * allowed, also when its file is opened again later, by the descriptor pool or for a commit; and so are
 * the bases of a base that the caller names.
 */
#include "untrusted.h"

#include <pthread.h>

/* ---- Chains ---- */

#define LENGTH 100u
#define READERS 4u

static char *layer_name(unsigned n) { return n % 2 ? test_path("in/sub/l%u", n) : test_path("in/l%u", n); }

/* Layer N has page N of its own. Every second one lies in a subdirectory. */
static void make_chain(unsigned length)
{
  for (unsigned n = 0; n < length; n++) {
    struct pcow_create_options options = PCOW_INIT(options);
    char page[PCOW_PAGE_SIZE], base[64];
    pcow_image *image;

    snprintf(base, sizeof base, n % 2 ? "../l%u" : "sub/l%u", n - 1);
    options.base = n ? base : NULL;
    options.base_format = n ? PCOW_FORMAT_PCOW : PCOW_FORMAT_NONE;
    options.base_dir = in;
    unlink(layer_name(n));
    OK(pcow_create(layer_name(n), LENGTH * PAGE, &options));
    OK(open_image(layer_name(n), PCOW_OPEN_RDWR, in, &image));
    test_page_fill(page, n);
    OK(pcow_pwrite(image, page, PAGE, n * PAGE));
    OK(pcow_close(image));
  }
}

static void *read_all(void *opaque)
{
  for (unsigned round = 0; round < 5; round++)
    for (unsigned n = 0; n < LENGTH; n++) {
      unsigned page = (n * 37 + round * 11) % LENGTH;
      char bytes[PCOW_PAGE_SIZE];

      OK(pcow_pread(opaque, bytes, PAGE, page * PAGE));
      CHECK(test_page_is(bytes, page), "page %u of the chain is wrong", page);
    }
  return NULL;
}

/* With few descriptors layers are closed and opened again all the time. */
static void test_chain(void)
{
  pthread_t threads[READERS];
  pcow_image *image, *i;
  char bytes[PCOW_PAGE_SIZE];
  unsigned count = 0;

  make_chain(LENGTH);
  OK(open_image(layer_name(LENGTH - 1), 0, in, &image));
  for (unsigned n = 0; n < READERS; n++)
    SYS(pthread_create(&threads[n], NULL, read_all, image));
  for (unsigned n = 0; n < READERS; n++)
    SYS(pthread_join(threads[n], NULL));

  /* A layer moves out, and a link in its place leads to the very same file. */
  SYS(rename(layer_name(20), test_path("out/l20")));
  SYS(symlink("../out/l20", layer_name(20)));
  GIVES(-EPERM, pcow_pread(image, bytes, PAGE, 20 * PAGE));
  says("is not followed");
  OK(pcow_pread(image, bytes, PAGE, 21 * PAGE));
  GIVES(-EPERM, open_image(layer_name(LENGTH - 1), 0, in, &i));
  says("/l21");
  SYS(unlink(layer_name(20)));
  SYS(rename(test_path("out/l20"), layer_name(20)));
  read_all(image);
  OK(pcow_close(image));

  /* One after the other, for information. */
  OK(open_image(layer_name(LENGTH - 1), PCOW_OPEN_INFO, in, &image));
  for (int result = 0; result == 0; count++) {
    result = pcow_open_base(image, &i);
    OK(pcow_close(image));
    image = i;
  }
  CHECK(count == LENGTH, "the chain is %u long", count);

  /* An image that names itself, by way of another one. */
  plant_as(layer_name(0), "sub/l1", BASE_PCOW);
  OK(open_image(layer_name(2), PCOW_OPEN_INFO, in, &image));
  OK(pcow_open_base(image, &i));
  OK(pcow_close(image));
  OK(pcow_open_base(i, &image));
  OK(pcow_close(i));
  GIVES(-ELOOP, pcow_open_base(image, &i));
  OK(pcow_close(image));
}

/* The second layer leads out. */
static void test_second_layer(void)
{
  char *image = within("top"), *middle = within("middle");
  struct pcow_create_options options = PCOW_INIT(options);
  pcow_image *i, *m;

  plant(middle, "base.raw");
  options.base = "middle";
  options.base_format = PCOW_FORMAT_PCOW;
  GIVES(-EPERM, pcow_create(image, 0, &options));
  says("/middle");
  options.flags = PCOW_CREATE_BASES;
  options.base_dir = in;
  GIVES(-EINVAL, pcow_create(image, 0, &options));
  options.flags = 0;
  options.base_dir = out;
  GIVES(-EPERM, pcow_create(image, 0, &options));
  options.base_dir = in;
  OK(pcow_create(image, 0, &options));
  shows(image, 0, in, INSIDE);
  refused(image, 0, NULL, -EPERM, "PCOW_OPEN_BASES");

  SYS(unlink(within("base.raw")));
  SYS(symlink("../out/secret", within("base.raw")));
  GIVES(-EPERM, open_image(image, 0, in, &i));
  says("/middle: cannot open its base");
  GIVES(-EPERM, open_image(image, PCOW_OPEN_RDWR, in, &i));
  OK(open_image(image, PCOW_OPEN_INFO, in, &i));
  OK(pcow_open_base(i, &m));
  OK(pcow_close(i));
  GIVES(-EPERM, pcow_open_base(m, &i));
  OK(pcow_close(m));
  CHECK(opened(watch) == 0, "a forbidden file was opened");
  SYS(unlink(within("base.raw")));
  make_raw(within("base.raw"), INSIDE);
}

/* ---- Bases that the caller names ---- */

static void test_named(void)
{
  char *image = within("named"), *middle = test_path("out/middle");
  struct pcow_create_options options = PCOW_INIT(options);
  struct pcow_rebase_options rebase = PCOW_INIT(rebase);
  pcow_image *i;
  char c;

  /* A base named in the call is opened; the image over it needs permission all the same. */
  options.base = secret;
  options.base_format = PCOW_FORMAT_RAW;
  OK(pcow_create(image, 0, &options));
  opened(watch);
  refused(image, 0, in, -EPERM, "is not followed");

  plant(middle, "secret");
  OK(open_image(image, PCOW_OPEN_RDWR | PCOW_OPEN_NO_BASE, NULL, &i));
  rebase.flags = PCOW_REBASE_UNSAFE;
  rebase.base = middle;
  rebase.base_format = PCOW_FORMAT_PCOW;
  GIVES(-EPERM, pcow_rebase(i, &rebase));
  rebase.base_dir = in;
  GIVES(-EPERM, pcow_rebase(i, &rebase));
  CHECK(opened(watch) == 0, "a forbidden file was opened");
  rebase.base_dir = out;
  OK(pcow_rebase(i, &rebase));
  OK(pcow_close(i));

  /* Only the base itself was named: what lies two layers beneath it is no more allowed than elsewhere. */
  unlink(within("one"));
  plant(within("two"), "../out/secret");
  options = (struct pcow_create_options)PCOW_INIT(options);
  options.flags = PCOW_CREATE_BASES;
  options.base = "two";
  options.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_create(within("one"), 0, &options));
  opened(watch);
  unlink(within("alone"));
  OK(pcow_create(within("alone"), SIZE, NULL));
  OK(open_image(within("alone"), PCOW_OPEN_RDWR, in, &i));
  rebase = (struct pcow_rebase_options)PCOW_INIT(rebase);
  rebase.base = "one";
  rebase.base_format = PCOW_FORMAT_PCOW;
  GIVES(-EPERM, pcow_rebase(i, &rebase));
  says("/two: cannot open its base");
  OK(pcow_close(i));
  CHECK(opened(watch) == 0, "a forbidden file was opened");

  /* The permission of the handle does for a rebase that brings none. */
  OK(open_image(image, PCOW_OPEN_RDWR, "/", &i));
  rebase = (struct pcow_rebase_options)PCOW_INIT(rebase);
  OK(pcow_rebase(i, &rebase));
  rebase.base = secret;
  rebase.base_format = PCOW_FORMAT_RAW;
  OK(pcow_rebase(i, &rebase));
  rebase.base = middle;
  rebase.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_rebase(i, &rebase));
  OK(pcow_close(i));

  /* No base: the permission is all that is left of what was given, and must still do. */
  OK(open_image(image, PCOW_OPEN_RDWR | PCOW_OPEN_NO_BASE, "/", &i));
  rebase = (struct pcow_rebase_options)PCOW_INIT(rebase);
  rebase.flags = PCOW_REBASE_UNSAFE;
  OK(pcow_rebase(i, &rebase));
  OK(pcow_rebase(i, &rebase));
  rebase.base = middle;
  rebase.base_format = PCOW_FORMAT_PCOW;
  OK(pcow_rebase(i, &rebase));
  OK(pcow_close(i));

  /* A base that was named stays open to this handle, for snapshots, diff and commit. */
  unlink(image);
  OK(pcow_create(image, SIZE, NULL));
  OK(open_image(image, PCOW_OPEN_RDWR, NULL, &i));
  GIVES(-EPERM, pcow_rebase(i, &rebase));
  make_raw(test_path("out/other"), SECRET);
  rebase.base = test_path("out/other");
  rebase.base_format = PCOW_FORMAT_RAW;
  rebase.flags = PCOW_REBASE_UNSAFE;
  OK(pcow_rebase(i, &rebase));
  OK(pcow_pread(i, &c, 1, 0));
  CHECK(c == SECRET, "the new base is not seen");
  OK(pcow_pwrite(i, "x", 1, 5));
  OK(pcow_commit(i, NULL, NULL));
  OK(pcow_pread(i, &c, 1, 5));
  CHECK(c == 'x', "what was committed is not there");
  OK(pcow_close(i));
  opened(watch);
}

/* ---- Commit ---- */

/* BASE_FORMAT's base moves out of the directory while the overlay is open, and a link leads to it. */
static void test_commit(uint32_t format)
{
  char *base = within("commit-base"), *image = within("commit"), *moved = test_path("out/commit-base");
  struct pcow_create_options options = PCOW_INIT(options);
  pcow_image *i;
  int on;

  unlink(base);
  unlink(image);
  if (format == PCOW_FORMAT_RAW)
    make_raw(base, INSIDE);
  else
    OK(pcow_create(base, SIZE, NULL));
  options.base = "commit-base";
  options.base_format = format;
  OK(pcow_create(image, 0, &options));
  OK(open_image(image, PCOW_OPEN_RDWR, in, &i));
  OK(pcow_pwrite(i, "one", 3, 0));
  OK(pcow_commit(i, NULL, NULL));
  OK(pcow_pwrite(i, "two", 3, 0));
  SYS(rename(base, moved));
  SYS(symlink("../out/commit-base", base));
  on = watch_file(moved);
  GIVES(-EPERM, pcow_commit(i, NULL, NULL));
  says("is not followed");
  CHECK(opened(on) == 0, "a file outside was opened by a commit");
  SYS(close(on));
  pcow_close(i);
  SYS(unlink(base));
  SYS(rename(moved, base));
  OK(open_image(image, PCOW_OPEN_RDWR, in, &i));
  OK(pcow_commit(i, NULL, NULL));
  OK(pcow_close(i));
  shows(image, 0, in, format == PCOW_FORMAT_RAW ? INSIDE : 0);
}

int main(int argc, char **argv)
{
  set_up(argc, argv);
  test_second_layer();
  test_named();
  test_commit(PCOW_FORMAT_RAW);
  test_commit(PCOW_FORMAT_PCOW);
  test_chain();
  return 0;
}
