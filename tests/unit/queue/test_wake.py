"""Wake-ups of destinations: one job each, that RQ can run, and that names no patient."""

from collections.abc import Iterator

import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from ingest.queue.wakeups import FORWARD_QUEUE, WakeUps, drain_key, job_id_prefix, send_wake_up
from tests.support.servers import Valkey


@pytest.fixture
def client(redis_server: Valkey) -> Iterator[redis.Redis]:
    opened = redis_server.client()
    yield opened
    opened.close()


def jobs(client: redis.Redis) -> list[Job]:
    return Queue(FORWARD_QUEUE, connection=client, serializer=JSONSerializer).jobs


def test_woken_destination_has_one_job_however_often_it_is_woken(client: redis.Redis) -> None:
    waker = WakeUps(client)
    assert [waker.send("pacs") for _ in range(5)] == [True, False, False, False, False]
    [job] = jobs(client)
    assert (job.func_name, job.args) == ("workers.forward.drain", ["pacs"])
    assert job.id.startswith("drain-pacs-")
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (-1, 0, 60)
    assert 0 < client.ttl(f"rq:job:{job.id}") <= 60


def test_destination_that_began_to_drain_can_be_woken_again(client: redis.Redis) -> None:
    send_wake_up(client, "pacs")
    client.delete(drain_key("pacs"))
    assert send_wake_up(client, "pacs")
    assert len({job.id for job in jobs(client)}) == 2


def test_destinations_are_woken_apart_and_any_name_of_the_configuration_will_do(client: redis.Redis) -> None:
    assert send_wake_up(client, "a.b-c_d")
    assert send_wake_up(client, "a_b-c_d")
    assert [job.args for job in jobs(client)] == [["a.b-c_d"], ["a_b-c_d"]]


def test_ids_tell_apart_destinations_whose_names_look_alike(client: redis.Redis) -> None:
    names = ["a.b", "a_b", "a-b", "a b"]
    assert len({job_id_prefix(name) for name in names}) == len(names)
    for name in names:
        send_wake_up(client, name)
    assert [job.id.rpartition("-")[0] for job in jobs(client)] == [job_id_prefix(name) for name in names]


def test_lost_wake_up_is_forgotten_after_a_while(client: redis.Redis) -> None:
    send_wake_up(client, "pacs")
    assert 0 < client.pttl(drain_key("pacs")) <= 30_000


def test_job_that_could_not_be_queued_leaves_the_destination_to_be_woken(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise redis.ConnectionError("gone")

    waker = WakeUps(client)
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "enqueue_call", failing)
        with pytest.raises(redis.ConnectionError):
            waker.send("pacs")
    assert waker.send("pacs")
