#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# memory-backend-pcow without an operating system in the guest: options and their errors, QMP commands,
# the devices, and with a small program as the guest (tiny.c) a full file system, in both modes, snapshots
# of a guest that writes, kill -9, and a balloon; and with PCOW_TEST_KVM=1 some of it under KVM. tools/qemu/build makes
# QEMU; QEMU_PCOW names one that is there.

set -u
tests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cli-common.sh
. "$tests_dir/cli-common.sh"
export PMEM_IS_PMEM_FORCE=1
here=$tests_dir/guest

command -v python3 >/dev/null || { echo "SKIP: python3 is missing"; exit 77; }
# shellcheck source=qemu.sh
. "$here/qemu.sh"
find_qemu_pcow

# ---- Virtual machines ----

qemu_pid=

stop_vm()
{
  [ -z "$qemu_pid" ] || { kill -9 "$qemu_pid"; wait "$qemu_pid"; } 2>/dev/null
  qemu_pid=
  rm -f "$scratch/qmp" "$scratch/serial"
}

end_all()
{
  stop_vm
  umount "$scratch/small" 2>/dev/null
  cleanup
}
trap end_all EXIT

machine=(-M "q35,nvdimm=on,dump-guest-core=off" -accel tcg -cpu max -m "128M,slots=4,maxmem=64G")

# vm ARGUMENT...: starts one in the background; its monitor is $scratch/qmp.
vm()
{
  stop_vm
  "$QEMU_PCOW" "${machine[@]}" -display none -nodefaults -pidfile "$scratch/pid" -qmp "unix:$scratch/qmp,server=on,wait=off" "$@" \
    >"$scratch/vm" 2>&1 </dev/null &
  qemu_pid=$!
  while [ ! -S "$scratch/qmp" ] && kill -0 "$qemu_pid" 2>/dev/null; do
    sleep 0.02
  done
  [ -S "$scratch/qmp" ] && return 0
  not_ok "QEMU starts" "$*" "$(cat "$scratch/vm")"
  finish
}

# QEMU's own process, whatever started it.
vm_pid()
{
  cat "$scratch/pid"
}

qmp()
{
  run python3 "$here/qmp.py" "$scratch/qmp" "$@"
}

# says NAME STATUS PATTERN COMMAND...: of QMP.
says()
{
  qmp "${@:4}"
  verdict "$@"
}

# The same, and waits for it some seconds. What is held tries again each second, and is not held meanwhile.
says_soon()
{
  local tries=100

  while qmp "${@:4}" && ! out_has "$3" && [ $tries -gt 0 ]; do
    sleep 0.05
    tries=$((tries - 1))
  done
  verdict "$@"
}

verdict()
{
  local name=$1 wanted=$2 pattern=$3

  shift 3
  if [ "$status" = "$wanted" ] && out_has "$pattern"; then
    ok "$name"
  else
    not_ok "$name" "qmp $*" "status $status, not $wanted, or no '$pattern'" "$(cat "$scratch/vm")"
    [ "$status" != 2 ] || finish
  fi
}

# Ends a VM in good order: the image is closed.
quit_vm()
{
  qmp quit
  wait "$qemu_pid"
  status=$?
  qemu_pid=
  [ "$status" = 0 ] || not_ok "QEMU ends with status 0" "status $status" "$(cat "$scratch/vm")"
}

# refuses NAME PATTERN ARGUMENT...: QEMU ends with status 1 and one sentence.
refuses()
{
  local name=$1 pattern=$2

  shift 2
  run timeout 60 "$QEMU_PCOW" -M q35,nvdimm=on -accel tcg -m 128M,slots=4,maxmem=64G -display none \
    -nodefaults -S "$@"
  # Memory that cannot be discarded is said to be so by QEMU twice.
  if [ "$status" = 1 ] && [ "$(grep -vc 'Unexpected error discarding' "$scratch/err")" = 1 ] &&
     grep -q -e "$pattern" "$scratch/err"; then
    ok "$name"
  else
    not_ok "$name" "status $status, not 1, or not one line with '$pattern'"
  fi
}

object=memory-backend-pcow,id=pm,mem-path
img create a.pcow 64M >/dev/null
img create odd.pcow 10240K >/dev/null
head -c 65536 /dev/urandom >raw

# ---- Options and errors ----

run "$QEMU_PCOW" -object memory-backend-pcow,help
for option in mem-path snapshot durability readonly; do
  if out_has "^ *$option="; then ok "$option is an option"; else not_ok "$option is an option"; fi
