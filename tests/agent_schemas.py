"""What `openapi.yaml` says of agents' events, held against those that tests receive."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from openapi_schema_validator import OAS31Validator

DOCUMENT = yaml.safe_load((Path(__file__).parents[1] / "openapi.yaml").read_text())


def problems_of(data: dict[str, Any]) -> list[str]:
    """Of an event that a client must not get."""
    return [error.message for error in _validator(data["type"]).iter_errors(data)]


@cache
def _validator(type_: str) -> OAS31Validator:
    schemas = DOCUMENT["components"]["schemas"]
    reference = schemas["Event"]["discriminator"]["mapping"][type_]
    return OAS31Validator({"$ref": reference, "components": {"schemas": schemas}})
