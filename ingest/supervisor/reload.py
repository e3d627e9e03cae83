"""Reload: replace the configuration, with all certificates and keys, while the node runs.

SIGHUP (`ingest reload`) starts a reload. A node never loses an association to it, and a configuration or a
certificate that cannot be used changes nothing:

1. `Generations.begin_reload` reads the configuration and every certificate, key and CRL that it names, and
   builds the TLS contexts from them (`ingest.supervisor.generation`). Each file is read once. Any fault
   refuses the reload.
2. The supervisor forks listeners of the new generation beside those of the old one. They inherit the new
   contexts and share the listening sockets that both generations use.
3. When all new listeners accept, the new generation comes into force. The old listeners get SIGHUP: they
   accept no more, and end after their last association. Workers get SIGTERM, finish their current work, and
   are forked again with the new generation. A persist worker begins no batch after SIGTERM. Instances that
   arrive after the outcome is written are therefore routed by the new generation.
4. If a new listener ends, or does not accept within `RELOAD_SECONDS`, the reload is refused. The old
   generation was accepting all the time.
5. Old listeners may serve their associations for `[node] reload_drain_seconds`. At most two old
   generations exist at a time.

`reload.json` in the run folder says how each reload ended (`ingest.supervisor.reload_client`).
"""

import contextlib
import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from ingest.acceptor.endpoints import Endpoint, close_endpoints
from ingest.checks.node import list_start_notices
from ingest.config.model import ANY_AE_TITLE, Config
from ingest.config.reader import read_notes
from ingest.errors import BootError, ConfigError
from ingest.log import configure_logging
from ingest.metrics.board import current_board
from ingest.metrics.families import CALLING_AE, DESTINATION, RELOADS
from ingest.requestor.transport import Remote
from ingest.supervisor import reload_client
from ingest.supervisor.children import Children
from ingest.supervisor.generation import (
    Generation,
    WorkerSlot,
    read_first_generation,
    read_next_generation,
)
from ingest.tls.expiry import ExpiryWatch
from ingest.tls.keys.files import cache_file_reads

RELOAD_SECONDS: Final = 60.0
"""Time that the listeners of a new generation have until all of them accept."""

OLD_GENERATIONS: Final = 1
"""Old generations that may still serve associations when a reload begins. During the reload there are two."""

log = structlog.get_logger()


