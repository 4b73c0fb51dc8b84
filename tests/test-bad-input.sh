#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Bad input to pcow-img: for each case one sentence on stderr that names the file and the cause, exit
# status 1, nothing on stdout, and every file in the directory as it was, with none added.

. "$(dirname "$0")/cli-common.sh"
build_poke

LOCK_HEAD=0x4000000000000000
FIRST_EPOCH_LOCK=0x4000000100000001

# The second superblock, and fields of both (docs/format.md, sections 3 and 4).
SECOND=1048576
VERSION=8
UNIT_SHIFT=12
INCOMPAT=16
RO_COMPAT=24
UUID=40
TAG=64
VIRTUAL_SIZE=80
SLOT_COUNT=128

# All names, permissions and content. Only data is read: sparse images are gigabytes long.
state()
{
  tar --sparse --sort=name --mtime=@0 -cf - . | sha256sum
}

# as_other COMMAND...: as a user who may not write root's files.
as_other()
{
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
  else
    "$@"
  fi
}

# on_read_only_mount COMMAND...: with the working directory mounted read-only.
on_read_only_mount()
{
  # shellcheck disable=SC2016
  unshare -rm sh -c 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"' sh "$@"
}

# refused NAME FILE CAUSE COMMAND...: FILE and CAUSE are patterns for grep.
refused()
{
  local name=$1 file=$2 cause=$3 before problem=

  shift 3
  before=$(state)
  run "$@"
  [ "$status" = 1 ] || problem="exit status $status"
  [ "$(wc -l <"$scratch/err")" = 1 ] || problem="$problem; not one line"
  grep -q '^pcow-img: ' "$scratch/err" || problem="$problem; does not begin with pcow-img:"
  grep -q -e "$file" "$scratch/err" || problem="$problem; does not name the file $file"
  grep -q -i -e "$cause" "$scratch/err" || problem="$problem; does not say '$cause'"
  [ -s "$scratch/out" ] && problem="$problem; stdout is not empty"
  [ "$before" = "$(state)" ] || problem="$problem; files have changed: $(ls -A | tr '\n' ' ')"
  if [ -z "$problem" ]; then
    ok "$name"
  else
    not_ok "$name" "$*" "$problem"
  fi
}

# every_verb NAME FILE CAUSE: the verbs that read or write an image refuse FILE.
every_verb()
{
  verbs_that_open "$@"
  refused "$1: check" "$2" "$3" img check "$2"
}

verbs_that_open()
{
  local name=$1 file=$2 cause=$3

  refused "$name: info" "$file" "$cause" img info "$file"
  refused "$name: map" "$file" "$cause" img map --output=json "$file"
  refused "$name: snapshot -l" "$file" "$cause" img snapshot -l "$file"
  refused "$name: snapshot -c" "$file" "$cause" img snapshot -c new "$file"
  refused "$name: resize" "$file" "$cause" img resize "$file" +1M
  refused "$name: convert" "$file" "$cause" img convert -f pcow -O raw "$file" new.raw
  refused "$name: as a base" "$file" "$cause" img create -b "$file" new.pcow
}

# content_refused NAME FILE CAUSE IMAGE: whoever reads or writes the content of IMAGE is refused.
content_refused()
{
  local name=$1 file=$2 cause=$3 image=$4

  refused "$name: map" "$file" "$cause" img map "$image"
  refused "$name: convert" "$file" "$cause" img convert -O raw "$image" new.raw
  refused "$name: convert -n" "$file" "$cause" img convert -n source.raw "$image"
  refused "$name: snapshot -c" "$file" "$cause" img snapshot -c new "$image"
  refused "$name: commit" "$file" "$cause" img commit "$image"
  refused "$name: safe rebase" "$file" "$cause" img rebase -b '' "$image"
}

# An image with data and a snapshot, to be broken: fresh FILE.
fresh()
{
  rm -f "$1"
  cp --sparse=always good.pcow "$1"
}

truncate -s 4M source.raw
head -c 300000 /dev/urandom | dd of=source.raw bs=64k seek=100000 oflag=seek_bytes conv=notrunc status=none
img convert -O pcow -o unit_size=1M source.raw good.pcow && img snapshot -c s1 good.pcow || exit 1

# ---- Files that are no images, or damaged ones ----

