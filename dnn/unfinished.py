"""A fit that has not ended: where it stands, and what it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dnn.callbacks import History
from dnn.errors import DataError
from dnn.network import Network
from dnn.settings import FitSettings
from dnn.updating import scheduled


@dataclass
class Unfinished:
    """What a checkpoint knows of its fit, beside the network and the state of its training.

    number         of the checkpoint: the next one's is larger
    settings       the keywords of the fit; again: those that no file keeps, to be given again
    epoch, batch   how many epochs of the fit are done, and batches of the next
    totals         the sums over these batches, of each of the fit's steps
    history        of the epochs that are done; stopped: why there are no more of them
    learning_rate  as a callback or a schedule has set it
    data           what tells the examples apart, those of the validation after those to train on
    folder         where it was found, and the next ones are written, unless `checkpoint` says otherwise
    """

    number: int
    settings: dict[str, Any]
    again: list[str]
    epoch: int
    batch: int
    totals: list[list[float]]
    history: History
    learning_rate: float
    data: list[dict[str, int]]
    stopped: str | None = None
    folder: str | None = field(default=None, compare=False)

    @property
    def is_done(self) -> bool:
        """Whether the fit has ended, and the network is as it left it."""
        return self.is_over(self.settings["epochs"])

    def is_over(self, epochs: int) -> bool:
        """Whether nothing is left to do of so many epochs."""
        return self.stopped is not None or self.epoch >= epochs

    def config(self) -> dict[str, Any]:
        """For JSON."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        return found | {"history": self.history.config()}

    @classmethod
    def from_config(cls, config: Any) -> Unfinished:
        """ValueError or TypeError, a KeyError for what is missing, where it is no fit of `config`."""
        number, epoch, batch = (_whole(name, config[name]) for name in ("number", "epoch", "batch"))
        FitSettings.from_config(config["settings"])
        again = [str(name) for name in config["again"]]
        totals = [[float(value) for value in of_step] for of_step in config["totals"]]
        data = [{str(name): int(value) for name, value in part.items()} for part in config["data"]]
        stopped = None if config["stopped"] is None else str(config["stopped"])
        return cls(
            number,
            config["settings"],
            again,
            epoch,
            batch,
            totals=totals,
            history=History.from_config(config["history"]),
            learning_rate=float(config["learning_rate"]),
            data=data,
            stopped=stopped,
        )

    def settings_with(self, network: Network, given: Mapping[str, Any]) -> FitSettings:
        """The settings to go on with; ValueError where those given are not those that the fit was started with."""
        missing = [name for name in self.again if name not in given]
        if missing:
            without = " (callbacks=[] goes on without)" if "callbacks" in missing else ""
            raise ValueError(
                f"the fit that is resumed was started with {', '.join(missing)}, which no file keeps: give "
                f"{'it' if len(missing) == 1 else 'them'} again{without}"
            )
        before = FitSettings.from_config(self.settings)
        settings = FitSettings.of({**before, **given})
        asked, _ = settings.config()
        for name in given:
            if name in self.settings and asked.get(name) != self.settings[name]:
                if name == "epochs":
                    self._check_epochs(network, asked["epochs"])
                elif name != "threads":
                    raise ValueError(
                        f"{_differing(name, self.settings[name], asked.get(name))}: give the same, or none, or "
                        f"{'dnn.load it for another fit' if self.is_done else 'begin a new run'}"
                    )
        if "checkpoint" in given:
            self.folder = None
        return settings

    def _check_epochs(self, network: Network, epochs: int) -> None:
        """ValueError where the fit would not have gone the same way so far with this number of epochs."""
        done = self.epoch + (self.batch > 0)
        if epochs < done:
            raise ValueError(f"epochs must be at least {done}, of which {self.epoch} are done, got {epochs}")
        settings = FitSettings.of(FitSettings.from_config(self.settings))
        schedules = [settings.schedule, *scheduled(network, settings.updating(per_epoch=1))]
        if not all(getattr(schedule, "goes_on", True) for schedule in schedules):
            raise ValueError(
                f"epochs must be {self.settings['epochs']}, as in the fit that is resumed, got {epochs}: a schedule "
                "depends on it"
            )

    def check_data(self, data: list[dict[str, int]]) -> None:
        """DataError names how the data differs from that of the fit."""
        for part, name in enumerate(("X, Y", "validation_data")):
            before, now = (found[part] if part < len(found) else None for found in (self.data, data))
            if before == now:
                continue
            if before is None or now is None:
                had = "none: leave it out" if before is None else "some: give it again"
                raise DataError(f"{name}: the fit that is resumed was started with {had}")
            differing = next((key for key in {**before, **now} if now.get(key) != before.get(key)), "values")
            what = "other weights of examples" if differing == "weights" else "other values"
            if differing in SIZES:
                what = f"{before[differing]} {differing}, got {now[differing]}"
            raise DataError(
                f"{name}: the fit that is resumed was started with {what}: give the data that it was started with, "
                "or begin a new run"
            )


SIZES = "examples", "features", "targets"
"""What of the data can be said in words."""


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} {value!r:.100}")
    return value


def _differing(name: str, before: Any, now: Any) -> str:
    """Which setting must be what it was, in words."""
    if isinstance(before, dict) and isinstance(now, dict) and before.get("name") == now.get("name"):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        name, before, now = key if name == "optimizer" else f"{name}'s {key}", before.get(key), now.get(key)
    return f"{name} must be {_in_words(before)}, as in the fit that is resumed, got {_in_words(now)}"


def _in_words(value: Any) -> str:
    """A configuration as it is written on the command line."""
    if isinstance(value, dict) and "name" in value:
        settings = ", ".join(f"{name}={setting!r}" for name, setting in value.items() if name != "name")
        return f"{value['name']}({settings})"
    return repr(value)
