"""Schedules against their formulas, PyTorch's schedulers, and as derived code."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from oracles import torch_or_skip
from sweeps import covering
from traced import KERNELS, WAYS, traced

from dnn.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    ExponentialDecay,
    FlatCosine,
    InverseTimeDecay,
    MultiCycleLogCosine,
    OneCycle,
    PlateauState,
    PolynomialDecay,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    checked_schedule,
)

E = 12
EXAMPLES: list[Schedule] = [
    Constant(),
    StepDecay(5),
    StepDecay(2.5, 0.5),
    ExponentialDecay(0.9),
    InverseTimeDecay(0.5),
    PolynomialDecay(),
    PolynomialDecay(0.1, 2.5),
    PolynomialDecay(0.1, 2, epochs=8),
    Cosine(),
    Cosine(2, 0.1),
    Cosine(2, 0.1, 3),
    Cosine(1.5, 0.0, 3, 2.0),
    Cosine(cycles=2, epochs=6),
    OneCycle(),
    OneCycle(0, 0.5, 0.1),
    OneCycle(1, 0.5, 0.1),
    FlatCosine(),
    FlatCosine(0.0),
    FlatCosine(0.75, epochs=9),
    MultiCycleLogCosine(),
    MultiCycleLogCosine(1),
    ReduceOnPlateau(),
]


def factors(schedule: Schedule, epochs, total=E) -> np.ndarray:
    return np.array([float(schedule.factor(np, float(e), total)) for e in epochs])


def cosine(c: float, start: float = 1.0, end: float = 0.0) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * c)) / 2


def in_formulas(s: Schedule, e: float) -> float:
    duration = getattr(s, "epochs", None) or E
    e = e if getattr(s, "epochs", None) is None and not getattr(s, "of_fit", True) else min(e, duration)
    t = e / duration
    match s:
        case StepDecay():
            return s.gamma ** (e // s.every)
        case ExponentialDecay():
            return math.exp(e * math.log(s.rate))
        case InverseTimeDecay():
            return 1 / (1 + s.rate * e)
        case PolynomialDecay():
            return (1 - s.end) * (1 - t) ** s.power + s.end
        case Cosine():
            if e < s.warmup:
                return e / s.warmup
            length, q = duration - s.warmup, s.cycle_factor
            first = length / s.cycles if q == 1 else length * (q - 1) / (q**s.cycles - 1)
            begin = s.warmup
            for k in range(s.cycles):
                end = begin + first * q**k
                if e < end or k == s.cycles - 1:
                    return cosine((e - begin) / (end - begin), 1.0, s.end)
                begin = end
        case OneCycle():
            if t < s.warmup:
                return cosine(t / s.warmup, s.start, 1.0)
            return cosine((t - s.warmup) / (1 - s.warmup), 1.0, s.end) if s.warmup < 1 else 1.0
        case FlatCosine():
            return 1.0 if t < s.flat else cosine((t - s.flat) / (1 - s.flat))
        case MultiCycleLogCosine():
            return 0.5 * (1 - math.cos(2 * math.pi * math.log2(1 + (2**s.cycles - 1) * t)))
    return 1.0


MOMENTS = np.concatenate([np.arange(0, 1.5 * E, 0.37), [1.5, 5, 6, 8, 9, E]])


@pytest.mark.parametrize("schedule", EXAMPLES, ids=str)
def test_factors_are_the_formulas(schedule):
    expected = [in_formulas(schedule, e) for e in MOMENTS]
    np.testing.assert_allclose(factors(schedule, MOMENTS), expected, rtol=1e-12, atol=1e-13)


@covering("schedule, way", EXAMPLES, [*WAYS, *KERNELS], times=2, ids=str)
def test_derived_code_gives_the_eager_factors(schedule, way):
    def scaled(xp, rate, epoch):  # as a step uses it
        return rate * schedule.factor(xp, epoch, E)

    for e in (0.0, 1.75, 5.0, 9.4, 20.0):
        (found,) = traced(way, scaled, 0.1, e)
        np.testing.assert_allclose(found, 0.1 * factors(schedule, [e]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=str)
def test_a_factor_does_not_change_the_dtype_of_what_it_scales(schedule):
    theta = np.ones(3, np.float32)
    for way in (WAYS[0], WAYS[1]):
        (found,) = traced(way, lambda xp, theta, epoch: theta * schedule.factor(xp, epoch, E), theta, 3.0)
        assert found.dtype == np.float32


@pytest.mark.parametrize("schedule", EXAMPLES, ids=str)
def test_factors_are_never_negative_and_stay_what_they_were_at_the_end(schedule):
    duration = getattr(schedule, "epochs", None) or E
    assert (factors(schedule, MOMENTS) >= 0).all() and (factors(schedule, MOMENTS) <= 1).all()
    at_end, beyond = factors(schedule, [duration, duration + 1e-9, duration + 0.5, 10 * duration])[[0, 3]]
    ends = getattr(schedule, "epochs", None) is not None or getattr(schedule, "of_fit", True)
    assert at_end == beyond if ends else at_end > beyond


def test_what_does_not_depend_on_the_fit_ends_only_where_it_is_told():
    for schedule in (StepDecay(2), ExponentialDecay(), InverseTimeDecay()):
        held = factors(replace(schedule, epochs=4), [4, 40])
        assert held[0] == held[1] > factors(schedule, [40])[0] == factors(schedule, [40], 8)[0]


@pytest.mark.parametrize(
    "schedule",
    [StepDecay(2), ExponentialDecay(), InverseTimeDecay(), PolynomialDecay(), Cosine(), FlatCosine(), OneCycle(0.0)],
    ids=str,
)
def test_what_decays_never_rises(schedule):
    found = factors(schedule, np.linspace(0, E, 500))
    assert found[0] == 1 and (np.diff(found) <= 0).all() and found[-1] < 1


@pytest.mark.parametrize(
    ("schedule", "at_start", "at_end"),
    [
        (PolynomialDecay(0.2), 1, 0.2),
        (Cosine(end=0.3), 1, 0.3),
        (Cosine(2), 0, 0),
        (Cosine(2, 0.3, 3, 2.0), 0, 0.3),
        (OneCycle(), 0.04, 4e-6),
        (FlatCosine(), 1, 0),
        (MultiCycleLogCosine(), 0, 0),
    ],
    ids=str,
)
def test_where_schedules_begin_and_end(schedule, at_start, at_end):
    np.testing.assert_allclose(factors(schedule, [0, E]), [at_start, at_end], atol=1e-14)


def test_a_duration_of_its_own_takes_the_place_of_the_fits():
    for schedule in EXAMPLES:
        if hasattr(schedule, "epochs") and schedule.of_fit:
            np.testing.assert_array_equal(
                factors(replace(schedule, epochs=8), MOMENTS), factors(replace(schedule, epochs=None), MOMENTS, 8)
            )


def test_restarts_begin_where_they_should():
    schedule = Cosine(cycles=3, cycle_factor=2.0, epochs=7)  # 1, 2 and 4 epochs
    np.testing.assert_allclose(factors(schedule, [0, 1, 3]), 1, atol=0)
    np.testing.assert_allclose(factors(schedule, [0.5, 2, 5]), 0.5, atol=1e-14)
    np.testing.assert_allclose(factors(schedule, np.array([1, 3, 7]) - 1e-6), 0, atol=1e-10)


def test_a_rounded_epoch_is_no_update_late():
    rounded = 49 * (1 / 49)
    assert rounded < 1
    assert factors(StepDecay(1), [rounded]) == 0.1 and factors(StepDecay(0.1, 0.5), [0.3]) == 0.125
    np.testing.assert_allclose(factors(Cosine(cycles=E), [rounded]), 1)


def test_each_log_cosine_cycle_is_twice_as_long():
    t = (2.0 ** np.arange(5) - 1) / 15
    np.testing.assert_allclose(factors(MultiCycleLogCosine(4), E * t), 0, atol=1e-12)
    np.testing.assert_allclose(factors(MultiCycleLogCosine(4), E * (2 ** (np.arange(4) + 0.5) - 1) / 15), 1)


# --------------------------------------------------------------------------------------------- PyTorch


def torch_factors(make, steps: int) -> np.ndarray:
    """The learning rates that PyTorch's scheduler gives for a rate of 1, from the first step on."""
    torch = torch_or_skip()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        if step < steps - 1:
            optimizer.step()
            scheduler.step()
    return np.array(found)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (StepDecay(3, 0.5), lambda of, o: of.StepLR(o, 3, 0.5)),
        (ExponentialDecay(0.9), lambda of, o: of.ExponentialLR(o, 0.9)),
        (PolynomialDecay(power=2.5), lambda of, o: of.PolynomialLR(o, E, 2.5)),
        (Cosine(end=0.1), lambda of, o: of.CosineAnnealingLR(o, E, 0.1)),
        (Cosine(end=0.1, cycles=4), lambda of, o: of.CosineAnnealingWarmRestarts(o, 3, eta_min=0.1)),
    ],
    ids=lambda value: str(value) if isinstance(value, Schedule) else "",
)
def test_factors_at_whole_epochs_are_pytorchs(schedule, make):
    np.testing.assert_allclose(factors(schedule, range(E)), torch_factors(make, E), rtol=1e-12, atol=1e-13)


