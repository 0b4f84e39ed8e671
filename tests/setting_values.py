"""Valid and invalid values of settings, in every form."""

from __future__ import annotations

from pathlib import Path

from pytest_sandbox.settings.settings import PortMapping, Volume

M = 1 << 20

# The cases of docker's go-units (RAMInBytes), and a few more.
SIZES = {
    "32": 32, "32b": 32, "32B": 32, "32k": 32 << 10, "32K": 32 << 10, "32kb": 32 << 10,
    "32Kb": 32 << 10, "32KiB": 32 << 10, "32Mb": 32 << 20, "32Gb": 32 << 30, "32Tb": 32 << 40,
    "32Pb": 32 << 50, "32PB": 32 << 50, "32P": 32 << 50, "32.": 32, "32.b": 32, "32.3": 32,
    "32.5kB": 33280, "32.5 kB": 33280, "32.3 mb": 33869004, "0.3 K": 307, ".3kB": 307, "1 b": 1,
    "512m": 536870912, " 1g\n": 1 << 30, "0": 0,
}  # fmt: skip
NO_SIZES = [
    "", "hello", ".", ". ", " ", "  ", "-32", "-32b", "32bb", "32 m b", "32  mm", "32u", "32bm",
    "1e3", "1_000", "0x10", "inf", "nan", "32 kk", "٣k", "9999999999999p", "9" * 5000,
    None, 1.5, True, b"1m", -1, 1 << 63, ["1m"],
]  # fmt: skip

# Key -> pairs of what a user writes and the canonical value.
GOOD = {
    "image": [("host", "host"), ("debian:12", "debian:12"), (Path("/srv/root"), "/srv/root")],
    "memory": [("512m", 512 * M), (512 * M, 512 * M), ("6m", 6 * M)],
    "memory_high": [("48m", 48 * M)],
    "device_read_bps": [
        (["/dev/sda:1mb", "/dev/sdb:512"], {"/dev/sda": M, "/dev/sdb": 512}),
        ({"/dev/sda": "1.5k"}, {"/dev/sda": 1536}),
    ],
    "device_write_bps": [(["/dev/odd:name:2k"], {"/dev/odd:name": 2048})],
    "device_read_iops": [(["/dev/sda:100"], {"/dev/sda": 100})],
    "device_write_iops": [({"/dev/sda": 7}, {"/dev/sda": 7}), ([], {})],
    "cpus": [(1.5, 1.5), (2, 2.0), ("0.01", 0.01)],
    "cpuset": [("0-1", "0-1"), ("3,0-1, 1-2", "0-3"), ("5,0-1,3", "0-1,3,5"), (0, "0")],
    "pids_limit": [(256, 256), ("256", 256), (-1, None), (0, None), (None, None)],
    "disk": [("1g", 1 << 30)],
    "storage": [("disk", "disk"), ("memory", "memory")],
    "shm_size": [("128m", 128 * M)],
    "timeout": [(30, 30.0), (0.5, 0.5), ("2.5", 2.5)],
    "network": [
        ("none", "none"),
        ("host", "host"),
        ("outside", "outside"),
        ("pypi.org:443, 10.0.0.5:80", "pypi.org:443,10.0.0.5:80"),
    ],
    "publish": [
        ("5432", (PortMapping("", None, 5432),)),
        (5432, (PortMapping("", None, 5432),)),
        (
            ["8080:80", "53/udp", 53],
            (
                PortMapping("", 8080, 80),
                PortMapping("", None, 53, "udp"),
                PortMapping("", None, 53),
            ),
        ),
        ("127.0.0.1:8080:80/tcp", (PortMapping("127.0.0.1", 8080, 80),)),
        ("[::1]:8080:80", (PortMapping("::1", 8080, 80),)),
        (["127.0.0.1::80"], (PortMapping("127.0.0.1", 0, 80),)),
        (["0:80"], (PortMapping("", 0, 80),)),
        ([], ()),
    ],
    "hostname": [("db", "db"), ("a-1.example.org", "a-1.example.org"), ("a" * 63, "a" * 63)],
    "env": [
        ({"A": "1", "B": ""}, {"A": "1", "B": ""}),
        (["A=1", "B=x=y"], {"A": "1", "B": "x=y"}),
    ],
    "user": [
        ("1000:1000", "1000:1000"),
        (1000, "1000"),
        ("www-data", "www-data"),
        ("a.b:users", "a.b:users"),
    ],
    "workdir": [("/srv", "/srv"), (Path("/srv"), "/srv")],
    "volumes": [
        (
            ["./out:/out", "/data:/data/:ro"],
            (Volume("./out", "/out"), Volume("/data", "/data", read_only=True)),
        ),
        (
            ["/a:/b:z", "/c:/d:Z", "/e:/f:cached", "/g:/h:ro,delegated"],
            (
                Volume("/a", "/b"),
                Volume("/c", "/d"),
                Volume("/e", "/f"),
                Volume("/g", "/h", read_only=True),
            ),
        ),
        (
            "/a:/b:ro,z,/c:/d:consistent, /e:/f",
            (Volume("/a", "/b", read_only=True), Volume("/c", "/d"), Volume("/e", "/f")),
        ),
        ([Volume("/a", "/b")], (Volume("/a", "/b"),)),
        ("~/c:/c:rw", (Volume("~/c", "/c"),)),
    ],
    "devices": [
        (["/dev/fuse"], (Volume("/dev/fuse", "/dev/fuse"),)),
        (
            ["/dev/a:/dev/b:rwm", "/dev/c:rw", "/dev/net/tun:/dev/net//tun:rw"],
            (
                Volume("/dev/a", "/dev/b"),
                Volume("/dev/c", "/dev/c"),
                Volume("/dev/net/tun", "/dev/net/tun"),
            ),
        ),
        ([Volume("/dev/a", "/dev/b")], (Volume("/dev/a", "/dev/b"),)),
    ],
    "gpus": [("all", "all"), ("device=0, 1", "device=0,1")],
    "read_only": [(True, True), ("false", False)],
    "privileged": [("yes", True)],
    "alone": [("yes", True)],
    "artifacts": [
        (["a/**", "a/**", "{tmp_path}"], ("a/**", "{tmp_path}")),
        ("/var/log/*.log\n{tmp_path}/**", ("/var/log/*.log", "{tmp_path}/**")),
    ],
    "artifacts_limit": [("1g", 1 << 30)],
    "cap_add": [
        (["net_admin", "CAP_SYS_TIME", "NET_ADMIN"], ("CAP_NET_ADMIN", "CAP_SYS_TIME")),
    ],
    "cap_drop": [("all", ("ALL",))],
    "ulimits": [
        ({"nofile": 1024, "core": (0, -1)}, {"nofile": (1024, 1024), "core": (0, -1)}),
        (
            {"nofile": "10:20", "stack": "unlimited", "cpu": [1, "unlimited"]},
            {"nofile": (10, 20), "stack": (-1, -1), "cpu": (1, -1)},
        ),
    ],
    "security_opt": [
        (
            ["seccomp=unconfined", "no-new-privileges=false"],
            ("seccomp=unconfined", "no-new-privileges:false"),
        ),
        (["no-new-privileges:true"], ("no-new-privileges",)),
    ],
}

