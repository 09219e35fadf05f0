"""A vLLM engine in this process: started without weights, given the model's before each batch, asleep in between.

The engine belongs to the process, not to a sampler: every stage creates a sampler, and all samplers share the engine.

Each batch takes these steps:

1. wake the weights;
2. hand over every weight with the adapter added, including the output projection under its own name if it is tied;
3. wake the key-value cache, and discard what the old weights computed;
4. draw;
5. sleep. The weights need not be kept, because the next batch brings them.

Sleeping frees an accelerator's memory for training. On a CPU vLLM has no sleep, so steps 1 and 5 are left out there.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from trimtab.errors import ConfigError, EngineError, ModelError
from trimtab.models import Backbone

OLDEST = "0.32"
"""The oldest release that takes weights from an iterator and converts them to its kernels' layout."""

BLOCK = 128
"""Tokens in the largest block in which vLLM allocates its cache."""

SHARE = 0.01
"""Share of an accelerator's memory that has to be free at the start. Sizes are given in bytes, so it limits nothing."""

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, so that it reads weights where they are
    "VLLM_NO_USAGE_STATS": "1",  # trimtab sends nothing to anybody
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Environment variables that vLLM starts with, unless they are set already."""


class VllmEngine:
    """vLLM with the shape of one model. Use :func:`shared_engine`.

    Args:
        vllm: the package.
        backbone: the model whose architecture, tokenizer, context and precision it has.
        slots: answers decoded at the same time.
        folder: contains the model's configuration and tokenizer; read once.

    Raises:
        ModelError: vLLM cannot run this model here.
    """

    def __init__(self, vllm: Any, backbone: Backbone, slots: int, folder: Path) -> None:
        self.slots = slots
        self.failure: str | None = None
        """The engine's failure; None: it works."""
        self.closed = False
        """True: another engine has replaced it."""
        self._vllm = vllm
        device = backbone.device.type
        self._eager = device == "cpu"  # compiling takes minutes there
        self._sleeps = device == "cuda" and _can_sleep()
        self._asleep = False
        set_num_threads = torch.set_num_threads  # vLLM replaces it on a CPU, for the whole process
        try:
            self._llm: Any = vllm.LLM(
                model=str(folder),
                load_format="dummy",  # weights are handed over before the first answer
                dtype=str(backbone.dtype).removeprefix("torch."),
                max_model_len=backbone.chat.context,
                max_num_seqs=slots,
                kv_cache_memory_bytes=cache_bytes(backbone, slots),
                gpu_memory_utilization=SHARE,
                enable_prefix_caching=True,
                enable_sleep_mode=self._sleeps,
                enforce_eager=self._eager,
                generation_config="vllm",  # the recipe's settings and nothing else
                logprobs_mode="processed_logprobs",  # of the distribution drawn from: temperature and top_p applied
            )
        except Exception as error:
            raise ModelError(
                f"vLLM {vllm.__version__} cannot start with {type(backbone.model).__name__} ({_brief(error)}); set "
                "sampler.engine: local, or lower sampler.slots or model.context if memory is short"
            ) from error
        finally:
            torch.set_num_threads = set_num_threads

    @contextmanager
    def holding(self, backbone: Backbone, adapter: str | None, version: int) -> Iterator[None]:
        """Inside the context, the engine is awake and computes with a model's weights.

        Args:
            backbone: the model.
            adapter: added to its weights; None: the trunk.
            version: of the weights, for messages.

        Raises:
            EngineError: vLLM failed, now or before.
        """
        with self._explained(f"being given weights of version {version}"):
            if self._sleeps:
                torch.cuda.empty_cache()  # unused memory that training left allocated
            if self._asleep:
                self._llm.wake_up(tags=["weights"])
            with backbone.merged(adapter):
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint_weights(backbone)})
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("its cache still holds keys and values of other weights")
        yield
        if self._sleeps:
            with self._explained("going to sleep"):
                self._llm.sleep(level=2)
                self._asleep = True

    def generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]], version: int) -> list[Any]:
        """One answer to each prompt, each with its own settings.

        Args:
            prompts: tokens.
            settings: arguments of ``vllm.SamplingParams``.
            version: of the weights, for messages.

        Raises:
            EngineError: vLLM failed, now or before.
        """
        with self._explained(f"drawing {len(prompts)} answers with weights of version {version}"):
            # enforce_eager leaves out one function of vLLM's sampler, which would need a C++ compiler.
            with torch.compiler.set_stance("force_eager" if self._eager else "default"):
                results = self._llm.generate(
                    [{"prompt_token_ids": list(tokens)} for tokens in prompts],
                    [self._vllm.SamplingParams(**each) for each in settings],
                    use_tqdm=False,
                )
            return [result.outputs[0] for result in results]

    def close(self) -> None:
        """Free its memory. vLLM leaves the process's distributed group as well."""
        self.closed = True
        with suppress(Exception):  # an engine that failed may fail again
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None

    @contextmanager
    def _explained(self, phase: str) -> Iterator[None]:
        if self.failure is None:
            try:
                yield
                return
            except Exception as error:
                self.failure = f"failed while {phase} ({_brief(error)})"
                raise EngineError(self._message()) from error
        raise EngineError(self._message())

    def _message(self) -> str:
        return (
            f"vLLM {self._vllm.__version__} {self.failure}; this batch's answers are lost, what was finished before is "
            "saved. Run the same command to continue, with sampler.engine: local if it happens again"
        )


