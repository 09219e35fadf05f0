"""Ranked answers of a few words each."""

from trimtab.models import Chat
from trimtab.testing import prompts, sentences
from trimtab.trainers import Ranking


def ranking(chat: Chat, number: int, ranks: tuple[int, ...], **fields) -> Ranking:
    """Answers to prompt ``number``, as many as there are ranks, of 1 to 5 words."""
    prompt = prompts(number + 1)[number]
    answers = [" ".join(text.split()[: 1 + (number + k) % 5]) for k, text in enumerate(sentences(len(ranks)))]
    settings = {"probability": None, "margin": None, "weight": 1.0} | fields
    sequences = [chat.answer(prompt.messages, text).tokens for text in answers]
    start = len(chat.prompt(prompt.messages))
    return Ranking(id=f"r{number}", sequences=sequences, prompt_length=start, ranks=ranks, **settings)  # type: ignore[arg-type]
