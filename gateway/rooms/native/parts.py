"""Which private parts of LiveKit's SDK we touch, and whether the installed version has them.

An SDK that lacks one, or has it in another form, is used by its public face alone. What a part *means*
no check can tell; the contract tests do, which run over both forms.
"""

import importlib
import inspect
from typing import Any

from livekit import rtc


def _module(name: str) -> Any:
    """A private module of the SDK, or None where it has no such module."""
    try:
        return importlib.import_module(f"livekit.rtc.{name}")
    except ImportError:
        return None


ffi_client = _module("_ffi_client")
ffi_pb2 = _module("_proto.ffi_pb2")

KEYS = {
    "room_event": "room_handle",
    "rpc_method_invocation": "local_participant_handle",
    "text_stream_reader_event": "reader_handle",
    "send_text": "async_id",
    "text_stream_open": "async_id",
    "text_stream_writer_write": "async_id",
    "text_stream_writer_close": "async_id",
    "send_stream_trailer": "async_id",
}
"""The native events that have one addressee, and the field that says who it is."""

_METHODS = {
    rtc.Room: {
        "connect": "self url token options",
        "_handle_text_stream_opened": "self opened",
        "_on_room_event": "self event",
        "_error_stream_readers": "self",
    },
    rtc.TextStreamWriter: {
        "_send_header": "self",
        "_wait_for_callback": "self req callback_field response_field",
    },
    getattr(ffi_client, "FfiClient", None): {"request": "self req"},
    getattr(ffi_client, "FfiQueue", None): {"put": "self item", "unsubscribe": "self queue"},
    getattr(ffi_client, "FfiHandle", None): {"__init__": "self handle", "dispose": "self"},
}
"""What we override or call, with the parameters that we count on."""

_NAMES = {
    rtc.Room: {
        "connect": "_ffi_queue _ffi_handle _local_participant _task ready_for_room_event",
        "_handle_text_stream_opened": "_text_stream_handlers _text_stream_readers",
        "_error_stream_readers": "_text_stream_readers _signal_disconnect clear",
    },
    rtc.TextStreamWriter: {"_send_header": "_options"},
    rtc.LocalParticipant: {"send_text": "_ffi_handle handle"},
    getattr(ffi_client, "FfiClient", None): {
        "__init__": "_ffi_lib livekit_ffi_initialize ffi_event_callback __version__"
    },
}
"""Attributes that only instances have, and the functions of the SDK that must still speak of them."""

_FIELDS = {
    "FfiEvent": [
        *(f"{kind}.{key}" for kind, key in KEYS.items()),
        "logs.records.level",
        "logs.records.target",
        "logs.records.message",
        "panic.message",
        "room_event.participants_updated.participants.identity",
        "room_event.stream_chunk_received.chunk.stream_id",
        "room_event.stream_chunk_received.participant_identity",
        "room_event.stream_trailer_received.participant_identity",
        "room_event.stream_trailer_received.trailer.stream_id",
        "room_event.text_stream_opened.participant_identity",
        "room_event.text_stream_opened.reader.handle.id",
        "room_event.text_stream_opened.reader.info.stream_id",
        "room_event.text_stream_opened.reader.info.timestamp",
        "room_event.text_stream_opened.reader.info.mime_type",
        "room_event.text_stream_opened.reader.info.topic",
        "room_event.text_stream_opened.reader.info.total_length",
        "room_event.text_stream_opened.reader.info.attributes",
        "room_event.text_stream_opened.reader.info.operation_type",
        "room_event.text_stream_opened.reader.info.version",
        "room_event.text_stream_opened.reader.info.reply_to_stream_id",
        "room_event.text_stream_opened.reader.info.attached_stream_ids",
        "room_event.text_stream_opened.reader.info.generated",
        "text_stream_reader_event.chunk_received.content",
        "text_stream_reader_event.eos.error.description",
        "text_stream_reader_event.eos.attributes",
        "send_text.error.description",
        "send_text.info.stream_id",
        "send_text.info.timestamp",
        "text_stream_open.error.description",
        "text_stream_open.writer.handle.id",
        "text_stream_writer_write.error.description",
        "text_stream_writer_close.error.description",
        "send_stream_trailer.error",
    ],
    "FfiRequest": [
        "text_read_incremental.reader_handle",
        "send_text.local_participant_handle",
        "send_text.text",
        "send_text.options.topic",
        "send_text.options.attributes",
        "send_text.options.destination_identities",
        "send_text.options.id",
        "send_text.options.reply_to_stream_id",
        "send_text.options.compress",
        "send_text.options.sender_identity",
        "send_text.options.operation_type",
        "send_text.options.version",
        "send_text.options.attached_stream_ids",
        "send_text.options.generated",
        "text_stream_open.options.operation_type",
        "text_stream_open.options.version",
        "text_stream_open.options.attached_stream_ids",
        "text_stream_open.options.generated",
        "send_stream_trailer.local_participant_handle",
        "send_stream_trailer.sender_identity",
        "send_stream_trailer.destination_identities",
        "send_stream_trailer.trailer.stream_id",
        "send_stream_trailer.trailer.reason",
        "text_stream_close.writer_handle",
        "text_stream_close.reason",
    ],
    "FfiResponse": [
        "send_text.async_id",
        "text_stream_open.async_id",
        "text_stream_write.async_id",
        "text_stream_close.async_id",
        "send_stream_trailer.async_id",
    ],
}
"""Fields of the native messages that we read or write."""


def missing_parts() -> list[str]:
    """What we touch and the installed SDK does not have, or has in another form."""
    return [*_missing_methods(), *_missing_names(), *_missing_fields()]


def _missing_methods() -> list[str]:
    return [
        f"{_name(owner)}.{name}"
        for owner, methods in _METHODS.items()
        for name, parameters in methods.items()
        if not _has_method(owner, name, parameters.split())
    ]


def _missing_names() -> list[str]:
    return [
        f"{name} in {_name(owner)}.{method}"
        for owner, methods in _NAMES.items()
        for method, names in methods.items()
        for name in names.split()
        if name not in _names_in(getattr(owner, method, None))
    ]


def _missing_fields() -> list[str]:
    return [
        f"{message}.{path}"
        for message, paths in _FIELDS.items()
        for path in paths
        if not _has_field(getattr(ffi_pb2, message, None), path)
    ]


def _name(owner: Any) -> str:
    return getattr(owner, "__name__", "_ffi_client")


def _has_method(owner: Any, name: str, parameters: list[str]) -> bool:
    method = getattr(owner, name, None)
    return inspect.isfunction(method) and list(inspect.signature(method).parameters) == parameters


def _names_in(method: Any) -> tuple[str, ...]:
    return method.__code__.co_names if inspect.isfunction(method) else ()


def _has_field(message: Any, path: str) -> bool:
    descriptor = getattr(message, "DESCRIPTOR", None)
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        if field is None:
            return False
        descriptor = field.message_type
    return True
