#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Flushes of a guest with virtio-pmem that fail. For lack of space: the VM stops, says so, and the flush is repeated at
# "cont"; the guest does not notice. For any other reason: the guest's fsync() fails.
# pcow_flush() is made to fail by a preloaded library, FAIL_FLUSH_LIBRARY.

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=backend-virtio
[ -e "${FAIL_FLUSH_LIBRARY:-}" ] || guest_skip "FAIL_FLUSH_LIBRARY names no library"
need_kind "$kind"

that "a golden image" golden "$kind" "$work/golden.pcow" 64
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"
guest_job vm <<'END2'
until [ -b /dev/pmem0 ]; do usleep 50000; done
mount -t ext4 -o dax=always /dev/pmem0 /mnt || exit 110
n=0
while dd if=/dev/zero of=/mnt/data/x bs=4096 count=4 conv=fsync 2>/run/dd; do
  echo "FLUSHED $n"
  n=$((n + 1))
done
grep -q 'Input/output error' /run/dd || { cat /run/dd; exit 111; }
echo "FSYNC failed"
END2
export FAIL_FLUSH=$work/errno
LD_PRELOAD=$FAIL_FLUSH_LIBRARY kind_start "$kind" vm "$work/vm.pcow"
that "the guest flushes" guest_until vm 120 '^FLUSHED 5$'
that "they are counted" sh -c "python3 '$guest_dir/qmp.py' '$work/vm.qmp' 'query-pcow={\"id\":\"pm\"}' |
  grep -q '\"flushes\": [1-9].*\"flushes-failed\": 0'"

echo 28 >"$FAIL_FLUSH.new" && mv "$FAIL_FLUSH.new" "$FAIL_FLUSH"
that "a flush without space stops the VM" qmp vm '?io-error'
before=$(guest_console vm | grep -c '^FLUSHED')
that "still none: it says so, and stops again" sh -c "python3 '$guest_dir/qmp.py' '$work/vm.qmp' cont '@PCOW_NOSPACE' \
  '?io-error' | grep -q '\"flush\": true'"
that "no flush was acknowledged meanwhile" test "$(guest_console vm | grep -c '^FLUSHED')" -eq "$before"
rm "$FAIL_FLUSH"
that "there is space again: cont" qmp vm cont '@RESUME' '?running'
that "the guest goes on" guest_until vm 60 "^FLUSHED $((before + 5))\$"

echo 5 >"$FAIL_FLUSH.new" && mv "$FAIL_FLUSH.new" "$FAIL_FLUSH"
that "an I/O error reaches the guest's fsync()" guest_until vm 60 '^FSYNC failed$'
that "and is its only failure" guest_wait vm 60
that "the host is told, too" grep -q 'a flush of the guest failed' "$work/vm.err"
finish
