"""Fakes for tests, ours and yours: an endpoint, a sampler, a tiny model, a recipe of seconds, simulated annotators.

==========================  =========================================================================================
to test                     use
==========================  =========================================================================================
an AI judge or endpoint     :class:`FakeEndpoint`, an OpenAI-compatible server on this machine with scripted replies
a reward, a monitor         :class:`FakeSampler`, rollouts with scripted answers, no model
a training loop             :func:`tiny_backbone`, a random model in memory; :func:`save_model`, the same as a folder
a whole pipeline            :func:`toy_recipe`, every stage in seconds
code that reads judgements  :func:`simulate`, annotators with noise, position and length bias
==========================  =========================================================================================

The package needs no further installation. The tiny model needs the ``train`` extra, the rest does not.
"""

from trimtab.feedback import SimulationConfig, simulate
from trimtab.testing.endpoint import Answer, Behaviour, FakeEndpoint
from trimtab.testing.recipe import TOY, toy_recipe
from trimtab.testing.sampler import FakeSampler
from trimtab.testing.toys import (
    END,
    START,
    TEMPLATE,
    WORDS,
    chat_messages,
    prompts,
    save_model,
    sentences,
    tiny_backbone,
    tiny_model,
    tokenizer,
)

__all__ = [
    "END",
    "START",
    "TEMPLATE",
    "TOY",
    "WORDS",
    "Answer",
    "Behaviour",
    "FakeEndpoint",
    "FakeSampler",
    "SimulationConfig",
    "chat_messages",
    "prompts",
    "save_model",
    "sentences",
    "simulate",
    "tiny_backbone",
    "tiny_model",
    "tokenizer",
    "toy_recipe",
]
