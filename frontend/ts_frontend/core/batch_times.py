"""`BatchTimes`: how long a batch of a given size takes, learned from the batches that ran.

Sizes fall into classes (each size up to 7 its own, then four per octave), and every class keeps a
smoothed size and time. Between two classes the curve is straight, below the first it is flat, above
the last it is proportional to the size: models do better than that, so that a larger size is tried
where there is room for it, and what was tried is known from then on.

Three things keep one odd batch from deciding for long: a sample counts for at most `MAX_JUMP` times
what was known; a larger size is never taken to be faster than a smaller one (where the samples say
so they are averaged, by their number); and a class is forgotten that has not been seen for long,
sooner the less it was seen.
"""

from __future__ import annotations

from bisect import bisect_left

WEIGHT = 0.2  # of the newest sample
WEIGHT_OF_GOOD_NEWS = 0.5  # ... that took less than half: the odd ones were those before it
MAX_JUMP = 4.0
MEMORY_PER_SAMPLE = 50  # batches for which a class is remembered, for each sample of it
MAX_SAMPLES = 20


class _SizeClass:
    __slots__ = ("last", "samples", "seconds", "size")

    def __init__(self, size: int, seconds: float) -> None:
        self.size = float(size)
        self.seconds = seconds
        self.samples = 0
        self.last = 0


class BatchTimes:
    __slots__ = ("_batches", "_classes", "_curve")

    def __init__(self) -> None:
        self._classes: dict[int, _SizeClass] = {}
        self._batches = 0
        self._curve: tuple[list[float], list[float]] | None = ([], [])  # None: to be worked out

    def add(self, size: int, seconds: float) -> None:
        """A batch of `size` jobs took `seconds`, from a worker's being free to its being free."""
        self._batches += 1
        self._curve = None
        shift = max(0, size.bit_length() - 3)
        key = size >> shift << shift
        known = self._classes.get(key)
        if known is None:
            known = self._classes[key] = _SizeClass(size, seconds)
        known.samples = min(known.samples + 1, MAX_SAMPLES)
        known.last = self._batches
        known.size += (size - known.size) * WEIGHT
        weight = WEIGHT if seconds > known.seconds / 2 else WEIGHT_OF_GOOD_NEWS
        known.seconds += (min(seconds, MAX_JUMP * known.seconds) - known.seconds) * weight

    def predict_s(self, size: int) -> float | None:
        """Seconds that a batch of `size` jobs will take; None as long as none has run."""
        sizes, seconds = self._curve or self._work_out()
        if not sizes:
            return None
        index = bisect_left(sizes, size)
        if index == 0:
            return seconds[0]
        if index == len(sizes):
            return seconds[-1] * size / sizes[-1]
        low, high = sizes[index - 1], sizes[index]
        share = (size - low) / (high - low)
        return seconds[index - 1] + share * (seconds[index] - seconds[index - 1])

    def _work_out(self) -> tuple[list[float], list[float]]:
        """The curve: never falling, by pooling neighbours that would make it fall."""
        for key, known in list(self._classes.items()):
            if self._batches - known.last > MEMORY_PER_SAMPLE * known.samples:
                del self._classes[key]
        pools: list[tuple[float, int, list[float]]] = []  # seconds, samples, sizes
        for _, known in sorted(self._classes.items()):
            seconds, samples, sizes = known.seconds, known.samples, [known.size]
            while pools and pools[-1][0] >= seconds:
                more_s, more, smaller = pools.pop()
                seconds = (seconds * samples + more_s * more) / (samples + more)
                samples += more
                sizes = smaller + sizes
            pools.append((seconds, samples, sizes))
        curve = (
            [size for _, _, sizes in pools for size in sizes],
            [seconds for seconds, _, sizes in pools for _ in sizes],
        )
        self._curve = curve
        return curve

    def __repr__(self) -> str:
        curve = self._curve or self._work_out()
        points = ", ".join(
            f"{size:.0f}: {seconds * 1000:.3g} ms" for size, seconds in zip(*curve, strict=True)
        )
        return f"<BatchTimes {points}>"
