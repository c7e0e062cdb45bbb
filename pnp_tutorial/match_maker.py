"""A sound of the reader's own, uploaded or recorded, is matched: for Jupyter and Colab.

It stands apart from `widgets`, so that chapters without an encoder need not wait for its imports.
"""

import html
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from . import plots
from .ears import ear_name, find_ear
from .encoder import AudioEncoder, load_encoder
from .matching import Match, match, parts_of
from .metric import Map
from .recording import load_recording
from .search import Step
from .synthesizer import Synthesizer, with_unit
from .uncertainty import undetermined, verdict
from .widgets import ABPlayer, png

RECORDER_MODULE = Path(__file__).with_name("recorder.js")
REDRAW_S = 1.0  # from one picture to the next, at least: each takes a third of a second itself


class Recorder(anywidget.AnyWidget):
    """A button that records the microphone for at most four seconds, in the browser.

    Attributes
    ----------
    pcm : bytes
        The last recording, one channel of float32, little-endian; empty before the first.
    sample_rate : int, Hz
    """

    _esm = RECORDER_MODULE
    pcm = traitlets.CBytes(b"").tag(sync=True)  # cast, as the browser's bytes arrive as a memoryview
    sample_rate = traitlets.Int(48_000).tag(sync=True)

    def wav(self) -> bytes:
        """The last recording as a WAV file of floats."""
        buffer = io.BytesIO()
        samples = np.frombuffer(self.pcm, "<f4")
        soundfile.write(buffer, samples, self.sample_rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue()


class MatchMaker(widgets.VBox):
    """Upload a sound or record one, press "Match", and watch how its parameters are found; then hear both.

    While a match runs, for some seconds, the kernel's main thread is busy with it: other cells wait. To give
    it up, interrupt the kernel.

    Parameters
    ----------
    model : AudioEncoder or Synthesizer, optional
        As in `match`; the encoder of the package if not given.
    ear : callable or str, optional
        Φ, or its name; as in `match` if not given.

    Attributes
    ----------
    result : Match or None
        The last match; None before the first, and after a sound that could not be matched.
    """

    def __init__(self, model: AudioEncoder | Synthesizer | None = None, ear: str | Map | None = None) -> None:
        self.result: Match | None = None
        self._model = model or load_encoder()
        self._synthesizer, own_ear, device = parts_of(self._model, "cpu")
        ear = own_ear if ear is None else ear
        self._heard = ear_name(ear)
        self._features = find_ear(ear, self._synthesizer.n_samples, self._synthesizer.sample_rate, device)
        self._sound: tuple[str, bytes] | None = None  # name and content of the file to match
        self._player: ABPlayer | None = None  # of the last match
        self._upload = widgets.FileUpload(accept="audio/*", multiple=False, description="Upload")
        self._recorder = Recorder()
        self._button = widgets.Button(description="Match", button_style="primary", disabled=True)
        self._status = widgets.HTML()
        self._image = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self._upload.observe(lambda change: self._choose(uploaded(change["new"])), "value")
        self._recorder.observe(lambda change: self._choose_recording(), "pcm")
        self._button.on_click(lambda button: self._match())
        self._controls = widgets.HBox(
            [self._upload, self._recorder, self._button], layout={"flex_flow": "row wrap", "align_items": "center"}
        )
        super().__init__([self._controls, self._status])
        self._say("Upload a sound, or record one: a single sound, in a quiet room.")

    def run(self, path: str | Path) -> Match | None:
        """Match a sound file and show how; what the button does.

        Returns the match; None if the file is not usable, and then the widget says why.
        """
        path, synthesizer, heard = Path(path), self._synthesizer, self._heard
        self.result = None
        self._button.disabled = True
        if self._player:
            self._player.close()  # its sounds would stay in the notebook
            self._player = None
        self.children = [self._controls, self._status]
        self._say(f"{path.name}: reading")
        story: list[Step] = []
        drawn = -np.inf  # when; s

        def tell(step: Step) -> None:
            nonlocal drawn
            story.append(step)
            nu = torch.tensor(step.v, dtype=torch.float64)[: len(synthesizer.parameters)]
            measure = "coarse spectra" if step.stage == "scan" else heard
            distance = f"distance of {measure} {step.distance:.3g}"
            self._say(
                f"{path.name}: {step.stage}, sounds heard: {step.n_heard}, {distance}", *in_units(nu, synthesizer)
            )
            if time.monotonic() - drawn > REDRAW_S:
                self._draw(story, x, synthesizer(nu), "best so far")
                drawn = time.monotonic()

        try:
            recording = load_recording(path, synthesizer)
            x = recording.x
            result = match(recording, self._model, self._features, tell=tell)
        except ValueError as error:
            self.children = [self._controls, self._status]
            self._say(str(error).replace(str(path), path.name))
            return None
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            what = "interrupted" if interrupted else f"cannot be matched ({type(error).__name__}: {error})"
            self._say(f"{path.name}: {what}")
            raise
        finally:
            self._button.disabled = self._sound is None
        self.result = result
        found, first = result.distance["match"], result.distance["encoder"]
        by = "in the middle of the ranges" if isinstance(self._model, Synthesizer) else "by the encoder alone"
        distances = f"distance of {heard} {found:.3g}; {by} {first:.3g}"
        self._draw(story, result.x, result.x_hat, "match")
        self._say(
            f"{path.name}: match, sounds heard: {story[-1].n_heard}, {distances}",
            *in_units(result.nu, synthesizer, result.uncertainty),
            unsure(result),
        )
        sounds = {"recording": result.x, "match": result.x_hat}
        self._player = ABPlayer(sounds, synthesizer.sample_rate, distances)
        self.children = [self._controls, self._status, self._player, self._image]
        return result

    def _choose(self, sound: tuple[str, bytes] | None) -> None:
        if sound:
            self._sound = sound
            self._button.disabled = False
            self._say(f"{sound[0]}, {len(sound[1]) / 1000:.0f} kB: press Match")

    def _choose_recording(self) -> None:
        # So that the same file can be uploaded again; ipywidgets 7 lets nobody assign it.
        self._upload.set_trait("value", type(self._upload.value)())
        self._choose(("recording.wav", self._recorder.wav()))

    def _match(self) -> None:
        assert self._sound, "the button is disabled before there is a sound"
        name, content = self._sound
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name or "sound")
            path.write_bytes(content)
            self.run(path)

    def _say(self, *lines: str) -> None:
        text = "<br>".join(html.escape(line) for line in lines)
        self._status.value = f'<div style="line-height: 1.4">{text}</div>'  # lines of text, not of buttons

    def _draw(self, story: Sequence[Step], x: Tensor, x_hat: Tensor, title: str) -> None:
        self._image.value = png(picture(story, x, x_hat, self._synthesizer.sample_rate, title))
        if self._image not in self.children:
            self.children = [*self.children, self._image]