test_not_images()
{
  : >empty
  every_verb 'empty file' empty 'not a pcow image'
  seq 10000 >text
  every_verb 'text file' text 'not a pcow image'
  head -c 100 text >short
  every_verb 'short file' short 'not a pcow image'
  mkdir directory
  refused 'directory: info' directory 'directory\|regular' img info directory
  refused 'directory: convert' directory 'directory\|regular' img convert directory new.raw
  refused 'directory: create' directory 'directory\|regular' img create directory 1M
  refused 'directory: convert to it' directory 'directory\|regular' img convert good.pcow directory
  rmdir directory
  mkfifo fifo
  refused 'FIFO: info' fifo 'regular' img info fifo
  refused 'FIFO: convert' fifo 'regular' img convert fifo new.raw
  rm fifo
  refused 'missing file: info' missing 'no such file' img info missing
  refused 'missing file: convert' missing 'no such file' img convert missing new.raw
  refused 'missing directory: create' missing/x.pcow 'no such file' img create missing/x.pcow 1M
  refused 'missing directory: convert' missing/x.raw 'no such file' img convert good.pcow missing/x.raw
  refused 'missing target: convert -n' missing 'no such file' img convert -n good.pcow missing

  if command -v qemu-img >/dev/null; then
    qemu-img create -q -f qcow2 image.qcow2 16M
    every_verb 'qcow2 file' image.qcow2 'not a pcow image'
    refused 'qcow2 file: convert, format not given' image.qcow2 'qcow2' img convert image.qcow2 new.raw
    rm image.qcow2
  else
    skip 'qcow2 file' 'there is no qemu-img'
  fi
  rm -f empty text short
}

test_damage()
{
  local copy

  fresh bad.pcow && truncate -s 1M bad.pcow
  every_verb 'truncated to 1 MiB' bad.pcow 'truncated\|short'
  fresh bad.pcow && truncate -s 5000 bad.pcow
  every_verb 'truncated within the superblocks' bad.pcow 'truncated\|short'
  fresh bad.pcow && truncate -s 1050M bad.pcow
  verbs_that_open 'truncated within the slots' bad.pcow 'truncated\|short'
  expect 'truncated within the slots: check tells' 2 check bad.pcow
  expect 'truncated within the slots: repaired' 0 check -r all bad.pcow
  expect 'truncated within the slots: opens' 0 convert -f pcow -O raw bad.pcow bad.raw
  rm -f bad.raw

  for copy in 0 1; do
    fresh bad.pcow && "$poke" damage bad.pcow $((copy * SECOND + VIRTUAL_SIZE))
    expect "superblock $copy damaged: info" 0 info bad.pcow
    expect "superblock $copy damaged: content" 0 compare bad.pcow source.raw
    expect "superblock $copy damaged: content of the snapshot" 0 compare bad.pcow@s1 source.raw
    expect "superblock $copy damaged: check tells" 2 check bad.pcow
    that "superblock $copy damaged: which" out_has "superblock.*$copy"
    expect "superblock $copy damaged: check -r all" 0 check -r all bad.pcow
    expect "superblock $copy damaged: repaired" 0 check bad.pcow
    expect "superblock $copy damaged: content afterwards" 0 compare bad.pcow source.raw
    fresh bad.pcow
    dd if=/dev/zero of=bad.pcow bs=4096 seek=$((copy * SECOND / 4096)) count=1 conv=notrunc status=none
    expect "superblock $copy erased: content" 0 compare bad.pcow source.raw
    expect "superblock $copy erased: writing heals it" 0 snapshot -c s2 bad.pcow
    expect "superblock $copy erased: healed" 0 check bad.pcow
  done

  fresh bad.pcow && "$poke" damage bad.pcow $VIRTUAL_SIZE &&
    "$poke" damage bad.pcow $((SECOND + VIRTUAL_SIZE))
  every_verb 'both superblocks damaged' bad.pcow 'superblock.*damaged\|damaged.*superblock'
  fresh bad.pcow && "$poke" set bad.pcow both $VIRTUAL_SIZE 8 4097
  every_verb 'odd virtual size' bad.pcow 'size'
  fresh bad.pcow && "$poke" set bad.pcow both $SLOT_COUNT 8 0xffffffffffffffff
  every_verb 'impossible slot count' bad.pcow 'slot\|short\|truncated'
}

