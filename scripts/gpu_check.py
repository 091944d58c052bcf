"""Verification on a GPU, stage by stage; called by gpu_check.sh.

suite     the tests of what depends on the backend, with DNN_REQUIRE_BACKENDS=numpy,cupy
parity    results, order and memory against NumPy, the same kernels without a graph, eager steps and published figures
nodes     kernels and products of a captured step of 784-256-128-10
small     a step of 20-64-32-2 and of 784-256-128-10, against PyTorch and JAX
wide      784-1024-1024-10, 256x8-10 and three layers of 8192, against PyTorch and JAX, and the card's product rate
epoch     an epoch of MNIST's shape with fit, data on the device or fed from the host, against the peers' loops
compiled  the steps of small and wide against torch.compile
table     writes the available figures to README.md; every run ends with it

A stage consists of parts, of four minutes at most, and each part's figures are written to the results file as it ends.
A run that was interrupted, or ran out of time, is resumed by the same command.

Nothing passes in silence: it is an error where cuBLAS does not load, where no step is captured, where no derived kernel
runs, and where a part fails or lacks what it needs. The last lines, and the results file, say what was not measured.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_parity
import gpu_speed
from facts import ROOT, NotMeasured, commit, versions_of
from gpu_capture import check_capture, lost, version_of_cublas
from gpu_parity import Parts
from tables import Figures

from dnn.backends import BackendUnavailableError, get_backend
from dnn.files import write_whole

README = ROOT / "README.md"
RESULTS = ROOT / "scripts" / "results"
LIMIT, GRACE = 240, 10
"""Seconds that a part may take, and those that it has to end then."""
RUN_AGAIN = 75
"""The exit status where another process must go on: this one has lost the device."""

STAGES: dict[str, Callable[[str], Parts]] = {
    "suite": gpu_parity.suite,
    "parity": gpu_parity.parity,
    "nodes": gpu_speed.count_nodes,
    "small": gpu_speed.small,
    "wide": gpu_speed.wide,
    "epoch": gpu_speed.epoch,
    "compiled": gpu_speed.compiled,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}, table (all)")
    parser.add_argument("--again", action="store_true", help="also measure parts that have a result for this commit")
    parser.add_argument("--minutes", type=float, default=9, help="end after this time, also amid a part (9)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(scripts/results)")
    parser.add_argument("--rehearse", action="store_true", help="run on numpy, in small; writes nothing")
    given = parser.parse_args(arguments)
    if unknown := set(given.stages) - {*STAGES, "table"}:
        parser.error(f"no stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)} and table")
    if given.stages == ["table"]:
        write_table(given.results, README)
        return
    # a process that goes on for one that crashed has its time, and does not try again what that one tried
    began = float(os.environ.get("GPU_CHECK_BEGAN") or time.time())
    backend = "numpy" if given.rehearse else "cupy"
    results = Results(None if given.rehearse else given.results, *ready(backend), began)
    stages = [stage for stage in given.stages or STAGES if stage != "table"]
    unfinished = [
        stage for stage in stages if not run(stage, backend, results, given.again, began + 60 * given.minutes)
    ]
    gaps = not_measured(backend, results)
    results.note(gaps)
    if not given.rehearse:
        write_table(given.results, README)
    for gap in gaps:
        print(f"gpu_check: not measured: {gap}", file=sys.stderr)
    close(results.of_this_commit(), unfinished, gaps)


def close(parts: dict[str, Figures], unfinished: list[str], gaps: list[str]) -> None:
    """The last line: that all is well, or the exit with what is not."""
    failed = {name: part.get("error", "") for name, part in parts.items() if not part["ok"]}
    skipped = [name for name, part in parts.items() if "not measured" in part]
    if failed:
        each = (f"{name} ({why})" if why else name for name, why in failed.items())
        sys.exit(f"gpu_check: failed: {'; '.join(each)}")
    if skipped:
        sys.exit(f"gpu_check: skipped, so this is no pass: {'; '.join(skipped)}")
    if unfinished:
        sys.exit(f"gpu_check: out of time in {', '.join(unfinished)}: run the same command again to continue")
    print(f"gpu_check: {len(parts)} parts passed" + (f", but {len(gaps)} gaps are named above" if gaps else ""))


def ready(backend: str) -> tuple[str, Figures]:
    """The device, and the versions of what is used; exits where nothing that follows could mean anything."""
    versions: Figures = {}
    try:
        if backend == "cupy":
            versions["cuBLAS"] = version_of_cublas()
    except Exception as error:
        sys.exit(f"gpu_check: cuBLAS does not load: {first_line(error)}")
    try:
        device = get_backend(backend).device
        with limit(60, status=1):
            check_capture(backend)
    except BackendUnavailableError as error:
        sys.exit(f"gpu_check: {error}")
    except (Exception, OutOfTime) as error:
        sys.exit(f"gpu_check: a first fit fails: {first_line(error)}")
    return device, versions_of(backend) | versions


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run(stage: str, backend: str, results: Results, again: bool, deadline: float) -> bool:
    """Measure the parts of this stage that have no result yet; return whether all are done."""
    for part, measure in STAGES[stage](backend):
        name = f"{stage}: {part}"
        if results.has(name, again):
            print(f"{name}: already measured for {results.commit}")
            continue
        left = deadline - time.time()
        if left <= 0:
            return False
        print(f"{name} ...", flush=True)
        results.begin(name)
        started = time.perf_counter()
        try:
            with limit(min(LIMIT, left)):
                figures = measure()
        except OutOfTime:
            if left < LIMIT:
                results.leave()
                return False
            figures = {"ok": False, "error": f"took more than {LIMIT} s"}
        except NotMeasured as why:
            figures = {"not measured": str(why)}
        except Exception as error:
            figures = {"ok": False, "error": f"{type(error).__name__}: {first_line(error)}"}
        figures = {"ok": True} | figures | {"seconds": round(time.perf_counter() - started, 1)}
        print(json.dumps(figures, indent=1), flush=True)
        results.add(name, figures)
        if not figures["ok"] and lost(backend):
            print(f"gpu_check: {name}: the device is lost to this process", file=sys.stderr)
            sys.exit(RUN_AGAIN)
    return True


class OutOfTime(BaseException):
    """No Exception: a peer's failure is caught and noted, this is none."""


