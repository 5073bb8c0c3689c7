"""The documents say what the code does: tables are compared with it, examples are compiled and run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from meshq import batch, errors, messages
from meshq.cli.app import _VERBS, cli
from meshq.ids import TopicId
from meshq.messages import ClientMessage, PeerMessage, ServerMessage
from meshq.peer import settings as peer_settings
from meshq.peer.core.admin import _HANDLERS
from meshq.peer.settings import Settings
from meshq.ring import slot_of, stride_of
from meshq.security.directory import DataDirectory

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])
COMES_WITH_FIGURES = DOCS / "benchmarks.md"  # written from a run; may not be there yet
HOSTS = {"keepachangelog.com", "semver.org", "msgpack.org", "rfc.zeromq.org"}
# Places and words that belong on no page; hosts are listed above instead.
FORBIDDEN = re.compile(
    r"/tmp/|\bTODO\b|\bFIXME\b|\bXXX\b|lorem ipsum|seamless|blazing|world-class|cutting-edge|"
    r"revolutionary|effortless|game.chang", re.IGNORECASE,
)  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    found = re.search(
        rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"{page.name} has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in the text, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {i for i, line in enumerate(lines) if re.fullmatch(r"[|\-: ]+", line) and "-" in line}
    return [
        [c.strip() for c in line.strip().strip("|").split("|")]
        for i, line in enumerate(lines)
        if i not in rules and i + 1 not in rules
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ------------------------------------------------------------------------------------------- every page
def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            assert target.split("/")[2] in HOSTS, target
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if there == COMES_WITH_FIGURES and not there.exists():
            continue
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_have_no_place_or_word_that_does_not_belong(page: Path) -> None:
    text = page.read_text()
    assert not FORBIDDEN.findall(text)
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\s)>\]]+", text)} <= HOSTS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_compile_and_import_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            match node:
                case ast.Import():
                    for alias in node.names:
                        importlib.import_module(alias.name)
                case ast.ImportFrom(module=str(module)):
                    found = importlib.import_module(module)
                    for alias in node.names:
                        if not hasattr(found, alias.name):
                            importlib.import_module(f"{module}.{alias.name}")
                case ast.Attribute(value=ast.Name(id="meshq"), attr=name):
                    assert hasattr(importlib.import_module("meshq"), name), name


# ---------------------------------------------------------------------------------------- generated pages
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    assert (DOCS / "limits.md").read_text() == generator().limits_page(), "run `make docs`"
    assert (DOCS / "messages.md").read_text() == generator().page(), "run `make docs`"


def test_every_message_is_on_the_generated_page() -> None:
    page = (DOCS / "messages.md").read_text()
    for union in (ClientMessage, PeerMessage, ServerMessage):
        for cls in union.__args__:
            assert f"\n### {cls.__struct_config__.tag} {cls.__name__}\n" in page


# ------------------------------------------------------------------------------------------- the protocol
PROTOCOL = DOCS / "protocol.md"


def test_the_protocol_lists_every_message_with_its_number_fields_and_way() -> None:
    written = {
        (int(number), name, way, tuple(names(fields)))
        for number, name, way, fields in rows(section(PROTOCOL, "Messages"))
    }
    peers_only = {*PeerMessage.__args__}
    every = {*ClientMessage.__args__, *PeerMessage.__args__, *ServerMessage.__args__}
    assert written == {
        (
            c.__struct_config__.tag,
            c.__name__,
            "PP" if c in peers_only else "C" if c in ClientMessage.__args__ else "P",
            c.__struct_fields__,
        )
        for c in every
    }


def test_structs_named_with_their_fields_are_so() -> None:
    """`Accepted: request, ...` in the text: the struct's name, then its fields in order."""
    found = re.findall(r"`(\w+)`s? ?\(?:? ?\(?((?:`\w+`, )+`\w+`)\)", PROTOCOL.read_text())
    checked = [n for n, _ in found if hasattr(messages, n)]
    assert {"ProduceItem", "Accepted", "ReadItem", "Started", "DeliverItem"} <= set(checked)
    for name, fields in found:
        if hasattr(messages, name):
            assert tuple(names(fields)) == getattr(messages, name).__struct_fields__, name


def test_ports_are_those_of_the_settings() -> None:
    table = {name.strip("`"): port for port, _, name, *_ in rows(section(PROTOCOL, "Ports")) if name}
    offsets = {
        "requests": peer_settings.REQUESTS,
        "feed": peer_settings.FEED,
        "ingest": peer_settings.INGEST,
        "door": peer_settings.DOOR,
        "peers": peer_settings.PEERS,
        "gossip": 0,
    }
    assert table == {name: f"base + {n}" if n else "base" for name, n in offsets.items()}


def test_every_question_is_listed() -> None:
    assert {names(r[0])[0] for r in rows(section(PROTOCOL, "Asking"))} == set(_HANDLERS)


def test_every_status_is_listed() -> None:
    listed = {int(r[0]) for r in rows(section(PROTOCOL, "Plain ZeroMQ")) if r[0].isdigit()}
    assert listed == {200, *(c.status for c in errors._ON_THE_WIRE.values())}


