"""The Hugging Face callback in runs as people make them, beside a float64 loop over the same gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

import gradtrace as gt
from gradtrace.callbacks import HFGradientLedger
from gradtrace.errors import (
    InvalidValueError,
    LedgerExistsError,
    LedgerNotFoundError,
    MismatchError,
    StateError,
    UnsupportedError,
)

Loop = Callable[[nn.Module], Any]
SMALL: Any = {"window_steps": 2, "entry_steps": 4}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is fetched; what torch and transformers warn about among themselves is theirs."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        for module in ("accelerate", "torch", "transformers"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        yield


def language_model() -> GPT2LMHeadModel:
    """Tied embeddings, GPT-2's Conv1D, and two positions that no text reaches."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13,
        n_positions=7,
        n_embd=6,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def texts(rows: int = 24) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 13, (rows, 5), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


class Watched(Trainer):
    """Feeds the float64 loop right after the backward pass that completes a step's gradients."""

    loop: Any = None
    spoil: Callable[[int, nn.Module], None] | None = None
    seen = 0

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            if self.spoil is not None:
                self.spoil(self.seen, model)
            self.seen += 1
            if self.loop is not None:
                self.loop.observe()
        return loss


def trainer(
    root: Path,
    *callbacks: TrainerCallback,
    model: nn.Module | None = None,
    kind: type[Trainer] = Watched,
    optimizers: Any = (None, None),
    **settings: Any,
) -> Any:
    settings = {
        "output_dir": os.fspath(root / "out"),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        **settings,
    }
    return kind(
        model=model if model is not None else language_model(),
        args=TrainingArguments(**settings),
        train_dataset=texts(),
        eval_dataset=texts(4),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )


def spoil_one(step: int, model: nn.Module) -> None:
    if step == 3:
        gradient = next(model.parameters()).grad
        assert gradient is not None
        gradient[0, 1] = float("nan")


@pytest.mark.parametrize(
    ("settings", "spoil", "steps"),
    [
        pytest.param({}, None, 12, id="clipping as by default"),
        pytest.param({"max_grad_norm": 1e-3}, None, 12, id="hard clipping"),
        pytest.param({"max_grad_norm": 0.0}, None, 12, id="no clipping"),
        pytest.param({"gradient_accumulation_steps": 4}, None, 4, id="accumulation 4, ragged"),
        pytest.param(
            {"gradient_accumulation_steps": 4, "max_grad_norm": 0.0}, None, 4, id="accumulation, no clipping"
        ),
        pytest.param({"bf16": True}, None, 12, id="bf16"),
        pytest.param({"optim": "sgd"}, None, 12, id="SGD"),
        pytest.param({"gradient_checkpointing": True}, None, 12, id="gradient checkpointing"),
        pytest.param({"eval_strategy": "steps", "eval_steps": 5}, None, 12, id="evaluation in between"),
        # Clipping by a norm that is not finite spoils every gradient, so this one shows it comes first.
        pytest.param({}, spoil_one, 12, id="a NaN step"),
        pytest.param({"max_grad_norm": 0.0}, spoil_one, 12, id="a NaN step, no clipping"),
    ],
)
def test_a_train_records_what_a_float64_loop_over_the_gradients_gives(
    tmp_path: Path, gradient_loop: Loop, settings: Any, spoil: Any, steps: int
) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL), **settings)
    run.loop, run.spoil = gradient_loop(run.model), spoil
    run.train()
    ledger = gt.Ledger.open(tmp_path / "run")
    run.loop.check(ledger)
    assert ledger.steps == run.seen == run.state.global_step == steps


def test_a_bf16_model_is_recorded(tmp_path: Path, gradient_loop: Loop) -> None:
    model = language_model().bfloat16()
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL), model=model)
    run.loop = gradient_loop(run.model)
    run.train()
    run.loop.check(gt.Ledger.open(tmp_path / "run"))


