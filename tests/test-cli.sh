#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs every verb of pcow-img on real files and looks at what it makes: content byte by byte, space,
# exit statuses, human and JSON output, and that the manual names the options that --help does.

. "$(dirname "$0")/cli-common.sh"
build_poke

K=1024
M=$((1024 * 1024))
LOCK_HEAD=0x4000000000000000

verbs='check commit compare convert create diff info map measure rebase resize rollback snapshot'

# The value of a JSON number or string on a line of its own: json KEY.
json()
{
  sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$scratch/out" | head -n 1
}

valid_json()
{
  if command -v jq >/dev/null; then
    jq . "$scratch/out"
  elif command -v python3 >/dev/null; then
    python3 -m json.tool "$scratch/out"
  else
    grep -q '^[[{]' "$scratch/out"
  fi
}

# fill FILE OFFSET LENGTH: random bytes in place.
fill()
{
  head -c "$3" /dev/urandom | dd of="$1" bs=64k seek="$2" oflag=seek_bytes conv=notrunc status=none
}

# same A B: equal bytes, by cmp(1).
same()
{
  cmp -s "$1" "$2"
}

# ---- Help, version, manual ----

test_help()
{
  local verb manual=$tests_dir/../docs/man/pcow-img.1

  expect 'help' 0 help
  that 'help goes to stdout' test -s "$scratch/out"
  expect '--version' 0 --version
  that 'version is printed' out_has '^pcow-img [0-9]*\.[0-9]*\.[0-9]*$'
  for verb in $verbs; do
    expect "$verb --help" 0 "$verb" --help
    expect "$verb --version" 0 "$verb" --version
    [ -f "$manual" ] || continue
    run img help "$verb"
    grep -o -e '^  -[a-zA-Z], --[a-z-]*' -e '^  --[a-z-]*' "$scratch/out" |
      grep -o -e '-[-a-zA-Z]*' | grep -v -x -e '-h' -e '--help' -e '--version' -e '-p' -e '--progress' \
        -e '-q' -e '--quiet' -e '--output' -e '--base-dir' -e '--any-base' | sort >"$scratch/help-options"
    awk -v verb="$verb" '$1 == ".Ss" || $1 == ".Sh" { on = $2 == verb } on && $1 == ".It"' "$manual" |
      grep -o -e 'Fl [-a-zA-Z]*' | sed 's/Fl /-/' | sort >"$scratch/man-options"
    that "$verb: the manual has the options of --help" same "$scratch/help-options" "$scratch/man-options"
  done
  [ ! -f "$manual" ] || for verb in base-dir any-base; do
    that "the manual describes --$verb" grep -q "^\.It Fl -$verb" "$manual"
  done
  if [ ! -f "$manual" ]; then
    skip 'manual' 'the source tree is not here'
  elif command -v mandoc >/dev/null; then
    that 'the manual is clean' mandoc -T lint -W warning "$manual"
  fi
}

# ---- Create, info ----

