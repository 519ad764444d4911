"""Every interleaving of two threads that run the rings' own step functions, on a machine whose stores may be late.

An explicit-state model checker. What runs are the kernels' own lines (`virtio_ring_split`, `vringh_split`), bound anew
so that each load, store and fence of shared memory is one step of a model: nothing is written down twice, and a fence
that is taken out of the source is gone here too. Private tables are Python lists, shared memory is a dictionary.

A machine is one of two. TSO (x86): a store goes to the end of its thread's buffer, loads see their own thread's buffer
first, and the oldest store reaches memory at any time. PSO is weaker (towards Arm): stores to different words reach
memory in any order, only that a release waits for all that came before it. A fence waits for the buffer to be empty,
and so does a notification (the kernel takes a lock to count it). Loads are in order on both.

A program is a Python function. It is run from its start for each new history of what it has read, up to the next
access, and must depend on nothing else. States are told apart by both histories, both buffers and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from virtblk.jit import atomics
from virtblk.jit.arith import vring_need_event
from virtblk.jit.kernel import registry

Op = tuple[Any, ...]
TSO, PSO = "TSO", "PSO"


class _Pending(Exception):
    """A replay came to its next access."""


class Failure(NamedTuple):
    """Why a state is wrong, and the steps to it: (thread, access)."""

    why: str
    steps: list[tuple[int, Op]]


def plain(function: Any) -> Any:
    """The Python function of a kernel, compiled or not."""
    return getattr(function, "py_func", function)


def bind(module: ModuleType, access: Callable[..., int], replaced: Mapping[str, Any]) -> SimpleNamespace:
    """The kernels of `module` as Python functions whose accesses are calls of `access`.

    `replaced` breaks them: "function.name" is what this one function sees under `name`, "name" what all see; the value
    is a function, or the name of another one.
    """
    scope = dict(vars(module))
    scope["vring_need_event"] = plain(vring_need_event)
    scope["translate"] = lambda mem, address, length: (address, length)
    for name in scope:
        if hasattr(atomics, name) and name.startswith("load_"):
            scope[name] = lambda address: access("load", int(address))
        elif hasattr(atomics, name) and name.startswith("store_"):
            kind, bits = "release" if "release" in name else "store", int(name.rpartition("_")[2][1:])
            scope[name] = _store(access, kind, (1 << bits) - 1)
    scope["fence_seq_cst"] = lambda: access("fence")
    new = {name: scope[value] if isinstance(value, str) else value for name, value in replaced.items()}
    scope.update({name: value for name, value in new.items() if "." not in name})
    kernels = {name: plain(value) for name, value in vars(module).items() if f"{module.__name__}.{name}" in registry}
    for name, function in kernels.items():
        if name not in new:
            scope[name] = FunctionType(function.__code__, scope, name)
    for name, function in kernels.items():
        own = {key.rpartition(".")[2]: value for key, value in new.items() if key.startswith(f"{name}.")}
        if own:
            scope[name] = FunctionType(function.__code__, {**scope, **own}, name)
    return SimpleNamespace(**{name: scope[name] for name in kernels})


def _store(access: Callable[..., int], kind: str, mask: int) -> Callable[[int, int], int]:
    return lambda address, value: access(kind, int(address), value & mask)


class _Node:
    """A point in a thread's program: its next access, and where that leads for each value that it may return."""

    __slots__ = ("after", "history", "op")

    def __init__(self, op: Op, history: tuple[int, ...]) -> None:
        self.op, self.history = op, history
        self.after: dict[int, _Node] = {}


class Threads:
    """The programs, replayed. `programs` are called with an access function: (kind, address or event, value)."""

    def __init__(self, programs: Sequence[Callable[[Callable[..., int]], None]]) -> None:
        self.programs = programs
        self.roots = [self._run(thread, ()) for thread in range(len(programs))]

    def step(self, thread: int, node: _Node, result: int) -> _Node:
        """Where the thread stands after the access at `node` returned `result`."""
        found = node.after.get(result)
        if found is None:
            found = node.after[result] = self._run(thread, (*node.history, result))
        return found

    def _run(self, thread: int, history: tuple[int, ...]) -> _Node:
        past = iter(history)
        pending: list[Op] = []

        def access(*op: Any) -> int:
            for result in past:
                return result
            pending.append(op)
            raise _Pending

        try:
            self.programs[thread](access)
        except _Pending:
            return _Node(pending[0], history)
        except AssertionError as error:
            return _Node(("wrong", str(error)), history)
        return _Node(("end",), history)


#: A state: where each thread stands, its buffer of (word, value, is a release), memory, notifications that are pending.
_Buffer = tuple[tuple[int, int, bool], ...]
_State = tuple[tuple[_Node, ...], tuple[_Buffer, ...], tuple[int, ...], frozenset[str]]


class Model:
    """All states of `programs` on `machine`, from `memory`. `failure` is the first one found wrong, or None."""

    def __init__(
        self,
        programs: Sequence[Callable[[Callable[..., int]], None]],
        memory: Mapping[int, int],
        machine: str = TSO,
    ) -> None:
        self.machine = machine
        self.threads = Threads(programs)
        self.words: dict[int, int] = {}
        for address in memory:
            self._word(address)
        self.initial = [memory[address] for address in self.words]
        self.states = self.ends = 0
        self.failure = self._explore()

    def _word(self, address: int) -> int:
        return self.words.setdefault(address, len(self.words))

    def _explore(self) -> Failure | None:
        count = len(self.threads.roots)
        first: _State = (tuple(self.threads.roots), ((),) * count, tuple(self.initial), frozenset())
        came_from: dict[_State, tuple[_State, int, Op] | None] = {first: None}
        todo = [first]
        while todo:
            state = todo.pop()
            self.states += 1
            following = self._successors(state)
            wrong = next((node.op[1] for node in state[0] if node.op[0] == "wrong"), None)
            if wrong is None and not following:
                self.ends += 1
                waiting = [node.op for node in state[0] if node.op[0] != "end"]
                wrong = f"everybody sleeps: {waiting}" if waiting else None
            if wrong is not None:
                return Failure(wrong, self._path(came_from, state))
            for thread, op, successor in following:
                if successor not in came_from:
                    came_from[successor] = state, thread, op
                    todo.append(successor)
        return None

    def _path(self, came_from: Mapping[_State, tuple[_State, int, Op] | None], state: _State) -> list[tuple[int, Op]]:
        steps = []
        while (step := came_from[state]) is not None:
            state, thread, op = step
            steps.append((thread, op))
        return steps[::-1]

    def _successors(self, state: _State) -> list[tuple[int, Op, _State]]:
        """What may happen next. A store into a buffer is seen by nobody else: where one can be made, it alone is."""
        found: list[tuple[int, Op, _State]] = []
        for thread, node in enumerate(state[0]):
            if node.op[0] in ("store", "release"):
                kind, address, value = node.op
                entry = (self._word(address), value, kind == "release")
                return [(thread, node.op, self._at(state, thread, 0, buffer=(*state[1][thread], entry)))]
        for thread, node in enumerate(state[0]):
            buffer = state[1][thread]
            for place in self._may_leave(buffer):
                word, value, _ = buffer[place]
                memory = list(state[2])
                memory += [0] * (word + 1 - len(memory))
                memory[word] = value
                rest = buffer[:place] + buffer[place + 1 :]
                found.append((thread, ("reaches memory", word, value), self._leave(state, thread, rest, tuple(memory))))
            step = self._step(state, thread, node.op)
            if step is not None:
                found.append((thread, node.op, step))
        return found

    def _may_leave(self, buffer: _Buffer) -> Iterable[int]:
        """Places in a buffer whose store may reach memory now."""
        if self.machine == TSO:
            return range(min(1, len(buffer)))
        return [
            place
            for place, (word, _, release) in enumerate(buffer)
            if place == 0 or not (release or any(word == earlier for earlier, _, _ in buffer[:place]))
        ]

    def _step(self, state: _State, thread: int, op: Op) -> _State | None:
        kind = op[0]
        buffer, events = state[1][thread], state[3]
        if kind == "load":
            word = self._word(op[1])
            own = [value for at, value, _ in buffer if at == word]
            memory = state[2]
            return self._at(state, thread, own[-1] if own else memory[word] if word < len(memory) else 0)
        if kind == "fence":
            return None if buffer else self._at(state, thread, 0)
        if kind == "notify":
            return None if buffer else self._at(state, thread, 0, events=events | {op[1]})
        if kind == "wait":
            return self._at(state, thread, 0, events=events - {op[1]}) if op[1] in events else None
        assert kind in ("end", "wrong")
        return None

    def _at(
        self,
        state: _State,
        thread: int,
        result: int,
        buffer: _Buffer | None = None,
        events: frozenset[str] | None = None,
    ) -> _State:
        nodes, buffers, memory, pending = state
        node = self.threads.step(thread, nodes[thread], result)
        nodes = (*nodes[:thread], node, *nodes[thread + 1 :])
        if buffer is not None:
            buffers = (*buffers[:thread], buffer, *buffers[thread + 1 :])
        return nodes, buffers, memory, pending if events is None else events

    def _leave(self, state: _State, thread: int, buffer: _Buffer, memory: tuple[int, ...]) -> _State:
        nodes, buffers, _, pending = state
        return nodes, (*buffers[:thread], buffer, *buffers[thread + 1 :]), memory, pending
