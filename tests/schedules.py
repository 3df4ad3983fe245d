"""What a client on a bad network does to send one text, drawn from a number: always the same for the same.

Its requests are right by themselves: a part that says where it begins has the bytes that belong there.
What is wrong is when they come, how often, and how much of each.
"""

import gzip
import json
import random
from dataclasses import dataclass
from itertools import pairwise

from gateway.web.body import JSON, LINES, PLAIN
from tests.bad_network import Delivery

LETTERS = (
    *"abc xyz,.-0123",
    "é",
    "ß",
    "€",
    "日",
    "👋",
    "\u2028",
    '"',
    "\\",
    "\n",
    "\r",
    "\t",
    "\0",
)
"""One to four bytes of UTF-8, what ends lines here and there, and what JSON writes in another way."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A text, as it is told to its sender's key."""

    tag: str
    """Its attribute in the room, by which receivers know whose it is."""
    text: str
    data: bytes
    """The body that carries it."""


@dataclass(frozen=True, slots=True)
class Try:
    """A POST of the text."""

    delivery: Delivery
    chunked: bool
    variant: int = 0
    waits: bool = True
    """Whether the client waits for its end before it goes on."""


@dataclass(frozen=True, slots=True)
class Part:
    """A PATCH."""

    begin: int | None
    """None: where it was told last that the upload goes on."""
    end: int
    says: str
    """`truth`: whether it is the last one; `nothing`; `not yet`, also where it is; `early`: that it is, and it
    is not."""
    says_length: bool
    chunked: bool
    asks: bool
    """Where the upload goes on, before."""
    delivery: Delivery
    waits: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A HEAD."""

    waits: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """A DELETE."""

    waits: bool


@dataclass(frozen=True, slots=True)
class Again:
    """An earlier request, as it was: 0 is the first, 1 the last one."""

    which: float
    delivery: Delivery
    waits: bool


@dataclass(frozen=True, slots=True)
class Malformed:
    """A PATCH that does not say where it begins, or what it is; a HEAD that says where something begins.

    They are answered while another request is still being worked on.
    """

    how: str
    delivery: Delivery
    waits: bool


Step = Part | Ask | Cancel | Again | Malformed


@dataclass(frozen=True, slots=True)
class Schedule:
    number: int
    media_type: str
    compressed: bool
    variants: tuple[Variant, ...]
    """The text; with a key, what else is sent with the same key."""
    keyed: bool
    tries: tuple[Try, ...]
    """The last one comes through."""
    repeats: tuple[Try, ...]
    """With a key, after its client knows of its success."""
    upload: bool
    first: int
    """How many bytes of an upload its POST has."""
    says_complete: bool
    """The POST of an upload, if it has all."""
    says_length: bool
    steps: tuple[Step, ...]
    """Of an upload, once its client knows of it."""
    stragglers: tuple[Step, ...]
    """After its client has seen it through."""
    abandons: bool
    """Its client does not see it through."""

    @property
    def is_given_up(self) -> bool:
        """Whether an upload may be left of it that nobody goes on with."""
        unknown = self.upload and not self.keyed and any(map(self._is_unheard, self.tries))
        return self.abandons or unknown

    def _is_unheard(self, each: Try) -> bool:
        """Whether its answer may be lost; what breaks before its end has none that its client needs."""
        cut = each.delivery.cut
        has_no_body = self.first == 0 and not each.chunked
        return cut is not None and (cut >= 1 or (cut >= 0 and has_no_body))


def drawn(number: int) -> Schedule:
    return _Drawing(number).schedule()


class _Drawing:
    def __init__(self, number: int) -> None:
        self.number = number
        self.random = random.Random(number)  # noqa: S311 - to be drawn again
        self.media_type = self.random.choices((PLAIN, LINES, JSON), (50, 30, 20))[0]
        self.compressed = self.chance(0.2)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def schedule(self) -> Schedule:
        keyed, upload = self.random.choices(
            ((False, True), (True, True), (True, False), (False, False)), (45, 17, 30, 8)
        )[0]
        variants = self.variants() if keyed else (self.variant(0, self.text()),)
        length = len(variants[0].data)
        return Schedule(
            number=self.number,
            media_type=self.media_type,
            compressed=self.compressed,
            variants=variants,
            keyed=keyed,
            tries=(
                *self.tries(len(variants), 4, keyed=keyed),
                Try(self.delivery(), self.chance(0.5)),
            ),
            repeats=self.tries(len(variants), 2, keyed=True) if keyed else (),
            upload=upload,
            first=self.random.choice((0, length, *(self.random.randint(0, length),) * 3)),
            says_complete=self.chance(0.7),
            says_length=self.chance(0.4),
            steps=self.steps(length, 0, 5) if upload else (),
            stragglers=self.steps(length, 0, 2) if upload and self.chance(0.3) else (),
            abandons=upload and self.chance(0.04),
        )

    def text(self) -> str:
        most = self.random.choices((0, 3, 40, 400, 6_000), (5, 15, 45, 30, 5))[0]
        return "".join(self.random.choices(LETTERS, k=self.random.randint(0, most)))

    def variants(self) -> tuple[Variant, ...]:
        text = self.text()
        found = [self.variant(0, text)]
        while self.chance(0.35):
            others = (text + "!", text[:-1], text[::-1], self.text())
            # An attribute is an option; a body that is another has the same ones.
            tag = self.random.choice((0, len(found)))
            found.append(self.variant(tag, self.random.choice(others) if tag == 0 else text))
        return tuple(found)

    def variant(self, tag: int, text: str) -> Variant:
        match self.media_type:
            case "application/x-ndjson":
                data = self.lines(text)
            case "application/json":
                data = json.dumps(
                    {"text": text, "version": 3}, ensure_ascii=self.chance(0.5)
                ).encode()
            case _:
                data = text.encode()
        if self.compressed:
            # More than one member, now and then.
            borders = (0, self.random.randint(0, len(data)) if self.chance(0.2) else 0, len(data))
            members = [data[begin:end] for begin, end in pairwise(borders)]
            data = b"".join(gzip.compress(each, mtime=0) for each in members)
        return Variant(f"{self.number}/{tag}", text, data)

    def lines(self, text: str) -> bytes:
        borders = sorted(
            self.random.randint(0, len(text)) for _ in range(self.random.randint(0, 6))
        )
        lines = []
        for begin, end in zip((0, *borders), (*borders, len(text)), strict=True):
            piece: object = text[begin:end]
            if self.chance(0.3):
                piece = {"text": piece}
            lines.append(json.dumps(piece, ensure_ascii=self.chance(0.3)))
        if self.chance(0.3):
            lines.append("")
        if self.chance(0.3):
            lines.append('{"close": {"attributes": {"mood": "good"}}}')
        return ("\n".join(lines) + ("\n" if self.chance(0.5) else "")).encode()

    def tries(self, variants: int, most: int, *, keyed: bool) -> tuple[Try, ...]:
        tries: list[Try] = []
        while len(tries) < most and self.chance(0.55 if keyed else 0.25):
            delivery = self.delivery(cut=0.75 if keyed else 1.0, stands=0.1 if keyed else 0.0)
            # Without a key each is a text of its own; one after the other is enough of that.
            waits = not delivery.stands and (not keyed or self.chance(0.6))
            tries.append(
                Try(delivery, self.chance(0.5), self.random.randrange(variants), waits=waits)
            )
        return tuple(tries)

    def delivery(self, *, cut: float = 0.0, stands: float = 0.0) -> Delivery:
        borders = sorted(
            round(self.random.random(), 2) for _ in range(self.random.choice((0, 1, 3)))
        )
        pauses = tuple(
            self.random.choice((0, 0, 1, 2, 4, 9)) for _ in range(self.random.randint(1, 3))
        )
        where = None
        if self.chance(cut):
            where = self.random.choice((-1.0, 1.0, 1.0, *(round(self.random.random(), 2),) * 4))
        is_standing = where is not None and where >= 0 and self.chance(stands / cut)
        return Delivery(tuple(borders), pauses, where, is_standing)

    def steps(self, length: int, least: int, most: int) -> tuple[Step, ...]:
        steps: list[Step] = []
        for _ in range(self.random.randint(least, most)):
            steps.append(self.step(length))
            while not steps[-1].waits and self.chance(0.25):
                steps.append(self.malformed())
        return tuple(steps)

    def step(self, length: int) -> Step:
        kind = self.random.choices(
            ("part", "again", "ask", "cancel", "malformed"), (62, 18, 10, 4, 6)
        )[0]
        waits = self.chance(0.7)
        match kind:
            case "part":
                return self.part(length, waits=waits)
            case "again":
                delivery = self.delivery(cut=0.3, stands=0.1)
                return Again(round(self.random.random(), 2), delivery, waits)
            case "ask":
                return Ask(waits)
            case "cancel":
                return Cancel(waits)
            case _:
                return self.malformed()

    def malformed(self) -> Malformed:
        how = self.random.choice(("no offset", "text/plain", "HEAD"))
        return Malformed(how, self.delivery(), waits=self.chance(0.5))

    def part(self, length: int, *, waits: bool) -> Part:
        delivery = self.delivery(cut=0.45, stands=0.1)
        begin = self.random.randint(0, length) if self.chance(0.25) else None
        end = length if self.chance(0.3) else self.random.randint(begin or 0, length)
        return Part(
            begin,
            end,
            says=self.random.choices(("truth", "nothing", "not yet", "early"), (70, 14, 8, 8))[0],
            says_length=self.chance(0.3),
            chunked=self.chance(0.5),
            asks=begin is None and self.chance(0.4),
            delivery=delivery,
            waits=waits,
        )
