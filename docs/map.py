"""Draws the map of the packages from their imports: `python docs/map.py` writes images/map.svg."""

import ast
import tomllib
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddpmbench"
INK, BOX, LINE = "#22303c", "#eef3f7", "#8aa0b2"


def floors() -> list[list[str]]:
    """The packages from the top floor down, as import-linter holds them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (contract,) = (known for known in contracts if known["type"] == "layers")
    return [[part.strip().split(".")[1] for part in row.split("|")] for row in contract["layers"]]


def sources(name: str) -> list[Path]:
    """The modules of a package."""
    folder = PACKAGE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


def purpose(name: str) -> str:
    """The first sentence of its docstring."""
    path = PACKAGE / name / "__init__.py"
    tree = ast.parse((path if path.exists() else PACKAGE / f"{name}.py").read_text("utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")


def imports(name: str) -> dict[str, int]:
    """How many imports a package has of each other one."""
    count: dict[str, int] = {}
    for path in sources(name):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpmbench."):
                other = str(node.module).split(".")[1]
                if other != name:
                    count[other] = count.get(other, 0) + 1
    return count


@mpl.rc_context({"svg.hashsalt": "map", "svg.fonttype": "none", "font.size": 8})
def draw(path: Path) -> None:
    """Write the map: a row per floor; a box has its purpose and what it imports."""
    rows = floors()
    figure = Figure(figsize=(9.5, 0.72 * len(rows) + 0.3))
    axes = figure.subplots()
    place: dict[str, tuple[float, float, float]] = {}
    for i, row in enumerate(rows):
        width = 9.2 / len(row)
        for k, name in enumerate(row):
            place[name] = (k * width, -i * 0.72, width - 0.12)
    for name, (x, y, width) in place.items():
        box = FancyBboxPatch(
            (x, y), width, 0.56, boxstyle="round,pad=0,rounding_size=0.06", fc=BOX, ec=LINE, lw=0.7
        )
        axes.add_patch(box)
        files = sources(name)
        total = sum(f.read_text("utf-8").count("\n") for f in files)
        axes.text(x + 0.08, y + 0.43, name, color=INK, weight="bold", va="center")
        size = f"{len(files)} modules, {total / 1000:.1f}k lines" if len(files) > 1 else ""
        axes.text(x + width - 0.08, y + 0.43, size, color=LINE, size=6, va="center", ha="right")
        used = sorted(
            (n for n in imports(name) if n in place), key=lambda n: place[n][1], reverse=True
        )
        small = [n for n in used if n not in rows[-1]]
        lines = [purpose(name), f"imports {', '.join(small)}" if small else ""]
        for k, (line, color) in enumerate(zip(lines, (INK, LINE), strict=True)):
            most = int(width * 17)
            shown = line if len(line) <= most else line[: most - 1].rstrip() + "…"
            axes.text(x + 0.08, y + 0.26 - 0.14 * k, shown, color=color, size=6, va="center")
    axes.set_xlim(-0.05, 9.25)
    axes.set_ylim(-0.72 * (len(rows) - 1) - 0.1, 0.62)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(ROOT / "docs" / "images" / "map.svg")
