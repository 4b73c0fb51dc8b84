/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * memory-backend-pcow: QMP commands. What takes time is done in another thread, while the guest goes on; the
 * monitor takes its next command after it.
 */

#include "qemu/osdep.h"
#include "hostmem-pcow.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-pcow.h"
#include "qemu/main-loop.h"
#include "block/thread-pool.h"
#include "qom/object_interfaces.h"

static HostMemoryBackendPcow *find_backend(const char *id, Error **errp)
{
    Object *obj = object_resolve_path_component(object_get_objects_root(), id);

    if (!obj || !object_dynamic_cast(obj, TYPE_MEMORY_BACKEND_PCOW)) {
        error_setg(errp, "there is no memory-backend-pcow object '%s'", id);
        return NULL;
    }
    return MEMORY_BACKEND_PCOW(obj);
}

typedef struct PcowJob {
    HostMemoryBackendPcow *backend;
    int (*run)(struct PcowJob *job, pcow_image *image);
    const char *name;
    PcowSnapshotInfoList *list, **tail;
    PcowInfo *info;
    char *message;
} PcowJob;

static int do_job(void *opaque)
{
    PcowJob *job = opaque;
    HostMemoryBackendPcow *b = job->backend;
    int ret = -ESHUTDOWN;

    g_rw_lock_reader_lock(&b->use);
    if (b->image) {
        ret = job->run(job, b->image);
    }
    if (ret < 0) {
        job->message = g_strdup(b->image ? pcow_errormsg() : "the image was closed");
    }
    g_rw_lock_reader_unlock(&b->use);
    return ret;
}

static bool coroutine_fn run_job(PcowJob *job, const char *id, Error **errp)
{
    int ret;

    job->backend = find_backend(id, errp);
    if (!job->backend) {
        return false;
    }
    object_ref(OBJECT(job->backend));
#if QEMU_VERSION_MAJOR >= 9
    ret = thread_pool_submit_co(do_job, job);
#else
    ret = thread_pool_submit_co(aio_get_thread_pool(qemu_get_aio_context()), do_job, job);
#endif
    if (ret < 0) {
        error_setg(errp, "%s", job->message);
        g_free(job->message);
    }
    object_unref(OBJECT(job->backend));
    return ret >= 0;
}

/* ---- Snapshots ---- */

static int do_create(PcowJob *job, pcow_image *image)
{
    return pcow_snapshot_create(image, job->name);
}

void coroutine_fn qmp_pcow_snapshot_create(const char *id, const char *name, Error **errp)
{
    PcowJob job = { .run = do_create, .name = name };

    run_job(&job, id, errp);
}

static int do_delete(PcowJob *job, pcow_image *image)
{
    return pcow_snapshot_delete(image, job->name);
}

void coroutine_fn qmp_pcow_snapshot_delete(const char *id, const char *name, Error **errp)
{
    PcowJob job = { .run = do_delete, .name = name };

    run_job(&job, id, errp);
}

static int add_snapshot(void *opaque, const struct pcow_snapshot_info *info)
{
    PcowJob *job = opaque;
    PcowSnapshotInfo *s = g_new0(PcowSnapshotInfo, 1);

    s->name = g_strdup(info->name);
    s->current = info->flags & PCOW_SNAPSHOT_CURRENT;
    s->size = info->virtual_size;
    s->date_sec = info->created_sec;
    s->date_nsec = info->created_nsec;
    QAPI_LIST_APPEND(job->tail, s);
    return 0;
}

static int do_list(PcowJob *job, pcow_image *image)
{
    return pcow_snapshot_list(image, add_snapshot, job);
}

PcowSnapshotInfoList *coroutine_fn qmp_query_pcow_snapshots(const char *id, Error **errp)
{
    PcowJob job = { .run = do_list, .tail = &job.list };

    if (!run_job(&job, id, errp)) {
        qapi_free_PcowSnapshotInfoList(job.list);
        return NULL;
    }
    return job.list;
}

