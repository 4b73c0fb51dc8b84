#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Snapshots of a running guest's persistent memory while an application in it writes records: each snapshot
# opens, its file system needs a replay of the journal at most, every record acknowledged before is in it, none is torn.
# Prints the guest's longest pause between two acknowledged records.
#
#     test-live-snapshot.sh backend-nvdimm|backend-virtio [SNAPSHOTS]

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
snapshots=${2:-5}
need_kind "$kind"

# What e2fsck -fn says of a file system in which nothing is left to be repaired.
no_errors()
{
  cat "$1"
  grep -q '^Pass 5' "$1" && ! grep -Ev '^$|^(e2fsck|Pass [1-5][:A-D])|: [0-9]+/[0-9]+ files|WARNING: Filesystem still has errors' "$1"
}

that "a golden image" golden "$kind" "$work/golden.pcow" 192
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"
guest_job vm root <<'END'
exec record write /data/log 0 0
END
kind_start "$kind" vm "$work/vm.pcow"
that "the guest writes" guest_until vm 120 '^ACK 10$'

declare -a acked
for ((n = 0; n < snapshots; n++)); do
  acked[n]=$(guest_acked vm)
  that "snapshot $n is taken after record ${acked[n]}" qmp vm "pcow-snapshot-create={\"id\":\"pm\",\"name\":\"s$n\"}"
  sleep 0.3
done
that "the guest went on after the last snapshot" guest_until vm 30 "^ACK $(($(guest_acked vm) + 5))\$"
before=$(guest_console vm | awk '$1 == "PAUSE" { print $2 }' | tail -n 1)
guest_kill vm
echo "# longest pause between two acknowledged records: $before ms, with $snapshots snapshots; last record $(guest_acked vm)"
that "the image is whole" "$PCOW_IMG" check -q "$work/vm.pcow"

for ((n = 0; n < snapshots; n++)); do
  that "snapshot $n opens" extract_fs "$kind" "$work/vm.pcow@s$n" "$work/s.raw"
  e2fsck -y -E journal_only "$work/s.raw" >"$work/out" 2>&1
  # What the superblock counts is brought up to date at unmount only; a mount does not trust it.
  e2fsck -fn "$work/s.raw" 2>&1 | sed '/^Free \(blocks\|inodes\) count wrong (/,/^Fix/d' >"$work/found"
  that "its file system needs a replay of the journal at most" no_errors "$work/found"
  that "record ${acked[n]} and all before it are in it" sh -c \
    "debugfs -R 'dump /data/log $work/log' '$work/s.raw' 2>/dev/null && '$RECORD' verify '$work/log' ${acked[n]}"
  rm -f "$work/s.raw" "$work/log"
done
finish
