"""Records of what people and programs do in the console: an event of the log for each.

The log gets names of users, routes and UIDs, but no search terms, because these may be names of patients.
"""

from collections.abc import Mapping

import structlog

from ingest.config.model import Config

log = structlog.get_logger()


def record_login(config: Config, user: str, address: str, *, succeeded: bool) -> None:
    """Record a login or a refused one."""
    del config
    # A person may type a password into the field of the name: keep no name that is not known.
    write = log.info if succeeded else log.warning
    write("console_login", user=user if succeeded else "", address=address, succeeded=succeeded)


def record_logout(config: Config, user: str, address: str) -> None:
    """Record a logout."""
    del config
    log.info("console_logout", user=user, address=address)


def record_action(config: Config, user: str, address: str, action: str, subject: Mapping[str, str]) -> None:
    """Record an action, such as a retry, with what it concerns (ids, UIDs, names of destinations)."""
    del config
    log.info("console_action", user=user, address=address, action=action, **subject)


def record_query(config: Config, user: str, address: str, query: Mapping[str, str]) -> None:
    """Record a search. The log does not get its terms."""
    del config
    log.info("console_query", user=user, address=address, fields=sorted(query))
