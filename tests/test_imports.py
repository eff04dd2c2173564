"""The arrows of the design: who may import whom."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = {"train", "sample", "evaluate", "report", "plan", "sweep", "launch", "compare", "arms"}
PROGRAMS |= {"export", "importer", "weights", "parity", "stablehlo", "encoder", "reconstruction", "autoencoder"}
PROGRAMS |= {"encode", "show", "space", "conditions", "request", "text_encoder", "text_layouts", "captions"}
BASE = {
  "host",
  "topology",
  "gke",
  "network",
  "roofline",
  "hlo",
  "compiled",
  "distributed",
  "config",
  "checkpoint",
  "sharding",
  "writer",
  "ledger",
  "workdirs",
  "files",
  "video",
  "watchdog",
  "judge",
  "averages",
  "attempts",
  "paired",
  "halving",
  "slurm",
  "command_line",
  "torch_file",
}
ALLOWED = {  # part of the house: parts it may import
  **{name: BASE | PROGRAMS | {"models", "diffusion", "evals"} for name in PROGRAMS},
  **{name: BASE for name in BASE},
  "sharding": BASE | {"models"},  # whose table it is
  "evals": {"diffusion", "evals", "files"},
  "diffusion": {"diffusion"},
  "models": {"models"},
}


def imported(path):
  """Modules that a file imports when it is loaded, or inside a function; not under `if __name__ == "__main__"`."""
  tree = ast.parse(path.read_text())
  tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: write imports in full"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_arrows():
  wrong = []
  for path in sorted((ROOT / "vdt").rglob("*.py")):
    part = path.relative_to(ROOT / "vdt").parts[0].removesuffix(".py")
    if part in ("__init__", "cli"):
      continue
    for module in imported(path):
      root, *rest = module.split(".")
      if root in ("data_pipelines", "experiments") or (root == "vdt" and rest and rest[0] not in ALLOWED[part]):
        wrong.append(f"{path.relative_to(ROOT)} imports {module}")
      if (
        part in PROGRAMS | {"sharding"}
        and module.startswith("vdt.models.")
        and (ROOT / f"{'/'.join(module.split('.')[:3])}.py").exists()
      ):
        wrong.append(f"{path.relative_to(ROOT)} imports {module}: others see the root of vdt/models alone")
      if root == "flax" and part != "models":
        wrong.append(f"{path.relative_to(ROOT)} imports flax: it stays in vdt/models")
  for path in sorted((ROOT / "data_pipelines").rglob("*.py")):
    wrong += [
      f"{path.name} imports {m}" for m in imported(path) if m.split(".")[0] in ("jax", "vdt", "flax", "experiments")
    ]
  assert not wrong, "\n".join(wrong)


def tree():
  """The paths in the README's tree: a folder's line ends with /, its children are two spaces deeper."""
  block = (ROOT / "README.md").read_text().partition("## The tree")[2].split("```")[1]
  folders = []
  for line in block.strip().splitlines():
    name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
    folders = folders[:depth]
    if name.endswith("/"):
      folders.append(name.rstrip("/"))
    else:
      yield "/".join([*folders, name])


def test_the_readme_tree_is_the_tree():
  parts = ("vdt", "data_pipelines", "experiments")
  files = {str(path.relative_to(ROOT)) for part in parts for path in (ROOT / part).rglob("*.py")}
  named = {path for path in tree() if path.endswith(".py") and path.startswith(parts)}
  assert named == {path for path in files if not path.endswith("__init__.py")}
