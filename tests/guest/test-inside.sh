#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# libpcow's own tests inside a guest with real DAX: on ext4 in an fsdax namespace of an NVDIMM, where MAP_SYNC
# works, libpmem finds persistent memory without being told, and the kernel refuses userfaultfd's write protection
# for mapped files (before 6.12 asynchronous, too).
#
#     test-inside.sh BUILD-DIR [TEST…]        (names as `meson test --list` has them; default: those below)

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
build=${1:?a build directory}
shift
# Everything of suite `unit`, and what maps, with as few operations as an emulated CPU does in some minutes.
tests=("$@")
[ $# -gt 0 ] || mapfile -t tests < <(python3 - "$build" <<'END'
import json
import sys
for test in json.load(open(sys.argv[1] + "/meson-info/intro-tests.json")):
    if any(s.endswith("unit") for s in test["suite"]) and test["cmd"][0].startswith(sys.argv[1]):
        print(test["name"])
for name in ("flush", "flush-once", "flush-threads", "flush-adapt", "map", "ops-map", "snapshot-live", "runs"):
    print(name)
END
)

# Programs, the libraries they need and a list of commands, in an image that the guest mounts read-only.
tree=$work/tree
mkdir -p "$tree/bin" "$tree/lib"
declare -a programs
: >"$tree/list"
# busybox has its own of these, and its shell prefers them.
programs+=("$(command -v tar)" "$(command -v xz)" "$(command -v cp)" "$(command -v dash)")
mkdir -p "$tree/source/tests" && cp -r "$guest_dir/../data" "$tree/source/tests/"
for name in "${tests[@]}"; do
  command=$(python3 - "$build" "$name" <<'END'
import json
import sys
for test in json.load(open(sys.argv[1] + "/meson-info/intro-tests.json")):
    if test["name"] == sys.argv[2]:
        print(" ".join(test["cmd"]))
        break
END
  )
  [ -n "$command" ] || { fail "$build has no test $name"; continue; }
  # shellcheck disable=SC2086 # words of a command
  set -- $command
  programs+=("$1")
  echo "$name ${1##*/} ${*:2}" >>"$tree/list"
done
with_libraries "$tree" "${programs[@]}" || guest_skip "the tests are not built"
# What is loaded without being linked.
pmem=$(ldconfig -p | sed -n 's/.*libpmem\.so\.1 .*=> //p' | head -n 1)
[ -z "$pmem" ] || with_library "$tree" "$pmem"
find "$tree" -name '*.so*' ! -regex "$tree/lib/[^/]*" -exec mv -f -t "$tree/lib" {} +

cat >"$tree/run" <<'END'
export TMPDIR=/pm PCOW_TEST_DIR=/pm SOURCE_ROOT=/t/source PATH=/t/bin:/bin LD_LIBRARY_PATH=/t/lib
export CK_DEFAULT_TIMEOUT=1200 HOME=/
ln -sf /t/bin/dash /bin/sh
cd /pm
while read -r name program arguments; do
  timeout 1500 /t/bin/$program $arguments >/tmp/out 2>&1 </dev/null
  status=$?
  case $status in
    0) echo "PASS $name" ;;
    77) echo "SKIPPED $name: $(grep SKIP /tmp/out | head -n 1)" ;;
    *) echo "FAILED $name ($status)"; tail -n 12 /tmp/out | sed "s/^/# /" ;;
  esac
  rm -rf /pm/* /tmp/out
done </t/list
END
truncate -s 600M "$work/t.raw"
mke2fs -q -t ext4 -b 4096 -F -O ^has_journal -d "$tree" "$work/t.raw" || guest_skip "no image of the tests can be made"
rm -rf "$tree"

truncate -s 1G "$work/empty.raw"
mke2fs -q -t ext4 -b 4096 -F "$work/empty.raw"
that "an NVDIMM with ext4 for DAX" nvdimm_root "$work/pm.raw" "$work/empty.raw"
rm -f "$work/empty.raw"

guest_job inside <<'END'
mkdir -p /t /pm /lib64 /dev/shm && ln -s /t/lib/ld-linux-x86-64.so.2 /lib64/ && mount -t tmpfs shm /dev/shm || exit 2
mount -t ext4 -o ro /dev/vda /t && mount -t ext4 -o dax=always /dev/pmem0 /pm || exit 1
sh /t/run
END
GUEST_MEMORY=3G guest_start inside -drive "if=virtio,format=raw,readonly=on,file=$work/t.raw" \
  -object "memory-backend-file,id=pm,share=on,mem-path=$work/pm.raw,size=$(stat -c %s "$work/pm.raw")" \
  -device nvdimm,memdev=pm,id=nv
that "the guest has run the tests" guest_wait inside "${PCOW_INSIDE_SECONDS:-1500}"
passed=0
while read -r line; do
  case $line in
    PASS*) passed=$((passed + 1)); ok "${line#PASS }" ;;
    SKIPPED*) echo "# $line" ;;
    FAILED*) fail "${line#FAILED }" ;;
    '#'*) echo "$line" ;;
  esac
done < <(guest_console inside)
that "$passed of ${#tests[@]} tests have passed in the guest" test $passed -gt 0
finish
