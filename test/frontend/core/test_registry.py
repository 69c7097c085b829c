"""Names, versions and the default among them: by example, then against a dict."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ts_frontend.core.errors import (
    ErrorKind,
    InvalidModelVersion,
    ModelConflict,
    ModelNotFound,
    ModelVersionNotFound,
)
from ts_frontend.core.model import Model, ModelConfig, ModelId
from ts_frontend.core.registry import ModelRegistry


def new_model(name: str = "m", version: str = "1.0") -> Model:
    return Model(ModelId(name, version), ModelConfig(), path="/models/m", handler="handler.py")


def new_registry(*ids: tuple[str, str]) -> ModelRegistry:
    registry = ModelRegistry()
    for name, version in ids:
        registry.add(new_model(name, version))
    return registry


def test_the_first_version_stays_the_default() -> None:
    registry = new_registry(("m", "2.0"), ("m", "1.0"), ("m", "3.0"))
    assert registry.resolve("m").id == ("m", "2.0")
    assert registry.resolve("m", "3.0").id == ("m", "3.0")
    assert registry.is_default(registry.resolve("m", "2.0"))
    assert not registry.is_default(registry.resolve("m", "3.0"))


def test_a_version_is_registered_once() -> None:
    registry = new_registry(("m", "1.0"))
    with pytest.raises(
        ModelConflict, match=r"^Model version 1\.0 is already registered for model m$"
    ):
        registry.add(new_model())
    assert len(registry) == 1


def test_unknown_names_and_versions() -> None:
    registry = new_registry(("m", "1.0"))
    with pytest.raises(ModelNotFound, match=r"^Model not found: n$"):
        registry.resolve("n")
    with pytest.raises(ModelNotFound):
        registry.resolve("n", "1.0")
    message = r"^Model version: 9 does not exist for model: m$"
    with pytest.raises(ModelVersionNotFound, match=message) as caught:
        registry.resolve("m", "9")
    assert caught.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(ModelNotFound):
        registry.versions("n")


def test_set_default() -> None:
    registry = new_registry(("m", "1.0"), ("m", "2.0"))
    registry.set_default("m", "2.0")
    assert registry.resolve("m").id.version == "2.0"
    with pytest.raises(ModelNotFound):
        registry.set_default("n", "1.0")
    # Not quite the words of resolve.
    with pytest.raises(ModelVersionNotFound, match=r"^Model version 9 does not exist for model m$"):
        registry.set_default("m", "9")
    assert registry.resolve("m").id.version == "2.0"


def test_the_default_goes_last() -> None:
    registry = new_registry(("m", "1.0"), ("m", "2.0"))
    with pytest.raises(InvalidModelVersion, match=r"^Cannot remove default version for model m$"):
        registry.check_removable("m")
    with pytest.raises(InvalidModelVersion):
        registry.check_removable("m", "1.0")
    registry.remove(registry.check_removable("m", "2.0"))
    registry.remove(registry.check_removable("m"))
    with pytest.raises(ModelNotFound):
        registry.resolve("m")


def test_a_default_that_goes_all_the_same_leaves_its_place_to_the_first_of_the_others() -> None:
    """Its workers could not be started, and by then it had siblings."""
    registry = new_registry(("m", "1.0"), ("m", "2.0"), ("m", "3.0"))
    registry.remove(registry.resolve("m"))
    assert registry.resolve("m").id.version == "2.0"
    registry.remove(registry.check_removable("m", "3.0"))
    registry.remove(registry.check_removable("m"))
    assert len(registry) == 0


def test_a_name_that_comes_back_starts_afresh() -> None:
    registry = new_registry(("m", "1.0"))
    registry.remove(registry.resolve("m"))
    registry.add(new_model("m", "2.0"))
    assert registry.resolve("m").id.version == "2.0"


def test_lists() -> None:
    registry = new_registry(("b", "2"), ("a", "1"), ("b", "1"))
    assert [model.id for model in registry.defaults()] == [("a", "1"), ("b", "2")]
    assert [model.id.version for model in registry.versions("b")] == ["2", "1"]
    assert {model.id for model in registry} == {("a", "1"), ("b", "1"), ("b", "2")}


def test_a_registry_may_change_while_it_is_walked() -> None:
    registry = new_registry(("a", "1"), ("b", "1"), ("b", "2"))
    for model in registry:
        registry.remove(model)
    assert len(registry) == 0


def test_a_model_goes_by_name_and_version() -> None:
    model = new_model("resnet", "1.5")
    assert str(model.id) == "resnet_1.5"
    assert repr(model) == "<Model resnet/1.5 REGISTERED waiting=0>"


NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.sampled_from(["1", "2", "3"])


class RegistryAgainstADict(RuleBasedStateMachine):
    """The model: name -> versions in order of registration, and one default per name."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = ModelRegistry()
        self.versions: dict[str, list[str]] = {}
        self.default: dict[str, str] = {}

    @rule(name=NAMES, version=VERSIONS)
    def register(self, name: str, version: str) -> None:
        if version in self.versions.get(name, []):
            with pytest.raises(ModelConflict):
                self.registry.add(new_model(name, version))
            return
        self.registry.add(new_model(name, version))
        self.versions.setdefault(name, []).append(version)
        self.default.setdefault(name, version)

    @rule(name=NAMES, version=st.none() | VERSIONS)
    def remove(self, name: str, version: str | None) -> None:
        known = self.versions.get(name, [])
        wanted = version or self.default.get(name)
        if wanted not in known:
            with pytest.raises((ModelNotFound, ModelVersionNotFound)):
                self.registry.check_removable(name, version)
        elif wanted == self.default[name] and len(known) > 1:
            with pytest.raises(InvalidModelVersion):
                self.registry.check_removable(name, version)
        else:
            self.registry.remove(self.registry.check_removable(name, version))
            known.remove(wanted)
            if not known:
                del self.versions[name], self.default[name]

    @precondition(lambda self: self.versions)
    @rule(name=NAMES, version=VERSIONS)
    def set_default(self, name: str, version: str) -> None:
        if version in self.versions.get(name, []):
            self.registry.set_default(name, version)
            self.default[name] = version
        else:
            with pytest.raises((ModelNotFound, ModelVersionNotFound)):
                self.registry.set_default(name, version)

    @invariant()
    def the_registry_says_the_same(self) -> None:
        registry = self.registry
        assert len(registry) == sum(map(len, self.versions.values())) == len(list(registry))
        assert [m.id for m in registry.defaults()] == sorted(self.default.items())
        for name, versions in self.versions.items():
            assert [model.id.version for model in registry.versions(name)] == versions
            default = registry.resolve(name)
            assert default in registry.versions(name)
            assert registry.is_default(default)
            assert sum(map(registry.is_default, registry.versions(name))) == 1


TestRegistryAgainstADict = RegistryAgainstADict.TestCase
TestRegistryAgainstADict.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
