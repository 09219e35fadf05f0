"""A reward model from a preference file of your own, in any format `trimtab data check` knows.

Run: python examples/train_on_your_preferences.py FILE [MODEL]
"""

import sys

from trimtab import fast_cpu
from trimtab.evals import evaluate_reward_model
from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role
from trimtab.records import Preference, load
from trimtab.trainers import RewardConfig, Session, encode_preferences, score_rankings, split_holdout, train_reward

file = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
loaded = load(file, kind=Preference)
print(f"{len(loaded.records)} preferences in format {loaded.format}, {len(loaded.refused)} rows refused")

fast_cpu.install()  # the same numbers, faster on processors
backbone = Backbone.load(ModelConfig(name=model, context=128))
adapter = AdapterConfig(top_layers=2, rank=8)
role = Role.trainable(backbone, "reward", adapter, seed=0, scalar_head=True)
rankings, kept, left_out = encode_preferences(backbone.chat, loaded.records)
print("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))

train, held = split_holdout([p.prompt.id for p in kept], share=0.2, seed=0)
session = Session(log=lambda m: print(f"step {m['step']:.0f}  loss {m['loss']:.3f}  accuracy {m['accuracy']:.0%}"))
train_reward(role, [rankings[i] for i in train], RewardConfig(adapter=adapter, batch=8), seed=0, session=session)

result = evaluate_reward_model([kept[i] for i in held], score_rankings(role, [rankings[i] for i in held]))
print(f"held-out accuracy {result.accuracy.value:.0%} on {result.pairs} pairs")
print(f"the longest answer would be right on {result.longest.value:.0%}")
