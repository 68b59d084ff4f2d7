"""Rendered indoor scenes with exact labels: a data set that needs no download.

Each scene is a box-shaped, textured and lit room with boxes, spheres and cylinders on the floor, a
picture on a wall and a rug. One ray per pixel is cast; colour, class, depth, surface normal and
edges all come from the same hit, so the labels are exact. Scene ``index`` of ``seed`` depends on
these two numbers and the image size only, never on what else was rendered.

World frame: x right, y up, z forward, room centred at the origin, metres. Camera frame: x right,
y up, z along the optical axis. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel.errors import ConfigError

F32 = NDArray[np.float32]

SPLITS = ("train", "val")
CLASSES = ("floor", "ceiling", "wall", "box", "sphere", "cylinder", "picture", "rug")
FLOOR, CEILING, WALL, BOX, SPHERE, CYLINDER, PICTURE, RUG = range(len(CLASSES))
PALETTE = np.array(
    [
        (140, 120, 100),
        (220, 220, 210),
        (170, 190, 210),
        (200, 80, 60),
        (70, 150, 90),
        (80, 90, 190),
        (230, 190, 60),
        (150, 70, 150),
    ],
    dtype=np.uint8,
)
"""RGB colour of each class, for pictures."""

MAX_OBJECTS = 6
NEAR = 0.05  # metres: hits closer than this lie on the camera itself
EDGE_COSINE = 0.6  # neighbouring normals that differ by more than 53 degrees form an edge
# Surface numbers: what belongs to one surface group shares colour and texture, and a change of
# surface between neighbours is an edge. 0..5 are the six sides of the room.
_PICTURE_SURFACE, _RUG_SURFACE, _FIRST_OBJECT = 6, 7, 8
_SURFACES = _FIRST_OBJECT + MAX_OBJECTS


def split_seed(seed: int, split: str) -> int:
    """Renderer seed of a split; no two (seed, split) share one."""
    if split not in SPLITS:
        raise ConfigError(f"data set: split = {split!r}: expected one of {', '.join(SPLITS)}")
    return seed * len(SPLITS) + SPLITS.index(split)


@dataclass(frozen=True)
class Scene:
    """One rendered scene of height H and width W.

    image: uint8 [H, W, 3] RGB; semseg: uint8 [H, W], index into ``CLASSES``; depth: float32 [H, W],
    metres along the optical axis, > 0; normals: float32 [H, W, 3], unit length, camera frame,
    facing the camera; edge: uint8 [H, W], 1 where the surface or its orientation changes.
    """

    image: NDArray[np.uint8]
    semseg: NDArray[np.uint8]
    depth: F32
    normals: F32
    edge: NDArray[np.uint8]


@dataclass(frozen=True)
class _Camera:
    """Pin-hole camera: origin [3], axes [3, 3] (columns right, up, forward), unit rays [P, 3]."""

    origin: F32
    axes: F32
    rays: F32  # in the world frame
    cosine: F32  # [P], cosine between each ray and the optical axis: depth = distance * cosine


class _Hits:
    """Nearest hit per ray so far: distance [P], world normal [P, 3], class [P], surface [P]."""

    def __init__(self, distance: F32, normal: F32, label: NDArray, surface: NDArray) -> None:
        self.distance, self.normal, self.label, self.surface = distance, normal, label, surface

    def add(self, distance: F32, normal: F32, label: int, surface: int) -> None:
        """Keep an object's hits (distance inf = missed) where they are nearer than what is here."""
        nearer = distance < self.distance
        self.distance[nearer] = distance[nearer]
        self.normal[nearer] = normal[nearer]
        self.label[nearer] = label
        self.surface[nearer] = surface


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> F32:
    return rng.uniform(low, high, shape).astype(np.float32)


def _nonzero(direction: F32) -> F32:
    """Directions without exact zeros, so that slab tests can divide by them."""
    tiny = np.float32(1e-6)
    return np.where(np.abs(direction) < tiny, tiny, direction)


def _make_room(rng: np.random.Generator) -> F32:
    """Half extents (x, y, z) of the room in metres."""
    low, high = (1.8, 1.2, 1.8), (3.5, 1.6, 3.5)
    return rng.uniform(low, high).astype(np.float32)


