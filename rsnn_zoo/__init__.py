"""rsnn_zoo: the model zoo of adversarially robust spiking neural networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rsnn_zoo._moved import redirect
from rsnn_zoo._timm import register_with_timm

if TYPE_CHECKING:
    from rsnn_zoo.conversion.conversion import calibrate as calibrate
    from rsnn_zoo.conversion.conversion import convert as convert
    from rsnn_zoo.conversion.conversion import relearn_statistics as relearn_statistics
    from rsnn_zoo.data.images import load_dataset as load_dataset
    from rsnn_zoo.evaluation.evaluation import evaluate as evaluate
    from rsnn_zoo.exports.export import export as export
    from rsnn_zoo.exports.simulators import load_nir as load_nir
    from rsnn_zoo.hub.catalog import is_model as is_model
    from rsnn_zoo.hub.catalog import list_models as list_models
    from rsnn_zoo.hub.publish import push_to_hub as push_to_hub
    from rsnn_zoo.hub.publish import save_pretrained as save_pretrained
    from rsnn_zoo.hub.registry import create_model as create_model
    from rsnn_zoo.hub.registry import register_architecture as register_architecture
    from rsnn_zoo.models.research import from_research_checkpoint as from_research_checkpoint
    from rsnn_zoo.neurons.integrate_fire import (
        Rate as Rate,
    )
    from rsnn_zoo.neurons.integrate_fire import (
        Relu as Relu,
    )
    from rsnn_zoo.neurons.integrate_fire import (
        SpikingNeuron as SpikingNeuron,
    )
    from rsnn_zoo.neurons.integrate_fire import (
        Surrogate as Surrogate,
    )
    from rsnn_zoo.neurons.integrate_fire import (
        backward_mode as backward_mode,
    )
    from rsnn_zoo.neurons.integrate_fire import (
        model_under as model_under,
    )
    from rsnn_zoo.neurons.modes import (
        ASSG as ASSG,
    )
    from rsnn_zoo.neurons.modes import (
        HART as HART,
    )
    from rsnn_zoo.neurons.modes import (
        PDSG as PDSG,
    )
    from rsnn_zoo.neurons.modes import (
        RGA as RGA,
    )
    from rsnn_zoo.neurons.modes import (
        parse_mode as parse_mode,
    )
    from rsnn_zoo.training.objectives import register_objective as register_objective

__version__ = "0.1.0"

# Public name -> module, loaded at first use, so that importing the package costs next to nothing.
_PUBLIC = {
    "Rate": "neurons.integrate_fire",
    "Relu": "neurons.integrate_fire",
    "SpikingNeuron": "neurons.integrate_fire",
    "Surrogate": "neurons.integrate_fire",
    "backward_mode": "neurons.integrate_fire",
    "ASSG": "neurons.modes",
    "HART": "neurons.modes",
    "PDSG": "neurons.modes",
    "RGA": "neurons.modes",
    "calibrate": "conversion.conversion",
    "convert": "conversion.conversion",
    "create_model": "hub.registry",
    "evaluate": "evaluation.evaluation",
    "export": "exports.export",
    "from_research_checkpoint": "models.research",
    "is_model": "hub.catalog",
    "list_models": "hub.catalog",
    "load_dataset": "data.images",
    "load_nir": "exports.simulators",
    "model_under": "neurons.integrate_fire",
    "parse_mode": "neurons.modes",
    "push_to_hub": "hub.publish",
    "register_architecture": "hub.registry",
    "register_objective": "training.objectives",
    "relearn_statistics": "conversion.conversion",
    "save_pretrained": "hub.publish",
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


redirect()
register_with_timm()
