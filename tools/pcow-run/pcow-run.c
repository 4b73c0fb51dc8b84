/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pcow-run: runs a program that takes pcow images for raw files. All that it does is to check that the program
 * can have libpcow-run before it, to say in the environment what was asked for, and to execute it.
 */
#include "settings.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <limits.h>
#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LIBRARY "libpcow-run.so"
#define FAILED 125      /* as env(1) has it: pcow-run itself failed; */
#define NOT_RUN 126     /* the program cannot be run; */
#define NOT_FOUND 127   /* there is none */

static void G_GNUC_PRINTF(2, 3) G_GNUC_NORETURN die(int status, const char *format, ...)
{
  va_list list;

  fputs("pcow-run: ", stderr);
  va_start(list, format);
  vfprintf(stderr, format, list);
  va_end(list);
  fputc('\n', stderr);
  exit(status);
}

static char *real_path(const char *path)
{
  char *full = realpath(path, NULL);

  if (!full)
    die(FAILED, "%s: %s", path, g_strerror(errno));
  if (strpbrk(full, "\n\t"))
    die(FAILED, "%s: a name with a tab or a newline in it cannot be handed on", path);
  return full;
}

/* A library that cannot be loaded is ignored by the dynamic linker, after a message: the program would run without. */
static void check_loads(const char *library)
{
  if (!dlopen(library, RTLD_NOW | RTLD_LOCAL))
    die(FAILED, "%s", dlerror());
}

/* Beside this program, as in a build tree, or where it was installed to. */
static char *find_library(void)
{
  g_autofree char *self = realpath("/proc/self/exe", NULL);
  g_autofree char *dir = self ? g_path_get_dirname(self) : NULL;
  const char *places[] = { ".", RUN_LIBRARY_FROM_BINARY };

  for (unsigned n = 0; dir && n < G_N_ELEMENTS(places); n++) {
    g_autofree char *path = g_path_is_absolute(places[n]) ? g_build_filename(places[n], LIBRARY, NULL)
                                                          : g_build_filename(dir, places[n], LIBRARY, NULL);
    char *full = realpath(path, NULL);

    if (full && strpbrk(full, " :"))
      die(FAILED, "%s: a library with a space or a colon in its name cannot be preloaded", full);
    if (full) {
      check_loads(full);
      return full;
    }
  }
  die(FAILED, "%s is neither beside this program nor in %s", LIBRARY, RUN_LIBRARY_FROM_BINARY);
}

/* Without the library the program would take an image's file for what is in it, and damage it. */
static void check_elf(const char *path, int fd)
{
  Elf64_Ehdr header;
  bool dynamic = false;

  if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    return;
  if (header.e_ident[EI_CLASS] != ELFCLASS64)
    die(NOT_RUN, "%s: is a program of 32 bits, and this is a library of 64", path);
  for (unsigned n = 0; n < header.e_phnum; n++) {
    Elf64_Phdr part;

    if (pread(fd, &part, sizeof(part), (off_t)(header.e_phoff + n * header.e_phentsize)) != sizeof(part))
      break;
    dynamic |= part.p_type == PT_INTERP;
  }
  if (!dynamic)
    die(NOT_RUN, "%s: is linked statically, and calls the kernel without a library that could stand between",
        path);
}

static void check_program(const char *path, unsigned depth)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  char text[PATH_MAX + 2] = "";
  struct stat st;

  if (fd < 0)
    return;     /* exec may do it all the same, or say why not */
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
    if (((st.st_mode & S_ISUID) && st.st_uid != getuid()) ||
        ((st.st_mode & S_ISGID) && st.st_gid != getgid()))
      die(NOT_RUN, "%s: runs as another user or group, and takes no library from this one", path);
    if (geteuid() && fgetxattr(fd, "security.capability", NULL, 0) > 0)
      die(NOT_RUN, "%s: gets capabilities from its file, and takes no library then", path);
    check_elf(path, fd);
    if (depth < 4 && pread(fd, text, sizeof(text) - 1, 0) > 2 && strncmp(text, "#!", 2) == 0) {
      char *name = text + 2 + strspn(text + 2, " \t");

      name[strcspn(name, " \t\n")] = 0;
      check_program(name, depth + 1);
    }
  }
  close(fd);
}

