#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# pcow-bench: every case runs, libpcow fails in none of them, JSON and SVG are well formed, what is missing is
# skipped with a reason, and nothing is left behind, however a run ends. No figure is looked at.

set -u
export LC_ALL=C.UTF-8

bench=${PCOW_BENCH:-}
if [ ! -x "$bench" ]; then
  echo "SKIP: PCOW_BENCH does not name pcow-bench"
  exit 77
fi

tests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d "${TMPDIR:-/dev/shm}/pcow-bench-test.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
work=$scratch/work # the bench makes its directory in here, and must remove it
mkdir "$work"
count=0
failures=0

ok()
{
  count=$((count + 1))
  echo "ok $count - $1"
}

not_ok()
{
  count=$((count + 1))
  failures=$((failures + 1))
  echo "not ok $count - $1"
  [ -s "$scratch/out" ] && sed 's/^/# stdout: /' "$scratch/out" | head -n 40
  [ -s "$scratch/err" ] && sed 's/^/# stderr: /' "$scratch/err" | head -n 20
  return 0
}

# that NAME COMMAND...: the command succeeds.
that()
{
  local name=$1

  shift
  if "$@" >/dev/null 2>&1; then
    ok "$name"
  else
    not_ok "$name"
  fi
}

# run OPTION...: output to $scratch/out and $scratch/err, exit status to $status.
run()
{
  timeout 100 "$bench" --dir "$work" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
  status=$?
}

succeeds()
{
  [ "$status" = 0 ] && [ ! -s "$scratch/err" ]
}

# No file, no mount, no process.
nothing_left()
{
  [ -z "$(ls -A "$work")" ] && ! grep -q " $work/" /proc/mounts && ! pgrep -f -- "$work/" >/dev/null
}

well_formed()
{
  if command -v xmllint >/dev/null; then
    xmllint --noout "$@"
  else
    python3 - "$@" <<'END'
import sys, xml.dom.minidom
for name in sys.argv[1:]:
    xml.dom.minidom.parse(name)
END
  fi
}

# What the document says of every case; nothing of libpcow may have failed, and each reason is a sentence.
check_json()
{
  python3 - "$scratch/out" "$scratch/list" <<'END'
import json, sys

document = json.load(open(sys.argv[1]))
listed = [line.split()[0] for line in open(sys.argv[2])]
assert document['schema-version'] == 1 and document['quick'] and document['emulated']
assert [case['name'] for case in document['cases']] == listed, 'not every case has run'
for case in document['cases']:
    assert case['title'] and case['unit'] and case['contenders'], case['name']
    for contender in case['contenders']:
        what = f"{case['name']}: {contender['name']}"
        if contender['status'] == 'ok':
            time = contender['time']
            assert time['samples'] and 0 < time['min'] <= time['median'] <= time['max'], what
            continue
        print(f"{what}: {contender['status']}: {contender['reason']}")
        assert contender['reason'], what
        ours = 'pcow' in contender['name']
        assert contender['status'] == 'skipped' or not ours, what
    for target in case['targets']:
        assert target['how'] in ('faster', 'within', 'beyond', 'at-most') and target['limit'] > 0
        assert ('met' in target) == (target['measured'] is not None), target['sentence']
END
}

# ---- Every case ----

