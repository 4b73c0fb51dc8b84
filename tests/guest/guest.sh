# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the tests with guests share; sourced. A guest is a QEMU process under TCG with its console in $work/NAME.log
# and its monitor at $work/NAME.qmp. All guests die with the test.
#
# PCOW_IMG names pcow-img, RECORD the static record program, QEMU the emulator (Debian's by default).

set -u
export LC_ALL=C PMEM_IS_PMEM_FORCE=1
PATH=$PATH:/usr/sbin:/sbin

guest_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=qemu.sh
. "$guest_dir/qemu.sh"
QEMU=${QEMU:-qemu-system-x86_64}

guest_skip()
{
  echo "SKIP: $*"
  exit 77
}

fail()
{
  echo "not ok - $*"
  failures=$((failures + 1))
}

ok()
{
  echo "ok - $*"
}

# that NAME COMMAND…: one check.
that()
{
  local name=$1
  shift
  if "$@" >"$work/out" 2>&1; then ok "$name"; else
    fail "$name ($*)"
    tail -n 30 "$work/out" | sed 's/^/# /'
  fi
}

for program in "$QEMU" mke2fs python3; do
  command -v "$program" >/dev/null || guest_skip "$program is not installed"
done
[ -x "${PCOW_IMG:-}" ] || guest_skip "PCOW_IMG does not name pcow-img"
[ -x "${RECORD:-}" ] || guest_skip "RECORD does not name the record program"

# A guest on a busy machine may get no time for seconds: nothing that a kernel should complain of, or die of.
guest_patience='no_timer_check nowatchdog tsc=reliable rcupdate.rcu_cpu_stall_suppress=1'

failures=0
declare -A guest_pid=()

guest=$("$guest_dir/make-guest" --kernel "${PCOW_GUEST_KERNEL:-6.1}") || { echo "$guest"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/dev/shm}/pcow-guest.XXXXXX") || exit 1
guest_at_exit=()
# guest_at_exit COMMAND: is run when all guests have ended, before $work is deleted.
guest_at_exit()
{
  guest_at_exit+=("$1")
}
guest_cleanup()
{
  local pid command
  for pid in "${guest_pid[@]}"; do
    kill -KILL "$pid" 2>/dev/null
  done
  wait 2>/dev/null
  for command in "${guest_at_exit[@]}"; do
    eval "$command"
  done
  rm -rf "$work"
}
trap guest_cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# archive DIR FILE: what is in the directory as an archive that the kernel unpacks over its initramfs.
archive()
{
  (cd "$1" && find . | "$guest/busybox" cpio -o -H newc 2>/dev/null) >"$2"
}

