"""Storage commitment (PS3.4 J) with Orthanc over TLS: it asks the node, and the node asks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import write_made
from tests.interop.orthanc import Orthanc, orthanc
from tests.support.nodes import Node, destination, eventually
from tests.support.pki import Material


def find_report(server: Orthanc, identifier: str) -> dict[str, Any]:
    """What Orthanc knows of its request; empty until the report has come."""
    report = dict(server.get(f"/storage-commitment/{identifier}"))
    return {} if report["Status"] == "Pending" else report


def test_orthanc_and_the_node_commit_to_each_other(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    with orthanc(material, "remote") as server:
        node = make_node()
        node.configure(
            peers='[[peers]]\nae_title = "CT1"\n[[peers]]\nae_title = "ORTHANC"\ndestination = "orthanc"',
            destinations=destination("orthanc", server.dicom_port, linger_seconds=0.1, commitment=True),
            commitment="[commitment]\nwait_seconds = 1",
        )
        node.start()
        modality = server.know("node", node.tls_port)
        first, second, third = write_made(tmp_path / "files", 3)

        # The node delivers an instance, asks, and believes the report.
        context = build_client_context(material.tls("peer"))
        assert not send_files(
            Remote("localhost", node.tls_port, "INGEST", "CT1", context), [first]
        ).failed_files
        query = "SELECT state, commitment FROM deliveries"
        eventually(lambda: node.query(query) == [("delivered", "committed")], 60, "Orthanc commits")
        assert node.query("SELECT state, failures FROM commitment_requests") == [("answered", 0)]

        # Orthanc sends one of two, and asks for both.
        sent, kept_back = (server.upload(path) for path in (second, third))
        server.post(f"{modality}/store", [sent])
        request = server.post(f"{modality}/storage-commitment", {"Resources": [sent, kept_back]})
        report = eventually(lambda: find_report(server, request["ID"]), 60, "the report of the node")
        names = {name: uid_of(server, name) for name in (sent, kept_back)}
        assert report["Status"] == "Failure"
        assert [one["SOPInstanceUID"] for one in report["Success"]] == [names[sent]]
        assert [one["SOPInstanceUID"] for one in report["Failures"]] == [names[kept_back]]


def uid_of(server: Orthanc, name: str) -> str:
    return str(server.get(f"/instances/{name}")["MainDicomTags"]["SOPInstanceUID"])