def test_longer_and_longer_cycles_are_pytorchs():
    theirs = torch_factors(lambda of, o: of.CosineAnnealingWarmRestarts(o, 2, 2), 14)
    ours = factors(Cosine(cycles=3, cycle_factor=2, epochs=14), range(14))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("warmup", [0.3, 0.5])
def test_one_cycle_is_pytorchs(warmup):
    """Theirs has its ends at whole steps: the top at step w N − 1, and the end at step N − 1."""
    N = 40
    theirs = torch_factors(lambda of, o: of.OneCycleLR(o, 1.0, N, pct_start=warmup), N)
    n, top = np.arange(N), warmup * N - 1
    t = np.where(n < top, warmup * n / top, (n + 1) / N)
    np.testing.assert_allclose(factors(OneCycle(warmup), t, 1), theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("patience", [0, 2])
def test_plateaus_are_pytorchs(patience, maximize):
    torch = torch_or_skip()
    rng = np.random.default_rng(1)
    values = np.exp(-0.05 * np.arange(80)) + 0.1 * rng.standard_normal(80)
    values[10] = np.nan
    values = -values if maximize else values
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if maximize else "min", 0.5, patience, 0.01, "abs", min_lr=0.01
    )
    ours = ReduceOnPlateau(0.5, patience, 0.01, min_factor=0.01, maximize=maximize)
    state, seen = ours.start(), set()
    for value in values:
        theirs.step(value)
        factor, state = ours.after(value, state)
        assert factor == state.factor == pytest.approx(optimizer.param_groups[0]["lr"])
        seen.add(factor)
    assert min(seen) == 0.01


