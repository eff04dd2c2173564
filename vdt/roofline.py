"""What a compiled TPU program costs a chip: a roofline over the instructions of its schedule. An estimate.

An instruction takes the longer of its matrix FLOPs at the chip's peak and its HBM bytes at the chip's bandwidth; what
it does in VMEM, and on the vector units, is free. Bytes are of the tiles that hold an array, so a last axis of 1 counts
as 128. A loop's body is counted as often as the loop runs. What the schedule brackets by start and done runs beside the
instructions between the two; the rest of it is waited for. A collective moves its bytes over the links of the chip's
axes that its group spans.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from vdt import network
from vdt.topology import Slice

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
SIZES = {"PRED": 1, "S8": 1, "U8": 1, "S16": 2, "U16": 2, "F16": 2, "BF16": 2, "S64": 8, "U64": 8, "F64": 8, "C64": 8}
HANDING = FREE | {"copy-start", "copy-done"}  # they hand on what another one made: under a name, to VMEM, or from it
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""Pallas kernels by name, and the products of queries and keys, or of their size, that they take."""
BLOCK = re.compile(r"block_(\d+)")
"""A `jax.named_scope` that says how many queries, or keys, one of them takes at a time."""
STATED = re.compile(r'"cost_estimate": *\{"flops": *"(\d+)"')
FUSED = "async-collective-"  # how the compiler names the fusions that start and end a collective
HBM, HOST = 0, 5  # memory spaces of a layout; others are on the chip
MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
"""What takes an array, or a part of one, from one memory to another."""


@dataclasses.dataclass
class Traffic:
  """Collectives of one kind over one network, of a whole program: how many, a chip's bytes, their time, the wait."""

  count: float = 0.0
  bytes: float = 0.0
  seconds: float = 0.0
  exposed: float = 0.0


@dataclasses.dataclass
class Cost:
  """Of one run on one chip. bound: seconds by what bounds them ("matrix", "memory", "copies", "ici", "dcn", "host").

  top: seconds, FLOPs and bytes by the place in the source (`op_name`) that an instruction comes from. kept: bytes of
  what the forward pass leaves for the backward pass. operands: bytes that matrix products and kernels take and make,
  each by itself, in bfloat16: what a program moves at least whose products all go through HBM.
  """

  seconds: float = 0.0
  flops: float = 0.0
  bytes: float = 0.0
  bound: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  traffic: dict[tuple[str, str], Traffic] = dataclasses.field(default_factory=dict)
  top: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  kept: float = 0.0
  operands: float = 0.0

  def add(self, other: "Cost", times: float = 1.0) -> None:
    """Adds what `other` costs when it runs `times` times."""
    self.seconds += times * other.seconds
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    self.kept = max(self.kept, other.kept)
    self.operands += times * other.operands
    for name, seconds in other.bound.items():
      self.bound[name] += times * seconds
    for key, theirs in other.traffic.items():
      mine = self.traffic.setdefault(key, Traffic())
      for field in dataclasses.fields(Traffic):
        setattr(mine, field.name, getattr(mine, field.name) + times * getattr(theirs, field.name))
    for name, row in other.top.items():
      self.top[name] = self.top.get(name, 0) + times * row


class Work(NamedTuple):
  """One instruction: matrix FLOPs, bytes to and from HBM, and operands as `Cost` has them."""

  flops: float
  bytes: float
  operands: float = 0.0


@dataclasses.dataclass
class Pending:
  """Something that was started: what it moves, over which network, and the seconds that are left of it."""

  kind: str
  network: str
  bytes: float
  seconds: float
  left: float


def cost(compiled: Any, where: Slice) -> Cost:
  """Of a program that `jax.jit(...).lower(...).compile()` made for the devices of `where`."""
  from tensorflow.compiler.xla.service import hlo_pb2  # TensorFlow ships the schema of XLA's programs

  module = hlo_pb2.HloModuleProto()
  module.ParseFromString(compiled.runtime_executable().hlo_modules()[0].as_serialized_hlo_module_proto())
  return Program(module, where).cost(module.entry_computation_id)


