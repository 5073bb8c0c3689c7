from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshq.errors import SecurityError, StoreCorrupt, StoreError, UsageError, WrongMesh
from meshq.peer.disk import refuse_lost_store
from meshq.security import door
from meshq.security.authority import Authority
from meshq.security.certificates import new_serial, verify
from meshq.security.directory import DataDirectory, create_joined, create_mesh, lock
from meshq.security.genesis import read_founders
from meshq.security.tokens import Place, Token

from .world import NOW, OTHER


def make(root: Path, count: int = 3, name: str = "plant") -> tuple[list[DataDirectory], str]:
    paths = [root / f"peer{i + 1}" for i in range(count)]
    names = [path.name for path in paths]
    recovery = create_mesh(paths, names, mesh_name=name, slots=256, replicas=3, now=NOW)
    return [DataDirectory(path) for path in paths], recovery


def join(issuer: DataDirectory, path: Path, name: str) -> DataDirectory:
    """A whole join, between two directories on this host."""
    loaded = issuer.load()
    assert loaded.authority
    token = Token.new(
        issuer.invites.create(NOW),
        places=[Place("h:7700", 7704)],
        mesh_id=loaded.mesh_id,
        inviter_key=loaded.identity.curve_public,
    )
    identity = DataDirectory(path).begin_join(name)
    request = door.decode_request(door.join_request(token, identity, NOW, nonce=door.new_nonce()))
    assert isinstance(request, door.JoinRequest)
    pending = door.check_join(
        request,
        authority=loaded.authority,
        invites=issuer.invites,
        existing_names={},
        connection_key=identity.curve_public,
        serial=new_serial(),
        now=NOW,
    )
    reply = door.finish_join(
        door.claim_join(pending, invites=issuer.invites, now=NOW),
        genesis=loaded.signed_genesis,
        keyring=loaded.keyring,
        certificates=[loaded.signed_certificate],
    )
    return create_joined(path, identity, door.accept_reply(token, identity, reply, NOW))


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


# ----------------------------------------------------------------------------------------------------- making
def test_three_directories_are_one_mesh_with_the_same_bytes(tmp_path: Path) -> None:
    directories, recovery = make(tmp_path)
    for file in ("genesis", "keyring.key"):
        assert len({(d.path / file).read_bytes() for d in directories}) == 1
    first, *others = [d.load() for d in directories]
    assert [f.name for f in read_founders(first.genesis)] == ["peer1", "peer2", "peer3"]
    assert first.authority == Authority.from_recovery(recovery)
    assert first.genesis.registry_peer == first.identity.peer_id
    assert (first.genesis.mesh_name, first.genesis.slots, first.genesis.replicas) == ("plant", 256, 3)
    assert len({x.identity.peer_id for x in (first, *others)}) == 3
    for other in others:
        assert other.authority is None and not other.is_only_founder
        assert other.mesh_id == first.mesh_id and other.keyring == first.keyring
        assert verify(other.signed_certificate, first.genesis.authority_key, NOW) == other.certificate


def test_everything_in_a_directory_is_private(tmp_path: Path) -> None:
    (directory, *_), _ = make(tmp_path)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in directory.path.iterdir()} == {0o600}
    assert sorted(p.name for p in directory.path.iterdir()) == [
        "authority.key",
        "certificate",
        "genesis",
        "identity.key",
        "keyring.key",
    ]


def test_settings_that_are_there_before_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "peer1").mkdir()
    (tmp_path / "peer1" / "meshq.toml").write_text("port = 7700\n")
    directories, _ = make(tmp_path, 1)
    assert directories[0].exists() and directories[0].settings.read_text() == "port = 7700\n"


def test_a_directory_that_holds_a_peer_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    (directory,), _ = make(tmp_path, 1)
    before = contents(directory.path)
    with pytest.raises(UsageError) as e:
        make(tmp_path, 2, "another")
    assert str(directory.path) in e.value.text and "peer 'peer1' (" in e.value.text
    assert "of mesh 'plant' (" in e.value.text and "nothing was changed" in e.value.text
    assert contents(directory.path) == before and not (tmp_path / "peer2").exists()
    with pytest.raises(UsageError, match="nothing was changed"):
        directory.begin_join("x")


@pytest.mark.parametrize("file", ["authority.key", "store", "identity.key"])
def test_leftovers_with_keys_or_records_are_not_written_over(tmp_path: Path, file: str) -> None:
    (directory,), _ = make(tmp_path, 1)
    directory.genesis.unlink()
    for path in (directory.authority, directory.identity):
        if path.name != file:
            path.unlink()
    if file == "store":
        directory.store.mkdir()
    with pytest.raises(
        UsageError, match=f"holds {file} of an unfinished or damaged peer: nothing was changed"
    ):
        make(tmp_path, 1)


def test_a_damaged_peer_is_still_a_peer(tmp_path: Path) -> None:
    (directory,), _ = make(tmp_path, 1)
    directory.keyring.unlink()
    with pytest.raises(UsageError, match=r"a peer that cannot be read \(cannot read .*keyring.key"):
        directory.refuse_if_taken()


def test_wrong_arguments_make_nothing(tmp_path: Path) -> None:
    for paths, names in (
        ([], []),
        ([tmp_path / "a"], []),
        ([tmp_path / "a", tmp_path / "b" / ".." / "a"], ["a", "b"]),
        ([tmp_path / "a", tmp_path / "b"], ["same", "same"]),
        ([tmp_path / "a"], ["a b"]),
    ):
        with pytest.raises(UsageError):
            create_mesh(paths, names, mesh_name="m", slots=256, replicas=3, now=NOW)
    with pytest.raises(UsageError, match="mesh's name"):
        create_mesh([tmp_path / "a"], ["a"], mesh_name="a b", slots=256, replicas=3, now=NOW)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- joining
