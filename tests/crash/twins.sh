#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs the wrong-order twins: for each step of the ordering rules, the explorer with a library that leaves it
# out. Each must be noticed by one of the scenarios that are listed with it; the table says by which, and
# after how many crash states. A step that another one covers must not be noticed, or the list is outdated.
#
# usage: twins.sh CRASH-TWINS [STEP...]
# Environment: TWIN_STATES: states at most for each scenario of a twin (20000).

set -u

twins=$1
shift
states=${TWIN_STATES:-20000}
with_fs=$(dirname "$0")/../with-fs.sh
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
missed=0 caught=0 redundant=0

# Runs $scenario for $step in $mode with $options: sets $result to a line of the table when it fails.
try() {
  where=$mode words=$options result=
  [ "$mode" != ext4 ] || where=pmem
  [ "$options" != - ] || words=
  most=$states
  [ -z "$covered" ] || most=1500
  set -- "$twins" --twin "$step" --mode "$where" --scenario "$scenario" --states "$most" --rounds 40
  [ "$mode" != ext4 ] || set -- "$with_fs" ext4 1G "$@" --dir '{}'
  # shellcheck disable=SC2086 # options are words
  "$@" $words >"$dir/out" 2>"$dir/err"
  status=$?
  if [ "$status" -eq 77 ]; then
    skipped=$(cat "$dir/out" "$dir/err" | grep SKIP)
    return
  fi
  [ "$status" -ne 0 ] || return 0
  opened=$(sed -n 's/.*, \([0-9]*\) crash states opened.*/\1/p' "$dir/out")
  if [ -z "$opened" ]; then
    echo "FAIL: twin $step: the explorer itself fails:"
    cat "$dir/out" "$dir/err"
    exit 1
  fi
  result=$(printf '%-16s %-6s %-20s %8s' "$step" "$mode" "$scenario" "$opened")
}

"$twins" --list-twins >"$dir/list" || exit 1
tab=$(printf '\t')
printf '%-16s %-6s %-20s %8s  %s\n' step mode 'caught by' states 'left out'
while IFS="$tab" read -r step mode scenarios options about <&3; do
  if [ $# -gt 0 ]; then
    wanted=
    for s in "$@"; do
      [ "$s" = "$step" ] && wanted=yes
    done
    [ -n "$wanted" ] || continue
  fi
  result='' skipped=''
  covered=
  case $scenarios in
  -*) covered=yes ;;
  esac
  for scenario in $(echo "${scenarios#-}" | tr ',' ' '); do
    try
    [ -z "$result" ] || break
  done
  if [ -n "$covered" ] && [ -z "$result" ]; then
    if grep -q 'left out 0 times' "$dir/out"; then
      printf '%-16s %-6s %-20s %8s  %s\n' "$step" "$mode" 'NOT REACHED' - "$about"
      missed=$((missed + 1))
    else
      printf '%-16s %-6s %-20s %8s  %s\n' "$step" "$mode" '(covered)' - "$about"
      redundant=$((redundant + 1))
    fi
  elif [ -n "$covered" ]; then
    printf '%s  %s\n' "$result" "noticed, although: $about"
    sed 's/^/    /' "$dir/err"
    missed=$((missed + 1))
  elif [ -n "$result" ]; then
    printf '%s  %s\n' "$result" "$about"
    [ -z "${TWIN_VERBOSE:-}" ] || sed 's/^/    /' "$dir/err"
    caught=$((caught + 1))
  elif [ -n "$skipped" ]; then
    printf '%-16s %-6s %-20s %8s  %s\n' "$step" "$mode" '(not run)' - "$skipped"
  else
    printf '%-16s %-6s %-20s %8s  %s\n' "$step" "$mode" 'NOT CAUGHT' - "$about"
    sed 's/^/    /' "$dir/out"
    missed=$((missed + 1))
  fi
done 3<"$dir/list"
echo "twins: $caught caught, $missed wrong, $redundant covered by another step"
[ "$missed" -eq 0 ] && [ $((caught + redundant)) -gt 0 ]