def test_gradients_really_are_clipped_after_they_are_recorded(tmp_path: Path) -> None:
    norms: list[float] = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))

    trainer(tmp_path, Norm(), HFGradientLedger(tmp_path / "run", **SMALL), max_grad_norm=1e-3).train()
    ledger = gt.Ledger.open(tmp_path / "run")
    assert max(norms) < 1.1e-3
    assert max(float(ledger[name].grad_sumsq.max()) for name in ledger) > 1e-4


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_fp16_gradients_are_recorded_unscaled_and_skipped_steps_add_nothing(
    tmp_path: Path, gradient_loop: Loop, optim: str, clip: float
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    class Scaled(Watched):
        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = Trainer.training_step(self, model, *args, **kwargs)
            if self.seen in (4, 5):
                gradient = next(model.parameters()).grad
                assert gradient is not None
                gradient[0, 0] = float("inf")
            else:
                self.loop.observe(divide_by=scaler.get_scale())
            self.seen += 1
            return loss

    run = trainer(
        tmp_path,
        HFGradientLedger(tmp_path / "run", **SMALL),
        kind=Scaled,
        optim=optim,
        max_grad_norm=clip,
    )
    # accelerate has no fp16 without a GPU; this is what it sets up and does where there is one.
    run.accelerator.scaler = scaler
    run.accelerator.unscale_gradients = lambda: scaler.unscale_(run.optimizer.optimizer)
    run.loop = gradient_loop(run.model)
    run.train()
    ledger = gt.Ledger.open(tmp_path / "run")
    run.loop.check(ledger)
    assert {ledger[name].skipped for name in ledger} == {2}
    assert ledger.steps == 12


def test_the_optimizer_and_the_parameters_have_their_plain_names(tmp_path: Path) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL), optim="adamw_torch")
    run.train()
    ledger = gt.Ledger.open(tmp_path / "run")
    assert list(ledger) == [name for name, _ in run.model.named_parameters()]
    np.testing.assert_array_equal(ledger["lm_head.weight"].events, ledger["transformer.wte.weight"].events)
    history = ledger["transformer.h.0.mlp.c_fc.weight"].history
    assert {update.kind for update in history} == {"AdamW"}
    assert sum(update.steps for update in history) == 12
    assert (ledger["transformer.wpe.weight"].events[5:] == 0).all()


def test_a_compiled_model_keeps_its_plain_names(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        HFGradientLedger(tmp_path / "run"),
        torch_compile=True,
        torch_compile_backend="eager",
        max_steps=2,
    )
    run.train()
    assert list(gt.Ledger.open(tmp_path / "run")) == [name for name, _ in run.model.named_parameters()]


def test_include_and_exclude_choose_what_is_recorded(tmp_path: Path) -> None:
    ledger = HFGradientLedger(tmp_path / "run", include="*.mlp.*", exclude="*.bias")
    trainer(tmp_path, ledger).train()
    assert list(gt.Ledger.open(tmp_path / "run")) == [
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]


def test_two_ledgers_record_beside_each_other_and_let_go_of_the_trainer(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        HFGradientLedger(tmp_path / "one", include="*.attn.*", **SMALL),
        HFGradientLedger(tmp_path / "two", include="*.mlp.*", **SMALL),
    )
    run.train()
    run.train()
    assert [gt.Ledger.open(tmp_path / name).steps for name in ("one", "two")] == [24, 24]


def test_the_trainer_has_its_own_methods_back_after_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run"))
    run.train()
    assert "clip_grad_norm_" not in vars(run.accelerator)
    assert "_run_epoch" not in vars(run)


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    there: list[bool] = []

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            there.append((tmp_path / "run").exists())

    trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL), Look()).train()
    assert there == [False] + [True] * 11


def test_evaluation_and_prediction_alone_write_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run"))
    run.evaluate()
    run.predict(texts(4))
    assert not (tmp_path / "run").exists()


def test_train_called_twice_goes_on_in_the_same_ledger(tmp_path: Path) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL))
    run.train()
    run.train()
    assert gt.Ledger.open(tmp_path / "run").steps == 24


def test_a_callback_used_again_for_another_model_does_not_mix_their_ledgers(tmp_path: Path) -> None:
    ledger = HFGradientLedger(tmp_path / "run", **SMALL)
    trainer(tmp_path, ledger).train()
    with pytest.raises(LedgerExistsError, match=r"append.*overwrite"):
        trainer(tmp_path, ledger).train()
    assert gt.Ledger.open(tmp_path / "run").steps == 12


