/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU host memory backend: a pcow image as the memory of an NVDIMM or a virtio-pmem device.
 *
 * libpcow maps the image; its handler thread serves the guest's first writes. What QEMU has to add:
 * the map must be gone from the VM before it ends; a guest's flush is pcow_flush(); when the file
 * system is full, the VM stops, and going on means trying again.
 *
 * A write without space is held by the library: its thread sleeps inside a page fault, and cannot be
 * made to leave it. So three things happen when the library says that a writer is held, in a
 * thread that needs no lock of QEMU: an event tells the manager; the VM is asked to stop, where
 * vm_stop() does not wait for a vCPU that sleeps so (held_by_fault()); and writers try again every
 * second. What sleeps may be the main loop itself, and then nobody could say "cont".
 */

#include "qemu/osdep.h"
#include "hostmem-pcow.h"
#include "qapi/error.h"
#include "qapi/qapi-events-pcow.h"
#include "qapi/qapi-visit-qom.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "hw/core/cpu.h"
#include "migration/blocker.h"
#include "qom/object_interfaces.h"
#if QEMU_VERSION_MAJOR >= 10
#include "system/cpus.h"
#include "system/runstate.h"
#include "system/system.h"
#define memory_is_locked() should_mlock(mlock_state)
typedef const void ClassData;
#else
#include "sysemu/cpus.h"
#include "sysemu/runstate.h"
#include "sysemu/sysemu.h"
#define memory_is_locked() enable_mlock
typedef void ClassData;
#endif

#define HUGE_PAGE (2 * MiB)
#define RETRY_MS 1000
/* Before devices resume, which may wait for threads that write; these run in the order of numbers. */
#define FIRST_PRIORITY (-1000)

static QLIST_HEAD(, HostMemoryBackendPcow) backends = QLIST_HEAD_INITIALIZER(backends);

static uint64_t held_writers(HostMemoryBackendPcow *b)
{
    struct pcow_mapping_stats stats = PCOW_INIT(stats);

    return b->map && pcow_mapping_get_stats(b->map, &stats) == 0 ? stats.held_writers : 0;
}

/* ---- Without space ---- */

/*
 * The vCPU's thread sleeps in a page fault that only pcow_mapping_resume() ends: some writer is held, and
 * the kernel says what this thread waits for. Where it does not say, all that has been waited for is.
 */
static bool held_by_fault(CPUState *cpu)
{
    HostMemoryBackendPcow *b;
    bool some = false;
    g_autofree char *path = NULL, *where = NULL;

    QLIST_FOREACH(b, &backends, next) {
        some = some || held_writers(b);
    }
    if (!some) {
        return false;
    }
    path = g_strdup_printf("/proc/self/task/%d/wchan", cpu->thread_id);
    return !g_file_get_contents(path, &where, NULL, NULL) || !strcmp(where, "0") ||
           !strcmp(where, "") || g_str_has_prefix(where, "handle_userfault");
}

/* May be called in any thread, without a lock. */
static void stop_vm(HostMemoryBackendPcow *b, bool flush, uint64_t offset)
{
    qatomic_inc(&b->stops);
    qapi_event_send_pcow_nospace(b->id, b->mem_path, offset, flush);
    qemu_system_vmstop_request_prepare();
    qemu_system_vmstop_request(RUN_STATE_IO_ERROR);
}

/* A thread of the library: no lock of QEMU may be taken. */
static void on_nospace(void *opaque, const char *file, uint64_t offset)
{
    HostMemoryBackendPcow *b = opaque;

    qatomic_set(&b->held_offset, offset);
    qemu_sem_post(&b->wake);
}

static void *held_thread(void *opaque)
{
    HostMemoryBackendPcow *b = opaque;

    for (;;) {
        bool told = true;

        if (held_writers(b)) {
            told = qemu_sem_timedwait(&b->wake, RETRY_MS) == 0;
        } else {
            qemu_sem_wait(&b->wake);
        }
        if (qatomic_read(&b->ending)) {
            return NULL;
        }
        if (!told) {
            qatomic_set(&b->retried, true);
            pcow_mapping_resume(b->map);
        } else if (!qatomic_read(&b->retried) || runstate_is_running()) {
            stop_vm(b, false, qatomic_read(&b->held_offset));
        }
    }
}

