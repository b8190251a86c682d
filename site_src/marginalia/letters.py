"""The letters of recorded shapes: what each axis of a tensor is called, where that is certain.

What the author writes about a line (see `patterns`) names its axes. From there letters spread: with
a tensor to all lines that have it, and within one call of a function by size. An axis gets a letter
if that is the only one it can have in every run of its line. Otherwise it shows its number.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from marginalia.demo import Shape
from marginalia.patterns import Axes, Place, written_axes
from marginalia.rows import trailing_comments
from marginalia.source import tree_of

_OPEN = ""  # for an axis whose letter may still be found; so does `...` for one of several
_NUMBER = "#"  # for an axis without a letter, or with one that is in doubt

_LETTER = re.compile(r"[^\W\d]\w*'*")

_Sizes = dict[tuple[int, str], set[int]]  # a call and a letter -> the sizes it has there
_Slot = tuple[Place, int, int]  # an axis of a name in a line: how many there are, and which
_Rule = Callable[[int, int, int, int], set[str]]  # see the methods `by_...` of `_Record`


def letters(
    text: str, shapes: Sequence[Shape], declared: Collection[str]
) -> dict[int, tuple[str, ...]]:
    """Find the letters of the axes of recorded tensors.

    Args:
        text: The source that ran; its prose and comments may have changed since.
        shapes: What was recorded.
        declared: The letters that the module declares.

    Returns:
        Position in `shapes` -> for each axis its letter, or its size as text. Tensors without
        any letter are left out.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    recorded = {_place(shape) for shape in shapes}
    record = _Record(shapes)
    record.write(written_axes(tree_of(text), trailing_comments(text), declared, recorded))
    while any(map(record.spread, (record.by_object, record.by_ellipsis, record.by_size))):
        pass  # what one rule finds may help the others, of which the most certain comes first
    while record.drop_doubtful():
        pass
    return {
        index: tuple(
            axis if _is_known(axis) else str(size)
            for axis, size in zip(label, shapes[index].shape, strict=True)
        )
        for index, label in enumerate(record.labels)
        if any(map(_is_known, label))
    }


