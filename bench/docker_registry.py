"""Debian's docker-registry on loopback, for the benchmark and for tests."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LISTENING = "listening on "


@contextmanager
def docker_registry(directory: Path, config_file: Path, **sections: Any) -> Iterator[str]:
    """Start docker-registry on a free port, and yield its ``HOST:PORT``.

    Its blobs are stored in ``directory``; ``sections`` are added to its configuration, which is
    written to ``config_file``.
    """
    config = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory)}, "delete": {"enabled": True}},
        **sections,
    }
    config["http"] = {"addr": "127.0.0.1:0", "secret": "s", **sections.get("http", {})}
    config_file.write_text(json.dumps(config))
    process = subprocess.Popen(
        ["docker-registry", "serve", config_file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    try:
        line = next((line for line in process.stderr if _LISTENING in line), "")
        assert line, f"docker-registry exited with status {process.wait()}"
        # It blocks when nobody reads its log.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        # msg="listening on 127.0.0.1:43210", or msg="listening on 127.0.0.1:43210, tls"
        address = line.partition(_LISTENING)[2].partition('"')[0].partition(",")[0]
        yield f"127.0.0.1:{address.strip().rpartition(':')[2]}"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
