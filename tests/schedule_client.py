"""Plays a schedule, and judges what became of its text."""

import asyncio
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle, islice, starmap
from urllib.parse import quote

from gateway.errors import GatewayError
from gateway.web import problems
from gateway.web.body import JSON, LINES, PARTIAL
from tests.bad_network import PLAIN, Asked, Delivery, Network, Told
from tests.overheard import Heard, Place
from tests.running_gateway import DEADLINE
from tests.schedules import (
    Again,
    Ask,
    Cancel,
    Malformed,
    Part,
    Schedule,
    Step,
    Try,
    Variant,
)

MOST_TRIES = 100
"""Of a client that wants its text to be sent; the gateway may not have noticed yet that others broke off."""


@dataclass(slots=True)
class Upload:
    """What its client knows of it."""

    path: str
    variant: Variant
    stream_id: str | None
    """None: of a text that is sent whole."""
    offset: int
    """As it was told last."""
    most: int
    """As it was told highest."""
    says_length: bool
    """One of its requests."""
    may_be_complete: bool = False
    """One that completes it has been sent to its end."""
    complete: bool = False
    ended: bool = False
    may_end: bool = False
    """Its client has cancelled it, or may have been away for too long."""


class Client:
    """Plays one schedule, and remembers what it was told."""

    def __init__(self, schedule: Schedule, network: Network, place: Place) -> None:
        self.schedule = schedule
        self.faults: list[str] = []
        self.history: list[tuple[int, Asked | Told | None, Delivery | None]] = []
        """What was asked, and how, and what was answered; in order, under the number of the request."""
        self.requests: list[tuple[Asked, Variant]] = []
        """Those that may come again without being another text."""
        self.meant: defaultdict[str, list[Variant]] = defaultdict(list)
        """By their tags."""
        self.sent: dict[str, Variant] = {}
        """By the ids of their streams: those that it was told the success of."""
        self.broken: set[str] = set()
        """The tags of those that cannot be complete: of no other POST, which was broken off before its end."""
        self.success: tuple[str, bytes, Told] | None = None
        """Options, body and answer of the first POST that it was told the success of."""
        self.upload: Upload | None = None
        self._network = network
        self._place = place
        self._released = asyncio.Event()
        self._background: set[asyncio.Task[object]] = set()
        self._numbers = count(1)

    # What it does

    async def play(self) -> None:
        try:
            async with asyncio.timeout(4 * DEADLINE):
                await self._post_until_told()
                if self.upload is not None:
                    for step in self.schedule.steps:
                        await self._do(step, self.upload)
                    if not self.schedule.abandons:
                        await self._see_through(self.upload)
                    for step in self.schedule.stragglers:
                        await self._do(step, self.upload)
                for each in self.schedule.repeats:
                    await self._try(each)
                await self._standing_break()
        except TimeoutError:
            self.faults.append("It is not over.")
        except (OSError, EOFError, LookupError) as error:
            self.faults.append(f"It came to an end: {error!r}.")

    async def _post_until_told(self) -> None:
        for each in self.schedule.tries:
            await self._try(each)
        if self.success is None:
            await self._standing_break()
        # Which one the key is for may have been told by none of the answers that were read.
        for variant in islice(cycle(range(len(self.schedule.variants))), MOST_TRIES):
            if self.success is not None:
                return
            await self._try(Try(PLAIN, False, variant))
        self.faults.append("No POST of it is taken.")

    async def _try(self, each: Try) -> None:
        variant = self.schedule.variants[each.variant]
        if not self.schedule.keyed:
            variant = replace(variant, tag=f"{variant.tag}/{len(self.meant)}")
        if variant not in self.meant[variant.tag]:
            self.meant[variant.tag].append(variant)
        asked = self._post(variant, chunked=each.chunked)
        if self.schedule.keyed:
            self.requests.append((asked, variant))
        elif asked.is_cut(each.delivery):
            self.broken.add(variant.tag)
        await self._ask(asked, each.delivery, variant, waits=each.waits)

    def _post(self, variant: Variant, *, chunked: bool) -> Asked:
        schedule, data = self.schedule, variant.data
        headers = [("Content-Type", schedule.media_type)]
        if schedule.compressed:
            headers.append(("Content-Encoding", "gzip"))
        if schedule.keyed:
            headers.append(("Idempotency-Key", f'"{schedule.number}"'))
        if schedule.upload:
            is_whole = schedule.first == len(schedule.variants[0].data)
            end = len(data) if is_whole else min(schedule.first, len(data))
            complete = schedule.says_complete and end == len(data)
            headers.append(("Upload-Complete", "?1" if complete else "?0"))
            if schedule.says_length:
                headers.append(("Upload-Length", str(len(data))))
            data = data[:end]
        query = f"attr.tag={quote(variant.tag, safe='')}"
        return self._request("POST", self._place.path, headers, data, chunked, query)

    async def _do(self, step: Step, upload: Upload) -> None:
        match step:
            case Part():
                if step.asks:
                    await self._ask_where(upload, waits=True)
                asked = self._patch(step, upload)
                self.requests.append((asked, upload.variant))
                await self._ask(asked, step.delivery, upload.variant, waits=step.waits)
            case Ask():
                await self._ask_where(upload, waits=step.waits)
            case Cancel():
                upload.may_end = True
                asked = self._request("DELETE", upload.path)
                self.requests.append((asked, upload.variant))
                await self._ask(asked, PLAIN, upload.variant, waits=step.waits)
            case Again():
                if self.requests:
                    asked, variant = self.requests[round(step.which * (len(self.requests) - 1))]
                    await self._ask(asked, step.delivery, variant, waits=step.waits)
            case Malformed():
                asked = self._malformed(step, upload)
                await self._ask(asked, step.delivery, upload.variant, waits=step.waits)

    def _patch(self, step: Part, upload: Upload) -> Asked:
        data = upload.variant.data
        begin = min(upload.offset if step.begin is None else step.begin, len(data))
        end = max(begin, min(step.end, len(data)))
        is_last = end == len(data)
        is_early = step.says == "early" and self.schedule.says_length
        headers = [("Content-Type", PARTIAL), ("Upload-Offset", str(begin))]
        if step.says != "nothing":
            complete = is_early or (is_last and step.says != "not yet")
            headers.append(("Upload-Complete", "?1" if complete else "?0"))
        if step.says_length:
            headers.append(("Upload-Length", str(len(data))))
        return self._request("PATCH", upload.path, headers, data[begin:end], step.chunked)

    def _malformed(self, step: Malformed, upload: Upload) -> Asked:
        match step.how:
            case "HEAD":
                return self._request("HEAD", upload.path, [("Upload-Offset", "0")])
            case "no offset":
                return self._request("PATCH", upload.path, [("Content-Type", PARTIAL)], b"x")
            case _:
                headers = [("Content-Type", "text/plain"), ("Upload-Offset", str(upload.offset))]
                return self._request("PATCH", upload.path, headers, b"x")

    async def _see_through(self, upload: Upload) -> None:
        for turn in range(MOST_TRIES):
            if turn == 3:
                await self._standing_break()
            told = await self._ask_where(upload, waits=True)
            if told is None or told.status == 404 or told.complete:
                return
            rest = upload.variant.data[upload.offset :]
            headers = [
                ("Content-Type", PARTIAL),
                ("Upload-Offset", str(upload.offset)),
                ("Upload-Complete", "?1"),
            ]
            asked = self._request("PATCH", upload.path, headers, rest)
            told = await self._ask(asked, PLAIN, upload.variant, waits=True)
            if told is None or told.status in (200, 404):
                return
        self.faults.append("The upload is not to be seen through.")

    async def _ask_where(self, upload: Upload, *, waits: bool) -> Told | None:
        asked = self._request("HEAD", upload.path)
        return await self._ask(asked, PLAIN, upload.variant, waits=waits)

    async def _standing_break(self) -> None:
        """What stands still breaks, and what is under way ends."""
        self._released.set()
        while self._background:
            done, _ = await asyncio.wait(self._background)
            self._background -= done
            for task in done:
                task.result()
        self._released = asyncio.Event()

    def _request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        chunked: bool = False,
        query: str = "",
    ) -> Asked:
        return Asked(method, path, (*self._place.headers, *headers), body, chunked, query)

    async def _ask(
        self, asked: Asked, delivery: Delivery, variant: Variant, *, waits: bool
    ) -> Told | None:
        """The answer, if it was waited for and came."""
        asking = self._asked(asked, delivery, variant)
        if waits and not delivery.stands:
            return await asking
        self._background.add(asyncio.create_task(asking))
        return None

    async def _asked(self, asked: Asked, delivery: Delivery, variant: Variant) -> Told | None:
        number = next(self._numbers)
        self.history.append((number, asked, delivery))
        upload = self.upload if self.upload and asked.path == self.upload.path else None
        before = None if upload is None else replace(upload)
        if upload is not None:
            upload.says_length |= "Upload-Length" in dict(asked.headers)
            upload.may_be_complete |= _may_complete(asked, delivery, upload)

        def answering(headers: Mapping[str, str]) -> None:
            if upload is not None:
                self._check_place(upload, headers)

        told = await self._network.ask(asked, delivery, self._released, answering)
        self.history.append((number, told, None))
        if told is not None:
            self._check_form(asked, told)
            if asked.method == "POST":
                self._posted(asked, told, variant)
            elif upload is not None and before is not None:
                self._changed(upload, asked, told, before)
        return told

    # What it was told

    def _check_form(self, asked: Asked, told: Told) -> None:
        """The answer is one of those that are documented for what was asked."""
        code = told.code
        if told.status >= 400 and asked.method != "HEAD":
            self._require(STATUS_OF.get(code) == told.status, f"{told.status} {code!r} is unknown")
        expected = {*EXPECTED[asked.method]}
        if asked.method == "POST" and self.schedule.keyed:
            expected |= {"idempotency_key_in_use"}
            if len(self.schedule.variants) > 1:
                expected |= {"idempotency_key_reused"}
        if self.upload is not None and _is_early(asked, self.upload):
            expected |= {"length_mismatch"}
        if self.upload is not None and self.upload.may_end:
            expected |= {"upload_ended", 404}
        if asked.body == b"x" or ("Upload-Offset", "0") in asked.headers:
            expected |= {"invalid_parameter", "unsupported_media_type", 400}
        self._require((code or told.status) in expected, f"{told.status} {code} is not expected")

    def _posted(self, asked: Asked, told: Told, variant: Variant) -> None:
        if told.status not in (200, 201):
            return
        if self.success is None or not self.schedule.keyed:
            self.success = (asked.query, asked.body, told)
        first = self.success == (asked.query, asked.body, told)
        self._require(first, "the answer is not that of the first POST")
        stream_id = json.loads(told.body)["stream_id"] if told.body else None
        if told.status == 200:
            self._complete(variant, told)
        else:
            self._require(not self._is_last(asked, variant), "it was the last part")
        path = told.headers.get("location")
        self._require((path is not None) is self.schedule.upload, "an upload has an address")
        if path is not None and (self.upload is None or self.upload.path != path):
            offset = told.offset
            assert offset is not None
            says_length = self.schedule.says_length
            self.upload = Upload(path, variant, stream_id, offset, offset, says_length)
            self.upload.may_be_complete = _may_complete(asked, PLAIN, self.upload)
            self.upload.complete = told.complete
            self.upload.may_end = self.schedule.is_given_up
            if told.complete:
                self._require(self.upload.may_be_complete, "it cannot be complete")

    def _changed(self, upload: Upload, asked: Asked, told: Told, before: Upload) -> None:
        """`before`: what was known when this was asked."""
        if told.offset is None:
            self.faults.append("An answer does not say where the upload stands.")
            return
        upload.offset = told.offset
        upload.most = max(upload.most, told.offset)
        self._require(before.most <= told.offset, f"it stood at {before.most} before")
        self._require(told.complete or not before.complete, "it was complete before")
        self._require(upload.may_be_complete or not told.complete, "it cannot be complete")
        self._require(told.complete or told.code != "upload_complete", "it is not complete")
        is_mismatch = ("Upload-Offset", str(told.offset)) not in asked.headers
        self._require(is_mismatch or told.code != "offset_mismatch", "it stands there")
        if told.status == 404 or (asked.method == "DELETE" and told.status == 204):
            upload.ended = True
        upload.complete = upload.complete or told.complete
        self._require(not (upload.complete and upload.ended), "it is complete, and ended before")
        if asked.method == "PATCH" and told.status in (200, 201):
            self._require(told.complete is (told.status == 200), "200 is for what is complete")
            if told.status == 200:
                self._require(_may_be_last(asked, upload), "it was not the last part")
                self._complete(upload.variant, told)
            else:
                self._require(not self._is_last(asked, upload.variant), "it was the last part")

    def _is_last(self, asked: Asked, variant: Variant) -> bool:
        """Whether it completes the upload, by what it says itself or the POST has said."""
        said = dict(asked.headers)
        is_known = self.schedule.says_length or "Upload-Length" in said
        return said.get("Upload-Complete") == "?1" or (
            is_known and _end(asked) == len(variant.data)
        )

    def _complete(self, variant: Variant, told: Told) -> None:
        sent = json.loads(told.body)
        self._require(sent["size"] == len(variant.text.encode()), "the size is another")
        self._require(self.sent.setdefault(sent["stream_id"], variant) == variant, "another text")

    def _check_place(self, upload: Upload, headers: Mapping[str, str]) -> None:
        """As an answer is given: what is told as taken is in the room."""
        offset = int(headers.get("upload-offset", 0))
        self._require(upload.most <= offset, f"it stood at {upload.most} before")
        upload.most = max(upload.most, offset)
        if upload.stream_id is not None:
            taken = _text_within(self.schedule, upload.variant.data[:offset])
            stream = self._place.ear.streams.get(upload.stream_id)
            heard = "" if stream is None else stream.text
            self._require(heard.startswith(taken), f"of {taken!r} only {heard!r} is in the room")

    def _require(self, so: bool, fault: str) -> None:
        if not so:
            self.faults.append(f"At line {len(self.history)}: {fault}.")

    # What became of it

    def verdict(self) -> list[str]:
        """What is wrong, all in all."""
        ear = self._place.ear
        ids = [each for tag in self.meant for each in ear.of[tag]]
        whole = [each for each in ids if ear.streams[each].is_whole]
        for each in ids:
            self._judge(each, ear.streams[each])
        if self.schedule.keyed and len(whole) > 1:
            self.faults.append(f"With one key there are {len(whole)} texts: {whole}.")
        for tag in self.meant:
            if tag in self.broken and any(each in whole for each in ear.of[tag]):
                self.faults.append(f"The text {tag} never came to its end, and is complete.")
            if sum(each in whole for each in ear.of[tag]) > 1:
                self.faults.append(f"The text {tag} is there more than once.")
        self.faults += [
            f"{each} was told as sent, and is not there." for each in self.sent if each not in whole
        ]
        if upload := self.upload:
            self._judge_upload(upload, whole)
        return self.faults

    def _judge(self, stream_id: str, stream: Heard) -> None:
        texts = [each.text for each in self.meant[stream.tag]]
        if stream_id in self.sent:
            texts = [self.sent[stream_id].text]
        if not stream.has_ended:
            self.faults.append(f"{stream_id} is still open.")
        elif not stream.is_whole:
            given_up = {"upload_idle"} if self.schedule.is_given_up else set()
            if stream.reason not in {"cancelled", "client_disconnected", *given_up}:
                self.faults.append(f"{stream_id} ended for the reason {stream.reason!r}.")
            if not any(text.startswith(stream.text) for text in texts):
                self.faults.append(f"{stream_id} has {stream.text!r}, the beginning of no text.")
        elif stream.text not in texts:
            self.faults.append(f"{stream_id} has {stream.text!r}, and is marked complete.")
        elif self.schedule.media_type == LINES:
            closes = [_trailer_within(self.schedule, each) for each in self.meant[stream.tag]]
            if dict(stream.attributes) not in [{"tag": stream.tag, **each} for each in closes]:
                self.faults.append(f"{stream_id} has the attributes {stream.attributes}.")

    def _judge_upload(self, upload: Upload, whole: Sequence[str]) -> None:
        ids = [each for each in whole if each in self._place.ear.of[upload.variant.tag]]
        if upload.stream_id is not None:
            ids = [each for each in ids if each == upload.stream_id]
        if ids and not upload.may_be_complete:
            self.faults.append("The upload never came to its end, and its text is complete.")
        if upload.complete and not ids:
            self.faults.append("The upload was told as complete, and its text is not there.")
        if upload.ended and ids:
            self.faults.append("The upload was told as ended, and its text is complete.")
        if not (upload.complete or upload.ended or self.schedule.abandons):
            self.faults.append("The upload was seen through, and is neither complete nor ended.")

    def account(self) -> str:
        """For a person."""
        schedule = self.schedule
        plan = [f"Schedule {schedule.number} ({schedule.media_type}, gzip={schedule.compressed}):"]
        plan += [
            f"  {each.tag}: {each.text!r} as {each.data!r}"[:400] for each in schedule.variants
        ]
        ear = self._place.ear
        streams = [
            f"  heard {each}: {ear.streams[each]}" for tag in self.meant for each in ear.of[tag]
        ]
        faults = [f"  ! {each}" for each in self.faults]
        return "\n".join([*plan, *starmap(_line, self.history), *streams, *faults])


