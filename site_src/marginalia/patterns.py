"""What a source says of the axes of its tensors, in shape comments and in einops patterns:

def attend(q, k):  # [b n d], [b m d] -> [b n m]
    scores = einsum(q, k, "b n d, b m d -> b n m")
    return scores.softmax(dim=-1)  # b n m
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from marginalia.rewrite import Function, arguments, blocks, bound_names

Axes = tuple[str, ...]  # letters, numbers, products such as `h·w`, one `...`, `?` for all else
Place = tuple[int, str]  # the line and the name under which a tensor is recorded
_Found = Iterator[tuple[Place, Axes]]
_Pattern = tuple[list[tuple[ast.expr, Axes]], Axes]  # what it takes and what it gives

_WORD = re.compile(r"[^\W\d]\w*'*|\d+")
_PRODUCT = re.compile(rf"(?:{_WORD.pattern})(?:(?://|[*/+\-·×])(?:{_WORD.pattern}))+")
_PIECE = re.compile(r"(?:\([^()]*\)|[^\s()])+")
_SHAPES = r"\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*"
_SIGNATURE = re.compile(rf"({_SHAPES})?\s*(?:->|→)\s*({_SHAPES})(?=$|[\s,;.:(])[^\[\]]*")
_KEEPS_SHAPE = re.compile(
    "abs|bool|clone|contiguous|cpu|cuda|detach|double|dropout|elu|exp|float|gelu|half|log"
    "|log_softmax|long|masked_fill|neg|relu|sigmoid|silu|softmax|softplus|sqrt|square|tanh|to"
)


def written_axes(
    tree: ast.Module,
    comments: Mapping[int, str],
    declared: Collection[str],
    recorded: Collection[Place],
) -> dict[Place, list[Axes]]:
    """Read the axes of tensors off a source.

    Args:
        tree: The source.
        comments: Its trailing comments, by line.
        declared: The letters that it declares.
        recorded: Where it is known to have a tensor.

    Returns:
        Where a tensor is recorded -> the axes it should have, the most certain first. An axis
        `...12` stands for any number of axes, the same wherever line 12 names them.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    scopes = (tree, *functions)
    steps = [node for scope in scopes for node in _statements(scope.body) if _names(node)]
    from_signatures = list(_from_signatures(functions, comments, recorded))
    spoken = [axes for _, axes in from_signatures] + list(_all_patterns(tree))
    known = {*declared, *(word for axes in spoken for axis in axes for word in _WORD.findall(axis))}

    found: dict[Place, list[Axes]] = defaultdict(list)
    for place, axes in chain(
        _from_comments(steps, comments, known),
        from_signatures,
        _from_results(steps),
        *(_from_inputs(scope) for scope in scopes),
    ):
        found[place].append(axes)
    return found


# Comments


def _from_comments(
    steps: Sequence[ast.stmt], comments: Mapping[int, str], known: set[str]
) -> _Found:
    """Comments behind assignments and `return`: shapes, if all their letters are known."""
    ends = Counter(_line(step) for step in steps)
    for step in steps:
        line, names = _line(step), _names(step)
        found = _shapes(re.split("->|→", comments.get(line, ""))[-1], line)
        if isinstance(step, ast.Return):
            names = [name for _, name in _parts(step, len(found))]
        if len(names) != len(found) or ends[line] > 1:
            continue
        for name, axes in zip(names, found, strict=True):
            words = {word for axis in axes for word in _WORD.findall(axis)}
            if "?" not in axes and all(word.isdigit() or word in known for word in words):
                yield (line, name), axes


def _from_signatures(
    functions: Iterable[Function], comments: Mapping[int, str], recorded: Collection[Place]
) -> _Found:
    """Comments behind signatures, `[b n d], [b m d] -> [b n]`: all arguments, and all results."""
    for function in functions:
        header = range(function.lineno, max(function.body[0].lineno, function.lineno + 1))
        matches = (_SIGNATURE.fullmatch(comments.get(line, "")) for line in header)
        for match in filter(None, matches):
            taken = _shapes(match[1] or "", function.lineno)
            results = _shapes(match[2], function.lineno)
            places = [(function.lineno, name) for name in _tensor_arguments(function, recorded)]
            yield from zip(places, taken, strict=False)
            for step in _statements(function.body):
                if isinstance(step, ast.Return):
                    yield from zip(_parts(step, len(results)), results, strict=True)


def _tensor_arguments(function: Function, recorded: Collection[Place]) -> Iterator[str]:
    """The arguments that are tensors, in order, as far as that is certain."""
    here = {name for line, name in recorded if line == function.lineno}
    for arg in arguments(function):
        if any(re.match(rf"{arg.arg}[.\[]", name) for name in here):
            return  # a tuple or the like, of who knows how many
        if arg.arg in here or (arg.annotation and "Tensor" in ast.unparse(arg.annotation)):
            yield arg.arg


def _parts(step: ast.Return, count: int) -> list[Place]:
    """Where the results of a `return` are recorded."""
    names = [f"return[{index}]" for index in range(count)] if count > 1 else ["return"]
    return [(_line(step), name) for name in names]


def _shapes(text: str, line: int) -> list[Axes]:
    """The axes in `[b n d], [b m d]`, or in `b n d` if there are no brackets."""
    text = text.strip()
    if re.fullmatch(_SHAPES, text):
        return [_axes(inside, line) for inside in re.findall(r"\[([^\[\]]*)\]", text)]
    return [_axes(text, line)] if text else []


