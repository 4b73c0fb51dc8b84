#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A disk of the guest writes into its persistent memory: the guest reads from it with O_DIRECT into DAX pages, and
# QEMU with O_DIRECT from its file, while the host takes snapshots and the guest stores and flushes all the time. What
# was acknowledged before a snapshot is in it, and what was acknowledged before a SIGKILL is there after the
# next boot.
#
#     test-dma.sh backend-nvdimm|backend-virtio [SNAPSHOTS]
#
# DMA names the static dma program. What could be lost is what arrives in a page that was pinned before the library
# replaced it. For that two things must happen while a read is under way:
#
# * The page is replaced. A snapshot alone does not: it makes the page read-only and the snapshot's, the head
#   shows it, too, and what arrives is in both, as if it had come earlier. Only when something stores to the page, or near enough to have
#   it copied along, does the head get a copy, without what has not arrived yet. So the guest's CPU stores
#   to every fourth page all the time. (A flush of a flush-durable map replaces the pages that it hands over,
#   and does not see what arrives after it in others.)
# * The read takes longer than that. So the disk's file is in a FUSE file system, of which a throttled
#   qemu-storage-daemon answers four requests a second: the kernel keeps the pages of an O_DIRECT read pinned
#   until it has the answer.

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
snapshots=${2:-12}
[ -x "${DMA:-}" ] || guest_skip "DMA does not name the dma program"
need_kind "$kind"
for program in debugfs qemu-storage-daemon fusermount3; do
  command -v "$program" >/dev/null || guest_skip "$program is not installed"
done
[ -c /dev/fuse ] || guest_skip "there is no /dev/fuse"

disk=$work/disk/slow
end_disk()
{
  [ ! -s "$work/disk.pid" ] || kill "$(cat "$work/disk.pid")"
  for _ in {1..50}; do
    mountpoint -q "$disk" || return 0
    sleep 0.1
  done
  fusermount3 -uz "$disk"
}
guest_at_exit end_disk

# slow_disk: $disk has the content of $work/content.
slow_disk()
{
  mkdir "${disk%/*}" && : >"$disk" || return 1
  qemu-storage-daemon --daemonize --pidfile "$work/disk.pid" \
    --blockdev "driver=file,node-name=content,filename=$work/content,read-only=on" \
    --object "throttle-group,id=slow,limits.iops-total=4" \
    --blockdev driver=throttle,node-name=slow,throttle-group=slow,file=content,read-only=on \
    --export "type=fuse,id=export,node-name=slow,mountpoint=$disk" >"$work/disk.err" 2>&1
}

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
begun=4

that "a golden image" golden "$kind" "$work/golden.pcow" 64
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"
that "a disk" "$DMA" disk "$work/content"
slow_disk || guest_skip "no FUSE: $(head -n 1 "$work/disk.err")"

# All blocks of the file are there before a disk writes to them: it is about content.
job vm 'dd if=/dev/zero of=/mnt/data/dma bs=1M count=4 conv=fsync 2>/dev/null || exit 111
exec dma run /mnt/data/dma /dev/vda'
kind_start "$kind" vm "$work/vm.pcow" -device virtio-blk-pci,drive=disk \
  -drive "if=none,id=disk,format=raw,readonly=on,cache=none,aio=threads,file=$disk"
that "the guest's disk writes to its persistent memory" guest_until vm 120 '^ACK 5$'
[ $failures -eq 0 ] || finish

# reads_direct PID: it has the disk open with O_DIRECT (040000 of the flags).
reads_direct()
{
  local fd
  for fd in /proc/"$1"/fd/*; do
    if [ "$(readlink "$fd")" = "$disk" ]; then
      (($(awk '$1 == "flags:" { print $2 }' "/proc/$1/fdinfo/${fd##*/}") & 040000)) && return 0
    fi
  done
  return 1
}
that "QEMU reads it with O_DIRECT" reads_direct "${guest_pid[vm]}"

declare -a acked newest
for ((n = 0; n < snapshots; n++)); do
  guest_until vm 60 "^ACK $(($(guest_acked vm) + 2))\$" >/dev/null
  acked[n]=$(guest_acked vm)
  that "snapshot $n is taken after step ${acked[n]}" qmp vm "pcow-snapshot-create={\"id\":\"pm\",\"name\":\"s$n\"}"
  newest[n]=$(($(guest_acked vm) + begun))
done
that "the guest went on after the last snapshot" guest_until vm 60 "^ACK $(($(guest_acked vm) + 6))\$"
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
