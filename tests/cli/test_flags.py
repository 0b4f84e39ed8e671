"""``pytest-sandbox run``: each flag has its effect."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from command_line import COMMAND, output_of, sandbox
from terminals import wait_for

from pytest_sandbox.container import remote

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("containers")
root = pytest.mark.needs("root")


def run(*args: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return sandbox("run", *args, **keywords)


def printed(*args: str, **keywords: object) -> str:
    return output_of("run", *args, **keywords)


def test_variables(tmp_path: Path):
    """-e overrides --env-file, and a name alone has the value of this process, if there is one."""
    (tmp_path / "env").write_text("# comment\n\nA=file\nB=file two\nFROM_US\nNOT_THERE\n")
    environment = {**os.environ, "FROM_US": "ours", "ALSO": "too"}
    environment.pop("NOT_THERE", None)
    script = "echo $A,$B,$FROM_US,$ALSO,${NOT_THERE-unset}"
    flags = ("-e", "A=flag", "-e", "ALSO", "--env-file", str(tmp_path / "env"))
    assert "flag,file two,ours,too,unset\n" == printed(
        *flags, "host", "sh", "-c", script, env=environment
    )


def test_volumes(tmp_path: Path):
    """-v mounts a host directory inside, and with :ro read-only."""
    (tmp_path / "in").write_text("seen")
    assert "seen" == printed(
        "-v", f"{tmp_path}:/data", "host", "sh", "-c", "cat /data/in; echo written > /data/out"
    )
    assert "written\n" == (tmp_path / "out").read_text()
    assert 0 != run("-v", f"{tmp_path}:/data:ro", "host", "touch", "/data/more").returncode


@pytest.mark.parametrize("option", ["z", "Z", "cached", "delegated", "consistent", "ro,z"])
def test_docker_s_other_options_of_volumes(tmp_path: Path, option):
    """-v accepts docker's options for SELinux and Docker Desktop, which have no effect."""
    (tmp_path / "in").write_text("seen")
    assert "seen" == printed("-v", f"{tmp_path}:/data:{option}", "host", "cat", "/data/in")


def test_mounts(tmp_path: Path):
    """--mount type=bind is the same as --volume, and other types and fields are refused."""
    (tmp_path / "in").write_text("read")
    for form in ("type=bind,source={},target=/x,readonly", "type=bind,src={},dst=/x,ro=true"):
        assert "read\n" == printed(
            "--mount",
            form.format(tmp_path),
            "host",
            "sh",
            "-c",
            "cat /x/in; touch /x/out 2>&- ; echo",
        )
    assert ["in"] == os.listdir(tmp_path)
    printed("--mount", f"type=bind,destination=/x,source={tmp_path}", "host", "touch", "/x/out")
    assert ["in", "out"] == sorted(os.listdir(tmp_path))
    for wrong in (
        "type=tmpfs,target=",
        "type=tmpfs,target=/x,source=/y",
        "type=volume,source=data,target=/x",
        "target=/x",
        "type=bind,source=/,target=",
        "type=bind,source=/,target=/x,mode=7",
        "/a:/b",
    ):
        refused = run("--mount", wrong, "host", "true")
        assert (125, True) == (refused.returncode, f"{wrong!r} is not valid" in refused.stderr)


def test_tmpfs():
    """--tmpfs and --mount type=tmpfs mount file systems in memory, which are not in the layer."""
    script = "stat -fc %T /mem; stat -c %a /mem; echo x > /mem/f; stat -c %a /two; df -k /two"
    lines = printed(
        "--tmpfs",
        "/mem/:size=1m,mode=700",
        "--mount",
        "type=tmpfs,target=/two,tmpfs-size=2m,tmpfs-mode=755",
        "host",
        "sh",
        "-c",
        script,
    ).splitlines()
    assert ["tmpfs", "700", "755"] == lines[:3]
    assert "2048" == lines[-1].split()[1]
    full = run("--tmpfs", "/mem:size=1m", "host", "dd", "if=/dev/zero", "of=/mem/f", "bs=2M")
    assert "No space left on device" in full.stderr
    for flags, status in (((), 1), (("exec",), 0)):
        options = ",".join(["mode=755", *flags])
        done = run(
            "--tmpfs", f"/m:{options}", "host", "sh", "-c", "cp /bin/true /m; /m/true || exit 1"
        )
        assert status == done.returncode


