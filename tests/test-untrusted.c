/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Base paths chosen by whoever made the image: without permission none is followed, and with a
 * directory nothing outside of it is opened, whatever names, symbolic links, special files and races
 * there are. That a forbidden file was not opened is what inotify says of it. What is allowed works.
 */
#include "untrusted.h"

#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>

/* ---- Without permission ---- */

static void test_no_permission(void)
{
  char *image = within("image");
  struct pcow_check_result result = PCOW_INIT(result);
  struct pcow_info info = PCOW_INIT(info);
  pcow_image *i;

  plant(image, secret);
  refused(image, 0, NULL, -EPERM, "PCOW_OPEN_BASES");
  GIVES(-EPERM, pcow_open(image, NULL, &i));
  says(secret);
  /* What follows no path needs none. */
  OK(pcow_check(image, 0, &result, NULL, NULL, NULL));
  OK(open_image(image, PCOW_OPEN_NO_BASE, NULL, &i));
  OK(pcow_get_info(i, &info));
  OK(pcow_close(i));
  OK(open_image(image, PCOW_OPEN_NO_BASE | PCOW_OPEN_RDWR | PCOW_OPEN_BASES, NULL, &i));
  OK(pcow_get_info(i, &info));
  OK(pcow_close(i));
  OK(open_image(image, PCOW_OPEN_INFO | PCOW_OPEN_BASES, NULL, &i));
  OK(pcow_get_info(i, &info));
  OK(pcow_close(i));
  CHECK(opened(watch) == 0, "the base was opened though nobody allowed it");
  /* With permission it is followed: the watch works. */
  shows(image, PCOW_OPEN_BASES, NULL, SECRET);
  CHECK(opened(watch) > 0, "inotify does not tell of openings");

  GIVES(-EINVAL, open_image(image, PCOW_OPEN_BASES, in, &i));
  GIVES(-ENOENT, open_image(image, 0, within("none"), &i));
  GIVES(-ENOENT, open_image(image, 0, "", &i));
  GIVES(-ENOTDIR, open_image(image, 0, image, &i));
}

/* ---- Out of a directory ---- */

static void test_escapes(void)
{
  char *image = within("image"), *side = test_path("in-side"), *sub_image = within("sub/image");
  char number[64];
  int fd = (int)SYS(open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const char *paths[] = {
    secret, "../out/secret", "sub/../../out/secret", "./..//out/./secret", "link", "absolute-link", "twice",
    "dirlink/secret", "magic", "/dev/zero", "/dev/tty", "/", "..", ".", number, test_path("in-side/base"),
    "/proc/self/environ",
  };

  SYS(symlink("../out/secret", within("link")));
  SYS(symlink(secret, within("absolute-link")));
  SYS(symlink("link", within("twice")));
  SYS(symlink("../out", within("dirlink")));
  SYS(symlink("..", within("sub/up")));
  snprintf(number, sizeof number, "/proc/self/fd/%d/secret", fd);
  SYS(mkdir(side, 0700));
  make_raw(test_path("in-side/base"), SECRET);
  SYS(symlink(number, within("magic")));
  for (size_t n = 0; n < sizeof paths / sizeof *paths; n++) {
    plant(image, paths[n]);
    refused(image, 0, in, -EPERM, "is not followed");
  }
  /* ".." is taken out of the name first: this one would climb over a symbolic link. */
  plant(image, "sub/up/../out/secret");
  refused(image, 0, in, -ENOENT, "out/secret");
  /* Where /proc lies beneath the directory, its links to open files are no way either. */
  plant(image, number);
  refused(image, 0, "/", -EPERM, "is not followed");
  /* The image's own directory is no permission, the given one is. */
  plant(sub_image, "../base.raw");
  refused(sub_image, 0, within("sub"), -EPERM, "is not followed");
  shows(sub_image, 0, in, INSIDE);
  SYS(close(fd));
}

/* ---- What is no file ---- */

static void test_special(void)
{
  char *image = within("image");
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int s = (int)SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), fifo;

  snprintf(address.sun_path, sizeof address.sun_path, "%s", within("socket"));
  SYS(bind(s, (struct sockaddr *)&address, sizeof address));
  SYS(mkfifo(within("fifo"), 0600));
  fifo = watch_file(within("fifo"));
  plant(image, "fifo");
  refused(image, 0, in, -EINVAL, "regular file");
  refused(image, PCOW_OPEN_BASES, NULL, -EINVAL, "regular file");
  CHECK(opened(fifo) == 0, "a FIFO was opened"); /* a writer that waits for a reader would go on */
  plant(image, "socket");
  refused(image, 0, in, -EINVAL, "regular file");
  plant(image, "sub");
  refused(image, 0, in, -EISDIR, "directory");
  if (mknod(within("zero"), S_IFCHR | 0600, makedev(1, 5)) == 0) {
    plant(image, "zero");
    refused(image, 0, in, -EINVAL, "regular file");
  }
  plant(image, "/dev/zero");
  refused(image, PCOW_OPEN_BASES, NULL, -EINVAL, "regular file");
  plant(image, "/dev/tty");
  refused(image, PCOW_OPEN_BASES, NULL, -EINVAL, "regular file");
  plant(image, "none");
  refused(image, 0, in, -ENOENT, "none");
  SYS(close(s));
  SYS(close(fifo));
}

