"""A peer's data directory: what is in it, how it is made, and whether it fits together.

    identity.key    this peer's keys                certificate    what the authority says about it
    genesis         what the mesh was made of       keyring.key    gossip keys
    authority.key   on peers that may issue         invites/       open invitations
    store/          records and logs                meshq.toml     settings
    run.json, admin.meshq   how this host's tools reach the running peer
    peers.json      addresses seen                  lock           held by the process that runs the peer
    boot            how often the peer was started
    left            only when this peer has left its mesh: it does not start again; a join here makes another

`genesis` is written last: with it the directory is a peer, without it an unfinished one. A directory that
holds keys or records is never written over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from meshq.errors import MeshqError, SecurityError, StoreError, UsageError, WrongMesh
from meshq.ids import MeshId, show_id
from meshq.security import genesis as genesis_
from meshq.security.authority import Authority
from meshq.security.certificates import (
    WITNESS,
    Certificate,
    SignedCertificate,
    issue,
    new_serial,
    verify_signature,
)
from meshq.security.door import Joined
from meshq.security.files import load_struct, make_private_dir, read_private, save_struct, write_private
from meshq.security.genesis import Genesis, SignedGenesis
from meshq.security.identity import Identity
from meshq.security.keyring import Keyring
from meshq.security.tokens import Invites

# What may be there before a peer is.
_OURS = frozenset({"meshq.toml", "identity.key", "invites", "lock", "boot", "peers.json"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data directory's keys and papers, all of one mesh and one peer. The certificate's time is not
    checked: `certificate.check_time(now)` does."""

    identity: Identity
    certificate: Certificate
    genesis: Genesis
    keyring: Keyring
    authority: Authority | None
    signed_certificate: SignedCertificate
    signed_genesis: SignedGenesis

    @property
    def mesh_id(self) -> MeshId:
        return self.genesis.mesh_id

    @property
    def is_only_founder(self) -> bool:
        """Whether the mesh was made with this peer alone."""
        return len(self.genesis.founders) == 1 and self.genesis.registry_peer == self.identity.peer_id