def uploaded(value: Any) -> tuple[str, bytes] | None:
    """Name and content of the file in a FileUpload's value, that of ipywidgets 7 or 8; None if there is none."""
    files = value.values() if isinstance(value, dict) else value
    for file in files:
        return file.get("metadata", file)["name"], bytes(file["content"])
    return None


def in_units(nu: Tensor, synthesizer: Synthesizer, uncertainty: Tensor | None = None) -> list[str]:
    """A line for each parameter of ν (n,): meaning, symbol, value, unit; ± its uncertainty (n,), if given."""
    lines, slope = [], synthesizer.slope(nu)
    for j, (p, value) in enumerate(zip(synthesizer.parameters, synthesizer.to_theta(nu).tolist(), strict=True)):
        spread = "" if uncertainty is None else f" ± {float(uncertainty[j] * slope[j]):.2g}"
        number = f"{value:#.4g}".replace("-", "−")
        lines.append(f"{p.meaning}: {p.symbol} = {with_unit(number + spread, p.unit)}")
    return lines


def unsure(result: Match) -> str:
    """A line that tells which parameters, or combinations of them, the sound does not determine."""
    return verdict("; ".join(undetermined(*result.directions, result.synthesizer.symbols)))


def picture(story: Sequence[Step], x: Tensor, x_hat: Tensor, sample_rate: float, title: str) -> Axes:
    """Distance over the sounds heard, above the spectrograms of the recording x and the match x_hat, (n_samples,)."""
    with plots.style():
        axes = plt.figure(figsize=(8, 5)).subplot_mosaic("dd;rm", height_ratios=(2, 3))
    above = axes["d"]
    measures = {"features (start, refinement)": ("predict", "refine"), "coarse spectra (scan)": ("scan",)}
    for (label, stages), line in zip(measures.items(), ("o", "-"), strict=True):
        points = [(step.n_heard, step.distance) for step in story if step.stage in stages]
        above.semilogy(*np.reshape(points, (-1, 2)).T, line, label=label)
    above.set(xlabel="sounds heard", ylabel="distance")
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    for name, sound, label in (("r", x, "recording"), ("m", x_hat, title)):
        plots.spectrogram(sound, sample_rate, axes[name], max_hz=min(5000, sample_rate / 2)).set_title(label)
    axes["m"].set_ylabel("")
    return above