def test_tmpfs_and_volumes_are_mounted_in_order(tmp_path: Path):
    """An outer mount never covers an inner one, whichever kind they are."""
    (tmp_path / "in").write_text("seen")
    (tmp_path / "cache").mkdir()
    assert "seen\n" == printed(
        "-v", f"{tmp_path}:/a/b", "--tmpfs", "/a", "host", "sh", "-c", "cat /a/b/in; echo"
    )
    printed("-v", f"{tmp_path}:/a", "--tmpfs", "/a/cache", "host", "touch", "/a/cache/x")
    assert [] == os.listdir(tmp_path / "cache")


def test_a_read_only_tmpfs():
    """The option ro makes it read-only; the same path as a volume is refused."""
    assert 0 != run("--tmpfs", "/m:ro", "host", "touch", "/m/x").returncode
    assert "x\n" == printed("--read-only", "--tmpfs", "/m", "host", "sh", "-c", "echo x | tee /m/x")
    refused = run("--tmpfs", "/m", "-v", "/etc:/m", "host", "true")
    assert (125, True) == (refused.returncode, "--tmpfs '/m' is not valid" in refused.stderr)


def test_extra_hosts():
    """--add-host adds a name to /etc/hosts."""
    flags = ("--add-host", "db.example:10.0.0.5", "--add-host", "six=::5", "-h", "own")
    hosts = printed(*flags, "host", "cat", "/etc/hosts")
    assert "10.0.0.5\tdb.example\n::5\tsix\n127.0.1.1\town\n" in hosts
    refused = run("--add-host", "db", "host", "true")
    assert (125, True) == (refused.returncode, "--add-host 'db' is not valid" in refused.stderr)


def test_an_unknown_flag_suggests_the_nearest():
    """A misspelt flag is an error with docker's words, whatever follows it."""
    done = run("--memroy", "64m", "host", "true")
    assert (125, "") == (done.returncode, done.stdout)
    assert "unknown flag: --memroy; did you mean --memory?" in done.stderr
    assert "unknown shorthand flag: 'y' in -y" in run("-y", "host", "true").stderr


def test_init_is_accepted():
    """--init has no effect."""
    assert "hi\n" == printed("--init", "host", "echo", "hi")


def test_other_files_are_discarded(tmp_path: Path):
    """Files that the command writes outside of volumes are discarded with the container."""
    assert "x\n" == printed("host", "sh", "-c", f"echo x > {tmp_path}/gone; cat {tmp_path}/gone")
    assert [] == list(tmp_path.iterdir())


@root
def test_user_directory_and_host_name():
    """-u, -w and -h set the user, the directory, which is created if missing, and the host name."""
    assert "1000:2000 /made/here box\n" == printed(
        "-u",
        "1000:2000",
        "-w",
        "/made/here",
        "-h",
        "box",
        "host",
        "sh",
        "-c",
        "echo $(id -u):$(id -g) $(pwd) $(hostname)",
    )


@root
def test_network():
    """--network none has only loopback, and --network host has the host's interfaces."""
    ours = sorted(os.listdir("/sys/class/net"))
    assert "lo\n" == printed("host", "ls", "/sys/class/net")
    assert ours == printed("--network", "host", "host", "ls", "/sys/class/net").split()


