"""Starts a unit many times, and prints the results of the first call of each start as a JSON object with their numbers.

Arguments: the directory of the unit's cgroup, ADDRESS, PORT, and the number of starts. A start creates the cgroup; a new
process enters it, and connects as its first act; then the cgroup is removed.
"""

import collections
import errno
import json
import os
import socket
import sys
import time


def connect(address, port):
    """Returns the result of a connect that does not wait for the other side."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    result = made.connect_ex((address, port))
    return 0 if result == errno.EINPROGRESS else result


def start(folder, address, port):
    os.mkdir(folder)
    child = os.fork()
    if child == 0:
        try:
            with open(folder + "/cgroup.procs", "wb", buffering=0) as procs:
                procs.write(b"0")
            os._exit(connect(address, port))
        except BaseException:
            os._exit(255)
    _, status = os.waitpid(child, 0)
    while True:
        try:
            os.rmdir(folder)
            return os.waitstatus_to_exitcode(status)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.001)  # the kernel has not removed the process from the cgroup yet


def main():
    folder, address, port, count = sys.argv[1:]
    results = collections.Counter()
    for _ in range(int(count)):
        result = start(folder, address, int(port))
        results["ok" if result == 0 else errno.errorcode.get(result, str(result))] += 1
    print(json.dumps(results))


main()
