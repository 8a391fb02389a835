"""The published networks as specs, one YAML file each, which names its source."""

from searchspace.references.published import reference, reference_names

__all__ = ["reference", "reference_names"]
