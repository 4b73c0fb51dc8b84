/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The corpus of hostile images: CRAFT(name, what it attacks, { how it is made }), and those that the
 * fuzzer found. Included by craft.c more than once.
 */

/* ---- Superblock ---- */
CRAFT(plain, "nothing: it is whole, and everything is tried on it", { plain(16); })
CRAFT(plain_large_unit, "nothing: it is whole, with units of 64 GiB", { plain(36); })
CRAFT(plain_over_base, "nothing: it is whole, over another", { over(); })
CRAFT(unit_shift_63, "shifts by the unit size: 2^63 bytes", { plain(16); set(SHIFT, 63); })
CRAFT(unit_shift_64, "shifts by the width of a word, which C leaves open", { plain(16); set(SHIFT, 64); })
CRAFT(unit_shift_15, "a unit with less than 16 pages", { plain(16); set(SHIFT, 15); })
CRAFT(unit_shift_0, "a unit smaller than a page", { plain(16); set(SHIFT, 0); })
CRAFT(size_max, "virtual size 2^64 - 4096", { plain(16); size(UINT64_MAX - 4095); })
CRAFT(size_zero, "virtual size 0: no first page", { plain(16); size(0); })
CRAFT(size_odd, "a virtual size that is no multiple of a page", { plain(16); size(0x30001); })
CRAFT(size_2_60, "2^60 bytes in a file of a few blocks: whoever goes page by page never ends",
      { plain(36); size(UINT64_C(1) << 60); set(FLOOR, 0); })
CRAFT(size_2_40_small_units, "2^24 units of 64 KiB in a file of a few blocks: whoever goes unit by unit takes minutes",
      { plain(16); size(UINT64_C(1) << 40); })
CRAFT(size_2_60_over_base, "2^60 bytes over a base that is seen up to the end", {
  over();
  set(SHIFT, 36);
  set(SLOTS, 0);
  set(MAP, 8, 0);
  set(MAP + 8, 8, 0);
  size(UINT64_C(1) << 60);
  set(FLOOR, UINT64_C(1) << 60);
  put(b, SIZE, UINT64_C(1) << 40);
})
CRAFT(one_unit_too_many, "2^24 units and a page", { plain(16); size((UINT64_C(1) << 40) + 4096); })
CRAFT(floor_above_size, "the head's floor above its size", { plain(16); set(FLOOR, 0x40000); })
CRAFT(head_is_its_parent, "an epoch that is its own parent", { plain(16); set(PARENT, 3); })
CRAFT(head_zero, "head epoch 0", { plain(16); set(HEAD, 0); })
CRAFT(head_has_record, "a head that is a snapshot at the same time", { plain(16); set(HEAD, 2); set(PARENT, 1); })
CRAFT(parent_missing, "a parent of the head that does not exist", { plain(16); set(PARENT, 1); record(a, 0, 2, 0, 1, "x"); })
CRAFT(next_epoch_max, "the last epoch id: the next snapshot has none", {
  plain(16);
  set(NEXT, 0xffffffff);
  set(HEAD, 0xfffffffe);
  slot(a, 3, 0, 0xfffffffe, 2, 3);
})
CRAFT(next_epoch_zero, "next epoch 0: nothing is below it", { plain(16); set(NEXT, 0); })
CRAFT(sequence_max, "sequence 2^64 - 1: the next commit would begin again at 0", { plain(16); set(SEQUENCE, UINT64_MAX); })
CRAFT(sequence_last, "the last sequence: no commit can follow", { plain(16); set(SEQUENCE, (UINT64_C(1) << 63) - 1); })
CRAFT(sequence_2_63, "the first sequence that is too large", { plain(16); set(SEQUENCE, UINT64_C(1) << 63); })
CRAFT(copies_differ, "two valid copies with the same sequence and different content", {
  plain(16);
  a->flags = FILE_OWN_COPY;
  for (unsigned i = 0; i < 136; i += 8)
    set(0x100000 + i, 8, input_get(a, i, 8));
  set(0x100000 + 128, 8, 3);
})
CRAFT(copies_far_apart, "the older copy is 2^63 commits behind", {
  plain(16);
  a->flags = FILE_OWN_COPY;
  for (unsigned i = 0; i < 136; i += 8)
    set(0x100000 + i, 8, input_get(a, i, 8));
  set(SEQUENCE, UINT64_C(1) << 63);
})
CRAFT(no_second_copy, "the second copy of the superblock is a hole", { plain(16); a->flags = FILE_OWN_COPY; })
CRAFT(unknown_feature, "an incompatible feature", { plain(16); set(16, 8, 1); })
CRAFT(unknown_ro_feature, "a feature that forbids writing", { plain(16); set(24, 8, UINT64_C(1) << 63); })
CRAFT(version_2, "a later version", { plain(16); set(8, 4, 2); })
CRAFT(dirty, "a session that did not end: recovery", { plain(16); set(STATE, 1); })
CRAFT(dirty_sparse, "recovery of a sparse file with 2^36 slots", {
  plain(16);
  set(STATE, 1);
  set(SLOTS, UINT64_C(1) << 36);
  a->length = UINT64_C(1) << 60;
})