def test_a_script_run_again_is_refused_before_it_trains_unless_told_what_to_do(tmp_path: Path) -> None:
    def train(mode: Any = None, model: nn.Module | None = None) -> None:
        trainer(tmp_path, HFGradientLedger(tmp_path / "run", mode=mode, **SMALL), model=model).train()

    train()
    watched = language_model()
    before = watched.transformer.wte.weight.detach().clone()
    with pytest.raises(LedgerExistsError, match=r"append.*overwrite"):
        train(model=watched)
    assert torch.equal(before, watched.transformer.wte.weight)
    train("append")
    assert gt.Ledger.open(tmp_path / "run").steps == 24
    train("overwrite")
    assert gt.Ledger.open(tmp_path / "run").steps == 12


def saving(root: Path, path: Path, *others: TrainerCallback, epochs: int = 3, **settings: Any) -> Any:
    settings = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": epochs, **settings}
    return trainer(
        root,
        HFGradientLedger(path, **SMALL),
        *others,
        output_dir=os.fspath(path) + ".out",
        lr_scheduler_type="constant",
        **settings,
    )


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("checkpoint", [5, 10])
def test_resuming_a_checkpoint_equals_the_uninterrupted_run(
    tmp_path: Path, checkpoint: int, restore: bool
) -> None:
    saving(tmp_path, tmp_path / "whole").train()
    saving(tmp_path, tmp_path / "broken", max_steps=13).train()
    resumed = saving(tmp_path, tmp_path / "broken", restore_callback_states_from_checkpoint=restore)
    resumed.train(resume_from_checkpoint=os.fspath(tmp_path / "broken.out" / f"checkpoint-{checkpoint}"))
    whole, broken = gt.Ledger.open(tmp_path / "whole"), gt.Ledger.open(tmp_path / "broken")
    assert [(e.begin, e.end) for e in whole.entries] == [(e.begin, e.end) for e in broken.entries]
    assert broken.steps == 18
    for name in whole:
        for sums in ("grad_sum", "grad_sumsq", "window_sumsq", "events", "window_votes"):
            np.testing.assert_array_equal(getattr(whole[name], sums), getattr(broken[name], sums), name)


def test_resuming_by_the_trainer_that_failed_voids_what_it_recorded_since(tmp_path: Path) -> None:
    saving(tmp_path, tmp_path / "whole").train()
    run = saving(tmp_path, tmp_path / "broken")

    def once(step: int, model: nn.Module) -> None:
        if step == 12:
            raise ZeroDivisionError

    run.spoil = once
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert gt.Ledger.open(tmp_path / "broken").steps == 12
    run.spoil = None
    run.train(resume_from_checkpoint=True)
    whole, broken = gt.Ledger.open(tmp_path / "whole"), gt.Ledger.open(tmp_path / "broken")
    assert broken.steps == 18
    for name in whole:
        np.testing.assert_array_equal(whole[name].grad_sum, broken[name].grad_sum)


def test_each_of_two_ledgers_resumes_its_own_run(tmp_path: Path) -> None:
    def run(**settings: Any) -> Any:
        beside = HFGradientLedger(tmp_path / "two", include="*.mlp.*", **SMALL)
        return saving(tmp_path, tmp_path / "one", beside, epochs=2, **settings)

    run().train()
    again = run()
    again.train(resume_from_checkpoint=os.fspath(tmp_path / "one.out" / "checkpoint-10"))
    assert [gt.Ledger.open(tmp_path / name).steps for name in ("one", "two")] == [12, 12]