test_create()
{
  expect 'create' 0 create c.pcow 64M
  that 'create tells what it made' out_has "^Formatting 'c.pcow', fmt=pcow size=67108864 unit_size=134217728$"
  expect 'create replaces' 0 create -q c.pcow 1.5M
  that 'create -q prints nothing' test ! -s "$scratch/out"
  expect 'info' 0 info c.pcow
  that 'info: layout of qemu-img' out_has '^virtual size: 1.5 MiB (1572864 bytes)$'
  that 'info: durability' out_has '^    durability: \(store\|flush\)-durable'
  expect 'info in JSON' 0 info --output=json c.pcow
  that 'info: valid JSON' valid_json
  that 'info: virtual-size' test "$(json virtual-size)" = 1572864
  that 'info: schema-version' test "$(json schema-version)" = 1
  that 'info: actual-size is that of the blocks' test "$(json actual-size)" = "$(allocated c.pcow)"
  run env PMEM_IS_PMEM_FORCE=1 "$PCOW_IMG" info --output=json c.pcow
  that 'info: store-durable where it is forced' test "$(json durability)" = store-durable

  expect 'create: sizes are rounded up to a page' 0 create -q c.pcow 1
  cp c.pcow "$(printf 'odd \377\033".pcow')"
  expect 'info in JSON of a file with an odd name' 0 info --output=json "$(printf 'odd \377\033".pcow')"
  that 'info: valid JSON, whatever the name' valid_json
  that 'info: an odd name in JSON' grep -qF "$(printf '"odd \357\277\275\134u001b\134".pcow",')" "$scratch/out"
  run img info --output=json c.pcow
  that 'create: one page' test "$(json virtual-size)" = 4096
  expect 'create: k and K are the same' 0 create -q c.pcow 8k
  run img info --output=json c.pcow
  that 'create: 8k' test "$(json virtual-size)" = 8192
  expect 'create: unit size' 0 create -q -o unit_size=64k c.pcow 1G
  run img info --output=json c.pcow
  that 'create: unit-size' test "$(json unit-size)" = 65536
  expect 'create: 8 TiB' 0 create -q c.pcow 8T
  that 'create: 8 TiB in less than 100 KiB' test "$(allocated c.pcow)" -lt $((100 * K))
  rm c.pcow
}

# ---- Convert, compare, map, measure ----

# A raw file of 40 MiB and a bit: data, data that is zero, holes, single pages.
make_source()
{
  truncate -s $((40 * M + 1000)) source.raw
  fill source.raw $((1 * M)) $((3 * M))
  dd if=/dev/zero of=source.raw bs=1M seek=10 count=6 conv=notrunc status=none
  fill source.raw $((12 * M + 4 * K)) $((4 * K))
  fill source.raw $((20 * M + 4 * K)) $((4 * K))
  fill source.raw $((39 * M + 10)) $((1 * M))
  fill source.raw $((40 * M + 990)) 10
}

