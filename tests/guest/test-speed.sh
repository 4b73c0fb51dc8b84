#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# How fast a guest's persistent memory is: fio in one guest that has a pcow overlay and a raw file as two devices of the
# same kind, ext4 mounted DAX on both, a qcow2 overlay on virtio-blk, and its own memory (tmpfs), which shows what is
# guest code. Contenders take turns in each round; the table has medians, and ratios that are medians of the rounds' ratios.
# Nothing is asserted on times: the test fails when something does not run.
#
#     test-speed.sh [--rounds N] [--scale N] [--profile] nvdimm|virtio
#
# --scale makes the warm jobs of 4 KiB on pcow and raw so many times longer: a job of a tenth of a second is noise.
# --profile also looks, with perf on the host, at where QEMU spends its time. The images lie in TMPDIR; where that
# has no DAX and is no tmpfs, PMEM_IS_PMEM_FORCE=0 makes virtio-pmem's flushes reach the disk.

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
rounds=11 scale=1 profile=
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) rounds=${2:?a number}; shift 2 ;;
    --scale) scale=${2:?a number}; shift 2 ;;
    --profile) profile=1; shift ;;
    *) break ;;
  esac
done
kind=${1:?nvdimm or virtio}
rounds=$((rounds + 1)) # the first one does not count
cold_rounds=$((rounds < 4 ? rounds : 4))
need_kind "backend-$kind"
for program in fio qemu-img; do
  command -v $program >/dev/null || guest_skip "$program is not installed"
done
[ -z "$profile" ] || command -v perf >/dev/null || guest_skip "perf is not installed"
export PMEM_IS_PMEM_FORCE=${PCOW_SPEED_FORCE:-1}

# ---- What the guest does ----

# fio for the guest, in an image of its own: with its libraries it is larger than an initramfs should be.
tree=$work/tree
mkdir -p "$tree/bin" "$tree/lib"
with_libraries "$tree" fio || guest_skip "fio's libraries cannot be found"
find "$tree" -name '*.so*' ! -regex "$tree/lib/[^/]*" -exec mv -f -t "$tree/lib" {} +
truncate -s 256M "$work/fio.raw"
mke2fs -q -t ext4 -b 4096 -F -O ^has_journal -d "$tree" "$work/fio.raw" || guest_skip "no image of fio can be made"
rm -rf "$tree"

# A file that is written before it is measured, and one of which each piece is written once: COLD_MIB a round.
COLD_MIB=32 WARM_MIB=16
mkdir "$tree"
head -c ${WARM_MIB}M /dev/urandom >"$tree/warm"
head -c $((COLD_MIB * cold_rounds * 3))M /dev/urandom >"$tree/cold"
truncate -s $(((64 + WARM_MIB + COLD_MIB * cold_rounds * 3 + 15) / 16 * 16))M "$work/fs.raw" # namespaces are made of 16 MiB
mke2fs -q -t ext4 -b 4096 -F -d "$tree" "$work/fs.raw"
case $kind in
  nvdimm) that "a file system for an NVDIMM" nvdimm_root "$work/raw.raw" "$work/fs.raw" ;;
  *) cp --sparse=always "$work/fs.raw" "$work/raw.raw" ;;
esac
that "a pcow overlay" eval '"$PCOW_IMG" convert -q -f raw -O pcow "$work/raw.raw" "$work/base.pcow" &&
  overlay "$work/base.pcow" "$work/vm.pcow"'
that "a qcow2 overlay" eval 'qemu-img convert -q -f raw -O qcow2 "$work/fs.raw" "$work/base.qcow2" &&
  qemu-img create -q -f qcow2 -b "$work/base.qcow2" -F qcow2 "$work/vm.qcow2"'
rm -rf "$tree" "$work/fs.raw"

# workload NAME FILE OPTION…: a line of the plan. The third of the cold file is the one that no other workload has written.
workload()
{
  echo "$*"
}
plan()
{
  workload write-4k-fsync warm rw=write bs=4k fsync=1 io_size=32M
  workload randwrite-4k-fsync warm rw=randwrite bs=4k fsync=1 io_size=32M
  workload write-1M-fsync warm rw=write bs=1M fsync=1 io_size=256M
  workload randwrite-4k warm rw=randwrite bs=4k io_size=32M
  workload randread-4k warm rw=randread bs=4k io_size=32M
  workload read-1M warm rw=read bs=1M io_size=256M
  workload first-write-4k-in-64k-fsync cold0 rw=write:60k bs=4k fsync=1
  workload first-randwrite-4k-fsync cold1 rw=randwrite bs=4k fsync=1
  workload first-write-1M-fsync cold2 rw=write bs=1M fsync=1
}