NO_LIMITS = ["lots", "-1", -1, 0, "0", 1.5, True, [], {}, b"6m", object()]
NO_RATES = [
    ["/dev/sda"],
    ["sda:1"],
    ["/dev/sda:"],
    ["/dev/sda:0"],
    ["/dev/sda:1"],
    ["/dev/sda:-1"],
    {"/dev/sda": 1.5},
    {"/dev/sda": True},
    {1: 1},
    ["/dev/sda:3", "/dev/sda:2"],
    [1],
    1,
    [{"/dev/sda": 1}],
]
NO_COUNTS = [*NO_RATES, ["/dev/sda:1mb"], {"/dev/sda": 1 << 32}]
NO_SWITCHES = [2, 0, 1, "maybe", "", []]
NO_CAPABILITIES = [["FLY"], [1], 1, {"CHOWN": 1}, ["CAP_ALL"]]
NAN, INFINITY = float("nan"), float("inf")
# Key -> values that are refused.
BAD = {
    "memory": [*NO_LIMITS, "5m"],
    "memory_high": ["5m", "-1"],
    "memory_swap": [-2, []],
    "disk": NO_LIMITS,
    "shm_size": NO_LIMITS,
    "device_read_bps": NO_RATES,
    "device_write_bps": NO_RATES,
    "device_read_iops": NO_COUNTS,
    "device_write_iops": NO_COUNTS,
    "cpus": [0, -1, "two", NAN, INFINITY, True, [], 0.001, 1e9],
    "cpuset": ["", "a", "1-0", "0-", "-1", "0,,1", "0-7:2/4", "99999", 1.5, [0, 1]],
    "pids_limit": [-2, "many", 1.5, True, 4_194_305, []],
    "timeout": [0, -1, "soon", NAN, INFINITY, True, []],
    "storage": ["tmpfs", "", 1, []],
    "network": ["bridge", "", "NONE", "Network", 1, True, [], {}, b"none", object()],
    "image": ["", 1, True, [], {}, b"x", object(), "a\0b"],
    "publish": [
        "http",
        "80/sctp",
        "80/",
        "0",
        ":80",
        "8080:",
        "65536",
        "65536:80",
        "8000-8010:80",
        "localhost:80:80",
        "::1:80:80",
        "[127.0.0.1]:80:80",
        "1.2.3:80:80",
        -1,
        0,
        1.5,
        ["80", "80"],
        ["80", "8080:80"],
        [b"80"],
        {"80": 80},
        True,
        [True],
        [str(port) for port in range(1, 66)],
    ],
    "hostname": ["", "-a", "a-", "a_b", "a..b", "a" * 64, "ü", 1, "a\n"],
    "env": [
        {"A": 1},
        {1: "A"},
        {"": "x"},
        {"A=B": "x"},
        {"A": "\0"},
        ["A"],
        "A",
        1,
        [1],
        {"A": None},
    ],
    "user": ["", ":", "a:b:c", "1000:", -1, 1.5, [], 2**32 - 1, str(2**32 - 1), "a b"],
    "workdir": ["", "srv", "./srv", 1, "/a\0"],
    "volumes": [
        ["out:/out"],
        ["/data"],
        ["/a:b"],
        ["/a:/b:rx"],
        ["/a:/b:ro:z"],
        ["/a:/b:ro,rw"],
        ["/a:/b:z,"],
        ["/a:/b:U"],
        ["/a:/"],
        ["/a:/b", "/c:/b/"],
        [1],
        1,
        {"/a": "/b"},
        [""],
    ],
    "devices": [
        ["fuse"],
        ["/dev/a:b"],
        ["/dev/a:/dev/b:r"],
        ["/dev/a:w"],
        ["/dev/a:/dev/b:rw:rw"],
        ["/dev/a:"],
        ["/dev/a", "/dev/b:/dev/a"],
        [1],
        1,
    ],
    "gpus": ["", "none of them", "device=", "device=a", "device=0,", 1, True, ["all"]],
    "read_only": NO_SWITCHES,
    "privileged": NO_SWITCHES,
    "alone": NO_SWITCHES,
    "artifacts": [["../x"], ["a/../b"], ["a{tmp_path}"], ["{tmp_path}x"], ["/"], [""], [1], 1],
    "artifacts_limit": NO_LIMITS,
    "cap_add": NO_CAPABILITIES,
    "cap_drop": NO_CAPABILITIES,
    "ulimits": [
        {"nofiles": 1},
        {"nofile": (2, 1)},
        {"nofile": (-1, 1)},
        {"nofile": (1, 2, 3)},
        {"nofile": ()},
        {"nofile": "x"},
        {"nofile": -2},
        {"nofile": 1.5},
        {"nofile": [[1], 2]},
        {1: 1},
        ["nofile"],
        3,
    ],
    "security_opt": [
        ["apparmor=x"],
        ["seccomp=/a.json"],
        ["no-new-privileges:maybe"],
        [1],
        1,
        ["seccomp=unconfined", "seccomp=builtin"],
        ["no-new-privileges", "no-new-privileges:false"],
    ],
}

