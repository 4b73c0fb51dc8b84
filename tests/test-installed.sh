#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a program outside of this tree meets: installs the build into a prefix of its own, looks at
# what the library exports, compiles the header alone in several languages, and builds and runs
# every example with pkg-config only.
#
# Environment: BUILD_ROOT, SOURCE_ROOT; MESON, CC as for the build.

set -euo pipefail

: "${BUILD_ROOT:?} ${SOURCE_ROOT:?}"
CC=${CC:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
  echo "FAIL: $*"
  failures=$((failures + 1))
}

# ---- Install ----

# A prefix changed afterwards, so that nothing can be found by its build-time path.
DESTDIR=$work/dest "${MESON:-meson}" install -C "$BUILD_ROOT" --no-rebuild --quiet >"$work/log" 2>&1 ||
  { cat "$work/log"; exit 1; }
pc=$(find "$work/dest" -name libpcow.pc)
[ -f "$pc" ] || { echo "FAIL: libpcow.pc is not installed"; exit 1; }
libdir=$(dirname "$(dirname "$pc")")
prefix=$(sed -n 's/^prefix=//p' "$pc")
mv "$work/dest$prefix" "$work/inst"
libdir=$work/inst${libdir#"$work/dest$prefix"}
header=$work/inst/include/libpcow/libpcow.h
library=$libdir/libpcow.so

export PKG_CONFIG_PATH=$libdir/pkgconfig
export LD_LIBRARY_PATH=$libdir
pkgconf() {
  pkg-config --define-variable=prefix="$work/inst" "$@" libpcow
}

[ -f "$header" ] || fail "libpcow.h is not installed"
[ "$(pkgconf --modversion)" = "$(sed -n "s/^  version: '\(.*\)',$/\1/p" "$SOURCE_ROOT/meson.build")" ] ||
  fail "libpcow.pc has another version than the project"
[ "$(pkgconf --print-requires)" = "" ] || fail "libpcow.pc burdens users with what is private"
if grep -rIlF -e "$BUILD_ROOT" -e "$SOURCE_ROOT" "$work/inst/include" "$libdir/pkgconfig"; then
  fail "an installed text names the build tree"
fi
diff -r "$SOURCE_ROOT/include" "$work/inst/include" || fail "not the headers that are in include/"

# ---- The shared object ----

soname=$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')
[ "$soname" = libpcow.so.0 ] || fail "soname is '$soname', not libpcow.so.0"
[ "$(readlink "$library")" = libpcow.so.0 ] || fail "libpcow.so is no link to libpcow.so.0"

# Every function that the header declares, with the version node, and nothing else. Declarations are
# found by the preprocessor, so that comments and typedefs do not matter.
$CC -E -P "$header" | tr '\n' ' ' | sed 's/[;{}]/\n/g' | grep -v typedef |
  sed -n 's/.*[ *]\(pcow_[a-z0-9_]*\) *(.*/\1@@LIBPCOW_0.1/p' | LC_ALL=C sort >"$work/declared"
nm -D --defined-only --with-symbol-versions "$library" |
  awk '$2 != "A" { print $3 }' | LC_ALL=C sort >"$work/exported"
[ "$(wc -l <"$work/declared")" -ge 29 ] || fail "the header could not be understood"
diff "$work/declared" "$work/exported" ||
  fail "what the header declares (<) is not what the library exports (>)"

# What the library needs: no tool's libraries.
if objdump -p "$library" | grep NEEDED | grep -E 'json|pmem|check'; then
  fail "the library needs what only tools, tests or persistent memory need"
fi

# ---- libpmem, which is loaded when an image is written on persistent memory, and missed only then ----

mkdir "$work/none"
without_pmem() {
  LD_LIBRARY_PATH=$work/none:$libdir "$work/inst/bin/pcow-img" "$@"
}
refused_without_pmem() {
  if PMEM_IS_PMEM_FORCE=1 without_pmem snapshot -c one "$work/image.pcow" 2>"$work/said"; then
    fail "an image on persistent memory is written without libpmem"
  fi
  grep -q "^pcow-img: $work/image.pcow: lies on persistent memory, but libpmem cannot be loaded: .*$1" \
    "$work/said" || fail "without libpmem: $(cat "$work/said")"
}

if [ -x "$work/inst/bin/pcow-img" ]; then
  echo 'no library' >"$work/none/libpmem.so.1"
  PMEM_IS_PMEM_FORCE=1 without_pmem create -q "$work/image.pcow" 1M || fail "create needs libpmem"
  PMEM_IS_PMEM_FORCE=1 without_pmem info "$work/image.pcow" >"$work/log" || fail "info needs libpmem"
  refused_without_pmem 'libpmem.so.1'
  : >"$work/empty.c"
  $CC -shared -fPIC -o "$work/none/libpmem.so.1" "$work/empty.c"
  refused_without_pmem 'pmem_flush'
  PMEM_IS_PMEM_FORCE=0 without_pmem snapshot -c two "$work/image.pcow" || fail "a page cache needs libpmem"
  PMEM_IS_PMEM_FORCE=0 without_pmem snapshot -l "$work/image.pcow" >"$work/log"
  if grep -q one "$work/log" || ! grep -q two "$work/log"; then
    fail "the snapshots are not those that were taken: $(cat "$work/log")"
  fi
fi

# ---- pcow-run, which finds its library from where it is ----

if [ -x "$work/inst/bin/pcow-run" ]; then
  preloaded=$("$work/inst/bin/pcow-run" sh -c 'echo "$LD_PRELOAD"')
  [ "$preloaded" = "$libdir/pcow/libpcow-run.so" ] || fail "pcow-run preloads '$preloaded'"
  nm -D --defined-only "$preloaded" | awk '$2 != "A" { print $3 }' | grep -E '^(pcow|g|run|__wrap)_' &&
    fail "libpcow-run exports what is its own"
fi

# ---- The header ----

cat >"$work/use.c" <<'END'
#include <libpcow/libpcow.h>
#include <libpcow/libpcow.h>

int use(const char *path);
int use(const char *path)
{
  struct pcow_open_options options = PCOW_INIT(options);
  pcow_image *image = NULL;
  return pcow_open(path, &options, &image) == 0 ? pcow_close(image) : options.flags == 0;
}
END
cp "$work/use.c" "$work/use.cc"
languages=0
try_header() {
  local compiler=$1 standard=$2 file=$3
  shift 3
  command -v "$compiler" >/dev/null || { echo "($compiler is not there)"; return; }
  # shellcheck disable=SC2046 # words, on purpose
  if "$compiler" -std="$standard" -Wall -Wextra -Wpedantic -Werror "$@" $(pkgconf --cflags) \
       -c "$work/$file" -o "$work/use.o"; then
    languages=$((languages + 1))
  else
    fail "the header does not compile with $compiler as $standard"
  fi
}
for compiler in gcc clang; do
  for standard in c99 c11 gnu11; do
    try_header $compiler $standard use.c -Wstrict-prototypes
  done
done
for compiler in g++ clang++; do
  for standard in c++11 c++17; do
    # In C++ before C++20 a struct's first member alone can only be set by position.
    try_header $compiler $standard use.cc -Wno-missing-field-initializers
  done
done
echo "header compiled in $languages ways"
[ "$languages" -ge 5 ] || fail "too few compilers to try the header with"

# ---- Examples ----

for source in "$SOURCE_ROOT"/examples/*.c; do
  name=$(basename "$source" .c)
  # shellcheck disable=SC2046
  $CC -o "$work/$name" "$source" $(pkgconf --cflags --libs) || fail "examples/$name.c does not build"
done
ldd "$work/pm-store" >"$work/ldd"  # not a pipe: grep -q would end it early
grep -qF "$libdir/libpcow.so.0" "$work/ldd" || fail "pm-store runs another library"

export PMEM_IS_PMEM_FORCE=1
image=$work/test.pcow
if "$work/create-and-snapshot" "$image" >"$work/out" 2>"$work/err"; then
  cat "$work/out"
  "$work/pm-store" --expect "written after" "$image" 0x500000 "WRITTEN" || fail "pm-store failed"
  if "$work/pm-store" --expect "written" "$image" 0x500000 "x" 2>"$work/err"; then
    fail "pm-store stored over something unexpected"
  fi
  "$work/pm-store" --expect "WRITTEN after" "$image" 0x500000 "w" || fail "a store was lost"
  if "$work/create-and-snapshot" "$image" 2>"$work/err"; then
    fail "an existing image was replaced"
  fi
  grep -qF "$image" "$work/err" || fail "the message does not name the file: $(cat "$work/err")"
elif grep -q userfaultfd "$work/err"; then
  echo "(examples were not run: $(cat "$work/err"))"
else
  cat "$work/err"
  fail "create-and-snapshot failed"
fi

[ "$failures" -eq 0 ] || { echo "$failures failures"; exit 1; }
