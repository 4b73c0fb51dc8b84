#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A disk of the guest writes into its persistent memory: the guest reads from it with O_DIRECT into DAX pages, and
# QEMU with O_DIRECT from its file, while the host takes snapshots and the guest flushes all the time. What was
# acknowledged before a snapshot is in it, and what was acknowledged before a SIGKILL is there after the
# next boot.
#
#     test-dma.sh backend-nvdimm|backend-virtio [SNAPSHOTS]
#
# DMA names the static dma program. The disk lies in PCOW_DISK_DIR (/var/tmp), where O_DIRECT has to mean something.

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
snapshots=${2:-12}
[ -x "${DMA:-}" ] || guest_skip "DMA does not name the dma program"
need_kind "$kind"
command -v debugfs >/dev/null || guest_skip "debugfs is not installed"
disks=$(mktemp -d "${PCOW_DISK_DIR:-/var/tmp}/pcow-dma.XXXXXX") || exit 1
trap 'guest_cleanup; rm -rf "$disks"' EXIT
[ "$(stat -f -c %T "$disks")" != tmpfs ] || guest_skip "$disks is on tmpfs, where O_DIRECT does not pin memory"

# job NAME COMMAND: boots with the file system at /mnt, and then does this.
job()
{
  local dir=$work/$1.files
  mkdir -p "$dir/bin"
  cp "$DMA" "$dir/bin/dma"
  cat >"$dir/job" <<END
until [ -b /dev/pmem0 ]; do usleep 50000; done
mount -t ext4 -o dax=always /dev/pmem0 /mnt || exit 110
$2
END
  guest_pack "$1" "$dir"
}

# What the guest may have begun when it was last heard of.
begun=8

that "a golden image" golden "$kind" "$work/golden.pcow" 64
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"
that "a disk" "$DMA" disk "$disks/disk"

# All blocks of the file are there before a disk writes to them: it is about content.
job vm 'dd if=/dev/zero of=/mnt/data/dma bs=1M count=16 conv=fsync 2>/dev/null || exit 111
exec dma run /mnt/data/dma /dev/vda'
kind_start "$kind" vm "$work/vm.pcow" -device virtio-blk-pci,drive=disk \
  -drive "if=none,id=disk,format=raw,readonly=on,cache=none,aio=threads,file=$disks/disk"
that "the guest's disk writes to its persistent memory" guest_until vm 120 '^ACK 99$'

# reads_direct PID: it has the disk open with O_DIRECT (040000 of the flags).
reads_direct()
{
  local fd
  for fd in /proc/"$1"/fd/*; do
    if [ "$(readlink "$fd")" = "$disks/disk" ]; then
      (($(awk '$1 == "flags:" { print $2 }' "/proc/$1/fdinfo/${fd##*/}") & 040000)) && return 0
    fi
  done
  return 1
}
that "QEMU reads it with O_DIRECT" reads_direct "${guest_pid[vm]}"

declare -a acked newest
for ((n = 0; n < snapshots; n++)); do
  acked[n]=$(guest_acked vm)
  that "snapshot $n is taken after step ${acked[n]}" qmp vm "pcow-snapshot-create={\"id\":\"pm\",\"name\":\"s$n\"}"
  newest[n]=$(($(guest_acked vm) + begun))
done
that "the guest went on after the last snapshot" guest_until vm 60 "^ACK $(($(guest_acked vm) + 40))\$"
guest_kill vm
last=$(guest_acked vm)
echo "# $last steps were acknowledged, the first snapshot was taken after ${acked[0]}"
that "the image is whole" "$PCOW_IMG" check -q "$work/vm.pcow"

for ((n = 0; n < snapshots; n++)); do
  that "snapshot $n opens" extract_fs "$kind" "$work/vm.pcow@s$n" "$work/s.raw"
  e2fsck -fp "$work/s.raw" >"$work/e2fsck" 2>&1
  that "step ${acked[n]} and all before it are in it" sh -c \
    "debugfs -R 'dump /data/dma $work/dma' '$work/s.raw' 2>/dev/null &&
     '$DMA' verify '$work/dma' ${acked[n]} ${newest[n]}"
  rm -f "$work/s.raw" "$work/dma"
done
job again "exec dma verify /mnt/data/dma $last $((last + begun))"
kind_start "$kind" again "$work/vm.pcow"
that "what was acknowledged is there after the next boot" guest_wait again 120
guest_console again | grep VERIFIED
finish
