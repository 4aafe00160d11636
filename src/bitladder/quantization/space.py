"""Whether the disks hold the checkpoints that are to be made: told once, before the first of them is."""

from collections.abc import Collection
from pathlib import Path

from bitladder.checkpoint.expected import expected_bytes
from bitladder.checkpoint.manifest import MANIFEST_NAME
from bitladder.files import CACHE_ELSEWHERE, existing_part, require_disk_space
from bitladder.home import cache_directory
from bitladder.models.source import ResolvedModel
from bitladder.quantization.quantize import cache_entry, expected_recipe_hash
from bitladder.records import LoadPolicy


def require_space(model: ResolvedModel, rungs: Collection[str], folder: Path, policy: LoadPolicy) -> None:
    """Raise UserError where the cache's disk, or that of ``folder``, has too little space for all these rungs.

    What the cache has takes no more there, and none in a ``folder`` on the same disk: it is linked.
    """
    entries = {rung: cache_entry(expected_recipe_hash(model.source, rung)) for rung in rungs}
    new = [rung for rung, entry in entries.items() if not (entry / MANIFEST_NAME).is_file()]
    cache = cache_directory()
    copied = list(rungs) if existing_part(cache).stat().st_dev != existing_part(folder).stat().st_dev else []
    sizes = {rung: expected_bytes(model.directory, rung, policy) for rung in {*new, *copied}}
    for place, written, instead in (
        (cache, new, CACHE_ELSEWHERE),
        (folder, copied, "name an --out on another disk"),
    ):
        what = f" for {', '.join(written)}"
        require_disk_space(place, sum(sizes[rung] for rung in written), instead, what)
