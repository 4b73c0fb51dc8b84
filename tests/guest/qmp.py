#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
#
# Talks to QEMU's monitor: qmp.py SOCKET COMMAND…
#
#     NAME[={…}]       executes a command with these arguments (JSON), and prints what it returns as a line
#                      of JSON; an error is printed, "error: …", and ends with status 1
#     @EVENT           waits for the event, since the first command of this call, and prints its data
#     ?STATUS          waits until query-status says this, and prints it
#
# Gives up after QMP_TIMEOUT seconds (60) with status 2. With QMP_TIMES=1 the line after each command's result
# says how long it took.

import json
import os
import socket
import sys
import time


class Monitor:
    def __init__(self, path):
        self.end = time.monotonic() + float(os.environ.get('QMP_TIMEOUT', '60'))
        self.events = []
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.left()
                time.sleep(0.05)
        self.data = b''
        self.receive()
        self.execute('qmp_capabilities', {})

    def left(self):
        left = self.end - time.monotonic()
        if left <= 0:
            print('error: no answer in time')
            sys.exit(2)
        return left

    def receive(self):
        while b'\n' not in self.data:
            self.socket.settimeout(self.left())
            try:
                more = self.socket.recv(65536)
            except socket.timeout:
                self.left()
                continue
            except ConnectionError:
                more = b''
            if not more:
                print('error: the monitor is gone')
                sys.exit(2)
            self.data += more
        line, self.data = self.data.split(b'\n', 1)
        return json.loads(line)

    def execute(self, name, arguments):
        text = json.dumps({'execute': name, 'arguments': arguments})
        self.socket.sendall(text.encode() + b'\n')
        while True:
            message = self.receive()
            if 'event' in message:
                self.events.append(message)
            elif 'error' in message:
                print('error: ' + message['error']['desc'])
                sys.exit(1)
            elif 'return' in message:
                return message['return']

    def wait_event(self, name):
        while True:
            for event in self.events:
                if event['event'] == name:
                    self.events.remove(event)
                    return event.get('data', {})
            message = self.receive()
            if 'event' in message:
                self.events.append(message)

    def wait_status(self, wanted):
        while True:
            status = self.execute('query-status', {})['status']
            if status == wanted:
                print(status)
                return
            self.left()
            time.sleep(0.02)


monitor = Monitor(sys.argv[1])
for word in sys.argv[2:]:
    if word.startswith('@'):
        print(json.dumps(monitor.wait_event(word[1:]), sort_keys=True))
    elif word.startswith('?'):
        monitor.wait_status(word[1:])
    else:
        command, _, text = word.partition('=')
        started = time.monotonic()
        result = monitor.execute(command, json.loads(text or '{}'))
        took = (time.monotonic() - started) * 1e3
        print(json.dumps(result, sort_keys=True))
        if os.environ.get('QMP_TIMES') == '1':
            print(f'took {took:.1f} ms')
    sys.stdout.flush()
