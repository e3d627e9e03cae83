"""Redis stopped for half a minute under load: receiving goes on, and the queue catches up by itself."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.nodes import Node, eventually
from tests.support.senders import Modality, kept_whole, nothing_half_there
from tests.support.servers import valkey

AWAY_SECONDS = 30.0


@pytest.mark.slow
@pytest.mark.parametrize("carrier", ["spool", "redis"])
def test_receiving_goes_on_without_redis_and_the_queue_catches_up(
    carrier: str, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    with valkey() as server:
        node = make_node(queue=f'[queue]\nurl = "{server.url}"\ncarrier = "{carrier}"').start()
        with Modality(node, tmp_path / "sender", associations=2, pause=0.005) as modality:
            modality.until(50)
            server.kill()
            begun = time.monotonic()
            while time.monotonic() - begun < AWAY_SECONDS:
                modality.until(20)
            server.start()
            modality.until(50)
            modality.stop()
            eventually(lambda: kept_whole(node, modality.acknowledged), 60, "the queue catches up")
        assert modality.other == []
        eventually(lambda: node.spooled() == [], 20, "the spool is empty")
        nothing_half_there(node, modality)
        assert node.stop() == 0
