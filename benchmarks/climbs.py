"""How often a parameter climbs: follow it through the calls, and count where it goes from a lower room to a higher one.

python benchmarks/climbs.py study.run:run_study:settings summary.summarize:summarize:results

Nothing is run: modules, imports and calls are read. A *room* is a folder of the package, or a module beside them; it
stands above all that it imports: its floor is the longest path of imports under it, and rooms that import each other
share one. The parameter is followed depth first, in the order of the code, into every function of the package that it
is given to: itself, a part of it (an attribute, an element), or an object that was made to hold it. What is computed
from it is no longer it. A *stay* is a run of functions in one module, one after the other; a *climb* is a step from a
stay to a room on a higher floor. Code that reads like a pipeline resolves its data once and hands on what the next room
uses, so that it climbs little.

On 2026-12-01, before the two were resolved once: the settings of `run_study` 126 stays in 39 modules, 43 climbs; the
results of `summarize` 58 stays in 16 modules, 15 climbs.

A method is found by its class where the code names that, else by its name where one class alone has such a method.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeGuard

import typer

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Kind = Literal["whole", "part", "holder"]
"""the parameter itself, what was taken out of it, or an object that holds it"""
_COPIES = ("model_copy", "replace")
_BUILTIN_METHODS = frozenset(name for one in (str, list, dict, set, tuple) for name in dir(one))


@dataclass(frozen=True)
class Function:
    """A function or method where it stands."""

    module: str
    name: str
    node: FunctionNode
    owner: str | None = None
    """class"""

    @property
    def parameters(self) -> list[ast.arg]:
        arguments = self.node.args
        return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


@dataclass
class Class:
    """Its methods, and its fields in order."""

    methods: dict[str, Function]
    fields: list[str]


@dataclass
class Module:
    """What a file defines, and what its names mean."""

    name: str
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    """local name -> module and the name in it"""
    imports: set[str] = field(default_factory=set)


class Package:
    """All modules of a folder."""

    def __init__(self, folder: Path) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = read_module(name, folder.name, path)
        for module in self.modules.values():
            for target, symbol in module.imported.values():
                submodule = f"{target}.{symbol}".lstrip(".")
                module.imports.add(submodule if submodule in self.modules else target)
            module.imports &= self.modules.keys() - {module.name}
        self.methods: defaultdict[str, list[Function]] = defaultdict(list)
        for module in self.modules.values():
            for owner in module.classes.values():
                for name, method in owner.methods.items():
                    self.methods[name].append(method)

    def resolve(self, module: str, name: str) -> tuple[str, str]:
        """Where a name of a module is defined, through modules that hand it on."""
        while name not in (found := self.modules[module]).functions and name not in found.classes:
            target, symbol = found.imported.get(name, ("", ""))
            if target not in self.modules or (target, symbol) == (module, name) or not symbol:
                break
            module, name = target, symbol
        return module, name

    @cached_property
    def floors(self) -> dict[str, int]:
        """By room the longest path of imports under it; 0 for one that imports none."""
        rooms: defaultdict[str, set[str]] = defaultdict(set)
        for name, module in self.modules.items():
            rooms[room_of(name)] |= {room_of(one) for one in module.imports} - {room_of(name)}
        floors: dict[str, int] = {}
        for circle in strongly_connected(rooms):  # what a circle imports comes before it
            under = {name for one in circle for name in rooms[one] if name not in circle}
            floors |= dict.fromkeys(circle, 1 + max((floors[name] for name in under), default=-1))
        return floors


def room_of(module: str) -> str:
    return module.partition(".")[0]


def read_module(name: str, package: str, path: Path) -> Module:
    """Its definitions and imports, those in functions too, without those for types alone."""
    module = Module(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for top in tree.body:
        if isinstance(top, FunctionNode):
            module.functions[top.name] = Function(name, top.name, top)
        elif isinstance(top, ast.ClassDef):
            methods = {one.name: Function(name, one.name, one, top.name) for one in top.body if is_function(one)}
            fields = [one.target.id for one in top.body if isinstance(one, ast.AnnAssign) and is_name(one.target)]
            module.classes[top.name] = Class(methods, fields)
    for node in nodes_at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.module and (node.module + ".").startswith(package + "."):
            target = node.module.removeprefix(package).lstrip(".")
            module.imported |= {alias.asname or alias.name: (target, alias.name) for alias in node.names}
    return module


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes_at_run_time(node)


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Circles of a graph, each after all that it reaches (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            place = stack.index(name)
            found.append(set(stack[place:]))
            del stack[place:]

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


@dataclass(frozen=True)
class Walked:
    """A function with certain parameters: what of the followed one it returns, and whether it has to do with it."""

    returned: Kind | None
    used: bool


class Walk:
    """A parameter's way: ``entered`` has each function that it came into, in order."""

    def __init__(self, package: Package, module: str, function: str, parameter: str) -> None:
        self._package = package
        self._walked: dict[tuple[str, str | None, str, tuple[tuple[str, Kind], ...]], Walked] = {}
        self.held: defaultdict[str, dict[tuple[str, str], Kind]] = defaultdict(dict)
        """attribute -> class -> what it holds"""
        self.entered: list[Function] = []
        self.enter(package.modules[module].functions[function], {parameter: "whole"})

    def enter(self, function: Function, given: dict[str, Kind]) -> "Walked":
        """Follow it into a function, once for the same parameters. Who gets a holder alone has to take it out of it."""
        place = len(self.entered)
        self.entered.append(function)
        key = (function.module, function.owner, function.name, tuple(sorted(given.items())))
        if key not in self._walked:
            self._walked[key] = Walked(None, used=False)
            body = Body(self, self._package, function, given)
            for statement in function.node.body:
                body.visit(statement)
            used = body.used or not {"holder"}.issuperset(given.values())
            self._walked[key] = Walked(body.returned, used)
        if not self._walked[key].used:
            del self.entered[place:]
        return self._walked[key]


