from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.errors import CorruptLedgerError, InvalidValueError
from gradtrace.ledger import commit_store
from gradtrace.ledger.commit import ArrayDigest, Commit, decode_commit, encode_commit
from gradtrace.ledger.details import COUNTS
from gradtrace.ledger.encoding import checksum, decode, encode
from gradtrace.ledger.entry import Void
from gradtrace.ledger.format import ACCUMULATORS, Entry, Layout, ParameterInfo, Piece
from gradtrace.ledger.live import live_commits
from gradtrace.ledger.names import canonical
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.sampling import ALL_STEPS, Sampling

Make = Callable[..., ParameterInfo]
GOOD: dict[str, Any] = {
    "name": "a.weight",
    "shape": [3, 5],
    "dtype": "bfloat16",
    "aliases": ["b.weight"],
    "module": "a",
    "module_class": "Linear",
    "role": "weight",
    "orientation": "out,in",
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": 3},
        {"name": "a\nb"},
        {"name": "a\x1b[2J"},
        {"name": "a" * 5000},
        {"shape": [-1, 5]},
        {"shape": [3.0, 5]},
        {"shape": [True]},
        {"shape": "35"},
        {"shape": [2**40, 2**40]},
        {"shape": [1] * 65},
        {"dtype": "float32; rm"},
        {"dtype": None},
        {"aliases": ["a.weight"]},
        {"aliases": ["c", "c"]},
        {"aliases": [1]},
        {"aliases": "cd"},
        {"module": "\0"},
        {"role": "boss"},
        {"orientation": "in"},
    ],
    ids=repr,
)
def test_a_parameter_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    ParameterInfo.from_json(GOOD)
    with pytest.raises(InvalidValueError):
        ParameterInfo.from_json(GOOD | change)


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_parameter_that_lacks_a_member_is_refused(missing: str) -> None:
    with pytest.raises(InvalidValueError, match=missing):
        ParameterInfo.from_json({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 0, (0, 0), (3, 4))],
        [(0, 0, (0, 0), (3, 6))],
        [(0, 0, (1, 0), (3, 5))],
        [(0, 0, (0,), (15,))],
        [(1, 0, (0, 0), (3, 5))],
        [(0, 0, (0, 0), (2, 5)), (0, 9, (2, 0), (1, 5))],
        [(0, 5, (0, 0), (2, 5)), (0, 0, (2, 0), (1, 5))],
        [(0, 0, (0, 0), (2, 5)), (0, 10, (1, 0), (1, 5))],
        [(0, 0, (0, 0), (3, 3)), (0, 9, (0, 2), (3, 2))],
        [(0, 0, (0, 0), (3, 5)), (0, 15, (0, 0), (3, 5))],
        [(0, 2**62, (0, 0), (3, 5))],
    ],
    ids=repr,
)
def test_boxes_that_do_not_tile_their_parameter_are_refused(parameter_of: Make, pieces: list[Any]) -> None:
    with pytest.raises(InvalidValueError):
        Layout((parameter_of("w", 3, 5),), (tuple(Piece(*piece) for piece in pieces),))


def test_a_scalar_may_lie_on_one_rank_only(parameter_of: Make) -> None:
    scalar = parameter_of("s")
    Layout((scalar,), ((Piece(0, 0, (), ()),), ()))
    with pytest.raises(InvalidValueError):
        Layout((scalar,), ((Piece(0, 0, (), ()),), (Piece(0, 0, (), ()),)))


@pytest.mark.parametrize(
    "negative", [(-1, 0, (0,), (1,)), (0, -1, (0,), (1,)), (0, 0, (-1,), (1,)), (0, 0, (0,), (-1,))]
)
def test_a_piece_has_no_negative_number(negative: Any) -> None:
    with pytest.raises(InvalidValueError):
        Piece(*negative)


