"""The package as a whole: cheap to import, complete, and flowing in one direction."""

import ast
import importlib
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import rsnn_zoo

PACKAGE = Path(rsnn_zoo.__file__).parent
TREES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- importing ------------------------------------------------------------------------------------------------------


def test_importing_is_cheap_and_touches_no_network():
    heavy = "torch torchvision timm numpy scipy sklearn matplotlib PIL huggingface_hub safetensors torchattacks tqdm"
    seconds, others = run(f"""
import sys, time
events = set()
sys.addaudithook(lambda event, args: events.add(event.partition(".")[0]))
start = time.perf_counter()
import rsnn_zoo
middle = time.perf_counter()
assert not events & {{"socket", "urllib", "http", "subprocess"}}, events
assert not set({heavy!r}.split()) & set(sys.modules), sorted(sys.modules)
import torch, timm
print(middle - start, time.perf_counter() - middle)
""").split()
    assert float(seconds) < 0.2 * float(others)


def test_names_and_configurations_are_read_without_torch():
    run("""
import sys
import rsnn_zoo.spec.config, rsnn_zoo.spec.datasets, rsnn_zoo._utils.files, rsnn_zoo.spec.names
assert "torch" not in sys.modules and "numpy" not in sys.modules
""")


# --- the public names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rsnn_zoo.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(rsnn_zoo, name)
    assert name in dir(rsnn_zoo)
    if name != "__version__":
        assert value.__name__ == name and value.__module__.startswith("rsnn_zoo.")
        assert len(value.__doc__) > 40


def test_public_names_stay_what_they_are_once_everything_is_imported():
    for name in TREES:
        import_module(name)
    assert not any(isinstance(getattr(rsnn_zoo, name), ModuleType) for name in rsnn_zoo.__all__)


def test_type_checkers_see_the_same_names():
    (block,) = (node for node in TREES["rsnn_zoo"].body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"rsnn_zoo.{module}"
        for node in block.body
        for alias in node.names
        for module in [node.module[9:]]
    }
    assert {name: f"rsnn_zoo.{module}" for name, module in rsnn_zoo._PUBLIC.items()} == seen
    assert (PACKAGE / "py.typed").is_file()


def test_modules_are_found_under_the_names_that_they_had():
    """Of version 0.1.0: papers and scripts go on importing these."""
    run("""
import importlib, warnings
warnings.simplefilter("error")
import rsnn_zoo
from rsnn_zoo._moved import MOVED
from rsnn_zoo.hub import entries_folder
from rsnn_zoo.report import wilson
from rsnn_zoo.neurons import SpikingNeuron
from rsnn_zoo.cli import main
from rsnn_zoo.evaluation import evaluate
for old, new in MOVED.items():
    module = importlib.import_module(f"rsnn_zoo.{new}")
    spec = module.__spec__
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert importlib.import_module(f"rsnn_zoo.{old}") is module
    assert module.__spec__ is spec and module.__name__ == f"rsnn_zoo.{new}"
    assert f"rsnn_zoo.{old} is now rsnn_zoo.{new}" in str(said[0].message), old
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from rsnn_zoo import files, publish
    import rsnn_zoo.verification
from rsnn_zoo.hub.asking import HubError as same
from rsnn_zoo.hub.resolve import HubError, NotPublishedError, PATIENCE
assert same is HubError and PATIENCE > 0
assert files.__name__ == "rsnn_zoo._utils.files"
""")


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("evaluation.examples", "verify", "verify_examples"),
        ("evaluation.examples", "TOLERANCE", "EPS_TOLERANCE"),
        ("attacks.gradients", "PRECISIONS", "COMPUTE_DTYPES"),
        ("spec.names", "register_objective", "add_objective"),
    ],
)
def test_functions_are_found_under_the_names_that_they_had(module, old, new):
    home = import_module(f"rsnn_zoo.{module}")
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(home, old) is getattr(home, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        home.nothing  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rsnn_zoo' has no attribute 'creat_model'"):
        rsnn_zoo.creat_model  # noqa: B018


# --- one direction of flow ------------------------------------------------------------------------------------------


@cache
def imports_of(module, lazy=True):
    """Every module of ours, and every other package, that a module imports; with ``lazy`` inside functions too."""
    tree = TREES[module]
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            below = {f"{node.module}.{alias.name}" for alias in node.names} & TREES.keys()
            found |= below or {node.module}
    return frozenset(name if name in TREES else name.partition(".")[0] for name in found)


def reached_from(module, lazy=True):
    """All that a module imports, and what that imports, and so on."""
    found, todo = set(), [module]
    while todo:
        new = imports_of(todo.pop(), lazy) - found
        found |= new
        todo += new & TREES.keys()
    return found


def test_no_module_imports_itself_in_a_circle():
    tuple(TopologicalSorter({name: imports_of(name) & TREES.keys() for name in TREES}).static_order())


# The folders, left to right: a module imports only from its own folder and from those on its left.
ORDER = [
    "_utils",
    "spec",
    "neurons",
    "data",
    "models",
    "conversion",
    "report",
    "hub",
    "attacks",
    "evaluation",
    "training",
    "exports",
    "evaluate_entry",
    "verify_entry",
    "cli",
]
ABOVE = {"rsnn_zoo", "rsnn_zoo._moved", "rsnn_zoo._timm"}  # the public face, which names what stands below it


def place(module):
    return ORDER.index(module.split(".")[1])


def test_every_module_stands_in_a_folder_of_the_order():
    assert {module.split(".")[1] for module in TREES.keys() - ABOVE} == set(ORDER)


@pytest.mark.parametrize("module", sorted(TREES.keys() - ABOVE))
def test_a_module_imports_only_from_its_left(module):
    ours = imports_of(module) & (TREES.keys() - ABOVE)
    assert not {name for name in ours if place(name) > place(module)}


MODELS = {name for name in TREES if name.split(".")[1:2] in (["models"], ["conversion"])}


@pytest.mark.parametrize("module", ["hub.resolve", "hub.catalog", "hub.weights", "report.card", "data.images"])
def test_configuration_and_hub_import_no_model(module):
    assert len(MODELS) > 5 and not reached_from(f"rsnn_zoo.{module}") & MODELS


HEAVY = {"torch", "timm", "numpy", "torchvision"}


@pytest.mark.parametrize(
    "module",
    ["_utils.files", "spec.names", "spec.datasets", "spec.schema", "spec.config", "report.evidence", "report.card"],
)
def test_names_and_configurations_never_need_torch(module):
    assert not reached_from(f"rsnn_zoo.{module}") & HEAVY


COMMANDS = [f"cli.{name}" for name in ("commands", *importlib.import_module("rsnn_zoo.cli.commands").COMMANDS.values())]


@pytest.mark.parametrize("module", ["hub.resolve", "hub.catalog", *COMMANDS])
def test_entries_are_found_and_listed_before_torch_is_needed(module):
    assert not reached_from(f"rsnn_zoo.{module}", lazy=False) & HEAVY


@pytest.mark.parametrize("module", ["hub.registry", "hub.shards"])
def test_a_packaged_entry_loads_without_the_client_of_the_hub(module):
    assert "huggingface_hub" not in reached_from(f"rsnn_zoo.{module}", lazy=False)


@pytest.mark.parametrize("module", [name for name in TREES if name != "rsnn_zoo"])
def test_optional_packages_are_imported_where_they_are_used(module):
    """Neither timm nor matplotlib nor torchattacks is needed to load and run a network."""
    assert not imports_of(module, lazy=False) & {
        "timm",
        "matplotlib",
        "torchattacks",
        "torchvision",
        "sklearn",
        "scipy",
        "nir",
        "nirtorch",
        "onnx",
        "onnxruntime",
    }


@pytest.mark.parametrize("module", sorted(TREES.keys() - {"rsnn_zoo.cli._console"}))
def test_the_library_does_not_print(module):
    calls = (node.func for node in ast.walk(TREES[module]) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id in ("print", "eval", "exec")]


# --- functions and modules that one reads at once -------------------------------------------------------------------

LINES, STATEMENT_LINES = 350, 60


def lines_of(function):
    """Lines of the whole, without the docstring."""
    first = function.body[0]
    told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if told else 0)


