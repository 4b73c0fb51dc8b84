#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many guests at once from one golden image: what each takes is what it wrote and little more, and the host has the golden
# image's pages once.
#
#     test-many.sh backend-virtio|run-virtio|… [GUESTS]

# shellcheck source-path=SCRIPTDIR source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"
kind=${1:?a kind of guest}
guests=${2:-32}
need_kind "$kind"
[ "$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)" -gt $((guests * 320 + 1024)) ] ||
  guest_skip "$guests guests need $((guests * 320 + 1024)) MiB of memory"

that "a golden image of 64 MiB" golden "$kind" "$work/golden.pcow" 64
before=$(content_sum "$work/golden.pcow")
guest_job vm0 root <<'END'
cat /bin/busybox >/dev/null
record write /data/log 0 256 >/dev/null && sync || exit 1
echo WRITTEN
sleep 3600
END
for ((n = 0; n < guests; n++)); do
  overlay "$work/golden.pcow" "$work/vm$n.pcow" >/dev/null || fail "overlay $n"
  [ $n -eq 0 ] || ln -s vm0.initrd "$work/vm$n.initrd"
  kind_start "$kind" "vm$n" "$work/vm$n.pcow"
done
up=0
for ((n = 0; n < guests; n++)); do
  if guest_until "vm$n" 600 '^WRITTEN$' >"$work/out" 2>&1; then up=$((up + 1)); else cat "$work/out"; fi
done
that "$up of $guests guests run at once and have written" test "$up" -eq "$guests"

# What the guests have mapped of the golden image's file, their own copies of pages aside: in all, and when a page that N
# of them have counts a Nth for each (Pss).
python3 - "$work/golden.pcow" "${guest_pid[@]}" >"$work/shared" <<'END'
import sys
resident = proportional = 0
for pid in sys.argv[2:]:
    mine = False
    for line in open("/proc/%s/smaps" % pid):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            mine = len(words) > 5 and words[5] == sys.argv[1]
        elif mine and words[0] == "Rss:":
            resident += int(words[1])
        elif mine and words[0] == "Pss:":
            proportional += int(words[1])
        elif mine and words[0] == "Anonymous:":
            resident -= int(words[1])
            proportional -= int(words[1])
print(resident, proportional)
END
read -r resident proportional <"$work/shared"
stored=$(du -B1024 "$work/golden.pcow" | cut -f1)
echo "# pages of the golden image ($stored KiB): $resident KiB mapped in all guests, $proportional KiB when each page is counted once"
that "the guests have the golden image mapped, each of them" test "$resident" -gt $((guests * 256))
that "the host has its pages once" test "$proportional" -le "$stored"
for name in "${!guest_pid[@]}"; do
  guest_kill "$name"
done

# 1 MiB of records, the journal and inodes that ext4 wrote besides: what differs from the golden image.
"$PCOW_IMG" convert -q -O raw "$work/golden.pcow" "$work/a.raw"
worst=0
for ((n = 0; n < guests; n++)); do
  "$PCOW_IMG" check -q "$work/vm$n.pcow" || fail "check of overlay $n"
  took=$(du -B1024 "$work/vm$n.pcow" | cut -f1)
  "$PCOW_IMG" convert -q -O raw "$work/vm$n.pcow" "$work/b.raw"
  wrote=$(python3 - "$work/a.raw" "$work/b.raw" <<'END'
import sys
a, b = (open(name, "rb").read() for name in sys.argv[1:3])
print(4 * sum(a[at:at + 4096] != b[at:at + 4096] for at in range(0, len(a), 4096)))
END
  )
  over=$((took - wrote))
  [ $over -le $worst ] || worst=$over
  [ $n -ge 3 ] || echo "# guest $n: $took KiB private, $wrote KiB of pages differ"
  rm -f "$work/b.raw"
done
that "a guest takes what it wrote and less than 1 MiB more (at most $worst KiB)" test $worst -lt 1024
that "the golden image has not changed" test "$before" = "$(content_sum "$work/golden.pcow")"
finish
