"""rsnn_zoo: the model zoo of adversarially robust spiking neural networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rsnn_zoo._timm import register_with_timm

if TYPE_CHECKING:
    from rsnn_zoo.catalog import is_model as is_model
    from rsnn_zoo.catalog import list_models as list_models
    from rsnn_zoo.conversion import calibrate as calibrate
    from rsnn_zoo.conversion import convert as convert
    from rsnn_zoo.conversion import relearn_statistics as relearn_statistics
    from rsnn_zoo.data import load_dataset as load_dataset
    from rsnn_zoo.evaluation import evaluate as evaluate
    from rsnn_zoo.modes import (
        ASSG as ASSG,
    )
    from rsnn_zoo.modes import (
        HART as HART,
    )
    from rsnn_zoo.modes import (
        PDSG as PDSG,
    )
    from rsnn_zoo.modes import (
        RGA as RGA,
    )
    from rsnn_zoo.modes import (
        parse_mode as parse_mode,
    )
    from rsnn_zoo.neurons import (
        Rate as Rate,
    )
    from rsnn_zoo.neurons import (
        Relu as Relu,
    )
    from rsnn_zoo.neurons import (
        SpikingNeuron as SpikingNeuron,
    )
    from rsnn_zoo.neurons import (
        Surrogate as Surrogate,
    )
    from rsnn_zoo.neurons import (
        backward_mode as backward_mode,
    )
    from rsnn_zoo.neurons import (
        model_under as model_under,
    )
    from rsnn_zoo.objectives import register_objective as register_objective
    from rsnn_zoo.publish import push_to_hub as push_to_hub
    from rsnn_zoo.publish import save_pretrained as save_pretrained
    from rsnn_zoo.registry import create_model as create_model
    from rsnn_zoo.registry import register_architecture as register_architecture
    from rsnn_zoo.research import from_research_checkpoint as from_research_checkpoint

__version__ = "0.1.0"

# Public name -> module, loaded at first use, so that importing the package costs next to nothing.
_PUBLIC = {
    "Rate": "neurons",
    "Relu": "neurons",
    "SpikingNeuron": "neurons",
    "Surrogate": "neurons",
    "backward_mode": "neurons",
    "ASSG": "modes",
    "HART": "modes",
    "PDSG": "modes",
    "RGA": "modes",
    "calibrate": "conversion",
    "convert": "conversion",
    "create_model": "registry",
    "evaluate": "evaluation",
    "from_research_checkpoint": "research",
    "is_model": "catalog",
    "list_models": "catalog",
    "load_dataset": "data",
    "model_under": "neurons",
    "parse_mode": "modes",
    "push_to_hub": "publish",
    "register_architecture": "registry",
    "register_objective": "objectives",
    "relearn_statistics": "conversion",
    "save_pretrained": "publish",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rsnn_zoo' has no attribute {name!r}")
    value = getattr(import_module(f"rsnn_zoo.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_timm()