def _kinds(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


STATUS_OF = {kind.code: problems.status_of(kind).value for kind in _kinds(GatewayError)}

EXPECTED: Mapping[str, frozenset[int | str]] = {
    "POST": frozenset({200, 201}),
    "PATCH": frozenset({200, 201, "offset_mismatch", "upload_interrupted", "upload_complete"}),
    "HEAD": frozenset({204}),
    "DELETE": frozenset({204, "upload_complete"}),
}
"""Statuses, and codes of problems, that any schedule may meet."""


def _may_complete(asked: Asked, delivery: Delivery, upload: Upload) -> bool:
    """Whether the upload may be complete with it: it says so, or ends where the whole is known to end."""
    says = dict(asked.headers).get("Upload-Complete") == "?1"
    is_end = upload.says_length and _end(asked) == len(upload.variant.data)
    return (says or is_end) and not asked.is_cut(delivery)


def _may_be_last(asked: Asked, upload: Upload) -> bool:
    says = dict(asked.headers).get("Upload-Complete") != "?0"
    return (says or upload.says_length) and _end(asked) == len(upload.variant.data)


def _is_early(asked: Asked, upload: Upload) -> bool:
    """Whether it says that the upload is complete with it, and is not its end."""
    said = dict(asked.headers)
    return said.get("Upload-Complete") == "?1" and _end(asked) < len(upload.variant.data)


def _end(asked: Asked) -> int:
    return int(dict(asked.headers).get("Upload-Offset", 0)) + len(asked.body)


def _text_within(schedule: Schedule, data: bytes) -> str:
    """All text that is whole within the beginning of a body, read in another way than the gateway's."""
    plain = _plain(schedule, data)
    if schedule.media_type == JSON:
        return ""
    if schedule.media_type != LINES:
        return plain.decode(errors="ignore")
    *lines, _ = plain.split(b"\n")
    return "".join(_pieces(lines))


def _pieces(lines: Iterable[bytes]) -> list[str]:
    values = [json.loads(line) for line in lines if line]
    return [each.get("text", "") if isinstance(each, dict) else each for each in values]


def _trailer_within(schedule: Schedule, variant: Variant) -> Mapping[str, str]:
    last = json.loads(_plain(schedule, variant.data).strip().rpartition(b"\n")[2] or b"0")
    return last.get("close", {}).get("attributes", {}) if isinstance(last, dict) else {}


def _plain(schedule: Schedule, data: bytes) -> bytes:
    if not schedule.compressed:
        return data
    plain = b""
    while data:
        member = zlib.decompressobj(31)
        plain += member.decompress(data)
        data = member.unused_data
    return plain


def _line(number: int, what: Asked | Told | None, delivery: Delivery | None) -> str:
    if isinstance(what, Asked) and delivery is not None:
        return f"{number:3} {_described(what)}  {_how(delivery)}"
    assert not isinstance(what, Asked)
    return f"{number:3} -> {_told(what)}"


def _described(asked: Asked) -> str:
    names = ("Upload-Offset", "Upload-Complete", "Upload-Length", "Idempotency-Key")
    headers = [f"{name}: {value}" for name, value in asked.headers if name in names]
    framing = "chunked" if asked.chunked else "whole"
    return " ".join([asked.method, *headers, f"{len(asked.body)} bytes {framing}"])


def _how(delivery: Delivery) -> str:
    where = "" if delivery.cut is None else f" cut at {delivery.cut:g}"
    stands = ", stands" if delivery.stands else ""
    return f"borders {delivery.borders} pauses {delivery.pauses}{where}{stands}"


def _told(told: Told | None) -> str:
    if told is None:
        return "no answer"
    offset = "" if told.offset is None else f" at {told.offset}, complete: {told.complete}"
    return f"{told.status} {told.code}{offset}"
