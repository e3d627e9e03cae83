"""Commands that create, convert and show certificates and keys."""

from pathlib import Path
from typing import Any

import click

from ingest.cli._base import FAILED, CommandGroup
from ingest.cli._pipes import PipedPath
from ingest.errors import ConfigError

_PATH = click.Path(path_type=Path)
_SOURCE = PipedPath(path_type=Path)
_FILE = PipedPath(exists=True, dir_okay=False, path_type=Path)
_KEY_TYPES = click.Choice(["rsa2048", "rsa3072", "rsa4096", "ec", "ec-p384", "ed25519"])
_name = click.option(
    "--name", required=True, metavar="CN", help="Common name. A host name also becomes an alternative name."
)
_san = click.option("--san", multiple=True, metavar="HOST", help="Further host name or address; repeatable.")
_key_type = click.option(
    "--key-type", type=_KEY_TYPES, default="rsa2048", show_default=True, help="ec is P-256."
)
_force = click.option("--force", is_flag=True, help="Replace existing files.")


class _CertsGroup(CommandGroup):
    """A group of commands without a configuration: every failure exits with 1."""

    config_error_code = FAILED


@click.group(cls=_CertsGroup)
def certs() -> None:
    """Create, convert and show certificates and keys.

    A password is the first line of a file. Exit codes: 0 done, 1 failed.
    """


@certs.command()
@click.argument("prefix", type=_PATH)
@_name
@_san
@click.option("--days", type=click.IntRange(1, 36500), default=825, show_default=True, help="Validity.")
@_key_type
@click.option("--ca", type=_PATH, metavar="PREFIX", help="Sign with this authority; created if new.")
@click.option("--ca-password-file", type=_FILE, help="Password of its key.")
@click.option("--trust", type=_PATH, metavar="FILE", help="Add it (or its authority) to this bundle.")
@click.option("--password-file", type=_FILE, help="Encrypt the key with this password.")
@_force
def new(prefix: Path, name: str, trust: Path | None, **options: Any) -> None:
    """Create a certificate and its private key.

    \b
    ingest certs new pki/node --name pacs.example.org --trust pki/trusted.crt
    ingest certs new pki/ct1 --name ct1 --ca pki/authority

    Writes PREFIX.crt and PREFIX.key. The certificate is self-signed, or signed by an authority of your own.
    Only its owner can read the key. The certificate allows both TLS roles, because a node is server and
    client.
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
@click.option("--key", type=_SOURCE, help="Use this key. Default: PREFIX.key, created if new.")
@click.option("--password-file", type=_FILE, help="Password of the key.")
@_force
def csr(prefix: Path, name: str, **options: Any) -> None:
    """Create a signing request for an external authority.

    \b
    ingest certs csr pki/node --name pacs.example.org

    Writes PREFIX.csr, and PREFIX.key if there is none. An existing key is never replaced. The certificate of
    the authority belongs to that key.
    """
    from ingest.tls.keys import pairs

    for path in pairs.create_request(prefix, name, **options):
        click.echo(path)


@certs.command()
@click.argument("out", type=_PATH)
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@click.option("--password-file", type=_FILE, help="Password of PKCS#12 files.")
def trust(out: Path, files: tuple[Path, ...], password_file: Path | None) -> None:
    """Add the certificates in FILES and folders to the bundle OUT.

    OUT is PEM, and is created if new. Certificates in it are not added again. FILES may be PEM, DER, PKCS#7
    or PKCS#12. Private keys in them are not copied.
    """
    from ingest.tls.keys import pairs

    added = pairs.add_all_to_bundle(pairs.read_certificates(files, password_file), out)
    for certificate in added:
        click.echo(f"added {_replace_unprintable(certificate.subject.rfc4514_string())}")
    click.echo(f"{out}: {len(added)} new")


@certs.command()
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@click.option("--password-file", type=_FILE, help="Password of PKCS#12 files and encrypted keys.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(files: tuple[Path, ...], password_file: Path | None, as_json: bool) -> None:
    """Show the certificates and keys in FILES and folders.

    \b
    ingest certs inspect pki/

    FILES may be PEM, DER, PKCS#7 or PKCS#12. For a certificate it prints subject, issuer, names, validity,
    fingerprint, key and usages; for a private key its type. Exits with 1 if a key has no certificate among
    FILES that have certificates, or if a file cannot be read or contains neither.
    """
    import json
    from datetime import UTC, datetime

    from ingest.tls.keys import inspection

    found = inspection.inspect_files(files, password_file, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps(inspection.to_json_data(found), indent=2))
    else:
        for line in inspection.format_lines(found):
            click.echo(_replace_unprintable(line))
    faults = [each.fault for each in found if each.fault]
    faults += [
        f"{contents.file}: belongs to none of these certificates; name its certificate too"
        for contents, _, own in inspection.match_keys(found)
        if own is None
    ]
    if faults:
        raise ConfigError([_replace_unprintable(fault) for fault in faults])


@certs.group(cls=_CertsGroup)
def p12() -> None:
    """Create and split PKCS#12.

    Converts key stores and trust stores of Java and dcm4che from PEM and back.
    """


_STORE_PASSWORD = click.option(
    "--password-file", type=_FILE, required=True, help="Password of the new store."
)


@p12.command()
@click.argument("out", type=_PATH)
@click.argument("certificate", type=_SOURCE)
@click.argument("key", type=_SOURCE, required=False)
@_STORE_PASSWORD
@click.option("--key-password-file", type=_FILE, help="Password of KEY.")
@click.option("--alias", default="", help="Alias for Java. Default: the common name.")
@_force
def make(out: Path, certificate: Path, key: Path | None, **options: Any) -> None:
    """Create the key store OUT from a certificate and its key.

    The issuers follow in the file CERTIFICATE, and KEY may be in the same file. Only its owner can read OUT.
    The other side gets a trust store instead.
    """
    from ingest.tls.keys import key_stores

    key_stores.make_key_store(out, certificate, key, **options)
    click.echo(out)


@p12.command("trust")
@click.argument("out", type=_PATH)
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@_STORE_PASSWORD
@click.option("--source-password-file", type=_FILE, help="Password of PKCS#12 files.")
@_force
def trust_store(out: Path, files: tuple[Path, ...], **options: Any) -> None:
    """Create the trust store OUT from certificates.

    OUT contains the certificates in FILES and folders, marked as trusted for Java. Private keys in FILES are
    not copied.
    """
    from ingest.tls.keys import key_stores

    for alias in key_stores.make_trust_store(out, files, **options):
        click.echo(f"trusted {_replace_unprintable(alias)}")
    click.echo(out)


@p12.command()
@click.argument("store", type=_SOURCE)
@click.argument("prefix", type=_PATH)
@click.option("--password-file", type=_FILE, help="Password of STORE.")
@click.option("--key-password-file", type=_FILE, help="Encrypt the new key with this password.")
@_force
def split(store: Path, prefix: Path, **options: Any) -> None:
    """Write the certificate and key of a key store as PEM.

    Writes PREFIX.crt, with the chain, and PREFIX.key. Only its owner can read the key. For a trust store use
    `ingest certs trust`.
    """
    from ingest.tls.keys import key_stores

    for path in key_stores.split_key_store(store, prefix, **options):
        click.echo(path)


def _replace_unprintable(text: str) -> str:
    """Replace characters that could control the terminal, except line breaks."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )
