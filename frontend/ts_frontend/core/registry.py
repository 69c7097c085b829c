"""`ModelRegistry`: every registered version, and which one answers for a bare name."""

from __future__ import annotations

from collections.abc import Iterator

from ts_frontend.core.errors import (
    InvalidModelVersion,
    ModelConflict,
    ModelNotFound,
    ModelVersionNotFound,
)
from ts_frontend.core.model import Model


class ModelRegistry:
    """name -> versions, with a default among them as long as there are any.

    The first version registered under a name is its default until `set_default` says otherwise.
    """

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Model]] = {}
        self._defaults: dict[str, Model] = {}

    def add(self, model: Model) -> None:
        """Raises ModelConflict if this name and version are registered."""
        name, version = model.id
        versions = self._versions.setdefault(name, {})
        if version in versions:
            raise ModelConflict.of(name, version)
        versions[version] = model
        self._defaults.setdefault(name, model)

    def resolve(self, name: str, version: str | None = None) -> Model:
        """The version asked for, or the default one. Raises ModelNotFound, ModelVersionNotFound."""
        if version is None:
            model = self._defaults.get(name)
            if model is None:
                raise ModelNotFound.named(name)
            return model
        versions = self._versions.get(name)
        if versions is None:
            raise ModelNotFound.named(name)
        model = versions.get(version)
        if model is None:
            raise ModelVersionNotFound.of(name, version)
        return model

    def check_removable(self, name: str, version: str | None = None) -> Model:
        """The model that `remove` would take.

        Raises InvalidModelVersion for a default with siblings.
        """
        model = self.resolve(name, version)
        if self._defaults[name] is model and len(self._versions[name]) > 1:
            raise InvalidModelVersion(f"Cannot remove default version for model {name}")
        return model

    def remove(self, model: Model) -> Model | None:
        """A default that goes before its siblings leaves its place to the first of them: this is
        the one, if there is one.
        """
        name, version = model.id
        versions = self._versions[name]
        del versions[version]
        if not versions:
            del self._versions[name]
            del self._defaults[name]
        elif self._defaults[name] is model:
            self._defaults[name] = heir = next(iter(versions.values()))
            return heir
        return None

    def set_default(self, name: str, version: str) -> None:
        versions = self._versions.get(name)
        if versions is None:
            raise ModelNotFound.named(name)
        if version not in versions:
            # Another wording than resolve's: clients of this verb have always seen this one.
            raise ModelVersionNotFound(f"Model version {version} does not exist for model {name}")
        self._defaults[name] = versions[version]

    def is_default(self, model: Model) -> bool:
        return self._defaults.get(model.id.name) is model

    def defaults(self) -> list[Model]:
        """The default versions, sorted by name."""
        return [self._defaults[name] for name in sorted(self._defaults)]

    def versions(self, name: str) -> list[Model]:
        """Every version of `name` in the order of registration. Raises ModelNotFound."""
        versions = self._versions.get(name)
        if versions is None:
            raise ModelNotFound.named(name)
        return list(versions.values())

    def __iter__(self) -> Iterator[Model]:
        for versions in list(self._versions.values()):
            yield from list(versions.values())

    def __len__(self) -> int:
        return sum(map(len, self._versions.values()))
