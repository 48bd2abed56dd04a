"""`Annealing`: a model that trains, its optimizers, and the stages that take it to a structure.

For any loop: `hold` the optimizers once, `step` after each optimizer step. Where several ranks train one
model the first decides, and every rank takes its decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrace import __version__
from gradtrace.annealing.cross_blocks import coclustered, pressures, spread
from gradtrace.annealing.masking import Masking, local_part_of
from gradtrace.annealing.mlp import MlpNames, find_mlps
from gradtrace.annealing.progress import Progress
from gradtrace.annealing.schedule import Schedule
from gradtrace.annealing.shrinking import shrink_
from gradtrace.annealing.target import Target
from gradtrace.annealing.whole_weights import whole_weights
from gradtrace.convert.linear_uses import linear_uses
from gradtrace.errors import GradtraceError, InvalidValueError, StateError
from gradtrace.evidence.criterion import criterion
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.score import DEFAULT, Scores, score
from gradtrace.ledger.names import canonical
from gradtrace.ledger.reader import Ledger
from gradtrace.recorder.wrappers import bare_model

__all__ = ["Annealing"]

Broadcast: TypeAlias = Callable[[Any], Any]


class Annealing:
    """Anneals `model` towards `target` along `schedule`, while it trains.

    Args:
        model: the module that trains; compiled, DDP, FSDP2 and Fabric ones will do.
        target: structure, density and criterion; see `Target`.
        schedule: when; see `Schedule`.
        mlps: of the structures of whole MLPs, which; see `find_mlps`.
        broadcast: object of the first rank -> the same on all ranks; left out: there is one rank.

    Attributes:
        progress: stage, masks, blocks; see `Progress`.

    Raises:
        InvalidValueError: no linear layer, or no MLP, to anneal.
    """

    def __init__(
        self,
        model: nn.Module,
        target: Target,
        schedule: Schedule,
        *,
        mlps: Iterable[MlpNames] | None = None,
        broadcast: Broadcast | None = None,
        decides: bool = True,
    ) -> None:
        self._model, self._broadcast, self._decides = model, broadcast, decides
        self._parameters = {canonical(name): p for name, p in bare_model(model).named_parameters()}
        found = find_mlps(model, mlps) if target.of_mlps else ()
        if mlps is not None and not target.of_mlps:
            raise InvalidValueError(
                "mlps", expected="structure='neuron' or 'blocks' with it", got=repr(target.structure)
            )
        self.progress = Progress(target, schedule, self._names(target, found), found)
        self._masking: Masking | None = None
        self._pressed: dict[nn.Parameter, Tensor] = {}
        self._pressing: list[dict[str, Any]] = []  # of each MLP, between its blocks-to-be
        self._chosen = {self._parameters[name] for name in self.progress.names}
        self._optimizers: list[Optimizer] = []
        self._handles: list[Any] = []
        self._active = False

    @property
    def mask(self) -> Mask | None:
        """What is kept so far, with how it came about; None before the first stage."""
        if not self.progress.masks:
            return None
        target, schedule = self.progress.target, self.progress.schedule
        facts = {
            "structure": target.structure,
            "blocks": target.blocks,
            "density": self.progress.density,
            "stage": self.progress.stage,
            "stages": schedule.stages,
            "begin": schedule.begin,
            "end": schedule.end,
            "shape": schedule.shape,
            "found_by": self.progress.how or None,
        }
        return Mask(
            self.progress.masks,
            {"structurally_annealed": facts, "criterion": target.by, "library_version": __version__},
        )

    def hold(self, optimizers: Iterable[Optimizer], step: int = 0) -> None:
        """Apply the mask again after every step of these optimizers, until `release`; `step`: those done."""
        self._active = step > self.progress.schedule.begin
        self._optimizers = list(optimizers)
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after))
        if self._masking is not None:
            self._masking.apply_(self._optimizers)

    def release(self) -> None:
        """Hold nothing any more; the mask stays applied as it is."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []

    def step(self, step: int, ledger: Callable[[], Ledger | None] = lambda: None) -> bool:
        """Go through the stage that is due once `step` optimizer steps are done; says whether one was.

        `ledger` is asked only then; all ranks ask it and only the first's answer counts.

        Raises:
            StateError: weights that are not finite, or what `score` raises, on every rank.
        """
        self._active = step > self.progress.schedule.begin
        if not self.progress.due(step):
            return False
        by = self.progress.target.by
        found = ledger() if by is None or criterion(by).kind == "ledger" else None
        weights = whole_weights(self._model)
        state: Any = None
        if self._decides:
            state = self._decided(step, found, weights)
        if self._broadcast is not None:
            state = self._broadcast(state)
        if isinstance(state, str):
            raise StateError(f"annealing cannot go on at step {step}", got=state)
        self.load_state_dict(state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: where it stands."""
        return self.progress.state_dict() | {"pressing": self._pressing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where that one was, its mask applied. Raises MismatchError for one of another model."""
        self.progress.load_state_dict(state)
        self._masking = Masking(self._model, self.progress.masks) if self.progress.masks else None
        self._pressing = list(state["pressing"])
        self._pressed = {}
        for mlp, one in zip(self.progress.mlps, self._pressing, strict=False):
            labels = tuple(level.numpy() for level in one["labels"])
            pressure = {name: value.numpy() for name, value in one["pressures"].items()}
            for name, value in spread(mlp, labels, pressure).items():
                parameter = self._parameters[name]
                part = local_part_of(name, parameter, value * self.progress.target.group_lasso)
                self._pressed[parameter] = part.to(parameter.dtype)
        if self._masking is not None:
            self._masking.apply_(self._optimizers)

    def _decided(self, step: int, ledger: Ledger | None, weights: Mapping[str, Any]) -> Any:
        before = self.progress.state_dict()
        try:
            self.progress.advance(step, self._scores(ledger, weights))
            return self.progress.state_dict() | {"pressing": self._to_press(weights)}
        except GradtraceError as error:
            # Said to all ranks, none of which would otherwise know why the first does not come.
            self.progress.load_state_dict(before)
            return str(error)

    def _scores(self, ledger: Ledger | None, weights: Mapping[str, Any]) -> Scores:
        names = self.progress.names
        by = self.progress.target.by or ("magnitude" if ledger is None else DEFAULT)
        if criterion(by).kind != "ledger":
            return score(None, {name: weights[name] for name in names}, by=by)
        missing = [] if ledger is None else [name for name in names if name not in ledger]
        if missing:
            raise InvalidValueError(
                "the ledger",
                expected="all that is annealed",
                got=f"nothing of {missing[0]!r}",
                remedy="widen its include=, or pass by='magnitude'",
            )
        return score(ledger, weights, by=by)

    def _to_press(self, weights: Mapping[str, Any]) -> list[dict[str, Any]]:
        target = self.progress.target
        if not target.group_lasso or self.progress.done:
            return []
        assert target.blocks is not None
        held = {n: np.abs(weights[n], dtype=np.float64) * self.progress.masks[n] for n in self.progress.names}
        found = []
        for mlp in self.progress.mlps:
            labels = coclustered(mlp, held, target.blocks)
            pressure = pressures(mlp, labels, held)
            found.append(
                {
                    "labels": [torch.from_numpy(level.copy()) for level in labels],
                    "pressures": {name: torch.from_numpy(value) for name, value in pressure.items()},
                }
            )
        return found

    def _names(self, target: Target, mlps: tuple[Any, ...]) -> tuple[str, ...]:
        if target.of_mlps:
            return tuple(name for mlp in mlps for name in mlp.names)
        uses = linear_uses(bare_model(self._model))
        names = tuple(
            name
            for name, p in self._parameters.items()
            if id(p) in uses and not uses[id(p)].obstacle.startswith("it shares")
        )
        if not names:
            raise InvalidValueError("model", expected="a linear layer to anneal", got="none")
        return names

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: object) -> None:
        target = self.progress.target
        if self._active and not self.progress.done and (target.shrinkage or self._pressed):
            shrink_(optimizer.param_groups, self._chosen, target.shrinkage, self._pressed)
        if self._masking is not None:
            self._masking.apply_([optimizer])
