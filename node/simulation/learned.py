"""What a world learned: runs, votes, patches and privacy, told from the journals of all its nodes.

Every node journals that a patch was ratified; here each counts once.
"""

from dataclasses import dataclass, field

from node.event import Event


@dataclass
class Learned:
    """Counts what nodes journal; see `World.watch`.

    Attributes:
        patches: manifests that some node holds ratified.
        runs: how the runs ended, by their ids; empty while one goes on.
        votes: that voters cast.
        spent_milli: epsilon, of each data source of each node.
    """

    patches: set[str] = field(default_factory=set)
    runs: dict[str, str] = field(default_factory=dict)
    votes: int = 0
    spent_milli: dict[tuple[str, str], int] = field(default_factory=dict)

    def note(self, _at_s: float, node: str, event: Event) -> None:
        """Hear of an event."""
        fields = event.fields
        match event.name:
            case "patch_ratified":
                self.patches.add(str(fields["manifest"]))
            case "vote_cast":
                self.votes += 1
            case "run_announced":
                self.runs.setdefault(str(fields["run"]), "")
            case "run_finished" | "run_aborted":
                self.runs[str(fields["run"])] = event.name.removeprefix("run_")
            case "privacy_reserved":
                self.spent_milli[node, str(fields["source"])] = int(str(fields["spent_milli"]))

    def __str__(self) -> str:
        """Say it in a few words."""
        return (
            f"{len(self.runs)} runs, {sum(end == 'finished' for end in self.runs.values())} finished, "
            f"{self.votes} votes, {len(self.patches)} patches"
        )

    @property
    def epsilon_milli_max(self) -> int:
        """The most that was spent on any one data source."""
        return max(self.spent_milli.values(), default=0)
