"""The vector layer: kernels are written as Python over vectors and come out as LLVM's intermediate representation.

A `Code` is one function that is being built.  A `Value` is a vector in it, one number for each lane, or a scalar where
an index is needed; operators on values emit one instruction each.  Python's own loops unroll; `Code.loop` makes a real
loop whose state goes in and comes out, and `where` takes the place of `if`, since lanes go different ways.

Every operation is the one that ggml's scalar C does: no instruction carries a fast-math flag, so products and sums are
rounded one by one and in the order they are written, on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

FLOAT: Final = ir.FloatType()
DOUBLE: Final = ir.DoubleType()
INT: Final = ir.IntType(32)
HALF: Final = ir.IntType(16)
BYTE: Final = ir.IntType(8)
BIT: Final = ir.IntType(1)
INDEX: Final = ir.IntType(64)
POINTER: Final = ir.PointerType()

Number = int | float
State = tuple["Value", ...]


class Value:
    """What an instruction gives: a vector of floats, integers or truth values, or a scalar of them."""

    __slots__ = ("code", "raw")

    def __init__(self, code: Code, raw: Any) -> None:
        self.code = code
        self.raw = raw

    @property
    def element(self) -> Any:
        """The type of a lane."""
        return self.raw.type.element if isinstance(self.raw.type, ir.VectorType) else self.raw.type

    def _is_float(self) -> bool:
        return self.element in (FLOAT, DOUBLE)

    def like(self, number: Value | Number) -> Value:
        """Give *number* in every lane of a value of this one's type."""
        if isinstance(number, Value):
            return number
        return Value(self.code, _constant(self.raw.type, number))

    def _emit(self, name: str, *operands: Value | Number) -> Value:
        others = [self.like(operand).raw for operand in operands]
        return Value(self.code, getattr(self.code.builder, name)(self.raw, *others))

    def _arithmetic(self, on_floats: str, on_ints: str, other: Value | Number) -> Value:
        return self._emit(on_floats if self._is_float() else on_ints, other)

    def __add__(self, other: Value | Number) -> Value:
        return self._arithmetic("fadd", "add", other)

    def __radd__(self, other: Number) -> Value:
        return self.like(other) + self

    def __sub__(self, other: Value | Number) -> Value:
        return self._arithmetic("fsub", "sub", other)

    def __rsub__(self, other: Number) -> Value:
        return self.like(other) - self

    def __mul__(self, other: Value | Number) -> Value:
        return self._arithmetic("fmul", "mul", other)

    def __rmul__(self, other: Number) -> Value:
        return self.like(other) * self

    def __truediv__(self, other: Value | Number) -> Value:
        return self._emit("fdiv", other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.like(other) / self

    def __floordiv__(self, other: Value | Number) -> Value:
        return self._emit("udiv", other)

    def __mod__(self, other: Value | Number) -> Value:
        return self._emit("urem", other)

    def __neg__(self) -> Value:
        return Value(self.code, self.code.builder.fneg(self.raw))

    def __and__(self, other: Value | Number) -> Value:
        return self._emit("and_", other)

    def __or__(self, other: Value | Number) -> Value:
        return self._emit("or_", other)

    def __xor__(self, other: Value | Number) -> Value:
        return self._emit("xor", other)

    def __lshift__(self, other: Value | Number) -> Value:
        return self._emit("shl", other)

    def __rshift__(self, other: Value | Number) -> Value:
        """Shift zeros in from the left."""
        return self._emit("lshr", other)

    def arithmetic_shift(self, n_bits: int) -> Value:
        """Shift to the right, copies of the sign in from the left."""
        return self._emit("ashr", n_bits)

    def _compare(self, symbol: str, other: Value | Number) -> Value:
        """Compare as C does: with NaN nothing is true but `!=`; integers have signs."""
        builder, right = self.code.builder, self.like(other).raw
        if not self._is_float():
            return Value(self.code, builder.icmp_signed(symbol, self.raw, right))
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return Value(self.code, compare(symbol, self.raw, right))

    def __lt__(self, other: Value | Number) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Value | Number) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Value | Number) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Value | Number) -> Value:
        return self._compare(">=", other)

    def __eq__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]  # a comparison gives a vector

    def _as(self, how: str, element: Any) -> Value:
        kind = self.raw.type
        wanted = ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element
        return Value(self.code, getattr(self.code.builder, how)(self.raw, wanted))

    def bits(self) -> Value:
        """Give the bits of float32 as int32."""
        return self._as("bitcast", INT)

    def floats(self) -> Value:
        """Give the float32 that have these bits, int32."""
        return self._as("bitcast", FLOAT)

    def doubles(self) -> Value:
        """Convert float32 to float64, exactly."""
        return self._as("fpext", DOUBLE)

    def to_float(self) -> Value:
        """Convert signed integers to float32."""
        return self._as("sitofp", FLOAT)

    def cut_off(self) -> Value:
        """Convert float32 to int32 and drop the fraction; the numbers must fit."""
        return self._as("fptosi", INT)

    def narrow(self, element: Any) -> Value:
        """Keep the low bits: to HALF or BYTE."""
        return self._as("trunc", element)

    def widen(self, element: Any) -> Value:
        """Fill up with zeros: to INT or INDEX."""
        return self._as("zext", element)

    def mask(self) -> Value:
        """Give truth values as one integer, lane 0 in the lowest bit."""
        return Value(self.code, self.code.builder.bitcast(self.raw, ir.IntType(self.raw.type.count)))

    def any(self) -> Value:
        """Say whether a lane is true."""
        return self.mask() != 0

    def all(self) -> Value:
        """Say whether every lane is true."""
        return self.mask() == -1

    def sqrt(self) -> Value:
        """Give the square root, rounded as IEEE says."""
        return self.code.intrinsic("llvm.sqrt", self)

    def trailing_zeros(self) -> Value:
        """Count the zeros below the lowest bit that is set; all bits if none is."""
        return Value(self.code, self.code.builder.cttz(self.raw, ir.Constant(BIT, 0)))

    def shuffle(self, lanes: list[int], other: Value | None = None) -> Value:
        """Give the lanes by number; those of *other* count on behind this one's."""
        numbers = ir.Constant(ir.VectorType(INT, len(lanes)), lanes)
        second = self.raw if other is None else other.raw
        return Value(self.code, self.code.builder.shuffle_vector(self.raw, second, numbers))

    def spread(self, n: int) -> Value:
        """Give a scalar in each of *n* lanes."""
        builder = self.code.builder
        one = builder.insert_element(
            ir.Constant(ir.VectorType(self.raw.type, n), ir.Undefined), self.raw, ir.Constant(INT, 0)
        )
        return Value(self.code, one).shuffle([0] * n)


