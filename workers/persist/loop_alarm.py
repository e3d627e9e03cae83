"""The alarm about images that may go round in a circle between nodes."""

from pathlib import Path

from ingest.alarms import BOUNDED_ALARM, raise_alarm
from ingest.workers.persist.duplicates import DELIVERED_MAX


def raise_loop_alarm(run_dir: Path, destination: str, sop_instance_uid: str) -> None:
    """Raise the alarm, because a destination got too many objects of one SOP Instance UID lately."""
    raise_alarm(
        run_dir,
        f"{BOUNDED_ALARM}.{destination}",
        f"{destination} was sent {DELIVERED_MAX} objects of the SOP instance UID {sop_instance_uid} within "
        "an hour; further ones are not sent there, since images may be going round in a circle",
        f"see docs/explanation/loops.md; then `ingest deliver --to {destination} --sop {sop_instance_uid}` "
        "sends what was kept back",
    )
