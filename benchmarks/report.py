"""Results as a Markdown page: figures with their spread, ratios in pairs, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import MEASUREMENTS_FILE, Figure, Measurement, Results, WorkInfo
from benchmarks.spread import Spread, significant

REPORT_FILE = "report.md"
_NOTHING = "-"


def render(results: Results, plots: Sequence[str] = ()) -> str:
    """plots: files beside the report."""
    works = [work for work in results.works if results.servers_of(work.id)]
    parts = [
        "# Benchmark report",
        _conditions(results),
        _legend(),
        "## Figures",
        *(_figures(results, family) for family in _families(works)),
        *_ratio_sections(results, works),
        *_growth_section(results, works),
        *_plot_section(plots),
        *_list_section("Skipped", results.skipped),
        *_list_section("Problems", _problems(results.measurements)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(results: Results, folder: Path, plots: Sequence[str] = ()) -> Path:
    path = folder / REPORT_FILE
    path.write_text(render(results, plots), encoding="utf-8")
    return path


def _conditions(results: Results) -> str:
    rows = [*results.conditions.items()]
    rows += [(f"`{name}`", version) for name, version in results.servers.items()]
    return table(["", ""], rows)


def _legend() -> str:
    return (
        "Cells are `median [lowest..highest]` over rounds. All of a work's servers are measured in "
        "turn within a round. CPU per request is the processor time that the operating system "
        "counted for all processes of the server, divided by the requests; PSS is their memory, "
        "shared pages divided among those who share them. `runs` counts measurements, `noisy` "
        "those left out because the machine was disturbed (all are kept where none was quiet; the "
        f"cells are then in italics). Every measurement is in `{MEASUREMENTS_FILE}`. † the load "
        "client had hardly any processor time to spare: the server may do better than shown."
    )


def _families(works: Iterable[WorkInfo]) -> list[list[WorkInfo]]:
    families: dict[str, list[WorkInfo]] = {}
    for work in works:
        families.setdefault(work.family, []).append(work)
    return [*families.values()]


def _figures(results: Results, family: Sequence[WorkInfo]) -> str:
    figures = family[0].figures
    rows = []
    for work in family:
        for server in results.servers_of(work.id):
            mine = results.of(work.id, server)
            cells = [_cell(results, work, server, figure) for figure in figures]
            rows.append([work.id, server, *cells, *_counts(mine)])
    titles = "\n".join(f"* {work.id}: {work.title}" for work in family)
    header = ["work", "server", *(figure.title for figure in figures)]
    return "\n\n".join(
        [f"### {family[0].family}", titles, table([*header, "runs", "noisy", "failures"], rows)]
    )


def _cell(results: Results, work: WorkInfo, server: str, figure: Figure) -> str:
    spread = results.spread(work.id, server, figure.attribute)
    if spread is None:
        return _NOTHING
    mine = results.of(work.id, server)
    text = spread_text(spread)
    if not any(each.is_quiet for each in mine):
        text = f"_{text}_"
    if figure.attribute == "requests_per_s" and any(each.is_client_bound for each in mine):
        text += " †"
    return text


def _counts(mine: Sequence[Measurement]) -> list[str]:
    failures = sum(each.failures for each in mine)
    requests = sum(each.requests or 0 for each in mine)
    share = f" ({failures / (failures + requests):.2%})" if failures and requests else ""
    return [
        str(sum(not each.is_broken for each in mine)),
        str(sum(bool(each.noise) for each in mine)),
        f"{failures}{share}",
    ]


def spread_text(spread: Spread) -> str:
    median = significant(spread.median)
    if spread.size == 1:
        return median
    return f"{median} [{significant(spread.low)}..{significant(spread.high)}]"


def _ratio_sections(results: Results, works: Sequence[WorkInfo]) -> list[str]:
    if len(results.servers) < 2:
        return []
    ours, *rivals = results.servers
    sections = [
        f"## Ratios of `{ours}` to the others",
        "Each ratio is of two measurements of one round; the cell is the median of the rounds' "
        "ratios [lowest..highest], of the pairs in which both were quiet, or of all where there is "
        "no such pair. **Bold**: better in every pair; _italic_: worse in every one.",
    ]
    for rival in rivals:
        both = [work for work in works if {ours, rival} <= set(results.servers_of(work.id))]
        if both:
            sections.append(f"### `{ours}` / `{rival}`")
            sections += [_ratio_table(results, group, ours, rival) for group in _alike(both)]
    return sections


def _alike(works: Sequence[WorkInfo]) -> list[list[WorkInfo]]:
    """In groups that have the same figures."""
    groups: dict[tuple[Figure, ...], list[WorkInfo]] = {}
    for work in works:
        groups.setdefault(tuple(work.figures), []).append(work)
    return [*groups.values()]


def _ratio_table(results: Results, works: Sequence[WorkInfo], ours: str, rival: str) -> str:
    figures = works[0].figures
    rows = []
    for work in works:
        found = [results.pairs(work.id, ours, rival, figure.attribute) for figure in figures]
        cells = [
            _ratio_cell(pairs.spread, figure) for pairs, figure in zip(found, figures, strict=True)
        ]
        most = max(found, key=lambda pairs: pairs.all)
        rows.append([work.id, *cells, f"{most.quiet} of {most.all}"])
    return table(["work", *(figure.title for figure in figures), "quiet pairs"], rows)


def _ratio_cell(pairs: Spread | None, figure: Figure) -> str:
    if pairs is None:
        return _NOTHING
    text = spread_text(pairs)
    if pairs.size > 1:
        if (pairs.low > 1) if figure.is_more_better else (pairs.high < 1):
            return f"**{text}**"
        if (pairs.high < 1) if figure.is_more_better else (pairs.low > 1):
            return f"_{text}_"
    return text


def _growth_section(results: Results, works: Sequence[WorkInfo]) -> list[str]:
    """How much a server's figures change from the smallest to the largest of a growth."""
    sections = []
    for family in _families(works):
        if not family[0].is_growth:
            continue
        figures = family[0].figures
        rows = []
        for server in results.servers:
            measured = [work for work in family if server in results.servers_of(work.id)]
            measured.sort(key=lambda work: work.x or 0)
            if len(measured) > 1:
                first, last = measured[0], measured[-1]
                cells = [_change(results, server, first, last, figure) for figure in figures]
                rows.append([server, f"{first.x} → {last.x}", *cells])
        if rows:
            header = ["server", family[0].family, *(figure.title for figure in figures)]
            sections.append(table(header, rows))
    if not sections:
        return []
    return ["## Growth: the median at the largest size divided by that at the smallest", *sections]


def _change(results: Results, server: str, first: WorkInfo, last: WorkInfo, figure: Figure) -> str:
    small = results.spread(first.id, server, figure.attribute)
    large = results.spread(last.id, server, figure.attribute)
    if not small or not large or not small.median:
        return _NOTHING
    return significant(large.median / small.median)


def _plot_section(plots: Sequence[str]) -> list[str]:
    return ["## Plots", *(f"![{name}]({name})" for name in plots)] if plots else []


def _list_section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return [f"## {title}", "\n".join(f"* {_one_line(line)}" for line in lines)]


def _problems(measurements: Iterable[Measurement]) -> list[str]:
    lines = []
    for each in measurements:
        where = f"{each.work}, {each.server}, round {each.round}"
        if each.problem:
            lines.append(f"{where}: {each.problem}")
        if each.failures:
            lines.append(
                f"{where}: of {(each.requests or 0) + each.failures} requests {each.failures} "
                f"failed ({each.failure_kinds})"
            )
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
