"""Successive halving of a sweep's jobs (asynchronous, arXiv:1810.05934): at some steps, those that are not among the
best so far are stopped. Optuna decides, and keeps what it knows in a file beside the jobs."""

from pathlib import Path
from typing import Any

from vdt.attempts import DONE, OVER, STOPPED, Job
from vdt.writer import read_rows

JOURNAL = "halving.journal"


def parse(text: str) -> dict[str, Any]:
  """METRIC:STEPS:FACTOR, say "loss:200:3": at 200 steps, 600, 1800 and so on the best third by `loss` goes on."""
  metric, *numbers = text.rsplit(":", 2)
  if len(numbers) != 2 or not all(each.isdigit() for each in numbers) or int(numbers[0]) < 1 or int(numbers[1]) < 2:
    raise ValueError(f"--halving {text}: write METRIC:STEPS:FACTOR, say loss:200:3; steps at least 1, the factor 2")
  study(Path("."), {"metric": metric, "steps": 1, "factor": 2}, stored=False)
  return {"metric": metric, "steps": int(numbers[0]), "factor": int(numbers[1])}


def study(folder: Path, options: dict[str, Any], stored: bool = True) -> Any:
  """What is known of the jobs in `folder`. ValueError if Optuna is not installed."""
  try:
    import optuna
  except ImportError:
    raise ValueError("halving needs Optuna: pip install 'vdt[cloud]'") from None
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  journal = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)) if stored else None
  return optuna.create_study(
    storage=optuna.storages.JournalStorage(journal) if stored else None,
    study_name="{metric}:{steps}:{factor}".format(**options),
    pruner=optuna.pruners.SuccessiveHalvingPruner(options["steps"], options["factor"]),
    load_if_exists=True,
  )


class Halving:
  """A job as one trial among those beside it; the less of the metric the better."""

  def __init__(self, folder: Path, job: Job):
    import optuna

    self.folder, self.metric, self.states = folder, job.halving["metric"], optuna.trial.TrialState
    self.study = study(folder.parent, job.halving)
    known = [trial for trial in self.study.trials if trial.user_attrs.get("job") == job.identity]
    known = [trial for trial in known if not trial.state.is_finished()]  # what failed, say, begins anew
    self.trial = optuna.trial.Trial(self.study, known[-1]._trial_id) if known else self.study.ask()
    self.trial.set_user_attr("job", job.identity)
    self.reported = max(known[-1].intermediate_values, default=0) if known else 0

  def hopeless(self) -> bool:
    """Whether the job is to be stopped, by what it has logged since the last call."""
    for row in read_rows(str(self.folder)):
      if self.metric in row and row["step"] > self.reported:
        self.reported = row["step"]
        self.trial.report(row[self.metric], self.reported)
        if self.trial.should_prune():
          return True
    return False

  def end(self, state: str) -> None:
    """Writes down how the job ended, if it did."""
    if state in OVER and not self.trial.study.trials[self.trial.number].state.is_finished():
      values = self.study.trials[self.trial.number].intermediate_values
      if state == DONE and values:
        self.study.tell(self.trial, values[max(values)])
      else:
        self.study.tell(self.trial, state=self.states.PRUNED if state == STOPPED else self.states.FAIL)
