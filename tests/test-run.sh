#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# pcow-run: programs that know nothing of pcow find an image to be a raw file, in its content and in what calls
# answer; other files stay what they are; errors are one sentence and an errno; children, threads and exits leave
# the image whole. The base of every image here must be the same at the end, byte for byte.

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/cli-common.sh"

for name in PCOW_RUN RUN_OPS RUN_CALLS; do
  if [ ! -x "${!name:-}" ]; then
    echo "SKIP: $name does not name a program"
    exit 77
  fi
done

# through COMMAND…: under pcow-run, as run does it.
through() { run "$PCOW_RUN" "$@"; }

# works NAME COMMAND…: exits 0 and says nothing on stderr.
works()
{
  local name=$1

  shift
  through "$@"
  if [ "$status" = 0 ] && [ ! -s "$scratch/err" ]; then
    ok "$name"
  else
    not_ok "$name" "$*" "exit status $status"
  fi
}

# refused NAME PATTERN COMMAND…: fails, and one line of stderr is pcow-run's sentence.
refused()
{
  local name=$1 pattern=$2

  shift 2
  through "$@"
  if [ "$status" != 0 ] && [ "$(grep -c '^pcow-run: ' "$scratch/err")" = 1 ] &&
    grep -q "^pcow-run: .*$pattern" "$scratch/err"; then
    ok "$name"
  else
    not_ok "$name" "$*" "exit status $status"
  fi
}

clean() { that "$1: check is clean" "$PCOW_IMG" check "$1"; }

fresh() # FILE [BASE]
{
  rm -f "$1"
  img create -q -b "${2:-base.pcow}" -F pcow "$1"
}

# ---- Set-up: 8 MiB that differ everywhere, and a file of zeros and data ----

head -c 8M /dev/urandom >raw
truncate -s 8M sparse
head -c 300000 /dev/urandom | dd of=sparse bs=4096 seek=500 conv=notrunc status=none
head -c 8M /dev/zero | tr '\0' A >letters
for name in raw letters sparse; do
  img convert -f raw -O pcow "$name" "${name/raw/base}.pcow"
done
# What is in their files, and when it was written; most of them is holes.
bases() { tar -c -S --mode=0 base.pcow letters.pcow sparse.pcow | sha256sum; }
bases_before=$(bases)

# ---- What ordinary programs see ----

test_programs()
{
  fresh a.pcow
  through stat -c %s a.pcow
  that 'stat says the virtual size' out_has '^8388608$'
  through ls -l "$PWD/a.pcow"
  that 'ls says the virtual size' out_has ' 8388608 '
  through find . -name a.pcow -size 8388608c
  that 'find does' out_has a.pcow
  works 'cmp: the content is the raw file' cmp raw a.pcow
  works 'cat' sh -c 'cat a.pcow | cmp - raw'
  works 'a shell hands it on as standard input' sh -c 'cmp - raw <a.pcow'
  "$PCOW_RUN" cmp - raw <a.pcow >"$scratch/out" 2>"$scratch/err"
  that 'so does one that knows nothing of images' test $? = 0
  works 'commands share its position' \
    sh -c '{ dd bs=1M count=3 status=none; dd bs=64k status=none; } <a.pcow | cmp - raw'
  works 'a stream of the C library' sh -c 'test "$(md5sum <raw)" = "$(md5sum <a.pcow)"'
  works 'cp from it' cp a.pcow copy
  that 'cp made the raw file' cmp copy raw
  works 'cp from it, with holes' cp --sparse=always sparse.pcow copy
  that 'cp made the sparse file' cmp copy sparse
  works 'dd into the middle' \
    dd if=letters of=a.pcow bs=4096 skip=3 seek=100 count=7 conv=notrunc,fsync status=none
  cp raw expected
  dd if=letters of=expected bs=4096 skip=3 seek=100 count=7 conv=notrunc status=none
  that 'dd wrote what it would to a raw file' img compare -q expected a.pcow
  "$PCOW_RUN" dd if=letters bs=64k count=1 status=none 1<>a.pcow 2>"$scratch/err"
  that 'a descriptor from outside is written' test $? = 0
  dd if=letters of=expected bs=64k count=1 conv=notrunc status=none
  that 'to the content' img compare -q expected a.pcow
  works 'a hole is punched' fallocate -p -o 1000000 -l 2000000 a.pcow
  fallocate -p -o 1000000 -l 2000000 expected
  that 'it reads as zeros' img compare -q expected a.pcow
  works 'space is asked for' fallocate -l 8M a.pcow
  works 'truncate to the same size' truncate -s 8M a.pcow
  refused 'truncate to less' 'cannot be made smaller' truncate -s 4M a.pcow
  works 'truncate to more' truncate -s 12M a.pcow
  truncate -s 12M expected
  that 'it has grown' img compare -q expected a.pcow
  through dd if=/dev/zero of=a.pcow bs=1M seek=12 count=1 conv=notrunc
  that 'nothing goes beyond the end' grep -q 'No space left' "$scratch/err"
  fresh b.pcow
  works 'cp over it' cp sparse b.pcow
  that 'what was there is gone' img compare -q sparse b.pcow
  works 'a shell truncates it' sh -c 'head -c 1000000 raw >b.pcow; true'
  head -c 1000000 raw >expected
  truncate -s 8M expected
  that 'the rest is zeros' img compare -q expected b.pcow
  clean a.pcow
  clean b.pcow
}