@dataclass(frozen=True, slots=True)
class DataDirectory:
    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "identity.key"

    @property
    def authority(self) -> Path:
        return self.path / "authority.key"

    @property
    def certificate(self) -> Path:
        return self.path / "certificate"

    @property
    def genesis(self) -> Path:
        return self.path / "genesis"

    @property
    def keyring(self) -> Path:
        return self.path / "keyring.key"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def admin(self) -> Path:
        return self.path / "admin.meshq"

    @property
    def peers(self) -> Path:
        return self.path / "peers.json"

    @property
    def boot(self) -> Path:
        return self.path / "boot"

    @property
    def settings(self) -> Path:
        return self.path / "meshq.toml"

    @property
    def has_left(self) -> bool:
        """Whether the mesh let this peer go."""
        return (self.path / "left").exists()

    def mark_left(self, when: str) -> None:
        write_private(self.path / "left", f"{when}\n".encode())

    def refuse_if_left(self) -> None:
        """Raises: UsageError."""
        if self.has_left:
            first = f"{self._move_authority()}. Then " if self.authority.exists() else ""
            raise UsageError(
                f"the peer in {self.path} has left its mesh: {first}`meshq join TOKEN --data {self.path}` "
                "makes it another one, without the records that were here"
            )

    def _move_authority(self) -> str:
        return (
            f"{self.authority}, which lets others into it, is still here: move it to the directory of a peer "
            "of that mesh and restart that one"
        )

    def _clear_left(self) -> None:
        """Delete what a peer that has left leaves behind, all but its settings. Its keys and the number of
        its starts go as well: who left is gone for good, and whoever joins here is somebody else.

        The mark goes last, so that what was interrupted is done again.
        Raises: UsageError while the authority is here, StoreError while the peer is still stopping.
        """
        if not self.has_left:
            return
        if self.authority.exists():
            raise UsageError(
                f"the peer in {self.path} has left. Nothing was changed: {self._move_authority()}"
            )
        with self.lock():
            for folder in (self.store, self.path / "invites"):
                shutil.rmtree(folder, ignore_errors=True)
            files = (self.genesis, self.certificate, self.keyring, self.identity, self.boot, self.peers)
            for path in (*files, self.run, self.admin, self.path / "left"):
                path.unlink(missing_ok=True)

    @property
    def invites(self) -> Invites:
        return Invites(self.path / "invites")

    def exists(self) -> bool:
        """Whether a peer lives here (an unfinished join does not count)."""
        return self.genesis.exists()

    def load(self) -> Loaded:
        """Everything but the records, checked to be private and of one mesh.

        Raises: UsageError when there is no peer, SecurityError, StoreError, WrongMesh.
        """
        if not self.exists():
            raise UsageError(
                f"there is no peer in {self.path}: make one with `meshq init` or `meshq join TOKEN`"
            )
        mode = self.path.stat().st_mode
        if mode & 0o077:
            raise SecurityError(
                f"{self.path} can be entered by others (mode {mode & 0o777:o}), and holds this peer's keys: "
                f"chmod 700 {self.path}"
            )
        identity = Identity.load(self.identity)
        signed_genesis = load_struct(self.genesis, "genesis", SignedGenesis)
        genesis = genesis_.verify(signed_genesis, genesis_.peek_authority(signed_genesis))
        signed = load_struct(self.certificate, "certificate", SignedCertificate)
        try:
            own = verify_signature(signed, genesis.authority_key)
        except MeshqError as e:
            raise WrongMesh(f"{self.certificate} does not fit {self.genesis}: {e}") from None
        if (own.signing_key, own.curve_key) != (identity.signing_key, identity.curve_public):
            raise WrongMesh(
                f"{self.certificate} is of other keys than {self.identity}: put back the right one"
            )
        authority = Authority.load(self.authority) if self.authority.exists() else None
        if authority and authority.key != genesis.authority_key:
            raise WrongMesh(
                f"{self.authority} is the authority of another mesh than {self.genesis}: take it away"
            )
        return Loaded(identity, own, genesis, Keyring.load(self.keyring), authority, signed, signed_genesis)

    def refuse_if_taken(self) -> None:
        """Raises: UsageError when something here must not be written over; nothing was changed."""
        if self.exists():
            raise UsageError(
                f"{self.path} already holds {self._whose()}: nothing was changed. "
                "Choose another directory with --data"
            )
        for path in (self.identity, self.authority, self.store):
            if path.exists():
                raise UsageError(
                    f"{self.path} holds {path.name} of an unfinished or damaged peer: nothing was changed. "
                    "Finish its `meshq join`, move it away, or choose another directory with --data"
                )

    def begin_join(self, name: str) -> Identity:
        """The identity to join with: a new one, also where a peer has left, or that of a join here that did
        not finish.

        It is on disk before the token is used, so that a join whose reply was lost is repeated with the same
        key.
        Raises: UsageError when a peer lives here, SecurityError, StoreError.
        """
        self._clear_left()
        self._refuse_unless_joining()
        make_private_dir(self.path, _OURS)
        if self.identity.exists():
            kept = Identity.load(self.identity)
            identity = Identity(name, kept.signing_seed, kept.curve_secret)
        else:
            identity = Identity.generate(name)
        identity.save(self.identity)
        return identity

    def lock(self) -> DirectoryLock:
        return lock(self.path)

    def was_started(self) -> bool:
        """Whether this peer ever ran."""
        return self.boot.exists()

    def raise_boot_epoch(self) -> int:
        """The number of this start, higher than every one before and on disk before this returns.

        It is kept beside the identity, not in the store: others ignore a peer whose number went back, and a
        store that was lost must not make this one silent.
        Raises: StoreError.
        """
        path = self.boot
        before = 0
        if path.exists():
            text = read_private(path)
            if not text.strip().isdigit():
                raise StoreError(f"{path} is damaged: write a number into it that is higher than it ever was")
            before = int(text)
        write_private(path, b"%d\n" % (before + 1))
        return before + 1

    def _refuse_unless_joining(self) -> None:
        """As `refuse_if_taken`, but an identity by itself is a join that did not finish."""
        if any(p.exists() for p in (self.genesis, self.authority, self.store)):
            self.refuse_if_taken()

    def _whose(self) -> str:
        try:
            loaded = self.load()
        except MeshqError as e:
            return f"a peer that cannot be read ({e})"
        peer, mesh = loaded.identity, loaded.genesis
        name = f"{peer.name!r} ({show_id(peer.peer_id)})"
        mesh_name = f"{mesh.mesh_name!r} ({show_id(mesh.mesh_id)})"
        return f"peer {name} of mesh {mesh_name}"

    def _write(
        self, identity: Identity, signed: SignedCertificate, g: SignedGenesis, keyring: Keyring
    ) -> None:
        identity.save(self.identity)
        save_struct(self.certificate, "certificate", signed)
        keyring.save(self.keyring)
        save_struct(self.genesis, "genesis", g)


