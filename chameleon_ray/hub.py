"""What the Hugging Face hub refuses, and what can be done about it."""

from __future__ import annotations

from typing import Literal


def terms_to_accept(page: str) -> str:
    """What to do about something gated on the hub."""
    return f"accept its terms at https://huggingface.co/{page} and set a token of yours (hf auth login, or HF_TOKEN)"


def refusal(error: BaseException | None) -> Literal["gated", "unknown"] | None:
    """Whether the hub refused: for terms that nobody accepted, or without saying why, as it does of names that do not exist; None where it did not."""
    found: Literal["gated", "unknown"] | None = None
    while error is not None:
        response = getattr(error, "response", None)
        code = getattr(response, "headers", {}).get("X-Error-Code")
        if type(error).__name__ == "GatedRepoError" or code == "GatedRepo" or " gated dataset" in str(error):
            return "gated"
        if getattr(response, "status_code", None) in (401, 403):
            found = "unknown"
        error = error.__cause__ or error.__context__
    return found
