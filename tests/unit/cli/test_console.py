"""`ingest console`: the address, users and tokens."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.audit import AuditTrail
from ingest.cli import main
from ingest.config.reader import load_config
from ingest.console.auth.roles import Role
from ingest.console.auth.tokens import TokenFile
from ingest.console.auth.users import UserFile
from tests.support.audit import Said

PASSWORD = "correct horse battery"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ingest.toml"
    path.write_text('[node]\ndata_dir = "var"\n[console]\nport = 8090\n')
    return path


def run(config: Path, *words: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["console", *words, "-c", str(config)], input=answer)


def test_address_is_printed_with_the_same_token_until_there_is_a_user(config: Path) -> None:
    first, second = run(config), run(config)
    assert first.output == second.output
    address, token = first.output.splitlines()
    assert address == "http://127.0.0.1:8090/"
    assert token.startswith("token: ingest_")
    assert run(config, "user", "add", "anna", "--role", "admin", answer=f"{PASSWORD}\n").exit_code == 0
    assert "token: " not in run(config).output


def test_users_are_added_changed_and_removed(config: Path) -> None:
    users = UserFile(config.parent / "var" / "console")
    assert run(config, "user", "add", "anna", answer=f"{PASSWORD}\n").output == "anna: added as viewer\n"
    assert PASSWORD not in (config.parent / "var/console/users.json").read_text()
    before = users.list_users()[0]
    assert run(config, "user", "role", "anna", "operator").exit_code == 0
    assert users.list_users()[0].role is Role.OPERATOR
    assert run(config, "user", "passwd", "anna", answer="another long password\n").exit_code == 0
    after = users.list_users()[0]
    assert users.verify_password("anna", "another long password") is not None
    assert users.verify_password("anna", PASSWORD) is None
    assert before.version != after.version, "sessions of before have ended"
    assert run(config, "user", "list").output.split() == ["user", "role", "anna", "operator"]
    assert run(config, "user", "remove", "anna").exit_code == 0
    assert users.list_users() == []


@pytest.mark.parametrize(
    ("words", "answer", "cause"),
    [
        (["user", "add", "anna"], "short\n", "too short"),
        (["user", "add", ""], f"{PASSWORD}\n", "no name of a user"),
        (["user", "add", "a:b"], f"{PASSWORD}\n", "no name of a user"),
        (["user", "remove", "nobody"], "", "there is no user nobody"),
        (["token", "remove", "nothing"], "", "there is no token nothing"),
        (["token", "add", "a b"], "", "no name of a token"),
    ],
)
def test_mistakes_are_explained(config: Path, words: list[str], answer: str, cause: str) -> None:
    result = run(config, *words, answer=answer)
    assert result.exit_code == 1
    assert cause in result.output


def test_two_spellings_of_a_name_are_one_user(config: Path) -> None:
    assert run(config, "user", "add", "Zo\u00eb", answer=f"{PASSWORD}\n").exit_code == 0
    assert run(config, "user", "add", "Zoe\u0308", answer=f"{PASSWORD}\n").exit_code == 1
    users = UserFile(config.parent / "var" / "console")
    assert users.verify_password("Zoe\u0308", PASSWORD) is not None


def test_token_is_printed_once_and_kept_as_a_digest(config: Path) -> None:
    text = run(config, "token", "add", "prometheus", "--days", "30").output.strip()
    folder = config.parent / "var" / "console"
    assert text not in (folder / "tokens.json").read_text()
    principal = TokenFile(folder).find_principal(text)
    assert principal is not None
    assert (principal.name, principal.role) == ("token:prometheus", Role.VIEWER)
    assert "prometheus" in run(config, "token", "list").output
    assert run(config, "token", "add", "prometheus").exit_code == 1
    assert run(config, "token", "remove", "prometheus").exit_code == 0
    assert TokenFile(folder).find_principal(text) is None


def test_users_and_tokens_are_listed_for_programs(config: Path) -> None:
    assert run(config, "user", "add", "anna", answer=f"{PASSWORD}\n").exit_code == 0
    assert run(config, "token", "add", "prometheus", "--role", "metrics", "--days", "30").exit_code == 0
    assert run(config, "token", "add", "reports").exit_code == 0
    assert json.loads(run(config, "user", "list", "--json").output) == {"name": "anna", "role": "viewer"}
    first, second = map(json.loads, run(config, "token", "list", "--json").output.splitlines())
    assert (first["role"], first["is_expired"], second["expires_at"]) == ("metrics", False, None)
    assert first["expires_at"] > first["created_at"]
    headings, *rows = run(config, "token", "list", "--csv").output.splitlines()
    assert headings == "name,role,created_at,expires_at,is_expired"
    assert [row.partition(",")[0] for row in rows] == ["prometheus", "reports"]


def test_role_for_metrics_is_for_tokens_only(config: Path) -> None:
    assert run(config, "user", "add", "anna", "--role", "metrics", answer=f"{PASSWORD}\n").exit_code == 2


def test_each_change_of_users_and_tokens_is_in_the_audit_trail(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    config.write_text(config.read_text() + '[audit]\nhost = "arr"\ntls = false\nallow_plain = true\n')
    secret = run(config, "token", "add", "reports").output.strip()
    run(config, "user", "add", "anna", answer=f"{PASSWORD}\n")
    run(config, "user", "add", "anna", answer=f"{PASSWORD}\n")
    run(config, "user", "role", "anna", "admin")
    run(config, "user", "passwd", "anna", answer="another long password\n")
    run(config, "user", "remove", "anna")
    run(config, "token", "remove", "reports")
    run(config, "token", "remove", "reports")
    trail = AuditTrail.open(load_config(config))
    assert trail is not None
    written = [trail.queue.read(name) for name in trail.queue.list_names()]
    assert not any(word.encode() in text for text in written for word in (secret, PASSWORD, "another long"))
    attributes, roles = "User Security Attributes Changed", "Security Roles Changed"
    found = [Said.of_syslog(text) for text in written]
    assert {tuple(said.requestors) for said in found} == {("ada",)}
    assert [(said.types, said.objects, said.outcome) for said in found] == [
        ([attributes], ["dicom-ingest:token/reports"], "0"),
        ([attributes], ["dicom-ingest:user/anna"], "0"),
        ([attributes], ["dicom-ingest:user/anna"], "4"),
        ([roles], ["dicom-ingest:user/anna"], "0"),
        ([attributes], ["dicom-ingest:user/anna"], "0"),
        ([attributes], ["dicom-ingest:user/anna"], "0"),
        ([attributes], ["dicom-ingest:token/reports"], "0"),
        ([attributes], ["dicom-ingest:token/reports"], "4"),
    ]


def test_token_of_the_host_that_others_may_read_is_refused(config: Path) -> None:
    run(config)
    path = config.parent / "var" / "console" / "token"
    path.chmod(0o644)
    assert "other users may read it" in run(config).output


def test_configuration_without_a_console_is_explained(config: Path) -> None:
    config.write_text('[node]\ndata_dir = "var"\n')
    assert "has no [console]" in run(config).output