/* ---- Length of the file ---- */
CRAFT(cut_in_superblock, "a file that ends in the first superblock", { plain(16); a->length = 2000; })
CRAFT(cut_between_copies, "a file that ends before the second superblock", { plain(16); a->length = 0x80000; })
CRAFT(cut_in_log, "a file that ends in the epoch log", { plain(16); a->length = LOG + 300; set(SLOTS, 0); })
CRAFT(cut_in_map, "a file that ends in the unit map", { plain(16); a->length = MAP + 4; set(SLOTS, 0); })
CRAFT(cut_in_headers, "a file that ends in the slot headers", { plain(16); a->length = header_of(3) + 8; })
CRAFT(cut_in_bitmaps, "a file that ends in the bitmaps", { plain(16); a->length = bitmap_of(2); })
CRAFT(cut_in_data, "a file that ends one byte before the last slot does", { plain(16); a->length--; })
CRAFT(cut_no_slots, "map words and no slots: nothing behind the tables", { plain(16); set(SLOTS, 0); a->length = GROUPS; })

/* ---- Epoch log ---- */
CRAFT(log_in_hole, "2^20 records claimed, all in a hole", { plain(16); set(LOG_TO, 1 << 20); })
CRAFT(log_too_long, "more records than the ring has", { plain(16); set(LOG_TO, (1 << 20) + 1); })
CRAFT(log_backwards, "a log that ends before it begins", { plain(16); set(LOG_FROM, 3); })
CRAFT(log_wraps, "record numbers that wrap around 2^64", {
  plain(16);
  set(LOG_FROM, UINT64_MAX - 1);
  set(LOG_TO, 1);
})
CRAFT(log_at_the_end, "record numbers up to the largest: one more wraps", {
  plain(16);
  record(a, UINT64_MAX - 2, 1, 0, 1, "one");
  record(a, UINT64_MAX - 1, 2, 1, 1, "two");
  set(LOG_FROM, UINT64_MAX - 2);
  set(LOG_TO, UINT64_MAX);
})
CRAFT(record_number, "a record of another round of the ring", { plain(16); set(LOG + 512 + 320, 8, 1 + (1 << 20)); })
CRAFT(parents_in_a_circle, "epochs that are each other's ancestors", {
  plain(16);
  record(a, 0, 1, 2, 1, "one");
})
CRAFT(circle_beside_the_tree, "a circle of epochs that the head does not reach, and one root", {
  plain(16);
  set(NEXT, 8);
  record(a, 2, 5, 6, 1, "five");
  record(a, 3, 6, 5, 1, "six");
  set(LOG_TO, 4);
})
CRAFT(two_roots, "two epochs without a parent", { plain(16); record(a, 1, 2, 0, 1, "two"); })
CRAFT(same_names, "two snapshots with one name", { plain(16); record(a, 1, 2, 1, 1, "one"); })
CRAFT(name_at, "a name with @, which separates it from the file's", { plain(16); record(a, 1, 2, 1, 1, "t@o"); })
CRAFT(name_control, "a name that moves a terminal's cursor", { plain(16); record(a, 1, 2, 1, 1, "\x1b[2J\r\n"); })
CRAFT(name_not_utf8, "a name that is not UTF-8", { plain(16); record(a, 1, 2, 1, 1, "\xff\xfe"); })
CRAFT(name_long, "a name longer than its field", { plain(16); set(LOG + 44, 4, 300); })
CRAFT(name_longest, "a name length of 2^32 - 1", { plain(16); set(LOG + 44, 4, 0xffffffff); })
CRAFT(name_empty, "a snapshot without a name", { plain(16); set(LOG + 44, 4, 0); })
CRAFT(name_zero_byte, "a name with a zero byte in it", { plain(16); set(LOG + 44, 4, 9); })
CRAFT(snapshot_size_max, "a snapshot of 2^64 - 4096 bytes", { plain(16); set(LOG + 48, 8, UINT64_MAX - 4095); })
CRAFT(snapshot_floor, "a snapshot's floor above its size", { plain(16); set(LOG + 56, 8, 0x40000); })
CRAFT(snapshot_larger, "a snapshot much larger than the head", {
  plain(16);
  set(LOG + 48, 8, UINT64_C(1) << 40);
  set(LOG + 56, 8, UINT64_C(1) << 40);
})
CRAFT(snapshot_2_60, "a snapshot of 2^60 bytes that a small one is compared with", {
  plain(36);
  set(LOG + 48, 8, UINT64_C(1) << 60);
  set(LOG + 56, 8, UINT64_C(1) << 60);
})
CRAFT(state_unknown, "an epoch in a state that does not exist", { plain(16); set(LOG + 12, 4, 9); })
CRAFT(parent_gone, "a parent that is gone", { plain(16); record(a, 2, 1, 0, 3, ""); set(LOG_TO, 3); })
CRAFT(deleted_chain, "deleted epochs to be collected, with slots that do not fit", {
  plain(16);
  record(a, 0, 1, 0, 2, "");
  record(a, 1, 2, 1, 2, "");
})