def sizes(shape: Any) -> list[tuple[int, int]]:
  """(bytes of the tiles that hold it, memory space) of each array of a shape."""
  if shape.tuple_shapes:
    return [pair for part in shape.tuple_shapes for pair in sizes(part)]
  kind = element(shape)
  dims = [shape.dimensions[axis] for axis in shape.layout.minor_to_major]
  tile = list(shape.layout.tiles[0].dimensions)[::-1] if shape.layout.tiles else []
  padded = [-(-dim // part) * part for dim, part in itertools.zip_longest(dims, tile[: len(dims)], fillvalue=1)]
  return [
    (math.prod(padded) * SIZES.get(kind, 0 if kind in ("TOKEN", "OPAQUE_TYPE") else 4), shape.layout.memory_space)
  ]


def element(shape: Any) -> str:
  """The name of a shape's element type."""
  return type(shape).DESCRIPTOR.fields_by_name["element_type"].enum_type.values_by_number[shape.element_type].name


def in_hbm(shape: Any) -> float:
  return float(sum(size for size, space in sizes(shape) if space == HBM))


class Program:
  """A scheduled HLO module on the chips of a slice."""

  def __init__(self, module: Any, where: Slice):
    self.where, self.chip = where, where.chip
    self.computations = {each.id: each for each in module.computations}
    self.instructions = {each.id: each for part in module.computations for each in part.instructions}
    self.schedule = {number: list(order.instruction_ids) for number, order in module.schedule.sequences.items()}
    fusions = [each for each in self.instructions.values() if each.opcode == "fusion"]
    bodies = {each.called_computation_ids[0] for each in fusions}
    self.fused = {each.id for number in bodies for each in self.computations[number].instructions}
    self.within = {self.computations[each.called_computation_ids[0]].root_id: each.id for each in fusions}
    self.users = collections.defaultdict(list)
    for each in self.instructions.values():
      for operand in each.operand_ids:
        self.users[operand].append(each)

  def sequence(self, number: int) -> list[Any]:
    """A computation's instructions, in the order in which they run."""
    if number in self.schedule:
      return [self.instructions[each] for each in self.schedule[number]]
    return list(self.computations[number].instructions)

  @functools.cache  # noqa: B019 (a program is thrown away with its plan)
  def cost(self, number: int) -> Cost:
    """Of one run of a computation."""
    total, pending = Cost(), {}

    def advance(seconds: float, memory: float) -> None:
      """What was started goes on for `seconds`, of which HBM is busy for `memory`, one transfer a network at a time."""
      free = dict.fromkeys(("ici", "send", "recv", "host"), seconds) | {"hbm": max(seconds - memory, 0.0)}
      for each in pending.values():
        lane = each.kind if each.kind in ("send", "recv") else {"dcn": "send"}.get(each.network, each.network)
        done = min(each.left, free[lane])
        each.left -= done
        free[lane] -= done

    def move(each: Pending, exposed: float) -> None:
      total.seconds += exposed
      if each.network == "hbm":
        total.bytes += each.bytes
        total.bound["copies"] += exposed
      else:
        total.bound[each.network] += exposed
        traffic = Traffic(1.0, each.bytes, each.seconds, exposed)
        total.add(Cost(traffic={(each.kind, each.network): traffic}))

    for each in self.sequence(number):
      if each.opcode in FREE:
        continue
      if each.opcode == "while":
        inside = Cost()
        inside.add(self.cost(each.called_computation_ids[0]), float(self.trips(each)))
        total.add(inside)
        advance(inside.seconds, inside.seconds)
      elif each.opcode in ("conditional", "call"):
        worst = max((self.cost(branch) for branch in each.called_computation_ids), key=lambda c: c.seconds)
        total.add(worst)
        advance(worst.seconds, worst.seconds)
      elif each.name.startswith(FUSED + "start"):
        pending[each.name.removeprefix(FUSED + "start")] = self.fused_collective(each)
      elif each.opcode.endswith("-done") or each.name.startswith(FUSED + "done"):
        fused = each.name.startswith(FUSED)
        started = pending.pop(each.name.removeprefix(FUSED + "done") if fused else each.operand_ids[0], None)
        if started:
          move(started, started.left)
          advance(started.left, started.left if started.network == "hbm" else 0.0)
      elif transfer := self.transfer(each):
        if each.opcode.endswith("-start") or each.opcode in ("send", "recv"):
          pending[each.id] = transfer
        else:
          move(transfer, transfer.left)
          advance(transfer.left, 0.0)
      else:
        work = self.work(each)
        matrix, memory = work.flops / self.chip.peak, work.bytes / self.chip.bandwidth
        seconds = max(matrix, memory)
        total.seconds += seconds
        total.flops += work.flops
        total.bytes += work.bytes
        total.operands += work.operands
        total.bound["matrix" if matrix >= memory else "memory"] += seconds
        name = each.metadata.op_name or each.opcode
        total.top[name] = total.top.get(name, 0) + np.array([seconds, work.flops, work.bytes])
        advance(seconds, memory)
    for started in pending.values():  # its end was not found: it is waited for
      move(started, started.left)
    total.kept = max(total.kept, sum(map(self.kept, self.computations[number].instructions)))
    return total

  def trips(self, loop: Any) -> int:
    """How often a loop runs: our loops count from zero, so it is the number that its condition compares with."""
    condition = self.computations[loop.called_computation_ids[1]]
    limits = [value for each in condition.instructions if each.opcode == "constant" for value in integers(each)]
    nested = [c for each in condition.instructions for c in each.called_computation_ids]
    for number in nested:
      limits += [
        v for each in self.computations[number].instructions if each.opcode == "constant" for v in integers(each)
      ]
    return max([value for value in limits if value > 0], default=1)

  def kept(self, each: Any) -> float:
    """HBM bytes of what an instruction of the forward pass makes and one of the backward pass reads."""
    if each.opcode in HANDING or "jvp" not in each.metadata.op_name or "transpose(jvp" in each.metadata.op_name:
      return 0.0
    if each.opcode == "while":
      return self.stacked(each)
    if not each.shape.tuple_shapes:
      return self.read_back(each)
    return sum(self.read_back(part) for part in self.users[each.id] if part.opcode == "get-tuple-element")

  def read_back(self, each: Any, held: float = 0.0) -> float:
    """HBM bytes of an array if the backward pass reads it, or a copy of it; held: those of what it is a copy of."""
    held = max(held, 0.0 if each.shape.tuple_shapes else in_hbm(each.shape))
    found = 0.0
    for user in self.users[each.id]:
      if user.opcode in HANDING:
        found = max(found, self.read_back(user, held))
      elif "transpose(jvp" in user.metadata.op_name:
        found = max(found, held)
    return found

  def stacked(self, loop: Any) -> float:
    """Bytes of the arrays that a loop fills, a row each time it runs; not of those that it hands on."""
    body, trips = self.computations[loop.called_computation_ids[0]], self.trips(loop)
    root = self.instructions[body.root_id]
    filled = 0.0
    for index, number in enumerate(root.operand_ids):
      made = self.instructions[number]
      same = made.opcode == "get-tuple-element" and made.tuple_index == index
      if not same and len(made.shape.dimensions) > 1 and made.shape.dimensions[0] == trips:
        filled += in_hbm(loop.shape.tuple_shapes[index])
    return filled

  def work(self, each: Any) -> Work:
    """Of an instruction that runs by itself."""
    operands = [self.instructions[number] for number in each.operand_ids]
    if each.opcode == "fusion":
      body, parameters = self.computations[each.called_computation_ids[0]], self.parameters(each)
      read = sum(min(self.read(parameters[i].id), whole) for i, o in enumerate(operands) if (whole := in_hbm(o.shape)))
      written = in_hbm(each.shape)
      if written:
        written = min(written, self.written(self.instructions[body.root_id]))
      return Work(self.flops(each), read + written, self.operands(each))
    if each.opcode == "custom-call":
      if each.custom_call_target == "tpu_custom_call":
        return self.kernel(each)
      return Work(0.0, 0.0)  # views of memory: no data is moved
    if each.opcode == "dynamic-update-slice":
      return Work(0.0, 2 * in_hbm(operands[1].shape) if in_hbm(each.shape) else in_hbm(operands[1].shape))
    if each.opcode in ("dynamic-slice", "slice", "gather"):
      size = sum(size for size, _ in sizes(each.shape))
      return Work(0.0, in_hbm(each.shape) + (size if in_hbm(operands[0].shape) else 0.0))
    moved = in_hbm(each.shape) + sum(in_hbm(operand.shape) for operand in operands)
    return Work(self.flops(each), moved, self.operands(each))

  def kernel(self, each: Any) -> Work:
    """Of a Pallas kernel, which the compiler does not look into: its operands and results, and its products.

    The products are those that it states (`cost_estimate`), or that KERNELS has for it; ValueError if neither is there.
    One of KERNELS reads two of its operands again for each block of the others: keys and values for those of queries,
    or queries and gradients for those of keys.
    """
    moved = in_hbm(each.shape) + sum(in_hbm(self.instructions[number].shape) for number in each.operand_ids)
    if stated := STATED.search(each.backend_config.decode()):
      return Work(float(stated[1]), moved, moved)
    name = each.metadata.op_name
    counts = [count for pattern, count in KERNELS.items() if re.search(pattern, name)]
    if not counts:
      raise ValueError(f"the FLOPs of the kernel {name} are not known: it is to have a cost_estimate")
    shapes = [self.instructions[number].shape for number in each.operand_ids]
    shapes = [shape for shape in shapes if element(shape) in ("BF16", "F32")]
    query, key = (list(shape.dimensions) for shape in shapes[:2])
    share = 0.5 if "causal" in name else 1.0  # a `jax.named_scope` says so: half of all pairs
    block = int(found[1]) if (found := BLOCK.search(name)) else 128
    still, again = (key, query) if "dkv" in name else (query, key)
    rounds = max(share * still[-2] / block, 1.0)
    again = 2 * (rounds - 1) * math.prod(again) * SIZES[element(shapes[0])]
    return Work(share * counts[0] * 2.0 * math.prod(query) * key[-2], moved + again, moved)

  def read(self, number: int) -> float:
    """Bytes that a fused computation reads of one of its parameters, or of what is a mere view of it."""
    value = self.instructions[number]
    whole, total = float(sum(size for size, _ in sizes(value.shape))), 0.0
    for user in self.users[number]:
      if user.opcode in ("dynamic-slice", "slice", "gather") and user.operand_ids[0] == number:
        total += sum(size for size, _ in sizes(user.shape))
      elif user.opcode == "dynamic-update-slice" and user.operand_ids[0] == number:
        continue  # it is written in place
      elif user.opcode in ("bitcast", "reshape", "copy", "convert", "transpose"):
        total += self.read(user.id)
      elif user.opcode == "fusion":
        total += self.read(self.parameters(user)[list(user.operand_ids).index(number)].id)
      else:
        return whole
    if number in self.within:  # the fused computation hands it on: to the fusion around it, or as its result
      outer = self.within[number]
      return total + (self.read(outer) if self.users[outer] and outer in self.fused else whole)
    return total

  def parameters(self, fusion: Any) -> dict[int, Any]:
    """The parameters of a fusion's computation, by number."""
    body = self.computations[fusion.called_computation_ids[0]]
    return {each.parameter_number: each for each in body.instructions if each.opcode == "parameter"}

  def written(self, root: Any) -> float:
    """Bytes that a fused computation writes, given its root."""
    if root.opcode == "dynamic-update-slice":
      return float(sum(size for size, _ in sizes(self.instructions[root.operand_ids[1]].shape)))
    if root.opcode in ("bitcast", "reshape"):
      return self.written(self.instructions[root.operand_ids[0]])
    if root.opcode == "tuple":
      return sum((self.written(self.instructions[number]) for number in root.operand_ids), 0.0)
    if root.opcode == "fusion":
      return self.written(self.instructions[self.computations[root.called_computation_ids[0]].root_id])
    return float(sum(size for size, _ in sizes(root.shape)))

  def flops(self, each: Any) -> float:
    """Of the matrix products in an instruction, two a multiply-add."""
    if each.opcode == "fusion":
      return sum((self.flops(part) for part in self.computations[each.called_computation_ids[0]].instructions), 0.0)
    if each.opcode == "dot":
      left = self.instructions[each.operand_ids[0]].shape
      contracted = math.prod(left.dimensions[axis] for axis in each.dot_dimension_numbers.lhs_contracting_dimensions)
      return 2.0 * math.prod(each.shape.dimensions) * contracted
    if each.opcode == "convolution":
      return 2.0 * self.products(each)
    return 0.0

  def operands(self, each: Any) -> float:
    """See `Cost`: of the matrix products in an instruction."""
    if each.opcode == "fusion":
      return sum(map(self.operands, self.computations[each.called_computation_ids[0]].instructions), 0.0)
    if each.opcode not in ("dot", "convolution"):
      return 0.0
    shapes = [each.shape, *(self.instructions[number].shape for number in each.operand_ids)]
    return 2.0 * sum(math.prod(shape.dimensions) for shape in shapes)

  def products(self, each: Any) -> float:
    """Multiply-adds of a convolution, to which the TPU compiler turns every matrix product; padding is left out."""
    left, right = (self.instructions[number].shape.dimensions for number in each.operand_ids)
    numbers = each.convolution_dimension_numbers
    total = float(each.shape.dimensions[numbers.output_batch_dimension])
    total *= each.shape.dimensions[numbers.output_feature_dimension]
    total *= right[numbers.kernel_input_feature_dimension]
    if each.batch_group_count > 1:
      total /= each.batch_group_count
    for axis, window in enumerate(each.window.dimensions):
      size, out = (
        left[numbers.input_spatial_dimensions[axis]],
        each.shape.dimensions[numbers.output_spatial_dimensions[axis]],
      )
      at = np.arange(out)[:, None] * window.stride - window.padding_low
      at = at + np.arange(window.size) * max(window.window_dilation, 1)
      base = max(window.base_dilation, 1)
      total *= int(((at >= 0) & (at <= (size - 1) * base) & (at % base == 0)).sum())
    return total

  def transfer(self, each: Any) -> Pending | None:
    """What an instruction moves beside or between those that compute, or None if it computes."""
    opcode = each.opcode.removesuffix("-start")
    if moved := self.offloaded(each):
      return Pending("copy", "host", moved, moved / self.chip.host, moved / self.chip.host)
    if opcode == "copy" and each.opcode != "copy":
      moved = in_hbm(each.shape.tuple_shapes[0]) + in_hbm(each.shape.tuple_shapes[1])
      return Pending("copy", "hbm", moved, moved / self.chip.bandwidth, moved / self.chip.bandwidth)
    if each.opcode == "async-start":
      inside = self.wrapped(each)
      if inside.opcode in COLLECTIVES:
        return self.collective(inside, inside.opcode)
      work = self.asynchronous(each, inside)
      return Pending(
        inside.opcode, "hbm", work.bytes, work.bytes / self.chip.bandwidth, work.bytes / self.chip.bandwidth
      )
    if opcode in COLLECTIVES:
      return self.collective(each, opcode)
    if opcode in ("send", "recv"):
      moved = float(sum(size for size, _ in sizes(each.shape.tuple_shapes[0])))
      return Pending(opcode, "dcn", moved, moved / self.chip.dcn, moved / self.chip.dcn)
    return None

  def wrapped(self, start: Any) -> Any:
    """The instruction that an asynchronous one starts, or the instruction itself."""
    if start.opcode != "async-start":
      return start
    parts = self.computations[start.called_computation_ids[0]].instructions
    return next(part for part in parts if part.opcode not in FREE)

  def offloaded(self, each: Any) -> float:
    """Bytes that an instruction moves between HBM and the host's memory."""
    inside = self.wrapped(each)
    shapes = (each.shape, *(self.instructions[number].shape for number in each.operand_ids))
    spaces = {space for shape in shapes for _, space in sizes(shape)}
    if inside.opcode.removesuffix("-start") not in MOVES or HOST not in spaces:
      return 0.0
    part = inside.opcode == "dynamic-update-slice"
    shape = self.instructions[inside.operand_ids[1]].shape if part else inside.shape
    return float(max(size for size, _ in sizes(shape)))

  def asynchronous(self, start: Any, inside: Any) -> Work:
    """Of the instruction that a start wraps; the memory spaces are those of its operands and of its result outside."""
    operands, result = start.shape.tuple_shapes[0], start.shape.tuple_shapes[1]
    size = sum(size for size, _ in sizes(result))
    if inside.opcode == "dynamic-update-slice":
      size = sum(size for size, _ in sizes(self.instructions[inside.operand_ids[1]].shape))
    first = operands.tuple_shapes[0] if operands.tuple_shapes else operands
    return Work(0.0, (size if in_hbm(first) else 0.0) + (size if in_hbm(result) else 0.0))

  def collective(self, each: Any, kind: str) -> Pending:
    """What a collective moves, and the seconds that the links it spans need for it."""
    shapes = [self.instructions[number].shape for number in each.operand_ids]
    given = sum(size for shape in shapes for size, _ in sizes(shape))
    made = sum(size for size, _ in sizes(each.shape)) - (given if each.opcode.endswith("-start") else 0)
    moved = float(made if kind == "all-gather" else given)
    name, seconds = network.taken(each, kind, moved, self.where)
    return Pending(kind, name, moved, seconds, seconds)

  def fused_collective(self, start: Any) -> Pending:
    """What a fusion starts: a collective whose parts the fusions between it and its done carry on as they compute."""
    body = self.computations[start.called_computation_ids[0]].instructions
    each = next(each for each in body if each.opcode.removesuffix("-start") in COLLECTIVES)
    return self.collective(each, each.opcode.removesuffix("-start"))


def integers(constant: Any) -> list[int]:
  literal = constant.literal
  return [*literal.s32s, *literal.s64s, *literal.u32s]