test_others()
{
  cp raw plain
  works 'another file is written' sh -c 'echo hello >plain && cat plain && rm plain'
  that 'as ever' out_has '^hello$'
  truncate -s 3G large
  through stat -c %s large
  that 'a large file is as large as it is' out_has '^3221225472$'
  # It begins as an image does, and is none that anybody could take for one: it is too short.
  printf 'PCOW\r\n\032\n' >short
  works 'a file with the first bytes of an image' cmp short short
  fresh a.pcow
  through -i b.pcow cmp a.pcow a.pcow
  through -i b.pcow stat -c %s a.pcow
  that 'with --image no other one is served' sh -c "! grep -q '^8388608$' '$scratch/out'"
  through -i b.pcow stat -c %s b.pcow
  that 'but that one is' out_has '^8388608$'
  through -i short cat a.pcow
  works 'pipes, devices, directories' \
    sh -c 'mkfifo p; cat p >/dev/null & echo x >p; wait; ls / >/dev/null; : </dev/null'
}

# ---- Snapshots, errors ----

test_snapshots()
{
  fresh a.pcow
  img snapshot -c before a.pcow
  works 'the head is written' dd if=letters of=a.pcow bs=1M conv=notrunc status=none
  works 'a snapshot is read' -i a.pcow@before cmp raw a.pcow
  works 'the head is what was written' cmp letters a.pcow
  refused 'a snapshot is not written' 'cannot be written' -i a.pcow@before dd if=raw of=a.pcow conv=notrunc
  refused 'there is no such snapshot' "nothing" -i a.pcow@nothing cat a.pcow
  through -i a.pcow@before stat -c %s a.pcow
  that 'a snapshot has its size' out_has '^8388608$'
}

test_errors()
{
  fresh a.pcow
  dd if=/dev/urandom of=a.pcow bs=4096 count=1 conv=notrunc status=none
  dd if=/dev/urandom of=a.pcow bs=4096 seek=256 count=1 conv=notrunc status=none
  printf 'PCOW\r\n\032\n' | dd of=a.pcow conv=notrunc status=none
  refused 'damaged' 'a.pcow: ' cat a.pcow
  through cat a.pcow
  that 'the program gets an errno' grep -q '^cat: .*Structure needs cleaning' "$scratch/err"
  mkdir -p elsewhere
  fresh c.pcow
  mv c.pcow elsewhere
  refused 'the base is missing' 'No such file' cat elsewhere/c.pcow
  img create -q -b "$PWD/base.pcow" -F pcow elsewhere/d.pcow
  refused 'the base is not in the directory' 'base' cat elsewhere/d.pcow
  works 'with --base-dir it is found' --base-dir=. cmp raw elsewhere/d.pcow
  works 'with --any-base it is followed' --any-base cmp raw elsewhere/d.pcow
  fresh b.pcow
  coproc HOLDER { exec "$PCOW_RUN" "$RUN_CALLS" hold b.pcow; }
  holder=$HOLDER_PID
  read -r answer <&"${HOLDER[0]}"
  that 'another process has it' test "$answer" = held
  works 'open(2) says EBUSY' sh -c "$RUN_CALLS busy b.pcow 2>&1 | grep -q 'not Device' && exit 1; true"
  refused 'in use' 'is open for writing' cat b.pcow
  through stat -c %s b.pcow
  that 'its size can be asked for meanwhile' out_has '^8388608$'
  eval "exec ${HOLDER[1]}>&-"
  wait "$holder"
  works 'it is free again' sh -c 'cmp raw b.pcow || test "$(head -c 1 b.pcow)" = A'
  refused 'no such option' 'nonsense' --nonsense true
  refused 'no such durability' 'nonsense' --durability=nonsense true
  refused 'no such program' 'no such program' ./nothing
  that 'status 127' test "$status" = 127
  refused 'no program' 'no program' -i a.pcow
  that 'status 125' test "$status" = 125
  printf 'int main(void) { return 0; }\n' >static.c
  if ${CC:-cc} -static -o static static.c 2>/dev/null; then
    refused 'a static program' 'statically' ./static
    that 'status 126' test "$status" = 126
  else
    skip 'a static program' 'cannot be linked here'
  fi
  cp /bin/true other
  chown 65534 other 2>/dev/null && chmod u+s other
  if [ -u other ] && [ "$(stat -c %u other)" != "$(id -u)" ]; then
    refused 'a set-user-ID program' 'another user' ./other
  else
    skip 'a set-user-ID program' 'chown is not permitted'
  fi
  cp /bin/true capable
  chmod 755 "$work"
  if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null && setcap cap_net_raw+ep capable 2>/dev/null; then
    run setpriv --reuid=65534 --regid=65534 --clear-groups "$PCOW_RUN" ./capable
    that 'a program with capabilities is not run' test "$status" = 126
  else
    skip 'a program with capabilities' 'setpriv or setcap is missing, or does not work here'
  fi
  mkdir -p broken
  cp "$PCOW_RUN" broken
  echo nothing >broken/libpcow-run.so
  run broken/pcow-run true
  that 'a library that cannot be loaded' test "$status" = 125
  printf '#!./static\n' >script
  chmod +x script
  [ -x static ] && refused "a script's interpreter" 'statically' ./script
}

