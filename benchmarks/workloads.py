"""What is sent to whom, and what must come of it.

A work is a load for several entrants that take turns. Its claims are limits for one entrant, mostly as a
ratio to another in the same rounds.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from benchmarks.load import Load
from benchmarks.receivers import Durability

PAIRS = 10
FORWARD_PAIRS, TRANSIT_PAIRS = 3, 1
TRANSIT_RATE = 50
KB, MB, GB = 1 << 10, 1 << 20, 1 << 30

Place = Literal["memory", "disk"]
Sender = Literal["load", "storescu", "alone", "forward", "transit"]

SHARES = {
    "pynetdicom": 0.1,
    "pynetdicom-chunked": 0.1,
    "orthanc": 0.1,
    "orthanc-nodelay": 0.2,
    "dcm4che": 0.5,
}
"""Of the instances, for receivers that would hold up the others; costs are per GB and per instance."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One that takes its turn.

    Attributes:
        label: Its name in this work.
        receiver: Key of `suite.RECEIVERS`.
        load: What it is sent.
        every: It takes part in every so many rounds: those that take long need fewer runs to be told apart.
    """

    label: str
    receiver: str
    load: Load
    every: int = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What must hold.

    Attributes:
        measure: Key of a sample, such as "cpu_s_gb".
        limit: Of the measure, or of its ratio.
        of: Label of the entrant that must keep it.
        against: Label of the entrant that it is divided by; None: the measure itself.
        at_most: False where more is better.
    """

    measure: str
    limit: float
    of: str = "ours"
    against: str | None = None
    at_most: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """A load and its entrants.

    Attributes:
        name: For people.
        entrants: The first is the one that the report speaks of.
        durability: What every receiver is told; those that cannot sync say so in their version.
        place: Memory: one folder for all runs, on tmpfs where there is one. Disk: a new folder for each run.
        claims: What must hold.
        sender: Our load generator, or DCMTK's storescu; "alone" where the entrants themselves are senders,
            "forward" and "transit" where they send on what they get.
        pairs: Counted rounds.
        seconds: About what it takes, to share out the suite's time.
        lasts: How long a load is kept up where entrants forward, in seconds.
    """

    name: str
    entrants: tuple[Entrant, ...]
    durability: Durability = "page-cache"
    place: Place = "memory"
    claims: tuple[Claim, ...] = ()
    sender: Sender = "load"
    pairs: int = PAIRS
    seconds: float = 20
    lasts: float = 60


def entrants(load: Load, *receivers: str) -> tuple[Entrant, ...]:
    """Give these receivers the same load, or the share of it that `SHARES` leaves them."""
    found = []
    for name in receivers:
        instances = max(1, round(load.instances * SHARES.get(name, 1)))
        found.append(Entrant(name, name, replace(load, instances=instances)))
    return tuple(found)


def size_name(size: int) -> str:
    """Such as "512 KB"."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "KB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"


def load_name(load: Load) -> str:
    """Such as "512 KB × 4, PDUs of 16 KB"."""
    text = f"{size_name(load.size)} × {load.associations}, PDUs of {size_name(load.pdu)}"
    if load.churn:
        text += ", an association each"
    return text


def _limits(measure: str, **limits: float) -> tuple[Claim, ...]:
    return tuple(Claim(measure, limit, against=name.replace("_", "-")) for name, limit in limits.items())


P99 = Claim("p99_ms", 2.0, against="floor")


def _bytes_dominate() -> list[Work]:
    """CPU seconds per GB, where TLS and write are most of it."""
    works = []
    peers = ("floor", "dcmtk-nodelay", "orthanc-nodelay", "pynetdicom", "dcm4che")
    limits = _limits("cpu_s_gb", floor=1.05, dcmtk_nodelay=0.9, orthanc_nodelay=0.3, pynetdicom=0.2)
    for size, instances in ((128 * KB, 600), (512 * KB, 150)):
        for pdu in (128 * KB, 16 * KB):
            load = Load(size, instances, 4, pdu)
            works.append(
                Work(load_name(load), entrants(load, "ours", *peers), claims=(*limits, P99), seconds=42)
            )
    for size, instances, associations, seconds in ((27 * MB, 2, 4, 11), (GB, 1, 1, 42)):
        load = Load(size, instances, associations)
        works.append(
            Work(
                load_name(load),
                entrants(load, "ours", "floor"),
                claims=_limits("cpu_s_gb", floor=1.05),
                seconds=seconds,
            )
        )
    return works


def _instances_dominate() -> list[Work]:
    """CPU milliseconds an instance, and associations that carry one."""
    small = Load(8 * KB, 3000, 4)
    churn = Load(8 * KB, 25, 4, churn=True)
    return [
        Work(
            load_name(small),
            entrants(small, "ours", "ours-segments", "floor", "dcmtk-nodelay"),
            claims=(
                *_limits("cpu_ms", floor=1.25, dcmtk_nodelay=0.75),
                Claim("cpu_ms", 1.25, of="ours-segments", against="floor"),
                P99,
            ),
            seconds=30,
        ),
        Work(load_name(churn), entrants(churn, "ours", "floor", "dcmtk-nodelay"), seconds=14),
    ]


def _associations() -> list[Work]:
    """From one association to many."""
    works = []
    for size, all_instances in ((8 * KB, 6000), (128 * KB, 1000), (512 * KB, 400)):
        for associations in (1, 16, 64):
            if size != 128 * KB and associations != 16:
                continue
            load = Load(size, all_instances // associations, associations)
            claims: tuple[Claim, ...] = ()
            if associations == 16:
                # Of the larger of two listeners, with eight busy associations.
                claims = (P99, Claim("pss_largest_mb", 60 + 0.3 * 8))
            pairs = PAIRS if claims else PAIRS // 2
            taking_part = entrants(load, "ours", "floor")
            works.append(Work(load_name(load), taking_part, claims=claims, pairs=pairs, seconds=12))
    return works


def _durable() -> list[Work]:
    """Instances a second with fsync on a disk."""
    works = []
    rate = Claim("rate", 1.0, against="floor", at_most=False)
    segments = replace(rate, limit=2.0, of="ours-segments")
    for size, instances, ours, claims in (
        (8 * KB, 150, ("ours", "ours-segments"), (rate, segments)),
        (512 * KB, 30, ("ours",), (rate,)),
    ):
        load = Load(size, instances, 16)
        works.append(
            Work(
                f"{load_name(load)}, durable",
                entrants(load, *ours, "floor"),
                "fsync",
                "disk",
                claims=claims,
                seconds=31,
            )
        )
    return works


def one_by_one() -> Work:
    """DCMTK's storescu as the sender, with receivers as they are by themselves."""
    load = Load(512 * KB, 200, 1, 16 * KB)
    names = ("ours", "floor", "dcmtk", "dcmtk-nodelay", "orthanc", "pynetdicom", "dcm4che")
    # Two of them stall for 45 ms at each image; the others are there for orientation.
    seldom = {"dcmtk", "dcmtk-nodelay", "orthanc", "pynetdicom", "dcm4che"}
    taking_part = tuple(Entrant(name, name, load, 4 if name in seldom else 1) for name in names)
    return Work(
        "storescu, 200 × 512 KB, durable",
        taking_part,
        "fsync",
        "disk",
        claims=_limits("seconds", floor=1.15, dcmtk=0.2, orthanc=0.2),
        sender="storescu",
        seconds=105,
    )


