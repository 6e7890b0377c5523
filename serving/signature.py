"""What can be asked of a model, whatever its format: named inputs and outputs, each with a type and a shape."""

from dataclasses import dataclass

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a signature.

    Attributes:
        name: its name in the signature.
        datatype: as Triton's protocol spells it, such as FP32 or BYTES.
        shape: with the batch dimension; -1 where it varies.
        source: its name inside the model: operation:index of a SavedModel's graph.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature: what can be asked of a model.

    Attributes:
        name: such as `serving_default`.
        inputs: sorted by name.
        outputs: sorted by name.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batches(self) -> bool:
        """Whether the first dimension of every tensor varies, so that requests can be joined along it."""
        return all(tensor.shape[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


def breaks(before: Signature, after: Signature) -> str | None:
    """What those who ask by one signature would miss in another; None when nothing. New outputs break nothing."""
    old, new = ({t.name: str(t) for t in s.inputs} for s in (before, after))
    missing = sorted(set(old) - set(new)) or sorted(set(new) - set(old))
    if missing:
        return f"its inputs are {', '.join(new) or 'none'} in place of {', '.join(old) or 'none'}"
    kept = {t.name: str(t) for t in before.outputs}
    found = {t.name: str(t) for t in after.outputs}
    for name in kept:
        if name not in found:
            return f"it has no output {name}"
    for name, text in (old | kept).items():
        other = (new | found)[name]
        if other != text:
            return f"{other} in place of {text}"
    return None
