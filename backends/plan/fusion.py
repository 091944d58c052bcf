"""From a plan's graph to the operations that machines run: products, and loops that compute many values at once.

Values that are used inside one loop never reach memory. A loop belongs to a *class*, which says how its work may be
shared out: by rows of a batch, by ranges of a flat buffer, or not at all. A value reaches memory where a product reads
it, where a store asks for it, or where a loop of another class or a later stage needs it and computing it again would
cost more than a load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from dnn.backends.plan.graph import VIEWS, Buffer, Plan, PlanError, Value, View, live_nodes, live_temporaries
from dnn.backends.plan.operations import ELEMENTWISE

CHEAP = 8
"""Up to this cost an operation is done again where its result is needed later, and its operands are in memory."""

FREE = ("constant", "iota", "broadcast")
"""Operations that every loop does for itself."""

Class = tuple[str, int]
SINGLE: Class = ("single", 1)


@dataclass(eq=False)
class Product:
    """C = A B."""

    value: Value
    A: View
    B: View
    C: View

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(rows of C, columns of C, terms of each sum)"""
        return (*self.C.shape, self.A.shape[1])  # type: ignore[return-value]


@dataclass(eq=False)
class Loop:
    """Values computed together over the rows and columns of one domain.

    kind      rows: element by element, with reductions along rows; columns: reductions of columns; single: scalars,
              with reductions of whole arrays
    shape     (rows, columns) of the domain; a flat array is one row
    outputs   what reaches memory, and where
    again     values that another loop beside it brings to memory, and that it computes for itself
    """

    kind: str
    shape: tuple[int, int]
    outputs: dict[Value, list[View]] = field(default_factory=dict)
    again: set[Value] = field(default_factory=set)


Operation = Product | Loop


@dataclass
class Fused:
    """Operations in an order that respects what they read and write, and the memory that they need.

    `places` has the memory of every value that has some, `homes` the store in whose place a value is computed.
    """

    operations: list[Operation]
    places: dict[Value, View]
    temporaries: list[Buffer]
    homes: dict[Value, Value]

    def place(self, value: Value) -> View | None:
        """Where a value is in memory; None for one that each loop computes for itself."""
        return place_of(value, self.places)

    def computed(self, loop: Loop) -> list[Value]:
        """What a loop computes."""
        return self._walk(loop)[0]

    def reads(self, loop: Loop) -> list[tuple[View, bool]]:
        """The memory that a loop reads, and whether it is rows that `take` chooses."""
        return [(view, gathered) for _, view, gathered in self.leaves(loop)]

    def leaves(self, loop: Loop, known: Collection[Value] = ()) -> list[tuple[Value, View, bool]]:
        """The values that a loop reads from memory, where they are, and whether `take` chooses rows of them.

        `known`: values that it need not compute.
        """
        return self._walk(loop, known)[1]

    def _walk(self, loop: Loop, known: Collection[Value] = ()) -> tuple[list[Value], list[tuple[Value, View, bool]]]:
        computed: dict[Value, None] = {}
        views: dict[tuple[Value, View, bool], None] = {}
        stack = [(stripped(item), False) for root in loop.outputs
                 for item in ([root] if root.op != "store" else root.inputs)]  # fmt: skip
        while stack:
            value, gathered = stack.pop()
            if value in computed or value.op in FREE or value in known:
                continue
            place = None if value in loop.outputs or value in loop.again else self.place(value)
            if place is not None:
                views[value, place, gathered] = None
                continue
            computed[value] = None
            taken = value.op == "take"
            stack += [(stripped(item), taken and i == 0) for i, item in enumerate(value.inputs)]
        return list(computed), list(views)


def place_of(value: Value, places: dict[Value, View]) -> View | None:
    if value in places:
        return places[value]
    if value.op == "load":
        view: View = value.attributes[0]
        return view
    if value.op == "transpose":
        inner = place_of(value.inputs[0], places)
        return None if inner is None else inner.T
    if value.op == "slice":
        inner = place_of(value.inputs[0], places)
        return None if inner is None else inner.block(value.attributes[0])
    if value.op == "reshape":
        inner = place_of(value.inputs[0], places)
        if inner is None:
            return None
        assert inner.is_contiguous
        return inner.buffer.part(inner.start, value.shape)
    return None


def grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: a flat array is one row."""
    return (1, 1) if not shape else (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def class_of(value: Value) -> Class:
    if value.op in ("sum", "max", "min") and value.attributes[0] is None:
        return SINGLE
    if value.op in ("sum", "max", "min") and value.attributes[0] == 0:
        return ("range", value.size)
    if value.op == "reshape" and is_alias(value):
        return class_of(value.inputs[0])
    if value.size == 1 and value.ndim < 2:
        return SINGLE
    return ("range", value.size) if value.ndim == 1 else ("rows", value.shape[0])


def is_alias(value: Value) -> bool:
    """Whether a reshape changes no index: (n,) and (1, n)."""
    return value.op == "reshape" and grid(value.shape) == grid(value.inputs[0].shape)


def stripped(value: Value) -> Value:
    while is_alias(value):
        value = value.inputs[0]
    return value


def is_reduction(value: Value, axis: int | str | None = "any") -> bool:
    found = value.op in ("sum", "max", "min", "argmax")
    return found and (axis == "any" or value.attributes[0] == axis)


def is_fusable(value: Value) -> bool:
    """Whether it is computed in a loop of its class, beside others."""
    return value.op in ELEMENTWISE or value.op in ("cast", "bitcast", "take") or is_reduction(value, 1)


class _Fusion:
    def __init__(self, plan: Plan) -> None:
        live = live_nodes(plan)
        self.nodes = [node for node in plan.nodes if node in live]
        self.users: dict[Value, list[Value]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for value in node.inputs:
                self.users[stripped(value)].append(node)
        self.stores: dict[Value, list[Value]] = {}
        for node in self.nodes:
            if node.op == "store":
                self.stores.setdefault(stripped(node.inputs[0]), []).append(node)
        self.all_stores = [node for node in self.nodes if node.op == "store"]
        self.numbered = {store.number: store for store in self.all_stores}
        self.stores_to: dict[Buffer, list[Value]] = defaultdict(list)
        self.loads_of: dict[Buffer, list[Value]] = defaultdict(list)
        for node in self.nodes:
            if node.op in ("load", "store"):
                places = self.loads_of if node.op == "load" else self.stores_to
                places[node.attributes[0].buffer].append(node)
        self._known_consumers: dict[Value, list[Value]] = {}
        self.indices = self._indices()
        """Row numbers that each `take` computes for itself."""
        self.homes: dict[Value, Value] = {}
        """The store in whose place a value is computed."""
        for value, stores in self.stores.items():
            for store in stores:
                if self._may_live_in(value, store):
                    self.homes[value] = store
                    break
        self.stage: dict[Value, int] = {}
        self.columns: dict[Value, int | None] = {}
        for node in self.nodes:
            self._place(node)
        self.roots = self._roots()

    def _indices(self) -> set[Value]:
        found: set[Value] = set()
        for node in reversed(self.nodes):
            if node.ndim > 2 or node.dtype.kind not in "iu" or not self.users[node]:
                continue
            cheap = node.op in ELEMENTWISE and ELEMENTWISE[node.op].cost <= CHEAP and node.ndim == 1
            taken = node.op == "take" and node.shape[1] == 1
            flattened = node.op == "reshape" and node.inputs[0].op == "take" and not is_alias(node)
            if (cheap or taken or flattened) and all(
                user in found or (user.op == "take" and stripped(user.inputs[0]) is not node)
                for user in self.users[node]
            ):
                found.add(node)
        return {node for node in found if node.op != "take" or all(user in found for user in self.users[node])}

    # ---------------------------------------------------------------------------------- memory

    def _loads_before(self, store: Value) -> list[Value]:
        view = store.attributes[0]
        loads = self.loads_of[view.buffer]
        return [load for load in loads if load.number < store.number and load.attributes[0].overlaps(view)]

    def _stores_over(self, view: View) -> list[Value]:
        return [store for store in self.stores_to[view.buffer] if store.attributes[0].overlaps(view)]

    def _consumers(self, value: Value) -> list[Value]:
        """What reads a value, through views of it."""
        if value in self._known_consumers:
            return self._known_consumers[value]
        found = self._known_consumers[value] = []
        for user in self.users[value]:
            if user.op in VIEWS or user in self.indices:
                found += self._consumers(user)
            else:
                found.append(user)
        return found

    def _may_live_in(self, value: Value, store: Value) -> bool:
        """Whether a value may be computed in the place of a store: nobody needs what stood there any longer."""
        view: View = store.attributes[0]
        if not (is_fusable(value) or value.op == "dot" or is_reduction(value)):
            return False
        if not view.is_contiguous:
            # a product writes rows with gaps, but no ranges of a flat buffer
            fits = is_fusable(value) or (value.op == "dot" and len(view.buffer.shape) == 2 and view.strides[1] == 1)
            if not fits or class_of(value)[0] != "rows" or self._is_reshaped(value):
                return False
        if class_of(value)[0] == "rows" and view.shape != value.shape:
            return False
        for other in self._stores_over(view):
            if other is not store:
                if value.number < other.number < store.number:
                    return False
                if other.number > store.number and self._last_use(value) > other.number:
                    return False
        for load in self._loads_before(store):
            if any(number > value.number for number in load.attributes[1]):
                return False
            for user in self._consumers(load):
                if user.number > value.number:
                    return False
                if user.number == value.number and not self._in_step(value, load, view):
                    return False
        return True

    def _is_reshaped(self, value: Value) -> bool:
        """Whether a view of a value takes its elements to follow each other."""
        return any(user.op == "reshape" or (user.op in VIEWS and self._is_reshaped(user)) for user in self.users[value])

    def _last_use(self, value: Value) -> int:
        return max((user.number for user in self._consumers(value)), default=value.number)

    def _in_step(self, value: Value, load: Value, view: View) -> bool:
        """Whether element i of the value needs of the load only element i."""
        direct = any(stripped(operand) is load for operand in value.inputs)
        return (
            direct
            and (value.op in ELEMENTWISE or value.op == "cast")
            and load.attributes[0].start == view.start
            and grid(load.attributes[0].shape) == grid(view.shape)
            and load.attributes[0].is_contiguous
            and load.dtype == value.dtype
        )

    # ----------------------------------------------------------------------------------- stages

    def _place(self, node: Value) -> None:
        """The stage of a node: one more than that of everything which must be in memory before it starts."""
        if node.op in ("load", *FREE):
            seen = node.attributes[1] if node.op == "load" else ()
            producers = [self._producer_stage(self.numbered[number]) + 1 for number in seen]
            self.stage[node] = max(producers, default=0)
            self.columns[node] = None
            return
        if node.op in VIEWS:
            inner = stripped(node.inputs[0])
            free = is_alias(node) or inner.op == "load" or node in self.indices
            self.stage[node] = self.stage[inner] + (0 if free else 1)
            self.columns[node] = self.columns[inner] if is_alias(node) else None
            return
        self.columns[node] = self._columns(node)
        stage = 0
        for operand in node.inputs:
            stage = max(stage, self._available(node, stripped(operand)))
        store = node if node.op == "store" else self.homes.get(node)
        if store is not None:
            stage = max(stage, self._after_readers(node, store))
        self.stage[node] = stage

    def _columns(self, node: Value) -> int | None:
        """The number of columns of the loop that a row's value is computed in; None where any loop will do."""
        if class_of(node)[0] != "rows" or not is_fusable(node):
            return None
        if grid(node.shape)[1] > 1:
            return grid(node.shape)[1]
        for operand in map(stripped, node.inputs):
            if is_reduction(node, 1) and grid(operand.shape)[1] > 1:
                return grid(operand.shape)[1]
        for operand in map(stripped, node.inputs):
            if self._in_memory_only(operand) or class_of(operand) != class_of(node):
                continue
            if self.columns[operand] is not None:
                return self.columns[operand]
        return None

    @staticmethod
    def _in_memory_only(value: Value) -> bool:
        return not is_fusable(value) and value.op not in FREE

    def _joins(self, node: Value, operand: Value) -> bool:
        """Whether an operand can be computed in the same loop as the node that reads it."""
        if node.op == "take" or not (is_fusable(node) and is_fusable(operand)):
            return False
        if class_of(node) != class_of(operand):
            return False
        return self.columns[operand] in (None, self.columns[node])

    def _available(self, node: Value, operand: Value) -> int:
        if operand.op in ("load", *FREE) or operand in self.indices:
            return self.stage[operand]
        if operand.op in VIEWS:
            return self.stage[operand]
        if class_of(node) == SINGLE == class_of(operand):
            return self.stage[operand]
        return self.stage[operand] + (0 if self._joins(node, operand) else 1)

    def _producer_stage(self, store: Value) -> int:
        value = stripped(store.inputs[0])
        return self.stage[value] if self.homes.get(value) is store else self.stage[store]

    def _after_readers(self, node: Value, store: Value) -> int:
        stage = 0
        view = store.attributes[0]
        for load in self._loads_before(store):
            for user in self._consumers(load):
                if user is not node and user in self.stage:
                    joined = class_of(user) == class_of(node) and is_fusable(user) and is_fusable(node)
                    joined = joined or class_of(user) == SINGLE == class_of(node)
                    stage = max(stage, self.stage[user] + (0 if joined and load.attributes[0] == view else 1))
        for other in self._stores_over(view):
            if other.number < store.number:
                stage = max(stage, self._producer_stage(other) + 1)
        return stage

    # ------------------------------------------------------------------------------------ roots

    def _roots(self) -> set[Value]:
        """The values that are computed into memory."""
        roots = {value for value in self.stores if is_fusable(value)}
        for node in self.nodes:
            if node.op == "dot" or (is_reduction(node) and not is_fusable(node)):
                roots.add(node)
            for operand in node.inputs:
                value = stripped(operand)
                if value.op in ("load", *FREE, *VIEWS) or value in roots or value in self.indices:
                    continue
                if node.op in ("dot", "take", *VIEWS) and not is_alias(node):
                    roots.add(value)
        changed = True
        while changed:
            changed = False
            for node in self.nodes:
                if node.op in ("store", "dot", "take", *VIEWS) or node in self.indices:
                    continue
                for value in map(stripped, node.inputs):
                    if value in roots or not is_fusable(value):
                        continue
                    same = self._joins(node, value) or class_of(node) == SINGLE == class_of(value)
                    if same and self.stage[value] == self.stage[node]:
                        continue
                    narrow: set[Value] = set()
                    if (
                        class_of(value) == SINGLE
                        or is_reduction(value)
                        or value.op == "take"
                        or not self._cheap_again(value, node, roots, narrow)
                    ):
                        narrow = {value}
                    changed = changed or not narrow <= roots
                    roots |= narrow
        return roots

    def _cheap_again(self, value: Value, user: Value, roots: set[Value], narrow: set[Value], width: int = 0) -> bool:
        """Whether the loop of `user` does better to compute a value again than to load it.

        `narrow` gets the row's own numbers that it is computed from, which are kept in its place: one a row.
        """
        value = stripped(value)
        width = width or grid(value.shape)[1]
        if value in roots or value.op in FREE:
            return True
        if value.op == "load":
            return self._still_there(value, user)
        cheap = (value.op in ELEMENTWISE and ELEMENTWISE[value.op].cost <= CHEAP) or value.op in ("cast", "bitcast")
        if cheap and all(self._cheap_again(operand, user, roots, narrow, width) for operand in value.inputs):
            return True
        if is_fusable(value) and class_of(value) != SINGLE and grid(value.shape)[1] == 1 < width:
            narrow.add(value)
            return True
        return False

    def _still_there(self, load: Value, user: Value) -> bool:
        """Whether memory holds the same when `user` is computed, or is written by the same loop, in step."""
        view, stage = load.attributes[0], self.stage[user]
        for store in self._stores_over(view):
            if store.number > load.number:
                written = self._producer_stage(store)
                value = stripped(store.inputs[0])
                in_step = self.homes.get(value) is store and store.attributes[0] == view
                in_step = in_step and class_of(value) == class_of(user) and class_of(user)[0] == "range"
                if written < stage or (written == stage and not in_step):
                    return False
        return True


