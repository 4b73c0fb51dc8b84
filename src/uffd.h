/* SPDX-License-Identifier: BSD-3-Clause
 *
 * userfaultfd(2) and PAGEMAP_SCAN: thin wrappers that give -errno and no message, except uffd_open().
 * Constants that older kernel headers lack are defined here.
 *
 * While a registered region is moved by mremap(2) and the event has not been read, copying and
 * protecting fail with -EAGAIN. uffd_protect() tries again until it succeeds, so the thread that
 * reads the events must not call it.
 */
#ifndef PCOW_UFFD_H
#define PCOW_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* Protects memory that has no page yet, too; tells of moved regions. */
#define UFFD_FEATURES_WRITE (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP | \
                             UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
                             UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_THREAD_ID)

/* A descriptor with FEATURES, blocking. PATH is the image's, for the message: -EPERM where it is not
 * permitted, -ENOTSUP where the kernel lacks the features. */
int uffd_open(uint64_t features, const char *path);

#define UFFD_MISSING UFFDIO_REGISTER_MODE_MISSING
#define UFFD_WP UFFDIO_REGISTER_MODE_WP

int uffd_register(int fd, void *address, uint64_t length, uint64_t mode);

/* Write-protects pages, absent ones included. */
int uffd_protect(int fd, void *address, uint64_t length);

/* Fills absent pages, protected against writing with PROTECT, and wakes. *DONE: bytes filled, also on
 * failure (-EAGAIN: a region is being moved, -EEXIST: a page is there). */
int uffd_copy(int fd, void *address, const void *source, uint64_t length, bool protect, uint64_t *done);

/* One page of zeros where none is, and wakes. */
int uffd_zero(int fd, void *address, uint64_t length);

/* The range raises no more events, and who waits in it tries again. */
void uffd_unregister(int fd, void *address, uint64_t length);

/* Who waits in the range tries again. */
void uffd_wake(int fd, void *address, uint64_t length);

/* ---- Tracking: the kernel notes which pages were written, nobody waits ---- */

/* A descriptor whose protection the kernel lifts by itself at a write; no privilege is needed. Probed: 0
 * and *FD, and *PAGEMAP, which uffd_scan() takes, or -ENOTSUP with a message. MOVED: regions may be moved; who
 * moves one waits until somebody has polled and read *FD, which does not block. Else they lose their
 * registration. */
int uffd_open_tracking(const char *path, bool moved, int *fd, int *pagemap);

struct uffd_pages {
  uint64_t start, end, categories;      /* addresses */
};

/* Finds pages in [start, end) that the kernel copied from a private mapping, or that anonymous memory has, in
 * up to COUNT regions. PROTECT: only those written since they were protected last, and protects them again;
 * memory that is not registered for tracking is passed over. Returns their number, or -errno; *WALKED: how
 * far it came. On an error pages may have been protected that nobody was told of. */
int uffd_scan(int pagemap, uint64_t start, uint64_t end, bool protect, struct uffd_pages *pages, unsigned count,
              uint64_t *walked);

/* Whether reading untouched anonymous memory maps the huge zero page (and not 2 MiB of memory, and not
 * page by page): then MADV_POPULATE_READ before protecting is many times cheaper than markers. */
bool uffd_probe_huge_zero(void);

#endif