test_features()
{
  fresh bad.pcow && "$poke" set bad.pcow both $INCOMPAT 8 0x8000000000000000
  every_verb 'unknown incompatible feature' bad.pcow 'feature'
  fresh bad.pcow && "$poke" set bad.pcow both $INCOMPAT 8 1
  every_verb 'reserved incompatible feature' bad.pcow 'feature'
  fresh bad.pcow && "$poke" set bad.pcow both $VERSION 4 2
  every_verb 'newer version' bad.pcow 'version'
  fresh bad.pcow && "$poke" set bad.pcow both $UNIT_SHIFT 4 15
  every_verb 'unit size too small' bad.pcow 'unit'
  fresh bad.pcow && "$poke" set bad.pcow both $UNIT_SHIFT 4 37
  every_verb 'unit size too large' bad.pcow 'unit'
  fresh bad.pcow && "$poke" set bad.pcow both $RO_COMPAT 8 0x10
  expect 'unknown read-only-compatible feature: it can be read' 0 compare bad.pcow source.raw
  refused 'unknown read-only-compatible feature: not written' bad.pcow 'feature' img snapshot -c new bad.pcow
  rm -f bad.pcow
}

# ---- Bases ----

test_bases()
{
  # x.pcow over y.pcow, and then in the place of y.pcow an image over x.pcow with y.pcow's identity.
  img create -q y.pcow 1M && img create -q -b y.pcow x.pcow && img create -q -b x.pcow z.pcow
  for field in $UUID $((UUID + 8)) $TAG $((TAG + 8)); do
    "$poke" set z.pcow both "$field" 8 "$("$poke" get y.pcow 0 "$field" 8)"
  done
  mv z.pcow y.pcow
  content_refused 'cyclic chain' '[xy]\.pcow' 'cycl' x.pcow
  refused 'cyclic chain: info' 'x\.pcow' 'cycl' img info --backing-chain x.pcow
  rm x.pcow y.pcow
  img create -q self.pcow 1M
  refused 'an image as its own base' 'self\.pcow' 'own base' \
    img rebase -b self.pcow self.pcow
  rm self.pcow

  fresh base.pcow
  img create -q -b base.pcow@s1 over.pcow
  img create -q -b base.pcow over-head.pcow
  mv base.pcow away
  content_refused 'missing base' 'base\.pcow' 'no such file' over.pcow
  refused 'missing base: create' 'base\.pcow' 'no such file' img create -b base.pcow new.pcow
  refused 'missing base: info' 'base\.pcow' 'no such file\|not exist' img info --backing-chain over.pcow

  img convert -O pcow source.raw base.pcow && img snapshot -c s1 base.pcow
  content_refused 'base with another UUID' 'base\.pcow' 'UUID' over.pcow
  content_refused 'base with another UUID, at its head' 'base\.pcow' 'UUID' over-head.pcow
  mv away base.pcow

  cp --sparse=always base.pcow away
  img convert -n good.pcow base.pcow
  content_refused 'base with another content tag' 'base\.pcow' 'content tag' over-head.pcow
  expect 'base written, but its snapshot is as it was' 0 compare over.pcow source.raw
  img snapshot -d s1 base.pcow
  content_refused 'deleted snapshot' 'base\.pcow' 'snapshot.*deleted' over.pcow
  refused 'deleted snapshot: info' 'base\.pcow' 'not exist' img info --backing-chain over.pcow
  img snapshot -c s1 base.pcow
  content_refused 'snapshot of the same name' 'base\.pcow' 'snapshot' over.pcow
  mv away base.pcow

  refused 'missing snapshot of the base' 'base\.pcow' "snapshot 'none'" img create -b base.pcow@none new.pcow
  refused 'format of the base' 'source\.raw' 'not a pcow image.*-F raw' img create -b source.raw new.pcow
  refused 'format of the base: rebase' 'source\.raw' 'not a pcow image.*-F raw' \
    img rebase -b source.raw good.pcow
  refused 'unknown format of the base' 'qcow2' 'unknown format' img create -b base.pcow -F qcow2 new.pcow
  cp source.raw base.raw && img create -q -b base.raw -F raw over-raw.pcow
  printf x >>base.raw
  content_refused 'raw base with another size' 'base\.raw' 'size' over-raw.pcow
  truncate -s 4M base.raw
  content_refused 'raw base with another modification time' 'base\.raw' 'modification time' over-raw.pcow
  rm -f base.* over*
}

# ---- Bases that lie elsewhere ----

