#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU is killed at random moments while its guest writes records: after each kill the image is whole, the guest
# boots from it, and no record that was acknowledged is missing.
#
#     test-sigkill.sh backend-nvdimm|backend-virtio|run-nvdimm|run-virtio [KILLS [SEED]]

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
kills=${2:-30}
seed=${3:-$RANDOM}
need_kind "$kind"
echo "seed $seed"
RANDOM=$seed

that "a golden image" golden "$kind" "$work/golden.pcow" 48
that "an overlay" overlay "$work/golden.pcow" "$work/vm.pcow"

# Verifies what the life before has acknowledged (its number is on the kernel's command line), then writes on.
guest_job vm root <<'END'
last=$(sed 's/.*acked=\([-0-9]*\).*/\1/' /proc/cmdline)
[ -f /data/log ] || : >/data/log
record verify /data/log "$last" || exit 1
size=$(stat -c %s /data/log)
if [ "$size" -gt 8388608 ]; then # the file system is small
  rm /data/log && sync && echo EMPTIED
  size=0
fi
exec record write /data/log $((size / 4096)) 0
END

# A line for each life: what the guest acknowledged last, or -1 after it emptied the file.
acked=-1 lives=0 records=0
for ((kill = 0; kill < kills; kill++)); do
  rm -f "$work/vm.log"
  GUEST_APPEND="acked=$acked" kind_start "$kind" vm "$work/vm.pcow"
  if ! guest_until vm 120 '^ACK' >"$work/out" 2>&1; then
    fail "boot $kill after acknowledged record $acked (seed $seed)"
    cat "$work/out"
    break
  fi
  sleep "$(awk -v r="$RANDOM" 'BEGIN { print r / 32768 * 1.5 }')"
  guest_kill vm
  first=$(guest_console vm | awk '$1 == "ACK" { print $2; exit }')
  acked=$(guest_acked vm)
  records=$((records + acked - first + 1))
  if ! "$PCOW_IMG" check "$work/vm.pcow" >"$work/out" 2>&1; then
    fail "check after kill $kill (seed $seed)"
    cat "$work/out"
    break
  fi
  lives=$((lives + 1))
done
that "$lives kills of $kills survived, $records records acknowledged in all" test "$lives" -eq "$kills"

guest_job last root <<END
record verify /data/log $acked
END
kind_start "$kind" last "$work/vm.pcow"
that "a last boot finds every record" guest_wait last 120
that "the image is whole" "$PCOW_IMG" check -q "$work/vm.pcow"
finish
