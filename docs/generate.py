"""Writes the generated pages: messages.md (every struct on the wire), limits.md, and a part of membership.md.

A table kept by hand is right on the day it is written. So the numbers, fields, types and limits come from the
annotations that decode the messages, the words beside them from docstrings and comments in the source.
`python docs/generate.py PAGE` prints one; `make docs` keeps them, `make test` says when one is out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from msgspec import inspect as kinds

from meshq import errors, limits, messages
from meshq.gossip import transitions, wire
from meshq.registry import commands
from meshq.security import certificates, door, genesis, signing, tokens
from meshq.streams import publish, slot

HEAD = """# Messages

Generated from the source by `make docs`: do not edit. [protocol.md](protocol.md) says what they are for.

Every struct is a **msgpack array**. A struct with a number begins with that number; then come its fields, in
this order. Fields at the end that have a default may be left out. A reader ignores what stands behind the
fields it knows, unless the struct is said to be closed.

Types: `u16`, `u32` are whole numbers of that many bits, `u63` goes up to 2^63-1; `16 bytes` is a *bin* of
exactly that length; `text` is a *str*, with the most characters it may have; `[x]` is an array.
"""
_BITS = {(1 << 16) - 1: "u16", (1 << 32) - 1: "u32", (1 << 63) - 1: "u63"}


def page() -> str:
    parts = [HEAD, _errors()]
    client = _members(messages.ClientMessage)
    peer = _members(messages.PeerMessage)
    server = _members(messages.ServerMessage)
    inner = [c for c in _structs(messages) if c not in (*client, *peer, *server)]
    for title, text, classes in (
        ("From client to peer", "On `requests`. Peers may send them too, on `peers`.", client),
        ("From peer to client", "Answers, and what is pushed. Peers get them too.", server),
        ("From peer to peer", "On the `peers` port only; elsewhere they are `Forbidden`.", peer),
        ("Inside messages", "Structs without a number, as fields of those above.", inner),
    ):
        parts.append(_section(title, text, classes))
    parts.append(_section("At the door", "One frame each way.", _structs(door)))
    parts.append(_section("A token", "What its text encodes.", [tokens.Token, tokens.Place]))
    parts.append(
        _section(
            "Signed things",
            "`Signed` is how certificates and the genesis travel: exact bytes, and the signature over them.",
            [signing.Signed, certificates.Certificate, certificates.Capability, genesis.Genesis],
        )
    )
    parts.append(_section("Gossip", "Inside a sealed datagram.", _structs(wire)))
    parts.append(_section("Registry commands", "Bodies of the system slot's entries.", _structs(commands)))
    parts.append(
        _section("Entry bodies", "The body of a `PUBLISH` entry of a slot's log.", [publish.PublishBody])
    )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def _errors() -> str:
    rows = []
    for name, cls in sorted(errors._ON_THE_WIRE.items(), key=lambda x: (x[1].status, x[0])):
        again = "yes" if cls.retriable else "no"
        rows.append(f"| `{name}` | {cls.status} | {again} |\n")
    text = "By name, as `Failure`, `ReadEnded`, `Refusal` and plain answers carry them."
    return f"\n## Errors\n\n{text}\n\n| name | status | retriable |\n|---|---|---|\n{''.join(rows)}"


def _section(title: str, text: str, classes: list[Any]) -> str:
    return f"\n## {title}\n\n{text}\n" + "".join(_struct(c) for c in classes)


def _struct(cls: Any) -> str:
    tag = cls.__struct_config__.tag if issubclass(cls, msgspec.Struct) else None
    number = f"{tag} " if isinstance(tag, int) else ""
    closed = issubclass(cls, msgspec.Struct) and cls.__struct_config__.forbid_unknown_fields
    words = _words(cls) + (" Closed." if closed else "")
    title = f"\n### {number}{cls.__name__}\n" + (f"\n{words.strip()}\n" if words.strip() else "")
    return title + _table(_fields(cls))


def _table(fields: list[tuple[str, str, str]]) -> str:
    if not fields:
        return "\nNo fields.\n"
    if not any(note for _, _, note in fields):
        return "\n| field | type |\n|---|---|\n" + "".join(f"| `{f}` | {t} |\n" for f, t, _ in fields)
    rows = "".join(f"| `{f}` | {t} | {_cell(note)} |\n" for f, t, note in fields)
    return f"\n| field | type | |\n|---|---|---|\n{rows}"


def _fields(cls: Any) -> list[tuple[str, str, str]]:
    notes = _notes(cls)
    found = kinds.type_info(cls)
    assert isinstance(found, kinds.StructType | kinds.NamedTupleType)
    return [(f.name, _show(f.type) + _default(f), notes.get(f.name, "")) for f in found.fields]


def _default(field: Any) -> str:
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value in (b"", ""):
        return ", default empty"
    shown = (
        {True: "true", False: "false", None: "nil"}.get(value) if isinstance(value, bool | None) else value
    )
    return f", default {shown}"


def _show(t: Any) -> str:
    match t:
        case kinds.IntType():
            return _show_int(t)
        case kinds.FloatType():
            return "float"
        case kinds.BoolType():
            return "bool"
        case kinds.NoneType():
            return "nil"
        case kinds.BytesType(min_length=low, max_length=high):
            return f"{high} bytes" if low == high and high else f"bytes{_most(high)}"
        case kinds.StrType(max_length=high):
            return f"text{_most(high)}"
        case (
            kinds.ListType(item_type=item, max_length=high)
            | kinds.VarTupleType(item_type=item, max_length=high)
        ):
            return f"[{_show(item)}]{_most(high)}"
        case kinds.TupleType(item_types=items):
            return "(" + ", ".join(_show(x) for x in items) + ")"
        case kinds.DictType(key_type=key, value_type=value, max_length=high):
            return f"map of {_show(key)} to {_show(value)}{_most(high)}"
        case kinds.UnionType(types=types):
            return " or ".join(_show(x) for x in types)
        case kinds.LiteralType(values=values):
            return " or ".join(f"`{v}`" for v in values)
        case kinds.StructType(cls=cls) | kinds.NamedTupleType(cls=cls):
            return f"`{cls.__name__}`"
        case _:
            return "anything"


def _show_int(t: kinds.IntType) -> str:
    low = t.ge if t.ge is not None else None if t.gt is None else t.gt + 1
    high = t.le if t.le is not None else None if t.lt is None else t.lt - 1
    if low == 0 and high in _BITS:
        return _BITS[high]
    return "int" if low is None or high is None else f"{low} to {high}"


def _most(high: int | None) -> str:
    return f", at most {high}" if high is not None else ""


def _words(cls: Any) -> str:
    """The docstring, when the class has one of its own."""
    own = cls.__dict__.get("__doc__") or ""
    return "" if own.startswith(f"{cls.__name__}(") else re.sub(r"\s+", " ", inspect.cleandoc(own))


def _notes(cls: Any) -> dict[str, str]:
    """The comments behind the fields, by field."""
    lines = inspect.getsource(cls).splitlines()
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, mark, comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :].partition("#")
            notes[node.target.id] = comment.strip() if mark else ""
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _members(union: Any) -> list[Any]:
    return sorted(union.__args__, key=lambda c: c.__struct_config__.tag)


def _structs(module: ModuleType) -> list[Any]:
    """Public structs of this module with fields or a number, in the order of the source."""
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, msgspec.Struct) and c.__module__ == module.__name__
    ]
    return [
        c
        for c in found
        if not c.__name__.startswith("_") and (c.__struct_fields__ or c.__struct_config__.tag)
    ]


def limits_page() -> str:
    """The table of limits, and behind it every other bound that stands beside the code it bounds."""
    rows = []
    for path in sorted(Path(limits.__file__).parent.rglob("*.py")):
        if path.name == "limits.py":
            continue
        source = path.read_text()
        for node in ast.parse(source).body:
            name, value = _constant(node)
            if name.strip("_").endswith("_MAX") and value is not None:
                line = source.splitlines()[(node.end_lineno or 1) - 1]
                note = line.partition("#")[2].strip()
                module = ".".join(path.relative_to(Path(limits.__file__).parent).with_suffix("").parts)
                rows.append(f"| `{name.strip('_')}` | {_cell(value)} | `{module}` | {_cell(note)} |")
    head = "| name | value | module | |\n|---|---|---|---|\n"
    inner = "\n## Inner bounds\n\nEach stands beside the code it bounds.\n\n" + head
    return limits.as_markdown() + inner + "\n".join(rows) + "\n"


def membership_page() -> str:
    """The page as it is, with the picture and the table of transitions drawn again from `transitions.py`."""
    page = (Path(__file__).parent / "membership.md").read_text()
    begin, end = "<!-- generated: transitions -->\n", "<!-- end of generated -->\n"
    before, rest = page.split(begin)
    after = rest.split(end)[1]
    drawn = f"\n```mermaid\n{transitions.as_mermaid()}```\n\n{transitions.as_markdown()}\n"
    return before + begin + drawn + end + after


def _constant(node: ast.stmt) -> tuple[str, str | None]:
    """A module constant's name and what it is set to, as written."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        return node.target.id, ast.unparse(node.value)
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, ast.unparse(node.value)
    return "", None


if __name__ == "__main__":
    pages = {"messages": page, "limits": limits_page, "membership": membership_page}
    print(pages[sys.argv[1]](), end="")
