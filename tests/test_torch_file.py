"""Checkpoints of torch.save, read without torch: golden ones bit for bit, hostile and damaged ones refused.

parity/strided.pt is what this writes, with PyTorch 2.13:
  import torch; from torch import nn
  t = torch.arange(24.).reshape(4, 6)
  torch.save({"whole": t, "turned": t.T, "slice": t[1:, 2::2], "same": t[:1, 1:2].expand(2, 3), "scalar": t[2, 3],
    "none": t[:0], "brain": t.bfloat16().T, "parameter": nn.Parameter(t + 1), "model": nn.BatchNorm1d(2).state_dict(),
    "types": {str(d)[6:]: t.to(d) for d in (torch.float64, torch.float16, torch.int64, torch.int32, torch.int16,
      torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.float8_e5m2)},
    "plain": [t.shape, torch.bfloat16, torch.device("cuda", 1), None, True, -2, 2**70, 0.5, "é", ()]}, "strided.pt")
"""

import builtins
import os
import pathlib
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vdt import torch_file

PARITY = pathlib.Path(__file__).parent / "parity"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"


def pack(value) -> bytes:
  """The opcodes that push a plain value."""
  return pickle.dumps(value, 2)[2:-1]


def save(path, body: bytes, records: dict | None = None, **options) -> pathlib.Path:
  """An archive as torch.save's, whose pickle is these opcodes, not aligned."""
  records = {"byteorder": b"little", "data/0": np.arange(6, dtype="<f4").tobytes()} | (records or {})
  with zipfile.ZipFile(path, "w", **options) as archive:
    for name, content in {"data.pkl": body, **records}.items():
      archive.writestr(f"x/{name}", content)
  return path


def call(offset=0, size=(2, 3), stride=(3, 1), count=6, key="0", storage=None, kind=FLOATS, bits=()) -> bytes:
  """The opcodes that push one tensor."""
  storage = storage or b"(" + pack("storage") + kind + pack(key) + pack("cpu") + pack(count) + b"tQ"
  return (
    REBUILD + b"(" + storage + pack(offset) + pack(size) + pack(stride) + b"\x89N" + b"".join(map(pack, bits)) + b"tR"
  )


def tensor(**options) -> bytes:
  """The pickle of a dict with one tensor, "w"."""
  return b"\x80\x02}" + pack("w") + call(**options) + b"s."


def equal(found, wanted) -> None:
  assert found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def test_what_torch_saved_is_equal_bit_for_bit():
  golden = np.load(PARITY / "latte_tiny_uncond.npz")
  weights = {key[2:]: golden[key] for key in golden.files if key.startswith("w/")}
  found = torch_file.read(PARITY / "latte_tiny.pt")
  assert found.keys() == {"model", "ema"} and list(found["model"]) == list(weights)
  assert list(found["ema"]) == [f"_orig_mod.{key}" for key in weights]
  for key, value in weights.items():
    equal(found["model"][key], value)
    equal(found["ema"][f"_orig_mod.{key}"], np.float32(1.5) * value)
  found = torch_file.read(str(PARITY / "latte_tiny_args.pt"))
  assert found["args"] == {"a": 1} and type(found["args"]) is dict
  assert len(found["ema"]) == 2
  for key, value in found["ema"].items():
    equal(value, weights[key])


def test_strides_dtypes_and_plain_values():
  found = torch_file.read(PARITY / "strided.pt")
  t = np.arange(24, dtype=np.float32).reshape(4, 6)
  wanted = {"whole": t, "turned": t.T, "slice": t[1:, 2::2], "same": np.full((2, 3), t[0, 1]), "scalar": t[2, 3]}
  wanted |= {"none": t[:0], "brain": t.astype(ml_dtypes.bfloat16).T, "parameter": t + 1}
  for name, value in wanted.items():
    equal(found[name], value)
  assert found["turned"].strides == (4, 24) and np.shares_memory(found["whole"], found["slice"]), "no bytes are copied"
  assert not any(found[name].flags.writeable for name in wanted if name != "none")
  assert (
    list(found["types"]) == "float64 float16 int64 int32 int16 int8 uint8 bool complex64 uint16 float8_e5m2".split()
  )
  for name, value in found["types"].items():
    equal(value, t.astype(getattr(ml_dtypes, name, name)))
  assert found["plain"] == [(4, 6), np.dtype(ml_dtypes.bfloat16), "cuda:1", None, True, -2, 2**70, 0.5, "é", ()]
  assert type(found["model"]) is dict and found["model"]["num_batches_tracked"] == 0


class Calls:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_pickle_runs_anything(tmp_path, protocol):
  mark = tmp_path / "ran"
  for function, argument, name in (
    (os.system, f"touch {mark}", "system"),
    (builtins.eval, f"open({str(mark)!r}, 'w').close()", "eval"),
  ):
    body = pickle.dumps({"ema": Calls(function, argument)}, protocol)
    pickle.loads(body)
    mark.unlink()  # it does run where pickle reads it
    path = save(tmp_path / "bad.pt", body)
    with pytest.raises(ValueError, match=rf"bad\.pt: refused: it wants to call \w+\.{name}; nothing of it was run"):
      torch_file.read(path)
    assert not mark.exists()