static void vm_state_change(void *opaque, bool running, RunState state)
{
    HostMemoryBackendPcow *b = opaque;

    if (running && b->map) {
        qatomic_set(&b->retried, false);
        pcow_mapping_resume(b->map);
    }
}

/* ---- Flushes ---- */

static int pcow_backend_flush(HostMemoryBackend *backend, uint64_t offset, uint64_t length)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);
    int ret = 0;

    g_rw_lock_reader_lock(&b->use);
    if (!b->readonly) {
        ret = b->map ? pcow_flush(b->map, offset, length) : -ESHUTDOWN;
    }
    g_rw_lock_reader_unlock(&b->use);
    qatomic_inc(ret < 0 ? &b->flushes_failed : &b->flushes);
    if (ret < 0 && ret != -ENOSPC && ret != -ESHUTDOWN) {
        error_report("%s: a flush of the guest failed: %s", b->id, pcow_errormsg());
    }
    return ret;
}

static bool pcow_backend_flush_failed(HostMemoryBackend *backend, int error)
{
    if (error == -ENOSPC) {
        stop_vm(MEMORY_BACKEND_PCOW(backend), true, 0);
    }
    return error == -ENOSPC;
}

static bool pcow_backend_is_persistent(HostMemoryBackend *backend)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);

    return b->readonly || b->durability == PCOW_DURABILITY_STORE;
}

/* ---- Beginning and end ---- */

static bool open_image(HostMemoryBackendPcow *b, Error **errp)
{
    HostMemoryBackend *backend = MEMORY_BACKEND(b);
    struct pcow_open_options how = PCOW_INIT(how);
    struct pcow_map_options map = PCOW_INIT(map);
    struct pcow_info info = PCOW_INIT(info);
    g_autofree char *dir = b->base_dir ? g_strdup(b->base_dir) : g_path_get_dirname(b->mem_path);

    how.flags = b->readonly ? 0 : PCOW_OPEN_RDWR;
    how.snapshot = b->snapshot;
    how.base_dir = dir;
    if (pcow_open(b->mem_path, &how, &b->image) < 0 || pcow_get_info(b->image, &info) < 0) {
        error_setg(errp, "%s", pcow_errormsg());
        return false;
    }
    if (backend->size && backend->size != info.virtual_size) {
        error_setg(errp, "%s: its size is %" PRIu64 " bytes, not %" PRIu64, b->mem_path, info.virtual_size,
                   backend->size);
        return false;
    }
    if (b->max_size && (b->max_size < info.virtual_size || b->readonly)) {
        error_setg(errp, b->readonly ? "%s: is mapped read-only, so max-size has no meaning" :
                   "%s: max-size is less than its size", b->mem_path);
        return false;
    }
    map.durability = b->durability == PCOW_DURABILITY_STORE ? PCOW_STORE_DURABLE : PCOW_FLUSH_DURABLE;
    map.thin = PCOW_THIN_GUARDED;       /* nobody wants a VM that dies of SIGBUS */
    map.reserve = b->max_size;
    map.nospace = on_nospace;
    map.opaque = b;
    if (pcow_map(b->image, &map, &b->map) < 0) {
        error_setg(errp, "%s", pcow_errormsg());
        return false;
    }
    backend->size = info.virtual_size;
    return true;
}

/* Nobody writes any more. Who is at work on the image in another thread is waited for. */
static void close_image(HostMemoryBackendPcow *b)
{
    g_rw_lock_writer_lock(&b->use);
    if (pcow_close(b->image) < 0) {
        error_report("%s", pcow_errormsg());
    }
    b->image = NULL;
    b->map = NULL;
    g_rw_lock_writer_unlock(&b->use);
}

