/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libpcow-run: what its parts share. A program's descriptor of an image is a *placeholder*: the image file
 * opened with access mode 3, which the kernel lets nobody read, write or map, but which has an offset, flags
 * and locks that dup, fork and exec hand on. What is done with a placeholder through this library is done to
 * the image; what goes past it (io_uring, raw system calls) gets EBADF.
 *
 * Locks, in this order: run_structure (which images there are, who opens, maps and closes them) → an image's
 * `use` (for writing: its handle or its map changes; for reading: it is used) → the table's. While `use` is
 * held memory of the program is touched, which may wait for libpcow's threads; these take none of the three.
 */
#ifndef RUN_RUN_H
#define RUN_RUN_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <libpcow/libpcow.h>

#define RUN_FD_MOST (1 << 20)
#define RUN_ACCESS_NONE 3       /* of open(2): neither reading nor writing, but ioctls */

/* A part of the image that the program has mapped; bytes. */
struct run_view {
  uint64_t from, to;
};

/* Never freed: there are few. */
struct run_image {
  struct run_image *next;
  dev_t dev;
  ino_t ino;
  char *path;                   /* absolute */
  char *snapshot;               /* NULL: the head */
  unsigned handles;             /* open file descriptions of the program in this process */

  pthread_rwlock_t use;         /* all below */
  pcow_image *image;            /* NULL: not open, or it was by the process that this one was forked from */
  bool writable;
  uint64_t size;
  pcow_mapping *map;
  bool store;                   /* the map is store-durable */
  bool fixed;                   /* it lies where the program reserved memory for it */
  uint8_t *_Atomic base;        /* NULL: not mapped; this and the next are looked at without the lock, too */
  _Atomic uint64_t reserve;
  struct run_view *views;
  unsigned view_count, view_room;
};

/* An open file description. */
struct run_handle {
  struct run_image *image;
  unsigned uses;                /* descriptors, and calls that run */
  bool readable, writable;
  int shown;                    /* O_DIRECT, O_NONBLOCK, as far as F_GETFL says */
  bool append, sync;            /* O_APPEND; O_SYNC or O_DSYNC */
  bool elsewhere;               /* the placeholder is not the image file, which may not be written */
  pthread_mutex_t position;
};

extern pthread_mutex_t run_structure;

/* ---- real.c: descriptors of the libpcow in here ---- */

bool run_own_fd(int fd);
int run_own_next(int fd);       /* the first from FD on, or RUN_FD_MOST */
void run_own_close_all(void);

/* ---- table.c ---- */

/* The handle of a descriptor of an image, to be put back; else NULL, at the cost of a load. */
struct run_handle *run_table_get(int fd);
bool run_table_is(int fd);
/* As far as is known without asking the kernel. */
bool run_table_has(int fd);
/* The file is closed with the last use; -errno when that fails, after a sentence. */
int run_table_put(struct run_handle *handle);
/* FD is a descriptor of HANDLE now (or again, after dup). */
void run_table_set(int fd, struct run_handle *handle);
/* FD is none any more: to be called before it is closed. As run_table_put(). */
int run_table_clear(int fd);
/* The first descriptor of an image from FD on, or RUN_FD_MOST. */
int run_table_next(int fd);
struct run_handle *run_handle_new(struct run_image *image, bool readable, bool writable);
/* The calling process is the one that the table is of, and not a child that shares its memory (vfork). */
bool run_own_process(void);
void run_table_begin(void);
void run_table_forking(void);
void run_table_forked(bool child);

/* ---- image.c ---- */

/* What open(2) would open is an image that is to be served: its file, open for reading. -1: it is not. */
int run_probe(int dirfd, const char *path, int flags);
/* The image of an open file; NULL: cannot be told. run_structure is held. */
struct run_image *run_image_find(int fd);
/* One more open file description. -errno after a sentence on stderr; -EMEDIUMTYPE: it is no image after all.
 * run_structure is held. */
int run_image_open(struct run_image *image, bool writable);
/* Until it is used again it need not be open any more, unless it is mapped, or (not USED) was open before. */
int run_image_park(struct run_image *image, bool used);
/* One more, of an image that is opened when it is used. */
void run_image_adopt(struct run_image *image);
/* One less. */
int run_image_close(struct run_image *image);
/* Opens the libpcow image if need be, and holds it; 0 or -errno after a sentence. */
int run_image_begin(struct run_image *image, bool writable);
void run_image_end(struct run_image *image);
/* With run_structure held: it is open, and nobody uses it until run_image_unlock(). */
int run_image_lock(struct run_image *image, bool writable);
void run_image_unlock(struct run_image *image);
/* Closes the libpcow image when nothing of the program is open or mapped; both locks are held. */
int run_image_idle(struct run_image *image);
struct run_image *run_images(void);
/* What PATH leads to, of which stat(2) said the rest, is an image: its virtual size. */
bool run_image_size_at(int dirfd, const char *path, int flags, dev_t dev, ino_t ino, off_t file_size,
                       uint64_t *size);
