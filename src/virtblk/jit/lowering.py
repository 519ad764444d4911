"""How a plain Python function gets a native body: the glue under atomics, arith, memory and libc.

`native(result, *arguments)` decorates a code generator and yields a decorator for the Python twin. In compiled code a
call of the twin becomes the generated instructions; with the JIT off the twin itself runs. Used at import only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

F = TypeVar("F", bound=Callable[..., Any])
Generator = Callable[[Any, Any, Any], Any]  # (context, builder, llvm arguments) -> llvm value

i64 = types.int64
void = types.void
LLVM_I64 = ir.IntType(64)
LLVM_I32 = ir.IntType(32)
LLVM_VOID = ir.VoidType()


# numba derives arities from parameter lists, without annotations, so there is one binder per arity.
def _bind0(twin, sig, lower):
    inner = intrinsic(lambda typingctx: (sig, lower))
    overload(twin)(lambda: lambda: inner())


def _bind1(twin, sig, lower):
    inner = intrinsic(lambda typingctx, a: (sig, lower))
    overload(twin)(lambda a: lambda a: inner(a))


def _bind2(twin, sig, lower):
    inner = intrinsic(lambda typingctx, a, b: (sig, lower))
    overload(twin)(lambda a, b: lambda a, b: inner(a, b))


def _bind3(twin, sig, lower):
    inner = intrinsic(lambda typingctx, a, b, c: (sig, lower))
    overload(twin)(lambda a, b, c: lambda a, b, c: inner(a, b, c))


def _bind4(twin, sig, lower):
    inner = intrinsic(lambda typingctx, a, b, c, d: (sig, lower))
    overload(twin)(lambda a, b, c, d: lambda a, b, c, d: inner(a, b, c, d))


_BIND = (_bind0, _bind1, _bind2, _bind3, _bind4)


def native(result: Any, *arguments: Any) -> Callable[[Generator], Callable[[F], F]]:
    """Give a Python twin the native body that `generate` emits; the twin's signature is `result(*arguments)`."""
    signature = result(*arguments)

    def for_generator(generate: Generator) -> Callable[[F], F]:
        def lower(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            value = generate(context, builder, args)
            return context.get_dummy_value() if result is void else value

        def for_twin(twin: F) -> F:
            _BIND[len(arguments)](twin, signature, lower)
            return twin

        return for_twin

    return for_generator


def pointer(builder: Any, address: Any, bits: int) -> Any:
    """An LLVM pointer to an integer of `bits` bits at an int64 address."""
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def external(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Declare the C function `name` in the module under construction (found in the process when it is linked)."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(arguments)), name)