/* FILE or FILE@SNAPSHOT, as pcow-img has it, for the environment. */
static char *image_line(const char *text)
{
  const char *at = strrchr(text, '@');
  g_autofree char *before = at ? g_strndup(text, (gsize)(at - text)) : NULL;
  g_autofree char *full = NULL;

  if (!at || at == text || g_file_test(text, G_FILE_TEST_EXISTS))
    return real_path(text);
  if (!at[1] || strpbrk(at, "\n\t"))
    die(FAILED, "%s: no name of a snapshot follows the '@'", text);
  full = real_path(before);
  return g_strconcat(full, "\t", at + 1, NULL);
}

static void set_environment(char **images, const char *durability, const char *base_dir, gboolean any_base)
{
  const char *preload = getenv("LD_PRELOAD");
  g_autofree char *library = find_library();
  g_autofree char *all = preload && *preload ? g_strconcat(library, ":", preload, NULL) : g_strdup(library);
  g_autoptr(GString) lines = g_string_new(NULL);

  for (char **image = images; image && *image; image++) {
    g_autofree char *line = image_line(*image);

    g_string_append_printf(lines, "%s\n", line);
  }
  if (images)
    g_setenv(RUN_ENV_IMAGES, lines->str, TRUE);
  else
    g_unsetenv(RUN_ENV_IMAGES);
  if (durability)
    g_setenv(RUN_ENV_DURABILITY, durability, TRUE);
  else
    g_unsetenv(RUN_ENV_DURABILITY);
  if (base_dir) {
    g_autofree char *full = real_path(base_dir);

    g_setenv(RUN_ENV_BASES, full, TRUE);
  } else if (any_base) {
    g_setenv(RUN_ENV_BASES, RUN_ANY_BASE, TRUE);
  } else {
    g_unsetenv(RUN_ENV_BASES);
  }
  g_setenv("LD_PRELOAD", all, TRUE);
}

int main(int argc, char **argv)
{
  g_auto(GStrv) images = NULL, program = NULL;
  g_autofree char *durability = NULL, *base_dir = NULL, *path = NULL;
  gboolean any_base = FALSE, version = FALSE;
  g_autoptr(GError) error = NULL;
  g_autoptr(GOptionContext) context = g_option_context_new("PROGRAM [ARGUMENT…]");
  const GOptionEntry entries[] = {
    { "any-base", 0, 0, G_OPTION_ARG_NONE, &any_base, "Follow bases wherever they lie; trusted images only",
      NULL },
    { "base-dir", 0, 0, G_OPTION_ARG_FILENAME, &base_dir,
      "Follow bases within DIR (default: the image's directory)", "DIR" },
    { "durability", 0, 0, G_OPTION_ARG_STRING, &durability,
      "When stores are durable: store or flush (default: as the program asks for)", "MODE" },
    { "image", 'i', 0, G_OPTION_ARG_FILENAME_ARRAY, &images,
      "Serve this image, or this snapshot of one; may be repeated (default: all images)", "FILE[@SNAPSHOT]" },
    { "version", 0, 0, G_OPTION_ARG_NONE, &version, "Print the version", NULL },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &program, NULL, NULL },
    { NULL, 0, 0, 0, NULL, NULL, NULL }
  };

  setlocale(LC_ALL, "");
  g_option_context_set_summary(context, "Run a program that takes pcow images for raw files.");
  g_option_context_set_strict_posix(context, TRUE);
  g_option_context_add_main_entries(context, entries, NULL);
  if (!g_option_context_parse(context, &argc, &argv, &error))
    die(FAILED, "%s", error->message);
  if (version) {
    puts("pcow-run " RUN_VERSION);
    return 0;
  }
  if (!program || !program[0])
    die(FAILED, "no program is named; pcow-run --help says how");
  if (durability && strcmp(durability, "store") != 0 && strcmp(durability, "flush") != 0)
    die(FAILED, "--durability=%s: store and flush are known", durability);
  if (base_dir && any_base)
    die(FAILED, "--base-dir and --any-base exclude each other");

  path = g_find_program_in_path(program[0]);
  if (!path)
    die(NOT_FOUND, "%s: no such program", program[0]);
  check_program(path, 0);
  set_environment(images, durability, base_dir, any_base);
  execvp(program[0], program);
  die(errno == ENOENT ? NOT_FOUND : NOT_RUN, "%s: %s", program[0], g_strerror(errno));
}