# One file of jobs a workload: all rounds, in which contenders take turns, in one process.
dir=$work/job
mkdir -p "$dir/bin" "$dir/plan"
while read -r name file options; do
  {
    echo "[global]"
    echo "ioengine=psync thread=1 stonewall=1 disable_lat=1 disable_clat=1 disable_slat=1" | tr ' ' '\n'
    echo "fallocate=none randseed=7 $options" | tr ' ' '\n'
    for ((round = 0; round < (${#file} == 5 ? cold_rounds : rounds); round++)); do
      # In another order every second time. What differs by much needs fewer rounds; a job that does nothing is among that.
      order=(pcow raw)
      [ $((round % 2)) -eq 0 ] || order=(raw pcow)
      if [ $((round % 2)) -eq 0 ]; then
        order+=(qcow2)
        [ "$file" != warm ] || order+=(memory)
        echo "[nothing]"
        echo "exec_prerun=/bin/mark begin $name nothing"
        echo "exec_postrun=/bin/mark end"
        echo "filename=/m/memory/nothing size=4k io_size=4k rw=write bs=4k fsync=0" | tr ' ' '\n'
      fi
      for contender in "${order[@]}"; do
        echo "[$contender]"
        echo "exec_prerun=/bin/mark begin $name $contender"
        echo "exec_postrun=/bin/mark end"
        case $file in
          cold*)
            echo "filename=/m/$contender/cold"
            echo "offset=$(((${file#cold} * cold_rounds + round) * COLD_MIB))M"
            echo "size=${COLD_MIB}M"
            ;;
          *)
            echo "filename=/m/$contender/warm"
            echo "size=${WARM_MIB}M"
            # It takes many times as long.
            case $contender,$options in
              pcow,*bs=4k* | raw,*bs=4k*) echo "io_size=$((32 * scale))M" ;;
            esac
            [ $contender != qcow2 ] || case $options in *bs=1M*) echo "io_size=16M" ;; *) echo "io_size=2M" ;; esac
            ;;
        esac
      done
    done
  } >"$dir/plan/$name"
  echo "$name"
done < <(plan) >"$dir/order"
# Asks for the CPU time on the second serial line, and waits for the answer.
cat >"$dir/bin/mark" <<'END'
#!/bin/sh
exec 3<>/dev/ttyS1
echo "$*" >&3
read -r answer <&3
END
chmod 755 "$dir/bin/mark"
cat >"$dir/job" <<'END'
stty -F /dev/ttyS1 raw -echo || exit 9
cd /tmp
mkdir -p /t /lib64 && ln -s /t/lib/ld-linux-x86-64.so.2 /lib64/ && mount -t ext4 -o ro /dev/vda /t || exit 1
export LD_LIBRARY_PATH=/t/lib
for contender in pcow raw qcow2 memory; do mkdir -p /m/$contender; done
mount -t ext4 -o dax=always /dev/pmem0 /m/pcow && mount -t ext4 -o dax=always /dev/pmem1 /m/raw || exit 2
mount -t ext4 /dev/vdb /m/qcow2 && mount -t tmpfs -o size=90% memory /m/memory || exit 3
[ "$(grep -c '^/dev/pmem[01] /m/.* ext4 .*dax=always' /proc/mounts)" = 2 ] || exit 4
cp /m/pcow/warm /m/memory/ || exit 5
for contender in pcow raw qcow2; do
  dd if=/m/memory/warm of=/m/$contender/warm bs=1M conv=notrunc,fsync 2>/dev/null || exit 6
done
sync
while read -r name; do
  /t/bin/fio --minimal /plan/$name >/tmp/out 2>/tmp/err || { cat /tmp/out /tmp/err | head -n 20; exit 7; }
  awk -F';' -v name=$name 'NF > 50 { print "RESULT", name, $3, $6 + $47, $9 + $50 }' /tmp/out # KiB, ms
done </order
END
[ -z "$profile" ] || cat >>"$dir/job" <<'END'
for name in write-4k-fsync randwrite-4k-fsync; do
  for contender in pcow raw qcow2; do
    options=$(grep -E '^(rw|bs|fsync|ioengine|thread|disable.*)=' /plan/$name | sed 's/^/--/' | tr '\n' ' ')
    echo "PROFILE $name $contender"
    /t/bin/fio --minimal --name=x --filename=/m/$contender/warm --size=16M --time_based --runtime=12 $options >/tmp/out 2>&1 ||
      { head -n 20 /tmp/out; exit 8; }
  done
done
END
guest_pack speed "$dir"

# ---- The guest ----

bytes=$(stat -c %s "$work/raw.raw")
case $kind in
  nvdimm) device=nvdimm durability=store ;;
  *) device=virtio-pmem-pci durability=flush ;;
esac
# Answers the guest's marks; what was used between two is a line: workload, contender, seconds.
cat >"$work/clock.py" <<'END'
import os, socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
connection, _ = server.accept()
with open(sys.argv[3], "w") as out:
    for line in connection.makefile("r"):
        with open(sys.argv[2]) as file:
            pid = int(file.read())
        # The clock of all threads that the process has or had, as clock_getcpuclockid(3) makes it.
        now = time.clock_gettime(~pid << 3 | 2)
        words = line.split()
        if words[0] == "begin":
            begun, what = now, words[1:]
        else:
            print(*what, now - begun, file=out, flush=True)
        connection.sendall(b"go\n")
