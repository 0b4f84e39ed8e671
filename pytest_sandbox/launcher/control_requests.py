"""The answers to what other processes of the user ask at a session's control socket.

The fields of a message are read by other versions of this library, too: they keep their names.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.linux import namespaces
from pytest_sandbox.runtime.protocol import ErrorCode

if TYPE_CHECKING:
    from pytest_sandbox.launcher.factory import ContainerRecord
    from pytest_sandbox.launcher.pool import Pool
    from pytest_sandbox.runtime.host_resources import HostResources
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["answer_request"]


def answer_request(pool: Pool, host: HostResources, message: Message) -> tuple[Message, list[int]]:
    """Return the answer to one request, and its descriptors, which the caller closes.

    Raises :class:`KeyError` for a message that is not a request.
    """
    op = message["op"]
    if op == "list":
        with_stats = bool(message.get("stats"))
        containers = [_card(record, with_stats=with_stats) for record in pool.claimed()]
        return {"op": "list", "containers": containers}, []
    try:
        record = pool.find(message["id"])
    except ContainerStopped:
        return _ended(), []
    if not record.is_claimed:
        return _ended(), []
    if op == "layer":
        return {"op": "layer", "points": record.points}, [os.dup(record.created.layer)]
    return _enter(record, host)


def _ended() -> Message:
    return {"op": "error", "code": ErrorCode.ENDED, "reason": "has ended"}


def _enter(record: ContainerRecord, host: HostResources) -> tuple[Message, list[int]]:
    """Return what another process needs to join the container."""
    user_fd = host.user_namespace_for(record.spec)
    user_namespaces = [
        os.dup(user_fd) if user_fd >= 0 else -1,
        -1 if host.is_root else namespaces.open_namespace(os.getpid(), "user"),
    ]
    answer = {
        "op": "entered",
        "about": record.metadata,
        "spec": record.spec.to_json(),
        "joins": record.cgroup.join_paths(),
        "pid": record.created.pid,
        "user_namespaces": [fd >= 0 for fd in user_namespaces],
    }
    return answer, [os.dup(record.pidfd), *(fd for fd in user_namespaces if fd >= 0)]


def _card(record: ContainerRecord, *, with_stats: bool) -> Message:
    """Return what a list shows of one container."""
    stats = None
    if with_stats:
        stats = {**asdict(record.cgroup.stats()), **record.cgroup.pressure()}
    return {
        "id": record.id,
        "pid": record.created.pid,
        "since": record.since,
        "about": record.metadata,
        "stats": stats,
        "paused": record.cgroup.is_frozen(),
    }
