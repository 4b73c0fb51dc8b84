#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest with its root on persistent memory, mounted DAX, from an overlay of a golden image: what it wrote with
# fsync is there after poweroff and at the next boot, and the golden image has not changed.
#
#     test-root.sh backend-nvdimm|backend-virtio|run-nvdimm|run-virtio

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
need_kind "$kind"

that "a golden image of a root file system" golden "$kind" "$work/golden.pcow" 48
before=$(content_sum "$work/golden.pcow")
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"

guest_job first root <<'END'
grep -q '^/dev/pmem0 / ext4 .*dax=always' /proc/mounts || exit 1
record write /data/log 0 100 >/dev/null || exit 2
mkdir /data/d && cp /bin/busybox /data/d/copy && echo hello >/data/d/hello && sync || exit 3
END
kind_start "$kind" first "$work/vm.pcow"
that "the guest boots from it and writes" guest_wait first 120
that "the overlay is whole" "$PCOW_IMG" check -q "$work/vm.pcow"

guest_job second root <<'END'
record verify /data/log 99 || exit 1
cmp /bin/busybox /data/d/copy || exit 2
[ "$(cat /data/d/hello)" = hello ] || exit 3
rm /data/d/copy && sync
END
kind_start "$kind" second "$work/vm.pcow"
that "the next boot finds what was written" guest_wait second 120
that "the overlay is whole after it" "$PCOW_IMG" check -q "$work/vm.pcow"
that "the golden image has not changed" test "$before" = "$(content_sum "$work/golden.pcow")"
that "its file system is clean" extract_fs "$kind" "$work/vm.pcow" "$work/fs.raw"
that "e2fsck finds nothing" e2fsck -fn "$work/fs.raw"
finish
