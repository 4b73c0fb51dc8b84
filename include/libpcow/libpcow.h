/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libpcow: copy-on-write images as persistent memory.
 *
 * An image is one file that holds a virtual range of bytes, the snapshots of that range, and a
 * reference to the base that it is layered on. Tools read and write it with pcow_pread() and
 * pcow_pwrite(); a hypervisor maps it with pcow_map() and stores into it like into any memory.
 *
 * Conventions, which hold for every function here:
 *
 *  - Sizes, offsets and lengths are bytes. Virtual sizes are multiples of 4096.
 *  - Functions return 0 (or a count) on success and -errno on failure. After a failure
 *    pcow_errormsg() gives the calling thread's message: one sentence with the file and the cause.
 *  - Handles are thread-safe: any thread may use a handle at any time, except that nobody may use it
 *    during or after the call that ends it (pcow_close(), pcow_unmap()).
 *  - The library never prints, exits, installs signal handlers or changes process-wide limits.
 *  - Option and result structs begin with their size. Set it with PCOW_INIT(), so that programs
 *    compiled against an older header go on working when a struct has grown:
 *
 *        struct pcow_map_options options = PCOW_INIT(options);
 *
 *  - Flags and fields not named here must be zero; others give -EINVAL.
 *  - Strings that go out are UTF-8 and stay valid until the handle is closed, or, in a callback,
 *    until it returns.
 *
 * Durability. What pcow_pwrite(), pcow_discard() and pcow_write_zeroes() did is durable after
 * pcow_sync(). Snapshot create, delete and revert, rebase, commit and resize are atomic and durable
 * when they return. A store into a store-durable mapping is durable once the storing CPU has flushed
 * the cache line and fenced, as on an NVDIMM (pcow_persist() does both); a store into a flush-durable one,
 * when a pcow_flush() that was called after it has returned.
 */
#ifndef LIBPCOW_H
#define LIBPCOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define PCOW_INIT(s) { sizeof(s) }
#else
#define PCOW_INIT(s) { .size = sizeof(s) }
#endif

#define PCOW_PAGE_SIZE 4096
#define PCOW_NAME_MAX 255  /* longest snapshot name, bytes without terminator */
#define PCOW_PATH_MAX 1023 /* longest base path, bytes without terminator */

typedef struct pcow_image pcow_image;
typedef struct pcow_mapping pcow_mapping;

/* ---- Version, messages --------------------------------------------------------------------- */

/* The library's version, "MAJOR.MINOR.PATCH". */
const char *pcow_version(void);

/* The message of the last failure in the calling thread, never NULL; "" before the first. Valid
 * until the thread's next call into the library. */
const char *pcow_errormsg(void);

enum pcow_log_level {
  PCOW_LOG_ERROR = 0,   /* something failed that no caller is there to be told about */
  PCOW_LOG_WARNING = 1, /* e.g. an image that was not closed cleanly, a deletion still pending */
  PCOW_LOG_DEBUG = 2
};

typedef void (*pcow_log_fn)(void *opaque, int level, const char *message);

/* Sends messages that belong to no call's result to FN (NULL: nowhere, the default). Process-wide;
 * FN may be called from any thread, internal ones included, and must not call the library. */
void pcow_set_log(pcow_log_fn fn, void *opaque);

/* Called now and then by long operations with the work done so far and in all (in units of the
 * operation's own). A result other than 0 cancels: the operation returns -ECANCELED, the image is as
 * it was (or, where said, valid and partly converted). */
typedef int (*pcow_progress_fn)(void *opaque, uint64_t done, uint64_t total);

/* ---- Bases ---------------------------------------------------------------------------------
 *
 * An image names its base by a path, and whoever made the image chose it: /etc/shadow, a device. So no
 * such path is followed unless the caller allows it, in one of two ways. With a flag, PCOW_OPEN_BASES,
 * PCOW_CREATE_BASES, PCOW_REBASE_BASES, each path that an image of the chain names is followed: for images
 * that come from people who may read what the caller may. With a directory, base_dir, only to files that
 * lie beneath it, whatever symbolic links there are: the kernel makes sure of that, openat2(2) with
 * RESOLVE_BENEATH, each time a file is opened; an absolute symbolic link is not followed at all. Both at
 * once are -EINVAL. A path in an image is relative to the directory of that image; an absolute one must
 * begin with the directory's name or real path. A base that the caller names in a call is opened as named;
 * its own bases follow the call's permission.
 *
 * -EPERM: the image has a base and that was not allowed, or it leads out of the directory. -ENOTSUP: the
 * kernel has no openat2(2), or a seccomp filter forbids it, so that nothing can be confined. */

