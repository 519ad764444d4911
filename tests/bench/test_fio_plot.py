"""fio-plot, a tool for fio's JSON that knows nothing of virtblk, draws pictures of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.fio_harness import job_json

pytestmark = pytest.mark.once

DEPTHS = (1, 4)


def plot(tmp_path: Path, name: str, *words: str) -> Image.Image:
    """The picture that fio-plot draws of the JSON files in tmp_path."""
    command = [str(Path(sys.executable).with_name("fio-plot")), "-i", ".", "-T", "virtblk", "-r", "randread"]
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "MPLBACKEND": "Agg"}
    subprocess.run(
        [*command, "-n", "1", "-o", name, *words],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(tmp_path / name) as image:
        image.load()
        return image


def test_fio_plot_draws_depths_and_a_histogram(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for depth in DEPTHS:
        (tmp_path / "job.fio").write_text(
            f"[a]\nrw=randread\nbs=4k\niodepth={depth}\nnumjobs=1\nruntime=200ms\ntime_based\n"
        )
        ours = job_json(capsys, "ram:1m", str(tmp_path / "job.fio"))
        assert ours["jobs"][0]["read"]["total_ios"] > 0
        (tmp_path / f"{depth}.json").write_text(json.dumps(ours))
    bars = plot(tmp_path, "bars.png", "-l", "-d", *map(str, DEPTHS))
    histogram = plot(tmp_path, "histogram.png", "-H", "-d", "4")
    for image in (bars, histogram):
        assert image.format == "PNG"
        assert min(image.size) > 500
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20, "more than a blank page"