_current: dict[str, VllmEngine] = {}
"""The process's engine, by a digest of what it was started with."""


def shared_engine(backbone: Backbone, slots: int) -> VllmEngine:
    """The process's engine for models with this shape; an engine for another shape is closed.

    An engine with more slots is reused too.

    Raises:
        ConfigError: vLLM is not installed or too old, or several ranks train together.
        ModelError: vLLM cannot run this model here.
    """
    if not _current and torch.distributed.is_initialized():
        raise ConfigError(
            "sampler.engine is 'vllm' and several ranks train together, whose connections vLLM would close with its "
            "engine; set sampler.engine: local, or scale.kind: inline"
        )
    vllm = _import()
    with tempfile.TemporaryDirectory(prefix="trimtab-vllm-") as folder:
        key = _write_shape(backbone, Path(folder))
        engine = _current.get(key)
        if engine is None or engine.failure is not None or engine.slots < slots:
            for other in _current.values():
                other.close()
            _current.clear()
            engine = _current[key] = VllmEngine(vllm, backbone, slots, Path(folder))
    return engine


def checkpoint_weights(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Copies of a trunk's weights, at its precision, under the names of its checkpoint, a tied head included.

    vLLM does not report a missing weight; it keeps the one it has.
    """
    for name, parameter in backbone.model.named_parameters(remove_duplicate=False):
        if ".lora_" not in name:
            yield name.replace(".base_layer", ""), parameter.detach().to(backbone.dtype, copy=True)


def cache_bytes(backbone: Backbone, slots: int) -> int:
    """Memory for the keys and values of as many answers as there are slots, each as long as the context."""
    shape = backbone.model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    token = 2 * shape.num_hidden_layers * heads * width * backbone.dtype.itemsize
    blocks = slots * -(-backbone.chat.context // BLOCK) + 1  # vLLM keeps one for itself
    return blocks * BLOCK * token


def _can_sleep() -> bool:
    return bool(import_module("vllm.platforms").current_platform.is_sleep_mode_available())


def _write_shape(backbone: Backbone, folder: Path) -> str:
    """Write a model's configuration and tokenizer; return a digest of everything an engine depends on except slots."""
    config = backbone.model.config.__class__.from_dict(backbone.model.config.to_dict())
    config.architectures = [type(backbone.model).__name__]
    config.save_pretrained(folder)
    backbone.chat.tokenizer.save_pretrained(folder)
    digest = hashlib.sha256(f"{backbone.dtype}|{backbone.device}|{backbone.chat.context}".encode())
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _import() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        vllm: Any = import_module("vllm")  # not `import vllm`: a type checker takes that for this package's file
    except ImportError as error:
        raise ConfigError(
            f"sampler.engine is 'vllm' but vLLM cannot be imported ({_brief(error)}); run in trimtab's folder, in an "
            "environment of its own: pip install -e '.[vllm]' (on a CPU: make vllm), or set engine: local"
        ) from None
    if Version(vllm.__version__) < Version(OLDEST):
        raise ConfigError(
            f"vLLM {vllm.__version__} is too old: it cannot be given new weights as trimtab does; install {OLDEST} or "
            "newer, or set sampler.engine: local"
        )
    return vllm


def _brief(error: BaseException) -> str:
    """An error's kind and message on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"
