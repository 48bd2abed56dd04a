"""What transformers.Trainer has no callback for: the moment before clipping, and an error in an epoch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers import Trainer

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.recorder.updates import refuse_optimizer
from gradtrace.recorder.wrappers import bare_optimizer

__all__ = ["before_clipping", "before_saving", "calling_trainer", "on_error", "refuse_trainer"]

Undo = Callable[[], None]

_NOT_WHOLE = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")  # accelerate's distributed types
_INSIDE_BACKWARD = ("AdaLomo", "LayerWiseDummyOptimizer", "Lomo")


def calling_trainer() -> Trainer:
    """The Trainer further up the stack: it hands its callbacks everything but itself.

    Raises:
        StateError: the callback is not called by a Trainer.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    raise StateError(
        "HFGradientLedger outside a transformers.Trainer",
        expected="Trainer(callbacks=[HFGradientLedger(...)])",
        remedy="in a loop of your own, call gradtrace.Recorder.observe(optimizer) before optimizer.step()",
    )


def refuse_trainer(trainer: Trainer) -> None:
    """Raise an UnsupportedError for a set-up in which p.grad is not the whole gradient of one run."""
    distributed = trainer.accelerator.distributed_type
    if distributed.value in _NOT_WHOLE:
        raise UnsupportedError(
            f"training under {distributed.value}",
            expected="single-device or DDP training, where p.grad is whole before the optimizer step",
            remedy="train without sharding, or leave the callback out",
        )
    if trainer.state.is_hyper_param_search:
        raise UnsupportedError(
            "hyperparameter search",
            expected="one training run for a ledger",
            remedy="search without the callback, then record a run with the chosen settings",
        )
    assert trainer.optimizer is not None, "on_train_begin comes after the optimizer is made"
    optimizer, _ = bare_optimizer(trainer.optimizer)
    if type(optimizer).__name__ in _INSIDE_BACKWARD:
        raise UnsupportedError(
            f"optimizer {type(optimizer).__name__} (optim={trainer.args.optim!s}) steps inside backward",
            expected="an optimizer that leaves p.grad to be read before its step",
            remedy="choose another optim=, or leave the callback out",
        )
    refuse_optimizer(optimizer)


def before_clipping(trainer: Trainer, do: Callable[[], None]) -> Undo:
    """Call `do` before this trainer's gradients are unscaled and clipped, once they are all accumulated.

    The Trainer clips by its accelerator, and late versions also ask it for the norm when they do not clip.
    """
    accelerator = trainer.accelerator

    def around(clip: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            if accelerator.sync_gradients:
                do()
            return clip(*args, **kwargs)

        return clip_grad_norm_

    return _replace(accelerator, "clip_grad_norm_", around)


def before_saving(trainer: Trainer, do: Callable[[], None]) -> Undo:
    """Call `do` on every rank before this trainer saves a checkpoint; callbacks are only asked on one."""

    def around(save: Callable[..., Any]) -> Callable[..., Any]:
        def _save_checkpoint(*args: Any, **kwargs: Any) -> Any:
            do()
            return save(*args, **kwargs)

        return _save_checkpoint

    return _replace(trainer, "_save_checkpoint", around)


def on_error(trainer: Trainer, do: Callable[[BaseException], None]) -> Undo:
    """Call `do` with whatever stops an epoch of this trainer, an interrupt too, and let it go on its way."""

    def around(run: Callable[..., Any]) -> Callable[..., Any]:
        def run_epoch(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except BaseException as error:
                do(error)
                raise

        return run_epoch

    return _replace(trainer, "_run_epoch", around)


def _replace(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Undo:
    """Put a method around the one that this object alone has under `name`; returns what takes it back."""
    before = getattr(owner, name)
    own = name in vars(owner)
    after = functools.wraps(before)(around(before))
    setattr(owner, name, after)

    def undo() -> None:
        # A second ledger may have put its own around this one; then this one stays, with nothing to do.
        if vars(owner).get(name) is not after:
            return
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

    return undo
