"""What a diagnosis says of one thing."""

from __future__ import annotations

from dataclasses import dataclass

GRADES = ("good", "unknown", "doubtful", "bad")  # from best to worst
RICHER = (
    "more steps, if the loss was still falling; a richer guide by lvm.fit, from 'mean_field' to 'full_rank' to 'flow'; "
    "another parametrisation of the model"
)


@dataclass(frozen=True)
class Finding:
    """A sentence with its figure, a grade, and what to try.

    Attributes:
        about: What it is about, such as "k-hat".
        grade: "good", "doubtful" or "bad"; "unknown" where nothing can be said.
        text: What was found.
        advice: What to try next; empty if there is nothing to mend.
    """

    about: str
    grade: str
    text: str
    advice: str = ""