class Body(ast.NodeVisitor):
    """One function's statements in order, with the names that the parameter has in it."""

    def __init__(self, walk: Walk, package: Package, function: Function, given: dict[str, Kind]) -> None:
        self._walk, self._package, self._function = walk, package, function
        self._names = dict(given)
        self._calls: dict[ast.Call, Kind | None] = {}
        self._types: dict[str, tuple[str, str]] = {}
        self.returned: Kind | None = None
        self.used = False
        for one in function.parameters:
            if isinstance(one.annotation, ast.Name) and (owner := self._class(one.annotation.id)):
                self._types[one.arg] = owner

    def kind(self, node: ast.AST | None) -> Kind | None:
        """What of the parameter an expression is."""
        match node:
            case ast.Name():
                return self._names.get(node.id)
            case ast.Attribute():
                return self._kind_of_attribute(node)
            case ast.Subscript() | ast.Starred() | ast.Await():
                return self._part(self.kind(node.value))
            case ast.Call():
                return self._calls.get(node)
            case ast.NamedExpr():
                return self.kind(node.value)
            case ast.IfExp():
                return self._first(node.body, node.orelse)
            case ast.BoolOp():
                return self._first(*node.values)
            case ast.Tuple() | ast.List() | ast.Set():
                return self._first(*node.elts)
            case ast.Dict():
                return self._first(*node.values)
            case ast.DictComp():
                return self.kind(node.value)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                return self.kind(node.elt)
        return None

    def _first(self, *nodes: ast.expr) -> Kind | None:
        return next(filter(None, map(self.kind, nodes)), None)

    def _part(self, kind: Kind | None) -> Kind | None:
        return "part" if kind == "whole" else kind

    def _kind_of_attribute(self, node: ast.Attribute) -> Kind | None:
        if is_name(node.value) and node.value.id == "self" and self._function.owner:
            kind = self._walk.held[node.attr].get((self._function.module, self._function.owner))
            self.used = self.used or kind in ("whole", "part")
            return kind
        kind = self.kind(node.value)
        if kind == "holder":
            kind = next(iter(self._walk.held[node.attr].values()), None)
            self.used = self.used or kind in ("whole", "part")
            return kind
        return self._part(kind)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
        if isinstance(node.func, ast.Attribute) and node.func.attr in (*_COPIES, "items", "values", "get"):
            self._calls[node] = self.kind(receiver)
        if is_name(node.func) and node.func.id in (*_COPIES, "tuple", "list", "dict", "sorted", "zip", "enumerate"):
            self._calls[node] = self._first(*node.args)
        owner = self._class(node.func.id) if is_name(node.func) else None
        callee = self._callee(node.func)
        if owner is not None:
            self._calls[node] = self._make(owner, node)
        if callee is None:
            return
        given = {name: kind for name, value in self._arguments(node, callee) if (kind := self.kind(value))}
        if given or (callee.owner is not None and self._is_holder(receiver, callee)):
            walked = self._walk.enter(callee, given)
            self.used = self.used or walked.used
            if owner is None:
                self._calls[node] = walked.returned

    def _make(self, owner: tuple[str, str], node: ast.Call) -> Kind | None:
        """A constructor makes a holder of what is given the parameter itself, or another holder."""
        names = self._package.modules[owner[0]].classes[owner[1]].fields
        given = [*zip(names, node.args, strict=False), *((one.arg, one.value) for one in node.keywords)]
        kinds = [self.kind(value) for value in (*node.args, *(one.value for one in node.keywords))]
        for name, value in given:
            kind = self.kind(value)
            if name and kind in ("whole", "holder"):
                self._walk.held[name][owner] = kind
        return "holder" if {"whole", "holder"}.intersection(kinds) else None

    def _arguments(self, node: ast.Call, callee: Function) -> Iterator[tuple[str, ast.expr]]:
        names = [one.arg for one in callee.parameters]
        yield from zip(
            names[1:] if callee.owner and names[:1] in (["self"], ["cls"]) else names, node.args, strict=False
        )
        yield from ((one.arg, one.value) for one in node.keywords if one.arg)

    def _is_holder(self, receiver: ast.expr | None, callee: Function) -> bool:
        if is_name(receiver) and receiver.id == "self":
            return any((callee.module, callee.owner) in owners for owners in self._walk.held.values())
        return self.kind(receiver) is not None

    def _callee(self, function: ast.expr) -> Function | None:
        if is_name(function):
            module, name = self._package.resolve(self._function.module, function.id)
            found = self._package.modules[module]
            return found.classes[name].methods.get("__init__") if name in found.classes else found.functions.get(name)
        if not isinstance(function, ast.Attribute):
            return None
        owner = self._type_of(function.value)
        if owner is not None:
            return self._package.modules[owner[0]].classes[owner[1]].methods.get(function.attr)
        named = self._package.methods[function.attr]
        return named[0] if len(named) == 1 and function.attr not in _BUILTIN_METHODS else None

    def _type_of(self, node: ast.expr) -> tuple[str, str] | None:
        if is_name(node):
            if node.id == "self" and self._function.owner:
                return self._function.module, self._function.owner
            return self._types.get(node.id) or self._class(node.id)
        return self._class(node.func.id) if isinstance(node, ast.Call) and is_name(node.func) else None

    def _class(self, name: str) -> tuple[str, str] | None:
        module, found = self._package.resolve(self._function.module, name)
        return (module, found) if found in self._package.modules[module].classes else None

    def visit_Raise(self, node: ast.Raise) -> None:
        """What an error tells of it is its end."""

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        kind = self.kind(node.value)
        self.returned = self.returned or (kind if kind != "part" else None)

    def _bind(self, targets: Iterable[ast.expr], value: ast.expr | None, *, element: bool = False) -> None:
        kind = self._part(self.kind(value)) if element else self.kind(value)
        for target in targets:
            if is_name(target) and value is not None and (owner := self._type_of(value)):
                self._types[target.id] = owner
            if kind is None:
                continue
            for one in ast.walk(target):
                if is_name(one) and isinstance(one.ctx, ast.Store):
                    self._names[one.id] = kind
                elif isinstance(one, ast.Attribute) and ast.unparse(one.value) == "self" and self._function.owner:
                    self._walk.held[one.attr][self._function.module, self._function.owner] = kind

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._bind(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._bind([node.target], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind([node.target], node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind([node.target], node.iter, element=True)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._bind([item.optional_vars], item.context_expr)
        for statement in node.body:
            self.visit(statement)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)
        self._bind([node.target], node.iter, element=True)
        for test in node.ifs:
            self.visit(test)

    def _visit_generators_first(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for part in node.generators:
            self.visit(part)
        for value in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(value)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_generators_first  # noqa: N815


def is_name(node: object) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def is_function(node: ast.AST) -> TypeGuard[FunctionNode]:
    return isinstance(node, FunctionNode)


def main(
    places: Annotated[list[str], typer.Argument(help="MODULE:FUNCTION:PARAMETER, the module without `bitladder.`")],
    route: Annotated[bool, typer.Option(help="print each stay with its floor")] = False,
    package: Annotated[Path, typer.Option(help="folder of the package")] = PACKAGE,
) -> None:
    """Print stays, modules and climbs of each parameter."""
    read = Package(package)
    for place in places:
        module, function, parameter = place.split(":")
        walk = Walk(read, module, function, parameter)
        stays = [(name, list(group)) for name, group in groupby(walk.entered, key=lambda one: one.module)]
        floors = [read.floors[room_of(name)] for name, _ in stays]
        for floor, (name, group) in zip(floors, stays, strict=True) if route else ():
            typer.echo(f"{floor:>3}  {name}: {', '.join(dict.fromkeys(one.name for one in group))}")
        climbs = sum(low < high for low, high in pairwise(floors))
        modules = len({name for name, _ in stays})
        typer.echo(f"{place}: {len(stays)} stays in {modules} modules, {climbs} climbs")


if __name__ == "__main__":
    typer.run(main)
