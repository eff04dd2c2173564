"""The training loop, one for every task: config, state, update, loop."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from vdt import averages, checkpoint, conditions, distributed, files, sharding, space, topology, workdirs, writer
from vdt.attempts import INTERRUPTED, RESTART, Signals
from vdt.checkpoint import Checkpointer, State
from vdt.config import Config
from vdt.diffusion import guidance
from vdt.evaluate import CARDS, cards, evaluate, flat
from vdt.judge import Judge, Spike
from vdt.report import write_report
from vdt.watchdog import Watchdog

SIGNALS = 256
"""More than the numbers of signals."""


def train(config: Config, workdir: str, origin: list[str] | None = None) -> State:
  """Trains to `config.steps`, from where `workdir` stands, and returns the last state. `origin`: the command's flags.

  SystemExit(77) after SIGTERM and (130) after SIGINT, with everything saved. FloatingPointError after 20 non-finite
  steps in a row, or 5 that leapt (`vdt.judge`). ValueError, FileNotFoundError or OSError for what cannot be trained,
  before the first step.
  """
  config.check()
  with Stop() as stop, Watchdog(config.hang_after) as watchdog:
    mesh, network = config.build()
    options = topology.options(config.xla, mesh.devices.flat[0])
    workdirs.agree(config)
    if config.init_from and not workdirs.saved(workdirs.absolute(workdir)):
      with checkpoint.origin(config.init_from):  # before anything is made in workdir
        pass
    for line in config.data.census() if hasattr(config.data, "census") and distributed.first() else ():
      print(line, file=sys.stderr)
    between = space.of(config)
    optimizer = config.optimizer.build()
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    new_state = partial(checkpoint.new_state, network, optimizer, len(config.averages), init_key)

    with (
      workdirs.claim(workdir, config, origin, data=config.data.fingerprint()),
      jax.set_mesh(mesh),
      Checkpointer(
        workdir, config.keep, averages=config.averages, best=partial(writer.best_step, workdir, config.best)
      ) as checkpoints,
    ):
      watchdog.wait_long()
      told = conditions.of(config, workdir, new=True)
      like = sharding.place(jax.eval_shape(new_state), mesh)
      sharding.check_frozen(like.params, config.freeze)
      placed = jax.tree.map(lambda leaf: leaf.sharding, like)
      begin = partial(first_state, config, jax.jit(new_state, out_shardings=placed))
      state = checkpoints.restore_or(begin, like)
      update = make_update(config, network, optimizer, train_key)
      update = jax.jit(
        update,
        donate_argnums=checkpoint.donated(),
        out_shardings=(placed, None),
        compiler_options=options,
      )
      steps = config.data.shapes()
      flops = 3 * sum(each.share * each.batch_size * config.model.flops(each.frames, each.size) for each in steps)
      show = lambda batch: (
        sharding.put({"video": batch["video"], "cond": told.arrays(batch)}, mesh)
        | {"stop": sharding.flags(stop.signal, mesh)}
      )
      with writer.Writer(workdir, int(state.step), config.steps, flops, mesh.size) as log:
        watchdog.wait_long()  # for compilation, and in the first step for that of the other processes
        update = compiled(config.data, update, show, state)
        with stop.wait():
          while int(state.step) < config.steps:
            leapt = None
            try:
              state = loop(
                config, network, show, state, update, log, checkpoints, stop, watchdog, workdir, between, told
              )
            except Spike as spike:
              leapt = spike.step
            if leapt:  # not while the exception holds the state that leapt
              del state
              with watchdog.patient():
                state = go_back(leapt, config.save_every, checkpoints, begin, like, log)
        with watchdog.patient(), log.spending("eval"):
          tables = evaluate(config, network, state.ema, config.evals, between, told)
        if distributed.first():
          files.rewrite(epath.Path(workdir) / CARDS, json.dumps(cards(config, config.evals), indent=2))
        if final := {name: value for name, value in flat(tables).items() if name not in written(workdir, config.steps)}:
          log.write({"step": config.steps, **final})
        log.mark(config.steps)  # the page shows it
        with watchdog.patient(), log.spending("eval"):
          page = write_report(config, network, state.ema, tables, workdir, between, told)
          if hasattr(config.diffusion, "finish"):
            config.diffusion.finish(config, network, state.ema, workdir, int(state.step))
      if distributed.first():
        print(page)
  return state


def written(workdir: str, step: int) -> set[str]:
  """The columns that the metrics of `step` have."""
  return {name for row in writer.read_rows(workdir) if row["step"] == step for name in row}


def inputs(config: Config, train_key: jax.Array, step: jax.Array, batch: dict) -> tuple:
  """What the loss of a step is of, beside the parameters: (x0, noise, t, cond), a function of the seed and the step."""
  step_key = jax.random.fold_in(train_key, step)  # resuming needs no saved RNG
  k_task, k_drop, k_loss = jax.random.split(step_key, 3)
  x0 = space.seen(batch["video"])
  given, _ = config.tasks.draw(k_task, x0.shape[:4], config.model.patch[0])
  null = guidance.drop(k_drop, x0.shape[0], config.cond_drop, config.model.conditions)
  noise, t = config.diffusion.draw(k_loss, x0)
  return x0, noise, t, {**batch["cond"], "given": given, "null": null}


def make_update(config: Config, network: Any, optimizer: optax.GradientTransformation, train_key: jax.Array) -> Any:
  """`state, metrics = update(state, batch)`: one training step, a function of the state, the batch and the seed."""

  @jax.value_and_grad
  def whole(params: Any, batch: tuple) -> jax.Array:
    return config.diffusion.losses(partial(network.learn, params), *batch).mean()

  def gradients(params: Any, batch: tuple) -> tuple[jax.Array, Any]:
    """Loss and gradients, a micro-batch at a time: every `micro_batches`-th row, so that all devices have some."""
    if (count := config.micro_batches) == 1:
      return whole(params, batch)
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    add = lambda total, part: (jax.tree.map(jnp.add, total, whole(params, part)), None)
    total, _ = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), parts)
    return jax.tree.map(lambda x: x / count, total)

  def update(state: State, batch: dict) -> tuple[State, dict]:
    loss, grads = gradients(state.params, inputs(config, train_key, state.step, batch))
    updates, opt = optimizer.update(grads, state.opt, state.params)
    if config.freeze:
      updates = sharding.without(updates, config.freeze)
    rate = config.optimizer.schedule(state.step)
    params = jax.tree.map(lambda param, change: param + rate * change, state.params, updates)
    decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)

    averaged = tuple(
      averages.update(average, params, length, state.step + 1)
      for average, length in zip(state.averages, config.averages)
    )

    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(params))
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    new, old = (params, ema, opt, averaged), (state.params, state.ema, state.opt, state.averages)
    params, ema, opt, averaged = keep(new, old)
    # Not before `finite` is known, which needs the gradients' collectives: on CPUs XLA does not wait for one collective
    # before it starts another that does not need it, and processes that do them in different order hang, or abort.
    stop = (batch["stop"] + jnp.where(finite, 0, SIGNALS)).max() % SIGNALS
    metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "finite": finite, "stop": stop}
    return State(params, ema, opt, state.step + 1, averaged), metrics

  return update


def compiled(data: Any, update: Any, show: Callable[[dict], dict], state: State) -> Any:
  """`update`, compiled now for each shape of batches, if there are several: none of them is waited for in mid-run.

  show: this process's rows of a batch to what `update` takes.
  """
  if not hasattr(data, "firsts"):
    return update
  made, (own, count) = {}, sharding.blocks(jax.sharding.get_mesh())
  for step in data.firsts():
    batch = data.batch(step)
    seen = show({name: rows[: len(rows) // count * len(own)] for name, rows in batch.items()})
    if seen["video"].shape not in made:
      made[seen["video"].shape] = update.lower(state, seen).compile()
  return lambda state, seen: made[seen["video"].shape](state, seen)


def loop(
  config: Config,
  network: Any,
  show: Callable[[dict], dict],
  state: State,
  update: Any,
  log: writer.Writer,
  checkpoints: Checkpointer,
  stop: "Stop",
  watchdog: Watchdog,
  workdir: str,
  between: space.Space,
  told: conditions.Conditions,
) -> State:
  """From `state` to `config.steps`: read, update, save, evaluate; see `train` for how it ends early."""

  def evaluate_due(step: int) -> None:
    """What `every` asks for at `step`, if it is not there. All is saved: a signal ends it, and resuming makes it."""
    columns = written(workdir, step)
    due = {name: each for name, each in config.evals.items() if each.every and step % each.every == 0}
    due = {name: each for name, each in due.items() if not any(column.startswith(f"{name}/") for column in columns)}
    if due and 0 < step < config.steps:
      try:
        with stop.at_once(), watchdog.patient(), log.spending("eval"):
          log.write({"step": step, **flat(evaluate(config, network, state.ema, due, between, told))})
      except SystemExit:
        farewell(step, stop.signal)
        raise

  def farewell(step: int, number: int) -> None:
    log.say(f"stopped by {signal.Signals(number).name} at step {step}: everything is saved, run again to go on")

  start = int(state.step)
  evaluate_due(start)
  batches = config.data.batches(start, *sharding.blocks(jax.sharding.get_mesh()))
  first, last = map(int, config.profile.split(":")) if config.profile else (-1, -1)
  tracing, pending, judge = False, None, Judge(config, log, workdir, start)
  for done in range(start + 1, config.steps + 1):
    if first < done <= last and not tracing:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # it hooks all threads, tf.data's too, and crashed once
      jax.profiler.start_trace(f"{workdir}/profile", profiler_options=options)
      tracing = True
    with log.spending("data"):
      seen = show(next(batches))
    state, metrics = update(state, seen)
    stopped = judge.settle(pending)  # of the step before, while the device works on this one
    pending = (done, metrics)
    if tracing and (done in (last, config.steps) or stopped):
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      tracing = False
      log.say(f"trace of steps {config.profile} in {workdir}/profile: open it with TensorBoard or xprof")
    due = any(each.every and done % each.every == 0 for each in config.evals.values())
    if due or done % config.save_every == 0 or done == config.steps or stopped:
      late, pending = judge.settle(pending), None  # all rows up to a checkpoint are written before it is
      stopped = stopped or late
      with log.spending("save"), watchdog.patient():
        checkpoints.save(state, log.ledger.summary(), wait=bool(stopped))
    log.bar.update()
    watchdog.step()
    if stopped:
      farewell(done, stopped)
      stop.leave(stopped)
    if due:
      evaluate_due(done)
  return state


def first_state(config: Config, new: Any) -> State:
  """The state that `new` makes, with what `init_from` has of it."""
  state = new()
  if not config.init_from:
    return state
  params, report = checkpoint.init_from(state.params, config.init_from)
  if distributed.first():
    print(report, file=sys.stderr)
  return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


def go_back(step: int, every: int, checkpoints: Checkpointer, begin: Any, like: State, log: writer.Writer) -> State:
  """The newest save at a multiple of `every`, as the state after `step`: the steps between are left out.

  A run that is killed before this is saved comes to the same step again, and goes back again; saves that a signal made
  are passed over while there is another, so that a run that had one goes back as far as one that had none.
  """
  with contextlib.suppress(RuntimeError):
    jax.profiler.stop_trace()  # if there is one
  log.mark(step)
  checkpoints.manager.wait_until_finished()
  saves = sorted(checkpoints.manager.all_steps())[-checkpoints.keep :]  # not an older one, that was the best
  regular = [saved for saved in saves if saved % every == 0] or saves
  log.ledger.again(max(regular, default=0))
  with log.spending("save"):
    state = checkpoints.restore(like, max(regular)) if regular else begin()
    log.say(f"back to what was saved at step {int(state.step)}, and on after {step}: the steps between are left out")
    state = state._replace(step=jax.device_put(jnp.int32(step), like.step.sharding))
    checkpoints.save(state, log.ledger.summary())
    distributed.barrier(f"back from {step}")  # all rows are written, and all processes judge by them
  return state


class Stop(Signals):
  """SIGTERM and SIGINT: they end the program where it is, with its exit code, but for `wait`, where the loop looks.

  Where a run has several processes, each step carries their flags, so that all of them see at the same step that one
  of them got a signal.
  """

  def __init__(self):
    self.signal: int = 0
    self.waits = False

  def catch(self, number: int, frame: Any) -> None:
    again = self.signal == number == signal.SIGINT  # somebody at a terminal will not wait for the step
    self.signal = number
    if again or not self.waits:
      self.leave(number)

  @contextlib.contextmanager
  def wait(self, waits: bool = True) -> Iterator[None]:
    """Inside, a signal waits for the loop to look at it. One that came is obeyed at the end."""
    before, self.waits = self.waits, waits
    if self.signal and not waits:
      self.leave(self.signal)
    try:
      yield
    finally:
      self.waits = before
    if self.signal and not before:
      self.leave(self.signal)

  def at_once(self) -> contextlib.AbstractContextManager:
    """Inside `wait`: what is done here may be cut off."""
    return self.wait(False)

  def leave(self, number: int) -> None:
    sys.exit(RESTART if number == signal.SIGTERM else INTERRUPTED)


if __name__ == "__main__":
  from vdt import cli

  cli.main(["train", *sys.argv[1:]])