class Generations:
    """The configuration generation in force, and the next one during a reload.

    Attributes:
        current: The generation in force.
        coming: The generation of a reload whose listeners do not accept yet; None without a reload.
    """

    def __init__(self, path: Path, config: Config, roles: frozenset[str], children: Children) -> None:
        """Begin with a generation that runs nothing.

        Args:
            path: File of the configuration.
            config: The configuration, already read.
            roles: Roles of this node.
            children: Processes of this node.
        """
        self.current = Generation(0, config)
        self.coming: Generation | None = None
        self._path = path
        self._roles = roles
        self._children = children
        self._certificates = ExpiryWatch()
        # From the first read of a reload until its end, each file is read once. The examined
        # contents are therefore also the used ones, even if a person replaces files meanwhile.
        self._file_cache = contextlib.ExitStack()
        self._began_ns = 0
        self._deadline = 0.0

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.current.config

    def find_slot(self, pid: int) -> WorkerSlot | None:
        """Return the worker slot of a process; None if it belongs to an old generation."""
        coming = self.coming.slots if self.coming is not None else []
        return next((slot for slot in (*self.current.slots, *coming) if slot.pid == pid), None)

    def start(self) -> None:
        """Put the first generation into force.

        Raises:
            ConfigError: A certificate or key cannot be used.
            BootError: An address cannot be bound.
        """
        with cache_file_reads():
            self.current = read_first_generation(self.config, self._roles)
            _name_series(self.config)
            self._report_notices()
        reload_client.write_outcome(self.config.run_dir, self.current.number, began_ns=time.monotonic_ns())

    def report_expiry(self) -> None:
        """Log which certificates end soon."""
        self._certificates.log_due_warnings()

    # --- reload

    def begin_reload(self) -> None:
        """Read the next generation, and begin to start its listeners."""
        self._file_cache.enter_context(cache_file_reads())
        self._began_ns = time.monotonic_ns()
        try:
            self.coming = self._read_next()
        except Exception as error:  # also a defect of ours must not end the running node
            self._file_cache.close()
            if isinstance(error, ConfigError):
                self._report_refusal(list(error.faults))
            else:
                self._report_refusal([str(error)], None if isinstance(error, BootError) else error)
            return
        _name_series(self.coming.config)
        now = time.monotonic()
        self._deadline = now + RELOAD_SECONDS
        self._children.end_oldest_generations(keep=OLD_GENERATIONS)
        self.advance_reload(now)

    def _read_next(self) -> Generation:
        """Read the next generation, and open its log.

        Raises:
            ConfigError: The configuration cannot be used. Nothing has changed.
            BootError: An address cannot be bound, or the log cannot be opened. Nothing has changed.
        """
        new = read_next_generation(self.current, self._path, self._roles)
        try:
            _configure_logging(new.config)
        except BootError:
            close_endpoints(new.endpoints, keep=self.current.endpoints)
            raise
        return new

    def advance_reload(self, now: float) -> None:
        """Fork the listeners of the next generation; put it into force when all of them accept."""
        coming = self.coming
        if coming is None:
            return
        if self._children.board is not None:
            wanted = sum(slot.role == "listen" and not slot.pid for slot in coming.slots)
            if wanted > self._children.board.count_free_rows():
                self._children.end_oldest_generations(keep=0)
        self._children.fork_missing(coming, now, frozenset({"listen"}))
        if self._children.are_listeners_accepting(coming):
            self._put_into_force(coming)
        elif now > self._deadline:
            self.refuse_reload([f"its listeners do not accept within {RELOAD_SECONDS:.0f} s"])

    def _put_into_force(self, new: Generation) -> None:
        old, self.current, self.coming = self.current, new, None
        self._children.retire_other_generations(new.number)
        close_endpoints(old.endpoints, keep=new.endpoints)
        self._report_notices()
        self._file_cache.close()
        log.info("reloaded", generation=new.number)
        current_board().add(RELOADS, "done")
        reload_client.write_outcome(self.config.run_dir, new.number, began_ns=self._began_ns)

    def refuse_reload(self, faults: list[str]) -> None:
        """Stay with the generation in force, because the listeners of the next one do not accept."""
        coming, self.coming = self.coming, None
        self._file_cache.close()
        if coming is None:
            return
        self._children.stop_generation(coming.number)
        close_endpoints(coming.endpoints, keep=self.current.endpoints)
        with contextlib.suppress(BootError):
            _configure_logging(self.config)
        self._report_refusal(faults)

    def cancel_reload(self) -> None:
        """Forget the next generation, because the node stops. Its listeners end with all others."""
        self.coming = None

    def end_expired_generations(self, now: float) -> None:
        """End the listeners that were retired more than `reload_drain_seconds` ago."""
        self._children.end_listeners_retired_before(now - self.config.node.reload_drain_seconds)

    def _report_refusal(self, faults: list[str], defect: Exception | None = None) -> None:
        in_force = "the configuration read before"
        current_board().add(RELOADS, "refused")
        log.error("reload_refused", faults=faults, in_force=in_force, exc_info=defect)
        reload_client.write_outcome(self.config.run_dir, self.current.number, faults, began_ns=self._began_ns)

    def _report_notices(self) -> None:
        """Log notes about the files of the configuration, and watch its certificates."""
        try:
            for notice in [*read_notes(self._path), *list_start_notices(self.config)]:
                log.warning("notice", key=notice.key, cause=notice.cause, remedy=notice.remedy)
            self._certificates.watch_configuration(self.config)
        except Exception as error:  # the generation is in force already, and needs none of these notices
            log.error("notices_not_told", exc_info=error)

    # --- in a child

    def release_unneeded(
        self, generation: Generation, role: str
    ) -> tuple[tuple[Endpoint, ...], Mapping[str, Remote]]:
        """In a child: close the sockets and drop the keys that its role does not need.

        A worker with an open listening socket would hold the port after a reload that gives the port up. Keys
        in its memory could be read by an attacker who breaks into it.

        Returns:
            The endpoints of a listener and the remotes of a forward worker.
        """
        endpoints = generation.endpoints if role == "listen" else ()
        remotes = generation.remotes if role == "forward" else {}
        for each in (self.current, self.coming):
            if each is not None:
                close_endpoints(each.endpoints, keep=endpoints)
        self._file_cache.close()
        self.current, self.coming = Generation(generation.number, generation.config), None
        # INVARIANT 9: the maps of plans may name patients, so no other process keeps them
        generation.plans = generation.plans if role == "forward" else {}
        generation.endpoints, generation.remotes = endpoints, remotes
        # OpenSSL overwrites the keys of a context when the context is freed. Most contexts were freed above,
        # with their last reference. The collector frees those that are part of a reference cycle.
        gc.collect()
        return endpoints, remotes


def _name_series(config: Config) -> None:
    """Name peers and destinations on the metrics board, before their children are forked."""
    titles = [peer.ae_title.strip(" ") for peer in config.peers if peer.ae_title != ANY_AE_TITLE]
    current_board().add_names(CALLING_AE, titles)
    current_board().add_names(DESTINATION, config.target_names)


def _configure_logging(config: Config) -> None:
    configure_logging(config.log.level, config.log.format, config.log.file)
