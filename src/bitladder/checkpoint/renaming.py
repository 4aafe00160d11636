"""What a model calls the tensors that a checkpoint stores: transformers renames some, and merges some, while it loads.

A mixture's experts are stored one by one and loaded as one parameter, and a model that was part of a larger one keeps
its names in the file.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loaded_names(model: "PreTrainedModel", stored: Iterable[str]) -> dict[str, str]:
    """The name of each stored tensor in the model; several may have one there. What the model lacks keeps its name.

    The steps are those of transformers' own loading (``convert_and_load_state_dict_in_model``).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix, known = model.base_model_prefix, model.state_dict()
    names = {}
    for name in stored:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, _ = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=known)
        names[name] = renamed
    return names
