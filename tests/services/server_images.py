"""Images with servers of this host, which start as those of Docker's registry do."""

from __future__ import annotations

import glob
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tarballs import Made

from pytest_sandbox import Image

#: As docker-entrypoint.sh of the image postgres: root gives the directory to the server's user,
#: whose first start creates the database.
POSTGRES_ENTRYPOINT = """#!/bin/sh
set -e
if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown postgres "$PGDATA"
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "$POSTGRES_PASSWORD" ]; then
        echo "Error: Database is uninitialized and superuser password is not specified." >&2
        exit 1
    fi
    initdb -U postgres -A trust -E UTF8 --locale=C --no-sync >&2
    echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
fi
exec "$@" -c unix_socket_directories=/tmp
"""
#: As docker-entrypoint.sh of the image redis: options are those of redis-server, which runs as its
#: own user, which gets the files.
REDIS_ENTRYPOINT = """#!/bin/sh
set -e
case "$1" in -*|*.conf) set -- redis-server "$@";; esac
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    chown redis .
    exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"
fi
exec "$@"
"""
_TOOLS = ("dash", "mkdir", "chown", "chmod", "id", "setpriv")


def libraries(program):
    """Return the paths of the shared libraries of a program."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", done.stdout)


def postgres_image(directory, **config):
    """Return an image with this host's PostgreSQL; ``config`` is added to its configuration."""
    programs = max(glob.glob("/usr/lib/postgresql/*/bin"))
    version = Path(programs).parent.name
    found = {shutil.which(tool) for tool in _TOOLS}
    found |= {f"{programs}/{name}" for name in ("postgres", "initdb", "pg_isready")}
    needed = {lib for one in found for lib in libraries(one)}
    trees = (f"/usr/lib/postgresql/{version}/lib", f"/usr/share/postgresql/{version}")
    files = [*found, *needed, *(str(one) for tree in trees for one in Path(tree).rglob("*"))]
    files += ["/usr/share/zoneinfo/UTC", "/usr/share/zoneinfo/Etc/UTC"]
    settings = {
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["postgres"],
        "Env": [
            f"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{programs}",
            "LANG=en_US.utf8",
            "PGDATA=/var/lib/postgresql/data",
        ],
        "ExposedPorts": {"5432/tcp": {}},
        "StopSignal": "SIGINT",
        "Volumes": {"/var/lib/postgresql/data": {}},
        **config,
    }
    layer = _layer(files, POSTGRES_ENTRYPOINT, "postgres", "var/lib/postgresql/data")
    return Image.load(_made(layer, settings).write(directory))


def made_redis(**config):
    """Return an image, not stored, with this host's Redis; ``config`` is added to its
    configuration.
    """
    programs = {"redis-server", "redis-cli"}
    found = {shutil.which(tool) for tool in (*_TOOLS, *programs)}
    needed = {lib for one in found for lib in libraries(one)}
    settings = {
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["redis-server"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"6379/tcp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/data",
        **config,
    }
    return _made(_layer([*found, *needed], REDIS_ENTRYPOINT, "redis", "data"), settings)


def _made(layer, settings):
    return Made(
        [layer],
        settings,
        media="application/vnd.oci.image.layer.v1.tar",
        compress=lambda data: data,
    )


def _layer(files, entrypoint, user, data):
    """Return a layer with files of this host, an entry point, a user 999 and its directory."""
    passwd = f"root:x:0:0::/root:/bin/sh\n{user}:x:999:999::/{data}:/bin/sh\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for name, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
            _add(tar, name, kind=tarfile.SYMTYPE, linkname=target)
        for path in sorted({_below_usr(one) for one in files if os.path.isfile(one)}):
            tar.add(path if os.path.exists(path) else path.removeprefix("/usr"), path)
        _add(tar, "usr/bin/sh", kind=tarfile.SYMTYPE, linkname="dash")
        _add(tar, "usr/local/bin/docker-entrypoint.sh", entrypoint, mode=0o755)
        _add(tar, "etc/passwd", passwd)
        _add(tar, "etc/group", f"root:x:0:\n{user}:x:999:\n")
        _add(tar, data, kind=tarfile.DIRTYPE, mode=0o755)
        _add(tar, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
    return buffer.getvalue()


def _below_usr(path):
    """Return the path in a root file system whose /bin and /lib are links."""
    return path if path.startswith("/usr/") else f"/usr{path}"


def _add(tar, name, text="", *, kind=tarfile.REGTYPE, mode=0o644, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, linkname
    info.size = len(text)
    tar.addfile(info, io.BytesIO(text.encode()))
