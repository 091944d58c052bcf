"""What looks at the measures of a fit: early stopping, a schedule of results, and the weights that are left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dnn.callbacks import EarlyStopping, check_watched, maximizes, value_of
from dnn.epochs import Epochs
from dnn.errors import NonFiniteLossError
from dnn.heads import HEADS
from dnn.network import Network
from dnn.schedules import ReduceOnPlateau
from dnn.state import TrainingState

if TYPE_CHECKING:
    from dnn.training import Trainer

OF_STOPPING = "best", "best_value", "best_epoch", "waited"
"""What early stopping keeps from epoch to epoch, in `TrainingState.after`."""


def arrays_of(network: Network) -> dict[str, Any]:
    """What a training changes of a network."""
    found = {"theta": network.parameters.flat}
    return found | ({"layer_state": network.layer_state.flat} if network.layer_state else {})


def copied(network: Network) -> dict[str, Any]:
    return {name: array.copy() for name, array in arrays_of(network).items()}


def write(network: Network, copies: dict[str, Any]) -> None:
    for name, array in arrays_of(network).items():
        array[...] = copies[name]


class Watch:
    """Early stopping, a schedule that looks at results, and the weights that the network is left with."""

    def __init__(self, trainer: Trainer, state: TrainingState | None) -> None:
        assert state is not None
        settings = trainer.settings
        self._network, self._state = trainer.network, state
        self._stopping = settings.early_stopping if isinstance(settings.early_stopping, EarlyStopping) else None
        self._plateau = settings.schedule if isinstance(settings.schedule, ReduceOnPlateau) else None
        self._averages = settings.moving_average is not None
        self._metrics = trainer.metrics
        if self._stopping is not None:
            self._maximizes = maximizes(
                self._stopping.monitor, self._stopping.maximize, trainer.metrics, "early_stopping"
            )
        if self._plateau is not None:
            more = maximizes(self._plateau.monitor, self._plateau.maximize, trainer.metrics, "the schedule")
            self._plateau = replace(self._plateau, maximize=more)
            plateau_state = state.after.setdefault("plateau_state", self._plateau.start())
            state.learning_rate = state.optimizer.learning_rate * plateau_state.factor

    def check(self, validates: bool) -> None:
        """ValueError, before anything is trained, where a measure that is watched will not be there."""
        plain = ["loss", HEADS[self._network.output].metric.name]
        names = plain + [f"val_{name}" for name in (*plain, *(metric.name for metric in self._metrics)) if validates]
        for watching, who in ((self._plateau, "the schedule"), (self._stopping, "early_stopping")):
            if watching is not None:
                check_watched(watching.monitor, names, who)

    @property
    def best_epoch(self) -> int | None:
        if self._stopping is None or not self._stopping.restore_best:
            return None
        epoch: int | None = self._state.after.get("best_epoch")
        return epoch

    def averaged(self) -> _Averaged:
        """The network with the moving average of its weights, within a block."""
        return _Averaged(self._network, self._state.arrays["average"] if self._averages else None)

    def after_epoch(self, measured: dict[str, float], run: Epochs) -> str | None:
        """Look at the measures of an epoch; why to stop, if so."""
        after = self._state.after
        if self._plateau is not None:
            value = value_of(self._plateau.monitor, measured, "the schedule")
            factor, after["plateau_state"] = self._plateau.after(value, after["plateau_state"])
            run.set_rate(factor)
        stopping = self._stopping
        if stopping is None:
            return None
        value = value_of(stopping.monitor, measured, "early_stopping")
        if stopping.is_better(value, after.get("best_value"), self._maximizes):
            after |= {"best_value": value, "best_epoch": self._network.epochs, "waited": 0}
            if stopping.restore_best:
                with self.averaged():
                    after["best"] = copied(self._network)
            return None
        after["waited"] = after.get("waited", 0) + 1
        if after["waited"] < stopping.patience:
            return None
        after["waited"] = 0  # a next fit waits as long again
        return f"{stopping.monitor} has not improved for {stopping.patience} epochs"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Leave the network with the best weights, or the average; the next fit goes on from those trained.

        After a divergence it is what the error says: as it was after its last finite epoch.
        """
        network, after = self._network, self._state.after
        if self._state is not network.training_state:  # nothing was trained
            return
        if "steps" in self._state.arrays:
            network.steps = int(network.backend.to_numpy(self._state.arrays["steps"])[0])
        if kind is not None and issubclass(kind, NonFiniteLossError):
            if after.get("best_epoch", 0) > network.epochs:
                for name in OF_STOPPING:
                    after.pop(name, None)
            return
        best = after.get("best") if self._stopping is not None and self._stopping.restore_best else None
        if best is None and not self._averages:
            return
        trained = copied(network)
        if best is not None:
            write(network, best)
        else:
            network.parameters.flat[...] = self._state.arrays["average"]
        after |= {"trained": trained, "left": copied(network)}


class _Averaged:
    def __init__(self, network: Network, average: Any) -> None:
        self._theta, self._average = network.parameters.flat, average

    def __enter__(self) -> None:
        if self._average is not None:
            self._trained = self._theta.copy()
            self._theta[...] = self._average

    def __exit__(self, *error: Any) -> None:
        if self._average is not None:
            self._theta[...] = self._trained