def fuse(plan: Plan) -> Fused:
    """The operations of a plan, in order."""
    fusion = _Fusion(plan)
    places: dict[Value, View] = {}
    temporaries = live_temporaries(plan)

    def home(value: Value) -> View:
        if value not in places:
            store = fusion.homes.get(value)
            if store is not None:
                places[value] = store.attributes[0]
            else:
                shape = (value.size,) if class_of(value)[0] == "range" else value.shape
                buffer = Buffer(f"%{value.number}", shape, value.dtype, keeps=False)
                temporaries.append(buffer)
                places[value] = buffer.part(0, value.shape)
        return places[value]

    placed: list[tuple[int, int, Operation]] = []
    for node in fusion.nodes:
        if node in fusion.roots:
            home(node)
    groups: dict[tuple[str, int, Class, int | None], list[_Member]] = {}
    for node in fusion.nodes:
        if node.op == "dot":
            a, b = (place_of(value, places) for value in node.inputs)
            if a is None or b is None:
                raise PlanError(f"a product of numbers that are not in memory ({node.source})")
            placed.append((fusion.stage[node], node.number, Product(node, a, b, places[node])))
        elif node in fusion.roots:
            member = _member(fusion, node, places)
            kind = "single" if class_of(node) == SINGLE else "columns" if is_reduction(node, 0) else "rows"
            key = (kind, fusion.stage[node], class_of(node), member.columns)
            groups.setdefault(key, []).append(member)
    for (kind, stage, _, _), members in groups.items():
        for joint in _connected(members, kind):
            shape = (1, 1) if kind == "single" else joint[0].shape
            for member in joint:
                shape = (max(shape[0], member.shape[0]), max(shape[1], member.shape[1]))
            loop = Loop(kind, (1, 1) if kind == "single" else shape)
            for member in joint:
                loop.outputs[member.root] = [places[member.root]]
            if kind == "rows":
                loop.again = _computed_beside(fusion, loop, stage)
            placed.append((stage, min(member.root.number for member in joint), loop))
    loops = {value: op for _, _, op in placed if isinstance(op, Loop) for value in op.outputs}
    # what is stored but not computed in its place is copied there
    for store in fusion.all_stores:
        value, view = stripped(store.inputs[0]), store.attributes[0]
        if fusion.homes.get(value) is store:
            continue
        row, column = grid(value.shape)
        kind = "single" if row == column == 1 else "rows"
        copy = Loop(kind, (row, column), {store: [view]})
        placed.append((fusion.stage[store], store.number, copy))
        loops[store] = copy
    placed.sort(key=lambda item: item[:2])
    return Fused([op for _, _, op in placed], places, temporaries, fusion.homes)