# plant IMAGE PATH: an image whose base, a raw file like source.raw, is at PATH.
plant()
{
  local path=$2 hex i

  rm -f "$1"
  img create -q -b "$work/source.raw" -F raw "$1"
  "$poke" set "$1" both $((256 + 92)) 4 ${#path}
  for ((i = 0; i < 256; i += 8)); do
    hex=$(printf %s "${path:i:8}" | od -An -v -t x1 -w1 | tac | tr -d ' \n')
    "$poke" set "$1" both $((256 + 96 + i)) 8 "0x${hex:-0}"
  done
}

# kept_out NAME IMAGE: neither content nor chain, and the file outside is not even opened.
kept_out()
{
  local name=$1 image=$2

  content_refused "$name" "$image.*$secret" '--base-dir=DIR or --any-base' "$image"
  refused "$name: info --backing-chain" "$image.*$secret" '--base-dir' img info --backing-chain "$image"
  refused "$name: as a base" "$image.*$secret" '--base-dir' img create -b "$image" new.pcow
  refused "$name: rebase to it" "$image.*$secret" '--base-dir' img rebase -b "$image" good.pcow
  run img compare "$image" source.raw
  that "$name: compare" test "$status" = 2
  expect "$name: check" 0 check "$image"
  expect "$name: info" 0 info "$image"
  that "$name: info names it" out_has "backing file: .*$secret"
}

test_untrusted()
{
  local secret=out/secret

  mkdir out trust
  cp -p source.raw out/secret
  plant trust/up.pcow ../out/secret
  kept_out 'base above the directory' trust/up.pcow
  expect 'base above the directory, allowed: --any-base' 0 compare --any-base trust/up.pcow source.raw
  expect 'base above the directory, allowed: --base-dir' 0 compare --base-dir=. trust/up.pcow source.raw
  expect 'base above the directory: rebase -u' 0 rebase -q -u -b '' trust/up.pcow

  ln -s ../out/secret trust/link
  plant trust/over.pcow link
  secret='link'
  kept_out 'base behind a symbolic link' trust/over.pcow
  rm trust/link trust/over.pcow
  secret=/etc/passwd
  plant trust/over.pcow /etc/passwd
  kept_out 'base of the system' trust/over.pcow
  refused 'base of the system, however it is allowed' '/etc/passwd' 'size was' img map --any-base trust/over.pcow
  mkfifo trust/fifo
  plant trust/over.pcow fifo
  content_refused 'a FIFO as the base' fifo 'not a regular file' trust/over.pcow
  plant trust/over.pcow /dev/zero
  refused 'a device as the base' /dev/zero 'not a regular file' img map --any-base trust/over.pcow

  # The second image of the chain leads out.
  plant trust/mid.pcow source.raw
  cp -p source.raw trust/source.raw
  img create -q -b mid.pcow trust/top.pcow
  rm trust/source.raw && ln -s ../out/secret trust/source.raw
  secret=source.raw
  content_refused 'the second base leads out' 'trust/mid.pcow.*trust/source.raw' '--any-base' trust/top.pcow

  # What a terminal might obey is not printed, on either stream.
  plant trust/over.pcow $'a\033[2J\nimage: forged'
  expect 'escape sequences in a base path: info' 0 info trust/over.pcow
  that 'escape sequences in a base path: on one line' out_has '^backing file: a?\[2J?image: forged'
  refused 'escape sequences in a base path: map' 'a?\[2J?image: forged' 'no such file' img map trust/over.pcow

  refused 'both options' map 'exclude each other' img map --any-base --base-dir=. good.pcow
  refused 'no such directory' nowhere 'no such file' img map --base-dir=nowhere good.pcow
  rm -rf out trust
}

# ---- Locks, permissions ----

test_locks()
{
  fresh held.pcow
  hold held.pcow $LOCK_HEAD exclusive || not_ok 'the lock is taken'
  content_refused 'locked by a writer' 'held\.pcow' 'in use\|open for writing' held.pcow
  refused 'locked by a writer: rollback' 'held\.pcow' 'in use' img rollback held.pcow s1
  refused 'locked by a writer: resize' 'held\.pcow' 'in use' img resize held.pcow +1M
  refused 'locked by a writer: create' 'held\.pcow' 'in use' img create held.pcow 1M
  refused 'locked by a writer: convert to it' 'held\.pcow' 'in use' img convert -O pcow source.raw held.pcow
  refused 'locked by a writer: its head as a base' 'held\.pcow' 'in use\|open for writing' \
    img create -b held.pcow new.pcow
  let_go
  hold held.pcow $LOCK_HEAD shared || not_ok 'the lock is taken'
  refused 'locked by a reader: snapshot -c' 'held\.pcow' 'in use' img snapshot -c new held.pcow
  refused 'locked by a reader: create' 'held\.pcow' 'in use' img create held.pcow 1M
  expect 'locked by a reader: another reader' 0 compare held.pcow source.raw
  let_go
  hold held.pcow $FIRST_EPOCH_LOCK shared || not_ok 'the lock is taken'
  refused 'snapshot that is being read: delete' 'held\.pcow' 'read\|in use' img snapshot -d s1 held.pcow
  refused 'snapshot that is being read: convert to it' 'held\.pcow' 'in use' img convert good.pcow held.pcow
  let_go
  rm held.pcow
}

test_read_only()
{
  local who=

  fresh locked.pcow && cp source.raw locked.raw && chmod 444 locked.pcow locked.raw
  if as_other test -r locked.pcow && ! as_other test -w locked.pcow &&
    as_other "$PCOW_IMG" help >/dev/null; then
    who='as_other'
    chmod 777 .
  elif chattr +i locked.pcow locked.raw 2>/dev/null; then
    who='env'
  fi
  if [ -n "$who" ]; then
    refused 'read-only file: snapshot -c' 'locked\.pcow' 'denied\|permitted\|read-only' \
      $who "$PCOW_IMG" snapshot -c new locked.pcow
    refused 'read-only file: resize' 'locked\.pcow' 'denied\|permitted\|read-only' \
      $who "$PCOW_IMG" resize locked.pcow +1M
    refused 'read-only file: convert -n' 'locked\.pcow' 'denied\|permitted\|read-only' \
      $who "$PCOW_IMG" convert -n source.raw locked.pcow
    refused 'read-only file: convert -n to raw' 'locked\.raw' 'denied\|permitted\|read-only' \
      $who "$PCOW_IMG" convert -n good.pcow locked.raw
    refused 'read-only file: convert to it' 'locked\.raw' 'denied\|permitted\|read-only' \
      $who "$PCOW_IMG" convert good.pcow locked.raw
    expect 'read-only file: it can be read' 0 compare locked.pcow source.raw
    run $who "$PCOW_IMG" info locked.pcow
    that 'read-only file: info' test "$status" = 0
    chattr -i locked.pcow locked.raw 2>/dev/null
    chmod 755 .
  else
    skip 'read-only file' 'no other user and no chattr +i here'
  fi

  if on_read_only_mount true 2>/dev/null; then
    refused 'read-only mount: snapshot -c' 'good\.pcow' 'read-only' \
      on_read_only_mount "$PCOW_IMG" snapshot -c new good.pcow
    refused 'read-only mount: create' 'new\.pcow' 'read-only' \
      on_read_only_mount "$PCOW_IMG" create new.pcow 1M
    refused 'read-only mount: convert' 'new\.raw' 'read-only' \
      on_read_only_mount "$PCOW_IMG" convert good.pcow new.raw
  else
    skip 'read-only mount' 'no mount in a user namespace here'
  fi
  rm -f locked.pcow locked.raw
}

# ---- Snapshot names ----

test_names()
{
  local name256

  fresh n.pcow
  name256=$(printf '%0256d' 0)
  expect 'a name of 255 bytes' 0 snapshot -c "${name256%0}" n.pcow
  refused 'name too long' 'n\.pcow' 'long\|255' img snapshot -c "$name256" n.pcow
  refused 'empty name' 'n\.pcow' 'name' img snapshot -c '' n.pcow
  refused 'name with @' 'n\.pcow' '@' img snapshot -c a@b n.pcow
  refused 'name with a control character' 'n\.pcow' 'name' img snapshot -c $'a\nb' n.pcow
  refused 'name that is not UTF-8' 'n\.pcow' 'UTF-8' img snapshot -c $'\xff' n.pcow
  refused 'duplicate name' 'n\.pcow' 'exists\|taken\|already' img snapshot -c s1 n.pcow
  refused 'missing snapshot: -d' 'n\.pcow' "snapshot 'none'" img snapshot -d none n.pcow
  refused 'missing snapshot: -a' 'n\.pcow' "snapshot 'none'" img snapshot -a none n.pcow
  refused 'missing snapshot: rollback' 'n\.pcow' "snapshot 'none'" img rollback n.pcow none
  refused 'missing snapshot: diff' 'n\.pcow' "snapshot 'none'" img diff n.pcow none
  refused 'missing snapshot: diff to' 'n\.pcow' "snapshot 'none'" img diff n.pcow s1 none
  refused 'missing snapshot: convert -s' 'n\.pcow' "snapshot 'none'" img convert -s none n.pcow new.raw
  refused 'missing snapshot: convert @' 'n\.pcow' "snapshot 'none'" img convert n.pcow@none new.raw
  refused 'missing snapshot: info' 'n\.pcow' "snapshot 'none'" img info n.pcow@none
  refused 'no name after @' 'n\.pcow@' 'no snapshot name' img map n.pcow@
  refused 'two names' 'n\.pcow' 'twice' img convert -s s1 n.pcow@s1 new.raw
  refused 'snapshot of a raw file' 'source\.raw' 'raw file has no snapshots' img convert source.raw@s1 new.raw
  rm n.pcow
}

# ---- Sizes ----

test_sizes()
{
  local size

  refused 'size 0' 'new\.pcow' 'size' img create new.pcow 0
  refused 'size 0, with a base' 'new\.pcow' 'size' img create -b good.pcow new.pcow 0
  refused 'no size' 'new\.pcow' 'size' img create new.pcow
  refused 'size beyond the limit' 'new\.pcow' 'units' img create new.pcow 7E
  refused 'size beyond the limit of small units' 'new\.pcow' 'units' img create -o unit_size=64k new.pcow 2T
  for size in 12x 1kk -1 1.5 1e9 0x10 '' ' 1' 8E 99999999999999999999 16777216T k; do
    refused "not a size: '$size'" 'new\.pcow' 'not a size' img create -- new.pcow "$size"
  done
  for size in 0 1 3M 96k 32k 128G; do
    refused "not a unit size: $size" 'unit' 'power of two\|not a size' \
      img create -o unit_size=$size new.pcow 1G
  done
  refused 'unknown -o' 'cluster_size' 'unknown option' img create -o cluster_size=64k new.pcow 1G
  : >zero.raw
  refused 'convert of nothing' 'new\.pcow' 'size' img convert -f raw -O pcow zero.raw new.pcow
  rm zero.raw
  fresh n.pcow
  refused 'shrink without --shrink' 'n\.pcow' '--shrink' img resize n.pcow 1M
  refused 'shrink by, without --shrink' 'n\.pcow' '--shrink' img resize n.pcow -1M
  refused 'resize to 0' 'n\.pcow' 'size 0' img resize --shrink n.pcow 0
  refused 'resize below 0' 'n\.pcow' 'less' img resize --shrink n.pcow -5M
  refused 'resize beyond the limit' 'n\.pcow' 'units' img resize n.pcow 7E
  refused 'resize by too much' 'n\.pcow' 'beyond' img resize n.pcow +7.999999999E
  refused 'resize: not a size' 'n\.pcow' 'not a size' img resize n.pcow 12x
  rm n.pcow
}

# ---- Command lines ----

test_usage()
{
  refused 'no verb' 'help' 'no verb' img
  refused 'unknown verb' 'frob' 'unknown verb' img frob
  refused 'help for an unknown verb' 'frob' 'unknown verb' img help frob
  refused 'unknown option' 'frob' 'unknown option' img info --frob good.pcow
  refused 'missing argument of an option' 'convert' 'missing argument' img convert good.pcow new.raw -s
  refused 'no file' 'info' 'no file' img info
  refused 'too many files' 'b\.pcow' 'unexpected' img info good.pcow b.pcow
  refused 'unknown output' 'xml' 'human or json' img info --output=xml good.pcow
  refused 'unknown format' 'vmdk' 'unknown format' img convert -O vmdk good.pcow new.vmdk
  refused 'unknown repair' 'some' 'leaks or all' img check -r some good.pcow
  refused 'rebase without a base' 'rebase' '-b' img rebase good.pcow
  refused 'file name with a newline' 'miss?ing' 'no such file' img info $'miss\ning'
}

test_not_images
test_damage
test_features
test_bases
test_untrusted
test_locks
test_read_only
test_names
test_sizes
test_usage
finish
