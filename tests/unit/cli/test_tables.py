"""Tables for people: nothing is cut, nothing acts on the terminal."""

import io

import pytest

from ingest.cli._tables import escape_controls, format_local_time, lay_out_table, print_table, wrap_words

UID = "1.2.826.0.1.3680043.8.498." + "1234567890" * 3 + "12345678"


def test_identifiers_are_whole_however_narrow_the_terminal_is() -> None:
    rows = [("1", UID, "CT1"), ("2", UID[:-1] + "9", "MR1")]
    for width in (None, 20, 80, 120, 200):
        text = "\n".join(lay_out_table(("id", "SOP instance", "from"), rows, width))
        assert all(row[1] in text for row in rows), width


def test_a_sentence_breaks_between_words_below_itself() -> None:
    problem = "archive: its circuit is open, 1 waits"
    assert lay_out_table(("problem", "study"), [(problem, UID)], 40) == [
        "problem    archive: its circuit is open,",
        "           1 waits",
        f"  study    {UID}",
    ]
    assert wrap_words(f"remedy: {UID} is late", 40) == ["remedy:", f"  {UID}", "  is late"]
    assert wrap_words(problem * 9, None) == [problem * 9]


def test_a_row_is_one_line_where_the_output_is_no_terminal() -> None:
    rows = [(UID, "a note " * 40, UID)]
    heading, line = lay_out_table(("study", "note", "instance"), rows, None)
    assert heading.split() == ["study", "note", "instance"]
    assert line.count(UID) == 2
    assert not set("│┃┏╇") & set(heading + line)


def test_columns_stand_below_each_other_also_with_wide_characters() -> None:
    heading, *rest = lay_out_table(("name", "x"), [("山田", "1"), ("abcd", "2")], 40)
    assert heading == "name  x"
    assert rest == ["山田  1", "abcd  2"]


def test_a_row_that_is_wider_than_the_terminal_becomes_a_block() -> None:
    block = lay_out_table(("id", "study", "note"), [("7", UID, ""), ("8", UID, "late")], 40)
    assert block == [
        "id       7",
        f"  study  {UID}",
        "id       8",
        f"  study  {UID}",
        "  note   late",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb\tc\0", "a\\x0d\\x0ab\\x09c\\x00"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eevil", "\\u202eevil"),
        ("José 山田 [bold]", "José 山田 [bold]"),
    ],
)
def test_what_could_act_on_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert escape_controls(text) == shown
    assert lay_out_table(("a",), [(text,)], 80) == ["a", shown]


def test_times_are_short_local_and_say_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Brussels")
    import time

    time.tzset()
    try:
        assert format_local_time(1_764_500_000_000) == "2025-11-30 11:53:20 CET"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert format_local_time(0) == format_local_time(None) == ""


def test_nothing_is_taken_for_markup() -> None:
    output = io.StringIO()
    print_table(("a",), [("[bold]x[/bold] :smile:",)], title="[red]t[/red]", file=output)
    assert output.getvalue() == "[red]t[/red]\na\n[bold]x[/bold] :smile:\n"