/* ---- Map and chains ---- */
CRAFT(map_word_slot_0, "a reference to no slot with other bits set", { plain(16); set(MAP, 8, 1); })
CRAFT(map_word_device, "a reference to another device", { plain(16); set(MAP, 8, (3 << 8) | 1); })
CRAFT(map_word_reserved, "a reference with reserved bits", { plain(16); set(MAP, 8, (UINT64_C(1) << 56) | 3 << 8); })
CRAFT(map_word_48_bits, "slot 2^48 - 1: its offset does not fit into 64 bits", { plain(16); set(MAP, 8, ((UINT64_C(1) << 48) - 1) << 8); })
CRAFT(map_word_beyond_mark, "one slot beyond the high-water mark", { plain(16); set(MAP, 8, 9 << 8); })
CRAFT(map_beyond_size, "a chain of a unit beyond the size that cannot be read", { plain(16); set(MAP + 8 * 1000, 8, 7 << 8); })
CRAFT(map_last_word, "the last word of the map", {
  plain(16);
  set(MAP + 8 * 0xffffff, 8, 5 << 8);
  slot(a, 5, 0xffffff, 3, 0, 0xffff);
})
CRAFT(chain_to_itself, "a slot that is its own predecessor", { plain(16); set(header_of(3) + 24, 8, 3 << 8); })
CRAFT(chain_in_a_circle, "the oldest slot leads back to the newest", { plain(16); set(header_of(1) + 24, 8, 3 << 8); })
CRAFT(chain_of_two_in_a_circle, "two slots that follow each other", { plain(16); set(header_of(2) + 24, 8, 3 << 8); })
CRAFT(chain_into_another_unit, "a chain that goes on in another unit's", { plain(16); set(header_of(1) + 24, 8, 4 << 8); })
CRAFT(two_units_one_slot, "one slot in the chains of two units", { plain(16); set(MAP + 8, 8, 3 << 8); })
CRAFT(previous_beyond_mark, "a predecessor beyond the high-water mark", { plain(16); set(header_of(1) + 24, 8, 9 << 8); })
CRAFT(previous_48_bits, "predecessor 2^48 - 1", { plain(16); set(header_of(1) + 24, 8, ((UINT64_C(1) << 48) - 1) << 8); })
CRAFT(two_slots_of_an_epoch, "two slots of one epoch in a chain", { plain(16); set(header_of(2) + 16, 4, 3); })
CRAFT(ancestor_first, "an ancestor's slot before its descendant's", {
  plain(16);
  set(header_of(3) + 16, 4, 1);
  set(header_of(1) + 16, 4, 3);
})
CRAFT(slot_of_epoch_0, "a slot of epoch 0", { plain(16); set(header_of(3) + 16, 4, 0); })
CRAFT(slot_of_the_future, "a slot of an epoch that does not exist yet", { plain(16); set(header_of(3) + 16, 4, 4); })
CRAFT(slot_of_nobody, "garbage in a chain, to be collected", { plain(16); set(NEXT, 9); set(header_of(2) + 16, 4, 7); })
CRAFT(slot_in_hole, "a slot whose header is a hole", { plain(16); set(MAP, 8, 7 << 8); })
CRAFT(unit_48_bits, "a header whose unit is 2^48", { plain(16); set(header_of(3) + 8, 8, UINT64_C(1) << 48); })
CRAFT(slots_at_the_limit, "as many slots as the format has, in a file of 2^62 bytes", {
  plain(16);
  set(SLOTS, (((UINT64_C(1) << 62) - 0x40000000) / 0x100480000) * 65536);
  a->length = UINT64_C(1) << 62;
})
CRAFT(slots_beyond_the_limit, "one slot more: offsets beyond 2^62", {
  plain(16);
  set(SLOTS, (((UINT64_C(1) << 62) - 0x40000000) / 0x100480000) * 65536 + 1);
  a->length = UINT64_C(1) << 62;
})
CRAFT(slots_2_40, "2^40 slots in a sparse file: a bit for each is 128 GiB of memory", {
  plain(16);
  set(SLOTS, UINT64_C(1) << 40);
  a->length = UINT64_C(1) << 61;
})
CRAFT(slots_max, "2^64 - 1 slots", { plain(16); set(SLOTS, UINT64_MAX); })
CRAFT(far_slot, "a slot in the last group of 2^62 bytes", {
  uint64_t last = (((UINT64_C(1) << 62) - 0x40000000) / 0x100480000) * 65536;

  plain(16);
  set(SLOTS, last);
  a->length = UINT64_C(1) << 62;
  slot(a, last, 2, 3, 0, 0xffff);
  set(MAP + 16, 8, last << 8);
})

