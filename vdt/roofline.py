"""What a compiled TPU program costs a chip: a roofline over the instructions of its schedule. An estimate.

An instruction takes the longer of its matrix FLOPs at the chip's peak and its HBM bytes at the chip's bandwidth; what
it does in VMEM, and on the vector units, is free. A loop's body is counted as often as the loop runs. What the schedule
brackets by start and done runs beside the instructions between the two; the rest of it is waited for, and so is all of
what is not bracketed. A collective moves its bytes over the links of the chip's axes that its group spans.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from vdt import network
from vdt.hlo import FREE, HOST, MOVES, Module, element, in_hbm, size_of, sizes
from vdt.topology import Slice

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""Pallas kernels by name, and the products of queries and keys, or of their size, that they take."""
BLOCK = re.compile(r"block_(\d+)")
"""A `jax.named_scope` that says how many queries, or keys, one of them takes at a time."""
STATED = re.compile(r'"cost_estimate": *\{"flops": *"(\d+)"')
FUSED = "async-collective-"  # how the compiler names the fusions that start and end a collective
CARRIED = "async_collective_fusion"  # and the computations of those that carry it on as they compute


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

  bytes: to and from HBM. top: seconds, FLOPs and bytes by the place in the source (`op_name`) that an instruction comes
  from. kept: bytes of what the forward pass leaves for the backward pass. operands: bytes that matrix products and
  kernels take and make, each by itself, in bfloat16: what a program moves at least whose products all go through HBM.
  """

  seconds: float = 0.0
  flops: float = 0.0
  bytes: float = 0.0
  bound: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  traffic: dict[tuple[str, str], Traffic] = dataclasses.field(default_factory=dict)
  top: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  kept: float = 0.0
  operands: float = 0.0

  def busy(self) -> dict[str, float]:
    """Seconds for which it may keep each network from others; of HBM all."""
    return {"hbm": self.seconds} | {
      name: sum((traffic.seconds for (_, each), traffic in self.traffic.items() if each == name), 0.0)
      for name in ("ici", "dcn", "host")
    }

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
  """Something that was started: what it moves, over which network and lanes of it (`network.taken`), and the seconds
  that are left of it."""

  kind: str
  network: str
  bytes: float
  seconds: float
  left: float

  lanes: frozenset[str]

  @classmethod
  def over(cls, network: str, kind: str, moved: float, rate: float, lane: str = "") -> "Pending":
    """What goes over one lane, by default the network's only one, at `rate` bytes a second."""
    return cls(kind, network, moved, moved / rate, moved / rate, frozenset([lane or network]))


def module_of(compiled: Any) -> bytes:
  """The scheduled module of a program that `jax.jit(...).lower(...).compile()` made, serialised."""
  return compiled.runtime_executable().hlo_modules()[0].as_serialized_hlo_module_proto()


def price(module: bytes, where: Slice) -> Cost:
  """Of a `module_of` a program for the devices of `where`."""
  from tensorflow.compiler.xla.service import hlo_pb2  # TensorFlow ships the schema of XLA's programs

  parsed = hlo_pb2.HloModuleProto()
  parsed.ParseFromString(module)
  return Program(parsed, where).cost(parsed.entry_computation_id)


