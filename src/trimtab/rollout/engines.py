"""Creates the sampler that ``sampler.engine`` names."""

from trimtab.models import Backbone
from trimtab.rollout.protocol import Sampler, SamplerConfig
from trimtab.rollout.sampler import LocalSampler
from trimtab.rollout.vllm import VllmSampler


def make_sampler(backbone: Backbone, config: SamplerConfig) -> Sampler:
    """The sampler that ``config.engine`` names.

    Raises:
        ConfigError: ``engine`` is vLLM, and vLLM is not installed or too old.
        ModelError: ``engine`` is vLLM, and vLLM cannot run this model here.
    """
    return VllmSampler(backbone, config) if config.engine == "vllm" else LocalSampler(backbone, config)