def test_modules_and_functions_are_short():
    long = set()
    for name, tree in TREES.items():
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        long |= {f"{name}.{one.name}" for one in functions if lines_of(one) > STATEMENT_LINES}
        if tree.body and tree.body[-1].end_lineno > LINES:
            long.add(name)
    assert not long, "split these"


COMMAND = {"EXAMPLE", "HELP", "add_arguments", "run"}  # what every module of a command has
IDIOMS = {"_REMEDY", "_T", "_TEMPLATE", "_log"}  # of the module that they stand in


def defined_in(body):
    """Names that the statements of a module define."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from defined_in(node.body)


def test_a_name_means_one_thing_throughout_the_package():
    homes = {}
    for module, tree in TREES.items():
        for name in set(defined_in(tree.body)):
            homes.setdefault(name, []).append(module)
    assert len(homes) > 1000
    several = {name: modules for name, modules in homes.items() if len(modules) > 1 and not name.startswith("__")}
    one_each = {name: [one for one in modules if ".cli." not in one] for name, modules in several.items()}
    assert not {
        name: several[name]
        for name, outside in one_each.items()
        if name not in IDIOMS and (name not in COMMAND or len(outside) > 1)
    }, "say what each is, or keep the one fact in one place"


FRAGMENTS = {"Of", "Those", "As", "In", "By", "From", "This", "That", "All", "So", "For", "On", "With", "Its", "It"}


@pytest.mark.parametrize("folder", ["rsnn_zoo", "scripts"])
def test_docstrings_begin_with_a_verb_or_a_noun_phrase(folder):
    """What stands in an API reference by itself has to be understood by itself."""
    begun = {}
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (said := ast.get_docstring(node)):
                begun[path.name, getattr(node, "name", "")] = said.split()[0]
    assert len(begun) > 10 and not {where: word for where, word in begun.items() if word in FRAGMENTS}


# --- scripts --------------------------------------------------------------------------------------------------------

SCRIPTS = sorted((PACKAGE.parent / "scripts").glob("*.py"))
COMMON = 10


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_imports_a_script(path):
    """A module that several share has an underscore before its name, and is no script."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {script.stem for script in SCRIPTS if not script.stem.startswith("_")}


def runs_of_lines(path):
    """Each ten lines of code that follow one another, imports and lone brackets left out."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    code = [line for line in lines if len(line) > 3 and not line.startswith(("import ", "from "))]
    return {tuple(code[i : i + COMMON]) for i in range(len(code) - COMMON + 1)}


def test_no_ten_lines_stand_both_in_scripts_and_in_the_package():
    package = {lines for path in PACKAGE.rglob("*.py") for lines in runs_of_lines(path)}
    assert len(package) > 5000
    for path in SCRIPTS:
        assert not runs_of_lines(path) & package, path
