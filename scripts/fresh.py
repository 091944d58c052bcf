"""Start-up times of a new process, in ms as JSON; `benchmark.py start` runs it repeatedly.

python scripts/fresh.py import              numpy, then dnn
python scripts/fresh.py fit 2-20-3-1 400    two equal fits of a network: one epoch of one batch of 400
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def imports() -> dict[str, float]:
    started = time.perf_counter()
    import numpy  # noqa: F401

    between = time.perf_counter()
    import dnn  # noqa: F401

    return {"numpy": 1e3 * (between - started), "dnn": 1e3 * (time.perf_counter() - between)}


def fits(sizes: list[int], m: int) -> dict[str, float]:
    import numpy as np

    import dnn

    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((m, sizes[0]), np.float32), generator.integers(0, max(sizes[-1], 2), m)
    network = dnn.Network(sizes, output="sigmoid" if sizes[-1] == 1 else "softmax", seed=1)
    times = {}
    for name in ("first fit", "second fit"):
        started = time.perf_counter()
        network.fit(X, Y, epochs=1, batch_size=m, optimizer=dnn.Adam(0.001), verbose=False)
        times[name] = 1e3 * (time.perf_counter() - started)
    return times | {"difference": times["first fit"] - times["second fit"]}


if __name__ == "__main__":
    what, *network = sys.argv[1:]
    print(json.dumps(imports() if what == "import" else fits([int(n) for n in network[0].split("-")], int(network[1]))))
