/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The pcow image format, version 1: every struct and constant that lies on the media, and nothing
 * else. docs/format.md is its normative text and changes in the same commit. All integers are
 * little-endian; the wrapper types make an unconverted read a compile error. Offsets are pinned here
 * by static asserts and once more, with literals, by tests/test-format.c.
 */
#ifndef PCOW_FORMAT_H
#define PCOW_FORMAT_H

#include <assert.h>
#include <endian.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { uint32_t raw; } le32;
typedef struct { uint64_t raw; } le64;

static inline uint32_t le32_get(le32 v) { return le32toh(v.raw); }
static inline uint64_t le64_get(le64 v) { return le64toh(v.raw); }
static inline le32 le32_make(uint32_t v) { return (le32){ htole32(v) }; }
static inline le64 le64_make(uint64_t v) { return (le64){ htole64(v) }; }

#define PCOW_MAGIC "PCOW\r\n\x1a\n"     /* 8 bytes, no terminator on the media */
#define PCOW_FORMAT_VERSION 1u

#define PAGE_SHIFT 12
#define PAGE_BYTES 4096u
#define UNIT_SHIFT_MIN 16               /* 64 KiB */
#define UNIT_SHIFT_MAX 36               /* 64 GiB */
#define UNIT_SHIFT_DEFAULT 27           /* 128 MiB */
#define UNITS_MAX (UINT64_C(1) << 24)
#define UNITS_DEFAULT_MAX 8192u         /* the default unit grows beyond this many */

/* Where things lie. The table regions are address space only: the file is sparse. */
#define SUPERBLOCK_BYTES 4096u
#define SUPERBLOCK_OFFSET(n) ((uint64_t)(n) << 20)   /* n is 0 or 1: never in one block of a device */
#define EPOCH_LOG_OFFSET UINT64_C(0x00200000)                       /* 2 MiB */
#define EPOCH_LOG_RECORDS (UINT64_C(1) << 20)
#define UNIT_MAP_OFFSET UINT64_C(0x30000000)                        /* 768 MiB */
#define SLOT_GROUPS_OFFSET UINT64_C(0x40000000)                     /* 1 GiB */
#define SLOTS_PER_GROUP (UINT64_C(1) << 16)

/* Feature bits. Unknown incompatible bits: the image is refused; unknown read-only-compatible
 * bits: it is refused for writing. */
#define FEATURE_INCOMPAT_DEVICES (UINT64_C(1) << 0)   /* slot references with device != 0; reserved */
#define FEATURE_INCOMPAT_KNOWN UINT64_C(0)
#define FEATURE_RO_COMPAT_KNOWN UINT64_C(0)

#define BASE_PATH_MAX 1023
#define SNAPSHOT_NAME_MAX 255
#define CHAIN_DEPTH_MAX 1024            /* layers beneath an image that a reader must accept */

/* A content tag names one content of a head: a counter for people, random bits against two
 * copies of one image that went different ways. All zero: no tag. */
struct pcow_disk_tag {
  le64 counter;
  le64 random;
};

enum base_format { BASE_NONE = 0, BASE_PCOW = 1, BASE_RAW = 2 };

/* The base reference; it belongs to the root epoch. */
struct pcow_disk_base {
  le32 format;                  /* enum base_format */
  le32 epoch;                   /* BASE_PCOW: the snapshot's epoch, 0 for the base's head */
  uint8_t uuid[16];             /* BASE_PCOW */
  uint8_t guid[16];             /* BASE_PCOW at a snapshot: the snapshot's GUID */
  struct pcow_disk_tag tag;     /* BASE_PCOW at its head: the content that this image was made over */
  struct pcow_disk_tag accept;  /* a second tag that is accepted while a commit into the base runs; not
                                   zero over BASE_RAW: raw_size and raw_mtime do not count meanwhile */
  le64 raw_size;                /* BASE_RAW: bytes */
  le64 raw_mtime_sec;           /* BASE_RAW: two's complement */
  le32 raw_mtime_nsec;
  le32 path_length;             /* bytes, without terminator */
  char path[1024];              /* relative to the directory of the image unless it begins with '/' */
};

#define SUPERBLOCK_DIRTY 1u     /* a writing session is open, or ended without a clean close */

struct pcow_disk_superblock {
  uint8_t magic[8];
  le32 version;
  le32 unit_shift;
  le64 incompat;
  le64 ro_compat;
  le64 compat;
  uint8_t uuid[16];
  le64 sequence;                /* counts commits */
  struct pcow_disk_tag tag;     /* content tag of the head */
  le64 virtual_size;            /* of the head, bytes */
  le64 head_floor;              /* smallest size that the head epoch ever had, bytes */
  le32 head_epoch;
  le32 head_parent;             /* 0: the head is the root epoch */
  le32 next_epoch;              /* smallest id never used */
  le32 state;                   /* SUPERBLOCK_DIRTY */
  le64 log_start;               /* living records have numbers in [log_start, log_end) */
  le64 log_end;
  le64 slot_count;              /* high-water mark: slots 1 … slot_count may have been used */
  uint8_t reserved0[120];
  struct pcow_disk_base base;   /* at 256 */
  uint8_t reserved1[4096 - 256 - 1120 - 4];
  le32 crc;                     /* CRC32C of bytes 0 … 4091 */
};

