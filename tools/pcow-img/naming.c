/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names on the command line; see naming.h.
 */
#include "naming.h"

#include "report.h"
#include "sizes.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PCOW_MAGIC "PCOW\r\n\x1a\n" /* docs/format.md: at the start of both superblocks */
#define MAGIC_BYTES 8
#define SECOND_SUPERBLOCK (1 << 20)

static gboolean exists(const char *directory, const char *name, GFileTest test)
{
  g_autofree char *path = NULL;

  if (!directory || g_path_is_absolute(name))
    return g_file_test(name, test);
  path = g_build_filename(directory, name, NULL);
  return g_file_test(path, test);
}

int naming_split(const char *text, const char *directory, char **file, char **snapshot)
{
  const char *at = strrchr(text, '@');
  g_autofree char *before = at ? g_strndup(text, (gsize)(at - text)) : NULL;

  *snapshot = NULL;
  /* An '@' in the name of a directory divides nothing. */
  if (at && strchr(at, '/') &&
      (!exists(directory, before, G_FILE_TEST_EXISTS) || exists(directory, before, G_FILE_TEST_IS_DIR)))
    at = NULL;
  if (!at || at == text || exists(directory, text, G_FILE_TEST_EXISTS)) {
    *file = g_strdup(text);
    return 0;
  }
  if (!at[1])
    return report_fail("%s: no snapshot name follows the '@'", text);
  *file = g_steal_pointer(&before);
  *snapshot = g_strdup(at + 1);
  return 0;
}

int naming_split_base(const char *text, const char *image, char **file, char **snapshot)
{
  g_autofree char *directory = g_path_get_dirname(image);

  return naming_split(text, directory, file, snapshot);
}

int naming_format(const char *option, const char *name, enum pcow_format default_format,
                  enum pcow_format *format)
{
  *format = default_format;
  if (!name)
    return 0;
  if (strcmp(name, "raw") == 0)
    *format = PCOW_FORMAT_RAW;
  else if (strcmp(name, "pcow") == 0)
    *format = PCOW_FORMAT_PCOW;
  else
    return report_fail("%s %s: unknown format, raw and pcow are known", option, name);
  return 0;
}

int naming_fail_base(int result, const char *option)
{
  if (result == -EMEDIUMTYPE && !option)
    return report_fail("%s; a raw base needs -F raw", pcow_errormsg());
  return report_library();
}

const char *naming_format_name(enum pcow_format format)
{
  return format == PCOW_FORMAT_RAW ? "raw" : format == PCOW_FORMAT_PCOW ? "pcow" : "none";
}

/* The format of another tool's images, by their first bytes; NULL: none that is known. */
static const char *foreign_format(const char *head, ssize_t length)
{
  static const struct {
    const char *magic;
    ssize_t length;
    const char *name;
  } foreign[] = {
    { "QFI\xfb", 4, "qcow2" }, { "KDMV", 4, "VMDK" }, { "vhdxfile", 8, "VHDX" }, { "conectix", 8, "VHD" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(foreign); i++)
    if (length >= foreign[i].length && memcmp(head, foreign[i].magic, (gsize)foreign[i].length) == 0)
      return foreign[i].name;
  return NULL;
}

int naming_probe(const char *path, enum pcow_format *format)
{
  char head[MAGIC_BYTES], second[MAGIC_BYTES];
  ssize_t head_length, second_length;
  const char *foreign;
  struct stat st;
  int fd;

  *format = PCOW_FORMAT_NONE;
  /* A FIFO must not hold the tool; no regular file or device cares for O_NONBLOCK. */
  fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return errno == ENOENT ? 0 : report_errno(errno, "%s", path);
  if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
    close(fd);
    return report_fail("%s: neither a regular file nor a block device", path);
  }
  head_length = pread(fd, head, sizeof(head), 0);
  second_length = pread(fd, second, sizeof(second), SECOND_SUPERBLOCK);
  if (head_length < 0 || second_length < 0) {
    int errnum = errno;

    close(fd);
    return report_errno(errnum, "%s: cannot read", path);
  }
  close(fd);

  *format = PCOW_FORMAT_RAW;
  if ((head_length == MAGIC_BYTES && memcmp(head, PCOW_MAGIC, MAGIC_BYTES) == 0) ||
      (second_length == MAGIC_BYTES && memcmp(second, PCOW_MAGIC, MAGIC_BYTES) == 0))
    *format = PCOW_FORMAT_PCOW;
  else if ((foreign = foreign_format(head, head_length)))
    return report_fail("%s: this is a %s image; convert it to raw first, or give its format as raw", path,
                       foreign);
  return 0;
}

int naming_unit_size(const char *list, uint64_t *unit_size)
{
  static const char key[] = "unit_size=";
  g_auto(GStrv) items = list ? g_strsplit(list, ",", -1) : NULL;

  *unit_size = 0;
  for (char **item = items; item && *item; item++) {
    if (!g_str_has_prefix(*item, key))
      return report_fail("-o %s: unknown option, unit_size=SIZE is known", *item);
    if (!sizes_parse(*item + strlen(key), unit_size) || *unit_size == 0)
      return report_fail("-o %s: not a size", *item);
  }
  return 0;
}
