#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
#
# Which of meson's tests run inside a guest, and how: for each test of BUILD-DIR, or of those named, a line
#
#     run NAME PROGRAM ARGUMENT...        what the guest does
#     not NAME REASON                     what it cannot do, or does already under another name
#
# An emulated CPU is ten to thirty times slower: random tests do fewer operations there.
#
#     plan-inside.py all|ci BUILD-DIR [TEST...]

import json
import os
import sys

# Options that a program gets instead of its own, by the program's name.
FEWER = {
    "crash": {"--states": "0", "--limit": "1", "--second": "4000", "--kill": "4000"},
    "soak": {"--seconds": "30", "--workers": "2"},
    "test-chain": {"--length": "150"},
    "test-collect-live": {"--rounds": "6"},
    "test-map-budget": {"--stores": "20000"},
    "test-map-threads": {"--stores": "20000", "--rounds": "2"},
    "test-model": {"--ops": "300"},
    "test-readers": {"--seconds": "10"},
    "test-rotation": {"--snapshots": "200"},
}

# What CI runs: each mechanism once, in about as much time as the rest of the guests' tests.
CI = ["persist", "store", "format", "ops", "repair", "kill", "copies", "ops-map", "map-threads", "flush", "flush-dma",
      "flush-once", "snapshot-live"]


# What the guest lacks.
UNLIKE = {
    "collect-middle": "it needs more than 1 GiB of persistent memory",
    "map-kernel": "it needs KVM",
    "map-kernel-late": "it needs KVM",
}


def strip(test):
    """The file system that with-fs.sh would make, the environment, the program and its arguments."""
    command, system, force = list(test["cmd"]), None, None
    if os.path.basename(command[0]) == "with-fs.sh":
        system, command = command[1], command[3:]
    if command[0] == "env":
        command.pop(0)
        while "=" in command[0]:
            name, value = command.pop(0).split("=", 1)
            if name == "PMEM_IS_PMEM_FORCE":
                force = value
    return system, force, command


def fewer(program, arguments):
    arguments = list(arguments)
    for option, value in FEWER.get(program, {}).items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments += [option, value]
    return arguments


def main():
    which, build, names = sys.argv[1], os.path.realpath(sys.argv[2]), sys.argv[3:]
    with open(os.path.join(build, "meson-info", "intro-tests.json")) as file:
        tests = json.load(file)
    known = {test["name"] for test in tests}
    for name in names:
        if name not in known:
            print("unknown", name)
    same = {}
    for test in tests:
        name = test["name"]
        if names and name not in names or which == "ci" and not names and name not in CI:
            continue
        system, force, command = strip(test)
        program = os.path.join(build, command[0])
        arguments = fewer(os.path.basename(program), command[1:])
        if not program.startswith(build + os.sep) or not os.access(program, os.X_OK):
            print("not", name, "a script that needs the programs of the machine where it was built")
            continue
        if name in UNLIKE and name not in names:
            print("not", name, UNLIKE[name])
            continue
        if system in ("tmpfs", "xfs") and not ("--nobody" in arguments or name.startswith(("model", "soak"))):
            print("not", name, "on %s, for which the guest's kernel changes nothing" % system)
            continue
        if force == "0" and "--nobody" not in arguments or "--msync" in arguments:
            print("not", name, "of file systems without DAX")
            continue
        key = (program, tuple(arguments))
        if key in same:
            print("not", name, "the same as", same[key], "here")
            continue
        same[key] = name
        print("run", name, program, *arguments)


main()
