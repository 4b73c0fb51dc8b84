/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * memory-backend-pcow: QMP commands. What takes time is done in another thread, while the guest and the
 * monitor go on.
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
    int (*run)(struct PcowJob *job);
    const char *name;
    PcowSnapshotInfoList *list, **tail;
    struct pcow_info info;
    uint64_t dirty;
    char *message;
} PcowJob;

static int do_job(void *opaque)
{
    PcowJob *job = opaque;
    int ret = job->run(job);

    if (ret < 0) {
        job->message = g_strdup(pcow_errormsg());
    }
    return ret;
}

static bool coroutine_fn run_job(PcowJob *job, const char *id, int (*run)(PcowJob *job), Error **errp)
{
    int ret;

    job->backend = find_backend(id, errp);
    if (!job->backend) {
        return false;
    }
    job->run = run;
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

static int do_create(PcowJob *job)
{
    return pcow_snapshot_create(job->backend->image, job->name);
}

static int do_delete(PcowJob *job)
{
    return pcow_snapshot_delete(job->backend->image, job->name);
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

static int do_list(PcowJob *job)
{
    return pcow_snapshot_list(job->backend->image, add_snapshot, job);
}

static int find_current(void *opaque, const struct pcow_snapshot_info *info)
{
    char **name = opaque;

    if (info->flags & PCOW_SNAPSHOT_CURRENT) {
        g_free(*name);
        *name = g_strdup(info->name);
    }
    return 0;
}

static int add_dirty(void *opaque, const struct pcow_extent *extent)
{
    PcowJob *job = opaque;

    if (extent->depth == 0 && extent->type != PCOW_EXTENT_ZERO) {
        job->dirty += extent->length;
    }
    return 0;
}

static int add_changed(void *opaque, const struct pcow_extent *extent)
{
    PcowJob *job = opaque;

    job->dirty += extent->length;
    return 0;
}

static int do_info(PcowJob *job)
{
    return pcow_get_info(job->backend->image, &job->info);
}

static int do_info_dirty(PcowJob *job)
{
    pcow_image *image = job->backend->image;
    g_autofree char *current = NULL;
    int ret = do_info(job);

    if (ret == 0) {
        ret = pcow_snapshot_list(image, find_current, &current);
    }
    if (ret == 0 && !job->backend->readonly) {
        ret = current ? pcow_diff(image, current, NULL, add_changed, job) :
                        pcow_extents(image, 0, job->info.virtual_size, 0, add_dirty, job);
    }
    return ret;
}

void coroutine_fn qmp_pcow_snapshot_create(const char *id, const char *name, Error **errp)
{
    PcowJob job = { .name = name };

    run_job(&job, id, do_create, errp);
}

void coroutine_fn qmp_pcow_snapshot_delete(const char *id, const char *name, Error **errp)
{
    PcowJob job = { .name = name };

    run_job(&job, id, do_delete, errp);
}

PcowSnapshotInfoList *coroutine_fn qmp_query_pcow_snapshots(const char *id, Error **errp)
{
    PcowJob job = { .tail = &job.list };

    if (!run_job(&job, id, do_list, errp)) {
        qapi_free_PcowSnapshotInfoList(job.list);
        return NULL;
    }
    return job.list;
}

PcowInfo *coroutine_fn qmp_query_pcow(const char *id, bool has_dirty, bool dirty, Error **errp)
{
    PcowJob job = { .info = PCOW_INIT(job.info) };
    struct pcow_mapping_stats stats = PCOW_INIT(stats);
    HostMemoryBackendPcow *b;
    PcowInfo *info;

    dirty = has_dirty && dirty;
    if (!run_job(&job, id, dirty ? do_info_dirty : do_info, errp)) {
        return NULL;
    }
    b = find_backend(id, errp);
    if (!b) {
        return NULL;
    }
    pcow_mapping_get_stats(b->map, &stats);
    info = g_new0(PcowInfo, 1);
    info->path = g_strdup(b->mem_path);
    info->size = job.info.virtual_size;
    info->durability = b->durability;
    info->readonly = b->readonly;
    info->allocated = job.info.allocated_size;
    info->has_dirty = dirty;
    info->dirty = job.dirty;
    info->snapshots = job.info.snapshot_count;
    info->faults = stats.faults;
    info->write_faults = stats.write_faults;
    info->pages_copied = stats.pages_copied;
    info->pages_reserved = stats.pages_reserved;
    info->flushes = qatomic_read(&b->flushes);
    info->flushes_failed = qatomic_read(&b->flushes_failed);
    info->pages_flushed = stats.pages_flushed;
    info->held_writers = stats.held_writers;
    info->nospace = qatomic_read(&b->stops);
    return info;
}

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