def test_device_rates():
    """The four --device flags refuse a file that is not a block device, and a missing rate."""
    refused = run("--device-write-iops", "/etc/passwd:10", "host", "true")
    assert (125, True) == (
        refused.returncode,
        "--device-write-iops '/etc/passwd' is not valid; accepted: a block device"
        in refused.stderr,
    )
    wrong = [
        run(f"--device-{name}", "/dev/sda", "host", "true")
        for name in ("read-bps", "write-bps", "read-iops", "write-iops")
    ]
    assert [125] * 4 == [done.returncode for done in wrong]
    assert [] == [done.stderr for done in wrong if "PATH:RATE" not in done.stderr]


@pytest.mark.needs("limits")
def test_limits():
    """-m, --cpus and --pids-limit set the limits of the cgroup."""
    name = uuid.uuid4().hex
    command = [
        *(*COMMAND, "run", "--name", name),
        *("-m", "64m", "--cpus", "1.5", "--pids-limit", "50"),
        *("host", "sleep", "1000"),
    ]
    with subprocess.Popen(command) as process:
        try:
            (one,) = wait_for(
                lambda: [one for one in remote.list_containers(stats=True) if one.label == name]
            )
            assert (64 << 20, 1.5, 50) == (
                one.settings.memory,
                one.settings.cpus,
                one.settings.pids_limit,
            )
            assert 64 << 20 == one.stats.memory_limit
        finally:
            process.kill()


@pytest.mark.needs("memory")
def test_a_kill_for_memory():
    """A command that exceeds -m ends with the status 137 and a message."""
    done = run("-m", "20m", "host", sys.executable, "-c", "x = b'x' * 200_000_000")
    assert (137, True) == (done.returncode, "killed for memory" in done.stderr)


def test_a_timeout():
    """A command that exceeds --timeout ends with the status 137 and a message."""
    done = run("--timeout", "0.3", "host", "sh", "-c", "sleep 1000 & sleep 1000")
    assert (137, True) == (done.returncode, "longer than --timeout 0.3 seconds" in done.stderr)


def test_ulimits_and_shm():
    """--ulimit and --shm-size limit the command."""
    script = "ulimit -Sn; ulimit -Hn; df -k /dev/shm | tail -1 | awk '{print $2}'"
    assert "64\n128\n2048\n" == printed(
        "--ulimit", "nofile=64:128", "--shm-size", "2m", "host", "sh", "-c", script
    )


@root
def test_capabilities():
    """--cap-drop removes capabilities, and --cap-add adds one."""
    effective = "grep CapEff /proc/self/status | cut -f2"
    assert "0000000000000000\n" == printed("--cap-drop", "ALL", "host", "sh", "-c", effective)
    assert 1 << 25 == int(
        printed("--cap-drop", "ALL", "--cap-add", "SYS_TIME", "host", "sh", "-c", effective), 16
    )


@root
def test_security_options_and_privileged():
    """--security-opt and --privileged turn protections off."""
    script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 | tr '\\n' ' '"
    assert "1 2 " == printed("host", "sh", "-c", script)
    assert "1 0 " == printed("--security-opt", "seccomp=unconfined", "host", "sh", "-c", script)
    assert "0 0 " == printed("--privileged", "host", "sh", "-c", script)


def test_read_only():
    """With --read-only no file can be written."""
    assert 0 != run("--read-only", "host", "touch", "/etc/x").returncode


def test_disk():
    """A write beyond --disk fails with ENOSPC."""
    assert (
        "No space left"
        in run(
            "--disk", "1m", "host", "dd", "if=/dev/zero", "of=/etc/big", "bs=1M", "count=2"
        ).stderr
    )


def test_rm_is_accepted():
    """--rm has no effect."""
    assert "hi\n" == printed("--rm", "host", "echo", "hi")


def test_options_of_the_command():
    """Arguments after the image belong to the command, also if a flag has the same name."""
    assert "-m --rm -- -it\n" == printed("host", "echo", "-m", "--rm", "--", "-it")
    assert "x\n" == printed("--", "host", "echo", "x")


def test_an_entrypoint():
    """--entrypoint precedes the command."""
    assert "a b\n" == printed("--entrypoint", "/bin/echo", "host", "a", "b")