# What may only be read can be read, by whoever may not write the file either.
test_read_only()
{
  fresh a.pcow
  chmod 444 a.pcow base.pcow
  if ! command -v setpriv >/dev/null || [ "$(id -u)" != 0 ]; then
    skip 'a read-only image' 'needs root and setpriv'
    return
  fi
  chmod 755 "$work"
  nobody() { through setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
  nobody cmp raw a.pcow
  that 'another user reads it' test "$status" = 0
  nobody sh -c 'exec cat a.pcow'
  cmp -s raw "$scratch/out"
  that 'all of it' test $? = 0
  nobody dd if=raw of=a.pcow conv=notrunc
  that 'and does not write it' test "$status" != 0
  nobody sh -c 'cat <a.pcow'
  # All calls again, without the right to hold faults of system calls: maps are flush-durable in another way.
  mkdir mine
  cp raw mine/a.raw
  cp --sparse=always base.pcow mine
  (cd mine && img create -q -b base.pcow -F pcow a.pcow)
  chown -R 65534:65534 mine
  nobody sh -c 'cat <a.pcow'
  that 'as standard input it fails cleanly' \
    sh -c "grep -q 'Bad file descriptor' '$scratch/err' && test ! -s '$scratch/out'"
  nobody "$RUN_OPS" mine/a.raw mine/a.pcow "${RUN_SEED:-0}" "${RUN_COUNT:-3000}"
  that 'random calls by another user' test "$status" = 0
  [ "$status" = 0 ] || not_ok 'random calls by another user: why' "exit status $status"
  that 'the image is the raw file' img compare -q mine/a.raw mine/a.pcow
  clean mine/a.pcow
}

# ---- Programs written for this ----

test_calls()
{
  local name

  for name in allocator closed exec fork grow numbers parts past private refused reservation spawn stale threads trunc vfork; do
    fresh c.pcow letters.pcow
    through timeout 60 "$RUN_CALLS" $name "$PWD/c.pcow" "$PWD/more"
    that "$name" test "$status" = 0
    [ "$status" = 0 ] || not_ok "$name: why" "exit status $status"
    clean c.pcow
    if [ $name = exec ]; then
      that "$name: nobody was cut off" sh -c "! grep -q cleanly '$scratch/err'"
      works "$name: what was written before it is there" sh -c 'test "$(head -c 1 c.pcow)" = E'
    fi
  done
  fresh c.pcow letters.pcow
  through "$RUN_CALLS" direct "$PWD/c.pcow" "$PWD/plain"
  if [ "$status" = 77 ]; then
    skip 'reads with O_DIRECT into a map' 'this file system has no O_DIRECT'
  else
    that 'reads with O_DIRECT into a map' test "$status" = 0
    clean c.pcow
  fi
  for name in '' now quick; do
    fresh c.pcow letters.pcow
    # shellcheck disable=SC2086 # no argument when empty
    through "$RUN_CALLS" exit "$PWD/c.pcow" $name
    that "exit $name with threads that store: its own status" test "$status" = 7
    works 'what was stored before is there' sh -c 'test "$(head -c 1 c.pcow)" = X'
    clean c.pcow
  done
  img convert -f raw -O pcow letters another.pcow
  fresh c.pcow another.pcow
  touch lives
  through "$RUN_CALLS" orphan "$PWD/c.pcow" "$PWD/lives"
  that 'a child of one that ended lives' test "$status" = 0
  that 'it does not hold the image' img snapshot -c free c.pcow
  that 'nor the base' img snapshot -c free another.pcow
  rm lives
  fresh c.pcow letters.pcow
  through "$RUN_CALLS" daemon "$PWD/c.pcow" "$PWD/gone"
  for _ in $(seq 200); do
    [ -e gone ] && break
    sleep 0.1
  done
  that 'a child goes on when its parent has ended' test -e gone
  for _ in $(seq 100); do
    "$PCOW_RUN" cat c.pcow >"$scratch/out" 2>/dev/null && break
    sleep 0.1
  done
  that 'what both wrote is there' \
    sh -c "test \"\$(head -c 1 '$scratch/out')\$(tail -c +8193 '$scratch/out' | head -c 1)\" = DD"
}

test_durability()
{
  fresh c.pcow letters.pcow
  through "$RUN_CALLS" synced "$PWD/c.pcow"
  that 'a process is killed that has synced' test "$status" = 137
  for n in 0 1 2 3 4 5; do
    [ "$n" = 5 ] && set -- 7 || set -- $((n + 1))
    printf '%s' "$1" | dd of=synced bs=4096 seek=$n conv=notrunc status=none
  done
  cp letters expected
  for n in 0 1 2 3 4 5; do
    dd if=synced of=expected bs=1 count=1 skip=$((n * 4096)) seek=$((n * 4096)) conv=notrunc status=none
  done
  printf 6 | dd of=expected bs=1 seek=$((3 * 4096 + 1)) conv=notrunc status=none
  that 'what it synced is there' img compare -q expected c.pcow
  clean c.pcow
  if [ "$(img info --output=json letters.pcow | grep -c '"durability" : "store"')" = 0 ] &&
    [ "${PMEM_IS_PMEM_FORCE:-}" != 1 ]; then
    skip 'MAP_SYNC' 'no persistent memory'
    return
  fi
  fresh c.pcow letters.pcow
  through "$RUN_CALLS" map-sync "$PWD/c.pcow"
  that 'MAP_SYNC is served, and the process killed' test "$status" = 137
  through sh -c 'test "$(head -c 1 c.pcow)" = S'
  that 'its store is there all the same' test "$status" = 0
  fresh c.pcow letters.pcow
  works 'flush-durable only: MAP_SYNC is refused' --durability=flush "$RUN_CALLS" map-sync "$PWD/c.pcow" no
  works 'MAP_SHARED is not, and fsync flushes' sh -c 'test "$(head -c 1 c.pcow)" = S'
}

test_random()
{
  local how seed

  for how in '' --durability=store; do
    if [ -n "$how" ] && [ "${PMEM_IS_PMEM_FORCE:-}" != 1 ]; then
      skip "random calls, $how" 'no persistent memory'
      continue
    fi
    for base in base sparse; do
      seed=$((RANDOM * 32768 + RANDOM + 1))
      cp "${base/base/raw}" a.raw
      fresh a.pcow $base.pcow
      # shellcheck disable=SC2086 # no argument when empty
      through $how "$RUN_OPS" a.raw a.pcow "${RUN_SEED:-$seed}" "${RUN_COUNT:-6000}"
      that "random calls, $base, ${how:-default}, seed ${RUN_SEED:-$seed}" test "$status" = 0
      [ "$status" = 0 ] || not_ok 'random calls: why' "exit status $status"
      that 'the image is the raw file' img compare -q a.raw a.pcow
      clean a.pcow
    done
  done
}

# ---- fio ----

test_fio()
{
  local engine

  if ! command -v fio >/dev/null; then
    skip 'fio' 'not installed'
    return
  fi
  img create -q zeros.pcow 32M
  for engine in libpmem mmap psync; do
    # Asked about one engine, it fails when that has no options.
    fio --enghelp 2>/dev/null | grep -qw $engine || { skip "fio $engine" 'this fio has no such engine'; continue; }
    if [ $engine = libpmem ] && [ "${PMEM_IS_PMEM_FORCE:-}" != 1 ]; then
      skip "fio $engine" 'no persistent memory'
      continue
    fi
    fresh f.pcow zeros.pcow
    job=(--name=j --filename="$PWD/f.pcow" --bs=4k --size=32M --verify=crc32c --verify_state_save=0)
    works "fio $engine: random writes, verified" fio "${job[@]}" --ioengine=$engine --rw=randwrite
    fresh f.pcow zeros.pcow
    works "fio $engine: writes" fio "${job[@]}" --ioengine=$engine --rw=write --do_verify=0 --fsync=32
    works "fio $engine: opened again, verified" fio "${job[@]}" --ioengine=mmap --rw=read
    clean f.pcow
  done
}

# ---- Manual ----

test_help()
{
  local manual=$tests_dir/../docs/man/pcow-run.1

  run "$PCOW_RUN" --help
  that '--help exits 0' test "$status" = 0
  grep -o -e '--[a-z-]*' "$scratch/out" | grep -v -x -e --help-all | sort -u >"$scratch/said"
  sed -n 's/^\.It.*Fl -\([a-z-]*\).*/--\1/p' "$manual" | sort -u >"$scratch/written"
  that 'the manual has the options of --help' diff "$scratch/said" "$scratch/written"
  run "$PCOW_RUN" --version
  that '--version' out_has '^pcow-run [0-9]'
}

test_programs
test_others
test_snapshots
test_errors
test_read_only
test_calls
test_durability
test_random
test_fio
test_help
that 'no base has changed' test "$(bases)" = "$bases_before"

finish
