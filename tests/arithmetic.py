"""What promises bits rests on: each operation checked as it is carried out, and one that errs."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations by torch's name. NumPy's take float32 as float64 and int32 as int64, and are rounded,
#: or cut, once: for + - * / of float32 that is the correctly rounded result, as 53 >= 2 * 24 + 2
#: (Figueroa, "When is double rounding innocuous?", SIGNUM Newsletter 30(3), 1995).
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "floor_divide": np.floor_divide,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "__lshift__": np.left_shift,
    "__rshift__": np.right_shift,
    "_to_copy": np.positive,
}
#: What moves numbers, and computes none.
_MOVES = {
    "_local_scalar_dense",
    "alias",
    "arange",
    "cat",
    "clone",
    "detach",
    "empty",
    "expand",
    "full_like",
    "new_full",
    "select",
    "slice",
    "unsqueeze",
    "view",
    "zeros_like",
}
_OWN = {torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32}
_WIDER = _OWN | {torch.float32: np.float64, torch.int32: np.int64}
#: A square root of float64 may err by so many units in its last place: see noise.normal._sqrt.
_UNITS = 3


class AgainstNumPy(TorchDispatchMode):
    """Compares every operation with NumPy's on the same operands, bit for bit.

    Attributes:
        seen: names of those that compute.

    Raises:
        AssertionError: naming an operation that differs, or of which nothing is known.
    """

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        name = {"__ilshift__": "__lshift__"}.get(name, name if "__" in name else name.rstrip("_"))
        if name in _MOVES:
            return func(*args, **(kwargs or {}))
        assert name in (*ARITHMETIC, "sqrt"), f"{func}: nothing is known of its rounding"
        operands = [self._operand(arg, args[0]) for arg in args]  # before one is written over
        result = func(*args, **(kwargs or {}))
        found = result.cpu().numpy()
        if name == "sqrt":
            assert result.dtype == torch.float64, f"{func} of {result.dtype} errs"
            apart = found.view(np.int64) - np.sqrt(operands[0]).view(np.int64)
            assert np.abs(apart).max(initial=0) <= _UNITS, f"{func} errs by {apart.max()} units"
        else:
            with np.errstate(over="ignore"):
                want = ARITHMETIC[name](*operands).astype(found.dtype)
            wrong = found.view(f"i{found.itemsize}") != want.view(f"i{found.itemsize}")
            assert not wrong.any(), f"{func} is wrong in {wrong.sum()} of {wrong.size} numbers"
        self.seen.add(name)
        return result

    @staticmethod
    def _operand(value, first):
        """As NumPy has it; a number is of the type of the tensor beside it."""
        if isinstance(value, torch.Tensor):
            return value.cpu().numpy().astype(_WIDER[value.dtype])
        return _WIDER[first.dtype](_OWN[first.dtype](value))


#: By how many units in the last place the roots of a type err, and that type's bits.
_UNITS_OFF = {torch.float32: (1, torch.int32), torch.float64: (_UNITS, torch.int64)}


class ErringRoots(TorchDispatchMode):
    """Square roots as libraries have them: off in the last place, of float64 by up to 3 units.

    By how much depends on the number alone, as it does there. Only a CPU's are.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket not in (torch.ops.aten.sqrt, torch.ops.aten.sqrt_):
            return result
        if type(result) is not torch.Tensor or result.device.type != "cpu":
            return result
        if result.dtype not in _UNITS_OFF:
            return result
        most, whole = _UNITS_OFF[result.dtype]
        # of what sqrt_ has written over, the root is at hand alone, which is right or nearly so
        of_itself = func.overloadpacket == torch.ops.aten.sqrt_
        right = result.detach() if of_itself else self._root(args[0].detach())
        bits = right.contiguous().view(whole)
        units = (bits % (2 * most + 1) - most) * (right.isfinite() & (right != 0))
        result.detach().copy_((bits + units.to(whole)).view(result.dtype))
        return result

    @staticmethod
    def _root(value):
        return torch.from_numpy(np.asarray(np.sqrt(value.numpy())))