@contextmanager
def limit(seconds: float, status: int = RUN_AGAIN) -> Iterator[None]:
    """Raise OutOfTime after this time; exit with `status` where that is of no use, since the device does not answer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    def hung() -> None:
        faulthandler.dump_traceback()
        print("gpu_check: the device does not answer", file=sys.stderr, flush=True)
        os._exit(status)

    watch = threading.Timer(seconds + GRACE, hung)
    watch.daemon = True
    watch.start()
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watch.cancel()


def not_measured(backend: str, results: Results) -> list[str]:
    """What has no figures of this commit: parts not run or without what they need, and peers left out, with reasons."""
    gaps: dict[str, list[str]] = {}
    parts = results.of_this_commit()
    for stage, parts_of in STAGES.items():
        names = [f"{stage}: {part}" for part, _ in parts_of(backend)]
        missing = [name for name in names if name not in parts]
        if missing or not names:
            gaps[f"{stage}: {len(missing) or 'all'} of its parts not run"] = []
        for name in names:
            part = parts.get(name, {})
            if "not measured" in part:
                gaps[f"{name}: {part['not measured']}"] = []
            if part.get("skipped"):
                gaps[f"{name}: {part['summary']}"] = []
            for peer, why in part.get("left out", {}).items():
                gaps.setdefault(f"{peer}: {why}", []).append(name)
    return [f"{gap} ({len(names)} parts)" if names else gap for gap, names in gaps.items()]


class Results:
    """The figures of one device, in a file that is rewritten after every part; without a folder, in memory only."""

    def __init__(self, folder: Path | None, device: str, versions: Figures, began: float) -> None:
        self.commit = commit()
        self._versions, self._began = versions, began
        self._path = folder and folder / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
        there = self._path and self._path.exists()
        self._all: Figures = json.loads(self._path.read_text()) if self._path and there else {"device": device}
        self._parts: dict[str, Figures] = self._all.setdefault("parts", {})
        begun = self._all.pop("begun", None)
        if begun and begun["at"] >= began:
            self.add(begun["name"], {"ok": False, "error": "it ended the process"})

    def of_this_commit(self) -> dict[str, Figures]:
        return {name: part for name, part in self._parts.items() if part["commit"] == self.commit}

    def has(self, name: str, again: bool = False) -> bool:
        """Whether it was measured for this commit; or was at least tried, by a process of this run that crashed."""
        part = self.of_this_commit().get(name)
        if part is None:
            return False
        return part["at"] >= self._began or (part["ok"] and "not measured" not in part and not again)

    def add(self, name: str, figures: Figures) -> None:
        about = {"commit": self.commit, "date": str(datetime.date.today()), "at": time.time()}
        self._parts[name] = about | figures | {"versions": self._versions}
        self.leave()

    def begin(self, name: str) -> None:
        """Note it, so that what ends the process is not tried for ever."""
        self._all["begun"] = {"name": name, "at": time.time()}
        self._write()

    def leave(self) -> None:
        self._all.pop("begun", None)
        self._write()

    def note(self, gaps: list[str]) -> None:
        self._all["not measured"] = {"commit": self.commit, "what": gaps}
        self._write()

    def _write(self) -> None:
        if self._path:
            write_whole({str(self._path): (json.dumps(self._all, indent=1) + "\n").encode()})


# ------------------------------------------------------------------------------------------------- table

BEGIN, END = "<!-- speed on a GPU: begin -->", "<!-- speed on a GPU: end -->"
COLUMNS = ["dnn", "PyTorch eager", "PyTorch compiled", "PyTorch graph", "JAX jit"]


def write_table(folder: Path, readme: Path) -> None:
    """Write the figures of every device with results between the two marks in the README, if there are any."""
    texts = [table(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    between = "\n\n".join(text for text in texts if text)
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        sys.exit(f"gpu_check: {readme}: expected the marks {BEGIN} and {END} around the table: add them")
    text = f"{before}{BEGIN}\n{between}\n{END}{after}" if between else f"{before}{BEGIN}\n{END}{after}"
    if text != readme.read_text():
        write_whole({str(readme): text.encode()})


def table(results: Figures) -> str:
    """A Markdown table, empty without measured times. Times are medians; peers' come with their ratio to dnn's."""
    times_of: dict[str, Figures] = {}
    shares, parts = {}, []
    # what torch.compile was compared with comes last: it only fills its own column
    for name, part in sorted(results["parts"].items(), key=lambda item: item[0].startswith("compiled")):
        measured = next((part[unit] for unit in ("us a step", "ms an epoch") if unit in part), None)
        if measured is None or not part["ok"]:
            continue
        parts.append(part)
        unit = "µs" if "us a step" in part else "ms"
        row = name.split(": ", 1)[1]
        # "dnn on cupy" is the column dnn
        cells = {"dnn" if key.startswith("dnn on ") else key: cell(value, unit) for key, value in measured.items()}
        fed = cells.pop("dnn, fed from the host", None)
        times_of[row] = cells | times_of.get(row, {})
        if fed:
            times_of[f"{row}, fed from the host"] = {"dnn": fed}
        if "share of it" in part:
            shares[row] = f"{part['share of it']:.0%}"
    if not parts:
        return ""
    head = ["a step or an epoch of", *COLUMNS, "of the product rate"]
    rows = [
        [row, *(cells.get(column, "") for column in COLUMNS), shares.get(row, "")] for row, cells in times_of.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([caption(results["device"], parts), "", *("| " + " | ".join(line) + " |" for line in lines)])


def cell(figures: Figures, unit: str) -> str:
    ratio = "" if figures["by dnn"] == 1 else f" ({figures['by dnn']:.2f})"
    return f"{figures['median']:.4g} {unit}{ratio}"


def caption(device: str, parts: list[Figures]) -> str:
    commits = ", ".join(dict.fromkeys(part["commit"] for part in parts))
    dates = sorted({part["date"] for part in parts})
    versions = parts[-1]["versions"]
    names = ["python", "numpy", "CuPy", "llvmlite", "cuBLAS", "driver", "torch", "jax"]
    with_ = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return (
        f"{device}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {commits}; {with_}. "
        "Medians; in brackets, as a multiple of dnn's."
    )


if __name__ == "__main__":
    main()
