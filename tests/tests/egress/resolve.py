"""Asks a name server, and connects to the addresses of the answer at once.

Arguments: SERVER PORT, then NAME[/TYPE][=ADDRESS] repeated: asks for the name, and connects a UDP socket to ADDRESS, or
else to each address of the answer. The option "unconnected" before a name makes the query by sendto on a socket that is
not connected; "race=COUNT/FIRST" asks COUNT times, in turn for the names "rN.example.com" for 100 numbers N from FIRST,
and gives the results that are not "ok". Prints a JSON list with the results of each name: "ok" or the name of the error for each connect, or
["no answer"].
"""

import errno
import json
import socket
import struct
import sys

TYPES = {"A": 1, "AAAA": 28}


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def query_for(name, kind, identity):
    labels = [label.encode() for label in name.split(".")]
    text = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", identity, 0x0100, 1, 0, 0, 0) + text + struct.pack("!HH", TYPES[kind], 1)


def addresses(message, kind):
    """Returns the addresses of an answer whose records have names without or with compression."""
    questions, count = struct.unpack("!HH", message[4:8])
    at = 12

    def skip(at):
        while message[at]:
            if message[at] >= 0xC0:
                return at + 2
            at += message[at] + 1
        return at + 1

    for _ in range(questions):
        at = skip(at) + 4
    found = []
    for _ in range(count):
        at = skip(at)
        number, _, _, length = struct.unpack("!HHIH", message[at : at + 10])
        data = message[at + 10 : at + 10 + length]
        at += 10 + length
        if number == 1:
            found.append(socket.inet_ntop(socket.AF_INET, data))
        elif number == 28:
            found.append(socket.inet_ntop(socket.AF_INET6, data))
    return found


def connect(address):
    made = socket.socket(family(address), socket.SOCK_DGRAM)
    try:
        made.connect((address, 443))
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        made.close()
    return "ok"


def resolve(server, port, name, kind, wanted, is_unconnected, identity):
    asker = socket.socket(family(server), socket.SOCK_DGRAM)
    asker.settimeout(20 if wanted is None else 2)
    query = query_for(name, kind, identity)
    if is_unconnected:
        asker.sendto(query, (server, port))
    else:
        asker.connect((server, port))
        asker.send(query)
    try:
        message = asker.recv(4096)
    except (TimeoutError, ConnectionRefusedError):
        message = None
    if wanted is not None:
        return [connect(wanted)]
    if message is None:
        return ["no answer"]
    return [connect(address) for address in addresses(message, kind)]


def race(server, port, count, first):
    asker = socket.socket(family(server), socket.SOCK_DGRAM)
    asker.connect((server, port))
    asker.settimeout(60)
    wrong = []
    for number in range(count):
        identity = number & 0xFFFF
        asker.send(query_for(f"r{first + number % 100}.example.com", "A", identity))
        for address in addresses(asker.recv(4096), "A"):
            result = connect(address)
            if result != "ok":
                wrong.append([number, address, result])
    return wrong


def main():
    server, port = sys.argv[1], int(sys.argv[2])
    results, is_unconnected = [], False
    for number, argument in enumerate(sys.argv[3:]):
        if argument == "unconnected":
            is_unconnected = True
            continue
        question, _, wanted = argument.partition("=")
        if question == "race":
            results.append(race(server, port, *[int(number) for number in wanted.split("/")]))
            continue
        name, _, kind = question.partition("/")
        results.append(
            resolve(server, port, name, kind or "A", wanted or None, is_unconnected, 4660 + number)
        )
        is_unconnected = False
    print(json.dumps(results))


main()
