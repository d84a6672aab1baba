"""Off-screen MuJoCo pictures: which OpenGL works here, and a renderer that draws a small frame in milliseconds."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

_CANDIDATES = {"linux": ("egl", "osmesa"), "darwin": ("cgl",), "win32": ("glfw",)}
_NAMED = ("egl", "osmesa", "glfw", "cgl")
_UNDECIDED = ("", "enable", "enabled", "on", "true", "1", "glx", "wgl")  # values of MUJOCO_GL that leave the choice
_PROBE = """
import mujoco
from mujoco.{0} import GLContext
context = GLContext(8, 8)
context.make_current()
drawing = mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100)
drawing.free()
context.free()
"""
_PROBE_SECONDS = 180  # half a second on a quiet machine, a minute was seen on a busy one
_SUPERSAMPLING = 2


def opengl_backend() -> str | None:
    """The off-screen OpenGL that works here ("egl", "osmesa", "cgl", "glfw"), or None when there is none or no MuJoCo.

    A backend named in MUJOCO_GL is the only one tried. Takes about half a second, once per process. UserError where
    none works and one gave no answer for minutes, as on a busy machine.
    """
    return _probe(os.environ.get("MUJOCO_GL", "").strip().lower())


@functools.cache
def _probe(wanted: str) -> str | None:
    named = (wanted,) if wanted in _NAMED else ()
    silent: list[str] = []
    for backend in _CANDIDATES.get(sys.platform, ()) if wanted in _UNDECIDED else named:
        works = _works(backend)
        if works:
            return backend
        if works is None:
            silent.append(backend)
    if silent:
        raise UserError(
            f"the test of off-screen OpenGL ({', '.join(silent)}) did not end in {_PROBE_SECONDS} s: the machine is "
            "busy, or the driver hangs; try again when less runs, or name another backend in MUJOCO_GL (egl, osmesa)"
        )
    return None


def _works(backend: str) -> bool | None:
    """Whether a context can be made; tried in a process of its own because a bad driver may crash it. None: no answer
    in time.
    """
    command = [sys.executable, "-c", _PROBE.format(backend)]
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=_PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return None
    except OSError:
        return False


def require_opengl() -> str:
    """`opengl_backend`, or a UserError that says what to install."""
    backend = opengl_backend()
    if backend is None:
        packages = "the Debian packages libegl1 and libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"
        wanted = os.environ.get("MUJOCO_GL")
        if wanted:
            raise UserError(f"MUJOCO_GL={wanted} gives no off-screen OpenGL here: unset it, or install {packages}")
        raise UserError(f"no off-screen OpenGL works here, so no images can be drawn: install {packages}")
    return backend


def import_mujoco() -> Any:
    """The mujoco module, without types: its names come from a compiled part that type checkers cannot read."""
    return importlib.import_module("mujoco")


class OffscreenRenderer:
    """Draws any number of MuJoCo models through one OpenGL context, in the thread that made it.

    Shadows, reflections and multisampling are off, unless a frame is to be exact: in software they cost ten times the
    rest of the frame. Each frame is drawn at twice its size and averaged instead, which adds a fourth at 64 pixels and
    keeps thin parts visible.
    """

    def __init__(self) -> None:
        """Raises UserError when no OpenGL works."""
        gl = importlib.import_module(f"mujoco.{require_opengl()}")
        self._context: Any = gl.GLContext(8, 8)  # the size of a window that is never drawn to
        self._drawings: dict[tuple[Hashable, bool], tuple[Any, Any]] = {}  # scene; meshes, textures in OpenGL

    def frame(
        self, key: Hashable, model: Any, data: Any, camera: Any, size: int, *, exact: bool = False,
        hidden_group: int | None = None,
    ) -> NDArray[np.uint8]:  # fmt: skip
        """One picture, uint8 [size, size, 3] RGB, first row at the top.

        key: names the compiled model; copies of one model share what was uploaded for the first.
        camera: a `mujoco.MjvCamera`. exact: as MuJoCo alone draws the model. hidden_group: of geoms.
        """
        mujoco = import_mujoco()
        side = size if exact else size * _SUPERSAMPLING
        self._context.make_current()
        if (key, exact) not in self._drawings:
            self._drawings[key, exact] = _upload(model, exact)
        scene, drawing = self._drawings[key, exact]
        if min(drawing.offWidth, drawing.offHeight) < side:
            mujoco.mjr_resizeOffscreen(max(drawing.offWidth, side), max(drawing.offHeight, side), drawing)
        # Another model may have been drawn last, and MuJoCo would go on with that one's buffer.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, drawing)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        shown = mujoco.MjvOption()
        if hidden_group is not None:
            shown.geomgroup[hidden_group] = 0
        mujoco.mjv_updateScene(model, data, shown, None, camera, everything, scene)
        pixels = np.empty((side, side, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, side, side)
        mujoco.mjr_render(viewport, scene, drawing)
        mujoco.mjr_readPixels(pixels, None, viewport, drawing)
        upright = pixels[::-1]  # OpenGL's first row is the lowest
        return upright if exact else _halve(upright)

    def forget(self, key: Hashable) -> None:
        """Frees what was uploaded of a model, if anything; it is uploaded again when it is drawn."""
        self._context.make_current()
        for which in [(key, exact) for exact in (False, True) if (key, exact) in self._drawings]:
            self._drawings.pop(which)[1].free()

    def close(self) -> None:
        """Frees what OpenGL holds; the renderer cannot be used afterwards."""
        self._context.make_current()
        for _, drawing in self._drawings.values():
            drawing.free()
        self._drawings.clear()
        self._context.free()


def shared_renderer() -> OffscreenRenderer:
    """The calling thread's renderer, made at the first call and closed when the process ends.

    It is shared because uploading a model takes 0.2 s, and an evaluation runs many environments of the same models.
    """
    if not hasattr(_of_thread, "renderer"):
        _of_thread.renderer = OffscreenRenderer()
        # MuJoCo ends its EGL display at exit. Functions run in reverse order, so this one comes before that.
        atexit.unregister(_close_shared)
        atexit.register(_close_shared)
    return _of_thread.renderer


def forget(key: Hashable) -> None:
    """`OffscreenRenderer.forget` of the calling thread's renderer, where there is one."""
    if hasattr(_of_thread, "renderer"):
        _of_thread.renderer.forget(key)


_of_thread = threading.local()


def _close_shared() -> None:
    if hasattr(_of_thread, "renderer"):
        _of_thread.renderer.close()
        del _of_thread.renderer


def _upload(model: Any, exact: bool) -> tuple[Any, Any]:
    mujoco = import_mujoco()
    scene = mujoco.MjvScene(model, maxgeom=1000)
    if not exact:
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    return scene, drawing


def _halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of every 2 x 2 pixels, rounded: uint8 [2s, 2s, 3] -> [s, s, 3]."""
    wide = pixels.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)
