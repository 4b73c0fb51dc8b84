#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs a command with a fresh file system of its own, whose directory is in PCOW_TEST_DIR and TMPDIR;
# an argument {} becomes that directory.
#
#     tests/with-fs.sh tmpfs|ext4|xfs SIZE COMMAND…        (SIZE as 64M or 2G; XFS needs 300M)
#
# ext4 and XFS are loop mounts of a sparse file. Exits with the command's status, or 77 and a line
# that says why where file systems cannot be mounted.

set -euo pipefail

skip() {
  echo "SKIP: $*"
  exit 77
}

if [ $# -lt 3 ]; then
  echo "usage: with-fs.sh tmpfs|ext4|xfs SIZE COMMAND..." >&2
  exit 2
fi
fs=$1 size=$2
shift 2
PATH=$PATH:/usr/sbin:/sbin

[ "$(id -u)" -eq 0 ] || skip "mounting $fs needs root"

# The first directory with room for all of the image file; /var/tmp when none says that it has.
bytes=$(numfmt --from=iec "$size")
where=/var/tmp
for candidate in /dev/shm /var/tmp; do
  if [ -d $candidate ] &&
     [ "$(df --output=avail -B1 $candidate | tail -n 1)" -gt "$bytes" ]; then
    where=$candidate
    break
  fi
done

work=$(mktemp -d "$where/pcow-$fs.XXXXXX")
chmod 711 "$work" # a test may go on as another user
mkdir "$work/mnt"

cleanup() {
  if mountpoint -q "$work/mnt"; then
    umount "$work/mnt" 2>/dev/null || { sleep 1; umount "$work/mnt" 2>/dev/null; } ||
      umount -l "$work/mnt" || true
  fi
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

case $fs in
  tmpfs)
    mount -t tmpfs -o "size=$size" pcow-test "$work/mnt" 2>"$work/log" ||
      skip "tmpfs cannot be mounted here: $(tail -n 1 "$work/log")"
    ;;
  ext4 | xfs)
    command -v "mkfs.$fs" >/dev/null || skip "mkfs.$fs is not installed"
    truncate -s "$size" "$work/image"
    if [ "$fs" = ext4 ]; then
      mkfs.ext4 -q -F "$work/image"
    else
      mkfs.xfs -q "$work/image"
    fi
    mount -t "$fs" -o loop "$work/image" "$work/mnt" 2>"$work/log" ||
      skip "$fs cannot be mounted here: $(tail -n 1 "$work/log")"
    ;;
  *)
    echo "with-fs.sh: unknown file system '$fs'" >&2
    exit 2
    ;;
esac

export PCOW_TEST_DIR=$work/mnt TMPDIR=$work/mnt
arguments=()
for argument; do
  [ "$argument" != '{}' ] || argument=$PCOW_TEST_DIR
  arguments+=("$argument")
done
status=0
"${arguments[@]}" || status=$?
exit "$status"