def _constant(kind: Any, number: Number) -> Any:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [_plain(kind.element, number)] * kind.count)
    return ir.Constant(kind, _plain(kind, number))


def _plain(element: Any, number: Number) -> Number:
    if element in (FLOAT, DOUBLE):
        return float(number)
    return int(number)


def where(condition: Value, true: Value | Number, false: Value | Number) -> Value:
    """Choose lane by lane; one of both must be a value."""
    example = true if isinstance(true, Value) else false
    assert isinstance(example, Value)  # noqa: S101  a mistake in a kernel
    code = condition.code
    return Value(code, code.builder.select(condition.raw, example.like(true).raw, example.like(false).raw))


def smaller(a: Value, b: Value | Number) -> Value:
    """Give `a < b ? a : b`: b where they are equal or one is NaN."""
    return where(a < b, a, b)


def larger(a: Value, b: Value | Number) -> Value:
    """Give `a > b ? a : b`: b where they are equal or one is NaN."""
    return where(a > b, a, b)


def absolute(a: Value) -> Value:
    """Clear the sign of float32."""
    return (a.bits() & 0x7FFFFFFF).floats()


class Pointer:
    """A place in memory; nothing is said of its alignment."""

    def __init__(self, code: Code, raw: Any) -> None:
        self.code = code
        self.raw = raw

    def at(self, n_bytes: Value | int) -> Pointer:
        """Give the place *n_bytes* further on."""
        offset = n_bytes.raw if isinstance(n_bytes, Value) else ir.Constant(INDEX, n_bytes)
        return Pointer(self.code, self.code.builder.gep(self.raw, [offset], source_etype=BYTE))

    def load(self, element: Any, n: int = 0) -> Value:
        """Load *n* numbers as a vector; 0 loads a scalar."""
        kind = ir.VectorType(element, n) if n else element
        return Value(self.code, self.code.builder.load(self.raw, align=1, typ=kind))

    def store(self, value: Value) -> None:
        """Store a vector or a scalar."""
        self.code.builder.store(value.raw, self.raw, align=1)