static void end_thread(HostMemoryBackendPcow *b)
{
    if (!b->ending) {
        qatomic_set(&b->ending, true);
        qemu_sem_post(&b->wake);
        qemu_thread_join(&b->thread);
    }
}

/*
 * A device keeps the object to the end of the process. The image is closed when nobody can be writing to it
 * any more; else it is found as after a power failure, which loses nothing that was promised.
 */
static void at_exit(Notifier *notifier, void *data)
{
    HostMemoryBackendPcow *b = container_of(notifier, HostMemoryBackendPcow, exit);

    if (b->map && !runstate_is_running() && !held_writers(b)) {
        end_thread(b);
        close_image(b);
    }
}

#if QEMU_VERSION_MAJOR >= 9
#define add_blocker migrate_add_blocker
#define del_blocker migrate_del_blocker
#else
static int add_blocker(Error **reason, Error **errp)
{
    return migrate_add_blocker(*reason, errp);
}

static void del_blocker(Error **reason)
{
    if (*reason) {
        migrate_del_blocker(*reason);       /* which does nothing if it was not added */
        error_free(*reason);
    }
}
#endif

static bool pcow_backend_setup(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);
    g_autofree char *name = host_memory_backend_get_name(backend);

    if (!b->mem_path) {
        error_setg(errp, "memory-backend-pcow needs mem-path, the image's file");
        return false;
    }
    if (!backend->share) {
        error_setg(errp, "%s: share=off is not possible: what the guest writes goes to the image (make an "
                   "overlay, or use readonly=on)", b->mem_path);
        return false;
    }
    if (memory_is_locked()) {
        error_setg(errp, "%s: -overcommit mem-lock=on would copy all of the image", b->mem_path);
        return false;
    }
    b->id = g_strdup(object_get_canonical_path_component(OBJECT(b)));
    backend->prealloc = false;          /* -mem-prealloc means the VM's other memory */
    b->readonly = b->readonly || b->snapshot;
    if (!open_image(b, errp)) {
        return false;
    }
    if (ram_block_discard_require(true) < 0) {
        error_setg(errp, "%s: cannot be used beside assigned devices (VFIO and the like): they pin memory",
                   b->mem_path);
        return false;
    }
    b->discard_required = true;
    error_setg(&b->migration_blocker, "%s: memory-backend-pcow cannot be migrated: its content stays in the "
               "image", b->mem_path);
    if (add_blocker(&b->migration_blocker, errp) < 0) {
        return false;
    }

    QLIST_INSERT_HEAD(&backends, b, next);
    cpus_set_held_check(held_by_fault);
    qemu_thread_create(&b->thread, "pcow-held", held_thread, b, QEMU_THREAD_JOINABLE);
    b->vmstate = qemu_add_vm_change_state_handler_prio(vm_state_change, b, FIRST_PRIORITY);
    b->exit.notify = at_exit;
    qemu_add_exit_notifier(&b->exit);
    memory_region_init_ram_managed(&backend->mr, OBJECT(backend), name, backend->size,
                                   MAX(backend->size, b->max_size),
                                   QEMU_IS_ALIGNED(backend->size, HUGE_PAGE) ? HUGE_PAGE : PCOW_PAGE_SIZE,
                                   b->readonly, pcow_mapping_address(b->map));
    return true;
}

#if QEMU_VERSION_MAJOR >= 9
#define pcow_backend_alloc pcow_backend_setup
#else
static void pcow_backend_alloc(HostMemoryBackend *backend, Error **errp)
{
    pcow_backend_setup(backend, errp);
}
#endif

/* The memory region, a child, is gone by now. */
static void pcow_backend_finalize(Object *obj)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(obj);

    if (b->vmstate) {
        qemu_del_vm_change_state_handler(b->vmstate);
        qemu_remove_exit_notifier(&b->exit);
        QLIST_REMOVE(b, next);
        end_thread(b);
    }
    close_image(b);
    del_blocker(&b->migration_blocker);
    if (b->discard_required) {
        ram_block_discard_require(false);
    }
    qemu_sem_destroy(&b->wake);
    g_rw_lock_clear(&b->use);
    g_free(b->id);
    g_free(b->mem_path);
    g_free(b->snapshot);
    g_free(b->base_dir);
}