/* ---- Information ---- */

static int add_changed(void *opaque, const struct pcow_extent *extent)
{
    PcowInfo *info = opaque;

    info->dirty += extent->length;
    return 0;
}

static int add_own(void *opaque, const struct pcow_extent *extent)
{
    return extent->depth || extent->type == PCOW_EXTENT_ZERO ? 0 : add_changed(opaque, extent);
}

static int find_dirty(PcowJob *job, pcow_image *image)
{
    const char *current = NULL;
    int ret = do_list(job, image);

    for (PcowSnapshotInfoList *s = job->list; s; s = s->next) {
        current = s->value->current ? s->value->name : current;
    }
    if (ret < 0 || job->backend->readonly) {
        return ret;
    }
    return current ? pcow_diff(image, current, NULL, add_changed, job->info) :
                     pcow_extents(image, 0, job->info->size, 0, add_own, job->info);
}

static int do_query(PcowJob *job, pcow_image *image)
{
    HostMemoryBackendPcow *b = job->backend;
    PcowInfo *info = job->info;
    struct pcow_info i = PCOW_INIT(i);
    struct pcow_mapping_stats stats = PCOW_INIT(stats);
    int ret = pcow_get_info(image, &i);

    if (ret < 0) {
        return ret;
    }
    pcow_mapping_get_stats(b->map, &stats);
    info->path = g_strdup(b->mem_path);
    info->size = i.virtual_size;
    info->durability = b->durability;
    info->readonly = b->readonly;
    info->allocated = i.allocated_size;
    info->snapshots = i.snapshot_count;
    info->faults = stats.faults;
    info->write_faults = stats.write_faults;
    info->pages_copied = stats.pages_copied;
    info->pages_reserved = stats.pages_reserved;
    info->flushes = qatomic_read(&b->flushes);
    info->flushes_failed = qatomic_read(&b->flushes_failed);
    info->pages_flushed = stats.pages_flushed;
    info->held_writers = stats.held_writers;
    info->nospace = qatomic_read(&b->stops);
    return info->has_dirty ? find_dirty(job, image) : 0;
}

PcowInfo *coroutine_fn qmp_query_pcow(const char *id, bool has_dirty, bool dirty, Error **errp)
{
    PcowJob job = { .run = do_query, .tail = &job.list, .info = g_new0(PcowInfo, 1) };
    bool done;

    job.info->has_dirty = has_dirty && dirty;
    done = run_job(&job, id, errp);
    qapi_free_PcowSnapshotInfoList(job.list);
    if (!done) {
        qapi_free_PcowInfo(job.info);
    }
    return done ? job.info : NULL;
}

/* ---- Size ---- */

void qmp_pcow_resize(const char *id, uint64_t size, Error **errp)
{
    HostMemoryBackendPcow *b = find_backend(id, errp);
    HostMemoryBackend *backend;

    if (!b) {
        return;
    }
    backend = MEMORY_BACKEND(b);
    if (b->readonly || host_memory_backend_is_mapped(backend)) {
        error_setg(errp, b->readonly ? "%s: is mapped read-only" : "%s: a device has it, and shows the guest "
                   "the size that it began with: resize the image when the VM is off", b->mem_path);
    } else if (size > MAX(b->max_size, backend->size) || size < backend->size) {
        error_setg(errp, "%s: can be resized to sizes from %" PRIu64 " to max-size, %" PRIu64 " bytes, not %"
                   PRIu64, b->mem_path, backend->size, MAX(b->max_size, backend->size), size);
    } else if (pcow_resize(b->image, size, 0) < 0) {
        error_setg(errp, "%s", pcow_errormsg());
    } else if (size > backend->size) {
        backend->size = pcow_mapping_length(b->map);
        memory_region_ram_resize(&backend->mr, backend->size, errp);
    }
}