def test_resuming_a_run_that_had_no_ledger_begins_one_there(tmp_path: Path) -> None:
    saves: Any = {"save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path, **saves).train()
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run", **SMALL), **saves)
    run.train(resume_from_checkpoint=os.fspath(tmp_path / "out" / "checkpoint-5"))
    assert gt.Ledger.open(tmp_path / "run").steps == 7


def test_resuming_beside_the_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    saving(tmp_path, tmp_path / "one", epochs=1).train()
    saving(tmp_path, tmp_path / "two", epochs=1).train()
    checkpoint = os.fspath(tmp_path / "one.out" / "checkpoint-5")
    with pytest.raises(MismatchError, match="belongs to"):
        saving(tmp_path, tmp_path / "two").train(resume_from_checkpoint=checkpoint)
    assert gt.Ledger.open(tmp_path / "two").steps == 6
    with pytest.raises(LedgerNotFoundError, match="overwrite"):
        saving(tmp_path, tmp_path / "three").train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    "note",
    [
        pytest.param({"attributes": {"checkpoint": {"run_id": "x", "steps": "5"}}}, id="steps as text"),
        pytest.param({"attributes": {"checkpoint": {"run_id": None, "steps": 5}}}, id="no run"),
        pytest.param({"attributes": {"checkpoint": {"run_id": "x", "steps": -1}}}, id="negative steps"),
        pytest.param({"attributes": {"checkpoint": 5}}, id="a number"),
        pytest.param({"attributes": {}}, id="nothing"),
        pytest.param("text", id="text"),
    ],
)
def test_an_altered_checkpoint_is_refused_and_voids_nothing(tmp_path: Path, note: Any) -> None:
    saving(tmp_path, tmp_path / "run", epochs=1).train()
    file = tmp_path / "run.out" / "checkpoint-5" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["HFGradientLedger"] = note
    file.write_text(json.dumps(state))
    with pytest.raises(InvalidValueError, match="checkpoint"):
        saving(tmp_path, tmp_path / "run").train(resume_from_checkpoint=os.fspath(file.parent))
    assert gt.Ledger.open(tmp_path / "run").steps == 6


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_training_leaves_the_recorded_steps_readable_and_the_ledger_free(
    tmp_path: Path, error: type[BaseException]
) -> None:
    class Bomb(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if state.global_step == 7:
                raise error

    run = trainer(tmp_path, Bomb(), HFGradientLedger(tmp_path / "run", **SMALL))
    with pytest.raises(error):
        run.train()
    assert gt.Ledger.open(tmp_path / "run").steps == 7
    trainer(tmp_path, HFGradientLedger(tmp_path / "run", mode="append", **SMALL)).train()
    assert gt.Ledger.open(tmp_path / "run").steps == 19


def test_an_error_outside_the_epochs_is_covered_by_with(tmp_path: Path) -> None:
    class Bomb(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), HFGradientLedger(tmp_path / "run", **SMALL) as ledger:
        trainer(tmp_path, Bomb(), ledger).train()
    trainer(tmp_path, HFGradientLedger(tmp_path / "run", mode="append", **SMALL)).train()
    assert gt.Ledger.open(tmp_path / "run").steps == 24


class Listener(TrainerCallback):
    """Where the loggers stand (they come before other callbacks) or the console (after them)."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
        self.heard.append(dict(logs))


def test_shares_never_supported_reach_the_log_the_loggers_and_in_short_the_console(tmp_path: Path) -> None:
    logger, console = Listener(), Listener()
    run = trainer(tmp_path, logger, HFGradientLedger(tmp_path / "run", **SMALL), logging_steps=4)
    run.add_callback(console)
    run.train()
    key = "ledger/never_supported/transformer.wpe.weight"
    ledger = gt.Ledger.open(tmp_path / "run")
    never = float((ledger["transformer.wpe.weight"].events == 0).mean())
    assert never >= 2 / 7
    assert [one for one in logger.heard if key in one][-1][key] == pytest.approx(never)
    assert [one for one in run.state.log_history if key in one][-1][key] == pytest.approx(never)
    assert [one for one in console.heard if "ledger/never_supported" in one]
    assert not [one for one in console.heard if key in one]
    # Our lines take none of the Trainer's own away.
    assert [one["step"] for one in run.state.log_history if "loss" in one] == [4, 8, 12]


def test_the_last_shares_come_before_the_loggers_close(tmp_path: Path) -> None:
    order: list[str] = []

    class Logger(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            order.append("shares" if "ledger/never_supported" in logs else "log")

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            order.append("end")

    trainer(tmp_path, Logger(), HFGradientLedger(tmp_path / "run"), logging_strategy="no").train()
    assert order == ["log", "shares", "end"]


def test_the_end_of_train_says_in_a_line_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = HFGradientLedger(tmp_path / "run", **SMALL)
    run = trainer(tmp_path, ledger)
    assert ledger.summary is None
    run.train()
    size = sum(parameter.numel() for parameter in run.model.parameters())
    line = f"12 steps of {size:,} dependencies"
    out = capsys.readouterr().out
    assert line in out
    assert out.index("of storage after 12 steps (") < out.index(line)
    assert ledger.summary is not None
    assert line in str(ledger.summary)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"window_steps": 0}, InvalidValueError),
        ({"threshold": -1.0}, InvalidValueError),
        ({"include": [3]}, InvalidValueError),
        ({"mode": "replace"}, InvalidValueError),
    ],
)
def test_bad_settings_are_refused_when_the_callback_is_made(
    tmp_path: Path, settings: Any, error: Any
) -> None:
    with pytest.raises(error):
        HFGradientLedger(tmp_path / "run", **settings)


@pytest.mark.parametrize("distributed", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_sharded_training_is_refused_by_name(
    tmp_path: Path, distributed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, HFGradientLedger(tmp_path / "run"))

    class Sharded(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            state = run.accelerator.state
            monkeypatch.setitem(state.__dict__, "distributed_type", type(state.distributed_type)(distributed))

    run.callback_handler.callbacks.insert(0, Sharded())
    with pytest.raises(UnsupportedError, match=f"training under {distributed}"):
        run.train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (lambda model: torch.optim.LBFGS(model.parameters()), "LBFGS"),
        (
            lambda model: LayerWiseDummyOptimizer(),  # type: ignore[no-untyped-call]
            "LayerWiseDummyOptimizer",
        ),
    ],
)
def test_optimizers_without_one_gradient_a_step_are_refused_by_name(
    tmp_path: Path, optimizer: Any, name: str
) -> None:
    model = language_model()
    run = trainer(
        tmp_path, HFGradientLedger(tmp_path / "run"), model=model, optimizers=(optimizer(model), None)
    )
    with pytest.raises(UnsupportedError, match=name):
        run.train()
    assert not (tmp_path / "run").exists()


def test_a_hyperparameter_search_is_refused(tmp_path: Path) -> None:
    class Trial(TrainerCallback):
        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            state.is_hyper_param_search = True

    with pytest.raises(UnsupportedError, match="hyperparameter search"):
        trainer(tmp_path, Trial(), HFGradientLedger(tmp_path / "run")).train()


def test_a_trainer_that_clips_its_own_way_is_refused_rather_than_recorded_clipped(tmp_path: Path) -> None:
    class Own(Watched):
        def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
            return nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    with pytest.raises(UnsupportedError, match="Own clips gradients its own way"):
        trainer(tmp_path, HFGradientLedger(tmp_path / "run"), kind=Own).train()
    assert not (tmp_path / "run").exists()


def test_the_callback_outside_a_trainer_says_what_to_do(tmp_path: Path) -> None:
    ledger = HFGradientLedger(tmp_path / "run")
    arguments = TrainingArguments(output_dir=os.fspath(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(StateError, match=r"Recorder\.observe"):
        ledger.on_train_begin(arguments, TrainerState(), TrainerControl(), model=language_model())


RANK = """
import runpy, sys
names = runpy.run_path(sys.argv[1])
run = names["trainer"](
    names["Path"](sys.argv[2]), names["HFGradientLedger"](sys.argv[3], **names["SMALL"]), optim="sgd",
    per_device_train_batch_size=2, ddp_backend="gloo", max_grad_norm=1e-3, ddp_find_unused_parameters=False,
)
assert run.accelerator.num_processes == 2
run.train()
# A rank that leaves while gloo's threads still run may be aborted by the C++ runtime.
names["torch"].distributed.barrier()
names["torch"].distributed.destroy_process_group()
"""


def test_two_processes_record_what_one_does_and_rank_0_alone_writes(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    trainer(tmp_path, HFGradientLedger(tmp_path / "one", **SMALL), optim="sgd", max_grad_norm=1e-3).train()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [tmp_path / "rank.py", __file__, tmp_path, tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launch, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    one, two = gt.Ledger.open(tmp_path / "one"), gt.Ledger.open(tmp_path / "two")
    assert (list(one), one.steps) == (list(two), two.steps)
    for name in one:
        np.testing.assert_allclose(one[name].grad_sum, two[name].grad_sum, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_adapter_needs_no_lightning() -> None:
    code = "import sys; sys.modules['lightning'] = None; from gradtrace.callbacks import HFGradientLedger"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
