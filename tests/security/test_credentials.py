from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
import zmq

from meshq.errors import SecurityError, UsageError
from meshq.ids import mesh_id_of, show_id
from meshq.security.credentials import Credentials, CredentialsPeer

from .world import AUTHORITY, FIRST, JOINER, SECOND, STRANGER

CREDENTIALS = Credentials(
    authority_key=AUTHORITY.key,
    name="app",
    public_key=JOINER.curve_public,
    secret_key=JOINER.curve_secret,
    peers=(
        CredentialsPeer("a", "tcp://h:7700", "tcp://h:7701", "tcp://h:7702", FIRST.curve_public),
        CredentialsPeer("b", "tcp://[::1]:7", "tcp://[::1]:8", "tcp://[::1]:9", SECOND.curve_public),
    ),
)
GOOD = CREDENTIALS.to_toml()


def test_credentials_come_back_from_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "app.meshq"
    CREDENTIALS.save(path)
    assert Credentials.load(path) == CREDENTIALS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(SecurityError, match="chmod 600"):
        Credentials.load(path)


def test_the_file_is_what_the_design_says_and_plain_zeromq_can_use_it() -> None:
    document = tomllib.loads(GOOD)
    assert set(document) == {"mesh", "client", "peers"}
    assert document["mesh"].keys() == {"id", "authority"}
    assert document["mesh"]["id"] == show_id(mesh_id_of(AUTHORITY.key))
    assert document["client"].keys() == {"name", "public_key", "secret_key"}
    assert document["peers"][0].keys() == {"name", "requests", "feed", "ingest", "server_key"}
    secret = document["client"]["secret_key"].encode()
    assert zmq.curve_public(secret).decode() == document["client"]["public_key"]


def test_no_secret_shows_in_a_repr() -> None:
    assert "####" not in repr(CREDENTIALS)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no credentials file .*app\.meshq: make one with `meshq client add"
    ):
        Credentials.load(tmp_path / "app.meshq")


def test_unknown_fields_are_left_for_later_versions() -> None:
    assert Credentials.from_toml(GOOD.replace("[client]", "[future]\nx = 1\n[client]\ny = 2")) == CREDENTIALS


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[mesh]", "[mush]", r"\[mesh\] is missing"),
        ("[client]", "[klient]", r"\[client\] is missing"),
        ("[[peers]]", "[[piers]]", r"\[\[peers\]\] must be there"),
        ('name = "app"', "", r"\[client\] name is missing"),
        ('name = "app"', "name = 7", r"\[client\] name is not text"),
        ('name = "app"', 'name = "a b"', "'a b' is not a client's name"),
        ("secret_key = ", "secret_kay = ", r"\[client\] secret_key is missing"),
        ('public_key = "', 'public_key = "x', r"\[client\] public_key is not a key"),
        ('authority = "', 'authority = "x', r"\[mesh\] authority is not a key"),
        ('id = "', 'id = "x', r"\[mesh\] id: "),
        ('"tcp://h:7701"', '"h:7701"', r"\[\[peers\]\] 1 feed is not an endpoint"),
        ('"tcp://[::1]:7"', '"tcp://::1"', r"\[\[peers\]\] 2 requests is not an endpoint"),
        ('"tcp://h:7702"', "1", r"\[\[peers\]\] 1 ingest is not text"),
        ('name = "b"', "", r"\[\[peers\]\] 2 name is missing"),
        ("[mesh]", "[mesh", "is not TOML"),
        (show_id(AUTHORITY.mesh_id), show_id(STRANGER.mesh_id), r"\[mesh\] id is not the id of"),
    ],
)
def test_a_malformed_file_names_itself_and_the_field(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = tmp_path / "app.meshq"
    CREDENTIALS.save(path)
    path.write_text(GOOD.replace(old, new, -1 if old == "[[peers]]" else 1))
    with pytest.raises(UsageError, match=what) as e:
        Credentials.load(path)
    assert str(path) in e.value.text


def test_keys_that_are_no_pair_are_refused() -> None:
    other = tomllib.loads(GOOD)["peers"][0]["server_key"]
    own = tomllib.loads(GOOD)["client"]["public_key"]
    with pytest.raises(UsageError, match="does not belong"):
        Credentials.from_toml(GOOD.replace(own, other))