SENT: Final = {8 * KB: 8000, 512 * KB: 1500, 27 * MB: 40}
"""Files of each size: so many that starting a process, which is taken off, is a small part of a run."""

SENT_BYTES: Final = 800 * MB


def sending(size: int, files: int = 0) -> Work:
    """Senders alone, one association, to the floor; 0 files are as many as it takes."""
    load = Load(size, files or SENT.get(size, max(4, SENT_BYTES // size)), 1)
    names, limits = ["ours", "storescu"], _limits("cpu_ms", storescu=0.8)
    if size >= 128 * KB:
        # At small ones it waits 40 ms for each acknowledgement, and nothing is asked of us there.
        names += ["pynetdicom", "pynetdicom-chunked"]
        limits = _limits("cpu_s_gb", storescu=0.6, pynetdicom=0.15)
    taking_part = tuple(Entrant(name, name, load) for name in names)
    return Work(
        f"sending {load_name(load)}", taking_part, place="disk", claims=limits, sender="alone", seconds=20
    )


def forwarding(size: int, seconds: float = 60) -> Work:
    """Node to node, durable on both sides; all of it, senders included, on the same machine."""
    load = Load(size, 1500 if size < 128 * KB else 400, 4)
    measure, limit = ("rate", 600.0) if size < 128 * KB else ("mb_s", 100.0)
    more = Claim(measure, limit, at_most=False)
    claims = (
        more,
        replace(more, limit=5.0, against="orthanc-nodelay"),
        replace(more, limit=3.0, against="pynetdicom"),
        Claim("growing", 0.0),
    )
    names = ("ours", "ours-one-by-one", "orthanc-nodelay", "pynetdicom")
    taking_part = tuple(Entrant(name, name, load) for name in names)
    name = f"forwarding {load_name(load)}, durable"
    return Work(name, taking_part, "fsync", "disk", claims, "forward", FORWARD_PAIRS, 200, seconds)


def transit(seconds: float = 60) -> Work:
    """From the last byte in to the Success of the remote."""
    load = Load(8 * KB, max(1, round(TRANSIT_RATE * seconds / 4)), 4, per_second=TRANSIT_RATE)
    claims = (Claim("p50_ms", 150.0), Claim("p99_ms", 500.0))
    name = f"transit, 8 KB, {TRANSIT_RATE} instances/s, durable"
    taking_part = (Entrant("ours", "ours-one-by-one", load),)
    return Work(name, taking_part, "fsync", "disk", claims, "transit", TRANSIT_PAIRS, 65, seconds)


def asynchronous() -> Work:
    """One association with and without asynchronous operations (PS3.7 D.3.3.3)."""
    load = Load(8 * KB, 1000, 1)
    many = replace(load, operations=64, instances=3000)
    return Work(
        "8 KB × 1, asynchronous operations",
        (Entrant("64 operations", "ours", many), Entrant("one operation", "ours", load)),
        "fsync",
        "disk",
        claims=(Claim("rate", 2.0, of="64 operations", against="one operation", at_most=False),),
        seconds=28,
    )


def churn() -> Work:
    """Associations that carry one image each."""
    return _instances_dominate()[1]


def with_pairs(work: Work, pairs: int) -> Work:
    """Return the same workload with another number of rounds."""
    return replace(work, pairs=pairs)


def suite() -> list[Work]:
    """All of it."""
    return [
        *_bytes_dominate(),
        *_instances_dominate(),
        *_associations(),
        *_durable(),
        one_by_one(),
        asynchronous(),
        *(sending(size) for size in SENT),
    ]


def forwarded() -> list[Work]:
    """Node to node, which takes many minutes more."""
    return [*(forwarding(size) for size in (512 * KB, 8 * KB)), transit()]