test_convert()
{
  local needed unit

  make_source
  expect 'convert raw to pcow' 0 convert -O pcow source.raw a.pcow
  expect 'convert pcow to raw' 0 convert -O raw a.pcow back.raw
  truncate -s $((40 * M + 4096)) padded.raw
  dd if=source.raw of=padded.raw bs=1M conv=notrunc,sparse status=none
  that 'the content is the same' same padded.raw back.raw
  that 'zeros take no space in pcow' test "$(allocated a.pcow)" -lt $((4 * M + 200 * K))
  that 'holes and zeros take no space in raw' test "$(allocated back.raw)" -lt $((4 * M + 200 * K))
  expect 'measure' 0 measure --output=json -O pcow source.raw
  that 'measure: valid JSON' valid_json
  needed=$(json required)
  that 'measure is not too little' test "$needed" -ge "$(allocated a.pcow)"
  expect 'measure: a size' 0 measure -O pcow --size 1G
  that 'measure: empty image' out_has '^required size: [0-9]\{4,5\}$'
  expect 'measure: raw' 0 measure source.raw
  that 'measure: raw, fully allocated' out_has "^fully allocated size: $((40 * M + 1000))$"

  expect 'compare: same' 0 compare source.raw a.pcow
  that 'compare: sizes may differ' out_has '^Warning: Image size mismatch!$'
  that 'compare: identical' out_has '^Images are identical.$'
  expect 'compare: strict' 1 compare -s source.raw a.pcow
  cp --sparse=always back.raw other.raw
  printf 'x' | dd of=other.raw bs=1 seek=$((30 * M + 5)) conv=notrunc status=none
  expect 'compare: different' 1 compare other.raw a.pcow
  that 'compare: where' out_has "^Content mismatch at offset $((30 * M + 5))!$"
  expect 'compare -q' 1 compare -q a.pcow other.raw
  that 'compare -q prints nothing' test ! -s "$scratch/out"
  expect 'compare: error' 2 compare a.pcow missing.raw
  expect 'compare: usage' 2 compare a.pcow
  truncate -s $((50 * M)) back.raw
  expect 'compare: a longer tail of zeros' 0 compare a.pcow back.raw
  printf 'x' | dd of=back.raw bs=1 seek=$((45 * M)) conv=notrunc status=none
  expect 'compare: a longer tail' 1 compare a.pcow back.raw
  that 'compare: where in the tail' out_has "offset $((45 * M))!"

  expect 'map' 0 map a.pcow
  that 'map: the data at 1 MiB' out_has '^0x100000 *0x300000 *0x[0-9a-f]* *a.pcow$'
  expect 'map in JSON' 0 map --output=json a.pcow
  that 'map: valid JSON' valid_json
  that 'map: without gaps, up to the end' test \
    "$(awk -F'[:,]' '/"length"/ { sum += $2 } END { print sum }' "$scratch/out")" = $((40 * M + 4096))
  expect 'map: a part' 0 map --output=json --start-offset=1M --max-length=64k a.pcow
  that 'map: the length of a part' test "$(json length)" = 65536

  for unit in 64k 2M 64G; do
    run img measure --output=json -O pcow -o unit_size=$unit source.raw
    needed=$(json required)
    img convert -O pcow -o unit_size=$unit source.raw small.pcow
    that "measure is not too little for units of $unit" test "$needed" -ge "$(allocated small.pcow)"
  done
  expect 'convert: small units' 0 convert -O pcow -o unit_size=64k source.raw small.pcow
  expect 'convert: small units, same content' 0 compare small.pcow a.pcow
  expect 'convert: units of 64G' 0 convert -O pcow -o unit_size=64G source.raw small.pcow
  expect 'convert: units of 64G, same content' 0 compare small.pcow a.pcow
  expect 'convert: pcow to pcow' 0 convert -O pcow a.pcow copy.pcow
  expect 'convert: a copy, same content' 0 compare -s a.pcow copy.pcow
  expect 'convert -p' 0 convert -q -O raw a.pcow back.raw
  run img convert -p -O raw a.pcow back.raw
  that 'progress ends at 100 %' grep -q '(100.00/100%)' "$scratch/err"
  that 'progress is not on stdout' test ! -s "$scratch/out"
  chmod 600 back.raw
  expect 'convert: replaces' 0 convert a.pcow back.raw
  that 'convert: permissions stay' test "$(stat -c %a back.raw)" = 600
  ln -s back.raw link.raw
  expect 'convert: through a link' 0 convert a.pcow link.raw
  that 'convert: the link is still one' test -L link.raw
  rm -f link.raw small.pcow copy.pcow other.raw padded.raw
}

# Over old content: what is zero in the source must become zero in the target.
test_convert_existing()
{
  local target

  truncate -s $((44 * M)) old.raw
  fill old.raw 0 $((44 * M))
  tail -c $((4 * M - 1000)) old.raw >tail.raw
  expect 'convert: full image' 0 convert -O pcow old.raw old.pcow
  for target in old.raw old.pcow; do
    expect "convert -n into $target" 0 convert -n source.raw $target
    expect "convert -n into $target: content" 0 convert $target result.raw
    that "convert -n into $target: same" cmp -s -n $((40 * M + 1000)) source.raw result.raw
    tail -c $((4 * M - 1000)) result.raw >rest.raw
    that "convert -n into $target: the rest stays" same tail.raw rest.raw
    that "convert -n into $target: zeros give space back" test "$(allocated $target)" -lt $((10 * M))
  done
  expect 'convert -n: too small' 1 convert -n old.raw source.raw
  rm -f old.raw old.pcow tail.raw rest.raw result.raw
}

# ---- Snapshots ----

