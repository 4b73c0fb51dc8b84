#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# libpcow's own tests inside a guest with real DAX: on ext4 in an fsdax namespace of an NVDIMM, where MAP_SYNC
# works, nothing is emulated (PCOW_TEST_DAX), and the kernel refuses userfaultfd's write protection for mapped files
# but the asynchronous one. The kernel is 6.12; older ones than 6.4 let nobody map for writing, which is looked at, too.
#
#     test-inside.sh [--all] BUILD-DIR [TEST…]    (names as `meson test --list` has them)
#
# Without --all the tests are those that CI runs; plan-inside.py knows them, and says what cannot run in a guest. The
# tests are divided among PCOW_INSIDE_GUESTS guests (2) that run at once.

which=ci
[ "${1:-}" != --all ] || { which=all; shift; }
build=${1:?a build directory}
shift
PCOW_GUEST_KERNEL=${PCOW_GUEST_KERNEL:-6.12}
# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
for program in ndctl xz; do
  command -v $program >/dev/null || guest_skip "$program is not installed"
done
guests=${PCOW_INSIDE_GUESTS:-2}

python3 "$guest_dir/plan-inside.py" $which "$build" "$@" >"$work/plan" || exit 1
planned=$(grep -c '^run ' "$work/plan")
unknown=$(sed -n 's/^unknown //p' "$work/plan")
[ -z "$unknown" ] || fail "$build has no test ${unknown//$'\n'/, }"

# Programs, the libraries they need and the files they read, in an image that the guests mount read-only.
tree=$work/tree
mkdir -p "$tree/bin" "$tree/lib" "$tree/source/tests/fuzz"
cp -r "$guest_dir/../data" "$tree/source/tests/"
cp -r "$guest_dir/../fuzz/corpus" "$tree/source/tests/fuzz/"
mapfile -t programs < <(awk '$1 == "run" { print $3 }' "$work/plan" | sort -u)
# busybox has its own of these, and its shell prefers them.
with_libraries "$tree" "${programs[@]}" "$build"/tests/test-{store,map,flush-once} tar xz cp dash ndctl \
  mke2fs || guest_skip "the tests are not built"
# What is loaded without being linked.
pmem=$(ldconfig -p | sed -n 's/.*libpmem\.so\.1 .*=> //p' | head -n 1)
[ -z "$pmem" ] || with_library "$tree" "$pmem"
find "$tree" -name '*.so*' ! -regex "$tree/lib/[^/]*" -exec mv -f -t "$tree/lib" {} +

cat >"$tree/run" <<'END'
export TMPDIR=/pm PCOW_TEST_DIR=/pm PCOW_TEST_DAX=1 SOURCE_ROOT=/t/source PATH=/t/bin:/bin LD_LIBRARY_PATH=/t/lib
export CK_TIMEOUT_MULTIPLIER=20 G_DEBUG=fatal-warnings HOME=/
unset PMEM_IS_PMEM_FORCE
ln -sf /t/bin/dash /bin/sh
cd /pm
seconds() { cut -d. -f1 /proc/uptime; }
while read -r name program arguments; do
  begin=$(seconds)
  timeout 1500 /t/bin/$program $arguments >/tmp/out 2>&1 </dev/null
  status=$?
  took=$(($(seconds) - begin))
  case $status in
    0) echo "PASS $name: $took s" ;;
    77) echo "SKIPPED $name: $(grep SKIP /tmp/out | head -n 1)" ;;
    *) echo "FAILED $name: exit status $status after $took s"; tail -n 12 /tmp/out | cut -c 1-240 | sed "s/^/# /" ;;
  esac
  rm -rf /pm/* /tmp/out
done </list
END
truncate -s 600M "$work/t.raw"
mke2fs -q -t ext4 -b 4096 -F -O ^has_journal -d "$tree" "$work/t.raw" || guest_skip "no image of the tests can be made"
rm -rf "$tree"

# boot NAME: a guest that does what is in the list of this name.
boot()
{
  mkdir -p "$work/dir/bin"
  cp "$work/$1.list" "$work/dir/list"
  cat >"$work/dir/job" <<'END'
mkdir -p /t /pm /lib64 /dev/shm && ln -s /t/lib/ld-linux-x86-64.so.2 /lib64/ && mount -t tmpfs shm /dev/shm || exit 2
mount -t ext4 -o ro /dev/vda /t || exit 1
export LD_LIBRARY_PATH=/t/lib
/t/bin/ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem >/dev/null || exit 4
/t/bin/mke2fs -q -t ext4 -b 4096 -F -E nodiscard /dev/pmem0 && mount -t ext4 -o dax=always /dev/pmem0 /pm || exit 5
grep -q '^/dev/pmem0 /pm ext4 .*dax=always' /proc/mounts || exit 3
sh /t/run
END
  guest_pack "$1" "$work/dir"
  truncate -s 1040M "$work/$1.pm"
  GUEST_MEMORY=${PCOW_INSIDE_MEMORY:-3G} guest_start "$1" \
    -drive "if=virtio,format=raw,readonly=on,file=$work/t.raw" \
    -object "memory-backend-file,id=pm,share=on,mem-path=$work/$1.pm,size=1040M" -device nvdimm,memdev=pm,id=nv
}

for ((n = 0; n < guests; n++)); do
  awk -v n=$n -v guests="$guests" -v "corpus=$(realpath "$guest_dir/../fuzz/corpus")" '
    $1 == "run" && count++ % guests == n {
      line = $2; sub(/.*\//, "", $3); for (i = 3; i <= NF; i++) line = line " " $i
      gsub(/\{\}/, "/pm", line)
      if (at = index(line, corpus)) line = substr(line, 1, at - 1) "/t/source/tests/fuzz/corpus"
      print line
    }' "$work/plan" >"$work/inside$n.list"
  boot inside$n
done
passed=0
skipped=0
for ((n = 0; n < guests; n++)); do
  that "guest $n has run its tests" guest_wait inside$n "${PCOW_INSIDE_SECONDS:-3600}"
  while read -r line; do
    case $line in
      PASS*) passed=$((passed + 1)); ok "${line#PASS }" ;;
      SKIPPED*) skipped=$((skipped + 1)); echo "# $line" ;;
      FAILED*) fail "${line#FAILED }" ;;
      '#'*) echo "$line" ;;
    esac
  done < <(guest_console inside$n)
done
sed -n 's/^not \([^ ]*\) /# not run: \1: /p' "$work/plan"
that "all $planned tests of the plan: $passed passed, $skipped skipped themselves" \
  test $((passed + skipped)) -eq "$planned" -a $passed -gt 0

# A kernel that cannot protect what is not there yet: calls work, a map is refused in one sentence.
if [ -x "$build/tests/test-store" ] && older=$("$guest_dir/make-guest" --kernel 6.1); then
  guest=$older
  printf '%s\n' 'store test-store' 'map test-map' 'flush-once test-flush-once' >"$work/older.list"
  boot older
  that "a guest with Linux $(cat "$older/version")" guest_wait older 600
  guest_console older >"$work/older.said"
  that "calls without a map work there" grep '^PASS store: ' "$work/older.said"
  for name in map flush-once; do
    # A test may end with that, or skip itself for it.
    that "a map is refused in a sentence ($name)" grep -E \
      "^(SKIPPED|#).*test-$name\.[0-9]*/.*: cannot be mapped for writing: .* Linux 6\.4 or later is needed\$" "$work/older.said"
  done
fi
finish