done
refuses "a missing file" 'nothere.pcow.*No such file' -object "$object=nothere.pcow"
refuses "a file that is no image" 'raw: .*not a pcow image' -object "$object=raw"
refuses "no mem-path" "mem-path" -object memory-backend-pcow,id=pm
refuses "another size" 'a.pcow: its size is 67108864 bytes, not 33554432' -object "$object=a.pcow,size=32M"
refuses "a missing snapshot" "a.pcow.*'*nosuch" -object "$object=a.pcow,snapshot=nosuch"
refuses "share=off" 'share=off is not possible' -object "$object=a.pcow,share=off"
for option in prealloc=on merge=on dump=off host-nodes=0 pmem=on align=2M; do
  refuses "$option" "Invalid parameter '${option%=*}'" -object "$object=a.pcow,$option"
done
refuses "an unknown durability" "durability.*cannot\|does not accept\|Parameter 'durability'" \
  -object "$object=a.pcow,durability=never"
refuses "max-size below the size" 'max-size is less' -object "$object=a.pcow,max-size=1M"
refuses "max-size of what is read-only" 'max-size has no meaning' \
  -object "$object=a.pcow,readonly=on,max-size=1G"
refuses "locked memory" 'mem-lock=on' -overcommit mem-lock=on -object "$object=a.pcow"
refuses "an NVDIMM that would have to be flushed" 'use a virtio-pmem' -object "$object=a.pcow" \
  -device nvdimm,memdev=pm
refuses "an NVDIMM over something read-only that is not unarmed" 'unarmed' \
  -object "$object=a.pcow,readonly=on" -device nvdimm,memdev=pm
refuses "a device that discards" "the pages of '.*pm' are not QEMU's to discard" \
  -object "$object=a.pcow" -device virtio-mem-pci,memdev=pm
refuses "the same image twice" 'a.pcow: .*\(lock\|use\)' -object "$object=a.pcow" \
  -object memory-backend-pcow,id=pm2,mem-path=a.pcow
if [ "$PMEM_IS_PMEM_FORCE" = 1 ]; then
  PMEM_IS_PMEM_FORCE=0
  refuses "stores that cannot be durable" 'a store is not durable' -object "$object=a.pcow,durability=store"
  PMEM_IS_PMEM_FORCE=1
fi
mkdir bases
img create bases/golden.pcow 64M >/dev/null
img create -b bases/golden.pcow -F pcow over.pcow >/dev/null
mkdir elsewhere
mv over.pcow elsewhere/
img rebase -u -b ../bases/golden.pcow -F pcow elsewhere/over.pcow >/dev/null 2>&1 ||
  img rebase -u -b ../bases/golden.pcow elsewhere/over.pcow >/dev/null
refuses "a base outside of the image's directory" 'over.pcow' -object "$object=elsewhere/over.pcow"
that "no failed start leaves an image that was not closed" \
  sh -c "! '$PCOW_IMG' info a.pcow | grep -q -i dirty"

# ---- The monitor ----

vm -S -device pcie-root-port,id=rp1,chassis=1 -object "$object=a.pcow" -device virtio-pmem-pci,memdev=pm \
  -object memory-backend-pcow,id=over,mem-path=elsewhere/over.pcow,base-dir=. \
  -object memory-backend-pcow,id=free,mem-path=odd.pcow,max-size=1G
says "a VM with three images" 0 '"size": 67108864' 'query-pcow={"id":"pm"}'
# VmFlags: uw is what libpcow protects; mg and dd are what QEMU gives to memory of its own.
that "its memory has no advice of QEMU's" \
  awk '/^VmFlags:.* uw/ { n++; if (/ (mg|dd)( |$)/) bad = 1 } END { exit bad || !n }' "/proc/$(vm_pid)/smaps"
says "the default is flush" 0 '"durability": "flush"' 'query-pcow={"id":"pm"}'
says "the memory device has the image's size" 0 '"size": 67108864' query-memory-devices
says "a base in base-dir" 0 '"readonly": false' 'query-pcow={"id":"over"}'
says "an object that is not there" 1 "no memory-backend-pcow object 'nosuch'" 'query-pcow={"id":"nosuch"}'
says "a snapshot" 0 '{}' 'pcow-snapshot-create={"id":"pm","name":"one"}'
says "a second one" 0 '{}' 'pcow-snapshot-create={"id":"pm","name":"two"}'
says "a name that is taken" 1 "a.pcow: .*one" 'pcow-snapshot-create={"id":"pm","name":"one"}'
says "a name that is none" 1 "a.pcow: .*name" 'pcow-snapshot-create={"id":"pm","name":"a@b"}'
says "the list" 0 '"current": false.*"name": "one".*"current": true.*"name": "two"' \
  'query-pcow-snapshots={"id":"pm"}'
