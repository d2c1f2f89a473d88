"""A name server over UDP that answers from a table, also wrongly.

Arguments: ADDRESS PORT TABLE. The table is JSON: a name in lower case to {"records": [[TYPE, TTL, DATA], ...], "mode":
MODE}; records of type A and AAAA are answered to questions of that type only. Prints a line when it listens.

Modes: "right"; "case" (the answer's question and names in another case); "plain" (without compression); "truncated";
"wrong-id"; "wrong-name" (repeats another question, for evil.example.net); "wrong-type"; "two-questions"; "error" (NXDOMAIN
with records); "fresh" (an alias, and an address that was in no answer before, in another case); "port" (the answer comes
from another port).
"""

import itertools
import json
import socket
import struct
import sys

TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28}


def name_bytes(name):
    labels = [label.encode() for label in name.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def other_case(name):
    return "".join(c.upper() if i % 2 else c for i, c in enumerate(name))


def question_of(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += query[at] + 1
    return ".".join(labels), struct.unpack("!H", query[at + 1 : at + 3])[0], at + 5


def data_bytes(kind, data):
    if kind == "A":
        return socket.inet_pton(socket.AF_INET, data)
    if kind == "AAAA":
        return socket.inet_pton(socket.AF_INET6, data)
    if kind == "CNAME":
        return name_bytes(data)
    return bytes([len(data)]) + data.encode()


fresh = itertools.count(20 << 24)


def answer(query, table):
    name, kind, end = question_of(query)
    entry = table.get(name.lower(), {"records": [], "mode": "right"})
    mode = entry.get("mode", "right")
    records = entry["records"]
    if mode == "fresh":
        address = socket.inet_ntop(socket.AF_INET, struct.pack("!I", next(fresh)))
        records, mode = [["CNAME", 1, "alias.example.org"], ["A", 1, address]], "case"
    asked = query[12:end]
    if mode == "case":
        asked = name_bytes(other_case(name)) + query[end - 4 : end]
    elif mode == "wrong-name":
        asked = name_bytes("evil.example.net") + query[end - 4 : end]
    elif mode == "wrong-type":
        asked = query[12 : end - 4] + struct.pack("!HH", 16, 1)
    body, count, owner = b"", 0, name
    for record_kind, ttl, data in records:
        number = TYPES[record_kind]
        if record_kind in ("A", "AAAA") and number != kind:
            continue
        if mode == "plain":
            first = name_bytes(owner)
        elif mode == "case":
            first = name_bytes(other_case(owner))
        else:
            first = b"\xc0\x0c" if owner == name else name_bytes(owner)
        content = data_bytes(record_kind, data)
        body += first + struct.pack("!HHIH", number, 1, ttl, len(content)) + content
        count += 1
        if record_kind == "CNAME":
            owner = data
    identity = struct.unpack("!H", query[:2])[0]
    flags, questions = 0x8180, 1
    if mode == "wrong-id":
        identity ^= 1
    if mode == "truncated":
        flags |= 0x0200
    if mode == "error":
        flags |= 3
    if mode == "two-questions":
        questions, asked = 2, asked * 2
    return struct.pack("!HHHHHH", identity, flags, questions, count, 0, 0) + asked + body, mode


def main():
    address, port, table = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, port))
    other = socket.socket(family, socket.SOCK_DGRAM)
    other.bind((address, port + 1))
    print("listening", flush=True)
    while True:
        query, client = server.recvfrom(4096)
        message, mode = answer(query, table)
        (other if mode == "port" else server).sendto(message, client)


main()
