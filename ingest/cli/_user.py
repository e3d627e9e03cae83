"""Commands that root runs with the rights of the user whose node it is."""

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli._base import load_config
from ingest.errors import IngestError

if TYPE_CHECKING:
    from ingest.config.model import Config


def load_config_as_owner(path: Path) -> "Config":
    """Read the configuration for a command that writes into the data folder.

    What root wrote there, the node could not use. So root takes the rights of the owner of that folder. As in
    the node, no other user may read what the command creates.

    Raises:
        ConfigError: The configuration cannot be used.
        IngestError: Root may not take the rights of that user.
    """
    os.umask(os.umask(0o077) | 0o027)
    config = load_config(path)
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            owner = config.data_dir.stat()
            if owner.st_uid != 0:
                _take_rights(owner.st_uid, owner.st_gid, config.data_dir)
    return config


def _take_rights(uid: int, gid: int, folder: Path) -> None:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        user = None  # as in containers, whose users have numbers only
    try:
        if user is None:
            os.setgroups([])
            os.setgid(gid)
        else:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
        os.setuid(uid)
    except OSError as error:
        name = user.pw_name if user else uid
        raise IngestError(
            f"{folder} belongs to {name}, whose rights root cannot take here ({error.strerror}); run this "
            f"command as {name}"
        ) from None
    # Clients of databases look for their files there, and fail if they may not enter it.
    os.environ["HOME"] = user.pw_dir if user else "/"


def become_user(name: str) -> None:
    """Take the rights of a user, as a service manager does before it starts a node.

    Raises:
        click.UsageError: There is no such user, or this user is not root.
        IngestError: That user cannot read this program.
    """
    user = find_user(name)
    if os.geteuid() != 0:
        raise click.UsageError(f"only root can check as another user: sudo ingest check --user {name}")
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    try:
        import ingest.checks.node
        import ingest.status.health  # noqa: F401 - what the check needs must be readable now
    except (ImportError, OSError) as error:
        place = Path(__file__).parents[1]
        raise IngestError(
            f"the user {name} cannot read the program in {place} ({error}); install it where every user can"
        ) from None


def find_user(name: str) -> pwd.struct_passwd:
    """Return a user of this machine.

    Raises:
        click.UsageError: There is no such user.
    """
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise click.UsageError(
            f"there is no user {name}; --user takes the user that the node runs as"
        ) from None
