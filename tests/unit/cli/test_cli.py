"""The commands: their options, what they call, and their exit codes."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import ingest
from ingest.build_info import find_commit
from ingest.cli import main
from ingest.errors import BootError, ConfigError, IngestError
from ingest.queue.sweep import SweepResult
from ingest.tls.keys import pairs

COMMANDS = (
    [],
    *(
        ["serve"],
        ["listen"],
        ["work"],
        ["work", "persist"],
        ["work", "forward"],
        ["work", "retain"],
        ["work", "monitor"],
        ["work", "console"],
        ["console"],
        ["retention"],
        ["check"],
        ["status"],
        ["alerts"],
        ["alerts", "test"],
        ["alerts", "list"],
        ["sweep"],
        ["deliveries"],
        ["retry"],
        ["drop"],
        ["deliver"],
    ),
    *(
        ["send"],
        ["echo"],
        ["certs"],
        ["certs", "new"],
        ["certs", "trust"],
        ["certs", "inspect"],
        ["certs", "p12"],
        ["certs", "p12", "make"],
        ["certs", "p12", "trust"],
        ["certs", "p12", "split"],
        ["config"],
        ["config", "show"],
        ["routes"],
        ["routes", "test"],
        ["demo"],
        ["init"],
    ),
)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Commands set up logging for their process; the tests' process keeps its own."""
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)
    monkeypatch.delenv("INGEST_CONFIG", raising=False)


@pytest.fixture
def run():
    def run(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], **options)

    return run


@pytest.fixture
def file(tmp_path):
    """A configuration without listeners, whose data lies beside it."""
    path = tmp_path / "ingest.toml"
    path.write_text(
        """
        node.data_dir = "var"
        receive.min_free_bytes = 0
        listeners = [{ port = 0, tls = false }]
        """
    )
    return path


@pytest.fixture
def calls(monkeypatch):
    """Records calls of what does a command's work, which returns 0 or raises what a test asks for."""
    made = []

    def replace(target, result=0):
        def stand_in(*args, **kwargs):
            made.append((args, kwargs))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(target, stand_in)
        return made

    return replace


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(c) or "ingest" for c in COMMANDS])
def test_help_says_what_a_command_does(run, command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: {' '.join(['main', *command])}".rstrip())
    assert len(result.output.splitlines()) > 4
    assert "..." not in result.output.partition("Commands:")[2], "a summary is cut off"
    assert "\\" not in result.output, "a mark of click's is shown as it is written"


def test_commands_are_listed_in_the_order_of_use(run):
    listed = [line.split()[0] for line in run("--help").output.partition("Commands:\n")[2].splitlines()]
    assert listed[:5] == ["init", "serve", "listen", "work", "check"]


def test_help_does_not_import_what_only_commands_need():
    code = (
        "import sys; from ingest.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'rich', 'pydantic', 'sqlalchemy', 'redis', 'rq', 'cryptography', 'pydicom'}\n"
        "slow |= {'structlog', 'alembic'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_says_what_a_report_of_a_fault_needs(run):
    first, *more = run("--version").output.splitlines()
    assert first == f"ingest, version {ingest.__version__}"
    said = dict(line.split(maxsplit=1) for line in more)
    assert list(said) == ["commit", "Python", "OpenSSL", "extras"]
    commit = find_commit()
    assert commit is None or said["commit"] == f"{commit.name} of {commit.date}"
    assert said["OpenSSL"].startswith("3.")
    assert said["extras"] == "console, postgresql, transcode"


@pytest.mark.parametrize(
    ("command", "roles"),
    [
        (["serve"], {"listen", "persist", "forward", "retain", "monitor", "console"}),
        (["listen"], {"listen"}),
        (["work", "persist"], {"persist"}),
        (["work", "forward"], {"forward"}),
        (["work", "retain"], {"retain"}),
        (["work", "monitor"], {"monitor"}),
        (["work", "console"], {"console"}),
    ],
)
def test_roles_run_under_the_supervisor_and_give_its_exit_code(run, file, calls, command, roles):
    made = calls("ingest.supervisor.supervisor.run_supervisor", 3)
    assert run(*command, "-c", file).exit_code == 3
    assert made == [((file, frozenset(roles)), {})]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["node.x: wrong; mend it", "node.y: wrong; mend it"]), 2),
        (BootError("port 104: permission denied; use another"), 3),
        (IngestError("something else; do this"), 1),
    ],
)
def test_errors_become_exit_codes_and_one_line_each(run, file, calls, error, code):
    calls("ingest.supervisor.supervisor.run_supervisor", error)
    result = run("serve", "-c", file)
    assert result.exit_code == code
    assert result.stderr.splitlines() == [f"error {line}" for line in str(error).splitlines()]
    assert result.stdout == ""


def test_bad_configuration_names_every_fault_and_exits_with_2(run, file):
    file.write_text('[node]\nae_titel = "x"\n[queue]\nurl = "http://[x]"\n')
    for command in (["check"], ["status"], ["sweep"], ["config", "show"], ["serve"]):
        result = run(*command, "-c", file)
        assert result.exit_code == 2, result.output
        assert "node.ae_titel" in result.stderr
        assert "queue.url" in result.stderr
        assert "Traceback" not in result.output


def test_serve_without_listeners_exits_with_2(run, file):
    file.write_text("")
    result = run("serve", "-c", file)
    assert result.exit_code == 2
    assert "listeners: there is no listener" in result.stderr


@pytest.mark.parametrize("name", ["orthanc.json", "none.toml"])
def test_other_files_exit_with_2(run, tmp_path, name):
    result = run("check", "-c", tmp_path / name)
    assert result.exit_code == 2
    assert name in result.stderr


def test_configuration_is_required_or_taken_from_the_environment(run, file):
    assert run("config", "show").exit_code == 2
    assert run("config", "show", env={"INGEST_CONFIG": str(file)}).exit_code == 0


def test_configuration_of_the_installed_node_is_the_default(run, file, tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.cli._base.INSTALLED_CONFIG", file)
    assert run("config", "show").exit_code == 0
    assert "has no [console]" in run("console").stderr
    monkeypatch.setattr("ingest.cli._base.INSTALLED_CONFIG", tmp_path / "none.toml")
    for command in ("config show", "console"):
        missing = run(*command.split())
        assert (missing.exit_code, "--config" in missing.stderr) == (2, True)


def test_check_exits_with_0_when_sound_and_1_on_faults(run, file):
    result = run("check", "-c", file)
    assert (result.exit_code, "sound" in result.output) == (0, True), result.output
    result = run("check", "-c", file, env={"INGEST_RECEIVE__MIN_FREE_BYTES": "9000000000000000000"})
    assert result.exit_code == 1
    assert "store.root" in result.output
    assert "3 faults" in result.output


def test_check_with_notes_only_is_sound(run, file):
    result = run("check", "-c", file, env={"INGEST_RECEIVE__DURABILITY": "page-cache"})
    assert result.exit_code == 0
    assert "note" in result.output
    assert "receive.durability" in result.output


@pytest.mark.parametrize(("arguments", "watch"), [([], None), (["--watch"], 2.0), (["--watch", "0.5"], 0.5)])
def test_status_passes_its_options_on(run, file, calls, arguments, watch):
    made = calls("ingest.cli.status._print_status")
    assert run("status", "-c", file, *arguments).exit_code == 0
    assert made[0][1] == {"as_json": False, "watch_seconds": watch}


def test_sweep_prints_its_counts(run, file, calls):
    calls("ingest.queue.sweep.sweep_spool", SweepResult(4, 3, 2, 1))
    result = run("sweep", "-c", file)
    assert result.exit_code == 0
    assert result.output == (
        "4 waiting in the spool, 3 of them put back on the queue; "
        "1 already kept and removed; 2 partial files removed\n"
    )


def test_demo_gives_its_exit_code(run, calls):
    calls("ingest.cli._demo_run.run_demo", 1)
    assert run("demo").exit_code == 1


def test_config_show_prints_toml_or_json_without_passwords(run, file):
    env = {"INGEST_QUEUE__URL": "redis://:geheim@h/0", "INGEST_NODE__AE_TITLE": "SHOWN"}
    toml = run("config", "show", "-c", file, env=env).output
    data = run("config", "show", "-c", file, "--json", env=env).output
    assert tomllib.loads(toml)["node"] == json.loads(data)["node"]
    assert json.loads(data)["node"]["ae_title"] == "SHOWN"
    assert "geheim" not in toml + data


def test_certs_new_makes_a_pair_and_trusts_it_as_make_run_does(run, tmp_path):
    arguments = ["certs", "new", tmp_path / "pki" / "node", "--name", "localhost", "--key-type", "ec"]
    result = run(*arguments, "--trust", tmp_path / "pki" / "trusted.crt")
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.output.splitlines()] == ["node.crt", "node.key", "trusted.crt"]
    (own,) = pairs.read_identities(tmp_path / "pki" / "node.crt")
    assert pairs.read_identities(tmp_path / "pki" / "trusted.crt") == (own,)
    again = run(*arguments)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    assert run(*arguments, "--force").exit_code == 0


