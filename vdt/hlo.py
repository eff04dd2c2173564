"""A compiled program as its instructions say it: what they read and write, multiply and keep.

Bytes are of the tiles that hold an array, so a last axis of 1 counts as 128, where nothing else is said. Passes are
told apart by the names that JAX gives to instructions: "jvp" and "transpose(jvp".
"""

import collections
import itertools
import math
from typing import Any

import numpy as np

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
SIZES = {"PRED": 1, "S8": 1, "U8": 1, "S16": 2, "U16": 2, "F16": 2, "BF16": 2, "S64": 8, "U64": 8, "F64": 8, "C64": 8}
HANDING = FREE | {"copy-start", "copy-done", "async-start", "async-done"}
"""What hands on what another one made: under a name, or from one memory to another."""
MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
"""What takes an array, or a part of one, from one memory to another."""
HBM, HOST = 0, 5  # memory spaces of a layout; others are on the chip


def sizes(shape: Any) -> list[tuple[int, int]]:
  """(bytes of the tiles that hold it, memory space) of each array of a shape."""
  if shape.tuple_shapes:
    return [pair for part in shape.tuple_shapes for pair in sizes(part)]
  dims = [shape.dimensions[axis] for axis in shape.layout.minor_to_major]
  tile = list(shape.layout.tiles[0].dimensions)[::-1] if shape.layout.tiles else []
  padded = [-(-dim // part) * part for dim, part in itertools.zip_longest(dims, tile[: len(dims)], fillvalue=1)]
  return [(math.prod(padded) * size_of(shape), shape.layout.memory_space)]


def size_of(shape: Any) -> int:
  """Bytes of one number of an array."""
  kind = element(shape)
  return SIZES.get(kind, 0 if kind in ("TOKEN", "OPAQUE_TYPE") else 4)


def element(shape: Any) -> str:
  """The name of a shape's element type."""
  return type(shape).DESCRIPTOR.fields_by_name["element_type"].enum_type.values_by_number[shape.element_type].name


def in_hbm(shape: Any) -> float:
  """Bytes of the tiles that hold a shape's arrays in HBM."""
  return float(sum(size for size, space in sizes(shape) if space == HBM))


class Module:
  """A scheduled HLO module (`hlo_pb2.HloModuleProto`)."""

  def __init__(self, module: Any):
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

  def limit(self, loop: Any) -> int:
    """The number that a loop's condition compares its counter with."""
    condition = self.computations[loop.called_computation_ids[1]]
    parts = [
      condition,
      *(self.computations[number] for each in condition.instructions for number in each.called_computation_ids),
    ]
    limits = [
      value for part in parts for each in part.instructions if each.opcode == "constant" for value in integers(each)
    ]
    return max([value for value in limits if value > 0], default=1)

  def trips(self, loop: Any) -> int:
    """How often a loop runs: from where its counter starts, at 0 or after rounds that were taken out, to its limit, by
    what its body adds: a round may do the work of two."""
    body, condition = (self.computations[number] for number in loop.called_computation_ids)
    counters = [each.tuple_index for each in condition.instructions if each.opcode == "get-tuple-element"]
    first, stride = [], []
    if len(counters) == 1:
      entry, root = self.instructions[loop.operand_ids[0]], self.instructions[body.root_id]
      first = self.constants(self.made(entry, counters[0]))
      counted = self.made(root, counters[0])
      added = counted.operand_ids if counted.opcode == "add" else ()
      stride = [value for number in added for value in self.constants(self.instructions[number])]
    return max(-(-(self.limit(loop) - next(iter(first), 0)) // max(next(iter(stride), 1), 1)), 1)

  def made(self, entry: Any, index: int) -> Any:
    """The instruction that makes a tuple's element: in a fusion, and before what copies it."""
    each = self.instructions[entry.operand_ids[index]] if entry.opcode == "tuple" else entry
    while each.opcode in ("copy", "fusion"):
      inside = each.opcode == "fusion"
      each = self.instructions[
        self.computations[each.called_computation_ids[0]].root_id if inside else each.operand_ids[0]
      ]
    return each

  def constants(self, each: Any) -> list[int]:
    """The integers of a constant; none of anything else."""
    return integers(each) if each.opcode == "constant" else []

  def place(self, each: Any) -> str:
    """Where in the source an instruction comes from; a loop that lost its name, where its body does."""
    inside = self.computations[each.called_computation_ids[0]].instructions if each.opcode == "while" else []
    return next(filter(None, (part.metadata.op_name for part in (each, *inside))), "")

  def kept(self, each: Any) -> float:
    """HBM bytes of what an instruction of the forward pass makes and one of the backward pass reads."""
    if each.opcode in HANDING or "jvp" not in self.place(each) or "transpose(jvp" in self.place(each):
      return 0.0
    if each.opcode == "while":
      return self.stacked(each)
    if not each.shape.tuple_shapes:
      return self.read_back(each)
    return sum(self.read_back(part) for part in self.users[each.id] if part.opcode == "get-tuple-element")

  def read_back(self, each: Any, held: float = 0.0) -> float:
    """HBM bytes of an array if the backward pass reads it, or a copy of it there or on the chip; held: those of what it
    is a copy of."""
    held = max(held, 0.0 if each.shape.tuple_shapes else in_hbm(each.shape))
    found = 0.0
    for user in self.users[each.id]:
      if user.opcode == "tuple":
        places = [place for place, number in enumerate(user.operand_ids) if number == each.id]
        parts = [
          part for part in self.users[user.id] if part.opcode != "get-tuple-element" or part.tuple_index in places
        ]
      else:
        parts = [user]
      for part in parts:
        if self.hands_on(part):
          goes_to = part.shape.tuple_shapes[0] if part.opcode == "copy-start" else part.shape
          if HOST not in {space for _, space in sizes(goes_to)}:
            found = max(found, self.read_back(part, held))
        elif "transpose(jvp" in self.place(part):
          found = max(found, held)
    return found

  def hands_on(self, each: Any) -> bool:
    """Whether what an instruction makes is what it was given, elsewhere or, of parts, as one."""
    if each.opcode == "async-start":
      return self.wrapped(each).opcode in MOVES
    return each.opcode in HANDING or (each.opcode == "custom-call" and each.custom_call_target != "tpu_custom_call")

  def stacked(self, loop: Any) -> float:
    """Bytes of the arrays that a loop fills, a row each time it runs; not of those that it hands on."""
    body, limit = self.computations[loop.called_computation_ids[0]], self.limit(loop)
    root = self.instructions[body.root_id]
    filled = 0.0
    for index, number in enumerate(root.operand_ids):
      made = self.instructions[number]
      same = made.opcode == "get-tuple-element" and made.tuple_index == index
      if not same and len(made.shape.dimensions) > 1 and made.shape.dimensions[0] == limit:
        filled += in_hbm(loop.shape.tuple_shapes[index])
    return filled

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
    """Bytes that the matrix products in an instruction take and make, each by itself, at two a number."""
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

  def wrapped(self, start: Any) -> Any:
    """The instruction that an asynchronous one starts, or the instruction itself."""
    if start.opcode != "async-start":
      return start
    parts = self.computations[start.called_computation_ids[0]].instructions
    return next(part for part in parts if part.opcode not in FREE)


def integers(constant: Any) -> list[int]:
  """The numbers of a constant of an integer type, 32 bits or 64; none of another."""
  literal = constant.literal
  return [*literal.s32s, *literal.s64s, *literal.u32s]
