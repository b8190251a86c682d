"""Which blocks of a module a piece of it needs: a definition, or some lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from marginalia.blocks import Block, Module
from marginalia.effects import needs
from marginalia.errors import MarginaliaError
from marginalia.source import symbols
from marginalia.syntax import is_dedentable


@dataclass(slots=True)
class Choice:
    """The blocks of a piece.

    Args:
        blocks: All that it needs, imports included.
        whole: Imports that are themselves asked for.
        call: Whether `demo()` has to be called at the end.
    """

    blocks: set[Block]
    whole: set[Block] = field(default_factory=set)
    call: bool = False


def choose_symbol(module: Module, target: str) -> Choice:
    """What a definition needs, by its qualified name.

    Raises:
        MarginaliaError: There is no such definition.
    """
    top = target.split(".")[0]
    found = symbols(module.source, module.path)
    listed = {symbol.name for symbol in found}
    bound = {name for block in module.top if block.kind != "import" for name in block.binds}
    functions = tuple(f"{symbol.name}." for symbol in found if symbol.kind == "function")
    if target not in listed | bound and not target.startswith(functions):
        near = difflib.get_close_matches(target, sorted(listed | bound), n=3, cutoff=0.5)
        hint = f"; is it {' or '.join(near)}?" if near else ""
        raise MarginaliaError(f"{module.path}: there is no definition of {target}{hint}")
    return _choose_demo(module) if top == "demo" else Choice(module.closure([top]))


def _choose_demo(module: Module) -> Choice:
    """The whole demo, and what starts it."""
    starts = {b for b in module.top if b.kind == "guard" and b.needs == {"demo", "__name__"}}
    return Choice(module.closure(["demo"]) | starts)


def choose_lines(module: Module, start: int, end: int) -> Choice | None:
    """What the code on some lines needs; None if there is no code."""
    code = [number for number in range(start, end + 1) if module.has_code(number)]
    wanted = [
        block
        for block in module.top
        if block.kind != "text" and any(block.first <= number <= block.end for number in code)
    ]
    if not wanted:
        return None
    if [node for block in wanted for node in block.nodes] == [module.demo]:
        return _choose_in_demo(module, code)
    executed = [block for block in wanted if block.kind != "definition"]
    kept = _slice(module, module.top, executed) if executed else set()
    kept.update(wanted)
    bound = {name for block in kept for name in block.binds}
    kept |= module.closure({name for block in kept for name in block.needs} - bound)
    return Choice(kept, {block for block in wanted if block.kind == "import"})


def _choose_in_demo(module: Module, code: Sequence[int]) -> Choice:
    demo = [block for block in module.blocks if block.in_demo]
    wanted = [
        block
        for block in demo
        if block.kind != "text" and any(block.first <= number <= block.end for number in code)
    ]
    if not wanted:
        return _choose_demo(module)
    kept = _slice(module, demo, wanted)
    outside = {name for block in kept for name in block.needs}
    closure = module.closure(outside - {name for block in kept for name in block.binds})
    if _stands_alone(module, kept, closure):
        return Choice(kept | closure, {block for block in wanted if block.kind == "import"})
    return Choice(module.closure(["demo"]), call=True)


def _stands_alone(module: Module, kept: set[Block], closure: set[Block]) -> bool:
    """Whether statements of the demo mean the same outside of it."""
    local = {name for block in kept for name in block.binds}
    shared = {name for block in closure for name in block.binds | block.needs}
    body = [node for block in kept for node in block.nodes]
    return module.demo is not None and not local & shared and is_dedentable(module.demo, body)


def _slice(module: Module, blocks: Sequence[Block], wanted: Sequence[Block]) -> set[Block]:
    """Statements, and the earlier ones that give their names the values they have there."""
    kept = set(wanted)
    deferred = _deferred([*blocks, *module.top])
    live = _with_deferred(needs([n for block in wanted for n in block.nodes], set()), deferred)
    first: dict[str, int] = {}  # name -> the number of the block from which on there is one
    for number, block in enumerate(blocks):
        for name in block.binds:
            first.setdefault(name, number)
    for number in reversed(range(blocks.index(wanted[-1]))):
        block = blocks[number]
        if block in kept or block.kind in ("guard", "text"):
            continue
        changes = {name for name in block.changes if first.get(name, 0) <= number}
        if block.keeps or live & (block.binds | changes):
            kept.add(block)
            live = _with_deferred((live - block.certain) | block.needs, deferred)
    return kept


def _deferred(blocks: Iterable[Block]) -> dict[str, set[str]]:
    """Name of a function or class -> the names that are looked up when it is called."""
    found: dict[str, set[str]] = {}
    for block in blocks:
        if block.deferred:
            for name in block.binds:
                found.setdefault(name, set()).update(block.needs)
    return found


def _with_deferred(live: set[str], deferred: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = live
    while waiting:
        found |= waiting
        waiting = {need for name in waiting for need in deferred.get(name, ())} - found
    return found
