"""Plans: a computation on arrays recorded as a graph, from which code is derived. Knows no networks.

graph        symbolic arrays, their operations and the buffers that they are read from and stored to
operations   what each operation means: its result's dtype, and how NumPy and CuPy compute it with `out=`
stepwise     runs a plan operation by operation, into buffers that are assigned once
fusion       groups operations into loops
schedule     shares loops out among threads, and places the barriers
"""

from dnn.backends.plan.graph import Buffer, Plan, PlanError, Value

__all__ = ["Buffer", "Plan", "PlanError", "Value"]