/* ---- Create -------------------------------------------------------------------------------- */

enum pcow_format {
  PCOW_FORMAT_NONE = 0,
  PCOW_FORMAT_PCOW = 1,
  PCOW_FORMAT_RAW = 2
};

#define PCOW_CREATE_REPLACE 1u /* replace an existing file atomically, unless it is an image in use */
#define PCOW_CREATE_BASES 2u   /* follow the paths of the base's own bases, wherever they lead */

struct pcow_create_options {
  size_t size;
  uint32_t flags;            /* PCOW_CREATE_* */
  uint32_t base_format;      /* enum pcow_format; with base: PCOW or RAW, never guessed */
  uint64_t unit_size;        /* power of two, 64 KiB … 64 GiB; 0: 128 MiB, or larger for large images */
  const char *base;          /* NULL: none. Relative to the image's directory; recorded as given */
  const char *base_snapshot; /* NULL: the base's head as it is now */
  const char *base_dir;      /* follow the base's own bases, to files beneath this directory */
};

/* Makes an image of VIRTUAL_SIZE bytes (rounded up to a page; 0 with a base: the base's size). The
 * file appears complete or not at all, durably. OPTIONS may be NULL.
 * -EEXIST (and no PCOW_CREATE_REPLACE), -EINVAL (sizes, flags, base not valid), -EFBIG (virtual size
 * beyond 2^24 units), -EBUSY (file to replace is in use, base is being written), -EPERM (the base has a
 * base that may not be followed), what open(2) gives. */
int pcow_create(const char *path, uint64_t virtual_size, const struct pcow_create_options *options);

/* ---- Open, close --------------------------------------------------------------------------- */

#define PCOW_OPEN_RDWR 1u       /* write the head; exclusive among all processes */
#define PCOW_OPEN_INFO 2u       /* lock-free, also while the image is in use elsewhere: information
                                   only, no content and no base */
#define PCOW_OPEN_NO_BASE 4u    /* do not open the base: for an unsafe rebase; content calls fail */
#define PCOW_OPEN_FORCE_BASE 8u /* take the base although it is not what it was */
#define PCOW_OPEN_BASES 16u     /* follow the paths of bases, wherever they lead: trusted images only */

struct pcow_open_options {
  size_t size;
  uint32_t flags;       /* PCOW_OPEN_* */
  const char *snapshot; /* open this snapshot, read-only, instead of the head */
  const char *base_dir; /* follow the paths of bases, to files beneath this directory */
};

/* Opens the image at PATH with its chain of bases, locks and validates all of them. Read-only
 * without PCOW_OPEN_RDWR. OPTIONS may be NULL; an image with a base needs a permission, see above, which
 * holds until the handle is closed. An image that was not closed cleanly is made durable as it is, and
 * interrupted deletions go on, when it is opened for writing.
 * -EPERM (it has a base that may not be followed),
 * -EBUSY (locked by another process or handle), -ENOENT (file, base or snapshot missing),
 * -EMEDIUMTYPE (not a pcow image), -EUCLEAN (damaged), -ENOTSUP (newer version or unknown feature;
 * or libpmem, which persistent memory needs, cannot be loaded), -ESTALE (a base is not what it was),
 * -ELOOP (cyclic chain, or longer than 1024), what open(2) gives. */
int pcow_open(const char *path, const struct pcow_open_options *options, pcow_image **image);

/* Makes everything durable, unmaps what is mapped, ends the handle in any case. An error says that
 * the last flush failed. NULL: nothing. */
int pcow_close(pcow_image *image);

/* Opens the base of IMAGE, which is open for information (PCOW_OPEN_INFO), in the same way: lock-free,
 * for information only. It is followed as far as IMAGE's options allowed, and so is its own base in turn.
 * Of a raw base there is its size: pcow_info has format_version 0 and no snapshots.
 * -EINVAL (IMAGE has no base or is not open for information), -EPERM (it may not be followed), -ELOOP
 * (cyclic chain, or longer than 1024), else as for pcow_open(); that it is the base that IMAGE was made
 * over is not checked. */
int pcow_open_base(pcow_image *image, pcow_image **base);

/* ---- Information --------------------------------------------------------------------------- */

