"""A host with an internet of its own: two network namespaces, without the real one.

``run`` executes a program in a user, mount and network namespace that stand for the host. Its only
connection is a veth pair to a second network namespace, "the internet", where servers listen.
hosts(5) of that host is the resolver's file.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

HOST, INTERNET = "203.0.113.1", "203.0.113.5"
#: What each server of the internet does: 443 and 5432 answer with what they got, 80 sends as many
#: bytes as the first line says; 3128 is a proxy that connects to 203.0.113.5, whatever the name is.
SERVERS = r"""
import socket, sys, threading

def echo(c):
    while data := c.recv(1 << 16):
        c.sendall(data)
    c.close()

def source(c):
    block, count = bytes(1 << 20), int(c.makefile("rb").readline())
    while count > 0:
        c.sendall(block[:count])
        count -= len(block)
    c.close()

def proxy(c):
    lines = c.makefile("rb", buffering=0)
    request = lines.readline().decode()
    header = request
    while (line := lines.readline()) not in (b"\r\n", b""):
        header += line.decode()
    print(header.replace("\r\n", "|"), file=open("/mnt/proxy-requests", "a"), flush=True)
    target = request.split()[1]
    if "refused" in target:
        c.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        c.close()
        return
    other = socket.create_connection(("203.0.113.5", int(target.rpartition(":")[2])))
    c.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    def back():
        while data := other.recv(1 << 16):
            c.sendall(data)
        c.shutdown(socket.SHUT_WR)
    threading.Thread(target=back, daemon=True).start()
    while data := c.recv(1 << 16):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)

def serve(port, handle):
    one = socket.create_server(("203.0.113.5", port))
    while True:
        threading.Thread(target=handle, args=(one.accept()[0],), daemon=True).start()

for port, handle in ((443, echo), (5432, echo), (80, source), (3128, proxy)):
    threading.Thread(target=serve, args=(port, handle), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
_PRELUDE = r"""
import atexit, os, socket, subprocess, sys, threading
def ip(*args): subprocess.run(["ip", *args], check=True)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
open("/mnt/hosts", "w").write(
    "127.0.0.1 localhost\n203.0.113.5 pypi.test files.example.test other.test\n"
    "127.0.0.1 loop.test\n203.0.113.1 own.test\n169.254.169.254 metadata.test\n"
    "203.0.113.77 silent.test\n"
)
open("/mnt/resolv.conf", "w").write("nameserver 203.0.113.99\noptions timeout:1 attempts:1\n")
open("/mnt/nsswitch.conf", "w").write("hosts: files dns\npasswd: files\ngroup: files\n")
for name in ("hosts", "resolv.conf", "nsswitch.conf"):
    subprocess.run(["mount", "--bind", f"/mnt/{name}", f"/etc/{name}"], check=True)
WAIT = '''
import sys
print("started", flush=True)
sys.stdin.readline()
exec(open("/mnt/servers").read())
'''
command = ["unshare", "-n", sys.executable, "-SEc", WAIT]
internet = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
internet.stdout.readline()
ip("link", "set", "lo", "up")
ip("link", "add", "up0", "type", "veth", "peer", "name", "host0", "netns", str(internet.pid))
ip("addr", "add", "203.0.113.1/24", "dev", "up0")
ip("link", "set", "up0", "up")
def there(*args):
    subprocess.run(["nsenter", "-t", str(internet.pid), "-n", "ip", *args], check=True)
there("link", "set", "lo", "up")
there("addr", "add", "203.0.113.5/24", "dev", "host0")
there("link", "set", "host0", "up")
open("/mnt/servers", "w").write(SERVERS)
internet.stdin.write("go\n"); internet.stdin.flush()
assert internet.stdout.readline() == "ready\n"
for name in list(os.environ):
    if name.lower().endswith("_proxy"): del os.environ[name]
from pytest_sandbox import *
def as_user(code):
    # Return what a program prints that an ordinary user runs.
    # The interpreter may be below root's home directory.
    for path in {sys.base_prefix, sys.prefix, os.getcwd()}:
        if path.startswith("/root/"):
            os.makedirs(f"/mnt/kept{path}")
            subprocess.run(["mount", "--rbind", path, f"/mnt/kept{path}"], check=True)
    if os.path.isdir("/mnt/kept"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/root"], check=True)
        for path in {sys.base_prefix, sys.prefix, os.getcwd()}:
            if path.startswith("/root/"):
                os.makedirs(path)
                subprocess.run(["mount", "--rbind", f"/mnt/kept{path}", path], check=True)
    os.chmod("/mnt", 0o755)
    os.mkdir("/mnt/home")
    os.chown("/mnt/home", 1234, 1234)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    env |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"), "/mnt/home")
    done = subprocess.run([sys.executable, "-c", code], env=env, user=1234, group=1234,
        extra_groups=[], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout
def attempts(container): return container.handle.egress.attempts()
"""


def run(program: str, *, env: dict[str, str] | None = None, timeout: float = 60) -> str:
    """Return what a program prints that runs on that host; it fails if the program does."""
    code = f"SERVERS = {SERVERS!r}\n{_PRELUDE}\n{textwrap.dedent(program)}"
    command = ["unshare", "--mount", "--net", sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