def test_certs_new_signs_and_trusts_the_authority(run, tmp_path):
    arguments = [
        "--name",
        "ct1",
        "--san",
        "ct1.example",
        "--san",
        "10.0.0.1",
        "--days",
        "7",
        "--key-type",
        "ec",
    ]
    result = run(
        *(
            "certs",
            "new",
            tmp_path / "ct1",
            *arguments,
            "--ca",
            tmp_path / "site",
            "--trust",
            tmp_path / "t.crt",
        )
    )
    assert result.exit_code == 0, result.output
    (own,) = pairs.read_identities(tmp_path / "ct1.crt")
    assert own.names == ("DNS:ct1", "DNS:ct1.example", "IP:10.0.0.1")
    assert [identity.subject for identity in pairs.read_identities(tmp_path / "t.crt")] == [own.issuer]


@pytest.fixture
def pair(tmp_path):
    return pairs.create_pair(tmp_path / "a", "localhost", key_type="ec").files


@pytest.fixture
def dicom(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(b"")
    return path


def test_send_passes_files_titles_and_jobs_on(run, calls, dicom):
    made = calls("ingest.cli.send.send_to_remote", 1)
    result = run("send", "h", "104", dicom, dicom.parent, "-aec", "PACS", "-aet", "ME", "--jobs", "4")
    assert result.exit_code == 1
    assert made == [
        (
            ("h", 104, (dicom, dicom.parent)),
            {"called_ae": "PACS", "calling_ae": "ME", "tls": None, "jobs": 4},
        )
    ]


def test_words_may_be_used_for_dcmtks_letters(run, calls):
    made = calls("ingest.cli.send.echo_remote")
    assert run("echo", "h", "104", "--called", "PACS", "--calling", "ME").exit_code == 0
    assert made == [(("h", 104), {"called_ae": "PACS", "calling_ae": "ME", "tls": None})]


def test_tls_options_make_settings(run, calls, pair):
    made = calls("ingest.cli.send.echo_remote")
    certificate, key = pair
    options = ["--tls-cert", certificate, "--tls-key", key, "--tls-trusted", certificate, "--tls-check-name"]
    result = run("echo", "h", "104", *options)
    assert result.exit_code == 0, result.output
    tls = made[0][1]["tls"]
    assert (tls.certificate, tls.private_key, tls.trusted) == (certificate, key, (certificate,))
    assert (tls.peer_certificate, tls.check_server_name) == ("required", True)


def test_tls_without_verification_must_be_said(run, calls):
    made = calls("ingest.cli.send.echo_remote")
    assert run("echo", "h", "104", "--tls").exit_code == 2
    assert run("echo", "h", "104", "--tls-no-verify").exit_code == 0
    assert [call[1]["tls"].peer_certificate for call in made] == ["none"]


@pytest.mark.parametrize(
    "options",
    [
        ["--tls-cert", "{crt}", "--tls-no-verify"],
        ["--tls-cert", "{crt}", "--tls-key", "{key}", "--tls-pkcs12", "{crt}", "--tls-no-verify"],
        ["--tls-key", "{key}", "--tls-no-verify"],
        ["--tls-trusted", "{crt}", "--tls-no-verify"],
        ["--tls-no-verify", "--tls-check-name"],
        ["--tls-cert", "/no/such"],
        ["--called", "SEVENTEEN LETTERS"],
        ["-aet", "A\\B"],
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(run, calls, pair, options):
    made = calls("ingest.cli.send.echo_remote")
    filled = [option.format(crt=pair[0], key=pair[1]) for option in options]
    result = run("echo", "h", "104", *filled)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert made == []


def test_pair_that_does_not_fit_is_named_before_anything_is_sent(run, calls, pair, tmp_path):
    made = calls("ingest.cli.send.echo_remote")
    other = pairs.create_pair(tmp_path / "b", "b", key_type="ec").files
    result = run("echo", "h", "104", "--tls-cert", pair[0], "--tls-key", other[1], "--tls-trusted", pair[0])
    assert result.exit_code == 2
    assert "does not belong" in result.stderr
    assert made == []


@pytest.mark.parametrize(
    "arguments", [["send", "h", "104"], ["send", "h", "0", "x"], ["send", "h", "104", "-j", "0", "x"]]
)
def test_send_without_files_or_with_a_bad_port_is_a_usage_error(run, arguments):
    assert run(*arguments).exit_code == 2


def test_command_runs_as_a_program_and_as_a_module(tmp_path):
    for command in ([Path(sys.executable).with_name("ingest")], [sys.executable, "-m", "ingest.cli"]):
        done = subprocess.run(
            [*command, "check", "-c", tmp_path / "none.toml"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "cannot be read" in done.stderr
