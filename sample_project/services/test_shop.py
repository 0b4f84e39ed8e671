"""The shop on a network that fails: an order is made once, or not at all."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

# They change the network, which belongs to the process of pytest, so they run outside.
pytestmark = [pytest.mark.no_sandbox, pytest.mark.usefixtures("database", "cache")]

opener = build_opener(ProxyHandler({}))


def ask(api, path, method="GET", body=None):
    request = Request(f"{api.url}{path}", data=body, method=method)
    with opener.open(request, timeout=120) as answer:
        return answer.read().decode()


def order(api, number=None):
    return ask(api, f"/orders/{number or uuid.uuid4()}", "PUT", b"cup")


def test_an_order_reduces_the_stock(api):
    assert ask(api, "/stock/cup") == "10"
    assert order(api) == "ordered"
    assert ask(api, "/stock/cup") == "9"


def test_an_order_survives_a_partition(api, network):
    with ThreadPoolExecutor() as pool:
        with network.cut("api", "db"):
            answer = pool.submit(order, api)
            api.container.wait_for(log="trying again", timeout=60)
            assert not answer.done()
        assert answer.result() == "ordered"
    assert ask(api, "/stock/cup") == "9"


def test_a_broken_connection_is_replaced(api, network):
    order(api)
    with network.fault("db", reset=True):
        assert order(api) == "ordered"
    assert network.counters["db"].reset > 0
    assert ask(api, "/stock/cup") == "8"


def test_an_order_that_is_sent_twice_is_made_once(api, network):
    number = uuid.uuid4()
    with network.fault("api", "db", loss=0.2, seed=7):
        for _ in range(3):
            order(api, number)
    assert network.counters["api-db"].lost > 0
    assert ask(api, "/stock/cup") == "9"


def test_the_shop_works_without_its_cache(api, network):
    with network.cut("api", "cache"):
        order(api)
        assert ask(api, "/stock/cup") == "9"
    assert network.counters["api-cache"].lost > 0


def test_a_slow_database_is_waited_for(api, network):
    with network.fault("db", latency="200ms", jitter="20ms", seed=1):
        assert order(api) == "ordered"
    assert network.counters["db"].delayed > 0


def test_a_lost_database_is_reported(impatient_api, network):
    with network.cut("api", "db"), pytest.raises(HTTPError) as info:
        order(impatient_api)
    assert info.value.code == 503
    assert "the database does not answer" in info.value.read().decode()
    assert ask(impatient_api, "/stock/cup") == "10"
