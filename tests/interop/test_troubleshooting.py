"""docs/how-to/troubleshooting.md: in each state of a node its commands say what the page says."""

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.interop import dcmtk
from tests.support.nodes import Node, destination, eventually
from tests.support.pages import DOCS, Walk, read_blocks, read_section
from tests.support.peers import PynetdicomRemote
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.scenes import SOP_CLASSES, STUDIES

PAGE = DOCS / "how-to" / "troubleshooting.md"
ANY_CODE = frozenset({0, 1, 2})
MakeNode = Callable[..., Node]
RECEIVE = "[receive]\nprocesses = 1\nmin_free_bytes = 0"


class Symptom:
    """One section of the page, and the folder of a node in which its commands run."""

    def __init__(self, node: Node, heading: str) -> None:
        self._text = read_section(PAGE, heading)
        self._walk = Walk(node.folder)
        blocks = [block for block in read_blocks(PAGE, heading) if not block.remark]
        self._commands = [line for block in blocks for line in block.text.splitlines() if line.strip()]
        assert self._commands, heading

    def ask(self, only: str = "") -> Iterator[str]:
        """Run the commands of the section, or those with a word, and yield what each prints."""
        return (self._walk.run(command, ANY_CODE) for command in self._commands if only in command)

    def expect(self, *wanted: str, only: str = "") -> None:
        """Wait until the commands say what the page says."""
        for said in wanted:
            assert f"`{said}" in self._text, f"the page does not have `{said}`"
            eventually(
                lambda said=said: any(said in answer for answer in self.ask(only)),
                30,
                f"the commands of the page say {said!r}",
            )


def send(node: Node, files: Sequence[Path], calling: str = "CT2") -> str:
    # Only the contexts that the files need, as a modality proposes them.
    return dcmtk.storescu(node.plain_port, "-R", "-aet", calling, files=files).stdout


def test_each_symptom_has_a_test() -> None:
    headings = {block.heading for block in read_blocks(PAGE) if not block.remark}
    own = Path(__file__).read_text()
    missing = {name for name in headings if f'"{name}"' not in own}
    assert missing <= {PAGE.stem.capitalize()}, "the commands above the first heading are run by other tests"


def test_node_that_is_stopped_faulty_or_without_room(make_node: MakeNode) -> None:
    node = make_node(receive="[receive]\nprocesses = 9000")
    assert "receive.processes" in "".join(Symptom(node, "The node does not start").ask())

    node.configure(receive=f"[receive]\nprocesses = 1\nmin_free_bytes = {2**60}")
    Symptom(node, "The modality reports: connection refused").expect("not ready: no node runs on")

    node.start()
    Symptom(node, "The modality reports: connection refused").expect("not ready")
    assert "Reject" in send(node, STUDIES[0].write(node.folder / "study", only=1))
    Symptom(node, "The modality reports: out of resources").expect("so the node refuses instances")
    assert all(Symptom(node, "The disk fills").ask("status"))


def test_callers_that_are_refused(make_node: MakeNode, material: Material) -> None:
    node = make_node(
        receive=RECEIVE,
        peers='[[peers]]\nae_title = "CT1"\nhosts = ["10.0.0.0/8"]\n'
        '[[peers]]\nae_title = "CT2"\nsop_classes = ["MRImageStorage"]',
    ).start()
    (node.folder / "trusted.crt").write_bytes(material.trusted.read_bytes())
    send(node, STUDIES[0].write(node.folder / "study", only=1))
    for options, port in (
        (["-aet", "CT9"], node.plain_port),
        (["-aet", "CT1"], node.plain_port),
        (dcmtk.authenticated(material, "stranger"), node.tls_port),
        (dcmtk.anonymous(material), node.tls_port),
        (dcmtk.authenticated(material, "expired"), node.tls_port),
        ([], node.tls_port),
        (dcmtk.authenticated(material, "peer"), node.plain_port),
    ):
        assert dcmtk.echoscu(port, *options).returncode != 0

    Symptom(node, "The modality reports: association rejected").expect(
        "its AE title may not call", "its AE title may not call from this address"
    )
    Symptom(node, "The modality reports: a certificate error").expect(
        "its certificate is not trusted",
        "it presented no certificate",
        "its certificate has ended",
        "it does not speak TLS",
        "TLS to a plain port",
    )
    heading = "The modality reports: no presentation context"
    said = "none of its presentation contexts was accepted"
    assert said in read_section(PAGE, heading)
    assert said in "".join(Symptom(node, heading).ask())


def test_destination_that_is_away_or_paused(make_node: MakeNode) -> None:
    routes = destination("archive", free_port(), tls=False, retry_first_seconds=1.0)
    node = make_node(receive=RECEIVE, routes=routes).start()
    symptom = Symptom(node, "Images do not reach the archive")
    symptom.expect("no study or instance", only="trace")
    send(node, STUDIES[0].write(node.folder / "study", only=1))
    symptom.expect("waits, ", only="trace")
    symptom.expect("Connection refused", only="check")
    Walk(node.folder).run("ingest pause -c ingest.toml archive --reason test")
    symptom.expect("waits: paused by", only="trace")
    assert all(symptom.ask())


def test_images_that_come_twice_or_differ(make_node: MakeNode) -> None:
    with PynetdicomRemote([(SOP_CLASSES["CT"], ["1.2.840.10008.1.2.1"])]) as remote:
        routes = destination("archive", remote.port, tls=False)
        node = make_node(receive=RECEIVE, routes=routes).start()
        files = STUDIES[0].write(node.folder / "study", only=2)
        for calling in ("CT2", "CT3"):
            send(node, files, calling)
            eventually(lambda: node.deliveries() == {"delivered": 2}, 20, "both are delivered")
        (traced,) = Symptom(node, "Images arrive twice").ask()
        assert traced.count("delivered  archive  2 times") == 1
        assert len(remote.stored) == 2

        send(node, STUDIES[0].write(node.folder / "other", pixel=9, only=1))
        Symptom(node, "A study is incomplete").expect("quarantined", only="trace")

    status, metrics = Symptom(node, "It is slow").ask()
    assert "On the way" in status
    for metric in ("receive", "commit", "persist", "send"):
        assert f"dicom_ingest_{metric}_seconds_count" in metrics
    said = "".join(Symptom(node, "Ask for help").ask())
    assert STUDIES[0].name not in said
    assert STUDIES[0].patient_id not in said
    assert "verdict" in said


def test_reload_that_is_refused_and_console_without_a_port(make_node: MakeNode) -> None:
    node = make_node(receive=RECEIVE).start()
    console = Symptom(node, "The console does not open")
    console.expect("the configuration has no [console]")
    reload = Symptom(node, "After a reload nothing changed")
    node.configure(store='[store]\nroot = "elsewhere"')
    reload.expect("cannot change while the node runs", only="reload")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node.configure(store="", console=f"[console]\nport = {taken.getsockname()[1]}")
        reload.expect("reloaded", only="reload")
        console.expect("token:", only="console")
        console.expect("the console cannot serve", only="status")
