# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the tests of pcow-img share; sourced. Work is done in $work, where a test may compare all files
# before and after; captured output lies outside of it, in $scratch. PCOW_IMG names the program.

set -u
export LC_ALL=C

PCOW_IMG=${PCOW_IMG:-}
if [ ! -x "$PCOW_IMG" ]; then
  echo "SKIP: PCOW_IMG does not name pcow-img"
  exit 77
fi

tests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d "${TMPDIR:-/dev/shm}/pcow-cli.XXXXXX") || exit 1
chmod 755 "$scratch" # for commands that run as another user
work=$scratch/work
mkdir "$work"
cd "$work" || exit 1

cleanup()
{
  chattr -i "$work"/* 2>/dev/null
  cd / && rm -rf "$scratch"
}
trap cleanup EXIT

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
  shift
  [ $# -gt 0 ] && printf '%s\n' "$@" | sed 's/^/# /'
  [ -s "$scratch/out" ] && sed 's/^/# stdout: /' "$scratch/out" | head -n 20
  [ -s "$scratch/err" ] && sed 's/^/# stderr: /' "$scratch/err" | head -n 20
  return 0
}

skip()
{
  count=$((count + 1))
  echo "ok $count - $1 # SKIP $2"
}

# run COMMAND...: output to $scratch/out and $scratch/err, exit status to $status.
run()
{
  "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
  status=$?
}

img()
{
  "$PCOW_IMG" "$@"
}

# expect NAME STATUS ARGUMENT...: pcow-img ends with this status; after success stderr has warnings only.
expect()
{
  local name=$1 wanted=$2

  shift 2
  run img "$@"
  if [ "$status" != "$wanted" ]; then
    not_ok "$name" "pcow-img $*" "exit status $status, not $wanted"
  elif [ "$status" = 0 ] && grep -q -v '^pcow-img: warning: ' "$scratch/err"; then
    not_ok "$name" "pcow-img $*" "stderr is not empty"
  else
    ok "$name"
  fi
}

# that NAME COMMAND...: the command succeeds.
that()
{
  local name=$1

  shift
  if "$@" >/dev/null 2>&1; then
    ok "$name"
  else
    not_ok "$name" "$*"
  fi
}

out_has()
{
  grep -q -e "$1" "$scratch/out"
}

# Blocks of a file, in bytes.
allocated()
{
  echo $(($(stat -c '%b * %B' "$1")))
}

# The helper that makes odd images and holds locks.
build_poke()
{
  poke=${POKE_IMAGE:-$scratch/poke-image}
  [ -x "$poke" ] && return 0
  ${CC:-cc} -D_GNU_SOURCE -O1 -o "$poke" "$tests_dir/tools/poke-image.c" && return 0
  echo "SKIP: poke-image cannot be built"
  exit 77
}

# hold FILE BYTE shared|exclusive: another process holds the lock until let_go.
hold()
{
  coproc HOLDER { exec "$poke" lock "$@"; }
  holder=$HOLDER_PID
  read -r answer <&"${HOLDER[0]}"
  [ "$answer" = locked ]
}

let_go()
{
  eval "exec ${HOLDER[1]}>&-"
  wait "$holder" 2>/dev/null
  return 0
}

finish()
{
  echo "1..$count"
  [ "$failures" = 0 ]
  exit
}
