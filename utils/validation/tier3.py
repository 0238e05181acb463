"""Can this model learn? Short, timed trainings on text whose exact entropy is known, on the private copy.

Knows no files, no screen and no run folder. Budgets are in seconds; everything else is seeded.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from utils.config.schema import TrainConfig
from utils.models.registry import build_model
from utils.validation.baselines import equal_shapes
from utils.validation.rate_test import range_test
from utils.validation.report import Check
from utils.validation.short_training import (
    Budget,
    CannotLearn,
    CannotTell,
    Course,
    Lesson,
    count_parameters,
    default_rate,
    line,
    tier3_data,
    train,
    validation_loss,
)
from utils.validation.subject import Subject

__all__ = ["CHECKS", "Budget", "tier3_data"]

LEARNED = 0.1  # of the starting loss
TEXTS, LENGTH = 4, 64  # what is learned by heart
ROUNDS, ENOUGH = 300, 100  # steps per learning rate; fewer in all than the second prove nothing
WARMUP = 10  # steps
CHANCE = 20.0  # nats below the floor that luck explains with probability exp(-20) (Markov's inequality)
WORSE = 1.2  # times the best baseline's distance from the floor
TRAINING = 0.85  # of the budget; the rest is for timing the model and for what a clock overruns
FACTORS, DECAYS = (0.3, 1.0, 3.0), (0.0, 0.1)  # of the learning rate; weight decay


def check_overfit(subject: Subject, budget: Budget) -> Check:
    """One small real batch, learned by heart: the loss must fall below a tenth of where it began."""
    lesson = Lesson(subject, budget.overfit)
    example = lesson.few(TEXTS, LENGTH)
    say = partial(Check, "overfit", threshold=f"below {LEARNED:.0%} of the starting loss")
    usual, told = default_rate(subject.model), []
    for share, rate in ((0.5, usual), (0.25, 3 * usual), (0.25, usual / 3)):
        subject.reset()
        with _without_dropout(subject.model):  # noise on purpose would keep the loss up
            course = train(
                subject.model, lesson, TrainConfig(weight_decay=0.0), rate=_warm(rate), example=example, steps=ROUNDS,
                seconds=share * TRAINING * budget.overfit, stop=lambda losses: losses[-1] < LEARNED * losses[0],
            )  # fmt: skip
        told.append((rate, course))
        if course.losses[-1] < LEARNED * course.losses[0]:
            break
    rate, course = min(told, key=lambda pair: pair[1].losses[-1] if not pair[1].diverged else math.inf)
    first, last = course.losses[0], course.losses[-1]
    values = {"first": first, "last": last, "steps": course.steps, "learning_rate": rate}
    say = partial(say, values=values, figure=_falls(course, first))
    guesses = int((example[1] >= 0).sum())
    measured = f"loss {first:.3f} -> {last:.3f} ({last / first:.0%}) on {guesses} guesses in {course.steps} steps"
    if last < LEARNED * first:
        return say("pass", measured)
    if sum(course.steps for _, course in told) < ENOUGH:
        advice = "A busy machine or a large model: ask when it is quiet, or try a smaller one of the same design."
        return say("skip", f"{measured}, then time was up", advice=advice)
    advice = (
        "A model that cannot learn a few lines by heart will learn no corpus. Look for frozen or detached "
        "parameters, a mask that hides too much, a softmax before the loss, or heavy dropout in forward()."
    )
    return say("fail", f"{measured}; tried {', '.join(f'{rate:.2g}' for rate, _ in told)}", advice=advice)


def check_stories(subject: Subject, budget: Budget) -> Check:
    """Trained on stories for a while, how far is the loss from the text's exact entropy, and on which side?"""
    lesson = Lesson(subject, budget.stories)
    rate = _rate(subject)
    config = TrainConfig(learning_rate=rate, min_lr=rate / 10, warmup_steps=50, decay_share=0.2)
    seconds = lesson.training_seconds(budget.stories)
    course = train(subject.model, lesson, config, seconds=seconds, steps=budget.steps)
    loss, guesses = validation_loss(subject.model, lesson)
    floor, ignorance = lesson.floor, lesson.ignorance
    speed = course.steps * lesson.batch_size * lesson.seq_len / course.clock[-1]
    values = {
        "loss": loss, "floor": floor, "gap": None if floor is None else loss - floor, "ignorance": ignorance,
        "steps": course.steps, "tokens_per_second": speed, "learning_rate": rate, "guesses": guesses,
    }  # fmt: skip
    steps = [float(step + 1) for step in range(course.steps)]
    figure = _lines("Learning stories", "optimizer steps", [
        line("training (mean of 10)", steps, course.smooth()), line("validation", steps[-1:], [loss]),
    ], floor)  # fmt: skip
    expected = f"below {ignorance:.2f} nats" + ("" if floor is None else f", not below {floor:.3f}")
    say = partial(Check, "stories", threshold=expected, values=values, figure=figure)
    measured = f"validation loss {loss:.3f} nats after {course.steps} steps at {speed:,.0f} tokens/s"
    if floor is not None:
        measured += f", {abs(loss - floor):.3f} {'above' if loss >= floor else 'below'} the floor of {floor:.3f}"
    if course.diverged or not math.isfinite(loss):
        advice = f"Training broke at learning rate {rate:.2g}: try a tenth of it, and look at initialisation and norms."
        return say("fail", f"not finite after {course.steps} steps", advice=advice)
    if floor is not None and loss < floor - CHANCE / guesses:
        advice = (
            "No model can do that: it sees what it should predict. Is attention causal, and does nothing shift, "
            "pool or normalise over later positions?"
        )
        return say("fail", f"{measured}, the least possible", advice=advice)
    if loss >= ignorance:
        advice = (
            "It knows no more than how often each answer comes. Give it more seconds or another learning rate; "
            "if that changes nothing, what was learned does not depend on the input."
        )
        return say("warn", f"{measured}; counting alone gives {ignorance:.3f}", advice=advice)
    return say("pass", measured)


