"""Weights files: bits come back, damage never does."""

import random

import jax
import ml_dtypes
import numpy as np
import pytest

from vmaptune.errors import InputError, StudyError
from vmaptune.store.weights import load_weights, save_weights

DTYPES = [
    np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint32, np.uint64, np.float16, np.float32,
    np.float64, np.complex64, np.complex128, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
]  # fmt: skip


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back_to_the_bit(tmp_path, dtype, shape):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 256, count, dtype=np.uint8)
    tree = {"w": np.frombuffer(raw.tobytes(), dtype=dtype).reshape(shape)} if count else {"w": np.zeros(shape, dtype)}
    save_weights(tmp_path / "w", tree)
    assert same(load_weights(tmp_path / "w"), tree)


def test_a_nested_tree_of_arrays_and_scalars(tmp_path):
    tree = {
        "layers": {0: {"kernel": np.array([[np.nan, np.inf], [-0.0, 5e-324]])}, 1: {}},
        "key": jax.random.key_data(jax.random.key(7)),
        "step": np.int32(3), "rate": 0.1, "count": 2**40, "on": True, "off": None, "name": "a", "z": 1 + 2j,
        "half": ml_dtypes.bfloat16(1.5),
    }  # fmt: skip
    save_weights(tmp_path / "new" / "w", tree)
    wanted = tree | {"layers": {"0": tree["layers"][0], "1": {}}, "key": np.asarray(tree["key"])}
    assert same(load_weights(tmp_path / "new" / "w"), wanted)


def test_other_layouts_in_memory_are_the_same_numbers(tmp_path):
    square = np.arange(12.0).reshape(3, 4)
    save_weights(tmp_path / "w", {"t": square.T, "s": square[:, ::2], "big": square.astype(">f8")})
    found = load_weights(tmp_path / "w")
    np.testing.assert_array_equal(found["t"], square.T)
    np.testing.assert_array_equal(found["s"], square[:, ::2])
    np.testing.assert_array_equal(found["big"], square)


def test_arrays_in_pieces_and_the_source_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 64)
    tree = {"w": np.arange(100.0), "inner": {"v": np.arange(99)}}
    save_weights(tmp_path / "w", tree)
    assert isinstance(tree["w"], np.ndarray)
    assert same(load_weights(tmp_path / "w"), tree)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best.weights"
    save_weights(path, {"w": np.arange(6, dtype=np.float32), "b": {"c": np.zeros(2)}})
    return path


def test_every_truncated_length_is_refused(small, tmp_path):
    whole = small.read_bytes()
    cut = tmp_path / "cut.weights"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(StudyError, match=r"cut\.weights"):
            load_weights(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(StudyError, match=r"cut\.weights"):
        load_weights(cut)


def test_every_flipped_bit_is_refused(small, tmp_path):
    whole = small.read_bytes()
    bad = tmp_path / "bad.weights"
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        bad.write_bytes(damaged)
        with pytest.raises(StudyError, match=r"bad\.weights"):
            load_weights(bad)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([np.zeros(2)], "dict"),
        ({"a": [np.zeros(2)]}, "list"),
        ({"a": {"b": np.array([object()])}}, r"\['a'\]\['b'\]"),
        ({"a": np.array(["x"])}, r"\['a'\]"),
        ({"a": np.zeros(2, dtype=[("x", "f4")])}, r"\['a'\]"),
        ({1: np.zeros(1), "1": np.zeros(1)}, "both"),
        ({(1, 2): np.zeros(1)}, "keys must be"),
        ({"k": jax.random.key(0)}, "key_data"),
    ],
    ids=["list", "inner list", "object", "string", "record", "clash", "tuple key", "typed key"],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, tree, message):
    with pytest.raises(InputError, match=message):
        save_weights(tmp_path / "w", tree)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "w"
    save_weights(path, {"a": np.zeros(1)})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StudyError, match="No space left"):
        save_weights(path, {"a": np.ones(1)})
    assert same(load_weights(path), {"a": np.zeros(1)})
    assert [item.name for item in tmp_path.iterdir()] == ["w"]


def test_a_missing_file_and_a_foreign_one(tmp_path):
    with pytest.raises(StudyError, match="none"):
        load_weights(tmp_path / "none")
    (tmp_path / "pickle").write_bytes(b"\x80\x04\x95" + b"x" * 100)
    with pytest.raises(StudyError, match="not a weights file"):
        load_weights(tmp_path / "pickle")