# Key -> pairs of a text and the canonical value.
TEXTS = {
    "image": [("debian:12", "debian:12")],
    "memory": [("512m", 512 * M), ("none", None), ("", None)],
    "memory_swap": [("-1", -1)],
    "memory_high": [("none", None)],
    "device_read_bps": [("/dev/sda:1mb,/dev/sdb:2m", {"/dev/sda": M, "/dev/sdb": 2 * M})],
    "device_write_bps": [("", {})],
    "device_read_iops": [("\n/dev/sda:3\n/dev/a,b:2\n", {"/dev/sda": 3, "/dev/a,b": 2})],
    "device_write_iops": [("none", {})],
    "cpus": [("1.5", 1.5)],
    "cpuset": [("0-1,3", "0-1,3")],
    "pids_limit": [("none", None), ("10", 10)],
    "disk": [("1g", 1 << 30)],
    "storage": [("disk", "disk")],
    "shm_size": [("1m", M)],
    "timeout": [("30", 30.0)],
    "network": [("none", "none"), ("host", "host")],
    "publish": [
        ("8080:80, 53/udp", (PortMapping("", 8080, 80), PortMapping("", None, 53, "udp"))),
        ("none", ()),
    ],
    "hostname": [("db", "db")],
    "env": [
        ("A=1,B=2", {"A": "1", "B": "2"}),
        ("A=1,2,B=x,", {"A": "1,2", "B": "x,"}),
        ("\nA=1,2\nB=3\n", {"A": "1,2", "B": "3"}),
    ],
    "user": [("1:2", "1:2")],
    "workdir": [("/srv", "/srv")],
    "volumes": [
        ("./a:/a, /b:/b:ro", (Volume("./a", "/a"), Volume("/b", "/b", read_only=True))),
        ("\n./a:/a\n/b,c:/b\n", (Volume("./a", "/a"), Volume("/b,c", "/b"))),
    ],
    "devices": [
        ("/dev/a, /dev/b:/dev/c", (Volume("/dev/a", "/dev/a"), Volume("/dev/b", "/dev/c")))
    ],
    "gpus": [("all", "all")],
    "read_only": [("on", True)],
    "cap_add": [("NET_ADMIN,sys_time", ("CAP_NET_ADMIN", "CAP_SYS_TIME"))],
    "cap_drop": [("ALL", ("ALL",)), ("none", ())],
    "ulimits": [("nofile=1024:2048, core=0", {"nofile": (1024, 2048), "core": (0, 0)})],
    "security_opt": [("no-new-privileges:false", ("no-new-privileges:false",))],
    "privileged": [("True", True)],
    "alone": [("on", True)],
    "artifacts": [("a/*.png, b", ("a/*.png", "b")), ("", ())],
    "artifacts_limit": [("5m", 5 * M)],
}
