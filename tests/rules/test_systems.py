"""What Windows or macOS lack is used behind a guard: the core installs there, and cannot be tried here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "pizero"
MODULES = {"fcntl", "resource", "termios", "tty", "pwd", "grp", "pty", "syslog"}
NAMES = re.compile(
    r"(signal\.(SIGHUP|SIGUSR[12]|SIGKILL|SIGALRM|SIGCHLD|SIGQUIT|alarm|setitimer|pthread_\w+|sigwait)"
    r"|os\.(fork\w*|wait\w*|killpg|getpgi?d|setsid|set[ug]id|get[ug]id|gete[ug]id|nice|uname|getloadavg|mkfifo|statvfs"
    r"|chown|sched_\w+|posix_\w+|memfd_create|set_blocking|openpty|O_DIRECTORY|pidfd_open)"
    r"|socket\.(AF_UNIX|SO_REUSEPORT)|select\.(poll|epoll)|asyncio\.(open|start)_unix_\w+)"
)
"""With `getattr`, or after a `hasattr` of the same name in the function, they are guarded."""


def unguarded(text: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(text)))
    tried = {id(node) for each in nodes if isinstance(each, ast.Try) for node in each.body}
    found = [
        alias.name
        for node in nodes
        if isinstance(node, ast.Import) and id(node) not in tried
        for alias in node.names
        if alias.name in MODULES
    ]
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    calls = " ".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Call) and "hasattr" in text)
    asked = set(re.findall(r"hasattr\((\w+), ['\"](\w+)['\"]\)", calls))
    guarded = {module + "." + name.split("_")[0] for module, name in asked}
    return found + sorted(name for name in used if NAMES.fullmatch(name) and name.split("_")[0] not in guarded)


def test_what_some_systems_lack_is_guarded() -> None:
    found = {str(path.relative_to(SOURCE)): unguarded(path.read_text()) for path in SOURCE.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_rule_finds_what_is_not_guarded() -> None:
    text = "import resource, os\ntry:\n    import fcntl\nexcept ImportError:\n    pass\nos.fork(); signal.SIGHUP\n"
    assert unguarded(text) == ["resource", "os.fork", "signal.SIGHUP"]
    assert unguarded("if hasattr(os, 'sched_getaffinity'):\n    os.sched_getaffinity(0)\n") == []