# --------------------------------------------------------------------------------------------- plateau


def test_a_plateau_reduces_after_its_patience_and_starts_to_count_again():
    plateau, state, found = ReduceOnPlateau(0.5, patience=2), PlateauState(), []
    for value in [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1]:
        factor, state = plateau.after(value, state)
        found.append(factor)
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert state == PlateauState(0.1, 1, 0.25)


def test_a_plateaus_state_is_plain_numbers_that_make_it_go_on():
    plateau = ReduceOnPlateau(0.5, patience=1)
    values = [1.0, 2.0, np.float32(3.0), 0.5, 0.6, 0.7]
    state = plateau.start()
    for value in values:
        _, state = plateau.after(value, state)
    resumed = plateau.start()
    for value in values:
        _, resumed = plateau.after(value, PlateauState(*list(resumed)))
    assert state == resumed and all(type(x) in (int, float) for x in state)


def test_accuracy_is_better_when_larger():
    for monitor, better in (("val_accuracy", 0.9), ("accuracy", 0.9), ("val_loss", 0.1), ("val_rmse", 0.1)):
        plateau = ReduceOnPlateau(monitor=monitor, patience=0)
        _, state = plateau.after(0.5, plateau.start())
        assert plateau.after(better, state)[0] == 1
        assert plateau.after(1 - better, state)[0] == 0.1
    assert ReduceOnPlateau(patience=0, maximize=True).after(0.4, PlateauState(0.5))[0] == 0.1


def test_values_that_are_no_numbers_are_no_improvement():
    plateau = ReduceOnPlateau(patience=0)
    factor, state = plateau.after(float("nan"), plateau.start())
    assert (factor, state) == (0.1, PlateauState(None, 0, 0.1))
    assert plateau.after(3.0, state) == (0.1, PlateauState(3.0, 0, 0.1))