def check_rate(subject: Subject, budget: Budget) -> Check:
    """The learning-rate range test (Smith 2017, https://arxiv.org/abs/1506.01186); later checks use its answer."""
    found = range_test(subject.model, Lesson(subject, budget.rates), TRAINING * budget.rates)
    usual = default_rate(subject.model)
    values = {"suggestion": found.suggestion, "diverged_at": found.diverged_at, "default": usual}
    series = [line("each batch", found.rates, found.losses), line("smoothed", found.rates, found.smoothed)]
    figure = _lines("Loss while the learning rate grows", "learning rate", series) | {"log_x": True}
    say = partial(Check, "learning rate", threshold="falls, then diverges", values=values, figure=figure)
    broke = f"diverges at {found.diverged_at:.2g}" if found.diverged_at else "never diverged"
    if not found.whole:
        reached = found.rates[-1] if found.rates else 0.0
        advice = "A busy machine: try again when it is idle. Later checks use the usual rate for the size."
        return say("skip", f"time was up at rate {reached:.2g}, before the loss could tell", advice=advice)
    if found.suggestion is None:
        advice = f"No rate made the loss fall within the test. The usual one for this size is {usual:.2g}."
        return say("warn", f"the loss falls nowhere; {broke}", advice=advice)
    subject.suggested_rate = found.suggestion
    return say("pass", f"start with {found.suggestion:.2g}, where the loss falls fastest; {broke}")


