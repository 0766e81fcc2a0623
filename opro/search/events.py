"""The lines of a run's journal, typed: what stands there is checked before anything is made of it."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from evaluators.plain_data import SHOWN, brief, inert


def _harmless(text: str) -> str:
    if inert(text) != text:
        raise ValueError("holds a control character, which could steer a terminal")
    return text


Text = Annotated[str, AfterValidator(_harmless)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Number = FiniteFloat
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
# JSON has lists alone
Slice = Annotated[tuple[Number | None, NonNegativeInt], Field(strict=False)]
BiasValue = Number | list[Number]


class Line(BaseModel):
    """A line of the journal. The schema is closed; numbers are numbers, not texts of them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Refused(Line):
    """A candidate that was not tried."""

    text: Text
    reason: Text


class Proposed(Line):
    """A candidate; `prompt` is read by `evaluators.prompts.prompt_from`."""

    number: NonNegativeInt
    prompt: dict[str, Any]
    origin: Text
    parents: list[Text]


class ProfileLine(Line):
    """How a prompt's answers behave; see `opro.search.objective.Profile`."""

    recalls: list[Share]
    auroc: Share | None
    tuned: Share


class Start(Line):
    """What the run is; compared with what it would be today, and no more."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    event: Literal["start"]


class Propose(Line):
    """The candidates of an iteration."""

    event: Literal["propose"]
    iteration: NonNegativeInt
    candidates: list[Proposed]
    refused: list[Refused] = []


class Steer(Line):
    """What a person asked for; `requests` are read by `opro.search.steering.request_from`."""

    event: Literal["steer"]
    iteration: NonNegativeInt
    requests: list[dict[str, Any]]


class Tell(Line):
    """A trial's outcome; see `opro.search.history.Outcome`. Keys with a default are missing in older journals."""

    event: Literal["tell"]
    prompt_id: Text
    number: NonNegativeInt
    state: Literal["complete", "dropped", "failed"]
    reward: Number | None
    sd: NonNegative
    score: Number | None
    low: Number | None
    high: Number | None
    nll: NonNegative | None
    bias: BiasValue
    fitted: BiasValue | None = None
    clips: NonNegativeInt
    blocks: list[Number]
    slices: dict[Text, Slice]
    profile: ProfileLine | None = None
    outside: Share | None = None
    unlisted: Share = 0.0
    tokens: NonNegativeInt | None = None
    error: Text


class Select(Line):
    """The outcome of the selection."""

    event: Literal["select"]
    chosen: NonNegativeInt
    baseline: NonNegativeInt
    reason: Text
    finalists: list[NonNegativeInt]
    turn: PositiveInt = (
        1  # which decision on its half; of the first one, and of older journals, not there
    )


Event = Start | Propose | Steer | Tell | Select
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def event_from(raw: dict[str, Any]) -> Event:
    """A line of the journal.

    Raises:
        ValueError: It is none; says at which key, with the value and what was expected.
    """
    try:
        return _ADAPTER.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parts = (str(part) for part in first["loc"] if part != raw.get("event"))
        place = inert(".".join(parts), lines=False)[:SHOWN]
        value = "" if first["type"] == "missing" else f" is {brief(first['input'])}"
        message = inert(first["msg"].lower(), lines=False)
        raise ValueError(f"{place or 'the line'}{value}: {message}") from None
