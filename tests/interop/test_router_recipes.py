"""The recipes of a router in docs/how-to: nodes with the configuration of the page, and peers over TLS."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import dcmread
from pynetdicom import AE

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import by_uid
from tests.interop.orthanc import orthanc
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, eventually
from tests.support.pages import DOCS, Walk, read_blocks
from tests.support.peers import PynetdicomRemote, Stored, storescp
from tests.support.pki import Material
from tests.support.scenes import STUDIES
from tests.support.tls_peers import ssl_client_context
from tests.support.zones import ZONE, wall_clock


def read_recipe(page: str, heading: str) -> str:
    """Return the TOML of a section of a page."""
    blocks = read_blocks(DOCS / "how-to" / f"{page}.md")
    found = [block.text for block in blocks if block.heading == heading and block.language == "toml"]
    assert found, heading
    return "\n".join(found)


def write_destination(name: str, port: int) -> str:
    """Return `[[destinations]]` without a route."""
    return (
        f'[[destinations]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "localhost"\nport = {port}\n'
    )


def send(node: Node, material: Material, paths: list[Path]) -> None:
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    assert not send_files(remote, paths, 2).failed_files


def count_by_destination(node: Node) -> dict[tuple[str, str], int]:
    rows = node.query("SELECT destination, state, COUNT(*) FROM deliveries GROUP BY destination, state")
    return {(name, state): count for name, state, count in rows}


@pytest.fixture
def studies(tmp_path: Path) -> list[list[Path]]:
    return [study.write(tmp_path / f"study-{number}", only=2) for number, study in enumerate(STUDIES[:2])]


def test_held_images_are_sent_when_a_person_releases_them(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, studies: list[list[Path]]
) -> None:
    first, second = studies
    both = len(first) + len(second)
    with (
        storescp(tmp_path / "archive", material.tls("remote"), "--promiscuous") as archive,
        storescp(tmp_path / "second", material.tls("remote"), "--promiscuous") as site,
    ):
        node = make_node(
            destinations=write_destination("archive", archive) + write_destination("second-site", site),
            routes=read_recipe("several-destinations", "Hold images until a person releases them"),
        ).start()
        send(node, material, first + second)
        held = {("archive", "delivered"): both, ("second-site", "held"): both}
        eventually(lambda: count_by_destination(node) == held, 30, f"{count_by_destination(node)}")
        node.kill()
        node.start()
        assert count_by_destination(node) == held

        [[study]] = node.query("SELECT DISTINCT study_uid FROM instances ORDER BY id LIMIT 1")
        with Walk(node.folder) as walk:
            walk.run(f"command ingest deliveries release -c ingest.toml --study {study}")
            expected = {
                **held,
                ("second-site", "held"): len(second),
                ("second-site", "delivered"): len(first),
            }
            eventually(lambda: count_by_destination(node) == expected, 30, f"{count_by_destination(node)}")
            walk.run("command ingest drop -c ingest.toml --destination second-site --state held --yes")
        sent = [
            uid for [uid] in node.query("SELECT sop_instance_uid FROM instances WHERE study_uid = ?", study)
        ]
    assert sorted(by_uid((tmp_path / "second").iterdir())) == sorted(sent)


def test_each_study_goes_whole_and_over_an_association_of_its_own(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    recipe = read_recipe("several-destinations", "One association per study")
    studies = [f"1.2.40.{number}" for number in range(3)]
    files = {}
    for study in studies:
        # More than a worker leases at once.
        for number in range(80):
            made = Made(sop=f"{study}.{number}", study=study, series=f"{study}.9{number % 2}")
            files[made.sop] = tmp_path / f"{made.sop}.dcm"
            files[made.sop].write_bytes(made.file)
    address = 'host = "reading.hospital.example"\nport = 2762'
    remote = PynetdicomRemote([(CT, [EXPLICIT])], material.tls("remote"))
    began: dict[int, list[str]] = {}

    def note(stored: Stored) -> int:
        began.setdefault(remote.associations, []).append(stored.sop_instance)
        return 0

    remote.answer = note
    with remote:
        node = make_node().start(routes=recipe.replace(address, f'host = "localhost"\nport = {remote.port}'))
        # Interleaved: each file is of another study than the one before it.
        send(node, material, [files[f"{study}.{number}"] for number in range(80) for study in studies])
        eventually(lambda: len(remote.stored) == len(files), 40, f"{len(remote.stored)} have arrived")
        assert sorted(len(uids) for uids in began.values()) == [80] * 3
        assert all(len({uid.rpartition(".")[0] for uid in uids}) == 1 for uids in began.values())
        # A late image has an association of its own.
        late = Made(sop="1.2.40.2.99", study="1.2.40.2", series="1.2.40.2.90")
        (tmp_path / "late.dcm").write_bytes(late.file)
        send(node, material, [tmp_path / "late.dcm"])
        eventually(lambda: len(remote.stored) == len(files) + 1, 40, "the late image has arrived")
        assert began[4] == ["1.2.40.2.99"]
        with Walk(node.folder) as walk:
            shown = walk.run("command ingest completed -c ingest.toml --study 1.2.40.2")
            assert shown.count("complete") >= 2
            assert "reopened" in shown
            assert "1.2.40" not in walk.run("command ingest deliveries -c ingest.toml --state awaiting")


def test_attributes_are_changed_for_one_destination(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    page, heading = "several-destinations", "Change attributes for one destination"
    recipe = read_recipe(page, heading)
    blocks = read_blocks(DOCS / "how-to" / f"{page}.md")
    [lines] = [block.text for block in blocks if block.heading == heading and block.language == "text"]
    address = 'host = "archive.region.example"\nport = 2762'
    files = []
    for number, patient_id in enumerate(("4711", "0815", "9999")):
        study = replace(STUDIES[0], patient_id=patient_id, number=90 + number)
        files += study.write(tmp_path / patient_id, only=1)
    with (
        orthanc(material, "remote") as archive,
        storescp(tmp_path / "second", material.tls("remote"), "--promiscuous") as site,
    ):
        ours = f'host = "localhost"\nport = {archive.dicom_port}'
        node = make_node()
        (node.folder / "patients.csv").write_text(lines)
        plain = write_destination("second-site", site)
        routes = recipe.replace(address, ours).replace(
            'to = ["regional"]', 'to = ["regional", "second-site"]'
        )
        node.start(destinations=plain + routes)
        shutil.copy(files[0], node.folder / "sample.dcm")
        with Walk(node.folder) as walk:
            shown = walk.run("command ingest routes test -c ingest.toml sample.dcm")
        assert "- PatientID: 4711" in shown
        assert "+ PatientID: R-100234" in shown
        send(node, material, files)
        done = {("regional", "delivered"): 2, ("regional", "dead"): 1, ("second-site", "delivered"): 3}
        eventually(lambda: count_by_destination(node) == done, 30, f"{count_by_destination(node)}")
        found = archive.post("/tools/find", {"Level": "Patient", "Query": {}, "Expand": True})
        tags = {each["MainDicomTags"]["PatientID"]: each["MainDicomTags"] for each in found}
        assert tags.keys() == {"R-100234", "R-100235"}
        assert tags["R-100235"]["PatientName"] == "Müller^Eva"
        for path in archive.files(tmp_path / "archive").values():
            arrived = pydicom.dcmread(path)
            assert (arrived.InstitutionName, arrived.IssuerOfPatientID) == ("St Mary", "REGION")
            [item] = arrived.OriginalAttributesSequence
            assert item.ModifiedAttributesSequence[0].PatientID in {"4711", "0815"}
        [[reason]] = node.query("SELECT last_error FROM deliveries WHERE state = 'dead'")
        assert reason == "its attributes cannot be changed: no line of the map has its PatientID"

        # The line is added, and the configuration reloaded.
        (node.folder / "patients.csv").write_text(f"{lines.rstrip()}\n9999,R-100236\n")
        with Walk(node.folder) as walk:
            assert "patients.csv:4: has 2 cells" in walk.run("command ingest check -c ingest.toml || true")
            assert "patients.csv:4" in walk.run("command ingest reload -c ingest.toml 2>&1 || true")
            (node.folder / "patients.csv").write_text(f"{lines.rstrip()}\n9999,R-100236,\n")
            walk.run("command ingest reload -c ingest.toml")
            walk.run("command ingest retry -c ingest.toml --destination regional")
        eventually(lambda: archive.count() == 3, 30, "the third image arrives")
    sent = {uid: pydicom.dcmread(path) for uid, path in by_uid((tmp_path / "second").iterdir()).items()}
    assert sorted(each.PatientID for each in sent.values()) == ["0815", "4711", "9999"]
    assert "4711" not in node.log
    assert "R-100234" not in node.log


def test_priority_of_a_sender_and_of_a_route_reaches_the_remote(
    make_node: Callable[..., Node], material: Material
) -> None:
    """pynetdicom on both sides, with the peers and routes of the page."""
    contexts = [(CT, [EXPLICIT])]
    tls = material.tls("remote")
    with PynetdicomRemote(contexts, tls) as archive, PynetdicomRemote(contexts, tls) as site:
        node = make_node(
            destinations=write_destination("archive", archive.port)
            + write_destination("second-site", site.port),
            routes=read_recipe("several-destinations", "Let urgent images go first"),
        ).start()
        for title in ("CT-ER", "CT2"):
            ae = AE(title)
            ae.add_requested_context(CT, EXPLICIT)
            association = ae.associate(
                "localhost",
                node.tls_port,
                ae_title="INGEST",
                tls_args=(ssl_client_context(material.tls("peer")), "localhost"),
            )
            assert association.is_established
            for priority in (0, 1, 2):
                made = Made(sop=f"1.2.{len(title)}.{priority}", study=f"1.2.{len(title)}")
                data_set = dcmread(BytesIO(made.file))
                assert association.send_c_store(data_set, priority=priority).Status == 0
            association.release()
        eventually(lambda: node.deliveries() == {"delivered": 12}, 30, f"{node.deliveries()}")
    # CT-ER may ask for HIGH. The route to the second site makes everything bulk.
    assert {one.sop_instance: one.priority for one in archive.stored} == {
        "1.2.5.0": 0, "1.2.5.1": 1, "1.2.5.2": 2, "1.2.3.0": 0, "1.2.3.1": 0, "1.2.3.2": 2
    }  # fmt: skip
    assert {one.priority for one in site.stored} == {2}


def test_images_go_to_a_slow_site_at_night_and_reports_at_once(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heading = "At night"
    recipe = read_recipe("slow-sites", heading)
    commands = [
        block.commands
        for block in read_blocks(DOCS / "how-to" / "slow-sites.md")
        if block.heading == heading and block.language == "sh"
    ]
    folder = Path(pydicom.__file__).parent / "data/test_files"
    report = folder / "reportsi.dcm"
    images = [folder / name for name in ("CT_small.dcm", "MR_small.dcm", "SC_rgb_small_odd.dcm")]
    zones = tmp_path / "zones"
    with storescp(tmp_path / "second", material.tls("remote"), "--promiscuous") as site:
        ours = recipe.replace('host = "archive.second.example.org"', f'host = "localhost"\nport = {site}')
        with wall_clock(zones, monkeypatch, 12, 0):
            node = make_node().start(destinations="", routes=ours.replace("Europe/Vienna", ZONE))
            send(node, material, [report, *images])
            by_day = {("second-site", "delivered"): 1, ("second-site", "waiting"): 3}
            eventually(lambda: count_by_destination(node) == by_day, 30, f"{count_by_destination(node)}")
            with Walk(node.folder) as walk:
                listed, status = (
                    walk.run(f"command {each}", frozenset({0, 1, 2}))
                    for each in commands[0].strip().splitlines()
                )
            assert listed.count(f"the hours of its route: 22:00-06:00 {ZONE}") == 3
            assert "closed; next attempt" in status
            node.kill()
            node.start()
            assert count_by_destination(node) == by_day
            node.kill()
        assert by_uid((tmp_path / "second").iterdir()).keys() == by_uid([report]).keys()
        with wall_clock(zones, monkeypatch, 22, 0):
            node.start()
            by_night = {("second-site", "delivered"): 4}
            eventually(lambda: count_by_destination(node) == by_night, 30, f"{count_by_destination(node)}")
    assert by_uid((tmp_path / "second").iterdir()).keys() == by_uid([report, *images]).keys()


def test_images_are_compressed_for_a_slow_line(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    pytest.importorskip("jpeg_ls", reason="pyjpegls has no wheel for this Python")
    recipe = read_recipe("slow-sites", "Compress for the line")
    folder = Path(pydicom.__file__).parent / "data/test_files"
    names = "CT_small.dcm", "MR_small_RLE.dcm", "JPEG-lossy.dcm", "reportsi.dcm"
    files = [folder / name for name in names]
    before = {pydicom.dcmread(path).SOPInstanceUID: path for path in files}
    with storescp(tmp_path / "second", material.tls("remote"), "--promiscuous") as site:
        ours = recipe.replace('host = "archive.second.example.org"', f'host = "localhost"\nport = {site}')
        node = make_node().start(destinations="", routes=ours)
        shutil.copy(files[0], node.folder / "sample.dcm")
        with Walk(node.folder) as walk:
            shown = walk.run("command ingest routes test -c ingest.toml sample.dcm")
        assert "offered to second-site: JPEGLSLossless, or ExplicitVRLittleEndian, or" in shown
        send(node, material, files)
        done = {("second-site", "delivered"): len(files)}
        eventually(lambda: count_by_destination(node) == done, 30, f"{count_by_destination(node)}")
    arrived = by_uid((tmp_path / "second").iterdir())
    assert arrived.keys() == before.keys()
    for uid, path in before.items():
        stored, sent = pydicom.dcmread(path), pydicom.dcmread(arrived[uid])
        if path.name in {"JPEG-lossy.dcm", "reportsi.dcm"}:
            assert sent.file_meta.TransferSyntaxUID == stored.file_meta.TransferSyntaxUID
            assert sent.get("PixelData") == stored.get("PixelData")
            continue
        assert sent.file_meta.TransferSyntaxUID.keyword == "JPEGLSLossless"
        decoded = tmp_path / "decoded.dcm"
        subprocess.run(["dcmdjpls", arrived[uid], decoded], check=True, timeout=60)
        native = pydicom.dcmread(folder / path.name.replace("_RLE", ""))
        assert pydicom.dcmread(decoded).PixelData == native.PixelData, path.name

        wanted = stored.pixel_array
        assert (pydicom.dcmread(decoded).pixel_array == wanted).all(), path.name


def test_second_archive_stands_in_for_the_first(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, studies: list[list[Path]]
) -> None:
    first, second = studies
    both = len(first) + len(second)
    # The blocks of commands stand between the paragraphs of the recipe.
    recipe = read_recipe("several-destinations", "One of two archives")
    with storescp(tmp_path / "b", material.tls("remote"), "--promiscuous") as port_b:
        with storescp(tmp_path / "a", material.tls("remote"), "--promiscuous") as port_a:
            for letter, port in (("a", port_a), ("b", port_b)):
                address = f'host = "{letter}.archive.example.org"\nport = 2762'
                assert address in recipe
                quick = "retry_first_seconds = 0.2\nretry_max_seconds = 1"
                recipe = recipe.replace(address, f'host = "localhost"\nport = {port}\n{quick}')
            node = make_node(destinations=recipe, workers="[workers]\nforward = 2").start()
            shutil.copy(first[0], node.folder / "sample.dcm")
            send(node, material, first)
            done = {("archive", "delivered"): len(first)}
            eventually(lambda: count_by_destination(node) == done, 30, f"{count_by_destination(node)}")
            with Walk(node.folder) as walk:
                shown = walk.run("command ingest routes test -c ingest.toml sample.dcm")
                assert "archive: the first of archive-a, archive-b that is available" in shown
        with Walk(node.folder) as walk:
            found = walk.run("command ingest check -c ingest.toml --connect || true")
            assert "archive: of 2 members only archive-b answers" in found
        send(node, material, second)
        done = {("archive", "delivered"): both}
        eventually(lambda: count_by_destination(node) == done, 40, f"{count_by_destination(node)}")
        with Walk(node.folder) as walk:
            status = walk.run("command ingest status -c ingest.toml || true")
            assert "archive (fail-over: archive-a, archive-b)" in " ".join(status.split())
            walk.run("command ingest pause -c ingest.toml archive-a --reason upgraded")
            walk.run("command ingest resume -c ingest.toml archive-a")
            listed = walk.run("command ingest deliveries -c ingest.toml --destination archive --json")
    members = {json.loads(line)["member"] for line in listed.splitlines()}
    assert members == {"archive-a", "archive-b"}
    for folder, expected in (("a", first), ("b", second)):
        assert by_uid((tmp_path / folder).iterdir()).keys() == by_uid(expected).keys()