says "the other image has none" 0 '^\[\]$' 'query-pcow-snapshots={"id":"over"}'
says "deleting" 0 '{}' 'pcow-snapshot-delete={"id":"pm","name":"one"}'
says "deleting what is gone" 1 "a.pcow: .*one" 'pcow-snapshot-delete={"id":"pm","name":"one"}'
says "one is left" 0 '"snapshots": 1' 'query-pcow={"id":"pm"}'
says "nothing has changed since" 0 '"dirty": 0,' 'query-pcow={"id":"pm","dirty":true}'
says "resize with a device" 1 'a device has it' 'pcow-resize={"id":"pm","size":134217728}'
says "resize without one" 0 '{}' 'pcow-resize={"id":"free","size":33554432}'
says "it has grown" 0 '"size": 33554432' 'query-pcow={"id":"free"}'
says "beyond max-size" 1 'from 33554432 to max-size, 1073741824 bytes' \
  'pcow-resize={"id":"free","size":2147483648}'
says "shrinking" 1 'from 33554432' 'pcow-resize={"id":"free","size":1048576}'
says "QOM knows the size" 0 33554432 'qom-get={"path":"/objects/free","property":"size"}'
for property in merge dump prealloc; do
  value=true
  [ $property != dump ] || value=false
  says "$property cannot be set" 1 "cannot change property '$property'" \
    "qom-set={\"path\":\"/objects/pm\",\"property\":\"$property\",\"value\":$value}"
done
says "no migration" 1 'cannot be migrated' 'migrate={"uri":"exec:cat >/dev/null"}'
says "an object that a device has stays" 1 'in use' 'object-del={"id":"pm"}'
says "another goes" 0 '{}' 'object-del={"id":"free"}'
expect "and its image is closed" 0 check odd.pcow
expect "and has grown" 0 info odd.pcow
if out_has '32 MiB'; then ok "to 32 MiB"; else not_ok "to 32 MiB"; fi
says "it can be added again" 0 '{}' \
  'object-add={"qom-type":"memory-backend-pcow","id":"free","mem-path":"odd.pcow","durability":"store"}'
says "and given to a device" 0 '{}' 'device_add={"driver":"virtio-pmem-pci","memdev":"free","bus":"rp1"}'
says "an error at object-add" 1 'a.pcow: .*\(lock\|use\)' \
  'object-add={"qom-type":"memory-backend-pcow","id":"again","mem-path":"a.pcow"}'
expect "the image is in use" 1 snapshot -c three a.pcow
quit_vm
expect "the image was closed" 0 info a.pcow
if out_has -i dirty; then not_ok "and is clean"; else ok "and is clean"; fi
expect "its snapshot is there" 0 snapshot -l a.pcow
if out_has two; then ok "by name"; else not_ok "by name"; fi

vm -S -object "$object=a.pcow,snapshot=two" -device virtio-pmem-pci,memdev=pm \
  -object memory-backend-pcow,id=ro,mem-path=bases/golden.pcow,readonly=on -device nvdimm,memdev=ro,unarmed=on
says "a snapshot is read-only" 0 '"readonly": true' 'query-pcow={"id":"pm"}'
says "and takes none" 1 'a.pcow' 'pcow-snapshot-create={"id":"pm","name":"three"}'
says "nor does it grow" 1 'read-only' 'pcow-resize={"id":"pm","size":134217728}'
quit_vm

# ---- A guest that writes ----

tiny=$scratch/tiny

# build_tiny FILE SCRIPT OPTION...
build_tiny()
{
  ${CC:-cc} -m32 -ffreestanding -fno-pic -no-pie -fno-stack-protector -O1 -nostdlib -static \
    -Wl,--build-id=none -Wl,-T,"$here/$2" -o "$1" "${@:3}" "$here/tiny.c" 2>"$scratch/err"
}

if ! build_tiny "$tiny" tiny.ld; then
  skip "a guest that writes" "the compiler makes no 32-bit programs"
  finish
fi

# What the guest says is in $scratch/heard.
listen()
{
  mkfifo "$scratch/serial.in" "$scratch/serial.out" 2>/dev/null
  : >"$scratch/heard"
  cat "$scratch/serial.out" >"$scratch/heard" &
  exec 5<>"$scratch/serial.in"
}