def test_a_name_stands_for_one_parameter_only(parameter_of: Make) -> None:
    with pytest.raises(InvalidValueError, match="twice"):
        Layout.whole([parameter_of("a", 2), parameter_of("b", 2, aliases=["a"])])
    with pytest.raises(InvalidValueError, match="at least one"):
        Layout.whole([])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Parameters cut along drawn planes into boxes, dealt to ranks at random, with gaps between them."""
    name = st.text("abc._0é", min_size=1, max_size=6)
    names = draw(st.lists(name, min_size=1, max_size=4, unique=True))
    rank_count = draw(st.integers(1, 4))
    ranks: list[list[Piece]] = [[] for _ in range(rank_count)]
    ends = [0] * rank_count
    parameters = []
    for index, own in enumerate(names):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        parameters.append(ParameterInfo.from_json(GOOD | {"name": own, "shape": list(shape), "aliases": []}))
        cut = draw(st.integers(0, shape[0])) if shape else 0
        boxes = [((0,) * len(shape), shape)]
        if shape:
            boxes = [
                ((0,) * len(shape), (cut, *shape[1:])),
                ((cut, *(0,) * (len(shape) - 1)), (shape[0] - cut, *shape[1:])),
            ]
        for start, sides in boxes:
            rank = draw(st.integers(0, rank_count - 1))
            offset = ends[rank] + draw(st.integers(0, 2))
            piece = Piece(index, offset, start, sides)
            ranks[rank].append(piece)
            ends[rank] = offset + piece.size
    return Layout(tuple(parameters), tuple(tuple(pieces) for pieces in ranks))


@given(layouts())
def test_a_layout_comes_back_from_json_as_it_went(layout: Layout) -> None:
    assert Layout.from_json(decode(encode(layout.to_json()))) == layout


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
spans = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 9999)).map(
    lambda drawn: (drawn[0], drawn[0] + drawn[1], drawn[2])
)
hexes = st.integers(0, 2**32 - 1).map("{:08x}".format)
digests = st.builds(ArrayDigest, hexes, st.lists(hexes, max_size=4).map(tuple))
samplings = st.one_of(
    st.just(ALL_STEPS), st.builds(Sampling, st.none() | st.integers(2, 32767), st.just(1) | st.just(0))
)
entries = st.builds(
    lambda span, layout, windows, details, sampling: Entry(
        span[0], span[1], span[2], layout, windows, details, sampling
    ),
    spans,
    st.integers(0, 9999),
    st.integers(0, 1000),
    st.dictionaries(st.text(), json_values, max_size=3),
    samplings,
)
commits = st.builds(Commit, entries, hexes, st.dictionaries(st.text(), digests, max_size=3)) | spans.map(
    lambda span: Void(*span)
)


@pytest.mark.parametrize(
    ("stride", "sampled"), [(0, 2), (32768, 2), (2, 5), (1, 3), (2, -1), (None, 5), ("2", 2), (2, None)]
)
def test_a_sampling_that_cannot_be_is_refused(stride: object, sampled: object) -> None:
    raw = encode_commit(Commit(Entry(0, 4, 0, 0, 1, {}), "00000000", {}), run="", version="1.0")
    altered = decode(raw) | {"stride": stride, "sampled": sampled}
    del altered["digest"]
    body = encode(altered)[:-1]
    with pytest.raises(InvalidValueError, match=r"stride|sampled"):
        decode_commit(body + b',"digest":"' + checksum(body).encode() + b'"}')


@given(commits, st.text(max_size=8))
def test_a_commit_comes_back_from_its_bytes_as_it_went(commit: Commit | Void, run: str) -> None:
    assert decode_commit(encode_commit(commit, run=run, version="1.0")) == (run, commit)


@given(commits, st.data())
def test_any_change_to_a_commits_bytes_is_noticed(commit: Commit | Void, data: st.DataObject) -> None:
    raw = encode_commit(commit, run="r", version="1.0")
    position = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    with pytest.raises(InvalidValueError):
        decode_commit(raw[:position] + bytes([value]) + raw[position + 1 :])


@given(st.binary(max_size=60))
def test_bytes_that_are_no_commit_are_refused_cleanly(raw: bytes) -> None:
    with pytest.raises(InvalidValueError):
        decode_commit(raw)


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"NaN", b"-Infinity", b'{"a":', b"\xff", b"1" * 5000],
    ids=["deep", "nan", "inf", "cut", "bytes", "long"],
)
def test_json_that_is_none_is_refused_cleanly(text: bytes) -> None:
    with pytest.raises(InvalidValueError):
        decode(text)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, b"x", np.float32(1), {"a": np.arange(2)}, object()],
    ids=repr,
)
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="JSON"):
        encode(value)


def commit_of(begin: int, end: int, generation: int = 0) -> Commit:
    return Commit(Entry(begin, end, generation, 0, 1, {}), "00000000", {})


def spans_of(live: tuple[Commit, ...]) -> list[tuple[int, int, int]]:
    return [(one.entry.begin, one.entry.end, one.generation) for one in live]


def test_a_merged_entry_takes_the_place_of_those_it_covers() -> None:
    merged: list[Commit | Void] = [
        commit_of(0, 4),
        commit_of(4, 8),
        commit_of(0, 8, 1),
        commit_of(8, 12),
        commit_of(0, 12, 2),
        commit_of(12, 16),
    ]
    assert spans_of(live_commits(merged)) == [(0, 12, 2), (12, 16, 0)]


def test_a_void_takes_lower_generations_from_its_step_on() -> None:
    voided: list[Commit | Void] = [
        commit_of(0, 4),
        commit_of(4, 8),
        commit_of(8, 12),
        Void(4, 12, 1),
        commit_of(4, 6, 1),
    ]
    assert spans_of(live_commits(voided)) == [(0, 4, 0), (4, 6, 1)]


def test_a_merged_entry_that_is_voided_gives_its_steps_back() -> None:
    both: list[Commit | Void] = [
        commit_of(0, 4),
        commit_of(4, 8),
        commit_of(0, 8, 1),
        Void(0, 8, 2),
        commit_of(0, 8, 2),
    ]
    assert spans_of(live_commits(both)) == [(0, 8, 2)]


@pytest.mark.parametrize(
    "torn",
    [
        [commit_of(4, 8)],
        [commit_of(0, 4), commit_of(8, 12)],
        [commit_of(0, 4), commit_of(2, 8)],
        [commit_of(0, 8), commit_of(0, 4, 1)],
        [commit_of(0, 8), Void(4, 8, 1), commit_of(4, 8, 1)],
    ],
    ids=["no beginning", "gap", "overlap", "half replaced", "void within an entry"],
)
def test_entries_that_do_not_join_are_corruption(torn: list[Commit | Void]) -> None:
    with pytest.raises(CorruptLedgerError, match="do not join"):
        live_commits(torn)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"begin": 2}, "begin.*expected 4"),
        ({"end": 4}, "end"),
        ({"end": 10**12}, "end"),
        ({"end": 8.0}, "end"),
        ({"layout": 7}, "layout.*add_layout"),
        ({"layout": None}, "layout"),
        ({"windows": -1}, "windows"),
        ({"details": {"x": float("inf")}}, "JSON"),
        ({"details": {"counts": {"steps": [1]}}}, "counts"),
        (
            {"details": {"counts": {name: [1, -2] for name in COUNTS}}},
            "counts",
        ),
        ({"details": {"groups": [{"kind": "SGD", "parameters": [2], "runs": []}]}}, "parameter of a group"),
        (
            {"details": {"groups": [{"kind": "SGD", "parameters": [0], "runs": [[1, 2, 3]]}]}},
            "run of a group",
        ),
        ({"details": {"groups": [{"parameters": [0], "runs": []}]}}, "kind"),
    ],
    ids=repr,
)
def test_an_entry_that_does_not_fit_is_refused_and_nothing_written(
    book: Any, pair: Layout, change: dict[str, Any], said: str
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        before = sorted(book.path.rglob("*"))
        arguments: dict[str, Any] = {"begin": 4, "end": 8, "layout": number, "windows": 1, "details": {}}
        arguments["arrays"] = {name: np.zeros(18, dtype) for name, dtype in ACCUMULATORS.items()}
        arguments |= change
        with pytest.raises(InvalidValueError, match=said):
            writer.commit_entry(arguments.pop("begin"), arguments.pop("end"), **arguments)
        assert sorted(book.path.rglob("*")) == before
    book.check()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grad_sum", np.zeros(17, np.float32)),
        ("grad_sum", np.zeros(18, np.float64)),
        ("grad_sum", np.zeros((18, 1), np.float32)),
        ("grad_sum", np.zeros(36, np.float32)[::2]),
        ("grad_sum", [0.0] * 18),
        ("events", np.zeros(18, np.int32)),
        ("votes", None),
        ("new_one", np.zeros(18, np.float32)),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(
    book: Any, pair: Layout, name: str, array: Any
) -> None:
    arrays = {one: np.zeros(18, dtype) for one, dtype in ACCUMULATORS.items()} | {name: array}
    with book.create() as writer:
        number = book.add(writer, pair)
        with pytest.raises(InvalidValueError, match=name):
            writer.commit_entry(0, 4, layout=number, windows=1, arrays=arrays, details={})
        assert writer.end == 0


def test_a_missing_accumulator_is_refused(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        with pytest.raises(InvalidValueError, match="window_votes"):
            writer.commit_entry(0, 4, layout=number, windows=1, arrays={}, details={})


@pytest.mark.parametrize(
    "opening", [[], [np.zeros(18)], [np.zeros(17, np.float32)], [np.zeros(18, np.float32)] * 2]
)
def test_an_opening_balance_that_does_not_fit_is_refused(book: Any, pair: Layout, opening: Any) -> None:
    with book.create() as writer, pytest.raises(InvalidValueError, match="opening"):
        writer.add_layout(pair, opening)


def test_a_commit_whose_details_do_not_fit_its_layout_is_corruption(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        monkeypatch.setattr("gradtrace.ledger.writer.check_details", lambda *_: None)
        book.commit(writer, number, details={"groups": [{"kind": "SGD", "parameters": [9], "runs": []}]})
    with pytest.raises(CorruptLedgerError, match="commit of entry 0-4"):
        Ledger.open(book.path)


def test_a_commit_that_names_too_few_arrays_is_corruption(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(storage: Any, run: str, commit: Any) -> None:
        kept = {name: digest for name, digest in commit.arrays.items() if name != "rank-0000/votes"}
        real(storage, run, replace(commit, arrays=kept))

    real = commit_store.write_commit
    monkeypatch.setattr("gradtrace.ledger.entry_store.write_commit", forgetful)
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    with pytest.raises(CorruptLedgerError, match="rank-0000/votes"):
        Ledger.open(book.path)


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("_orig_mod.net.0.weight", "net.0.weight"),
        ("net._fsdp_wrapped_module.0._checkpoint_wrapped_module.weight", "net.0.weight"),
        ("module.weight", "module.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("weight", "weight"),
    ],
)
def test_wrappers_leave_no_trace_in_names(wrapped: str, plain: str) -> None:
    assert canonical(wrapped) == plain
