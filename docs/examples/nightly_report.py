"""Report what was not delivered: for each destination the unfinished and the dead deliveries of the last day.

python nightly_report.py /etc/dicom-ingest/ingest.toml
"""

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ingest

OPEN = (ingest.DeliveryState.WAITING, ingest.DeliveryState.SENDING, ingest.DeliveryState.RETRY)


def report(config: Path, since: datetime) -> list[str]:
    """Return the lines of the report, and no patient data: UIDs, names of destinations and reasons."""
    lines: list[str] = []
    dead: Counter[tuple[str, str]] = Counter()
    waiting: Counter[str] = Counter()
    studies: dict[str, set[str]] = {}
    with ingest.Ledger(config) as ledger:
        for delivery in ledger.deliveries(states=[*OPEN, ingest.DeliveryState.DEAD], since=since):
            studies.setdefault(delivery.destination, set()).add(delivery.study_uid)
            if delivery.state is ingest.DeliveryState.DEAD:
                dead[delivery.destination, delivery.last_error] += 1
            else:
                waiting[delivery.destination] += 1
        stored = sum(1 for _ in ledger.instances(since=since))
    lines.append(f"{stored} instances were received since {since:%Y-%m-%d %H:%M} UTC")
    lines += [f"{name}: {count} deliveries wait" for name, count in sorted(waiting.items())]
    lines += [f"{name}: {count} are dead: {error}" for (name, error), count in sorted(dead.items())]
    for name, uids in sorted(studies.items()):
        lines += [f"  {name} lacks images of study {uid}" for uid in sorted(uids)]
    if not studies:
        lines.append("everything was delivered")
    return lines


if __name__ == "__main__":
    found = report(Path(sys.argv[1]), datetime.now(UTC) - timedelta(days=1))
    print("\n".join(found))
    sys.exit(0 if found[-1] == "everything was delivered" else 1)
