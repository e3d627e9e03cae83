"""Key material as sites have it, made by the programs that they use: openssl and Java's keytool."""

import subprocess
from pathlib import Path

PASSWORD = "geheim ä"
"""Not ASCII: PKCS#12 encodes it as UTF-16 (RFC 7292 B.1), PEM takes its bytes."""

NEW_KEY = {
    "rsa": ["-newkey", "rsa:2048"],
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "ed25519": ["-newkey", "ed25519"],
}


def run(*command: object, stdin: bytes = b"") -> str:
    """A program that has to succeed; what it says on both channels."""
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    return said


class Keys:
    """A root, an authority under it, and a pair of each kind that this signed; all by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "password").write_bytes(f"{PASSWORD}\n".encode())
        (folder / "wrong").write_text("falsch\n")
        self._root("root")
        self._signed("authority", "root", "CA:TRUE", NEW_KEY["rsa"])
        for kind, options in NEW_KEY.items():
            self._signed(kind, "authority", "CA:FALSE", options)
            chain = (folder / f"{kind}.crt").read_bytes() + (folder / "authority.crt").read_bytes()
            (folder / f"{kind}.chain").write_bytes(chain)

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def _root(self, name: str) -> None:
        run(
            "openssl", "req", "-x509", "-nodes", "-days", "30", *NEW_KEY["rsa"], "-subj", f"/CN={name}",
            "-keyout", self[f"{name}.key"], "-out", self[f"{name}.crt"],
        )  # fmt: skip

    def _signed(self, name: str, issuer: str, constraint: str, options: list[str]) -> None:
        request, extensions = self[f"{name}.csr"], self[f"{name}.ext"]
        extensions.write_text(f"basicConstraints=critical,{constraint}\nsubjectAltName=DNS:localhost\n")
        run(
            "openssl", "req", "-nodes", *options, "-subj", f"/CN={name}", "-keyout", self[f"{name}.key"],
            "-out", request,
        )  # fmt: skip
        run(
            "openssl", "x509", "-req", "-in", request, "-CA", self[f"{issuer}.crt"],
            "-CAkey", self[f"{issuer}.key"], "-CAcreateserial", "-days", "30", "-extfile", extensions,
            "-out", self[f"{name}.crt"],
        )  # fmt: skip

    def pkcs12(self, name: str, kind: str, *options: str, password: str = PASSWORD) -> Path:
        """As `openssl pkcs12 -export` makes it, with the chain."""
        run(
            "openssl", "pkcs12", "-export", "-in", self[f"{kind}.crt"], "-inkey", self[f"{kind}.key"],
            "-certfile", self["authority.crt"], "-out", self[name], "-passout", f"pass:{password}", *options,
        )  # fmt: skip
        return self[name]