class Program(Module):
  """A scheduled HLO module on the chips of a slice."""

  def __init__(self, module: Any, where: Slice):
    super().__init__(module)
    self.where, self.chip = where, where.chip

  @functools.cache  # noqa: B019 (a program is thrown away with its plan)
  def cost(self, number: int) -> Cost:
    """Of one run of a computation."""
    total, pending = Cost(), {}

    def advance(seconds: float, waited: Pending | None = None, **busy: float) -> None:
      """What was started goes on for `seconds`, of which each network is `busy` with other things for so many: one
      transfer a lane at a time, and none over those of what is waited for."""
      free = {lane: max(seconds - busy.get(each.network, 0.0), 0.0) for each in pending.values() for lane in each.lanes}
      for lane in waited.lanes if waited else ():
        free[lane] = 0.0
      for each in pending.values():
        done = min([each.left, *(free[lane] for lane in each.lanes)])
        each.left -= done
        for lane in each.lanes:
          free[lane] -= done

    def move(each: Pending, exposed: float) -> None:
      total.seconds += exposed
      if each.network in ("hbm", "host"):
        total.bytes += each.bytes
      if each.network == "hbm":
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
        advance(inside.seconds, **inside.busy())
      elif each.opcode in ("conditional", "call"):
        worst = max((self.cost(branch) for branch in each.called_computation_ids), key=lambda c: c.seconds)
        total.add(worst)
        advance(worst.seconds, **worst.busy())
      elif each.name.startswith(FUSED + "start"):
        pending[each.name.removeprefix(FUSED + "start")] = self.fused_collective(each)
      elif each.opcode.endswith("-done") or each.name.startswith(FUSED + "done"):
        fused = each.name.startswith(FUSED)
        started = pending.pop(each.name.removeprefix(FUSED + "done") if fused else each.operand_ids[0], None)
        if started:
          move(started, started.left)
          advance(started.left, started)
      elif transfer := self.transfer(each):
        if each.opcode.endswith("-start") or each.opcode in ("send", "recv"):
          pending[each.id] = transfer
        else:
          move(transfer, transfer.left)
          advance(transfer.left, transfer)
      elif together := self.together(each):
        total.bytes += self.work(each).bytes
        move(together, together.left)
        advance(together.left, together)
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
        advance(seconds, hbm=memory)
    for started in pending.values():  # its end was not found: it is waited for
      move(started, started.left)
    total.kept = max(total.kept, sum(map(self.kept, self.computations[number].instructions)))
    return total

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
    or queries and gradients for those of keys; what says which tokens are padding is counted once. A causal one, which
    a `jax.named_scope` says, leaves out the blocks above the diagonal.
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
    still, streamed = (key, query) if "dkv" in name else (query, key)
    block = BLOCK.search(name)
    blocks = still[-2] / (int(block[1]) if block else 128)
    share = (blocks + 1) / (2 * blocks) if "causal" in name else 1.0
    again = 2 * (share * blocks - 1) * math.prod(streamed) * size_of(shapes[0])
    return Work(share * counts[0] * 2.0 * math.prod(query) * key[-2], moved + again, moved)

  def transfer(self, each: Any) -> Pending | None:
    """What an instruction moves beside or between those that compute, or None if it computes."""
    opcode = each.opcode.removesuffix("-start")
    if moved := self.offloaded(each):
      return Pending.over("host", "copy", moved, self.chip.host)
    if opcode == "copy" and each.opcode != "copy":
      moved = in_hbm(each.shape.tuple_shapes[0]) + in_hbm(each.shape.tuple_shapes[1])
      return Pending.over("hbm", "copy", moved, self.chip.bandwidth)
    if each.opcode == "async-start":
      inside = self.wrapped(each)
      if inside.opcode in COLLECTIVES:
        return self.collective(inside, inside.opcode)
      work = self.asynchronous(each, inside)
      return Pending.over("hbm", inside.opcode, work.bytes, self.chip.bandwidth)
    if opcode in COLLECTIVES:
      return self.collective(each, opcode)
    if opcode in ("send", "recv"):
      moved = float(sum(size for size, _ in sizes(each.shape.tuple_shapes[0])))
      return Pending.over("dcn", opcode, moved, self.chip.dcn, lane=opcode)
    return None

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
    name, seconds, lanes = network.taken(each, kind, moved, self.where)
    return Pending(kind, name, moved, seconds, seconds, lanes)

  def fused_collective(self, fusion: Any) -> Pending | None:
    """The collective in a fusion, or None; a sum of which each chip keeps a part is a reduce-scatter."""
    body = self.computations[fusion.called_computation_ids[0]].instructions
    each = next((each for each in body if each.opcode.removesuffix("-start") in COLLECTIVES), None)
    if each is None:
      return None
    kind = each.opcode.removesuffix("-start")
    part = kind == "all-reduce" and any(other.opcode == "dynamic-slice" for other in body)
    return self.collective(each, "reduce-scatter" if part else kind)

  def together(self, each: Any) -> Pending | None:
    """The collective that a fusion is, from its start to its end, as the TPU compiler writes a reduce-scatter; None of
    one that computes, also where it carries on a collective that another fusion started."""
    if each.opcode != "fusion" or self.computations[each.called_computation_ids[0]].name.startswith(CARRIED):
      return None
    return self.fused_collective(each)