/* ---- Bitmaps ---- */
CRAFT(bits_beyond_unit, "bits beyond the unit's 16 pages", { plain(16); set(bitmap_of(3), 8, UINT64_MAX); })
CRAFT(bits_beyond_size, "present pages beyond the virtual size", {
  plain(16);
  size(0x11000);
  set(FLOOR, 0x11000);
  set(bitmap_of(4), 8, 0xffff);
})
CRAFT(bits_over_holes, "64 GiB of present pages that are all holes", {
  plain(36);
  for (unsigned i = 0; i < 64; i++)
    set(bitmap_of(3) + 8 * i, 8, UINT64_MAX);
})
CRAFT(bits_every_other, "every other page: as many runs as there are pages", {
  plain(21);
  for (unsigned i = 0; i < 8; i++)
    set(bitmap_of(3) + 8 * i, 8, UINT64_C(0x5555555555555555));
})

CRAFT(bitmaps_many, "slots of 1000 units of 64 GiB: a header of 64 bytes stands for 2 MiB of bitmap", {
  static uint8_t headers[1000][64];

  plain(36);
  size(UINT64_C(1010) << 36);
  set(FLOOR, UINT64_C(1010) << 36);
  set(SLOTS, 1010);
  a->length = data_of(1010) + (UINT64_C(1) << 36);
  for (unsigned i = 0; i < 1000; i++) {
    memcpy(headers[i], "SLOT", 4);
    memcpy(headers[i] + 8, &(uint16_t){ (uint16_t)(5 + i) }, 2);
    headers[i][16] = 3;
  }
  CHECK(input_add(&in, a, header_of(9), headers, 64 * 500) && input_add(&in, a, header_of(509), headers[500], 64 * 500),
        "an input is too large");
  for (unsigned i = 0; i < 1000; i++)
    memcpy(headers[i / 8] + i % 8 * 8, &(uint64_t){ (uint64_t)(9 + i) << 8 }, 8);
  CHECK(input_add(&in, a, MAP + 8 * 5, headers, 8000), "an input is too large");
  put_op(OP_INFO, 0, 0);
  put_op(OP_RESIZE, 3, 2);      /* goes through all of the head's units */
})