#define PCOW_INFO_DIRTY 1u   /* not closed cleanly, or open for writing */
#define PCOW_INFO_PENDING 2u /* deleted snapshots of which something is still to be collected */

struct pcow_info {
  size_t size;
  uint32_t format_version; /* 0: a raw file, of pcow_open_base(); only sizes and path are set then */
  uint32_t flags;          /* PCOW_INFO_* */
  uint64_t virtual_size;   /* of what is open: the head or a snapshot */
  uint64_t unit_size;
  uint64_t allocated_size; /* blocks of this file, without its base */
  uint64_t sequence;       /* counts commits */
  uint64_t snapshot_count;
  uint64_t slot_count;     /* high-water mark of slots */
  uint8_t uuid[16];
  uint64_t content_tag[2]; /* counter, random */
  uint32_t base_format;    /* enum pcow_format */
  uint32_t durability;     /* enum pcow_durability: the strongest that this file system can promise */
  const char *path;
  const char *base;          /* as recorded; NULL: none */
  const char *base_path;     /* as it is opened, relative to the working directory or absolute */
  const char *base_snapshot; /* its name, when the base is open (not with PCOW_OPEN_INFO, NO_BASE) */
  uint32_t base_epoch;       /* 0: the base's head */
  uint32_t deletions_pending; /* how many; without those that several living branches see */
};

int pcow_get_info(pcow_image *image, struct pcow_info *info);

/* ---- Content ------------------------------------------------------------------------------- */

/* Reads COUNT bytes at OFFSET: all of them, or an error. -EINVAL beyond the end. */
int pcow_pread(pcow_image *image, void *buffer, size_t count, uint64_t offset);

/* Writes COUNT bytes at OFFSET: all of them, or an error (-ENOSPC: bytes before the failure may be
 * written, the rest is as before). -EINVAL beyond the end, -EBADF not open for writing. Durable after
 * pcow_sync(). Also while the image is mapped: both see the same bytes. */
int pcow_pwrite(pcow_image *image, const void *buffer, size_t count, uint64_t offset);

/* Makes every write that had returned before the call durable. After an I/O error the image takes no
 * more writes: this and every later call report it. */
int pcow_sync(pcow_image *image);

/* The range reads as zeros; whole pages give their space back. Durable after pcow_sync(). */
int pcow_discard(pcow_image *image, uint64_t offset, uint64_t length);

#define PCOW_ZERO_KEEP_SPACE 1u /* keep (or reserve) space for the range */

/* The range reads as zeros. Whole pages are punched out unless PCOW_ZERO_KEEP_SPACE is given. */
int pcow_write_zeroes(pcow_image *image, uint64_t offset, uint64_t length, uint32_t flags);

enum pcow_extent_type {
  PCOW_EXTENT_ZERO = 0, /* reads as zeros, nothing stored in any layer */
  PCOW_EXTENT_DATA = 1, /* stored in a file */
  PCOW_EXTENT_ZERO_ALLOCATED = 2 /* this layer says zero (discarded), masking those beneath */
};

struct pcow_extent {
  size_t size;
  uint64_t offset;      /* in the image */
  uint64_t length;
  uint32_t type;        /* enum pcow_extent_type */
  uint32_t depth;       /* 0: this image's file, 1: its base, … */
  uint64_t file_offset; /* DATA: where it lies in the file */
  const char *path;     /* DATA, ZERO_ALLOCATED: the layer's file; else NULL */
};

/* A result other than 0 ends the walk, which returns it. May read and write the image meanwhile, but
 * must not change its snapshots, size or base. */
typedef int (*pcow_extent_fn)(void *opaque, const struct pcow_extent *extent);

#define PCOW_EXTENTS_MERGE 1u /* only data or zero matters: neighbours are merged across files, depth and
                                 file_offset are 0, path is NULL */

/* Walks the range of what is open, in order, without gaps. */
int pcow_extents(pcow_image *image, uint64_t offset, uint64_t length, uint32_t flags,
                 pcow_extent_fn fn, void *opaque);

/* ---- Snapshots ----------------------------------------------------------------------------- */

#define PCOW_SNAPSHOT_CURRENT 1u /* the head descends from this one directly */

