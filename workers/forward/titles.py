"""AE titles of an association with a destination: ours, or those of the sender (`pass_through`).

An association has one pair of AE titles (PS3.8 Table 9-11). Deliveries of several senders to a destination
that gets the senders' titles therefore need several associations. `group_by_titles` orders a batch so that as
few as possible are opened, without changing the order within a series.

A remote that does not know the AE title of one sender must not stop the deliveries of all others. Its
rejection of such an association blames those deliveries (`retry_policy.TitlesRefused`), not the destination.
Probes always use our own titles.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from ingest.config.model import Destination
from ingest.errors import AssociationError, Cause
from ingest.ledger import Delivery
from ingest.requestor.transport import Remote

_UNKNOWN_TITLE: Final = frozenset({Cause.CALLING, Cause.CALLED})


class Titles(NamedTuple):
    """The AE titles of an association."""

    calling: str
    called: str


@dataclass(frozen=True, slots=True)
class TitleRule:
    """Chooses the AE titles of a delivery.

    Attributes:
        own: The configured titles.
        passed: Titles that are passed through from the sender: "calling_ae", "called_ae".
    """

    own: Titles
    passed: frozenset[str] = frozenset()

    @classmethod
    def from_destination(cls, destination: Destination, remote: Remote) -> Self:
        """Read the rule of a destination from its configuration."""
        return cls(Titles(remote.calling_ae, remote.called_ae), frozenset(destination.pass_through))

    def choose_titles(self, row: Delivery) -> Titles:
        """Return the titles of the association that sends this delivery.

        A title of the sender that is unknown or no AE title is replaced by the configured one.
        """
        if not self.passed:
            return self.own
        return Titles(
            row.calling_ae if "calling_ae" in self.passed and _is_title(row.calling_ae) else self.own.calling,
            row.called_ae if "called_ae" in self.passed and _is_title(row.called_ae) else self.own.called,
        )

    def is_refusal(self, titles: Titles, error: AssociationError) -> bool:
        """Return whether a remote has refused the titles of a sender, and not this node.

        Some remotes reject an unknown AE title without a reason.
        """
        if titles == self.own:
            return False
        return error.cause in _UNKNOWN_TITLE or (error.permanent and error.cause is Cause.REJECTED)


def group_by_titles(rows: Sequence[Delivery], rule: TitleRule) -> list[Delivery]:
    """Order a batch by AE titles. Deliveries of one series keep their order, also between titles."""
    # INVARIANT 10: decisions are pure
    if not rule.passed:
        return list(rows)
    ordered: list[Delivery] = []
    rest = list(rows)
    while rest:
        titles = rule.choose_titles(rest[0])
        skipped: list[Delivery] = []
        held_series: set[str] = set()  # series with an earlier delivery that was skipped
        for row in rest:
            if rule.choose_titles(row) == titles and row.series_uid not in held_series:
                ordered.append(row)
            else:
                skipped.append(row)
                held_series.add(row.series_uid)
        rest = skipped
    return ordered


def describe_refused_titles(titles: Titles, passed: Collection[str], reason: str) -> str:
    """Say which title of a sender a remote has refused, and what to do."""
    names = {
        "calling_ae": f"calling AE title {titles.calling}",
        "called_ae": f"called AE title {titles.called}",
    }
    said = " and ".join(text for name, text in names.items() if name in passed)
    return f"{reason}; add it at the remote: {said} passed through from the sender (pass_through)"


def _is_title(text: str) -> bool:
    """Return whether `text` can be an AE title (PS3.5 6.2)."""
    return (
        0 < len(text) <= 16
        and bool(text.strip())
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
    )
