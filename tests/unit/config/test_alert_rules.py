"""Faults of `[[alerts]]`: each names its key and the remedy."""

import json

import pytest

from ingest.config.reader import load_config
from ingest.config.serialization import format_as_toml
from ingest.errors import ConfigError

HOOK = {
    "name": "hook",
    "type": "webhook",
    "url": "https://localhost/x",
    "secret_file": "secret",
    "tls": "web",
}
MAIL = {
    "name": "mail",
    "type": "email",
    "host": "mail.example",
    "sender": "node@example.org",
    "recipients": ["a@example.org"],
    "tls": "web",
}


@pytest.fixture
def read(tmp_path, material):
    (tmp_path / "secret").write_text("key\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "open").write_text("key\n")
    (tmp_path / "open").chmod(0o644)

    def read(*alerts):
        text = f'[tls.web]\ntrusted = ["{material.trusted}"]\n[tls.nobody]\npeer_certificate = "none"\n'
        text += '[[destinations]]\nname = "pacs"\nae_title = "P"\nhost = "h"\ntls = false\n'
        for alert in alerts:
            values = (
                f"{key} = {value if isinstance(value, Raw) else json.dumps(value)}"
                for key, value in alert.items()
            )
            text += "[[alerts]]\n" + "\n".join(values) + "\n"
        path = tmp_path / "ingest.toml"
        path.write_text(text)
        return load_config(path, environ={})

    return read


class Raw(str):
    """A value that is TOML already."""


def test_sound_alerts_run_the_monitor(read, tmp_path):
    config = read(HOOK, {**MAIL, "user": "u", "password_file": "secret"})
    assert config.needs_monitor
    assert [alert.name for alert in config.alerts] == ["hook", "mail"]
    assert config.alerts[0].secret_file == tmp_path / "secret"
    assert config.alerts[1].smtp_port == 587
    assert not read().needs_monitor


@pytest.mark.parametrize(
    ("base", "changes", "key", "words"),
    [
        (HOOK, {"url": "http://receiver.example/x"}, "url", "without TLS"),
        (HOOK, {"url": "https://user:secret@receiver.example/"}, "url", "user or password"),
        (HOOK, {"url": "ftp://h/"}, "url", "not a web address"),
        (HOOK, {"url": ""}, "url", "is missing"),
        (HOOK, {"secret_file": ""}, "secret_file", "openssl rand"),
        (HOOK, {"secret_file": "gone"}, "secret_file", "does not exist"),
        (HOOK, {"secret_file": "open"}, "secret_file", "chmod 600"),
        (HOOK, {"tls": "gone"}, "tls", "there is no [tls.gone]"),
        (HOOK, {"tls": "nobody"}, "tls", "trusts nobody"),
        (HOOK, {"sender": "a@b"}, "sender", 'belongs to type = "email"'),
        (HOOK, {"alarms": []}, "alarms", "nothing is told"),
        (HOOK, {"alarms": ["Down!"]}, "alarms[0]", "cannot be the name"),
        (HOOK, {"destinations": ["pasc"]}, "destinations[0]", "there is no destination"),
        (HOOK, {"console_url": "console"}, "console_url", "not the address"),
        (HOOK, {"typ": "x"}, "typ", "did you mean type?"),
        (HOOK, {"type": "pager"}, "type", "is not known"),
        (
            HOOK,
            {"silent_peers": Raw('[{ ae_title = "CT1", hours = 1, begin_hour = 9, end_hour = 8 }]')},
            "silent_peers[0].end_hour",
            "is not after begin_hour",
        ),
        (MAIL, {"host": ""}, "host", "names no mail server"),
        (MAIL, {"sender": "node@example.org\r\nBcc: a@b"}, "sender", "not an e-mail address"),
        (MAIL, {"recipients": ["a@b", "Name <a@b>"]}, "recipients[1]", "not an e-mail address"),
        (MAIL, {"recipients": []}, "recipients", "is empty"),
        (MAIL, {"security": "none"}, "security", "without TLS"),
        (MAIL, {"user": "u"}, "password_file", "is missing"),
        (MAIL, {"password_file": "secret"}, "user", "is missing"),
        (
            MAIL,
            {"security": "none", "host": "127.0.0.1", "user": "u", "password_file": "secret"},
            "user",
            "without TLS",
        ),
        (MAIL, {"url": "https://h/"}, "url", 'belongs to type = "webhook"'),
    ],
)
def test_each_fault_names_its_key_and_a_remedy(read, base, changes, key, words):
    with pytest.raises(ConfigError) as raised:
        read({**base, **changes})
    assert any(fault.startswith(f"alerts[0].{key}: ") and words in fault for fault in raised.value.faults)
    assert all("; " in fault for fault in raised.value.faults)


def test_two_alerts_have_two_names(read):
    with pytest.raises(ConfigError, match=r"alerts\[1\].name: \"hook\" is the name of alerts\[0\] too"):
        read(HOOK, HOOK)


def test_plain_http_and_plain_smtp_reach_this_machine_without_a_tls_section(read):
    read({**HOOK, "url": "http://127.0.0.1:8080/x", "tls": "gone"})
    read({**MAIL, "host": "localhost", "security": "none", "tls": "gone"})


def test_shown_configuration_hides_the_path_of_a_webhook(read):
    text = format_as_toml(read({**HOOK, "url": "https://localhost/token?key=1"}))
    assert 'url = "https://localhost/***"' in text
