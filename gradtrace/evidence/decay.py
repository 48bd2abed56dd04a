"""What weight decay alone would have made of an opening balance.

The run's own optimizer and schedule are replayed on zero gradients.

With g = 0 the three optimizers differ widely. Let h_t = lambda_t w_t be the decay's own gradient:

- AdamW (Loshchilov and Hutter, arXiv 1711.05101):  w <- (1 - lr_t lambda_t) w
- SGD:  b <- mu b + (1 - dampening) h (first step: b = h);
  w <- w - lr_t b, or w - lr_t (h + mu b) with nesterov
- Adam with L2 (Kingma and Ba, arXiv 1412.6980):  m <- beta1 m + (1 - beta1) h,  v <- beta2 v + (1 - beta2)
  h^2, w <- w - lr_t m^ / (sqrt(v^) + eps), with m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t), or v's
  running maximum under amsgrad. This is no shrinkage by a factor: small weights of either sign go to nothing
  at the speed of lr.

AdamW and SGD are linear in w: the replay of 1 is the factor of every weight. Adam with L2 is odd in w, so
starting values from 0 up are enough; a large array is looked up, by linear interpolation, in a grid of
starting values replayed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import CorruptLedgerError, StateError, UnsupportedError

if TYPE_CHECKING:
    from gradtrace.ledger.reader import ParameterRecord, Update

__all__ = [
    "Rule",
    "decay_curve",
    "decay_of",
    "decayed",
    "linear",
    "recorded_history",
    "replay",
    "rules_of",
]

Array: TypeAlias = NDArray[np.float64]

# Even steps for where most weights lie; small ones apart, because Adam's map is steep near zero.
EVEN, SMALL = 1025, 512


class Rule(NamedTuple):
    """A run of equal updates of one kind, as numbers."""

    kind: Literal["factor", "adam", "sgd"]
    steps: int
    lr: float
    decay: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False


def recorded_history(record: ParameterRecord) -> tuple[Update, ...]:
    """The updates of a parameter. Raises StateError where steps were recorded and no update was."""
    history = tuple(record.history)
    if not history and record.windows:
        raise StateError(
            f"the decay of parameter {record.name!r} over {record.windows} windows",
            expected="what the optimizer did, in the ledger",
            got="nothing recorded of it",
            remedy="pass decay=False, which takes it for none",
        )
    return history


def rules_of(history: Iterable[Update], name: str = "") -> tuple[Rule, ...]:
    """The replayable form of a parameter's recorded updates.

    Raises UnsupportedError where an optimizer of another kind decayed the parameter, and CorruptLedgerError
    for settings that are not numbers.
    """
    rules = []
    for update in history:
        settings = update.settings

        def number(value: object, key: str) -> float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise CorruptLedgerError(
                    f"recorded optimizer setting {key!r} of parameter {name!r}",
                    expected="a number",
                    got=repr(value),
                )
            return float(value)

        decay = number(settings.get("weight_decay", 0.0), "weight_decay")
        if update.kind not in ("Adam", "AdamW", "SGD"):
            if decay != 0:
                raise UnsupportedError(
                    f"weight decay {decay:g} of {update.kind} on parameter {name!r} cannot be replayed",
                    expected="AdamW, Adam or SGD, or no weight decay",
                    remedy="use another criterion, or decay=False where the criterion has that option",
                )
            continue
        steps, lr = int(update.steps), number(settings.get("lr"), "lr")
        if update.kind == "SGD":
            momentum, dampening = (number(settings.get(key, 0.0), key) for key in ("momentum", "dampening"))
            nesterov = bool(settings.get("nesterov", False))
            rules.append(Rule("sgd", steps, lr, decay, momentum, dampening, nesterov))
        elif settings.get("decoupled_weight_decay", update.kind == "AdamW"):
            rules.append(Rule("factor", steps, lr, decay))
        else:
            betas = settings.get("betas", (0.9, 0.999))
            if not isinstance(betas, Sequence) or len(betas) != 2:
                raise CorruptLedgerError(
                    f"recorded optimizer setting 'betas' of parameter {name!r}",
                    expected="two numbers",
                    got=repr(betas),
                )
            beta1, beta2 = (number(beta, "betas") for beta in betas)
            eps, amsgrad = number(settings.get("eps", 1e-8), "eps"), bool(settings.get("amsgrad", False))
            rules.append(Rule("adam", steps, lr, decay, beta1=beta1, beta2=beta2, eps=eps, amsgrad=amsgrad))
    return tuple(rules) if any(rule.decay != 0 for rule in rules) else ()


@dataclass
class _Adam:
    """Adam's state for every starting value."""

    step: int
    mean: Array
    square: Array
    highest: Array

    def run(self, w: Array, rule: Rule) -> None:
        if rule.decay == 0 and not self.mean.any():
            self.step += rule.steps
            return
        for _ in range(rule.steps):
            self.step += 1
            pull = rule.decay * w
            self.mean += (1 - rule.beta1) * (pull - self.mean)
            self.square *= rule.beta2
            self.square += (1 - rule.beta2) * pull * pull
            if rule.amsgrad:
                np.maximum(self.highest, self.square, out=self.highest)
            second = self.highest if rule.amsgrad else self.square
            size = np.sqrt(second) / math.sqrt(1 - rule.beta2**self.step) + rule.eps
            move = np.divide(self.mean, size, out=np.zeros_like(w), where=size > 0)
            w -= rule.lr / (1 - rule.beta1**self.step) * move


