"""A guard in a folder: ``guard.json``, ``vocabulary.json``, ``guard.safetensors``. Loading it executes no code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from trimtab.errors import CheckpointError, ConfigError
from trimtab.files import sha256_file, sha256_json, write_folder, write_json
from trimtab.guard.detector import Detector, Member, Place
from trimtab.guard.last_layer import LastLayer, LowRank
from trimtab.guard.lexical import Lexical, Rules
from trimtab.guard.output import OutputProbe
from trimtab.guard.probe import Probe
from trimtab.guard.second import SecondStage
from trimtab.guard.settings import (
    GuardedModel,
    GuardSettings,
    MemberSettings,
    OutputSettings,
    SecondSettings,
    TrainingFacts,
)
from trimtab.models import Backbone, load_tensors, save_tensors
from trimtab.records import to_plain

FORMAT = 2
"""Version of the files that are written. Format 1, which had no second stage, can also be read."""
SETTINGS, VOCABULARY, TENSORS = "guard.json", "vocabulary.json", "guard.safetensors"


def require_place(folder: Path) -> None:
    """Check that writing a guard to a folder would delete nothing except an earlier guard.

    Raises:
        ConfigError: the path is a file, or a folder with files but no ``guard.json``.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / SETTINGS).is_file()):
        raise ConfigError(
            f"{folder} exists and is no guard: it has no {SETTINGS}; a guard replaces its whole folder, so name a new "
            "folder, an empty one, or that of an earlier guard"
        )


def save_guard(
    folder: Path,
    detector: Detector,
    *,
    second: SecondStage | None,
    output: OutputProbe | None,
    rules: Rules | None,
    reasons: dict[str, str],
    layer: int | None,
    model: GuardedModel | None,
    facts: TrainingFacts,
) -> str:
    """Write a guard; an earlier guard in the folder is replaced.

    Args:
        folder: the folder; created if missing.
        detector: the detector of requests; its probes read place 0, the only layer that :attr:`Guard.read` returns.
        second: the second stage, for requests that the detector is in doubt about.
        output: the detector of answers.
        rules: names the rule of a blocked request.
        reasons: text of each rule by id.
        layer: number of the layer that the request probes read; None: there are no probes.
        model: the model whose activations are read; None: no model is read.
        facts: how the guard was trained.

    Returns:
        the version: hash of everything written, 12 hexadecimal digits.

    Raises:
        ConfigError: the folder contains files but no guard.
    """
    require_place(folder)
    arrays: dict[str, np.ndarray] = {}
    vocabulary: dict[str, list[str]] = {}
    members: list[MemberSettings] = []
    for number, member in enumerate(detector.members):
        pooling = None if member.place is None else member.place.pooling
        members.append(MemberSettings(name=member.name, slope=member.slope, offset=member.offset, pooling=pooling))
        if isinstance(member.model, Lexical):
            vocabulary = member.model.vocabulary()
            arrays |= {f"member.{number}.{name}": value for name, value in member.model.arrays().items()}
        else:
            arrays |= _probe_arrays(f"member.{number}", member.model)
    if rules is not None:
        arrays |= {"rules.weights": rules.weights, "rules.bias": rules.bias}
    if second is not None:
        arrays |= _second_arrays(second)
    if output is not None:
        arrays |= _probe_arrays("output", output.probe)
    settings = _plain(
        GuardSettings(
            format=FORMAT,
            members=tuple(members),
            slope=detector.slope,
            offset=detector.offset,
            threshold=detector.threshold,
            layer=layer,
            model=model,
            rules={name: reasons.get(name, "") for name in rules.names} if rules else {},
            second=second and SecondSettings(
                band=second.band, calibration=second.calibration, threshold=second.threshold
            ),
            output=output and OutputSettings(
                layer=output.layer, smoothing=output.smoothing, threshold=output.threshold
            ),
            facts=facts,
        )
    )  # fmt: skip

    def fill(target: Path) -> None:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        save_tensors(target / TENSORS, tensors)
        write_json(target / VOCABULARY, vocabulary)
        write_json(target / SETTINGS, settings | {"version": _version(settings, target)})

    write_folder(folder, fill)
    return json.loads((folder / SETTINGS).read_text())["version"]


def _plain(settings: GuardSettings) -> dict[str, Any]:
    """Settings as JSON values without the version."""
    absent = {name for name in ("second", "output") if getattr(settings.facts, name) is None}
    values = settings.model_dump(mode="json", exclude={"version": True, "facts": absent})
    return values | {"members": [to_plain(member) for member in settings.members]}


def _version(settings: Mapping[str, Any], folder: Path) -> str:
    return sha256_json([settings, sha256_file(folder / TENSORS), sha256_file(folder / VOCABULARY)])[:12]


def _probe_arrays(name: str, probe: Probe) -> dict[str, np.ndarray]:
    return {f"{name}.weights": probe.weights, f"{name}.bias": np.array([probe.bias], np.float32)}


