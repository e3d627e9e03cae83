"""Routes in a running node: what was sent goes where its route says, and the ledger says why."""

from collections.abc import Callable
from pathlib import Path

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import by_uid, storable
from tests.support.nodes import Node, eventually
from tests.support.pki import Material

ROUTES = """
[[routes]]
name = "ct"
when = { modality = "CT", Rows = { min = 1 } }
to = ["a"]

[[routes]]
name = "callers"
when = { calling_ae = "T?STS", sop_class = "CTImageStorage" }
to = ["a", "b"]

[[routes]]
name = "none"
when = { modality = "MR" }
to = []
stop = true

[[routes]]
name = "peer"
when = { certificate = "CN=peer*", listener = "dicom-tls://*", modality = "US" }
to = ["a"]

[[routes]]
name = "strangers"
when = { certificate = { not = "CN=peer*" } }
to = ["a"]

[[routes]]
name = "rest"
to = ["b"]
default = true
"""


def _destination(name: str, port: int) -> str:
    keys = f'name = "{name}"\nae_title = "{name.upper()}"\nhost = "127.0.0.1"\nport = {port}\ntls = "node"'
    return f"[[destinations]]\n{keys}"


def _first_of(modality: str) -> Path:
    import pydicom

    for item in storable():
        if (
            pydicom.dcmread(item.path, specific_tags=["Modality", "Rows"], force=True).get("Modality")
            == modality
        ):
            return item.path
    raise AssertionError(modality)


def test_instances_go_where_their_routes_say(make_node: Callable[..., Node], material: Material) -> None:
    far = {name: make_node(name, workers="[workers]\npersist = 1\nforward = 0").start() for name in "ab"}
    targets = "\n".join(_destination(name, node.tls_port) for name, node in far.items())
    near = make_node("near", destinations=f"{targets}\n{ROUTES}").start()
    files = {modality: _first_of(modality) for modality in ("CT", "MR", "US")}
    uid = {modality: next(iter(by_uid([path]))) for modality, path in files.items()}
    remote = Remote("localhost", near.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    assert not send_files(remote, list(files.values())).failed_files
    eventually(lambda: near.deliveries() == {"delivered": 3}, 30, "three deliveries are done")
    eventually(lambda: set(far["a"].stored()) == {uid["CT"], uid["US"]}, 20, "a has CT and US")
    eventually(lambda: set(far["b"].stored()) == {uid["CT"]}, 20, "b has the CT")
    said = dict(near.query("SELECT sop_instance_uid, routed FROM instances"))
    assert said == {
        uid["CT"]: "ct, callers",
        uid["MR"]: "none: forwarded nowhere on purpose",
        uid["US"]: "peer",
    }
