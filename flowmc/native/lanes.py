r"""Explicit SIMD for numba: values that hold one number per lane, and formulas traced onto them.

A :class:`Bundle` value is a handful of LLVM vectors, e.g. the 18 real components of a 3x3 complex
matrix for as many independent sites or chains as the machine has lanes.  Kernels written with
numba move bundles between memory and :func:`traced` formulas::

    @traced
    def axpy(a, x, y):
        return [fma(a[0], xi, yi) for xi, yi in zip(x, y, strict=True)]

A formula is plain Python on lists of lane values, run once when a kernel is compiled; the same
function evaluates on NumPy arrays, which is how the tests check it.  Nothing here relies on an
auto-vectoriser, and no operation is reordered: each lane sees the same sequence of roundings
wherever its site sits, so results depend neither on the layout nor on the number of threads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import errors
from numba.extending import intrinsic, models, register_model

__all__ = [
    "Bundle",
    "accumulate",
    "any_above",
    "flip",
    "fma",
    "lane_width",
    "lanes",
    "load",
    "store",
    "traced",
    "where",
]


@functools.lru_cache(maxsize=1)
def _vector_bytes() -> int:
    # Vectors of the widest registers: 64 bytes with AVX-512, else 32 (which narrower machines
    # split in two).
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:
        return 32
    return 64 if features.get("avx512f") else 32


def lane_width(item_bytes: int) -> int:
    """Return the number of lanes for real numbers of ``item_bytes`` bytes: 4, 8 or 16."""
    return _vector_bytes() // item_bytes


def _vector(real: types.Float) -> ir.VectorType:
    element = ir.DoubleType() if real.bitwidth == 64 else ir.FloatType()
    return ir.VectorType(element, lane_width(real.bitwidth // 8))


class Bundle(types.Type):
    """The numba type of ``count`` vectors of ``real`` lanes."""

    def __init__(self, count: int, real: types.Float) -> None:
        self.count, self.real = count, real
        super().__init__(name=f"Bundle({count} x {lane_width(real.bitwidth // 8)} x {real})")


@register_model(Bundle)
class _BundleModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Bundle) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(_vector(fe_type.real), fe_type.count))


class _Lane:
    """One vector while a formula is traced: arithmetic on it emits LLVM instructions."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _lift(self, other: Any) -> ir.Value:
        if isinstance(other, _Lane):
            return other.value
        vector = self.value.type
        return ir.Constant(vector, [ir.Constant(vector.element, float(other))] * vector.count)

    def _make(self, value: ir.Value) -> _Lane:
        return _Lane(self.builder, value)

    def __add__(self, other: Any) -> _Lane:
        return self._make(self.builder.fadd(self.value, self._lift(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> _Lane:
        return self._make(self.builder.fsub(self.value, self._lift(other)))

    def __rsub__(self, other: Any) -> _Lane:
        return self._make(self.builder.fsub(self._lift(other), self.value))

    def __mul__(self, other: Any) -> _Lane:
        return self._make(self.builder.fmul(self.value, self._lift(other)))

    __rmul__ = __mul__

    def __neg__(self) -> _Lane:
        return self._make(self.builder.fneg(self.value))

    def __gt__(self, other: Any) -> _Lane:
        return self._make(self.builder.fcmp_ordered(">", self.value, self._lift(other)))

    def __lt__(self, other: Any) -> _Lane:
        return self._make(self.builder.fcmp_ordered("<", self.value, self._lift(other)))

    def call(self, name: str, *others: Any) -> _Lane:
        """Apply an elementwise LLVM intrinsic, e.g. ``llvm.fmuladd``."""
        vector = self.value.type
        letter = "f64" if isinstance(vector.element, ir.DoubleType) else "f32"
        function = self.builder.module.declare_intrinsic(
            f"{name}.v{vector.count}{letter}",
            fnty=ir.FunctionType(vector, [vector] * (1 + len(others))),
        )
        arguments = [self.value, *(self._lift(other) for other in others)]
        return self._make(self.builder.call(function, arguments))


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c``, in one instruction and with one rounding where the machine can."""
    for lane in (a, b, c):
        if isinstance(lane, _Lane):
            first = lane if lane is a else lane._make(lane._lift(a))
            return first.call("llvm.fmuladd", b, c)
    return a * b + c


def round_to_integer(a: Any) -> Any:
    """Return the nearest integer, ties to even."""
    return a.call("llvm.rint") if isinstance(a, _Lane) else a.round()


def where(condition: Any, a: Any, b: Any) -> Any:
    """Return ``a`` in the lanes where ``condition`` (a comparison) holds and ``b`` elsewhere."""
    if not isinstance(condition, _Lane):
        return condition * a + (1 - condition) * b
    lane = a if isinstance(a, _Lane) else b
    return lane._make(lane.builder.select(condition.value, lane._lift(a), lane._lift(b)))


def _unpack(builder: ir.IRBuilder, value: ir.Value, count: int) -> list[_Lane]:
    return [_Lane(builder, builder.extract_value(value, i)) for i in range(count)]


def _pack(builder: ir.IRBuilder, kind: ir.Type, lanes: Sequence[_Lane]) -> ir.Value:
    value = ir.Constant(kind, ir.Undefined)
    for i, lane in enumerate(lanes):
        value = builder.insert_value(value, lane.value, i)
    return value


def traced(formula: Callable[..., Sequence[Any]]) -> Any:
    """Make a formula callable from numba kernels.

    Args:
        formula: takes lists of lane values and returns a list; the number of values returned may
            depend only on the lengths of the arguments.  It stays available for NumPy as
            ``.formula``.
    """

    class _Counter:
        # Stands in for a lane when only the number of results matters.
        def _same(self, *others: Any) -> _Counter:
            return self

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __gt__ = __lt__ = _same
        __neg__ = round = _same

    def define(typing_context: Any, *arguments: types.Type) -> Any:
        for argument in arguments:
            if not isinstance(argument, Bundle):
                raise errors.TypingError(f"{formula.__name__} works on bundles, not {argument}")
        bundles: Sequence[Any] = arguments
        real = bundles[0].real
        count = len(formula(*([_Counter()] * bundle.count for bundle in bundles)))
        result = Bundle(count, real)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            inputs = [
                _unpack(builder, value, bundle.count)
                for value, bundle in zip(values, signature.args, strict=True)
            ]
            return _pack(builder, context.get_value_type(result), list(formula(*inputs)))

        return result(*arguments), generate

    # numba matches calls against the signature, and star arguments would arrive as one tuple.
    first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [first, *inspect.signature(formula).parameters.values()]
    )
    define.__name__ = formula.__name__
    define.__doc__ = formula.__doc__
    operation: Any = intrinsic(define)
    operation.formula = formula
    return operation


def _vector_pointer(context, builder, array_type, array, offset):
    view = context.make_array(array_type)(context, builder, array)
    base = builder.gep(view.data, [offset])
    return builder.bitcast(base, _vector(array_type.dtype).as_pointer())


@intrinsic(prefer_literal=True)
def load(typing_context, array, offset, count):
    """Return the bundle of ``count`` consecutive vectors at element ``offset`` of a flat array.

    ``count`` is a literal integer.
    """
    vectors = count.literal_value
    result = Bundle(vectors, array.dtype)

    def generate(context, builder, signature, values):
        pointer = _vector_pointer(context, builder, signature.args[0], values[0], values[1])
        lanes = [
            _Lane(
                builder,
                builder.load(
                    builder.gep(pointer, [ir.Constant(ir.IntType(64), i)]),
                    align=array.dtype.bitwidth // 8,
                ),
            )
            for i in range(vectors)
        ]
        return _pack(builder, context.get_value_type(result), lanes)

    return result(array, types.intp, count), generate


@intrinsic(prefer_literal=True)
def splat(typing_context, array, value, count):
    """Return ``count`` vectors of the array's dtype with ``value`` in every lane."""
    result = Bundle(count.literal_value, array.dtype)

    def generate(context, builder, signature, values):
        vector = _vector(array.dtype)
        item = values[1]
        if array.dtype.bitwidth == 32:
            item = builder.fptrunc(item, vector.element)
        seed = builder.insert_element(
            ir.Constant(vector, ir.Undefined), item, ir.Constant(ir.IntType(32), 0)
        )
        indices = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        filled = builder.shuffle_vector(seed, ir.Constant(vector, ir.Undefined), indices)
        return _pack(
            builder, context.get_value_type(result), [_Lane(builder, filled)] * result.count
        )

    return result(array, types.float64, count), generate


@intrinsic
def store(typing_context, array, offset, bundle):
    """Write a bundle to consecutive vectors at element ``offset`` of a flat array."""

    def generate(context, builder, signature, values):
        pointer = _vector_pointer(context, builder, signature.args[0], values[0], values[1])
        for i, lane in enumerate(_unpack(builder, values[2], bundle.count)):
            builder.store(
                lane.value,
                builder.gep(pointer, [ir.Constant(ir.IntType(64), i)]),
                align=array.dtype.bitwidth // 8,
            )
        return context.get_dummy_value()

    return types.void(array, types.intp, bundle), generate


@intrinsic
def accumulate(typing_context, array, offset, bundle):
    """Add a bundle of one vector, widened to float64, to a float64 array at ``offset``."""

    def generate(context, builder, signature, values):
        (lane,) = _unpack(builder, values[2], 1)
        wide = ir.VectorType(ir.DoubleType(), lane.value.type.count)
        value = lane.value if bundle.real == types.float64 else builder.fpext(lane.value, wide)
        view = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = builder.bitcast(builder.gep(view.data, [values[1]]), wide.as_pointer())
        builder.store(builder.fadd(builder.load(pointer, align=8), value), pointer, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, bundle), generate


@intrinsic
def lanes(typing_context, array):
    """Return the number of lanes of an array's dtype, as a constant of the compiler."""
    width = lane_width(array.dtype.bitwidth // 8)

    def generate(context, builder, signature, values):
        return ir.Constant(ir.IntType(64), width)

    return types.int64(array), generate


@intrinsic
def flip(typing_context, bundle, mask):
    """Return the bundle with lane ``i`` taken from lane ``i ^ mask``."""

    def generate(context, builder, signature, values):
        width = lane_width(bundle.real.bitwidth // 8)
        lanes = _unpack(builder, values[0], bundle.count)
        integer = values[1].type
        bit = 1
        while bit < width:
            pattern = ir.Constant(
                ir.VectorType(ir.IntType(32), width),
                [ir.Constant(ir.IntType(32), i ^ bit) for i in range(width)],
            )
            is_set = builder.icmp_unsigned(
                "!=", builder.and_(values[1], ir.Constant(integer, bit)), ir.Constant(integer, 0)
            )
            lanes = [
                lane._make(
                    builder.select(
                        is_set,
                        builder.shuffle_vector(
                            lane.value, ir.Constant(lane.value.type, ir.Undefined), pattern
                        ),
                        lane.value,
                    )
                )
                for lane in lanes
            ]
            bit *= 2
        return _pack(builder, context.get_value_type(bundle), lanes)

    return bundle(bundle, types.intp), generate


@intrinsic
def any_above(typing_context, bundle, limit):
    """Return whether any lane of a bundle of one vector exceeds ``limit``."""

    def generate(context, builder, signature, values):
        (lane,) = _unpack(builder, values[0], 1)
        element = lane.value.type.element
        threshold = values[1]
        if isinstance(element, ir.FloatType):
            threshold = builder.fptrunc(threshold, element)
        result = ir.Constant(ir.IntType(1), 0)
        for i in range(lane.value.type.count):
            item = builder.extract_element(lane.value, ir.Constant(ir.IntType(32), i))
            result = builder.or_(result, builder.fcmp_ordered(">", item, threshold))
        return result

    return types.boolean(bundle, types.float64), generate