def _computed_beside(fusion: _Fusion, loop: Loop, stage: int) -> set[Value]:
    """Rows' own values that loops of other widths compute at the same time: no loop waits for another's."""
    found: set[Value] = set()
    stack = [value for root in loop.outputs for value in root.inputs]
    seen: set[Value] = set()
    while stack:
        value = stripped(stack.pop())
        if value in seen or not is_fusable(value) or fusion.stage[value] != stage:
            continue
        seen.add(value)
        if value in fusion.roots and value not in loop.outputs:
            found.add(value)
        stack += value.inputs
    return found


@dataclass(eq=False)
class _Member:
    root: Value
    shape: tuple[int, int]
    columns: int | None
    touches: set[object]
    """The values and the memory that computing it needs: what makes it worth to share a loop."""


def _member(fusion: _Fusion, root: Value, places: dict[Value, View]) -> _Member:
    shape = grid(root.shape)
    touches: set[object] = set()
    reduces = is_reduction(root) and not is_fusable(root)
    stack = [stripped(value) for value in root.inputs] if reduces else [root]
    if reduces:
        shape = grid(stripped(root.inputs[0]).shape)
    if fusion.columns[root] is not None:
        shape = (shape[0], fusion.columns[root] or 1)
    first = True
    touches.add(root)
    if (home := places.get(root)) is not None and home.size > 1:
        touches.add((id(home.buffer), home.start))
    while stack:
        value = stack.pop()
        if value in touches and not first:
            continue
        if value.op in FREE:
            first = False
            continue
        if value.size > 1:
            touches.add(value)
        if first or (is_fusable(value) and value not in fusion.roots) or (
            value in fusion.roots and fusion.stage[value] == fusion.stage[root] and is_fusable(value)
        ):  # fmt: skip
            first = False
            stack.extend(stripped(operand) for operand in value.inputs if is_fusable(value))
        else:
            view = place_of(value, places)
            if view is not None and value.size > 1:
                touches.add((id(view.buffer), view.start))
    return _Member(root, shape, fusion.columns[root], touches)


def _connected(members: list[_Member], kind: str) -> list[list[_Member]]:
    """Members that share what they need: computed together."""
    if kind == "single":
        return [members]
    sets: list[tuple[set[object], list[_Member]]] = []
    for member in members:
        joint = [item for item in sets if item[0] & member.touches]
        merged = set(member.touches).union(*(item[0] for item in joint))
        sets = [item for item in sets if item not in joint]
        sets.append((merged, [*(m for item in joint for m in item[1]), member]))
    return [sorted(found, key=lambda m: m.root.number) for _, found in sets]