def _second_arrays(second: SecondStage) -> dict[str, np.ndarray]:
    arrays = _probe_arrays("second", second.model.head)
    for name, part in second.model.lora.items():
        arrays |= {f"second.a.{name}": part.a.numpy(), f"second.b.{name}": part.b.numpy()}
    return arrays


def _restored_second(settings: SecondSettings, arrays: dict[str, np.ndarray]) -> SecondStage:
    names = [name.removeprefix("second.a.") for name in arrays if name.startswith("second.a.")]
    lora = {
        name: LowRank(torch.from_numpy(arrays[f"second.a.{name}"]), torch.from_numpy(arrays[f"second.b.{name}"]))
        for name in names
    }
    return SecondStage(
        model=LastLayer(lora, Probe(arrays["second.weights"], float(arrays["second.bias"][0]))),
        calibration=settings.calibration,
        band=settings.band,
        threshold=settings.threshold,
    )


def read_settings(folder: Path) -> GuardSettings:
    """``guard.json`` of a guard's folder.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    try:
        return GuardSettings.model_validate(_values(folder))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder}: damaged guard ({field}: {first['msg']}); train it again") from None


def _values(folder: Path) -> dict[str, Any]:
    """The values in ``guard.json``, unvalidated; the version is a hash of them."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        number = settings["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no guard ({error}); train one with `trimtab guard train`") from None
    if number not in (1, FORMAT):
        raise CheckpointError(f"{path}: format {number}, and this version reads 1 and {FORMAT}; train the guard again")
    return settings


@dataclass(frozen=True, kw_only=True)
class GuardParts:
    """The parts of a guard, as :class:`~trimtab.guard.guard.Guard` takes them."""

    detector: Detector
    """The detector of requests."""
    second: SecondStage | None
    """The second stage, for requests that the detector is in doubt about."""
    output: OutputProbe | None
    """The detector of answers."""
    rules: Rules | None
    """Names the rule of a blocked request."""
    reasons: dict[str, str]
    """Text of each rule by id."""
    version: str
    """Identifies the guard."""
    layer: int | None
    """The layer that request probes read."""


def load_guard(folder: Path, backbone: Backbone | None) -> GuardParts:
    """The parts of a guard.

    Raises:
        CheckpointError: the guard is missing or damaged.
        ConfigError: the guard reads a model, and none was given, or one of another width or depth.
    """
    settings = read_settings(folder)
    _check_model(folder, settings, backbone)
    arrays = {name: tensor.numpy() for name, tensor in load_tensors(folder / TENSORS).items()}
    try:
        vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        if _version({k: v for k, v in _values(folder).items() if k != "version"}, folder) != settings.version:
            raise ValueError("its files do not belong together")
        members, lexical = [], None
        for number, row in enumerate(settings.members):
            member_arrays = {
                k.removeprefix(f"member.{number}."): v for k, v in arrays.items() if k.startswith(f"member.{number}.")
            }
            if row.pooling is not None:
                model: Lexical | Probe = Probe(member_arrays["weights"], float(member_arrays["bias"][0]))
                place = Place(pooling=row.pooling, layer=0)
            else:
                model, place = Lexical.restored(vocabulary, member_arrays), None
                lexical = model
            members.append(Member(name=row.name, model=model, slope=row.slope, offset=row.offset, place=place))
        detector = Detector(
            members=tuple(members), slope=settings.slope, offset=settings.offset, threshold=settings.threshold
        )
        rules = None
        if settings.rules and lexical is not None:
            rules = Rules(lexical, list(settings.rules), arrays["rules.weights"], arrays["rules.bias"])
        second = settings.second and _restored_second(settings.second, arrays)
        output = None
        if settings.output is not None:
            output = OutputProbe(
                layer=settings.output.layer,
                probe=Probe(arrays["output.weights"], float(arrays["output.bias"][0])),
                smoothing=settings.output.smoothing,
                threshold=settings.output.threshold,
            )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{folder}: damaged guard ({error}); train it again") from None
    return GuardParts(
        detector=detector, second=second, output=output, rules=rules, reasons=settings.rules,
        version=settings.version, layer=settings.layer,
    )  # fmt: skip


def _check_model(folder: Path, settings: GuardSettings, backbone: Backbone | None) -> None:
    model = settings.model
    if model is None or all(part is None for part in (settings.layer, settings.second, settings.output)):
        return
    if backbone is None:
        raise ConfigError(
            f"{folder}: this guard reads the activations of {model.name!r} and was given no model; name it, or "
            "train a guard with --no-probes"
        )
    if (backbone.width, len(backbone.layers)) != (model.width, model.layers):
        raise ConfigError(
            f"{folder}: this guard was trained on a model of width {model.width} with {model.layers} layers and "
            f"was given one of width {backbone.width} with {len(backbone.layers)}; train a guard for this model"
        )
