"""A second reader, from docs/ledger-format.md alone: zarr, json and a crc32c, nothing of gradtrace.ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from gradtrace.ledger import array_format
from gradtrace.ledger.format import Layout, ParameterInfo, Piece

SPAN = re.compile(r"(\d{12})-(\d{12})-(\d{4})\.json")


def crc(raw: bytes) -> str:
    return f"{google_crc32c.value(raw):08x}"


def header_of(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["gradtrace"]
    assert header["format"].split(".")[0] == "1"
    body = {name: value for name, value in header.items() if name != "digest"}
    assert crc(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()) == header["digest"]
    return header


def live_entries(path: Path, run: str) -> list[dict[str, Any]]:
    commits = []
    for file in (path / "commits").iterdir():
        if match := SPAN.fullmatch(file.name):
            raw = file.read_bytes()
            assert raw[-21:] == f',"digest":"{crc(raw[:-21])}"}}'.encode()
            commit = json.loads(raw)
            assert [commit["begin"], commit["end"], commit["generation"]] == [
                int(part) for part in match.groups()
            ]
            if commit["run"] == run:
                commits.append(commit)
    voids = [one for one in commits if one["kind"] == "void"]
    left = [
        one
        for one in commits
        if one["kind"] == "entry"
        and not any(v["generation"] > one["generation"] and one["end"] > v["begin"] for v in voids)
    ]
    live = [
        one
        for one in left
        if not any(
            o["generation"] > one["generation"] and o["begin"] <= one["begin"] and one["end"] <= o["end"]
            for o in left
        )
    ]
    live.sort(key=lambda one: int(one["begin"]))
    assert [0, *(one["end"] for one in live[:-1])] == [one["begin"] for one in live]
    return live


def flat_array(folder: Path, digests: dict[str, Any]) -> np.ndarray[Any, Any]:
    assert crc((folder / "zarr.json").read_bytes()) == digests["metadata"]
    array = zarr.open_array(folder, mode="r")
    length = array.chunks[0]
    assert len(digests["chunks"]) == -(-array.shape[0] // length)
    for number, digest in enumerate(digests["chunks"]):
        raw = (folder / "c" / str(number)).read_bytes()
        assert crc(raw[:-4]) == digest
        assert int.from_bytes(raw[-4:], "little") == int(digest, 16)
    return np.asarray(array[:])


Totals = dict[str, dict[str, np.ndarray[Any, Any]]]


def read(path: Path) -> tuple[Totals, Totals]:
    """Totals by parameter, and moments of inputs by module."""
    header = header_of(path)
    totals: Totals = {}
    moments: Totals = {}
    for entry in live_entries(path, header["run"]["id"]):
        folder = path / "layouts" / f"{entry['layout']:04d}"
        raw = (folder / "layout.json").read_bytes()
        assert crc(raw) == entry["layout_digest"]
        layout = json.loads(raw)
        span = f"{entry['begin']:012d}-{entry['end']:012d}-{entry['generation']:04d}"
        new = {info["name"] for info in layout["parameters"]} - set(totals)
        for rank, pieces in enumerate(layout["ranks"]):
            name = f"rank-{rank:04d}"
            flats = {
                accumulator: flat_array(
                    path / "entries" / span / name / accumulator, entry["digests"][f"{name}/{accumulator}"]
                )
                for accumulator in header["accumulators"]
            }
            opening = flat_array(folder / name / "opening", layout["opening"][rank])
            for accumulator in ("input_sum", "input_sumsq", "input_gram"):
                flat = flats.pop(accumulator, np.zeros(0))
                if rank == 0 and flat.size:
                    add_inputs(moments, layout["inputs"], accumulator, flat)
            for piece in pieces:
                info = layout["parameters"][piece["parameter"]]
                own = totals.setdefault(info["name"], {})
                box = tuple(
                    slice(a, a + side) for a, side in zip(piece["start"], piece["shape"], strict=True)
                )
                here = slice(piece["offset"], piece["offset"] + int(np.prod(piece["shape"], dtype=int)))
                for accumulator, flat in flats.items():
                    kind = np.float64 if flat.dtype.kind == "f" else np.int64
                    total = own.setdefault(accumulator, np.zeros(info["shape"], kind))
                    total[box] += flat[here].reshape(piece["shape"])
                if info["name"] in new:
                    whole = own.setdefault("opening", np.zeros(info["shape"], np.float32))
                    whole[box] = opening[here].reshape(piece["shape"])
    return totals, moments


def add_inputs(moments: Totals, inputs: list[dict[str, Any]], name: str, flat: np.ndarray[Any, Any]) -> None:
    offset = 0
    for info in inputs:
        length = info["size"]
        if name == "input_gram":
            length = info["size"] ** 2 // info["groups"] if info["groups"] else 0
        own = moments.setdefault(info["module"], {})
        own[name] = own.get(name, np.zeros(length)) + flat[offset : offset + length]
        offset += length
    assert offset == flat.size


def test_the_kept_ledger_of_format_1_0_is_read_with_zarr_and_json() -> None:
    data = Path(__file__).parent / "data"
    expected = json.loads((data / "format-1.0.json").read_text(encoding="utf-8"))["spans"]["0-32"]
    totals, moments = read(data / "format-1.0.ledger.zarr")
    assert set(totals) == set(expected["parameters"])
    for parameter, own in expected["parameters"].items():
        for name, total in (own["totals"] | {"opening": own["opening"]}).items():
            np.testing.assert_array_equal(totals[parameter][name], total, err_msg=f"{parameter} {name}")
    assert set(moments) == set(expected["inputs"])
    for module, own in expected["inputs"].items():
        for name, total in moments[module].items():
            np.testing.assert_array_equal(total, own[name], err_msg=f"{module} {name}")


@pytest.mark.parametrize("chunk", [4, 4194304])
def test_the_format_document_is_enough_to_read_a_ledger(
    book: Any,
    pair: Layout,
    parameter_of: Callable[..., ParameterInfo],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", chunk)
    sharded = Layout(
        (*pair.parameters, parameter_of("late", 2, 2)),
        (
            (Piece(0, 0, (0, 0), (2, 5)), Piece(2, 12, (0, 0), (2, 2))),
            (Piece(0, 0, (2, 0), (1, 5)), Piece(1, 5, (0,), (3,))),
        ),
    )
    with book.create() as writer:
        first = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, first)
        writer.void(8)
        book.keep_until(8)
        second = book.add(writer, sharded)
        book.commit(writer, second, 8)
        book.commit(writer, second, 40)
        assert book.merge(writer) == 2
    ledger = book.check()
    totals, _ = read(book.path)
    assert set(totals) == set(ledger) == {"net.0.weight", "net.0.bias", "late"}
    for name, arrays in totals.items():
        assert set(arrays) == {*ledger.accumulators, "opening"}
        for accumulator, array in arrays.items():
            np.testing.assert_array_equal(
                array, getattr(ledger[name], accumulator), err_msg=f"{name} {accumulator}"
            )


@pytest.mark.parametrize("dtype", ["float32", "uint32", "int32"])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 9])
def test_an_array_is_what_zarr_itself_would_write(
    tmp_path: Path, size: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradtrace.ledger.array_writer import write_array
    from gradtrace.ledger.local_storage import LocalStorage

    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", 4)
    values = np.arange(size).astype(dtype)
    write_array(LocalStorage(tmp_path), "ours", values)
    theirs = zarr.create_array(
        tmp_path / "theirs",
        shape=(size,),
        chunks=(array_format.chunk_elements(size),),
        dtype=dtype,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    theirs[:] = values
    files = sorted(
        file.relative_to(tmp_path / "theirs") for file in (tmp_path / "theirs").rglob("*") if file.is_file()
    )
    assert files == sorted(
        f.relative_to(tmp_path / "ours") for f in (tmp_path / "ours").rglob("*") if f.is_file()
    )
    for file in files:
        ours, reference = (tmp_path / "ours" / file).read_bytes(), (tmp_path / "theirs" / file).read_bytes()
        if file.name == "zarr.json":
            assert json.loads(ours) == json.loads(reference)
        else:
            assert ours == reference


def test_zarr_walks_the_ledger_as_plain_groups(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        entry = book.commit(writer, book.add(writer, pair))
    root = zarr.open_group(book.path, mode="r")
    assert root.attrs["gradtrace"]["format"] == "1.0"  # type: ignore[index,call-overload]
    ranks = dict(root["entries/000000000000-000000000004-0000"].groups())  # type: ignore[union-attr]
    assert set(ranks) == {"rank-0000"}
    assert set(ranks["rank-0000"].array_keys()) == set(book.check().accumulators)
    assert entry.end == 4