struct pcow_snapshot_info {
  size_t size;
  uint32_t id;
  uint32_t parent;       /* id of the nearest living ancestor, 0: none */
  uint32_t flags;        /* PCOW_SNAPSHOT_* */
  uint32_t created_nsec;
  int64_t created_sec;   /* since 1970-01-01 UTC */
  uint64_t virtual_size;
  uint8_t guid[16];
  const char *name;
};

typedef int (*pcow_snapshot_fn)(void *opaque, const struct pcow_snapshot_info *info);

/* Lists the snapshots, oldest first. Works with PCOW_OPEN_INFO. FN as for pcow_extents(). */
int pcow_snapshot_list(pcow_image *image, pcow_snapshot_fn fn, void *opaque);

/* Freezes the head as it is under NAME (1 to 255 bytes UTF-8 without control characters or '@').
 * Everything written before the call, stores through a mapping included, is in it; a store that runs
 * during the call waits and comes after it. One commit.
 * -EEXIST (name taken), -EINVAL (name not valid), -EMFILE (table full), -EBADF (not open for writing).
 * -EIO: the commit itself failed; the image takes no more writes, and whether the snapshot is there is
 * known when the image is opened again. */
int pcow_snapshot_create(pcow_image *image, const char *name);

/* Deletes a snapshot, wherever in the tree, also while the image is mapped; no other one changes content.
 * The space of what only it held is given back before the call returns, at a cost by that and not by the
 * image; writers of a mapping wait for a short step of it at a time. What is left of it may have to wait for
 * readers, for space, or for the next snapshot of a mapped head (PCOW_INFO_PENDING): a later deletion or
 * open goes on. Once the deletion is committed that is no error. Other threads may use the image meanwhile.
 * -ENOENT, -EBUSY (being read). */
int pcow_snapshot_delete(pcow_image *image, const char *name);

/* The head becomes what the snapshot is, size included; all snapshots stay. What was written since
 * the head's last snapshot is gone. -ENOENT, -EBUSY (mapped). */
int pcow_snapshot_revert(pcow_image *image, const char *name);

/* Walks the ranges whose bytes differ between snapshot FROM and snapshot TO (NULL: the head), in
 * order; extents have type DATA or ZERO as in TO, merged as with PCOW_EXTENTS_MERGE. Costs by what
 * either wrote since their common ancestor. Ranges beyond the smaller size count as different. */
int pcow_diff(pcow_image *image, const char *from, const char *to, pcow_extent_fn fn, void *opaque);

/* ---- Size, base ---------------------------------------------------------------------------- */

#define PCOW_RESIZE_SHRINK 1u /* without it a smaller size is refused with -EINVAL */

/* Changes the virtual size of the head. What is added reads as zeros, whatever was there before. A
 * mapping grows with the image when it has reserved enough; -EBUSY for shrinking while mapped. */
int pcow_resize(pcow_image *image, uint64_t virtual_size, uint32_t flags);

#define PCOW_REBASE_UNSAFE 1u /* change the reference only: content changes if the bases differ */
#define PCOW_REBASE_BASES 2u  /* follow the paths of the new base's own bases, wherever they lead */

struct pcow_rebase_options {
  size_t size;
  uint32_t flags;            /* PCOW_REBASE_* */
  uint32_t base_format;      /* enum pcow_format; with base: PCOW or RAW */
  const char *base;          /* NULL: none, the image becomes independent */
  const char *base_snapshot; /* NULL: the base's head */
  pcow_progress_fn progress;
  void *opaque;
  const char *base_dir;      /* follow the new base's own bases, to files beneath this directory */
};

/* Changes the base. The new base's own bases follow the permission given here; without one, the handle's.
 * Safe: no view of the image, head or snapshot, changes content; pages that the
 * new base has otherwise are copied first. -EBUSY while mapped. Errors as for pcow_open(). */
int pcow_rebase(pcow_image *image, const struct pcow_rebase_options *options);

/* Writes what the head has of its own into its base (a head, opened for writing meanwhile), then
 * empties the head. Refused with -EBUSY while the image is mapped or has snapshots (they would change
 * content), and with -EROFS when the base is a snapshot. A crash on the way leaves an image that
 * opens and reads as before; repeat the commit. PROGRESS may be NULL. */
int pcow_commit(pcow_image *image, pcow_progress_fn progress, void *opaque);

/* ---- Check --------------------------------------------------------------------------------- */