# ------------------------------------------------------------------------------------- settings and names


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: StepDecay(0), "StepDecay: every must be above 0, got 0"),
        (lambda: StepDecay(3, -0.1), "StepDecay: gamma must be above 0, got -0.1"),
        (lambda: ExponentialDecay(0), "ExponentialDecay: rate must be above 0, got 0"),
        (lambda: InverseTimeDecay(-1), "InverseTimeDecay: rate must be at least 0, got -1"),
        (lambda: PolynomialDecay(-0.1), "PolynomialDecay: end must be at least 0"),
        (lambda: PolynomialDecay(power=0), "PolynomialDecay: power must be above 0"),
        (lambda: PolynomialDecay(power=float("inf")), "PolynomialDecay: power must be finite, got inf"),
        (lambda: Cosine(-1), "Cosine: warmup must be at least 0, got -1"),
        (lambda: Cosine(float("nan")), "Cosine: warmup must be finite, got nan"),
        (lambda: Cosine(cycles=0), "Cosine: cycles must be from 1 to 1000, got 0"),
        (lambda: Cosine(cycle_factor=0.5), "Cosine: cycle_factor must be at least 1, got 0.5"),
        (lambda: Cosine(cycles=100, cycle_factor=2), "Cosine: cycle_factor must be smaller for 100 cycles"),
        (lambda: Cosine(5, epochs=5), "Cosine: warmup must be below the schedule's 5 epochs, got 5"),
        (lambda: Cosine(5).check_for(3), "Cosine: warmup must be below the schedule's 3 epochs, got 5"),
        (lambda: Cosine(epochs=0), "Cosine: epochs must be above 0, or None"),
        (lambda: OneCycle(1.1), "OneCycle: warmup must be from 0 to 1, got 1.1"),
        (lambda: OneCycle(start=-1), "OneCycle: start must be from 0 to 1, got -1"),
        (lambda: FlatCosine(1), "FlatCosine: flat must be at least 0 and below 1, got 1"),
        (lambda: MultiCycleLogCosine(0), "MultiCycleLogCosine: cycles must be from 1 to 50, got 0"),
        (lambda: ReduceOnPlateau(1.0), "ReduceOnPlateau: gamma must be above 0 and below 1, got 1.0"),
        (lambda: ReduceOnPlateau(patience=-1), "ReduceOnPlateau: patience must be at least 0, got -1"),
        (lambda: ReduceOnPlateau(min_delta=-1), "ReduceOnPlateau: min_delta must be at least 0"),
        (lambda: ReduceOnPlateau(min_factor=2), "ReduceOnPlateau: min_factor must be from 0 to 1, got 2"),
    ],
)
def test_refuses_settings_that_cannot_work(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: StepDecay("3"), "StepDecay: every must be a number, got '3'"),
        (lambda: Cosine(cycles=1.5), "Cosine: cycles must be a whole number, got 1.5"),
        (lambda: Cosine(warmup=None), "Cosine: warmup must be a number, got None"),
        (lambda: Cosine(epochs="5"), "Cosine: epochs must be a number, got '5'"),
        (lambda: ReduceOnPlateau(monitor=None), "ReduceOnPlateau: monitor must be a name"),
        (lambda: ReduceOnPlateau(maximize="yes"), "ReduceOnPlateau: maximize must be True or False"),
    ],
)
def test_refuses_what_is_no_setting(make, complaint):
    with pytest.raises(TypeError, match=complaint):
        make()


def test_schedules_are_values():
    assert Cosine(np.float32(0.5)) == Cosine(0.5) and type(Cosine(np.float32(0.5)).warmup) is float
    assert len(set(EXAMPLES)) == len(EXAMPLES)
    with pytest.raises(FrozenInstanceError):
        Cosine().warmup = 3


def test_schedules_by_name():
    for name, cls in SCHEDULES.items():
        assert checked_schedule(name) == cls()
    assert checked_schedule(None) is None
    schedule = Cosine(1)
    assert checked_schedule(schedule) is schedule
    assert {type(schedule) for schedule in EXAMPLES} == set(SCHEDULES.values())
    assert [name for name, cls in SCHEDULES.items() if cls.on_host] == ["plateau"]


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ("cosin", "'cosin': did you mean 'cosine'?"),
        ("OneCycle", "did you mean 'one_cycle'?"),
        ("xyz", "'xyz'"),
        (3, "3"),
    ],
)
def test_an_unknown_schedule_is_refused_with_the_closest(given, end):
    with pytest.raises(ValueError, match="schedule must be None, one of constant, step, exponential") as caught:
        checked_schedule(given)
    assert str(caught.value).endswith(end)


def test_a_warm_up_longer_than_the_fit_is_what_there_is_time_for():
    np.testing.assert_allclose(factors(Cosine(20), [0, 5, 12, 30]), [0, 0.25, 0.6, 0.6])