test_snapshots()
{
  img convert source.raw one.raw && cp --sparse=always one.raw two.raw && fill two.raw $((5 * M)) $((64 * K))
  expect 'snapshot -c' 0 snapshot -c first a.pcow
  img convert -n two.raw a.pcow
  expect 'snapshot -c, a second' 0 snapshot -c second a.pcow
  expect 'snapshot -l' 0 snapshot -l a.pcow
  that 'snapshot -l: head of the table' out_has '^ID        TAG  *VM SIZE  *DATE'
  that 'snapshot -l: a line' out_has '^2 *second *40 MiB  20[0-9-]* [0-9:]*$'
  expect 'snapshot -l in JSON' 0 snapshot -l --output=json a.pcow
  that 'snapshot -l: valid JSON' valid_json
  that 'snapshot -l: an array' grep -q -x '\[' "$scratch/out"
  that 'snapshot -l: name' test "$(json name)" = first
  expect 'snapshot --tree' 0 snapshot --tree a.pcow
  that 'snapshot --tree: a line of history' test "$(cat "$scratch/out")" = \
    $'a.pcow\n`-- first\n    second\n    (head)'

  expect 'a snapshot as FILE@NAME' 0 compare a.pcow@first source.raw
  expect 'a snapshot with -s' 0 convert -s first a.pcow first.raw
  that 'a snapshot with -s: content' same <(head -c $((40 * M + 1000)) first.raw) source.raw
  expect 'snapshots differ' 1 compare a.pcow@first a.pcow@second
  expect 'diff' 0 diff a.pcow first second
  that 'diff: the range' out_has '^0x500000  *0x10000  *data$'
  that 'diff: nothing else' test "$(wc -l <"$scratch/out")" = 2
  expect 'diff in JSON' 0 diff --output=json a.pcow first
  that 'diff: valid JSON' valid_json
  that 'diff: offset' test "$(json offset)" = $((5 * M))
  that 'diff: type' test "$(json type)" = data
  expect 'info of a snapshot' 0 info a.pcow@first
  that 'info of a snapshot names it' out_has '^snapshot: first$'

  expect 'rollback' 0 rollback a.pcow first
  expect 'rollback: content' 0 compare a.pcow source.raw
  expect 'rollback: the later snapshot stays' 0 compare a.pcow@second two.raw
  run img snapshot --tree a.pcow
  that 'snapshot --tree: a branch' test "$(cat "$scratch/out")" = \
    $'a.pcow\n`-- first\n    |-- second\n    `-- (head)'
  run env LC_ALL=C.UTF-8 "$PCOW_IMG" snapshot --tree a.pcow
  that 'snapshot --tree: UTF-8' out_has '└── (head)'
  expect 'snapshot -a' 0 snapshot -a second a.pcow
  expect 'snapshot -a: content' 0 compare a.pcow two.raw
  expect 'snapshot -d' 0 snapshot -d first a.pcow
  expect 'snapshot -d: others stay' 0 compare a.pcow@second two.raw
  expect 'snapshot: options exclude each other' 1 snapshot -l -d second a.pcow
  expect 'snapshot in JSON: none' 0 create -q none.pcow 1M
  expect 'snapshot -l: none' 0 snapshot -l none.pcow
  that 'snapshot -l: nothing is printed' test ! -s "$scratch/out"
  rm -f first.raw one.raw none.pcow

  img create -q odd@name.pcow 1M
  expect 'a file with @ in its name' 0 info odd@name.pcow
  that 'a file with @ in its name: itself' out_has '^image: odd@name.pcow$'
  mkdir dir@home && img create -q dir@home/x.pcow 1M
  expect 'a directory with @ in its name' 0 map dir@home/x.pcow
  img snapshot -c daily/1 dir@home/x.pcow
  expect 'a snapshot name with a slash' 0 map dir@home/x.pcow@daily/1
  rm -rf odd@name.pcow dir@home
}

# ---- While another process has the image ----

