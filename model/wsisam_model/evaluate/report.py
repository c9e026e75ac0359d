"""Scores summed up: tables in Markdown, everything in JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from wsisam_model.evaluate.intervals import Estimate, bootstrap, spearman
from wsisam_model.evaluate.scores import CLICK_TARGETS, FROZEN, HR, HR_LR, MAX_CLICKS, WRONG_LR, Clicks, Score

SIZES_UM2 = (1_000.0, 4_000.0, 16_000.0)
"""Borders of the classes of object size."""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one evaluation measured."""

    model: str
    adapters: str
    """Those for all tissue."""
    scores: Sequence[Score]
    clicks: Sequence[Clicks] = field(default_factory=tuple)
    rejected: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """What was left out, and why."""
    own_adapters: Sequence[str] = ()
    """Those beside them that have a tissue of their own."""
    leaks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name of adapters the groups among those scored that they were trained on, as their files say."""


def write_report(results: Results, folder: Path) -> None:
    """`report.md` and `scores.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(results))
    document = {
        "model": results.model,
        "adapters": results.adapters,
        "own_adapters": list(results.own_adapters),
        "leaks": {name: list(groups) for name, groups in results.leaks.items()},
        "scores": [asdict(score) for score in results.scores],
        "clicks": [asdict(clicks) for clicks in results.clicks],
        "rejected": [{"what": what, "reason": reason} for what, reason in results.rejected],
    }
    (folder / "scores.json").write_text(json.dumps(document, indent=1))


def markdown(results: Results) -> str:
    """The report. Intervals are 95 % bootstrap intervals, over objects and, after the semicolon, over patients."""
    scores = [score for score in results.scores if score.variant != WRONG_LR]
    objects = {score.object_id for score in scores}
    groups = {(score.dataset, score.group) for score in scores}
    cut = {score.object_id for score in scores if score.cut}
    lines = [
        f"# Evaluation of {results.adapters} on {results.model}",
        "",
        f"{len(objects)} objects of {len(groups)} patients or slides; the image's border cuts {len(cut)} of them. "
        "Dice within the HR view, which is chosen from the prompt alone, or for clicks within that of their second "
        "look, twice as wide. Brackets: 95 % bootstrap intervals, first over objects, then over patients.",
        "",
        *_leaks(results.leaks),
        "## Dice by prompt",
        "",
        *_table(scores, lambda score: score.dice),
        "",
        "## Boundary F-score by prompt (2 view pixels)",
        "",
        *_table(scores, lambda score: score.boundary_f),
        "",
        "## What was gained",
        "",
        "Boxes are answered on the same view by all. Clicks need not be: where an answer is of their second look, it "
        "is compared with the frozen SAM's on the first, as that has no second.",
        "",
        *_gains(results.scores),
        "",
        "## Dice by set",
        "",
        *_breakdown(scores, lambda score: score.dataset),
        "",
        "## Dice by object size",
        "",
        *_breakdown(scores, _size_class),
        "",
        "## Dice of whole and of cut objects",
        "",
        *_breakdown(scores, lambda score: "cut by the image's border" if score.cut else "whole"),
        "",
        "## Predicted IoU",
        "",
        *_calibration(scores),
    ]
    if results.own_adapters:
        lines += ["", "## Who drew what", "", *_drawn_by(scores, [results.adapters, *results.own_adapters])]
    if results.clicks:
        lines += ["", "## Clicks", "", *_click_table(results.clicks)]
    if results.rejected:
        lines += ["", "## Left out", "", *(f"- {what}: {reason}" for what, reason in results.rejected)]
    return "\n".join(lines) + "\n"


def _leaks(leaks: Mapping[str, Sequence[str]]) -> list[str]:
    """A paragraph for each set that has seen what it is asked about."""
    return [
        line
        for name, groups in leaks.items()
        for line in (f"**Not held out**: {name} was trained on {', '.join(groups)}, as its file says.", "")
    ]


def _table(scores: Sequence[Score], value: Callable[[Score], float]) -> list[str]:
    kinds, variants = _ordered(s.kind for s in scores), _ordered(s.variant for s in scores)
    lines = [f"| prompt | {' | '.join(variants)} |", "|---" * (len(variants) + 1) + "|"]
    for kind in kinds:
        cells = []
        for variant in variants:
            chosen = [score for score in scores if score.kind == kind and score.variant == variant]
            cells.append(_both([value(score) for score in chosen], chosen) if chosen else "")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _gains(scores: Sequence[Score]) -> list[str]:
    pairs = [(HR, FROZEN), (HR_LR, FROZEN), (HR_LR, HR), (HR_LR, WRONG_LR)]
    variants = {score.variant for score in scores}
    pairs = [pair for pair in pairs if set(pair) <= variants]
    lines = ["| prompt | " + " | ".join(f"{a} − {b}" for a, b in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    table = {(score.object_id, score.kind, score.variant): score for score in scores}
    for kind in _ordered(score.kind for score in scores):
        cells = []
        for better, worse in pairs:
            matched = [
                (score, table[score.object_id, kind, worse])
                for score in scores
                if score.kind == kind and score.variant == better and (score.object_id, kind, worse) in table
            ]
            gains = [a.dice - b.dice for a, b in matched]
            cells.append(_both(gains, [a for a, _ in matched], signed=True) if matched else "")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _breakdown(scores: Sequence[Score], part: Callable[[Score], str]) -> list[str]:
    kinds, variants = _ordered(s.kind for s in scores), _ordered(s.variant for s in scores)
    lines = [f"| part | objects | variant | {' | '.join(kinds)} |", "|---" * (len(kinds) + 3) + "|"]
    for name in sorted({part(score) for score in scores}):
        inside = [score for score in scores if part(score) == name]
        count = len({score.object_id for score in inside})
        for variant in variants:
            means = [[s.dice for s in inside if s.variant == variant and s.kind == kind] for kind in kinds]
            cells = " | ".join(f"{np.mean(values):.3f}" if values else "" for values in means)
            lines.append(f"| {name} | {count} | {variant} | {cells} |")
    return lines


def _calibration(scores: Sequence[Score]) -> list[str]:
    lines = ["| variant | Spearman's rho, all prompts | mean absolute error |", "|---|---|---|"]
    for variant in _ordered(score.variant for score in scores):
        chosen = [score for score in scores if score.variant == variant]
        predicted, true = [score.predicted_iou for score in chosen], [score.iou for score in chosen]
        error = float(np.mean(np.abs(np.subtract(predicted, true))))
        lines.append(f"| {variant} | {spearman(predicted, true):.3f} | {error:.3f} |")
    return lines


def _drawn_by(scores: Sequence[Score], adapters: Sequence[str]) -> list[str]:
    """The part of each set's answers that each of `adapters` drew."""
    lines = [f"| set | answers | {' | '.join(adapters)} |", "|---" * (len(adapters) + 2) + "|"]
    for name in _ordered(score.dataset for score in scores):
        drawn = [score.adapters for score in scores if score.dataset == name and score.variant != FROZEN]
        parts = [f"{drawn.count(one) / len(drawn):.1%}" for one in adapters]
        lines.append(f"| {name} | {len(drawn)} | {' | '.join(parts)} |")
    return lines


def _click_table(clicks: Sequence[Clicks]) -> list[str]:
    shown = (1, 2, 3, 5, 10, MAX_CLICKS)
    header = [f"Dice after {n}" for n in shown]
    header += [f"clicks to {target:.2f}, never as {MAX_CLICKS} (never)" for target in CLICK_TARGETS]
    lines = [f"| variant | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for variant in _ordered(item.variant for item in clicks):
        chosen = [item for item in clicks if item.variant == variant]
        cells = [f"{np.mean([item.dice[n - 1] for item in chosen]):.3f}" for n in shown]
        for target in CLICK_TARGETS:
            needed = [item.needed(target) for item in chosen]
            mean = np.mean([MAX_CLICKS if count is None else count for count in needed])
            cells.append(f"{mean:.1f} ({needed.count(None) / len(needed):.0%})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def _size_class(score: Score) -> str:
    index = sum(score.area_um2 >= border for border in SIZES_UM2)
    borders = [f"{border:,.0f}" for border in SIZES_UM2]
    names = [f"under {borders[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(borders)), f"from {borders[-1]}"]
    return f"{'abcd'[index]}: {names[index]} µm²"


def _both(values: Sequence[float], scores: Sequence[Score], *, signed: bool = False) -> str:
    by_object = bootstrap(values)
    by_group = bootstrap(values, [(score.dataset, score.group) for score in scores])
    ranges = f"{_range(by_object, 'one object', signed)}; {_range(by_group, 'one patient', signed)}"
    return f"{_number(by_object.mean, signed)} [{ranges}]"


def _range(estimate: Estimate, alone: str, signed: bool) -> str:
    """The interval, or `alone` where there is none."""
    if math.isnan(estimate.low):
        return alone
    return f"{_number(estimate.low, signed)} to {_number(estimate.high, signed)}"


def _number(value: float, signed: bool) -> str:
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _ordered(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of its first appearance."""
    return list(dict.fromkeys(names))
