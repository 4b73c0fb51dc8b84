/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libpmem, loaded when the first image that needs it is opened for writing. Linking it would have every
 * program that only reads images, or has no persistent memory, load libndctl, libkmod and libcrypto:
 * a millisecond and more at each start of a command that takes one itself. It is never unloaded.
 */
#include "persiststate.h"

#include "error.h"

#include <dlfcn.h>
#include <string.h>

#define SONAME "libpmem.so." G_STRINGIFY(PMEM_MAJOR_VERSION)

/* FUNCTION is a pointer to a function. */
static bool find(void *library, const char *name, void *function)
{
  void *symbol = dlsym(library, name);

  memcpy(function, &symbol, sizeof(symbol));
  return symbol != NULL;
}

int persist_pmem(const char *path, const struct pmem_calls **pmem)
{
  static GMutex lock;
  static struct pmem_calls calls;
  static bool loaded;
  int ret = 0;

  g_mutex_lock(&lock);
  if (!loaded) {
    void *library = dlopen(SONAME, RTLD_LAZY | RTLD_LOCAL);

    loaded = library && find(library, "pmem_flush", &calls.flush) &&
             find(library, "pmem_drain", &calls.drain) &&
             find(library, "pmem_memcpy_nodrain", &calls.memcpy_nodrain);
    if (!loaded)
      ret = fail(ENOTSUP, "%s: lies on persistent memory, but libpmem cannot be loaded: %s", path, dlerror());
    if (!loaded && library)
      dlclose(library);
  }
  g_mutex_unlock(&lock);
  *pmem = &calls;
  return ret;
}
