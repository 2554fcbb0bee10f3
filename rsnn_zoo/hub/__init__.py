"""Entries: finding, loading, saving and publishing them."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    resolve="Entry HubError NotPublishedError entries_folder entry_folder published_names",
    catalog="is_model list_models",
    registry="create_model register_architecture",
    publish="push_to_hub save_pretrained update_card",
)
