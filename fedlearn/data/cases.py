"""Two made-up cases of lesson 18: cars that read signs, and machines that vibrate."""

import numpy as np
import torch

from ..checks import check, whole
from ..rng import Use, numpy_rng
from .sets import Dataset, load

RARE, EACH = 8, 12  # the rare sign, and how many of it a car has that saw it
RATE, LENGTH = 2560.0, 512  # samples a second, samples a window: 0.2 s


def drivers(
    n_clients: int = 40, holders: int = 2, seed: int = 0
) -> tuple[Dataset, list[np.ndarray]]:
    """Cars that read road signs: a proxy. The digits are real; weather and rarity are made up.

    The training digits other than 8 are dealt out evenly. 8 is the rare sign: cars 0 to
    ``holders`` - 1 have twelve of it, the others none. A quarter of the cars drives in each
    weather, drawn by lot, and changes what it sees, v in [0, 1] of a pixel, cut to [0, 1]:

    - 0, day: nothing;
    - 1, night: 0.4 v;
    - 2, fog: v + N(0, 0.25^2), drawn anew for each pixel;
    - 3, a tilted camera: turned by 25 degrees, counter-clockwise.

    Args:
        n_clients: Cars N, a multiple of 4 of at most 400, else ValueError.
        holders: How many of them saw the rare sign, from 0 to N and as long as there are 8s (for
            ten cars, or eleven), else ValueError. It moves no other picture.
        seed: Of all draws: the training/test split, who drives where, who holds what, the fog.

    Returns:
        The :class:`Dataset`, and N index arrays. Every test digit is there four times, once in each
        weather; ``group`` and ``group_test`` are the weather of each picture.

    Example:
        >>> signs, cars = drivers()
        >>> [int((signs.y[own] == 8).sum()) for own in cars[:4]]
        [12, 12, 0, 0]
        >>> signs.x_test.shape
        torch.Size([1440, 64])
    """
    from .. import skew  # imports this room

    good = n_clients % 4 == 0 if isinstance(n_clients, int) else False
    check("drivers", "n_clients", n_clients, good and 0 < n_clients <= 400, "4, 8, ..., 400", 40)
    digits, rng = load("digits", seed=seed), numpy_rng(seed, Use.TOY)
    rare = digits.y == RARE
    whole("drivers", "holders", holders, 0, min(n_clients, int(rare.sum()) // EACH), 2)
    weather = rng.permutation(np.arange(n_clients) % 4)
    deal = lambda rows: rng.permutation(torch.nonzero(rows)[:, 0].numpy())
    parts = np.array_split(deal(~rare), n_clients)
    for k, own in enumerate(np.split(deal(rare)[: holders * EACH], max(1, holders))):
        parts[k] = np.concatenate([parts[k], own])
    n, m = sum(map(len, parts)), len(digits.y_test)
    held = np.split(np.arange(n + 4 * m), np.cumsum([*map(len, parts), m, m, m]))
    kind = np.concatenate([weather, np.arange(4)])  # the cars, then the test digits four times
    x = torch.cat([digits.x[np.concatenate(parts)], digits.x_test.repeat(4, 1)])
    x = skew.brighten(x, held, np.where(kind == 1, 0.4, 1.0).tolist())
    x = skew.add_noise(x, held, np.where(kind == 2, 0.25, 0.0).tolist(), seed)
    x = skew.rotate(x, held, np.where(kind == 3, 25.0, 0.0).tolist(), digits.shape)
    y, y_test = digits.y[np.concatenate(parts)], digits.y_test.repeat(4)
    about = "a proxy: UCI's digits as road signs, weather and rarity made up"
    group = torch.from_numpy(np.repeat(kind, [*map(len, held)]))
    out = Dataset(x[:n], y, x[n:], y_test, 10, "drivers", digits.shape, about)
    return out._replace(group=group[:n], group_test=group[n:]), held[:n_clients]


def machines(n_clients: int = 12, seed: int = 0) -> tuple[Dataset, list[np.ndarray]]:
    """Rotors and their faults: a simulation of what an accelerometer on each would tell.

    Rotor k turns f_k times a second, 60 f_k ~ U(900, 3600); its sensor has the gain g_k =
    exp(N(0, 0.7^2)) and the noise s_k ~ U(0.1, 0.5). A window is 512 samples, 2560 a second, of

        g_k (a sin(2 pi f_k t + p) + 0.2 sin(4 pi f_k t + q) + s_k N(0, 1) + fault)

    with a = 0.5 and phases p, q (and r, below) ~ U(0, 2 pi). With a severity v ~ U(0.6, 1.4) of the
    window the states are

    - 0, healthy: fault = 0;
    - 1, imbalance: 0.6 v sin(2 pi f_k t + p), more of the line at f_k;
    - 2, a bearing: 3.6 knocks a turn, 0.9 v exp(-200 u) sin(1800 pi u) each, u >= 0 the seconds
      since the knock; the first of a window falls anywhere in the first 1 / 3.6 of a turn;
    - 3, misalignment: 0.5 v sin(4 pi f_k t + r), more of the line at 2 f_k.

    Of a window eight numbers remain, all of them logarithms, so that a gain becomes a shift: rms,
    kurtosis, largest sample over rms, the spectrum's lines at f_k, 2 f_k and 3 f_k (the largest
    value within 6 Hz), and its mean over 200 to 600 Hz and 600 to 1200 Hz. The spectrum is
    abs(rfft(hanning window * samples)) / 512, plus 1e-6.

    Rotor k has 60 healthy training windows, and 20 of the one fault that it ever had, 1 + k mod 4;
    where that is 4 it never had any. Its 100 test windows hold 25 of each state.

    Args:
        n_clients: Rotors N >= 1, else ValueError.
        seed: Of all draws; rotor k's depend on (seed, k) alone.

    Returns:
        The :class:`Dataset`, x (n, 8), 4 classes, and N index arrays; ``group`` and ``group_test``
        are the rotor of each window.

    Example:
        >>> windows, rotors = machines()
        >>> windows.x.shape, len(rotors), windows.y[rotors[0]].unique()
        (torch.Size([900, 8]), 12, tensor([0, 1]))

    Reference:
        Randall, 2011, "Vibration-based condition monitoring", for what the faults look like.
    """
    whole("machines", "n_clients", n_clients, example=12)
    seen = [[0] * 60 + [1 + k % 4] * (20 * (k % 4 < 3)) for k in range(n_clients)]
    tests = [0, 1, 2, 3] * 25
    x = [_rotor(np.array(own + tests), numpy_rng(seed, Use.TOY, k)) for k, own in enumerate(seen)]
    sizes, about = [*map(len, seen)], "a simulation: vibration of rotors, healthy or with a fault"
    join = lambda rows: torch.from_numpy(np.concatenate(rows).astype(np.float32))
    rotor = torch.arange(n_clients)
    out = Dataset(
        join([v[:n] for v, n in zip(x, sizes, strict=True)]),
        torch.tensor([state for own in seen for state in own]),
        join([v[n:] for v, n in zip(x, sizes, strict=True)]),
        torch.tensor(tests * n_clients),
        *(4, "machines", (), about),
        group=rotor.repeat_interleave(torch.tensor(sizes)),
        group_test=rotor.repeat_interleave(len(tests)),
    )
    return out, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def _rotor(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The features (n, 8) of one rotor's windows, one for each state asked for."""
    n = len(state)
    f, gain, noise = rng.uniform(900, 3600) / 60, np.exp(rng.normal(0, 0.7)), rng.uniform(0.1, 0.5)
    p, q, r = rng.uniform(0, 2 * np.pi, (3, n, 1))
    severity, knock = rng.uniform(0.6, 1.4, (n, 1)), rng.uniform(0, 1, (n, 1)) / (3.6 * f)
    fault = lambda k: severity * (state == k)[:, None]
    t = np.arange(LENGTH) / RATE
    v = (0.5 + 0.6 * fault(1)) * np.sin(2 * np.pi * f * t + p)
    v += 0.2 * np.sin(4 * np.pi * f * t + q) + 0.5 * fault(3) * np.sin(4 * np.pi * f * t + r)
    for j in range(int(t[-1] * 3.6 * f) + 1):
        u = np.maximum(t - knock - j / (3.6 * f), 0)  # at 0 the sine is 0
        v += 0.9 * fault(2) * np.exp(-200 * u) * np.sin(1800 * np.pi * u)
    return features(gain * (v + noise * rng.normal(size=v.shape)), f)


def features(windows: np.ndarray, turns: float) -> np.ndarray:
    """The eight numbers (n, 8) of windows (n, 512) of a rotor that turns so often a second."""
    spectrum = np.abs(np.fft.rfft(windows * np.hanning(LENGTH))) / LENGTH + 1e-6
    at = np.fft.rfftfreq(LENGTH, 1 / RATE)
    line = lambda h: spectrum[:, np.abs(at - h * turns) < 6].max(1)
    band = lambda low, high: spectrum[:, (at >= low) & (at < high)].mean(1)
    rms, centred = windows.std(1), windows - windows.mean(1, keepdims=True)
    kurtosis = (centred**4).mean(1) / rms**4
    crest = np.abs(windows).max(1) / rms
    lines = [line(1), line(2), line(3), band(200, 600), band(600, 1200)]
    return np.log(np.stack([rms, kurtosis, crest, *lines], 1))
