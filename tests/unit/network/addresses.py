"""Addresses as getaddrinfo(3) returns them."""

import socket

from ingest.network.resolver import Address


def address(host: str = "127.0.0.1", port: int = 1, family: int = socket.AF_INET) -> Address:
    where = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
    return socket.AddressFamily(family), socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where
