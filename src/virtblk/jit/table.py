"""Tables: one-dimensional arrays that compiled code passes about as bare addresses.

Numba counts references of arrays: a NamedTuple of a dozen of them costs two atomic operations per array at every call
that is not inlined (508 increments in the bench's loop, 4 us per I/O). A Table is an ndarray to Python and (address,
length) to a kernel; it owns nothing there, so whoever starts a kernel keeps the table alive until the kernel ends.
`tables[i]["field"]` and `numbers[i]` read and write as with arrays. NUMBA_BOUNDSCHECK checks indices here too.

Made by control code; indexed in kernels. `table_at` makes one from an address inside a kernel.
"""

from __future__ import annotations

import ctypes
import operator
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import NativeValue, intrinsic, lower_builtin, overload, register_model, typeof_impl, unbox
from numba.np.numpy_support import from_dtype

_I64 = ir.IntType(64)


class Table(np.ndarray):
    """An ndarray of one dimension whose memory stays where it is. `address` is that of the first record."""

    address: int
    length: int

    def __new__(cls, length: int, dtype: npt.DTypeLike = np.int64) -> Table:
        return cls.of(np.zeros(length, dtype))

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Table:
        """`array` itself as a table. Raises ValueError unless it is contiguous and one-dimensional."""
        if array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(f"a table is a contiguous array of one dimension, not {array.shape}")
        return array.view(cls)

    def __array_finalize__(self, base: Any) -> None:
        """Every view and copy knows its own memory; only contiguous ones of one dimension may go to a kernel."""
        self.address = int(self.ctypes.data)
        self.length = self.size


class TableType(types.Type):
    """A kernel's type for tables of `dtype`."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Table({dtype})")


_types: dict[np.dtype[Any], TableType] = {}


def table_type(dtype: np.dtype[Any]) -> TableType:
    """The kernel type for tables of this NumPy dtype."""
    if dtype not in _types:
        _types[dtype] = TableType(from_dtype(dtype))
    return _types[dtype]


@typeof_impl.register(Table)
def _typeof(value: Table, context: Any) -> TableType | None:
    """None, which Numba reports as a TypeError, for a view with gaps: a kernel knows no strides."""
    return table_type(value.dtype) if value.ndim == 1 and value.flags.c_contiguous else None


@register_model(TableType)
class _TableModel(models.StructModel):
    def __init__(self, manager: Any, kind: TableType) -> None:
        super().__init__(manager, kind, [("address", types.int64), ("length", types.int64)])


@unbox(TableType)
def _unbox(kind: TableType, obj: Any, c: Any) -> Any:
    table = cgutils.create_struct_proxy(kind)(c.context, c.builder)
    for name in ("address", "length"):
        value = c.pyapi.object_getattr_string(obj, name)
        setattr(table, name, c.pyapi.long_as_longlong(value))
        c.pyapi.decref(value)
    return NativeValue(table._getvalue())


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
            return signature(args[0].dtype, args[0], types.int64)
        return None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 3 and isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.int64, args[0].dtype)
        return None


def _element(context: Any, builder: Any, kind: TableType, value: Any, index: Any) -> Any:
    """Pointer to the bytes of element `index`."""
    table = cgutils.create_struct_proxy(kind)(context, builder, value=value)
    if config.BOUNDSCHECK:
        outside = builder.icmp_unsigned(">=", index, table.length)
        with builder.if_then(outside, likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("table index is out of bounds",))
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    return builder.add(table.address, builder.mul(index, ir.Constant(_I64, size)))


@lower_builtin(operator.getitem, TableType, types.Integer)
def _lower_getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    element = _element(context, builder, kind, *args)
    if isinstance(kind.dtype, types.Record):
        return builder.inttoptr(element, context.get_value_type(kind.dtype))
    pointer = builder.inttoptr(element, context.get_data_type(kind.dtype).as_pointer())
    return context.unpack_value(builder, kind.dtype, pointer)


@lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
def _lower_setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.args[0]
    element = _element(context, builder, kind, args[0], args[1])
    pointer = builder.inttoptr(element, context.get_data_type(kind.dtype).as_pointer())
    context.pack_value(builder, kind.dtype, args[2], pointer)
    return context.get_dummy_value()


def table_at(address: int, length: int, dtype: np.dtype[Any]) -> Table:
    """The table of `length` elements at `address`; it owns nothing."""
    raw = (ctypes.c_uint8 * (int(length) * dtype.itemsize)).from_address(int(address))
    return Table.of(np.ndarray(int(length), dtype, memoryview(raw)))


@intrinsic
def _table_at(typingctx, address, length, dtype):
    kind = TableType(dtype.dtype)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        table = cgutils.create_struct_proxy(kind)(context, builder)
        table.address, table.length = args[0], args[1]
        return table._getvalue()

    return kind(types.int64, types.int64, dtype), lower


@overload(table_at)
def _overload_table_at(address, length, dtype):
    return lambda address, length, dtype: _table_at(address, length, dtype)
