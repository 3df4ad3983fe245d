"""What the streams of a transcript say: plain text, or timed strings, however they are cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from gateway.transcripts import Folded

WORDS = st.lists(
    st.fixed_dictionaries(
        {"text": st.text(min_size=1)},
        optional={
            "start_time": st.floats(0, 100),
            "end_time": st.floats(0, 100),
            "confidence": st.floats(0, 1),
            "speaker_id": st.text(),
        },
    ),
    min_size=1,
)


def _fold(*chunks: str, complete: bool = True) -> Folded:
    folded = Folded()
    for seq, chunk in enumerate(chunks, 1):
        folded.add(chunk, seq)
    folded.end(complete=complete)
    return folded


def _words(folded: Folded) -> list[Any] | None:
    return None if folded.words is None else [json.loads(word) for word in folded.words]


def _cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in pairwise(borders)]


@given(words=WORDS, places=st.lists(st.integers(0, 10_000)), is_ascii=st.booleans())
def test_timed_strings_are_text_with_times_wherever_they_are_cut(
    words: list[dict[str, Any]], places: list[int], is_ascii: bool
) -> None:
    lines = "".join(json.dumps(word, ensure_ascii=is_ascii) + "\n" for word in words)

    folded = _fold(*_cut(lines, places))

    assert folded.text == "".join(word["text"] for word in words)
    assert _words(folded) == [
        {
            "text": word["text"],
            "start_time": word.get("start_time"),
            "end_time": word.get("end_time"),
        }
        for word in words
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        "{",
        '{"',
        "{ not JSON",
        '{"not": "ours"}\n',
        '{"text": "ours but for this", "mood": "odd"}\n',
        '{"text": 1}\n',
        '{"text": "a", "start_time": "1"}\n',
        '{"text": "a", "start_time": true}\n',
        '{"text": "a", "start_time": NaN}\n',
        '{"text": "a", "end_time": 1e999}\n',
        '{"text": "a", "end_time": ' + "9" * 5_000 + "}\n",
        '{"text": "half of a character: \\ud800"}\n',
        '{"text": ' + "[" * 100_000 + "\n",
        '{"text": "and no end of the line"}',
        '{\n  "text": "indented"\n}\n',
        '\n{"text": "a"}\n',
        '[{"text": "a"}]\n',
    ],
)
def test_what_only_looks_like_timed_strings_stays_as_it_is(text: str) -> None:
    for chunks in ([text], [*text[:200], text[200:]]):
        folded = _fold(*chunks)
        assert (folded.text, folded.words) == (text, None)


def test_members_that_are_new_beside_times_do_no_harm() -> None:
    folded = _fold('{"text": "a", "end_time": 1, "new": []}\n')

    assert folded.text == "a"
    assert folded.words == ['{"text":"a","start_time":null,"end_time":1.0}']


def test_a_line_that_is_no_timed_string_among_them_is_not_lost() -> None:
    folded = _fold('{"text": "a "}\nthis is ', 'not\n{"text": "b "}\n', '{"text": "c"}')

    assert folded.text == "a this is not\nb c"
    assert [word["text"] for word in _words(folded) or ()] == ["a ", "b ", "c"]


def test_of_timed_strings_that_broke_off_the_whole_ones_are_there() -> None:
    assert _fold('{"text": "a "}\n{"te', complete=False).text == "a "
    assert _fold('{"te', complete=False).text == '{"te'


def test_what_may_be_either_is_held_back_until_that_is_known() -> None:
    folded = Folded()
    said = []
    for seq, chunk in enumerate(['{"text"', ': "a"}', "\n{", '"text": "b"}\n'], 1):
        folded.add(chunk, seq)
        said.append(folded.text)

    assert said == ["", "", "a", "ab"]
