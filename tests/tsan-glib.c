/* SPDX-License-Identifier: BSD-3-Clause
 *
 * For ThreadSanitizer builds only. GLib's mutexes and conditions are futexes in a library that is not
 * instrumented, so that everything they order would look like a race. These functions stand before
 * GLib's, call them, and tell ThreadSanitizer about the order. (GRWLock is a pthread lock: it sees it.)
 */
#include <dlfcn.h>
#include <glib.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

#define REAL(name) ((__typeof__(&name))(guintptr)real(&name##_real, #name))

static gpointer real(gpointer *cache, const char *name)
{
  gpointer p = __atomic_load_n(cache, __ATOMIC_RELAXED);

  if (!p) {
    p = dlsym(RTLD_NEXT, name);
    __atomic_store_n(cache, p, __ATOMIC_RELAXED);
  }
  return p;
}

static gpointer g_mutex_lock_real, g_mutex_trylock_real, g_mutex_unlock_real;
static gpointer g_cond_wait_real, g_cond_wait_until_real;

void g_mutex_lock(GMutex *mutex)
{
  REAL(g_mutex_lock)(mutex);
  __tsan_acquire(mutex);
}

gboolean g_mutex_trylock(GMutex *mutex)
{
  gboolean locked = REAL(g_mutex_trylock)(mutex);

  if (locked)
    __tsan_acquire(mutex);
  return locked;
}

void g_mutex_unlock(GMutex *mutex)
{
  __tsan_release(mutex);
  REAL(g_mutex_unlock)(mutex);
}

void g_cond_wait(GCond *cond, GMutex *mutex)
{
  __tsan_release(mutex);
  REAL(g_cond_wait)(cond, mutex);
  __tsan_acquire(mutex);
}

gboolean g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time)
{
  gboolean signalled;

  __tsan_release(mutex);
  signalled = REAL(g_cond_wait_until)(cond, mutex, end_time);
  __tsan_acquire(mutex);
  return signalled;
}
