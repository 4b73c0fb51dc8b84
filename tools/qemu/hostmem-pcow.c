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
 * vm_stop() does not wait for a vCPU that sleeps so (held_by_fault()); and should the main loop
 * itself be what sleeps, or waits for such a thread, writers try again every second, since nobody
 * could say "cont" then.
 */

#include "qemu/osdep.h"
#include "hostmem-pcow.h"
#include "qapi/error.h"
#include "qapi/qapi-events-pcow.h"
#include "qapi/visitor.h"
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
#else
#include "sysemu/cpus.h"
#include "sysemu/runstate.h"
#include "sysemu/sysemu.h"
#endif

#define HUGE_PAGE (2 * MiB)
#define BEAT_MS 1000
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
    qatomic_set(&b->told, true);
    qemu_sem_post(&b->wake);
}

static void main_loop_beats(void *opaque)
{
    HostMemoryBackendPcow *b = opaque;

    qemu_sem_post(&b->beat);
}

/* The main loop itself, which is not what nested ones run, does something within a second. */
static bool main_loop_lives(HostMemoryBackendPcow *b)
{
    while (qemu_sem_timedwait(&b->beat, 0) == 0) {
        /* late ones */
    }
    qemu_bh_schedule(b->beat_bh);
    return qemu_sem_timedwait(&b->beat, BEAT_MS) == 0;
}

static void *held_thread(void *opaque)
{
    HostMemoryBackendPcow *b = opaque;
    bool retried = false;       /* as nobody can say "cont": being told again is no news */

    for (;;) {
        bool told, alive;

        if (retried || held_writers(b)) {
            qemu_sem_timedwait(&b->wake, BEAT_MS);
        } else {
            qemu_sem_wait(&b->wake);
        }
        if (qatomic_read(&b->ending)) {
            return NULL;
        }
        told = qatomic_xchg(&b->told, false);
        if (told && !retried) {
            stop_vm(b, false, qatomic_read(&b->held_offset));
        }
        alive = !held_writers(b) || main_loop_lives(b);
        if (told && retried && alive) {
            stop_vm(b, false, qatomic_read(&b->held_offset));
        }
        retried = !alive && !qatomic_read(&b->ending);
        if (retried) {
            pcow_mapping_resume(b->map);
        }
    }
}

static void vm_state_change(void *opaque, bool running, RunState state)
{
    HostMemoryBackendPcow *b = opaque;

    if (running && b->map) {
        pcow_mapping_resume(b->map);
    }
}

/* ---- Flushes ---- */

static int pcow_backend_flush(HostMemoryBackend *backend, uint64_t offset, uint64_t length)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);
    int ret = b->readonly ? 0 : pcow_flush(b->map, offset, length);

    if (ret >= 0) {
        qatomic_inc(&b->flushes);
    } else {
        qatomic_inc(&b->flushes_failed);
        if (ret != -ENOSPC || b->nospace == PCOW_NOSPACE_POLICY_REPORT) {
            error_report("%s: a flush of the guest failed: %s", b->id, pcow_errormsg());
        }
    }
    return ret;
}

static bool pcow_backend_flush_failed(HostMemoryBackend *backend, int error)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);

    if (error != -ENOSPC || b->nospace == PCOW_NOSPACE_POLICY_REPORT) {
        return false;
    }
    stop_vm(b, true, 0);
    return true;
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

/* False: flushing failed. The mapping must be out of use. */
static bool close_image(HostMemoryBackendPcow *b)
{
    pcow_image *image = b->image;

    b->image = NULL;
    b->map = NULL;
    if (pcow_close(image) < 0) {
        error_report("%s", pcow_errormsg());
        return false;
    }
    return true;
}