NAMESPACE = b"cargparse\nNamespace\n)\x81"
ORDERED = b"ccollections\nOrderedDict\n"
HOSTILE = {
  "a path": (b"ctorch.serialization\nos.system\n" + pack(("true",)) + b"R.", r"call torch\.serialization\.os\.system"),
  "a path on the stack": (pack("torch") + pack("Size.__new__") + b"\x93.", r"call torch\.Size\.__new__"),
  "a name that is no string": (pack(["os"]) + pack("system") + b"\x93.", "data.pkl is damaged"),
  "getattr": (b"cbuiltins\ngetattr\n" + ORDERED + pack("clear") + b"\x86R.", r"call builtins\.getattr"),
  "a call of a value": (pack("os.system") + pack(("true",)) + b"R.", "refused: a call"),
  "a call of a dtype": (FLOATS + pack(("O",)) + b"R.", "refused: a call"),
  "a call of an array": (call() + b")R.", "refused: a call"),
  "other arguments": (ORDERED + pack(([("a", 1)],)) + b"R.", "refused: a call"),
  "arguments of no tensor": (REBUILD + pack((0, 0, (1,), (1,), False, None)) + b"R.", "refused: a call"),
  "an object as index": (b"ctorch\ndevice\n" + pack(("cuda", [1])) + b"R.", "refused: a call"),
  "a new class": (b"ctorch\nSize\n)\x81.", "refused: a call"),
  "attributes of a class": (ORDERED + pack({"clear": 1}) + b"b.", "sets attributes"),
  "attributes of a dict": (b"}" + pack({"a": 1}) + b"b.", "sets attributes"),
  "attributes of a tensor": (call() + pack({"data": 1}) + b"b.", "sets attributes"),
  "reserved attributes": (NAMESPACE + pack({"__class__": 1}) + b"b.", "a key is __class__"),
  "slots": (NAMESPACE + pack((None, {"a": 1})) + b"b.", "sets attributes"),
  "items of a class": (ORDERED + pack("a") + b"Ns.", "sets items"),
  "keys that hash for ever": (b"}" + b")" + b"\x85" * 10**5 + b"Ns.", "a key is tuple"),
  "INST": (b"(" + pack("true") + b"ios\nsystem\n.", "opcode INST"),
  "OBJ": (b"(" + NAMESPACE[:-2] + b"o.", "opcode OBJ"),
  "EXT1": (b"\x82\x01.", "opcode EXT1"),
  "PERSID": (b"Pstorage\n.", "opcode PERSID"),
  "another persistent id": (pack(("module", "os")) + b"Q.", "the storage of tensor"),
  "a record elsewhere": (tensor(key="../0"), r"record data/\.\./0 is missing"),
  "a string without end": (b"X\xff\xff\xff\x7fabc.", "data.pkl is damaged"),
  "no such memo": (b"j\xff\xff\xff\x7f.", "data.pkl is damaged"),
  "an empty stack": (b"t.", "data.pkl is damaged"),
  "no end": (b"}", "data.pkl is damaged"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, what):
  body, match = HOSTILE[what]
  path = save(tmp_path / "bad.pt", body)
  with pytest.raises(ValueError, match=match) as error:
    torch_file.read(path)
  assert str(error.value).startswith(f"{path}: ")


LIES = {
  "size": (dict(size=(3, 3)), "reaches to byte 36 of 24"),
  "stride": (dict(stride=(4, 1)), "reaches to byte 28 of 24"),
  "offset": (dict(offset=1), "reaches to byte 28 of 24"),
  "before": (dict(offset=-1, size=(1,), stride=(1,)), "negative"),
  "backwards": (dict(offset=5, size=(6,), stride=(-1,)), "negative"),
  "negative": (dict(size=(-2, -3)), "negative"),
  "huge": (dict(size=(2**62, 2**62), stride=(2**62, 2**62)), "reaches to byte"),
  "wraps": (dict(size=(2**61 + 1,), stride=(8,)), "reaches to byte"),
  "spread": (dict(size=(2**40, 2**40), stride=(0, 0)), "too big"),
  "far": (dict(offset=2**63), "reaches to byte"),
  "fractions": (dict(size=(2.0, 3)), "no integer"),
  "unequal": (dict(stride=(1,)), "shorter"),
  "text": (dict(size="ab", stride="cd"), "no integer"),
  "no tuple": (dict(size=None), "NoneType"),
  "longer than the record": (dict(count=7), "record data/0 has 24 bytes, and not the 28 of tensor w"),
  "of another type": (dict(kind=b"ctorch\nDoubleStorage\n"), "record data/0 has 24 bytes, and not the 48 of tensor w"),
  "none": (dict(count=-1), "none that torch.save writes"),
  "of no type": (dict(kind=pack("float32")), "none that torch.save writes"),
  "a tensor as storage": (dict(storage=call(size=(9, 9), stride=(0, 0))), "not a storage"),
  "lazily conjugated": (dict(bits=({"conj": True},)), r"resolve_conj\(\)"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_tensor_stays_inside_of_its_storage(tmp_path, what):
  whole = torch_file.read(save(tmp_path / "true.pt", tensor()))["w"]
  equal(whole, np.arange(6, dtype=np.float32).reshape(2, 3))
  options, match = LIES[what]
  path = save(tmp_path / "lies.pt", tensor(**options))
  with pytest.raises(ValueError, match=match) as error:
    torch_file.read(path)
  assert str(error.value).startswith(f"{path}: ") and "tensor w" in str(error.value)


def test_files_of_other_kinds_say_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError):
    torch_file.read(tmp_path / "none.pt")
  path, whole = tmp_path / "file.pt", tensor()
  for content, match in (
    (b"", "it is empty"),
    (b"version https://git-lfs.github.com/spec/v1\n", "no checkpoint of torch.save"),
    (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M\xe9\x03.", r"before 1\.6.*torch\.save\(torch\.load\("),
    (pickle.dumps(0x1950A86A20F9469CFC6C, 4) + b"\x80\x02M\xe9\x03.", r"before 1\.6.*torch\.save\(torch\.load\("),
  ):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.pt: .*{match}"):
      torch_file.read(path)
  for body, records, options, match in (
    (whole, {"constants.pkl": b""}, {}, r"TorchScript.*torch\.jit\.load"),
    (whole, {"byteorder": b"big"}, {}, "byteorder is b'big'"),
    (whole, {}, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    (whole, {"data/0": b"\0" * 23}, {}, "record data/0 has 23 bytes, and not the 24 of tensor w"),
    (b"\x80\x02]" + b".", {}, {}, "it holds a list"),
  ):
    with pytest.raises(ValueError, match=rf"file\.pt: .*{match}"):
      torch_file.read(save(path, body, records, **options))
  np.savez(tmp_path / "file.npz", a=np.zeros(3))
  with pytest.raises(ValueError, match=r"file\.npz: record data\.pkl is missing"):
    torch_file.read(tmp_path / "file.npz")


def test_damaged_files_are_refused(tmp_path):
  """Cut at its end and in its middle, with records renamed, and any bytes changed: a ValueError, or a value."""
  content, path = (PARITY / "strided.pt").read_bytes(), tmp_path / "cut.pt"

  def refused(changed: bytes, match: str) -> None:
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=rf"cut\.pt: .*{match}"):
      torch_file.read(path)

  directory = content.index(b"PK\1\2")
  for length in (1, 3, 40, len(content) // 2, directory, directory + 60, len(content) - 22, len(content) - 1):
    refused(content[:length], "cut short or damaged|no checkpoint")
  refused(content[: directory // 2] + content[directory // 2 + 7 :], "damaged")
  refused(content.replace(b"strided/data/0", b"strided/data/o"), "record data/0 is missing")
  refused(content.replace(b"strided/data.pkl", b"strided/data.pki"), r"record data\.pkl is missing")
  size = content.rindex(b"strided/data/0") - 46 + 24  # where the directory says how long the record is
  refused(content[:size] + b"\xff\xff\xff\x7f" + content[size + 4 :], "record data/0 is not inside of the file")
  generator = random.Random(0)
  for _ in range(400):
    changed = bytearray(content)
    for at in (
      generator.randrange(len(content)),
      generator.randrange(2000),
      generator.randrange(directory, len(content)),
    ):
      changed[at] = generator.choice([generator.randrange(256), *b".)}tRQ\x81"])
    path.write_bytes(changed)
    try:
      found = torch_file.read(path)
    except ValueError as error:
      assert "cut.pt: " in str(error)
    else:
      assert all(
        array.tobytes() is not None for array in found.values() if isinstance(array, np.ndarray) and array.size < 1e6
      )


def test_as_torch_reads(tmp_path):
  torch = pytest.importorskip("torch")
  generator = np.random.default_rng(0)
  saved = {}
  for number in range(100):
    dtype = generator.choice(["float32", "bfloat16", "float16", "int64", "uint8", "bool", "complex64", "float64"])
    base = torch.from_numpy(generator.normal(size=400) * 9).to(getattr(torch, dtype))
    size, stride = (tuple(map(int, generator.integers(0, 5, 3))) for _ in range(2))
    saved[f"{number}"] = base.as_strided(size, stride, int(generator.integers(300)))
  torch.save({"ema": saved}, tmp_path / "random.pt")
  theirs, ours = (read(tmp_path / "random.pt")["ema"] for read in (torch.load, torch_file.read))
  for name, value in theirs.items():
    wanted = value.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
    assert str(value.dtype) == f"torch.{ours[name].dtype}" and tuple(value.shape) == ours[name].shape
    assert wanted.tobytes() == ours[name].tobytes()
