"""Checkpoints that torch.save wrote, read without torch: tensors as NumPy arrays over the mapped file.

Such a file is a zip archive of a pickle, NAME/data.pkl, and of records that are stored as they are, NAME/data/KEY, one
for each storage: the bytes that one or more tensors share. A pickle is a program that may call any function. Here its
opcodes are followed by hand: what it names is compared with a list, never looked up, so it can call nothing.
Formats: torch/serialization.py, torch/_utils.py and torch/_tensor.py of PyTorch 2; Python's pickletools.
"""

import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np


class Global(NamedTuple):
  """A function or class that a pickle names: "module name", and no more."""

  name: str


STORAGES = dict(Double="float64", Float="float32", Half="float16", BFloat16="bfloat16", Bool="bool", Long="int64")
STORAGES |= dict(Int="int32", Short="int16", Char="int8", Byte="uint8", ComplexFloat="complex64")
STORAGES |= dict(ComplexDouble="complex128")
WITHOUT = ("uint64", "uint32", "uint16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*STORAGES.values(), *WITHOUT)}
FUNCTIONS = [f"torch._utils _rebuild_{name}" for name in ("tensor_v2", "tensor_v3", "parameter")]
FUNCTIONS += ["torch Size", "torch device", "collections OrderedDict", "argparse Namespace"]
KNOWN: dict[str, Any] = {name: Global(name) for name in FUNCTIONS}
KNOWN |= {f"torch {name}": dtype for name, dtype in DTYPES.items()}
KNOWN |= {f"torch {name}Storage": DTYPES[dtype] for name, dtype in STORAGES.items()}
KNOWN["torch.storage UntypedStorage"] = DTYPES["uint8"]
CONSTANTS = dict(NONE=None, NEWTRUE=True, NEWFALSE=False)
EMPTY = dict(EMPTY_DICT=dict, EMPTY_LIST=list, EMPTY_TUPLE=tuple)
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of the format before PyTorch 1.6
ANEW = 'where torch is installed: torch.save(torch.load(OLD, map_location="cpu"), NEW)'
SCRIPT = 'where torch is installed: torch.save(torch.jit.load(OLD, "cpu").state_dict(), NEW)'
ALONE = 'if you trust it, where torch is installed: torch.save({"model": ..., "ema": ...}, NEW) of its tensors alone'


def read(path: str | os.PathLike) -> dict:
  """What a .pt or .pth file holds: nested dicts, lists and tuples of plain values and of read-only arrays.

  OrderedDict and argparse.Namespace become dicts, dtypes NumPy's, devices strings. The bytes of an array are read from
  the file when they are used: it must stay as it is for so long. FileNotFoundError; ValueError that names the file, and
  the tensor or record if it is about one: no such file, damaged, older than PyTorch 1.6, TorchScript, of big-endian
  numbers, or holding what is neither a tensor nor a plain value.
  """
  with open(path, "rb") as file:
    try:
      if not os.fstat(file.fileno()).st_size:
        raise ValueError("it is empty")
      data = np.asarray(np.memmap(file, np.uint8, "r"))
      return load(data, directory(file, data))
    except ValueError as error:
      raise ValueError(f"{os.fspath(path)}: {error}") from error


def directory(file: BinaryIO, data: np.ndarray) -> dict[str, zipfile.ZipInfo]:
  """The archive's records, by name without the archive's own. ValueError if it is none of torch.save's."""
  if MAGIC in data[:32].tobytes():
    raise ValueError(f"it is in the format that PyTorch had before 1.6; convert it {ANEW}")
  try:
    with zipfile.ZipFile(file) as archive:
      found = {info.filename.partition("/")[2]: info for info in archive.infolist()}
  except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
    what = "it is cut short or damaged" if data[:4].tobytes() == b"PK\3\4" else "it is no checkpoint of torch.save"
    raise ValueError(f"{what} ({error})") from error
  if "constants.pkl" in found:
    raise ValueError(f"it is a TorchScript archive; convert it {SCRIPT}")
  return found


def load(data: np.ndarray, infos: dict[str, zipfile.ZipInfo]) -> dict:
  """The value of an archive, from its bytes and its directory. ValueError as `read`."""

  def record(name: str) -> np.ndarray:
    if name not in infos:
      raise ValueError(f"record {name} is missing")
    at, size = infos[name].header_offset, infos[name].file_size
    header = data[max(at, 0) :][:30].tobytes()
    if header[:4] != b"PK\3\4" or len(header) < 30 or infos[name].compress_type or infos[name].flag_bits & 1:
      raise ValueError(f"record {name} is damaged, compressed or encrypted")
    start = at + 30 + sum(struct.unpack("<HH", header[26:]))  # after its name and the extra field
    if not 0 <= start <= start + size <= data.size:
      raise ValueError(f"record {name} is not inside of the file: it is cut short or damaged")
    return data[start : start + size]

  def storage(persistent: Any, name: str) -> np.ndarray:
    match persistent:
      case ("storage", np.dtype() as dtype, str() as key, _, int() as count) if count >= 0:
        found, size = record(f"data/{key}"), count * dtype.itemsize
        if found.size < size:
          raise ValueError(f"record data/{key} has {found.size} bytes, and not the {size} of tensor {name}")
        return found[:size].view(dtype)
    raise ValueError(f"the storage of tensor {name} is none that torch.save writes")

  if "byteorder" in infos and (order := record("byteorder").tobytes()) != b"little":
    raise ValueError(f"its byteorder is {order!r}; convert it on a little-endian machine, {ANEW}")
  pickle = record("data.pkl").tobytes()
  try:
    opcodes = [(opcode.name, value) for opcode, value, _ in pickletools.genops(pickle)]
  except ValueError as error:
    raise ValueError(f"record data.pkl is damaged ({error})") from error
  try:
    value = follow(opcodes, storage)
  except (LookupError, TypeError) as error:
    raise ValueError(f"record data.pkl is damaged ({type(error).__name__}: {error})") from error
  if not isinstance(value, dict):
    raise ValueError(f"it holds a {type(value).__name__}; save a dict of tensors")
  return value


def follow(opcodes: list[tuple[str, Any]], storage: Callable[[Any, str], np.ndarray]) -> Any:
  """The value of a pickle, from its opcodes and their arguments.

  storage: a storage's elements, from its persistent id and the name of its tensor. ValueError for what torch.save does
  not write, LookupError or TypeError where the pickle is damaged.
  """
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}
  made: dict[int, tuple[Global, dict]] = {}  # by id: the dicts that stand for objects with attributes

  def pop(count: int) -> list:
    at = len(stack) - count
    if count < 0 or at < 0:
      raise IndexError("too little is on the stack")
    items = stack[at:]
    del stack[at:]
    return items

  for opcode, value in opcodes:
    match opcode:
      case "PROTO" | "FRAME":
        pass
      case "STOP":
        return stack.pop()
      case "NONE" | "NEWTRUE" | "NEWFALSE":
        stack.append(CONSTANTS[opcode])
      case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
        stack.append(value)
      case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
        stack.append(EMPTY[opcode]())
      case "MARK":
        marks.append(len(stack))
      case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
        stack.append(tuple(pop(int(opcode[5:] or len(stack) - marks.pop()))))
      case "APPEND" | "APPENDS":
        items = pop(1 if opcode == "APPEND" else len(stack) - marks.pop())
        if not isinstance(stack[-1], list):
          raise ValueError("refused: it appends to what is no list")
        stack[-1].extend(items)
      case "SETITEM" | "SETITEMS":
        items = pop(2 if opcode == "SETITEM" else len(stack) - marks.pop())
        fill(stack[-1], items[::2], items[1::2])
      case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
        memo[len(memo) if value is None else value] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[value])
      case "GLOBAL" | "STACK_GLOBAL":
        name = " ".join(pop(2)) if value is None else value
        if name not in KNOWN:
          wants = f"it wants to call {name.replace(' ', '.')}; nothing of it was run"
          raise ValueError(f"refused: {wants}. Convert it, {ALONE}")
        stack.append(KNOWN[name])
      case "BINPERSID":
        stack.append(storage(stack.pop(), nearest(stack)))
      case "REDUCE" | "NEWOBJ":
        function, arguments = pop(2)
        stack.append(call(function, arguments, nearest(stack)))
        if isinstance(stack[-1], dict):
          made[id(stack[-1])] = function, stack[-1]
      case "BUILD":
        state = stack.pop()
        function, _ = made.get(id(stack[-1]), (None, None))
        if function is None or not isinstance(state, dict):
          raise ValueError("refused: it sets attributes of what has none")
        if function.name == "argparse Namespace":  # an OrderedDict's are the versions of modules
          fill(stack[-1], [*state], [*state.values()])
      case _:
        raise ValueError(f"refused: opcode {opcode}, which torch.save does not write")


