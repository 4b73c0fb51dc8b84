#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The host's file system runs full while a guest writes records: the VM stops with an event, goes on with "cont" once
# there is space, and nothing is lost, neither of what was acknowledged nor of what the guest was writing.
#
#     test-nospace.sh backend-nvdimm|backend-virtio

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
need_kind "$kind"

small=$work/small
mkdir "$small"
mount -t tmpfs -o size=12M small "$small" 2>/dev/null || guest_skip "mounting is not permitted"
guest_at_exit "umount -l '$small'"

that "a golden image" golden "$kind" "$work/golden.pcow" 96
that "an overlay on a file system of 12 MiB" overlay "$work/golden.pcow" "$small/vm.pcow"
export GUEST_BACKEND=,base-dir=/
guest_job vm root <<'END'
record write /data/log 0 3000 || exit 1
record verify /data/log 2999 && sync
END
kind_start "$kind" vm "$small/vm.pcow" -S
export QMP_TIMEOUT=120
qmp vm cont @PCOW_NOSPACE '?io-error' >"$work/said" 2>&1 ||
  { fail "the VM stops"; cat "$work/said" "$work/vm.err"; finish; }
ok "the VM stops, with an event: $(sed -n 2p "$work/said")"
that "the event names the image" grep -q "$small/vm.pcow" "$work/said"
acked=$(guest_acked vm)
that "the guest has written $((acked + 1)) records of 3000" test "$acked" -gt 0 -a "$acked" -lt 2999
sleep 1
that "it does not run" test "$acked" -eq "$(guest_acked vm)"
that "without space, cont stops it again" qmp vm cont @PCOW_NOSPACE '?io-error'
that "no record was acknowledged meanwhile" test "$(guest_acked vm)" -le $((acked + 1))
mount -o remount,size=100M "$small"
that "with space, cont lets it go on" qmp vm cont @RESUME '?running'
that "the guest writes and reads all records" guest_wait vm 120
that "the image is whole" "$PCOW_IMG" check -q "$small/vm.pcow"

guest_job again root <<'END'
record verify /data/log 2999
END
kind_start "$kind" again "$small/vm.pcow"
that "the next boot finds all records" guest_wait again 60
that "the file system" extract_fs "$kind" "$small/vm.pcow" "$work/fs.raw"
that "is whole" e2fsck -fn "$work/fs.raw"
finish