#define PCOW_CHECK_REPAIR_LEAKS 1u /* give leaked space back, if nothing is corrupt */
#define PCOW_CHECK_REPAIR_ALL 2u   /* repair all that can be, leaks included */
#define PCOW_CHECK_BASE 4u         /* is the base what it was? Follows its path within the image's directory */
#define PCOW_CHECK_ANY_BASE 8u     /* the same, wherever the path leads: trusted images only */

struct pcow_check_result {
  size_t size;
  uint64_t corruptions;
  uint64_t leaks;       /* slots and regions that hold blocks which nobody sees */
  uint64_t leaked_size; /* bytes of these blocks */
  uint64_t repaired;    /* corruptions and leaks that were repaired */
  uint64_t slots;       /* slots reached */
  uint64_t pages;       /* pages present, over all slots */
  uint64_t repairable;  /* of the corruptions: PCOW_CHECK_REPAIR_ALL repairs them */
  uint64_t pending;     /* deleted snapshots whose space is still to be collected; no fault */
  uint64_t base_faults; /* with PCOW_CHECK_BASE: the base is missing, damaged, or not what it was */
};

typedef void (*pcow_check_fn)(void *opaque, const char *finding);

/* Verifies what the format promises of the image file at PATH (not of its base), without opening it
 * as an image. Read-only without repair flags. FN (may be NULL) gets a sentence for each finding; pages
 * that are lost are named, with the snapshots that have lost them.
 * 0: the check ran, RESULT says what it found (before the repair).
 *
 * A repair is durable when the function returns, and may be cut short anywhere: it never takes away what
 * is still there. Where a part of a unit's slots cannot be found any more it is cut off, so that the rest
 * can be used; the pages that were in it are lost, and the findings say so. If the head has lost pages it
 * gets a new content tag, so that images over it notice.
 * -EBUSY (in use; to repair all: also a snapshot of it), -EUCLEAN (both superblocks, or more of the file
 * than can be told apart, are gone: nothing was changed), -ECANCELED, otherwise as for pcow_open(). */
int pcow_check(const char *path, uint32_t flags, struct pcow_check_result *result,
               pcow_check_fn fn, pcow_progress_fn progress, void *opaque);

/* ---- Mapping ------------------------------------------------------------------------------- */

enum pcow_durability {
  PCOW_FLUSH_DURABLE = 0, /* stores are durable when pcow_flush() returns (virtio-pmem) */
  PCOW_STORE_DURABLE = 1  /* a store is durable once its cache line is flushed (NVDIMM) */
};

enum pcow_thin {
  PCOW_THIN_DEFAULT = 0, /* guarded in a store-durable mapping, native in a flush-durable one */
  PCOW_THIN_GUARDED = 1, /* space is reserved before a page can be written: a full file system is
                            met by the library, not by a store */
  PCOW_THIN_NATIVE = 2   /* where nothing lies beneath, the file system fills holes at the fault:
                            faster, but a full file system is a SIGBUS */
};

/* Called when a writer is held because the file system is full: FILE is the image's path, OFFSET the
 * page's. It must not call the library; it tells its program to make space and then to call
 * pcow_mapping_resume(). Called once until then. */
typedef void (*pcow_nospace_fn)(void *opaque, const char *file, uint64_t offset);

struct pcow_map_options {
  size_t size;
  uint32_t durability; /* enum pcow_durability; read-only maps do not care */
  uint32_t thin;       /* enum pcow_thin */
  void *address;       /* NULL: chosen. Else 2 MiB-aligned, and the caller owns (has reserved)
                          [address, address + max(reserve, size)), which is replaced */
  uint64_t reserve;    /* bytes of address space to hold for growing later; 0: the virtual size */
  uint64_t granule;    /* bytes that a first write copies at least; power of two, 4 KiB … 2 MiB;
                          0: 64 KiB, growing while writes run sequentially; the page alone where no
                          other page of the 64 KiB was written and areas of memory (VMAs) are plenty */
  uint64_t dram_limit; /* bytes of DRAM for clean copies of lower pages where they cannot be mapped, and
                          for flushed copies of a flush-durable map; 0: 256 MiB */
  pcow_nospace_fn nospace; /* NULL: the storing thread gets SIGBUS (a system call -EFAULT), as from
                              any mapped file, and the log callback a sentence. At the system's limit
                              of memory areas, where not even that can be arranged, it is held until
                              pcow_mapping_resume(), and the log callback gets a sentence */
  void *opaque;
};

