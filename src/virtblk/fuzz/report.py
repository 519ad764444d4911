"""How a campaign tells of itself: a bar on a terminal, a line every few seconds in a log, a table at the end."""

from __future__ import annotations

from typing import TextIO

from virtblk.figures import si
from virtblk.fuzz.campaign import FuzzOptions, Report, groups_total
from virtblk.fuzz.groups import GROUPS
from virtblk.progress import StatusLine


class Progress(StatusLine):
    """Where a campaign stands."""

    def __init__(self, stream: TextIO, options: FuzzOptions) -> None:
        super().__init__(stream)
        self._options = options

    def campaign(self, passed: float, report: Report) -> None:
        """Where the campaign stands after `passed` seconds."""
        if not self.due():
            return
        options = self._options
        total = sum(report.inputs.values())
        shares = [passed / options.runtime] if options.runtime else []
        shares += [total / options.count] if options.count else []
        share = min(1.0, max(shares, default=0.0))
        covered, items = groups_total(report.coverage, options.attackers)
        of = f"{passed:.0f} of {options.runtime:g} s" if options.runtime else f"{passed:.0f} s"
        text = f"fuzz: {of}, {si(total)} inputs, {si(total / passed if passed else 0)}/s, {covered} of {items} kinds"
        self.write(text, share)

    def minimising(self, runs: int, left: int) -> None:
        """How far a case has been made shorter."""
        if self.due():
            self.write(f"fuzz: minimising, {left} steps left after {runs} runs")


def print_report(report: Report, options: FuzzOptions, out: TextIO) -> None:
    """The table of groups, the totals, and each finding with what to do next."""
    if options.attackers:
        print(f"{'group':<18}{'sent by':<20}{'kinds':>8}{'inputs':>12}", file=out)
    for group in GROUPS:
        if not set(group.attackers) & set(options.attackers):
            continue
        kinds = f"{report.coverage.covered(group)}/{len(group.items)}"
        print(
            f"{group.name:<18}{', '.join(group.attackers):<20}{kinds:>8}{report.coverage.inputs(group):>12}", file=out
        )
    total = sum(report.inputs.values())
    each = ", ".join(f"{count} by the {name}" for name, count in report.inputs.items())
    rate = si(total / report.seconds) if report.seconds else "0"
    print(f"{total} inputs ({each}) in {report.seconds:.1f} s, {rate} a second, seed {report.seed}", file=out)
    for finding in report.findings:
        how = "reproduced" if finding.reproduced else "not reproduced"
        print(f"{finding.kind.upper()}: {finding.detail} ({finding.case.attacker}, {how})", file=out)
        for line in finding.notes:
            print(f"    {line}", file=out)
        if finding.path:
            print(
                f"    {len(finding.case.steps)} of {finding.steps_before} steps saved; --replay {finding.path}",
                file=out,
            )
    if not report.findings:
        print("nothing found" + (", interrupted" if report.interrupted else ""), file=out)
