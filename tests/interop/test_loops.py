"""A node and an Orthanc that sends back everything that it gets: the loop ends."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom.data
import pytest

from ingest.dicom.part10 import read_file_meta
from ingest.requestor.store_scu import StoreSCU
from tests.interop.orthanc import Orthanc, orthanc
from tests.support.instances import CT
from tests.support.nodes import Node, eventually
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.senders import TIMEOUTS, remote_of

FORWARD_ALL = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, 'node')
end
"""
IMAGE = Path(str(pydicom.data.get_testdata_file("CT_small.dcm")))
Start = Callable[..., tuple[Node, Orthanc]]


@pytest.fixture
def looped(make_node: Callable[..., Node], material: Material, tmp_path: Path) -> Iterator[Start]:
    """Starts a node that forwards to an Orthanc, which sends everything that it stores to the node."""
    script = tmp_path / "forward.lua"
    script.write_text(FORWARD_ALL)
    port = free_port()
    modality = {"AET": "INGEST", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
    with orthanc(
        material,
        "remote",
        LuaScripts=[str(script)],
        DicomModalities={"node": modality},
        OverwriteInstances=True,
        DicomScuTimeout=20,
    ) as server:

        def start(policy: str, *, returns: bool) -> tuple[Node, Orthanc]:
            node = make_node("node")
            node.tls_port, node.plain_port = port, free_port()
            destinations = (
                '[[destinations]]\nname = "orthanc"\nae_title = "ORTHANC"\nhost = "localhost"\n'
                f'port = {server.dicom_port}\ntls = "node"\n'
                f'[[routes]]\nname = "all"\nto = ["orthanc"]\nreturn = {str(returns).lower()}'
            )
            return node.start(store=f'[store]\nduplicates = "{policy}"', destinations=destinations), server

        yield start


def taken(node: Node) -> int:
    """How many instances the node has got so far."""
    return len(node.events("duplicate_dropped")) + len(node.query("SELECT id FROM instances"))


def send_file(node: Node) -> None:
    """Send the image to the node, as the modality CT1."""
    with IMAGE.open("rb") as file:
        meta, offset = read_file_meta(file.fileno())
    syntax = meta.transfer_syntax_uid
    with StoreSCU.open(remote_of(node), [(CT, [syntax])], timeouts=TIMEOUTS) as association:
        sop = meta.sop_instance_uid
        answer = association.store_instance(
            IMAGE, offset, None, sop_class=CT, sop_instance=sop, transfer_syntax=syntax
        )
    assert answer.status == 0


@pytest.mark.parametrize(
    ("policy", "returns", "starts"),
    [
        ("overwrite", False, "node"),
        ("overwrite", True, "node"),
        ("keep-both", True, "node"),
        ("overwrite", False, "orthanc"),
    ],
)
def test_orthanc_that_sends_everything_back_is_no_loop(
    looped: Start, policy: str, returns: bool, starts: str
) -> None:
    node, server = looped(policy, returns=returns)
    if starts == "node":
        send_file(node)
    else:
        server.upload(IMAGE)
    # From the node it goes to Orthanc and back. From Orthanc it goes back only with `return = true`.
    eventually(lambda: taken(node) >= 1 + (returns or starts == "node"), 60, "Orthanc has sent it back")
    settled = 0
    while settled != taken(node):
        settled = taken(node)
        time.sleep(2)
    delivered = node.deliveries().get("delivered", 0)
    assert settled <= 3
    assert delivered <= (2 if returns else 1 if starts == "node" else 0)
    assert set(node.deliveries()) <= {"delivered"}
    assert server.count() == 1
