/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * memory-backend-pcow: what its two parts share, the backend and its QMP commands.
 */
#ifndef HOSTMEM_PCOW_H
#define HOSTMEM_PCOW_H

#include "qapi/qapi-types-qom.h"
#include "qemu/queue.h"
#include "qemu/thread.h"
#if QEMU_VERSION_MAJOR >= 10
#include "system/hostmem.h"
#else
#include "sysemu/hostmem.h"
#endif

#include <libpcow/libpcow.h>

#define TYPE_MEMORY_BACKEND_PCOW "memory-backend-pcow"
OBJECT_DECLARE_SIMPLE_TYPE(HostMemoryBackendPcow, MEMORY_BACKEND_PCOW)

/* From when the object is complete to its end, nothing of it changes but what is marked. */
struct HostMemoryBackendPcow {
    HostMemoryBackend parent_obj;

    char *id;                   /* as the user named it: any thread may say it */
    char *mem_path, *snapshot, *base_dir;
    uint64_t max_size;
    PcowDurability durability;
    bool readonly;

    pcow_image *image;          /* NULL: closed */
    pcow_mapping *map;
    GRWLock use;                /* to write: for closing it; to read: to use it without the BQL */
    Error *migration_blocker;
    bool discard_required;
    VMChangeStateEntry *vmstate;
    Notifier exit;
    QLIST_ENTRY(HostMemoryBackendPcow) next;

    QemuThread thread;          /* tells of held writers, and lets them try again */
    QemuSemaphore wake;
    bool retried, ending;       /* atomic, and these */
    uint64_t held_offset, stops, flushes, flushes_failed;
};

#endif