/* Maps what is open as one range: the head of an image opened with PCOW_OPEN_RDWR for reading and
 * writing (one such map at a time), anything else read-only. OPTIONS may be NULL for a read-only map.
 * Pages that the head has are mapped from the file: no code of the library runs on access to them.
 * In a store-durable map the first write to any other page is held while the page is copied, durably, and then
 * goes on; so are writes by system calls and virtual CPUs. In a flush-durable one the kernel copies lower pages
 * to memory, and pcow_flush() copies them from there to the file.
 * Of a writable map that has many pieces, or more than 4 GiB that were written, most is laid out when it is first
 * accessed, a unit at a time; then no code runs any more, either. What is damaged there is a SIGBUS.
 * -ENOTSUP (durability that this file system, or this kernel, does not give), -EPERM (userfaultfd is
 * not permitted; a flush-durable map does with UFFD_USER_MODE_ONLY), -EBUSY (already mapped), -ENOMEM, -EINVAL. */
int pcow_map(pcow_image *image, const struct pcow_map_options *options, pcow_mapping **mapping);

void *pcow_mapping_address(const pcow_mapping *mapping);
uint64_t pcow_mapping_length(const pcow_mapping *mapping); /* the virtual size now */

/* Flushes the CPU caches for a part of a store-durable mapping and fences: the stores are durable. On a
 * flush-durable mapping it is pcow_flush(). */
int pcow_persist(pcow_mapping *mapping, uint64_t offset, uint64_t length);

/* Stores into the range that ended before the call are durable when it returns 0; other stores may be, too.
 * For both kinds of mappings; any number of threads may call it at once. On an error nothing is lost: the call
 * can be repeated (-ENOSPC: after space was made). After an I/O error of the file (-EIO) no later call
 * succeeds. -EBADF (mapped read-only), -EINVAL (beyond the end). */
int pcow_flush(pcow_mapping *mapping, uint64_t offset, uint64_t length);

/* Says that the range of a flush-durable mapping was written by somebody whom the kernel's page tables do not
 * tell of: a device, or a system call on memory that was pinned (O_DIRECT in flight, registered buffers of
 * io_uring, VFIO). Call it when the transfer has completed, before the flush that is to make it durable; and
 * no flush, snapshot or discard of the range may run while the transfer does. Each of them may replace pages:
 * what is pinned must be pinned anew after it. Near the limit of memory areas (merges in the statistics)
 * pages are replaced at any time: nothing may be written in this way then. */
int pcow_mark_dirty(pcow_mapping *mapping, uint64_t offset, uint64_t length);

/* Space was made: held writers try again. Pages that gave SIGBUS can be written again, too. */
int pcow_mapping_resume(pcow_mapping *mapping);

struct pcow_mapping_stats {
  size_t size;
  uint64_t faults;         /* events that the library handled */
  uint64_t write_faults;   /* of them, first writes */
  uint64_t fill_faults;    /* of them, lower pages copied to DRAM because they could not be mapped */
  uint64_t duplicate_faults;
  uint64_t pages_copied;   /* from lower layers */
  uint64_t pages_reserved; /* made present over nothing */
  uint64_t dram_pages;     /* clean copies of lower pages now */
  uint64_t held_writers;   /* waiting for space now */
  uint64_t vmas;           /* of the whole process, when last counted */
  uint64_t vma_budget;     /* number at which ranges are merged by publishing the gaps */
  uint64_t merges;         /* ranges so merged */
  uint64_t flushes;        /* of a flush-durable mapping; of threads that flush at once one may be missed */
  uint64_t pages_flushed;  /* copied by them to the file */
  uint64_t pages_handed_over; /* mapped from the file since, so that flushes need not copy them any more */
  uint64_t scans;          /* of page tables */
  uint64_t pages_kept;     /* copies by the kernel that were flushed and are still in memory; held to dram_limit
                              by handing over */
  uint64_t units_protected; /* units whose scans cost too much: their first writes raise events now */
  uint64_t units_late;     /* laid out when they were first accessed, which raised an event, not by pcow_map() */
};

int pcow_mapping_get_stats(pcow_mapping *mapping, struct pcow_mapping_stats *stats);

/* Ends the mapping. All stores must have ended. A flush-durable one is flushed first: when that fails the
 * mapping stays, and the error is returned (pcow_close() ends it in any case). With a caller's address the range is left as an
 * inaccessible reservation. NULL: nothing. */
int pcow_unmap(pcow_mapping *mapping);

#ifdef __cplusplus
}
#endif

#endif