def _make_camera(rng: np.random.Generator, room: F32, height: int, width: int) -> _Camera:
    """A camera near one wall, above the middle, looking slightly down across the room."""
    along = int(rng.integers(2))  # stands near a wall of this horizontal axis (0: x, 1: z)
    near_wall = rng.choice((-1.0, 1.0)) * rng.uniform(0.6, 0.9)
    aside = rng.uniform(-0.8, 0.8)
    x, z = (near_wall, aside) if along == 0 else (aside, near_wall)
    origin = (np.array([x, rng.uniform(0.0, 0.6), z]) * room).astype(np.float32)
    target = rng.uniform(-0.4, 0.4, 2) * room[[0, 2]]
    yaw = np.arctan2(target[0] - origin[0], target[1] - origin[2])
    pitch, tangent = rng.uniform(-0.5, -0.05), np.tan(rng.uniform(0.9, 1.25) / 2)

    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    axes = np.array(
        [[cy, -sy * sp, sy * cp], [0.0, cp, sp], [-sy, -cy * sp, cy * cp]], dtype=np.float32
    )
    u = ((np.arange(width) + 0.5) / width * 2 - 1) * tangent
    v = -((np.arange(height) + 0.5) / height * 2 - 1) * tangent * height / width
    grid = np.empty((height, width, 3), dtype=np.float32)
    grid[..., 0], grid[..., 1], grid[..., 2] = u, v[:, None], 1.0
    rays: F32 = grid.reshape(-1, 3)
    rays /= np.sqrt((rays * rays).sum(-1, keepdims=True))
    return _Camera(origin, axes, _nonzero(rays @ axes.T), rays[:, 2].copy())


def _hit_room(camera: _Camera, room: F32) -> _Hits:
    """The side of the room that each ray leaves through."""
    rays = camera.rays
    sign = np.sign(rays)
    exits = (sign * room - camera.origin) / rays
    axis = exits.argmin(-1)
    rows = np.arange(len(rays))
    side = sign[rows, axis]
    normal = np.zeros_like(rays)
    normal[rows, axis] = -side
    label = np.where(axis == 1, np.where(side < 0, FLOOR, CEILING), WALL)
    surface = axis * 2 + (side > 0)
    return _Hits(exits[rows, axis], normal, label.astype(np.uint8), surface.astype(np.uint8))


def _add_picture(rng: np.random.Generator, camera: _Camera, room: F32, hits: _Hits) -> None:
    """Relabel a rectangle of one wall: flat, with no step in depth or normal."""
    wall = int(rng.choice((0, 1, 4, 5)))
    size, offset = rng.uniform((0.35, 0.25), (0.9, 0.6)), rng.uniform(-0.6, 0.6)
    across = 2 if wall < 2 else 0
    rows = np.flatnonzero(hits.surface == wall)
    point = camera.origin + hits.distance[rows, None] * camera.rays[rows]
    centre = offset * min(room[0], room[2])
    inside = (np.abs(point[:, across] - centre) < size[0]) & (np.abs(point[:, 1] - 0.3) < size[1])
    hits.label[rows[inside]], hits.surface[rows[inside]] = PICTURE, _PICTURE_SURFACE


def _add_rug(rng: np.random.Generator, camera: _Camera, room: F32, hits: _Hits) -> None:
    """Relabel a rectangle of the floor: flat, with no step in depth or normal."""
    centre = rng.uniform(-0.5, 0.5, 2) * room[[0, 2]]
    size = rng.uniform(0.5, 1.2, 2)
    rows = np.flatnonzero(hits.label == FLOOR)
    point = camera.origin[[0, 2]] + hits.distance[rows, None] * camera.rays[rows][:, [0, 2]]
    inside = (np.abs(point - centre) < size).all(-1)
    hits.label[rows[inside]], hits.surface[rows[inside]] = RUG, _RUG_SURFACE


