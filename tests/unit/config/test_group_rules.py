"""Rules of `[[groups]]`, and of routes that name groups."""

from pathlib import Path

import pytest

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.errors import ConfigError

DESTINATIONS = "".join(
    f'[[destinations]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "h"\ntls = false\n{more}'
    for name, more in (("a", "commitment = true\n"), ("b", ""))
)
PEER = '[[peers]]\nae_title = "A"\ndestination = "a"\n'


def read(tmp_path: Path, groups: str) -> Config:
    path = tmp_path / "ingest.toml"
    path.write_text(DESTINATIONS + PEER + groups)
    return load_config(path, environ={})


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ('name = "g"\nmembers = ["a", "x"]', 'groups[0].members[1]: there is no destination "x"'),
        ('name = "g"\nmembers = []', "groups[0].members: is empty"),
        ('name = "g"\nmembers = ["a", "b", "a"]', 'groups[0].members: names "a" 2 times'),
        ('name = "a"\nmembers = ["b"]', 'groups[0].name: "a" is the name of a destination too'),
        (
            'name = "g"\nmembers = ["a"]\npolicy = "sticky"\nweights = { x = 2 }',
            "groups[0].weights.x: is the weight of no member",
        ),
        ('name = "g"\nmembers = ["a"]\nweights = { a = 2 }', "groups[0].weights: has no effect"),
        ('name = "g"\nmembers = ["a"]\nsticky_by = "patient"', "groups[0].sticky_by: has no effect"),
        (
            'name = "g"\nmembers = ["a"]\npolicy = "sticky"\nsticky_by = "patient"\n[ledger]\nindex = "none"',
            "the ledger knows no patients",
        ),
        (
            'name = "g"\nmembers = ["a"]\n[[groups]]\nname = "h"\nmembers = ["g"]',
            'groups[1].members[0]: "g" is a group, and groups have no groups',
        ),
        (
            'name = "g"\nmembers = ["a"]\n[[groups]]\nname = "g"\nmembers = ["b"]',
            'groups[1].name: "g" is the name of groups[0] too',
        ),
        (
            'name = "g"\nmembers = ["a"]\n[[routes]]\nto = ["g"]\ncommitted = "delivered:b"',
            'routes[0].committed: the route does not send to "b"',
        ),
        (
            'name = "g"\nmembers = ["a", "b"]\n[[routes]]\nto = ["g"]\ncommitted = "committed:g"',
            'routes[0].committed: "g" is not asked to commit',
        ),
        ('name = "g"\nmembers = ["a"]\n[[routes]]\nto = ["z"]', 'there is no destination or group "z"'),
    ],
)
def test_fault_of_a_group(tmp_path: Path, groups: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[[groups]]\n{groups}\n")
    assert any(expected in fault for fault in caught.value.faults), caught.value.faults
    assert len(caught.value.faults) == 1


def test_route_may_name_a_group_and_await_a_member(tmp_path: Path) -> None:
    routes = '[[routes]]\nto = ["g", "b"]\ncommitted = "committed:a"\n'
    text = f'[[groups]]\nname = "g"\nmembers = ["b", "a"]\n{routes}'
    config = read(tmp_path, text)
    assert config.target_names == ("a", "b", "g")
    assert config.list_groups_of("a") == ("g",)
