"""docs/reference/conformance.md says what the code does."""

import re

from tests.support.conformance import PAGE, TABLES, made


def test_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert made(page) == page, "write them anew: python -m tests.support.conformance"


def test_every_table_is_there_once() -> None:
    assert sorted(re.findall(r"<!-- table: (\w+) -->", PAGE.read_text())) == sorted(TABLES)