test_in_use()
{
  hold a.pcow $LOCK_HEAD exclusive || not_ok 'the lock is taken'
  expect 'in use: info' 0 info a.pcow
  expect 'in use: snapshot -l' 0 snapshot -l a.pcow
  expect 'in use: a snapshot can be read' 0 compare a.pcow@second two.raw
  expect 'in use: the head cannot be read' 1 map a.pcow
  expect 'in use: create does not replace it' 1 create a.pcow 1M
  expect 'in use: convert does not replace it' 1 convert -O pcow source.raw a.pcow
  expect 'in use: convert to raw does not replace it' 1 convert -O raw source.raw a.pcow
  expect 'in use: convert does not write raw into it' 1 convert -n -O raw source.raw a.pcow
  let_go
  expect 'the image is whole' 0 compare a.pcow two.raw
}

# ---- Bases ----

test_bases()
{
  local needed within=--base-dir=. # sub's images lie on ones outside of it

  mkdir sub
  expect 'create -b' 0 create -q -b ../a.pcow@second sub/top.pcow
  expect 'create -b: content' 0 compare $within sub/top.pcow two.raw
  that 'create -b: no space' test "$(allocated sub/top.pcow)" -lt $((64 * K))
  expect 'create -b, with a size' 0 create $within -q -b top.pcow sub/more.pcow 64M
  expect 'create -b -F raw' 0 create -q -b "$work/source.raw" -F raw sub/raw.pcow
  expect 'create -b -F raw: content' 0 compare $within sub/raw.pcow source.raw
  expect 'info --backing-chain' 0 info $within --backing-chain sub/more.pcow
  that 'the chain is three long' test "$(grep -c '^image: ' "$scratch/out")" = 3
  that 'the chain names the snapshot' out_has '^backing snapshot: second$'
  that 'the chain names the file that is opened' out_has 'actual path: sub/\.\./a.pcow'
  expect 'info --backing-chain in JSON' 0 info $within --backing-chain --output=json sub/raw.pcow
  that 'the chain: valid JSON' valid_json
  that 'the chain: format of the base' test "$(json backing-filename-format)" = raw
  that 'the chain: an array of two' test "$(grep -c '"filename"' "$scratch/out")" = 2
  expect 'a base elsewhere: not without an option' 1 map sub/more.pcow
  expect 'a base elsewhere: --any-base' 0 map --any-base sub/more.pcow
  expect 'map over a chain' 0 map $within --output=json sub/more.pcow
  that 'map over a chain: depth' out_has '"depth": 2'

  cp --sparse=always two.raw three.raw
  truncate -s 64M three.raw
  fill three.raw $((60 * M)) $((8 * K))
  fill three.raw $((2 * M)) $((8 * K))
  img convert $within -n three.raw sub/more.pcow
  needed=$(allocated sub/more.pcow)
  expect 'a changed overlay' 0 compare $within -s sub/more.pcow three.raw
  expect 'its base is as it was' 0 compare $within sub/top.pcow two.raw
  img snapshot $within -c kept sub/more.pcow
  expect 'rebase' 0 rebase $within -b ../a.pcow@second sub/more.pcow
  expect 'rebase: content' 0 compare $within -s sub/more.pcow three.raw
  expect 'rebase to a raw file' 0 rebase $within -b ../source.raw -F raw sub/more.pcow
  expect 'rebase to a raw file: content' 0 compare $within -s sub/more.pcow three.raw
  expect 'rebase to a raw file: the snapshot' 0 compare $within -s sub/more.pcow@kept three.raw
  expect "rebase -b ''" 0 rebase $within -b '' sub/more.pcow
  run img info $within --output=json sub/more.pcow
  that "rebase -b '': no base" test -z "$(json backing-filename)"
  expect "rebase -b '': content" 0 compare $within -s sub/more.pcow three.raw
  that "rebase -b '' took space" test "$(allocated sub/more.pcow)" -gt "$needed"

  mv a.pcow moved.pcow
  expect 'the base has moved' 1 map $within sub/top.pcow
  expect 'the base has moved: info' 0 info $within sub/top.pcow
  that 'the base has moved: its id' out_has '^backing snapshot: #[0-9]*$'
  expect 'rebase -u' 0 rebase -u -b ../moved.pcow@second sub/top.pcow
  expect 'rebase -u: content' 0 compare $within sub/top.pcow two.raw
  mv moved.pcow a.pcow

  img convert -O pcow source.raw base.pcow
  img create -q -b base.pcow over.pcow
  img convert -n two.raw over.pcow
  expect 'commit' 0 commit over.pcow
  that 'commit says so' out_has '^Image committed.$'
  expect 'commit: the base has it' 0 compare base.pcow two.raw
  expect 'commit: the content' 0 compare over.pcow two.raw
  that 'commit: the overlay is empty' test "$(allocated over.pcow)" -lt $((256 * K))
  rm -rf sub base.pcow over.pcow three.raw
}

