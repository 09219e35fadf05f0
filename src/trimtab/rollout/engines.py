"""Which sampler ``sampler.engine`` names."""

from trimtab.models import Backbone
from trimtab.rollout.protocol import Sampler, SamplerConfig
from trimtab.rollout.sampler import LocalSampler
from trimtab.rollout.vllm import VllmSampler


def make_sampler(backbone: Backbone, config: SamplerConfig) -> Sampler:
    """The sampler that ``config.engine`` names.

    Raises:
        ConfigError: it is vLLM, which is not installed or too old.
        ModelError: it is vLLM, which cannot run this model here.
    """
    return VllmSampler(backbone, config) if config.engine == "vllm" else LocalSampler(backbone, config)