def _hit_box(camera: _Camera, centre: F32, half: F32, angle: float) -> tuple[F32, F32]:
    """Distances [P] (inf = missed) and normals [P, 3] of a box turned about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=np.float32)  # world -> box
    rays = _nonzero(camera.rays @ turn.T)
    origin = turn @ (camera.origin - centre)
    sign = np.sign(rays)
    entries = (-sign * half - origin) / rays
    enter, leave = entries.max(-1), ((sign * half - origin) / rays).min(-1)
    axis = entries.argmax(-1)
    rows = np.arange(len(rays))
    normal: F32 = -sign[rows, axis, None] * turn[axis]
    hit = (enter < leave) & (enter > NEAR)
    return np.where(hit, enter, np.float32(np.inf)), normal


def _hit_sphere(camera: _Camera, centre: F32, radius: float) -> tuple[F32, F32]:
    """Distances [P] (inf = missed) and normals [P, 3] of a sphere."""
    origin = camera.origin - centre
    b = camera.rays @ origin
    root = b * b - np.float32(origin @ origin - radius**2)
    distance = -b - np.sqrt(np.maximum(root, 0))
    normal = ((origin + distance[:, None] * camera.rays) / np.float32(radius)).astype(np.float32)
    return np.where((root > 0) & (distance > NEAR), distance, np.float32(np.inf)), normal


def _hit_cylinder(
    camera: _Camera, centre: F32, radius: float, half_height: float
) -> tuple[F32, F32]:
    """Distances [P] (inf = missed) and normals [P, 3] of an upright cylinder with a flat top."""
    infinity = np.float32(np.inf)
    origin, rays = camera.origin - centre, camera.rays
    radius2 = np.float32(radius) ** 2
    flat = rays[:, [0, 2]]
    a = np.maximum((flat * flat).sum(-1), np.float32(1e-9))
    b = flat @ origin[[0, 2]]
    root = b * b - a * (origin[0] ** 2 + origin[2] ** 2 - radius2)
    side = (-b - np.sqrt(np.maximum(root, 0))) / a
    on_side = np.abs(origin[1] + side * rays[:, 1]) < half_height
    distance = np.where((root > 0) & (side > NEAR) & on_side, side, infinity)

    normal = (origin + side[:, None] * rays) / np.float32(radius)
    normal[:, 1] = 0
    top = (np.float32(half_height) - origin[1]) / rays[:, 1]
    at = origin[[0, 2]] + top[:, None] * flat
    on_top = (top > NEAR) & ((at * at).sum(-1) < radius2) & (top < distance)
    normal[on_top] = (0, 1, 0)
    return np.where(on_top, top, distance), normal


def _add_objects(rng: np.random.Generator, camera: _Camera, room: F32, hits: _Hits) -> None:
    """Up to ``MAX_OBJECTS`` boxes, spheres and cylinders standing on the floor."""
    for k in range(MAX_OBJECTS):
        kind = rng.choice((BOX, SPHERE, CYLINDER))
        present = rng.random() < 0.85
        place = rng.uniform(-0.75, 0.75, 2) * room[[0, 2]]
        size = _uniform(rng, 0.2, 0.7, 3)
        angle = float(rng.uniform(-1, 1))
        if not present or np.hypot(*(place - camera.origin[[0, 2]])) < 0.9:
            continue  # absent, or the camera would stand in it
        radius = {BOX: 0.0, SPHERE: size[0], CYLINDER: size[0] * 0.7}[kind]
        half_height = {BOX: size[1], SPHERE: size[0], CYLINDER: size[1] * 1.3}[kind]
        centre = np.array([place[0], half_height - room[1], place[1]], dtype=np.float32)
        if kind == BOX:
            distance, normal = _hit_box(camera, centre, size, angle)
        elif kind == SPHERE:
            distance, normal = _hit_sphere(camera, centre, float(radius))
        else:
            distance, normal = _hit_cylinder(camera, centre, float(radius), float(half_height))
        hits.add(distance, normal, int(kind), _FIRST_OBJECT + k)


def _shade(rng: np.random.Generator, camera: _Camera, room: F32, hits: _Hits) -> NDArray[np.uint8]:
    """Colour [P, 3]: palette x checkered texture x (ambient + one lamp) x exposure + noise."""
    colours = _uniform(rng, 0.25, 0.95, _SURFACES, 3)
    frequency = _uniform(rng, 4.0, 14.0, _SURFACES)
    contrast = _uniform(rng, 0.0, 0.35, _SURFACES) * (rng.random(_SURFACES) < 0.6)
    lamp = (np.array([rng.uniform(-0.7, 0.7), 0.9, rng.uniform(-0.7, 0.7)]) * room).astype(
        np.float32
    )
    exposure = np.float32(rng.uniform(0.7, 1.2))

    point = camera.origin + hits.distance[:, None] * camera.rays
    phase = point * frequency[hits.surface, None] + np.arange(3, dtype=np.float32)
    # The sign of sin(a) sin(b) sin(c): parity of how many of the three are in a negative half wave.
    odd = np.floor(phase * np.float32(1 / np.pi)).astype(np.int32).sum(-1) & 1
    texture = 1 + (1 - 2 * odd) * contrast[hits.surface].astype(np.float32)
    to_lamp = lamp - point
    range2 = (to_lamp * to_lamp).sum(-1)
    facing = np.maximum((to_lamp * hits.normal).sum(-1), 0) / np.sqrt(range2)
    light = 0.35 + 0.65 * facing / (1 + 0.05 * range2)
    noise = rng.standard_normal(point.shape, dtype=np.float32) * np.float32(0.02)
    colour = colours[hits.surface] * (texture * light * exposure)[:, None] + noise
    return (np.clip(colour, 0, 1) * 255).astype(np.uint8)


def find_edges(surface: NDArray, normals: F32) -> NDArray[np.uint8]:
    """Mark both pixels of each neighbouring pair whose surface or orientation differs.

    surface: [H, W] integers; normals: [H, W, 3] unit vectors. Returns uint8 [H, W] of 0 and 1.
    """
    edge = np.zeros(surface.shape, dtype=np.uint8)
    for axis in (0, 1):
        first = (slice(None, -1), slice(None))[:: 1 if axis == 0 else -1]
        second = (slice(1, None), slice(None))[:: 1 if axis == 0 else -1]
        turned = (normals[first] * normals[second]).sum(-1) < EDGE_COSINE
        change = (surface[first] != surface[second]) | turned
        edge[first] |= change
        edge[second] |= change
    return edge


def render_scene(seed: int, index: int, height: int = 64, width: int = 64) -> Scene:
    """Render scene ``index`` of ``seed`` (both >= 0) at ``height`` x ``width`` pixels."""
    rng = np.random.default_rng((seed, index))
    room = _make_room(rng)
    camera = _make_camera(rng, room, height, width)
    hits = _hit_room(camera, room)
    _add_picture(rng, camera, room, hits)
    _add_rug(rng, camera, room, hits)
    _add_objects(rng, camera, room, hits)
    image = _shade(rng, camera, room, hits)

    normals = hits.normal @ camera.axes
    normals /= np.sqrt((normals * normals).sum(-1, keepdims=True))
    normals = normals.reshape(height, width, 3)
    surface = hits.surface.reshape(height, width)
    return Scene(
        image=image.reshape(height, width, 3),
        semseg=hits.label.reshape(height, width),
        depth=(hits.distance * camera.cosine).reshape(height, width),
        normals=normals,
        edge=find_edges(surface, normals),
    )


def render_range(
    seed: int, start: int, stop: int, height: int = 64, width: int = 64
) -> dict[str, NDArray]:
    """Scenes ``start`` .. ``stop - 1`` of ``seed``, stacked along axis 0, keyed by `Scene` field.

    Normals are kept as float16 (error < 0.03 degrees) because they would otherwise be more than
    half of the data set.
    """
    scenes = [render_scene(seed, index, height, width) for index in range(start, stop)]
    return {
        "image": np.stack([scene.image for scene in scenes]),
        "semseg": np.stack([scene.semseg for scene in scenes]),
        "depth": np.stack([scene.depth for scene in scenes]),
        "normals": np.stack([scene.normals for scene in scenes]).astype(np.float16),
        "edge": np.stack([scene.edge for scene in scenes]),
    }
