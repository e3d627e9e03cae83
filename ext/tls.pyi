import ssl

__all__ = ["available"]

def available(connection: ssl.SSLObject) -> bool: ...
