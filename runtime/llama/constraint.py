"""Following a grammar byte by byte: which tokens may come next.

A state is a set of *places*: where in the grammar the text may be, each with what comes after it. States and the ways
between them are remembered, so the same letters of a JSON string cost a look into a dictionary each. A grammar that
leaves too many places open is given up on: in the worst case their number doubles with every byte.
"""

from functools import lru_cache

from runtime.engine import BadRequest
from runtime.llama import grammar as gbnf
from runtime.llama import schema as json_schema
from runtime.llama.grammar import END, Grammar

PLACES_MAX = 2_048  # in one state; 400 fields that may be left out come to 1,200
WORK_MAX = 30_000  # steps for one token, some 60 ms: the others in the batch wait for it
PLACES_KEPT_MAX = 100_000  # of one text; a place takes some 150 bytes
REMEMBERED_MAX = 50_000  # places of remembered states
GRAMMARS_MAX = 8  # compiled ones that are kept: many requests bring the same schema


class Place:
    """An item of the grammar, and the place to go on at behind its rule. There is one object for one place."""

    __slots__ = ("inner", "item", "outer")

    def __init__(self, item: int, outer: "Place | None") -> None:
        self.item = item
        self.outer = outer
        self.inner: dict[int, Place] | None = None  # by item: places from which it is gone on here


class State:
    """Where the text may be.

    Attributes:
        places: of symbols that are sets of bytes.
        is_complete: the text may end.
        following: the states that are known to come next, by byte; None: that byte may not come.
    """

    __slots__ = ("following", "is_complete", "places")

    def __init__(self, places: tuple[Place, ...], is_complete: bool) -> None:
        self.places = places
        self.is_complete = is_complete
        self.following: dict[int, State | None] = {}


@lru_cache(maxsize=GRAMMARS_MAX)
def compiled(schema: str, grammar: str) -> Grammar:
    """Return the grammar of a JSON schema, or of a text in GBNF.

    Raises:
        BadRequest: it is over the bounds or is none; the message says where.
    """
    return gbnf.parse(json_schema.to_gbnf(schema) if schema else grammar)


class Constraint:
    """Where one text is in its grammar.

    Raises:
        BadRequest: the grammar is too ambiguous at its beginning. So do `accept`, `fits` and `follow`, later on.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._end = Place(END, None)
        self._kept = 0
        self._work = 0
        self._remembered = 0
        self._states: dict[tuple[frozenset[Place], bool], State] = {}
        self._state: State | None = None
        self._state = self._state_of(
            [self._inner(self._end, start) for start in grammar.alternatives[grammar.root]]
        )

    @property
    def state(self) -> State:
        """Where the text is."""
        assert self._state is not None
        return self._state

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self.state.is_complete

    @property
    def is_finished(self) -> bool:
        """Whether it must."""
        return self.state.is_complete and not self.state.places

    def fits(self, piece: bytes) -> bool:
        """Whether the text may go on with these bytes. With none it does not go on."""
        return bool(piece) and self._after(piece) is not None

    def accept(self, piece: bytes) -> bool:
        """Go on with these bytes, if they fit."""
        state = self._after(piece)
        self._work = 0
        if state is not None:
            self._state = state
        return state is not None

    def follow(self, state: State, byte: int) -> State | None:
        """Return the state after one more byte; None: it may not come."""
        if byte in state.following:
            return state.following[byte]
        sets, items = self._grammar.byte_sets, self._grammar.items
        self._spend(len(state.places))
        begun = []
        for place in state.places:
            if sets[-2 - items[place.item]] >> byte & 1:
                assert place.outer is not None
                begun.append(self._inner(place.outer, place.item + 1))
        following = state.following[byte] = self._state_of(begun) if begun else None
        return following

    def _after(self, piece: bytes) -> State | None:
        state = self.state
        for byte in piece:
            following = state.following[byte] if byte in state.following else self.follow(state, byte)
            if following is None:
                return None
            state = following
        return state

    def _state_of(self, begun: list[Place]) -> State:
        """Go through rules until each place is before a set of bytes."""
        items, alternatives = self._grammar.items, self._grammar.alternatives
        places: list[Place] = []
        is_complete = False
        seen = set(begun)
        while begun:
            place = begun.pop()
            symbol = items[place.item]
            outer = place.outer
            assert outer is not None
            if symbol < END:
                places.append(place)
                continue
            if symbol == END:
                if outer is self._end:
                    is_complete = True
                    continue
                following = [outer]
            else:
                # What ends with a rule needs no way back to itself: a loop stays as deep as it was.
                back = outer if items[place.item + 1] == END else self._inner(outer, place.item + 1)
                following = [self._inner(back, start) for start in alternatives[symbol]]
            self._spend(len(following))
            for each in following:
                if each not in seen:
                    seen.add(each)
                    begun.append(each)
        if len(places) > PLACES_MAX:
            raise BadRequest(
                f"the grammar or schema is too ambiguous: the text may be at {len(places)} places of it at once, "
                f"expected at most {PLACES_MAX}"
            )
        return self._remember(places, is_complete)

    def _remember(self, places: list[Place], is_complete: bool) -> State:
        key = frozenset(places), is_complete
        if key not in self._states:
            self._remembered += len(places) + 1
            if self._remembered > REMEMBERED_MAX:
                self._remembered = 0
                self._states.clear()
                if self._state:
                    self._state.following.clear()
            self._states[key] = State(tuple(places), is_complete)
        return self._states[key]

    def _inner(self, outer: Place, item: int) -> Place:
        if outer.inner is None:
            outer.inner = {}
        place = outer.inner.get(item)
        if place is None:
            self._kept += 1
            if self._kept > PLACES_KEPT_MAX:
                raise BadRequest("the text nests too deeply in its grammar or schema")
            place = outer.inner[item] = Place(item, outer)
        return place

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > WORK_MAX:
            raise BadRequest(f"the grammar or schema takes over {WORK_MAX} steps to follow for one token")
