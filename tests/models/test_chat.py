"""Which tokens are the model's own: compared with conversations written out by hand."""

import pytest

from trimtab.errors import DataError
from trimtab.models import Chat
from trimtab.records import Message, Prompt
from trimtab.testing import END, TEMPLATE, tokenizer


def chat(context: int = 128, template: str | None = None, **settings) -> Chat:
    return Chat(tokenizer(template=template or TEMPLATE), context=context, **settings)


def turns(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in pairs]  # type: ignore[arg-type]


def by_hand(*pieces: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """Tokens and mask of pieces of text, each with whether the assistant says it."""
    tokens, mask = [], []
    for text, own in pieces:
        ids = tokenizer().encode(text, add_special_tokens=False)
        tokens += ids
        mask += [own] * len(ids)
    return tokens, mask


def test_several_turns_with_a_system_message():
    encoded = chat().conversation(
        turns(
            ("system", "be kind."),
            ("user", "is the tea warm"),
            ("assistant", "it is warm."),
            ("user", "thank you"),
            ("assistant", "you walk home happy."),
        )
    )
    expected = by_hand(
        (
            "<|im_start|>system\nbe kind.<|im_end|>\n<|im_start|>user\nis the tea warm<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("it is warm.<|im_end|>", True),
        ("\n<|im_start|>user\nthank you<|im_end|>\n<|im_start|>assistant\n", False),
        ("you walk home happy.<|im_end|>", True),
    )  # the line break after the last end token teaches nothing and is gone
    assert (encoded.tokens, encoded.response_mask) == expected


def test_line_break_between_turns_is_not_the_assistants():
    encoded = chat().conversation(
        turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "never answered"))
    )
    text = [t for t, own in zip(encoded.tokens, encoded.response_mask, strict=True) if own]
    assert tokenizer().decode(text) == "b<|im_end|>d<|im_end|>"
    after_first_end = encoded.tokens.index(tokenizer().eos_token_id, encoded.response_mask.index(True)) + 1
    assert tokenizer().decode([encoded.tokens[after_first_end]]) == "\n"
    assert not encoded.response_mask[after_first_end]


def test_pad_equal_to_eos_keeps_the_end_token():
    same = Chat(tokenizer(pad_is_eos=True), context=128)
    encoded = same.conversation(turns(("user", "hello"), ("assistant", "good day.")))
    assert encoded.tokens[-1] == same.tokenizer.pad_token_id == same.end_token
    assert encoded.response_mask[-1]


def test_training_sees_the_tokens_that_sampling_starts_from():
    one = chat(system="be calm.")
    prompt, answer = Prompt.from_text("bring bread"), "take the bread home."
    head, body = one.prompt(prompt.messages), one.answer_tokens(prompt.messages, answer)
    assert one.answer(prompt.messages, answer).tokens == head + body
    learnt = one.conversation([*prompt.messages, Message(role="assistant", content=answer)])
    assert learnt.tokens == head + body
    assert learnt.response_mask == [False] * len(head) + [True] * len(body)
    assert one.decode(body) == answer
    assert tokenizer().decode(head).startswith("<|im_start|>system\nbe calm.<|im_end|>\n")


def test_system_message_of_the_conversation_wins():
    told = chat(system="be calm.").prompt(turns(("system", "be glad."), ("user", "sing")))
    assert told == chat().prompt(turns(("system", "be glad."), ("user", "sing")))


def test_turns_that_the_template_rewrites_later_are_taught_in_rows_of_their_own():
    forgets = "{% for m in messages %}{{ m['role'] + ':' }}" + (
        "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    one = chat(template=forgets)
    messages = turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    last, first = one.examples(messages)
    assert (last.tokens, last.response_mask) == by_hand(
        ("user:a<|im_end|>assistant:<|im_end|>user:c<|im_end|>assistant:", False), ("d<|im_end|>", True)
    )
    assert (first.tokens, first.response_mask) == by_hand(("user:a<|im_end|>assistant:", False), ("b<|im_end|>", True))
    assert one.conversation(messages) == last and one.examples(messages[:2]) == [first]


def test_template_without_end_token_gets_one():
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    one = chat(template=plain)
    encoded = one.conversation(turns(("user", "a"), ("assistant", "b")))
    assert encoded.tokens[-1] == one.end_token == tokenizer().eos_token_id
    assert encoded.response_mask[-1]


def test_generation_config_may_name_another_end_token():
    other = tokenizer().convert_tokens_to_ids("<|im_start|>")
    one = chat(extra_end_tokens=[other])
    assert one.end_tokens == {other, tokenizer().eos_token_id}
    assert one.end_token == tokenizer().convert_tokens_to_ids(END)
    assert one.decode([*tokenizer().encode("warm tea"), other]) == "warm tea"


def test_refused_role_names_the_roles():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    with pytest.raises(DataError, match=r"roles: system, user.*no system here"):
        chat(template=strict).prompt(turns(("system", "x"), ("user", "y")))


def test_too_long_is_an_error_and_nothing_is_cut():
    long = " ".join(["bread"] * 40)
    with pytest.raises(DataError, match=r"a prompt has \d+ tokens but model\.context is 32"):
        chat(32).prompt(turns(("user", long)))
    with pytest.raises(DataError, match=r"a conversation has \d+ tokens but model\.context is 32"):
        chat(32).conversation(turns(("user", "a"), ("assistant", long)))
    with pytest.raises(DataError, match=r"a conversation has \d+ tokens but model\.context is 32"):
        chat(32).answer(turns(("user", "a")), long)


def test_longest_that_fits_is_taken():
    encoded = chat().conversation(turns(("user", "a"), ("assistant", "bread")))
    assert chat(len(encoded.tokens)).conversation(turns(("user", "a"), ("assistant", "bread"))) == encoded
