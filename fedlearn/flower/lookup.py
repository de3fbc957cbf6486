"""Which node holds which client: nodes are asked, for only they know."""

import math
import time
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from ..checks import is_whole
from .wire import PAUSE, pull, push


def find_nodes(grid: Any, count: int, timeout: float | None = None) -> dict[int, int]:
    """Client 0..count-1 -> Flower's node id, by a query that ``client_app`` answers.

    Nodes may come while it waits. Who holds a client is a node's own word: register the nodes' keys
    (``flwr supernode register``), so that strangers have no say.

    Raises:
        ValueError: If two nodes hold one client, or a node doesn't know its own.
        TimeoutError: If after ``timeout`` seconds some client is missing; it says which.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    asked: set[int] = set()
    under_way: dict[str, int] = {}
    found: dict[int, int] = {}
    while True:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked |= {*new}
        under_way |= push(grid, {node: _question(node) for node in new})
        for node, m in pull(grid, under_way):
            if m.has_error() and m.metadata.src_node_id != node:  # the SuperLink's: it is gone
                asked.discard(node)
                continue
            k = _client(node, m)
            if found.setdefault(k, node) != node:
                raise ValueError(
                    f"find_nodes: a client must lie with one node, got client {k} with nodes "
                    f"{found[k]} and {node}, e.g. flower-supernode --node-config 'partition-id=1'"
                )
        if not {*range(count)} - {*found}:
            return {k: found[k] for k in range(count)}
        if time.monotonic() > end:
            lack = sorted({*range(count)} - {*found})
            raise TimeoutError(
                f"find_nodes: {count} clients must answer within {timeout:g} s, got no answer of "
                f"{lack[:9]}{' ...' * (len(lack) > 9)}; {len(asked)} nodes were asked, e.g. start "
                f"flower-supernode --node-config 'partition-id={lack[0]}'"
            )
        time.sleep(PAUSE)


def _question(node: int) -> Message:
    content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
    return Message(content=content, message_type="query", dst_node_id=node)


def _client(node: int, m: Message) -> int:
    """The number in a node's answer; ValueError if there is none."""
    record = None if m.has_error() else m.content.get("client")
    k = record.get("partition-id") if isinstance(record, ConfigRecord) else None
    if not is_whole(k, 0):
        why = m.error.reason if m.has_error() else f"partition-id {k!r:.40}"
        raise ValueError(
            f"find_nodes: a node must say which client it holds, an integer >= 0, got {why:.300} "
            f"of node {node}, e.g. flower-supernode --node-config 'partition-id=0'"
        )
    return int(k)  # type: ignore[arg-type]