guest()
{
  local pages=$1

  shift
  listen
  vm -kernel "$tiny" -append "tiny $pages" -serial pipe:"$scratch/serial" "$@"
}

tell()
{
  printf '%s' "$1" >&5
}

# hears NAME LETTER COUNT: waits for the letter to have come COUNT times.
hears()
{
  local tries=1200

  while [ "$(tr -cd "$2!" <"$scratch/heard" | wc -c)" -lt "$3" ] && [ $tries -gt 0 ]; do
    sleep 0.05
    tries=$((tries - 1))
  done
  if [ "$(tr -cd "$2" <"$scratch/heard" | wc -c)" -ge "$3" ] && ! grep -q '!' "$scratch/heard"; then
    ok "$1"
  else
    not_ok "$1" "heard $(tail -c 200 "$scratch/heard")" "$(cat "$scratch/vm")"
  fi
}

for mode in store flush; do
  device=nvdimm
  [ $mode = store ] || device=virtio-pmem-pci
  img create -b bases/golden.pcow -F pcow $mode.pcow >/dev/null
  guest 16384 -object "$object=$mode.pcow,durability=$mode" -device $device,memdev=pm \
    -device virtio-balloon-pci,disable-modern=on,disable-legacy=off,free-page-reporting=on
  hears "$mode: the guest runs" g 1
  tell w
  hears "$mode: it writes" w 1
  says "$mode: a snapshot of it" 0 '{}' 'pcow-snapshot-create={"id":"pm","name":"first"}'
  tell nw
  says "$mode: one while it writes" 0 '{}' 'pcow-snapshot-create={"id":"pm","name":"second"}'
  says "$mode: deleting one meanwhile" 0 '{}' 'pcow-snapshot-delete={"id":"pm","name":"first"}'
  hears "$mode: it goes on" w 2
  tell nw
  hears "$mode: and writes after them" w 3
  tell b
  hears "$mode: it gives its pages to a balloon, and reports them as free" b 1
  tell v
  hears "$mode: all is there" v 1
  that "$mode: discards are refused" grep -q "are not QEMU's to discard" "$scratch/vm"
  says "$mode: what changed is counted" 0 '"dirty": [1-9]' 'query-pcow={"id":"pm","dirty":true}'
  says "$mode: first writes are counted" 0 '"write-faults": ' 'query-pcow={"id":"pm"}'
  quit_vm
  expect "$mode: the image is clean" 0 check $mode.pcow
  guest 16384 -object "$object=$mode.pcow,durability=$mode" -device $device,memdev=pm
  tell nnv
  hears "$mode: a new VM finds the last round" v 1
  says "$mode: it is killed" 0 running query-status
  stop_vm
  expect "$mode: and the image is clean" 0 check $mode.pcow
done

# ---- A full file system ----

mkdir "$scratch/small"
if ! mount -t tmpfs -o size=24M small "$scratch/small" 2>/dev/null; then
  skip "a full file system" "mounting is not permitted"
  finish
