"""Looks a name up with c-ares."""
import select
import socket
import sys

import pycares

kind, name = sys.argv[1:]
channel = pycares.Channel()
SAYS = {pycares.errno.ARES_ENOTFOUND: "NXDOMAIN", pycares.errno.ARES_ENODATA: "NODATA"}


def done(found, error):
    if error is not None:
        print(SAYS.get(error, pycares.errno.strerror(error)))
    elif kind == "SRV":
        for record in found:
            print(record.priority, record.weight, record.port, record.host)
    else:
        for node in found.nodes:
            address = node.addr[0]
            print(address.decode() if isinstance(address, bytes) else address)


if kind == "SRV":
    channel.query(name, pycares.QUERY_TYPE_SRV, done)
else:
    families = {"A": socket.AF_INET, "AAAA": socket.AF_INET6, "BOTH": socket.AF_UNSPEC}
    channel.getaddrinfo(name, None, done, family=families[kind])
while True:
    reading, writing = channel.getsock()
    if not reading and not writing:
        break
    ready = select.select(reading, writing, [], channel.timeout())
    for fd in ready[0]:
        channel.process_fd(fd, pycares.ARES_SOCKET_BAD)
    for fd in ready[1]:
        channel.process_fd(pycares.ARES_SOCKET_BAD, fd)
    if not ready[0] and not ready[1]:
        channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
