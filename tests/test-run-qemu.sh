#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# pcow-run with the distribution's own QEMU: a memory backend on an image, behind each device that takes one,
# shows the image's content at the guest's addresses, and what is stored there is in the image when QEMU has
# ended. QEMU's monitor stands in for a guest that reads, its
# loader for one that writes. The base must not change.

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/cli-common.sh"

qemu=$(command -v qemu-system-x86_64)
if [ ! -x "${PCOW_RUN:-}" ]; then
  echo "SKIP: PCOW_RUN does not name pcow-run"
  exit 77
fi
if [ -z "$qemu" ]; then
  echo "SKIP: qemu-system-x86_64 is not installed"
  exit 77
fi

head -c 16M /dev/urandom >raw
printf ABCDEFGHabcdefgh >letters
img convert -f raw -O pcow raw base.pcow
bases_before=$(tar -c -S --mode=0 base.pcow | sha256sum)
address=0x100000000 # where this machine has its first device memory

machine=(-accel tcg)

# guest BACKEND DEVICE [refused]: QEMU's monitor waits for commands. 16 bytes are stored at the start.
guest()
{
  local loader=(-device "loader,file=letters,addr=$((address + 12280)),force-raw=on")

  # It would store into what is read-only, too.
  [ "${3:-}" = refused ] && loader=()
  coproc QEMU {
    exec "$PCOW_RUN" "$qemu" -S -monitor stdio "${machine[@]}" -machine q35,nvdimm=on -m 64M,slots=2,maxmem=2G \
      -display none -nodefaults "${loader[@]}" \
      -object "memory-backend-file,id=pm,$1" -device "$2,memdev=pm" 2>"$scratch/err"
  }
  pid=$QEMU_PID out=${QEMU[0]} in=${QEMU[1]}
}

# bytes OFFSET: 8 bytes of the device, in $answer.
bytes()
{
  local line at

  at=$(printf '%016x' $((address + $1)))
  answer=
  kill -0 "$pid" 2>/dev/null || return
  echo "xp /8xb 0x$at" >&"$in"
  while read -r -t 20 line <&"$out"; do
    line=${line//$'\r'/}
    if [[ $line == "$at": ]] || [[ $line == "$at: "* ]]; then
      answer=${line#*: }
      return
    fi
  done
}

end()
{
  # By SIGTERM, as administrators and libvirt do it.
  kill -TERM "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
}

# As the monitor prints them.
in_file()
{
  dd if="$1" bs=1 skip="$2" count=8 status=none | od -An -v -tx1 | sed 's/^ //; s/\([0-9a-f]*\)/0x\1/g'
}

# works NAME BACKEND DEVICE [lost|refused]: what is stored is kept in the image, or is not the image's.
works()
{
  local at

  rm -f x.pcow expected
  img create -q -b base.pcow -F pcow x.pcow
  cp raw expected
  guest "mem-path=$PWD/x.pcow,size=16M,$2" "$3" "${4:-}"
  for at in 0 8192 16777208; do
    bytes $at
    that "$1: the content at $at" test "$answer" = "$(in_file raw $at)"
  done
  bytes 12288
  if [ "${4:-}" = refused ]; then
    that "$1: nothing is stored" test "$answer" = "$(in_file raw 12288)"
  else
    that "$1: a store is seen" test "$answer" = "$(in_file letters 8)"
  fi
  end
  that "$1: nothing on stderr" sh -c "! grep -v -e 'terminating on signal 15' -e \"doesn't support requested feature\" '$scratch/err'"
  [ -n "${4:-}" ] || dd if=letters of=expected bs=1 seek=12280 conv=notrunc status=none
  that "$1: the image when QEMU has ended" img compare -q expected x.pcow
  that "$1: check is clean" img check x.pcow
}

# fails NAME PATTERN BACKEND: QEMU does not start, and says why.
fails()
{
  guest "mem-path=$PWD/x.pcow,$3" virtio-pmem-pci
  echo quit >&"$in" 2>&1
  wait "$pid"
  status=$?
  that "$1: it does not start" test $status != 0
  that "$1: it says why" grep -q -e "$2" "$scratch/err"
}

works 'virtio-pmem' share=on virtio-pmem-pci
works 'nvdimm' share=on nvdimm
# As libvirt runs it.
machine=(-accel tcg -sandbox "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
works 'virtio-pmem, sandbox' share=on virtio-pmem-pci
machine=(-accel kvm)
if echo quit | timeout 10 "$qemu" -S -monitor stdio -accel kvm -display none >/dev/null 2>&1; then
  works 'virtio-pmem, KVM' share=on virtio-pmem-pci
else
  skip 'virtio-pmem, KVM' 'not here'
fi
machine=(-accel tcg)
works 'virtio-pmem, aligned' share=on,align=2M virtio-pmem-pci
works 'virtio-pmem, all populated' share=on,prealloc=on virtio-pmem-pci
works 'virtio-pmem, private' share=off virtio-pmem-pci lost
works 'nvdimm, read-only' share=on,readonly=on nvdimm,unarmed=on refused
if echo quit | timeout 10 "$qemu" -accel tcg -S -machine q35,nvdimm=on -m 64M,slots=2,maxmem=2G \
  -display none -nodefaults -object memory-backend-file,id=pm,share=on,mem-path=raw,size=16M,pmem=on \
  -device nvdimm,memdev=pm -monitor stdio 2>&1 | grep -q 'Lack of libpmem'; then
  skip 'nvdimm, pmem=on' 'this QEMU has no libpmem'
elif [ "${PMEM_IS_PMEM_FORCE:-}" = 1 ]; then
  works 'nvdimm, pmem=on: store-durable' share=on,pmem=on nvdimm
else
  skip 'nvdimm, pmem=on' 'no persistent memory'
fi
fails 'a part of the image' '^pcow-run: .*as a whole' share=on,size=8M
fails 'more than the image' 'size' share=on,size=32M
that 'the base has not changed' test "$(tar -c -S --mode=0 base.pcow | sha256sum)" = "$bases_before"

finish