def test_the_places_of_topics_are_as_computed() -> None:
    text = section(PROTOCOL, "Topics and slots")
    assert f"the stride is {stride_of(256)}" in text
    vectors = rows(text)
    assert len(vectors) == 4
    for topic_id, partition, slot in vectors:
        assert slot_of(TopicId(bytes.fromhex(topic_id.strip("`"))), int(partition), 256) == int(slot)


def test_the_example_batch_is_what_the_code_makes() -> None:
    made = batch.frame(batch.seal([batch.RawRecord(None, b"hello")], base_timestamp_ms=1_700_000_000_000))
    examples = ["".join(block.split()) for block in blocks(PROTOCOL, "")]
    assert made.hex() in examples


def test_the_batch_header_is_as_the_table_says() -> None:
    layout = [
        (int(at), int(size)) for at, size, _ in rows(section(PROTOCOL, "The batch")) if at and size.isdigit()
    ]
    assert [at for at, _ in layout] == [sum(s for _, s in layout[:i]) for i in range(len(layout))]
    assert sum(size for _, size in layout) == batch.HEADER_BYTES


def test_every_file_of_a_data_directory_is_listed() -> None:
    listed = {n.rstrip("/") for r in rows(section(PROTOCOL, "The data directory"))[:12] for n in names(r[0])}
    directory = DataDirectory(Path("d"))
    paths = {
        value.name
        for name in dir(DataDirectory)
        if not name.startswith("_") and isinstance(value := getattr(directory, name), Path) and name != "path"
    }
    assert listed == paths | {"invites", "boot", "lock"}


# ------------------------------------------------------------------------------------------- operations
def test_every_setting_is_listed_with_its_default_and_flag() -> None:
    table = rows(section(DOCS / "operations.md", "Settings"))
    defaults = Settings()
    assert [names(r[0])[0] for r in table] == list(Settings.__struct_fields__)
    for setting, default, flag, _ in table:
        name = names(setting)[0]
        value = getattr(defaults, name)
        shown = str(value).lower() if isinstance(value, bool) else str(value) or '""'
        assert names(default)[0] == shown, name
        if flag:
            assert names(flag)[0] in options(command("up")), name


def command(*words: str) -> click.Command:
    found: click.Command = cli
    for word in words:
        assert isinstance(found, click.Group), words
        below = found.get_command(click.Context(found), word)
        assert below is not None, f"there is no verb {' '.join(words)}"
        found = below
    return found


def options(of: click.Command) -> set[str]:
    return {o for p in of.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `meshq ...` in a page's shell examples."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = list(shlex.shlex(line, posix=True, punctuation_chars="|&<>"))
            words = shlex.split(line, comments=True) if words else []
            while "meshq" in words:
                words = words[words.index("meshq") + 1 :]
                ends = [i for i, w in enumerate(words) if w in ("|", "&", "&&", "<", ">")]
                yield words[: ends[0]] if ends else words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_command_lines_name_verbs_and_options_that_exist(page: Path) -> None:
    for words in commands(page):
        of: click.Command = cli
        rest = list(words)
        while isinstance(of, click.Group) and rest and not rest[0].startswith("-"):
            of = command(*words[: len(words) - len(rest) + 1])
            rest.pop(0)
        assert {w for w in rest if w.startswith("-") and w != "-"} <= options(of) | options(cli), words


def test_every_verb_has_an_example() -> None:
    shown = {words[0] for words in commands(DOCS / "cli.md") if words}
    assert shown | {"completion"} >= set(_VERBS)
    assert "meshq completion" in (DOCS / "cli.md").read_text()
    for group in ("topic", "client", "outbox"):
        verbs = set(command(group).commands)  # type: ignore[attr-defined]
        assert {words[1] for words in commands(DOCS / "cli.md") if words[0] == group} == verbs


# --------------------------------------------------------------------------------------- README, run as is
def free_base_port() -> int:
    """A port with six free ones from it on, as good as one can know."""
    for base in range(30_000 + os.getpid() % 20_000, 60_000, 10):
        try:
            for port in range(base, base + 6):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which README's commands touch nothing but a directory of this test."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("MESHQ_")},
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "MESHQ_PORT": str(free_base_port()),
        "MESHQ_BIND": "127.0.0.1",
        "MESHQ_MDNS": "false",
    }


def test_the_python_of_the_readme_runs(home: dict[str, str], tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env=home,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    client, synchronous, embedded, outbox, plain = blocks(ROOT / "README.md", "python")
    run("-m", "meshq", "init", "--name", "readme")
    up = subprocess.Popen(
        [sys.executable, "-m", "meshq", "up"],
        env=home,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert up.stdout is not None
        assert b"is up" in up.stdout.readline()
        add = next(w for w in commands(ROOT / "README.md") if w[:2] == ["client", "add"])
        assert run("-m", "meshq", *add).strip() == "app.meshq"
        assert run("-c", client).splitlines()[-1] == "orders.eu 0 10000 b'order 9999'"
        assert "0 b'4711'" in run("-c", synchronous)
        assert run("-c", outbox).startswith("Receipt(topic='orders.eu', partition=0, offset=")
        assert "b'200'" in run("-c", plain)
        up.send_signal(signal.SIGTERM)
        assert up.wait(15) == 0
    finally:
        up.kill()
        up.wait()
        up.stdout.close()  # type: ignore[union-attr]
    run("-c", embedded)
