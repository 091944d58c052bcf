"""Messages in terms of flags: which one was meant, and what a Python argument is called on the command line."""

from __future__ import annotations

import argparse
import difflib
import re

OTHER_NAMES = {
    "--learning-rate": "lr learning-rate-init eta eta0 step-size",
    "--batch-size": "bs minibatch-size mini-batch-size train-batch-size per-device-train-batch-size",
    "--epochs": "n-epochs num-epochs num-train-epochs max-epochs max-iter n-iter iterations num-iterations",
    "--optimizer": "optim opt solver",
    "--hidden": "hidden-units hidden-layers hidden-layer-sizes hidden-size hidden-dim units layers layers-dims",
    "--activation": "act nonlinearity",
    "--initializer": "init kernel-initializer weight-init",
    "--backend": "device devices accelerator gpu gpus cuda use-cuda platform",
    "--threads": "n-jobs jobs j workers num-workers nthreads cpus cores",
    "--seed": "random-state random-seed manual-seed rng",
    "--validation-split": "val-split validation-fraction val-size val-ratio test-size holdout",
    "--test": "validation-data val-data eval-data",
    "--precision": "amp fp16 bf16 half mixed-precision",
    "--input-scale": "scale rescale",
    "--memory-limit": "max-memory gpu-memory vram",
    "--out": "o dir output-dir out-dir output-folder save save-dir save-path model-dir log-dir checkpoint-dir",
    "--output": "task",
    "--loss": "criterion objective cost",
    "--norm": "batch-norm batchnorm layer-norm normalization",
    "--dropout": "dropout-rate drop-rate p-drop",
    "--members": "ensemble ensemble-size n-estimators",
    "--numerical-embedding": "embedding embeddings ple plr",
    "--schedule": "scheduler lr-scheduler lr-schedule lr-scheduler-type lr-decay",
    "--weight-decay": "wd decay",
    "--early-stopping": "patience n-iter-no-change early-stop",
    "--class-weight": "class-weights pos-weight",
    "--clip-norm": "max-grad-norm grad-clip clip-grad-norm gradient-clip-val",
    "--clip-value": "clip-grad-value",
    "--accumulate": "gradient-accumulation-steps accumulate-grad-batches grad-accum",
    "--moving-average": "ema ema-decay",
    "--metrics": "metric eval-metric scoring",
    "--force": "f overwrite replace exist-ok",
    "--quiet": "q s silent no-progress",
    "--x": "features inputs images",
    "--y": "labels label targets target",
    "--split": "part subset",
}
"""What other frameworks and tools call a flag."""


def of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a command."""
    return [name for name in parser._option_string_actions if name.startswith("--")]


def meant_by(given: str, flags: list[str]) -> str | None:
    """The flag that was meant by `given`, which is none of them, as far as that can be told."""
    known = {_letters(name): flag for flag in flags for name in (*OTHER_NAMES.get(flag, "").split(), flag)}
    name = _letters(given.split("=")[0])
    # of one or two letters, others are as near as the one meant
    near = [name] if name in known else difflib.get_close_matches(name, [key for key in known if len(key) > 2], 1, 0.7)
    return known[near[0]] if near else None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def in_place_of_arguments(message: str, flags: list[str]) -> str:
    """A message that names Python arguments, as `name=`, `name=1` or a first `name must`, with the flags instead.

    A clause about an argument that the command does not have is left out.
    """

    def flag(found: re.Match[str]) -> str | None:
        name = f"--{found[1].replace('_', '-')}"
        return name if name in flags else None

    message = re.sub(r"^(\w+)(?= must )", lambda found: flag(found) or found[0], message)
    message = re.sub(r", [\w ]+ (\w+)=(?=[,;:.)]|$)", lambda found: found[0] if flag(found) else "", message)
    return re.sub(
        r"(?:(?<=[ (])|^)(\w+)=(\d[\w.+-]*)?(?=[ ,;:.)]|$)",
        lambda found: " ".join(filter(None, (flag(found), found[2]))) if flag(found) else found[0],
        message,
    )
