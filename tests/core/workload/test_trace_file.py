"""Traces: both spellings, exact lengths, an honest mix, and every bad line named by its number."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import PREFIX_POOL, PromptFactory, TokenScale, Workload, WorkloadClass
from calibrator.core.workload.trace_file import MAX_TRACE_CLASSES, parse_trace
from calibrator.errors import ConfigurationError

LABEL = Label(1, Phase.COUNTED)
WORDS = TokenScale(overhead=0.0, per_word=1.0)


def line(**fields: object) -> str:
    return json.dumps(fields)


def own(prompt_tokens: int, output_tokens: int, **more: object) -> str:
    return line(prompt_tokens=prompt_tokens, output_tokens=output_tokens, **more)


def test_our_own_fields_and_mooncake_s_say_the_same() -> None:
    mooncake = line(timestamp=27482, input_length=6955, output_length=52, hash_ids=[46, 47, 2353])
    assert parse_trace([mooncake], "t") == parse_trace([own(6955, 52)], "t")


def test_a_class_per_name_and_stream_with_the_lengths_as_recorded() -> None:
    lines = [own(10, 1), own(30, 3), "", own(500, 9, **{"class": "rag"}), own(700, 9, **{"class": "rag"}, stream=False)]
    default, rag, whole = parse_trace(lines, "t")
    assert (default.name, default.share, default.sizes) == ("default", 2.0, ((10, 1), (30, 3)))
    assert (default.prompt_tokens, default.output_tokens, default.stream) == (20, 2, True)
    assert (rag.name, rag.stream) == ("rag", True)
    assert (whole.name, whole.stream, whole.sizes) == ("rag, not streamed", False, ((700, 9),))
    assert str(default) == "20+2 tokens (mean of 2 recorded)"


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        (own(1, 1, prompt="x"), "unknown field 'prompt'"),
        (line(prompt_tokens=5), "needs output_tokens or output_length, once"),
        (own(5, 5, input_length=5), "needs prompt_tokens or input_length, once"),
        (own(0, 5), "'prompt_tokens' is not a whole number from 1"),
        (own(5, 10**9), "'output_tokens' is not a whole number from 1"),
        (line(input_length=True, output_length=1), "'input_length' is not a whole number"),
        (line(input_length=1.5, output_length=1), "'input_length' is not a whole number"),
        (own(5, 5, stream="yes"), "'stream' is neither"),
        (own(5, 5, **{"class": ""}), "'class' is not a name"),
        (own(5, 5, **{"class": "a\nb"}), "'class' is not a name"),
    ],
)
def test_a_bad_line_is_named_by_its_number(bad: str, cause: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_trace([own(1, 1), "", bad], "trace.jsonl")
    assert caught.value.cause.startswith("trace.jsonl, line 3: ")
    assert cause in caught.value.cause
    assert caught.value.remedy


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_trace_is_refused(lines: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="holds no request"):
        parse_trace(lines, "t")


def test_a_column_of_ids_is_no_class() -> None:
    with pytest.raises(ConfigurationError, match="different classes"):
        parse_trace([own(1, 1, **{"class": str(index)}) for index in range(MAX_TRACE_CLASSES + 1)], "t")


def test_too_many_requests_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="more than 200,000"):
        parse_trace([own(1, 1)] * 200_001, "t")


# ----------------------------------------------------------------------------------------------------- dealt requests
def dealt(sizes: list[tuple[int, int]], n: int, seed: int = 1) -> list[tuple[int, int]]:
    workload = Workload((WorkloadClass.recorded("t", sizes, stream=True),))
    prompts = PromptFactory(workload, WORDS, seed)
    requests = [prompts.next_request(LABEL, residual=False) for _ in range(n)]
    assert [len(request.text.split()) for request in requests] == [request.prompt_tokens for request in requests]
    return [(request.prompt_tokens, request.output_tokens) for request in requests]


def test_each_recorded_request_once_before_any_comes_again() -> None:
    sizes = [(10 + index % 37, 1 + index % 5) for index in range(101)]
    twice = dealt(sizes, 202)
    assert Counter(twice[:101]) == Counter(twice[101:]) == Counter(sizes)
    assert twice[:101] != twice[101:], "shuffled anew"
    assert dealt(sizes, 202) == twice
    assert dealt(sizes, 202, seed=2) != twice


def test_a_short_stretch_has_short_and_long_prompts_in_proportion() -> None:
    """A tenth of the prompts is long; an unstratified shuffle leaves blocks of 50 with 0 or 12 of them."""
    sizes = [(8_000 if index % 10 == 0 else 100 + index, 10) for index in range(1000)]
    order = dealt(sizes, 1000)
    long = [sum(prompt > 5_000 for prompt, _ in order[start : start + 50]) for start in range(0, 1000, 50)]
    assert min(long) >= 4
    assert max(long) <= 6


def test_an_objective_s_scope_is_read_off_the_recorded_lengths() -> None:
    recorded = WorkloadClass.recorded("t", [(100, 1)] * 3 + [(4000, 1)], stream=True)
    scoped = parse_objective("ttft p99 <= 1s for prompts <= 1024 tokens")
    assert recorded.share_within(scoped.applies_to) == 0.75
    assert (recorded.longest_prompt_tokens, recorded.longest_total_tokens) == (4000, 4001)


# ------------------------------------------------------------------------------------------------------- prefix reuse
class PrefixOracle:
    """Remembers every prefix of whole words: what an unbounded cache would find."""

    def __init__(self) -> None:
        self.known: set[tuple[str, ...]] = set()
        self.hits = self.words = 0

    def ask(self, text: str) -> None:
        words = text.split()
        heads = [tuple(words[:length]) for length in range(1, len(words) + 1)]
        self.hits += max((len(head) for head in heads if head in self.known), default=0)
        self.words += len(words)
        self.known.update(heads)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_the_wanted_ratio_of_the_prompt_can_come_from_a_cache(ratio: float) -> None:
    workload = Workload((WorkloadClass(prompt_tokens=120, spread_ratio=0.5),), prefix_reuse_ratio=ratio)
    prompts, oracle = PromptFactory(workload, WORDS, 1, salt="sweep"), PrefixOracle()
    texts = [prompts.next_request(LABEL, residual=False).text for _ in range(200)]
    assert len(set(texts)) == 200
    for text in texts[:50]:
        oracle.ask(text)
    oracle.hits = oracle.words = 0  # the pool is warm
    for text in texts[50:]:
        oracle.ask(text)
    assert oracle.hits / oracle.words == pytest.approx(ratio, abs=0.02)
    assert 1 < len({text.split()[0] for text in texts}) <= PREFIX_POOL


def test_without_reuse_prompts_differ_from_their_first_word_in_this_sweep_and_the_next() -> None:
    first, again, next_sweep = (PromptFactory(Workload(), WORDS, 1, salt=salt) for salt in ("a", "a", "b"))
    heads, same, other = (
        [source.next_request(LABEL, residual=False).text.split()[0] for _ in range(100)]
        for source in (first, again, next_sweep)
    )
    assert heads == same
    assert len({*heads, *other}) == 200, "a second sweep with the same seed must not find the first one in a cache"


@pytest.mark.parametrize("ratio", [-0.1, 0.96, float("nan")])
def test_an_impossible_reuse_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigurationError, match="prefix reuse"):
        Workload(prefix_reuse_ratio=ratio)
