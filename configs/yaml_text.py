"""Reads YAML that users wrote: bounded in depth and size, also where aliases multiply it; nothing counts silently."""

from typing import Any, NoReturn

import yaml

from configs.reading import is_unicode

MAX_VALUES = 200_000
MAX_DEPTH = 50
MAX_DIGITS = 40
Where = tuple[str | int, ...]
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it is some six times as fast


class YamlRefused(ValueError):
    """A text isn't YAML, or none that is read: why, in which line, and of which key, where these are known."""

    def __init__(self, reason: str, line: int | None = None, where: Where = ()) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason, self.line, self.where = reason, line, where


class _Loader(_Base):
    """Safe, and without YAML 1.1's octal and sexagesimal numbers."""

    def plain_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.lstrip("+-")
        if ":" in digits:
            self._refuse(
                node, f"{node.value} is a number to the base of 60 in YAML; write it in plain digits, or quoted"
            )
        if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xb":
            self._refuse(node, f"{node.value} is an octal number in YAML; write it without leading 0, or quoted")
        if len(digits) > MAX_DIGITS:
            self._refuse(node, f"a number of {len(digits):,} digits; at most {MAX_DIGITS} are read")
        return int(self.construct_yaml_int(node))

    def plain_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            self._refuse(
                node, f"{node.value} is a number to the base of 60 in YAML; write it in plain digits, or quoted"
            )
        return float(self.construct_yaml_float(node))

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As PyYAML, whose constructors take it for granted that a scalar with a tag fits it."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(node, f"{str(node.value)[:MAX_DIGITS]!r} is no value of the tag {tag}")

    @staticmethod
    def _refuse(node: yaml.Node, message: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.plain_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.plain_float)


class YamlText:
    """A YAML document: its value, and the line of every key and item.

    Raises:
        YamlRefused: it isn't YAML, is too deep or too large, has a key twice, or text that isn't Unicode.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Where, int] = {}
        self.data: Any = None
        try:
            self._check_size(text)
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                if node is not None:
                    self._note_lines(node, ())  # before values are made: aliases can make more of it than its size
                    self.data = loader.construct_document(node)
            finally:
                loader.dispose()
        except YamlRefused:
            raise
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or getattr(error, "reason", None)
            raise YamlRefused(str(problem or error), mark.line + 1 if mark else None) from None
        except (ValueError, TypeError, RecursionError) as error:  # an impossible date, a tag on the wrong value
            raise YamlRefused(" ".join(str(error).split())) from None

    @staticmethod
    def _check_size(text: str) -> None:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if number > 2 * MAX_VALUES or depth > MAX_DEPTH:
                raise _too_large(_line_of(event))

    def _note_lines(self, node: yaml.Node, where: Where) -> None:
        line = node.start_mark.line + 1
        if len(self.lines) > MAX_VALUES or len(where) > MAX_DEPTH:
            raise _too_large(line)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise YamlRefused("a key must be a text", line, where)
                path = (*where, key.value)
                if path in self.lines:
                    raise YamlRefused("is there twice", line, path)
                self.lines[path] = line
                self._note_lines(value, path)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.lines[(*where, i)] = item.start_mark.line + 1
                self._note_lines(item, (*where, i))
        elif not is_unicode(node.value):
            raise YamlRefused("has half of a surrogate pair, which is no character", line, where)


def load_yaml(text: str) -> Any:
    """The value of a YAML document. Raises YamlRefused."""
    return YamlText(text).data


def _too_large(line: int) -> YamlRefused:
    return YamlRefused(f"more than {MAX_VALUES:,} values, or more than {MAX_DEPTH} levels deep", line)


def _line_of(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
