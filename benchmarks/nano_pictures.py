"""Draw the pictures of docs/nano.md: samples of the shipped model, and the curves of its training.

python benchmarks/nano_pictures.py --samples docs/images/nano-samples.png
python benchmarks/nano_pictures.py --work build/nano --curves docs/images/nano-curves.svg
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from flashvideo_ray import nano
from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline
from flashvideo_ray.nano import world

CURVES = {
    "vae": ("psnr_low", "psnr_high"),
    "stage1": ("loss",),
    "stage2": ("loss",),
    "clip": ("top1", "shape", "motion"),
}


def nearest(low: Tensor) -> Tensor:
    """Low-resolution frames at high resolution, every pixel a square."""
    return low.repeat_interleave(world.SCALE, -1).repeat_interleave(world.SCALE, -2)


def samples(dest: Path, rows: int, skip: int, frames: tuple[int, ...] = (0, 4, 8)) -> None:
    """A sheet of demo prompts: three frames of the preview, beside the same three after stage 2."""
    preview = FlashVideoPreviewPipeline.from_pretrained(nano.path() / "preview")
    refine = FlashVideoRefinePipeline.from_pretrained(
        nano.path() / "refine", tokenizer=preview.tokenizer, text_encoder=preview.text_encoder
    )
    sheet = []
    for i, row in enumerate(pq.read_table(nano.demo_prompts()).to_pylist()[skip : skip + rows]):
        first = preview(row["prompt"], generator=torch.Generator().manual_seed(i))
        final = refine(
            row["prompt"], preview_latents=first.latents, generator=torch.Generator().manual_seed(i), output_type="pt"
        )
        assert isinstance(first.frames, Tensor)
        assert isinstance(final.frames, Tensor)
        pictures = [*nearest(first.frames[0, list(frames)]), *final.frames[0, list(frames)]]
        sheet.append(torch.cat([torch.nn.functional.pad(p, (2, 2, 2, 2), value=1.0) for p in pictures], dim=-1))
        print(f"{i + 1}. {row['prompt']}")
    pixels = torch.cat(sheet, dim=-2).permute(1, 2, 0).mul(255).round().byte().numpy()
    dest.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(dest, optimize=True)


def curves(work: Path, dest: Path) -> None:
    """One small chart a part: value over CPU seconds."""
    width, height, margin = 250, 160, 34
    colors = ("#3b6fd4", "#d4663b", "#3ba55b")
    body = []
    parts = [part for part in CURVES if (work / part / "curve.jsonl").is_file()]
    for number, part in enumerate(parts):
        lines = [json.loads(line) for line in (work / part / "curve.jsonl").open()]
        x = [line["cpu_seconds"] for line in lines]
        left, top = number * (width + margin) + margin, margin
        every = [line[name] for line in lines for name in CURVES[part]]
        low, high = min(every), max(sorted(every)[: int(len(every) * 0.97)] or every)
        body.append(f'<text x="{left}" y="{top - 12}" font-weight="bold">{part}</text>')
        body.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for k, name in enumerate(CURVES[part]):
            points = " ".join(
                f"{left + width * t / x[-1]:.1f},{top + height * (1 - min((line[name] - low) / (high - low), 1)):.1f}"
                for t, line in zip(x, lines, strict=True)
            )
            body.append(f'<polyline points="{points}" fill="none" stroke="{colors[k]}" stroke-width="1.5"/>')
            body.append(f'<text x="{left + 60 + 70 * k}" y="{top - 12}" fill="{colors[k]}">{name}</text>')
        body.append(f'<text x="{left + 3}" y="{top + 12}">{high:.3g}</text>')
        body.append(f'<text x="{left + 3}" y="{top + height - 4}">{low:.3g}</text>')
        body.append(f'<text x="{left + width - 74}" y="{top + height + 14}">{x[-1]:.0f} CPU s</text>')
    total = len(parts) * (width + margin) + margin
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height + 2 * margin}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        + "\n".join(body)
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/nano"))
    arguments = parser.parse_args()
    if arguments.samples:
        samples(arguments.samples, arguments.rows, arguments.skip)
    if arguments.curves:
        curves(arguments.work, arguments.curves)


if __name__ == "__main__":
    main()