def check_baselines(subject: Subject, budget: Budget) -> Check:
    """The built-in models of equal size, trained as long on the same batches: who is lower?"""
    if subject.task != "causal":
        raise CannotTell(f"the built-in models are causal, and this one is {subject.task}")
    shapes = equal_shapes(subject)
    if not shapes:
        raise CannotTell(f"no built-in model has as few as {count_parameters(subject.model):,} parameters")
    each = TRAINING * budget.baselines / (1 + len(shapes))
    lesson, rate = Lesson(subject, each), _rate(subject)
    seconds = lesson.training_seconds(each)
    config = TrainConfig(learning_rate=rate)
    courses, losses, sizes = {}, {}, {}
    for name in ("yours", *shapes):
        torch.manual_seed(subject.seed)
        model = build_model(name, shapes[name]).to(subject.device) if name in shapes else subject.model
        # Constant after the warmup, whatever the time: so the curves can be compared at any step.
        courses[name] = train(model, lesson, config, seconds=seconds, steps=budget.steps, rate=_warm(rate))
        losses[name] = _finite(validation_loss(model, lesson)[0])
        sizes[name] = count_parameters(model)
    floor, same = lesson.floor, min(course.steps for course in courses.values())
    at_step = {name: _finite(course.smooth()[same - 1]) for name, course in courses.items()}
    best = min((name for name in shapes if math.isfinite(losses[name])), key=losses.get, default=None)
    values = {
        "loss": losses, "loss_at_equal_steps": at_step, "equal_steps": same, "learning_rate": rate, "floor": floor,
        "steps": {name: course.steps for name, course in courses.items()},
        "parameters": sizes,
    }  # fmt: skip
    series = [line(name, course.clock, course.smooth()) for name, course in courses.items()]
    figure = _lines("Equal size, equal time, equal batches", "seconds", series, floor)
    say = partial(Check, "baselines", threshold=f"gap at most {WORSE:g} x the best", values=values, figure=figure)
    mine = losses["yours"]
    took = max(course.clock[-1] for course in courses.values())
    measured = f"after {took:.0f} s each: {_told(losses)}; after {same} steps: {_told(at_step)}"
    if same < 3 * WARMUP and not budget.steps and all(math.isfinite(loss) for loss in losses.values()):
        advice = "Try again when the machine is idle, or compare smaller models of the same design."
        return say("skip", f"{measured}: too few steps to compare", advice=advice)
    if best is None:
        return say("skip", f"no baseline survived learning rate {rate:.2g}", advice="Lower the learning rate.")
    if not math.isfinite(mine):
        return say("warn", f"{measured}; yours diverged", advice=f"Learning rate {rate:.2g} is too high for it.")
    if mine < floor:
        return say("warn", f"{measured}; below the floor {floor:.3f}", advice="A leak wins no comparison: see stories.")
    if not mine - floor <= WORSE * (losses[best] - floor):
        slower = not at_step["yours"] - floor > WORSE * (at_step[best] - floor)
        advice = (
            f"Step for step it keeps up with {best}, but its steps take longer: look at speed first."
            if slower
            else f"It learns less from each step than {best} of the same size; try the settings suggested below."
        )
        return say("warn", measured, advice=advice)
    return say("pass", measured)