/* Of an image with a descriptor; 0 or -errno. */
int run_image_size(struct run_image *image, uint64_t *size);
/* fstat(2) of it. */
int run_image_stat(struct run_handle *handle, int fd, struct stat *st);

/* ---- settings.c ---- */

enum run_durability { RUN_AUTO, RUN_FLUSH, RUN_STORE };

struct run_settings {
  enum run_durability durability;
  bool any_base;
  char *base_dir;
  char **images;                /* NULL: all. FILE, or FILE and a tab and the snapshot's name */
};

const struct run_settings *run_settings(void);
/* The image file at PATH is served; its snapshot, or NULL. */
bool run_settings_serve(const char *path, const char **snapshot);

/* "pcow-run: …" on stderr, one line. errno stays. */
void run_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same with libpcow's message; returns ERROR. */
int run_complain_library(int error);

/* ---- content.c: 0, a count, or -errno ---- */

ssize_t run_content_read(struct run_handle *handle, void *buffer, size_t count, off_t offset);
ssize_t run_content_write(struct run_handle *handle, const void *buffer, size_t count, off_t offset);
int run_content_sync(struct run_handle *handle);
int run_content_sync_image(struct run_image *image);
off_t run_content_seek(struct run_handle *handle, off_t offset, bool data);
int run_content_truncate(struct run_handle *handle, off_t size);
int run_content_allocate(struct run_handle *handle, int mode, off_t offset, off_t length);
/* O_TRUNC: all of it reads as zeros. */
int run_content_clear(struct run_image *image);

/* ---- maps.c ---- */

/* True: somewhere an image is mapped, so that calls about memory have to be looked at. */
bool run_maps_any(void);
/* True: something of an image is mapped in [address, address + length). Takes no lock: an allocator that works
 * for libpcow, in the middle of a call or on a thread of its own, and a signal handler may come here. */
bool run_maps_touch(const void *address, size_t length);
void *run_maps_map(struct run_handle *handle, void *address, size_t length, int prot, int flags, off_t offset);
/* Something else is to be mapped at [address, address + length): the program gives up what it has of images
 * there. run_structure is held. */
int run_maps_replace(void *address, size_t length);
int run_maps_unmap(void *address, size_t length);
/* The image that ADDRESS lies in, and is held then; NULL: none. OFFSET in it, LENGTH is cut down to what lies in
 * it; or, when none is there, to what is free. */
struct run_image *run_maps_find(const void *address, size_t *length, uint64_t *offset);
int run_maps_resize(void *address, size_t old, size_t length);
/* Ends the map; the image is locked. -errno: what was stored could not be made durable, the map stays. */
int run_maps_end(struct run_image *image);
/* The map ended together with the libpcow image. */
void run_maps_forget(struct run_image *image);

/* ---- reserve.c: memory that the program reserved, and that nothing else is in ---- */

#define RUN_ALIGNMENT ((size_t)2 << 20) /* that libpcow wants of an address */

/* mmap(2) of memory without access, not at an address that must be. While there are images it is aligned for
 * them: a program that maps a file into what it reserved, as QEMU does, aligns it for pages of 4096 bytes. */
void *run_reserve(void *address, size_t length, int flags);
void run_reserve_keep(const void *address, size_t length);
/* The program unmaps it, or maps something there. */
void run_reserve_drop(const void *address, size_t length);
bool run_reserve_has(const void *address, size_t length);
/* An image that was there is gone: what the program has no more is unmapped, the rest is as it is. */
void run_reserve_release(void *address, size_t length);
void run_reserve_forked(void);

/* ---- direct.c ---- */

/* To read from FD, which is of no image, into VEC is for run_direct_read(); errno stays. */
bool run_direct(int fd, const struct iovec *vec, int count);
/* As preadv2(2). */
ssize_t run_direct_read(int fd, const struct iovec *vec, int count, off_t offset, int flags);

/* ---- life.c: fork, exec, exit ---- */

/* All that was written is made durable: the process is about to be another program. */
void run_life_exec(void);
/* All images are closed: the process ends. */
void run_life_exit(void);

/* ---- calls-*.c ---- */

int run_open(int dirfd, const char *path, int flags, mode_t mode);
int run_close(int fd);
ssize_t run_read(int fd, void *buffer, size_t count);
ssize_t run_write(int fd, const void *buffer, size_t count);
off_t run_lseek(int fd, off_t offset, int whence);

int run_fcntl(int fd, int command, void *argument);
void run_stdio_forked(void);
void run_stdio_adopt(void);     /* standard input and output are images */
void run_open_adopt(int fd);    /* FD came through exec: it is a placeholder, if its access mode says so */

/* -errno becomes what libc gives. */
long run_result(long result);

#endif