END
python3 "$work/clock.py" "$work/clock" "$work/pid" "$work/cpu" &
guest_pid[clock]=$!
until [ -S "$work/clock" ]; do sleep 0.05; done
QEMU=$QEMU_PCOW GUEST_MEMORY=1G \
  guest_start speed \
  -object "memory-backend-pcow,id=pm,mem-path=$work/vm.pcow,durability=$durability" -device "$device,memdev=pm,id=nv0" \
  -object "memory-backend-file,id=raw,share=on,mem-path=$work/raw.raw,size=$bytes" -device "$device,memdev=raw,id=nv1" \
  -drive "if=virtio,format=raw,readonly=on,file=$work/fio.raw" \
  -drive "if=virtio,format=qcow2,file=$work/vm.qcow2,cache=writeback" \
  -serial "unix:$work/clock" -pidfile "$work/pid"

# Samples of QEMU's threads by the program or library they were taken in; what has none is code of the guest.
if [ -n "$profile" ]; then
  for name in write-4k-fsync randwrite-4k-fsync; do
    for contender in pcow raw qcow2; do
      guest_until speed 900 "^PROFILE $name $contender\$" || break 2
      sleep 4
      perf record -q -F 499 -g -p "${guest_pid[speed]}" -o "$work/perf" -- sleep 5 >/dev/null 2>&1
      echo "# $name, $contender: where QEMU's time goes, by object"
      perf report -i "$work/perf" --no-children -g none --sort dso --stdio 2>/dev/null | grep '%' | head -n 6 | sed 's/^/#   /'
      perf report -i "$work/perf" --no-children -g none --sort dso,symbol --stdio 2>/dev/null | grep '%' |
        grep -v 'JIT\|unknown\|perf-' | head -n 8 | sed 's/^/#      /'
    done
  done
fi
that "the guest runs all of it" guest_wait speed 3000
that "the overlay is whole" "$PCOW_IMG" check -q "$work/vm.pcow"
[ $failures -eq 0 ] || finish

guest_console speed >"$work/console"
python3 - "$rounds" "$kind" "$work/console" "$work/cpu" <<'END' || fail "not all results are there"
import statistics
import sys

rounds, kind = int(sys.argv[1]), sys.argv[2]
blocks, wall, cpu = {}, {}, {}
for line in open(sys.argv[3]):
    words = line.split()
    if words[:1] == ["RESULT"]:
        key = words[1], words[2]
        blocks[key] = int(words[3]) / (1024 if "1M" in words[1] else 4)
        wall.setdefault(key, []).append(int(words[4]) * 1000 / blocks[key])
for line in open(sys.argv[4]):
    name, contender, seconds = line.split()
    cpu.setdefault((name, contender), []).append(float(seconds) * 1e6)
print("# %s, %d rounds: CPU time of QEMU in microseconds an operation; then time / time of pcow" % (kind, rounds - 1))
print("# %-28s %9s %9s %9s %9s  %-22s %8s %7s  %s" % ("", "pcow", "raw", "qcow2", "memory", "raw [quartiles]",
                                                   "qcow2", "memory", "by the guest's clock: raw, qcow2"))
bad = not blocks
for name in dict.fromkeys(name for name, _ in blocks):
    cold = name.startswith("first")
    wanted = ["pcow", "raw", "qcow2"] + ([] if cold else ["memory"])
    if any(len(cpu.get((name, c), [])) < 2 or len(wall.get((name, c), [])) != len(cpu[name, c]) for c in wanted):
        print("not ok - %s has no results for all" % name)
        bad = True
        continue
    nothing = statistics.median(cpu[name, "nothing"][1:])
    each = {c: [(v - nothing) / blocks[name, c] for v in cpu[name, c][1:]] for c in wanted}
    clock = {c: statistics.median(wall[name, c][1:]) for c in wanted}
    median = {c: statistics.median(v) for c, v in each.items()}
    ratios = [raw / pcow for raw, pcow in zip(each["raw"], each["pcow"])]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print("# %-28s %9.1f %9.1f %9.1f %9s  %-22s %7.2fx %7s  %.2fx, %.2fx" % (
        name, median["pcow"], median["raw"], median["qcow2"], "" if cold else "%.1f" % median["memory"],
        "%.3fx [%.3f %.3f]" % (statistics.median(ratios), quartiles[0], quartiles[2]),
        median["qcow2"] / median["pcow"], "" if cold else "%.2fx" % (median["memory"] / median["pcow"]),
        clock["raw"] / clock["pcow"], clock["qcow2"] / clock["pcow"]))
sys.exit(bad)
END
finish
