from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

__all__ = ["NEWEST", "TLS_1_0", "TLS_1_1", "TLS_1_2", "TLS_1_3", "CipherSuite", "Context", "openssl_version"]

TLS_1_0: Final = 0x0301
TLS_1_1: Final = 0x0302
TLS_1_2: Final = 0x0303
TLS_1_3: Final = 0x0304
NEWEST: Final = 0

class CipherSuite(NamedTuple):
    name: str
    protocol: str
    key_exchange: str
    authentication: str
    is_aead: bool

class Context:
    is_server: bool
    requires_certificate: bool
    verifies_peers: bool
    check_host_name: bool
    def __init__(self, *, is_server: bool) -> None: ...
    def set_versions(self, minimum: int, maximum: int = NEWEST) -> None: ...
    def set_ciphers(self, ciphers: str) -> None: ...
    def restrict(self, suites: str, groups: str, signatures: str) -> None: ...
    def list_ciphers(self) -> list[CipherSuite]: ...
    @property
    def security_level(self) -> int: ...
    def load_pair(self, chain: bytes, key: bytes, password: Callable[[], bytes] | None = None) -> None: ...
    def trust(self, certificates: bytes) -> None: ...
    def verify_peers(self, *, required: bool) -> None: ...
    def check_revocation(
        self, crls: Sequence[bytes], *, allow_missing: bool, allow_expired: bool
    ) -> None: ...

def openssl_version() -> str: ...
