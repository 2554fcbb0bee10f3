"""Where the modules of version 0.1.0 went, so that ``from rsnn_zoo.publish import update_card`` goes on working."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "adversarial": "evaluation.examples",
    "attacks.frozen": "models.frozen",
    "attacks.protocols": "evaluation.protocols",
    "attacks.surrogates": "attacks.foreign_spikes",
    "attacks.transfer": "evaluation.transfer",
    "augment": "data.augment",
    "card": "report.card",
    "catalog": "hub.catalog",
    "checkpoints": "training.checkpoints",
    "config": "spec.config",
    "constraints": "training.constraints",
    "curves": "report.plots",
    "datasets": "spec.datasets",
    "distributed": "models.distributed",
    "energy": "evaluation.energy",
    "engine": "evaluation.engine",
    "evidence": "report.evidence",
    "files": "_utils.files",
    "flags": "evaluation.flags",
    "kernels": "neurons.kernels",
    "layers": "models.layers",
    "ledger": "evaluation.ledger",
    "memory": "neurons.attack_state",
    "modes": "neurons.modes",
    "names": "spec.names",
    "objectives": "training.objectives",
    "outputs": "report.outputs",
    "plots": "report.plots",
    "provenance": "_utils.provenance",
    "publish": "hub.publish",
    "recipe": "training.recipe",
    "registry": "hub.registry",
    "research": "models.research",
    "schema": "spec.schema",
    "surgery": "models.surgery",
    "train": "training.train",
    "training_run": "training.run",
    "updates": "training.updates",
    "verification": "verify_entry",
    "weights": "hub.weights",
}


class _Moved(MetaPathFinder, Loader):
    """Gives the new module itself, not a copy, for its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "rsnn_zoo" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"rsnn_zoo.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run, but the import system has just replaced the module's own spec."""
        module.__spec__ = module.__spec__.loader_state


def redirect() -> None:
    """Teach Python's import system the old names; importing one gives a :class:`DeprecationWarning`."""
    sys.meta_path.append(_Moved())