class Rows:
    """Vectors one after another in memory, as a list: *lanes* of the code's, which are all by default."""

    def __init__(self, start: Pointer, element: Any, lanes: int | None = None) -> None:
        self._start = start
        self._element = element
        self._lanes = lanes or start.code.lanes

    def _place(self, row: Value | int) -> Pointer:
        return self._start.at(row * self.row_bytes)

    @property
    def _lane_bytes(self) -> int:
        return self._element.width // 8 if isinstance(self._element, ir.IntType) else 4

    @property
    def row_bytes(self) -> int:
        """The distance of two vectors."""
        return self._start.code.lanes * self._lane_bytes

    @property
    def start(self) -> Pointer:
        """Where the first row is."""
        return self._start

    def __getitem__(self, row: Value | int) -> Value:
        return self._place(row).load(self._element, self._lanes)

    def __setitem__(self, row: Value | int, value: Value) -> None:
        self._place(row).store(value)

    def after(self, row: Value | int) -> Rows:
        """Give the rows from *row* on."""
        return Rows(self._place(row), self._element, self._lanes)

    def registers(self) -> list[Rows]:
        """Give the same rows cut to as many lanes as a register of 32-bit numbers has, first lanes first."""
        width = self._start.code.width
        starts = range(0, self._lanes, width)
        return [Rows(self._start.at(lane * self._lane_bytes), self._element, width) for lane in starts]


class Code:
    """One function of a module: *lanes* is how many blocks go side by side, *width* what a register holds."""

    def __init__(self, module: ir.Module, name: str, n_pointers: int, n_counts: int, lanes: int, width: int) -> None:
        kinds = [POINTER] * n_pointers + [INDEX] * n_counts
        self._function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self._module = module
        self.lanes, self.width = lanes, width
        self.builder = ir.IRBuilder(self._function.append_basic_block("entry"))
        self.pointers = [Pointer(self, raw) for raw in self._function.args[:n_pointers]]
        self.counts = [Value(self, raw) for raw in self._function.args[n_pointers:]]

    def finish(self) -> None:
        """Return from the function."""
        self.builder.ret_void()

    def index(self, number: int) -> Value:
        """Give an index that is a constant."""
        return Value(self, ir.Constant(INDEX, number))

    def floats(self, number: float) -> Value:
        """Give *number* as float32 in every lane."""
        return Value(self, _constant(ir.VectorType(FLOAT, self.lanes), number))

    def ints(self, number: int) -> Value:
        """Give *number* as int32 in every lane."""
        return Value(self, _constant(ir.VectorType(INT, self.lanes), number))

    def rows(self, n: int, element: Any = FLOAT) -> Rows:
        """Reserve *n* vectors on the stack; their contents are undefined."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(ir.ArrayType(ir.VectorType(element, self.lanes), n))
            place.align = 64
        place.type = POINTER  # llvmlite would have pointers to something, LLVM has not
        return Rows(Pointer(self, place), element)

    def intrinsic(self, name: str, value: Value) -> Value:
        """Call a function of LLVM's own that takes a vector and gives one of the same type."""
        kind = value.raw.type
        full = f"{name}.v{kind.count}f32"
        known = self._module.globals.get(full)
        function = known or ir.Function(self._module, ir.FunctionType(kind, [kind]), full)
        return Value(self, self.builder.call(function, [value.raw]))

    def loop(self, count: Value | int, body: Callable[..., State | None], *state: Value) -> State:
        """Run `state = body(i, *state)` for i from 0 up to *count*, and give the last state."""
        builder = self.builder
        before = builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(INDEX)
        i.add_incoming(ir.Constant(INDEX, 0), before)
        carried = []
        for value in state:
            phi = builder.phi(value.raw.type)
            phi.add_incoming(value.raw, before)
            carried.append(phi)
        limit = count.raw if isinstance(count, Value) else ir.Constant(INDEX, count)
        builder.cbranch(builder.icmp_signed("<", i, limit), inside, after)
        builder.position_at_end(inside)
        new = body(Value(self, i), *(Value(self, phi) for phi in carried)) or ()
        i.add_incoming(builder.add(i, ir.Constant(INDEX, 1)), builder.block)
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value.raw, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return tuple(Value(self, phi) for phi in carried)

    def each(self, count: Value | int, body: Callable[..., State | None], *state: Value, unroll: int = 4) -> State:
        """Do what `loop` does, *unroll* rounds at a time; *count* must be a multiple of it."""

        def several(i: Value, *inner: Value) -> State:
            for step in range(unroll):
                inner = body(i * unroll + step, *inner) or ()
            return inner

        return self.loop(count // unroll, several, *state)

    def when(self, condition: Value, body: Callable[[], object], otherwise: Callable[[], object] | None = None) -> None:
        """Run *body* if a scalar truth value is true, else *otherwise*; both work on memory."""
        if otherwise is None:
            with self.builder.if_then(condition.raw):
                body()
            return
        with self.builder.if_else(condition.raw) as (then, orelse):
            with then:
                body()
            with orelse:
                otherwise()
