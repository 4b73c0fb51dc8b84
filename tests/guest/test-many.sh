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
why=$(kind_available "$kind") || guest_skip "$why"
[ "$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)" -gt $((guests * 200 + 1024)) ] ||
  guest_skip "$guests guests need $((guests * 200 + 1024)) MiB of memory"

that "a golden image of 64 MiB" golden "$kind" "$work/golden.pcow" 64
before=$(sha256sum <"$work/golden.pcow")
export GUEST_MEMORY=128M
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

# Each page of the golden image that is mapped is shared: of what the guests have of it, the sum of their parts
# (Pss) is at most the image once, and what is private to one of them is nothing.
python3 - "$work/golden.pcow" "${guest_pid[@]}" >"$work/shared" <<'END'
import sys
resident = proportional = private = 0
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
        elif mine and words[0] == "Private_Dirty:":
            private += int(words[1])
print(resident, proportional, private)
END
read -r resident proportional private <"$work/shared"
echo "# pages of the golden image: $((resident / 1024)) MiB in all guests, $((proportional / 1024)) MiB when each page is counted once"
that "the guests have pages of the golden image mapped" test "$resident" -gt 0
that "the host has them once" test "$proportional" -le $((80 * 1024))
that "no guest has one of its own that the file should have" test "$private" -le "$resident"
for name in "${!guest_pid[@]}"; do
  guest_kill "$name"
done

# 1 MiB of records, the journal and inodes that ext4 wrote besides: what the blocks that differ from the golden image say.
worst=0
for ((n = 0; n < guests; n++)); do
  "$PCOW_IMG" check -q "$work/vm$n.pcow" || fail "check of overlay $n"
  took=$(du -B1024 "$work/vm$n.pcow" | cut -f1)
  "$PCOW_IMG" convert -q -O raw "$work/golden.pcow" "$work/a.raw"
  "$PCOW_IMG" convert -q -O raw "$work/vm$n.pcow" "$work/b.raw"
  wrote=$(cmp -l "$work/a.raw" "$work/b.raw" | awk '{ page[int(($1 - 1) / 4096)] } END { for (p in page) n++; print n * 4 }')
  over=$((took - wrote))
  [ $over -le $worst ] || worst=$over
  [ $n -lt 3 ] && echo "# guest $n: $took KiB private, $wrote KiB of pages differ"
  rm -f "$work/a.raw" "$work/b.raw"
done
that "a guest takes what it wrote and less than 1 MiB more (at most $worst KiB)" test $worst -lt 1024
that "the golden image has not changed" test "$before" = "$(sha256sum <"$work/golden.pcow")"
finish