def _axes(text: str, line: int) -> Axes:
    """The axes in `b c h w` or `b, c, 4*d, (h w)`."""
    text = text.replace("′", "'").replace("’", "'").replace("…", "...")
    pieces = re.split(r",(?![^()]*\))", text) if "," in text else _PIECE.findall(text)
    axes = tuple(_axis(piece.strip()) for piece in pieces if piece.strip())
    if axes.count("...") > 1:
        return ()
    return tuple(f"...{line}" if axis == "..." else axis for axis in axes)


def _axis(piece: str) -> str:
    if piece == "..." or _WORD.fullmatch(piece):
        return piece
    if re.fullmatch(r"\([^()]*\)", piece):
        words = piece[1:-1].split()
        return ("·".join(words) or "1") if all(map(_WORD.fullmatch, words)) else "?"
    joined = "".join(piece.split())
    return joined if _PRODUCT.fullmatch(joined) else "?"


# Patterns


def _from_results(steps: Sequence[ast.stmt]) -> _Found:
    """Patterns, as to what they give."""
    for step in steps:
        for name, value in _values(step):
            if pattern := _pattern(value):
                yield (_line(step), name), pattern[1]


def _from_inputs(scope: ast.Module | Function) -> _Found:
    """Patterns, as to the variables they take, if these are bound once and always get there."""
    stored = Counter(
        node.id
        for node in ast.walk(scope)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )
    places = {}
    if isinstance(scope, Function):
        places = {arg.arg: scope.lineno for arg in arguments(scope) if not stored[arg.arg]}
    for step in _statements(scope.body):
        places |= {name: _line(step) for name in _names(step) if stored[name] == 1}
    for step in _unconditional(scope.body):
        for pattern in filter(None, (_pattern(value) for _, value in _values(step))):
            for node, axes in pattern[0]:
                if isinstance(node, ast.Name) and node.id in places:
                    yield (places[node.id], node.id), axes


def _all_patterns(tree: ast.Module) -> Iterator[Axes]:
    """All that patterns say, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (pattern := _einops(node)):
            yield from (axes for _, axes in pattern[0])
            yield pattern[1]


def _pattern(node: ast.expr) -> _Pattern | None:
    """The pattern that names the axes of a value, if nothing around it changes its shape."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _pattern(inner)
        case ast.BinOp(left=left, right=right):
            if _is_number(right):
                return _pattern(left)
            return _pattern(right) if _is_number(left) else None
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=args) if (
            _KEEPS_SHAPE.fullmatch(name)
        ):
            return _pattern(owner) or (_pattern(args[0]) if args else None)
        case ast.Call():
            return _einops(node)
    return None


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is a number, and for certain no tensor."""
    match node:
        case ast.Constant(value=int() | float()):
            return True
        case ast.UnaryOp(operand=inner):
            return _is_number(inner)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) and _is_number(right)
        case ast.Subscript(value=ast.Attribute(attr="shape"), slice=index):
            return not isinstance(index, ast.Slice)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"))):
            return True
    return False


def _einops(node: ast.Call) -> _Pattern | None:
    """The pattern of `rearrange`, `reduce`, `repeat`, `einsum` or a layer of einops."""
    function, args = node.func, node.args
    match function:
        case ast.Call(func=layer, args=options):  # Rearrange("b c -> c b")(x)
            function, args = layer, [*args, *options]
    name = getattr(function, "id", "") or getattr(function, "attr", "")
    if name.lower() not in ("rearrange", "reduce", "repeat", "einsum"):
        return None
    texts = [arg for arg in args if isinstance(arg, ast.Constant) and "->" in str(arg.value)]
    if len(texts) != 1 or any(isinstance(arg, ast.Starred) for arg in args):
        return None
    text, at = str(texts[0].value), args.index(texts[0])
    if name == "einsum" and at == 0:  # torch's, a letter an axis
        text = re.sub(r"(?<=\w)(?=\w)", " ", text.replace(" ", "")).replace("...", " ... ")
    left, _, right = text.partition("->")
    inputs = [_axes(side, node.lineno) for side in left.split(",")]
    tensors = args[at + 1 :] or args[:at] if name == "einsum" else args[:1]
    pairs = list(zip(tensors, inputs, strict=False)) if len(tensors) == len(inputs) else []
    return pairs, _axes(right, node.lineno)


# Statements


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a function or a module, in order, without those of functions in it."""
    for node in body:
        yield node
        for block in blocks(node):
            yield from _statements(block)


def _unconditional(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run whenever a function runs to its end."""
    for node in body:
        yield node
        if isinstance(node, ast.With):
            yield from _unconditional(node.body)
        if any(isinstance(part, ast.Return) for part in ast.walk(node)):
            return


def _line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _names(node: ast.stmt) -> list[str]:
    """What a statement binds, under the names by which it is recorded."""
    match node:
        case ast.Return(value=ast.expr()):
            return ["return"]
        case ast.Assign(targets=targets):
            return [name for target in targets for name, _ in bound_names(target)]
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            return [name for name, _ in bound_names(target)]
    return []


def _values(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """What a statement binds, each name with the expression that is its value."""
    match node:
        case ast.Return(value=ast.Tuple(elts=items)):
            yield from ((f"return[{index}]", item) for index, item in enumerate(items))
        case ast.Assign(targets=[ast.Tuple(elts=parts)], value=ast.Tuple(elts=items)):
            if len(parts) == len(items):
                for part, item in zip(parts, items, strict=True):
                    yield from ((name, item) for name, _ in bound_names(part))
        case ast.Return(value=ast.expr() as value):
            yield "return", value
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=value):
            yield from ((name, value) for name, _ in bound_names(target))
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield from ((name, value) for name, _ in bound_names(target))