def check_settings(subject: Subject, budget: Budget) -> Check:
    """A look around the learning rate and weight decay, by successive halving (https://arxiv.org/abs/1502.07943)."""
    lesson, usual = Lesson(subject, budget.settings / 4), _rate(subject)  # many steps: smaller batches if need be
    grid = [(factor * usual, decay) for decay in DECAYS for factor in FACTORS]
    # Six short runs, then twice the steps for the better three: each round costs the same.
    runs, evaluations = 2 * len(grid), len(grid) + len(grid) // 2  # in units of a first-round run
    left = 0.7 * budget.settings - evaluations * lesson.evaluation_seconds
    steps = min(budget.steps or 150, int(left / runs / lesson.step_seconds))
    if steps < WARMUP:
        raise CannotTell(f"{len(grid)} runs of {WARMUP} steps do not fit into {budget.settings:g} s")
    limit = left / runs / 0.7  # seconds; only a machine that became busy meets it
    first = {pair: _probe(subject, lesson, *pair, steps, limit) for pair in grid}
    finalists = sorted(first, key=first.get)[: len(grid) // 2]
    losses = {pair: _probe(subject, lesson, *pair, 2 * steps, 2 * limit) for pair in finalists}
    rate, decay = min(losses, key=losses.get)
    loss = losses[rate, decay]
    finite = [value for value in first.values() if math.isfinite(value)]
    if not finite or not math.isfinite(loss):
        advice = "Every setting near this learning rate broke the training: start a hundred times lower."
        return Check("settings", "warn", f"nothing finite around learning rate {usual:.2g}", "for information", advice)
    values = {
        "learning_rate": rate, "weight_decay": decay, "loss": loss, "steps": steps,
        "rounds": [_rows(first), _rows(losses)],
    }  # fmt: skip
    rows = [[min(first[factor * usual, decay], max(finite)) for factor in FACTORS] for decay in DECAYS]
    figure = {
        "kind": "heatmaps", "title": f"Validation loss after {steps} steps", "x_label": "learning rate",
        "y_label": "weight decay", "panels": [{"title": "first round", "rows": rows}],
        "x_ticks": [f"{factor * usual:.2g}" for factor in FACTORS], "y_ticks": [f"{decay:g}" for decay in DECAYS],
    }  # fmt: skip
    measured = (
        f"best of {len(grid)}: learning rate {rate:.2g}, weight decay {decay:g} (loss {loss:.3f} after {2 * steps} "
        f"steps; the first round went from {min(finite):.3f} to {max(finite):.3f})"
    )
    return Check("settings", "pass", measured, "for information", values=values, figure=figure)


def _probe(subject: Subject, lesson: Lesson, rate: float, decay: float, steps: int, seconds: float) -> float:
    """Validation loss after a short run with these settings; infinite if it broke."""
    subject.reset()
    config = TrainConfig(learning_rate=rate, weight_decay=decay)
    course = train(subject.model, lesson, config, steps=steps, seconds=seconds, rate=_warm(rate))
    loss = math.inf if course.diverged else validation_loss(subject.model, lesson)[0]
    return _finite(loss)


def _finite(loss: float) -> float:
    """The loss, or infinity for a NaN, which would win every comparison or none."""
    return loss if math.isfinite(loss) else math.inf


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    layers = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        for module, _ in layers:
            module.p = 0.0
        yield
    finally:
        for module, p in layers:
            module.p = p


def _warm(rate: float) -> Callable[[int], float]:
    return lambda step: rate * min(1.0, (step + 1) / WARMUP)


def _rate(subject: Subject) -> float:
    """What the range test suggested if it ran on this subject, else the usual rate for the size."""
    return getattr(subject, "suggested_rate", None) or default_rate(subject.model)


def _rows(losses: dict[tuple[float, float], float]) -> list[dict]:
    return [{"learning_rate": rate, "weight_decay": decay, "loss": loss} for (rate, decay), loss in losses.items()]


def _told(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())


def _falls(course: Course, first: float) -> dict:
    steps = [float(step + 1) for step in range(course.steps)]
    goal = line("goal", [1.0, float(course.steps)], [LEARNED * first] * 2)
    return _lines("One batch, learned by heart", "optimizer steps", [line("loss", steps, course.losses), goal])


def _lines(title: str, x_label: str, series: list[dict], floor: float | None = None) -> dict:
    figure = {"kind": "lines", "title": title, "x_label": x_label, "y_label": "nats per guess", "series": series}
    return figure if floor is None else figure | {"floor": floor}


def _asked(name: str, why: str, check: Callable[[Subject, Budget], Check]) -> Callable[[Subject], Check]:
    """The check as the runner calls it: timed, with its reason, and the model put back whatever happens."""

    def run(subject: Subject) -> Check:
        start = time.perf_counter()
        subject.reset()
        try:
            result = check(subject, getattr(subject, "budget", None) or Budget())
        except CannotTell as reason:
            # To have nothing that could be trained is a finding once; elsewhere the question does not arise.
            status = "fail" if name == "overfit" and isinstance(reason, CannotLearn) else "skip"
            result = Check(name, status, str(reason))
        finally:
            subject.reset()
        return replace(result, seconds=time.perf_counter() - start, why=why)

    return run


CHECKS: dict[str, Callable[[Subject], Check]] = {
    name: _asked(name, why, check)
    for name, why, check in (
        ("overfit", "Learning a few lines by heart needs no talent, only working gradients.", check_overfit),
        ("learning rate", "No other setting decides as much, and the best differs between models.", check_rate),
        ("stories", "A loss above the text's entropy is still to learn; one below it is a leak.", check_stories),
        ("baselines", "A new design should beat, or at least match, a plain one of the same size.", check_baselines),
        ("settings", "A first guess at what to train with, from runs of seconds.", check_settings),
    )
}
