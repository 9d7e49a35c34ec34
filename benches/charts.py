"""Drawings of what benches/compare measured: horizontal bars, each with its figure beside it, in SVG that needs nothing but a viewer."""

from html import escape

from rows import MAIN

WIDTH = 860
MARGIN = 24
NAMES = 120  # to the right of the margin, the servers' names
FIGURE = 150  # to the left of the other margin, what stands beside the longest bar
BAR = 14
PITCH = 19
CLIPPED = 6  # times shardcast's figure: longer bars end there
STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', sans-serif; font-size: 12px; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; } .group { font-size: 13px; font-weight: 600; } .note { fill: #59636e; } .name { text-anchor: end; }
.back { fill: #ffffff; } .own { fill: #0969da; } .other { fill: #afb8c1; } .mark { stroke: #59636e; stroke-dasharray: 3 3; }
.figure { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9198a1; } .back { fill: #0d1117; }
  .own { fill: #4493f8; } .other { fill: #6e7681; } .mark { stroke: #9198a1; } .figure { stroke: #0d1117; }
}
"""


def write(directory, results, median):
    """Draws what the results have rows for. Returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawings = {
        "cpu.svg": relative(results, median),
        "members.svg": absolute(
            "Fan-out by members of the room", "CPU µs of the server per delivery, 1 message in flight; less is better",
            {"grow100": "100 members", "one": "1,000 members", "grow10000": "10,000 members"}, results, median,
        ),
        "payload.svg": absolute(
            "Fan-out by size of the message", "CPU µs of the server per delivery to 1,000 members, 4 messages in flight; less is better",
            {"size1k": "1 KiB", "size4k": "4 KiB", "large": "16 KiB", "size64k": "64 KiB"}, results, median,
        ),
    }
    written = []
    for name, drawing in drawings.items():
        if drawing:
            (directory / name).write_text(drawing)
            written.append(directory / name)
    return written


def relative(results, median):
    """CPU of each server divided by shardcast's, for the rows of the main table."""
    groups = []
    for row in MAIN:
        reports = results.get(row, {})
        own = median(reports.get("shardcast", []), "cpu") if "cpu" in MAIN[row].figures else None
        if not own:
            continue
        bars = []
        for name, runs in reports.items():
            value = median(runs, "cpu")
            bars.append((name, value / own, f"{value / own:.2f}  ({number(value)} µs)") if value else (name, None, "failed"))
        groups.append((f"{row}: {MAIN[row].what}", bars))
    note = "CPU of the server per delivery, round trip or handshake, divided by shardcast's; less is better. "
    longest = max((value for _, bars in groups for _, value, _ in bars if value), default=0)
    note += f"Bars end at {CLIPPED}." if longest > CLIPPED else ""
    return draw("CPU of the same work", note, groups, min(longest, CLIPPED), 1)


def absolute(title, note, labels, results, median):
    """CPU of the servers that ran all of these rows."""
    rows = {row: results[row] for row in labels if row in results}
    groups = []
    for row, reports in rows.items():
        bars = []
        for name, runs in reports.items():
            if all(name in others for others in rows.values()):
                value = median(runs, "cpu")
                bars.append((name, value, f"{number(value)} µs" if value else "failed"))
        groups.append((labels[row], bars))
    # A single row tells nothing about growth.
    return draw(title, note, groups if len(groups) > 1 else [], max((value for _, bars in groups for _, value, _ in bars if value), default=0))


def draw(title, note, groups, longest, mark=None):
    """Bars in groups, or None when there is nothing to draw."""
    if not groups or not longest:
        return None
    left, room = MARGIN + NAMES, WIDTH - 2 * MARGIN - NAMES - FIGURE
    lines = []
    y = MARGIN + 16
    lines.append(f'<text class="title" x="{MARGIN}" y="{y}">{escape(title)}</text>')
    y += 20
    lines.append(f'<text class="note" x="{MARGIN}" y="{y}">{escape(note)}</text>')
    for label, bars in groups:
        y += 30
        lines.append(f'<text class="group" x="{MARGIN}" y="{y}">{escape(label)}</text>')
        y += 8
        if mark:
            x = left + room * mark / longest
            lines.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + PITCH * len(bars) - 2}"/>')
        for name, value, figure in bars:
            length = room * min(value or 0, longest) / longest
            kind = "own" if name == "shardcast" else "other"
            lines.append(f'<text class="name" x="{left - 8}" y="{y + 11}">{escape(name)}</text>')
            lines.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
            lines.append(f'<text class="figure" x="{left + length + 8:.1f}" y="{y + 11}">{escape(figure)}</text>')
            y += PITCH
    height = y + MARGIN - 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">'
    back = f'<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", back, *lines, "</svg>"]) + "\n"


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
