"""Send a folder to a destination of the configuration, and report each file that did not arrive.

python send_folder.py /etc/dicom-ingest/ingest.toml archive study/
"""

import sys
from pathlib import Path

import ingest


def send_folder(config: Path, destination: str, folder: Path) -> int:
    """Send all DICOM files of a folder; return the number of files that the destination does not have."""
    remote = ingest.Remote.from_config(config, destination)
    try:
        report = ingest.send(folder, remote, associations=2)
    except ingest.AssociationError as error:
        print(f"nothing was sent: {error}")
        if error.cause is ingest.Cause.CALLING:
            print(f"add {remote.calling_ae_title} to the AE titles that {remote.host} knows")
        raise SystemExit(2) from None
    for result in report.failed:
        print(f"{result.path}: {result.error}")
    size = sum(result.size_bytes for result in report.stored)
    print(f"{len(report.stored)} of {len(report.results)} stored, {size} bytes in {report.seconds:.1f} s")
    print(f"{len(report.skipped)} other files skipped")
    return len(report.failed)


if __name__ == "__main__":
    sys.exit(min(1, send_folder(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
