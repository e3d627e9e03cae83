"""Overrides from the environment."""

import pytest

from ingest.config.reader import load_config
from ingest.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    def read(text="", **environ):
        file = tmp_path / "ingest.toml"
        file.write_text(text)
        return load_config(file, environ=environ)

    return read


def test_values_are_those_of_toml(read):
    config = read(
        INGEST_RECEIVE__PROCESSES="2",
        INGEST_RECEIVE__QUARANTINE="false",
        INGEST_NODE__DRAIN_SECONDS="1.5",
        INGEST_RECEIVE__TRANSFER_SYNTAXES='["1.2.*", "1.3"]',
        INGEST_NODE__AE_TITLE='"QUOTED"',
    )
    assert config.receive.processes == 2
    assert config.receive.quarantine is False
    assert config.node.drain_seconds == 1.5
    assert config.receive.transfer_syntaxes == ("1.2.*", "1.3")
    assert config.node.ae_title == "QUOTED"


@pytest.mark.parametrize("title", ["STORE1", "123", "true", "1979-05-27", "A B", "[x]"])
def test_text_needs_no_quotes_even_where_toml_sees_something_else(read, title):
    assert read(INGEST_NODE__AE_TITLE=title).node.ae_title == title


def test_one_bare_word_is_a_list_of_one(read):
    assert read(INGEST_RECEIVE__TRANSFER_SYNTAXES="*").receive.transfer_syntaxes == ("*",)


def test_override_wins_over_the_file(read):
    assert read('[node]\nae_title = "FILE"\n', INGEST_NODE__AE_TITLE="ENV").node.ae_title == "ENV"


def test_lists_of_tables_go_by_index(read):
    text = "[[listeners]]\ntls = false\n[[listeners]]\nport = 1\ntls = false\n"
    config = read(text, INGEST_LISTENERS__1__PORT="3000", INGEST_LISTENERS__0__HOST="127.0.0.1")
    assert [(x.host, x.port) for x in config.listeners] == [("127.0.0.1", 2762), ("0.0.0.0", 3000)]


def test_tls_false_is_false_and_a_name_is_a_name(read):
    assert read("[[listeners]]\n", INGEST_LISTENERS__0__TLS="false").listeners[0].tls is False
    config = read(
        "[[listeners]]\ntls = false\n[tls.x]\npeer_certificate = 'none'\n", INGEST_TLS__X__CIPHERS=""
    )
    assert config.tls["x"].ciphers == ""


def test_name_of_a_tls_section_keeps_its_case_and_hyphens(read, tmp_path):
    (tmp_path / "t.crt").write_text("-")
    config = read("[tls.My-Node]\n", INGEST_TLS__MY_NODE__TRUSTED="t.crt")
    assert config.tls["My-Node"].trusted == (tmp_path / "t.crt",)


def test_paths_start_at_the_file_too(read, tmp_path):
    assert read(INGEST_NODE__DATA_DIR="d").data_dir == tmp_path / "d"


def test_variables_without_a_section_are_not_ours(read):
    assert read(INGEST_CONFIG="x", INGEST_HOME="y", OTHER__KEY="z") == read()


BAD = [
    (
        "INGEST_RECEIVE__PROCESSES",
        "many",
        "receive.processes (from INGEST_RECEIVE__PROCESSES)",
        "whole number",
    ),
    ("INGEST_NODE__AE_TITEL", "X", "node.ae_titel (from INGEST_NODE__AE_TITEL)", "did you mean ae_title"),
    ("INGEST_NOED__AE_TITLE", "X", "noed", "did you mean node"),
    ("INGEST_LISTENERS__1__PORT", "1", "INGEST_LISTENERS__1__PORT", "names no place"),
    ("INGEST_LISTENERS__X__PORT", "1", "INGEST_LISTENERS__X__PORT", "names no place"),
    ("INGEST_NODE__AE_TITLE__X", "1", "INGEST_NODE__AE_TITLE__X", "names no place"),
    ("INGEST___AE", "1", "INGEST___AE", "names no place"),
    ("INGEST_NODE__", "1", "INGEST_NODE__", "names no place"),
    ("INGEST_NODE__NAME", "H\udcf4pital", "INGEST_NODE__NAME", "not UTF-8"),
    ("INGEST_QUEUE__URL", "http://h", "queue.url (from INGEST_QUEUE__URL)", "scheme"),
]


@pytest.mark.parametrize(("variable", "value", "key", "words"), BAD, ids=[v for v, *_ in BAD])
def test_fault_names_the_variable(read, variable, value, key, words):
    with pytest.raises(ConfigError) as caught:
        read('[node]\nae_title = "A"\n[[listeners]]\ntls = false\n', **{variable: value})
    (line,) = caught.value.faults
    assert line.startswith(f"{key}: ")
    assert words in line


def test_value_cannot_bring_a_second_key(read):
    with pytest.raises(ConfigError, match=r"receive\.processes"):
        read(INGEST_RECEIVE__PROCESSES="1\nquarantine = false")
