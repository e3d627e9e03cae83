"""Commands that make, convert and show certificates and keys."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

from pathlib import Path
from typing import Any

import click

from ingest.cli._base import FAULTS, Commands
from ingest.cli._pipes import Piped
from ingest.errors import ConfigError

_PATH = click.Path(path_type=Path)
_SOURCE = Piped(path_type=Path)
_FILE = Piped(exists=True, dir_okay=False, path_type=Path)
_KEY_TYPES = click.Choice(["rsa2048", "rsa3072", "rsa4096", "ec", "ec-p384", "ed25519"])
_name = click.option(
    "--name", required=True, metavar="CN", help="Common name; an alternative name too if it is a host."
)
_san = click.option("--san", multiple=True, metavar="HOST", help="Further host name or address; repeatable.")
_key_type = click.option(
    "--key-type", type=_KEY_TYPES, default="rsa2048", show_default=True, help="ec is P-256."
)
_force = click.option("--force", is_flag=True, help="Replace what is there.")


class _Certs(Commands):
    """There is no configuration in these commands: whatever fails, fails with 1."""

    refused = FAULTS


@click.group(cls=_Certs)
def certs() -> None:
    """Make, convert and show certificates and keys.

    Passwords are the first lines of files. Exit codes: 0 done, 1 failed.
    """


@certs.command()
@click.argument("prefix", type=_PATH)
@_name
@_san
@click.option("--days", type=click.IntRange(1, 36500), default=825, show_default=True, help="Validity.")
@_key_type
@click.option("--ca", type=_PATH, metavar="PREFIX", help="Signed by this authority; made if new.")
@click.option("--ca-password-file", type=_FILE, help="Opens its key, or encrypts it if new.")
@click.option("--trust", type=_PATH, metavar="FILE", help="Append it (or its authority) here.")
@click.option("--password-file", type=_FILE, help="Encrypt the key.")
@_force
def new(prefix: Path, name: str, trust: Path | None, **options: Any) -> None:
    """Make a certificate and its private key.

    Writes PREFIX.crt and PREFIX.key, self-signed or signed by an authority of your own. The key can be read
    by its owner only. Both TLS roles are allowed, since a node is server and client.
    """
    if options["ca"] is None and options["ca_password_file"] is not None:
        raise click.UsageError("--ca-password-file is for the key of --ca: name both")
    from ingest.tls.keys import pairs

    made = pairs.create_pair(prefix, name, **options)
    if trust is not None:
        pairs.add_to_bundle(made.anchor, trust)
    for path in (*made.files, *([trust] if trust else [])):
        click.echo(path)


@certs.command()
@click.argument("prefix", type=_PATH)
@_name
@_san
@_key_type
@click.option("--key", type=_SOURCE, help="Ask for this one; by default PREFIX.key, made if new.")
@click.option("--password-file", type=_FILE, help="Opens the key, or encrypts it if new.")
@_force
def csr(prefix: Path, name: str, **options: Any) -> None:
    """Ask an authority that somebody else has for a certificate.

    Writes PREFIX.csr, and PREFIX.key where there is none; a key is never replaced. What the authority sends
    back goes with that key.
    """
    from ingest.tls.keys import pairs

    for path in pairs.create_request(prefix, name, **options):
        click.echo(path)


@certs.command()
@click.argument("out", type=_PATH)
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@click.option("--password-file", type=_FILE, help="Opens PKCS#12 among FILES.")
def trust(out: Path, files: tuple[Path, ...], password_file: Path | None) -> None:
    """Add the certificates in FILES and folders to the bundle OUT.

    OUT is PEM, made if new; what it holds already is not added again. FILES may be PEM, DER, PKCS#7 or
    PKCS#12; private keys in them stay there.
    """
    from ingest.tls.keys import pairs

    added = pairs.add_all_to_bundle(pairs.read_certificates(files, password_file), out)
    for certificate in added:
        click.echo(f"added {_printable(certificate.subject.rfc4514_string())}")
    click.echo(f"{out}: {len(added)} new")


@certs.command()
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@click.option("--password-file", type=_FILE, help="Opens PKCS#12 and encrypted keys.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(files: tuple[Path, ...], password_file: Path | None, as_json: bool) -> None:
    """Show what FILES and folders hold, and until when it is good.

    PEM, DER, PKCS#7 and PKCS#12: certificates with subject, issuer, names, validity, fingerprint, key and
    usages; the kinds of private keys. Where there are keys and certificates, each key must have its own among
    them. Exits with 1 where it has not, or where a file cannot be read or holds nothing.
    """
    import json
    from datetime import UTC, datetime

    from ingest.tls.keys import inspection

    found = inspection.inspect_files(files, password_file, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps(inspection.to_json_data(found), indent=2))
    else:
        for line in inspection.format_lines(found):
            click.echo(_printable(line))
    faults = [each.fault for each in found if each.fault]
    faults += [
        f"{contents.file}: belongs to none of these certificates; name its own"
        for contents, _, own in inspection.match_keys(found)
        if own is None
    ]
    if faults:
        raise ConfigError([_printable(fault) for fault in faults])


@certs.group(cls=_Certs)
def p12() -> None:
    """Make and split PKCS#12.

    Key stores and trust stores of Java and dcm4che, from PEM and back.
    """


_STORE_PASSWORD = click.option(
    "--password-file", type=_FILE, required=True, help="Its first line will open the store."
)


@p12.command()
@click.argument("out", type=_PATH)
@click.argument("certificate", type=_SOURCE)
@click.argument("key", type=_SOURCE, required=False)
@_STORE_PASSWORD
@click.option("--key-password-file", type=_FILE, help="Opens KEY.")
@click.option("--alias", default="", help="By which Java knows it; by default its common name.")
@_force
def make(out: Path, certificate: Path, key: Path | None, **options: Any) -> None:
    """Make the key store OUT from a pair.

    CERTIFICATE is followed by its issuers; KEY may be in the same file. OUT can be read by its owner only: it
    is for who uses the key. For the other side, make a trust store.
    """
    from ingest.tls.keys import key_stores

    key_stores.make_key_store(out, certificate, key, **options)
    click.echo(out)


@p12.command("trust")
@click.argument("out", type=_PATH)
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@_STORE_PASSWORD
@click.option("--source-password-file", type=_FILE, help="Opens PKCS#12 among FILES.")
@_force
def trust_store(out: Path, files: tuple[Path, ...], **options: Any) -> None:
    """Make the trust store OUT from certificates.

    It holds those in FILES and folders, marked as trusted for Java, and nothing else: private keys that are
    in FILES stay there.
    """
    from ingest.tls.keys import key_stores

    for alias in key_stores.make_trust_store(out, files, **options):
        click.echo(f"trusted {_printable(alias)}")
    click.echo(out)


@p12.command()
@click.argument("store", type=_SOURCE)
@click.argument("prefix", type=_PATH)
@click.option("--password-file", type=_FILE, help="Opens STORE.")
@click.option("--key-password-file", type=_FILE, help="Encrypt the key that is written.")
@_force
def split(store: Path, prefix: Path, **options: Any) -> None:
    """Write the pair in a key store as PEM.

    Makes PREFIX.crt, with its chain, and PREFIX.key from STORE. The key can be read by its owner only. Of a
    trust store, `certs trust` takes the certificates.
    """
    from ingest.tls.keys import key_stores

    for path in key_stores.split_key_store(store, prefix, **options):
        click.echo(path)


def _printable(text: str) -> str:
    """What a file says, without what would steer a terminal."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )
