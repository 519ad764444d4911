"""The rules of compiled code, held by reading it: every function decorated with @kernel, and the files they live in.

A kernel raises nothing, allocates nothing and holds no text; its integers are int64; it never keeps a record of shared
memory in a local, for that is a view, and reading it twice sees what a peer changed in between.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "virtblk"

#: Statements and expressions with no place in a kernel.
BANNED: dict[type[ast.AST], str] = {
    ast.Raise: "raises",
    ast.Assert: "raises (assert)",
    ast.Try: "handles exceptions",
    ast.TryStar: "handles exceptions",
    ast.With: "handles exceptions (with)",
    ast.JoinedStr: "formats text",
    ast.List: "allocates a list",
    ast.Dict: "allocates a dict",
    ast.Set: "allocates a set",
    ast.ListComp: "allocates a list",
    ast.DictComp: "allocates a dict",
    ast.SetComp: "allocates a set",
    ast.GeneratorExp: "allocates a generator",
    ast.Yield: "is a generator",
    ast.YieldFrom: "is a generator",
    ast.Lambda: "makes a closure",
    ast.FunctionDef: "makes a closure",
    ast.Global: "writes a global",
    ast.Import: "imports",
    ast.ImportFrom: "imports",
}

#: Calls that allocate: of NumPy's module, of builtins, of any array's methods.
# fmt: off
NUMPY_ALLOCATES = {
    "append", "arange", "array", "ascontiguousarray", "concatenate", "copy", "empty", "empty_like", "frombuffer",
    "full", "full_like", "hstack", "linspace", "ones", "ones_like", "repeat", "stack", "tile", "vstack", "where",
    "zeros", "zeros_like",
}
# fmt: on
BUILTIN_ALLOCATES = {"bytearray", "bytes", "dict", "frozenset", "list", "set", "sorted", "str"}
METHOD_ALLOCATES = {"astype", "copy", "flatten", "repeat", "tobytes", "tolist"}

#: Types that would bring back Numba's mixed-width promotions.
NARROW = {"int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"}


DECORATORS = {"kernel", "cold_kernel", "inline_kernel"}


def is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).split("(")[0].split(".")[-1] in DECORATORS for decorator in node.decorator_list
    )


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


def is_field(node: ast.AST) -> bool:
    """`x["len"]`: a field of a record, or of all records of an array."""
    return isinstance(node, ast.Subscript) and is_text(node.slice)


def is_element(node: ast.AST) -> bool:
    """`x[i]`: one element, neither a field nor a slice."""
    return isinstance(node, ast.Subscript) and not is_text(node.slice) and not isinstance(node.slice, ast.Slice)


def violations(function: ast.FunctionDef, *, in_jit: bool = False) -> list[str]:
    """What a kernel does that a kernel must not do, each with its line."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    nodes = [node for statement in body for node in ast.walk(statement)]
    found = [(node.lineno, text) for node in nodes for text in _violations_of(node, in_jit)]
    fields = {id(node.slice) for node in nodes if is_field(node)}
    found += [(node.lineno, "holds text") for node in nodes if is_text(node) and id(node) not in fields]
    found += [(node.lineno, f"keeps the record {ast.unparse(node)}") for node in _records_kept(nodes)]
    return [f"{function.name}:{line}: {text}" for line, text in sorted(found)]


def _violations_of(node: ast.AST, in_jit: bool) -> Iterator[str]:
    if type(node) in BANNED:
        yield BANNED[type(node)]
    match node:
        case ast.Attribute(value=ast.Subscript()):
            yield f"attribute of a record, {ast.unparse(node)}: breaks interpreted"
        case ast.Call(func=ast.Name("print")):
            yield "prints"
        case ast.Call(func=ast.Name(name)) if name in BUILTIN_ALLOCATES:
            yield f"allocates: {name}()"
        case ast.Call(func=ast.Attribute(ast.Name("np" | "numpy"), name)) if name in NUMPY_ALLOCATES:
            yield f"allocates: np.{name}()"
        case ast.Call(func=ast.Attribute(_, name)) if name in METHOD_ALLOCATES:
            yield f"allocates: .{name}()"
        case ast.Call(func=ast.Attribute(ast.Name("np" | "numpy"), name) | ast.Name(name)):
            if name in NARROW and not in_jit:
                yield f"{name}(): integers in a kernel are int64"


def _records_kept(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    """Elements of record arrays that get a name: assigned, iterated over, passed on or returned.

    What a record array is, its use tells: `a[i]["len"]` anywhere, or `d["len"]` of a local that came from `a[i]`.
    """
    of_fields = {ast.unparse(node.value) for node in nodes if is_field(node)}
    arrays = {ast.unparse(node.value.value) for node in nodes if is_field(node) and is_element(node.value)}
    for target, value in _bindings(nodes):
        if is_element(value) and (target in of_fields or ast.unparse(value.value) in arrays):
            yield value


def _bindings(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) for all that binds a name here; the name is empty where the binding is in another function."""
    for node in nodes:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from _pairs(target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                yield from _pairs(target, value)
            case ast.For(target=target, iter=value):
                yield ast.unparse(target), ast.Subscript(value, ast.Name("each"), lineno=node.lineno)
            case ast.Call(args=arguments, keywords=keywords):
                for argument in [*arguments, *(keyword.value for keyword in keywords)]:
                    yield "", argument
            case ast.Return(value=ast.expr() as value):
                yield from (("", part) for part in (value.elts if isinstance(value, ast.Tuple) else [value]))


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, part in zip(target.elts, value.elts, strict=False):
            yield from _pairs(one, part)
    elif isinstance(target, ast.Name):
        yield target.id, value


def not_compiled(tree: ast.Module) -> list[str]:
    """Statements that do not belong in a file of compiled code: all but kernels, constants and NamedTuples."""
    return [f"{node.lineno}: {ast.unparse(node).splitlines()[0]}" for node in tree.body if not _belongs(node)]


def _belongs(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assign() | ast.AnnAssign() | ast.Assert():
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING"), body=body):
            return all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in body)
        case ast.ClassDef(bases=[base], body=body):
            return ast.unparse(base).split(".")[-1] == "NamedTuple" and not any(
                isinstance(inner, ast.FunctionDef) for inner in body
            )
    return is_kernel(node)


SOURCES = {str(path.relative_to(SRC)): ast.parse(path.read_text(), str(path)) for path in sorted(SRC.rglob("*.py"))}
KERNELS = {
    name: kernels for name, tree in SOURCES.items() if (kernels := [node for node in ast.walk(tree) if is_kernel(node)])
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_keep_the_rules(name: str) -> None:
    in_jit = name.startswith("jit/")
    assert [line for function in KERNELS[name] for line in violations(function, in_jit=in_jit)] == []


@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("jit/")])
def test_compiled_code_lives_alone(name: str) -> None:
    assert not_compiled(SOURCES[name]) == []


def _kernel(body: str) -> ast.FunctionDef:
    function = ast.parse(f"@kernel\ndef k(a, b, i):\n    {body}").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert is_kernel(function)
    return function


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("raise ValueError", "raises"),
        ("assert i", "raises"),
        ("try: i = 1\n    finally: i = 2", "exceptions"),
        ("with i: pass", "exceptions"),
        ("f'{i}'", "formats text"),
        ("i = 'text'", "holds text"),
        ("i = b'text'", "holds text"),
        ("i == 'text'", "holds text"),
        ("print(i)", "prints"),
        ("return a[i].len", "attribute of a record"),
        ("a[i].len = 1", "attribute of a record"),
        ("return [i]", "allocates a list"),
        ("return {}", "allocates a dict"),
        ("return {i}", "allocates a set"),
        ("return [x for x in a]", "allocates a list"),
        ("return sum(x for x in a)", "allocates a generator"),
        ("return np.empty(i)", "allocates: np.empty()"),
        ("return np.zeros(i, np.int64)", "allocates: np.zeros()"),
        ("return a.copy()", "allocates: .copy()"),
        ("return list(a)", "allocates: list()"),
        ("return lambda: i", "closure"),
        ("def inner(): pass", "closure"),
        ("yield i", "generator"),
        ("global a", "global"),
        ("import os", "imports"),
        ("d = a[i]\n    return d['len']", "keeps the record a[i]"),
        ("d: object = a[i]\n    return d['len']", "keeps the record a[i]"),
        ("d = a[i]\n    return a[i + 1]['len']", "keeps the record a[i]"),
        ("d, e = a[i], 0\n    return d['len']", "keeps the record a[i]"),
        ("if (d := a[i]): return d['len']", "keeps the record a[i]"),
        ("for d in a: b[d['len']] = 1", "keeps the record a[each]"),
        ("a[i]['len'] = 1\n    return f(a[i])", "keeps the record a[i]"),
        ("a[i]['len'] = 1\n    return i, a[i]", "keeps the record a[i]"),
        ("d = b.ring[i]\n    return b.ring[0]['id']", "keeps the record b.ring[i]"),
        ("return np.uint16(i)", "int64"),
        ("return uint32(i)", "int64"),
    ],
)
def test_a_bad_kernel_is_seen(body: str, complaint: str) -> None:
    found = violations(_kernel(body))
    assert any(complaint in line for line in found), found


@pytest.mark.parametrize(
    "body",
    [
        "'''A docstring.'''\n    return -5",
        "n = a[i]['len']\n    a[i]['len'] = n + 1\n    return n",
        "n = a.state[0]['head']\n    a.free[n] = i\n    return a.free[n]",
        "lens = a['len']\n    return lens[i]",
        "part = a[i:i + 2]\n    return part[0]['len']",
        "a[i] = a[i + 1]\n    return a[i]['len']",
        "return np.int64(i), f(a, i), a.shape[0]",
    ],
)
def test_a_good_kernel_passes(body: str) -> None:
    assert violations(_kernel(body)) == []


def test_narrow_integers_are_jits_own() -> None:
    assert violations(_kernel("return np.uint16(i)"), in_jit=True) == []


@pytest.mark.parametrize(
    "statement",
    [
        "def helper(): pass",
        "class Queue: pass",
        "class Q(NamedTuple):\n    def m(self): pass",
        "print()",
        "for i in x: pass",
    ],
)
def test_a_stranger_in_a_file_of_kernels_is_seen(statement: str) -> None:
    good = "'Doc.'\nimport x\nN: Final = 3\nassert N\nclass R(NamedTuple):\n    desc: int\n@kernel\ndef k(): pass\n"
    assert not_compiled(ast.parse(good)) == []
    assert not_compiled(ast.parse(good + statement))
