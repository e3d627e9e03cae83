"""`ingest send` and `ingest echo`, and the function below them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom.data
import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AllStoragePresentationContexts

from ingest.cli.send import echo_remote, send_to_remote
from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.requestor.send_files import FileResult, SendProgress, send_files
from ingest.requestor.store_scu import Remote, Timeouts
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.peers import (
    AE_TITLE,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    Stored,
    client_tls,
    make_tls,
)
from tests.support.ports import free_port

SHORT = Timeouts(connect_seconds=2.0, response_seconds=2.0)
SAMPLES = Path(pydicom.data.__file__).parent / "test_files"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve instances in two folders, and what is no instance."""
    for number in range(1, 13):
        path = tmp_path / "files" / f"series {number % 2}" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Made(sop=f"1.2.3.{number}").file)
    (tmp_path / "files" / "notes.txt").write_text("no DICOM")
    (tmp_path / "files" / "empty").touch()
    return tmp_path / "files"


@pytest.fixture
def scp(tls: TLS) -> Iterator[PynetdicomRemote]:
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as running:
        yield running


def remote(port: int, tls: TLS | None = None) -> Remote:
    return Remote("127.0.0.1", port, AE_TITLE, "SENDER", client_tls(tls) if tls else None)


@pytest.mark.parametrize("jobs", [1, 4])
def test_folder_is_sent_whole_and_what_is_no_instance_is_skipped(
    scp: PynetdicomRemote, tls: TLS, folder: Path, jobs: int
) -> None:
    summary = send_files(remote(scp.port, tls), [folder], jobs)
    assert (len(summary.stored_files), summary.failed_files, len(summary.skipped_files)) == (12, [], 2)
    assert {stored.sop_instance: stored.data_set for stored in scp.stored} == {
        f"1.2.3.{number}": Made(sop=f"1.2.3.{number}").data_set for number in range(1, 13)
    }
    assert summary.stored_bytes == sum(len(stored.data_set) for stored in scp.stored)
    assert scp.most_at_once <= jobs


def test_progress_counts_files_and_bytes_up_to_all(scp: PynetdicomRemote, tls: TLS, folder: Path) -> None:
    seen: list[SendProgress] = []
    send_files(remote(scp.port, tls), [folder], 3, seen.append)
    assert [progress.files for progress in seen] == list(range(13))
    assert seen[0].last is None
    assert (seen[-1].files_total, seen[-1].bytes) == (12, seen[-1].bytes_total)
    assert isinstance(seen[-1].last, FileResult)


def test_named_file_that_is_no_instance_is_a_failure(scp: PynetdicomRemote, tls: TLS, folder: Path) -> None:
    named = [folder / "notes.txt", folder / "gone", folder / "series 1" / "1.dcm"]
    summary = send_files(remote(scp.port, tls), named)
    assert {result.path.name: result.error[:20] for result in summary.failed_files} == {
        "notes.txt": "is no DICOM Part 10 ",
        "gone": "cannot be opened: No",
    }
    assert len(summary.stored_files) == 1


def test_command_names_the_uids_of_the_data_set_where_file_meta_has_others(
    scp: PynetdicomRemote, tls: TLS, tmp_path: Path
) -> None:
    (tmp_path / "odd.dcm").write_bytes(Made(sop="1.2.3", sop_in_data_set="1.2.4").file)
    send_files(remote(scp.port, tls), [tmp_path / "odd.dcm"])
    assert [stored.sop_instance for stored in scp.stored] == ["1.2.4"]


def test_refused_statuses_and_contexts_are_failures_with_reasons_and_warnings_are_not(
    tls: TLS, tmp_path: Path
) -> None:
    statuses = {"1.1": 0x0000, "1.2": 0xB007, "1.3": 0xA700, "1.4": 0x0111, "1.6": 0x0107}
    for sop in statuses:
        (tmp_path / sop).write_bytes(Made(sop=sop).file)
    (tmp_path / "other").write_bytes(Made(sop="1.5", syntax=IMPLICIT).file)
    with PynetdicomRemote([(CT, [EXPLICIT])], tls, answer=lambda it: statuses[it.sop_instance]) as scp:
        summary = send_files(remote(scp.port, tls), [tmp_path])
    assert {result.path.name: result.error for result in summary.failed_files} == {
        "1.3": "answered A700H",
        "other": f"{AE_TITLE} at 127.0.0.1:{scp.port} accepts no {CT} in {IMPLICIT}",
    }
    assert {result.path.name for result in summary.warned_files} == {"1.2", "1.4", "1.6"}


