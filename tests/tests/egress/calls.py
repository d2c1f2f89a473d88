"""Makes calls that an egress policy judges, and prints the result of each as a JSON list.

Arguments: KIND ADDRESS PORT, repeated. A result is "ok", "timeout", or the name of the error.
"""

import errno
import json
import socket
import sys

MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP = 262
IPPROTO_UDPLITE = 136
TIMEOUT = 20


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def open_socket(address, kind, protocol=0):
    made = socket.socket(family(address), kind, protocol)
    made.settimeout(TIMEOUT)
    return made


def tcp(address, port):
    open_socket(address, socket.SOCK_STREAM).connect((address, port))


def mptcp(address, port):
    open_socket(address, socket.SOCK_STREAM, IPPROTO_MPTCP).connect((address, port))


def fastopen(address, port):
    made = open_socket(address, socket.SOCK_STREAM)
    made.settimeout(None)  # otherwise the call returns before the connection is established
    made.sendto(b"x", MSG_FASTOPEN, (address, port))


def udp_connect(address, port):
    open_socket(address, socket.SOCK_DGRAM).connect((address, port))


def udp_connected(address, port):
    made = open_socket(address, socket.SOCK_DGRAM)
    made.connect((address, port))
    made.send(b"x")


def udp_send(address, port):
    open_socket(address, socket.SOCK_DGRAM).sendto(b"x", (address, port))


def udplite_send(address, port):
    open_socket(address, socket.SOCK_DGRAM, IPPROTO_UDPLITE).sendto(b"x", (address, port))


def mapped_tcp(address, port):
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.settimeout(TIMEOUT)
    made.connect(("::ffff:" + address, port))


def mapped_udp_send(address, port):
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.sendto(b"x", ("::ffff:" + address, port))


def mapped_udp_connect(address, port):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::ffff:" + address, port))


def ping_connect(address, port):
    protocol = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
    open_socket(address, socket.SOCK_DGRAM, protocol).connect((address, port))


def getaddrinfo(name, port):
    socket.getaddrinfo(name, port)


def result(kind, address, port):
    try:
        globals()[kind](address, int(port))
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "ok"


arguments = sys.argv[1:]
calls = zip(arguments[0::3], arguments[1::3], arguments[2::3])
print(json.dumps([result(*call) for call in calls]))