enum epoch_state { EPOCH_SNAPSHOT = 1, EPOCH_DELETED = 2, EPOCH_GONE = 3 };
#define EPOCH_MAGIC 0x48435045u         /* "EPCH" */
#define EPOCH_ID_MAX UINT32_C(0xfffffffe)
#define SEQUENCE_MAX ((UINT64_C(1) << 63) - 1)

struct pcow_disk_epoch {
  le32 magic;
  le32 id;
  le32 parent;                  /* 0: this is the root epoch */
  le32 state;                   /* enum epoch_state */
  uint8_t guid[16];
  le64 created_sec;
  le32 created_nsec;
  le32 name_length;
  le64 virtual_size;            /* bytes */
  le64 floor;                   /* bytes */
  char name[256];               /* UTF-8, no terminator, zero-padded */
  le64 number;                  /* the record's number; it lies at number mod EPOCH_LOG_RECORDS */
  uint8_t reserved[512 - 328 - 4];
  le32 crc;                     /* CRC32C of bytes 0 … 507 */
};

/* A slot reference, as in the unit map and in a header's previous slot. 0: none.
 * bits 0-7 device (0: the image itself), 8-55 index (from 1), 56-63 reserved (0). */
#define SLOT_REF_INDEX(word) (((word) >> 8) & ((UINT64_C(1) << 48) - 1))
#define SLOT_REF(index) ((uint64_t)(index) << 8)
#define SLOT_REF_VALID(word) ((((word) >> 56) | ((word) & 0xff)) == 0)

#define SLOT_MAGIC 0x544f4c53u          /* "SLOT" */

/* The owner word {epoch, crc} is one aligned 8-byte word, so that a slot changes its epoch with one
 * store when a deleted epoch is merged into its heir. The CRC covers struct slot_identity. */
struct pcow_disk_slot {
  le32 magic;
  le32 reserved0;
  le64 unit;
  le32 epoch;
  le32 crc;                     /* CRC32C of struct pcow_disk_slot_identity */
  le64 previous;                /* slot reference; the next older slot of this unit */
  uint8_t reserved1[32];
};

struct pcow_disk_slot_identity {
  le32 magic;
  le32 reserved0;
  le64 unit;
  le32 epoch;
  le32 zero;
  le64 index;                   /* the slot's own index: a header copied elsewhere is not valid */
};

/* Lock bytes (byte-range OFD locks; the bytes are never written and may lie beyond the end). */
#define LOCK_HEAD (UINT64_C(1) << 62)           /* writer of the head: exclusive; reader: shared */
#define LOCK_WALK (LOCK_HEAD + 1)               /* walking chains: shared; collecting: exclusive */
#define LOCK_EPOCH(id) (LOCK_HEAD + (UINT64_C(1) << 32) + (uint64_t)(id)) /* reader: shared; deleting: exclusive */

static_assert(sizeof(struct pcow_disk_tag) == 16, "format");
static_assert(sizeof(struct pcow_disk_base) == 1120, "format");
static_assert(offsetof(struct pcow_disk_base, path) == 96, "format");
static_assert(sizeof(struct pcow_disk_superblock) == SUPERBLOCK_BYTES, "format");
static_assert(offsetof(struct pcow_disk_superblock, sequence) == 56, "format");
static_assert(offsetof(struct pcow_disk_superblock, slot_count) == 128, "format");
static_assert(offsetof(struct pcow_disk_superblock, base) == 256, "format");
static_assert(offsetof(struct pcow_disk_superblock, crc) == 4092, "format");
static_assert(sizeof(struct pcow_disk_epoch) == 512, "format");
static_assert(offsetof(struct pcow_disk_epoch, name) == 64, "format");
static_assert(offsetof(struct pcow_disk_epoch, number) == 320, "format");
static_assert(offsetof(struct pcow_disk_epoch, crc) == 508, "format");
static_assert(sizeof(struct pcow_disk_slot) == 64, "format");
static_assert(offsetof(struct pcow_disk_slot, epoch) == 16, "format");
static_assert(offsetof(struct pcow_disk_slot, previous) == 24, "format");
static_assert(sizeof(struct pcow_disk_slot_identity) == 32, "format");
static_assert(EPOCH_LOG_OFFSET + EPOCH_LOG_RECORDS * sizeof(struct pcow_disk_epoch) <= UNIT_MAP_OFFSET,
              "format");
static_assert(UNIT_MAP_OFFSET + UNITS_MAX * 8 <= SLOT_GROUPS_OFFSET, "format");

#endif
