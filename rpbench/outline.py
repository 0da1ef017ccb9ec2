"""What the file of a scheme or sampler says without being run: name, options, docstring, hash.

Lists, reports and sweeps look at every scheme and run none: a file may be a stranger's, and torch stays unimported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Literal, Optional

from rpbench import options
from rpbench.errors import UsageError

Word = Literal["scheme", "sampler"]
Kind = Literal["shape", "score", "mask"]
DECORATORS: dict[str, Kind] = {"shape_scheme": "shape", "score_scheme": "score", "mask_sampler": "mask"}
WORDS: dict[Kind, Word] = {"shape": "scheme", "score": "scheme", "mask": "sampler"}
KEYWORDS: dict[Kind, tuple[str, ...]] = {"shape": ("density",), "score": (), "mask": ("exact", "scored", "wired")}
HOMES = ("rpbench", "rpbench.scheme", "rpbench.sampler")
TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "pathlib.Path": Path, "Path": Path}
LARGEST = 2**20  # bytes of a file that is read


@dataclass(frozen=True)
class Outline:
    """A scheme or sampler as far as its file tells without being run.

    `module` is what is imported to have it where it belongs to a package, '' for a file of its own. `density` is the
    only one that a scheme is defined for; `exact`, `scored` and `wired` are a sampler's.
    """

    name: str
    kind: Kind
    path: Path
    doc: str
    signature: inspect.Signature
    source_hash: str
    density: float | None = None
    exact: bool = True
    scored: bool = False
    wired: bool = False
    module: str = ""

    @property
    def word(self) -> Word:
        return WORDS[self.kind]

    @property
    def summary(self) -> str:
        return options.first_sentence(self.doc)

    @property
    def url(self) -> str:
        return options.first_url(self.doc)

    @property
    def options(self) -> dict[str, Any]:
        """Defaults by name; None for one that must be given (`needs`)."""
        return {p.name: None if p.default is p.empty else p.default for p in self._keywords()}

    @property
    def needs(self) -> tuple[str, ...]:
        """Options without a default."""
        return tuple(p.name for p in self._keywords() if p.default is p.empty)

    def _keywords(self) -> Iterator[inspect.Parameter]:
        return (p for p in self.signature.parameters.values() if p.kind is p.KEYWORD_ONLY)


def read_file(path: Path, word: Word, name: str = "", module: str = "") -> Outline:
    """The outline of the scheme or sampler in a file: the function called `name`, else the one of the file's own name,
    else the only one.

    Raises UsageError where there is none, or where something of it is not to be known without running the file.
    """
    if not path.is_file():
        raise UsageError(f"{word} file '{path}' does not exist")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{word} file '{path}' cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise UsageError(f"{word} file '{path}' is longer than the {LARGEST:,} bytes that are read")
    source = _Source(path, word, _parsed(path, word, content))
    return source.outline(name, hashlib.sha256(content).hexdigest(), module)


def read_module(word: Word, value: str, who: str) -> Outline:
    """The outline behind an entry point 'package.module:function'; no module of the package is imported."""
    module, _, name = value.partition(":")
    module, name = module.strip(), name.partition("[")[0].strip()
    path = find_source(module)
    if path is None:
        raise UsageError(f"{who} ({value}): there is no Python file of module '{module}'")
    return read_file(path, word, name, module)


def find_source(module: str) -> Path | None:
    """The file of a module, found without importing any of its parents; None where there is none."""
    top, *rest = module.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(top)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            # asked for by its last name alone: a folder without __init__.py looks for an imported parent otherwise
            spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _parsed(path: Path, word: str, content: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings: whoever runs it hears of them
            return ast.parse(content)
    except SyntaxError as error:
        where = f" ({path.name}, line {error.lineno})" if error.lineno else ""
        raise UsageError(f"{word} file '{path}' does not load: {type(error).__name__}: {error.msg}{where}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{word} file '{path}' does not load: {type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class _Source:
    """A parsed file, and what its names mean."""

    path: Path
    word: Word
    tree: ast.Module

    def outline(self, name: str, source_hash: str, module: str) -> Outline:
        function = self._function(name)
        kind, said = self._decorator(function)
        try:
            signature = inspect.Signature(list(self._parameters(function)))
        except ValueError as error:  # of names that stand there twice, which the parser takes
            raise UsageError(f"{self._at(function)}: '{function.name}' has no signature: {error}") from None
        return Outline(
            name=function.name,
            kind=kind,
            path=self.path,
            doc=ast.get_docstring(function) or "",
            signature=signature,
            source_hash=source_hash,
            module=module,
            **said,
        )

    def _function(self, name: str) -> ast.FunctionDef:
        found = {f.name: f for f in self.tree.body if isinstance(f, ast.FunctionDef) and self._kind(f) is not None}
        if name:
            if name not in found:
                raise UsageError(f"{self.path} defines no {self.word} function '{name}'{self._hint(name)}")
            chosen = found[name]
        elif self.path.stem in found:
            chosen = found[self.path.stem]
        elif len(found) == 1:
            chosen = next(iter(found.values()))
        else:
            has = ", ".join(found) or "none"
            told = f"'{self.path}' must define one {self.word} (or one called '{self.path.stem}'): it has {has}"
            raise UsageError(told + ("" if found else self._hint()))
        after = self.tree.body[self.tree.body.index(chosen) + 1 :]
        if again := next((n for n in after if chosen.name in _bound(n)), None):
            raise UsageError(f"{self._at(again)}: '{chosen.name}' is bound again there: give that another name")
        return chosen

    def _hint(self, name: str = "") -> str:
        """Why there is none, where that can be seen."""
        decorators = " or ".join(f"@{d}" for d, kind in DECORATORS.items() if WORDS[kind] == self.word)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and any(name and (a.asname or a.name) == name for a in node.names):
                home = "." * node.level + (node.module or "")
                return f": it imports it from {home}, so name that module"
            if isinstance(node, ast.FunctionDef) and name in ("", node.name) and self._kind(node) is not None:
                return f"; '{node.name}' (line {node.lineno}) must stand at the top level of the file"
            if isinstance(node, ast.Call) and not name:
                home, _, last = self._dotted(node.func).rpartition(".")
                if home in HOMES and last in (*DECORATORS, "Scheme", "Sampler"):
                    return f": line {node.lineno} makes one by a call; write {decorators} above a def"
        return f": write {decorators} above it" if name else ""

    def _kind(self, function: ast.FunctionDef) -> Kind | None:
        """What a function is decorated as, None for one that is no scheme or sampler of the word looked for."""
        for decorator in function.decorator_list:
            node = decorator.func if isinstance(decorator, ast.Call) else decorator
            home, _, last = self._dotted(node).rpartition(".")
            if home in HOMES and last in DECORATORS and WORDS[DECORATORS[last]] == self.word:
                return DECORATORS[last]
        return None

    def _decorator(self, function: ast.FunctionDef) -> tuple[Kind, dict[str, Any]]:
        """The kind, and what the decorator is told; others may stand below ours, where they wrap the function alone."""
        kind = self._kind(function)
        assert kind is not None
        first = function.decorator_list[0]
        node = first.func if isinstance(first, ast.Call) else first
        home, _, last = self._dotted(node).rpartition(".")
        if home not in HOMES or last not in DECORATORS:
            raise UsageError(
                f"{self._at(first)}: {_text(first)} makes something else of '{function.name}': write the decorator of "
                f"rpbench above it"
            )
        if not isinstance(first, ast.Call):
            return kind, {}
        if first.args or any(k.arg not in KEYWORDS[kind] for k in first.keywords):
            may = ", ".join(f"{k}=..." for k in KEYWORDS[kind]) or "no arguments"
            raise UsageError(f"{self._at(first)}: @{last} takes {may}: '{_text(first)}'")
        said: dict[str, Any] = {}
        for keyword in first.keywords:
            assert keyword.arg is not None
            value = _literal(keyword.value)
            right, must = (bool, "True or False") if kind == "mask" else ((int, float), "a number")
            if not isinstance(value, right) or (kind != "mask" and isinstance(value, bool)):
                raise UsageError(
                    f"{self._at(first)}: {keyword.arg} of '{function.name}' is `{_text(keyword.value)}`: "
                    f"write {must} there"
                )
            said[keyword.arg] = value if kind == "mask" else float(value)
        return kind, said

    def _parameters(self, function: ast.FunctionDef) -> Iterator[inspect.Parameter]:
        arguments, make = function.args, inspect.Parameter
        for a in arguments.posonlyargs:
            yield make(a.arg, make.POSITIONAL_ONLY)
        for a in arguments.args:
            yield make(a.arg, make.POSITIONAL_OR_KEYWORD)
        if arguments.vararg:
            yield make(arguments.vararg.arg, make.VAR_POSITIONAL)
        for a, given in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            where = f"{self._at(a)}: option '{a.arg}' of '{function.name}'"
            yield make(
                a.arg,
                make.KEYWORD_ONLY,
                default=make.empty if given is None else _default(given, where),
                annotation=make.empty if a.annotation is None else self._type(a.annotation, where),
            )
        if arguments.kwarg:
            yield make(arguments.kwarg.arg, make.VAR_KEYWORD)

    def _type(self, node: ast.expr, where: str) -> Any:
        """The type that an annotation means; UsageError for one that no option can have."""
        found = self._known_type(node)
        if found is None:
            raise UsageError(
                f"{where} has the type `{_text(node)}`: write int, float, str, bool, Path, Literal[...], "
                "or one of them | None"
            )
        return found

    def _known_type(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return self._known_type(ast.parse(node.value, mode="eval").body)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return None
        if isinstance(node, ast.Name | ast.Attribute):
            return TYPES.get(self._dotted(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = [node.left, node.right]
            known = [self._known_type(side) for side in sides if not _is_none(side)]
            return Optional[known[0]] if len(known) == 1 and known[0] is not None else None  # noqa: UP045
        if isinstance(node, ast.Subscript):
            last = self._dotted(node.value).rpartition(".")[2]
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if last == "Literal":
                values = tuple(_literal(part) for part in parts)
                plain = values and all(isinstance(v, str | int | bool) for v in values)
                return Literal[values] if plain else None
            known = [self._known_type(part) for part in parts if not _is_none(part)]
            if len(known) == 1 and known[0] is not None and last in ("Optional", "Union"):
                return Optional[known[0]]  # noqa: UP045
        return None

    def _dotted(self, node: ast.expr) -> str:
        """What a name or attribute stands for, as 'rpbench.shape_scheme'; '' where that is not to be seen."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        first = self._imported.get(node.id, node.id)
        if first == node.id and node.id in DECORATORS and "*" in self._imported:
            first = f"rpbench.{node.id}"
        return ".".join([first, *reversed(parts)])

    @cached_property
    def _imported(self) -> Mapping[str, str]:
        """Names that imports at the top level bind, and what they stand for; '*' for everything of rpbench."""
        found: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                for a in node.names:
                    found[a.asname or a.name.partition(".")[0]] = a.name if a.asname else a.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for a in node.names:
                    if a.name != "*":
                        found[a.asname or a.name] = f"{node.module}.{a.name}"
                    elif node.module in HOMES:
                        found["*"] = node.module
        return found

    def _at(self, node: ast.AST) -> str:
        return f"{self.word} file '{self.path}', line {getattr(node, 'lineno', 0)}"


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement at the top level binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {a.asname or a.name for a in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store | ast.Del)}


def _default(node: ast.expr, where: str) -> Any:
    value = _literal(node)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, str | int | float | bool | None) or not finite:
        raise UsageError(
            f"{where} has the default `{_text(node)}`: write its value there (a number, a text, True, False or None)"
        )
    return value


def _literal(node: ast.expr) -> Any:
    """The value of a literal; `...` for what is none (no value of an option)."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ...


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _text(node: ast.expr) -> str:
    try:
        text = " ".join(ast.unparse(node).split())
    except RecursionError:
        return "..."
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else f"{text[:57]}..."
