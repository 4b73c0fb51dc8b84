# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# QEMU with memory-backend-pcow, for tests; sourced.

# find_qemu_pcow: sets QEMU_PCOW, unless it names one already, to what tools/qemu/build makes, with the library of
# $BUILD_ROOT. Ends the test when the source cannot be had (77) or does not build (1).
find_qemu_pcow()
{
  local said status=0
  [ -z "${QEMU_PCOW:-}" ] || return 0
  said=$("$(dirname "${BASH_SOURCE[0]}")/../../tools/qemu/build" ${BUILD_ROOT:+--libpcow "$BUILD_ROOT"} 2>&1) || status=$?
  case $status in
    0) QEMU_PCOW=${said##*$'\n'} ;;
    3) echo "SKIP: ${said##*$'\n'}"; exit 77 ;;
    *) echo "$said"; exit 1 ;;
  esac
}
