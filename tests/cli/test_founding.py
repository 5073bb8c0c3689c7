"""`init`, `invite`, `join`, `client add`: how a mesh begins, who gets in, and who does not."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path

import pytest

from meshq.peer.settings import DOOR
from meshq.security.directory import DataDirectory
from meshq.security.tokens import Place, Token
from tests.peers import HOST, Peer, free_base_port, meshq, one_peer, start_peer, wait_until


def test_init_prints_the_recovery_secret_and_what_comes_next(tmp_path: Path) -> None:
    out = meshq("init", "--data", tmp_path / "p", "--name", "p").ok().decode()
    assert "Recovery secret: " in out
    assert f"meshq up --data {tmp_path / 'p'}" in out
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700


def test_init_never_writes_over_a_peer(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path).ok()
    before = (tmp_path / "identity.key").read_bytes()
    meshq("init", "--data", tmp_path).failed(2, "already holds", "nothing was changed")
    assert (tmp_path / "identity.key").read_bytes() == before


def test_init_makes_ready_directories_with_ports_of_their_own(tmp_path: Path) -> None:
    meshq("init", "--peers", 3, "--out", tmp_path).ok()
    ports = [tomllib.loads((tmp_path / f"peer{i}" / "meshq.toml").read_text())["port"] for i in (1, 2, 3)]
    assert ports == [7700, 7710, 7720]
    assert [(tmp_path / f"peer{i}" / "authority.key").exists() for i in (1, 2, 3)] == [True, False, False]


def test_peers_and_out_belong_together(tmp_path: Path) -> None:
    assert meshq("init", "--peers", 3, "--data", tmp_path).code == 2


def test_a_host_joins_with_a_token_once_and_the_peers_see_each_other(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer:
        invited = peer.meshq("invite")
        token = invited.ok().decode()
        assert token.startswith("meshq1-") and token.count("\n") == 1 and "meshq join" in invited.err
        meshq("join", token.strip(), "--data", tmp_path / "b", "--name", "b").ok()
        meshq("join", token.strip(), "--data", tmp_path / "c", "--name", "c").failed(1, "used already")
        joined = start_peer(tmp_path / "b", free_base_port())
        try:
            rows = wait_until(lambda: _peers_alive(joined, 2), what="both are alive")
            assert {"name", "id", "state", "address"} <= rows[0].keys()
            joined.meshq("pub", "from.b", stdin=b"hello").ok()
            assert peer.meshq("sub", "from.b", "--from", "earliest", "--count", 1).ok() == b"hello\n"
            joined.meshq("invite").failed(1, "authority")
        finally:
            joined.end()


def test_a_peer_stands_where_its_join_put_it(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer:
        token = peer.meshq("invite").ok().decode().strip()
        meshq("join", token, "--data", tmp_path / "b", "--weight", -1).failed(2, "weight")
        place = ("--weight", 2.5, "--zone", "attic")
        meshq("join", token, "--data", tmp_path / "b", "--name", "b", *place).ok()
        joined = start_peer(tmp_path / "b", free_base_port())
        try:
            wait_until(lambda: _place(peer, "b") == (2.5, "attic"), what="it stands there")
            joined.meshq("status", "--check", "clock").ok()
            assert b"already" in joined.meshq("upgrade").ok()
        finally:
            joined.end()


def _place(peer: Peer, name: str) -> tuple[float, str]:
    rows = json.loads(peer.meshq("peers", "--json").ok())
    return next(((r["weight"], r["zone"]) for r in rows if r["name"] == name), (-1.0, ""))


def _peers_alive(peer: Peer, count: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(peer.meshq("peers", "--json").ok())
    return rows if sum(r["state"] == "alive" and r["link"] in ("self", "up") for r in rows) == count else []


def test_a_damaged_token_is_called_that(tmp_path: Path) -> None:
    meshq("join", "meshq1-abcdef", "--data", tmp_path / "d").failed(2, "damaged")
    meshq("join", "something", "--data", tmp_path / "d").failed(2, "not a token")
    assert not (tmp_path / "d").exists()


def test_an_expired_token_is_called_that(peer: Peer, tmp_path: Path) -> None:
    directory = DataDirectory(peer.data)
    papers = directory.load()
    token = Token.new(
        directory.invites.create(time.time() - 100, 10),
        places=[Place(f"{HOST}:{peer.port}", peer.port + DOOR)],
        mesh_id=papers.mesh_id,
        inviter_key=papers.identity.curve_public,
    )
    meshq("join", token.show(), "--data", tmp_path / "x").failed(1, "expired")


def test_a_token_works_from_standard_input_and_is_refused_where_nobody_listens(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "a").ok()
    address = f"127.0.0.1:{free_base_port()}"
    token = meshq("invite", "--data", tmp_path / "a", "--advertise", address).ok()
    meshq("join", "-", "--data", tmp_path / "b", stdin=token, timeout=60).failed(
        3, "cannot be reached", "127.0.0.1"
    )


def test_a_token_of_another_mesh_at_this_address_is_called_foreign(peer: Peer, tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "other").ok()
    token = meshq("invite", "--data", tmp_path / "other", "--advertise", f"{HOST}:{peer.port}").ok()
    said = meshq("join", "-", "--data", tmp_path / "b", stdin=token, timeout=60).failed(
        1, "not the peer that made this token", "new token"
    )
    assert "firewall" not in said


def test_init_leaves_a_directory_with_other_things_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letters").write_text("dear")
    meshq("init", "--data", home).failed(1, "chmod 700", "--data")
    assert home.stat().st_mode & 0o777 == 0o755
    assert [f.name for f in home.iterdir()] == ["letters"]


def test_init_keeps_settings_that_are_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "meshq.toml"
    file.write_text("mdns = false\n")
    meshq("init", "--data", tmp_path, "--port", 8000).failed(
        2, "meshq.toml", "port = 8000", "nothing was changed"
    )
    assert file.read_text() == "mdns = false\n"
    assert [f.name for f in tmp_path.iterdir()] == ["meshq.toml"]
    meshq("init", "--data", tmp_path).ok()
    assert file.read_text() == "mdns = false\n"


def test_init_makes_as_many_as_a_mesh_may_begin_with_and_says_so(tmp_path: Path) -> None:
    meshq("init", "--peers", 65, "--out", tmp_path).failed(2, "65", "1<=x<=64")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def credentials(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("client") / "app.meshq"
    arguments = ["--publish", "app.#", "--subscribe", "app.#", "--out", file]
    assert peer.meshq("client", "add", "app", *arguments).ok().decode().strip() == str(file)
    return file


def test_credentials_are_private_and_name_every_endpoint(credentials: Path) -> None:
    assert credentials.stat().st_mode & 0o777 == 0o600
    document = tomllib.loads(credentials.read_text())
    assert document["client"]["name"] == "app"
    assert {"name", "requests", "feed", "ingest", "server_key"} == document["peers"][0].keys()


def test_a_client_does_what_it_may_and_nothing_else(peer: Peer, credentials: Path) -> None:
    as_client = ("--credentials", credentials)
    assert meshq("pub", "app.x", "-v", *as_client, stdin=b"a").ok() == b"app.x/0@0 copies=1\n"
    assert meshq("sub", "app.#", "--from", "earliest", "--count", 1, *as_client).ok() == b"a\n"
    meshq("pub", "other", *as_client, stdin=b"a\n").failed(1, "other")
    meshq("sub", "other", *as_client, "--count", 1).failed(1, "other")
    meshq("status", *as_client).failed(1, "admin")
    assert [t["name"] for t in json.loads(meshq("topics", "--json", *as_client).ok())] == ["app.x"]


def test_credentials_that_others_can_read_are_refused(credentials: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose.meshq"
    loose.write_bytes(credentials.read_bytes())
    loose.chmod(0o644)
    meshq("topics", "--credentials", loose).failed(1, "chmod 600")


def test_a_client_needs_something_it_may_do_and_a_file_of_its_own(peer: Peer, credentials: Path) -> None:
    peer.meshq("client", "add", "idle").failed(2, "--publish")
    peer.meshq("client", "add", "app2", "--publish", "x", "--out", credentials).failed(2, "exists")
