"""That fused operations do to memory what the plan says, in its order.

Fusion moves operations: a value is computed in the place of its store, or later than it was asked for. Where a plan
writes and reads the same memory in an intricate order, such a move could read what is not there yet, or no longer. So
every read and every write is checked against the plan; where one is out of order, the plan is run one operation after
the other, in the order in which it was written down.
"""

from __future__ import annotations

from collections import defaultdict

from dnn.backends.plan.fusion import (
    FREE,
    SINGLE,
    Fused,
    Loop,
    Operation,
    Product,
    class_of,
    fuse,
    grid,
    is_reduction,
    place_of,
    stripped,
)
from dnn.backends.plan.graph import VIEWS, Buffer, Plan, Value, View, live_nodes, live_temporaries


def fused_in_order(plan: Plan) -> Fused:
    """The operations of a plan: fused, where that keeps its order, else one by one."""
    fused = fuse(plan)
    return fused if keeps_order(plan, fused) else one_by_one(plan)


def keeps_order(plan: Plan, fused: Fused) -> bool:
    """Whether every operation reads what the plan has stored when it reads, and stores come in their order."""
    live = live_nodes(plan)
    stores = [node for node in plan.nodes if node.op == "store" and node in live]
    computed_at: dict[Value, int] = {}
    for position, op in enumerate(fused.operations):
        for value in [op.value] if isinstance(op, Product) else op.outputs:
            computed_at[value] = position
    # what is computed in its store's place is stored when it is computed
    home_of = {store: value for value, store in fused.homes.items()}
    stored_at = {store: computed_at[home_of.get(store, store)] for store in stores}

    stores_to: dict[Buffer, list[Value]] = defaultdict(list)
    for later in stores:
        place: View = later.attributes[0]
        for store in stores_to[place.buffer]:
            if stored_at[later] <= stored_at[store] and place.overlaps(store.attributes[0]):
                return False
        stores_to[place.buffer].append(later)
    for position, op in enumerate(fused.operations):
        for value, view in _reads(fused, op):
            source = _source(value)
            for store in stores_to.get(view.buffer, ()):
                place = store.attributes[0]
                if not place.overlaps(view):
                    continue
                at = stored_at[store]
                if source.op == "load" and store.number in source.attributes[1]:
                    if at >= position:
                        return False
                    continue
                if source.op != "load" and (home_of.get(store) is source or at < computed_at[source]):
                    continue
                # what another store writes there comes after it has been read
                if at < position or (at == position and not _in_step(fused, op, view, place)):
                    return False
            if source.op != "load" and computed_at[source] >= position:
                return False
    return True


def _reads(fused: Fused, op: Operation) -> list[tuple[Value, View]]:
    if isinstance(op, Product):
        return [(op.value.inputs[0], op.A), (op.value.inputs[1], op.B)]
    return [(value, view) for value, view, _ in fused.leaves(op)]


def _source(value: Value) -> Value:
    """The load or the computed value that a view is of."""
    while value.op in VIEWS:
        value = value.inputs[0]
    return value


def _in_step(fused: Fused, op: Operation, read: View, written: View) -> bool:
    """Whether an operation may write where it reads: element by element, or all reads before all writes."""
    if isinstance(op, Product):
        return False
    if op.kind == "single":
        return True
    chosen = any(gathered and view.overlaps(written) for _, view, gathered in fused.leaves(op))
    reduces = any(is_reduction(value) for value in fused.computed(op))
    same = (read.buffer, read.start, grid(read.shape)) == (written.buffer, written.start, grid(written.shape))
    return op.kind == "rows" and same and read.strides == written.strides and not chosen and not reduces


def one_by_one(plan: Plan) -> Fused:
    """Every operation for itself, into memory of its own, in the order of the plan; stores are copies."""
    live = live_nodes(plan)
    places: dict[Value, View] = {}
    temporaries = live_temporaries(plan)
    operations: list[Operation] = []
    for node in plan.nodes:
        if node not in live or node.op in ("load", *VIEWS, *FREE):
            continue
        if node.op == "store":
            shape = grid(stripped(node.inputs[0]).shape)
            operations.append(Loop("single" if shape == (1, 1) else "rows", shape, {node: [node.attributes[0]]}))
            continue
        flat = class_of(node)[0] == "range"
        buffer = Buffer(f"%{node.number}", (node.size,) if flat else node.shape, node.dtype, keeps=False)
        temporaries.append(buffer)
        places[node] = buffer.part(0, node.shape)
        if node.op == "dot":
            a, b = (place_of(value, places) for value in node.inputs)
            assert a is not None and b is not None
            operations.append(Product(node, a, b, places[node]))
            continue
        domain = grid(stripped(node.inputs[0]).shape if is_reduction(node) else node.shape)
        kind = "single" if class_of(node) == SINGLE else "columns" if is_reduction(node, 0) else "rows"
        operations.append(Loop(kind, (1, 1) if kind == "single" else domain, {node: [places[node]]}))
    return Fused(operations, places, temporaries, {})
