"""Key pairs for tests: one made for each test session and name, since RSA keys take a moment to make."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingest.config.model import TLS
from ingest.tls.keys import pairs


@dataclass(frozen=True)
class Material:
    """Files of a small world: a node, a peer it trusts, a stranger, and one whose time is over."""

    folder: Path

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def trusted(self) -> Path:
        """What the node and its peers trust: everybody but the stranger."""
        return self.folder / "trusted.crt"

    def tls(self, name: str, **changes: object) -> TLS:
        """A `[tls.NAME]` of one of them."""
        return TLS(
            certificate=self.certificate(name),
            private_key=self.key(name),
            trusted=(self.trusted,),
            **changes,  # type: ignore[arg-type]
        )


def make(folder: Path) -> Material:
    """Write pairs "node", "remote", "peer", "other", "stranger" and "expired"."""
    material = Material(folder)
    for name in ("node", "remote", "peer", "other", "stranger"):
        pair = pairs.issue_self_signed(
            name, names=["localhost", "127.0.0.1"], key_type="ec" if name == "other" else "rsa2048"
        )
        pairs.write_pair(pair, folder / name)
        if name != "stranger":
            pairs.add_to_bundle(pair.certificate, material.trusted)
    past = datetime.now(UTC) - timedelta(days=30)
    pair = pairs.issue_self_signed("expired", names=["localhost"], days=10, start=past, key_type="ec")
    pairs.write_pair(pair, folder / "expired")
    pairs.add_to_bundle(pair.certificate, material.trusted)
    return material
