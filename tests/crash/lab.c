/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See lab.h. Also stands in for calls of the library (by the linker's --wrap): fsync(2) and rename(2), which
 * do not pass through persist, to see their order; getrandom(2), so that a seed repeats a run; g_usleep(), so
 * that it is fast; pthread_rwlock_wrlock() and g_get_monotonic_time(), so that something happens between two
 * steps of a collection without depending on the scheduler.
 */
#include "lab.h"

#include "subject.h"
#include "verify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

struct counters *counters;
struct options options;

/* The laboratory that is at work, for failures that know none. */
static struct lab *current;

/* ---- Failures ---- */

static void print_lab(const struct lab *lab)
{
  if (lab->above)
    print_lab(lab->above);
  fprintf(stderr, "  %s: %s", lab->above ? lab->kind : "first", lab->doing);
  if (lab->cut)
    fprintf(stderr, "; cut %u", lab->cut);
  if (lab->state)
    fprintf(stderr, ", state %u (%s: %u of %u pending lines kept)", lab->state->number, lab->state->how,
            lab->state->kept, lab->state->pending);
  fputc('\n', stderr);
}

static void print_where(void)
{
  fprintf(stderr, "scenario %s, seed %" PRIu64 ", mode %s, limit %u\n", options.scenario, options.seed,
          options.pmem ? "pmem" : "msync", options.limit);
  if (current)
    print_lab(current);
  if (options.keep)
    fprintf(stderr, "the state is in %s\n", options.keep);
}

void lab_fail(struct lab *lab, const char *format, ...)
{
  va_list ap;

  fflush(stdout);
  fputs("FAIL: ", stderr);
  va_start(ap, format);
  vfprintf(stderr, format, ap);
  va_end(ap);
  fputc('\n', stderr);
  current = lab;
  print_where();
  fflush(stderr);
  _exit(1);
}

void lab_doing(struct lab *lab, const char *format, ...)
{
  va_list ap;

  va_start(ap, format);
  vsnprintf(lab->doing, sizeof lab->doing, format, ap);
  va_end(ap);
  current = lab;
  if (options.verbose && !lab->above)
    printf("%s\n", lab->doing);
}

/* ---- Files ---- */

void copy_file(const char *from, const char *to)
{
  int in = (int)SYS(open(from, O_RDONLY | O_CLOEXEC));
  int out = (int)SYS(open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  struct timespec times[2];
  struct stat st;
  off_t at = 0;

  SYS(fstat(in, &st));
  SYS(ftruncate(out, st.st_size));
  while (at < st.st_size && (at = lseek(in, at, SEEK_DATA)) >= 0) {
    off_t end = (off_t)SYS(lseek(in, at, SEEK_HOLE));
    char buffer[65536];

    while (at < end) {
      ssize_t n = SYS(pread(in, buffer, (size_t)MIN(end - at, (off_t)sizeof buffer), at));

      SYS(pwrite(out, buffer, (size_t)n, at));
      at += n;
    }
  }
  times[0] = st.st_atim;
  times[1] = st.st_mtim;
  SYS(futimens(out, times));
  close(in);
  close(out);
}

char *lab_path(const struct lab *lab, const char *name)
{
  return g_build_filename(lab->dir, name, NULL);
}

void lab_static(struct lab *lab, const char *name)
{
  g_autofree char *from = lab_path(lab, name), *to = g_build_filename(lab->states, name, NULL);

  copy_file(from, to);
}

static void make_dir(const char *path)
{
  if (mkdir(path, 0700) && errno != EEXIST)
    FAIL("%s: %s", path, strerror(errno));
}

/* Files of FROM that TO lacks. */
static void copy_missing(const char *from, const char *to)
{
  GDir *dir = g_dir_open(from, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *source = g_build_filename(from, name, NULL), *target = g_build_filename(to, name, NULL);

    if (g_file_test(source, G_FILE_TEST_IS_REGULAR) && access(target, F_OK) != 0)
      copy_file(source, target);
  }
  if (dir)
    g_dir_close(dir);
}

static void empty_dir(const char *path)
{
  GDir *dir = g_dir_open(path, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *file = g_build_filename(path, name, NULL);

    unlink(file);
  }
  if (dir)
    g_dir_close(dir);
}

/* ---- Laboratories ---- */

static void on_cut(void *opaque)
{
  struct lab *lab = opaque;

  lab->within = true;
  lab_explore(lab);
  lab->within = false;
}

static struct lab *make(struct lab *above, const char *kind, char *dir, uint64_t seed)
{
  struct lab *lab = g_new0(struct lab, 1);

  lab->above = above;
  lab->depth = above ? above->depth + 1 : 0;
  lab->kind = kind;
  lab->dir = dir;
  lab->states = g_strdup_printf("%s.states", dir);
  lab->limit = above ? MAX(above->limit / 6, 2) : options.limit;
  lab->rng.state = seed;
  g_mutex_init(&lab->lock);
  lab->subjects = g_ptr_array_new_with_free_func((GDestroyNotify)subject_free);
  return lab;
}

struct lab *lab_new(uint64_t seed)
{
  struct lab *lab = make(NULL, "first", g_strdup(test_path("lab%ld", (long)getpid())), test_mix(seed));

  make_dir(lab->dir);
  make_dir(lab->states);
  current = lab;
  test_on_failure(print_where);
  return lab;
}

void lab_watch(struct lab *lab)
{
  make_dir(lab->states);
  lab->media = media_new(lab->dir, rng_next(&lab->rng), on_cut, lab);
}

void lab_free(struct lab *lab)
{
  g_ptr_array_unref(lab->subjects);
  if (lab->media)
    media_free(lab->media);
  empty_dir(lab->states);
  rmdir(lab->states);
  if (!lab->above || lab->dir != lab->above->states) {
    empty_dir(lab->dir);
    rmdir(lab->dir);
  }
  current = lab->above;
  g_mutex_clear(&lab->lock);
  g_free(lab->states);
  if (!lab->above || lab->dir != lab->above->states)
    g_free(lab->dir);
  g_free(lab);
}

/* ---- Exploring ---- */

/* A state is in LAB's directory of states. */
static int visit(void *opaque, const struct media_state *state)
{
  struct lab *lab = opaque, *inner;
  struct rng rng = { test_mix(options.seed ^ test_mix(((uint64_t)lab->cut << 32) + state->number)) };
  bool watched = lab->depth == 0 && options.second_in && rng_below(&rng, options.second_in) == 0;

  lab->state = state;
  if (options.keep && !lab->above) {
    empty_dir(options.keep);
    copy_missing(lab->states, options.keep);
  }
  if (lab->place)
    lab->place(lab, lab->states, &rng);
  inner = make(lab, watched ? "second crash" : "state", lab->states, rng_next(&rng));
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (s->retired)
      continue;
    /* What the media do not know was changed by the verification of the last state. */
    if (!s->watched)
      lab_static(lab, s->name);
    subject_in(s, inner)->watched = false;
  }
  if (watched) {
    lab_watch(inner);
    copy_missing(inner->dir, inner->states);
  }
  atomic_fetch_add(&counters->states, 1);
  if (lab->depth > 0)
    atomic_fetch_add(&counters->second, 1);
  lab_doing(inner, "verifying");
  verify_lab(inner, &rng);
  lab_free(inner);
  lab->state = NULL;
  return 0;
}

/* The process is killed here, and another one goes on with what all can see. */
static void visit_killed(struct lab *lab)
{
  struct lab *killed = lab_killed(lab, "killed");
  struct rng rng = { rng_next(&killed->rng) };

  atomic_fetch_add(&counters->kills, 1);
  lab_doing(killed, "going on after SIGKILL");
  verify_lab(killed, &rng);
  lab_free(killed);
}

/* Has anything changed since the last look? What was acknowledged meanwhile is looked at then. */
static bool is_news(struct lab *lab, unsigned pending)
{
  struct media_counts c;
  uint64_t changes;

  media_get_counts(lab->media, &c);
  changes = (c.stores + c.punches + c.growths + c.unannounced) << 20 | pending;
  if (lab->within && changes == lab->looked_at)
    return false;
  lab->looked_at = changes;
  return true;
}

void lab_explore(struct lab *lab)
{
  struct expect *kept[8] = { NULL };
  unsigned pending;

  if (!lab->media || lab->quiet)
    return;
  if (lab->look)
    lab->look(lab);
  pending = media_pending(lab->media);
  if (!is_news(lab, pending))
    return;
  lab->quiet = true; /* verification works on other files, but a watcher of our own may fence */
  if (lab->threads) {
    /* What is stored from now on may be seen or not, but nothing may change meanwhile. */
    g_mutex_lock(&lab->lock);
    for (unsigned i = 0; i < lab->subjects->len; i++) {
      struct subject *s = g_ptr_array_index(lab->subjects, i);

      kept[i] = expect_copy(s->expect);
      s->given = kept[i];
    }
    g_mutex_unlock(&lab->lock);
  }
  lab->cut++;
  atomic_fetch_add(&counters->cuts, 1);
  if (pending > counters->pending_most)
    counters->pending_most = pending;
  media_states(lab->media, lab->states, lab->limit, visit, lab);
  /* Threads go on storing: what all see then is more than was expected at the cut. */
  if (lab->depth == 0 && !lab->threads && options.kill_in && rng_below(&lab->rng, options.kill_in) == 0)
    visit_killed(lab);
  for (unsigned i = 0; lab->threads && i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    s->given = NULL;
    expect_free(kept[i]);
  }
  lab->quiet = false;
  current = lab;
}

void lab_acknowledged(struct lab *lab)
{
  if (lab->threads)
    return;
  lab_explore(lab);
}

struct lab *lab_killed(struct lab *lab, const char *name)
{
  struct lab *killed = make(lab, name, g_strdup_printf("%s.%s", lab->dir, name), rng_next(&lab->rng));

  make_dir(killed->dir);
  make_dir(killed->states);
  killed->media = media_killed(lab->media, killed->dir, on_cut, killed);
  copy_missing(lab->dir, killed->dir);
  if (lab->place)
    lab->place(lab, killed->dir, &killed->rng);
  copy_missing(killed->dir, killed->states);
  for (unsigned i = 0; i < lab->subjects->len; i++) {
    struct subject *s = g_ptr_array_index(lab->subjects, i);

    if (!s->retired)
      subject_in(s, killed);
  }
  return killed;
}

/* ---- Calls of the library that persist does not see ---- */

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags);
int __wrap_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags);
ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned flags);
void __real_g_usleep(gulong time);
void __wrap_g_usleep(gulong time);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *lock);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock);
gint64 __real_g_get_monotonic_time(void);
gint64 __wrap_g_get_monotonic_time(void);