/* ---- What is allowed ---- */

static int any_extent(void *opaque, const struct pcow_extent *extent)
{
  (void)opaque;
  (void)extent;
  return 0;
}

static void test_allowed(void)
{
  char *image = within("image"), *outer = test_path("outer"), *alias = test_path("alias");
  const char *paths[] = {
    "base.raw", "sub/base.raw", "sub/../base.raw", "sub/./..//base.raw", "good-link", "good-dir/base.raw",
    "sub/back", within("base.raw"),
  };
  char cwd[PATH_MAX];
  pcow_image *i;
  char c;

  make_raw(within("sub/base.raw"), INSIDE);
  SYS(symlink("sub/base.raw", within("good-link")));
  SYS(symlink("sub", within("good-dir")));
  SYS(symlink("../base.raw", within("sub/back")));
  SYS(symlink("in", alias));
  for (size_t n = 0; n < sizeof paths / sizeof *paths; n++) {
    plant(image, paths[n]);
    shows(image, 0, in, INSIDE);
    shows(image, 0, alias, INSIDE); /* by another name of the directory, */
    shows(test_path("alias/image"), 0, in, INSIDE); /* and of the image's */
    shows(image, 0, "/", INSIDE);
    shows(image, PCOW_OPEN_BASES, NULL, INSIDE);
  }
  /* An absolute path may use either name of the directory. */
  plant(image, test_path("alias/base.raw"));
  shows(image, 0, alias, INSIDE);
  refused(image, 0, in, -EPERM, "is not followed");
  /* The image itself may lie anywhere: the caller named it. */
  plant(outer, within("base.raw"));
  shows(outer, 0, in, INSIDE);
  /* Relative names, and another working directory afterwards. */
  SYS(getcwd(cwd, sizeof cwd) ? 0 : -1);
  SYS(chdir(in));
  plant("image", "base.raw");
  OK(open_image("image", PCOW_OPEN_RDWR, ".", &i));
  SYS(chdir("/"));
  OK(pcow_snapshot_create(i, "s"));
  OK(pcow_pread(i, &c, 1, 0));
  OK(pcow_diff(i, "s", NULL, any_extent, NULL));
  CHECK(c == INSIDE, "the base is not what it was");
  OK(pcow_close(i));
  SYS(chdir(cwd));
}

/* ---- What comes and goes ---- */

static atomic_bool stop;

static void *swap(void *opaque)
{
  char **names = opaque;

  while (!atomic_load(&stop))
    SYS(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE));
  return NULL;
}

/* Something else, which gives ERROR, takes the place of the base for moments, and a check and an opening
 * that are two steps would have it between them. A FIFO that is opened would hold this program for ever. */
static void test_swap(const char *evil, int error)
{
  char *image = within("image"), *names[2] = { within("base.raw"), within("evil") };
  unsigned followed = 0, refusals = 0;
  pthread_t thread;
  pcow_image *i;

  if (evil)
    SYS(symlink(evil, within("evil")));
  else
    SYS(mkfifo(within("evil"), 0600));
  atomic_store(&stop, false);
  plant(image, "base.raw");
  SYS(pthread_create(&thread, NULL, swap, names));
  for (unsigned n = 0; n < 200000 && (n < 3000 || !followed || !refusals); n++) {
    char c = 0;
    int result = open_image(image, 0, in, &i);

    if (result == 0) {
      OK(pcow_pread(i, &c, 1, 0));
      CHECK(c == INSIDE, "a link was followed out of the directory");
      OK(pcow_close(i));
      followed++;
    } else {
      CHECK(result == error, "opening gave %d: %s", result, pcow_errormsg());
      refusals++;
    }
  }
  atomic_store(&stop, true);
  SYS(pthread_join(thread, NULL));
  CHECK(opened(watch) == 0, "a forbidden file was opened for a moment");
  CHECK(followed && refusals, "of the openings %u succeeded and %u were refused", followed, refusals);
  printf("%s swapped: %u openings, %u refusals\n", evil ? "link" : "FIFO", followed, refusals);
  unlink(within("base.raw"));
  unlink(within("evil"));
  make_raw(within("base.raw"), INSIDE);
}

/* ---- A kernel, or a filter, without openat2() ---- */

static void forbid_openat2(int error)
{
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { sizeof code / sizeof *code, code };

  SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void test_no_openat2(int error)
{
  char *image = within("image");
  int status;
  pid_t child;

  make_raw(within("base.raw"), INSIDE);
  plant(image, "base.raw");
  fflush(NULL);
  child = (pid_t)SYS(fork());
  if (child == 0) {
    int on = watch_file(within("base.raw"));

    forbid_openat2(error);
    refused(image, 0, in, -ENOTSUP, "openat2");
    CHECK(opened(on) == 0, "a base was opened that nothing confines");
    shows(image, PCOW_OPEN_BASES, NULL, INSIDE);
    _exit(0);
  }
  SYS(waitpid(child, &status, 0));
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "without openat2 (%s) it goes wrong", strerror(error));
}

int main(int argc, char **argv)
{
  set_up(argc, argv);
  test_no_permission();
  test_escapes();
  test_special();
  test_allowed();
  test_swap("../out/secret", -EPERM);
  test_swap(NULL, -EINVAL);
  test_no_openat2(ENOSYS);
  test_no_openat2(EPERM);
  return 0;
}