class _Record:
    """Recorded shapes, and what is known of their letters so far.

    A rule answers what letters an axis may have by the evidence of one run. It is asked with the
    position of the shape and of the axis, and the serials of the call and of the tensor.

    Args:
        shapes: What was recorded.

    Attributes:
        labels: For each shape its axes: letters, and marks for what has none.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.labels = [[_OPEN] * len(shape.shape) for shape in shapes]
        self._shapes = shapes
        self._counts = [Counter(shape.shape) for shape in shapes]
        self._places = [_place(shape) for shape in shapes]
        # Shapes with a letter, as a pass over all begins: what they call each size, and by calls
        self._named: dict[int, dict[int, set[str]]] = {}
        self._in_call_lettered: dict[int, list[int]] = {}
        self._slots: dict[_Slot, list[int]] = defaultdict(list)
        self._twins: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._in_call: dict[int, set[int]] = defaultdict(set)
        self._calls_with: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._written: _Sizes = defaultdict(set)
        self._claimed: _Sizes = defaultdict(set)
        self._inferred: list[tuple[_Rule, list[int], int, str]] = []
        for index, shape in enumerate(shapes):
            for call, thing in shape.seen:
                self._in_call[call].add(index)
                self._calls_with[thing][index].add(call)
            if shape.kind == "tensor":
                for axis in range(len(shape.shape)):
                    self._slots[_place(shape), len(shape.shape), axis].append(index)

    def write(self, written: Mapping[Place, Sequence[Axes]]) -> None:
        """Take over what the source says, except where it contradicts itself."""
        ellipses: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for index, shape in enumerate(self._shapes):
            fitting = (_fitted(axes, shape.shape) for axes in written.get(_place(shape), ()))
            self.labels[index] = next(filter(None, fitting), self.labels[index])
            for axis, name in enumerate(self.labels[index]):
                if name.startswith("..."):
                    self._twins[index, axis] = ellipses[name]
                    ellipses[name].append((index, axis))
                for call, size in self._sizes_of([index], axis) if _is_known(name) else ():
                    self._written[call, name].add(size)
        for index, label in enumerate(self.labels):
            for axis, name in enumerate(label):
                runs = self._sizes_of([index], axis) if _is_known(name) else ()
                if not all(_may_be(name, size, call, self._written) for call, size in runs):
                    label[axis] = _NUMBER

    def spread(self, rule: _Rule) -> bool:
        """Give axes the letters that a rule finds, except where these contradict others.

        Returns:
            Whether it found any.
        """
        found = []
        self._note_lettered()
        for (_, _, axis), members in self._slots.items():
            still = [index for index in members if _is_open(self.labels[index][axis])]
            name = self._only(rule, still, axis)
            if _is_known(name):
                found.append((still, axis, name))
        for members, axis, name in found:
            for call, size in self._sizes_of(members, axis):
                self._claimed[call, name].add(size)
        for members, axis, name in found:
            certain = all(
                (self._written.get((call, name)) or self._claimed[call, name]) == {size}
                for call, size in self._sizes_of(members, axis)
            )
            self._set(members, axis, name if certain else _NUMBER)
            if certain:
                self._inferred.append((rule, members, axis, name))
        return bool(found)

    def drop_doubtful(self) -> bool:
        """Take back letters that no longer follow, now that more is known of other tensors.

        Returns:
            Whether there were any.
        """
        self._note_lettered()
        doubtful = [
            (members, axis)
            for rule, members, axis, name in self._inferred
            if self._only(rule, members, axis) != name
            or self._only(self.by_object, members, axis) not in (_OPEN, name)
        ]
        self._inferred = [it for it in self._inferred if it[1:3] not in doubtful]
        for members, axis in doubtful:
            self._set(members, axis, _NUMBER)
        return bool(doubtful)

    def _note_lettered(self) -> None:
        self._in_call_lettered.clear()
        self._named.clear()
        for index, label in enumerate(self.labels):
            if any(map(_is_known, label)):
                names = self._named[index] = defaultdict[int, set[str]](set)
                for name, size in zip(label, self._shapes[index].shape, strict=True):
                    names[size].add(name if _LETTER.fullmatch(name) else _NUMBER)

    def _only(self, rule: _Rule, members: Sequence[int], axis: int) -> str:
        """The letter of an axis of some shapes, if it is the only one possible in all runs."""
        possible: set[str] | None = None
        for index in members:
            for call, thing in self._shapes[index].seen:
                here = rule(index, axis, call, thing)
                possible = here if possible is None else possible & here
                if not possible:
                    return _OPEN
        return possible.pop() if possible and len(possible) == 1 else _OPEN

    def by_object(self, index: int, axis: int, call: int, thing: int) -> set[str]:
        """The letters that the same tensor has in other lines of the call, or else elsewhere."""
        here: set[str] = set()
        elsewhere: set[str] = set()
        for other, calls in self._calls_with[thing].items():
            if other != index and self._shapes[other].shape == self._shapes[index].shape:
                (here if call in calls else elsewhere).add(self.labels[other][axis])
        return set(filter(_is_known, here)) or set(filter(_is_known, elsewhere))

    def by_ellipsis(self, index: int, axis: int, call: int, thing: int) -> set[str]:
        """The letters that the same `...` has in other tensors of the call."""
        twins = self._twins.get((index, axis), ())
        others = [twin for twin in twins if twin[0] != index and twin[0] in self._in_call[call]]
        return {self.labels[other][at] for other, at in others if _is_known(self.labels[other][at])}

    def by_size(self, index: int, axis: int, call: int, thing: int) -> set[str]:
        """The letters that have this size in the call.

        One tensor with letters must have all sizes of this one, so that letters which never meet
        do not come together by chance.
        """
        size, place, counts = self._shapes[index].shape[axis], self._places[index], self._counts
        others = [n for n in self._lettered_in(call) if self._places[n] != place]
        large = [(its, count) for its, count in counts[index].items() if its > 1]
        if not any(all(counts[n][its] >= count for its, count in large) for n in others):
            return set()
        names = set().union(*(self._named[n].get(size, ()) for n in others))
        return names | {_NUMBER} if size == 1 else names

    def _lettered_in(self, call: int) -> list[int]:
        """The shapes with a letter that were seen in a call."""
        if call not in self._in_call_lettered:
            self._in_call_lettered[call] = [n for n in self._in_call[call] if n in self._named]
        return self._in_call_lettered[call]

    def _sizes_of(self, members: Iterable[int], axis: int) -> Iterator[tuple[int, int]]:
        """The calls in which some shapes were seen, each with the size of an axis."""
        for index in members:
            for call, _ in self._shapes[index].seen:
                yield call, self._shapes[index].shape[axis]

    def _set(self, members: Iterable[int], axis: int, name: str) -> None:
        for index in members:
            self.labels[index][axis] = name


def _place(shape: Shape) -> Place:
    return shape.line, shape.name


def _is_open(name: str) -> bool:
    return name == _OPEN or name.startswith("...")


def _is_known(name: str) -> bool:
    return not _is_open(name) and name != _NUMBER


def _fitted(axes: Axes, sizes: Sequence[int]) -> list[str] | None:
    """Axes as the label of a tensor; None if they do not fit its sizes."""
    for at, axis in enumerate(axes):
        if axis.startswith("..."):
            missing = len(sizes) - len(axes) + 1
            several = (f"{axis}.{missing - place}" for place in range(missing))
            axes = (*axes[:at], *several, *axes[at + 1 :])
            break
    if len(axes) != len(sizes):
        return None
    known: dict[str, int] = {}
    for axis, size in zip(axes, sizes, strict=True):
        if axis != "?" and known.setdefault(axis, size) != size:
            return None
        if axis.isdigit() and int(axis) != size:
            return None
    return [_NUMBER if axis == "?" or axis.isdigit() else axis for axis in axes]


def _may_be(name: str, size: int, call: int, sizes: _Sizes) -> bool:
    """Whether a letter has one size in a call, and a product that of its letters, where known."""
    words = re.split("[·*×]", name)
    factors = [{int(w)} if w.isdigit() else sizes.get((call, w), set()) for w in words]
    known = all(len(factor) == 1 for factor in factors)
    product = math.prod(next(iter(factor)) for factor in factors) if known else size
    return len(sizes[call, name]) == 1 and size == product