/* ---- Base ---- */
CRAFT(base_format, "a base in a format that does not exist", { plain(16); base(a, 7, "b"); })
CRAFT(base_path_length, "a base path of 2^32 - 1 bytes", { over(); set(348, 4, 0xffffffff); })
CRAFT(base_path_empty, "a base path of no bytes", { over(); set(348, 4, 0); })
CRAFT(base_path_zero_byte, "a base path with a zero byte", { over(); set(348, 4, 2); })
CRAFT(base_path_rest, "bytes behind the base path", { over(); set(360, 8, 1); })
CRAFT(base_missing, "a base that does not exist", { over(); base(a, 1, "x"); })
CRAFT(base_outside, "a base outside the image's directory", { over(); base(a, 2, "../../etc/passwd"); })
CRAFT(base_absolute, "an absolute base path", { over(); base(a, 2, "/etc/passwd"); })
CRAFT(base_directory, "a directory as the base", { over(); base(a, 2, "."); })
CRAFT(base_itself, "an image that is its own base", { over(); base(a, 1, "a"); })
CRAFT(base_itself_raw, "an image that is its own raw base", { over(); base(a, 2, "./a"); })
CRAFT(base_circle, "two images that are each other's base", {
  over();
  base(b, 1, "a");
  put(b, 264, 8, input_get(a, 40, 8));
  put(b, 296, 8, 1);
  put(b, 304, 8, 99);
})
CRAFT(base_other_uuid, "a base that is another image", { over(); set(264, 8, 5); })
CRAFT(base_other_tag, "a base that was changed", { over(); set(304, 8, 98); })
CRAFT(base_no_tag, "a base at its head without a tag", { over(); set(304, 8, 0); put(b, 72, 8, 0); })
CRAFT(base_epoch, "a base at an epoch that it does not have", { over(); set(260, 4, 9); })
CRAFT(base_epoch_max, "a base at epoch 2^32 - 1", { over(); set(260, 4, 0xffffffff); })
CRAFT(base_raw_size, "a raw base of 2^64 - 1 bytes", { over(); base(a, 2, "b"); set(328, 8, UINT64_MAX); })
CRAFT(base_raw_sparse, "a raw base of 2^62 bytes, all holes", {
  over();
  base(a, 2, "b");
  *b = (struct input_file){ .flags = FILE_PLAIN, .length = UINT64_C(1) << 62 };
  set(328, 8, UINT64_C(1) << 62);
  set(336, 8, 1000000000);
})
CRAFT(base_damaged, "a base whose chain runs in a circle", { over(); put(b, header_of(1) + 24, 8, 1 << 8); })
CRAFT(base_larger, "a base larger than the image", { over(); put(b, SIZE, UINT64_C(1) << 40); })

/* ---- Found by the fuzzer ---- */
FOUND(found_discard_by_unit, "a discard of 4 TiB in which nothing is: went through it unit by unit")
FOUND(found_extents_by_unit, "a large image with something pending in its head: extents went through it piece by piece")
FOUND(found_map_by_unit, "a read-only map of a large empty image: resolved every unit")
FOUND(found_rebase_by_unit, "small units over a base with one page in a unit of 64 GiB: compared all of them")
FOUND(found_store_sigbus, "a damaged chain beyond the size of a mapped image: the first store got SIGBUS")
FOUND(found_bad_first_reference, "a map word that leads nowhere: the repair of an empty chain counted from a null pointer")