def test_a_host_that_joined_has_a_directory_of_the_same_mesh(tmp_path: Path) -> None:
    (issuer,), _ = make(tmp_path, 1)
    joined = join(issuer, tmp_path / "joined", "fourth").load()
    assert joined.identity.name == joined.certificate.name == "fourth"
    assert joined.genesis == issuer.load().genesis and joined.keyring == issuer.load().keyring
    assert joined.authority is None and not joined.is_only_founder


def test_a_join_that_did_not_finish_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "d")
    first = directory.begin_join("old")
    assert not directory.exists()
    again = DataDirectory(tmp_path / "d").begin_join("new")
    assert again.peer_id == first.peer_id and again.name == "new"
    with pytest.raises(UsageError, match=r"no peer in .*: make one with `meshq init` or `meshq join TOKEN`"):
        directory.load()


def test_a_join_does_not_write_over_a_peer(tmp_path: Path) -> None:
    (issuer,), _ = make(tmp_path, 1)
    join(issuer, tmp_path / "joined", "x")
    with pytest.raises(UsageError, match="already holds peer 'x'"):
        join(issuer, tmp_path / "joined", "y")


def test_who_joins_where_a_peer_has_left_is_another_one_and_starts(tmp_path: Path) -> None:
    (issuer, other), _ = make(tmp_path, 2)
    other.settings.write_text("port = 7710\n")
    old = other.load().identity
    assert [other.raise_boot_epoch() for _ in range(3)] == [1, 2, 3]
    other.store.mkdir()
    (other.store / "data.mdb").write_bytes(b"records")
    other.mark_left("now")
    with pytest.raises(UsageError, match=f"has left its mesh: `meshq join TOKEN --data {other.path}`"):
        other.refuse_if_left()

    with other.lock(), pytest.raises(StoreError, match="in use by process"):
        other.begin_join("peer2")
    assert other.store.exists() and other.has_left, "nothing is deleted under a peer that is still stopping"
    joined = join(issuer, other.path, "peer2")
    other.refuse_if_left()
    papers = joined.load()
    new = papers.identity
    assert not {old.peer_id, old.curve_public} & {new.peer_id, new.curve_public}
    assert not joined.store.exists() and joined.settings.read_text() == "port = 7710\n"
    refuse_lost_store(joined, papers, begin_empty=False)


def test_who_left_with_the_authority_is_told_to_move_it_first(tmp_path: Path) -> None:
    (holder, other), _ = make(tmp_path, 2)
    holder.mark_left("now")
    before = contents(holder.path)
    for refused in (holder.refuse_if_left, lambda: holder.begin_join("x")):
        with pytest.raises(UsageError, match=r"authority.key, .* move it to the directory of a peer"):
            refused()
    assert contents(holder.path) == before
    holder.authority.rename(other.authority)
    assert other.load().authority is not None
    assert join(other, holder.path, "peer1").load().authority is None


# ---------------------------------------------------------------------------------------------------- loading
@pytest.mark.parametrize("file", ["identity.key", "authority.key", "keyring.key", "genesis", "certificate"])
def test_a_file_that_others_can_read_or_that_is_damaged_is_not_loaded(tmp_path: Path, file: str) -> None:
    (directory,), _ = make(tmp_path, 1)
    path = directory.path / file
    path.chmod(0o644)
    with pytest.raises(SecurityError, match=f"chmod 600 {path}"):
        directory.load()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreCorrupt, match=f"{file} is damaged"):
        directory.load()


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("genesis", "certificate does not fit .*foreign authority"),
        ("certificate", "certificate does not fit .*foreign authority"),
        ("identity.key", "of other keys than"),
        ("authority.key", "authority of another mesh"),
    ],
)
def test_files_of_two_meshes_do_not_go_together(tmp_path: Path, file: str, what: str) -> None:
    (mine,), _ = make(tmp_path / "mine", 1)
    (other,), _ = make(tmp_path / "other", 1)
    (mine.path / file).write_bytes((other.path / file).read_bytes())
    with pytest.raises(WrongMesh, match=what):
        mine.load()


def test_an_expired_certificate_loads_and_says_so_when_asked(tmp_path: Path) -> None:
    (directory,), _ = make(tmp_path, 1)
    with pytest.raises(SecurityError, match="expired"):
        directory.load().certificate.check_time(NOW + 100 * 86_400)


def test_paths_are_where_the_design_puts_them(tmp_path: Path) -> None:
    d = DataDirectory(tmp_path)
    found = [d.run, d.admin, d.peers, d.settings, d.store, d.invites.directory]
    assert [p.name for p in found] == [
        "run.json",
        "admin.meshq",
        "peers.json",
        "meshq.toml",
        "store",
        "invites",
    ]
    assert not d.exists() and OTHER.name == "other"


# ---------------------------------------------------------------------------------------------------- locking
def test_a_directory_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    in_use = f"{tmp_path} is in use by process {os.getpid()}"
    with lock(tmp_path), pytest.raises(StoreError, match=in_use):
        lock(tmp_path)
    with DataDirectory(tmp_path).lock() as held:
        held.release()
        lock(tmp_path).release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"import meshq.security.directory as d, pathlib; held = d.lock(pathlib.Path({str(tmp_path)!r}))"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})
    lock(tmp_path).release()


def test_a_directory_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot lock"):
        lock(tmp_path / "nowhere")