@dataclass
class _Sgd:
    """SGD's momentum buffer for every starting value; None before the first step with momentum."""

    buffer: Array | None

    def run(self, w: Array, rule: Rule) -> None:
        if rule.decay == 0 and (rule.momentum == 0 or self.buffer is None or not self.buffer.any()):
            if rule.momentum != 0 and self.buffer is None:
                self.buffer = np.zeros_like(w)
            return
        for _ in range(rule.steps):
            pull = rule.decay * w
            if rule.momentum == 0:
                w -= rule.lr * pull
                continue
            if self.buffer is None:
                self.buffer = pull.copy()
            else:
                self.buffer *= rule.momentum
                self.buffer += (1 - rule.dampening) * pull
            w -= rule.lr * (pull + rule.momentum * self.buffer if rule.nesterov else self.buffer)


def replay(start: Array, rules: Sequence[Rule]) -> Array:
    """Where each starting value ends under the rules, step by step in float64."""
    w = np.array(start, np.float64)
    adam = _Adam(0, np.zeros_like(w), np.zeros_like(w), np.zeros_like(w))
    sgd = _Sgd(None)
    # A decay that diverges (lr * weight_decay > 2) ends in inf, and the scores' own check says so.
    with np.errstate(over="ignore", invalid="ignore"):
        for rule in rules:
            if rule.kind == "factor":
                w *= np.float64(1 - rule.lr * rule.decay) ** rule.steps
            else:
                (adam if rule.kind == "adam" else sgd).run(w, rule)
    return w


@lru_cache(maxsize=8)  # parameters of one group share their history: replay once, not once for each
def decay_curve(rules: tuple[Rule, ...], exponent: int) -> tuple[Array, Array]:
    """(starting values from 0 to 2^exponent, ascending, and where each ends): float64, read-only."""
    top = math.ldexp(1.0, exponent)
    start = np.unique(np.concatenate([np.linspace(0, top, EVEN), np.geomspace(top * 1e-9, top, SMALL)]))
    end = replay(start, rules)
    start.flags.writeable = end.flags.writeable = False
    return start, end


def linear(rules: Iterable[Rule]) -> bool:
    """Whether one factor tells it for every weight. Adam without decay moves nothing on zero gradients."""
    return all(rule.kind != "adam" or rule.decay == 0 for rule in rules)


def decay_of(rules: tuple[Rule, ...], *, size: int, largest: float) -> Callable[[Array], Array]:
    """What the rules make of a parameter of `size` elements, none beyond +-`largest`, or of a part of it.

    A part comes out as it does within the whole, bit for bit. Where `linear(rules)`, `largest` is not used.
    """
    if not rules:
        return lambda values: values.copy()
    if linear(rules):
        factor = float(replay(np.ones(1), rules)[0])

        def scaled(values: Array) -> Array:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray(values * factor)

        return scaled
    if size <= EVEN + SMALL:
        return lambda values: replay(values, rules)
    start, end = decay_curve(rules, math.frexp(largest)[1])
    return lambda values: np.asarray(np.sign(values) * np.interp(np.abs(values), start, end))


def decayed(values: Array, history: Iterable[Update], *, name: str = "") -> Array:
    """What weight decay alone makes of the values: float64, the same shape.

    `name` is for messages. Raises UnsupportedError and CorruptLedgerError as `rules_of` does.
    """
    array = np.asarray(values, np.float64)
    largest = float(np.abs(array).max()) if array.size else 0.0
    return decay_of(rules_of(history, name), size=array.size, largest=largest)(array)