fi
# The guest writes to 64 MiB where there are 24, is stopped, and goes on when there are 160.
for mode in store flush; do
  device=nvdimm
  [ $mode = store ] || device=virtio-pmem-pci
  for base in none golden; do
    if [ $base = none ]; then
      img create "$scratch/small/x.pcow" 64M >/dev/null
    else
      img create -b "$work/bases/golden.pcow" -F pcow "$scratch/small/x.pcow" >/dev/null
    fi
    guest 16384 -object "$object=$scratch/small/x.pcow,durability=$mode,base-dir=/" -device $device,memdev=pm
    what="$mode, base $base"
    hears "$what: the guest runs" g 1
    tell w
    says "$what: the VM stops" 0 io-error '?io-error'
    says_soon "$what: a writer is held" 0 '"held-writers": [1-9].*"nospace": 1' 'query-pcow={"id":"pm"}'
    says "$what: still no space" 0 '"flush": false.*"id": "pm".*small/x.pcow' \
      cont '@PCOW_NOSPACE' '?io-error'
    says "$what: the monitor goes on" 0 io-error query-status system_reset query-status
    # Whether there is space for it is another matter: it must not wait for what only "cont" ends.
    run timeout 20 python3 "$here/qmp.py" "$scratch/qmp" 'pcow-snapshot-create={"id":"pm","name":"full"}'
    if [ "$status" -le 1 ]; then ok "$what: a snapshot meanwhile"; else not_ok "$what: a snapshot meanwhile"; fi
    says "$what: a deletion meanwhile" 1 'nosuch' 'pcow-snapshot-delete={"id":"pm","name":"nosuch"}'
    if [ $base = none ]; then stop_vm; else quit_vm; fi
    # What was never flushed may have left blocks in slots that nobody uses.
    expect "$what: ended, the image has leaks at most" 0 check -r leaks "$scratch/small/x.pcow"
    guest 16384 -object "$object=$scratch/small/x.pcow,durability=$mode,base-dir=/" -device $device,memdev=pm
    hears "$what: the guest runs again" g 1
    tell w
    says "$what: the VM stops again" 0 io-error '?io-error'
    if [ $base = golden ]; then says "$what: a reset meanwhile" 0 '{}' system_reset; fi
    mount -o remount,size=160M "$scratch/small"
    says "$what: cont" 0 '{}' cont '@RESUME' '?running'
    if [ $base = golden ]; then
      hears "$what: the reset is carried out" g 2
      tell w
    fi
    hears "$what: the guest has written all" w 1
    tell v
    hears "$what: all is there" v 1
    says "$what: nobody is held" 0 '"held-writers": 0' 'query-pcow={"id":"pm"}'
    quit_vm
    expect "$what: the image is clean" 0 check "$scratch/small/x.pcow"
    rm "$scratch/small/x.pcow"
    mount -o remount,size=24M "$scratch/small"
  done
done

# ---- KVM ----

# The image is the VM's only memory here, and the guest its firmware: it does not depend on what else KVM can do.
kvm_guest()
{
  machine=(-M "q35,memory-backend=pm" -accel kvm -cpu "qemu64,-pni" -m 64M)
  listen
  vm -bios "$scratch/rom" -serial pipe:"$scratch/serial" "$@"
}

# Only on demand: QEMU waits for the held vCPU (kvmclock, run_on_cpu()), so the monitor does not answer until there is space.
if [ -z "${PCOW_TEST_KVM:-}" ] || [ ! -w /dev/kvm ]; then
  skip "KVM" "PCOW_TEST_KVM is not set, or /dev/kvm is not there"
  finish
fi
if ! build_tiny "$scratch/rom.elf" tiny-rom.ld -DROM ||
   ! objcopy -O binary -j .text -j .reset --gap-fill 0xff "$scratch/rom.elf" "$scratch/rom"; then
  skip "KVM" "the firmware cannot be built"
  finish
fi
for mode in store flush; do
  mount -o remount,size=3M "$scratch/small"
  img create "$scratch/small/x.pcow" 64M >/dev/null
  kvm_guest -object "$object=$scratch/small/x.pcow,durability=$mode"
  tries=200
  while [ ! -s "$scratch/heard" ] && [ $tries -gt 0 ]; do
    sleep 0.05
    tries=$((tries - 1))
  done
  if [ ! -s "$scratch/heard" ]; then
    skip "KVM" "the guest did not get far in 10 seconds"
    break
  fi
  tell w
  says "KVM, $mode: the VM stops" 0 io-error '?io-error'
  says_soon "KVM, $mode: a writer is held" 0 '"held-writers": [1-9].*"nospace": 1' 'query-pcow={"id":"pm"}'
  says "KVM, $mode: still no space" 0 '"flush": false' cont '@PCOW_NOSPACE' '?io-error'
  says "KVM, $mode: the monitor looks into the vCPU" 0 'EIP=' 'human-monitor-command={"command-line":"info registers"}'
  mount -o remount,size=160M "$scratch/small"
  says "KVM, $mode: cont" 0 '{}' cont '@RESUME' '?running'
  hears "KVM, $mode: the guest has written all" w 1
  tell v
  hears "KVM, $mode: all is there" v 1
  tell nw
  says "KVM, $mode: a snapshot while it writes" 0 '{}' 'pcow-snapshot-create={"id":"pm","name":"one"}'
  hears "KVM, $mode: it goes on" w 2
  says "KVM, $mode: it is killed" 0 running query-status
  stop_vm
  expect "KVM, $mode: the image is clean" 0 check "$scratch/small/x.pcow"
  if [ $mode = store ]; then
    kvm_guest -object "$object=$scratch/small/x.pcow,durability=$mode"
    hears "KVM, $mode: the guest runs again" g 1
    tell nv
    hears "KVM, $mode: what it wrote is there" v 1
    quit_vm
  fi
  rm "$scratch/small/x.pcow"
done
finish
