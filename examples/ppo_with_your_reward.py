"""PPO with a reward function of your own: here, answers that end early and do not hedge.

Run: python examples/ppo_with_your_reward.py [MODEL] [STEPS]
"""

import sys

import trimtab
from trimtab import fast_cpu


def reward(rollouts):
    """Any function of the answers: one list of numbers per named component."""
    return {
        "short": [1.0 - len(r.tokens) / 32 for r in rollouts],
        "sure": [-1.0 if "maybe" in r.text.lower() else 0.0 for r in rollouts],
    }


model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10
fast_cpu.install()  # the same numbers, faster on processors
backbone = trimtab.Backbone.load(trimtab.ModelConfig(name=model, context=128))
questions = ("Why is the sky blue?", "What is a trim tab?", "Is tea healthy?", "Name a fish.")
prompts = [trimtab.Prompt.from_text(q) for q in questions]
sampler = trimtab.SamplerConfig(max_new_tokens=32)
roles = trimtab.RlRoles.on(backbone, trimtab.AdapterConfig(top_layers=2, rank=8), seed=0)
config = trimtab.PpoConfig(steps=steps, prompts=16, sampler=sampler)
line = "step {step:3.0f}  reward {reward:+.2f}  KL {kl:.2f} nats"
session = trimtab.Session(log=lambda metrics: print(line.format(**metrics)))
trimtab.train_rl(roles, prompts, reward, config, seed=0, session=session)
for answer in trimtab.LocalSampler(backbone, sampler).generate(prompts, adapter="policy", seed=1):
    print(f"{answer.prompt.text}\n  → {answer.text!r}")
