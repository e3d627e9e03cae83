import ssl
from typing import Final

__all__ = ["NO_CERTIFICATE", "NoCertificateError"]

NO_CERTIFICATE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"

class NoCertificateError(ssl.SSLError):
    def __init__(self, suite: str) -> None: ...