# ---- Resize ----

test_resize()
{
  cp --sparse=always two.raw r.raw
  truncate -s $((48 * M)) r.raw
  img convert -O pcow two.raw r.pcow
  expect 'resize' 0 resize r.pcow 48M
  that 'resize says so' out_has '^Image resized.$'
  expect 'resize: content' 0 compare -s r.pcow r.raw
  expect 'resize +' 0 resize -q r.pcow +16M
  expect 'resize -' 0 resize --shrink r.pcow -62M
  run img info --output=json r.pcow
  that 'resize: by how much' test "$(json virtual-size)" = $((2 * M))
  expect 'resize: grow again' 0 resize r.pcow +2M
  truncate -s $((2 * M)) r.raw && truncate -s $((4 * M)) r.raw
  expect 'resize: zeros, not old data' 0 compare -s r.pcow r.raw
  expect 'resize: not smaller without --shrink' 1 resize r.pcow 1M
  expect 'resize: not less than nothing' 1 resize --shrink r.pcow -4M
  expect 'resize: not beyond all limits' 1 resize r.pcow +7.9E
  rm -f r.raw r.pcow
}

# ---- Check ----

test_check()
{
  expect 'check: clean' 0 check a.pcow
  that 'check says so' out_has '^No errors were found on the image.$'
  expect 'check in JSON' 0 check --output=json a.pcow
  that 'check: valid JSON' valid_json
  that 'check: errors' test "$(json corruptions)" = 0

  # Blocks in the data area of a slot that nothing reaches (docs/format.md, section 3).
  img convert -O pcow -o unit_size=64k source.raw leak.pcow
  last=$("$poke" get leak.pcow 0 128 8)
  data=$((0x40000000 + 65536 * 64 + 65536 * 8 + (last - 1) * 65536))
  printf 'x' | dd of=leak.pcow bs=1 seek=$data conv=notrunc status=none
  expect 'check: leak' 3 check leak.pcow
  expect 'check: leak is not repaired without -r' 3 check leak.pcow
  expect 'check -r leaks' 0 check -r leaks leak.pcow
  expect 'check: leak is repaired' 0 check leak.pcow
  expect 'check: the content is whole' 0 compare leak.pcow source.raw

  # The header of the first slot that the unit map names.
  cp --sparse=always leak.pcow corrupt.pcow
  slot=$(od -A n -v -t u8 -w8 -j $((0x30000000)) -N 1048576 corrupt.pcow | awk '$1 { print $1 / 256; exit }')
  "$poke" damage corrupt.pcow $((0x40000000 + (slot - 1) * 64 + 8))
  expect 'check: corrupt' 2 check corrupt.pcow
  expect 'check: corrupt, in JSON' 2 check --output=json corrupt.pcow
  that 'check: a sentence about it' test "$(json corruptions)" -ge 1
  that 'check: what can be repaired' test "$(json repairable)" = "$(json corruptions)"
  expect 'check -r leaks does not touch what is corrupt' 2 check -r leaks corrupt.pcow
  expect 'check -r all' 0 check -r all corrupt.pcow
  that 'check -r all tells' out_has 'found and repaired'
  expect 'check: corruption is repaired' 0 check corrupt.pcow
  expect 'check: no content was lost' 0 compare corrupt.pcow source.raw
  img create -b leak.pcow -F pcow over.pcow
  expect 'check: the base' 0 check --base over.pcow
  mv leak.pcow away.pcow
  expect 'check: the base is not followed unless told' 0 check over.pcow
  expect 'check: no base' 2 check --base over.pcow
  that 'check: which base' out_has 'leak.pcow'
  expect 'check: no base, in JSON' 2 check --base --output=json over.pcow
  that 'check: no base, in JSON, counted' test "$(json base-faults)" = 1
  mv away.pcow leak.pcow
  rm -f over.pcow
  rm -f leak.pcow corrupt.pcow
  expect 'check: no such file' 1 check missing.pcow
}