def test_association_that_dies_is_replaced_and_only_the_guilty_file_fails(folder: Path) -> None:
    stored: list[str] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        while True:
            context, command = peer.read_command()
            peer.read_data_set()
            if command["AffectedSOPInstanceUID"] == "1.2.3.4":
                peer.sock.sendall(wire.encode_abort(0))
                return
            stored.append(command["AffectedSOPInstanceUID"])
            peer.answer(context, command)

    with ScriptedPeer(script) as peer:
        summary = send_files(remote(peer.port), [folder], timeouts=SHORT)
        assert peer.connections == 2
    assert len(stored) == len(set(stored)) == 11
    (failed,) = summary.failed_files
    assert failed.sop_instance_uid == "1.2.3.4"
    assert "aborted" in failed.error


def test_remote_that_is_not_there_is_tried_twice_and_no_more(folder: Path) -> None:
    with ScriptedPeer(lambda peer: peer.read(1) and None) as peer:
        summary = send_files(remote(peer.port), [folder], timeouts=SHORT)
        assert peer.connections == 2
    assert len(summary.failed_files) == 12
    assert all(
        "closed the connection" in result.error or "reset" in result.error for result in summary.failed_files
    )


def test_permanent_rejection_is_not_tried_again(folder: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.read_pdu()
        peer.sock.sendall(wire.encode_associate_rj(wire.AssociateReject(1, 1, 7)))

    with ScriptedPeer(script) as peer:
        summary = send_files(remote(peer.port), [folder], timeouts=SHORT)
        assert peer.connections == 1
    assert "called AE title not recognized" in summary.failed_files[0].error


def test_remote_that_dies_every_time_ends_the_sending(folder: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()

    with ScriptedPeer(script) as peer:
        summary = send_files(remote(peer.port), [folder], timeouts=SHORT)
        assert peer.connections == 3
    assert len(summary.failed_files) == 12


def test_more_kinds_than_one_association_carries_take_several(tmp_path: Path) -> None:
    offered: list[int] = []
    stored: list[Any] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        offered.append(len(wire.decode_associate_rq(peer.request).contexts))
        peer.serve(lambda command: stored.append(command["AffectedSOPInstanceUID"]) or 0)

    for number in range(200):
        syntax = f"1.2.840.10008.1.2.4.{number + 1000}"
        (tmp_path / f"{number:03}").write_bytes(Made(sop=f"1.2.{number + 1}", syntax=syntax).file)
    with ScriptedPeer(script) as peer:
        summary = send_files(remote(peer.port), [tmp_path], timeouts=SHORT)
    assert offered == [128, 72]
    assert len(stored) == len(summary.stored_files) == 200


def test_every_sample_of_pydicom_arrives_byte_for_byte(tls: TLS) -> None:
    contexts = [(c.abstract_syntax, AllTransferSyntaxes) for c in AllStoragePresentationContexts]
    with PynetdicomRemote(contexts, tls) as scp:  # type: ignore[arg-type]
        summary = send_files(remote(scp.port, tls), [SAMPLES], 2)
    assert len(summary.stored_files) > 100
    for result in summary.stored_files:
        sent = result.path.read_bytes()[-result.size :]
        arrived = [it.data_set for it in scp.stored if it.sop_instance == result.sop_instance_uid]
        padded = sent + b"\0" * (len(sent) % 2)  # PS3.5 A.5: after an odd deflate stream
        assert sent in arrived or padded in arrived
    assert {result.error.partition(" accepts no ")[2][:12] for result in summary.failed_files} <= {
        "1.2.840.1000",
        "",
    }


# -- what a person sees


def send(port: int, tls: TLS | None, *files: Path) -> int:
    return send_to_remote(
        "127.0.0.1", port, files, called_ae=AE_TITLE, calling_ae="SENDER", tls=tls, timeouts=SHORT
    )


def test_summary_says_what_was_stored_and_the_exit_code_is_0(
    scp: PynetdicomRemote, tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(scp.port, tls, folder) == 0
    said = capsys.readouterr().out
    assert "12 of 12 stored" in said
    assert "skipped 2 files" in said
    for name in ("notes.txt", "empty"):
        assert str(folder / name) in said
    assert "is no DICOM Part 10 file: no DICM after a preamble" in said


def test_failures_are_grouped_by_reason_and_the_exit_code_is_1(
    tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(stored: Stored) -> int:
        return 0xA700 if int(stored.sop_instance[6:]) > 9 else 0

    with PynetdicomRemote([(CT, [EXPLICIT])], tls, answer=answer) as scp:
        assert send(scp.port, tls, folder) == 1
    said = capsys.readouterr().out
    assert "9 of 12 stored" in said
    assert "and 2 more: answered A700H" in said


def test_warnings_are_said_to_be_stored_and_the_exit_code_is_0(
    tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])], tls, answer=lambda _: 0xB00A) as scp:
        assert send(scp.port, tls, folder) == 0
    said = capsys.readouterr().out
    assert "12 of 12 stored" in said
    assert "stored with a warning" in said
    assert "and 11 more: answered B00AH" in said


def test_nothing_to_send_is_said_and_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(free_port(), None, tmp_path) == 1
    assert "nothing to send" in capsys.readouterr().out


def test_what_folders_hold_beside_is_named_with_the_reason(
    scp: PynetdicomRemote, tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "DICOMDIR").write_bytes(
        Made(sop="1.2.3.99").file.replace(CT.encode(), b"1.2.840.10008.1.3.10".ljust(len(CT), b"\0"))
    )
    for number in range(15):
        (folder / f"thumb{number:02}.png").write_bytes(b"\x89PNG")
    assert send(scp.port, tls, folder) == 0
    said = capsys.readouterr().out
    assert "12 of 12 stored" in said
    assert "skipped 19 files" in said
    assert str(folder / "pipe") in said
    assert "is no regular file (1)" in said
    assert "is a DICOMDIR" in said
    assert "and 7 more" in said


def test_a_named_file_that_cannot_be_sent_is_named_and_the_rest_is_sent(
    scp: PynetdicomRemote, tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = folder / "gone.dcm"
    assert send(scp.port, tls, gone, folder / "notes.txt", folder / "series 1") == 1
    said = capsys.readouterr().out
    assert "6 of 8 stored" in said
    assert f"failed {gone}: cannot be opened: No such file" in said
    assert f"failed {folder / 'notes.txt'}: is no DICOM Part 10 file" in said
    assert len(scp.stored) == 6


def test_what_cannot_be_read_in_a_folder_is_a_failure(
    scp: PynetdicomRemote, tls: TLS, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "series 1" / "dangling.dcm").symlink_to(folder / "nowhere")
    loop = folder / "loop.dcm"
    loop.symlink_to(loop)
    assert send(scp.port, tls, folder) == 1
    said = capsys.readouterr().out
    assert "12 of 14 stored" in said
    assert "dangling.dcm" in said
    assert "loop.dcm" in said


SENDER = (
    # A shell's background job ignores SIGINT, and Python then installs no handler.
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from pathlib import Path; from ingest.cli.send import send_to_remote;"
    "from ingest.requestor import send_files; send_files.INTERRUPT_SECONDS = float(sys.argv[3]);"
    "sys.exit(send_to_remote('127.0.0.1', int(sys.argv[1]), [Path(sys.argv[2])], called_ae='REMOTE',"
    " calling_ae='SENDER', tls=None, jobs=2))"
)


@pytest.mark.parametrize("seconds", [3.0, 0.0], ids=["jobs end", "jobs are too slow to end"])
def test_ctrl_c_ends_with_the_counts_and_130(folder: Path, seconds: float) -> None:
    held = threading.Event()
    stored: list[str] = []

    def script(peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError, AssertionError):
            peer.accept()
            while True:
                context, command = peer.read_command()
                peer.read_data_set()
                if len(stored) >= 3:
                    held.set()
                    peer.read_pdu()
                    return
                stored.append(command["AffectedSOPInstanceUID"])
                peer.answer(context, command)

    with ScriptedPeer(script) as peer:
        sender = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(peer.port), str(folder), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert held.wait(20)
        time.sleep(0.5)
        started = time.monotonic()
        sender.send_signal(signal.SIGINT)
        said, _ = sender.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert sender.returncode == 130
    assert "interrupted" in said
    assert f"{len(stored)} of 12 stored" in said
    assert "the remote may have it" in said
    assert "not sent: interrupted" in said


def test_echo_says_whether_the_remote_answers(
    scp: PynetdicomRemote, tls: TLS, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = {"called_ae": AE_TITLE, "calling_ae": "SENDER"}
    assert echo_remote("127.0.0.1", scp.port, **titles, tls=tls, timeouts=SHORT) == 0
    assert "answered the C-ECHO" in capsys.readouterr().out
    assert echo_remote("127.0.0.1", scp.port, **titles, tls=None, timeouts=SHORT) == 1
    assert "TLS" in capsys.readouterr().out
    assert echo_remote("127.0.0.1", free_port(), **titles, tls=tls, timeouts=SHORT) == 1
    assert "Connection refused" in capsys.readouterr().out
