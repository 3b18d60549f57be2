"""Signed links: the address of one file that needs no key, for a plain `curl -O`, until it expires or its key ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Request
from pydantic import BaseModel, Field

from ampref_service.api.deps import AuthenticatorDep, CallerDep
from ampref_service.api.params import Body, Time

LONGEST_SEC = 7 * 86_400


class LinkBody(Body):
    """For how long a link is to be good."""

    expires_in_sec: float = Field(86_400.0, ge=1, le=LONGEST_SEC, description="s; a week at most.")


A_DAY = LinkBody()
"""Without a body."""


class LinkView(BaseModel):
    """A link to one file: GET and HEAD, with ranges, without a key."""

    url: str
    expires_at: Time = Field(description="It ends earlier with the key that made it.")


@dataclass(frozen=True)
class LinkMaker:
    """Makes links in the caller's name."""

    request: Request
    caller: CallerDep
    authenticator: AuthenticatorDep

    def make(self, path: str, body: LinkBody) -> LinkView:
        """A link to the file at `path`; raises `Forbidden` for a caller without a key that it could end with."""
        expires = int(time.time() + body.expires_in_sec)
        query = self.authenticator.sign_link(path, self.caller, expires)
        base = str(self.request.base_url).rstrip("/")
        return LinkView.model_validate({"url": f"{base}{path}?{urlencode(query)}", "expires_at": expires})


LinkMakerDep = Annotated[LinkMaker, Depends()]