def create_mesh(
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    mesh_name: str,
    slots: int,
    replicas: int,
    now: float,
    witness: bool = False,
) -> str:
    """Make a mesh of as many peers as there are paths, each directory ready to run; the recovery secret.

    The first directory gets the authority and its peer the registry; all get the same genesis and keyring.
    `witness`: the last peer is one.
    Raises: UsageError when a directory is taken (then nothing was changed) or an argument is wrong,
    StoreError.
    """
    directories = [DataDirectory(path) for path in paths]
    if not directories or len(directories) != len(names) or len({p.resolve() for p in paths}) != len(paths):
        raise UsageError("a mesh needs at least one peer, and for each its own directory and name")
    for directory in directories:
        directory.refuse_if_taken()
    authority, keyring = Authority.generate(), Keyring.generate()
    identities = [Identity.generate(name) for name in names]
    founders = [
        issue(
            authority, kind="peer", name=i.name, signing_key=i.signing_key, curve_key=i.curve_public,
            serial=new_serial(), now=now, roles=(WITNESS,) if witness and i is identities[-1] else (),
        )
        for i in identities
    ]  # fmt: skip
    signed = genesis_.make(
        authority, mesh_name=mesh_name, slots=slots, replicas=replicas, now=now, founders=founders,
        registry_peer=identities[0].peer_id,
    )  # fmt: skip
    for directory in directories:
        make_private_dir(directory.path, _OURS)
    authority.save(directories[0].authority)
    for directory, identity, certificate in zip(directories, identities, founders, strict=True):
        directory._write(identity, certificate, signed, keyring)
    return authority.recovery_secret()


def create_joined(path: Path, identity: Identity, joined: Joined) -> DataDirectory:
    """Make the directory of a peer that was let in, from `begin_join`'s identity and the accepted reply.

    Raises: UsageError when a peer lives here, StoreError.
    """
    directory = DataDirectory(path)
    directory._refuse_unless_joining()
    make_private_dir(path, _OURS)
    directory._write(identity, joined.certificate, joined.genesis, joined.keyring)
    return directory


class DirectoryLock:
    """Held by the one process that runs the peer of a directory; freed by `release`, and by the process's
    end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(path: Path) -> DirectoryLock:
    """Take the directory for this process. Raises: StoreError naming the process that has it."""
    file = path / "lock"
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(_not_lockable(path, e)) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise StoreError(
            f"{path} is in use by process {holder}: a directory runs one peer at a time"
        ) from None
    except OSError as e:
        os.close(fd)
        raise StoreError(_not_lockable(path, e)) from e
    return DirectoryLock(fd)


def _not_lockable(path: Path, error: OSError) -> str:
    return (
        f"cannot lock {path} ({error.strerror}): it must be writable for this user and on a local file "
        "system; --data chooses another"
    )