def fill(into: Any, keys: list, values: list) -> None:
  """Sets items of a dict. ValueError unless it is one, and its keys numbers or names that Python does not reserve."""
  if not isinstance(into, dict) or len(keys) != len(values):
    raise ValueError("refused: it sets items of what is no dict")
  for key, value in zip(keys, values):
    if not isinstance(key, str | int) or str(key).startswith("__"):
      shown = key if isinstance(key, str) else type(key).__name__
      raise ValueError(f"refused: a key is {shown}, and not a number or a plain name")
    into[key] = value


def nearest(stack: list) -> str:
  """The last string on a stack, near its top: the key, in its dict, of what is being made."""
  return next((item for item in reversed(stack[-32:]) if isinstance(item, str)), "?")


def call(function: Any, arguments: Any, name: str) -> Any:
  """What one of FUNCTIONS would return. ValueError for any other, or for other arguments; name: of the tensor."""
  match function, arguments:
    case Global("torch._utils _rebuild_tensor_v2"), (np.ndarray() as data, offset, size, stride, _, _, *bits):
      return tensor(data, data.dtype, offset, size, stride, name, bits)
    case Global("torch._utils _rebuild_tensor_v3"), (np.ndarray() as data, offset, size, stride, _, _, dtype, *bits):
      return tensor(data, dtype, offset, size, stride, name, bits)
    case Global("torch._utils _rebuild_parameter"), (np.ndarray() as data, _, _):
      return data
    case Global("torch Size"), (tuple() as size,):
      return size
    case Global("torch device"), (str() as kind, *index) if all(isinstance(number, int) for number in index):
      return ":".join([kind, *map(str, index)])
    case Global("collections OrderedDict") | Global("argparse Namespace"), ():
      return {}
  raise ValueError(f"refused: a call that torch.save does not write, near {name}; nothing of it was run")


def tensor(data: np.ndarray, dtype: Any, offset: Any, size: Any, stride: Any, name: str, bits: list) -> np.ndarray:
  """A view of a storage, as torch.Tensor.set_ gives. ValueError if it would reach outside of it."""
  if any(bits):
    raise ValueError(f"tensor {name} is conjugated or negated lazily: save its resolve_conj().resolve_neg()")
  try:
    if data.ndim != 1 or not data.flags.c_contiguous or not isinstance(dtype, np.dtype):
      raise ValueError("which is not a storage")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
      raise ValueError("a number is negative or no integer")
    end = (offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) + 1) * dtype.itemsize
    if 0 in size:
      return np.zeros(size, dtype)
    if end > data.nbytes:
      raise ValueError(f"it reaches to byte {end} of {data.nbytes}")
    steps = [dtype.itemsize * number for number in stride]
    return np.ndarray(size, dtype, data.view(np.uint8), dtype.itemsize * offset, steps)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(f"tensor {name} is not inside of its storage ({error})") from error
