"""Recipes to copy, each trained with several seeds, in dnn and where it is installed on the same network in PyTorch.

    python scripts/recipes.py                        # all but mnist, which takes minutes
    python scripts/recipes.py digits mnist --seeds 5
    python scripts/recipes.py --commands             # the same trainings on the command line

The network in PyTorch has the same layers, loss, optimizer, schedule, batches, epochs, early stopping, scales of the
data and laws of the initial weights; its random numbers are others. Data are those of make_dataset.py, whose test part
is only measured: validation examples come from the training part. The table gives the mean and the standard deviation
over the seeds of measures of the test part, and the seconds of a fit.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from facts import NotMeasured, data_with, versions_of
from make_dataset import DATA_SETS, Data

import dnn
from dnn.metrics import METRICS

Training = tuple[dnn.Network, dnn.FitSettings]


@dataclass(frozen=True)
class Recipe:
    """make: the network of a seed, and how it is trained; flags: the same for dnn train; measures: of the test part."""

    make: Callable[[int], Training]
    flags: str
    measures: tuple[str, ...]


RECIPES: dict[str, Recipe] = {}


def recipe(flags: str, *measures: str) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
    def known(make: Callable[[int], Training]) -> Callable[[int], Training]:
        RECIPES[make.__name__] = Recipe(make, flags, measures)
        return make

    return known


@recipe("", "accuracy")  # the command line has no dropout of the inputs
def mnist(seed: int) -> Training:
    hidden = [dnn.Dense(1024, bias=False), dnn.BatchNorm(), dnn.Activation("gelu"), dnn.Dropout(0.4)]
    layers = [dnn.Dropout(0.2), *hidden, *hidden, dnn.Dense(10)]
    loss = dnn.SoftmaxCrossEntropy(label_smoothing=0.05)
    network = dnn.Network(784, layers, output="softmax", loss=loss, seed=seed)
    return network, dnn.FitSettings(
        epochs=40,
        batch_size=256,
        optimizer=dnn.AdamW(2e-3, weight_decay=0.05),
        schedule=dnn.Cosine(warmup=1),
        verbose=False,
    )


@recipe(
    "--hidden 256,128 --dropout 0.2 --epochs 60 --batch-size 32 --optimizer adamw --schedule cosine",
    "accuracy",
)
def digits(seed: int) -> Training:
    network = dnn.Network([64, 256, 128, 10], dropout=0.2, output="softmax", seed=seed)
    return network, dnn.FitSettings(
        epochs=60, batch_size=32, optimizer=dnn.AdamW(1e-3), schedule="cosine", verbose=False
    )


@recipe(
    "--hidden 32 --input-scale standard --target-scale standard --epochs 200 --batch-size 32 --optimizer adamw "
    "--weight-decay 0.1 --validation-split 0.2 --early-stopping 20 --metrics r2",
    "rmse",
    "r2",
)
def diabetes(seed: int) -> Training:
    network = dnn.Network([10, 32, 1], output="linear", input_scale="standard", target_scale="standard", seed=seed)
    return network, dnn.FitSettings(
        epochs=200,
        batch_size=32,
        optimizer=dnn.AdamW(1e-3, weight_decay=0.1),
        validation_split=0.2,
        early_stopping=20,
        metrics=["r2"],
        verbose=False,
    )


@recipe(
    "--hidden 32 --dropout 0.2 --input-scale standard --epochs 200 --batch-size 32 --validation-split 0.2 "
    "--early-stopping 20 --metrics roc_auc",
    "accuracy",
    "roc_auc",
)
def breast_cancer(seed: int) -> Training:
    network = dnn.Network([30, 32, 1], dropout=0.2, output="sigmoid", input_scale="standard", seed=seed)
    return network, dnn.FitSettings(
        epochs=200, batch_size=32, validation_split=0.2, early_stopping=20, metrics=["roc_auc"], verbose=False
    )


@recipe(
    "--hidden 128 --dropout 0.3 --input-scale standard --epochs 100 --validation-split 0.1 --early-stopping 10 "
    "--metrics f1_macro",
    "accuracy",
    "f1_macro",
)
def multi_label(seed: int) -> Training:
    network = dnn.Network([40, 128, 8], dropout=0.3, output="sigmoid", input_scale="standard", seed=seed)
    return network, dnn.FitSettings(
        epochs=100, validation_split=0.1, early_stopping=10, metrics=["f1_macro"], verbose=False
    )


@recipe(
    "--hidden 64,64 --input-scale standard --epochs 60 --class-weight balanced --validation-split 0.2 "
    "--early-stopping \"early_stopping(monitor='val_average_precision', patience=15)\" "
    "--metrics balanced_accuracy,average_precision",
    "balanced_accuracy",
    "average_precision",
)
def imbalanced(seed: int) -> Training:
    network = dnn.Network([20, 64, 64, 1], output="sigmoid", input_scale="standard", seed=seed)
    return network, dnn.FitSettings(
        epochs=60,
        class_weight="balanced",
        validation_split=0.2,
        early_stopping=dnn.EarlyStopping("val_average_precision", patience=15),
        metrics=["balanced_accuracy", "average_precision"],
        verbose=False,
    )


@recipe(
    "--hidden 256,256 --activation gelu --norm batch --dropout 0.1 --input-scale standard --epochs 20 "
    "--batch-size 128 --optimizer adamw --learning-rate 0.002 --weight-decay 0.05 --schedule 'cosine(warmup=1)' "
    "--metrics top_k",
    "accuracy",
    "top_k",
)
def hundred(seed: int) -> Training:
    network = dnn.Network(
        [64, 256, 256, 100],
        activation="gelu",
        norm="batch",
        dropout=0.1,
        output="softmax",
        input_scale="standard",
        seed=seed,
    )
    return network, dnn.FitSettings(
        epochs=20,
        batch_size=128,
        optimizer=dnn.AdamW(2e-3, weight_decay=0.05),
        schedule=dnn.Cosine(warmup=1),
        metrics=["top_k"],
        verbose=False,
    )


@recipe(
    "--hidden 64,64 --loss 'quantile(quantiles=[0.1, 0.5, 0.9])' --input-scale standard --epochs 100 "
    "--validation-split 0.2 --early-stopping 15",
    "loss",
    "coverage",
)
def quantiles(seed: int) -> Training:
    loss = dnn.Quantile((0.1, 0.5, 0.9))
    network = dnn.Network([1, 64, 64, 3], output="linear", loss=loss, input_scale="standard", seed=seed)
    return network, dnn.FitSettings(epochs=100, validation_split=0.2, early_stopping=15, verbose=False)


def coverage(answers: np.ndarray, Y: np.ndarray) -> float:
    """The share of the values from the first to the last of their quantiles: of 0.1 and 0.9 it should be 0.8."""
    Y = Y.reshape(-1)
    return float(np.mean((answers[:, 0] <= Y) & (answers[:, -1] >= Y)))


# ------------------------------------------------------------------------------------------ dnn


def data_of(name: str) -> Data:
    if name != "mnist":
        return DATA_SETS[name]()
    with dnn.open_dataset(data_with("mnist.h5") / "mnist.h5") as file:
        assert file.train is not None and file.test is not None
        return Data(file.train.X[...], file.train.Y[...], file.test.X[...], file.test.Y[...])


def measured_by_dnn(network: dnn.Network, settings: dnn.FitSettings, data: Data) -> dict[str, float]:
    """Trained, and measured on the test part."""
    seconds = network.fit(data.X, data.Y, **vars(settings)).seconds
    measured = network.evaluate(data.X_test, data.Y_test, metrics=settings.metrics)
    if isinstance(network.loss_function, dnn.Quantile):
        measured["coverage"] = coverage(network.predict(data.X_test), data.Y_test)
    return measured | {"seconds": seconds}


# ---------------------------------------------------------------------------------------- PyTorch


def _flat(examples: np.ndarray) -> np.ndarray:
    return examples.reshape(len(examples), math.prod(examples.shape[1:]))


class Twin:
    """The network and its training in PyTorch; what is not there raises KeyError."""

    def __init__(self, network: dnn.Network, settings: dnn.FitSettings) -> None:
        import torch

        self.torch, self.network, self.settings = torch, network, settings
        nn, made, n_in = torch.nn, [], network.layer_sizes[0]
        activations = {None: nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
        torch.manual_seed(network.seed)
        for layer in network.layers:
            if isinstance(layer, dnn.Dense):
                linear = nn.Linear(n_in, layer.units, layer.bias)
                assert (layer.initializer or network.initializer) == "he_normal"
                nn.init.normal_(linear.weight, std=math.sqrt(2 / n_in))
                if layer.bias:
                    nn.init.zeros_(linear.bias)
                made += [linear, activations[layer.activation]()]
            elif isinstance(layer, dnn.BatchNorm):
                made.append(nn.BatchNorm1d(n_in, layer.eps, 1 - layer.momentum))
            elif isinstance(layer, dnn.Dropout):
                made.append(nn.Dropout(layer.rate))
            else:
                assert isinstance(layer, dnn.Activation)
                made.append(activations[layer.name]())
            n_in = layer.n_out(n_in)
        self.model = nn.Sequential(*made)

    def losses(self, Z: Any, Y: Any) -> Any:
        """One an example, or one a target."""
        loss, functional = self.network.loss_function, self.torch.nn.functional
        if isinstance(loss, dnn.SoftmaxCrossEntropy):
            smoothing = loss.label_smoothing
            return functional.cross_entropy(Z, Y[:, 0], label_smoothing=smoothing, reduction="none")[:, None]
        if isinstance(loss, dnn.SigmoidCrossEntropy):
            return functional.binary_cross_entropy_with_logits(Z, Y, reduction="none")
        if isinstance(loss, dnn.SquaredError):
            return (Z - Y) ** 2
        assert isinstance(loss, dnn.Quantile)
        tau, d = self.torch.tensor(loss.quantiles), Y - Z
        return self.torch.maximum(tau * d, (tau - 1) * d)

    def answers(self, X: Any) -> np.ndarray:
        self.model.eval()
        with self.torch.no_grad():
            Z = self.model(X)
            how = {"softmax": lambda Z: Z.softmax(1), "sigmoid": lambda Z: Z.sigmoid(), "linear": lambda Z: Z}
            P = how[self.network.output](Z).numpy()
        self.model.train()
        return P * self.factor + self.shift

    def measured(self, name: str, X: Any, Y: np.ndarray) -> float:
        if name == "loss":
            self.model.eval()
            with self.torch.no_grad():
                loss = self.losses(self.model(X), self.targets(Y)).mean()
            self.model.train()
            return float(loss)
        P = self.answers(X)
        return coverage(P, Y) if name == "coverage" else float(METRICS[name](np, P, Y))

    def targets(self, Y: np.ndarray) -> Any:
        scaled = Y if self.network.output == "softmax" else ((Y - self.shift) / self.factor).astype(np.float32)
        return self.torch.from_numpy(scaled)

    def fit(self, data: Data) -> None:
        network, X, Y = self.network, _flat(data.X).astype(np.float64), _flat(data.Y)
        kept, held_out = self.split(Y)
        self.input_shift, self.input_factor = 0.0, 255.0 if data.X.dtype == np.uint8 else 1.0
        if network.input_scale is not None:
            assert network.input_scale == "standard"
            self.input_shift, self.input_factor = X[kept].mean(axis=0), X[kept].std(axis=0)
        self.shift, self.factor = 0.0, 1.0
        if network.target_scale is not None:
            self.shift, self.factor = Y[kept].mean(), Y[kept].std()
        self.train(self.scaled(X[kept]), self.targets(Y[kept]), self.scaled(X[held_out]), Y[held_out])

    def scaled(self, X: np.ndarray) -> Any:
        return self.torch.from_numpy(((_flat(X) - self.input_shift) / self.input_factor).astype(np.float32))

    def split(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(Y))
        if not self.settings.validation_split:
            return rows, rows[:0]
        from sklearn.model_selection import train_test_split

        strata = Y if self.network.output != "linear" and Y.shape[1] == 1 else None
        share, seed = self.settings.validation_split, self.network.seed
        kept, held_out = train_test_split(rows, test_size=share, random_state=seed, stratify=strata)
        return kept, held_out

    def train(self, X: Any, Y: Any, X_held_out: Any, Y_held_out: np.ndarray) -> None:
        torch, settings = self.torch, self.settings
        batches = math.ceil(len(X) / settings.batch_size)
        optimizer, schedule = self.optimizer(batches)
        weights = None
        if settings.class_weight == "balanced":
            counts = np.bincount(Y[:, 0].long())
            weights = torch.tensor(len(Y) / (len(counts) * counts), dtype=torch.float32)[Y.long()]
        stopping, best, waited, kept = settings.early_stopping, -math.inf, 0, None
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(X)).split(settings.batch_size):
                losses = self.losses(self.model(X[rows]), Y[rows])
                if weights is None:
                    loss = losses.mean()
                else:
                    loss = (weights[rows] * losses).sum() / weights[rows].sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if stopping is None:
                continue
            name = stopping.monitor.removeprefix("val_")
            value = self.measured(name, X_held_out, Y_held_out)
            value = -value if name == "loss" else value
            if value > best:
                best, waited, kept = value, 0, copy.deepcopy(self.model.state_dict())
            else:
                waited += 1
                if waited == stopping.patience:
                    break
        if kept is not None:
            self.model.load_state_dict(kept)

    def optimizer(self, batches: int) -> tuple[Any, Any]:
        """Adam with decoupled decay of weights alone, and its schedule by updates."""
        torch, settings, given = self.torch, self.settings, self.settings.optimizer
        assert isinstance(given, dnn.Adam)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            lr=given.learning_rate,
            betas=(given.beta1, given.beta2),
            eps=given.eps,
            weight_decay=given.weight_decay,
        )
        schedule = settings.schedule or dnn.Constant()
        assert isinstance(schedule, dnn.Schedule)

        def factor(update: int) -> float:
            return float(schedule.factor(np, update / batches, settings.epochs))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def measured_by_torch(
    network: dnn.Network, settings: dnn.FitSettings, data: Data, measures: Sequence[str]
) -> dict[str, float]:
    started = time.perf_counter()
    twin = Twin(network, settings)
    twin.fit(data)
    seconds = time.perf_counter() - started
    X, Y = twin.scaled(data.X_test), _flat(data.Y_test)
    return {name: twin.measured(name, X, Y) for name in measures} | {"seconds": seconds}


# ------------------------------------------------------------------------------------------ table


def command_of(name: str, seed: int = 1) -> str:
    """The commands of a recipe, as text."""
    path = f"runs/{name}.h5"
    return f"python scripts/make_dataset.py {name} {path}\ndnn train {path} {RECIPES[name].flags} --seed {seed}"


def run(name: str, seeds: int, torch: bool) -> dict[str, Any]:
    """Of each library the runs, by seed from 1."""
    data, recipe = data_of(name), RECIPES[name]
    runs: dict[str, list[dict[str, float]]] = {"dnn": [], **({"torch": []} if torch else {})}
    for seed in range(1, seeds + 1):
        measured = measured_by_dnn(*recipe.make(seed), data)
        runs["dnn"].append({name: measured[name] for name in (*recipe.measures, "seconds")})
        if torch:
            runs["torch"].append(measured_by_torch(*recipe.make(seed), data, recipe.measures))
    return {"recipe": name, "measures": recipe.measures, **runs}


def rows_of(found: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table, one a measure."""

    def over_seeds(library: str, name: str) -> np.ndarray:
        return np.array([run[name] for run in found.get(library, ())])

    rows = []
    for measure in found["measures"]:
        cells = [found["recipe"], "pinball loss" if measure == "loss" else measure]
        for library in ("dnn", "torch"):
            values = over_seeds(library, measure)
            digits = 2 if measure == "rmse" else 4
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}" if len(values) else "-")
        for library in ("dnn", "torch"):
            values = over_seeds(library, "seconds")
            cells.append(f"{values.mean():.1f}" if len(values) else "-")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(RECIPES)} (default: all but mnist)")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="1 to N (default: 3)")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    parser.add_argument("--torch-mnist", action="store_true", help="mnist in PyTorch too")
    parser.add_argument("--json", metavar="FILE", help="write every run and the versions")
    parser.add_argument("--commands", action="store_true", help="print the command lines and train nothing")
    given = parser.parse_args()
    names = given.names or [name for name in RECIPES if name != "mnist"]
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"there is no recipe {unknown[0]!r}: choose from {', '.join(RECIPES)}")
    if given.seeds < 1:
        parser.error("--seeds must be at least 1")
    if given.commands:
        print("\n".join(command_of(name) for name in names if RECIPES[name].flags))
        return
    torch = not given.no_torch and find_spec("torch") is not None
    print("| recipe | measure | dnn | PyTorch | seconds, dnn | seconds, PyTorch |\n|---|---|---|---|---|---|")
    found = []
    try:
        for name in names:
            found.append(run(name, given.seeds, torch and (name != "mnist" or given.torch_mnist)))
            print("\n".join(rows_of(found[-1])), flush=True)
    except NotMeasured as missing:
        sys.exit(f"recipes.py: {missing}")
    if given.json:
        Path(given.json).write_text(json.dumps({"versions": versions_of("numpy"), "recipes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
