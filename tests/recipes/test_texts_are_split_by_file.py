from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradtrace.errors import InvalidValueError, MismatchError, UnreadableFileError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import function_text  # noqa: E402
import minilm_classifier  # noqa: E402
from function_text import Split, labelled_lines, standard_library  # noqa: E402
from text_baselines import bag_of_words, majority  # noqa: E402


def test_no_file_and_no_text_stands_on_both_sides() -> None:
    split = standard_library()
    assert not {one.group for one in split.train} & {one.group for one in split.held_out}
    assert not {one.text for one in split.train} & {one.text for one in split.held_out}


def test_there_are_twenty_classes_and_none_decides_alone() -> None:
    split = standard_library()
    assert len(split.labels) >= 20
    for some, least, most in (
        (split.train, function_text.LEAST_TRAINED, function_text.MOST_TRAINED),
        (split.held_out, function_text.LEAST_HELD_OUT, function_text.MOST_HELD_OUT),
    ):
        counts = Counter(one.label for one in some)
        assert set(counts) == set(split.labels)
        assert all(least <= count <= most for count in counts.values())


def written(path: Path, lines: Iterator[dict[str, str]] | list[str]) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return path


def planted(groups: bool) -> Iterator[dict[str, str]]:
    for number in range(80):
        label = "ab"[number % 2]
        text = {"text": f"{'red' if label == 'a' else 'blue'} word{number}", "label": label}
        yield text | ({"group": f"g{number // 4}"} if groups else {})


@pytest.mark.parametrize("groups", [True, False])
def test_lines_of_a_file_are_split_by_group(groups: bool, tmp_path: Path) -> None:
    split = labelled_lines(written(tmp_path / "a.jsonl", planted(groups)))
    assert split.labels == ("a", "b")
    assert len(split.train) + len(split.held_out) == 80
    assert not {one.group for one in split.train} & {one.group for one in split.held_out}


def test_the_bag_of_words_finds_what_words_tell(tmp_path: Path) -> None:
    split = labelled_lines(written(tmp_path / "a.jsonl", planted(False)))
    assert bag_of_words(split) == 1.0
    held_out = Counter(one.label for one in split.held_out)
    assert majority(split) in {count / len(split.held_out) for count in held_out.values()}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1"),
        (['{"text": "a"}'], "line 1"),
        (['{"text": 1, "label": "a"}'], "line 1"),
        (['{"text": "a", "label": "a"}'], "two classes or more"),
    ],
)
def test_lines_that_are_no_examples_are_refused(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=said):
        labelled_lines(written(tmp_path / "a.jsonl", lines))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="nothing"):
        labelled_lines(tmp_path / "nothing.jsonl")


def test_other_weights_than_the_pinned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(minilm_classifier.PINNED, "tokenizer.json", "0" * 64)
    with pytest.raises(MismatchError, match="sha256 000"):
        minilm_classifier.encoded(["def f(): pass"])


def test_padding_changes_no_answer() -> None:
    torch.manual_seed(0)
    net = minilm_classifier.MiniLM(3).eval()
    tokens = minilm_classifier.encoded(["def f(): pass", "class A:\n    x = 1"], length=9)
    longer = torch.nn.functional.pad(tokens, (0, 5))
    with torch.inference_mode():
        torch.testing.assert_close(net(longer), net(tokens))
        assert net(tokens).shape == (2, 3)


def test_labels_are_numbered_in_their_order() -> None:
    some = function_text.Example("def g(): return 2", "b", "x")
    split = Split((some,), (some,), ("a", "b"))
    tokens, labels = minilm_classifier.tensors(split.train, split.labels)
    assert tokens.shape == (1, minilm_classifier.LENGTH)
    assert labels.tolist() == [1]