static void end_thread(HostMemoryBackendPcow *b)
{
    if (b->beat_bh) {
        qatomic_set(&b->ending, true);
        qemu_sem_post(&b->wake);
        qemu_sem_post(&b->beat);
        qemu_thread_join(&b->thread);
        qemu_bh_delete(b->beat_bh);
        b->beat_bh = NULL;
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

static bool memory_is_locked(void)
{
#if QEMU_VERSION_MAJOR >= 10
    return should_mlock(mlock_state);
#else
    return enable_mlock;
#endif
}

static bool pcow_backend_setup(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryBackendPcow *b = MEMORY_BACKEND_PCOW(backend);
    g_autofree char *name = host_memory_backend_get_name(backend);
    int ret;

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
    ret = ram_block_discard_require(true);
    if (ret) {
        error_setg(errp, "%s: cannot be used beside assigned devices (VFIO and the like): they pin memory",
                   b->mem_path);
        return false;
    }
    b->discard_required = true;
    error_setg(&b->migration_blocker, "%s: memory-backend-pcow cannot be migrated: its content stays in the "
               "image", b->mem_path);
#if QEMU_VERSION_MAJOR >= 9
    ret = migrate_add_blocker(&b->migration_blocker, errp);
#else
    ret = migrate_add_blocker(b->migration_blocker, errp);
    if (ret < 0) {
        error_free(b->migration_blocker);
        b->migration_blocker = NULL;
    }
#endif
    if (ret < 0) {
        return false;
    }

    QLIST_INSERT_HEAD(&backends, b, next);
    cpus_set_held_check(held_by_fault);
    b->beat_bh = aio_bh_new(iohandler_get_aio_context(), main_loop_beats, b);
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
    if (b->migration_blocker) {
#if QEMU_VERSION_MAJOR >= 9
        migrate_del_blocker(&b->migration_blocker);
#else
        migrate_del_blocker(b->migration_blocker);
        error_free(b->migration_blocker);
#endif
    }
    if (b->discard_required) {
        ram_block_discard_require(false);
    }
    qemu_sem_destroy(&b->wake);
    qemu_sem_destroy(&b->beat);
    g_free(b->id);
    g_free(b->mem_path);
    g_free(b->snapshot);
    g_free(b->base_dir);
}

/* ---- Properties ---- */

static bool may_change(Object *obj, const char *name, Error **errp)
{
    if (host_memory_backend_mr_inited(MEMORY_BACKEND(obj))) {
        error_setg(errp, "cannot change property '%s' of %s", name, object_get_typename(obj));
        return false;
    }
    return true;
}

#define STRING_PROPERTY(field, name)                                            \
    static char *get_##field(Object *obj, Error **errp)                         \
    {                                                                           \
        return g_strdup(MEMORY_BACKEND_PCOW(obj)->field);                       \
    }                                                                           \
                                                                                \
    static void set_##field(Object *obj, const char *value, Error **errp)       \
    {                                                                           \
        if (may_change(obj, name, errp)) {                                      \
            g_free(MEMORY_BACKEND_PCOW(obj)->field);                            \
            MEMORY_BACKEND_PCOW(obj)->field = g_strdup(value);                  \
        }                                                                       \
    }

#define ENUM_PROPERTY(field, name)                                              \
    static int get_##field(Object *obj, Error **errp)                           \
    {                                                                           \
        return MEMORY_BACKEND_PCOW(obj)->field;                                 \
    }                                                                           \
                                                                                \
    static void set_##field(Object *obj, int value, Error **errp)               \
    {                                                                           \
        if (may_change(obj, name, errp)) {                                      \
            MEMORY_BACKEND_PCOW(obj)->field = value;                            \
        }                                                                       \
    }

STRING_PROPERTY(mem_path, "mem-path")
STRING_PROPERTY(snapshot, "snapshot")
STRING_PROPERTY(base_dir, "base-dir")
ENUM_PROPERTY(durability, "durability")
ENUM_PROPERTY(nospace, "nospace")

static bool get_readonly(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_PCOW(obj)->readonly;
}

static void set_readonly(Object *obj, bool value, Error **errp)
{
    if (may_change(obj, "readonly", errp)) {
        MEMORY_BACKEND_PCOW(obj)->readonly = value;
    }
}

static void get_max_size(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)
{
    visit_type_size(v, name, &MEMORY_BACKEND_PCOW(obj)->max_size, errp);
}

static void set_max_size(Object *obj, Visitor *v, const char *name, void *opaque, Error **errp)
{
    uint64_t value;

    if (may_change(obj, name, errp) && visit_type_size(v, name, &value, errp)) {
        MEMORY_BACKEND_PCOW(obj)->max_size = value;
    }
}

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
    qemu_sem_init(&b->beat, 0);
}

#if QEMU_VERSION_MAJOR >= 10
static void pcow_backend_class_init(ObjectClass *oc, const void *data)
#else
static void pcow_backend_class_init(ObjectClass *oc, void *data)
#endif
{
    HostMemoryBackendClass *bc = MEMORY_BACKEND_CLASS(oc);

    bc->alloc = pcow_backend_alloc;
    bc->flush = pcow_backend_flush;
    bc->flush_failed = pcow_backend_flush_failed;
    bc->is_persistent = pcow_backend_is_persistent;
    object_class_property_add_str(oc, "mem-path", get_mem_path, set_mem_path);
    object_class_property_add_str(oc, "snapshot", get_snapshot, set_snapshot);
    object_class_property_add_str(oc, "base-dir", get_base_dir, set_base_dir);
    object_class_property_add_enum(oc, "durability", "PcowDurability", &PcowDurability_lookup, get_durability,
                                   set_durability);
    object_class_property_add_enum(oc, "nospace", "PcowNospacePolicy", &PcowNospacePolicy_lookup, get_nospace,
                                   set_nospace);
    object_class_property_add_bool(oc, "readonly", get_readonly, set_readonly);
    object_class_property_add(oc, "max-size", "size", get_max_size, set_max_size, NULL, NULL);
    pcow_set_log(on_log, NULL);
}

static const TypeInfo pcow_backend_info = {
    .name = TYPE_MEMORY_BACKEND_PCOW,
    .parent = TYPE_MEMORY_BACKEND,
    .class_init = pcow_backend_class_init,
    .instance_init = pcow_backend_init,
    .instance_finalize = pcow_backend_finalize,
    .instance_size = sizeof(HostMemoryBackendPcow),
};

static void register_types(void)
{
    type_register_static(&pcow_backend_info);
}

type_init(register_types);