/* ---- Properties ---- */

/* One that nobody changes when the object is complete. */
#define PROPERTY(field, ctype, type, release)                                                           \
    static void get_##field(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)      \
    {                                                                                                   \
        visit_type_##type(v, name, &MEMORY_BACKEND_PCOW(obj)->field, errp);                             \
    }                                                                                                   \
                                                                                                        \
    static void set_##field(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)      \
    {                                                                                                   \
        ctype value;                                                                                    \
                                                                                                        \
        if (host_memory_backend_mr_inited(MEMORY_BACKEND(obj))) {                                       \
            error_setg(errp, "cannot change property '%s' of %s", name, object_get_typename(obj));      \
        } else if (visit_type_##type(v, name, &value, errp)) {                                          \
            release(MEMORY_BACKEND_PCOW(obj)->field);                                                   \
            MEMORY_BACKEND_PCOW(obj)->field = value;                                                    \
        }                                                                                               \
    }

PROPERTY(mem_path, char *, str, g_free)
PROPERTY(snapshot, char *, str, g_free)
PROPERTY(base_dir, char *, str, g_free)
PROPERTY(durability, PcowDurability, PcowDurability, (void))
PROPERTY(readonly, bool, bool, (void))
PROPERTY(max_size, uint64_t, size, (void))

/* ---- The type ---- */

/* The message of a failure that has no caller. Any thread. */
static void on_log(void *opaque, int level, const char *message)
{
    if (level == PCOW_LOG_ERROR) {
        error_report("%s", message);
    } else if (level == PCOW_LOG_WARNING) {
        warn_report("%s", message);
    }
}

static void pcow_backend_init(Object *obj)
{
    HostMemoryBackend *backend = MEMORY_BACKEND(obj);
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(obj);

    /* Of madvise(2), MERGEABLE and DONTDUMP are not for this memory, whatever the machine says. */
    backend->merge = false;
    backend->dump = true;
    backend->share = true;
    b->durability = PCOW_DURABILITY_FLUSH;
    qemu_sem_init(&b->wake, 0);
    g_rw_lock_init(&b->use);
}

static void pcow_backend_class_init(ObjectClass *oc, ClassData *data)
{
    HostMemoryBackendClass *bc = MEMORY_BACKEND_CLASS(oc);

    bc->alloc = pcow_backend_alloc;
    bc->flush = pcow_backend_flush;
    bc->flush_failed = pcow_backend_flush_failed;
    bc->is_persistent = pcow_backend_is_persistent;
    object_class_property_add(oc, "mem-path", "str", get_mem_path, set_mem_path, NULL, NULL);
    object_class_property_add(oc, "snapshot", "str", get_snapshot, set_snapshot, NULL, NULL);
    object_class_property_add(oc, "base-dir", "str", get_base_dir, set_base_dir, NULL, NULL);
    object_class_property_add(oc, "durability", "PcowDurability", get_durability, set_durability, NULL, NULL);
    object_class_property_add(oc, "readonly", "bool", get_readonly, set_readonly, NULL, NULL);
    object_class_property_add(oc, "max-size", "size", get_max_size, set_max_size, NULL, NULL);
    pcow_set_log(on_log, NULL);
}

static const TypeInfo pcow_backend_info[] = {
    {
        .name = TYPE_MEMORY_BACKEND_PCOW,
        .parent = TYPE_MEMORY_BACKEND,
        .class_init = pcow_backend_class_init,
        .instance_init = pcow_backend_init,
        .instance_finalize = pcow_backend_finalize,
        .instance_size = sizeof(HostMemoryBackendPcow),
    },
};

DEFINE_TYPES(pcow_backend_info)