/* Who reads a torn superblock waits for a writer to finish. Without threads there is none. */
void __wrap_g_usleep(gulong time)
{
  const struct lab *lab = current;

  while (lab && !lab->threads)
    lab = lab->above;
  if (lab)
    __real_g_usleep(time);
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock)
{
  struct lab *lab = current;
  void (*between)(struct lab *lab) = lab ? lab->between : NULL;

  if (between) {
    lab->between = NULL;
    between(lab);
    lab->between = between;
  }
  return __real_pthread_rwlock_wrlock(lock);
}

/* Each look at the clock finds that a step took too long to do another one under the same lock. */
gint64 __wrap_g_get_monotonic_time(void)
{
  static _Atomic gint64 added;

  if (current && current->between)
    atomic_fetch_add(&added, G_USEC_PER_SEC);
  return __real_g_get_monotonic_time() + added;
}

static GHashTable *synced;      /* inode → times */
static bool rename_after_sync, directory_after_rename;

int __wrap_fsync(int fd)
{
  struct stat st;
  gpointer key;

  if (!synced)
    synced = g_hash_table_new(NULL, NULL);
  if (fstat(fd, &st) == 0) {
    key = GSIZE_TO_POINTER(st.st_ino);
    g_hash_table_insert(synced, key, GSIZE_TO_POINTER(GPOINTER_TO_SIZE(g_hash_table_lookup(synced, key)) + 1));
    if (S_ISDIR(st.st_mode))
      directory_after_rename = true;
  }
  return __real_fsync(fd);
}

int __wrap_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
  struct stat st;

  rename_after_sync = fstatat(from_dir, from, &st, 0) == 0 && lab_synced(st.st_ino) > 0;
  directory_after_rename = false;
  return __real_renameat2(from_dir, from, to_dir, to, flags);
}

ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned flags)
{
  static _Atomic uint64_t calls;
  struct rng rng = { test_mix(options.seed + 77) + test_mix(atomic_fetch_add(&calls, 1)) };

  (void)flags;
  rng_fill(&rng, buffer, length);
  return (ssize_t)length;
}

uint64_t lab_synced(uint64_t inode)
{
  return synced ? GPOINTER_TO_SIZE(g_hash_table_lookup(synced, GSIZE_TO_POINTER(inode))) : 0;
}

bool lab_created_in_order(void)
{
  return rename_after_sync && directory_after_rename;
}