# guest_job NAME [root]: from stdin, what the guest NAME does: in its initramfs, with the record program at hand, or
# in the root file system on its persistent memory.
guest_job()
{
  local dir=$work/$1.job
  rm -rf "$dir"
  mkdir -p "$dir/bin"
  cat >"$dir/${2:+root-}job"
  [ $# -gt 1 ] || cp "$RECORD" "$dir/bin/record"
  guest_pack "$1" "$dir"
}

# guest_pack NAME DIR: the guest NAME boots with what is in the directory; that is deleted.
guest_pack()
{
  archive "$2" "$work/$1.cpio"
  cat "$guest/initrd" "$work/$1.cpio" >"$work/$1.initrd"
  rm -rf "$2" "$work/$1.cpio"
}

# guest_start NAME ARGUMENT…: boots it in the background. GUEST_WRAP is a command to start QEMU with (pcow-run).
guest_start()
{
  local name=$1
  shift
  # shellcheck disable=SC2086 # GUEST_WRAP is a command with arguments
  ${GUEST_WRAP:-} "$QEMU" -accel tcg -cpu max -m "${GUEST_MEMORY:-256M},slots=4,maxmem=64G" \
    -machine q35,nvdimm=on -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$work/$name.log" -qmp "unix:$work/$name.qmp,server=on,wait=off" \
    -kernel "$guest/vmlinuz" -initrd "$work/$name.initrd" \
    -append "console=ttyS0 quiet panic=-1 $guest_patience ${GUEST_APPEND:-}" "$@" \
    >"$work/$name.err" 2>&1 </dev/null &
  guest_pid[$name]=$!
}

# guest_console NAME: what the guest has written, its lines as a terminal shows them.
guest_console()
{
  tr -d '\r' 2>/dev/null <"$work/$1.log"
}

# guest_wait NAME SECONDS: until it has ended; 0 if its job did well.
guest_wait()
{
  local name=$1 left=$(($2 * 10))
  while kill -0 "${guest_pid[$name]}" 2>/dev/null; do
    if [ $left -eq 0 ]; then
      echo "guest $name does not end; its console's end:"
      guest_console "$name" | tail -n 20
      kill -KILL "${guest_pid[$name]}"
      wait "${guest_pid[$name]}" 2>/dev/null
      unset "guest_pid[$name]"
      return 1
    fi
    left=$((left - 1))
    sleep 0.1
  done
  wait "${guest_pid[$name]}"
  unset "guest_pid[$name]"
  if ! guest_console "$name" | grep -q '^GUEST exit 0$'; then
    echo "guest $name failed; its console's end:"
    guest_console "$name" | tail -n 20
    cat "$work/$name.err"
    return 1
  fi
}

# guest_until NAME SECONDS PATTERN: until the console has a line like this.
guest_until()
{
  local left=$(($2 * 10))
  until guest_console "$1" | grep -q -- "$3"; do
    if [ $left -eq 0 ] || ! kill -0 "${guest_pid[$1]}" 2>/dev/null; then
      echo "guest $1 never said \"$3\"; its console's end:"
      guest_console "$1" | tail -n 20
      cat "$work/$1.err"
      return 1
    fi
    left=$((left - 1))
    sleep 0.1
  done
}

# guest_kill NAME: SIGKILL, as a crash of the host's process.
guest_kill()
{
  kill -KILL "${guest_pid[$1]}" 2>/dev/null
  wait "${guest_pid[$1]}" 2>/dev/null
  unset "guest_pid[$1]"
}

# guest_acked NAME: the last record that was acknowledged, -1 for none. A line counts when it is complete.
guest_acked()
{
  guest_console "$1" | sed '$!b; /^ACK [0-9]*$/!d' | awk '$1 == "ACK" { n = $2; found = 1 } END { print found ? n : -1 }'
}

# qmp NAME COMMAND…: as qmp.py has them.
qmp()
{
  python3 "$guest_dir/qmp.py" "$work/$1.qmp" "${@:2}"
}

# golden_root FILE MIB: a raw image of a root file system with busybox, in which a guest can do a root job.
golden_root()
{
  local tree=$work/tree
  rm -rf "$tree"
  mkdir -p "$tree"/{bin,sbin,dev,proc,sys,run,tmp,data}
  cp "$guest/busybox" "$tree/bin/busybox"
  local applet
  while read -r applet; do
    ln -s busybox "$tree/bin/$applet"
  done < <("$guest/busybox" --list | grep -vx busybox)
  cp "$RECORD" "$tree/bin/record"
  install -m 755 "$guest_dir/root-init" "$tree/sbin/init"
  rm -f "$1"
  truncate -s "$2M" "$1"
  mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 -F -d "$tree" "$1"
  rm -rf "$tree"
}

# with_libraries DIR PROGRAM…: programs of this machine with the libraries that they need, for an archive.
with_libraries()
{
  local dir=$1 program library
  shift
  for program; do
    program=$(command -v "$program") || return 1
    install -D -m 755 "$program" "$dir/bin/${program##*/}"
    with_library "$dir" "$program"
  done
}

# with_library DIR FILE: what this program or library is linked to, and a library itself.
with_library()
{
  local library
  case $2 in
    *.so.*) install -D -m 755 "$(readlink -f "$2")" "$1$2" ;;
  esac
  while read -r library; do
    [ -e "$1$library" ] || install -D -m 755 "$(readlink -f "$library")" "$1$library"
  done < <(ldd "$2" | grep -o '/[^ ]*')
}

# nvdimm_root RAW FS: makes of a file system image what an NVDIMM holds that a guest uses with DAX: the
# namespace's info block, which only ndctl writes, and the file system behind it.
nvdimm_root()
{
  local dir=$work/ndctl.job bytes
  command -v ndctl >/dev/null || guest_skip "ndctl is not installed"
  bytes=$(stat -c %s "$2")
  rm -rf "$dir" "$1"
  mkdir -p "$dir"
  truncate -s $((bytes + (16 << 20))) "$1"
  with_libraries "$dir" ndctl || return 1
  cat >"$dir/job" <<'END'
ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem >/dev/null || exit 20
dd if=/dev/vda of=/dev/pmem0 bs=1M conv=fsync 2>/dev/null || exit 21
END
  guest_pack ndctl "$dir"
  guest_start ndctl -drive "if=virtio,format=raw,readonly=on,file=$2" \
    -object "memory-backend-file,id=pm,share=on,mem-path=$1,size=$((bytes + (16 << 20)))" \
    -device nvdimm,memdev=pm,id=nv
  guest_wait ndctl 60
}