# ---- Failing on the way ----

test_failures()
{
  local before

  run sh -c '"$0" info a.pcow >/dev/full' "$PCOW_IMG"
  that 'a full standard output is an error' test "$status" = 1
  that 'the error says so' grep -q '^pcow-img: standard output: ' "$scratch/err"

  img convert -O raw a.pcow target.raw
  before=$(sha256sum target.raw)
  run bash -c 'ulimit -f 8192; exec "$0" convert -O raw a.pcow target.raw' "$PCOW_IMG"
  that 'convert fails at a file size limit' test "$status" = 1
  that 'convert: the old target is whole' test "$before" = "$(sha256sum target.raw)"
  that 'convert: no other file' test -z "$(find . -name '.?*')"
  rm -f target.raw

  # A full file system: a small tmpfs in a mount namespace of its own.
  mkdir small
  if unshare -rm sh -c 'mount -t tmpfs -o size=2m none small' 2>/dev/null; then
    run unshare -rm sh -c 'mount -t tmpfs -o size=2m none small && echo old >small/target.pcow &&
      ! "$0" convert -O pcow source.raw small/target.pcow && ls -A small && cat small/target.pcow' "$PCOW_IMG"
    that 'a full file system: fails, and the old target is whole' test "$(cat "$scratch/out")" = \
      $'target.pcow\nold'
    that 'a full file system: one line' test "$(grep -c '^pcow-img: small/target.pcow: ' "$scratch/err")" = 1
  else
    skip 'a full file system' 'no mount in a user namespace here'
  fi
  rmdir small
}

test_interrupt()
{
  local pid

  # A source that is slow to read: much of it, and only its first half second is waited for.
  truncate -s 2G slow.raw
  for i in 0 1 2 3 4 5 6 7; do
    fill slow.raw $((i * 200 * M)) $((24 * M))
  done
  img create -q -o unit_size=64k slow.pcow 2G
  "$PCOW_IMG" convert -p -O pcow -o unit_size=64k slow.raw slow-target.pcow 2>"$scratch/err" &
  pid=$!
  while ! grep -q '([1-9]' "$scratch/err" && kill -0 $pid 2>/dev/null; do :; done
  if kill -TERM $pid 2>/dev/null; then
    wait $pid
    status=$?
    if [ "$status" = 0 ]; then
      skip 'interrupted' 'it was faster than the signal'
    else
      that 'interrupted: it died of the signal' test $status = 143
      that 'interrupted: no file is left' test -z "$(find . -name '*slow-target*')"
    fi
  else
    skip 'interrupted' 'it was faster than the signal'
  fi
  rm -f slow.raw slow.pcow slow-target.pcow
}

test_help
test_create
test_convert
test_convert_existing
test_snapshots
test_in_use
test_bases
test_resize
test_check
test_failures
test_interrupt
finish