test_all()
{
  local case_name missing=0

  run --list
  cp "$scratch/out" "$scratch/list"
  that 'cases are listed' test "$(wc -l <"$scratch/list")" -gt 50

  run --quick --force-pmem --json --svg "$scratch/svg"
  that 'every case runs' succeeds
  that 'nothing is left behind' nothing_left
  if check_json >"$scratch/said" 2>&1; then
    ok 'JSON says what came of every case'
    sed 's/^/# /' "$scratch/said"
  else
    not_ok 'JSON says what came of every case'
    sed 's/^/# /' "$scratch/said"
  fi
  that 'the charts are well-formed XML' well_formed "$scratch"/svg/*.svg
  while read -r case_name _; do
    [ -s "$scratch/svg/$case_name.svg" ] || missing=1
  done <"$scratch/list"
  that 'each case has a chart' test $missing = 0
  that 'and there is an overview' test -s "$scratch/svg/overview.svg"
}

# ---- Competitors that are not there ----

test_missing()
{
  run --quick --force-pmem -c warm-flush-4k-random
  that 'the table has our modes' grep -q '^  libpcow store-durable  ' "$scratch/out"

  mkdir "$scratch/bin"
  PATH=$scratch/bin "$bench" --dir "$work" --quick --force-pmem -c warm-flush-4k-random \
    >"$scratch/out" 2>"$scratch/err" </dev/null
  status=$?
  if [ -x /usr/sbin/qemu-img ]; then
    echo '# qemu-img lies where it is always searched'
  else
    that 'without competitors: still a success' test "$status" = 0
    that 'they are named as skipped, with the reason' \
      grep -q '^  skipped: qcow2 in process (qemu-img bench): qemu-img is not installed$' "$scratch/out"
    that 'and a ratio to them is not known' grep -q 'not known$' "$scratch/out"
  fi
  that 'nothing is left behind then' nothing_left

  # No persistent memory and no emulation of it: libpcow itself says what it cannot do.
  run --quick -c warm-write-64-seq
  that 'without emulation: a success' test "$status" = 0
  that 'store-durable is skipped with the sentence of the library' \
    grep -q '^  skipped: libpcow store-durable: .*flush-durable' "$scratch/out"

  mkdir "$scratch/full"
  if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=24M pcow-bench-test "$scratch/full" 2>/dev/null; then
    timeout 60 "$bench" --dir "$scratch/full" --quick --force-pmem -c warm-write-64-seq \
      >"$scratch/out" 2>"$scratch/err" </dev/null
    status=$?
    that 'a small file system is no failure' test "$status" = 0
    that 'and the reason is told' grep -q '^  skipped: .*: needs .* free$' "$scratch/out"
    umount "$scratch/full"
  fi
}

# ---- Interrupted ----

# interrupt SIGNAL CASE: while it runs; its exit status to $status. The shell itself would have SIGINT ignored.
interrupt()
{
  local pid tries=0

  env --default-signal=INT,TERM "$bench" --dir "$work" --force-pmem -p -r 100000 --quick -c "$2" \
    >"$scratch/out" 2>"$scratch/err" </dev/null &
  pid=$!
  until grep -q 'run [1-9]' "$scratch/err" || [ $tries -gt 300 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  ls "$work" >"$scratch/before"
  kill "-$1" "$pid"
  wait "$pid" 2>/dev/null
  status=$?
}

# Killed, it cannot clean up; the janitor does, a moment later.
soon_nothing_left()
{
  local tries=0

  until nothing_left || [ $tries -gt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  nothing_left
}

test_interrupted()
{
  interrupt INT warm-flush-4k-random
  that 'SIGINT: it was at work' test -s "$scratch/before"
  that 'SIGINT ends it as a signal does' test "$status" = 130
  that 'SIGINT: nothing is left behind' nothing_left
  interrupt TERM flush-1
  that 'SIGTERM ends it as a signal does' test "$status" = 143
  that 'SIGTERM: nothing is left behind' nothing_left
  interrupt KILL warm-flush-4k-random
  that 'SIGKILL: the janitor removes everything' soon_nothing_left
}

# ---- Command line, manual ----

test_options()
{
  local manual=$tests_dir/../docs/man/pcow-bench.1

  run --help
  grep -o -e ' -[-a-zA-Z]*' "$scratch/out" | tr -d ' ' | sort -u >"$scratch/help-options"
  grep -o -e '^\.It Fl.*' "$manual" | sed 's/^\.It//; s/ , / /' | grep -o -e 'Fl [-a-zA-Z]*' | sed 's/^Fl /-/' |
    sort -u >"$scratch/man-options"
  that 'the manual has the options of --help' cmp "$scratch/help-options" "$scratch/man-options"
  if command -v mandoc >/dev/null; then
    that 'the manual is clean' mandoc -T lint -W warning "$manual"
  fi
  run -c 'no such case'
  that 'a pattern without a case is an error' test "$status" = 1
  run -c warm-write-64-seq --quick --force-pmem -q
  that '-q prints one line' test "$(wc -l <"$scratch/out")" = 1
  run nonsense
  that 'an argument is an error' test "$status" = 1
}

test_options
test_missing
test_interrupted
test_all
echo "1..$count"
[ "$failures" = 0 ]