# ---- Images, and how a guest gets them ----
#
# A kind is HOW-DEVICE: "backend" is memory-backend-pcow of our QEMU ($QEMU_PCOW), "run" Debian's QEMU under pcow-run
# ($PCOW_RUN); "nvdimm" is store-durable, "virtio" a virtio-pmem device, flush-durable.

# need_kind KIND: finds what it needs; the test ends, skipped, when that is not there.
need_kind()
{
  case $1 in
    backend-nvdimm | backend-virtio) find_qemu_pcow ;;
    run-nvdimm | run-virtio) [ -x "${PCOW_RUN:-}" ] || guest_skip "PCOW_RUN does not name pcow-run" ;;
    *) echo "no kind of guest: '$1'"; exit 2 ;;
  esac
}

# kind_start KIND NAME IMAGE ARGUMENT…: boots the guest NAME with the image as its persistent memory. GUEST_BACKEND:
# more properties of memory-backend-pcow.
kind_start()
{
  local kind=$1 name=$2 image=$3 size device durability
  shift 3
  case $kind in
    *-nvdimm) device=nvdimm,memdev=pm,id=nv durability=store ;;
    *-virtio) device=virtio-pmem-pci,memdev=pm,id=nv durability=flush ;;
  esac
  case $kind in
    backend-*)
      QEMU=$QEMU_PCOW \
        guest_start "$name" -object "memory-backend-pcow,id=pm,mem-path=$image,durability=$durability${GUEST_BACKEND:-}" \
        -device "$device" "$@"
      ;;
    run-*)
      size=$("$PCOW_IMG" info --output=json "$image" | python3 -c 'import json, sys
print(json.load(sys.stdin)["virtual-size"])') || return 1
      GUEST_WRAP="$PCOW_RUN --durability=$durability" \
        guest_start "$name" -object "memory-backend-file,id=pm,share=on,mem-path=$image,size=$size" \
        -device "$device" "$@"
      ;;
  esac
}

# golden KIND FILE MIB: a pcow image of a root file system for guests of this kind.
golden()
{
  golden_root "$work/root.raw" "$3" || return 1
  case $1 in
    *-nvdimm)
      nvdimm_root "$work/nvdimm.raw" "$work/root.raw" &&
        "$PCOW_IMG" convert -f raw -O pcow "$work/nvdimm.raw" "$2"
      ;;
    *) "$PCOW_IMG" convert -f raw -O pcow "$work/root.raw" "$2" ;;
  esac
  local status=$?
  rm -f "$work/root.raw" "$work/nvdimm.raw"
  return $status
}

# overlay BASE FILE
overlay()
{
  "$PCOW_IMG" create -q -f pcow -b "$1" -F pcow "$2"
}

# content_sum FILE: a checksum; what a sparse file does not hold is not read.
content_sum()
{
  tar -C "${1%/*}" -cS "${1##*/}" | sha256sum
}

# extract_fs KIND IMAGE[@SNAPSHOT] RAW: the file system that is in the image, for programs of the host.
extract_fs()
{
  "$PCOW_IMG" convert -q --any-base -O raw "$2" "$3.whole" || return 1
  case $1 in
    # Behind the namespace's info block; where, the block itself says (struct nd_pfn_sb of the kernel: dataoff).
    *-nvdimm)
      python3 - "$3.whole" "$3" <<'END' || return 1
import sys
whole = open(sys.argv[1], "rb").read()
block = whole[4096:8192]
assert block[:16].startswith(b"NVDIMM_PFN_INFO"), "no info block"
offset = int.from_bytes(block[56:64], "little")
open(sys.argv[2], "wb").write(whole[offset:])
END
      rm -f "$3.whole"
      ;;
    *) mv "$3.whole" "$3" ;;
  esac
}

# finish: the last line of a test.
finish()
{
  [ $failures -eq 0 ] || { echo "$failures checks failed"; exit 1; }
  exit 0
}
